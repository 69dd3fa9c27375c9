"""G: hako-enter. That those inside cannot read who enters is tried in every module, by the ways that enter."""

import os
import subprocess

from test_enter import sandboxes  # noqa: F401  a fixture


def test_a_sandbox_that_has_just_died(who, place):
    """The number may be another's by then: nothing runs on the host."""
    argv = who.sandbox("/bin/sh", "-c", "read x", options=[f"--pid-file={place}/pid", "--proc"])
    process = who.start(*argv, stdin=subprocess.PIPE)
    while not (place / "pid").exists():
        assert process.poll() is None
    pid = (place / "pid").read_text().strip()
    process.communicate("x\n")
    done = who.run("hako-enter", "--fork", pid, "/bin/echo", "ran")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)


def test_a_number_that_became_somebody_elses(who):
    """A process of the host that has a sandbox's old number is the host's."""
    process = subprocess.Popen(who.command(["sleep", "60"]))
    try:
        done = who.run("hako-enter", "--fork", str(process.pid), "/bin/echo", "ran")
    finally:
        process.kill()
        process.wait()
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)


def test_nothing_of_the_host_comes_along(who, sandboxes):  # noqa: F811
    """Neither a directory that is open, nor the current one, nor the root, also without --fork."""
    pid = sandboxes(who)
    leaked = os.open("/", os.O_RDONLY)
    code = "busybox ls /proc/self/fd; busybox pwd; busybox ls -A /proc/self/root/; busybox ls /usr/bin"
    for options in ([], ["--fork"]):
        done = who.run("hako-enter", *options, str(pid), "/bin/sh", "-c", code, pass_fds=[leaked])
        words = done.stdout.split()
        assert words[:5] == ["0", "1", "2", "3", "/"]
        assert sorted(words[5:]) == sorted(os.listdir(who.box))
        assert done.stderr == "ls: /usr/bin: No such file or directory\n"
    os.close(leaked)
