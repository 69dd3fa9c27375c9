"""What PROG and all that it starts may use: data, checked, without a system call."""

from hako import values
from hako.failure import Failure

TOLERABLE = ("pids", "memory")
PAGE = 4096
MOST_PIDS = 2**22  # the kernel's PID_MAX_LIMIT
PERIOD = 100000  # microseconds over which a share of the CPU is reckoned
OPTIONS = {  # by controller: what needs it
    "memory": ("memory",),
    "pids": ("pids",),
    "cpu": ("cpu", "cpu_weight"),
}


class Limits:
    """What PROG's tree of processes may use; None is no limit.

    memory, swap   bytes; swap is 0 unless given
    pids           processes and threads
    cpu            percent of one core
    cpu_weight     1 to 10000, against others that want the CPU
    files          [(controller, file, value)] for the cgroup
    time           seconds on the clock
    cpu_time       seconds of CPU time, of all together
    output         bytes on stdout and stderr together
    grace          seconds between SIGTERM and SIGKILL; None: SIGKILL at once
    tolerate       of TOLERABLE, what does not end the tree when it is refused
    parent         cgroup in which its own is made, or None for the caller's
    called         {name of these, or of a file: how the caller called it}, for messages; else an option
    """

    __slots__ = (
        *("cpu", "cpu_time", "cpu_weight", "files", "grace", "memory"),
        *("called", "output", "parent", "pids", "swap", "time", "tolerate"),
    )

    def __init__(self, **fields):
        for name in self.__slots__:
            setattr(self, name, fields.pop(name, () if name in ("files", "tolerate") else None))
        if fields:
            raise TypeError(f"no such limit: {', '.join(fields)}")
        self.called = self.called or {}

    def needed(self):
        """The controllers that these limits need: {controller: the option that needs it}."""
        found = {}
        for controller, names in OPTIONS.items():
            for name in names:
                if getattr(self, name) is not None:
                    found.setdefault(controller, self.called.get(name, f"--{name.replace('_', '-')}"))
        for controller, name, _ in self.files:
            found.setdefault(controller, self.called.get(name, f"--cgroup={name}"))
        return found

    def told(self):
        """The limits that a record of use may be drawn against: {name: number, or None}."""
        return {name: getattr(self, name) for name in ("memory", "pids", "cpu", "time", "cpu_time", "output")}

    def settings(self, version):
        """What to write into the cgroup: [(controller, file, value)]; VERSION tells 2 or 1 of a controller."""
        found = []
        if self.memory is not None:
            found += self.memory_settings(version("memory"))
        if self.pids is not None:
            found.append(("pids", "pids.max", self.pids))
        if self.cpu is not None:
            quota = self.cpu * PERIOD // 100
            if version("cpu") == 2:
                found.append(("cpu", "cpu.max", f"{quota} {PERIOD}"))
            else:
                found += [("cpu", "cpu.cfs_period_us", PERIOD), ("cpu", "cpu.cfs_quota_us", quota)]
        if self.cpu_weight is not None and version("cpu") == 2:
            found.append(("cpu", "cpu.weight", self.cpu_weight))
        elif self.cpu_weight is not None:
            shares = self.cpu_weight * 1024 // 100  # what is 100 in version 2 is 1024 there
            found.append(("cpu", "cpu.shares", max(2, shares)))
        return [*found, *self.files]

    def memory_settings(self, version):
        """Those of the memory, in VERSION of cgroups."""
        swap = self.swap or 0
        if version == 1:  # there, what is limited is memory and swap together
            both = self.memory + swap
            return [("memory", "memory.limit_in_bytes", self.memory), ("memory", "memory.memsw.limit_in_bytes", both)]
        found = [("memory", "memory.max", self.memory), ("memory", "memory.swap.max", swap)]
        if "memory" not in self.tolerate:  # one is killed: all are, before they see it
            found.append(("memory", "memory.oom.group", 1))
        return found


def from_args(args):
    """The Limits that the options among ARGS mean."""
    limits = Limits(
        memory=optional(memory, args, "--memory"),
        swap=optional(values.size, args, "--swap"),
        pids=optional(pids, args, "--pids"),
        cpu=optional(positive, args, "--cpu"),
        cpu_weight=optional(weight, args, "--cpu-weight"),
        files=[file(spec) for spec in args["--cgroup"]],
        time=optional(values.seconds, args, "--time"),
        cpu_time=optional(values.seconds, args, "--cpu-time"),
        output=optional(output, args, "--output"),
        grace=optional(values.seconds, args, "--grace"),
        tolerate=args["--tolerate"],
        parent=args["--parent"],
    )
    if limits.swap is not None and limits.memory is None:
        raise Failure("--swap: needs --memory")
    ending = limits.memory, limits.pids, limits.time, limits.cpu_time, limits.output, limits.files
    if limits.grace is not None and not any(ending):
        raise Failure("--grace: there is no limit that ends PROG")
    if limits.parent == "":
        raise Failure("--parent: not a cgroup: ''")
    for name in limits.tolerate:
        if name not in TOLERABLE:
            raise Failure(f"--tolerate: neither pids nor memory: {name!r}")
        if name not in limits.needed():
            raise Failure(f"--tolerate={name}: there is no limit of {name} to tolerate")
    return limits


def optional(parse, args, option):
    """The value of OPTION in ARGS as PARSE has it, None if it is not given."""
    return None if args[option] is None else parse(option, args[option])


def memory(option, text):
    """TEXT, the value of OPTION, as bytes of memory: a page at least."""
    size = values.size(option, text)
    if size < PAGE:
        hint = " [without K, M or G it is bytes]" if size and values.digits(text) else ""
        raise Failure(f"{option}: less than a page, {PAGE} bytes: {text!r}{hint}")
    return size


def output(option, text):
    """TEXT, the value of OPTION, as bytes, 1 or more."""
    size = values.size(option, text)
    if size == 0:
        raise Failure(f"{option}: nothing is not to be limited to: {text!r}")
    return size


def pids(option, text):
    """TEXT, the value of OPTION, as a number of processes."""
    return within(option, text, 1, MOST_PIDS)


def positive(option, text):
    """TEXT, the value of OPTION, as a percentage, of one core."""
    return within(option, text, 1, 10**6)


def weight(option, text):
    """TEXT, the value of OPTION, as a weight."""
    return within(option, text, 1, 10000)


def within(option, text, least, most):
    """TEXT, the value of OPTION, as a whole number from LEAST to MOST."""
    number = values.whole(option, text)
    if not least <= number <= most:
        raise Failure(f"{option}: not from {least} to {most}: {text!r}")
    return number


def file(spec):
    """SPEC, KEY=VALUE, as (controller, file, value) of a cgroup."""
    key, equals, value = spec.partition("=")
    controller, dot, rest = key.partition(".")
    plain = key.replace("_", "").replace(".", "").isalnum() and key.isascii()
    if not equals or not value or not dot or not rest or not plain:
        raise Failure(f"--cgroup: not CONTROLLER.FILE=VALUE: {spec!r}")
    if controller == "cgroup":
        raise Failure(f"--cgroup: {key} is not a controller's: {spec!r}")
    return controller, key, value
