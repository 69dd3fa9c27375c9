"""How anything in hako fails: one line that names the call and its object."""

import os

FAILED = 125  # as env(1)
ENOSYS = 38
SEE_CHECK = "see hako-check"  # in the hint of what this host refuses: that command says why


class Failure(Exception):
    """One line for stderr, and the exit status that goes with it.

    ERRNO is the kernel's error number, or None where no call failed.
    """

    def __init__(self, line: str, status: int = FAILED, errno: int | None = None) -> None:
        super().__init__(line)
        self.status = status
        self.errno = errno


EXPECTED = Failure, OSError, ImportError, MemoryError  # no bugs


class call:  # noqa: N801  reads as a verb: with call("open /x"):
    """Make one system call; its OSError becomes the Failure "WHAT: reason HINT"; HINT may be for errnos ONLY.

    A class, not contextlib: that import costs 1 ms at every start.
    """

    __slots__ = ("hint", "only", "what")

    def __init__(self, what: str, hint: str = "", only: tuple[int, ...] = ()) -> None:
        self.what, self.hint, self.only = what, hint, only

    def __enter__(self) -> "call":
        return self

    def __exit__(self, kind: object, err: BaseException | None, traceback: object) -> None:
        if isinstance(err, OSError):
            hint = "" if self.only and err.errno not in self.only else self.hint
            raise refused(self.what, err.errno, hint) from err


def line_of(err):
    """ERR as a line. Of a call that nothing names is known where it was made; what is not EXPECTED is a bug."""
    if isinstance(err, Failure):
        return str(err)
    if isinstance(err, MemoryError):
        return "out of memory"
    if isinstance(err, ImportError):
        return f"import {err.name}: {err}"  # not to be read just now; what is missing for good is found by the tests
    if not isinstance(err, OSError):
        return f"a bug in hako: {err!r}"
    if isinstance(err.filename, (str, bytes)):
        return f"{show(err.filename)}: {err.strerror}"
    frame = err.__traceback__
    while frame.tb_next is not None:
        frame = frame.tb_next
    place = f"{os.path.basename(frame.tb_frame.f_code.co_filename)}:{frame.tb_lineno}"
    return f"a system call at {place}: {err.strerror or err}"  # CPython makes some errors itself


def as_failure(err):
    """ERR, a Failure or an OSError, as a Failure."""
    return err if isinstance(err, Failure) else Failure(line_of(err), errno=err.errno)


def refused(what, errno, hint=""):
    """The Failure of the call and object WHAT that the kernel answered with ERRNO."""
    if errno == ENOSYS and SEE_CHECK not in hint:
        hint = f"{hint}; {SEE_CHECK}" if hint else SEE_CHECK
    return Failure(f"{what}: {os.strerror(errno)}" + (f" [{hint}]" if hint else ""), errno=errno)


def show(text):
    """TEXT (str or bytes) as one word for a message: as it is if it is plain, else quoted."""
    text = os.fsdecode(text)
    plain = text and text.isprintable() and not any(char in " '\"\\" for char in text)
    return text if plain else repr(text)
