"""Says on a terminal how far a benchmark is: one line, written over itself."""

import sys


def show(line):
    """Say LINE, in the place of what was said before; "" for nothing any more."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()
