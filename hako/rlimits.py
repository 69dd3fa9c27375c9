"""Resource limits of this process, and what it starts: their names, values, and setting them. See setrlimit(2)."""

import resource

from hako import values
from hako.failure import Failure, call

SIZES = ("core", "data", "fsize", "memlock", "msgqueue", "rss", "stack", "as")
# --as comes last: once it is set, this interpreter is short of memory too.
LIMITS = (
    *("core", "cpu", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc"),
    *("rss", "rtprio", "rttime", "sigpending", "stack", "data", "as"),
)


def pair(name, text):
    """TEXT, SOFT or SOFT:HARD, the value of the option --NAME, as a pair."""
    soft, colon, hard = text.partition(":")
    soft = bound(name, soft)
    hard = bound(name, hard) if colon else soft
    if hard != resource.RLIM_INFINITY and (soft == resource.RLIM_INFINITY or soft > hard):
        raise Failure(f"--{name}: the soft limit is above the hard limit: {text!r}")
    return soft, hard


def bound(name, text):
    """One bound of the option --NAME: bytes, seconds or a count; RLIM_INFINITY for "unlimited"."""
    if text == "unlimited":
        return resource.RLIM_INFINITY
    return (values.size if name in SIZES else values.whole)(f"--{name}", text)


def enter(limits):
    """Set LIMITS: {name: (soft, hard)}. See setrlimit(2)."""
    for name, (soft, hard) in limits.items():
        rlimit = f"RLIMIT_{name.upper()}"
        with call(f"setrlimit {rlimit} {written(soft, hard)}"):
            set_limit(rlimit, soft, hard)


def set_limit(rlimit, soft, hard):
    """Set the limit named RLIMIT of this process."""
    # Not resource.setrlimit(): it reports the kernel's EPERM as a ValueError.
    resource.prlimit(0, number_of(rlimit), (soft, hard))


def number_of(rlimit):
    """The number of the limit named RLIMIT."""
    return NUMBERS.get(rlimit) or getattr(resource, rlimit)


def written(soft, hard):
    """The pair SOFT, HARD as the command line has it."""
    soft, hard = ("unlimited" if value == resource.RLIM_INFINITY else str(value) for value in (soft, hard))
    return soft if soft == hard else f"{soft}:{hard}"


NUMBERS = {"RLIMIT_LOCKS": 10}  # the kernel's, on every architecture; Python does not name it
