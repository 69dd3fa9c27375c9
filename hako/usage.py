"""What PROG uses while it runs: a JSON line now and then for --usage, a line on the terminal for --live."""

import os
import time

from hako import report
from hako.failure import Failure

CLEAR = b"\r\x1b[K"


class Sampler:
    """Looks at the meter COUNTERS every interval and writes down what it finds.

    file   where --usage goes, or None
    """

    __slots__ = ("counters", "file", "interval", "last", "limits", "live", "next", "say", "started")

    def __init__(self, records, counters, limits, started):
        self.file, self.live, self.interval = records.usage, records.live, records.interval
        self.counters, self.limits, self.started, self.last = counters, limits, started, None
        self.next, self.say = started, records.say

    def pause(self, now):
        """Take a sample if it is time; return the seconds until the next."""
        if now >= self.next:
            self.sample(now)
            self.next = max(self.next + self.interval, now + self.interval / 2)
        return self.next - now

    def strike(self, limit):
        """Take a sample at the moment at which LIMIT, a status of hako-report(5), was found to strike."""
        self.sample(time.monotonic(), {"limit": limit})

    def sample(self, now, more=None):
        """Take a sample; MORE is what else there is to say."""
        found = {"time": now - self.started, **self.counters.now(), **(more or {})}
        if self.file is not None:
            self.write(found if self.last else {**found, "limits": self.limits.told()})
        if self.live:
            os.write(2, CLEAR + self.line(found).encode())
        self.last = found

    def write(self, values):
        """Write VALUES as a line; if that fails, say so once and write no more: it is no reason to end PROG."""
        try:
            self.file.write(report.line(values))
        except Failure as err:
            self.say(f"--usage: {err}")
            self.file = None

    def line(self, found):
        """The sample FOUND as a line for people, with the limits behind the figures."""
        limits, words = self.limits, [f"{found['time']:.1f} s"]
        cpu = found["cpu"] - (self.last or {"cpu": 0})["cpu"]
        since = found["time"] - (self.last or {"time": 0})["time"]
        words.append(f"cpu {cpu / since * 100 if since > 0 else 0:.0f} % {of(found['cpu'], limits.cpu_time, '.1f')} s")
        if found["memory"] is not None:
            limit = None if limits.memory is None else limits.memory / 2**20
            words.append(f"memory {of(found['memory'] / 2**20, limit, '.1f')} MiB")
        words.append(f"pids {of(found['pids'], limits.pids, 'd')}")
        text = "  ".join(words)
        return text[: width() - 1]

    def close(self):
        """Take the last sample, when PROG has ended, and leave the terminal as it was."""
        self.sample(time.monotonic())
        if self.live:
            os.write(2, CLEAR)


def of(value, limit, form):
    """VALUE, and behind it the LIMIT if there is one, each in the FORM."""
    return f"{value:{form}}" if limit is None else f"{value:{form}}/{limit:{form}}"


def width():
    """The columns of the terminal at stderr."""
    try:
        return os.get_terminal_size(2).columns or 80
    except OSError:
        return 80
