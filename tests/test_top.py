"""hako-top at a terminal, as somebody sees it and types; and for programs."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from conftest import BIN, DEADLINE, wait_until
from hako import kernel

WIDE, HIGH = 300, 60  # with room for what others run


class Screen:
    """A terminal of tmux in which WHO runs ARGV, then sh tells how that ended."""

    def __init__(self, who, place, argv):
        self.who, self.socket = who, str(place / "tmux")
        words = " ".join(argv)
        script = place / "script"
        same = "stty -g > after; cmp before after && echo same"
        script.write_text(f"stty -g > before; {words}; echo status $?; {same}; cat")
        self.tmux(
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            str(WIDE),
            "-y",
            str(HIGH),
            "-c",
            str(place),
            "sh",
            str(script),
        )

    def tmux(self, *argv):
        done = self.who.run("tmux", "-S", self.socket, *argv, env={**self.who.env, "TERM": "screen"})
        assert done.returncode == 0, done.stderr
        return done.stdout

    def text(self):
        return self.tmux("capture-pane", "-p")

    def until(self, pattern):
        """The screen, as soon as PATTERN is on it."""
        end = time.monotonic() + DEADLINE
        while not re.search(pattern, self.text()):
            assert time.monotonic() < end, self.text()
            time.sleep(0.05)
        return self.text()

    def type(self, *keys):
        self.tmux("send-keys", *keys)

    def end(self):
        self.who.run("tmux", "-S", self.socket, "kill-server")


@pytest.fixture
def mine(who, place):
    """WHO, with a list of its own; root's is that of all tests."""
    (place / "run").mkdir(mode=0o700)
    os.chown(place / "run", who.uid, who.uid)
    who.env["XDG_RUNTIME_DIR"] = str(place / "run")
    return who


@pytest.fixture
def runs(mine, place):
    """What starts something, which is seen to its end, with a mark in its command line; returns the process."""
    started = []

    def start(*argv):
        process = mine.start(*argv, f"{place.name}-{len(started)}", stdin=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == "up\n"
        wait_until(lambda: f'"supervisor":{process.pid},' in mine.run("hako-ps", "--json").stdout)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def screen(mine, place):
    """What runs hako-top with options."""
    made = []

    def show(*options):
        made.append(Screen(mine, place, ["hako-top", "--interval=0.2", *options]))
        return made[-1]

    yield show
    for one in made:
        one.end()


def waiting(*code):
    """A PROG that says that it is up and waits for the end of its stdin."""
    return ["sh", "-c", "\n".join(["echo up", *code, "cat"])]


def test_what_runs_is_shown_with_limits(mine, runs, screen, place):
    limited = runs("hako-limit", "--time=50", "--output=1M", *waiting("sleep 30 &"))
    boxed = runs(*mine.sandbox("/bin/busybox", "sh", "-c", "echo up; exec busybox cat"))
    shown = screen()
    text = shown.until(f"{place.name}-1")
    assert "PID" in text
    (row,) = [line for line in text.splitlines() if f" {limited.pid} " in line]
    assert re.match(rf" *- +{limited.pid} +0:00:\d\d / 0:00:50 ", row)
    assert re.search(r" \d+\.\d[KMG] +3  hako-limit --time=50 ", row)
    (row,) = [line for line in text.splitlines() if f" {boxed.pid} " in line]
    pid = row.split()[0]
    assert mine.run("hako-enter", "--fork", pid, "/bin/busybox", "echo", "in").stdout == "in\n"
    shown.type("q")
    assert "same" in shown.until("status 0\n(?s:.)*same")


def test_cpu_is_of_the_time_between_looks(runs, screen, place):
    runs("hako-limit", "--time=50", *waiting("while :; do :; done"))
    shown = screen()
    shown.until(rf"[1-9]\d* % +\d+\.\d s .*{place.name}-0")


def test_the_list_is_refreshed(runs, screen, place):
    shown = screen()
    shown.until("PID")
    process = runs("hako-limit", *waiting())
    shown.until(f"{place.name}-0")
    process.communicate()
    end = time.monotonic() + DEADLINE
    while place.name in shown.text():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("key, number", [("k", signal.SIGTERM), ("K", signal.SIGKILL)])
def test_a_key_ends_what_is_chosen_when_it_is_confirmed(runs, screen, key, number):
    processes = [runs("hako-limit", *waiting()) for _ in range(3)]
    shown = screen()
    shown.until(f" {processes[2].pid} ")
    choose(shown, processes[1].pid)
    shown.type(key)
    shown.until(rf"(end|kill) {processes[1].pid}, hako-limit .*\? y or n")
    shown.type("n")
    shown.until("q: quit(?!(?s:.)*y or n)")
    assert processes[1].poll() is None
    shown.type(key, "y")
    shown.until(f"{number.name} sent to {processes[1].pid}")
    wait_until(lambda: processes[1].poll() is not None)
    assert processes[1].returncode == (128 + number if number == signal.SIGTERM else -number)
    assert [process.poll() for process in processes[::2]] == [None, None]


def choose(shown, pid):
    """Press down until the question would be of PID."""
    for _ in range(60):
        shown.type("k")
        text = shown.until(r"y or n")
        shown.type("n")
        shown.until("q: quit(?!(?s:.)*y or n)")
        if re.search(rf"(end|kill) {pid}, ", text):
            return
        shown.type("Down")
    raise AssertionError(shown.text())


@pytest.fixture
def worker(mine):
    """A stream of tasks."""
    process = mine.start("hako-task", "--stream", "--jobs=3", stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def send(process, *requests):
    """Have PROCESS, a worker, do what REQUESTS ask for."""
    process.stdin.write("".join(f"{json.dumps(request)}\n" for request in requests))
    process.stdin.flush()


def tasks(who, process):
    """The tasks of PROCESS that are listed, by the last of their words."""
    found = map(json.loads, who.run("hako-top", "--json").stdout.splitlines())
    return {one["command"][-1]: one for one in found if (one["kind"], one["supervisor"]) == ("task", process.pid)}


@pytest.mark.parametrize("key", ["k", "K"])
def test_a_key_kills_a_task_alone(mine, worker, screen, key):
    """It is told as the end of that one; the others go on, and the worker."""
    send(worker, *[{"cmd": ["sh", "-c", "sleep 300; exit", f"number-{id}"], "id": id} for id in range(3)])
    wait_until(lambda: len(tasks(mine, worker)) == 3)
    pid = tasks(mine, worker)["number-1"]["pid"]
    shown = screen()
    shown.until(
        rf"\n *- +{worker.pid} .*  \(3 of 3 run, 0 ended\) hako-task --stream --jobs=3 *"
        rf"(\n *\d+ +{worker.pid} .*    sh -c 'sleep 300; exit' number-\d *){{3}}\n"
    )
    wait_until(lambda: is_counted(shown.text()))
    choose(shown, pid)
    shown.type(key)
    shown.until(rf"kill {pid}, sh -c 'sleep 300; exit' number-1\? y or n")
    shown.type("y")
    shown.until(f"SIGKILL sent to {pid}")
    assert json.loads(worker.stdout.readline()) == {"status": "killed", "signal": "SIGKILL", "id": 1}
    send(worker, {"cmd": ["true"], "id": 3})
    assert json.loads(worker.stdout.readline()) == {"status": "exited", "code": 0, "id": 3}
    assert sorted(tasks(mine, worker)) == ["number-0", "number-2"]
    shown.until(rf" {worker.pid} .*\(2 of 3 run, 2 ended\)")


def is_counted(text):
    """Whether as many sandboxes are in TEXT as its first line says: workers are none."""
    rows = re.findall(r"^ *(?:-|\d+) +\d+ +\d+:\d\d:\d\d.*", text, re.MULTILINE)
    return text.startswith(f"{sum(' ended) ' not in row for row in rows)} sandboxes ")


def test_what_a_task_uses(mine, worker):
    """And its worker, of which that is a part; before the task has ended and behind that."""
    busy = {"cmd": ["sh", "-c", "sleep 300 & while :; do :; done", "busy"], "timeLimit": 50}
    send(worker, busy, {"cmd": ["sleep", "300"]})
    wait_until(lambda: len(tasks(mine, worker)) == 2 and tasks(mine, worker)["busy"]["cpu"] > 0.1)
    found = tasks(mine, worker)
    assert [(found[name]["pids"], found[name]["cpu"] > 0.1) for name in ("busy", "300")] == [(2, True), (1, False)]
    assert found["busy"]["limits"] == {"time": 50.0}
    assert found["busy"]["memory"] > 100000
    os.kill(kernel.children(found["busy"]["pid"])[0], signal.SIGTERM)
    assert json.loads(worker.stdout.readline()) == {"status": "killed", "signal": "SIGTERM"}
    found = map(json.loads, mine.run("hako-top", "--json").stdout.splitlines())
    (one,) = [one for one in found if (one["kind"], one["supervisor"]) == ("worker", worker.pid)]
    assert one["cpu"] > 0.1


def test_what_a_task_uses_is_counted_by_its_cgroup(mine, place, delegated):
    """Pages of a file are no process's, but its."""
    code = """
import hako, sys
script = "head -c 20000000 /dev/zero >/tmp/file; sleep 300; exit"
hako.run(["sh", "-c", script, sys.argv[1]], memory="64M", pids=9)
"""
    process = mine.start(sys.executable, "-I", "-c", code, place.name)

    def found():
        listed = map(json.loads, mine.run("hako-top", "--json").stdout.splitlines())
        return [one for one in listed if one["kind"] == "task" and one["command"][-1] == place.name]

    try:
        wait_until(lambda: [one for one in found() if one["memory"] > 20000000])
        (task,) = found()
        assert task["limits"] == {"memory": 64 << 20, "pids": 9}
        assert task["memory"] < 64 << 20
    finally:
        process.kill()
        process.communicate()
    delegated.wait_until_empty()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP])
def test_a_signal_leaves_the_terminal_as_it_was(mine, place, number):
    shown = Screen(mine, place, ["sh", "-c", "'echo $$ > pid; exec hako-top --interval=0.2'"])
    try:
        shown.until("PID")
        os.kill(int((place / "pid").read_text()), number)
        if number == signal.SIGTSTP:  # which is ignored
            shown.type("q")
        shown.until(f"status {0 if number == signal.SIGTSTP else 128 + number}\n(?s:.)*same")
    finally:
        shown.end()


def test_for_programs(mine, runs, place):
    limited = runs("hako-limit", "--time=50", *waiting("sleep 30 &"))
    done = mine.run("hako-top", "--json")
    (one,) = [found for found in map(json.loads, done.stdout.splitlines()) if found["supervisor"] == limited.pid]
    assert one["limits"] == {"time": 50.0}
    assert one["pids"] == 3
    assert one["memory"] > 100000
    assert one["cpu"] >= 0
    assert one["command"][-1] == f"{place.name}-0"


def test_for_programs_it_needs_no_rich(who):
    done = who.run(*without_rich("'--json'"))
    assert (done.returncode, done.stderr) == (0, "")


def test_without_rich_one_line_says_so(mine, place):
    shown = Screen(mine, place, [shlex.join(without_rich(""))])
    try:
        text = shown.until("status 125")
        hint = "pip install rich, or the system's python3-rich"
        assert text.startswith(f"hako-top: rich is not installed [{hint}]\n")
    finally:
        shown.end()


@pytest.mark.parametrize("where", ["<", ">"])
def test_without_a_terminal_one_line_says_so(mine, place, where):
    shown = Screen(mine, place, ["hako-top", f"{where}/dev/null"])
    try:
        hint = "--json is for programs"
        assert shown.until("status 125").startswith(f"hako-top: stdin and stdout are not a terminal [{hint}]\n")
    finally:
        shown.end()


@pytest.mark.parametrize("interval", ["0", "-1", "x", ""])
def test_an_interval_is_seconds(who, interval):
    done = who.run("hako-top", f"--interval={interval}", "--json")
    reason = "not seconds, more than 0, like 2 or 0.5"
    assert (done.returncode, done.stderr) == (125, f"hako-top: --interval: {reason}: {interval!r}\n")


def without_rich(argument):
    """The command line of hako-top where there is no rich."""
    head, path = (BIN / "hako-top").read_text().splitlines()[:2]
    code = f"{path}; sys.modules['rich'] = None; from hako import core; core.main(['hako-top', {argument}])"
    return [*head.removeprefix("#!").split(), "-c", code]
