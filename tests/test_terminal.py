"""The caller's terminal is not PROG's to type on, to change or to take."""

import os
import pty
import select
import signal
import subprocess
import time

import pytest

from conftest import DEADLINE, SYSTEM

INJECT = """
import fcntl, os, sys, termios
def attempt(name, number, argument):
    try:
        fcntl.ioctl(0, number, argument)
        print(name, "done", flush=True)
    except OSError as err:
        print(name, err.strerror, flush=True)
if os.fork() == 0:
    os.setsid()
    attempt("SCTTY", termios.TIOCSCTTY, 0)
    attempt("STI", termios.TIOCSTI, b"x")
    attempt("SETD", termios.TIOCSETD, bytes(4))
    attempt("LINUX", 0x541C, bytes(1))
    os._exit(0)
os.wait()
"""
HIGH_BITS = r"""
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
int main() {
    long r = syscall(SYS_ioctl, 0, 0xdead00005412UL, "x");
    puts(r ? strerror(errno) : "done");
}
"""


@pytest.fixture
def terminal():
    """A pty that is nobody's controlling terminal: master and slave."""
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize("options", [(), ("--user=65534",), ("--cap-add=all",)])
def test_nothing_is_injected(who, terminal, options):
    done = who.python(INJECT, options=options, stdin=terminal[1])
    assert done.stdout.splitlines() == [f"{name} Operation not permitted" for name in ("SCTTY", "STI", "SETD", "LINUX")]
    control = who.run("/usr/bin/python3", "-c", INJECT, stdin=terminal[1])
    assert "SCTTY done\nSTI done\nSETD done\n" in control.stdout


def test_not_with_other_bits_either(who, terminal, compiled):
    """The kernel looks at 32 bits of the request."""
    probe = compiled(HIGH_BITS)
    options = [f"-m{probe}:/bin/probe:ro", "--cap-add=all"]
    assert who.inside("/bin/probe", options=options, stdin=terminal[1]).stdout == "Operation not permitted\n"
    if who.name == "root":
        assert who.run(probe, stdin=terminal[1]).stdout == "done\n"


def test_not_by_the_32_bit_call_either(who, terminal, place):
    """int 0x80 has other numbers; its ioctl is refused too."""
    source = place / "probe.c"
    source.write_text(r"""
        int main() {
            int r;
            __asm__ volatile("int $0x80" : "=a"(r) : "a"(54), "b"(0), "c"(0x5412), "d"("x") : "memory");
            return r == -1 ? 1 : r == 0 ? 0 : 2;  /* EPERM, done, anything else */
        }
    """)
    if os.uname().machine != "x86_64":
        return
    # Not position-independent: the address of "x" must fit into 32 bits.
    subprocess.run(["cc", "-static", "-no-pie", "-o", place / "probe", source], check=True)
    argv = ["/bin/probe"]
    options = [f"-m{place}/probe:/bin/probe:ro", "--cap-add=all"]
    assert who.inside(*argv, options=options, stdin=terminal[1]).returncode == 1
    if who.name == "root":
        assert who.run(place / "probe", stdin=terminal[1]).returncode == 0


def test_a_terminal_at_a_kept_descriptor_counts(who, terminal):
    code = INJECT.replace("ioctl(0,", "ioctl(int(sys.argv[1]),")
    fd = terminal[1]
    done = who.python(code, str(fd), options=[f"--keep-fd={fd}"], pass_fds=[fd])
    assert "done" not in done.stdout
    assert done.stdout.count("Operation not permitted") == 4


def test_without_a_terminal_nothing_is_filtered(who):
    """Programs with ptys of their own, tmux or script, work."""
    code = "import os, pty; pid, fd = pty.fork(); os._exit(0) if pid == 0 else print(os.waitpid(pid, 0)[1])"
    assert who.python(code, options=["--dev", "--proc"]).stdout == "0\n"


def session(who, *argv):
    """Start ARGV in a session of its own with a controlling terminal; return its pid and the master."""
    pid, master = pty.fork()
    if pid == 0:
        try:
            argv = [*who.prefix, *argv]
            os.execvpe(argv[0], argv, who.env)
        finally:
            os._exit(99)
    return pid, master


def read_until(master, text):
    """What comes from MASTER until TEXT does."""
    got = b""
    end = time.monotonic() + DEADLINE
    while text not in got:
        assert time.monotonic() < end, got
        if select.select([master], [], [], 1)[0]:
            try:
                got += os.read(master, 4096)
            except OSError:
                break
    return got


def test_the_callers_terminal_cannot_be_opened(who):
    """PROG has no controlling terminal, and /dev has no ptys of the host."""
    code = "echo hi > /dev/tty || echo refused; busybox ls /dev/pts; echo end"
    pid, master = session(who, *who.sandbox("/bin/sh", "-c", code, options=["--dev", "--proc"]))
    got = read_until(master, b"end\r\n")
    assert b"refused" in got
    assert got.split(b"refused\r\n")[1] == b"ptmx\r\nend\r\n"
    assert os.waitpid(pid, 0)[1] == 0
    os.close(master)


def test_ctrl_c_ends_the_sandbox(who):
    pid, master = session(who, *who.sandbox("/bin/sh", "-c", "echo up; busybox sleep 300"))
    read_until(master, b"up\r\n")
    os.write(master, b"\x03")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGINT
    os.close(master)


def test_what_enters_has_no_hold_of_it_either(who, place):
    """hako-enter without --fork stays in the caller's session; the filter holds for /dev/tty too."""
    path = place / "pid"
    inmate = who.start(
        *who.sandbox("/bin/sh", "-c", "busybox sleep 300", options=[f"-p{path}", "--proc", "--dev", *SYSTEM])
    )
    end = time.monotonic() + DEADLINE
    while not path.exists():
        assert time.monotonic() < end
    code = "import fcntl, termios, os\nfor fd in (0, os.open('/dev/tty', os.O_RDWR)):\n"
    code += "    try: print(fcntl.ioctl(fd, termios.TIOCSTI, b'x'))\n    except OSError as err: print(err.strerror)\n"
    code += "print('end')"
    for options in ((), ("--fork",)):
        argv = ["hako-enter", *options, path.read_text().strip(), "/usr/bin/python3", "-c", code]
        pid, master = session(who, *argv)
        got = read_until(master, b"end\r\n" if not options else b"No such device")
        assert b"Operation not permitted" in got or b"No such device or address" in got
        os.waitpid(pid, 0)
        os.close(master)
    inmate.terminate()
    inmate.communicate(timeout=DEADLINE)
