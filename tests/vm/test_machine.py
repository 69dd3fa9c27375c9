"""The machine is what tests/vm/boot says it is."""

import pathlib

CGROUP = pathlib.Path("/sys/fs/cgroup")


def mounts():
    """What is mounted: {place: (file system, options)}."""
    lines = [line.split() for line in pathlib.Path("/proc/self/mounts").read_text().splitlines()]
    return {place: (fstype, options.split(",")) for _, place, fstype, options, *_ in lines}


def test_it_has_cgroup_v2_alone_with_every_controller():
    fstype, options = mounts()[str(CGROUP)]
    assert (fstype, "nsdelegate" in options) == ("cgroup2", True)
    assert "cgroup" not in {fstype for fstype, _ in mounts().values()}
    enabled = (CGROUP / "cgroup.subtree_control").read_text().split()
    assert enabled == (CGROUP / "cgroup.controllers").read_text().split()
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= set(enabled)
    assert pathlib.Path("/proc/self/cgroup").read_text() == "0::/\n"


def test_it_keeps_what_it_writes():
    fstype, options = mounts()["/"]
    assert (fstype, "rw" in options, "lowerdir=/host" in options) == ("overlay", True, True)


def test_it_has_a_disk():
    fstype, options = mounts()["/var/tmp"]
    assert (fstype, "rw" in options) == ("ext4", True)


def test_it_is_as_debian_ships_it():
    """Landlock and user namespaces for everybody."""
    assert "landlock" in pathlib.Path("/sys/kernel/security/lsm").read_text().split(",")
    assert pathlib.Path("/proc/sys/kernel/unprivileged_userns_clone").read_text() == "1\n"
    assert int(pathlib.Path("/proc/sys/user/max_user_namespaces").read_text()) > 1000
