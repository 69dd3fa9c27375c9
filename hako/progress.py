"""Says on a terminal how far long work is: one line, written over itself."""

import os
import time

EVERY = 0.1  # seconds between two lines
CLEAR = b"\r\x1b[K"


class Progress:
    """How many of the THINGS are done, of TOTAL if that is known; nothing unless stderr is a terminal.

    BESIDE a program that has the same stdout: nothing either if that is a terminal, which is the program's.
    """

    __slots__ = ("began", "last", "shown", "things", "total")

    def __init__(self, things, total=None, beside=False):
        self.things, self.total, self.began, self.last = things, total, time.monotonic(), 0.0
        try:
            self.shown = os.isatty(2) and not (beside and os.isatty(1))
        except OSError:
            self.shown = False

    def tell(self, count):
        """COUNT are done."""
        now = time.monotonic()
        if self.shown and now >= self.last + EVERY:
            self.last = now
            self.write(CLEAR + self.line(count, now).encode())

    def line(self, count, now):
        """What there is to say at the time NOW."""
        took = max(now - self.began, 1e-3)
        of = "" if self.total is None else f" of {self.total}"
        return f"{count}{of} {self.things}, {count / took:.0f} a second"

    def end(self, count):
        """All COUNT are done."""
        if self.shown:
            self.write(CLEAR + self.line(count, time.monotonic()).encode() + b"\n")

    @staticmethod
    def write(data):
        """Write DATA to stderr; it does not matter if that fails."""
        try:
            os.write(2, data)
        except OSError:
            pass
