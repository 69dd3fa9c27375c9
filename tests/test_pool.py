"""hako.Pool, used by programs: an executor of programs, that nothing is left of."""

import ast
import os
import signal
import sys

import pytest
from test_library import HEAD, KIN, said, start, state

import hako
from conftest import DEADLINE, wait_until

TASKS = int(os.environ.get("HAKO_SOAK", "2000"))  # 100000 for a soak


def test_submit_and_map(who):
    code = """
box = hako.Sandbox()
with hako.Pool(3) as pool:
    futures = [pool.submit(box, ["sh", "-c", "cat; exit $0", str(n)], input=str(n)) for n in range(60)]
    found = [(int(future.result().stdout), future.result().code) for future in futures]
    mapped = [int(result.stdout) for result in pool.map(box, (["echo", str(n)] for n in range(60)))]
    direct = pool.run(box, ["echo", "direct"]).stdout
print([found == [(n, n) for n in range(60)], mapped == list(range(60)), direct, pool.jobs])
"""
    assert said(who, code) == [True, True, b"direct\n", 3]


def test_map_takes_no_more_than_it_has_room_for(who):
    code = """
taken = []
def endless():
    n = 0
    while True:
        taken.append(n)
        yield ["echo", str(n)]
        n += 1
with hako.Pool(2) as pool:
    results = pool.map(hako.Sandbox(), endless())
    found = [int(next(results).stdout) for _ in range(50)]
    results.close()
print([found == list(range(50)), len(taken) < 100])
"""
    assert said(who, code) == [True, True]


def test_jobs_run_at_once_and_no_more(who):
    code = """
box = hako.Sandbox(work_dir=sys.argv[1] + "/data")
os.mkdir(box._options["work_dir"])
count = "mkdir $0; ls | wc -l; sleep 0.2; rmdir $0"
with hako.Pool(3) as pool:
    futures = [pool.submit(box, ["sh", "-c", count, f"m{n}"]) for n in range(12)]
    print(max(int(future.result().stdout) for future in futures))
"""
    assert said(who, code, str(who.box.parent)) == 3


def test_errors_come_where_they_are_waited_for(who):
    code = """
with hako.Pool(1) as pool:
    wrong = pool.submit(hako.Sandbox(pids=0), ["true"])
    right = pool.submit(hako.Sandbox(), ["false"])
    found = [str(wrong.exception()), right.result().code, right.exception()]
    for argv in ([], "true", [""]):
        try:
            pool.submit(hako.Sandbox(), argv)
        except (TypeError, ValueError) as err:
            found.append(type(err).__name__)
    try:
        pool.submit(hako.Sandbox(), ["true"]).result(0)
    except TimeoutError as err:
        found.append("late")
    found += [list(hako.Pool(1).map(hako.Sandbox(), []))]
print(found)
"""
    wanted = ["pids: not from 1 to 4194304: '0'", 1, None, "TypeError", "TypeError", "ValueError", "late", []]
    assert said(who, code) == wanted


def test_cancel(who):
    """Before its turn; what runs cannot be cancelled."""
    code = """
box = hako.Sandbox(work_dir=sys.argv[1])
with hako.Pool(1) as pool:
    first = pool.submit(box, ["sh", "-c", "while [ ! -e go ]; do sleep 0.01; done"])
    rest = [pool.submit(box, ["touch", f"ran{n}"]) for n in range(20)]
    cancelled = [future.cancel() for future in reversed(rest)]
    running = first.cancel()
    open(sys.argv[1] + "/go", "w").close()
    codes = [future.result().code for future in (first, *rest) if not future.cancelled()]
ran = [name for name in os.listdir(sys.argv[1]) if name.startswith("ran")]
print([running, sum(cancelled) > 15, len(ran) == 20 - sum(cancelled), set(codes)])
"""
    assert said(who, code, str(who.box.parent)) == [False, True, True, {0}]


def test_callbacks_may_use_the_pool(who):
    """Nothing is locked while somebody is told."""
    code = """
box, done = hako.Sandbox(), threading.Event()
with hako.Pool(1) as pool:
    def again(future):
        pool.submit(box, ["true"]).add_done_callback(lambda _: done.set())
    pool.submit(box, ["true"]).add_done_callback(again)
    called = done.wait(30)
    def closed(future):
        try:
            pool.submit(box, ["true"])
        except RuntimeError as err:
            errors.append(str(err))
    errors, futures = [], [pool.submit(box, ["sleep", "0.2"]) for _ in range(20)]
    for future in futures:
        future.add_done_callback(closed)
    pool.shutdown(cancel_futures=True)
print([called, len(errors), set(errors)])
"""
    assert said(who, code) == [True, 20, {"cannot run anything after shutdown"}]


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("cancel", [True, False])
def test_shutdown(who, wait, cancel):
    """What was submitted runs to its end, or is cancelled; the workers and all descriptors go."""
    code = f"""{KIN}
before = len(os.listdir("/proc/self/fd"))
pool = hako.Pool(1)
futures = [pool.submit(hako.Sandbox(), ["sh", "-c", "sleep 0.05"]) for _ in range(10)]
pool.shutdown({wait}, cancel_futures={cancel})
done = [future.done() for future in futures]
found = []
for use in (pool.submit, pool.run):
    try:
        use(hako.Sandbox(), ["true"])
    except RuntimeError as err:
        found.append(str(err))
ended = [future.cancelled() or future.result().code for future in futures]
end = time.monotonic() + 30
while (kin(os.getpid()) or len(os.listdir("/proc/self/fd")) != before) and not {wait} and time.monotonic() < end:
    time.sleep(0.01)
left = kin(os.getpid()), len(os.listdir("/proc/self/fd")) - before
pool.shutdown()
print([all(done) or not {wait}, found, ended.count(True) > 5, left])
"""
    message = "cannot run anything after shutdown"
    assert said(who, code) == [True, [message, message], cancel, ([], 0)]


def test_a_pool_that_was_not_used(who):
    code = f"""{KIN}
before = len(os.listdir("/proc/self/fd"))
with hako.Pool(8) as pool:
    started = kin(os.getpid())
with hako.Pool(1) as pool:
    pool.run(hako.Sandbox(), ["true"])
print([started, kin(os.getpid()), len(os.listdir("/proc/self/fd")) - before])
"""
    assert said(who, code) == [[], [], 0]


def test_shutdown_waits_for_run(who):
    code = """
pool, found = hako.Pool(1), []
began = sys.argv[1] + "/began"
def work():
    found.append(pool.run(hako.Sandbox(work_dir=sys.argv[1]), ["sh", "-c", "echo > began; sleep 0.3"]).code)
thread = threading.Thread(target=work)
thread.start()
while not os.path.exists(began):
    time.sleep(0.01)
pool.shutdown()
thread.join()
print(found)
"""
    assert said(who, code, str(who.box.parent)) == [0]


@pytest.mark.parametrize("jobs", [0, -1])
def test_jobs_that_are_none(jobs):
    with pytest.raises(ValueError, match=f"jobs: less than 1: {jobs}"):
        hako.Pool(jobs)


def test_a_worker_that_dies_mid_task_is_replaced(who):
    """What it was at is lost, and says so; what waits runs."""
    code = f"""{KIN}
box = hako.Sandbox(work_dir=sys.argv[1])
with hako.Pool(1) as pool:
    first = pool.submit(box, ["sh", "-c", "echo > began; sleep 99"])
    rest = [pool.submit(box, ["echo", str(n)]) for n in range(10)]
    while not os.path.exists(sys.argv[1] + "/began"):
        time.sleep(0.01)
    for worker in kin(os.getpid()):
        os.kill(worker, signal.SIGKILL)
    ended = []
    for future in (first, *rest):
        try:
            ended.append(future.result().code)
        except hako.WorkerLost as err:
            ended.append(str(err))
    print([ended[0], set(ended[3:]), pool.submit(box, ["true"]).result().code])
"""
    assert said(who, code, str(who.box.parent)) == ["the worker was killed", {0}, 0]


def test_threads_and_asyncio(who):
    code = """
box = hako.Sandbox()
async def main(pool):
    futures = [asyncio.wrap_future(pool.submit(box, ["echo", str(n)])) for n in range(100)]
    return [int(result.stdout) for result in await asyncio.gather(*futures)]
with hako.Pool(4) as pool:
    found = {}
    def work(name):
        found[name] = [int(pool.submit(box, ["echo", str(name)]).result().stdout) for _ in range(3)]
        found[-name - 1] = [int(pool.run(box, ["echo", str(name)]).stdout)]
    threads = [threading.Thread(target=work, args=(name,)) for name in range(50)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    of_threads = all(set(found[name]) == {name} == set(found[-name - 1]) for name in range(50))
    print([of_threads, asyncio.run(main(pool)) == list(range(100))])
"""
    assert said(who, code) == [True, True]


def test_ten_thousand_that_wait(who):
    """What waits takes no descriptor, whatever it is to read."""
    code = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
with hako.Pool(2) as pool:
    futures = [pool.submit(hako.Sandbox(), ["cat"], input=f"{n}") for n in range(10000)]
    some = [int(future.result().stdout) for future in futures[:100]]
    pool.shutdown(cancel_futures=True)
print([some == list(range(100)), sum(future.cancelled() for future in futures) > 5000])
"""
    assert said(who, code) == [True, True]


def test_tasks(who):
    """Requests of hako-task."""
    code = """
with hako.Pool(2) as pool:
    lines = [b'{"cmd":["/bin/sh","-c","exit 3"],"id":7}', b"{", b'{"cmd":[]}']
    print([pool.submit_task(line).result() for line in lines])
"""
    first, *rest = said(who, code)
    assert first == b'{"status":"exited","code":3,"id":7}\n'
    assert all(line.startswith(b'{"status":"requestInvalid"') for line in rest)


def test_a_fork_has_no_use_of_the_pool(who):
    code = """
pool = hako.Pool(1)
pool.submit(hako.Sandbox(), ["true"]).result()
reader, writer = os.pipe()
child = os.fork()
if not child:
    for use in (pool.submit, pool.run):
        try:
            use(hako.Sandbox(), ["true"])
        except RuntimeError as err:
            os.write(writer, f"{err}\\n".encode())
    os._exit(0)
os.waitpid(child, 0)
print([os.read(reader, 999), pool.submit(hako.Sandbox(), ["true"]).result().code])
"""
    message = b"a Pool is of use in the process that made it\n"
    assert said(who, code) == [message * 2, 0]


def test_a_program_that_is_killed_leaves_nothing(who, delegated):
    """Processes, cgroups: all goes with it, whatever runs."""
    code = f"""{KIN}
pool = hako.Pool(4)
box = hako.Sandbox(pids=9, work_dir=sys.argv[1])
futures = [pool.submit(box, ["sh", "-c", "echo > began; sleep 98766 & sleep 98766"]) for _ in range(20)]
while not os.path.exists(sys.argv[1] + "/began"):
    time.sleep(0.01)
print(kin(os.getpid()), flush=True)
time.sleep(99)
"""
    process = start(who, code, str(who.box.parent))
    workers = ast.literal_eval(process.stdout.readline())
    assert workers
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=DEADLINE)
    wait_until(lambda: all(state(worker) == "Z" for worker in workers))
    wait_until(lambda: not sleepers())
    delegated.wait_until_empty()


def sleepers():
    """Processes of that test."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if file.read() == b"sleep\x0098766\x00":
                    found.append(pid)
        except OSError:
            pass
    return found


def test_what_is_pending_does_not_keep_a_program_from_its_end(who):
    """A Pool that nobody has shut down."""
    code = "pool = hako.Pool(1)\nfutures = [pool.submit(hako.Sandbox(), ['sleep', '99']) for _ in range(3)]"
    done = who.run(sys.executable, "-I", "-c", HEAD + code, timeout=DEADLINE)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_fds_and_memory_stay_as_they_are(who):
    """Over many tasks, of the program and of its worker; HAKO_SOAK says how many."""
    code = f"""{KIN}
def measure():
    [worker] = kin(os.getpid())
    found = []
    for pid in (os.getpid(), worker):
        with open(f"/proc/{{pid}}/statm") as file:
            found += [int(file.read().split()[1]), len(os.listdir(f"/proc/{{pid}}/fd"))]
    return found
def some(count):
    for result in pool.map(box, (["cat"] for _ in range(count)), input=b"x"):
        assert result.stdout == b"x", result
box = hako.Sandbox()
with hako.Pool(2) as pool:
    some(300)
    before = measure()
    some(int(sys.argv[1]))
    after = measure()
print([new - old for new, old in zip(after, before)])
"""
    pages, fds, pages_of_worker, fds_of_worker = said(who, code, str(TASKS), timeout=DEADLINE + TASKS / 20)
    assert pages < 512  # 2 MB
    assert pages_of_worker < 512
    assert abs(fds) <= 2
    assert abs(fds_of_worker) <= 8
