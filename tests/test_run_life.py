"""Life and death of a sandbox: signals, kills, leftovers, many at once; the pid file."""

import contextlib
import os
import pathlib
import random
import select
import signal
import subprocess
import sys
import time

import pytest

from conftest import DEADLINE, SYSTEM

ENDING = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]
CATCH = "trap 'echo {0}' {0}; echo up; while :; do busybox sleep 0.05; done"


def alive(mark):
    """The pids of processes, zombies aside, that have MARK in their command line."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if entry.name.isdigit() and mark.encode() in (entry / "cmdline").read_bytes():
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                found += [entry.name] if state not in "ZX" else []
    return found


def gone(mark, seconds=DEADLINE / 4):
    """Whether no process with MARK is left, after at most SECONDS."""
    end = time.monotonic() + seconds
    while alive(mark) and time.monotonic() < end:
        time.sleep(0.01)
    return not alive(mark)


@pytest.fixture
def mark():
    """A word for a command line, that of no other process."""
    return f"mark{os.getpid()}x{random.randrange(10**9)}"


def up(process):
    """Wait for the first line of PROCESS."""
    ready, _, _ = select.select([process.stdout], [], [], DEADLINE)
    assert ready
    return process.stdout.readline()


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("options", [(), ("--as-pid-1",), ("--user=65534",)], ids=["init", "as-pid-1", "user"])
def test_a_signal_ends_it_all(who, number, options, mark):
    code = f"trap '' HUP INT QUIT TERM; (busybox sleep 300; : {mark}) & echo up; wait; busybox sleep 300"
    process = who.start(*who.sandbox("/bin/sh", "-c", code, mark, options=[*options, "--dev"]))
    assert up(process) == "up\n"
    assert alive(mark)
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out, err) == (128 + number, "", "")
    assert gone(mark)


@pytest.mark.parametrize("name", ["USR1", "USR2", "WINCH", "CONT"])
@pytest.mark.parametrize("options", [(), ("--as-pid-1",)], ids=["init", "as-pid-1"])
def test_a_signal_reaches_prog(who, name, options):
    process = who.start(*who.sandbox("/bin/sh", "-c", CATCH.format(name), options=options))
    assert up(process) == "up\n"
    os.kill(process.pid, getattr(signal, f"SIG{name}"))
    assert up(process) == f"{name}\n"
    process.terminate()
    process.communicate(timeout=DEADLINE)


def test_stop_and_go_on(who):
    """TSTP stops PROG and hako-run, as a shell's job control wants it; CONT wakes both."""
    process = who.start(*who.sandbox("/bin/sh", "-c", "echo up; while :; do busybox sleep 0.05; echo .; done"))
    assert up(process) == "up\n"
    os.kill(process.pid, signal.SIGTSTP)
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
    end = time.monotonic() + 1
    while time.monotonic() < end and select.select([process.stdout], [], [], 0.2)[0]:
        os.read(process.stdout.fileno(), 4096)
    assert not select.select([process.stdout], [], [], 0.3)[0]
    os.kill(process.pid, signal.SIGCONT)
    assert select.select([process.stdout], [], [], DEADLINE)[0]
    process.terminate()
    process.communicate(timeout=DEADLINE)


def test_a_stopped_prog_does_not_stop_the_supervisor(who):
    """It could otherwise stop its own clock."""
    process = who.start(*who.sandbox("/bin/sh", "-c", "echo up; kill -STOP $$"))
    assert up(process) == "up\n"
    process.terminate()
    process.communicate(timeout=DEADLINE)
    assert process.returncode == 143


@pytest.mark.parametrize("options", [(), ("--as-pid-1",), ("--user=65534",)], ids=["init", "as-pid-1", "user"])
def test_nothing_survives_the_supervisor(who, options, mark):
    """SIGKILL at 25 random moments, from before the first system call to long after the last."""
    for _ in range(25):
        process = who.start(*who.sandbox("/bin/sh", "-c", "busybox sleep 300; :", mark, options=[*options, "--proc"]))
        time.sleep(random.random() * 0.12)
        process.kill()
        process.communicate(timeout=DEADLINE)
        assert gone(mark)


def test_prog_cannot_survive_by_clearing_its_death_signal(who, mark, compiled):
    """Neither as PID 1: an init that it does not see holds it."""
    probe = compiled(r"""
        #include <stdio.h>
        #include <signal.h>
        #include <sys/prctl.h>
        #include <unistd.h>
        int main() {
            prctl(PR_SET_PDEATHSIG, 0);
            setsid();
            for (int i = 1; i < 32; i++) signal(i, SIG_IGN);
            if (fork() == 0) { setsid(); pause(); }
            puts("up"), fflush(stdout);
            for (;;) pause();
        }
    """)
    for options in ((), ("--as-pid-1",)):
        process = who.start(*who.sandbox("/bin/probe", mark, options=[f"-m{probe}:/bin/probe:ro", *options]))
        assert up(process) == "up\n"
        process.kill()
        process.communicate(timeout=DEADLINE)
        assert gone(mark)


@pytest.mark.parametrize("options", [(), ("--as-pid-1",)], ids=["init", "as-pid-1"])
def test_the_sandbox_ends_with_prog(who, options, mark):
    """What PROG left behind goes too, and a reader of its output is not held up."""
    code = f"(busybox sleep 300; : {mark}) & busybox setsid busybox sleep 301 & echo out"
    done = who.inside("/bin/sh", "-c", code, mark, options=[*options, "--dev"])
    assert (done.returncode, done.stdout) == (0, "out\n")
    assert gone(mark, 0)


def test_nobody_but_prog_holds_its_output(who):
    """It closes stdout and runs on: the reader is at the end at once."""
    process = who.start(*who.sandbox("/bin/sh", "-c", "exec >&-; read x"), stdin=subprocess.PIPE)
    try:
        assert select.select([process.stdout], [], [], DEADLINE)[0]
        assert (process.stdout.read(), process.poll()) == ("", None)
    finally:
        process.stdin.close()
        process.wait(timeout=DEADLINE)
        process.stderr.close()


def test_orphans_are_reaped(who):
    """The init leaves no zombies while PROG runs."""
    code = (
        "for i in 1 2 3 4 5; do (busybox sleep 0.01 &); done; busybox sleep 0.5; busybox ps -o stat | busybox grep -c Z"
    )
    assert who.inside("/bin/sh", "-c", code, options=["--proc"]).stdout == "0\n"


def test_prog_has_default_signals_whatever_the_caller_had(who):
    def unusual():
        for number in range(1, 64):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))

    argv = who.sandbox("/bin/busybox", "grep", "Sig[BIC]", "/proc/self/status", options=["--proc"])
    control = who.run("grep", "SigIgn", "/proc/self/status", preexec_fn=unusual)
    assert control.stdout.split()[1] != "0" * 16
    done = who.run(*argv, preexec_fn=unusual)
    assert done.stdout.split()[1::2] == ["0" * 16] * 3


def test_sigchld_ignored_by_the_caller(who):
    """The kernel would reap the child itself, and its status would be lost."""
    done = who.inside("/bin/sh", "-c", "exit 7", preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    assert done.returncode == 7


def test_an_ignored_sighup_stays_ignored(who):
    """nohup hako-run goes on."""
    process = who.start(
        *who.sandbox("/bin/sh", "-c", "echo up; read x; echo done"),
        stdin=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert up(process) == "up\n"
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate("\n", timeout=DEADLINE)
    assert (process.returncode, out) == (0, "done\n")


def test_other_children_of_the_caller_are_not_mistaken(who):
    """hako-run started by exec in a shell that has children already."""
    argv = who.sandbox("/bin/sh", "-c", "busybox sleep 0.3; exit 5")
    done = who.run("sh", "-c", '(exit 9) & sleep 0.1 & exec "$@"', "sh", *argv)
    assert done.returncode == 5


def test_without_cap_kill_it_ends_all_the_same(who, mark):
    """The kernel lets nobody signal another uid then, not even the death signal."""
    if who.name == "user":
        return  # has no other uid to run PROG as
    for end, status in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        argv = who.sandbox("/bin/sh", "-c", "echo up; busybox sleep 300", mark, options=["--user=65534"])
        process = who.start("setpriv", "--bounding-set=-kill", "--inh-caps=-kill", "--", *argv)
        assert up(process) == "up\n"
        process.send_signal(end)
        process.communicate(timeout=DEADLINE)
        assert process.returncode == status
        assert gone(mark)


def test_a_prog_out_of_reach_is_not_the_end(who):
    """PROG has taken another uid; a signal for it is lost, and nothing else."""
    if who.name == "user":
        return  # PROG cannot take another uid
    code = "import os, sys; os.setuid(1000); print('up', flush=True); sys.stdin.read(); print('done')"
    argv = who.sandbox("/usr/bin/python3", "-c", code, options=["--cap-add=setuid", *SYSTEM])
    process = who.start(*argv, stdin=subprocess.PIPE)
    assert up(process) == "up\n"
    process.send_signal(signal.SIGUSR1)
    time.sleep(0.1)
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out, err) == (0, "done\n", "")


def test_the_init_holds_nothing_of_the_host(who, place):
    """Its root, and its current directory, are the sandbox's: root outside sees it."""
    process = who.start(*who.sandbox("/bin/sh", "-c", "echo up; read x"), stdin=subprocess.PIPE, cwd=place)
    assert up(process) == "up\n"
    init = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
    end = time.monotonic() + DEADLINE
    while os.getuid() == 0 and len(os.listdir(f"/proc/{init}/fd")) > 4:  # it may not have closed the eventfd yet
        assert time.monotonic() < end
    if os.getuid() == 0:
        for name in ("root", "cwd"):
            assert os.path.samefile(f"/proc/{init}/{name}", who.box)
        kinds = {os.readlink(f"/proc/{init}/fd/{fd}").partition(":")[0] for fd in os.listdir(f"/proc/{init}/fd")}
        assert kinds == {"pipe", "anon_inode"}
    process.communicate("\n", timeout=DEADLINE)


def test_signals_that_libc_hides_have_default_actions_too(who, compiled):
    probe = compiled(r"""
        #include <signal.h>
        #include <stdio.h>
        #include <sys/syscall.h>
        #include <unistd.h>
        int main(int argc, char **argv) {
            struct { void *handler; unsigned long flags; void *restorer; unsigned long mask; } ignore = {(void *)1};
            syscall(SYS_rt_sigaction, 32, &ignore, 0, 8);
            syscall(SYS_rt_sigaction, 33, &ignore, 0, 8);
            execvp(argv[1], argv + 1);
        }
    """)
    argv = who.sandbox("/bin/busybox", "grep", "SigIgn", "/proc/self/status", options=["--proc"])
    assert who.run(probe, "grep", "SigIgn", "/proc/self/status").stdout.split()[1] == "0000000180000000"
    assert who.run(probe, *argv).stdout.split()[1] == "0" * 16


def test_three_hundred_at_once(who, mark):
    """All end with status 0 and nothing is left of them."""
    argv = who.sandbox("/bin/busybox", "true", mark, options=["--proc"])
    processes = [who.start(*argv) for _ in range(300)]
    ends = [(process.communicate(timeout=300)[1], process.returncode) for process in processes]
    assert set(ends) == {("", 0)}
    assert gone(mark)


def test_a_hundred_in_a_row_leave_nothing(who):
    def count():
        files = [name for name in os.listdir(who.box.parent) if name != "box"]
        with open("/proc/self/mountinfo") as file:
            return files, [line for line in file if str(who.box) in line], os.listdir("/proc/self/fd")

    before = count()
    for _ in range(100):
        assert who.inside("/bin/busybox", "true", options=["--proc", "--tmpfs=/tmp"]).returncode == 0
    assert count() == before


# The pid file


@pytest.mark.parametrize("options", [(), ("--as-pid-1",)], ids=["init", "as-pid-1"])
def test_pid_file(who, place, options):
    """It is there while PROG runs, holds the host pid of the sandbox's PID 1, and goes with it."""
    path = place / "pid"
    argv = who.sandbox("/bin/sh", "-c", "echo up; read x", options=[f"--pid-file={path}", *options])
    process = who.start(*argv, stdin=subprocess.PIPE)
    assert up(process) == "up\n"
    end = time.monotonic() + DEADLINE
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.005)
    text = path.read_text()
    pid = int(text)
    assert text == f"{pid}\n"
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    depth = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid"))
    assert (depth[0], depth[-1]) == (str(pid), "1")
    assert path.stat().st_mode & 0o777 == 0o644
    process.communicate("\n", timeout=DEADLINE)
    assert os.listdir(place) == ["box"]


def test_a_pid_file_appears_only_when_prog_runs(who, place):
    done = who.inside("nosuchcommand", options=[f"--pid-file={place}/pid"])
    assert (done.returncode, os.listdir(place)) == (127, ["box"])
    done = who.inside("/bin/busybox", "true", options=[f"--pid-file={place}/pid", "--chdir=/none"])
    assert (done.returncode, os.listdir(place)) == (125, ["box"])


@pytest.mark.parametrize(("waits", "said"), [(True, "x: why\n"), (False, "")])
def test_what_fails_because_its_supervisor_was_killed_says_nothing(waits, said):
    """It sees the end of the pipe before the signal that ends it too."""
    code = (
        "import os, signal, sys; from hako import core; signal.signal(signal.SIGPIPE, signal.SIG_IGN); "
        "ours, its = os.pipe(); sys.argv[1] == 'True' or os.close(ours); core.waiting.append(its); "
        "core.fail('x: why', 125)"
    )
    argv = [sys.executable, "-I", "-c", code, str(waits)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (125, "", said)


def test_no_pid_file_appears_where_the_init_fails(who, place):
    """Which takes PROG's process with it, before that could say a word."""
    (place / "filter").write_text("ERRNO(38) { close_range } DEFAULT ALLOW")
    shown = place / "shown"
    shown.mkdir()
    os.chown(shown, who.uid, -1)
    before = shown.stat().st_mtime_ns
    argv = who.sandbox("/bin/busybox", "true", options=[f"--pid-file={shown}/pid"])
    for _ in range(12):
        done = who.run("seccomp-exec", place / "filter", *argv)
        assert (done.returncode, done.stderr.count("\n")) == (125, 1)
        assert done.stderr.startswith("hako-run: close_range ")
    assert shown.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.symlink_to(path.parent / "victim"), "is there and cannot be read: Too many levels"),
        (lambda path: path.mkdir(), "is there and is not a pid file"),
        (os.mkfifo, "is there and is not a pid file"),
        (lambda path: path.write_text("precious"), "is there and is not a pid file"),
    ],
    ids=["symlink", "directory", "fifo", "file"],
)
def test_a_pid_file_replaces_nothing_else(who, place, make, message):
    (place / "victim").write_text("precious")
    make(place / "pid")
    before = sorted((entry.name, entry.lstat().st_ino) for entry in place.iterdir())
    done = who.inside("/bin/sh", "-c", "echo ran", options=[f"--pid-file={place}/pid"])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert done.stderr.startswith(f"hako-run: --pid-file: {place}/pid {message}")
    assert sorted((entry.name, entry.lstat().st_ino) for entry in place.iterdir()) == before
    assert (place / "victim").read_text() == "precious"


def test_an_old_pid_file_is_replaced_and_a_hard_link_to_it_is_not_written(who, place):
    (place / "pid").write_text("123\n")
    os.link(place / "pid", place / "other")
    for path in (place / "pid", place / "other"):
        os.chown(path, who.uid, -1)
    process = who.start(
        *who.sandbox("/bin/sh", "-c", "echo up; read x", options=[f"-p{place}/pid"]), stdin=subprocess.PIPE
    )
    assert up(process) == "up\n"
    end = time.monotonic() + DEADLINE
    text = "123\n"
    while text == "123\n":
        assert time.monotonic() < end
        with contextlib.suppress(FileNotFoundError):  # between the old one and the new
            text = (place / "pid").read_text()
    process.communicate("\n", timeout=DEADLINE)
    assert (place / "other").read_text() == "123\n"
    assert not (place / "pid").exists()


@pytest.mark.parametrize("path", ["/no/such/pid", "/proc/pid", "", "/", "x/.."])
def test_a_pid_file_that_cannot_be(who, path):
    done = who.inside("/bin/sh", "-c", "echo ran", options=[f"--pid-file={path}"])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)


@pytest.mark.root
def test_a_pid_file_on_a_full_disk(who, place, mark):
    """Nothing keeps running, and nothing half is left (seen: the sandbox survived)."""
    disk = place / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,mode=777", "none", disk], check=True)
    try:
        (disk / "fill").write_bytes(b"x" * 4096)
        done = who.inside("/bin/sh", "-c", "busybox sleep 300; :", mark, options=[f"--pid-file={disk}/pid"])
        message = f"hako-run: write {disk}/pid: No space left on device\n"
        assert (done.returncode, done.stderr) == (125, message)
        assert os.listdir(disk) == ["fill"]
        assert gone(mark)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_pid_file_past_the_limit_of_file_size(who, place, mark):
    argv = who.sandbox("/bin/sh", "-c", "busybox sleep 300; :", mark, options=[f"-p{place}/pid"])
    done = who.run("rlimit-exec", "--fsize=0", *argv)
    assert (done.returncode, done.stderr) == (125, f"hako-run: write {place}/pid: File too large\n")
    assert (os.listdir(place), gone(mark)) == (["box"], True)


def test_no_pid_file_is_left_half_written(who, place):
    """SIGKILL at random moments: the file is whole or not there, and no other is left."""
    for _ in range(25):
        process = who.start(*who.sandbox("/bin/busybox", "true", options=[f"--pid-file={place}/pid"]))
        time.sleep(random.random() * 0.1)
        process.kill()
        process.communicate(timeout=DEADLINE)
        assert set(os.listdir(place)) <= {"box", "pid"}
        if (place / "pid").exists():
            assert (place / "pid").read_text().rstrip("\n").isdigit()
