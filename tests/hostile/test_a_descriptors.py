"""A: descriptors, the current directory, /proc; what the caller has written down."""

import json
import os

import pytest

from hostile import probes

NAMES = probes.of("A")


def test_without_a_sandbox_they_succeed(control):
    reached, within = control(NAMES)
    assert reached >= within


def test_they_reach_nothing(way):
    assert probes.reached(way.attack(NAMES)) == set()


def test_what_they_try_is_there(way):
    """Else it would be no wonder."""
    assert way.attack(["surroundings"]) == {"surroundings": probes.REACHED}


def test_a_caller_whose_directory_was_deleted(way):
    """It is served, and PROG is where it is to be."""
    gone = way.site.place / "gone"
    gone.mkdir()
    inside = ["sh", "-c", 'cd "$0" && rmdir "$0" && exec "$@"', str(gone)]
    found = way.site.attack(lambda site, argv: [*inside, *way.words(site, argv)], ["surroundings", "current-directory"])
    assert (found["surroundings"], found["current-directory"] == probes.REACHED) == (probes.REACHED, False)


@pytest.mark.parametrize("kind", ["symlink", "hard link", "directory"])
def test_what_is_written_down_is_not_written_elsewhere(who, place, kind):
    """PROG may write the directory that the report, and the list of changes, go to, and plants something there."""
    shared, victim = place / "shared", place / "victim"
    shared.mkdir()
    shared.chmod(0o777)
    victim.write_text("precious")
    os.chown(victim, who.uid, -1)
    (shared / "victim").hardlink_to(victim)
    plant = {
        "symlink": f"busybox rm -f $f; busybox ln -s {victim} $f",
        "hard link": "busybox rm -f $f; busybox ln /data/victim $f",
        "directory": "busybox rm -f $f; busybox mkdir $f",
    }[kind]
    code = f"for f in /data/report /data/changes; do {plant}; done"
    options = [f"-m{shared}:/data", f"--report={shared}/report", f"--changes={shared}/changes", "--overlay=tmpfs"]
    done = who.inside("/bin/sh", "-c", code, options=options)
    assert victim.read_text() == "precious"
    if kind == "directory":
        assert (done.returncode, [*(shared / "report").iterdir()]) == (125, [])
        assert "Is a directory" in done.stderr
    else:
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads((shared / "report").read_text())["status"] == "exited"
        assert not (shared / "report").is_symlink()


def test_nothing_shows_in_the_place_of_the_old_root(who):
    assert who.inside("/bin/busybox", "ls", "-A", "/.hako", "/.hako/..", options=["--proc"]).stdout.split()[:2] == [
        "/.hako:",
        "/.hako/..:",
    ]
