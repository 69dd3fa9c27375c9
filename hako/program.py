"""How PROG is started: as whom, where, with which environment and descriptors.

What hako-run, hako-enter and hako-policy have in common (the design, 2.2).
"""

import fcntl
import os

from hako import guard, identity, kernel, supervise, values
from hako.failure import Failure, call, show

# Whether this process is in a sandbox with others already, who may look at it.
watched = False


# Descriptors that later links of the chain opened while it was prepared, all
# close-on-exec: files of the caller that they go on using inside.
needed = []


class Program:
    """How PROG is started.

    identity   as whom: identity.Identity
    env        [(NAME, VALUE or None for the caller's)]; nothing else is in its environment
    chdir      directory inside the sandbox
    keep_fds   descriptors above 2 that it keeps
    name       what it is called, for a message; None if who starts it has more to do, and says so then
    say        takes a line for --verbose
    """

    __slots__ = ("chdir", "env", "identity", "keep_fds", "name", "say")

    def __init__(self, **fields):
        for name, value in fields.items():
            setattr(self, name, value)


def from_args(args, default, say):
    """The Program that the shared options among ARGS mean; without PROG it is DEFAULT. SAY takes --verbose's lines."""

    def silent(line):
        del line

    return Program(
        identity=identity.resolve(args["--user"], args["--group"], args["--cap-add"]),
        env=[values.variable("--env", text) for text in args["--env"]],
        chdir=values.word(args, "--chdir") or "/",
        keep_fds=[descriptor(text) for text in args["--keep-fd"]],
        name=show(args["PROG"] or default[0]),
        say=say if args["--verbose"] else silent,
    )


def descriptor(text):
    """TEXT, the value of --keep-fd: the number of an open descriptor above 2."""
    fd = values.whole("--keep-fd", text)
    if fd < 3:
        raise Failure(f"--keep-fd: 0, 1 and 2 are always kept: {text!r}")
    if not is_open(fd):
        raise Failure(f"--keep-fd: not open: {text!r}")
    return fd


def is_open(fd):
    """Whether the descriptor FD is open."""
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except (OSError, OverflowError):
        return False
    return True


def check_kept(program, waiting):
    """Refuse to keep what is not open. Called before anything else is opened, which could take the number.

    WAITING, by which earlier commands of the chain wait, are not the caller's to keep.
    """
    for fd in program.keep_fds:
        if fd in waiting or fd in needed or fd in supervise.disks or not is_open(fd):
            raise Failure(f"--keep-fd: not open: '{fd}'")


def environment(program):
    """The environment of PROG, {name: value}: only what --env names."""
    env = {}
    for name, value in program.env:
        if value is None and name not in os.environ:
            raise Failure(f"--env: not set here: {name!r}")
        env[name] = os.environ[name] if value is None else value
    return env


def settle(program, waiting, host_uid, own_session, own_terminal=()):
    """Make this process what PROG is to find, but for the exec; it is in the sandbox already.

    WAITING are descriptors to leave to exec. HOST_UID is PROG's uid as the host
    sees it, None inside a user namespace of ours without a uid there. At the
    descriptors OWN_TERMINAL is a terminal that is not the caller's. The order:
    descriptors first, for with them nothing of the host is left; ids while there
    are capabilities to do it; the current directory by PROG's own rights; the
    filters when no_new_privs is set and there is nothing else to do.
    """
    env = environment(program)
    kernel.close_all_but([*program.keep_fds, *waiting, *needed, *supervise.disks])
    for fd in program.keep_fds:
        with call(f"keep descriptor {fd}"):
            os.set_inheritable(fd, True)
    identity.assume(program.identity)
    with call(f"chdir {show(program.chdir)}"):
        os.chdir(program.chdir)
    guard.protect_interpreter(*host_rights(host_uid))
    callers = [fd for fd in (0, 1, 2, *program.keep_fds) if fd not in own_terminal]
    guard.protect_terminal(callers, own_session)
    program.say(f"dropped: {identity.told(program.identity)}; no_new_privs")
    if program.name is not None:
        program.say(f"execute: {program.name}")
    os.environ.clear()
    os.environ.update(env)
    supervise.default_signals()


def host_rights(host_uid):
    """HOST_UID or, if None, ours, and the capabilities that count on the host: those without a user namespace."""
    if host_uid is not None:
        return host_uid, ()
    effective = kernel.capget()[0]
    return os.geteuid(), [cap for cap in range(64) if effective >> cap & 1]
