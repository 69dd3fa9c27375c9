"""rlimit-exec - lower resource limits, then become PROG

Usage:
  rlimit-exec [options] [--] PROG [ARG...]
  rlimit-exec (--help | --version)

Options:
  --as=SIZE          address space in bytes; past it, mmap and brk fail with ENOMEM
  --core=SIZE        core file in bytes; 0 writes none
  --cpu=SECONDS      CPU time; at the soft limit SIGXCPU, at the hard one SIGKILL
  --data=SIZE        data segment and private memory; past it, mmap and brk fail with ENOMEM
  --fsize=SIZE       any file written; past it, SIGXFSZ, or EFBIG if that is ignored
  --locks=N          file locks; kernels since 2.4.25 do not look at it
  --memlock=SIZE     locked memory; past it, mlock fails with ENOMEM
  --msgqueue=SIZE    POSIX message queues of this real uid; past it, mq_open fails with EMFILE
  --nice=N           20 less the lowest nice value that may be set: 1 to 40
  --nofile=N         one more than the highest descriptor; past it, open fails with EMFILE
  --nproc=N          processes of this real uid; past it, fork fails with EAGAIN
  --rss=SIZE         resident memory; kernels since 2.4.30 do not look at it
  --rtprio=N         real-time priority; past it, sched_setscheduler fails with EPERM
  --rttime=MICROSECONDS  CPU time under real-time scheduling without a blocking call
  --sigpending=N     queued signals of this real uid; past it, sigqueue fails with EAGAIN
  --stack=SIZE       stack of the first thread; past it, SIGSEGV
  --help             print this text
  --version          print the version

A value is SOFT or SOFT:HARD, each a whole number or "unlimited"; SIZE may end
in K, M or G, powers of 1024. SOFT alone sets both, so that PROG cannot raise
the limit again unless it has CAP_SYS_RESOURCE. A limit that is not named stays
as it is. All values are checked before the first is set. Exit status: 125 if a
limit cannot be set, 126 or 127 if PROG cannot be run, else PROG's.
See setrlimit(2).
"""

import resource

from hako import values
from hako.failure import Failure, call

SIZES = ("core", "data", "fsize", "memlock", "msgqueue", "rss", "stack", "as")
# --as comes last: once it is set, this interpreter is short of memory too.
LIMITS = (
    *("core", "cpu", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc"),
    *("rss", "rtprio", "rttime", "sigpending", "stack", "data", "as"),
)


def prepare(args):
    """Check the limits named in ARGS; return what lowers them."""
    wanted = {name: args[f"--{name}"] for name in LIMITS}
    limits = {name: pair(name, text) for name, text in wanted.items() if text is not None}
    return lambda: enter(limits)


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
    resource.prlimit(0, NUMBERS.get(rlimit) or getattr(resource, rlimit), (soft, hard))


def written(soft, hard):
    """The pair SOFT, HARD as the command line has it."""
    soft, hard = ("unlimited" if value == resource.RLIM_INFINITY else str(value) for value in (soft, hard))
    return soft if soft == hard else f"{soft}:{hard}"


NUMBERS = {"RLIMIT_LOCKS": 10}  # the kernel's, on every architecture; Python does not name it
