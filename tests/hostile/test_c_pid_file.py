"""C: the pid file."""

import os

import pytest


@pytest.mark.root
@pytest.mark.parametrize("kind", ["null", "socket", "hard link"])
def test_what_is_there_stays(who, place, kind):
    """A device, a socket, another name of a file with something else in it."""
    path, victim = place / "pid", place / "victim"
    victim.write_text("precious")
    if kind == "null":
        os.mknod(path, 0o666 | 0o020000, os.makedev(1, 3))
    elif kind == "socket":
        os.mknod(path, 0o666 | 0o140000)
    else:
        path.hardlink_to(victim)
    before = path.lstat()
    done = who.inside("/bin/sh", "-c", "echo ran", options=[f"--pid-file={path}"])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert done.stderr.startswith(f"hako-run: --pid-file: {path} is there and ")
    assert (path.lstat().st_ino, victim.read_text()) == (before.st_ino, "precious")


def test_prog_cannot_have_another_file_removed(who, place):
    """It may write the directory: what it puts in the place of the pid file stays, and so does what that leads to."""
    shared = place / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (place / "victim").write_text("precious")
    code = f"""
        until [ -e /data/pid ]; do busybox sleep 0.01; done
        busybox mv /data/pid /data/moved; busybox ln -s {place}/victim /data/pid
    """
    done = who.inside("/bin/sh", "-c", code, options=[f"-m{shared}:/data", f"--pid-file={shared}/pid"])
    assert (done.returncode, done.stderr) == (0, "")
    assert ((place / "victim").read_text(), (shared / "pid").is_symlink()) == ("precious", True)
