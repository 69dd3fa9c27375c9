"""What Landlock can hold a process to, and the rulesets that do. See landlock(7).

Three domains: files, TCP, scopes. In a domain that is restricted all is denied
that is not allowed. What a kernel cannot deny, or allow, lacking() tells.
"""

import os
import stat

from hako import kernel
from hako.failure import call, show

EACCES = 13
FILES, TCP = kernel.LANDLOCK_ACCESS_FS, kernel.LANDLOCK_ACCESS_NET
SCOPES = {"abstract-unix": kernel.LANDLOCK_SCOPE["abstract_unix_socket"], "signal": kernel.LANDLOCK_SCOPE["signal"]}
# The version of Landlock that brought each right and scope; those that are not here came with the first.
SINCE = {
    "refer": 2,
    "truncate": 3,
    **dict.fromkeys(TCP, 4),
    "ioctl_dev": 5,
    **dict.fromkeys(SCOPES, 6),
}

READ = ("read_file", "read_dir")
# Without make_char and make_block: who makes a device of his own and opens it is past all names.
WRITE = (
    *("write_file", "truncate", "ioctl_dev", "remove_file", "remove_dir", "refer"),
    *("make_reg", "make_dir", "make_sym", "make_sock", "make_fifo"),
)
ACCESS = {
    "ro": frozenset(READ),
    "rx": frozenset((*READ, "execute")),
    "rw": frozenset((*READ, *WRITE)),
    "rwx": frozenset((*READ, *WRITE, "execute")),
}
OF_FILES = frozenset(("execute", "write_file", "read_file", "truncate", "ioctl_dev"))  # not of directories alone


class Rules:
    """What a process is left with.

    paths    [(key of ACCESS, PATH)]: what it may do at and beneath PATH; None: files are not restricted
    ports    [(key of TCP, PORT)]; None: TCP is not restricted
    scopes   keys of SCOPES: what must not leave its domain
    """

    __slots__ = ("paths", "ports", "scopes")

    def __init__(self, paths=None, ports=None, scopes=()):
        self.paths, self.ports, self.scopes = paths, ports, scopes


def available(abi):
    """The rights and scopes that version ABI of Landlock has, by name. See kernel.landlock_abi()."""
    return {name for name in (*FILES, *TCP, *SCOPES) if SINCE.get(name, 1) <= abi}


def asked(rules):
    """The rights and scopes that RULES take, by name.

    What is allowed beneath / need not be denied anywhere. Refer is the other
    way round: every ruleset denies it, so it takes a kernel to allow it.
    """
    names = set(rules.scopes)
    if rules.ports is not None:
        names |= TCP.keys()
    if rules.paths is not None:
        names |= FILES.keys() - {"refer"}
        for access, path in rules.paths:
            names -= ACCESS[access] if path and not path.strip("/") else set()
        names |= {"refer"} if any("refer" in ACCESS[access] for access, _ in rules.paths) else set()
    return names


def lacking(rules, abi):
    """What RULES take and version ABI of Landlock lacks: {name: the version that has it}."""
    names = sorted(asked(rules) - available(abi), key=lambda name: (SINCE.get(name, 1), name))
    return {name: SINCE.get(name, 1) for name in names}


def complaint(lack, abi):
    """What this kernel, with version ABI of Landlock, lacks: LACK as of lacking(), for a message."""
    release = os.uname().release
    if abi == 0:
        return f"landlock: Linux {release} offers none here"
    names = ", ".join(f"{name} ({since})" for name, since in lack.items())
    return f"landlock: Linux {release} has version {abi} of it, without {names}"


class Domain:
    """RULES on their way into force, as far as version ABI of Landlock has what they take.

    First make() opens every PATH, and names mean what they mean then; later
    enforce() holds this process, and what it becomes, to it. In between only
    the one descriptor RULESET is open, close-on-exec.
    """

    __slots__ = ("abi", "filter", "rules", "ruleset")

    def __init__(self, rules, abi):
        self.rules, self.abi, self.ruleset, self.filter = rules, abi, None, None
        if rules.ports is not None and self.bits(TCP, TCP):
            from hako import tcp

            self.filter = tcp.program(sockets=bool(rules.ports))

    def bits(self, known, names):
        """The bits in KNOWN, {name: bit}, of those of NAMES that the kernel has."""
        return sum(known[name] for name in names if SINCE.get(name, 1) <= self.abi)

    def handled(self):
        """The bits of what the ruleset denies unless it is allowed: of files, TCP and scopes; all 0: there is none."""
        files = self.bits(FILES, () if self.rules.paths is None else FILES)
        tcp = self.bits(TCP, () if self.rules.ports is None else TCP)
        return files, tcp, self.bits(SCOPES, set(self.rules.scopes))

    def make(self, more=()):
        """Open every PATH and make the ruleset, if anything can be restricted; MORE is added to the paths."""
        files, tcp, scopes = self.handled()
        if files | tcp | scopes:
            self.ruleset = kernel.landlock_create_ruleset(files, tcp, scopes)
        for access, path in (*(self.rules.paths or ()), *more):
            self.allow(access, path)
        for right, port in (self.rules.ports or ()) if tcp else ():
            kernel.landlock_allow_port(self.ruleset, TCP[right], port)

    def allow(self, access, path):
        """Allow ACCESS, a key of ACCESS, at and beneath PATH."""
        with call(f"open {show(path)}"):
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            names = ACCESS[access] if stat.S_ISDIR(os.fstat(fd).st_mode) else ACCESS[access] & OF_FILES
            bits = self.bits(FILES, names)
            if bits:
                kernel.landlock_allow_beneath(self.ruleset, bits, fd, show(path))
        finally:
            os.close(fd)

    def enforce(self):
        """Hold this process to what make() made. no_new_privs is set on the way."""
        kernel.prctl("SET_NO_NEW_PRIVS", 1)
        if self.ruleset is not None:
            kernel.landlock_restrict_self(self.ruleset)
            os.close(self.ruleset)
        if self.filter is not None:
            kernel.seccomp(self.filter)


def executable(path):
    """Whether PATH is a file that this process may execute, but for Landlock."""
    return os.path.isfile(path) and os.access(path, os.X_OK, effective_ids=True)


def explained(execute, how):
    """EXECUTE, with a hint to the failure that is Landlock's; HOW to allow it."""

    def attempt(path, argv, env):
        try:
            execute(path, argv, env)
        except OSError as err:
            if err.errno == EACCES and executable(path):
                err.hint = f"Landlock: PROG, its interpreter and its libraries must be allowed, {how}"
            raise

    return attempt
