"""seccomp-exec - load a system call filter, then become PROG

Usage:
  seccomp-exec [options] [--include=DIR]... RULES [--] PROG [ARG...]
  seccomp-exec [--include=DIR]... (--export=FILE | --dump) RULES
  seccomp-exec --learn=FILE [--] PROG [ARG...]
  seccomp-exec --list
  seccomp-exec (--help | --version)

Options:
  -I, --include=DIR  where #include looks, repeatable
  --report=FILE      write a JSON line for each refused call to FILE, - for stderr
  --explain          say on stderr which calls were refused
  --export=FILE      write the compiled program to FILE, - for stdout, and end
  --dump             print the compiled program, readable, and end
  --learn=FILE       write a policy of what PROG uses to FILE, or add it to the policy there
  --list             print the built-in profiles and groups
  --help             print this text
  --version          print the version

RULES is the name of a built-in profile, or a file: a Kafel policy, the JSON of
container runtimes, or a compiled program. The filter comes last, right before
PROG, under no_new_privs. The exec that starts PROG always goes through; later
ones only if the rules allow. With --report, --explain and --learn seccomp-exec
waits for PROG and all that it starts, and exits with PROG's status, 128 and
the signal's number if a signal ended it. Exit status: 125 for bad rules, 126
or 127 if PROG cannot be run, else PROG's.
See seccomp(2), hako-rules(5), hako-chain(7).
"""

import os

from hako import core, kernel, rules, start
from hako.failure import Failure, call, show

DEFAULT = []


def prepare(args):
    """Compile the rules that ARGS name; return what loads them. --list, --dump and --export end here."""
    if args["--list"]:
        core.print_out(listing())
    if args["--learn"] is not None:
        return watched(args)
    caps = held() if core.held is None else core.held
    if args["--report"] is not None or args["--explain"]:
        return watched(args, rules.policy(args["RULES"], args["--include"], caps))
    program = rules.program(args["RULES"], args["--include"], caps)
    if args["--dump"]:
        core.print_out(dump(program).encode())
    if args["--export"] is not None:
        export(args["--export"], program)
    last = args["PROG"] not in core.COMMANDS
    secret = kernel.Secret()
    program = start.let_through(program, secret)
    return lambda: enter(program, secret, last)


def held():
    """The capabilities that PROG, executed by this process under no_new_privs, will hold: numbers."""
    _, permitted, _ = kernel.capget()
    if os.geteuid() != 0:
        with call("open /proc/self/status"), open("/proc/self/status", "rb") as file:
            permitted = int(next(line.split()[1] for line in file if line.startswith(b"CapAmb")), 16)
    return [cap for cap in range(64) if permitted >> cap & 1]


def enter(program, secret, last):
    """Load PROGRAM: now, or if this link is the LAST right before the exec of PROG."""
    core.execute = start.enforce(program, secret, last, core.execute)


def watched(args, policy=None):
    """What runs PROG under the rules POLICY, or none to learn them, with a supervisor that sees its calls."""
    if args["PROG"] in core.COMMANDS:
        raise Failure(
            f"--report, --explain and --learn: must stand right before PROG: {args['PROG']!r} does not start it"
        )
    from hako import watch

    if policy is None:
        watcher = watch.Learner(args["--learn"])
    else:
        watcher = watch.Reporter(policy, args["--report"], args["--explain"])
    return lambda: watch.enter(watcher)


def export(path, program):
    """Write PROGRAM to the file PATH, - for stdout; end."""
    if path == "-":
        core.print_out(program)
    with call(f"open {show(path)}"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    core.write_all(fd, program, show(path))
    os._exit(0)


def listing():
    """The profiles and groups, a line each."""
    lines = ["profiles:"]
    lines += [f"  {name:14} {text}" for name, text in rules.listed(rules.PROFILES)]
    lines += ["groups, for USE:"]
    lines += [f"  {name:14} {text}" for name, text in rules.listed(os.path.join(rules.PROFILES, "groups"))]
    return "\n".join((*lines, "")).encode()


def dump(program):
    """PROGRAM, readable: a line an instruction, with the names of calls and actions."""
    from hako import disassembly

    return disassembly.text(program)
