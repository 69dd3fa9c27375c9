"""Programs of the host that the supervisor runs for a sandbox, outside of it."""

import _signal
import os

from hako import kernel
from hako.failure import SEE_CHECK, Failure, call, show

KEPT = 1 << 12  # bytes of what a program says
PIPE = 1 << 16  # bytes that wait in a pipe, see pipe(7)
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def find(name, package):
    """The path of the program NAME, found on PATH; a Failure that names its PACKAGE if it is not there."""
    for place in os.environ.get("PATH", DEFAULT_PATH).split(":"):
        path = os.path.join(place or ".", name)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise Failure(f"{name}: No such file or directory [install it: Debian's package {package}; {SEE_CHECK}]")


class Said:
    """The last of what a program says on stderr: TEXT, bytes, and the descriptor FD of the pipe in which is more."""

    __slots__ = ("fd", "text")

    def __init__(self, fd):
        self.fd, self.text = fd, b""

    def hear(self):
        """Read a piece of it, and return that: b"" at the end, None if nothing has come and FD does not block.

        This is to be done while the program runs: one that says much would wait for ever.
        """
        try:
            piece = os.read(self.fd, KEPT)
        except BlockingIOError:
            return None
        self.text = (self.text + piece)[-KEPT:]
        return piece

    def hear_rest(self):
        """Read what a program that has ended left in the pipe, but not all that another there goes on saying."""
        for _ in range(PIPE // KEPT):
            if not self.hear():
                break


def start(argv, name, stdin=None):
    """Start ARGV, called NAME; return its pid and the Said of its stderr.

    Its environment is empty. Its stdin is the descriptor STDIN, or nothing.
    """
    with call("pipe2"):
        ours, its = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, its, 2)]  # first: 0 and 1 may be ours
    if stdin is None:
        actions.append((os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0))
    else:
        actions.append((os.POSIX_SPAWN_DUP2, stdin, 0))
    actions.append((os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0))
    defaults = (kernel.SIGPIPE, kernel.SIGXFSZ)
    with call("rt_sigprocmask"):
        held = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
    try:
        with call(name):
            pid = os.posix_spawn(argv[0], argv, {}, file_actions=actions, setsigmask=(), setsigdef=defaults)
    finally:
        os.close(its)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, held)  # posix_spawn(3) looks at no error while it puts it back
    return pid, Said(ours)


def complaint(name, status, said):
    """Why the program NAME failed, by its wait STATUS and what it has SAID, bytes."""
    text = said.decode(errors="replace")
    lines = [line.removeprefix(f"{name}: ") for line in text.splitlines() if line.strip()]
    code = os.waitstatus_to_exitcode(status)
    how = f"exited with status {code}" if code >= 0 else f"was killed by signal {-code}"
    return f"{name}: {show_line(lines[-1])}" if lines else f"{name} {how}"


def show_line(line):
    """LINE, which may be anything, as a part of a message."""
    return line if line.isprintable() else show(line)


def run(argv, name):
    """Run ARGV, called NAME, to its end; a Failure, with the last line that it said, unless that is status 0."""
    pid, said = start(argv, name)
    try:
        while said.hear():
            pass
    finally:
        os.close(said.fd)
        status = os.waitpid(pid, 0)[1]
    if status:
        raise Failure(complaint(name, status, said.text))
