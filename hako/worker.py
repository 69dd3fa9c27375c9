"""The worker process of the library: runs what its clients ask for through sockets, and ends when they are gone.

It is started once and has one thread; whoever starts it is never forked. A
client, hako.library, has a connection for each program that runs at a time:
a message is what marshal makes of a dictionary, with descriptors beside it; one
that is too long for a message is in a file of memory.
"""

import _signal
import marshal
import os
import select
import sys
import time
from _socket import socket

from hako import (
    cell,
    core,
    described,
    guard,
    job,
    kernel,
    listing,
    output,
    registry,
    report,
    request,
    sinks,
    task,
    values,
)
from hako.engine import Engine
from hako.failure import EXPECTED, call, line_of

CONTROL = 0  # descriptor of the socket through which connections come
UNIX, SEQPACKET = 1, 5  # what all our sockets are: one that is not told asks the kernel
SOL_SOCKET, SO_RCVTIMEO = 1, 20
SECOND = (1).to_bytes(8, "little") + bytes(8)  # a struct timeval, until the first client has come
LARGEST, FILES = 2**16, 2048  # bytes of a message, and of the descriptors with one
LONG = b"m"  # a message that is in a file
MOST_KNOWN = 256


def main(jobs, parent):
    """Serve the process PARENT, JOBS programs at once; never return."""
    core.hold_standard_descriptors()
    for number in (kernel.SIGPIPE, kernel.SIGXFSZ, kernel.SIGINT):
        _signal.signal(number, _signal.SIG_IGN)  # ^C is for the program that uses the library
    _signal.signal(kernel.SIGCHLD, _signal.SIG_DFL)  # a client may ignore it
    sys.path.append(os.path.dirname(os.path.dirname(__file__)))
    try:
        kernel.close_range(3, 2**32 - 1)  # what the client lets its children have: somebody may wait for the end of it
        worker = Worker(Engine(jobs), kernel.pidfd_open(parent))
    except EXPECTED as err:
        refuse(line_of(err))
        os._exit(core.FAILED)
    try:
        worker.serve()
    except EXPECTED as err:
        worker.be_lost(line_of(err))
    except BaseException:
        sys.excepthook(*sys.exc_info())
    os._exit(core.FAILED)


def socket_of(fd: int) -> socket:
    """The socket whose descriptor FD is."""
    return socket(UNIX, SEQPACKET, 0, fd)


def refuse(why):
    """Tell all who ask for something that it is not to be had, and WHY, a line; return when there is nobody."""
    sockets = {CONTROL: socket_of(CONTROL)}
    while CONTROL in sockets:
        for fd in select.select(sockets, (), ())[0]:
            data, files = last(sockets[fd])
            if data is None:
                sockets.pop(fd).close()
            elif fd == CONTROL:
                sockets.update((client, socket_of(client)) for client in files)
            else:
                for file in files:
                    os.close(file)
                try:
                    send(sockets[fd], refusal(marshal.loads(data), why))
                except OSError:
                    pass  # it will read as closed


def refusal(message, why):
    """The answer to MESSAGE where nothing can be run; WHY is a line."""
    if "task" in message:
        try:
            response = task.failed(why, request.checked(request.document(message["task"])))
        except request.Invalid as err:
            response = task.invalid(err)
        return {"response": task.line(response)}
    told = report.Report(time.time())
    told.status, told.reason = "internalError", why
    return {"result": {"report": told.values()}}


class Worker:
    """What clients share: the ENGINE, the sandboxes that are known, the plans of tasks.

    pidfd   descriptor of the parent
    """

    __slots__ = ("connections", "engine", "known", "pidfd", "plans")

    def __init__(self, engine, pidfd):
        self.engine, self.pidfd = engine, pidfd
        self.known, self.plans, self.connections = {}, task.Plans(), set()

    def serve(self):
        """Take connections until the parent has ended, or wants no more."""
        control = socket_of(CONTROL)
        self.engine.loop.watch(self.pidfd, self.end)  # also if others, that it has forked, have the socket too
        self.engine.loop.watch(CONTROL, lambda: self.connect(control))
        listing.begin(self.engine, registry.LIBRARY)
        while True:
            self.engine.loop.turn()

    def end(self):
        """End with all that runs."""
        for fd in (self.pidfd, CONTROL):
            self.engine.loop.forget(fd)
        self.engine.close()
        os._exit(0)

    def be_lost(self, why):
        """Tell all clients that this worker cannot go on, and WHY; to end all is the caller's."""
        control = socket_of(CONTROL)
        control.setsockopt(SOL_SOCKET, SO_RCVTIMEO, SECOND)  # settimeout() needs poll(2), which may be what fails
        control.setblocking(not self.connections)
        while (found := last(control))[0] is not None:
            self.connections.update(Connection(self, socket_of(fd)) for fd in found[1])
            control.setblocking(False)
        for connection in list(self.connections):
            connection.job = None  # it ends with this process
            connection.lose(f"the worker ended: {why}")

    def connect(self, control):
        """Take the connections that come through CONTROL."""
        data, files = receive(control)
        if data is None:
            self.end()
        for fd in files:
            self.connections.add(Connection(self, socket_of(fd)))

    def described(self, key):
        """The described.Described of KEY, the keyword arguments of a hako.Sandbox as marshal has them."""
        given, found, read_from = self.known.get(key, (None, None, None))
        if found is None or read_from != versions(given):
            given = marshal.loads(key)
            read_from = versions(given)
            found = described.describe(given)
            if len(self.known) >= MOST_KNOWN:
                self.known.clear()
            self.known[key] = given, found, read_from
        return found


def versions(given):
    """Which version of each file of rules that GIVEN, keyword arguments of a hako.Sandbox, names is there now."""
    found = []
    for name in ("policy", "seccomp"):
        try:
            status = os.stat(given.get(name, "")) if "/" in given.get(name, "") else None
        except OSError:
            status = None
        found.append(status and (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return found


def receive(from_socket: socket) -> tuple[bytes | None, list[int]]:
    """The next message of FROM_SOCKET and its descriptors; None and none at its end. Errors: OSError."""
    try:
        data, control, _, _ = from_socket.recvmsg(LARGEST + 1, FILES, cell.CLOEXEC)
    except ConnectionError:
        data, control = b"", []
    files = cell.descriptors(control)
    if not data:
        return None, files
    if data == LONG:
        data = kernel.read_memfd(files.pop(0))
    return data, files


def last(from_socket):
    """What receive() returns, where it matters no more why there is nothing."""
    try:
        return receive(from_socket)
    except OSError:
        return None, []


def send(to_socket: socket, message: dict[str, object], files: list[int] | tuple[int, ...] = ()) -> None:
    """Send MESSAGE, a dictionary, through TO_SOCKET, with the descriptors FILES."""
    data = marshal.dumps(message)
    more = []
    if len(data) > LARGEST:
        more = [sinks.filled(data)]
        data = LONG
    rights = b"".join(fd.to_bytes(4, "little") for fd in (*more, *files))
    try:
        to_socket.sendmsg([data], [(1, cell.RIGHTS, rights)] if rights else [], kernel.MSG_NOSIGNAL)
    finally:
        for fd in more:
            os.close(fd)


class Connection:
    """One client's, who runs one program at a time; JOB is it, or None."""

    __slots__ = ("job", "socket", "worker")

    def __init__(self, worker, client):
        self.worker, self.socket, self.job = worker, client, None
        worker.engine.loop.watch(client.fileno(), self.hear)

    def hear(self):
        """Do what the client wants."""
        try:
            data, files = receive(self.socket)
        except OSError as err:
            self.lose(f"recvmsg: {err.strerror}")
            return
        if data is None:
            self.end()
            return
        message = marshal.loads(data)
        if "kill" in message:
            if self.job is not None:
                self.job.kill()
            return
        try:
            if "task" in message:
                self.job = self.task(message["task"])
            else:
                self.job = Run(self, self.worker.described(message["sandbox"]), message, files)
        except Exception as err:  # a value that nobody thought of is not to end what others run
            for fd in files:
                os.close(fd)
            self.tell({"failure": line_of(err)})
            return
        if self.job is not None:
            self.worker.engine.submit(self.job)

    def task(self, line):
        """The job of LINE, a request of hako-task(5); None if it is answered already."""
        try:
            document = request.document(line)
            wanted = request.checked(document)
            return task.Task(self.worker.plans.of(document, wanted), wanted, self.respond)
        except request.Invalid as err:
            self.tell({"response": task.line(task.invalid(err))})
            return None

    def respond(self, response, one):
        """Send RESPONSE of the Task ONE."""
        del one
        self.tell({"response": task.line(response)})

    def tell(self, message):
        """Send MESSAGE; the program is over."""
        self.job = None
        try:
            send(self.socket, message)
        except OSError as err:
            self.lose(f"sendmsg: {err.strerror}")

    def lose(self, why):
        """Tell the client that no answer can come, and WHY; end what it wanted."""
        self.socket.setblocking(False)
        last(self.socket)  # if there were something left to read, the client could not read this
        try:
            send(self.socket, {"lost": why})
        except OSError:
            pass
        self.end()

    def end(self):
        """The client is gone, or given up: so is what it wanted."""
        if self.job is not None:
            self.job.stop()
            self.job = None
        self.worker.connections.discard(self)
        self.worker.engine.loop.forget(self.socket.fileno())
        self.socket.close()


class Together(sinks.Sink):
    """A Sink whose limit, TOTAL bytes, it has together with OTHERS."""

    __slots__ = ("others", "total")

    def __init__(self, source, out, total, others):
        super().__init__(source, out, total)
        self.total, self.others = total, others

    def admitted(self, data):
        """As much of DATA as there is room for."""
        self.limit = self.total - sum(other.count for other in self.others if other is not self)
        return super().admitted(data)


class Run(job.Job):
    """What MESSAGE asks for in the sandbox OF, a described.Described, for CONNECTION, with the descriptors FILES.

    taken   {"stdout" or "stderr": its Sink}
    """

    __slots__ = ("connection", "files", "message", "of", "taken")

    def __init__(self, connection, of, message, files):
        super().__init__(of.plan, of.limits)
        self.connection, self.of, self.message, self.files, self.taken = connection, of, message, files, {}
        self.passed += files
        self.changes = of.changes
        if message.get("time") is not None:
            self.limits = type(of.limits)(**{name: getattr(of.limits, name) for name in of.limits.__slots__})
            self.limits.time = message["time"]

    def prepare(self):
        """Make the order, and open what output goes to."""
        message, null = self.message, self.engine.null
        env = {**self.of.env, **message.get("env", {})}
        argv = message["argv"]
        path = os.fsencode(env.get("PATH", described.DEFAULT_PATH))
        self.order = cell.Order(
            argv,
            [os.fsencode(f"{name}={value}") for name, value in env.items()],
            [null, null, null],
            cell.places(argv[0], path),
            os.fsencode(message.get("chdir") or self.of.chdir),
        )
        together = []
        for place, kind in enumerate(message["stdio"]):
            self.connect(place, kind, together)
        if any(guard.is_terminal(fd) for fd in self.order.stdio):
            self.order.filter = guard.terminal_filter()

    def connect(self, place, kind, together):
        """Connect PLACE, 0 to 2, as KIND says: None, the index of a descriptor, "capture", "input", "stdout" for 2."""
        limit = self.limits.output
        if kind is None:
            return
        if kind == "stdout":
            self.order.stdio[place] = self.order.stdio[1]
            return
        if kind == "input":
            self.order.stdio[place] = sinks.filled(self.message["input"])
            self.passed.append(self.order.stdio[place])
            return
        if kind != "capture" and (limit is None or place == 0):
            self.order.stdio[place] = self.files[kind]
            return
        with call("pipe2"):
            ours, theirs = os.pipe()
        self.passed.append(theirs)
        self.order.stdio[place] = theirs
        if kind == "capture":
            out = sinks.Memory()
        else:
            own, waits = output.patient(self.files[kind])
            out = sinks.File(own, "stdout" if place == 1 else "stderr", waits)
        sink = Together(ours, out, values.LARGEST if limit is None else limit, together)
        together.append(sink)
        self.sinks.append(sink)
        if kind == "capture":
            self.taken["stdout" if place == 1 else "stderr"] = sink

    def ended(self):
        """Send the result."""
        found = {"report": self.report.values()}
        for name, sink in self.taken.items():
            found[name] = bytes(sink.out.data)
        if isinstance(self.changes, bytes):
            found["changes"] = self.changes
        self.connection.tell({"result": found})
