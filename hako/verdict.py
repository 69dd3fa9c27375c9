"""Which limit struck, if one did: the clock, the counters of the cgroup, CPU time."""

import os

from hako import meter

NEVER = 3600.0  # seconds between looks when there is nothing to look at


class Verdict:
    """Looks at the limits.Limits LIMITS of a tree of processes that the meter.Meter COUNTERS counts.

    began     monotonic time
    used      (user seconds, system seconds) of all whose end was waited for, or None before the end
    cause     of the statuses of hako-report(5), the limit that struck; None: none did
    reason    what there is to say of it
    """

    __slots__ = ("began", "cause", "counters", "cpu_look", "limits", "look", "reason", "used")

    def __init__(self, limits, counters, began):
        self.limits, self.counters, self.began = limits, counters, began
        self.look = self.cpu_look = began
        self.used, self.cause, self.reason = None, None, ""

    def found(self, cause, reason):
        """Keep CAUSE, a limit that struck, and the REASON to give."""
        self.cause, self.reason = cause, reason
        return True

    def find(self, now, last):
        """Find the limit that struck, if one did: the first in their order. LAST: PROG has ended."""
        limits, counters = self.limits, self.counters
        if last or counters.changed or (counters.polled and now >= self.look):
            counters.changed = False
            self.look = now + (counters.pause() or NEVER)
            if self.binds("memory") and counters.out_of_memory(last):
                most = "the memory was" if limits.memory is None else f"{limits.memory} bytes of memory were"
                return self.found("memoryLimit", f"{most} not enough: a process was killed")
            if self.binds("pids") and counters.forks_refused():
                most = "too many" if limits.pids is None else f"more than {limits.pids}"
                return self.found("pidsLimit", f"{most} processes: a fork was refused")
        if limits.time is not None and now >= self.began + limits.time and not last:
            return self.found("timeLimit", f"{limits.time:g} seconds are over")
        if limits.cpu_time is not None and (last or now >= self.cpu_look) and self.cpu_time_is_used_up(now):
            return self.found("cpuTimeLimit", f"{limits.cpu_time:g} seconds of CPU time are used up")
        return False

    def pauses(self, now):
        """The seconds until each of the next looks."""
        if self.limits.time is not None:
            yield self.began + self.limits.time - now
        if self.limits.cpu_time is not None:
            yield self.cpu_look - now
        if self.counters.polled:
            yield self.look - now

    def binds(self, name):
        """Whether a limit of the controller NAME is there, and ends PROG when it strikes."""
        return name in self.limits.needed() and name not in self.limits.tolerate

    def cpu_time_is_used_up(self, now):
        """Whether the CPU time is; else the next look is when it could be: each CPU gives one second a second."""
        left = self.limits.cpu_time - sum(self.cpu())
        self.cpu_look = now + max(left / len(os.sched_getaffinity(0)), meter.SOON)
        return left <= 0

    def cpu(self):
        """Seconds of CPU time used, (user, system)."""
        if self.used is not None and not self.counters.has_cpu():
            return self.used
        return self.counters.cpu()
