"""The keeper: the process between the supervisor and PROG that sees to it that nothing is left.

All that PROG starts and forsakes becomes the keeper's child (a subreaper's);
when PROG or the supervisor ends, it ends the rest, and removes the cgroup.
"""

import _signal
import os
import resource
import select
import time

from hako import group, kernel, supervise
from hako.failure import Failure, call, line_of

ENDED = 5.0  # seconds for which the end of killed processes is waited for: one may hang in the kernel


class Keeper:
    """This process, as the keeper of the process PROG and all that comes of it.

    own          the group.Group of PROG, or None
    status       PROG's wait status; None while it runs
    supervisor   pid of the supervisor
    """

    __slots__ = ("channels", "own", "prog", "signals", "status", "supervisor")

    def __init__(self, channels, own):
        self.channels, self.own, self.prog, self.status = channels, own, None, None
        self.supervisor = os.getppid()
        kernel.prctl("SET_CHILD_SUBREAPER", 1)  # before there is a child, of which one could be forsaken

    def keep(self, prog):
        """Keep the process PROG to its end; never return."""
        self.prog = prog
        try:
            self.settle()
            self.serve()
            self.tell()
        except BrokenPipeError:
            pass  # the supervisor is dead
        except (Failure, OSError) as err:
            self.kill()
            os.write(self.channels.ended[1], os.fsencode(line_of(err)))
        if self.own is not None:
            self.clear()
        os._exit(0)

    def settle(self):
        """Hold nothing of the caller's: not a file, not a directory, not the end of a pipe."""
        _signal.signal(kernel.SIGPIPE, _signal.SIG_IGN)  # a supervisor that is dead is no reason to leave all behind
        locks = []
        if self.own is not None:
            self.own.close_doors()
            locks = self.own.files.values()
        kernel.close_all_but([self.channels.ended[1], self.channels.alive[0], *locks])
        with call("chdir /"):
            os.chdir("/")
        for fd in (0, 1, 2):
            os.close(fd)
        self.signals = kernel.signalfd((kernel.SIGCHLD, *supervise.FORWARDED))

    def serve(self):
        """Reap and forward until PROG and all that is left of it have ended."""
        poll = select.poll()
        poll.register(self.signals, select.POLLIN)
        poll.register(self.channels.alive[0], select.POLLIN)
        end = None
        while not self.reap() and (end is None or time.monotonic() < end):
            if self.status is not None or end is not None:
                self.kill()
                end = end or time.monotonic() + ENDED
            ready = {fd for fd, _ in poll.poll(None if end is None else 10)}
            if self.channels.alive[0] in ready:  # to kill, or nobody is there any more who would
                if not os.read(self.channels.alive[0], 1):
                    poll.unregister(self.channels.alive[0])
                end = end or time.monotonic() + ENDED
            if self.signals in ready:
                number, sender = kernel.read_signal(self.signals)
                if number != kernel.SIGCHLD and sender == self.supervisor and self.status is None:
                    supervise.forward(self.prog, number)  # else it came from the terminal, and to PROG too

    def reap(self):
        """Wait for every child that has ended; whether none is left."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return self.own is None or not self.own.populated()
            if pid == 0:
                return False
            if os.WIFSTOPPED(status):  # waitpid tells that of who has itself traced, whether it was asked or not
                kernel.release(pid)
            elif pid == self.prog:
                self.status = status

    def kill(self):
        """Kill all that is left: the cgroup at once; else the children, and then those who become it."""
        if self.own is not None and self.own.can_kill():
            self.own.kill()
        if self.status is None:
            group.kill(self.prog)
        for child in kernel.children("self"):
            group.kill(child)

    def tell(self):
        """Tell the supervisor how PROG ended, and what it and all whose end was waited for used."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        status = kernel.SIGKILL if self.status is None else self.status
        text = b"%d %f %f %d" % (status, used.ru_utime, used.ru_stime, used.ru_maxrss)
        os.write(self.channels.ended[1], text)

    def clear(self):
        """Remove what others left behind, and the cgroup when the supervisor has seen what it has to tell."""
        try:
            group.clean(self.own.where)
        except (Failure, OSError):
            pass  # who can, does later
        try:
            while os.read(self.channels.alive[0], 1):
                pass
        finally:
            self.own.remove()
