"""What is written down of PROG: the report at its end, what it uses meanwhile."""

import resource  # noqa: F401  os.wait4 imports it late, when nothing may be imported any more

from hako import newfile, report, usage
from hako.failure import Failure


class Records:
    """The files of --report and --usage, and what --interval and --live say of the second.

    report, usage   each a newfile.NewFile or newfile.Stream, or None
    say             takes a line for stderr
    """

    __slots__ = ("interval", "live", "report", "say", "usage")

    def __init__(self, say, report_path, usage_path=None, interval=0.0, live=False):
        self.report = None if report_path is None else newfile.replacing("--report", report_path)
        self.usage = None if usage_path is None else newfile.recording("--usage", usage_path)
        self.interval, self.live, self.say = interval, live, say

    @staticmethod
    def check(report_path, usage_path=None):
        """Refuse files that cannot be written."""
        for option, path in (("--report", report_path), ("--usage", usage_path)):
            if path is not None:
                newfile.check(option, path)

    def close(self):
        """Let go of the files."""
        for file in (self.report, self.usage):
            if file is not None:
                file.close()

    def controllers(self):
        """The controllers without which figures would be missing."""
        return ("memory", "pids", "io", "blkio") if self.usage or self.live else ("memory", "pids")

    def sampler(self, counters, limits, began):
        """A usage.Sampler of COUNTERS, since the monotonic time BEGAN; None if nobody wants to know."""
        wanted = self.usage is not None or self.live
        return usage.Sampler(self, counters, limits, began) if wanted else None

    def finish(self, start_time, fill, status):
        """Write the report, which FILL fills in; return the exit STATUS, another if it cannot be written.

        START_TIME is in seconds since the epoch.
        """
        if self.report is None:
            return status
        told = report.Report(start_time)
        fill(told)
        try:
            self.report.write(told.json())
            self.report.place()
        except Failure as err:
            self.say(str(err))
            return err.status
        return status
