"""The list of sandboxes: who is in it, when, and what it takes from whom it lists."""

import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import pytest

from conftest import BIN, BUSYBOX, DEADLINE, Who, wait_until

# Holds a lock on the file argv[1] with the text argv[2] in it, until its stdin ends.
FORGER = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(fd, fcntl.LOCK_EX)
os.write(fd, sys.argv[2].encode())
print(flush=True)
sys.stdin.read()
"""


def listed(who, mark):
    """The sandboxes with the word MARK in their command line, as hako-ps has them."""
    done = who.run("hako-ps", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return [one for one in map(json.loads, done.stdout.splitlines()) if mark in " ".join(one["command"])]


def tasks(who, mark):
    """Of those: the workers, and the tasks."""
    found = listed(who, mark)
    return [[one for one in found if one["kind"] == kind] for kind in ("worker", "task")]


def directory(who):
    """Where WHO's are written down."""
    if who.uid == 0:
        return pathlib.Path("/run/hako")
    return pathlib.Path(who.env.get("XDG_RUNTIME_DIR", ""), "hako")


@pytest.fixture
def mark(who, place):
    """A word that no other test has in its command lines; WHO's list is its own if WHO is not root."""
    if who.uid:
        (place / "run").mkdir(mode=0o700)
        os.chown(place / "run", who.uid, who.uid)
        who.env["XDG_RUNTIME_DIR"] = str(place / "run")
    return place.name


def make_directory(who):
    """Make it, as the first supervisor of WHO does."""
    directory(who).mkdir(mode=0o700, exist_ok=True)
    os.chown(directory(who), who.uid, -1)


@contextlib.contextmanager
def running(who, *argv):
    """ARGV, as soon as it prints a line and, if it is hako's, is listed, to its end: its stdin's."""
    process = who.start(*argv, stdin=subprocess.PIPE)
    file = directory(who) / str(process.pid)
    try:
        assert process.stdout.readline()
        wait_until(lambda: not str(argv[0]).startswith("hako-") or (file.exists() and file.stat().st_size))
        yield process
    finally:
        process.kill()
        process.communicate()


def prog(mark):
    """A PROG for the box that prints a line and waits for the end of its stdin."""
    return ["/bin/busybox", "sh", "-c", "echo; exec busybox cat", mark]


def test_a_sandbox_is_listed_as_long_as_it_runs(who, mark):
    argv = [*who.sandbox(*prog(mark))]
    with running(who, *argv) as process:
        (one,) = listed(who, mark)
        assert one["supervisor"] == process.pid
        assert one["command"] == [str(word) for word in argv]
        assert 0 <= one["age"] < 60
        assert one["limits"] == {}
        entered = who.run("hako-enter", "--fork", str(one["pid"]), "/bin/busybox", "ls", "/")
        assert "bin" in entered.stdout.split()
        assert str(process.pid) in os.listdir(directory(who))
        process.communicate()
        assert listed(who, mark) == []
        assert str(process.pid) not in os.listdir(directory(who))


def test_the_pid_is_that_of_the_pid_file(who, mark, place):
    """Also where PROG is PID 1, below an init that is not."""
    options = ["--as-pid-1", f"--pid-file={place}/pid"]
    with running(who, *who.sandbox(*prog(mark), options=options)):
        (one,) = listed(who, mark)
        assert (place / "pid").read_text() == f"{one['pid']}\n"


def test_limits_and_the_sandbox_behind_them_are_one(who, mark):
    with running(who, "hako-limit", "--time=50", "--output=1M", *who.sandbox(*prog(mark))) as process:
        wait_until(lambda: listed(who, mark)[0]["pid"])  # its own supervisor has listed it
        (one,) = listed(who, mark)
        assert one["supervisor"] == process.pid
        assert one["limits"] == {"time": 50.0, "output": 2**20}
        entered = who.run("hako-enter", "--fork", str(one["pid"]), "/bin/busybox", "ls", "/")
        assert "bin" in entered.stdout.split()


def test_limits_alone_have_nothing_to_enter(who, mark):
    with running(who, "hako-limit", "--time=50", "sh", "-c", "echo; cat", mark) as process:
        (one,) = listed(who, mark)
        assert (one["pid"], one["supervisor"]) == (None, process.pid)
        table = who.run("hako-ps").stdout.splitlines()
        assert table[0].split() == ["PID", "SUPERVISOR", "AGE", "COMMAND"]
        (row,) = [line for line in table if mark in line]
        assert row.split()[:2] == ["-", str(process.pid)]
        assert row.endswith(f"hako-limit --time=50 sh -c 'echo; cat' {mark}")


def test_a_limit_that_is_never_met(who, mark):
    """It is written down with an exponent."""
    with running(who, "hako-limit", f"--time={'9' * 20}", "sh", "-c", "echo; cat", mark):
        assert [one["limits"] for one in listed(who, mark)] == [{"time": 1e20}]


def test_what_another_started_in_the_limits_is_another(who, mark):
    """hako-run as a program, the keeper's child after its parent has gone: not the same chain."""
    inner = f"{BIN}/hako-run --mount={BUSYBOX}:/bin/busybox:ro {who.box} busybox sh -c 'echo; exec busybox cat' {mark}"
    with running(who, "hako-limit", "--time=50", "sh", "-c", f"exec 3<&0; ({inner} <&3 &); cat", mark):
        wait_until(lambda: len(listed(who, mark)) == 2)
        found = listed(who, mark)
        assert sorted(one["command"][0] for one in found) == ["hako-limit", "hako-run"]


@pytest.mark.parametrize("limit", [[], ["--limit-walltime=50"]])
def test_a_policy(who, mark, limit):
    with running(who, "hako-policy", *limit, "default", "sh", "-c", "echo; cat", mark) as process:
        wait_until(lambda: listed(who, mark)[0]["pid"])
        (one,) = listed(who, mark)
        assert one["supervisor"] == process.pid
        assert one["limits"] == ({"time": 50.0} if limit else {})
        assert who.run("hako-enter", "--fork", str(one["pid"]), "/bin/sh", "-c", "echo in").stdout == "in\n"


def test_what_runs_inside_is_not_listed_and_leaves_nothing_there(who, mark):
    """In /run and /tmp of the sandbox nothing is made, by whoever supervises in there."""
    for name in ("run", "tmp"):
        (who.box / name).mkdir(exist_ok=True)
        os.chown(who.box / name, who.uid, -1)
    argv = ["hako-limit", "--time=50", *prog(mark)]
    with running(who, *who.sandbox(*argv, options=["--writable", "--proc"])):
        (one,) = listed(who, mark)
        assert one["command"][0] == "hako-run"
        assert [list((who.box / name).iterdir()) for name in ("run", "tmp")] == [[], []]


def test_nor_is_a_worker_that_is_inside(who, mark):
    for name in ("run", "tmp"):
        (who.box / name).mkdir(exist_ok=True)
        os.chown(who.box / name, who.uid, -1)
    argv = who.sandbox(
        "hako-task", "--stream", "--jobs=7", options=["--writable", "--proc", "--dev", f"--hostname={mark}"]
    )
    with working(who, *argv) as process:
        send(process, "no request\n")
        assert json.loads(process.stdout.readline())["status"] == "requestInvalid"
        assert [one["kind"] for one in listed(who, mark)] in ([], ["sandbox"])  # if it is listed yet
        assert [list((who.box / name).iterdir()) for name in ("run", "tmp")] == [[], []]


def test_what_a_killed_supervisor_left_is_removed(who, mark):
    with running(who, *who.sandbox(*prog(mark))) as process:
        file = directory(who) / str(process.pid)
        assert file.exists()
        process.kill()
        process.communicate()
        assert file.exists() or who.uid == 0  # another's hako-ps may have been faster
        assert listed(who, mark) == []
        wait_until(lambda: not file.exists())  # another's hako-ps may be about to do it


def test_a_name_that_is_not_plain_is_quoted(who, mark):
    with running(who, "hako-limit", "sh", "-c", "echo; cat", f"{mark}\x1b[31m\n\udcff"):
        (row,) = [line for line in who.run("hako-ps").stdout.splitlines() if mark in line]
        assert row.endswith(f"'{mark}\\x1b[31m\\n\\udcff'")


# Workers, and what they run.


def sleeper(mark, **keys):
    """A request to sleep until it is killed, with MARK in the command line."""
    return json.dumps({"cmd": ["sh", "-c", "sleep 300; exit", mark], **keys}) + "\n"


TRUE_TASK = '{"cmd": ["true"]}\n'


@contextlib.contextmanager
def working(who, *argv):
    """The worker ARGV, to its end by force."""
    process = who.start(*argv, stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def send(process, *lines):
    """Send LINES to the stdin of PROCESS."""
    process.stdin.write("".join(lines))
    process.stdin.flush()


def test_a_stream_is_listed_and_each_task_that_lasts(who, mark):
    """Those that do not are counted."""
    argv = ["hako-task", "--stream", "--jobs=3"]
    with working(who, *argv) as process:
        wait_until(lambda: of(who, process))
        (worker,) = of(who, process)
        assert (worker["pid"], worker["kind"], worker["command"], worker["limits"]) == (None, "worker", argv, {})
        assert worker["tasks"] == {"jobs": 3, "running": 0, "ended": 0}
        send(process, sleeper(mark, timeLimit=50), *[TRUE_TASK] * 4, sleeper(mark), "no request\n")
        wait_until(lambda: len(of(who, process)) == 3)
        wait_until(lambda: of(who, process)[0]["tasks"] == {"jobs": 3, "running": 2, "ended": 4})
        _, first, second = of(who, process)
        for one, limits in ((first, {"time": 50.0}), (second, {})):
            assert one["command"] == ["sh", "-c", "sleep 300; exit", mark]
            assert (one["kind"], one["tasks"], one["limits"]) == ("task", None, limits)
            assert 1 <= one["age"] < 60
            assert pathlib.Path(f"/proc/{one['pid']}/stat").read_text().rpartition(")")[2].split()[1] == str(
                process.pid
            )
        assert first["pid"] != second["pid"]
        table = who.run("hako-ps").stdout.splitlines()
        place = next(number for number, line in enumerate(table) if line.split()[1] == str(process.pid))
        assert table[place].endswith("  (2 of 3 run, 4 ended) hako-task --stream --jobs=3")
        for line, one in zip(table[place + 1 : place + 3], (first, second), strict=True):
            assert line.split()[:2] == [str(one["pid"]), str(process.pid)]
            assert line.endswith(f"    sh -c 'sleep 300; exit' {mark}")
    assert of(who, process) == []


def of(who, process):
    """What hako-ps lists of the worker PROCESS."""
    found = [json.loads(line) for line in who.run("hako-ps", "--json").stdout.splitlines()]
    return [one for one in found if one["supervisor"] == process.pid]


def test_a_task_that_has_ended_is_not_listed_any_more(who, mark):
    """At once, whatever is written down still."""
    with working(who, "hako-task", "--stream") as process:
        send(process, sleeper(mark, timeLimit=1.5))
        wait_until(lambda: len(of(who, process)) == 2)
        assert json.loads(process.stdout.readline()) == {"status": "timeLimit"}
        assert len(of(who, process)) == 1
        wait_until(lambda: of(who, process)[0]["tasks"]["ended"] == 1)
        process.communicate(timeout=DEADLINE)
        assert of(who, process) == []
        assert str(process.pid) not in os.listdir(directory(who))


def test_one_request(who, mark):
    with working(who, "hako-task") as process:
        process.stdin.write(sleeper(mark))
        process.stdin.close()
        wait_until(lambda: len(of(who, process)) == 2)
        worker, task = of(who, process)
        assert worker["tasks"] == {"jobs": 1, "running": 1, "ended": 0}
        assert task["command"][-1] == mark
        process.terminate()
        process.wait(DEADLINE)
        assert str(process.pid) not in os.listdir(directory(who))
        process.stdin = None


@pytest.mark.usefixtures("mark")
@pytest.mark.parametrize("request_", [TRUE_TASK, "no request\n"])
def test_one_request_that_is_over_leaves_nothing(who, request_):
    make_directory(who)
    with working(who, "hako-task") as process:
        assert process.communicate(request_, timeout=DEADLINE)[0].startswith('{"status":')
        assert str(process.pid) not in os.listdir(directory(who))


def test_a_server(who, mark, place):
    with working(who, "hako-task", f"--listen={place}/socket") as process:
        wait_until(lambda: of(who, process))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{place}/socket")
            client.sendall(sleeper(mark).encode())
            wait_until(lambda: len(of(who, process)) == 2)
        wait_until(lambda: [one["tasks"] and one["tasks"]["ended"] for one in of(who, process)] == [1])


def test_the_workers_of_a_program(who, mark):
    """By the command line of that."""
    code = """
import hako, sys
box = hako.Sandbox(time=50)
with hako.Pool(2) as pool:
    futures = [pool.submit(box, ["sh", "-c", "sleep 300; exit", sys.argv[1]]), pool.submit(box, ["true"])]
    print(futures[1].result().status, flush=True)
    hako.run(["sh", "-c", "sleep 300; exit", sys.argv[1]])
"""
    argv = [sys.executable, "-I", "-c", code, mark]
    with running(who, *argv):
        wait_until(lambda: [len(found) for found in tasks(who, mark)] == [2, 2])
        workers, found = tasks(who, mark)
        assert [one["command"] for one in workers] == [argv] * 2
        assert sorted((one["tasks"]["running"], one["tasks"]["ended"]) for one in workers) == [(1, 0), (1, 1)]
        assert {one["supervisor"] for one in found} == {one["supervisor"] for one in workers}
        assert sorted(one["limits"].get("time", 0) for one in found) == [0, 50.0]
    wait_until(lambda: listed(who, mark) == [])


def test_a_worker_behind_limits_is_one_with_them(who, mark):
    with working(who, "hako-limit", "--time=50", "hako-task", "--stream", "--jobs=2") as process:
        send(process, sleeper(mark))
        wait_until(lambda: tasks(who, mark)[1])
        (worker,) = [one for one in of(who, process) if one["limits"] == {"time": 50.0}]
        assert worker["command"] == ["hako-limit", "--time=50", "hako-task", "--stream", "--jobs=2"]
        assert worker["tasks"] == {"jobs": 2, "running": 1, "ended": 0}
        assert tasks(who, mark)[1][0]["supervisor"] != process.pid


def test_a_task_with_a_root_of_its_own_can_be_entered(who, mark):
    busybox = {"type": "bind", "src": BUSYBOX, "dest": "/bin/busybox", "ro": True}
    request = {"cmd": ["/bin/busybox", "sh", "-c", "busybox sleep 300; exit", mark], "mounts": [busybox]}
    with working(who, "hako-task", "--stream") as process:
        send(process, json.dumps({**request, "chroot": str(who.box)}) + "\n")
        wait_until(lambda: tasks(who, mark)[1])
        (task,) = tasks(who, mark)[1]
        entered = who.run("hako-enter", "--fork", str(task["pid"]), "/bin/busybox", "ls", "/")
        assert (entered.stderr, "file" in entered.stdout.split()) == ("", True)


@pytest.mark.parametrize(("times", "listed"), [(4, True), (5, False)])
def test_a_reader_in_the_way_is_waited_for(who, times, listed):
    """It may have a lock for as long as the kernel does not let it run."""
    strace = ["strace", "-D", "-o", "/dev/null", "-e", f"inject=flock:error=EAGAIN:when=1..{times}"]
    with working(who, *strace, "hako-task", "--stream") as process:
        send(process, TRUE_TASK)
        assert process.stdout.readline() == '{"status":"exited","code":0}\n'
        assert bool(of(who, process)) == listed


def keys_left(who):
    """How many session keyrings WHO may have more; those of sandboxes that are over go later. See keyrings(7)."""
    users = pathlib.Path("/proc/key-users").read_text()
    counts = re.search(rf"^ *{who.uid}: +\d+ \S+ (\d+)/(\d+) ", users, re.MULTILINE)
    return int(counts[2]) - int(counts[1]) if counts else 200  # no key yet, of those that the kernel gives


def test_a_long_command_line_is_told_as_far_as_there_is_room(who, mark):
    count = 40
    wait_until(lambda: keys_left(who) > 2 * count)  # each takes one, as the sandboxes of tests beside this one do
    with working(who, "hako-task", "--stream", f"--jobs={count}") as process:
        long = {"cmd": ["sh", "-c", "sleep 300; exit", mark, "\n" * 2000]}
        send(process, *[json.dumps(long) + "\n"] * count)
        wait_until(lambda: len(of(who, process)) > 11)
        wait_until(lambda: of(who, process)[0]["tasks"]["running"] == count)
        found = of(who, process)[1:]
        words = ["sh", "-c", "sleep 300; exit", mark]
        assert {tuple(one["command"]) for one in found} == {(*words, "\n" * (999 - len(" ".join(words))))}
        assert len(found) < count


def test_nothing_is_written_for_a_task_that_is_over_soon(who, mark, place):
    """Once in a second at most for all of them together."""
    argv = ["strace", "-e", "trace=openat,rename,renameat,renameat2,unlinkat,flock", "-o", f"{place}/trace"]
    count, began = 200, time.monotonic()
    done = who.run(*argv, "hako-task", "--stream", input=TRUE_TASK * count)
    took = time.monotonic() - began
    assert done.stdout == '{"status":"exited","code":0}\n' * count
    written = re.findall(r'^(rename\w*)\(.*"(\d+)~?"', (place / "trace").read_text(), re.MULTILINE)
    assert len(written) <= took
    assert len(re.findall(r"^flock\(.*= 0$", (place / "trace").read_text(), re.MULTILINE)) == 1 + len(written)
    assert listed(who, mark) == []


def test_a_file_that_was_to_take_the_place_of_another_is_removed(who, mark):
    make_directory(who)
    left = directory(who) / f"9999998{os.getpid()}~"
    left.write_text("supervisor")
    left.chmod(0o600)
    os.chown(left, who.uid, -1)
    assert listed(who, mark) == []
    wait_until(lambda: not left.exists())


@pytest.mark.usefixtures("mark")
def test_who_looks_misses_no_worker_while_it_writes(who):
    """The file is another each time."""
    with working(who, "hako-task", "--stream") as process:
        wait_until(lambda: of(who, process))
        file, seen = directory(who) / str(process.pid), set()
        while len(seen) < 3:
            send(process, TRUE_TASK)
            assert json.loads(process.stdout.readline())["status"] == "exited"
            assert len(of(who, process)) == 1
            seen.add(file.stat().st_ino)
        held = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")]
        assert sorted(name for name in held if name.startswith(str(file.parent))) == [str(file.parent), str(file)]


TRUE = "supervisor {pid} {start}\nchild 1\ncommand x\n"


@pytest.mark.usefixtures("mark")
@pytest.mark.parametrize(
    "text, believed",
    [
        (TRUE, True),  # a locked file is what makes a supervisor, of whoever may write it
        (TRUE.replace("{start}", "1"), False),  # another process, earlier or elsewhere
        (TRUE.replace("{pid}", "99999999"), False),
        (TRUE.replace("child 1", "child x"), False),
        (TRUE.replace("child 1\n", ""), False),
        (TRUE + "limit time inf\n", False),
        (TRUE + "limit time -1\n", False),
        (TRUE.replace("supervisor", "superviser"), False),
        ("\n" * 70000 + TRUE, False),
        ("", False),
    ],
)
def test_a_file_that_does_not_fit_is_not_believed(who, text, believed):
    start = start_of(os.getpid())
    make_directory(who)
    file = directory(who) / f"9999999{os.getpid()}"
    python = pathlib.Path(sys.executable).resolve()
    try:
        with running(who, python, "-I", "-c", FORGER, file, text.format(pid=os.getpid(), start=start)):
            found = who.run("hako-ps", "--json").stdout.splitlines()
            assert (os.getpid() in [json.loads(line)["supervisor"] for line in found]) == believed
            assert file.exists()
    finally:
        file.unlink(missing_ok=True)


def test_other_things_in_the_directory_do_no_harm(who, mark):
    make_directory(who)
    place = directory(who)
    other = place.parent / f"other-{mark}"
    other.write_text("")
    names = [f"777{number}{os.getpid()}" for number in range(3)]
    try:
        os.mkfifo(place / names[0], 0o600)
        (place / names[1]).mkdir()
        (place / names[2]).symlink_to(other)
        assert listed(who, mark) == []
        assert (other.exists(), (place / names[2]).is_symlink()) == (True, True)
    finally:
        (place / names[0]).unlink()
        (place / names[1]).rmdir()
        (place / names[2]).unlink()
        other.unlink()


WORKER = "supervisor {pid} {start}\ncommand hako-task\njobs 2\nrunning 1\nended 0\n"
TASK = "task {task} {began}\nbegan 1\nwords 7800\n"


@pytest.mark.usefixtures("mark")
@pytest.mark.parametrize(
    "text, kinds",
    [
        (WORKER + TASK, ["worker", "task"]),
        (WORKER + TASK.replace("{began}", "1"), ["worker"]),  # another process
        (WORKER + TASK.replace("{task} {began}", "{pid} {start}"), ["worker"]),  # not its child
        (WORKER + TASK.replace("began 1\n", ""), ["worker"]),
        (WORKER + TASK.replace("words 7800\n", ""), ["worker"]),
        (WORKER + TASK.replace("words 7800", "words 780"), []),
        (WORKER.replace("ended 0\n", "") + TASK, []),
        (WORKER + TASK + "limit time x\n", []),
    ],
)
def test_a_task_that_does_not_fit_is_not_believed(who, text, kinds):
    make_directory(who)
    file = directory(who) / f"9999997{os.getpid()}"
    python = pathlib.Path(sys.executable).resolve()
    child = subprocess.Popen(["sleep", "300"])
    pid, task = os.getpid(), child.pid
    try:
        filled = text.format(pid=pid, start=start_of(pid), task=task, began=start_of(task))
        with running(who, python, "-I", "-c", FORGER, file, filled):
            found = map(json.loads, who.run("hako-ps", "--json").stdout.splitlines())
            assert [one["kind"] for one in found if one["supervisor"] == os.getpid()] == kinds
    finally:
        file.unlink(missing_ok=True)
        child.kill()
        child.wait()


def start_of(pid):
    """The start time of process PID, in ticks."""
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


@pytest.mark.parametrize("what", ["open", "link", *(["another's"] if os.getuid() == 0 else [])])
def test_a_directory_that_is_not_the_users_alone_is_not_used(place, what):
    """The run goes on, and is written down elsewhere."""
    who = Who("user")
    made = place / "run"
    made.mkdir()
    victim = place / "victim"
    victim.mkdir(mode=0o700)
    if what == "link":
        (made / "hako").symlink_to(victim)
    else:
        (made / "hako").mkdir(mode=0o755 if what == "open" else 0o700)
        (made / "hako").chmod(0o777 if what == "open" else 0o700)
    for path in (made, victim, *([made / "hako"] if what == "open" else [])):
        os.chown(path, who.uid, who.uid)
    who.env["XDG_RUNTIME_DIR"] = str(made)
    with running(who, "env", "hako-limit", "--time=50", "sh", "-c", "echo; cat", place.name) as process:
        wait_until(lambda: listed(who, place.name))
        assert [one["supervisor"] for one in listed(who, place.name)] == [process.pid]
        assert list(victim.iterdir()) == []
        assert what == "link" or list((made / "hako").iterdir()) == []


def test_what_cannot_be_listed_runs_all_the_same(who, mark):
    """No byte can be written: PROG runs, --verbose says why it is not in the list, and no file is left."""
    argv = who.sandbox("/bin/sh", "-c", f"echo {mark}; exec busybox sleep 0.3", options=["--verbose"])
    assert "not listed" not in who.run(*argv).stderr
    done = who.run("prlimit", "--fsize=0", "--", *argv)
    assert (done.returncode, done.stdout) == (0, f"{mark}\n")
    assert "hako-run: not listed by hako-ps: write: File too large\n" in done.stderr
    assert listed(who, mark) == []


def test_looking_and_starting_at_once(who, mark):
    """Nobody who looks makes a run fail, and nothing is left of many."""
    code = "for i in $(seq 40); do hako-limit --time=50 true {} || exit 1; done"
    runs = [who.start("sh", "-c", code.format(mark)) for _ in range(2)]
    while any(run.poll() is None for run in runs):
        assert who.run("hako-ps").returncode == 0
    assert [run.communicate()[1] for run in runs] == ["", ""]
    assert [run.returncode for run in runs] == [0, 0]
    assert listed(who, mark) == []


def test_the_list_goes_nowhere(who):
    assert who.run("sh", "-c", "hako-ps >/dev/full").returncode == 125
    done = who.run("hako-ps", "x")
    assert (done.returncode, done.stderr) == (125, "hako-ps: too many operands: 'x' [hako-ps [options]]\n")


@pytest.mark.root
def test_nobody_in_there_holds_anything_of_it(who, mark):
    """Neither the directory nor the file: only the supervisor does."""

    def held(pid):
        return [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]

    with running(who, "hako-limit", "--time=50", *who.sandbox(*prog(mark))) as process:
        wait_until(lambda: listed(who, mark)[0]["pid"])
        (one,) = listed(who, mark)
        assert f"{directory(who)}/{process.pid}" in held(process.pid)
        children = pathlib.Path(f"/proc/{one['pid']}/task/{one['pid']}/children").read_text()
        inside = [one["pid"], *map(int, children.split())]
        assert len(inside) == 2
        assert not any(str(directory(who)) in name for pid in inside for name in held(pid))
