"""Links to a worker: the process, and the sockets by which a client has it run one program at a time each."""

from __future__ import annotations

import fcntl
import importlib.util
import marshal
import os
import signal
import socket
import sys
import threading
from typing import Any

from hako import worker
from hako.failure import Failure, call

IDLE = 64  # links that are kept for later
WORKER = "import sys; sys.path[:0] = sys.argv[3:]; from hako import worker; worker.main(*map(int, sys.argv[1:3]))"


class WorkerLost(Failure):
    """The worker has ended before the program did: how far that came is not known. The next one has another."""

    def __init__(self, line: str = "the worker was killed") -> None:
        super().__init__(line)


class Link:
    """One socket to a worker, the one with the NUMBER."""

    __slots__ = ("_pid", "_socket", "number")

    def __init__(self, ours: socket.socket, number: int) -> None:
        self._socket, self.number, self._pid = ours, number, os.getpid()

    def fileno(self) -> int:
        """The descriptor that becomes readable with the answer."""
        return self._socket.fileno()

    def send(self, message: dict[str, Any], files: list[int]) -> None:
        """Send MESSAGE with the descriptors FILES."""
        try:
            worker.send(self._socket, message, files)
        except ConnectionError as err:
            raise WorkerLost from err
        except OSError as err:
            raise Failure(f"send to the worker: {err.strerror}", errno=err.errno) from err

    def receive(self) -> dict[str, Any]:
        """Wait for the answer: what ended, or the response to a task. A Failure: it did not begin."""
        data, _ = worker.receive(self._socket)
        if data is None:
            raise WorkerLost
        told: dict[str, Any] = marshal.loads(data)
        if "lost" in told:
            raise WorkerLost(told["lost"])
        if "failure" in told:
            raise Failure(told["failure"])
        found: dict[str, Any] = told.get("result", told)
        return found

    def close(self) -> None:
        """End it: the worker ends the program."""
        end(self._socket, self._pid)


class Links:
    """The links to one worker, which runs JOBS programs at once, and to the next one should it die.

    pid   of the process that it is for: a fork of it is another's
    """

    def __init__(self, jobs: int) -> None:
        self.jobs, self.pid = jobs, os.getpid()
        self._lock = threading.Lock()
        self._idle: list[Link] = []
        self._control: socket.socket | None = None
        self._worker: int | None = None
        self._number = 0

    def take(self) -> Link:
        """A Link that nobody else has; the worker is started if need be."""
        with self._lock:
            if self._idle:
                return self._idle.pop()
            for _ in range(2):
                if self._control is None:
                    self._start()
                assert self._control is not None
                ours, theirs = pair()
                try:
                    socket.send_fds(self._control, [b"c"], [theirs.fileno()])
                    return Link(ours, self._number)
                except ConnectionError:
                    ours.close()
                    self._forget()
                finally:
                    theirs.close()
        raise WorkerLost("no worker can be started")

    def begin(self, message: dict[str, Any], files: list[int]) -> Link:
        """The Link on which MESSAGE was sent, with the descriptors FILES, which are closed."""
        try:
            while True:
                link = self.take()
                try:
                    link.send(message, files)
                    return link
                except WorkerLost:  # it died while nobody used it: nothing has begun
                    self.lost(link)
                except BaseException:
                    link.close()
                    raise
        finally:
            close_all(files)

    def end(self, link: Link) -> dict[str, Any]:
        """Wait for the answer on LINK, which is free then."""
        try:
            told = link.receive()
        except WorkerLost:
            self.lost(link)
            raise
        except Failure:
            self.give_back(link)
            raise
        except BaseException:
            link.close()  # which ends the program
            raise
        self.give_back(link)
        return told

    def ask(self, message: dict[str, Any], files: list[int]) -> dict[str, Any]:
        """Send MESSAGE with FILES, which are closed, and wait for the answer."""
        return self.end(self.begin(message, files))

    def give_back(self, link: Link) -> None:
        """LINK is free again."""
        with self._lock:
            if self._control is not None and link.number == self._number and len(self._idle) < IDLE:
                self._idle.append(link)
                return
        link.close()

    def lost(self, link: Link) -> None:
        """LINK has found its worker dead: the next one begins with another."""
        link.close()
        with self._lock:
            if link.number == self._number:  # else there is another already
                self._forget()

    def close(self) -> None:
        """End the worker, and wait for that."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        for link in self._idle:
            link.close()
        self._idle.clear()
        if self._control is not None:
            end(self._control, self.pid)
            self._control = None
        if self._worker is not None:
            try:
                os.waitpid(self._worker, 0)
            except ChildProcessError:
                pass  # somebody waits for every child of this program
            self._worker = None

    def _start(self) -> None:
        ours, theirs = pair()
        with theirs, call("posix_spawn of a worker"):
            argv = [sys.executable, "-IS", "-c", WORKER, str(self.jobs), str(self.pid), *places()]
            # posix_spawn, not fork: however large this process is.
            self._worker = os.posix_spawn(
                argv[0],
                argv,
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), worker.CONTROL),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                ],
                setsid=True,  # its sandboxes are no jobs of the caller's terminal
                setsigmask=(),
                setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
            )
        self._control = ours
        self._number += 1


def pair() -> tuple[socket.socket, socket.socket]:
    """Two sockets, whose descriptors are not those of stdin, stdout and stderr where a caller has none."""
    found = []
    with call("socketpair"):
        for made in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET):
            with made:
                found.append(socket.socket(fileno=fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, 3)))
    return found[0], found[1]


def end(ours: socket.socket, pid: int) -> None:
    """Close OURS, of the process PID, so that the other side sees its end even if a fork of that has it too."""
    if pid == os.getpid():
        try:
            ours.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side was first
    ours.close()


def close_all(files: list[int]) -> None:
    """Close the descriptors FILES."""
    for fd in files:
        os.close(fd)
    files.clear()


def places() -> list[str]:
    """Where the worker finds its modules: hako's, and those of python-prctl."""
    found = importlib.util.find_spec("_prctl")
    if found is None or found.origin is None:
        raise Failure("python-prctl is not installed")
    return [os.path.dirname(os.path.dirname(os.path.abspath(worker.__file__))), os.path.dirname(found.origin)]
