"""hako-limit - run PROG under limits that hold for all that it starts, and say how it ended

Usage:
  hako-limit [options] [--cgroup=SPEC]... [--tolerate=NAME]... [--] PROG [ARG...]
  hako-limit (--help | --version)

Options:
  --memory=SIZE       memory of all together; past it, processes are killed
  --swap=SIZE         swap beside it; else there is none
  --pids=N            processes and threads; past it, fork fails with EAGAIN
  --cpu=PERCENT       CPU time, in percent of one core: 150 is one and a half
  --cpu-weight=N      share of the CPU when others want it too, 1 to 10000, usually 100
  --cgroup=SPEC       FILE=VALUE, repeatable: write VALUE to FILE of any controller
  --time=SECONDS      time on the clock, fractions allowed
  --cpu-time=SECONDS  CPU time of all together, also of those that have ended
  --output=SIZE       bytes on stdout and stderr together; what fits is passed on
  --grace=SECONDS     at a limit send SIGTERM, and SIGKILL so much later; else SIGKILL at once
  --tolerate=NAME     pids or memory, repeatable: what the limit refuses does not end PROG
  --parent=PATH       cgroup to make its own in; else the caller's
  --report=FILE       write how PROG ended and what it used to FILE, - for stderr
  --usage=FILE        write a line of what is used to FILE now and then, - for stderr
  --interval=SECONDS  between those lines; else 0.1
  --live              show what is used on the terminal at stderr
  --help              print this text
  --version           print the version

hako-limit starts PROG in a cgroup of its own and waits for it. When a limit is
reached PROG and all that it started are ended, and the exit status is 124; so
they are when PROG ends, and then it is PROG's status, 128 and the signal's
number if a signal ended it; 125 if a limit cannot be enforced here, and then
nothing runs; 126 or 127 if PROG cannot be run. SIZE is in bytes, or ends in K,
M or G, powers of 1024.
See cgroups(7), hako-report(5), hako-chain(7).
"""

import os

from hako import cgroup, core, limits, registry, values
from hako.failure import Failure

DEFAULT = []
INTERVAL = 0.1  # seconds


def prepare(args):
    """Check ARGS and that the files can be written; return what runs the rest of the chain under limits."""
    wanted = limits.from_args(args)
    interval = INTERVAL if args["--interval"] is None else values.seconds("--interval", args["--interval"])
    if args["--interval"] is not None and args["--usage"] is None and not args["--live"]:
        raise Failure("--interval: needs --usage or --live")
    if args["--live"] and not os.isatty(2):
        raise Failure("--live: stderr is not a terminal")
    if not core.moved:
        cgroup.hasten(wanted.needed())
    from hako import limit  # only now: meanwhile the kernel has time for that

    output = None
    if wanted.output is not None:
        from hako import output
    records = recorder(args, interval)
    enlist = registry.lister("hako-limit", core.moved, lambda _: None)
    return lambda: limit.enter(wanted, records(), output, core.waiting, say, enlist)


def recorder(args, interval):
    """What opens the files that ARGS name and returns the Records; None for those that name none."""
    files = args["--report"], args["--usage"]
    if files == (None, None) and not args["--live"]:
        return lambda: None
    from hako.records import Records

    if not core.moved:
        Records.check(*files)
    return lambda: Records(say, *files, interval, args["--live"])


def say(line):
    """Say LINE on stderr."""
    core.say(f"hako-limit: {line}")
