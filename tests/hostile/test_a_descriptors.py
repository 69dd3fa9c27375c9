"""A: descriptors, the current directory, /proc; what the caller has written down."""

import json
import os
import re

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


RECORDS = {
    "limit-usage": ["hako-limit", "--usage=@"],
    "limit-report": ["hako-limit", "--report=@"],
    "policy-report": ["hako-policy", "--report=@", "default", "--"],
    "seccomp-report": ["seccomp-exec", "--report=@", "default"],
    "seccomp-learn": ["seccomp-exec", "--learn=@"],
}


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("kind", ["file", "fifo"])
def test_what_is_written_down_goes_through_no_link(who, place, kind, name):
    """An earlier PROG has planted it. A report replaces it, what is written as it comes is refused."""
    shared, victim = place / "shared", place / "victim"
    shared.mkdir()
    shared.chmod(0o777)
    os.mkfifo(victim) if kind == "fifo" else victim.write_text("precious")
    os.chown(victim, who.uid, -1)
    reader = os.open(victim, os.O_RDONLY | os.O_NONBLOCK)
    done = who.inside("/bin/busybox", "ln", "-s", str(victim), "/data/f", options=[f"-m{shared}:/data"])
    assert done.returncode == 0
    argv = [word.replace("@", f"{shared}/f") for word in RECORDS[name]]
    done = who.run(*argv, "/bin/true")
    assert os.read(reader, 100) == (b"" if kind == "fifo" else b"precious")
    if name.endswith("-report") and not name.startswith("seccomp"):
        assert (done.returncode, (shared / "f").is_symlink()) == (0, False)
    else:
        assert done.returncode == 125
        assert "Too many levels of symbolic links [it is a symbolic link]" in done.stderr
    os.close(reader)
    control = who.run(*[word.replace("@", f"{shared}/other") for word in RECORDS[name]], "/bin/true")
    assert (control.returncode, (shared / "other").is_file()) == (0, True)


def test_prog_is_not_what_somebody_had_open(way):
    """The descriptors are closed before the exec, not by it: else PROG could be one of them."""
    numbers = range(3, 13)
    program = os.open(way.site.probe, os.O_RDONLY)
    taken = [os.dup(program) for _ in numbers]  # from 3 on, or higher: then they are all the same to who inherits
    try:
        for number in numbers:
            words = way.words(way.site, [f"/proc/self/fd/{number}", *way.site.told(True), "surroundings"])
            done = way.site.who.run(*words, pass_fds=[program, *taken], cwd=way.site.home, env=way.site.env)
            assert done.stdout == ""
            # Those that are there are pipes by which PROG's process tells of itself.
            assert re.search("No such file or directory|Permission denied", done.stderr), (number, done.stderr)
    finally:
        for fd in (program, *taken):
            os.close(fd)


def test_nothing_shows_in_the_place_of_the_old_root(who):
    assert who.inside("/bin/busybox", "ls", "-A", "/.hako", "/.hako/..", options=["--proc"]).stdout.split()[:2] == [
        "/.hako:",
        "/.hako/..:",
    ]
