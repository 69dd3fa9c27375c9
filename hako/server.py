"""Answers requests of hako-task: one, a stream of them, or those of many clients."""

import _signal
import os
import select
import stat
import time
from _collections import deque

from hako import core, kernel, request, supervise, task
from hako.engine import Engine
from hako.failure import Failure, call, show

PIECE = 2**16
LONGEST = 2**28  # bytes of one request
PENDING = 2**22  # bytes of responses that wait for a reader before no more requests are taken
FIRST_FD = 3  # of those that a service manager passes on, see sd_listen_fds(3)
SO_PEERCRED, SOL_SOCKET = 17, 1
EACCES = 13


def hold_signals(loop, end):
    """Have LOOP, a loop.Loop, call END with the number of a signal that ends this process; ignore those of pipes."""
    for number in (kernel.SIGPIPE, kernel.SIGXFSZ):
        _signal.signal(number, _signal.SIG_IGN)  # what cannot be written is found out by that
    _signal.signal(kernel.SIGCHLD, _signal.SIG_DFL)
    ending = [number for number in supervise.ENDING if _signal.getsignal(number) is not _signal.SIG_IGN]
    with call("rt_sigprocmask"):
        _signal.pthread_sigmask(_signal.SIG_BLOCK, ending)
    fd = kernel.signalfd(ending)
    loop.watch(fd, lambda: end(kernel.read_signal(fd)[0]))


def die(engine, number):
    """End all that ENGINE runs, and this process with the status for the signal NUMBER."""
    engine.close()
    os._exit(128 + number)


def single():
    """What reads one request and answers it."""
    core.waiting.clear()

    def enter():
        engine = Engine(1, warm=False)
        hold_signals(engine.loop, lambda number: die(engine, number))
        data = bytearray()

        def read():
            with call("read stdin"):
                piece = os.read(0, PIECE)
            if piece:
                data.extend(piece)
                if len(data) > LONGEST:
                    raise Failure(f"stdin: more than {LONGEST} bytes")
                return
            engine.loop.forget(0)
            answer(engine, bytes(data))

        # Not watched: a file is always ready, and poll(2) may know nothing of it.
        engine.loop.watch(0, read)
        while True:
            engine.loop.turn()

    return enter


def answer(engine, data):
    """Answer the request DATA by ENGINE, and end."""

    def respond(response, one):
        if response["status"] == "internalError":
            core.say(f"hako-task: {response['description']}")
        core.write_all(1, task.line(response), "stdout")
        engine.close()
        os._exit(1 if one.outside else 0)

    try:
        document = request.document(data)
        wanted = request.checked(document)
        of = task.plan_of(wanted)
    except request.Invalid as err:
        core.write_all(1, task.line(task.invalid(err)), "stdout")
        os._exit(1)
    except Failure as err:
        core.say(f"hako-task: {err}")
        core.write_all(1, task.line({"status": "internalError", "description": str(err)}), "stdout")
        os._exit(1)
    engine.submit(task.Task(of, wanted, respond, patient=True))


class Client:
    """Who sends requests through SOURCE, a line each, and takes responses from SINK, descriptors.

    begun     what has come of a line that is not complete
    tasks     those that are not answered
    order     with `ordered`: answers, or None for those that are not there yet, in the order of the requests
    pending   what is to be written to sink
    closed    whether it sends no more
    """

    __slots__ = (
        *("begun", "closed", "done", "engine", "gone", "on_end", "order", "ordered", "pending", "plans", "reading"),
        *("scanned", "sink", "size", "source", "tasks", "told", "waits"),
    )

    def __init__(self, engine, plans, source, sink, on_end, ordered=False, told=None):
        self.engine, self.plans, self.source, self.sink, self.on_end = engine, plans, source, sink, on_end
        self.begun, self.scanned, self.tasks, self.order, self.ordered = bytearray(), 0, set(), deque(), ordered
        self.pending, self.size, self.closed, self.gone, self.done, self.told = deque(), 0, False, False, 0, told
        self.reading = False
        mode = os.fstat(sink).st_mode
        self.waits = stat.S_IFMT(mode) not in (stat.S_IFSOCK, stat.S_IFREG)  # those are non-blocking, or never wait
        self.read_on()

    def read_on(self):
        """Read requests, unless enough of them wait."""
        wanted = not self.closed and len(self.tasks) < 2 * self.engine.jobs + 2 and self.size < PENDING
        if wanted and not self.reading:
            self.engine.loop.watch(self.source, self.read)
        elif not wanted and self.reading:
            self.engine.loop.forget(self.source)
        self.reading = wanted

    def read(self):
        """Take what there is of requests."""
        try:
            piece = os.read(self.source, PIECE)
        except BlockingIOError:
            return
        except OSError:
            piece = b""  # a client that vanishes
        if not piece:
            self.closed = True
            if self.begun.strip():
                self.take(bytes(self.begun))
            self.begun.clear()
        else:
            self.begun += piece
            self.take_lines()
        self.read_on()
        self.finish()

    def take_lines(self):
        """Take the complete lines of what has come."""
        while (end := self.begun.find(b"\n", self.scanned)) >= 0:
            line = bytes(self.begun[:end])
            del self.begun[: end + 1]
            self.scanned = 0
            if line.strip():
                self.take(line)
        self.scanned = len(self.begun)
        if self.scanned > LONGEST:
            self.begun.clear()
            self.scanned, self.closed = 0, True  # where the next line begins nobody knows
            self.put([task.line({"status": "requestInvalid", "description": f"More than {LONGEST} bytes"})])

    def take(self, line):
        """Run what the LINE asks for."""
        place = [None]
        if self.ordered:
            self.order.append(place)
        try:
            document = request.document(line)
            wanted = request.checked(document)
            one = task.Task(
                self.plans.of(document, wanted), wanted, lambda response, one: self.answer(response, place, one)
            )
        except request.Invalid as err:
            self.answer(task.invalid(err), place)
            return
        except Failure as err:
            self.answer({"status": "internalError", "description": str(err)}, place)
            return
        self.tasks.add(one)
        self.engine.submit(one)

    def answer(self, response, place, one=None):
        """Write RESPONSE, to the task ONE, if there was one; PLACE is its in the order."""
        self.tasks.discard(one)
        self.done += 1
        if self.told is not None:
            self.told(self)
        if self.gone:
            return
        place[0] = task.line(response)
        if not self.ordered:
            self.put(place)
        while self.order and self.order[0][0] is not None:
            self.put(self.order.popleft())
        self.read_on()
        self.finish()

    def put(self, lines):
        """Have LINES written."""
        idle = not self.pending
        self.pending += lines
        self.size += sum(map(len, lines))
        if idle and self.pending:
            self.write()

    def write(self):
        """Write what the reader takes now."""
        loop = self.engine.loop
        try:
            while self.pending:
                data = self.pending[0]
                with_room = data[:PIECE] if not self.waits else data[:4096]
                if self.waits and not is_writable(self.sink):
                    raise BlockingIOError
                count = os.write(self.sink, with_room)
                self.size -= count
                if count == len(data):
                    self.pending.popleft()
                else:
                    self.pending[0] = data[count:]
        except BlockingIOError:
            loop.watch(self.sink, self.write, select.POLLOUT) if self.sink != self.source else self.write_later()
            return
        except OSError:
            self.leave()
            return
        if self.sink in loop.calls and self.sink != self.source:
            loop.forget(self.sink)
        self.read_on()
        self.finish()

    def write_later(self):
        """The same, where both ways are one socket."""
        self.engine.loop.at(time.monotonic() + 0.005, self.write)

    def leave(self):
        """It has vanished: end what it wanted."""
        self.gone = self.closed = True
        self.pending.clear()
        self.order.clear()
        self.size = 0
        for one in list(self.tasks):
            one.stop()
            self.engine.cancel(one)
        self.tasks.clear()
        self.read_on()
        self.finish()

    def finish(self):
        """Tell if it is over."""
        if self.closed and not (self.tasks or self.order or self.pending) and self.on_end is not None:
            self.on_end, end = None, self.on_end
            end(self)


def is_writable(fd):
    """Whether FD takes some bytes now."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


def stream(jobs, ordered, progress):
    """What answers the requests that come from stdin."""
    from hako.progress import Progress

    def enter():
        engine = Engine(jobs)
        hold_signals(engine.loop, lambda number: die(engine, number))
        shown = Progress("tasks") if progress else None

        def end(client):
            if shown is not None:
                shown.end(client.done)
            failed = client.gone
            engine.close()
            os._exit(core.FAILED if failed else 0)

        told = None if shown is None else lambda client: shown.tell(client.done)
        Client(engine, task.Plans(), 0, 1, end, ordered, told)
        while True:
            engine.loop.turn()

    return enter


def listen(path, jobs):
    """What answers the requests of those who connect to the socket PATH."""
    from _socket import AF_UNIX, SOCK_STREAM, socket

    if not path:
        raise Failure("--listen: not a socket: ''")

    def enter():
        engine = Engine(jobs)
        server, made = bound(path, socket, AF_UNIX, SOCK_STREAM)
        plans, clients = task.Plans(), {}

        def close(number):
            if made is not None:
                remove(path, made)
            die(engine, number)

        hold_signals(engine.loop, close)

        def end(client):
            clients.pop(client).close()

        def accept():
            try:
                fd, _ = server._accept()
            except OSError:
                return  # it has gone again, or there are too many descriptors
            with_it = socket(fileno=fd)
            with_it.setblocking(False)
            uid = int.from_bytes(with_it.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)[4:8], "little")
            if uid not in (os.geteuid(), 0):
                with_it.close()
                return
            client = Client(engine, plans, fd, fd, end)
            clients[client] = with_it

        engine.loop.watch(server.fileno(), accept)
        while True:
            engine.loop.turn()

    return enter


def bound(path, socket, *kind):
    """The listening socket PATH, and the os.stat_result of what was made; that of a service manager, and None."""
    if path == "systemd":
        if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
            raise Failure("--listen=systemd: no service manager has passed on one socket")
        with call("socket of systemd"):
            return socket(fileno=FIRST_FD), None
    server = socket(*kind)
    umask = os.umask(0o177)  # from its first moment it is the caller's alone
    try:
        with call(f"bind {show(path)}"):
            server.bind(path)
    finally:
        os.umask(umask)
    with call(f"listen {show(path)}"):
        made = os.stat(path, follow_symlinks=False)
        server.listen(128)
    server.setblocking(False)
    return server, made


def remove(path, made):
    """Remove the socket PATH, if it is the one that was MADE."""
    try:
        if os.path.samestat(os.stat(path, follow_symlinks=False), made):
            os.unlink(path)
    except OSError:
        pass
