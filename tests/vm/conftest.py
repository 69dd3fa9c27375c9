"""What tests/vm/run, which says what runs where, sets, and what the tests for other machines share."""

import os
import pathlib

import pytest

collect_ignore_glob = [] if "HAKO_VM" in os.environ else ["test_*.py"]


def traces():
    """What a command could leave behind: processes, mounts, cgroups."""
    processes = set()
    for place in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended
        if words:  # else the kernel's own, which come and go
            processes.add((place.name, words))
    cgroups = {path for path, _, _ in os.walk("/sys/fs/cgroup")}
    return processes, pathlib.Path("/proc/self/mountinfo").read_text(), cgroups


@pytest.fixture
def nothing_is_left():
    """Whatever a command does meanwhile, it leaves nothing behind."""
    before = traces()
    yield
    assert traces() == before
