"""hako-limit: each limit is met by a program that goes past it, and by one that does not."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import time

import pytest

from conftest import BUSYBOX, DEADLINE, SLOW, SYSTEM, wait_until
from hako import group

vm = pytest.mark.vm
PYTHON = ["/usr/bin/python3", "-I", "-S", "-c"]
MANY_SMALL = (
    "import os, time\nfor _ in range(100):\n  if not os.fork(): x = bytearray(5 << 20); time.sleep(30)\nos.wait()"
)
MEMFD = "import os\nfd = os.memfd_create('x')\nwhile True: os.write(fd, bytes(1 << 20))"
BOMB = "bomb() { bomb | bomb & }; bomb; sleep 30"
HUNGRY = "while :; do :; done & while :; do :; done"
SYSTEMD = "root may, and others under: systemd-run --user --scope -p Delegate=yes; see hako-check"


def limited(who, *argv, report="-", **options):
    """Run hako-limit with ARGV; return what subprocess has and the report."""
    done = who.run("hako-limit", f"--report={report}", *argv, **options)
    text = done.stderr.splitlines()[-1] if report == "-" else pathlib.Path(report).read_text()
    return done, json.loads(text)


def alive(mark):
    """The pids of the processes that have MARK on their command line and are neither zombies nor ours."""
    found = []
    for directory in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (directory / "cmdline").read_bytes().split(b"\0")
            if mark.encode() in words and not any(word.endswith(b"/hako-limit") for word in words):
                found.append(int(directory.name))
        except OSError:
            continue
    return [pid for pid in found if state(pid) not in "ZX"]


def state(pid):
    """The state letter of process PID; X if it is gone."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


# Memory


@vm
@pytest.mark.parametrize("code", [MANY_SMALL, MEMFD], ids=["many small processes", "memfd"])
def test_memory(who, delegated, code):
    done, report = limited(who, "--memory=64M", *PYTHON, code)
    assert done.returncode == 124
    assert (report["status"], report["oom_kills"] > 0) == ("memoryLimit", True)
    assert (60 << 20) < report["memory_peak"] <= 64 << 20
    line = "hako-limit: memoryLimit: 67108864 bytes of memory were not enough: a process was killed"
    assert done.stderr.splitlines()[0] == line
    delegated.wait_until_empty()


def test_memory_of_a_tmpfs_in_a_sandbox(who, delegated):
    fill = who.sandbox("/bin/sh", "-c", "busybox cat /dev/zero > /tmp/x", options=["--dev", "--tmpfs=/tmp"])
    done, report = limited(who, "--memory=64M", *fill)
    assert (done.returncode, report["status"], report["oom_kills"] > 0) == (124, "memoryLimit", True)
    assert (60 << 20) < report["memory_peak"] <= 64 << 20
    delegated.wait_until_empty()


def test_memory_that_is_enough(who, delegated):
    """The control: the same as above, with room for it."""
    code = "import os\nfd = os.memfd_create('x')\nfor _ in range(100): os.write(fd, bytes(1 << 20))"
    done, report = limited(who, "--memory=256M", *PYTHON, code)
    assert (done.returncode, report["status"], report["oom_kills"]) == (0, "exited", 0)
    assert 100 << 20 < report["memory_peak"] < 256 << 20
    delegated.wait_until_empty()


def test_page_cache_is_given_back(who, delegated, place):
    """Reading and writing a large file needs no memory of its own."""
    write = f"busybox dd if=/dev/zero of={place}/large bs=1M count=160 2>/dev/null && cat {place}/large > /dev/null"
    if os.statvfs(place).f_fsid == os.statvfs("/dev/shm").f_fsid or in_memory(place):
        write = "cat /usr/lib/*/*.so* /usr/bin/* > /dev/null"  # no disk here to write to: read a lot
    done, report = limited(who, "--memory=64M", "sh", "-c", write)
    assert (done.returncode, report["status"], report["oom_kills"]) == (0, "exited", 0)
    delegated.wait_until_empty()


def in_memory(place):
    """Whether what is written at PLACE stays in memory."""
    kind = subprocess.run(["stat", "-fc", "%T", place], capture_output=True, text=True, check=True).stdout.strip()
    return kind in ("tmpfs", "overlayfs")


@vm
def test_memory_limit_of_somebody_else_below(who, delegated):
    """An inner limit that strikes is not the outer's."""
    inner = ["hako-limit", "--memory=32M", *PYTHON, "x = bytearray(48 << 20)"]
    done, report = limited(who, "--memory=256M", *inner)
    assert (done.returncode, report["status"], report["code"]) == (124, "exited", 124)
    assert done.stderr.startswith("hako-limit: memoryLimit: 33554432 bytes")
    done, report = limited(who, "--memory=32M", "hako-limit", "--memory=256M", *PYTHON, "x = bytearray(48 << 20)")
    assert (done.returncode, report["status"]) == (124, "memoryLimit")
    delegated.wait_until_empty()


@vm
def test_memory_limit_that_is_looked_at_late(who, delegated):
    """Also when a cgroup below, in which the kernel counted the kill, is gone by then."""
    script = 'echo $$; read go; hako-limit --memory=256M "$@"'
    words = ["sh", "-c", script, "sh", *PYTHON, "x = bytearray(48 << 20)"]
    process = who.start("hako-limit", "--memory=32M", "--report=-", *words, stdin=subprocess.PIPE)
    pid = int(process.stdout.readline())
    process.send_signal(signal.SIGSTOP)
    process.stdin.write("\n")
    process.stdin.flush()
    wait_until(lambda: state(pid) in "ZX")
    process.send_signal(signal.SIGCONT)
    report = json.loads(process.communicate(timeout=DEADLINE)[1].splitlines()[-1])
    assert (process.returncode, report["status"]) == (124, "memoryLimit")
    delegated.wait_until_empty()


def test_memory_tolerated(who, delegated):
    """The limit holds, and PROG goes on without the one that was killed."""
    code = "import os\nif not os.fork(): x = bytearray(100 << 20)\nprint(os.wait()[1])"
    done, report = limited(who, "--memory=32M", "--tolerate=memory", *PYTHON, code)
    assert (done.returncode, done.stdout) == (0, f"{int(signal.SIGKILL)}\n")
    assert (report["status"], report["oom_kills"]) == ("exited", 1)
    delegated.wait_until_empty()


def test_swap_is_part_of_the_limit(who, delegated):
    """Without --swap there is none, whatever this machine has."""
    v2 = pathlib.Path("/sys/fs/cgroup/cgroup.controllers").exists()
    files = '"/sys/fs/cgroup/memory$f/$1" "/sys/fs/cgroup$f/$1"'
    read = f'for f in $(sed "s|.*:||; s|/hako-inside$||" /proc/self/cgroup); do cat {files}; done'
    for option, values in (((), ("0", 64 << 20)), (("--swap=8M",), (str(8 << 20), 72 << 20))):
        name = "memory.swap.max" if v2 else "memory.memsw.limit_in_bytes"
        done = who.run("hako-limit", "--memory=64M", *option, "sh", "-c", f"({read}) 2>/dev/null", "sh", name)
        assert str(values[not v2]) in done.stdout.split()
    delegated.wait_until_empty()


# Processes


@vm
def test_pids(who, delegated):
    mark = f"mark-{os.urandom(8).hex()}"
    done, report = limited(who, "--pids=32", "bash", "-c", BOMB, mark)
    assert (done.returncode, report["status"]) == (124, "pidsLimit")
    assert (report["forks_refused"] > 0, report["pids_peak"]) == (True, 32)
    # A bash that is killed may have written half a line.
    assert done.stderr.splitlines()[-2].endswith("hako-limit: pidsLimit: more than 32 processes: a fork was refused")
    assert alive(mark) == []
    delegated.wait_until_empty()


@vm
def test_prog_cannot_raise_its_limit(who, delegated):
    """Neither in a namespace of its own, with its cgroup mounted, whose files are of its uid."""
    rise = """
        for type in "cgroup2" "cgroup -o pids"; do mount -t $type none /tmp && echo mounted; done
        echo 1000 > /tmp/pids.max; umount -l /tmp; mount -t cgroup2 none /tmp; echo 1000 > /tmp/pids.max
        i=0; while [ $i -lt 60 ]; do sleep 30 & i=$((i + 1)); done; echo forked
    """
    mine = ["/usr/bin/unshare", "--map-root-user", "--mount", "--cgroup", "/usr/bin/dash", "-c", rise]
    options = [*SYSTEM, "--user=65534", "--proc", "--dev", "--tmpfs=/tmp", "--env=PATH=/usr/bin"]
    argv = who.sandbox(*mine, options=options)
    done, report = limited(who, "--pids=40", *argv)
    assert (done.returncode, report["status"], set(done.stdout.split())) == (124, "pidsLimit", {"mounted"})
    delegated.wait_until_empty()


def test_pids_tolerated(who, delegated):
    forks = "for _ in range(20):\n    if not os.fork(): time.sleep(30)"
    code = f"import os, time\ntry:\n  {forks}\nexcept OSError as err: print(err)"
    done, report = limited(who, "--pids=8", "--tolerate=pids", *PYTHON, code)
    assert (done.returncode, done.stdout) == (0, "[Errno 11] Resource temporarily unavailable\n")
    assert (report["status"], report["forks_refused"], report["pids_peak"]) == ("exited", 1, 8)
    assert limited(who, "--pids=40", *PYTHON, code)[1]["status"] == "exited"
    delegated.wait_until_empty()


# CPU


@vm
def test_cpu(who, delegated):
    """Two that are busy have half a core together; the control has more."""

    def used(*options):
        _, report = limited(who, *options, f"--time={2 * max(1, SLOW / 5)}", "sh", "-c", HUNGRY)
        assert report["status"] == "timeLimit"
        return (report["user_time"] + report["system_time"]) / report["real_time"]

    delegated.prefer()
    assert 0.3 < used("--cpu=50") < 0.7
    assert used() > 0.8
    delegated.wait_until_empty()


def test_cpu_weight(who, delegated):
    v2 = pathlib.Path("/sys/fs/cgroup/cgroup.controllers").exists()
    name, value = ("cpu.weight", "200\n") if v2 else ("cpu.shares", "2048\n")
    files = f'"/sys/fs/cgroup/cpu$f/{name}" "/sys/fs/cgroup$f/{name}"'
    read = f'for f in $(sed "s|.*:||; s|/hako-inside$||" /proc/self/cgroup | sort -u); do cat {files}; done 2>/dev/null'
    assert value in who.run("hako-limit", "--cpu-weight=200", "sh", "-c", read).stdout
    delegated.wait_until_empty()


@pytest.mark.parametrize(
    "code",
    [HUNGRY, "for i in 1 2 3 4 5 6 7 8 9; do " + "sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'; done"],
    ids=["two at once", "one after the other"],
)
def test_cpu_time(who, code):
    done, report = limited(who, "--cpu-time=0.5", "sh", "-c", code)
    assert (done.returncode, report["status"]) == (124, "cpuTimeLimit")
    assert 0.5 <= report["user_time"] + report["system_time"] < 2 * max(1, SLOW / 4)
    assert done.stderr.splitlines()[-2] == "hako-limit: cpuTimeLimit: 0.5 seconds of CPU time are used up"
    assert limited(who, "--cpu-time=60", "true")[1]["status"] == "exited"


# Time


@pytest.mark.parametrize("code", ["sleep 60", "trap '' TERM; while :; do sleep 1; done", "sleep 60 & setsid sleep 60"])
def test_time(who, code):
    done, report = limited(who, "--time=0.5", "sh", "-c", code)
    assert (done.returncode, report["status"]) == (124, "timeLimit")
    assert 0.5 <= report["real_time"] < 5 * SLOW
    assert done.stderr.splitlines()[0] == "hako-limit: timeLimit: 0.5 seconds are over"
    assert limited(who, f"--time={2 * SLOW}", "sh", "-c", "exit 7")[1]["code"] == 7


def test_time_in_a_sandbox(who):
    done, report = limited(who, f"--time={0.5 * SLOW}", *who.sandbox("/bin/busybox", "sleep", "60"))
    assert (done.returncode, report["status"]) == (124, "timeLimit")


@pytest.mark.parametrize("boxed", [False, True])
def test_grace(who, boxed):
    """SIGTERM reaches PROG, through a sandbox too, and not the commands of the chain that wait."""
    code = 'trap "echo term; exit 3" TERM; while :; do busybox sleep 0.05; done'
    argv = who.sandbox("/bin/sh", "-c", code) if boxed else [BUSYBOX, "sh", "-c", code]
    done, report = limited(who, f"--time={1.5 * SLOW}", f"--grace={10 * SLOW}", *argv)
    assert (done.returncode, done.stdout) == (124, "term\n")
    assert (report["status"], report["code"]) == ("timeLimit", 3)
    assert report["real_time"] < 6 * SLOW


def test_grace_that_is_not_used(who):
    code = "trap '' TERM; while :; do sleep 0.05; done"
    done, report = limited(who, "--time=0.2", "--grace=0.3", "sh", "-c", code)
    assert (done.returncode, report["status"], report["signal"]) == (124, "timeLimit", "SIGKILL")
    assert 0.5 <= report["real_time"] < 5 * SLOW


# Output


@vm
def test_output(who):
    done, report = limited(who, "--output=1M", "yes")
    assert (done.returncode, len(done.stdout)) == (124, 1048576)
    assert (report["status"], report["output_bytes"]) == ("outputLimit", 1048576)
    assert done.stderr.splitlines()[0] == "hako-limit: outputLimit: more than 1048576 bytes of output"


@pytest.mark.parametrize(("size", "status"), [(1000, "exited"), (999, "outputLimit")])
def test_output_to_the_last_byte(who, size, status):
    code = "head -c 600 /dev/zero; head -c 400 /dev/zero >&2"
    report = who.box.parent / "report"
    done, found = limited(who, f"--output={size}", "sh", "-c", code, report=report, text=False)
    assert (
        len(done.stdout + done.stderr.replace(b"hako-limit: outputLimit: more than 999 bytes of output\n", b""))
    ) == size
    assert (found["status"], found["output_bytes"]) == (status, size)


def test_output_that_overruns_at_the_end_is_more_than_how_it_ended(who):
    """What is still in the pipe when PROG ends counts."""
    done, report = limited(who, "--output=10", "sh", "-c", "echo 0123456789; kill -9 $$")
    assert (done.returncode, done.stdout, report["status"]) == (124, "0123456789", "outputLimit")
    assert report["signal"] == "SIGKILL"


def test_output_keeps_its_order_when_both_are_one(who):
    code = "for i in 1 2 3 4 5 6 7 8 9; do echo out$i; echo err$i >&2; done"
    done = who.run(
        "hako-limit",
        "--output=1M",
        "sh",
        "-c",
        code,
        stderr=subprocess.STDOUT,
        stdout=subprocess.PIPE,
        capture_output=False,
    )
    assert done.stdout.split() == [f"{word}{i}" for i in range(1, 10) for word in ("out", "err")]


def test_output_to_a_file_and_behind_what_is_there(who, place):
    with open(place / "file", "a") as file:
        file.write("before\n")
        file.flush()
        done = who.run(
            "hako-limit", "--output=1M", "echo", "after", stdout=file, stderr=subprocess.PIPE, capture_output=False
        )
    assert (done.returncode, (place / "file").read_text()) == (0, "before\nafter\n")


def test_output_to_a_socket(who):
    ours, theirs = socket.socketpair()
    process = who.start("hako-limit", "--output=1M", "head", "-c", "900000", "/dev/zero", stdout=theirs)
    theirs.close()
    size = 0
    while data := ours.recv(1 << 16):
        size += len(data)
    assert (size, process.wait(DEADLINE)) == (900000, 0)
    ours.close()
    process.stderr.close()


def test_a_reader_that_goes_away_ends_prog_as_ever(who):
    """SIGPIPE for PROG, as without us, and no message of ours."""
    argv = ["sh", "-c", '"$@" | head -n 1; exit 0', "sh", "hako-limit", "--output=100M", "--report=-", "yes"]
    done = who.run(*argv)
    assert done.stdout == "y\n"
    report = json.loads(done.stderr)
    assert (report["status"], report["signal"]) == ("killed", "SIGPIPE")


def test_a_reader_that_does_not_read_stops_no_clock(who):
    """The flood waits, and is ended all the same; what nobody takes is dropped after a moment."""
    process = who.start("hako-limit", "--output=100M", f"--time={0.5 * SLOW}", "--report=-", "yes")
    assert process.wait(DEADLINE) == 124
    report = json.loads(process.stderr.read().splitlines()[-1])
    assert (report["status"], report["real_time"] < 3 * SLOW) == ("timeLimit", True)
    process.stdout.close()
    process.stderr.close()


def test_a_full_disk_behind_the_output(who):
    with open("/dev/full", "w") as full:
        done = who.run(
            "hako-limit", "--output=1M", "echo", "x", stdout=full, stderr=subprocess.PIPE, capture_output=False
        )
    assert (done.returncode, done.stderr) == (125, "hako-limit: write stdout: No space left on device\n")


def test_closed_descriptors_stay_closed(who):
    probe = "for n in 0 1 2; do [ -e /proc/self/fd/$n ] && echo $n; done > {0}; exit 0"
    for options in ([], ["--output=1M"]):
        out = who.box / "data" / f"fds{len(options)}"
        argv = ["hako-limit", *options, "sh", "-c", probe.format(out)]
        assert who.run("sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *argv).returncode == 0
    assert (who.box / "data/fds0").read_text() == (who.box / "data/fds1").read_text() == "1\n"


def test_prog_has_no_descriptor_of_ours(who, delegated):
    code = "import os; print(sorted(int(fd) for fd in os.listdir('/proc/self/fd')))"
    options = [
        "--memory=256M",
        "--output=1M",
        "--time=60",
        f"--report={who.box.parent / 'r'}",
        f"--usage={who.box.parent / 'u'}",
    ]
    done = who.run("hako-limit", *options, *PYTHON, code)
    assert done.stdout == "[0, 1, 2, 3]\n"  # 3 is the listing itself
    delegated.wait_until_empty()


# Disk


def test_disk(who):
    fill = "busybox cat /dev/zero > /tmp/x; exit 5"
    box = who.sandbox("/bin/sh", "-c", fill, options=["--dev", "--tmpfs=/tmp:1M"])
    done, report = limited(who, *box)
    assert (done.returncode, report["status"], report["code"]) == (124, "diskLimit", 5)
    assert done.stderr.splitlines()[-2] == "hako-limit: diskLimit: no room is left in /tmp"
    fits = who.sandbox("/bin/sh", "-c", "busybox echo x > /tmp/x", options=["--tmpfs=/tmp:1M"])
    assert limited(who, *fits)[1]["status"] == "exited"


@pytest.mark.parametrize("fill", ["busybox cat /dev/zero > /x", "while echo -n > /$i; do i=$((i+1)); done 2>/dev/null"])
def test_disk_of_an_overlay(who, fill):
    """Full of data, or of files without any."""
    option = "--overlay=tmpfs:256K"
    box = who.sandbox("/bin/sh", "-c", f"i=0; {fill}; exit 5", options=["--dev", option])
    done, report = limited(who, f"--time={20 * SLOW}", *box)
    assert (done.returncode, report["status"], report["code"]) == (124, "diskLimit", 5)
    assert report["reason"] == "no room is left in /"
    done = who.inside("/bin/sh", "-c", f"i=0; {fill}; exit 5", options=["--dev", option, "--report=-"])
    assert (done.returncode, json.loads(done.stderr.splitlines()[-1])["status"]) == (5, "diskLimit")
    fits = who.sandbox("/bin/sh", "-c", "busybox echo x > /x", options=[option])
    assert limited(who, *fits)[1]["status"] == "exited"


def test_disk_full_of_inodes(who):
    fill = "i=0; while : > /tmp/$i; do i=$((i+1)); done 2>/dev/null"
    done, report = limited(
        who, f"--time={20 * SLOW}", *who.sandbox("/bin/sh", "-c", fill, options=["--dev", "--tmpfs=/tmp:1M"])
    )
    assert (done.returncode, report["status"]) == (124, "diskLimit")


def test_disk_in_the_report_of_hako_run(who):
    """hako-run tells, and exits with PROG's status: it has no limits that end PROG."""
    fill = "busybox cat /dev/zero > /tmp/x; exit 5"
    done = who.inside("/bin/sh", "-c", fill, options=["--dev", "--tmpfs=/tmp:1M", "--report=-"])
    assert (done.returncode, json.loads(done.stderr.splitlines()[-1])["status"]) == (5, "diskLimit")


# How it ends


@pytest.mark.parametrize("command", ["hako-limit", "hako-run"])
@pytest.mark.parametrize(
    ("code", "status", "found"),
    [
        ("exit 3", 3, ("exited", 3, None)),
        ("kill -SEGV $$", 139, ("killed", None, "SIGSEGV")),
        ("kill -37 $$", 165, ("killed", None, "37")),
    ],
)
def test_the_report(who, command, code, status, found):
    report = who.box.parent / "report"
    report.write_text("old")
    begin = [command, f"--report={report}"]
    argv = (
        who.sandbox("/bin/sh", "-c", code, options=begin[1:]) if command == "hako-run" else [*begin, "sh", "-c", code]
    )
    done = who.run(*argv)
    told = json.loads(report.read_text())
    assert (done.returncode, done.stderr) == (status, "")
    assert (told["status"], told["code"], told["signal"]) == found
    assert 0 < told["real_time"] < DEADLINE
    assert told["user_time"] + told["system_time"] >= 0
    assert told["start_time"].endswith("Z")
    assert [name.name for name in who.box.parent.iterdir() if name.name.startswith(".")] == []


@pytest.mark.parametrize("command", ["hako-limit", "hako-run"])
def test_the_report_of_what_did_not_run(who, command):
    argv = (
        who.sandbox("/no/such", options=["--report=-"])
        if command == "hako-run"
        else [command, "--report=-", "/no/such"]
    )
    done = who.run(*argv)
    line, told = done.stderr.splitlines()
    assert (done.returncode, line) == (127, f"{command}: /no/such: No such file or directory")
    told = json.loads(told)
    assert (told["status"], told["code"], told["reason"]) == ("internalError", None, line)


def test_figures_without_a_cgroup_are_null(who):
    """An ordinary user to whom nothing is delegated."""
    if who.name == "root":
        return
    _, report = limited(who, *PYTHON, "import os\nx = bytearray(100 << 20)\nfor _ in range(9): os.listdir('/usr/bin')")
    for key in ("memory_peak", "pids_peak", "oom_kills", "forks_refused", "output_bytes"):
        assert report[key] is None
    assert 100 << 20 < report["max_rss"] < 150 << 20
    assert report["user_time"] + report["system_time"] > 0


def test_max_rss_is_not_the_callers(who):
    """Neither that of a large caller, nor ours."""
    code = "import subprocess, sys; x = bytearray(300 << 20); sys.exit(subprocess.run(sys.argv[1:]).returncode)"
    done = who.run(*PYTHON, code, "hako-limit", "--report=-", "true")
    assert json.loads(done.stderr)["max_rss"] is None
    done = who.run(*PYTHON, code, "hako-limit", "--report=-", *PYTHON, "x = bytearray(50 << 20)")
    assert 50 << 20 < json.loads(done.stderr)["max_rss"] < 100 << 20


def test_a_report_into_a_fifo(who, place):
    os.mkfifo(place / "fifo")
    os.chown(place / "fifo", who.uid, -1)
    assert who.run("hako-limit", f"--report={place / 'fifo'}", "true").returncode == 125  # nobody reads
    reader = os.open(place / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    done = who.run("hako-limit", f"--report={place / 'fifo'}", "true")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(os.read(reader, 4096))["status"] == "exited"
    os.close(reader)


def test_nothing_is_left_of_what_prog_started(who):
    """And who reads its output to the end is not held up by it."""
    mark = f"mark-{os.urandom(8).hex()}"
    code = "(setsid sh -c 'sleep 60; :' $0 &) ; sh -c 'trap \"\" HUP TERM; sleep 60; :' $0 & exit 3"
    done, report = limited(who, "sh", "-c", code, mark)
    assert (done.returncode, report["code"]) == (3, 3)
    assert alive(mark) == []


def test_children_that_the_caller_had_are_left_alone(who):
    mark = f"mark-{os.urandom(8).hex()}"
    code = 'sh -c "sleep 60; :" $0 > /dev/null & echo $!; exec hako-limit --time=0.1 sleep 60'
    done = who.run("sh", "-c", code, mark, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, capture_output=False)
    try:
        assert done.returncode == 124
        assert int(done.stdout) in alive(mark)
    finally:
        for pid in alive(mark):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_signals_that_end_it(who, number):
    mark, report = f"mark-{os.urandom(8).hex()}", who.box.parent / "report"
    code = "trap '' INT TERM HUP QUIT; sleep 60 & echo; while :; do sleep 1; done"
    process = who.start("hako-limit", f"--report={report}", "sh", "-c", code, mark)
    process.stdout.readline()
    process.send_signal(number)
    assert (process.wait(DEADLINE), process.stderr.read()) == (128 + number, "")
    told = json.loads(report.read_text())
    assert (told["status"], told["signal"], told["reason"]) == ("killed", "SIGKILL", f"ended by {number.name}")
    assert alive(mark) == []
    process.stdout.close()
    process.stderr.close()


def test_signals_that_are_passed_on(who):
    code = "trap 'echo usr1; exit 4' USR1; echo; while :; do sleep 0.05; done"
    process = who.start("hako-limit", "sh", "-c", code)
    process.stdout.readline()
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (4, "usr1\n")


def children(pid):
    """The pids of the children of process PID."""
    return [int(word) for word in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def start_tree(who, mark, *options):
    """Start hako-limit with OPTIONS and a PROG of several processes; return it and the pid of its keeper."""
    code = "(setsid sh -c 'sleep 60; :' $0 &); sh -c 'sleep 60; :' $0 & echo; sleep 60"
    process = who.start("hako-limit", *options, "sh", "-c", code, mark)
    assert process.stdout.readline() == "\n"
    wait_until(lambda: len(alive(mark)) == 3)
    return process, children(process.pid)[-1]


@pytest.mark.parametrize("options", [["--time=50"], ["--memory=256M"]], ids=["no cgroup needed", "cgroup"])
def test_sigkill_of_the_supervisor_leaves_nothing(who, delegated, options):
    mark = f"mark-{os.urandom(8).hex()}"
    process, _ = start_tree(who, mark, *options)
    process.kill()
    process.communicate(timeout=DEADLINE)
    wait_until(lambda: not alive(mark) and not delegated.left())


def test_sigkill_of_the_keeper_ends_it(who, delegated):
    mark = f"mark-{os.urandom(8).hex()}"
    process, keeper = start_tree(who, mark, "--memory=256M", "--report=-")
    os.kill(keeper, signal.SIGKILL)
    _, err = process.communicate(timeout=DEADLINE)
    assert err.count("\n") == 2, err
    line, report = err.splitlines()
    assert (process.returncode, line) == (125, "hako-limit: the process that keeps PROG was killed")
    assert json.loads(report)["status"] == "internalError"
    wait_until(lambda: not alive(mark) and not delegated.left())


@vm
def test_sigkill_of_both_leaves_what_the_next_run_removes(who, delegated):
    mark = f"mark-{os.urandom(8).hex()}"
    process, keeper = start_tree(who, mark, "--memory=256M")
    assert delegated.left() != []
    process.send_signal(signal.SIGSTOP)  # else it would see to it when the keeper is gone
    os.kill(keeper, signal.SIGKILL)
    process.kill()
    process.wait(DEADLINE)
    assert alive(mark) != []
    wait_until(lambda: not pathlib.Path(f"/proc/{process.pid}").exists())
    delegated.again = True
    again = who.run("hako-limit", "--memory=256M", "true")
    assert (again.returncode, again.stderr) == (0, "")
    wait_until(lambda: not alive(mark) and not delegated.left())
    process.stdout.close()
    process.stderr.close()


@vm
@pytest.mark.parametrize("option", ["--pids=20", "--cpu=50", "--memory=256M", "--cpu-weight=50"])
def test_each_limit_alone_where_the_caller_is(who, delegated, option):
    """In version 2 some controllers would make a place where processes are a threaded one."""
    done, report = limited(who, option, "true")
    assert (done.returncode, report["status"]) == (0, "exited")
    delegated.wait_until_empty()


def test_in_a_sandbox(who):
    """There is no cgroup to be had; /proc tells what there is to end, and without it there is no beginning."""
    chain = [
        "hako-limit",
        f"--time={0.3 * SLOW}",
        "/bin/sh",
        "-c",
        "busybox setsid busybox sleep 60 & busybox sleep 60",
    ]
    began = time.monotonic()
    done = who.inside(*chain, options=["--proc", "--dev"])
    assert (done.returncode, done.stderr) == (124, f"hako-limit: timeLimit: {0.3 * SLOW:g} seconds are over\n")
    assert time.monotonic() - began < 30
    done = who.inside(*chain)
    message = (
        "hako-limit: no cgroup can be made here, and no process be found without /proc "
        "[behind hako-run: --proc; see hako-check]\n"
    )
    assert (done.returncode, done.stderr) == (125, message)


def test_a_signal_during_the_grace(who):
    """It is what ends it then, for the exit status and for the report."""
    code = "trap 'echo asked' TERM; while :; do sleep 0.05; done"
    process = who.start("hako-limit", f"--time={SLOW}", f"--grace={50 * SLOW}", "--report=-", "sh", "-c", code)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=DEADLINE)
    report = json.loads(err.splitlines()[-1])
    assert (process.returncode, report["status"], report["reason"]) == (143, "killed", "ended by SIGTERM")


# Where it is made


@vm
def test_what_cannot_be_enforced_is_refused(who):
    """An ordinary user to whom nothing is delegated."""
    if who.name == "root":
        return
    for option in ("--memory=64M", "--pids=5", "--cpu=50", "--cpu-weight=5", "--cgroup=memory.high=1"):
        done = who.run("hako-limit", option, "touch", str(who.box / "data/ran"))
        assert done.returncode == 125
        assert done.stderr.startswith("hako-limit: mkdir /sys/fs/cgroup/")
        assert done.stderr.endswith(f": Permission denied [{SYSTEMD}]\n")
        assert done.stderr.count("\n") == 1
    assert not (who.box / "data/ran").exists()
    done = who.run("hako-limit", "--memory=64M", "--report=-", "true")
    report, line = done.stderr.splitlines()
    assert (json.loads(report)["status"], f"hako-limit: {json.loads(report)['reason']}") == ("internalError", line)


def test_a_controller_that_is_not_there(who, delegated):
    done = who.run("hako-limit", "--cgroup=nosuch.max=1", "true")
    assert done.returncode == 125
    assert done.stderr.startswith(
        "hako-limit: --cgroup=nosuch.max: no cgroup here has the controller nosuch, there are "
    )
    delegated.wait_until_empty()


@vm
def test_cgroup_files(who, delegated):
    """Those that are there are written, and unknown ones name the file."""
    done = who.run("hako-limit", "--cgroup=pids.max=7", "--report=-", "bash", "-c", BOMB)
    assert (done.returncode, json.loads(done.stderr.splitlines()[-1])["pids_peak"]) == (124, 7)
    done = who.run("hako-limit", "--cgroup=pids.nosuch=7", "true")
    assert done.returncode == 125
    assert done.stderr.startswith("hako-limit: write /sys/fs/cgroup/")
    assert done.stderr.endswith("/pids.nosuch '7': No such file or directory\n")
    done = who.run("hako-limit", "--cgroup=pids.max=x", "true")
    assert (done.returncode, done.stderr.endswith("/pids.max 'x': Invalid argument\n")) == (125, True)
    done = who.run("hako-limit", "--cgroup=cpuset.cpus=0", "grep", "Cpus_allowed_list", "/proc/self/status")
    assert (done.returncode, done.stdout) == (0, "Cpus_allowed_list:\t0\n")
    delegated.wait_until_empty()


def test_the_limits_are_those_of_whoever_enters(who, delegated):
    """hako-enter joins the cgroup of hako-limit, or does not enter."""
    pid_file = who.box.parent / "pid"
    box = who.sandbox("/bin/sh", "-c", "busybox echo; read x", options=[f"--pid-file={pid_file}", "--proc"])
    process = who.start("hako-limit", "--pids=20", *box, stdin=subprocess.PIPE)
    process.stdout.readline()
    wait_until(pid_file.exists)
    code = "busybox cat /proc/self/cgroup"
    done = who.run("hako-enter", "--fork", pid_file.read_text().strip(), "/bin/sh", "-c", code)
    refused = "Permission denied [--no-cgroup stays outside]\n"
    if done.returncode:  # an ordinary user's leaves are in cgroups that they may not leave
        assert (done.returncode, done.stderr.endswith(refused)) == (125, True)
    else:
        inside = pathlib.Path(f"/proc/{pid_file.read_text().strip()}/cgroup").read_text()
        ours = [line.split("/")[-2:] for line in inside.splitlines() if ":pids:" in line or line.startswith("0::")]
        assert any(group.cgroup.is_ours(name) and leaf == group.cgroup.INSIDE for name, leaf in ours)
        assert who.name == "root"
    process.communicate("x\n", timeout=DEADLINE)
    delegated.wait_until_empty()


@pytest.mark.root
def test_version_1_alone(who, delegated):
    """Where there is no version 2 the freezer kills."""
    unified = pathlib.Path("/sys/fs/cgroup/unified")
    if not unified.exists():
        assert not pathlib.Path("/sys/fs/cgroup/freezer").exists()
        return  # this machine has version 2 alone: there is nothing to take away
    mark = f"mark-{os.urandom(8).hex()}"
    alone = ["unshare", "-m", "sh", "-c", f'umount {unified} && exec "$@"', "sh"]
    done = who.run(*alone, "hako-limit", "--pids=32", "--report=-", "bash", "-c", BOMB, mark)
    report = json.loads(done.stderr.splitlines()[-1])
    assert (done.returncode, report["status"], report["pids_peak"]) == (124, "pidsLimit", 32)
    assert report["user_time"] + report["system_time"] > 0
    done = who.run(*alone, "hako-limit", "--time=0.3", "sh", "-c", "setsid sleep 60 & sleep 60", mark)
    assert done.returncode == 124
    assert alive(mark) == []
    delegated.wait_until_empty()


def test_chain(who, delegated):
    """Each link has its part in it."""
    code = "ulimit -n; busybox id -u; x=; while :; do x=$x$x.; done"
    links = ["rlimit-exec", "--nofile=20", "seccomp-exec", "default"]
    box = who.sandbox(*links, "/bin/sh", "-c", code, options=["--user=65534", "--group=65534"])
    done, report = limited(who, "--memory=64M", f"--time={20 * SLOW}", *box)
    assert (done.returncode, report["status"], done.stdout) == (124, "memoryLimit", "20\n65534\n")
    delegated.wait_until_empty()


def test_many_at_once(who, delegated):
    """Each has a cgroup of its own, and its own report."""
    count = 40 if SLOW == 1 else 6
    each = 'hako-limit --memory=64M --pids=9 sh -c "exit $((i % 7))" & pids="$pids $!"; i=$((i+1))'
    check = "wait $p; [ $? = $((i % 7)) ] || echo wrong; i=$((i+1))"
    command = f"while [ ${{i=0}} -lt $1 ]; do {each}; done; i=0; for p in $pids; do {check}; done; echo $i"
    done = who.run("bash", "-c", command, "bash", str(count))
    assert (done.stdout, done.stderr) == (f"{count}\n", "")
    delegated.wait_until_empty()


# What it records


def test_usage(who, delegated):
    usage = who.box.parent / "usage"
    code = "import time\nx = bytearray(30 << 20)\nwhile time.process_time() < 0.5: pass"
    options = ["--memory=64M", f"--usage={usage}", "--interval=0.05"]
    assert who.run("hako-limit", *options, *PYTHON, code).returncode == 0
    lines = [json.loads(line) for line in usage.read_text().splitlines()]
    assert len(lines) >= 5
    assert lines[0].pop("limits")["memory"] == 64 << 20
    assert {frozenset(line) for line in lines} == {frozenset(("time", "memory", "cpu", "pids", "io_read", "io_write"))}
    times = [line["time"] for line in lines]
    assert times == sorted(times)
    assert max(line["memory"] for line in lines) > 30 << 20
    assert lines[-1]["cpu"] >= 0.4
    assert max(line["pids"] for line in lines) == 1
    delegated.wait_until_empty()


def test_usage_on_a_full_disk_ends_nothing(who):
    done = who.run("hako-limit", "--usage=/dev/full", "--interval=0.05", "sh", "-c", "sleep 0.2; exit 3")
    assert (done.returncode, done.stderr) == (3, "hako-limit: --usage: write /dev/full: No space left on device\n")


def test_live(who):
    """A line on the terminal that is gone in the end; refused where there is none."""
    done = who.run("hako-limit", "--live", "true")
    assert (done.returncode, done.stderr) == (125, "hako-limit: --live: stderr is not a terminal\n")
    leader, follower = os.openpty()
    process = who.start("hako-limit", "--live", "--interval=0.05", "--time=60", "sleep", str(2 * SLOW), stderr=follower)
    os.close(follower)
    shown = b""
    while True:
        try:
            data = os.read(leader, 4096)
        except OSError:
            break
        shown += data
    assert process.wait(DEADLINE) == 0
    assert b"pids 1" in shown
    assert shown.endswith(b"\r\x1b[K")
    assert b"\n" not in shown
    os.close(leader)
    process.stdout.close()


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--memory=0"], "--memory: less than a page, 4096 bytes: '0'"),
        (["--memory=4095"], "--memory: less than a page, 4096 bytes: '4095' [without K, M or G it is bytes]"),
        (["--memory=64m"], "--memory: not a size, a whole number or one with K, M or G: '64m'"),
        (["--memory=-1"], "--memory: not a size, a whole number or one with K, M or G: '-1'"),
        (["--memory="], "--memory: not a size, a whole number or one with K, M or G: ''"),
        (["--swap=1M"], "--swap: needs --memory"),
        (["--pids=0"], "--pids: not from 1 to 4194304: '0'"),
        (["--pids=4194305"], "--pids: not from 1 to 4194304: '4194305'"),
        (["--pids=1.5"], "--pids: not a whole number: '1.5'"),
        (["--cpu=0"], "--cpu: not from 1 to 1000000: '0'"),
        (["--cpu=50%"], "--cpu: not a whole number: '50%'"),
        (["--cpu-weight=10001"], "--cpu-weight: not from 1 to 10000: '10001'"),
        (["--time=0"], "--time: not seconds, more than 0, like 2 or 0.5: '0'"),
        (["--time=0.0"], "--time: not seconds, more than 0, like 2 or 0.5: '0.0'"),
        (["--time=1e3"], "--time: not seconds, more than 0, like 2 or 0.5: '1e3'"),
        (["--time=.5"], "--time: not seconds, more than 0, like 2 or 0.5: '.5'"),
        (["--time=5."], "--time: not seconds, more than 0, like 2 or 0.5: '5.'"),
        (["--time=inf"], "--time: not seconds, more than 0, like 2 or 0.5: 'inf'"),
        (["--time=1s"], "--time: not seconds, more than 0, like 2 or 0.5: '1s'"),
        (["--cpu-time=-1"], "--cpu-time: not seconds, more than 0, like 2 or 0.5: '-1'"),
        (["--grace=0"], "--grace: not seconds, more than 0, like 2 or 0.5: '0'"),
        (["--grace=1"], "--grace: there is no limit that ends PROG"),
        (["--interval=1", "--report=-"], "--interval: needs --usage or --live"),
        (["--interval=0"], "--interval: not seconds, more than 0, like 2 or 0.5: '0'"),
        (["--output=0"], "--output: nothing is not to be limited to: '0'"),
        (["--cgroup=memory.max"], "--cgroup: not CONTROLLER.FILE=VALUE: 'memory.max'"),
        (["--cgroup=memory=1"], "--cgroup: not CONTROLLER.FILE=VALUE: 'memory=1'"),
        (["--cgroup=../x.y=1"], "--cgroup: not CONTROLLER.FILE=VALUE: '../x.y=1'"),
        (["--cgroup=memory./../x=1"], "--cgroup: not CONTROLLER.FILE=VALUE: 'memory./../x=1'"),
        (["--cgroup=cgroup.procs=1"], "--cgroup: cgroup.procs is not a controller's: 'cgroup.procs=1'"),
        (["--tolerate=cpu"], "--tolerate: neither pids nor memory: 'cpu'"),
        (["--tolerate=pids"], "--tolerate=pids: there is no limit of pids to tolerate"),
        (["--parent="], "--parent: not a cgroup: ''"),
        (["--parent=/no/such"], "--parent: no cgroup /no/such here"),
        (["--report=/no/such/file"], "--report: open /no/such: No such file or directory"),
        (["--report=/usr"], "--report: /usr: Is a directory"),
        ([f"--report={'x' * 256}"], f"--report: {'x' * 256}: File name too long"),
        (["--report=/tmp/x.hako", "--usage=/tmp/./x.hako"], "--usage: the file of --report: /tmp/./x.hako"),
        (["--report="], "--report: not the name of a file: ''"),
        (["--usage=/no/such/file"], "--usage: open /no/such: No such file or directory"),
        (["--time=1", "--time=2"], "--time: given twice"),
    ],
)
def test_bad_values(who, options, message):
    done = who.run("hako-limit", *options, "touch", str(who.box / "data/ran"))
    assert (done.returncode, done.stderr) == (125, f"hako-limit: {message}\n")
    assert not (who.box / "data/ran").exists()


# Only root can give a file away, whoever is to write the report.
@pytest.mark.parametrize("owner", [pytest.param(1, marks=pytest.mark.root)])
def test_a_report_in_the_place_of_another_s_file(who, place, owner):
    """In a directory like /tmp who owns neither cannot replace it, which is known before PROG runs."""
    (place / "shared").mkdir()
    os.chown(place / "shared", owner, owner)
    (place / "shared").chmod(0o1777)
    (place / "shared/x").write_text("")
    os.chown(place / "shared/x", owner, owner)
    done = who.run("hako-limit", f"--report={place}/shared/x", "echo", "ran")
    if who.name == "root":
        assert (done.returncode, done.stdout) == (0, "ran\n")
        return
    text = f"--report: {place}/shared/x is another's in a sticky directory: Operation not permitted"
    assert (done.returncode, done.stdout, done.stderr) == (125, "", f"hako-limit: {text}\n")


def test_a_report_whose_place_is_taken_meanwhile_leaves_nothing(who, place):
    done = who.run("hako-limit", f"--report={place}/x", "mkdir", f"{place}/x")
    assert (done.returncode, done.stderr) == (125, f"hako-limit: link {place}/x: Is a directory\n")
    assert [path.name for path in place.iterdir() if path != who.box] == ["x"]


def test_a_report_that_cannot_be_written(who, place):
    (place / "locked").mkdir(mode=0o555)
    if who.name == "root":
        return  # may write anywhere
    done = who.run("hako-limit", f"--report={place}/locked/x", "touch", str(who.box / "data/ran"))
    assert (done.returncode, done.stderr) == (
        125,
        f"hako-limit: --report: open O_TMPFILE {place}/locked: Permission denied\n",
    )
    assert not (who.box / "data/ran").exists()


def test_names_of_groups():
    assert group.cgroup.is_ours("hako-123-0a1b2c3d")
    assert not group.cgroup.is_ours(group.cgroup.CALLERS)
    assert not group.cgroup.is_ours("hako-tests")
