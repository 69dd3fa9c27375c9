"""G: hako-enter. That those inside cannot read who enters is tried in every module, by the ways that enter."""

import fcntl
import os
import pathlib
import subprocess
import termios

from test_enter import sandboxes  # noqa: F401  a fixture

from conftest import wait_until
from hako import kernel


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


def test_a_user_namespace_that_prog_has_made(who, sandboxes):  # noqa: F811
    """An ordinary user enters by a process of PROG's own: not where that one has the say."""
    options = ["--user=65534", "--group=65534"] if who.name == "root" else []  # who is 0 may make none
    pid = sandboxes(who, *options, code="exec busybox unshare -U busybox sleep 1000")
    prog = kernel.children(pid)[0]
    argv = pathlib.Path(f"/proc/{prog}/cmdline")
    wait_until(lambda: argv.read_bytes().startswith(b"busybox\0sleep\0"))
    done = who.run("hako-enter", "--fork", str(pid), "/bin/busybox", "echo", "ran")
    if who.name == "root":  # who enters by the init, into the sandbox's own
        assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")
    else:
        message = f"hako-enter: process {prog} has left the user namespace of its sandbox\n"
        assert (done.returncode, done.stdout, done.stderr) == (125, "", message)


TYPE = r"""
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
int main() {
    int fd = open("/dev/tty", O_RDWR);
    puts(fd < 0 ? "none" : ioctl(fd, TIOCSTI, "x") ? "refused" : "typed");
}
"""


def test_the_terminal_that_no_descriptor_leads_to(who, sandboxes, compiled):  # noqa: F811
    """Without --fork PROG is in the caller's session, and finds its terminal at /dev/tty, whatever is at 0, 1 and 2."""
    probe = compiled(TYPE)
    pid = sandboxes(who, "--dev", f"-m{probe}:/bin/probe:ro")
    master, slave = os.openpty()
    os.fchmod(slave, 0o666)

    def lead():
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    found = []
    for argv in ([probe], ["hako-enter", str(pid), "/bin/probe"], ["hako-enter", "--fork", str(pid), "/bin/probe"]):
        found.append(who.run(*argv, preexec_fn=lead, pass_fds=[slave], stdin=subprocess.DEVNULL).stdout)
    os.close(master)
    os.close(slave)
    assert found == ["typed\n", "refused\n", "none\n"]


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
