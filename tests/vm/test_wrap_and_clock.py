"""What only a machine of its own can be asked for: few process numbers, another time of day."""

import itertools
import pathlib
import subprocess
import time

import pytest

from conftest import SLOW

PID_MAX = pathlib.Path("/proc/sys/kernel/pid_max")
SANDBOXES = 150  # three numbers each, at least


@pytest.mark.root
@pytest.mark.usefixtures("nothing_is_left")
def test_pids_that_begin_again(who):
    before = PID_MAX.read_text()
    PID_MAX.write_text("400")
    numbers = []
    try:
        for _ in range(SANDBOXES):
            process = who.start(*who.sandbox("/bin/busybox", "echo", "ran", options=["--proc", "--user=65534"]))
            numbers.append(process.pid)
            out, err = process.communicate(timeout=60 * SLOW)
            assert (process.returncode, out, err) == (0, "ran\n", "")
    finally:
        PID_MAX.write_text(before)
    assert any(later < earlier for earlier, later in itertools.pairwise(numbers))


@pytest.mark.root
@pytest.mark.parametrize("seconds", [3600, -3600])
def test_a_clock_that_is_set_ends_nothing(who, seconds):
    """Neither at once nor never: a limit of time goes by the clock that nobody sets."""
    began = time.monotonic()
    process = who.start("hako-limit", f"--time={SLOW / 2}", "sh", "-c", "echo up; sleep 100000", stdin=subprocess.PIPE)
    assert process.stdout.readline() == "up\n"
    time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)
    try:
        out, err = process.communicate(timeout=60 * SLOW)
    finally:
        time.clock_settime(time.CLOCK_REALTIME, time.time() - seconds)
    took = time.monotonic() - began
    assert (process.returncode, out) == (124, "")
    assert err == f"hako-limit: timeLimit: {SLOW / 2:g} seconds are over\n"
    assert SLOW / 2 <= took < 3000
