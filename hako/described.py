"""What the keyword arguments of hako.Sandbox mean: a plan, and how PROG starts."""

import os

from hako import identity, limits, policy, policy_keys, policy_options, policy_plan, rlimits, sandbox, values
from hako.failure import Failure
from hako.plan import Plan

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHARED = ("memory", "swap", "pids", "cpu", "cpu_weight", "time", "cpu_time", "output", "tolerate", "parent")
OF_ROOT = ("writable", "overlay", "changes")  # that a policy has no say in, or cannot have
OF_POLICY = ("symlinks", "files", "work_dir")  # what is made in an empty root
READERS = {
    "memory": lambda text: limits.memory("memory", text),
    "swap": lambda text: values.size("swap", text),
    "pids": lambda text: limits.pids("pids", text),
    "cpu": lambda text: limits.positive("cpu", text),
    "cpu_weight": lambda text: limits.weight("cpu_weight", text),
    "time": lambda text: values.seconds("time", text),
    "cpu_time": lambda text: values.seconds("cpu_time", text),
    "output": lambda text: limits.output("output", text),
}
CALLED = {"--cap-add": "capabilities"}  # options that are called otherwise here


class Described:
    """A hako.Sandbox as the engine has it.

    plan     the plan.Plan
    env      {NAME: VALUE} of PROG
    chdir    where it starts
    limits   the limits.Limits
    changes  whether what changed in the overlay is listed
    """

    __slots__ = ("changes", "chdir", "env", "limits", "plan")


def describe(given):
    """The Described of GIVEN, keyword arguments of hako.Sandbox that are not None, of plain types."""
    made = Described()
    try:
        (of_policy if given.get("root") is None else of_root)(made, given)
    except Failure as err:  # of what the commands have as options
        option, colon, rest = str(err).partition(":")
        if not option.startswith("--"):
            raise
        name = CALLED.get(option) or option[2:].replace("-", "_")
        raise Failure(name + colon + rest, errno=err.errno) from err
    made.env.update(given.get("env", {}))
    made.chdir = given.get("chdir", made.chdir)
    made.changes = bool(given.get("changes"))
    if made.changes and made.plan.box.overlay is None:
        raise Failure("changes: needs overlay")
    for name in given.get("share", ()):
        if name not in ("cgroup", "ipc", "uts"):
            raise Failure(f"share: not cgroup, ipc or uts: {name!r} [network='host' shares the network]")
    made.plan.box.share = tuple({*made.plan.box.share, *given.get("share", ())})
    if "uts" in made.plan.box.share and made.plan.box.hostname is not None:
        raise Failure("hostname: with share of uts it would be the host's own that changes")
    limit(made, given)
    return made


def of_policy(made, given):
    """Fill in MADE as a policy says, and GIVEN."""
    for name in OF_ROOT:
        if name in given:
            raise Failure(f"{name}: needs root")
    binds = [sandbox.bind("mounts", spec) for spec in given.get("mounts", ())]
    args = {
        "--tmpfs": given.get("tmpfs", ()),
        "--proc": given.get("proc"),
        "--dev": given.get("dev"),
        "--symlink": (),
        "--file": (),
        "--work-dir": given.get("work_dir"),
        "--user": given.get("user"),
        "--group": given.get("group"),
        "--uid": text_of(given.get("uid")),
        "--gid": text_of(given.get("gid")),
        "--hostname": given.get("hostname"),
        "--network": given.get("network"),
        "--seccomp": given.get("seccomp"),
    }
    added = policy_options.from_args(args)
    added.tree += [sandbox.Bind(bind.src, place("mounts", bind.dst), flags_of(bind)) for bind in binds]
    added.tree += [sandbox.Symlink(goal, place("symlinks", dst)) for dst, goal in given.get("symlinks", {}).items()]
    added.tree += [sandbox.File(place("files", dst), contents) for dst, contents in given.get("files", {}).items()]
    wanted = policy.merge(policy.load(given.get("policy", "default")), added)
    made.plan = policy_plan.plan(wanted, given.get("capabilities", ()))
    made.env = {name: os.environ[name] if value is None else value for name, value in variables(wanted)}
    made.chdir = wanted.cwd or "/"
    restrict(made, given)


def variables(wanted):
    """The environment of the policy WANTED: [(NAME, VALUE or None for the caller's)]."""
    for name, value in policy.variables(wanted):
        if value is None and name not in os.environ:
            raise Failure(f"env: not set here: {name!r}")
        yield name, value


def place(name, path):
    """PATH of the argument NAME as a place below the root."""
    problem = policy_keys.place_problem(path)
    if problem:
        raise Failure(f"{name}: {problem}: {path!r}")
    return policy_keys.place(path)


def flags_of(bind):
    """The flags of BIND, with that of a device if it shows one."""
    return {*bind.flags, *(["dev"] if sandbox.is_device(bind.src) else [])}


def text_of(number):
    """NUMBER as text, None as it is."""
    return None if number is None else str(number)


def of_root(made, given):
    """Fill in MADE for a prepared directory, as GIVEN says."""
    for name in OF_POLICY:
        if name in given:
            raise Failure(f"{name}: nothing is made in root")
    if given.get("policy") is not None:
        raise Failure("policy and root: one of them")
    mounts = [sandbox.tmpfs("tmpfs", spec) for spec in given.get("tmpfs", ())]
    mounts += [sandbox.Proc()] if given.get("proc") else []
    mounts += [sandbox.Dev()] if given.get("dev") else []
    mounts += [sandbox.bind("mounts", spec) for spec in given.get("mounts", ())]
    user, group = given.get("user"), given.get("group")
    if (user is not None and given.get("uid") is not None) or (group is not None and given.get("gid") is not None):
        raise Failure("user and uid, group and gid: one of each")
    user, group = user or text_of(given.get("uid")), group or text_of(given.get("gid"))
    box = sandbox.Sandbox(
        target=given["root"],
        mounts=sandbox.ordered(mounts),
        writable=bool(given.get("writable")),
        network=given.get("network", "none"),
        hostname=given.get("hostname"),
        userns="always",
    )
    if given.get("overlay") is not None:
        box.overlay = sandbox.overlay("overlay", given["overlay"])
        if box.writable:
            raise Failure("writable and overlay: one of them")
    made.plan = Plan(box, identity.resolve(user, group, given.get("capabilities", ())))
    made.env, made.chdir = {}, "/"
    rules = given.get("seccomp", "none")
    if rules != "none":
        from hako import rules as files

        beside = [os.path.dirname(rules)] if "/" in rules else []
        made.plan.filtered(files.program(rules, beside, made.plan.capabilities()))
    restrict(made, given)


def restrict(made, given):
    """Put the resource limits and the Landlock of GIVEN into the plan of MADE."""
    if given.get("rlimits"):
        found = {name: (soft, hard) for name, _, (soft, hard) in made.plan.rlimits}
        made.plan.limited(
            {
                **{name.removeprefix("RLIMIT_").lower(): pair for name, pair in found.items()},
                **{name: rlimit(name, value) for name, value in given["rlimits"].items()},
            }
        )
    allowed = given.get("landlock")
    if allowed is None:
        return
    if made.plan.landlock is not None:
        raise Failure("landlock: the policy has one")
    from hako import landlock

    known = (*landlock.ACCESS, *landlock.TCP, "scope")
    for name in allowed:
        if name not in known:
            raise Failure(f"landlock: none of {', '.join(known)}: {name!r}")
    made.plan.restricted(pairs(allowed, landlock.ACCESS), pairs(allowed, landlock.TCP), allowed.get("scope", ()))


def pairs(allowed, names):
    """Those of NAMES in ALLOWED, each with each of what it lists; None if none is there."""
    if not any(name in allowed for name in names):
        return None
    return [(name, item) for name in names for item in allowed.get(name, ())]


def rlimit(name, value):
    """VALUE, a number or text, of the resource limit NAME as a pair."""
    if name not in rlimits.LIMITS:
        raise Failure(f"rlimits: no such limit: {name!r}")
    try:
        return rlimits.pair(name, str(value))
    except Failure as err:
        raise Failure(f"rlimits: {str(err).removeprefix('--')}") from err


def limit(made, given):
    """Put the limits of GIVEN over those of the plan of MADE."""
    found, of_plan = {}, made.plan.limits
    for name in SHARED:
        found[name] = getattr(of_plan, name)
    for name, reader in READERS.items():
        if given.get(name) is not None:
            found[name] = reader(str(given[name]))
    found["tolerate"] = tuple(given.get("tolerate", found["tolerate"]))
    found["parent"] = given.get("parent")
    made.limits = limits.Limits(
        **found, files=of_plan.files, called={**of_plan.called, **{name: name for name in READERS}}
    )
    if made.limits.swap is not None and made.limits.memory is None:
        raise Failure("swap: needs memory")
    for name in made.limits.tolerate:
        if name not in made.limits.needed():
            raise Failure(f"tolerate: there is no limit of {name!r} to tolerate")
    if made.limits.parent is not None and not made.limits.needed():
        raise Failure("parent: there is no limit that takes a cgroup")
    if made.plan.box.network == "pasta":
        raise Failure("network: pasta is for hako-run and hako-policy alone")
