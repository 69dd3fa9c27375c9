"""hako-enter: joins an existing sandbox, all of it or nothing."""

import contextlib
import os
import pathlib
import select
import signal
import subprocess
import threading
import time

import pytest

from conftest import DEADLINE, NO_KEY, SYSTEM, Who, wait_until, without_keys

EVERY = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
SEE_PS = "hako-ps lists the sandboxes that run"


@pytest.fixture
def sandboxes():
    """Start sandboxes and know their pids; they end with the test."""
    processes = []

    def start(who, *options, code="while :; do busybox sleep 1; done"):
        path = who.box.parent / f"pid{len(processes)}"
        argv = who.sandbox("/bin/sh", "-c", code, options=[f"--pid-file={path}", "--proc", *options])
        processes.append(who.start(*argv))
        end = time.monotonic() + DEADLINE
        while not path.exists():
            assert processes[-1].poll() is None, processes[-1].stderr.read()
            assert time.monotonic() < end
            time.sleep(0.005)
        return int(path.read_text())

    yield start
    for process in processes:
        process.terminate()
        process.communicate(timeout=DEADLINE)


@pytest.mark.parametrize("options", [(), ("--as-pid-1",), ("--userns=always", "--user=1000")])
def test_every_namespace_is_joined(who, sandboxes, options):
    pid = sandboxes(who, *options)
    code = "for n in $0 $*; do busybox readlink /proc/self/ns/$n; done; busybox ps -o comm"
    done = who.run("hako-enter", "--fork", pid_text(pid), "/bin/sh", "-c", code, *EVERY)
    assert done.stderr == ""
    *joined, _, init = done.stdout.splitlines()[: len(EVERY) + 2]
    first = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split() or [pid]
    assert joined == [os.readlink(f"/proc/{first[0]}/ns/{name}") for name in EVERY]
    assert init == ("sh" if "--as-pid-1" in options else "hako-init")


def pid_text(pid):
    """PID for a command line."""
    return str(pid)


def test_the_root_is_the_sandboxes(who, sandboxes):
    pid = sandboxes(who)
    done = who.run("hako-enter", "--fork", pid_text(pid), "/bin/sh", "-c", "busybox pwd; busybox ls -A /")
    assert done.stdout.split() == ["/", *sorted(os.listdir(who.box))]
    done = who.run("hako-enter", pid_text(pid), "/bin/busybox", "ls", "-A", "/")
    assert done.stdout.split() == sorted(os.listdir(who.box))


def test_without_fork_the_pid_stays_and_children_are_inside(who, sandboxes):
    pid = sandboxes(who)
    process = who.start("hako-enter", pid_text(pid), "/bin/sh", "-c", "echo $$; busybox readlink /proc/self; echo")
    out = process.communicate(timeout=DEADLINE)[0].split()
    assert int(out[0]) == process.pid
    assert 1 < int(out[1]) < 100


def test_the_default_prog_is_a_shell(who, sandboxes):
    pid = sandboxes(who)
    done = who.run("hako-enter", "--fork", pid_text(pid), input="echo $0; exit 9\n")
    assert (done.returncode, done.stdout) == (9, "/bin/sh\n")


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["/bin/sh", "-c", "exit 42"], 42),
        (["/bin/sh", "-c", "kill -SEGV $$"], 139),
        (["/file"], 126),
        (["nosuch"], 127),
    ],
)
def test_exit_status(who, sandboxes, argv, status):
    assert who.run("hako-enter", "-f", pid_text(sandboxes(who)), *argv).returncode == status


def test_prog_is_as_harmless_as_in_hako_run(who, sandboxes):
    """Capabilities, no_new_privs, environment, descriptors, signals."""
    pid = sandboxes(who)
    code = (
        "busybox grep -E 'Cap|NoNew|Sig[BI]' /proc/self/status; busybox env; busybox ls /proc/self/fd | busybox wc -l"
    )
    with open("/etc/passwd") as extra:
        argv = ["hako-enter", "--fork", "--env=A=1", pid_text(pid), "/bin/sh", "-c", code]
        done = who.run(*argv, pass_fds=[extra.fileno()])
    lines = done.stdout.splitlines()
    values = dict(line.split(":") for line in lines[:8])
    assert values.pop("NoNewPrivs").strip() == "1"
    assert {value.strip() for value in values.values()} == {"0" * 16}
    assert "A=1" in lines
    assert not any(line.startswith("SECRET") for line in lines)
    assert lines[-1] == "4"  # 0, 1, 2 and the directory itself


def test_user_inside(who, sandboxes):
    pid = sandboxes(who, "--user=1000")
    done = who.run("hako-enter", "--fork", pid_text(pid), "/bin/busybox", "id")
    assert (done.stdout, done.stderr) == ("uid=1000 gid=1000\n", "")
    if who.name == "root":
        done = who.run("hako-enter", "--fork", "--user=0", pid_text(pid), "/bin/busybox", "id")
        assert done.stdout.split() == ["uid=0", "gid=0"]


def test_resource_limits_of_the_sandbox_hold(who, place):
    """Those that it was started with; a lower one of the caller stays."""
    argv = who.sandbox("/bin/sh", "-c", "echo up; read x", options=[f"-p{place}/pid", "--proc"])
    process = who.start("rlimit-exec", "--nofile=40:50", "--core=0", *argv, stdin=subprocess.PIPE)
    assert process.stdout.readline() == "up\n"
    end = time.monotonic() + DEADLINE
    while not (place / "pid").exists():
        assert time.monotonic() < end
    pid = (place / "pid").read_text().strip()
    enter = ["hako-enter", "--fork", pid, "/bin/sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -c"]
    assert who.run(*enter).stdout.split() == ["40", "50", "0"]
    assert who.run("rlimit-exec", "--nofile=30", *enter).stdout.split() == ["30", "30", "0"]
    process.communicate("\n", timeout=DEADLINE)


@pytest.mark.root
def test_root_enters_an_ordinary_users_sandbox(who, sandboxes):
    """As its owner: there is no other id in there."""
    owner = Who("user")
    owner.box = who.box
    os.chown(who.box.parent, owner.uid, owner.uid)
    pid = sandboxes(owner, "--user=1000")
    done = who.run("hako-enter", "--fork", pid_text(pid), "/bin/busybox", "id")
    assert (done.stdout, done.stderr) == ("uid=1000 gid=1000\n", "")


@pytest.mark.parametrize(
    ("pid", "message"),
    [
        ("self", "PID: not a whole number: 'self'"),
        ("", "PID: not a whole number: ''"),
        ("-1", "unknown option: '-1' [see hako-enter --help]"),
        ("0", "pidfd_open 0: Invalid argument [a thread, or no process]"),
        ("1x", "PID: not a whole number: '1x'"),
        (" 1", "PID: not a whole number: ' 1'"),
        ("4294967297", "PID: more than 2147483647: '4294967297'"),
        ("2147483647", f"pidfd_open 2147483647: No such process [{SEE_PS}]"),
    ],
)
def test_a_pid_that_is_none(who, pid, message):
    done = who.run("hako-enter", pid, "/bin/echo", "ran")
    assert (done.returncode, done.stdout, done.stderr) == (125, "", f"hako-enter: {message}\n")


def test_a_process_of_the_host_is_refused(who):
    """Nothing runs on the host (seen: the command ran on the host)."""
    process = who.start("sleep", "60")
    try:
        wait_until(lambda: pathlib.Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
        done = who.run("hako-enter", "--fork", str(process.pid), "/bin/echo", "ran")
    finally:
        process.kill()
        process.communicate()
    message = f"process {process.pid} is not in a sandbox: it has not both mounts and pids of its own [{SEE_PS}]"
    assert (done.returncode, done.stdout, done.stderr) == (125, "", f"hako-enter: {message}\n")


@pytest.mark.parametrize("namespace", ["--mount", "--pid"])
def test_half_a_sandbox_is_refused(who, namespace):
    options = ["--fork", "--kill-child"] if namespace == "--pid" else []
    process = who.start(
        "unshare",
        "--user",
        "--map-root-user",
        namespace,
        *options,
        "sh",
        "-c",
        "echo up; read x",
        stdin=subprocess.PIPE,
    )
    assert process.stdout.readline() == "up\n"
    pid = process.pid
    with contextlib.suppress(IndexError):
        pid = int(pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    done = who.run("hako-enter", str(pid), "/bin/echo", "ran")
    process.communicate("\n", timeout=DEADLINE)
    assert (done.returncode, done.stdout) == (125, "")
    assert "is not in a sandbox" in done.stderr


def test_a_sandbox_that_is_still_being_made_is_refused(who, place):
    """Its root is the host's until the pivot (seen: PROG ran there)."""
    setup = place / "setup"
    setup.write_text(f"#!/bin/sh\ntouch {place}/reached\nsleep 2\n")
    setup.chmod(0o755)
    process = who.start(*who.sandbox("/bin/busybox", "true", options=[f"--setup={setup}"]))
    end = time.monotonic() + DEADLINE
    while not (place / "reached").exists():
        assert time.monotonic() < end
    init = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
    done = who.run("hako-enter", "--fork", init, "/bin/sh", "-c", "echo ran")
    process.communicate(timeout=DEADLINE)
    assert (process.returncode, done.returncode, done.stdout) == (0, 125, "")
    assert done.stderr.count("\n") == 1
    if who.name == "root":
        assert done.stderr == f"hako-enter: process {init} is not in a sandbox: its root is the caller's\n"


def test_a_thread_is_refused(who):
    with contextlib.ExitStack() as stack:
        event = threading.Event()
        stack.callback(event.set)
        thread = threading.Thread(target=event.wait)
        thread.start()
        done = who.run("hako-enter", str(thread.native_id), "/bin/echo", "ran")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.endswith("[a thread, or no process]\n")


def test_a_zombie_is_refused(who):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    done = who.run("hako-enter", str(pid), "/bin/echo", "ran")
    os.waitpid(pid, 0)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == f"hako-enter: process {pid} has ended\n"


def test_a_kernel_thread_is_refused(who):
    threads = [path.parent for path in pathlib.Path("/proc").glob("[0-9]*/stat") if is_kernel_thread(path)]
    if not threads:  # a machine, or an outer pid namespace, that shows none
        return
    done = who.run("hako-enter", threads[0].name, "/bin/echo", "ran")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)


def is_kernel_thread(path):
    """Whether PATH is the stat of a kernel thread (PF_KTHREAD)."""
    try:
        return int(path.read_text().rpartition(")")[2].split()[6]) & 0x200000 != 0
    except OSError:
        return False


@pytest.mark.root
def test_another_users_sandbox_is_not_yours(who, sandboxes):
    pid = sandboxes(who)
    done = Who("user").run("hako-enter", "--fork", pid_text(pid), "/bin/echo", "ran")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)


def test_all_namespaces_or_none(who, sandboxes):
    """setns refused: nothing runs anywhere."""
    pid = sandboxes(who)
    strace = ["strace", "-f", "-o", "/dev/null", "-e", "inject=setns:error=EPERM"]
    done = who.run(*strace, "hako-enter", "--fork", pid_text(pid), "/bin/echo", "ran")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert done.stderr.startswith("hako-enter: setns ")
    assert done.stderr.endswith(": Operation not permitted\n")


@pytest.mark.parametrize("times", [3, 4])
def test_a_key_is_waited_for(who, sandboxes, times):
    argv = ["hako-enter", "--fork", pid_text(sandboxes(who)), "/bin/busybox", "echo", "ran"]
    done, joined = without_keys(who, times, *argv)
    assert joined == ["-"] * times + [""] * (times < 4)
    refused = (125, "", f"hako-enter: {NO_KEY}\n")
    assert (done.returncode, done.stdout, done.stderr) == ((0, "ran\n", "") if times < 4 else refused)


def test_those_inside_see_nothing_of_who_enters(who, sandboxes):
    """A process inside reads what it can of every new process, in a loop; the entering one runs 20 times."""
    spy = """
import os, time
seen = set()
end = time.monotonic() + 4
while time.monotonic() < end:
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) > 2 and int(name) != os.getpid():
            for what in ("exe", "root", "cwd", "environ", "maps", "mem", "cmdline", "fd"):
                try:
                    path = f"/proc/{name}/{what}"
                    if what in ("exe", "root", "cwd"):
                        text = os.readlink(path)
                    elif what == "fd":
                        text = " ".join(os.readlink(f"{path}/{fd}") for fd in os.listdir(path))
                    else:
                        text = open(path, "rb").read(4096).decode(errors="replace")
                except OSError:
                    continue
                seen.update(word for word in ("HOSTSECRET", "hako-site", "build/venv", "python3.11 -I") if word in text)
print(sorted(seen), flush=True)
time.sleep(300)
"""
    pid = sandboxes(who, *SYSTEM, code="busybox true; exec busybox sleep 300")
    argv = ["hako-enter", "--fork", pid_text(pid), "/usr/bin/python3", "-c", spy]
    watcher = who.start(*argv)
    try:
        env = {**who.env, "X": "HOSTSECRET"}
        end = time.monotonic() + 3.5
        while time.monotonic() < end:
            assert who.run("hako-enter", "--fork", pid_text(pid), "/bin/busybox", "true", env=env).returncode == 0
        assert select.select([watcher.stdout], [], [], DEADLINE)[0]
        assert watcher.stdout.readline() == "[]\n"
    finally:
        watcher.kill()
        watcher.communicate()


@pytest.mark.root
def test_the_interpreter_is_out_of_reach(who, sandboxes):
    (who.box / "bin/again").write_text("#!/proc/self/exe\nprint('again')\n")
    (who.box / "bin/again").chmod(0o755)
    pid = sandboxes(who, *SYSTEM)
    done = who.run("hako-enter", "--fork", pid_text(pid), "/bin/again")
    assert (done.returncode, done.stderr) == (126, "hako-enter: /bin/again: Permission denied\n")
    done = who.run("hako-enter", "--fork", "--user=65534", pid_text(pid), "/bin/again")
    assert done.stdout == "again\n"


def test_prog_dies_with_the_supervisor(who, sandboxes):
    pid = sandboxes(who)
    process = who.start("hako-enter", "--fork", pid_text(pid), "/bin/sh", "-c", "echo up; exec busybox sleep 312")
    assert process.stdout.readline() == "up\n"
    process.kill()
    process.communicate(timeout=DEADLINE)
    end = time.monotonic() + DEADLINE / 4
    code = "busybox ps -o args | busybox grep -c '[s]leep 312'"
    while who.run("hako-enter", "--fork", pid_text(pid), "/bin/sh", "-c", code).stdout != "0\n":
        assert time.monotonic() < end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_ends_prog(who, sandboxes, number):
    pid = sandboxes(who)
    code = "trap '' INT TERM HUP QUIT; echo up; while :; do busybox sleep 1; done"
    process = who.start("hako-enter", "--fork", pid_text(pid), "/bin/sh", "-c", code)
    assert process.stdout.readline() == "up\n"
    process.send_signal(number)
    assert process.wait(timeout=DEADLINE) == 128 + number
    process.stdout.close()
    process.stderr.close()


def test_what_enters_may_chain(who, sandboxes):
    pid = sandboxes(who)
    done = who.run("hako-enter", "--fork", pid_text(pid), "rlimit-exec", "--nofile=17", "/bin/sh", "-c", "ulimit -n")
    assert done.stdout == "17\n"


def test_a_sandbox_behind_hako_enter(who, sandboxes):
    """An ordinary user's would have to be looked into by those inside: refused, with the way out."""
    pid = sandboxes(who, "--user=65534")
    inner = ["hako-run", "-m/bin/busybox:/bin/busybox", "/data", "/bin/busybox", "true"]
    (who.box / "data/.hako").mkdir()
    (who.box / "data/bin").mkdir()
    (who.box / "data/bin/busybox").touch()
    done = who.run("hako-enter", "--fork", "--user=65534", pid_text(pid), *inner)
    message = "no user namespace for hako-run behind hako-enter, which others could look into"
    assert (done.returncode, done.stderr) == (125, f"hako-run: {message} [run it by its path, with a slash]\n")


@pytest.mark.root
def test_cgroups_are_joined(who, sandboxes):
    """Those of the sandbox, version 1 and 2; with --no-cgroup the caller's."""
    pid = sandboxes(who)
    made = []
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] in ("cgroup", "cgroup2") and "cpuset" not in fields[-1]:
            own = pathlib.Path(fields[4]) / f"hako-test-{os.getpid()}"
            with contextlib.suppress(OSError):
                own.mkdir()
                made.append(own)
    assert made
    try:
        for own in made:
            (own / "cgroup.procs").write_text(str(pid))
        expected = cgroups(pathlib.Path(f"/proc/{pid}/cgroup").read_text())
        shell = [pid_text(pid), "/bin/sh", "-c", "echo up; read x"]
        process = who.start("hako-enter", "--fork", "--cap-add=all", *shell, stdin=subprocess.PIPE)
        assert process.stdout.readline() == "up\n"
        child = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0]
        joined = cgroups(pathlib.Path(f"/proc/{child}/cgroup").read_text())
        process.communicate("\n", timeout=DEADLINE)
        assert joined == expected
        assert any(path.endswith(f"/hako-test-{os.getpid()}") for path in joined.values())
        argv = ["hako-enter", "--no-cgroup", pid_text(pid), "/bin/busybox", "cat", "/proc/1/cgroup"]
        assert who.run(*argv).returncode == 0
        process = who.start("hako-enter", "--fork", "--no-cgroup", *shell, stdin=subprocess.PIPE)
        assert process.stdout.readline() == "up\n"
        assert cgroups(pathlib.Path(f"/proc/{process.pid}/cgroup").read_text()) == cgroups(
            pathlib.Path("/proc/self/cgroup").read_text()
        )
        process.communicate("\n", timeout=DEADLINE)
    finally:
        for own in made:
            for member in (own / "cgroup.procs").read_text().split():
                with contextlib.suppress(OSError):
                    (own.parent / "cgroup.procs").write_text(member)
            own.rmdir()


def cgroups(text):
    """TEXT, a /proc/PID/cgroup, as {controllers: path}."""
    return {line.split(":", 2)[1]: line.split(":", 2)[2] for line in text.splitlines()}


def test_verbose(who, sandboxes):
    pid = sandboxes(who)
    done = who.run("hako-enter", "-v", "--fork", pid_text(pid), "/bin/busybox", "true")
    assert all(line.startswith("hako-enter: ") for line in done.stderr.splitlines())
    assert done.stderr.endswith("hako-enter: PROG exited with status 0\n")
    assert "hako-enter: joined " in done.stderr


@pytest.mark.root
def test_a_network_that_was_there_before_is_joined(who, place):
    """Of a sandbox in the network namespace of a file, the init is in there too: by it others enter."""
    held = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; read x"], stdin=-1, stdout=subprocess.PIPE)
    assert held.stdout.readline() == b"\n"
    expected = os.readlink(f"/proc/{held.pid}/ns/net")
    argv = who.sandbox(
        *("/bin/sh", "-c", "echo up; read x"),
        options=["--proc", f"--network=/proc/{held.pid}/ns/net", f"--pid-file={place}/pid"],
    )
    process = who.start(*argv, stdin=subprocess.PIPE)
    assert process.stdout.readline() == "up\n"
    end = time.monotonic() + DEADLINE
    while not (place / "pid").exists():
        assert time.monotonic() < end
    pid = (place / "pid").read_text().strip()
    done = who.run("hako-enter", "--fork", pid, "/bin/busybox", "readlink", "/proc/self/ns/net")
    process.communicate("\n", timeout=DEADLINE)
    held.communicate(b"\n", timeout=DEADLINE)
    assert (done.stdout, done.stderr) == (f"{expected}\n", "")
