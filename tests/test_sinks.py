"""Where output goes, through real pipes, sockets, files and processes."""

import errno
import os
import select
import socket
import subprocess
import sys
import threading
import time

import pytest

from conftest import DEADLINE
from hako import sinks
from hako.failure import Failure

NO_LIMIT = 2**63 - 1
PYTHON = "/usr/bin/python3"


@pytest.fixture(autouse=True)
def nothing_stays_open():
    """Every descriptor that a test opens is closed in the end."""
    before = set(os.listdir("/proc/self/fd"))
    yield
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.fixture
def place(tmp_path):
    """A file of the caller's that output goes to."""
    return tmp_path / "dest"


def piped(out, limit=NO_LIMIT):
    """A Sink into OUT and the end of its pipe that is for writing."""
    reader, writer = os.pipe()
    return sinks.Sink(reader, out, limit), writer


def framed(out, limit=NO_LIMIT):
    """A Streams into OUT and the ends of it that are for writing."""
    writers, readers = sinks.streams()
    return sinks.Streams(readers, out, limit), writers


def run(sink, writers, *argv):
    """Run ARGV with stdout and stderr at the WRITERS, which are closed, SINK served meanwhile, and drain it."""
    stdout, stderr = writers if isinstance(writers, tuple) else (writers, subprocess.DEVNULL)
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr) as process:
        for fd in {stdout, stderr} - {subprocess.DEVNULL}:
            os.close(fd)
        serve(sink)
        status = process.wait(DEADLINE)
    drain(sink)
    return status


def ready(sink, seconds=DEADLINE):
    """Wait for SINK; whether it is ready."""
    poll = select.poll()
    poll.register(sink.fd, sink.events)
    return bool(poll.poll(seconds * 1000))


def serve(sink):
    """Serve SINK until there is nothing to wait for."""
    end = time.monotonic() + DEADLINE
    while sink.fd is not None:
        assert ready(sink)
        sink.serve()
        assert time.monotonic() < end


def drain(sink):
    """Drain SINK to its end."""
    while not sink.drain():
        assert ready(sink)


def chunks(data):
    """The chunks of DATA: [(1 or 2, bytes)]."""
    found, place = [], 0
    while place < len(data):
        header, place = int.from_bytes(data[place : place + 4], "big"), place + 4
        size = header & 0x7FFFFFFF
        found.append((2 if header >> 31 else 1, bytes(data[place : place + size])))
        assert len(found[-1][1]) == size
        place += size
    return found


# Ways out.


def test_a_file_is_made_for_the_caller_alone_and_emptied(place):
    sinks.opened(place).close()
    assert (place.stat().st_mode & 0o7777, place.read_bytes()) == (0o600, b"")
    place.write_bytes(b"before")
    place.chmod(0o644)
    sinks.opened(place).close()
    assert (place.stat().st_mode & 0o7777, place.read_bytes()) == (0o644, b"")


def test_a_file_that_cannot_be_opened_is_told_as_the_sandals_tool_does(tmp_path):
    for path, number in ((f"{tmp_path}/none/x", errno.ENOENT), (f"{tmp_path}", errno.EISDIR), ("", errno.ENOENT)):
        with pytest.raises(Failure) as caught:
            sinks.opened(path)
        assert str(caught.value) == f"Opening '{path}': {os.strerror(number)}"
        assert caught.value.errno == number


def test_a_fifo_that_nobody_reads_is_an_error_or_waited_for(place):
    os.mkfifo(place)
    with pytest.raises(Failure, match=r"^Opening '.*dest': No such device or address$"):
        sinks.opened(place)
    with subprocess.Popen(["cat", place], stdout=subprocess.PIPE) as reader:
        out = sinks.opened(place, wait=True)
        assert out.write(b"late") == 4
        out.close()
        assert reader.communicate(timeout=DEADLINE)[0] == b"late"


def test_a_given_descriptor_stays_as_it_is():
    """Others have the same description: it is not made to wait or not."""
    reader, writer = os.pipe()
    out = sinks.given(writer, "mine")
    assert (os.get_blocking(out.fd), os.get_blocking(writer)) == (False, True)
    sink, end = piped(out)
    os.write(end, b"through")
    os.close(end)
    drain(sink)
    assert os.read(reader, 100) == b"through"
    os.close(writer)
    assert os.read(reader, 100) == b""
    os.close(reader)


# Pipes.


@pytest.mark.parametrize("limit, left, overrun", [(0, b"", True), (4, b"12\n3", True), (6, b"12\n34\n", False)])
def test_a_limit_is_that_of_the_bytes_that_arrive(place, limit, left, overrun):
    sink, writer = piped(sinks.opened(place), limit)
    assert run(sink, writer, "sh", "-c", "echo 12; echo 34") in ((0, 141, -13) if overrun else (0,))
    assert (place.read_bytes(), sink.overrun, sink.count) == (left, overrun, len(left))


def test_a_limit_of_none_and_nothing_written(place):
    sink, writer = piped(sinks.opened(place), 0)
    run(sink, writer, "true")
    assert (place.read_bytes(), sink.overrun) == (b"", False)


def test_much_arrives_whole(place):
    sink, writer = piped(sinks.opened(place))
    run(sink, writer, "sh", "-c", "head -c 20000000 /dev/zero | tr '\\0' x")
    assert place.read_bytes() == b"x" * 20000000


def test_output_is_kept_in_memory():
    sink, writer = piped(sinks.Memory(), 5)
    run(sink, writer, "echo", "memory")
    assert (bytes(sink.out.data), sink.overrun) == (b"memor", True)


def test_draining_takes_what_is_there_and_does_not_wait_for_an_end():
    sink, writer = piped(sinks.Memory())
    os.write(writer, b"there")
    assert sink.drain()
    assert (bytes(sink.out.data), sink.fd) == (b"there", None)
    with pytest.raises(BrokenPipeError):
        os.write(writer, b"later")
    os.close(writer)


def test_nothing_to_serve_is_nothing():
    sink, writer = piped(sinks.Memory())
    assert not sink.serve()
    assert sink.fd is not None
    sink.close()
    sink.close()
    os.close(writer)


def test_a_reader_that_does_not_read_holds_nobody_up(place):
    """Neither serve() nor drain() waits; the source is left alone until there is room."""
    os.mkfifo(place)
    reader = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
    sink, writer = piped(sinks.opened(place))
    with subprocess.Popen(["head", "-c", "1000000", "/dev/zero"], stdout=writer) as process:
        os.close(writer)
        while sink.events == select.POLLIN:
            assert ready(sink)
            sink.serve()
        assert not ready(sink, 0)
        assert not sink.drain()
        found = 0
        while sink.fd is not None:
            found += len(os.read(reader, 1 << 20))
            assert ready(sink)
            sink.serve()
        assert process.wait(DEADLINE) == 0
    assert sink.drain()
    while data := os.read(reader, 1 << 20):
        found += len(data)
    assert found == 1000000
    os.close(reader)


def test_a_full_disk_is_told_and_closes_all():
    sink, writer = piped(sinks.opened("/dev/full"))
    os.write(writer, b"x")
    with pytest.raises(Failure) as caught:
        sink.serve()
    assert str(caught.value) == "Writing '/dev/full': No space left on device"
    assert (caught.value.errno, sink.fd) == (errno.ENOSPC, None)
    os.close(writer)


def test_a_reader_that_went_away_is_told(place):
    os.mkfifo(place)
    reader = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
    sink, writer = piped(sinks.opened(place))
    os.close(reader)
    os.write(writer, b"x")
    with pytest.raises(Failure, match=r"^Writing '.*dest': Broken pipe$"):
        sink.drain()
    os.close(writer)


# Files.


def copied(file, place, limit=NO_LIMIT):
    """A Copy of FILE, open, to PLACE."""
    return sinks.Copy(os.dup(file.fileno()), sinks.opened(place), limit, "/src")


@pytest.mark.parametrize("limit, left, overrun", [(0, b"", True), (3, b"abc", True), (6, b"abcdef", False)])
def test_a_file_is_copied_from_its_beginning(tmp_path, place, limit, left, overrun):
    with open(tmp_path / "src", "w+b") as file:
        sink = copied(file, place, limit)
        assert (sink.fd, place.read_bytes()) == (None, b"")
        subprocess.run(["printf", "abcdef"], stdout=file, check=True)
        drain(sink)
        assert os.lseek(file.fileno(), 0, os.SEEK_CUR) == 6
    assert (place.read_bytes(), sink.overrun, sink.fd) == (left, overrun, None)


def test_the_inode_is_copied_not_the_name(tmp_path, place):
    with open(tmp_path / "src", "w+b") as file:
        sink = copied(file, place)
        (tmp_path / "src").unlink()
        (tmp_path / "src").write_bytes(b"another")
        file.write(b"this")
        file.flush()
        drain(sink)
    assert place.read_bytes() == b"this"


def test_a_large_file_is_copied_a_part_at_a_time(tmp_path, place):
    data = os.urandom(1 << 20) * 9
    with open(tmp_path / "src", "w+b") as file:
        file.write(data)
        file.flush()
        sink = copied(file, place)
        assert not sink.drain()
        assert (sink.events, ready(sink)) == (select.POLLOUT, True)
        drain(sink)
    assert place.read_bytes() == data


def test_an_empty_file(tmp_path, place):
    with open(tmp_path / "src", "w+b") as file:
        drain(copied(file, place))
    assert place.read_bytes() == b""


def test_a_copy_that_finds_no_room_is_told(tmp_path):
    with open(tmp_path / "src", "w+b") as file:
        file.write(b"x")
        file.flush()
        sink = copied(file, "/dev/full")
        with pytest.raises(Failure, match=r"^Writing '/dev/full': No space left on device$"):
            sink.drain()


# Both streams in order.


def test_the_example_of_the_sandals_tool(place):
    sink, writers = framed(sinks.opened(place))
    assert run(sink, writers, "sh", "-c", "echo out; echo err>&2; printf abc") == 0
    assert place.read_bytes() == bytes.fromhex("00000004") + b"out\n" + bytes.fromhex("80000004") + b"err\n" + (
        bytes.fromhex("00000003") + b"abc"
    )


def test_a_limit_counts_headers_and_cuts_anywhere(place):
    sink, writers = framed(sinks.opened(place), 10)
    run(sink, writers, "sh", "-c", "echo out; echo err>&2; printf abc")
    assert (place.read_bytes(), sink.overrun) == (b"\0\0\0\4out\n\x80\0", True)
    exact = sinks.Memory()
    sink, writers = framed(exact, 8)
    run(sink, writers, "echo", "out")
    assert (bytes(exact.data), sink.overrun) == (b"\0\0\0\4out\n", False)


MIXED = """
import os, random
draw = random.Random(1)
for number in range(20000):
    os.write(draw.choice((1, 2)), b"%d" % number + b"." * draw.choice((0, 0, 0, 3000)))
"""


def test_the_order_across_both_streams_is_kept(place):
    """Served all the while, and whatever comes between one look and the other."""
    sink, writers = framed(sinks.opened(place))
    assert run(sink, writers, PYTHON, "-c", MIXED) == 0
    found = chunks(place.read_bytes())
    assert [int(data.partition(b".")[0]) for _, data in found] == list(range(20000))
    assert {kind for kind, _ in found} == {1, 2}


PAIRS = """
import os
for number in range(10000):
    os.write(1, b"%d" % (2 * number))
    os.write(2, b"%d" % (2 * number + 1))
    sum(range(number % 1000))
"""


def test_the_order_is_kept_when_both_streams_come_between_two_looks():
    """Whoever looks at stdout, then at stderr, must look at stdout again."""
    sink, writers = framed(sinks.Memory())
    with subprocess.Popen([PYTHON, "-c", PAIRS], stdout=writers[0], stderr=writers[1]) as process:
        for fd in writers:
            os.close(fd)
        while sink.fd is not None:
            sink.serve()  # not only when something has come: the sockets are empty most of the time
        assert process.wait(DEADLINE) == 0
    assert [int(data) for _, data in chunks(sink.out.data)] == list(range(20000))


def test_the_order_is_kept_when_all_is_read_in_the_end():
    sink, writers = framed(sinks.Memory())
    for number in range(100):
        os.write(writers[number * 7 % 3 % 2], b"%d" % number)
    drain(sink)
    assert [data for _, data in chunks(sink.out.data)] == [b"%d" % number for number in range(100)]
    for fd in writers:
        os.close(fd)


def test_a_write_of_no_bytes_ends_nothing_and_leaves_nothing():
    code = "import os\nfor fd in (1, 2, 1, 2): os.write(fd, b''); os.write(fd, b'x%d' % fd); os.write(fd, b'')"
    sink, writers = framed(sinks.Memory())
    assert run(sink, writers, PYTHON, "-c", code) == 0
    assert chunks(sink.out.data) == [(1, b"x1"), (2, b"x2"), (1, b"x1"), (2, b"x2")]


def test_a_large_write_is_one_chunk_and_a_larger_one_fails():
    code = """
import errno, os
os.write(1, b"x" * 400000)
try:
    os.write(1, b"x" * 500000)
except OSError as err:
    os.write(2, errno.errorcode[err.errno].encode())
"""
    sink, writers = framed(sinks.Memory())
    assert run(sink, writers, PYTHON, "-c", code) == 0
    assert chunks(sink.out.data) == [(1, b"x" * 400000), (2, b"EMSGSIZE")]


def test_one_stream_may_end_long_before_the_other():
    sink, writers = framed(sinks.Memory())
    assert run(sink, writers, "sh", "-c", "echo first; exec >&-; echo second >&2; echo third >&2") == 0
    assert [data for _, data in chunks(sink.out.data)] == [b"first\n", b"second\n", b"third\n"]


def test_what_has_been_read_and_not_passed_on_makes_it_ready():
    """A packet of one stream that waits for its turn is not forgotten when the sockets are empty."""
    sink, writers = framed(sinks.Memory())
    os.write(writers[0], b"x" * sinks.PIECE)
    os.write(writers[1], b"last")
    sink.serve()
    while chunks(sink.out.data)[-1] != (2, b"last"):
        assert ready(sink)
        sink.serve()
    assert not ready(sink, 0)
    sink.close()
    for fd in writers:
        os.close(fd)


def test_a_flood_does_not_hold_up_who_serves():
    """serve() takes a piece, however much comes; over the limit the writer finds out."""
    sink, writers = framed(sinks.Memory(), 10**6)
    flood = "while True: __import__('os').write(2, b'y' * 1000)"
    assert run(sink, writers, PYTHON, "-c", f"import sys; sys.excepthook = lambda *_: None\n{flood}") == 1
    assert (sink.overrun, len(sink.out.data), sink.count) == (True, 10**6, 10**6)


def test_many_threads_lose_nothing():
    sink, writers = framed(sinks.Memory())
    lines = [
        threading.Thread(target=lambda name=name: [os.write(writers[name % 2], b"%d" % name) for _ in range(500)])
        for name in range(8)
    ]
    for thread in lines:
        thread.start()
    while any(thread.is_alive() for thread in lines):
        sink.serve()
    drain(sink)
    found = [data for _, data in chunks(sink.out.data)]
    assert {data: found.count(data) for data in found} == {b"%d" % name: 500 for name in range(8)}
    for fd in writers:
        os.close(fd)


def test_what_prog_has_leads_nowhere_else():
    """Its ends cannot be connected elsewhere, listened on or used to send to another; no descriptor gets to us."""
    sink, writers = framed(sinks.Memory())
    name = f"\0hako-test-{os.getpid()}"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other,
        socket.socket(fileno=os.dup(writers[0])) as end,
    ):
        other.bind(name)
        other.listen()
        other.setblocking(False)
        for call in (lambda: end.connect(name), end.listen):
            with pytest.raises(OSError, match=r"Errno (22|106)"):
                call()
        end.sendto(b"to another", name)
        socket.send_fds(end, [b"with a descriptor"], [0])
        with pytest.raises(BlockingIOError):
            other.accept()
        drain(sink)
    assert chunks(sink.out.data) == [(1, b"to another"), (1, b"with a descriptor")]
    for fd in writers:
        os.close(fd)


def test_a_packet_that_was_cut_off_is_told():
    """PROG may make its buffer larger where net.core.wmem_max is; nothing is lost without a word."""
    sink, writers = framed(sinks.Memory())
    with socket.socket(fileno=writers[0]) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * sinks.SEND_BUFFER)
        size = end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        os.write(writers[0], b"x" * (size - 100))
        if size > sinks.LARGEST_PACKET:
            with pytest.raises(Failure, match=r"^Reading '@stdout': Message too long$"):
                sink.serve()
        else:
            drain(sink)
            assert len(sink.out.data) == size - 100 + sinks.HEADER
    os.close(writers[1])


def test_a_full_disk_is_told_of_both_streams():
    sink, writers = framed(sinks.opened("/dev/full"))
    with pytest.raises(Failure, match=r"^Writing '/dev/full': No space left on device$"):
        run(sink, writers, sys.executable, "-c", "print('x')")
