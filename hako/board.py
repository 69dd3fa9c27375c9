"""What hako-top shows: a row for each sandbox, one of them chosen, and what its keys do."""

import signal
import time

from rich.console import Group
from rich.table import Table
from rich.text import Text

from hako import sandboxes
from hako.failure import Failure

KEYS = "up and down: choose   k: end it   K: kill it   q: quit"
UP, DOWN = ("\x1b[A", "\x1bOA"), ("\x1b[B", "\x1bOB")
SIZES = (("G", 2**30), ("M", 2**20), ("K", 2**10))
COLUMNS = ("PID", "SUPERVISOR", "AGE", "CPU", "CPU TIME", "MEMORY", "PROCESSES")


class Row:
    """A sandbox and what it uses.

    sandbox  a sandboxes.Sandbox, or a sandboxes.Task
    name     (pid, start time) of the process that its keys mean: what tells it from others
    used     as sandbox.used() said at the monotonic time AT
    rate     percent of a core since the look before, None at the first
    """

    __slots__ = ("at", "name", "rate", "sandbox", "used")

    def __init__(self, sandbox, before):
        self.sandbox, self.used, self.at = sandbox, sandbox.used(), time.monotonic()
        self.name = sandbox.name
        earlier = before.get(self.name)
        self.rate = None
        if earlier is not None and self.at > earlier.at:
            self.rate = max(self.used["cpu"] - earlier.used["cpu"], 0) / (self.at - earlier.at) * 100

    def cells(self):
        """What stands in COLUMNS."""
        one, used, limits = self.sandbox, self.used, self.sandbox.limits
        yield "-" if one.pid is None else str(one.pid)
        yield str(one.supervisor)
        yield of(one.age, limits.get("time"), sandboxes.clock)
        yield "" if self.rate is None else of(self.rate, limits.get("cpu"), "{:.0f} %".format)
        yield of(used["cpu"], limits.get("cpu_time"), "{:.1f} s".format)
        yield of(used["memory"], limits.get("memory"), size)
        yield of(used["pids"], limits.get("pids"), str)

    def command(self):
        """Its command line, for people."""
        return self.sandbox.shown()


class Board:
    """All rows.

    chosen    the name of the row that the keys mean, or None
    question  (that row, a signal): whether to send it; or None
    told      what there was to say of the last key
    """

    __slots__ = ("chosen", "question", "rows", "told")

    def __init__(self):
        self.rows, self.chosen, self.question, self.told = [], None, None, ""

    def look(self):
        """Look what runs, and what it uses."""
        before, rows = {row.name: row for row in self.rows}, []
        for sandbox in sandboxes.found():
            try:
                rows.append(Row(sandbox, before))
            except (OSError, Failure):
                continue  # it has ended meanwhile
        self.rows = rows
        if rows and self.chosen not in [row.name for row in rows]:
            self.chosen = rows[0].name

    def press(self, key):
        """Do what KEY asks for; whether to go on."""
        self.told = ""
        if self.question is not None:
            self.answer(key)
        elif key in UP or key in DOWN:
            self.choose(-1 if key in UP else 1)
        elif key in ("k", "K") and self.row() is not None:
            self.question = self.row(), signal.Signals(self.row().sandbox.ending if key == "k" else signal.SIGKILL)
        return key != "q"

    def answer(self, key):
        """Take KEY as the answer to the question."""
        (row, number), self.question = self.question, None
        if key == "y":
            there = row.sandbox.end(number)
            self.told = f"{number.name} sent to {row.name[0]}" if there else f"{row.name[0]} is not there any more"

    def row(self):
        """The chosen row, or None."""
        return next((row for row in self.rows if row.name == self.chosen), None)

    def choose(self, step):
        """Choose the row that is STEP further down."""
        names = [row.name for row in self.rows]
        if names:
            place = names.index(self.chosen) + step
            self.chosen = names[min(max(place, 0), len(names) - 1)]

    def picture(self, height):
        """All of it, in HEIGHT lines, for rich."""
        table = Table(box=None, pad_edge=False, expand=True, header_style="bold")
        for name in COLUMNS:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("COMMAND", ratio=1, no_wrap=True, overflow="ellipsis")
        for row in self.visible(max(height - 3, 1)):
            style = "reverse" if row.name == self.chosen else ""
            table.add_row(*map(Text, row.cells()), Text(row.command()), style=style)
        number = sum(row.sandbox.kind != "worker" for row in self.rows)
        count = f"{number} sandbox{'' if number == 1 else 'es'}"
        return Group(Text(f"{count}   {KEYS}", style="dim", no_wrap=True), table, Text(self.line(), style="bold"))

    def visible(self, count):
        """COUNT rows, the chosen one among them."""
        names = [row.name for row in self.rows]
        place = names.index(self.chosen) if self.chosen in names else 0
        first = max(place - count + 1, 0)
        return self.rows[first : first + count]

    def line(self):
        """The last line: a question, or what the last key did."""
        if self.question is None:
            return self.told
        row, number = self.question
        return f"{'kill' if number == signal.SIGKILL else 'end'} {row.name[0]}, {row.command().strip()[:60]}? y or n"


def of(value, limit, told):
    """VALUE, and behind it the LIMIT if there is one, as TOLD tells them."""
    return told(value) if limit is None else f"{told(value)} / {told(limit)}"


def size(count):
    """COUNT, bytes, for people."""
    for name, unit in SIZES:
        if count >= unit:
            return f"{count / unit:.1f}{name}"
    return str(count)
