"""L: many, one after the other and at once: nothing fails, nothing grows."""

import os
import pathlib

import pytest
from test_run_life import gone, mark  # noqa: F401  mark is a fixture

from conftest import DEADLINE, prepare

MANY = 300


def count(site):
    """What could grow: files and mounts of the site, cgroups of hako, our own descriptors and children."""
    files = sorted(str(path) for path in site.place.rglob("*"))
    mounts = [line for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines() if str(site.place) in line]
    children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return files, mounts, sorted(os.listdir("/proc/self/fd")), children


@pytest.mark.long
def test_each_way_many_times(way):
    argv = way.words(way.site, ["/bin/probe", "here"])
    assert way.site.who.run(*argv).returncode == 0  # what is made once is made now
    before = count(way.site)
    for _ in range(60):
        done = way.site.who.run(*argv)
        assert (done.returncode, done.stderr) == (0, "")
    assert count(way.site) == before


@pytest.mark.long
def test_three_hundred_targets_at_once(who, place, mark):  # noqa: F811
    argvs = []
    for i in range(MANY):
        who.box = prepare(place / f"box{i}")
        argvs.append(who.sandbox("/bin/busybox", "sh", "-c", f"echo {i}", mark, options=["--proc", "--tmpfs=/tmp"]))
    processes = [who.start(*argv) for argv in argvs]
    ends = [(*process.communicate(timeout=5 * DEADLINE), process.returncode) for process in processes]
    assert ends == [(f"{i}\n", "", 0) for i in range(MANY)]
    assert gone(mark)


@pytest.mark.long
@pytest.mark.alone
def test_each_way_many_at_once(way, mark):  # noqa: F811
    argv = way.words(way.site, ["/bin/probe", "leave", mark])
    processes = [way.site.who.start(*argv) for _ in range(100)]
    ends = {(*process.communicate(timeout=5 * DEADLINE), process.returncode) for process in processes}
    assert ends == {("left\n", "", 7)}
    assert gone(mark)
