"""Waits for descriptors and for times, and calls back. See poll(2)."""

import select
import time
from _heapq import heapify, heappop, heappush

from hako.failure import call

FEW = 64
LONGEST = 2**30  # milliseconds that poll(2) is asked to wait


class Timer:
    """A call of FUNCTION at the monotonic time AT, unless it is cancelled: then FUNCTION is None."""

    __slots__ = ("at", "function")

    def __init__(self, at, function):
        self.at, self.function = at, function

    def __lt__(self, other):
        return self.at < other.at

    def cancel(self):
        """Do not call."""
        self.function = None


class Loop:
    """What one process waits for: {descriptor: function}, {descriptor: events}, timers.

    many   timers from which on those that were cancelled are thrown away
    """

    __slots__ = ("calls", "many", "poll", "timers", "wanted")

    def __init__(self):
        self.poll, self.calls, self.timers, self.wanted, self.many = select.poll(), {}, [], {}, FEW

    def watch(self, fd, function, events=select.POLLIN):
        """Call FUNCTION whenever one of EVENTS, POLL*, happens to FD."""
        self.calls[fd], self.wanted[fd] = function, events
        self.poll.register(fd, events)

    def forget(self, fd):
        """Wait for FD no longer. It may be closed already."""
        if self.calls.pop(fd, None) is not None:
            del self.wanted[fd]
            self.poll.unregister(fd)

    def at(self, when, function):
        """Call FUNCTION at the monotonic time WHEN; return the Timer."""
        if len(self.timers) >= self.many:
            self.timers = [timer for timer in self.timers if timer.function is not None]
            heapify(self.timers)
            self.many = max(FEW, 2 * len(self.timers))
        timer = Timer(when, function)
        heappush(self.timers, timer)
        return timer

    def turn(self):
        """Wait for what comes first, and call."""
        pause = self.call_timers()
        with call("poll"):
            ready = self.poll.poll(pause if pause is None else min(pause, LONGEST))
        calls = [(fd, self.calls[fd]) for fd, _ in ready]
        for fd, function in calls:
            # One of those before may have forgotten and closed it, and the number may be another's by now.
            if self.calls.get(fd) is function:
                function()

    def call_timers(self):
        """Call the timers whose time has come; return the milliseconds until the next, or None.

        0 if any was called: whoever turns the loop may have waited for that alone.
        """
        called = False
        while self.timers:
            first = self.timers[0]
            if first.function is None:
                heappop(self.timers)
                continue
            left = first.at - time.monotonic()
            if left > 0:
                return 0 if called else left * 1000 + 1
            heappop(self.timers)
            called = True
            first.function()
        return 0 if called else None
