"""The part of ctypes that hako needs, of its C half alone.

The Python half makes types, callbacks and library objects for everything at
import: 4.5 ms of a start of 16, measured. This is 0.5.
"""

import _ctypes
from _ctypes import addressof, get_errno, sizeof

__all__ = ["addressof", "call", "function", "get_errno", "memmove", "memory", "memset", "sizeof", "string_buffer"]
__all__ += ["c_char", "c_int", "c_uint32", "c_uint64", "c_void_p"]

# PYTHONAPI: the interpreter's lock is kept over the call. Without it the call
# would drop and take it, and after clone3 there would be two processes to take it.
FLAGS = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_PYTHONAPI | _ctypes.FUNCFLAG_USE_ERRNO


class c_char(_ctypes._SimpleCData):  # noqa: N801
    """char"""

    _type_ = "c"


class c_int(_ctypes._SimpleCData):  # noqa: N801
    """int"""

    _type_ = "i"


class c_uint32(_ctypes._SimpleCData):  # noqa: N801
    """uint32_t"""

    _type_ = "I"


class c_long(_ctypes._SimpleCData):  # noqa: N801
    """long, 64 bits on the architectures of hako"""

    _type_ = "l"


class c_uint64(_ctypes._SimpleCData):  # noqa: N801
    """uint64_t"""

    _type_ = "L"


class c_void_p(_ctypes._SimpleCData):  # noqa: N801
    """void *; as an argument also an int, bytes or an array"""

    _type_ = "P"


class _Function(_ctypes.CFuncPtr):
    _flags_ = FLAGS
    _restype_ = c_long


def _function(address, *argtypes):
    made = _Function(address)
    made.argtypes = argtypes
    return made


_program = _ctypes.dlopen(None, 0)
call = _function(_ctypes.dlsym(_program, "syscall"), c_long, *[c_void_p] * 6)
call.__doc__ = "syscall(2): a number and six arguments; -1 sets the errno of get_errno()."
memmove = _function(_ctypes._memmove_addr, c_void_p, c_void_p, c_uint64)
memset = _function(_ctypes._memset_addr, c_void_p, c_int, c_uint64)


def function(address):
    """The function at ADDRESS, of three 64-bit arguments, which returns one."""
    return _function(address, c_uint64, c_uint64, c_uint64)


def memory(address, size):
    """The SIZE bytes at ADDRESS, to be read and written."""
    return memoryview((c_char * size).from_address(address)).cast("B")


def string_buffer(data):
    """DATA, bytes, in memory of its own, without a zero behind it."""
    buffer = (c_char * len(data))()
    buffer.raw = data
    return buffer
