"""hako-enter - run PROG in the namespaces of an existing sandbox

Usage:
  hako-enter [options] [--env=SPEC]... [--cap-add=CAP]... [--keep-fd=N]... PID [--] [PROG [ARG...]]
  hako-enter (--help | --version)

Options:
  -f, --fork           PROG is a child in the pid namespace, and is waited for
  --tty                with --fork: PROG gets a terminal of its own, with job control, in the place of the caller's
  --no-cgroup          stay in the caller's cgroups
  -e, --env=SPEC       NAME=VALUE, or NAME for the caller's value, repeatable; else the environment is empty
  -u, --user=USER      run PROG as USER, a name or number of the host; else as PID runs
  -g, --group=GROUP    run PROG with GROUP, a name or number; else the primary group of USER
  -c, --chdir=DIR      current directory of PROG, inside the sandbox [default: /]
  --cap-add=CAP        capability that PROG keeps, repeatable; all for every one; else it has none
  --keep-fd=N          descriptor that PROG keeps, repeatable; else only 0, 1 and 2
  -v, --verbose        say each step on stderr
  --help               print this text
  --version            print the version

PID is the pid that hako-run --pid-file wrote, or of any process in a sandbox.
All namespaces in which it differs from the caller are joined, or none, then
its cgroups, as far as the caller may; resource limits become no higher than
its own. Without --fork hako-enter becomes PROG,
whose children are in the pid namespace; with it hako-enter waits and exits
with PROG's status, 128 and the signal's number if a signal ended it. PROG is
/bin/sh by default. Exit status: 125 if PID is not in a sandbox or cannot be
joined, 126 or 127 if PROG cannot be run, else PROG's.
See setns(2), hako-run(1), hako-chain(7).
"""

import os

from hako import core, join, kernel, modes, program, supervise, values
from hako.failure import Failure, call

DEFAULT = ["/bin/sh"]
MOVES = True


def prepare(args):
    """Check ARGS; return what runs the rest of the chain in the sandbox of PID."""
    prog = program.from_args(args, DEFAULT, lambda line: core.say(f"hako-enter: {line}"))
    core.held = prog.identity.held()
    pid = values.whole("PID", args["PID"], 2**31 - 1)
    if args["--tty"] and not args["--fork"]:
        raise Failure("--tty: needs --fork: somebody has to pass on what is typed")
    own_terminal = prepare_terminal() if args["--tty"] else lambda: None
    if not core.moved:
        program.environment(prog)
        join.Inmate(pid).close()
        if args["--fork"]:
            modes.note()
    return lambda: enter(pid, prog, args["--fork"], not args["--no-cgroup"], own_terminal)


def prepare_terminal():
    """What opens the terminal that PROG gets."""
    from hako import terminal

    return terminal.prepare()


def enter(pid, prog, fork, with_cgroup, own_terminal):
    """Return inside the sandbox of process PID; with FORK, in a child that the parent waits for.

    OWN_TERMINAL opens the terminal.Terminal of that child, and may return None.
    """
    program.check_kept(prog, core.waiting)
    terminal = own_terminal()
    inmate = join.Inmate(pid)
    signals = supervise.hold_signals() if fork else None
    channels = supervise.Channels() if fork else None
    # Those inside may look at us from now on: nothing to read, nothing to open.
    program.watched = True
    kernel.prctl("SET_DUMPABLE", 0)
    kernel.rename_process("hako-enter")
    kernel.join_session_keyring()
    host_uid = join.enter(inmate, prog, with_cgroup)
    if fork:
        child, pidfd = kernel.clone3(0)
        if child:
            supervisor = supervise.Supervisor if terminal is None else terminal.supervisor
            wait_outside(supervisor(child, pidfd, channels, signals), prog)
        channels.of_child(core.waiting)
        with call("setsid"):
            os.setsid()
    if terminal is not None:
        terminal.give(None, prog.identity)
    places = () if terminal is None else terminal.places
    program.settle(prog, core.waiting, host_uid, own_session=fork, own_terminal=places)
    if fork:
        supervise.die_with_parent(channels)  # behind the change of ids, which clears it


def wait_outside(supervisor, prog):
    """Be the supervisor of PROG's process: exit with its status."""
    supervise.forget(core.waiting)
    try:
        status = supervisor.wait()
    finally:
        modes.put_back()
    prog.say(f"PROG {supervisor.how}")
    os._exit(status)
