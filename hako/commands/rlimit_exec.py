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

from hako import rlimits


def prepare(args):
    """Check the limits named in ARGS; return what lowers them."""
    wanted = {name: args[f"--{name}"] for name in rlimits.LIMITS}
    limits = {name: rlimits.pair(name, text) for name, text in wanted.items() if text is not None}
    return lambda: rlimits.enter(limits)
