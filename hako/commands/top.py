"""hako-top - show the sandboxes that run here, what each uses, and its limits

Usage:
  hako-top [options]
  hako-top (--help | --version)

Options:
  --interval=SECONDS  between looks [default: 1]
  --json              print a line of JSON for each, once; needs neither rich nor a terminal
  --help              print this text
  --version           print the version

Shown is what hako-ps lists. A figure is followed by its limit, if it has one.
The up and down keys choose a sandbox, k ends it, K kills its supervisor, each
when y has been pressed, and q quits; a task of hako-task(1) or hako(3) is killed
by both, alone. Needs rich: pip install rich.
Exit status: 125 if nothing can be shown, else 0, or it dies of the signal
that ended it.
See hako-ps(1), hako-limit(1).
"""

import _signal
import os
import select
import sys

from hako import core, extra, json, kernel, sandboxes, supervise, values
from hako.failure import Failure

MOST_BYTES = 1024  # that are taken at once from who types
KEY_BYTES = 3  # of an arrow


class Ended(Exception):
    """Signal NUMBER has come: the terminal is to be left as it was."""

    def __init__(self, number):
        super().__init__(number)
        self.number = number


def prepare(args):
    """Check ARGS, and that there is a terminal and rich; return what shows it."""
    interval = values.seconds("--interval", args["--interval"])
    if args["--json"]:
        return lambda: core.print_out(lines())
    if not (os.isatty(0) and os.isatty(1)):
        raise Failure("stdin and stdout are not a terminal [--json is for programs]")
    if core.moved:
        raise Failure("shows what is outside, and is behind a command that goes inside [run it by its path there]")
    extra.need("rich")
    places = list(sys.path)
    return lambda: enter(interval, places)


def lines():
    """A line of JSON for each sandbox."""
    told = []
    for sandbox in sandboxes.found():
        try:
            told.append(json.line({**sandbox.told(), **sandbox.used()}))
        except (OSError, Failure):
            continue  # it has ended meanwhile
    return b"".join(told)


def enter(interval, places):
    """Show the board every INTERVAL seconds until somebody has seen enough; end. PLACES are where to import from."""
    sys.path[:] = places
    import termios
    import tty

    def end(number, frame):
        del frame
        raise Ended(number)

    saved = termios.tcgetattr(0)
    for number in supervise.ENDING:
        _signal.signal(number, end)
    _signal.signal(kernel.SIGTSTP, _signal.SIG_IGN)  # the terminal is not as the shell wants it
    ended = None
    try:
        tty.setcbreak(0)
        show(interval)
    except Ended as err:
        ended = err.number
    finally:
        termios.tcsetattr(0, termios.TCSAFLUSH, saved)
    if ended is not None:
        _signal.signal(ended, _signal.SIG_DFL)
        os.kill(os.getpid(), ended)
    os._exit(0)


def show(interval):
    """Show the board until q is pressed."""
    from rich.console import Console
    from rich.live import Live

    from hako import board

    shown, console = board.Board(), Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        pressed = []
        while all(map(shown.press, pressed)):
            if not pressed:
                shown.look()
            live.update(shown.picture(console.size.height), refresh=True)
            pressed = keys(interval)


def keys(seconds):
    """The keys that are pressed within SECONDS, [] if none is; q if the terminal is gone."""
    if not select.select([0], [], [], seconds)[0]:
        return []
    text = os.read(0, MOST_BYTES).decode(errors="replace")
    found = []
    while text:
        length = KEY_BYTES if text.startswith(("\x1b[", "\x1bO")) else 1
        found.append(text[:length])
        text = text[length:]
    return found or ["q"]
