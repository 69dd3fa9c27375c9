"""Many sandboxes leave nothing behind: tests/soak.py, with few of them. `make soak` takes thousands."""

import os
import pathlib
import re
import sys

import pytest

from conftest import DEADLINE, Who

SOAK = pathlib.Path(__file__).parent / "soak.py"
KERNEL = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))


@pytest.mark.parametrize("delegating", [pytest.param(True, marks=pytest.mark.root)])  # of cgroups, also for the user
def test_nothing_stays_behind_and_nothing_fails(who, delegating):
    """Also when pids are used again; where a pid namespace cannot have few, tests/vm sees to that."""
    assert delegating
    few = ["--pid-max=340"] if os.getuid() == 0 and KERNEL >= (6, 14) else []
    options = ["--sequential=18", "--together=6", *few, *(["--user"] if who.name == "user" else [])]
    done = Who("root").run(sys.executable, str(SOAK), *options, timeout=4 * DEADLINE)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert f"{who.name}: 18 one after the other" in done.stdout
    counts = re.findall(r"(?m)^  ([a-z]+): ([0-9]+) before, ([0-9]+) after$", done.stdout)
    assert [what for what, before, after in counts if before == after] == [
        *("processes", "namespaces", "mounts", "descriptors", "cgroups", "files")
    ]
    assert not few or int(re.search("began anew ([0-9]+) times", done.stdout)[1]) > 0
