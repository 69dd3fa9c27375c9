"""hako-task --dask, and the example for a cluster: on one of this machine, with workers that are killed."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from conftest import BIN, DEADLINE, wait_until

TOP = pathlib.Path(__file__).parent.parent
CLUSTER = """
import sys
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=":0", host="127.0.0.1") as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of a cluster's scheduler: two workers of two threads each."""
    script = tmp_path_factory.mktemp("cluster") / "cluster.py"
    script.write_text(CLUSTER)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, script], text=True, cwd=script.parent, start_new_session=True, **pipes)
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        try:
            process.wait(DEADLINE)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def sh(script, **more):
    """The request line that runs SCRIPT."""
    return json.dumps({"cmd": ["/bin/sh", "-c", script], "outputs": {"stdout": True}, **more}) + "\n"


def test_requests_are_answered(who, cluster):
    """As by hako-task alone, whichever comes first."""
    lines = [sh(f"echo {n}; exit {n % 5}", id=n) for n in range(40)] + ["{\n", "\n", '{"cmd":[],"id":"x"}']
    done = who.run("hako-task", "--stream", f"--dask={cluster}", input="".join(lines))
    alone = who.run("hako-task", "--stream", input="".join(lines))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 42
    assert sorted(done.stdout.splitlines()) == sorted(alone.stdout.splitlines())


def test_ordered(who, cluster):
    lines = [sh("sleep 0.5", id=0)] + [sh("true", id=n) for n in range(1, 20)]
    done = who.run("hako-task", "--stream", "--ordered", f"--dask={cluster}", "--progress", input="".join(lines))
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == list(range(20))
    mixed = who.run("hako-task", "--stream", f"--dask={cluster}", input="".join(lines))
    assert json.loads(mixed.stdout.partition("\n")[0])["id"] != 0


def test_no_more_requests_are_taken_than_keep_the_cluster_busy(who, cluster):
    process = who.start("hako-task", "--stream", "--jobs=1", f"--dask={cluster}", stdin=subprocess.PIPE)
    written = []

    def write():
        for number in range(50):
            process.stdin.write(sh("sleep 0.2", id=number, env=["A=" + "x" * 100000]))
            process.stdin.flush()
            written.append(number)
        process.stdin.close()

    thread = threading.Thread(target=write)
    thread.start()
    for count in range(1, 51):
        assert process.stdout.readline().startswith('{"status":"exited","code":0,')
        assert len(written) < count + 10
    thread.join()
    assert process.stdout.read() == ""
    assert process.wait(DEADLINE) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_end_of_hako_task_is_the_end_of_its_tasks(who, cluster, place, number):
    """On the workers too: they look whether somebody still wants the answer."""
    place.chmod(0o777)
    mounts = [{"type": "bind", "src": str(place), "dest": str(place)}]
    process = who.start("hako-task", "--stream", f"--dask={cluster}", stdin=subprocess.PIPE)
    process.stdin.write(sh(f"echo > {place}/began; sleep 4; echo > {place}/mark", mounts=mounts))
    process.stdin.flush()
    wait_until((place / "began").exists)
    began = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, err) == ((143 if number == signal.SIGTERM else -9), "")
    wait_until(lambda: time.monotonic() > began + 5)
    assert not (place / "mark").exists()


def test_a_worker_of_the_cluster_that_is_killed(who, cluster, place):
    """What it was at another does: every request has its answer."""
    place.chmod(0o777)
    mounts = [{"type": "bind", "src": str(place), "dest": str(place)}]
    process = who.start("hako-task", "--stream", f"--dask={cluster}", stdin=subprocess.PIPE)
    lines = "".join(sh(f"echo > {place}/began; sleep 0.3", id=n, mounts=mounts) for n in range(24))
    thread = threading.Thread(target=lambda: (process.stdin.write(lines), process.stdin.close()))
    thread.start()
    wait_until((place / "began").exists)
    os.kill(worker_of(cluster), signal.SIGKILL)
    answers = [json.loads(line) for line in process.stdout]
    thread.join()
    assert process.wait(DEADLINE) == 0
    assert process.stderr.read() == ""
    assert sorted(answer["id"] for answer in answers) == list(range(24))
    assert {answer["status"] for answer in answers} == {"exited"}


def worker_of(cluster):
    """The pid of a worker of CLUSTER."""
    from distributed import Client

    with Client(cluster, set_as_default=False) as client:
        return next(iter(client.run(os.getpid).values()))


def test_a_reader_that_vanishes(who, cluster):
    script = f"yes '{sh('echo x').strip()}' | hako-task --stream --dask={cluster} | head -3"
    done = who.run("sh", "-c", script)
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr in [f"hako-task: write stdout: {why}\n" for why in ("nobody reads", "Broken pipe")]


def test_nobody_at_the_address(who):
    done = who.run("hako-task", "--stream", "--dask=tcp://127.0.0.1:1", input="")
    assert (done.returncode, done.stdout) == (125, "")
    assert re.fullmatch(r"hako-task: --dask: tcp://127.0.0.1:1: [^\n]*\n", done.stderr)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stream", "--dask="], "--dask: not an address: ''"),
        (["--dask=tcp://x:1"], "--dask: needs --stream"),
        (["--stream", "--dask=nonsense://x:1"], "--dask: nonsense://x:1: unknown address scheme 'nonsense'"),
    ],
)
def test_an_address_that_is_none(who, options, message):
    done = who.run("hako-task", *options, input="")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith(f"hako-task: {message}")
    assert done.stderr.count("\n") == 1


def test_behind_a_command_that_moves(who):
    """Dask imports as it goes: from a root that is somebody else's it must not."""
    done = who.inside("hako-task", "--stream", "--dask=tcp://127.0.0.1:1")
    message = "hako-task: --dask: not behind a command that moves to other mounts: its modules are here\n"
    assert (done.returncode, done.stderr) == (125, message)


def test_without_distributed(who, place):
    """One line says what to install."""
    site = pathlib.Path(BIN.parent / "lib/hako-site")
    for file in (*site.glob("docopt.py"), *site.glob("prctl.py"), *site.glob("_prctl*.so")):
        (place / file.name).symlink_to(file.resolve())
    first, _, *rest = (BIN / "hako-task").read_text().splitlines()
    text = "\n".join([first, f"import sys; sys.path[:0] = [{str(TOP)!r}, {str(place)!r}]", *rest]) + "\n"
    (place / "hako-task").write_text(text)
    (place / "hako-task").chmod(0o755)
    done = who.run(place / "hako-task", "--stream", "--dask=tcp://127.0.0.1:1", input="")
    message = "hako-task: --dask: distributed is not installed [pip install distributed]\n"
    assert (done.returncode, done.stdout, done.stderr) == (125, "", message)


def test_the_example(who, cluster, place):
    """By whoever runs it, on a cluster that is there; one of its workers is killed."""
    example = TOP / "examples/dask_grader.py"
    process = who.start(sys.executable, example, "--count=42", f"--scheduler={cluster}", cwd=place)
    os.kill(worker_of(cluster), signal.SIGKILL)
    out, _ = process.communicate(timeout=DEADLINE)  # of a worker that is lost Dask may say something
    assert process.returncode == 0
    verdicts = dict(line.split(": ") for line in out.splitlines())
    assert verdicts == {
        "accepted": "34",
        "output limit": "2",
        "runtime error": "2",
        "time limit": "2",
        "wrong answer": "2",
    }


TRACEBACK = r"Traceback \(most recent call last\):\n(?:  [^\n]*\n)+[\w.]+Error[^\n]*\n"
# Of a worker whose last heartbeat meets the end of the scheduler, too late to matter.
LAST_HEARTBEAT = (
    r"[^\n]* - distributed\.worker - ERROR - Failed to communicate with scheduler during heartbeat\.\n"
    rf"(?:{TRACEBACK}\nThe above exception was the direct cause of the following exception:\n\n)*{TRACEBACK}"
)


def test_the_example_with_a_cluster_of_its_own(who, place):
    done = who.run(sys.executable, TOP / "examples/dask_grader.py", "--count=21", cwd=place)
    assert re.fullmatch(f"(?:{LAST_HEARTBEAT})*", done.stderr)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == "accepted: 17"
