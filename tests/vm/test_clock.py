"""Another time of day, which only a machine of its own can be given."""

import subprocess
import time

import pytest

from conftest import SLOW


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
