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
PACK = struct.Struct(f"={WORDS}Q")
MASK = 2**64 - 1
ON = -1  # as an error: to the next step
CODE = bytes.fromhex(
    {
        "x86_64": "4989d1b8b30100000f054885c07401c34c89cbeb034889fb488b03488b7b08488b7310488b53184c8b53204c8b43"
        "284c8b4b300f05483d01f0ffff732e488b4b384885c97403488901488b4b404885c974054885c07423488b4b4848"
        "85c974054839c875b34883c360ebad488b535848891a48894208488b4b504889cbeb99",
        "aarch64": "e90302aa683680d2010000d4400000b4c0035fd6f30309aa02000014f30300aa680240f9608640a9628e41a96496"
        "42a9010000d41ffc3fb1a2010054691e40f9490000b4200100f9692240f9490000b4400100b4692640f9690000b4"
        "1f0009eb01feff5473820191eeffff176a2e40f9530100a9692a40f9f30309aae9ffff17",
    }[kernel.MACHINE]
)
GO = {"x86_64": 0x15, "aarch64": 0x1C}[kernel.MACHINE]  # where the second function in there begins


class Region:
    """SIZE bytes of memory at `address`, zero at first, which processes that this one forks share with it.

    Only what is written takes memory.
    """

    __slots__ = ("address", "bytes", "size")

    def __init__(self, size):
        self.size = size
        self.address = kernel.mmap_shared(size)
        self.bytes = foreign.memory(self.address, size)

    def close(self):
        """Give it back; no process may be using it here."""
        self.bytes.release()
        kernel.munmap(self.address, self.size)


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
        return self.put(struct.pack(f"={len(values)}Q", *[value & MASK for value in values]))


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

    def ready(self, ready):
        """Put what a function of kernel that ends in _call has made ready: no pointers in what it points to."""
        text, hints, (number, *args) = ready
        return self.put(number, text, hints, args)

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
            fd = os.memfd_create("hako-steps", os.MFD_CLOEXEC)
            os.write(fd, CODE)
        address = kernel.mmap_code(fd, len(CODE))
        os.close(fd)
        self.clone, self.go = foreign.function(address), foreign.function(address + GO)


def failure(names, step, errno):
    """The Failure of the step at the address STEP of those in NAMES, by ERRNO."""
    text, hints = names.get(step, ("a step", None))
    return refused(text, errno, (hints or {}).get(errno, ""))
