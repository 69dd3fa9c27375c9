"""Where the output of a task goes: pipes, files to copy and both streams in order, each with a limit.

A sink has a source, a descriptor to read from, and a way out, into which it
writes no more than its limit. It never waits. Whoever has sinks waits, all
of this in a loop:

    fd, events   what to wait for next, as of poll(2); fd is None when there is nothing to wait for
    serve()      call it then; what it does changes fd and events
    drain()      call it when all who could write are gone, and again when fd is ready, until it is true
    overrun      whether there was more than the limit
    count        bytes that were taken, of which some may not be written yet
    close()      closes source and way out, whatever is left

A way out that fails is a Failure, in the words of the sandals tool: the sink
is closed then. SIGPIPE must be ignored, else it kills who writes.
"""

import os
import select
from _socket import AF_UNIX, SO_SNDBUF, SOCK_SEQPACKET, SOL_SOCKET, socket, socketpair

from hako import output
from hako.failure import Failure

PIECE = 1 << 16  # bytes that are read at once
PIECES = 64  # of them in one drain(), so that nobody else waits long
SO_TIMESTAMPNS = 35
TIMESTAMP = 32  # bytes that it takes, by cmsg(3): no room for descriptors, which PROG might send
MSG_TRUNC = 0x20
# What both streams hold, each, and a little more than PROG can write at once: the most that Linux allows unless told
# otherwise, net.core.wmem_max, and the kernel doubles what it is told.
SEND_BUFFER = 212992
LARGEST_PACKET = 2 * SEND_BUFFER
OF_STDERR = 1 << 31
HEADER = 4
ENXIO, EMSGSIZE = 6, 90


def failed(what: str, name: str, errno: int) -> Failure:
    """The Failure that WHAT was being done to NAME, and ERRNO came of it."""
    return Failure(f"{what} '{name}': {os.strerror(errno)}", errno=errno)


class File:
    """A way out: the file NAME, open as FD, which it closes; a write to it WAITS for its reader or not."""

    __slots__ = ("fd", "name", "waits")

    def __init__(self, fd, name, waits=False):
        self.fd, self.name, self.waits = fd, name, waits

    def write(self, data):
        """Write some of DATA, without waiting; return how much. BlockingIOError: nothing now."""
        try:
            return output.write(self.fd, data, self.waits)
        except BlockingIOError:
            raise
        except OSError as err:
            raise failed("Writing", self.name, err.errno) from err

    def close(self):
        """Close it."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


def opened(path, wait=False):
    """The File PATH, made or emptied. A fifo that nobody reads is an error, or with WAIT waited for."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOCTTY | os.O_CLOEXEC
    try:
        try:
            fd = os.open(path, flags | os.O_NONBLOCK, 0o600)
        except OSError as err:
            if not wait or err.errno != ENXIO:
                raise
            fd = os.open(path, flags, 0o600)
            os.set_blocking(fd, False)
    except OSError as err:
        raise failed("Opening", path, err.errno) from err
    return File(fd, path)


def filled(data: bytes) -> int:
    """A descriptor of a file of memory with DATA in it, to be read from its beginning, which nobody can change."""
    import fcntl

    SEALED = 0x1 | 0x2 | 0x4 | 0x8  # F_SEAL_SEAL, _SHRINK, _GROW and _WRITE
    try:
        fd = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALED)
    except OSError as err:
        raise failed("Writing", "stdin", err.errno) from err
    return fd


def given(fd, name):
    """The File NAME that is open as FD, which stays open and as it is: others have it too."""
    own, waits = output.patient(fd)
    return File(own, name, waits)


class Memory:
    """A way out: what is written is in `data`, a bytearray."""

    __slots__ = ("data", "fd")

    def __init__(self):
        self.data, self.fd = bytearray(), None

    def write(self, data):
        """Take DATA, all of it."""
        self.data += data
        return len(data)

    def close(self):
        """Keep what is there."""


class Sink:
    """What comes out of the read end SOURCE of a pipe goes to OUT, a File or a Memory, at most LIMIT bytes.

    name   of the source, for messages
    rest   what was read and is not written yet
    held   whether the source stays open after an overrun, by who ends the writer: it is not to find out
    """

    __slots__ = ("count", "held", "limit", "name", "out", "overrun", "rest", "source")

    def __init__(self, source, out, limit, name="@stdout"):
        self.source, self.out, self.limit, self.name = source, out, limit, name
        self.rest, self.count, self.overrun, self.held = b"", 0, False, False
        if source is not None:
            os.set_blocking(source, False)

    @property
    def fd(self):
        """The descriptor to wait for: the way out if that is what it waits for, else the source; None: neither."""
        return self.out.fd if self.rest else None if self.overrun else self.source

    @property
    def events(self):
        """What to wait for there."""
        return select.POLLOUT if self.rest else select.POLLIN

    def serve(self):
        """Pass on a piece, or what is left of the last; return whether there was any to pass on."""
        if not self.rest and self.source is not None and not self.overrun:
            self.rest = self.admitted(self.piece())
        there = bool(self.rest)
        self.flush()
        if self.overrun and not self.held:
            self.end()
        return there

    def drain(self):
        """Pass on what is there; return whether that was all, and then close."""
        for _ in range(PIECES):
            if not self.serve() or self.fd is None:
                self.close()
                return True
            if self.rest:
                return False
        return False

    def piece(self):
        """The next bytes from the source, b"" if there are none now."""
        try:
            data = os.read(self.source, PIECE)
        except BlockingIOError:
            return b""
        except OSError as err:
            raise self.stopped(failed("Reading", self.name, err.errno)) from err
        if not data:
            self.end()
        return data

    def admitted(self, data):
        """As much of DATA as the limit has room for, counted."""
        if len(data) > self.limit - self.count:
            data, self.overrun = data[: self.limit - self.count], True
        self.count += len(data)
        return data

    def flush(self):
        """Write what is left, as far as that goes."""
        try:
            while self.rest:
                self.rest = self.rest[self.out.write(self.rest) :]
        except BlockingIOError:
            pass
        except Failure as err:
            raise self.stopped(err) from err.__cause__

    def stopped(self, failure):
        """FAILURE, with all closed."""
        self.close()
        return failure

    def end(self):
        """Take no more: whoever still writes finds out."""
        if self.source is not None:
            os.close(self.source)
            self.source = None

    def close(self):
        """Close both ends, whatever is left."""
        self.end()
        self.out.close()
        self.rest = b""


class Copy(Sink):
    """The file open as SOURCE goes to the File OUT, from its beginning, once drain() is called.

    Not before is there anything to wait for. The offset stays as it is: whoever writes the file shares that.
    """

    __slots__ = ("started",)

    def __init__(self, source, out, limit, name):
        super().__init__(None, out, limit, name)
        self.source, self.started = source, False

    @property
    def fd(self):
        """The descriptor of the way out, once it has begun."""
        return self.out.fd if (self.started and self.source is not None) or self.rest else None

    @property
    def events(self):
        """What to wait for there."""
        return select.POLLOUT

    def drain(self):
        """Copy what fits into the way out now; return whether that was all, and then close."""
        self.started = True
        return super().drain()

    def piece(self):
        """The next bytes of the file."""
        try:
            data = os.pread(self.source, PIECE, self.count)
        except OSError as err:
            raise self.stopped(failed("Reading", self.name, err.errno)) from err
        if not data:
            self.end()
        return data


def streams():
    """What PROG writes both streams into, and what a Streams reads: (stdout, stderr), (its ends of them).

    A pair of SOCK_SEQPACKET each: a write is a packet, with a timestamp, and
    neither end can be connected to another, as one of SOCK_DGRAM can. Made in the
    sandbox's network namespace, as PROG can give its ends names there.
    """
    ours, theirs = [], []
    for _ in range(2):
        reader, writer = socketpair(AF_UNIX, SOCK_SEQPACKET)
        reader.setsockopt(SOL_SOCKET, SO_TIMESTAMPNS, 1)
        writer.setsockopt(SOL_SOCKET, SO_SNDBUF, SEND_BUFFER)
        ours.append(reader.detach())
        theirs.append(writer.detach())
    return tuple(theirs), tuple(ours)


class Stream:
    """One of both streams: the SOCKET that its packets come from, and the KIND that their headers have.

    head    a packet that was read and has not had its turn, or None
    stamp   when it was written: seconds and nanoseconds
    """

    __slots__ = ("head", "kind", "name", "socket", "stamp")

    def __init__(self, fd, kind, name):
        self.socket = socket(fileno=fd)
        self.socket.setblocking(False)
        self.kind, self.name, self.head, self.stamp = kind, name, None, None


class Streams(Sink):
    """Both streams into one file, each write a packet behind a header, in the order in which they were written.

    SOURCES are those of streams(). The header is 4 bytes, big-endian: the length,
    and for stderr the highest bit. LIMIT counts headers too, and cuts anywhere.
    A write of no bytes is none.

    The order is that of the timestamps, by the clock of the day: who sets that
    back while a task writes may see stdout and stderr change places, not packets
    of the same stream.
    """

    __slots__ = ("poll", "streams")

    def __init__(self, sources, out, limit):
        super().__init__(None, out, limit, "@stdStreams")
        self.streams = [Stream(sources[0], 0, "@stdout"), Stream(sources[1], OF_STDERR, "@stderr")]
        self.poll = select.epoll()  # of which there is one to wait for
        self.source = self.poll.fileno()
        for stream in self.streams:
            self.poll.register(stream.socket.fileno(), select.EPOLLIN)

    def piece(self):
        """The next packets, b"" if there are none now."""
        found, size = [], 0
        while size < PIECE and (stream := self.first()):
            found += [(len(stream.head) | stream.kind).to_bytes(HEADER, "big"), stream.head]
            size += HEADER + len(stream.head)
            stream.head = None
        for stream in self.streams:
            # Its end of the socket can always be written to: what has been read makes us ready at once.
            self.poll.modify(stream.socket.fileno(), select.EPOLLIN | (select.EPOLLOUT if stream.head else 0))
        if not self.streams:
            self.end()
        return b"".join(found)

    def first(self):
        """The stream with the packet that comes first, None if there is no packet."""
        for stream in list(self.streams):
            self.look(stream)
        if len(self.streams) == 2 and self.streams[0].head is None and self.streams[1].head is not None:
            self.look(self.streams[0])  # something older may have come since it was looked at
        return min((stream for stream in self.streams if stream.head), key=lambda stream: stream.stamp, default=None)

    def look(self, stream):
        """Take the next packet of STREAM, if it has none and there is one."""
        while stream.head is None and stream in self.streams:
            try:
                data, control, flags, _ = stream.socket.recvmsg(LARGEST_PACKET, TIMESTAMP)
            except BlockingIOError:
                return
            except OSError as err:
                raise self.stopped(failed("Reading", stream.name, err.errno)) from err
            if flags & MSG_TRUNC:
                raise self.stopped(failed("Reading", stream.name, EMSGSIZE))
            if not control:  # that is how the end differs from a write of no bytes
                self.forget(stream)
            elif data:
                stamp = control[0][2]
                stream.stamp = int.from_bytes(stamp[:8], "little"), int.from_bytes(stamp[8:], "little")
                stream.head = data

    def forget(self, stream):
        """Be done with STREAM, whose packets have all been read."""
        self.poll.unregister(stream.socket.fileno())
        stream.socket.close()
        self.streams.remove(stream)

    def end(self):
        """Take no more: whoever still writes finds out."""
        for stream in list(self.streams):
            self.forget(stream)
        self.poll.close()
        self.source = None
