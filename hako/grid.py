"""Requests of hako-task, answered by the workers of a Dask cluster: the stream at one end, sandboxes at the other.

What is lost with a worker of the cluster Dask does again; hako has no scheduler of its own.
"""

import _signal
import os
import select
import sys
import threading
from _collections import deque

from hako import core, output, request, server, supervise, task
from hako.failure import Failure, show
from hako.loop import Loop

RETRIES = 3  # of a request whose sandboxes' worker was killed; Dask itself counts the workers of its own
CONNECT = "10s"
LOOK = 0.2  # seconds until a worker looks again whether somebody still wants the answer
COUNT = 5.0  # seconds until the threads of the cluster are counted again
OF_ONE_WORKER = 8  # programs at once: see hako.pool

_links = []
_next = 0
_lock = threading.Lock()


def prepare(address, ordered, progress, jobs):
    """What has the requests from stdin answered by the cluster at ADDRESS, JOBS at once, None for all its threads.

    ORDERED: in the order of the requests. PROGRESS: say on a terminal how far it is.
    """
    if core.moved:
        raise Failure("--dask: not behind a command that moves to other mounts: its modules are here")
    if not address:
        raise Failure("--dask: not an address: ''")
    # With those signals blocked: what is imported may start threads, and one that takes them would die of them.
    mask = _signal.pthread_sigmask(_signal.SIG_BLOCK, supervise.ENDING)
    distributed, places = load(), list(sys.path)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
    from hako.progress import Progress

    def enter():
        """Answer."""
        sys.path[:] = places  # the mounts are those that they were, and Dask imports as it goes
        grid = Grid(jobs)

        def die(number):
            """End as the signal NUMBER has it."""
            grid.end()
            os._exit(128 + number)

        server.begin(grid, die)  # before there are threads, which take no signals then
        grid.connect(distributed, address)
        shown = Progress("tasks") if progress else None

        def end(client):
            """All is answered, or nobody reads it."""
            if shown is not None:
                shown.end(client.done)
            grid.end()
            if client.gone:
                core.fail(f"hako-task: {client.lost}", core.FAILED)
            os._exit(0)

        Stream(grid, end, ordered, None if shown is None else lambda client: shown.tell(client.done))
        while True:
            grid.loop.turn()

    return enter


def load():
    """The module distributed: of where hako is, or else of this Python."""
    try:
        return __import__("distributed")
    except ModuleNotFoundError:
        import site  # which the commands run without

        sys.path += site.getsitepackages()
    try:
        return __import__("distributed")
    except ModuleNotFoundError as err:
        raise Failure(f"--dask: {err.name} is not installed [pip install distributed]") from err


class Grid:
    """A cluster, in the place of an engine.Engine: JOBS of it run at once, or as many as it has threads.

    client   distributed's Client, once it is connected
    futures  {key: (future, request, whom to tell)} of what was asked for
    done     queue of futures that are done
    ended    (future, response or None) of those that can be told
    """

    def __init__(self, jobs):
        self.loop, self.counted, self.jobs = Loop(), jobs is None, jobs or 1
        self.client, self.futures, self.ended = None, {}, deque()

    def connect(self, distributed, address):
        """Connect it to the scheduler at ADDRESS, by the module DISTRIBUTED."""
        import logging
        import queue
        import warnings

        logging.disable(logging.CRITICAL)  # what matters comes as an error too
        import dask

        dask.config.set({"distributed.comm.timeouts.connect": CONNECT})  # a worker that is lost is no reason to wait
        warnings.filterwarnings("ignore", module="distributed")
        self.done = queue.SimpleQueue()
        try:
            self.client = distributed.Client(address, timeout=CONNECT, set_as_default=False)
        except (OSError, ValueError) as err:
            raise Failure(f"--dask: {show(address)}: {str(err) or type(err).__name__}") from err
        self.bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.loop.watch(self.bell, self.hear)
        threading.Thread(target=self.gather, daemon=True).start()
        if self.counted:
            self.count()

    def count(self):
        """Count the threads of the cluster, now and later: they come and go."""
        import time

        try:
            self.jobs = max(1, sum(self.client.nthreads().values()))
        except Exception as err:
            raise Failure(f"--dask: the scheduler: {err}") from err
        self.loop.at(time.monotonic() + COUNT, self.count)

    def submit(self, line, tell):
        """Have the request LINE answered; TELL is called with the response, a line."""
        try:
            future = self.client.submit(answer, line, pure=False, retries=RETRIES)
        except Exception as err:
            raise Failure(f"--dask: the scheduler: {err}") from err
        self.futures[future.key] = future, line, tell
        future.add_done_callback(self.done.put)

    def gather(self):
        """Fetch what is done, many at a time, in a thread of its own."""
        while True:
            batch = [self.done.get()]
            while not self.done.empty():
                batch.append(self.done.get())
            fine = [future for future in batch if future.status == "finished"]
            try:
                lines = self.client.gather(fine)
            except Exception:
                fine, lines = [], []
            found = dict(zip((future.key for future in fine), lines, strict=True))
            self.ended += [(future, found.get(future.key)) for future in batch]
            os.eventfd_write(self.bell, 1)

    def hear(self):
        """Tell who waits for what is done."""
        os.eventfd_read(self.bell)
        while self.ended:
            future, line = self.ended.popleft()
            _, asked, tell = self.futures.pop(future.key)
            tell(self.failed(future, asked) if line is None else line)

    @staticmethod
    def failed(future, line):
        """The response to the request LINE, of which FUTURE, that failed, knows why."""
        try:
            why = future.exception(1)
        except Exception as err:
            why = err
        found = {"status": "internalError", "description": f"--dask: {str(why) or type(why).__name__}"}
        try:
            document = request.document(line)
        except request.Invalid:
            document = {}
        return task.line({**found, **({"id": document["id"]} if "id" in document else {})})

    def end(self):
        """Take leave of the cluster, and of what was asked for and is not done."""
        try:
            if self.futures:
                self.client.cancel([future for future, _, _ in self.futures.values()], force=True)
            self.client.close(timeout=2)
        except Exception:
            pass  # the scheduler is gone, or sees this end soon


class Stream(server.Client):
    """Who sends requests through stdin and takes responses from stdout, which GRID has answered."""

    __slots__ = ()

    def __init__(self, grid, on_end, ordered, told):
        super().__init__(grid, None, 0, *output.patient(1), on_end, ordered, told)

    def take(self, line):
        """Have the LINE answered."""
        place, one = self.new_place(), object()
        self.tasks.add(one)
        self.engine.submit(line, lambda response: self.answer_by(response, place, one))

    def leave(self, why):
        """Nobody reads the responses any more, for the reason WHY: nobody wants them."""
        self.gone, self.lost = True, why
        self.on_end(self)


# What runs on a worker of the cluster.


def answer(line):
    """The response to the request LINE, by a worker of this process's; if nobody wants it any more, it is ended."""
    from distributed import get_worker

    worker = get_worker()
    key, links = worker.get_current_task(), choose(worker.state.nthreads)
    link = links.begin({"task": line}, [])
    poll = select.poll()
    poll.register(link.fileno(), select.POLLIN)
    try:
        while not poll.poll(LOOK * 1000):
            known = worker.state.tasks.get(key)
            if known is None or known.state in ("cancelled", "released", "forgotten"):
                raise Failure("nobody wants the answer")
    except BaseException:
        link.close()
        raise
    return links.end(link)["response"]


def choose(threads):
    """The links to one of the workers of this process, which has THREADS of them use one each."""
    global _next
    with _lock:
        if not _links or _links[0].pid != os.getpid():
            from hako.link import Links

            _links[:] = [Links(OF_ONE_WORKER) for _ in range(-(-threads // OF_ONE_WORKER))]
        _next += 1
        return _links[_next % len(_links)]
