"""Pids that are used again and again: on this kernel it is all of the machine that has few."""

import os
import pathlib
import re
import sys

from conftest import DEADLINE

SOAK = pathlib.Path(__file__).parent.parent / "soak.py"


def test_no_sandbox_takes_another_s_pid_for_its_own(who):
    options = ["--sequential=40", "--together=4", "--pid-max=400", *(["--user"] if who.name == "user" else [])]
    somebody = type(who)("root")
    env = {**os.environ, **somebody.env}
    done = somebody.run(sys.executable, str(SOAK), *options, timeout=2 * DEADLINE, env=env)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert int(re.search("began anew ([0-9]+) times", done.stdout)[1]) > 0
