"""Passes on what PROG writes to stdout and stderr, and counts it: no more than a limit."""

import os
import select
import stat
import time

from hako import kernel
from hako.failure import call, refused

EAGAIN, EPIPE = 11, 32
PIECE, PIPE_BUF = 1 << 16, 4096
PATIENCE = 1.0  # seconds for a reader to take the rest, when PROG was ended by a limit


class Stream:
    """One way out of PROG: a pipe from it, and where that is passed on.

    source   the end of the pipe that PROG does not have
    prog     the end that it has; None in the supervisor
    sink     the caller's stdout or stderr, so that a write does not wait for the reader
    waits    whether a write to sink may wait for its reader
    places   the descriptors that it is for PROG: 1, 2 or both
    rest     what was read and is not passed on yet
    """

    __slots__ = ("places", "prog", "rest", "sink", "source", "waits")

    def __init__(self, places):
        self.places, self.rest = places, b""
        with call("pipe2"):
            self.source, self.prog = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self.prog, True)
        self.sink, self.waits = patient(places[0])

    def write(self):
        """Write some of the rest to the sink, without waiting; return how much. BlockingIOError: nothing now."""
        return write(self.sink, self.rest, self.waits)


class Output:
    """The output of PROG on its way: at most LIMIT bytes (None: any number) of it, counted in `count`.

    over     whether there was more
    failed   why it cannot be passed on, a Failure, or None
    """

    __slots__ = ("count", "failed", "files", "limit", "over", "streams")

    def __init__(self, limit):
        self.limit, self.count, self.over, self.failed = limit, 0, False, None
        self.streams = [Stream(places) for places in streams()]
        self.files = {}

    def take_over(self):
        """Make the pipes stdout and stderr of this process, which will be PROG."""
        for stream in self.streams:
            for fd in stream.places:
                os.dup2(stream.prog, fd)
            self.forget(stream, "source", "prog", "sink")

    def watch(self, files):
        """Register with FILES, as Supervisor.wait() has them, what there is to pass on."""
        self.files = files
        for stream in self.streams:
            self.forget(stream, "prog")
            files[stream.source] = select.POLLIN, lambda stream=stream: self.read(stream)

    @staticmethod
    def forget(stream, *names):
        """Close the descriptors NAMES of STREAM that are open."""
        for name in names:
            fd = getattr(stream, name)
            if fd is not None:
                os.close(fd)
                setattr(stream, name, None)

    def read(self, stream):
        """Take a piece of what PROG wrote to STREAM and pass it on; whether there was one."""
        try:
            data = os.read(stream.source, PIECE)
        except BlockingIOError:
            return False
        if not data:
            self.end(stream)
            return False
        if self.limit is not None and len(data) > self.limit - self.count:
            data, self.over = data[: self.limit - self.count], True
        self.count += len(data)
        stream.rest = data
        self.pass_on(stream)
        return True

    def pass_on(self, stream):
        """Write what there is of STREAM, as far as its reader takes it."""
        self.files.pop(stream.sink, None)
        try:
            while stream.rest:
                stream.rest = stream.rest[stream.write() :]
        except BlockingIOError:
            self.files.pop(stream.source, None)
            self.files[stream.sink] = select.POLLOUT, lambda: self.pass_on(stream)
            return
        except OSError as err:
            # Nobody reads any more: so will PROG find out. Anything else ends it.
            if err.errno != EPIPE:
                self.failed = refused(f"write {('stdout', 'stderr')[stream.places[0] - 1]}", err.errno)
            self.end(stream)
            return
        if self.over:
            self.end(stream)
        elif stream.source is not None:
            self.files[stream.source] = select.POLLIN, lambda: self.read(stream)

    def end(self, stream):
        """Be done with STREAM: what it leads to is to find its end as early as without us."""
        for fd in (stream.source, stream.sink):
            self.files.pop(fd, None)
        stream.rest = b""
        self.forget(stream, "source", "sink")

    def stop(self):
        """Take no more from PROG."""
        for stream in self.streams:
            if not stream.rest:
                self.end(stream)
            elif stream.source is not None:
                self.files.pop(stream.source, None)
                self.forget(stream, "source")

    def drain(self, limit_struck, signal_fd, ending):
        """Pass on what is left when all who could write are gone; until one of the signals ENDING comes by SIGNAL_FD.

        A reader who does not read is waited for, but not long when LIMIT_STRUCK.
        """
        end = time.monotonic() + PATIENCE if limit_struck else None
        poll = select.poll()
        while self.streams:
            for stream in self.streams:
                while stream.source is not None and not stream.rest and self.read(stream):
                    pass  # nothing more than what there is
            waiting = [stream for stream in self.streams if stream.sink is not None and stream.rest]
            if not waiting:
                return
            for stream in waiting:
                poll.register(stream.sink, select.POLLOUT)
            poll.register(signal_fd, select.POLLIN)
            pause = None if end is None else (end - time.monotonic()) * 1000
            ready = [fd for fd, _ in poll.poll(pause if pause is None else max(pause, 0))]
            if not ready or (signal_fd in ready and kernel.read_signal(signal_fd)[0] in ending):
                return
            for stream in waiting:
                poll.unregister(stream.sink)
                self.pass_on(stream)


def write(fd, data, waits):
    """Write some of DATA to FD, a write to which WAITS for its reader or not; return how much.

    BlockingIOError: nothing now.
    """
    if not waits:
        return os.write(fd, data)
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if not poll.poll(0):
        raise BlockingIOError(EAGAIN, "")
    return os.write(fd, data[:PIPE_BUF])  # for which there is room, by poll(2)


def streams():
    """Which of 1 and 2 are open, those that are the same file together: [(1, 2)], [(1,), (2,)] or less."""
    found = [os.fstat(fd) if is_given(fd) else None for fd in (1, 2)]
    if None not in found and os.path.samestat(*found):
        return [(1, 2)]  # one pipe keeps the order
    return [(fd,) for fd, there in zip((1, 2), found, strict=True) if there]


def is_given(fd):
    """Whether FD is the caller's, and not what core put in the place of a closed one."""
    return os.get_inheritable(fd)


def patient(fd):
    """A descriptor of what FD is, and whether a write to it may wait for its reader.

    A description of our own, if possible, which does not wait: the flag is
    shared with all who have the caller's.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        try:
            return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), False
        except OSError:
            pass  # another user's terminal, or no /proc
    with call("fcntl F_DUPFD_CLOEXEC"):
        return os.dup(fd), not stat.S_ISREG(mode)
