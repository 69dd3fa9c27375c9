"""hako-plot - draw what hako-limit --usage has written

Usage:
  hako-plot [options] FILE
  hako-plot (--help | --version)

Options:
  -o, --output=FILE  the picture; its name ends in .svg or .png [default: usage.svg]
  --title=TEXT       what to write above it; else the name of FILE
  --help             print this text
  --version          print the version

FILE is what hako-limit --usage=FILE writes, - for stdin, whole or while PROG
still runs. The picture has memory, CPU, processes and disk over time, as far
as they were measured, each with its limit, and the moment at which a limit
was reached. Options may stand behind FILE. Needs matplotlib: pip install
matplotlib. Exit status: 125 if there is no picture, else 0.
See hako-limit(1).
"""

import atexit
import logging
import os
import sys

from hako import core, extra, newfile, record
from hako.failure import Failure, call, show

FORMS = (".svg", ".png")
MOST_BYTES = 1 << 28  # of FILE


def prepare(args):
    """Check ARGS, and that there is matplotlib; return what reads the record and draws it."""
    path, form = args["--output"], os.path.splitext(args["--output"])[1]
    if form not in FORMS:
        raise Failure(f"--output: ends neither in .svg nor in .png: {path!r}")
    if core.moved:
        raise Failure("draws what is outside, and is behind a command that goes inside [run it by its path there]")
    extra.need("matplotlib")
    title = args["--title"] if args["--title"] is not None else os.path.basename(args["FILE"])
    places = list(sys.path)
    return lambda: enter(args["FILE"], path, title, form[1:], places)


def enter(source, path, title, form, places):
    """Draw SOURCE under TITLE into PATH, in the FORM svg or png; end. PLACES are where to import from."""
    sys.path[:] = places
    found = record.read(read(source), show(source))
    picture = newfile.NewFile("--output", path)
    # It would tell of its caches, and of a home where none can be.
    logging.getLogger("matplotlib").setLevel(logging.CRITICAL)
    try:
        from hako import plot

        data = plot.draw(found, printable(title), form)
    finally:
        atexit._run_exitfuncs()  # it removes a cache that it could not make at home
    picture.write(data)
    picture.place()
    os._exit(0)


def read(path):
    """The bytes of the file PATH, - for stdin."""
    with call(f"open {show(path)}"):
        fd = 0 if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    with call(f"read {show(path)}"), open(fd, "rb") as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise Failure(f"{show(path)}: more than {MOST_BYTES} bytes")
    return data


def printable(title):
    """TITLE with what no font has as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in title)
