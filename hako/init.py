"""The init: PID 1 around PROG, in a sandbox with a pid namespace of its own.

It makes the process that will be PROG, and ends when PROG does; with it the
kernel ends everything in there. It dies with the supervisor (PR_SET_PDEATHSIG),
which PROG could undo for itself but not for the init.
"""

import os
import select

from hako import identity, kernel, supervise
from hako.failure import FAILED, Failure, call, line_of


def be(prog, who, channels, settled):
    """Be PID 1 around the process PROG: reap, forward signals, and end with it; never return.

    It holds nothing of the host and takes WHO's ids: /proc/1 gives nothing away.
    The eventfd SETTLED is for PROG to read, when PROG can do nothing to it any more.
    """
    try:
        settle_init(who, channels, settled)
        serve(prog, channels, settled)
    except (Failure, OSError) as err:
        os.write(channels.ended[1], os.fsencode(line_of(err)))
    os._exit(FAILED)


def settle_init(who, channels, settled):
    """Make this process the init: as WHO, with nothing of the caller's."""
    kernel.close_all_but([channels.ended[1], channels.started[1], channels.alive[0], settled])
    with call("chdir /"):
        os.chdir("/")  # now, or with PROG's pivot_root, the sandbox's; the caller's would lead out
    identity.assume(who)
    kernel.prctl("SET_DUMPABLE", 0)
    supervise.die_with_parent(channels)
    os.close(channels.started[1])
    for fd in (0, 1, 2):
        os.close(fd)  # a caller that reads to the end waits for PROG, not for us


def serve(prog, channels, settled):
    """Reap and forward until PROG or the supervisor ends.

    The death of the supervisor shows at the pipe too: where the caller lacks
    CAP_KILL, its death signal does not reach a process of another uid.
    """
    signals = kernel.signalfd((kernel.SIGCHLD, *supervise.FORWARDED))
    with call("epoll_create1"):
        poll = select.epoll()  # poll(2) fails where PROG has set RLIMIT_NOFILE to 0
    with call("epoll_ctl"):
        poll.register(signals, select.EPOLLIN)
        poll.register(channels.alive[0], 0)
    os.eventfd_write(settled, 1)
    os.close(settled)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if channels.alive[0] in ready:
            os._exit(128 + kernel.SIGKILL)
        number, sender = kernel.read_signal(signals)
        if number == kernel.SIGCHLD:
            reap(prog, channels)
        elif sender == 0:  # from outside the pid namespace; those inside have no business with PID 1
            supervise.forward(prog, number)


def reap(prog, channels):
    """Wait for every child that has ended; when PROG is among them, say how it ended and end too."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        if os.WIFSTOPPED(status):  # waitpid tells that of who has itself traced, whether it was asked or not
            kernel.release(pid)
        elif pid == prog:
            os.write(channels.ended[1], b"%d" % status)
            os._exit(0)
