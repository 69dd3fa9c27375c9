"""The options of hako-policy that add to a policy, as a policy.Policy of what they say."""

import os

from hako import policy, policy_keys, sandbox, values
from hako.failure import Failure, call, show

WORK = "/hako"  # where --work-dir is seen


def from_args(args):
    """What the options among ARGS, docopt's dictionary, add to a policy and put in its place, for merge()."""
    network, options = network_of(args.get("--network"))
    return policy.Policy(
        tree=tree_of(args),
        cwd=values.word(args, "--chdir") or (WORK if args.get("--work-dir") is not None else None),
        env=dict(values.variable("--env", text) for text in args.get("--env") or ()),
        limits=limits_of(args),
        user=values.word(args, "--user"),
        group=values.word(args, "--group"),
        uid=id_of(args, "--uid"),
        gid=id_of(args, "--gid"),
        hostname=hostname_of(args.get("--hostname")),
        network=network,
        network_options=options,
        seccomp=seccomp_of(values.word(args, "--seccomp")),
    )


def tree_of(args):
    """What the options among ARGS put into the root; two options at one place are an error."""
    found = [("--proc", sandbox.Proc())] if args.get("--proc") else []
    found += [("--dev", sandbox.Dev())] if args.get("--dev") else []
    for option, entry_of in ENTRIES.items():
        given = args.get(option)
        found += [(option, entry_of(option, text)) for text in ([given] if isinstance(given, str) else given or ())]
    kinds = {}
    for option, entry in found:
        other = kinds.setdefault(sandbox.steps(entry.dst), option)
        if other != option:
            raise Failure(f"{option}: {other} has put something else at {show(entry.dst)} already")
    return [entry for _, entry in found]


def bind_of(option, spec, flags):
    """The Bind with FLAGS that SPEC, SRC[:DST], the value of OPTION, means."""
    src, *dsts = sandbox.split(spec)
    if not src or len(dsts) > 1:
        raise Failure(f"{option}: not SRC or SRC:DST: {spec!r}")
    if not dsts:
        with call("getcwd"):
            dsts = [os.path.abspath(src)]
    return sandbox.Bind(src, place_of(option, dsts[0], spec), {*flags, *(["dev"] if sandbox.is_device(src) else [])})


def tmpfs_of(option, spec):
    """The Tmpfs that SPEC, DST[:SIZE], the value of OPTION, means."""
    place_of(option, sandbox.split(spec)[0], spec)
    made = sandbox.tmpfs(option, spec)
    made.dst = policy_keys.place(made.dst)
    return made


def symlink_of(option, spec):
    """The Symlink that SPEC, TARGET:LINK, the value of OPTION, means."""
    fields = sandbox.split(spec)
    if len(fields) != 2 or not fields[0]:
        raise Failure(f"{option}: not TARGET:LINK: {spec!r}")
    return sandbox.Symlink(fields[0], place_of(option, fields[1], spec))


def file_of(option, spec):
    """The File that SPEC, DST=CONTENTS, the value of OPTION, means."""
    dst, given, contents = spec.partition("=")
    if not given:
        raise Failure(f"{option}: not DST=CONTENTS: {spec!r}")
    return sandbox.File(place_of(option, dst, spec), contents)


def place_of(option, path, spec):
    """PATH, a part of SPEC, the value of OPTION, as a place below the root."""
    problem = policy_keys.place_problem(path)
    if problem:
        raise Failure(f"{option}: {problem}: {spec!r}")
    return policy_keys.place(path)


ENTRIES = {
    "--ro-bind": lambda option, spec: bind_of(option, spec, ("ro",)),
    "--rw-bind": lambda option, spec: bind_of(option, spec, ()),
    "--tmpfs": tmpfs_of,
    "--symlink": symlink_of,
    "--file": file_of,
    "--work-dir": lambda option, path: sandbox.Bind(values.word({option: path}, option), WORK),
}


def id_of(args, option):
    """The id that OPTION in ARGS gives, None if it is not given."""
    text = args.get(option)
    return None if text is None else values.whole(option, text, policy_keys.LARGEST_ID)


def limits_of(args):
    """The limits that the options --limit-NAME among ARGS give."""
    found = {}
    for name in (*policy_keys.LIMITS, "walltime"):
        option = f"--limit-{name}"
        if args.get(option) is not None:
            found[name] = limit_of(option, name, args[option])
    return found


def limit_of(option, name, text):
    """TEXT, the value of OPTION, as the limit NAME."""
    if name == "walltime":
        number, least, most = values.seconds(option, text), 0, policy_keys.MOST_SECONDS
    else:
        sized, least, most = policy_keys.LIMITS[name]
        number = (values.size if sized else values.whole)(option, text)
    if not least <= number <= most:
        raise Failure(f"{option}: not from {least} to {most}: {text!r}")
    return number


def hostname_of(text):
    """TEXT, the value of --hostname or None, checked."""
    if text is not None and not 0 < len(os.fsencode(text)) <= policy_keys.MOST_HOSTNAME:
        raise Failure(f"--hostname: not of 1 to {policy_keys.MOST_HOSTNAME} bytes: {text!r}")
    return text


def network_of(text):
    """TEXT, the value of --network or None, as mode and options."""
    if text is None:
        return None, ()
    mode, _, options = text.partition(":")
    if mode == "pasta":
        return mode, tuple(options.split(",")) if options else ()
    if text not in ("none", "host") and "/" not in text:
        raise Failure(f"--network: neither none, host, pasta[:ARGS] nor a file with a slash: {text!r}")
    return text, ()


def seccomp_of(text):
    """TEXT, the value of --seccomp or None, as rules, checked to be there."""
    if text is None:
        return None
    try:
        return policy_keys.rules_named(text, "")
    except Failure as err:
        raise Failure(f"--seccomp: {err}") from err
