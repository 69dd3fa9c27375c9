"""What hako-policy is to build: the policy language, from names, files and options to a checked description.

Nothing is built here. Read are only the policy file, what it includes and what
fs_read_to_string names; looked up, the caller's environment and home.
"""

import os

from hako import bpf, policy_keys, rules, sandbox, toml
from hako.failure import Failure, show

POLICIES = os.path.join(os.path.dirname(__file__), "policies")
OF_THE_HOST = "/etc/hako/policies"
OF_THE_USER = ".config/hako/policies"
MOST_DEPTH = 8  # of includes
MOST_INCLUDES = 64
ENOENT, ENOTDIR = 2, 20

SCALARS = ("name", "procfs", "writable", "size", "hostname", "seccomp", "cmdline", "cwd")
IDS = ("uid", "gid", "user", "group")
TABLES = ("share", "limits", "cgroup", "landlock_scopes")
RESTRICTIONS = ("landlock_paths", "landlock_ports")


class Policy:
    """What hako-policy builds around PROG; None, or nothing in it, is what nobody asked for.

    name             where it came from, for messages
    tree             what is put into the empty root, parents first, one at a place:
                     [Bind, Tmpfs, Proc, Dev, Directory, Symlink or File of hako.sandbox]
    procfs           whether something is at /proc: without a word, a fresh proc is
    writable, size   of the root: whether PROG may write it, and the bytes that it holds
    network          none, host, pasta, or the file of a network namespace
    network_options  arguments of pasta
    share            {cgroup, ipc or uts: True} for the namespaces of the host that PROG stays in
    hostname         the name of the host, inside
    uid, gid         ids inside, numbers
    user, group      names or numbers, for the host to look up
    env              {NAME: VALUE, or None for the caller's, which must be set}
    passed           {NAME: True} for variables that have the caller's value, if the caller has one
    limits           {name, as in --limit-NAME: number}; walltime is a float
    cgroup           {swap, cpu or cpu_weight: number; CONTROLLER.FILE: text to write}
    seccomp          the name of a profile, a file, or (action for others, names of calls); see filter_program()
    landlock_paths   {PATH inside: ro, rw, rx or rwx}: nothing else may be done to files; None: as they are
    landlock_ports   {(bind_tcp or connect_tcp, port): True}: nothing else may be done by TCP; None: all may
    landlock_scopes  {abstract-unix or signal: True}
    cmdline          PROG and ARG, if the caller names none
    cwd              the directory, inside, where PROG starts
    """

    __slots__ = (
        *("cgroup", "cmdline", "cwd", "env", "gid", "group", "hostname"),
        *("landlock_paths", "landlock_ports", "landlock_scopes", "limits", "name", "network", "network_options"),
        *("passed", "procfs", "seccomp", "share", "size", "tree", "uid", "user", "writable"),
    )

    def __init__(self, **fields):
        for field in self.__slots__:
            setattr(self, field, fields.pop(field, None))
        if fields:
            raise TypeError(f"a Policy has no {', '.join(fields)}")
        for field in (*TABLES, "env", "passed"):
            setattr(self, field, getattr(self, field) or {})
        self.tree = self.tree or []
        self.network_options = self.network_options or ()


def load(name):
    """The Policy NAME: a file if it has a slash in it or .toml behind, else looked for in places()."""
    loader = Loader()
    return finished(loader.policy(*loader.find(name, ""), ()))


def parse(name, text):
    """The Policy of TEXT, as if it were the file NAME."""
    return finished(Loader().policy(name, text, ()))


def merge(policy, overrides):
    """POLICY with what OVERRIDES, a Policy or a dictionary of fields of one, adds to it and puts in its place."""
    return finished(joined(policy, overrides if isinstance(overrides, Policy) else Policy(**overrides)))


def places():
    """The directories in which policies are looked for by name."""
    try:
        own = os.path.join(home(), OF_THE_USER)
    except Failure:
        own = ""
    # HOME may be somebody else's, who changed to this user: where the caller may not go the caller has nothing.
    return [*([own] if own and os.access(own, os.X_OK) else []), OF_THE_HOST, POLICIES]


def built_in():
    """The names of the built-in policies."""
    return sorted(entry.removesuffix(".toml") for entry in os.listdir(POLICIES) if entry.endswith(".toml"))


def home():
    """The caller's home directory."""
    path = os.environ.get("HOME")
    if not path:
        import pwd

        try:
            path = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            path = ""
    if not path.startswith("/"):
        raise Failure(f"HOME is not set to a directory: {toml.brief(path)!r}")
    return path


class Loader:
    """Loads a policy with all that it includes. Every file is read once.

    texts      {path: text} of what has been read
    included   how many includes there were
    """

    __slots__ = ("calls", "included", "texts")

    def __init__(self):
        self.texts, self.included = {}, 0
        self.calls = {
            "os_env": (True, lambda name: os.environ.get(name, "")),
            "os_homedir": (True, lambda path: home() + path),
            "fs_read_to_string": (True, self.text),
            "os_uid": (False, lambda: str(os.getuid())),
            "os_gid": (False, lambda: str(os.getgid())),
        }

    def find(self, name, directory):
        """The path and the text of the policy NAME; a file is looked for from DIRECTORY on."""
        if "/" in name or name.endswith(".toml"):
            path = os.path.join(directory, name)
            return path, self.text(path)
        for place in places() if name else ():
            path = os.path.join(place, f"{name}.toml")
            try:
                return path, self.text(path)
            except Failure as err:
                if err.errno not in (ENOENT, ENOTDIR):
                    raise
        from hako import near

        known = built_in()
        hint = f"{near.question(name, known)}built in: {', '.join(known)}; a file has a slash"
        raise Failure(f"no such policy: {toml.brief(name)!r} [{hint}]")

    def text(self, path):
        """The text of the file PATH."""
        if "\0" in path or len(os.fsencode(path)) >= policy_keys.PATH_MAX:
            raise Failure(f"a path with a NUL in it or of more than {policy_keys.PATH_MAX - 1} bytes")
        if path not in self.texts:
            data = rules.read(path, pipes=False)
            try:
                self.texts[path] = data.decode()
            except UnicodeDecodeError as err:
                before = data[: err.start].decode()
                raise Failure(f"{toml.Source(show(path), before).at(len(before))}: not UTF-8") from err
        return self.texts[path]

    def policy(self, path, text, above):
        """The Policy of TEXT, the file PATH, not finished(); ABOVE are the real paths of those that include it."""
        source = toml.source(show(path), text)
        node = policy_keys.Node(toml.parse(source, self.calls).value)
        base, made = Policy(), Policy(name=show(path))
        directory = os.path.dirname(path)
        try:
            for name in policy_keys.includes(node):
                base = joined(base, self.include(name, directory, (*above, os.path.realpath(path))))
            policy_keys.Reader(made, directory).read(node)
        except policy_keys.Wrong as err:
            place = source.name if err.offset is None else source.line(err.offset)
            raise Failure(f"{place}: {toml.told(err.path)}: {err}") from err
        return joined(base, made)

    def include(self, node, directory, above):
        """The Policy that NODE, one of @include in a file of DIRECTORY, names; ABOVE has that file last."""
        self.included += 1
        if self.included > MOST_INCLUDES:
            raise node.wrong(f"more than {MOST_INCLUDES} includes")
        if len(above) > MOST_DEPTH:
            raise node.wrong(f"more than {MOST_DEPTH} files deep")
        try:
            path, text = self.find(node.word(), directory)
        except Failure as err:
            raise node.wrong(str(err)) from err
        if os.path.realpath(path) in above:
            raise node.wrong("it includes itself")
        return self.policy(path, text, above)


def joined(base, over):
    """BASE with what OVER says; not finished()."""
    made = Policy()
    for field in SCALARS:
        setattr(made, field, second(getattr(base, field), getattr(over, field)))
    join_ids(made, base, over)
    for field in TABLES:
        setattr(made, field, {**getattr(base, field), **getattr(over, field)})
    for field in RESTRICTIONS:
        setattr(made, field, restricted(getattr(base, field), getattr(over, field)))
    made.tree = [*base.tree, *over.tree]
    kept = {name: value for name, value in base.env.items() if name not in over.passed}
    made.env = {**kept, **over.env}
    made.passed = {name: True for name in (*base.passed, *over.passed) if name not in over.env}
    source = base if over.network is None else over
    made.network, made.network_options = source.network, source.network_options
    return made


def second(old, new):
    """NEW, or OLD if that is None."""
    return old if new is None else new


def restricted(old, new):
    """What OLD allows with what NEW does: None says nothing, False that there is no restriction, a dictionary adds."""
    if new is None or new is False:
        return second(old, new)
    return {**(old or {}), **new}


def join_ids(made, base, over):
    """Set the ids of MADE: a user or a group that OVER has stands for those of BASE, a user also for its group."""
    user = over.uid is not None or over.user is not None
    group = over.gid is not None or over.group is not None
    made.uid, made.user = (over.uid, over.user) if user else (base.uid, base.user)
    source = over if group or over.user is not None else base
    made.gid, made.group = source.gid, source.group


def finished(policy):
    """POLICY, complete: with what nobody said as it is then, and checked."""
    made = joined(Policy(), policy)
    tree = {sandbox.steps(entry.dst): entry for entry in made.tree}
    if made.procfs is not False:
        tree.setdefault(("proc",), sandbox.Proc())
    made.procfs = ("proc",) in tree
    made.tree = sandbox.ordered(tree.values())
    made.writable, made.network = bool(made.writable), made.network or "none"
    made.share = {name: True for name, shared in made.share.items() if shared}
    made.seccomp = None if made.seccomp == "none" else made.seccomp
    for field in RESTRICTIONS:
        allowed = getattr(made, field)
        is_restricted = isinstance(allowed, dict)
        setattr(made, field, {name: given for name, given in allowed.items() if given} if is_restricted else None)
    try:
        check(made)
        check_tree(made.tree)
    except Failure as err:
        raise Failure(f"{made.name or 'policy'}: {err}") from err
    return made


def check(policy):
    """Refuse a POLICY of which two parts contradict each other."""
    if "uts" in policy.share and policy.hostname is not None:
        raise Failure("hostname: with share_uts it would be the host's own that changes")
    if policy.uid is not None and policy.user is not None:
        raise Failure("uid and user: one of them says as whom PROG runs")
    if policy.gid is not None and policy.group is not None:
        raise Failure("gid and group: one of them says with which group PROG runs")
    if "swap" in policy.cgroup and "memory" not in policy.limits:
        raise Failure("cgroup.swap: needs a limit of memory")


def check_tree(tree):
    """Refuse a TREE in which something is to be put where nothing can be, or where the caller's files are."""
    above = []  # the entries in whose places the next one may be
    for entry in tree:
        steps = sandbox.steps(entry.dst)
        while above and steps[: len(sandbox.steps(above[-1].dst))] != sandbox.steps(above[-1].dst):
            above.pop()
        dst = show(toml.brief(entry.dst))
        for outer in above:
            if isinstance(outer, (sandbox.File, sandbox.Symlink)):
                kind = "file" if isinstance(outer, sandbox.File) else "symbolic link"
                raise Failure(f"{dst}: lies below the {kind} {show(toml.brief(outer.dst))}")
        mounts = [outer for outer in above if not isinstance(outer, sandbox.Directory)]
        made = isinstance(entry, (sandbox.File, sandbox.Symlink, sandbox.Directory))
        if made and mounts and isinstance(mounts[-1], (sandbox.Bind, sandbox.Proc)):
            raise Failure(f"{dst}: lies in the mount {show(toml.brief(mounts[-1].dst))}, where nothing is made")
        above.append(entry)


def filter_program(policy, capabilities=()):
    """The seccomp program of a finished POLICY, None if it has none; CAPABILITIES, numbers, are those of PROG."""
    if policy.seccomp is None:
        return None
    if isinstance(policy.seccomp, str):
        beside = [os.path.dirname(policy.seccomp)] if "/" in policy.seccomp else []
        return rules.program(policy.seccomp, beside, capabilities)
    return bpf.compile_policy(listed_calls(*policy.seccomp))


def listed_calls(action, names):
    """The bpf.Policy that allows the calls NAMES and does ACTION to others; that kills for them if ACTION is allow.

    A name that only other architectures have stands for a call that nobody can make here.
    """
    from hako import kafel

    listed, others = {"kill_process": ("ALLOW", "KILL_PROCESS"), "log": ("ALLOW", "LOG")}.get(
        action, ("KILL_PROCESS", "ALLOW")
    )
    text = f"{listed} {{ {', '.join(dict.fromkeys(names))} }} DEFAULT {others}"
    made = kafel.parse(kafel.Source("seccomp.syscalls", text, lenient=True), rules.architecture(), none, none)
    made.foreign = bpf.KILL_PROCESS
    return made


def none(name):
    """No file and no group has the NAME."""
    del name


def variables(policy):
    """The environment of PROG by POLICY: [(NAME, VALUE, or None for the caller's, which must be set)]."""
    passed = [(name, None) for name in policy.passed if name in os.environ]
    return [*passed, *policy.env.items()]


def to_toml(policy):
    """A finished POLICY as a policy file that says the same by itself; what is the caller's, as it is now."""
    from hako import policy_text

    return policy_text.to_toml(policy)
