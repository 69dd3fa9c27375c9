"""Programs of the host that the supervisor runs for a sandbox, outside of it."""

import _signal
import os

from hako import kernel
from hako.failure import SEE_CHECK, Failure, call, show

MOST_WORDS = 1 << 12  # bytes that are kept of what a program says
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
        """Take what has come; whether more may come. Without that, one that says much waits for ever."""
        try:
            while piece := os.read(self.fd, MOST_WORDS):
                self.text = (self.text + piece)[-MOST_WORDS:]
        except BlockingIOError:
            return True
        return False


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
    os.set_blocking(ours, False)
    return pid, Said(ours)


def complaint(name, status, said):
    """Why the program NAME failed, by its wait STATUS and what it has SAID so far."""
    said.hear()
    text = said.text.decode(errors="replace")
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
    status = os.waitpid(pid, 0)[1]
    try:
        if status:
            raise Failure(complaint(name, status, said))
    finally:
        os.close(said.fd)
