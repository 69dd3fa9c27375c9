"""B: mounts, read-only and inert; the host's stay as they are."""

import os
import subprocess

import pytest

from hostile import probes

NAMES = probes.of("B")


def test_without_a_sandbox_they_succeed(control):
    reached, within = control(NAMES)
    assert reached >= within


def test_they_reach_nothing(way):
    assert probes.reached(way.attack(NAMES)) == set()


def snapshot(tops):
    """What lies below TOPS, with all that changing it changes."""
    found = {}
    for top in tops:
        for root, _, names in os.walk(top):
            for name in [".", *names]:
                status = os.lstat(os.path.join(root, name))
                found[root, name] = status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return found


def test_setting_up_changes_nothing(way):
    """Neither in TARGET nor in what is shown, nor among the host's mounts."""
    site = way.site

    def everything():
        with open("/proc/self/mountinfo") as file:
            mounts = [line for line in file if str(site.place) in line]
        return snapshot([site.box, site.ro, site.home]), mounts

    before = everything()
    assert way.attack(["descriptors"])
    assert everything() == before


@pytest.mark.root
@pytest.mark.parametrize("propagation", ["private", "shared", "slave", "unchanged"])
def test_nothing_propagates_whatever_the_host_has(who, place, propagation):
    """Not what is mounted by setting up, nor by a --setup; and what the host mounts later does not appear."""
    setup = place / "setup"
    setup.write_text("#!/bin/sh\nmount -t tmpfs none tmp\n")
    setup.chmod(0o755)
    options = [f"-m{place}:/data", f"--setup={setup}"]
    argv = who.sandbox("/bin/sh", "-c", "echo up; read x; busybox ls /data/box/etc", options=options)
    # The shell is the host: it shares with what it starts as it is told.
    shell = """
        cat /proc/self/mountinfo > "$1/before"; mkfifo "$1/in" "$1/out"
        box=$2; place=$1; shift 2
        "$@" < "$place/in" > "$place/out" & exec 3> "$place/in" 4< "$place/out"; read up <&4
        cat /proc/self/mountinfo > "$place/during"
        mount -t tmpfs none "$box/etc" && touch "$box/etc/later"
        echo >&3; cat <&4 > "$place/seen"; wait
    """
    host = ["unshare", "--mount", "--propagation", propagation, "sh", "-c", shell, "sh", str(place), str(who.box)]
    before = len(mounts_below(place))
    done = who.run(*host, *argv)
    assert done.stderr == ""
    for name in ("before", "during"):
        assert [line for line in (place / name).read_text().splitlines() if f"{who.box}/" in line] == []
    assert (place / "seen").read_text() == ""
    if propagation in ("shared", "unchanged"):
        subprocess.run(["umount", "-q", str(who.box / "etc")], check=False)
    assert len(mounts_below(place)) == before


def mounts_below(place):
    """The host's mounts below PLACE."""
    with open("/proc/self/mountinfo") as file:
        return [line for line in file if str(place) in line]
