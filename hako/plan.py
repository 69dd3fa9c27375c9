"""What a sandbox is to be, to its last detail, ready to be made many times: data, checked."""

from hako import kernel, sandbox, start
from hako.failure import Failure
from hako.limits import Limits

CAP_SYS_PTRACE = 19
PRYING = {kernel.CAP_SYS_ADMIN, CAP_SYS_PTRACE}  # capabilities with which PROG could look behind


class Plan:
    """What is to be made around a PROG, whichever that is.

    box              the sandbox.Sandbox
    identity         as whom PROG runs: identity.Identity
    domain           the domain name inside, or None for the host's
    limits           the limits.Limits of all that PROG starts
    rlimits          ((name, number, (soft, hard)), ...), resource limits of PROG
    landlock         the landlock.Domain, or None
    filters          seccomp programs, bytes, in the order in which they are loaded
    secret           the kernel.Secret by which the last of them lets the exec of PROG through, or None
    fixed_addresses  whether addresses are not random
    guarded          whether PROG could write our interpreter: see hako.guard
    words            whether messages are in the words of the sandals tool
    """

    __slots__ = (
        *("box", "domain", "filters", "fixed_addresses", "guarded", "identity", "landlock", "limits"),
        *("rlimits", "secret", "words"),
    )

    def __init__(self, box, who, **fields):
        self.box, self.identity = box, who
        self.domain, self.rlimits, self.landlock, self.filters, self.secret = None, (), None, (), None
        self.fixed_addresses, self.guarded, self.words, self.limits = False, False, False, Limits()
        for name, value in fields.items():
            setattr(self, name, value)

    def capabilities(self):
        """The numbers of the capabilities that PROG keeps."""
        return tuple(self.identity.held())

    def filtered(self, program):
        """Have PROG under the seccomp PROGRAM, which may allow no exec."""
        self.secret = kernel.Secret()
        self.filters = (*self.filters, start.let_through(program, self.secret))

    def restricted(self, paths, ports, scopes):
        """Have PROG under Landlock: PATHS, PORTS and SCOPES as in landlock.Rules."""
        from hako import landlock

        rules = landlock.Rules(paths, ports, tuple(scopes))
        abi = kernel.landlock_abi()
        lack = landlock.lacking(rules, abi)
        if lack:
            raise Failure(landlock.complaint(lack, abi))
        domain = landlock.Domain(rules, abi)
        if any(domain.handled()):
            self.landlock = domain
        if domain.filter is not None:
            self.filters = (domain.filter, *self.filters)

    def limited(self, limits):
        """Have PROG under the resource limits LIMITS, {name: (soft, hard)}."""
        from hako import rlimits

        names = {f"RLIMIT_{name.upper()}": pair for name, pair in limits.items()}
        self.rlimits = tuple((name, rlimits.number_of(name), pair) for name, pair in names.items())


def split(box, capabilities):
    """What a zygote makes for many of the sandbox.Sandbox BOX, and what each makes for itself: two lists of mounts.

    None: it cannot be split. CAPABILITIES are PROG's, numbers: with
    CAP_SYS_ADMIN it could look below its own /proc, where the zygote's is, and with CAP_SYS_PTRACE into
    its init, which has memory in common with the zygote and with other sandboxes.
    """
    alone = box.overlay or box.setup or (box.target is None and box.writable) or box.ids is not None
    if alone or PRYING & set(capabilities) or box.network not in ("none", "host"):
        return None
    shared, own, places = [], [], []
    for mount in box.mounts:
        steps = sandbox.steps(mount.dst)
        if any(is_beside(steps, place) for place in places):
            return None
        if isinstance(mount, (sandbox.Proc, sandbox.Tmpfs)):
            shared.append(sandbox.Directory(mount.dst))
            own.append(mount)
            places.append(steps)
        elif isinstance(mount, sandbox.Dev):
            shared.append(mount)
            own.append(mount)
            places += [(*steps, "shm"), (*steps, "pts")]
        else:
            shared.append(mount)
    return shared, own


def is_beside(steps, place):
    """Whether of the paths STEPS and PLACE one is the other, or lies in it."""
    shorter = min(len(steps), len(place))
    return steps[:shorter] == place[:shorter]


def options(found):
    """The mount options FOUND, {key: value or None}, as mount(2) has them."""
    return ",".join(key if value is None else f"{key}={value}" for key, value in found.items())
