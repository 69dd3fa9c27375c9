"""Lists of system calls that a new process carries out by itself, without Python: steps.

A fork copies the whole interpreter, and its child copies every page of it that
it touches: more than half of what a sandbox costs. A child that shares this
memory (CLONE_VM) costs nothing of that, but can run no Python in it. What it
runs is CODE, some thirty instructions that take one step after the other from
a table: a system call with its arguments, where to keep the result, and where
to go on. They have no stack, so it may be the parent's. tools/steps/*.S has
the same for people, and a test compares the two.

A step is twelve 64-bit words:

    0      the number of the call
    1..6   its arguments
    7      into    address at which the result is kept, or 0
    8      zero    step to go on with if the result is 0, or 0
    9      until   the call is repeated until this is its result, or 0
    10     error   step to go on with if the call failed
    11     record  address at which two words are kept then: this step, and minus the errno

Everything lies in a Region, which other processes have at the same address.
"""

import os
import struct

from hako import foreign, kernel
from hako.failure import Failure, call, refused

WORDS = 12
SIZE = 8 * WORDS
INTO, UNTIL = 7, 9
ROOM = 8  # steps of a program
EEXIST = 17
PACK = struct.Struct(f"={WORDS}Q")
MASK = 2**64 - 1
ON = -1  # as an error: to the next step
CODE = bytes.fromhex(
    {
        "x86_64": "4989d1b8b30100000f054885c07401c34c89cbeb0c488d1d6c000000eb034889fb488b03488b7b08488b7310488b5318"
        "4c8b53204c8b43284c8b4b300f05483d01f0ffff732e488b4b384885c97403488901488b4b404885c974054885c07423"
        "488b4b484885c974054839c875b34883c360ebad488b535848891a48894208488b4b504889cbeb99",
        "aarch64": "e90302aa683680d2010000d4400000b4c0035fd6f30309aa040000147303001002000014f30300aa680240f9608640a9"
        "628e41a9649642a9010000d41ffc3fb1a2010054691e40f9490000b4200100f9692240f9490000b4400100b4692640f9"
        "690000b41f0009eb01feff5473820191eeffff176a2e40f9530100a9692a40f9f30309aae9ffff17",
    }[kernel.MACHINE]
)
# Where in there what a program begins with lies, and the second function.
START, GO = {"x86_64": (0x15, 0x1E), "aarch64": (0x1C, 0x24)}[kernel.MACHINE]
TABLE = len(CODE)
BASE = 0x400000  # address of a program of nothing but this; Regions lie from FIRST_REGION on
FIRST_REGION, LAST_REGION = 0x2000000000, 0x7000000000  # low enough for 39-bit addresses
EM = {"x86_64": 62, "aarch64": 183}[kernel.MACHINE]


class Region:
    """SIZE bytes of memory at `address`, zero at first, which other processes have at the same address.

    It is the file of memory of the descriptor `fd`. Only what is written takes memory.
    """

    __slots__ = ("address", "bytes", "fd", "size")

    def __init__(self, size):
        self.size = size
        with call("memfd_create"):
            self.fd = os.memfd_create("hako-region", os.MFD_CLOEXEC)
        try:
            with call("ftruncate memfd"):
                os.ftruncate(self.fd, size)
            self.address = place(self.fd, size)
        except Failure:
            os.close(self.fd)
            raise
        self.bytes = foreign.memory(self.address, size)

    def close(self):
        """Give it back; no process may be using it here."""
        self.bytes.release()
        kernel.munmap(self.address, self.size)
        os.close(self.fd)


_next_region = FIRST_REGION


def place(fd, size):
    """Map SIZE bytes of the file FD where no program that another process may become has anything; their address."""
    global _next_region
    for _ in range(64):
        wanted, _next_region = _next_region, _next_region + size
        if _next_region > LAST_REGION:
            _next_region = FIRST_REGION
            continue
        try:
            return kernel.mmap_at(wanted, size, fd)
        except Failure as err:
            if err.errno != EEXIST:
                raise
    raise Failure("mmap: no place for a region")


class Arena:
    """A part of a Region, from START to END, offsets, that is filled from its beginning; `at` is how far."""

    __slots__ = ("at", "end", "region", "start")

    def __init__(self, region, start, end):
        self.region, self.start, self.end, self.at = region, start, end, start

    def space(self, size, align=8):
        """The address of SIZE bytes that are not used yet."""
        at = -(-self.at // align) * align
        if at + size > self.end:
            raise refused(f"{self.end - self.start} bytes of arguments", kernel.E2BIG)
        self.at = at + size
        return self.region.address + at

    def put(self, data):
        """The address of a copy of DATA, bytes."""
        address = self.space(len(data))
        at = address - self.region.address
        self.region.bytes[at : at + len(data)] = data
        return address

    def text(self, data):
        """The address of a copy of DATA, bytes, with a NUL behind it."""
        return self.put(data + b"\0")

    def texts(self, words):
        """The address of an array of the addresses of WORDS, each bytes, with a NULL behind them."""
        addresses, at, blob = [], self.region.address + self.at, b"\0".join(words) + b"\0"
        for word in words:
            addresses.append(at)
            at += len(word) + 1
        if words:
            at = self.space(len(blob), 1) - self.region.address
            self.region.bytes[at : at + len(blob)] = blob
        return self.put(struct.pack(f"={len(words) + 1}Q", *addresses, 0))

    def words(self, *values):
        """The address of VALUES, 64-bit words."""
        return self.put(packed(values))

    def fill(self, address, *values):
        """Put VALUES, 64-bit words, at ADDRESS, which is that of space()."""
        at = address - self.region.address
        self.region.bytes[at : at + 8 * len(values)] = packed(values)


def packed(values):
    """VALUES, 64-bit words, as bytes."""
    return struct.pack(f"={len(values)}Q", *[value & MASK for value in values])


class Steps:
    """Steps of one process, that are put one behind the other from the address `first` on, or AT.

    There is room for ROOM of them. ARENA has what their arguments point to. FAIL is the address of the step to
    go on with if one fails, RECORD that of the two words kept then; NAMES,
    {address of a step: (what it does, {errno: hint})}, says for messages what
    it was.
    """

    __slots__ = ("arena", "end", "fail", "first", "here", "names", "record")

    def __init__(self, arena, room, fail, record, names, at=None):
        self.arena = arena
        self.first = self.here = arena.space(room * SIZE) if at is None else at
        self.end = self.here + room * SIZE
        self.fail, self.record, self.names = fail, record, names

    def call(self, name, *args, what=None, into=0, zero=0, until=0, error=None, record=None):
        """Put the system call NAME; WHAT it does, for messages. Return the address of the step.

        ARGS are numbers, bytes, which are text, or None. ERROR: where to go on if it fails, ON for the
        next step.
        """
        return self.put(kernel.NUMBER[name], what or name, None, args, into, zero, until, error, record)

    def ready(self, ready, error=None, record=None):
        """Put what a function of kernel that ends in _call has made ready: no pointers in what it points to."""
        text, hints, (number, *args) = ready
        return self.put(number, text, hints, args, error=error, record=record)

    def go_to(self, step):
        """Put going on with the STEP, by a call that does nothing."""
        self.call("close_range", 2**32 - 2, 2**32 - 2, zero=step)

    def put(self, number, text, hints, args, into=0, zero=0, until=0, error=None, record=None):
        """Put the call NUMBER with ARGS, TEXT and HINTS for messages."""
        here = self.here
        if here == self.end:
            raise Failure("more steps than there is room for")
        self.here = here + SIZE
        arena = self.arena
        words = [
            arg & MASK
            if type(arg) is int
            else 0
            if arg is None
            else arena.text(arg)
            if type(arg) is bytes
            else arena.put(bytes(arg))
            for arg in args
        ]
        words += [0] * (6 - len(words))
        error = self.fail if error is None else self.here if error is ON else error
        at = here - arena.region.address
        PACK.pack_into(arena.region.bytes, at, number, *words, into, zero, until, error, record or self.record)
        self.names[here] = text, hints
        return here

    def redirect(self, step, into):
        """Have the result of the STEP kept at the address INTO."""
        at = step + 8 * INTO - self.arena.region.address
        self.arena.region.bytes[at : at + 8] = into.to_bytes(8, "little")


def until(step):
    """The address of the result for which the step at the address STEP is repeated, for `into`."""
    return step + 8 * UNTIL


class Machine:
    """CODE, where it can be run.

    clone(args, size, step)   make a child by clone3 with the clone_args at the address ARGS, of SIZE
                              bytes, which goes on with STEP; return its pid, or minus an errno
    go(step)                  this process goes on with STEP; never return
    """

    __slots__ = ("clone", "go")

    def __init__(self):
        # From a file that is never mapped writable: so it is allowed where writable code is not (PR_SET_MDWE).
        with call("memfd_create"):
            fd = memory_file("hako-steps")
        with call("write memfd"):
            os.write(fd, CODE)
        address = kernel.mmap_code(fd, len(CODE))
        os.close(fd)
        self.clone, self.go = foreign.function(address), foreign.function(address + GO)


def program(put, fails, record, names):
    """A descriptor, close-on-exec, of a program that carries out the steps that PUT puts into the Steps it gets.

    It is as small as a program can be: one segment, with CODE and the steps;
    the memory of whoever executes it is gone. FAILS, RECORD and NAMES as of Steps:
    what fails before a step has mapped those dies of it. See elf(5).
    """
    with call("memfd_create"):
        fd = memory_file("hako-init")
    head = 64 + 2 * 56
    region = Buffer(BASE, 4096)
    arena = Arena(region, head + TABLE, 4096)
    put(Steps(arena, ROOM, fails, record, names))
    region.bytes[head : head + TABLE] = CODE
    ident = b"\x7fELF\2\1\1".ljust(16, b"\0")
    entry = BASE + head + START
    header = struct.pack("=HHIQQQIHHHHHH", 2, EM, 1, entry, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = struct.pack("=IIQQQQQQ", 1, 5, 0, BASE, BASE, 4096, 4096, 0x1000)  # readable and executable
    stack = struct.pack("=IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)  # which is not
    region.bytes[:head] = ident + header + load + stack
    with call("write memfd"):
        os.write(fd, region.bytes)
    return fd


class Buffer:
    """What an Arena needs of a Region, in a process's own memory: SIZE bytes that will be at ADDRESS."""

    __slots__ = ("address", "bytes")

    def __init__(self, address, size):
        self.address, self.bytes = address, bytearray(size)


def memory_file(name):
    """A descriptor of a file of memory called NAME that may be executed."""
    MFD_EXEC = 0x10
    try:
        return os.memfd_create(name, os.MFD_CLOEXEC | MFD_EXEC)
    except OSError as err:
        if err.errno != kernel.EINVAL:  # before Linux 6.3 all may be
            raise
        return os.memfd_create(name, os.MFD_CLOEXEC)


def failure(names, step, errno):
    """The Failure of the step at the address STEP of those in NAMES, by ERRNO."""
    text, hints = names.get(step, ("a step", None))
    return refused(text, errno, (hints or {}).get(errno, ""))
