"""hako-run --tty: a terminal of PROG's own, job control in it, and the caller's as it was before."""

import contextlib
import fcntl
import hashlib
import os
import pty
import random
import select
import shlex
import signal
import struct
import subprocess
import termios
import time

import pytest
from test_run_life import alive, gone

from conftest import DEADLINE, SYSTEM, wait_until

SIZE = (33, 77)
DEV = ["--dev", "--proc"]
BASH = [*SYSTEM, *DEV, "--env=PS1=ready>", "--env=PATH=/usr/bin:/bin", "--env=TERM=dumb"]
SHELL = ["/usr/bin/bash", "--norc", "--noprofile"]
# A job that says when it goes on: only then has the shell given it the terminal.
JOB = (
    'python3 -Ic "import os, signal as s; s.pthread_sigmask(s.SIG_BLOCK, [18]); s.signal(2, s.SIG_DFL); '
    "os.write(1, b'sta' b'rted\\n'); [os.write(1, b'ba' b'ck\\n') for _ in iter(lambda: s.sigwait([18]), 0)]\""
)
ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]
SHOWN = [name for name in ("bin", "usr", "lib", "lib64") if os.path.exists(f"/{name}")]
RAW = "import sys, tty, os; tty.setraw(0); sys.stdout.write('up'); sys.stdout.flush()\n"


class Caller:
    """Somebody at a terminal, from which ARGV is started: what is typed there, and what is seen."""

    def __init__(self, who, *argv, ignored=()):
        argv = who.command(argv)
        self.seen = b""
        ready, go = os.pipe()
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            try:
                for number in ignored:
                    signal.signal(number, signal.SIG_IGN)
                os.read(ready, 1)
                os.execvpe(argv[0], argv, who.env)
            finally:
                os._exit(99)
        self.resize(*SIZE)
        self.before = termios.tcgetattr(self.master)  # those of the other end
        os.write(go, b"x")
        os.close(ready)
        os.close(go)
        os.set_blocking(self.master, False)

    def resize(self, rows, columns):
        """Make the window that large."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def type(self, text):
        """Type TEXT, str or bytes, and read meanwhile what is shown."""
        data = text.encode() if isinstance(text, str) else text
        end = time.monotonic() + DEADLINE
        while data:
            assert time.monotonic() < end, self.seen
            readable, writable, _ = select.select([self.master], [self.master], [], 1)
            if readable:
                self.look()
            if writable:
                with contextlib.suppress(BlockingIOError):
                    data = data[os.write(self.master, data) :]

    def look(self, most=65536):
        """Read what is shown; false at the end."""
        try:
            data = os.read(self.master, most)
        except OSError:
            return False
        self.seen += data
        return bool(data)

    def see(self, text):
        """Wait until TEXT is shown; return what was shown before it, and forget all that."""
        text, end = text.encode(), time.monotonic() + DEADLINE
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self.master], [], [], 1)[0]:
                assert self.look(), self.seen
        before, _, self.seen = self.seen.partition(text)
        return before.decode()

    def is_raw(self):
        """Whether the terminal passes on what is typed as it is."""
        return not termios.tcgetattr(self.master)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    def end(self, most=65536):
        """Read to the end, MOST bytes at once; return the exit status and what was shown, the terminal as before."""
        end = time.monotonic() + DEADLINE
        while True:
            assert time.monotonic() < end, self.seen
            if select.select([self.master], [], [], 1)[0] and not self.look(most):
                break
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert termios.tcgetattr(self.master) == self.before
        os.close(self.master)
        return status, self.seen.decode()


@pytest.fixture
def mark():
    """A word for a command line, that of no other process."""
    return f"mark{os.getpid()}x{random.randrange(10**9)}"


def sandbox(who, *argv, options=()):
    """Start ARGV in the box with a terminal of its own."""
    return Caller(who, *who.sandbox(*argv, options=["--tty", *options]))


ABOUT = (
    "import os, termios; print(os.getsid(0) == os.getpid(), os.tcgetpgrp(0) == os.getpgrp(),"
    "[os.isatty(fd) for fd in (0, 1, 2)], os.get_terminal_size()[:], os.fstat(0).st_uid == os.getuid(),"
    "os.ttyname(0) if os.path.exists('/dev/pts') else '')"
)


@pytest.mark.parametrize("options", [(), DEV, (*DEV, "--as-pid-1"), (*DEV, "--user=65534"), (*DEV, "--userns=always")])
def test_the_terminal_is_progs(who, options):
    caller = sandbox(who, "/usr/bin/python3", "-I", "-c", ABOUT, options=[*SYSTEM, *options])
    name = "/dev/pts/0" if options else ""
    assert caller.end() == (
        0,
        f"True True [True, True, True] (77, 33) True {name}".rstrip(" ") + " " * (not name) + "\r\n",
    )


def test_stty_size_and_tty(who):
    caller = sandbox(
        who, "/bin/sh", "-c", "/usr/bin/stty size; /usr/bin/tty; echo x >/dev/tty", options=[*SYSTEM, *DEV]
    )
    assert caller.end() == (0, "33 77\r\n/dev/pts/0\r\nx\r\n")


def test_the_modes_are_the_callers(who):
    caller = Caller(
        who,
        "sh",
        "-c",
        'stty erase @; "$@"; stty erase ^?',
        "sh",
        *who.sandbox("/bin/busybox", "stty", "-a", options=["--tty"]),
    )
    assert "erase = @" in caller.end()[1]


@pytest.mark.parametrize("options", [(), ("--as-pid-1",), ("--user=65534",)], ids=["init", "as-pid-1", "user"])
def test_job_control(who, options):
    caller = sandbox(who, *SHELL, options=[*BASH, *options])
    assert "job control" not in caller.see("ready>")
    caller.type(f"{JOB}\n")
    caller.see("started\r\n")
    caller.type("\x03")
    caller.see("ready>")
    caller.type("echo status $?\n")
    caller.see("status 130\r\n")
    caller.type(f"{JOB}\n")
    caller.see("started\r\n")
    caller.type("\x1a")
    caller.see("Stopped")
    caller.see("ready>")
    caller.type("jobs -p | wc -l; fg\n")
    caller.see("\r\n1\r\n")
    caller.see("back\r\n")
    caller.type("\x1c")
    caller.see("Quit")
    caller.type("exit 7\n")
    status, _ = caller.end()
    assert status == 7


def test_a_window_that_changes_its_size(who):
    code = (
        "import os, signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH]); print('up', flush=True)\n"
        "signal.sigwait([signal.SIGWINCH]); print(*os.get_terminal_size())"
    )
    caller = sandbox(who, "/usr/bin/python3", "-I", "-c", code, options=SYSTEM)
    caller.see("up\r\n")
    caller.resize(40, 100)
    assert caller.end() == (0, "100 40\r\n")


@pytest.mark.parametrize("command", ["hako-run", "hako-policy", "implied"])
def test_driven_by_tmux(who, place, command):
    """An interactive shell: ^C, ^Z, fg, jobs and a window that is resized."""
    socket = place / "tmux"

    def tmux(*argv):
        done = who.run("tmux", "-f", "/dev/null", "-S", socket, *argv)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def keys(*words):
        tmux("send-keys", "-t", "it", *words)

    def shown(text):
        end = time.monotonic() + DEADLINE / 4
        while text not in (screen := tmux("capture-pane", "-p", "-t", "it")):
            assert time.monotonic() < end, screen

    argv = who.sandbox(*SHELL, options=["--tty", *BASH])
    if command == "hako-policy":
        argv = [command, "--tty", "--env=PS1=ready>", "--env=TERM=dumb", "default", *SHELL]
    if command == "implied":
        argv = ["hako-policy", "--env=PS1=ready>", "--env=TERM=dumb", "default", "/bin/bash"]
    size = ["-x", "80", "-y", "24"]
    tmux("new-session", "-d", "-s", "it", *size, "sh", "-c", 'stty -g; "$@"; echo end $?; stty -g; read x', "sh", *argv)
    try:
        shown("ready>")
        keys("stty size; tty", "Enter")
        shown("24 80\n/dev/pts/0\nready>")
        tmux("resize-window", "-t", "it", "-x", "100", "-y", "40")
        keys("until [ \"$(stty size)\" = '40 100' ]; do :; done; echo re'sized'", "Enter")
        shown("resized\n")
        keys("bash -c 'echo st\"\"art; exec sleep 300'", "Enter")  # the job says it: bash may miss a ^C between two
        shown("start\n")
        keys("C-c")
        shown("^C\nready>")
        keys(JOB, "Enter")
        shown("started\n")
        keys("C-z")
        shown("Stopped")
        keys("jobs", "Enter")
        shown("ready>jobs\n[1]+  Stopped")
        keys("fg", "Enter")
        shown("ready>fg")
        shown("back\n")
        keys("C-c")
        keys("echo last $?", "Enter")
        shown("last 130\n")
        keys("C-d")
        shown("end 0\n4500:")
        screen = tmux("capture-pane", "-p", "-J", "-S", "-", "-t", "it").split()
        modes = [word for word in screen if word.count(":") > 20]
        assert modes == [modes[0]] * 2
    finally:
        tmux("kill-server")


def test_every_key_reaches_a_program_in_raw_mode(who):
    """An editor, say."""
    code = RAW + "got = b''\nwhile b'q' not in got: got += os.read(0, 100)\nprint(repr(got)[2:-1], end='\\n')"
    caller = sandbox(who, "/usr/bin/python3", "-I", "-c", code, options=SYSTEM)
    caller.see("up")
    typed = bytes(sorted(set(range(256)) - {ord("q")})) + b"q"
    caller.type(typed)
    status, seen = caller.end()
    assert (status, seen) == (0, repr(typed)[2:-1] + "\n")  # without a carriage return: raw


def test_a_large_paste(who):
    code = RAW + (
        "import hashlib; left, seen = 300_000, hashlib.sha256()\n"
        "while left: data = os.read(0, left); left -= len(data); seen.update(data)\n"
        "print(seen.hexdigest())"
    )
    caller = sandbox(who, "/usr/bin/python3", "-I", "-c", code, options=SYSTEM)
    caller.see("up")
    data = random.randbytes(300_000)
    caller.type(data)
    assert caller.end() == (0, hashlib.sha256(data).hexdigest() + "\n")


def test_lines_pasted_and_their_end(who):
    """^D is the end of the file, and all before it has come."""
    caller = sandbox(who, "/bin/sh", "-c", "busybox stty -echo; echo up; busybox wc -lc")
    caller.see("up\r\n")
    caller.type("a line of text\n" * 20_000)
    caller.type("\x04")
    status, seen = caller.end()
    assert (status, seen.split()) == (0, ["20000", "300000"])


@pytest.mark.parametrize("most", [65536, 100])
def test_large_output_is_whole(who, most):
    count = 100_000 if most > 1000 else 10_000
    caller = sandbox(who, "/bin/busybox", "seq", str(count))
    assert caller.end(most) == (0, "".join(f"{i}\r\n" for i in range(1, count + 1)))


def test_output_that_nobody_reads_until_prog_has_ended(who, mark, place):
    """All that both terminals can hold is there still."""
    code = (
        "import os, select; os.set_blocking(1, False); count = 0\n"
        "while select.select([], [1], [], 0.5)[1]: count += os.write(1, b'x' * 99 + b'\\n')\n"
        "open('/file', 'w').write(str(count))"
    )
    (place / "count").touch()
    (place / "count").chmod(0o666)
    options = [*SYSTEM, f"-m{place}/count:/file"]
    caller = sandbox(who, "/usr/bin/python3", "-I", "-c", code, mark, options=options)
    wait_until((place / "count").read_text)
    wait_until(lambda: len(alive(mark)) == 1)  # hako-run
    status, seen = caller.end()
    assert status == 0
    assert seen.count("x") + seen.count("\n") == int((place / "count").read_text())


@pytest.mark.parametrize(
    ("code", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -SEGV $$", 139), ("kill -KILL $$", 137)]
)
def test_exit_status(who, code, status):
    assert sandbox(who, "/bin/sh", "-c", code).end() == (status, "")


def test_prog_that_is_not_there(who):
    assert sandbox(who, "/nothing").end() == (127, "hako-run: /nothing: No such file or directory\r\n")


def test_failure_of_the_set_up(who):
    assert sandbox(who, "/bin/sh", options=["--chdir=/nowhere"]).end() == (
        125,
        "hako-run: chdir /nowhere: No such file or directory\r\n",
    )
    assert sandbox(who, "/bin/sh", options=["--setup=/bin/false"]).end()[0] == 125


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_to_hako_run_ends_it(who, number, mark):
    caller = sandbox(who, "/bin/sh", "-c", "trap '' HUP INT QUIT TERM; echo up; busybox sleep 300; :", mark)
    caller.see("up\r\n")
    wait_until(caller.is_raw)
    os.kill(caller.pid, number)
    assert caller.end() == (128 + number, "")
    assert gone(mark)


def test_the_init_is_killed(who, place, mark):
    caller = sandbox(who, "/bin/sh", "-c", "echo up; busybox sleep 300; :", mark, options=[f"-p{place}/pid"])
    caller.see("up\r\n")
    wait_until((place / "pid").exists)
    assert caller.is_raw()
    os.kill(int((place / "pid").read_text()), signal.SIGKILL)
    status, seen = caller.end()
    assert status == 137 or (status == 125 and seen.startswith("hako-run: "))
    assert gone(mark)


def test_stop_and_go_on(who):
    """The caller's shell has its terminal back meanwhile."""
    caller = sandbox(who, "/bin/sh", "-c", "echo up; read x; echo got $x")
    caller.see("up\r\n")
    wait_until(caller.is_raw)
    os.kill(caller.pid, signal.SIGTSTP)
    assert os.WIFSTOPPED(os.waitpid(caller.pid, os.WUNTRACED)[1])
    assert termios.tcgetattr(caller.master) == caller.before
    caller.resize(20, 50)
    os.kill(caller.pid, signal.SIGCONT)
    wait_until(caller.is_raw)
    caller.type("it\n")
    assert caller.end() == (0, "it\r\ngot it\r\n")


@pytest.mark.parametrize("ignored", [(), (signal.SIGHUP,)], ids=["", "nohup"])
def test_a_terminal_that_is_hung_up_ends_the_sandbox(who, ignored, mark):
    argv = who.sandbox("/bin/sh", "-c", "trap '' HUP; echo up; busybox sleep 300; :", mark, options=["--tty"])
    caller = Caller(who, *argv, ignored=ignored)
    caller.see("up\r\n")
    os.close(caller.master)
    pidfd = os.pidfd_open(caller.pid)
    assert select.select([pidfd], [], [], DEADLINE)[0]
    os.close(pidfd)
    assert os.waitstatus_to_exitcode(os.waitpid(caller.pid, 0)[1]) == 129
    assert gone(mark)


@pytest.mark.parametrize("stdin", [subprocess.DEVNULL, subprocess.PIPE, "closed"])
def test_without_a_terminal_nothing_runs(who, stdin):
    argv = who.sandbox("/bin/sh", "-c", "echo ran", options=["--tty"])
    if stdin == "closed":
        argv, stdin = ["sh", "-c", 'exec "$@" <&-', "sh", *argv], None
    done = who.run(*argv, stdin=stdin)
    assert (done.returncode, done.stdout, done.stderr) == (125, "", "hako-run: --tty: stdin is not a terminal\n")


def test_what_is_not_a_terminal_stays(who, place):
    """stdout goes to a file; stderr is PROG's terminal."""
    (place / "out").touch()
    (place / "out").chmod(0o666)
    argv = who.sandbox("/bin/sh", "-c", "echo out; echo err >&2; read x; echo $x", options=["--tty"])
    caller = Caller(who, "sh", "-c", f'"$@" >{place}/out', "sh", *argv)
    caller.see("err\r\r\n")  # this terminal still makes carriage returns, for what goes through no pty
    caller.type("typed\n")
    assert caller.end() == (0, "typed\r\r\n")
    assert (place / "out").read_text() == "out\ntyped\n"


INJECT = """
import fcntl, os, sys, termios
for name, number, argument in (("STI", termios.TIOCSTI, b"x"), ("SETD", termios.TIOCSETD, bytes(4)),
                               ("LINUX", 0x541C, bytes(1)), ("SCTTY", termios.TIOCSCTTY, 0)):
    try:
        fcntl.ioctl(int(sys.argv[1]), number, argument)
        print(name, "done")
    except OSError as err:
        print(name, err.strerror)
"""


def test_what_is_injected_stays_inside(who):
    """PROG may type on its own terminal. Nobody reads that there; the caller's has nothing to read."""
    argv = who.sandbox("/usr/bin/python3", "-I", "-c", INJECT, "0", options=["--tty", *SYSTEM])
    count = 's=$(stty -g); stty -icanon min 0; dd bs=9 count=1 2>/dev/null | wc -c; stty "$s"'
    caller = Caller(who, "sh", "-c", f'"$@"; {count}', "sh", *argv)
    status, seen = caller.end()
    lines = [line.lstrip("x") for line in seen.splitlines()]
    assert (status, lines[0], lines[-1]) == (0, "STI done", "0")


def test_a_terminal_at_a_kept_descriptor_is_the_callers(who):
    options = ["--tty", "--keep-fd=5", "--cap-add=all", *SYSTEM]
    argv = who.sandbox("/usr/bin/python3", "-I", "-c", INJECT, "5", options=options)
    _, seen = Caller(who, "sh", "-c", 'exec "$@" 5<>/dev/tty', "sh", *argv).end()
    assert seen.count("Operation not permitted") == 4


def test_no_terminal_of_the_host_is_inside(who):
    """Neither at a descriptor of anybody in there, nor in /dev."""
    code = (
        "import os, glob\n"
        "print(sorted(os.listdir('/dev/pts')))\n"
        "links = {os.readlink(name) for name in glob.glob('/proc/[0-9]*/fd/*') if os.path.exists(name)}\n"
        "print(sorted(link for link in links if 'pts' in link or 'ptmx' in link or 'tty' in link))\n"
    )
    caller = sandbox(who, "/usr/bin/python3", "-I", "-c", code, options=[*SYSTEM, *DEV])
    assert caller.end() == (0, "['0', 'ptmx']\r\n['/dev/pts/0']\r\n")


def test_programs_with_ptys_work_inside(who):
    code = "import os, pty; pid, fd = pty.fork(); os._exit(0) if pid == 0 else print(os.waitpid(pid, 0)[1])"
    assert sandbox(who, "/usr/bin/python3", "-I", "-c", code, options=[*SYSTEM, *DEV]).end() == (0, "0\r\n")


def test_in_a_sandbox_that_refuses_to_take_terminals(who, place):
    """The outer hako-run's filter refuses TIOCSCTTY, and its user cannot open the terminal; --tty does without."""
    inner = place / "inner"
    for name in (".hako", "bin"):
        (inner / name).mkdir(parents=True)
    (inner / "bin/busybox").touch()
    outer = [f"-m{inner}:/data", "--proc", "--dev", "--user=1000", "--group=1000", "--cap-add=all"]
    command = ["hako-run", "--tty", "-m/bin/busybox:/bin/busybox", "/data", "/bin/busybox", "sh"]
    caller = Caller(who, *who.sandbox(*command, "-c", "echo up; read x; echo $x", options=outer))
    caller.see("up\r\n")
    caller.type("typed\n")
    assert caller.end() == (0, "typed\r\ntyped\r\n")


def test_twice_in_a_chain(who, place):
    """The outer's is the caller's terminal of the inner."""
    inner = place / "inner"
    for name in (".hako", "bin"):
        (inner / name).mkdir(parents=True)
    (inner / "bin/busybox").touch()
    outer = ["--tty", f"-m{inner}:/data", "--proc", "--dev", "--cap-add=all"]
    command = ["hako-run", "--tty", "-m/bin/busybox:/bin/busybox", "/data", "/bin/busybox", "sh"]
    caller = Caller(who, *who.sandbox(*command, "-c", "echo up; read x; echo $x", options=outer))
    caller.see("up\r\n")
    caller.type("typed\n")
    assert caller.end() == (0, "typed\r\ntyped\r\n")


@pytest.mark.usefixtures("delegated")
def test_a_limit_that_kills_hako_run_too(who, mark):
    """Then hako-limit puts the terminal right."""
    argv = who.sandbox("/bin/sh", "-c", "echo up; busybox sleep 300; :", mark, options=["--tty"])
    caller = Caller(who, "hako-limit", "--time=2", "--memory=100M", *argv)
    caller.see("up\r\n")
    wait_until(caller.is_raw)
    assert caller.end() == (124, "hako-limit: timeLimit: 2 seconds are over\r\n")
    assert gone(mark)


@pytest.mark.usefixtures("delegated")
def test_output_that_is_counted(who):
    """hako-limit --output has stdout; what else is the terminal is PROG's own."""
    argv = who.sandbox("/bin/sh", "-c", "echo $(busybox tty); [ -t 0 ] && [ ! -t 1 ]", options=["--tty", *DEV])
    limited = ["hako-limit", "--output=15", *argv]
    assert Caller(who, *limited).end() == (0, "/dev/pts/0\r\n")
    limited[1] = "--output=5"
    status, seen = Caller(who, *limited).end()
    assert status == 124
    assert seen.startswith("/dev/")


def test_nothing_is_left(who, mark):
    caller = sandbox(who, "/bin/sh", "-c", "(trap '' HUP; busybox sleep 300; :) & echo up", mark)
    caller.see("up\r\n")
    assert caller.end()[0] == 0
    assert not alive(mark)


def test_in_the_background_of_a_shell(who):
    """It is stopped, as whoever wants the terminal there is; fg goes on with it, and TSTP gives the terminal back."""
    argv = who.sandbox("/bin/sh", "-c", "echo up; read x; echo $((x + 1)); read x", options=["--tty"])
    caller = Caller(who, "env", "PS1=ready>", *SHELL)
    caller.see("ready>")
    shell = termios.tcgetattr(caller.master)
    caller.type(f"{shlex.join(map(str, argv))} &\n")
    caller.see("ready>")
    caller.type("wait $!; jobs -l\n")
    pid = int(caller.see("Stopped (tty output)").split()[-1])
    caller.see("ready>")
    caller.type("fg\n")
    caller.see("up\r\n")
    wait_until(caller.is_raw)
    caller.type("41\n")
    caller.see("42\r\n")
    os.kill(pid, signal.SIGTSTP)
    caller.see("ready>")
    assert termios.tcgetattr(caller.master) == shell
    caller.type("bg; wait $!; jobs -l\n")
    caller.see("Stopped (tty output)")
    caller.see("ready>")
    caller.type("fg\n\n")
    caller.see("ready>")
    caller.type("exit\n")
    caller.see("exit\r\n")
    os.close(caller.master)
    os.waitpid(caller.pid, 0)


# hako-policy, which may give a terminal unasked

POLICY = ["hako-policy", "--env=PS1=ready>", "--env=TERM=dumb"]
NO_JOB_CONTROL = "bash: cannot set terminal process group"


def stop_and_end_a_job(caller):
    """Have the shell at CALLER's start a job, stop it with ^Z, go on with it, and end it with ^C."""
    caller.type(f"{JOB}\n")
    caller.see("started\r\n")
    caller.type("\x1a")
    caller.see("Stopped")
    caller.see("ready>")
    caller.type("fg\n")
    caller.see("back\r\n")
    caller.type("\x03")
    caller.see("ready>")


@pytest.mark.parametrize("argv", [["default"], ["default", "/bin/bash"], ["default", "--", "bash"]])
def test_a_shell_without_arguments_has_job_control(who, argv):
    who.env["SHELL"] = "/bin/bash"
    caller = Caller(who, *POLICY, *argv)
    assert caller.see("ready>") == ""
    assert caller.is_raw()
    caller.type("tty\n")
    caller.see("/dev/pts/0\r\n")
    stop_and_end_a_job(caller)
    caller.type("exit 7\n")
    assert caller.end()[0] == 7


def test_what_a_policy_runs_has_one_too(who, place):
    (place / "policy.toml").write_text('"@include" = ["default"]\n[command]\ncmdline = ["bash"]\n')
    caller = Caller(who, *POLICY, f"{place}/policy.toml")
    assert caller.see("ready>") == ""
    caller.type("exit\n")
    assert caller.end()[0] == 0


@pytest.mark.parametrize(
    "argv",
    [
        [*POLICY, "--no-tty", "default", "bash"],
        [*POLICY, "default", "bash", "-i"],
        [*POLICY, "--limit-output=1M", "default", "bash", "-i"],
        ["hako-limit", "--output=1M", *POLICY, "default", "bash", "-i"],
        ["sh", "-c", '"$@" 2>&1 | cat', "sh", *POLICY, "default", "bash", "-i"],
        ["sh", "-c", '"$@" 2>/dev/tty', "sh", *POLICY, "default", "bash"],
        ["setsid", "--wait", *POLICY, "default", "bash"],
    ],
)
def test_no_terminal_is_implied(who, argv):
    """With ARG, a redirection, a limit that counts output, or a terminal that is not that of the session."""
    caller = Caller(who, *argv)
    caller.see(NO_JOB_CONTROL)
    caller.see("ready>")
    assert not caller.is_raw()
    caller.type("tty; exit 0\n")
    assert "not a tty\r\n" in caller.end()[1]


@pytest.mark.parametrize("argv", [[*POLICY, "--limit-output=1M"], ["hako-limit", "--output=1M", *POLICY]])
def test_a_limit_of_output_takes_the_implied_terminal_away(who, argv):
    """What was opened for it is closed: the shell, whose stderr is none, is not interactive."""
    caller = Caller(who, *argv, "default", "bash")
    caller.type("tty; ls /proc/self/fd | wc -l; exit 3\n")
    status, seen = caller.end()
    assert (status, seen.split()[-4:]) == (3, ["not", "a", "tty", "4"])


def test_in_the_background_none_is_implied(who):
    """It would be stopped at once."""
    caller = Caller(who, "env", "PS1=ready>", *SHELL)
    caller.see("ready>")
    caller.type("hako-policy default true & wait $!; echo status $?; exit\n")
    caller.see("status 0\r\n")
    caller.see("exit\r\n")
    os.close(caller.master)
    os.waitpid(caller.pid, 0)


def test_in_a_sandbox_none_is_implied(who, place):
    """There it is for the outer one to say."""
    (place / "inner.toml").write_text(
        "mount_new_procfs = false\nmounts = [" + ",".join(f"{{source='/{n}', target='/{n}'}}" for n in SHOWN) + "]\n"
    )
    (place / "outer.toml").write_text('"@include" = ["kiss"]\n')
    ids = ["--uid=5", "--gid=5"] if who.name == "root" else []
    inner = [*POLICY, f"{place}/inner.toml", "/bin/bash"]
    caller = Caller(who, "hako-policy", *ids, f"{place}/outer.toml", *inner)
    caller.see(NO_JOB_CONTROL)
    caller.see("ready>")
    caller.type("exit 3\n")
    assert caller.end()[0] == 3


def test_what_has_arguments_is_ended_from_the_keyboard(who, mark):
    """Whatever it makes of it, for it may be somebody's who is not to be trusted."""
    caller = Caller(who, "hako-policy", "default", "sh", "-c", "trap '' INT QUIT TSTP; echo up; sleep 300; :", mark)
    caller.see("up\r\n")
    caller.type("\x1a")
    assert os.WIFSTOPPED(os.waitpid(caller.pid, os.WUNTRACED)[1])
    os.kill(caller.pid, signal.SIGCONT)
    caller.type("\x03")
    assert caller.end()[0] == 130
    assert gone(mark, 2)


@pytest.fixture
def inmate(who, place):
    """The pid of the init of a sandbox in which somebody waits."""
    options = [f"-p{place}/pid", *SYSTEM, *DEV]
    process = who.start(*who.sandbox("/bin/busybox", "sleep", "300", options=options))
    wait_until((place / "pid").exists)
    yield (place / "pid").read_text().strip()
    process.terminate()
    process.communicate(timeout=DEADLINE)


def test_what_enters_has_a_terminal_too(who, inmate):
    argv = ["hako-enter", "--fork", "--tty", "--env=PS1=ready>", "--env=PATH=/usr/bin:/bin", inmate]
    caller = Caller(who, *argv, *SHELL)
    assert "job control" not in caller.see("ready>")
    assert caller.is_raw()
    stop_and_end_a_job(caller)
    caller.type("ls /dev/pts; stty size; exit 7\n")
    status, seen = caller.end()
    assert (status, seen.split("\r\n")[1:3]) == (7, ["ptmx", "33 77"])


def test_what_was_left_behind_does_not_hold_it_up(who, inmate):
    """It may write for ever; nobody reads that."""
    code = "trap '' HUP; while echo more; do :; done & echo up; read x"
    caller = Caller(who, "hako-enter", "-f", "--tty", inmate, "/bin/sh", "-c", code)
    caller.see("up\r\n")
    caller.type("\n")
    assert caller.end()[0] == 0


def test_without_fork_nobody_would_pass_on(who, inmate):
    done = who.run("hako-enter", "--tty", inmate, "/bin/sh")
    assert (done.returncode, done.stderr) == (
        125,
        "hako-enter: --tty: needs --fork: somebody has to pass on what is typed\n",
    )


def test_entering_without_a_terminal(who, inmate):
    done = who.run("hako-enter", "--fork", "--tty", inmate, "/bin/sh")
    assert (done.returncode, done.stderr) == (125, "hako-enter: --tty: stdin is not a terminal\n")
