"""hako.Pool: many programs through warm workers, as an executor of concurrent.futures."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from typing import Any

from hako.failure import Failure
from hako.library import Program, Result, Sandbox, Text, order, result_of
from hako.link import Link, Links, close_all

OF_ONE_WORKER = 8  # programs at once: with more, its one thread would be what they wait for
AHEAD = 2  # times as many as run at once are with the workers, so that none of them waits for this process

CLOSED = "cannot run anything after shutdown"

Failed = tuple["Future[Any]", BaseException]
Asked = tuple["Future[Any]", dict[str, Any], list[int], Callable[[dict[str, Any]], Any]]


class Pool(Executor):
    """Runs programs in sandboxes, JOBS at once, as many as there are CPUs unless told, by workers that stay.

    It is a concurrent.futures.Executor of its own kind: what is submitted is a
    Sandbox and a command line, not a function. It may be used from any number
    of threads, and from asyncio by asyncio.wrap_future(). A worker that dies is
    replaced; what it was at fails with WorkerLost. Nothing is left behind when
    this process ends, in whatever way. Errors: ValueError for JOBS less than 1.
    """

    def __init__(self, jobs: int | None = None) -> None:
        count = len(os.sched_getaffinity(0)) if jobs is None else jobs
        if count < 1:
            raise ValueError(f"jobs: less than 1: {jobs!r}")
        self.jobs = count
        workers = -(-count // OF_ONE_WORKER)
        self._links = [Links(-(-count // workers)) for _ in range(workers)]
        self._room = AHEAD * count
        self._lock = threading.Lock()
        self._waiting: deque[Asked] = deque()
        self._running: dict[int, tuple[Link, Links, Asked]] = {}
        self._next, self._closed, self._pid = 0, False, os.getpid()
        self._direct, self._idle = 0, threading.Condition(self._lock)
        self._thread: threading.Thread | None = None
        self._wake, self._bell = socket.socketpair()

    def run(self, sandbox: Sandbox, argv: Program, **options: Any) -> Result:
        """Run ARGV in SANDBOX to its end; return the Result. OPTIONS as of Sandbox.run().

        The shortest way for one program at a time: no thread is between.
        """
        message, files = self._order(sandbox, argv, **options)
        with self._lock:
            if self._closed:
                close_all(files)
                raise RuntimeError(CLOSED)
            self._direct += 1
            links = self._choose()
        try:
            return result_of(links.ask(message, files))
        finally:
            with self._lock:
                self._direct -= 1
                self._idle.notify_all()

    def submit(  # type: ignore[override]
        self, sandbox: Sandbox, argv: Program, /, **options: Any
    ) -> Future[Result]:
        """Have ARGV run in SANDBOX when its turn comes; return the Future of the Result.

        OPTIONS as of Sandbox.run(): input, stdin, stdout, stderr, env, time. To
        cancel the Future before its turn takes it out; later it runs to its end.
        """
        message, files = self._order(sandbox, argv, **options)
        return self._submit(message, files, result_of)

    def submit_task(self, line: bytes) -> Future[bytes]:
        """Have the request LINE of hako-task(5) answered; return the Future of the response, a line."""
        self._check()
        return self._submit({"task": line}, [], lambda told: told["response"])

    def map(  # type: ignore[override]
        self, sandbox: Sandbox, argvs: Iterable[Program], /, *, timeout: float | None = None, **options: Any
    ) -> Iterator[Result]:
        """The Results of each of ARGVS in SANDBOX, in their order; no more of them are taken than have room.

        TIMEOUT is in seconds, for each; OPTIONS as of submit().
        """
        futures: deque[Future[Result]] = deque()
        try:
            for argv in argvs:
                futures.append(self.submit(sandbox, argv, **options))
                while len(futures) > 2 * self._room or (futures and futures[0].done()):
                    yield futures.popleft().result(timeout)
            while futures:
                yield futures.popleft().result(timeout)
        finally:
            for future in futures:
                future.cancel()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more; with WAIT, return when all has ended and the workers are gone."""
        dropped: list[Asked] = []
        with self._lock:
            self._closed = True
            if cancel_futures:
                dropped += self._waiting
                self._waiting.clear()
            thread = self._thread
        for future, _, files, _ in dropped:
            close_all(files)
            future.cancel()
            future.set_running_or_notify_cancel()
        if thread is None:
            self._finish(wait)
        else:
            self._ring()
            if wait:
                thread.join()

    def _finish(self, wait: bool = True) -> None:
        """End the workers, if nobody needs them."""
        with self._lock:
            while self._direct and wait:
                self._idle.wait()
            if self._direct:
                return  # they end with this process at the latest
        for links in self._links:
            links.close()
        self._wake.close()
        self._bell.close()

    def _order(
        self,
        sandbox: Sandbox,
        argv: Program,
        *,
        input: Text | None = None,
        stdin: Any = None,
        stdout: Any = -10,
        stderr: Any = -10,
        env: Mapping[str, str] | None = None,
        time: float | None = None,
    ) -> tuple[dict[str, Any], list[int]]:
        self._check()
        return order(sandbox, argv, (stdin, stdout, stderr), input, env, time)

    def _check(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError("a Pool is of use in the process that made it")
        if self._closed:
            raise RuntimeError(CLOSED)

    def _choose(self) -> Links:
        self._next += 1
        return self._links[self._next % len(self._links)]

    def _submit(self, message: dict[str, Any], files: list[int], read: Callable[[dict[str, Any]], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                close_all(files)
                raise RuntimeError(CLOSED)
            self._waiting.append((future, message, files, read))
            failed = self._send()
            if self._thread is None:
                self._thread = threading.Thread(target=self._listen, name="hako.Pool", daemon=True)
                self._thread.start()
            self._ring()
        tell(failed)
        return future

    def _ring(self) -> None:
        try:
            self._bell.send(b"r", socket.MSG_DONTWAIT)
        except OSError:
            pass  # it has been rung often enough, or nobody listens any more

    def _send(self) -> list[Failed]:
        """Send what waits, as far as there is room; the lock is held. Return what failed, to be told without it."""
        failed: list[Failed] = []
        while self._waiting and len(self._running) < self._room:
            asked = self._waiting.popleft()
            future, message, files, _ = asked
            if not future.set_running_or_notify_cancel():
                close_all(files)
                continue
            links = self._choose()
            try:
                link = links.begin(message, files)
            except (Failure, OSError) as err:
                failed.append((future, err))
                continue
            self._running[link.fileno()] = link, links, asked
        return failed

    def _listen(self) -> None:
        """Take the answers, in a thread of its own."""
        poll = select.poll()
        poll.register(self._wake.fileno(), select.POLLIN)
        known: set[int] = set()
        while True:
            with self._lock:
                now = set(self._running)
                over = self._closed and not now and not self._waiting
            if over:
                self._finish()
                return
            for fd in now - known:
                poll.register(fd, select.POLLIN)
            known |= now
            for fd, _ in poll.poll():
                if fd == self._wake.fileno():
                    self._wake.recv(4096)
                    continue
                poll.unregister(fd)
                known.discard(fd)
                self._take(fd)

    def _take(self, fd: int) -> None:
        """Take the answer at FD, and send what waits for its place."""
        with self._lock:
            link, links, (future, _, _, read) = self._running.pop(fd)
        found: Any = None
        failed: BaseException | None = None
        try:
            found = read(links.end(link))
        except Exception as err:
            failed = err
        with self._lock:
            unsent = self._send()
        if failed is None:
            future.set_result(found)
        else:
            future.set_exception(failed)
        tell(unsent)


def tell(failed: list[Failed]) -> None:
    """Tell the futures of those that FAILED."""
    for future, err in failed:
        future.set_exception(err)
