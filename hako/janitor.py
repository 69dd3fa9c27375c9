"""The process that removes the cgroups of one that was killed."""

import _signal
import os
import time

from hako import group, kernel, supervise
from hako.failure import FAILED, Failure

PIECE = 2**16


class Janitor:
    """That process, as its parent sees it: `pid`, and the descriptor `pipe` of what it is told."""

    __slots__ = ("pid", "pipe")

    def __init__(self):
        ours, self.pipe = kernel.socketpair()
        try:
            self.pid, pidfd = kernel.clone3(0)
        except Failure:
            os.close(ours)
            os.close(self.pipe)
            raise
        if not self.pid:
            serve(ours, self.pipe)
        os.close(pidfd)
        os.close(ours)

    def know(self, made):
        """Have the Group MADE removed should this process end before it does that itself."""
        where = "\0".join(f"{hierarchy}\0{made.where[hierarchy]}" for hierarchy in made.files)
        self.tell(f"+{made.name}\0{where}")

    def forget(self, made):
        """The Group MADE is gone."""
        self.tell(f"-{made.name}")

    def tell(self, line):
        """Send it LINE; should somebody have killed it, there is nobody to tell."""
        try:
            os.write(self.pipe, os.fsencode(line))
        except OSError:
            pass

    def close(self):
        """Have it end, and wait for that."""
        os.close(self.pipe)
        os.waitpid(self.pid, 0)


def serve(told, other):
    """Be that process: keep what comes through TOLD in mind, and act at its end; OTHER is its other end."""
    try:
        os.setsid()  # no signal of a terminal is for it
        os.close(other)
        kernel.close_all_but([told])
        for number in supervise.ENDING:
            _signal.signal(number, _signal.SIG_IGN)
        held = {}
        while said := os.read(told, PIECE):
            name, *where = os.fsdecode(said[1:]).split("\0")
            if said.startswith(b"+"):
                held[name] = dict(zip(where[::2], where[1::2], strict=True))
            else:
                held.pop(name, None)
        for name, where in held.items():
            remove(group.Group(name, where))
    finally:
        os._exit(FAILED)


def opened(left, hierarchy):
    """Open the directory of the Group LEFT in the HIERARCHY; whether it is there.

    Who died may have the lock still: its descriptors are closed in any order.
    """
    end = time.monotonic() + group.KILLING
    while True:
        try:
            left.open(hierarchy)
            return True
        except Failure as err:
            if err.errno != kernel.EAGAIN or time.monotonic() > end:
                return False
        time.sleep(group.PAUSE)


def remove(left):
    """Remove the Group LEFT, with all that is in it."""
    for hierarchy in left.where:
        if opened(left, hierarchy):
            left.homes[hierarchy or "cgroup"] = hierarchy
    if left.files:
        left.kill()
        left.remove()
