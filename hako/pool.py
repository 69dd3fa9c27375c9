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
        self._next, self._closed = 0, False
        self._thread: threading.Thread | None = None
        self._wake, self._bell = socket.socketpair()

    def run(self, sandbox: Sandbox, argv: Program, **options: Any) -> Result:
        """Run ARGV in SANDBOX to its end; return the Result. OPTIONS as of Sandbox.run().

        The shortest way for one program at a time: no thread is between.
        """
        message, files = self._order(sandbox, argv, **options)
        return result_of(self._choose().ask(message, files))

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
        with self._lock:
            self._closed = True
            if cancel_futures:
                while self._waiting:
                    future, _, files, _ = self._waiting.popleft()
                    close_all(files)
                    future.cancel()
        self._ring()
        if wait:
            if self._thread is not None:
                self._thread.join()
            for links in self._links:
                links.close()

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
        if self._closed:
            raise RuntimeError("cannot run anything after shutdown")
        return order(sandbox, argv, (stdin, stdout, stderr), input, env, time)

    def _choose(self) -> Links:
        self._next += 1
        return self._links[self._next % len(self._links)]

    def _submit(self, message: dict[str, Any], files: list[int], read: Callable[[dict[str, Any]], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                close_all(files)
                raise RuntimeError("cannot run anything after shutdown")
            self._waiting.append((future, message, files, read))
            self._send()
            if self._thread is None:
                self._thread = threading.Thread(target=self._listen, name="hako.Pool", daemon=True)
                self._thread.start()
        self._ring()
        return future

    def _ring(self) -> None:
        try:
            self._bell.send(b"r", socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass  # it has been rung often enough

    def _send(self) -> None:
        """Send what waits, as far as there is room; the lock is held."""
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
                future.set_exception(err)
                continue
            self._running[link.fileno()] = link, links, asked

    def _listen(self) -> None:
        """Take the answers, in a thread of its own."""
        poll = select.poll()
        poll.register(self._wake.fileno(), select.POLLIN)
        known: set[int] = set()
        while True:
            with self._lock:
                if self._closed and not self._running and not self._waiting:
                    return
                now = set(self._running)
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
            self._send()
        if failed is None:
            future.set_result(found)
        else:
            future.set_exception(failed)
