"""The report: how PROG ended and what it used, as one JSON object. See hako-report(5)."""

import time

from hako import json

KEYS = (
    *("status", "code", "signal", "reason", "start_time", "real_time", "user_time", "system_time"),
    *("max_rss", "memory_peak", "pids_peak", "oom_kills", "forks_refused", "output_bytes"),
)


class Report:
    """How PROG ended and what it and all that it started used; None is what could not be measured.

    status                             exited killed timeLimit cpuTimeLimit memoryLimit pidsLimit
                                       outputLimit diskLimit internalError
    code, signal                       its exit status, or the name of the signal that killed it
    reason                             for people, why it was ended
    start_time                         seconds since the epoch
    real_time, user_time, system_time  seconds
    max_rss, memory_peak               bytes
    pids_peak, oom_kills               counts
    forks_refused, output_bytes        a count, and bytes
    """

    __slots__ = KEYS

    def __init__(self, start_time):
        for key in KEYS:
            setattr(self, key, None)
        self.reason, self.start_time = "", start_time

    def take(self, figures):
        """Take over FIGURES, {key: value}."""
        for key, value in figures.items():
            setattr(self, key, value)

    def values(self):
        """The report as {key: value}, the time as text."""
        found = {key: getattr(self, key) for key in KEYS}
        found["start_time"] = timestamp(self.start_time)
        return found

    def json(self):
        """The report as a line of JSON."""
        return line(self.values())


def timestamp(seconds):
    """SECONDS since the epoch as text: 2026-11-21T23:00:00.123456Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1e6):06}Z"


def line(values):
    """VALUES, {key: text, number, bool, None or a dictionary of such}, as a line of JSON, bytes."""
    return json.dumped(values, ", ", ": ", "{:.6f}".format).encode() + b"\n"
