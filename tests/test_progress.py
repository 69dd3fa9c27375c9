"""Long work says how far it is, on terminals only: --learn, the benchmarks, the soak; hako-task in test_task_stream."""

import contextlib
import os
import re
import sys
from pathlib import Path

import pytest

from conftest import BIN, DEADLINE

TOP = Path(__file__).parent.parent
FEW = {"ROUNDS": "1", "BLOCK": "1", "COUNT": "5", "LARGE": "4096", "PYTHONPATH": str(TOP)}
SHOWN = "\r\x1b[K"  # in front of each line that is written over the last


def with_terminal(who, *argv, out=False, **options):
    """Run ARGV with a terminal as stderr, and as stdout if OUT; return what ended and what the terminal has got."""
    ours, theirs = os.openpty()
    streams = {"stderr": theirs, "stdout": theirs} if out else {"stderr": theirs, "stdout": -1}
    done = who.run(*argv, capture_output=False, **streams, **options)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # EIO: that is all
        while piece := os.read(ours, 65536):
            seen += piece
    os.close(ours)
    return done, seen.decode()


def test_learning(who, place):
    argv = ["seccomp-exec", f"--learn={place}/learned", "sh", "-c", "echo out; sleep 0.3; exit 3"]
    done, seen = with_terminal(who, *argv)
    assert (done.returncode, done.stdout) == (3, "out\n")
    lines = seen.split(SHOWN)
    assert lines[0] == ""
    assert len(lines) > 2
    assert all(re.fullmatch(r"[1-9]\d* calls, \d+ a second", line) for line in lines[1:-1])
    assert re.fullmatch(r"[1-9]\d* calls, \d+ a second\r\n", lines[-1])
    assert int(lines[1].split()[0]) < int(lines[-1].split()[0])


def test_learning_leaves_the_terminal_to_prog_if_it_writes_there(who, place):
    argv = ["seccomp-exec", f"--learn={place}/learned", "sh", "-c", "echo out; echo err >&2"]
    done, seen = with_terminal(who, *argv, out=True)
    assert (done.returncode, seen) == (0, "out\r\nerr\r\n")


def test_learning_where_there_is_no_terminal(who, place):
    done = who.run("seccomp-exec", f"--learn={place}/learned", "true")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.root
@pytest.mark.parametrize("name", ["start", "filters", "pool"])
def test_a_benchmark(who, name):
    """Its table is for stdout alone, and there is something to see on the way."""
    argv = [sys.executable, TOP / f"bench/{name}.py", BIN]
    env = {**who.env, **FEW}
    plain = who.run(*argv, env=env, timeout=4 * DEADLINE)
    assert (plain.returncode, plain.stderr) == (0, "")
    done, seen = with_terminal(who, *argv, env=env, timeout=4 * DEADLINE)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == len(plain.stdout.splitlines()) > 5
    lines = seen.split(SHOWN)
    assert (lines[0], lines[-1]) == ("", "")
    assert [
        line for line in lines if re.search(r"\d+ of \d+ (rounds|turns)$|^small and large caller: \d+ rounds$", line)
    ]
    assert all(re.fullmatch(r"([a-z ]+: )?\d+ (of \d+ )?(rounds|turns)|", line) for line in lines)


@pytest.mark.root
def test_the_soak(who):
    """Without a terminal: see test_soak."""
    argv = [sys.executable, TOP / "tests/soak.py", "--sequential=2", "--together=2"]
    done, seen = with_terminal(who, *argv, timeout=4 * DEADLINE)
    assert done.returncode == 0
    assert "2 one after the other" in done.stdout
    twice = ["1 of 2 are starting", "2 of 2 are starting", "2 are running"] * 2
    assert seen.split(SHOWN) == ["", "1 of 2", "2 of 2", *twice, ""]
