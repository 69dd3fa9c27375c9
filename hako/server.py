"""Answers requests of hako-task: one, a stream of them, or those of many clients."""

import _signal
import os
import select
import sys
import time
from _collections import deque

from hako import core, kernel, listing, output, request, supervise, task
from hako.engine import Engine
from hako.failure import Failure, call, show

PIECE = 2**16
LONGEST_NAME = 107  # bytes: see unix(7)
LONGEST = 2**28  # bytes of one request
PENDING = 2**22  # bytes of responses that wait for a reader before no more requests are taken
FIRST_FD = 3  # of those that a service manager passes on, see sd_listen_fds(3)
SO_PEERCRED, SO_ACCEPTCONN, SOL_SOCKET = 17, 30, 1
LATER = 0.1  # seconds until the next attempt to take a client for whom there was no descriptor


def load():
    """Import all that some request needs, for who cannot later; see core.main()."""
    from hako import bpf, changes, janitor, kafel, landlock, overlay, rlimits, rules, tcp

    del bpf, changes, janitor, kafel, landlock, overlay, rlimits, rules, tcp
    kernel.libseccomp()


def modules():
    """What is called once the chain is prepared, so that modules can be imported later.

    This process stays in the root where it began; but if an earlier link moves to another, all are imported now.
    """
    if core.moved:
        load()
        return lambda: None
    places = list(sys.path)
    return lambda: sys.path.extend(places)


def begin(engine, end):
    """Be what this chain ends in, with ENGINE; END is called with the number of a signal that ends this process."""
    for fds in (core.waiting, supervise.disks):  # those before see PROG run: there is no exec that shows it
        for fd in fds:
            os.close(fd)
        fds.clear()
    hold_signals(engine.loop, end)


def hold_signals(loop, end):
    """Have LOOP, a loop.Loop, call END with the number of a signal that ends this process; ignore those of pipes."""
    for number in (kernel.SIGPIPE, kernel.SIGXFSZ):
        _signal.signal(number, _signal.SIG_IGN)  # what cannot be written is found out by that
    _signal.signal(kernel.SIGCHLD, _signal.SIG_DFL)
    ending = [number for number in supervise.ENDING if _signal.getsignal(number) is not _signal.SIG_IGN]
    with call("rt_sigprocmask"):
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ending)
    fd = kernel.signalfd(ending)
    loop.watch(fd, lambda: end(kernel.read_signal(fd)[0]))


def enlist(engine):
    """Have hako-ps list this process and what ENGINE runs, unless an earlier link is listed in the place of it."""
    if not core.moved:
        listing.begin(engine, "hako-task")


def die(engine, number):
    """End all that ENGINE runs, and this process with the status for the signal NUMBER."""
    engine.close()
    os._exit(128 + number)


def single():
    """What reads one request and answers it."""
    find_modules = modules()

    def enter():
        find_modules()
        engine = Engine(1, warm=False)
        begin(engine, lambda number: die(engine, number))
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
        wanted = request.checked(request.document(data))
        of = task.plan_of(wanted)
    except request.Invalid as err:
        core.write_all(1, task.line(task.invalid(err)), "stdout")
        os._exit(0 if err.inside else 1)
    except Failure as err:
        core.say(f"hako-task: {err}")
        core.write_all(1, task.line(task.failed(str(err), wanted)), "stdout")
        os._exit(1)
    enlist(engine)
    engine.submit(task.Task(of, wanted, respond, patient=True))


class Client:
    """Who sends requests through SOURCE, a line each, and takes responses from SINK, descriptors.

    WAITS: a write to sink may wait for its reader. ON_END is called with this
    when all is answered, or the reader of the responses has gone; TOLD, if it is
    given, when one more is answered.

    begun     what has come and is not taken yet
    scanned   bytes of it in which there is no end of a line
    tasks     those that are not answered
    order     with ORDERED: answers, or None for those that are not there yet, in the order of the requests
    pending   what is to be written to sink
    size      bytes of answers that are not written
    closed    whether it sends no more
    lost      why it cannot be read or written, or None
    gone      whether it takes no more
    done      how many requests are answered
    """

    __slots__ = (
        *("begun", "closed", "done", "engine", "gone", "lost", "on_end", "order", "ordered", "pending", "plans"),
        *("scanned", "sink", "size", "source", "taking", "tasks", "told", "waits"),
    )

    def __init__(self, engine, plans, source, sink, waits, on_end, ordered=False, told=None):
        self.engine, self.plans, self.on_end, self.ordered, self.told = engine, plans, on_end, ordered, told
        self.source, self.sink, self.waits = source, sink, waits
        self.begun, self.scanned, self.tasks, self.order = bytearray(), 0, set(), deque()
        self.pending, self.size, self.done, self.lost = deque(), 0, 0, None
        self.closed = self.gone = self.taking = False
        self.watch_sink()
        self.go_on()

    def has_room(self):
        """Whether one more request may be taken."""
        return len(self.tasks) < 2 * self.engine.jobs + 2 and self.size < PENDING

    def go_on(self):
        """Take requests that have come, and wait for more, as far as there is room; tell if all is over."""
        if self.taking or self.on_end is None:
            return
        self.taking = True
        while self.has_room() and (line := self.next_line()) is not None:
            if line.strip():
                self.take(line)
        self.taking = False
        loop, wanted = self.engine.loop, self.has_room() and not self.closed
        if wanted != (self.source in loop.calls):
            loop.watch(self.source, self.read) if wanted else loop.forget(self.source)
        if self.closed and not (self.begun or self.tasks or self.order or self.pending):
            self.on_end, end = None, self.on_end
            end(self)

    def next_line(self):
        """The next line of what has come, None if it is not complete."""
        end = self.begun.find(b"\n", self.scanned)
        if end < 0:
            self.scanned = len(self.begun)
            return None
        line = bytes(self.begun[:end])
        del self.begun[: end + 1]
        self.scanned = 0
        return line

    def read(self):
        """Take what there is of requests."""
        try:
            piece = os.read(self.source, PIECE)
        except BlockingIOError:
            return
        except OSError as err:
            self.lost, piece = f"read stdin: {err.strerror}", b""  # a client that vanishes
        if not piece:
            self.closed = True
            self.begun += b"\n" if self.begun else b""
        self.begun += piece
        self.go_on()
        if self.scanned > LONGEST:
            # Where the next line begins nobody knows.
            self.begun.clear()
            self.closed = True
            self.answer({"status": "requestInvalid", "description": f"More than {LONGEST} bytes"}, self.new_place())

    def new_place(self):
        """The place for one more answer."""
        place = [None]
        if self.ordered:
            self.order.append(place)
        return place

    def take(self, line):
        """Run what the LINE asks for."""
        place = self.new_place()
        try:
            document = request.document(line)
            wanted = request.checked(document)
            of = self.plans.of(document, wanted)
        except request.Invalid as err:
            self.answer(task.invalid(err), place)
            return
        except Failure as err:
            self.answer(task.failed(str(err), wanted), place)
            return
        one = task.Task(of, wanted, lambda response, one: self.answer(response, place, one))
        self.tasks.add(one)
        self.engine.submit(one)

    def answer(self, response, place, one=None):
        """Write RESPONSE, a dictionary, to the task ONE, if there was one; PLACE is its in the order."""
        self.answer_by(task.line(response), place, one)

    def answer_by(self, line, place, one=None):
        """The same, of the response as a LINE."""
        self.tasks.discard(one)
        self.done += 1
        if self.told is not None:
            self.told(self)
        if self.gone:
            return
        place[0] = line
        self.size += len(line)
        if not self.ordered:
            self.pending += place
        while self.order and self.order[0][0] is not None:
            self.pending += self.order.popleft()
        self.write()
        self.go_on()

    def write(self):
        """Write what the reader takes now."""
        try:
            while self.pending:
                data = self.pending[0]
                count = output.write(self.sink, data[:PIECE], self.waits)
                self.size -= count
                if count == len(data):
                    self.pending.popleft()
                else:
                    self.pending[0] = data[count:]
        except BlockingIOError:
            pass
        except OSError as err:
            self.leave(f"write stdout: {err.strerror}")
            return
        self.watch_sink()

    def watch_sink(self):
        """Wait for its reader to take more, if there is more, and for its end."""
        events = select.POLLOUT if self.pending else 0
        loop = self.engine.loop
        if loop.wanted.get(self.sink) != events:
            loop.forget(self.sink)
            loop.watch(self.sink, self.notice, events)

    def notice(self):
        """Its reader takes more, or is gone."""
        if self.pending:
            self.write()
            self.go_on()
        elif has_nobody(self.sink):  # else all was written since it was ready
            self.leave("write stdout: nobody reads")

    def leave(self, why):
        """It takes no more, for the reason WHY: end what it wanted."""
        self.gone = self.closed = True
        self.lost = why
        for held in (self.pending, self.order, self.begun):
            held.clear()
        self.size = 0
        self.engine.loop.forget(self.sink)
        for one in self.tasks:
            self.engine.cancel(one)
        for one in self.tasks:
            one.stop()
        self.tasks.clear()
        self.go_on()


def has_nobody(fd):
    """Whether the other end of FD is closed."""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


def stream(jobs, ordered, progress):
    """What answers the requests that come from stdin."""
    from hako.progress import Progress

    find_modules = modules()

    def enter():
        find_modules()
        engine = Engine(jobs)
        begin(engine, lambda number: die(engine, number))
        enlist(engine)
        shown = Progress("tasks") if progress else None

        def end(client):
            if shown is not None:
                shown.end(client.done)
            engine.close()
            if client.lost is not None:
                core.fail(f"hako-task: {client.lost}", core.FAILED)
            os._exit(0)

        told = None if shown is None else lambda client: shown.tell(client.done)
        Client(engine, task.Plans(), 0, *output.patient(1), end, ordered, told)
        while True:
            engine.loop.turn()

    return enter


def listen(path, jobs):
    """What answers the requests of those who connect to the socket PATH."""
    from _socket import AF_UNIX, SOCK_STREAM, socket

    if not path:
        raise Failure("--listen: not a socket: ''")
    find_modules = modules()

    def enter():
        find_modules()
        engine = Engine(jobs)
        server, made = bound(path, socket, AF_UNIX, SOCK_STREAM)
        plans, clients = task.Plans(), {}

        def close(number):
            engine.loop.forget(server.fileno())
            if made is not None:
                remove(path, made)
            for client in list(clients):
                client.leave("hako-task ends")
            die(engine, number)

        begin(engine, close)
        enlist(engine)

        def end(client):
            with_it = clients.pop(client)
            engine.loop.forget(client.sink)
            os.close(client.sink)
            with_it.close()

        def accept():
            try:
                fd, _ = server._accept()
            except BlockingIOError:
                return
            except OSError:  # it has gone again, or there are too many descriptors
                engine.loop.forget(server.fileno())
                engine.loop.at(time.monotonic() + LATER, watch)
                return
            with_it = socket(fileno=fd)
            with_it.setblocking(False)
            try:
                # Two descriptors: for both ways are waited for apart.
                sink = os.dup(fd) if may_ask(with_it) else None
            except OSError:
                sink = None
            if sink is None:
                with_it.close()
                return
            client = Client(engine, plans, fd, sink, False, end)
            clients[client] = with_it

        def watch():
            engine.loop.watch(server.fileno(), accept)

        watch()
        while True:
            engine.loop.turn()

    return enter


def may_ask(client):
    """Whether who has connected as the socket CLIENT has our uid, or is root, and is in no sandbox.

    A program may see the socket where it is, and have our uid: outside it would be as free as we are.
    """
    peer = client.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)
    pid, uid = (int.from_bytes(peer[at : at + 4], "little") for at in (0, 4))
    if uid != os.geteuid():
        return uid == 0  # which nobody in a sandbox of ours is
    own, theirs = (os.stat(f"/proc/{who}/ns/user") for who in ("self", pid))
    return os.path.samestat(own, theirs)


def bound(path, socket, *kind):
    """The listening socket PATH, and the os.stat_result of what was made; that of a service manager, and None."""
    if path == "systemd":
        return passed(socket, kind), None
    if len(os.fsencode(path)) > LONGEST_NAME:
        raise Failure(f"--listen: longer than the {LONGEST_NAME} bytes that a socket's name may have: {show(path)}")
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


def passed(socket, kind):
    """The listening socket of this KIND that the service manager has passed on. See sd_listen_fds(3)."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        raise Failure("--listen=systemd: no service manager has passed on one socket")
    with call("socket of systemd"):
        server = socket(fileno=FIRST_FD)
        if (server.family, server.type) != kind or not server.getsockopt(SOL_SOCKET, SO_ACCEPTCONN):
            raise Failure("--listen=systemd: not a Unix stream socket that listens")
        os.set_inheritable(FIRST_FD, False)
        server.setblocking(False)
    return server


def remove(path, made):
    """Remove the socket PATH, if it is the one that was MADE."""
    try:
        if os.path.samestat(os.stat(path, follow_symlinks=False), made):
            os.unlink(path)
    except OSError:
        pass
