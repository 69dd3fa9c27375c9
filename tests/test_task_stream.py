"""hako-task, many requests: a stream, and the clients of a socket; and that warm sandboxes are like cold ones."""

import contextlib
import json
import os
import pathlib
import pty
import resource
import select
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest

from conftest import BUSYBOX, DEADLINE, wait_until
from hako import kernel

PYTHON = ["/usr/bin/python3", "-I", "-S", "-c"]
PROC = {"type": "proc", "dest": "/proc"}
TMP = {"type": "tmpfs", "dest": "/tmp"}
DEV = {"type": "dev", "dest": "/dev"}
ROOTFS = [path for path in ("/usr", "/bin", "/lib", "/lib64") if os.path.exists(path)]
MANY = int(os.environ.get("HAKO_REQUESTS", "1500"))  # in a queue; 10000 where there is time
PEER = "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\nprint(s.recv(9))"


def lines(*requests):
    """REQUESTS, dictionaries or texts, as lines."""
    return "".join(f"{request if isinstance(request, str) else json.dumps(request)}\n" for request in requests)


def stream(who, *requests, options=(), **popen):
    """The responses to REQUESTS, by hako-task --stream with OPTIONS, which ends well."""
    done = who.run("hako-task", "--stream", *options, input=lines(*requests), **popen)
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def echo(id, **keys):
    """A request to say ID."""
    return {"cmd": ["echo", str(id)], "outputs": {}, "id": id, **keys}


def echoed(id):
    """The response to that."""
    return {"status": "exited", "code": 0, "id": id, "stdout": f"{id}\n", "stderr": ""}


def alive(mark):
    """Whether a process has MARK on its command line, zombies aside."""
    return subprocess.run(["pgrep", "-f", mark], check=False, capture_output=True).returncode == 0


def new_mark():
    """A word for a command line, that of no other process."""
    return f"mark-{os.urandom(8).hex()}"


def sleeper(mark, id=0, **keys):
    """A request to sleep, stubbornly, with MARK on the command line; it says so on the stderr of hako-task."""
    code = f"trap '' HUP INT QUIT TERM; (sleep 300; : {mark}) & echo up; wait; sleep 300"
    return {"cmd": ["sh", "-c", code, mark], "pipes": [{"dest": "/dev/stderr", "stdout": True}], "id": id, **keys}


def process_ids(pid):
    """The processes that descend from PID, itself among them."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            words = pathlib.Path(f"/proc/{one}/task/{one}/children").read_text().split()
            found += [int(word) for word in words]
    return found


def resident(pid):
    """Bytes that the process PID has in memory."""
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def started(who):
    """Start hako-task with OPTIONS; what is still there in the end is killed."""
    made = []

    def start(*options, **popen):
        made.append(who.start("hako-task", *options, **{"stdin": subprocess.PIPE, **popen}))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.wait()
        for file in (process.stdin, process.stdout, process.stderr):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()


def send(process, *requests):
    """Send REQUESTS to PROCESS."""
    process.stdin.write(lines(*requests))
    process.stdin.flush()


class Gate:
    """A request that says "up", waits until somebody opens PLACE/open, and says "done"."""

    def __init__(self, place):
        self.path = place / "open"
        code = "echo up; until [ -e /mnt/open ]; do sleep 0.1; done; echo done"
        mounts = [{"type": "bind", "src": str(place), "dest": "/mnt"}]
        self.request = {"cmd": ["sh", "-c", code], "mounts": mounts}

    def open(self):
        """Let it go on."""
        self.path.touch()


@pytest.fixture
def gate(place):
    """A Gate."""
    return Gate(place)


# A stream


def test_responses_come_as_tasks_end(started):
    """And before the next request is there."""
    process = started("--stream", "--jobs=2")
    for number in range(3):
        send(process, echo(number))
        assert json.loads(process.stdout.readline()) == echoed(number)
    send(process, {"cmd": ["sleep", "1"], "id": "slow"}, {"cmd": ["true"], "id": "fast"})
    assert [json.loads(process.stdout.readline())["id"] for _ in range(2)] == ["fast", "slow"]
    process.stdin.close()
    assert (process.wait(DEADLINE), process.stderr.read()) == (0, "")


def test_in_the_order_of_the_requests(who):
    slow = {"cmd": ["sleep", "0.5"], "id": "slow"}
    requests = [slow, echo(1), "garbage", echo(2), {"cmd": ["nosuch"], "id": 3}, echo(4)]
    responses = stream(who, *requests, options=["--ordered", "--jobs=4"])
    assert [response.get("id") for response in responses] == ["slow", 1, None, 2, 3, 4]
    assert responses[2] == {"status": "requestInvalid"}


@pytest.mark.parametrize("jobs", [1, 3])
def test_jobs(who, place, jobs):
    """So many run at once, and no more."""
    code = "import os, time\nmine = '/mnt/' + os.urandom(8).hex()\nopen(mine, 'w')\nend = time.time() + 0.5; n = 0\n"
    code += "while time.time() < end: n = max(n, len(os.listdir('/mnt'))); time.sleep(0.01)\n"
    code += "os.unlink(mine); print(n)"
    os.chown(place, who.uid, -1)
    (place / "shared").mkdir()
    os.chown(place / "shared", who.uid, -1)
    mounts = [{"type": "bind", "src": str(place / "shared"), "dest": "/mnt"}]
    requests = [{"cmd": [*PYTHON, code], "outputs": {}, "mounts": mounts} for _ in range(6)]
    found = [int(response["stdout"]) for response in stream(who, *requests, options=[f"--jobs={jobs}"])]
    assert max(found) == jobs


@pytest.mark.parametrize("value", ["0", "1001", "", "-1", "1.5", "x"])
def test_jobs_that_are_none(who, value):
    done = who.run("hako-task", "--stream", f"--jobs={value}", input="")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("hako-task: --jobs: not ")


@pytest.mark.parametrize(
    "options, line",
    [
        (["--ordered"], "--ordered: needs --stream"),
        (["--progress"], "--progress: needs --stream"),
        (["--jobs=2"], "--jobs: needs --stream or --listen"),
        (["--listen=x", "--stream"], "--stream and --listen: one of them"),
        (["--listen="], "--listen: not a socket: ''"),
        (
            [f"--listen={'x' * 108}"],
            f"--listen: longer than the 107 bytes that a socket's name may have: {'x' * 108}",
        ),
        (["--listen=systemd"], "--listen=systemd: no service manager has passed on one socket"),
        (["--listen=/nosuch/socket"], "bind /nosuch/socket: No such file or directory"),
    ],
)
def test_wrong_usage(who, options, line):
    done = who.run("hako-task", *options, input="")
    assert (done.returncode, done.stdout, done.stderr) == (125, "", f"hako-task: {line}\n")


def test_bad_lines_are_answered_and_the_stream_goes_on(who):
    bad = ["garbage", "{", "[]", '{"cmd":[]}', "\x00\x01", '{"cmd":["true"],"id":7,"zzz":1}', "[" * 100000, "nan"]
    requests = [request for pair in zip(bad, map(echo, range(len(bad))), strict=True) for request in pair]
    responses = stream(who, *requests, options=["--ordered"])
    assert [response["status"] for response in responses[::2]] == ["requestInvalid"] * len(bad)
    assert responses[1::2] == [echoed(number) for number in range(len(bad))]
    assert [response.get("description") for response in responses[::2]] == [
        *(
            None,
            None,
            "Expecting an object",
            "'cmd' missing or empty",
            None,
            "zzz: Unknown key",
            "Nested too deep",
            None,
        )
    ]
    assert responses[10]["id"] == 7


def test_bytes_that_are_no_text(who):
    data = b"\xff\xfe\n" + os.urandom(5000).replace(b"\n", b"") + b"\n\r\n \n" + lines(echo(1)).encode()
    done = who.run("hako-task", "--stream", input=data, text=False)
    assert [json.loads(line) for line in done.stdout.splitlines()][:2] == [{"status": "requestInvalid"}] * 2
    assert json.loads(done.stdout.splitlines()[-1]) == echoed(1)
    assert len(done.stdout.splitlines()) == 3


def test_the_last_line_may_have_no_end(who):
    done = who.run("hako-task", "--stream", input=lines(echo(1)).rstrip("\n"))
    assert json.loads(done.stdout) == echoed(1)


def test_nothing(who):
    assert stream(who) == []
    assert stream(who, "", " ", "\t") == []


def test_a_line_of_64_mb(who):
    text = "x" * (64 << 20)
    requests = [{"cmd": ["wc", "-c"], "stdin": text, "outputs": {}, "id": 1}, f'["{text}"]', echo(2)]
    responses = stream(who, *requests, options=["--ordered"])
    assert responses == [
        {"status": "exited", "code": 0, "id": 1, "stdout": f"{64 << 20}\n", "stderr": ""},
        {"status": "requestInvalid", "description": "Expecting an object"},
        echoed(2),
    ]


def test_different_sandboxes_in_one_stream(who):
    """More kinds than are kept, in turn; those that share nothing among them."""
    kinds = [{"hostName": f"host-{number}"} for number in range(20)] + [{"capabilities": ["all"], "hostName": "all"}]
    requests = [{"cmd": ["hostname"], "outputs": {}, **kind} for kind in kinds * 2]
    found = [response["stdout"].strip() for response in stream(who, *requests, options=["--ordered"])]
    assert found == [kind["hostName"] for kind in kinds * 2]


def test_sandboxes_that_cannot_be_made_tell_why(who, place):
    """Each its own reason, and nobody waits for another's."""
    names = [str(place / str(number)) for number in range(60)]
    requests = [{"cmd": ["true"], "chroot": name, "id": name, "timeLimit": 30} for name in names]
    responses = stream(who, *requests, options=["--jobs=2"])
    assert {response["id"]: response["description"] for response in responses} == {
        name: f"chroot('{name}'): No such file or directory" for name in names
    }


def test_many(who):
    """Every one is answered, once; and neither memory nor descriptors nor processes grow."""
    process = who.start("hako-task", "--stream", stdin=subprocess.PIPE)
    figures = []

    def write():
        for number in range(MANY):
            process.stdin.write(lines({"cmd": ["true"], "id": number}))
        process.stdin.close()

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    for line in process.stdout:
        response = json.loads(line)
        assert (response["status"], response["code"]) == ("exited", 0)
        seen.append(response["id"])
        if len(seen) in (MANY // 3, MANY - 20):
            files = len(os.listdir(f"/proc/{process.pid}/fd"))
            figures.append((resident(process.pid), files, len(process_ids(process.pid))))
    writer.join()
    assert process.wait(DEADLINE) == 0
    assert sorted(seen) == list(range(MANY))
    (memory, files, processes), (memory_then, files_then, processes_then) = figures
    assert memory_then < memory * 1.2 + (2 << 20)
    assert (files_then < files + 20, processes_then < processes + 10) == (True, True)
    process.stdout.close()
    process.stderr.close()


def test_a_reader_that_does_not_read(started):
    """Nothing is lost, memory is bounded, and whoever writes requests waits."""
    process = started("--stream", "--jobs=2")
    count, size = 150, 300000
    request = {"cmd": ["head", "-c", str(size), "/dev/zero"], "outputs": {"encoding": "base64"}}
    written = []

    def write():
        for number in range(count):
            process.stdin.write(lines({**request, "id": number}))
            process.stdin.flush()
            written.append(number)
        process.stdin.write(" " * (1 << 20))
        process.stdin.close()
        written.append(None)

    writer = threading.Thread(target=write)
    writer.start()
    wait_until(lambda: is_at_rest(process.pid))
    assert None not in written
    assert resident(process.pid) < 80 << 20
    responses = [json.loads(line) for line in process.stdout]
    writer.join()
    assert sorted(response["id"] for response in responses) == list(range(count))
    assert {len(response["stdout"]) for response in responses} == {size * 4 // 3}
    assert process.wait(DEADLINE) == 0


def is_at_rest(pid):
    """Whether the process PID does nothing for a while."""

    def used():
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]

    before, end = used(), time.monotonic() + 1
    while time.monotonic() < end:
        select.select([], [], [], 0.1)
    return used() == before


def test_the_order_is_not_kept_at_the_price_of_memory(started, gate):
    """The first is slow, and holds the answers of the others: after some MiB they wait."""
    process = started("--stream", "--ordered", "--jobs=2")
    request = {"cmd": ["head", "-c", "300000", "/dev/zero"], "outputs": {"encoding": "base64"}}
    feeder = threading.Thread(target=feed, args=(process, [{**gate.request, "id": -1}] + [request] * 100))
    feeder.start()
    wait_until(lambda: resident(process.pid) > 18 << 20 and is_at_rest(process.pid))
    assert resident(process.pid) < 80 << 20
    gate.open()
    assert json.loads(process.stdout.readline())["id"] == -1
    assert len(process.stdout.readlines()) == 100
    feeder.join()
    assert process.wait(DEADLINE) == 0


def feed(process, requests):
    """Send REQUESTS to PROCESS, and no more."""
    send(process, *requests)
    process.stdin.close()


def test_a_reader_that_goes(started):
    """It is seen while nothing is written; all tasks are ended."""
    mark = new_mark()
    process = started("--stream", "--jobs=2")
    send(process, sleeper(mark, 1), sleeper(mark, 2), sleeper(mark, 3))
    assert process.stderr.readline() == "up\n"
    process.stdout.close()
    assert process.wait(DEADLINE) == 125
    assert process.stderr.read().splitlines()[-1] == "hako-task: write stdout: nobody reads"
    wait_until(lambda: not alive(mark))


def test_output_to_a_file_and_to_a_socket(who, place):
    for kind in ("file", "socket"):
        ours, theirs = socket.socketpair()
        with open(place / "out", "wb") as file:
            done = who.run(
                "hako-task",
                "--stream",
                input=lines(*map(echo, range(50))),
                capture_output=False,
                stdout=file if kind == "file" else theirs,
            )
        theirs.close()
        assert done.returncode == 0
        data = (place / "out").read_bytes() if kind == "file" else ours.makefile("rb").read()
        ours.close()
        assert len(data.splitlines()) == 50


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_a_task_was_given_is_no_limit_for_the_next(who, delegated, jobs):
    """A cgroup is some descriptors more, which the sandbox of the task before has received none of."""
    group = {"cgroupConfig": {"pids.max": "50"}}
    requests = [echo(n, **(group if n % 2 else {})) for n in range(20)]
    answered = stream(who, *requests, options=[f"--jobs={jobs}"])
    assert sorted(answered, key=lambda answer: answer["id"]) == [echoed(n) for n in range(20)]
    delegated.wait_until_empty()


# How a stream ends


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL])
def test_a_signal_ends_all(delegated, started, number):
    """No task, no cgroup, no zygote, no sandbox made ahead is left."""
    mark = new_mark()
    process = started("--stream", "--jobs=3")
    send(process, *(sleeper(mark, n, cgroupConfig={"pids.max": "20"}) for n in range(3)), *map(echo, range(20)))
    for _ in range(3):
        assert process.stderr.readline() == "up\n"
    ids = process_ids(process.pid)
    assert len(ids) > 8
    process.send_signal(number)
    assert process.wait(DEADLINE) == (-number if number == signal.SIGKILL else 128 + number)
    wait_until(lambda: not any(is_running(pid) for pid in ids[1:]))
    assert not alive(mark)
    delegated.wait_until_empty()


def is_running(pid):
    """Whether PID is one of those whose names ours have, and no zombie."""
    try:
        name, _, rest = pathlib.Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    except OSError:
        return False
    return name in ("hako-task", "hako-init", "sh", "sleep") and rest.split()[0] not in "ZX"


def test_the_maker_of_sandboxes_is_killed(started, gate):
    """What runs goes on, and the others run all the same."""
    process = started("--stream", "--jobs=2")
    send(process, {**gate.request, "pipes": [{"dest": "/dev/stderr", "stdout": True}], "id": -1})
    assert process.stderr.readline() == "up\n"
    for _ in range(3):
        makers = [pid for pid in process_ids(process.pid)[1:] if is_maker(pid)]
        assert len(makers) == 1
        send(process, *map(echo, range(10)))
        os.kill(makers[0], signal.SIGKILL)
        send(process, *map(echo, range(10, 20)))
        found = [json.loads(process.stdout.readline()) for _ in range(20)]
        assert sorted(found, key=lambda response: response["id"]) == [echoed(number) for number in range(20)]
    gate.open()
    assert process.stderr.readline() == "done\n"
    assert json.loads(process.stdout.readline()) == {"status": "exited", "code": 0, "id": -1}
    process.stdin.close()
    assert process.wait(DEADLINE) == 0


def is_maker(pid):
    """Whether PID is a process that makes sandboxes: it has a root of its own, and no pid namespace."""

    def namespace(kind, pid):
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino

    try:
        return namespace("pid", pid) == namespace("pid", "self") and namespace("mnt", pid) != namespace("mnt", "self")
    except (PermissionError, FileNotFoundError):
        return False  # an init, which shows an ordinary user nothing, or one that has ended


def test_sandboxes_made_ahead_are_killed(started):
    """Somebody kills the inits that wait: the next task may be told so, and no other."""
    process = started("--stream", "--jobs=1")
    send(process, echo(0))
    assert json.loads(process.stdout.readline()) == echoed(0)

    def made_ahead():
        return [pid for pid in process_ids(process.pid)[1:] if not is_maker(pid)]

    wait_until(made_ahead)
    waiting = made_ahead()
    for pid in waiting:
        os.kill(pid, signal.SIGKILL)
    send(process, *map(echo, range(1, 6)))
    found = [json.loads(process.stdout.readline()) for _ in range(5)]
    good = [response for response in found if response == echoed(response["id"])]
    assert len(good) >= 5 - len(waiting)
    assert {response["status"] for response in found} <= {"exited", "killed", "internalError"}


@pytest.mark.parametrize("keys", [{}, {"mounts": [TMP, TMP]}], ids=["warm", "cold"])
@pytest.mark.parametrize("limit", [*range(8, 16), 900])
def test_with_few_descriptors(who, limit, keys):
    """Each request is told what is short, and what was opened for it is closed again."""
    process = who.start("prlimit", f"--nofile={limit}", "--", "hako-task", "--stream", stdin=subprocess.PIPE)
    counts = []
    for _ in range(3):
        send(process, echo(0, **keys))
        told = json.loads(process.stdout.readline())
        assert told["status"] == "internalError"
        assert "Too many open files" in told["description"] or "[RLIMIT_NOFILE must be" in told["description"]
        counts.append(len(os.listdir(f"/proc/{process.pid}/fd")))
    assert counts[1:] == counts[:1] * 2
    assert process.communicate(timeout=DEADLINE) == ("", "")


def test_progress_is_for_a_terminal(who):
    """Elsewhere it says nothing."""
    done = who.run("hako-task", "--stream", "--progress", input=lines(*map(echo, range(3))))
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 3)
    ours, theirs = pty.openpty()
    done = who.run(
        "hako-task",
        "--stream",
        "--progress",
        input=lines(*map(echo, range(3))),
        capture_output=False,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while piece := os.read(ours, 1000):
            said += piece
    os.close(ours)
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 3)
    assert b"\r\x1b[K3 tasks, " in said
    assert said.endswith(b" a second\r\n")


# A socket


class Caller:
    """A connection to the server at PATH."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("r")

    def send(self, *requests):
        """Send REQUESTS."""
        self.socket.sendall(lines(*requests).encode())

    def end(self):
        """Send no more."""
        self.socket.shutdown(socket.SHUT_WR)

    def responses(self):
        """All responses, to the end."""
        return [json.loads(line) for line in self.file]

    def close(self):
        """Go away."""
        self.file.close()
        self.socket.close()


@pytest.fixture
def server(who, place, started):
    """Start a server, with OPTIONS; return its process. It listens at PLACE/socket."""

    def start(*options):
        os.chown(place, who.uid, -1)
        process = started(f"--listen={place}/socket", *options)
        wait_until((place / "socket").exists)
        wait_until(lambda: can_connect(place / "socket"))
        return process

    return start


def can_connect(path):
    """Whether somebody listens at PATH."""
    with socket.socket(socket.AF_UNIX) as one:
        return one.connect_ex(str(path)) == 0


def test_clients(server, place):
    """Many at once: each has its own responses."""
    process = server("--jobs=3")
    assert (place / "socket").stat().st_mode & 0o7777 == 0o600
    callers = [Caller(place / "socket") for _ in range(30)]
    for number, caller in enumerate(callers):
        caller.send(*(echo(f"{number}-{index}") for index in range(4)), "garbage")
        caller.end()
    for number, caller in enumerate(callers):
        found = caller.responses()
        assert {"status": "requestInvalid"} in found
        found.remove({"status": "requestInvalid"})
        found.sort(key=lambda response: response["id"])
        assert found == [echoed(f"{number}-{index}") for index in range(4)]
        caller.close()
    files = len(os.listdir(f"/proc/{process.pid}/fd"))
    caller = Caller(place / "socket")
    caller.send(echo(1))
    assert json.loads(caller.file.readline()) == echoed(1)
    caller.close()
    wait_until(lambda: len(os.listdir(f"/proc/{process.pid}/fd")) <= files + 5)
    process.terminate()
    assert (process.wait(DEADLINE), (place / "socket").exists()) == (128 + signal.SIGTERM, False)
    assert process.stderr.read() == ""


def test_a_client_that_goes_takes_its_tasks_along(server, place):
    """And nobody else's; also those that wait for their turn."""
    process = server("--jobs=2")
    marks = [new_mark(), new_mark()]
    going, staying = Caller(place / "socket"), Caller(place / "socket")
    staying.send(sleeper(marks[1]))
    assert process.stderr.readline() == "up\n"
    going.send(*(sleeper(marks[0], number) for number in range(50)))
    assert process.stderr.readline() == "up\n"
    assert (alive(marks[0]), alive(marks[1])) == (True, True)
    going.close()
    wait_until(lambda: not alive(marks[0]))
    other = Caller(place / "socket")
    other.send(echo(5))
    assert json.loads(other.file.readline()) == echoed(5)
    assert alive(marks[1])
    other.close()
    staying.close()
    wait_until(lambda: not alive(marks[1]))


def test_a_client_that_does_not_read_holds_up_nobody(server, place):
    """Not even the end."""
    process = server("--jobs=2")
    lazy, other = Caller(place / "socket"), Caller(place / "socket")
    lazy.socket.setblocking(False)
    data = lines({"cmd": ["head", "-c", "500000", "/dev/zero"], "outputs": {}}).encode() * 30
    with contextlib.suppress(BlockingIOError):
        while data:
            data = data[lazy.socket.send(data) :]
    for number in range(30):
        other.send(echo(number))
        assert json.loads(other.file.readline()) == echoed(number)
    assert resident(process.pid) < 100 << 20
    process.terminate()
    assert process.wait(DEADLINE) == 128 + signal.SIGTERM
    lazy.close()
    other.close()


def test_garbage_from_a_client(server, place):
    server()
    for data in (b"\n" * 1000, os.urandom(100000), b'{"cmd":' * 1000, b"\0" * 1000 + b"\n"):
        caller = Caller(place / "socket")
        caller.socket.sendall(data)
        caller.end()
        assert {response["status"] for response in caller.responses()} <= {"requestInvalid"}
        caller.close()
    caller = Caller(place / "socket")
    caller.send(echo(1))
    assert json.loads(caller.file.readline()) == echoed(1)
    caller.close()


@pytest.mark.root
def test_others_are_refused(who, place, started):
    """Those of another uid are, whatever the mode of the socket; root is not."""
    ordinary = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    process = started(f"--listen={place}/socket")
    wait_until(lambda: can_connect(place / "socket"))
    request = [
        "/usr/bin/python3",
        "-Ic",
        PEER.replace("s.recv", "s.sendall(b'[]\\n') or s.recv"),
        str(place / "socket"),
    ]
    assert "Permission denied" in who.run(*ordinary, *request).stderr
    os.chmod(place / "socket", 0o666)
    refused = who.run(*ordinary, *request)
    assert refused.stdout == "b''\n" or "Broken pipe" in refused.stderr or "reset" in refused.stderr
    assert who.run(*request).stdout == "b'{\"status\"'\n"
    os.chown(place, 65534, -1)
    other = subprocess.Popen([*ordinary, "hako-task", f"--listen={place}/other"], env=who.env)
    wait_until(lambda: can_connect(place / "other"))
    assert who.run(*request[:-1], str(place / "other")).stdout == "b'{\"status\"'\n"
    assert who.run(*ordinary, *request[:-1], str(place / "other")).stdout == "b'{\"status\"'\n"
    other.terminate()
    assert other.wait(DEADLINE) == 128 + signal.SIGTERM
    del process


MOUNT = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x10000000 | 0x20000 | 0x2000000): print('unshare')
fs = libc.syscall(430, b'cgroup2', 0)
if libc.syscall(431, fs, 6, None, None, 0): print('fsconfig')
place = libc.syscall(432, fs, 0, 0)
with open(os.open('cgroup.procs', os.O_RDONLY, dir_fd=place)) as file: print(sorted(map(int, file)) == [os.getpid()])
"""


@pytest.mark.parametrize("options", [(), ("--stream",)], ids=["one", "stream"])
def test_a_cgroup_that_prog_owns_holds_nobody_else(who, delegated, options):
    """It can be mounted in a user namespace, and all in there be killed."""
    request = {"cmd": [*PYTHON, MOUNT], "outputs": {}}
    for keys in ({}, {"cgroupConfig": {}}, {"capabilities": ["all"]}):
        response = json.loads(who.run("hako-task", *options, input=json.dumps({**request, **keys})).stdout)
        assert response == {"status": "exited", "code": 0, "stdout": "True\n", "stderr": ""}
    delegated.wait_until_empty()


ASK = """
import socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
try:
    client.sendall(b'{"cmd": ["echo", "free"], "outputs": {}}\\n')
    print(client.recv(200))
except OSError:
    print(b"")
"""


@pytest.mark.parametrize("keys", [{"rootfs": ROOTFS}, {}], ids=["rootfs", "host"])
def test_who_is_in_a_sandbox_has_no_say(who, server, place, keys):
    """Though it has the uid, and sees the socket."""
    place.chmod(0o755)
    server()
    ask = [*PYTHON, ASK, str(place / "socket")]
    assert "free" in who.run(*ask).stdout
    caller = Caller(place / "socket")
    keys = {"rootfs": [*keys["rootfs"], str(place)]} if keys else {}
    caller.send({"cmd": ask, "outputs": {}, **keys})
    caller.end()
    assert caller.responses() == [{"status": "exited", "code": 0, "stdout": "b''\n", "stderr": ""}]
    caller.close()


def test_as_many_clients_as_there_are_descriptors(who, place, started):
    """One too many is sent away, and the others go on."""
    os.chown(place, who.uid, -1)
    for most in (1200, 1201):
        path = place / str(most)
        process = started(f"--listen={path}", preexec_fn=lambda most=most: lower_descriptors(most))
        wait_until(path.exists)
        wait_until(lambda path=path: can_connect(path))
        first, rest = Caller(path), []
        with contextlib.suppress(BlockingIOError):  # it takes no more and sends none away
            while len(rest) < most:
                rest.append(socket.socket(socket.AF_UNIX))
                rest[-1].setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 1, 0))
                rest[-1].connect(str(path))
        assert len(rest) > most // 2 - 100
        for caller in rest:
            caller.close()
        wait_until(lambda path=path: answers(path))
        first.send(echo(1))
        first.end()
        assert first.responses() == [echoed(1)]
        first.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 128 + signal.SIGTERM


def answers(path):
    """Whether the server at PATH runs what it is asked for."""
    try:
        caller = Caller(path)
    except OSError:
        return False
    with contextlib.closing(caller), contextlib.suppress(ConnectionError):
        caller.send(echo(0))
        caller.end()
        return caller.responses() == [echoed(0)]
    return False


def lower_descriptors(most):
    """Have this process open MOST descriptors and no more."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def test_a_socket_that_is_there_is_not_taken(who, server, place):
    process = server()
    done = who.run("hako-task", f"--listen={place}/socket", input="")
    assert (done.returncode, done.stderr) == (125, f"hako-task: bind {place}/socket: Address already in use\n")
    assert can_connect(place / "socket")
    os.rename(place / "socket", place / "mine")
    (place / "socket").write_text("somebody else's")
    process.terminate()
    process.wait(DEADLINE)
    assert (place / "socket").read_text() == "somebody else's"


def test_activation_by_systemd(who, place):
    """As its service manager does it: the socket is descriptor 3, and the environment says whose it is."""

    def activated(kind, *, listening=True):
        with socket.socket(*kind) as one:
            if kind[0] == socket.AF_UNIX:
                one.bind(str(place / f"socket{os.urandom(4).hex()}"))
            else:
                one.bind(("127.0.0.1", 0))
            if listening:
                one.listen()
            code = "import os, sys\nos.dup2(int(sys.argv[1]), 3)\n"
            code += "os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')\n"
            code += "os.execvp('hako-task', ['hako-task', '--listen=systemd'])"
            words = [*who.prefix, "/usr/bin/python3", "-Ic", code, str(one.fileno())]
            process = subprocess.Popen(words, env=who.env, pass_fds=[one.fileno()], stderr=subprocess.PIPE, text=True)
            return process, one.getsockname()

    process, name = activated((socket.AF_UNIX, socket.SOCK_STREAM))
    os.chmod(name, 0o600)
    caller = Caller(name)
    caller.send(echo(1), {"cmd": ["ls", "/proc/self/fd"], "mounts": [PROC], "outputs": {}, "id": 2})
    caller.end()
    found = sorted(caller.responses(), key=lambda response: response["id"])
    assert (found[0], found[1]["stdout"]) == (echoed(1), "0\n1\n2\n3\n")
    caller.close()
    process.terminate()
    assert (process.wait(DEADLINE), os.path.exists(name)) == (128 + signal.SIGTERM, True)
    process.stderr.close()
    for kind, listening in (
        ((socket.AF_INET, socket.SOCK_STREAM), True),
        ((socket.AF_UNIX, socket.SOCK_STREAM), False),
    ):
        process, _ = activated(kind, listening=listening)
        assert process.stderr.read() == "hako-task: --listen=systemd: not a Unix stream socket that listens\n"
        assert process.wait(DEADLINE) == 125
        process.stderr.close()


# Warm sandboxes are like cold ones

VIEW = """
import os, re, signal, socket, sys
text = open('/proc/self/status').read()
keys = 'Uid Gid Groups NoNewPrivs Seccomp Seccomp_filters NSpid NSsid Umask TracerPid Threads'.split()
keys += 'CapInh CapPrm CapEff CapBnd CapAmb SigBlk SigIgn SigCgt SigPnd ShdPnd'.split()
for key in keys: print(re.search(f'^{key}:.*', text, re.M)[0])
print(sorted(os.listdir('/proc/self/fd')), [os.readlink(f'/proc/self/fd/{fd}').split(':')[0] for fd in range(3)])
print(os.environ, sys.argv, os.getcwd(), os.getpid(), os.getppid(), os.getpgid(0), os.getsid(0))
shown = {}
for line in open('/proc/self/mountinfo'): # what is covered is not seen
    left, right = line.split(' - ')
    fields = left.split()
    try: seen = os.stat(fields[4]).st_dev
    except OSError: continue
    if seen == os.makedev(*map(int, fields[2].split(':'))):
        shown[fields[4]] = fields[3], fields[5:], right.split()[0], right.split()[2].split(',')[1:]
for place in sorted(shown): print(place, shown[place])
for name in ('uid_map', 'gid_map'): print(name, open('/proc/self/' + name).read().split()[::2])
for name in ('oom_score_adj', 'personality', 'limits', 'cgroup'):
    print(name, open('/proc/self/' + name).read())
for name in ('/proc/kcore', '/proc/keys', '/proc/timer_list', '/proc/sys/kernel/core_pattern', '/proc/sysrq-trigger'):
    for flags in (os.O_RDONLY, os.O_WRONLY):
        try: data = os.read(os.open(name, flags), 5) if flags == 0 else os.open(name, flags) and b'written'
        except OSError as err: data = 'denied' if err.errno in (1, 13, 30) else err.errno
        print(name, flags, data)
print(open('/proc/1/comm').read(), sorted(name for name in os.listdir('/proc') if name.isdigit()))
print(sorted(os.listdir('/')), sorted(os.listdir('/dev')))
print([signal.getsignal(n) for n in range(1, 65) if n not in (32, 33)])
print(os.uname().nodename, socket.if_nameindex(), os.sched_getaffinity(0), os.getpriority(0, 0))
print(os.stat('/').st_mode, os.statvfs('/').f_flag, os.ttyname(0) if os.isatty(0) else None)
"""
KINDS = {
    "of the host": {"mounts": [PROC]},
    "rootfs": {"rootfs": ROOTFS, "mounts": [PROC, DEV, TMP]},
    "ids": {"rootfs": ROOTFS, "mounts": [PROC, DEV], "uid": 7, "gid": 8},
    "capabilities": {"rootfs": ROOTFS, "mounts": [PROC, DEV], "capabilities": ["net_raw", "sys_chroot"]},
    "policy": {
        "rootfs": ROOTFS,
        "mounts": [PROC, DEV],
        "seccompPolicy": "POLICY a { KILL { mkdir } } USE a DEFAULT ALLOW",
    },
    "limits": {"rootfs": ROOTFS, "mounts": [PROC, DEV], "limits": {"nofile": 50, "core": 0}, "vaRandomize": False},
    "landlock": {"rootfs": ROOTFS, "mounts": [PROC, DEV], "landlock": {"rwx": ["/"], "scope": ["signal"]}},
    "network": {"rootfs": ROOTFS, "mounts": [PROC, DEV], "network": "host", "hostName": "x", "domainName": "y"},
    "tmpfs": {
        "rootfs": ROOTFS,
        "mounts": [PROC, DEV, {**TMP, "options": "size=1m,mode=0700"}, {"type": "tmpfs", "dest": "/a/b"}],
    },
    "read-only": {"rootfs": ROOTFS, "mounts": [{**PROC, "ro": True}, DEV, {**TMP, "ro": True}]},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_the_view_from_inside_is_the_same(who, kind):
    """By one request, whose sandbox is built for it alone, and in a stream, where it was made ahead.

    But for the ids in the maps, which are those of one more user namespace, and setgroups, denied in there.
    """
    request = {"cmd": [*PYTHON, VIEW], "env": ["A=1", "B"], "outputs": {}, "stdin": "text", **kind}
    cold = who.run("hako-task", input=json.dumps(request))
    cold = json.loads(cold.stdout)
    assert (cold["status"], cold["code"], cold["stderr"]) == ("exited", 0, "")
    warm = stream(who, *[request] * 3, options=["--jobs=1"])
    for response in warm:
        assert response["stderr"] == ""
        assert response["stdout"].splitlines() == cold["stdout"].splitlines()


LEAVE = """
import ctypes, os, socket, subprocess
libc = ctypes.CDLL(None, use_errno=True)
print(libc.shmget(0x1234, 4096, 0o1666), libc.semget(0x1234, 1, 0o1666), libc.msgget(0x1234, 0o1666))
s = socket.socket(socket.AF_UNIX); s.bind('\\0left')
for place in ('/tmp', '/dev/shm'): print(os.listdir(place)); open(place + '/left', 'w').write('left')
print(open('/proc/sysvipc/shm').read().count('\\n') - 1)
for ring in (-3, -4): # @s, @u
    print(libc.syscall(250, 10, ring, b'user', b'left', 0) >= 0)
    libc.syscall(248, b'user', b'left', b'data', 4, ring)
print(os.uname().nodename)
try: libc.sethostname(b'changed', 7)
finally: print(os.uname().nodename)
if not os.fork(): os.setsid(); os.execvp('sleep', ['sleep', '300'])
print(sorted(name for name in os.listdir('/proc') if name.isdigit()), os.getpid())
"""


def test_nothing_of_a_task_reaches_the_next(who):
    """tmpfs, shared memory, SysV IPC, abstract sockets, keyrings, names, processes: each finds what the first found."""
    kind = {"rootfs": ROOTFS, "mounts": [PROC, DEV, TMP], "capabilities": ["chown"]}
    responses = stream(who, *[{"cmd": [*PYTHON, LEAVE], "outputs": {}, **kind}] * 4, options=["--jobs=1"])
    for response in responses:
        assert (response["status"], response["code"], response["stderr"]) == ("exited", 0, "")
    first = responses[0]["stdout"].splitlines()
    assert first[1:3] == ["[]", "[]"]
    assert first[4] == "False"
    assert {response["stdout"] for response in responses} == {responses[0]["stdout"]}


@pytest.mark.parametrize("kind", ["bind", "file", "chroot", "rootfs"])
def test_what_is_replaced_on_the_host_is_not_seen_any_more(place, kind, started):
    """A path is what it is when the task begins: a grader that makes its directory anew has the new one inside."""
    place.chmod(0o755)

    def make(number):
        work = place / "work"
        if work.exists():
            work.rename(place / f"old-{number}")
        work.mkdir()
        work.chmod(0o755)
        (work / "said").write_text(f"{number}\n")
        for name in ("bin", "bin/busybox") if kind == "chroot" else ():
            (work / name).mkdir() if name == "bin" else (work / name).touch()

    work, busybox = str(place / "work"), {"type": "bind", "src": BUSYBOX, "dest": "/bin/busybox"}
    bind = {"type": "bind", "src": work, "dest": "/mnt"}
    file = {"type": "bind", "src": f"{work}/said", "dest": "/said"}
    said, keys = {
        "bind": ("/mnt/said", {"mounts": [bind, busybox], "rootfs": ["/usr"]}),
        "file": ("/said", {"mounts": [file, busybox], "rootfs": ["/usr"]}),
        "chroot": ("/said", {"mounts": [busybox], "chroot": work}),
        "rootfs": (f"{work}/said", {"mounts": [busybox], "rootfs": ["/usr", work]}),
    }[kind]
    process = started("--stream", "--jobs=2")
    for number in range(6):
        make(number)
        for _ in range(2):
            send(process, {"cmd": ["/bin/busybox", "cat", said], "outputs": {}, **keys})
            response = json.loads(process.stdout.readline())
            assert response == {"status": "exited", "code": 0, "stdout": f"{number}\n", "stderr": ""}
    process.stdin.close()
    assert process.wait(DEADLINE) == 0


def test_the_caller_s_proc_does_not_come_out_from_below(who, place):
    """PROG renames what is above the mount point of its proc: what was mounted there goes along, all of it."""
    writable = [place / name for name in ("root", "root/a", "root/a/proc", "root/bin")]
    for path in writable:
        path.mkdir()
        os.chown(path, who.uid, -1)
    (place / "root/bin/busybox").touch()
    busybox = {"type": "bind", "src": BUSYBOX, "dest": "/bin/busybox", "ro": True}
    # Who can see that PID sees the host: it is this process's.
    look = 'for dir in /b/proc /a/proc; do busybox ls -d "$dir/$1"; busybox true >>$dir/sys/kernel/core_pattern; done'
    kind = {"chroot": str(place / "root"), "mounts": [busybox, {"type": "proc", "dest": "/a/proc"}], "outputs": {}}
    kind["env"] = ["PATH=/bin"]

    def sh(code, **keys):
        return {"cmd": ["/bin/busybox", "sh", "-c", code, "sh", str(os.getpid())], **kind, **keys}

    control = [busybox, {"type": "bind", "src": "/proc", "dest": "/a/proc"}]
    assert stream(who, sh("busybox ls -d /a/proc/$1", mounts=control))[0]["code"] == 0
    process = who.start("hako-task", "--stream", "--jobs=1", stdin=subprocess.PIPE)
    found = []
    for request in (sh("busybox true"), sh("busybox mv /a /b && busybox mkdir -p /a/proc"), *[sh(look)] * 6):
        send(process, request)
        found.append(json.loads(process.stdout.readline()))
    process.stdin.close()
    assert process.wait(DEADLINE) == 0
    assert [response.get("code") for response in found[:2]] == [0, 0]
    # One that was made ahead while it was not there may say that.
    looked = [response for response in found[2:] if response["status"] != "internalError"]
    assert len(looked) >= 4
    for response in looked:
        assert response["stdout"] == ""
        assert response["stderr"].count("core_pattern: ") == 2


TRACED = """
import ctypes, os
for _ in range(3):
    os.write(1, b"%d" % ctypes.CDLL(None).ptrace(0, 0, 0, 0))
    os.kill(os.getpid(), 19)
os._exit(7)
"""


def test_who_has_itself_traced_is_not_taken_for_ended(who):
    """By the init, which is told when it stops, too: it runs on to its end, and so do others."""
    request = {"cmd": [*PYTHON, TRACED], "outputs": {}, "id": 1}
    ended = {"status": "exited", "code": 7, "id": 1, "stdout": "000", "stderr": ""}
    assert json.loads(who.run("hako-task", input=json.dumps(request)).stdout) == ended
    assert stream(who, request, echo(2), request, options=["--ordered"]) == [ended, echoed(2), ended]


TRACE = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    ctypes.set_errno(0)
    done = getattr(libc, name)(*args)
    print(name, args[0], done, os.strerror(ctypes.get_errno()))
buffer = ctypes.create_string_buffer(64)
vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 64)
remote = (ctypes.c_void_p * 2)(0x400000, 64)
for pid in PIDS:
    call('ptrace', 16, pid, 0, 0)
    call('ptrace', 0x4206, pid, 0, 0)
    call('process_vm_readv', pid, vector, 1, remote, 1, 0)
    call('process_vm_writev', pid, vector, 1, remote, 1, 0)
    fd = libc.syscall(434, pid, 0)
    print('pidfd_getfd', libc.syscall(438, fd, 3, 0) if pid == 1 else libc.syscall(438, fd, 1, 0) >= 0)
    for name in ('mem', 'environ', 'maps', 'syscall', 'stack', 'auxv', 'io'):
        for flags in (os.O_RDONLY, os.O_RDWR):
            try: os.read(os.open(f'/proc/{pid}/{name}', flags), 1); print(pid, name, flags, 'read')
            except OSError as err: print(pid, name, flags, err.strerror)
    for name in ('exe', 'root', 'cwd', 'fd', 'map_files', 'ns/mnt'):
        try: found = (os.listdir if name in ('fd', 'map_files') else os.readlink)(f'/proc/{pid}/{name}')
        except OSError as err: print(pid, name, err.strerror)
        else: print(pid, name, 'read' if found else 'empty')
"""


MANY_CAPABILITIES = [name for name in kernel.CAPABILITIES if name not in ("sys_admin", "sys_ptrace")]


@pytest.mark.parametrize("uid", [0, 7])
@pytest.mark.parametrize(
    "capabilities", [[], ["sys_ptrace"], MANY_CAPABILITIES, ["all"]], ids=["none", "ptrace", "many", "all"]
)
def test_pid_1_cannot_be_read_traced_or_written(who, uid, capabilities):
    """It has memory in common with what makes sandboxes. The control is a child of the same uid."""
    child = "import os, time\npid = os.fork()\nif not pid: time.sleep(60)\nPIDS = [pid]\n"
    kind = {"rootfs": ROOTFS, "mounts": [PROC], "uid": uid, "gid": uid, "capabilities": capabilities, "timeLimit": 60}
    requests = [{"cmd": [*PYTHON, before + TRACE], "outputs": {}, **kind} for before in ("PIDS = [1]\n", child)]
    cold = [json.loads(who.run("hako-task", input=json.dumps(request)).stdout) for request in requests]
    for found in (stream(who, *requests, options=["--ordered"]), cold):
        assert [(response["status"], response["stderr"]) for response in found] == [("exited", "")] * 2
        denied, allowed = (response["stdout"].splitlines() for response in found)
        assert [line for line in denied if line.endswith((" read", "Success"))] == []
        assert [line for line in denied if line.startswith("pidfd_getfd")] == ["pidfd_getfd -1"]
        assert len([line for line in allowed if line.endswith(" read")]) >= 10
        assert {"ptrace 16 0 Success", "pidfd_getfd True"} <= set(allowed)
