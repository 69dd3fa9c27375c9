"""Who supervises a sandbox here: a file for each supervisor, which it writes itself. See hako-ps(1).

The file is locked as long as the supervisor runs, so that what a killed one
left is told from the rest, and is named by its pid, so that it does not stay
for ever. Whoever reads it compares the start time of the process: a pid alone
may be another's meanwhile, or of another pid namespace.
"""

import fcntl
import os
import time

from hako.failure import Failure, call, line_of, show

TRIES = 3  # of a reader: the file may be replaced meanwhile
# Seconds until a writer's next try: a reader that looks whether the file is locked holds a lock until it runs again.
PAUSES = (0.001, 0.004, 0.016, 0.064)
NEW = "~"  # behind the name of a file that is about to take the place of another
MOST_BYTES = 1 << 16  # of a file
LIBRARY = "import hako"  # what its worker is called in the place of a command
MOST_WORDS = 1000  # bytes of the command line of a task


def places():
    """The directories of this user's, the first to be written to if it can be had."""
    uid = os.geteuid()
    found = ["/run/hako"] if uid == 0 else [f"/run/user/{uid}/hako"]
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    if uid and own.startswith("/"):
        found.insert(0, os.path.join(own, "hako"))
    return list(dict.fromkeys((*found, f"/tmp/hako-{uid}")))


def open_directory(path, make=False):
    """A descriptor of the directory PATH, which is made if MAKE; a Failure if it is not this user's alone."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with call(f"open {show(path)}"):
        try:
            fd = os.open(path, flags)
        except FileNotFoundError:
            if not make:
                raise
            make_directory(path)
            fd = os.open(path, flags)
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        os.close(fd)
        raise Failure(f"{show(path)}: not this user's alone")
    return fd


def make_directory(path):
    """Make the directory PATH, for this user alone, unless another was faster."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass


def open_first():
    """A descriptor of the first of places() that can be had."""
    *others, last = places()
    for path in others:
        try:
            return open_directory(path, make=True)
        except Failure:
            continue
    return open_directory(last, make=True)


class Entry:
    """The file of this process, a supervisor: it is there, and locked, until remove()."""

    __slots__ = ("directory", "fd", "name")

    def __init__(self, text):
        self.directory, self.name, self.fd = open_first(), str(os.getpid()), None
        try:
            self.fd = self.locked(self.name, PAUSES)
            write(self.fd, text)
        except (OSError, Failure):
            self.remove()
            raise

    def locked(self, name, pauses=()):
        """A descriptor of the file NAME, empty, with a lock; PAUSES, in seconds, are between tries."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        for pause in (*pauses, None):
            with call(f"open {name}"):
                fd = os.open(name, flags, 0o600, dir_fd=self.directory)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_nlink:
                    return fd
            except BlockingIOError:
                pass
            os.close(fd)  # a reader took it for one that was left, and removes it
            if pause is not None:
                time.sleep(pause)
        raise Failure(f"flock {name}: somebody else has a lock")

    def rewrite(self, text):
        """Have the file say TEXT from now on. Another takes its place: nobody reads one that is half written."""
        name = f"{self.name}{NEW}"
        fd = self.locked(name)
        try:
            write(fd, text)
            with call(f"rename {name}"):
                os.rename(name, self.name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        except Failure:
            os.close(fd)  # it has no lock then: who reads removes it
            raise
        os.close(self.fd)
        self.fd = fd

    def remove(self):
        """Remove the file, if this process has it."""
        try:
            if self.fd is not None:
                os.unlink(self.name, dir_fd=self.directory)
                os.close(self.fd)
            os.close(self.directory)
        except OSError:
            pass  # it is gone already, or will be found without a lock


def write(fd, text):
    """Write TEXT into the file FD."""
    with call("write"):
        count = os.write(fd, text)
    if count < len(text):
        raise Failure("write: no room for all of it")


class Nowhere:
    """In the place of an Entry, where there is none."""

    @staticmethod
    def remove():
        """There is nothing to be removed."""


def unlisted(*_):
    """In the place of what lister() returns: nothing is listed."""
    return Nowhere


def lister(command, moved, say):
    """What a supervisor of COMMAND calls once PROG runs; it returns an Entry.

    It is called with the pid of its child and, of what it has, the pid by which
    the sandbox can be entered, the group.Group and the limits.Limits. MOVED: an
    earlier link is in a sandbox, and is listed in the place of this one. Where
    it cannot be listed, it is not, and SAY gets a line.
    """

    if moved:
        return unlisted

    def enlist(child, inside=None, own=None, limits=None):
        try:
            return Entry(text(command, child, inside, own, limits))
        except (OSError, Failure) as err:
            say(f"not listed by hako-ps: {line_of(err)}")
            return Nowhere

    return enlist


def text(command, child, inside, own, limits):
    """What there is to say of this process, the supervisor of CHILD by COMMAND: lines of bytes. The rest as above."""
    lines = [f"supervisor {os.getpid()} {start_time('self')}", f"child {child}", f"command {command}"]
    if inside is not None:
        lines.append(f"inside {inside}")
    return joined(lines + bounds(own, limits))


def joined(lines):
    """LINES, as bytes."""
    return os.fsencode("\n".join((*lines, "")))


def bounds(own, limits):
    """The lines that tell of the group.Group OWN and the limits.Limits LIMITS; each may be None."""
    lines = []
    if own is not None:
        lines += [f"cgroup {hierarchy or '-'} {path}" for hierarchy, path in own.paths.items()]
        lines += [f"home {controller} {hierarchy or '-'}" for controller, hierarchy in own.homes.items()]
    if limits is not None:
        lines += [f"limit {name} {value}" for name, value in limits.told().items() if value is not None]
    return lines


def worker_text(command, counts, tasks):
    """What there is to say of this process, which runs tasks by COMMAND: lines of bytes.

    COUNTS is {"jobs": how many it runs at once, "running", "ended"}; TASKS are
    texts, as of task_text(), of which those count that there is room for.
    """
    lines = [f"supervisor {os.getpid()} {start_time('self')}", f"command {command}"]
    text = joined(lines + [f"{name} {count}" for name, count in counts.items()])
    for one in tasks:
        if len(text) + len(one) > MOST_BYTES:
            break
        text += one
    return text


def task_text(pid, began, words, own, limits):
    """What there is to say of the task whose init is process PID: lines of bytes.

    It began at the monotonic time BEGAN, seconds, which is told in milliseconds;
    its command line is WORDS, bytes; the rest as above.
    """
    shown = b"\0".join(words)[:MOST_WORDS]
    return joined(
        [f"task {pid} {start_time(pid)}", f"began {int(began * 1000)}", f"words {shown.hex()}", *bounds(own, limits)]
    )


def start_time(pid):
    """When process PID started, in ticks since the boot, as text."""
    return stat(pid)[19]


def stat(pid):
    """The fields of /proc/PID/stat behind the name: the state, the parent's pid, ..."""
    with call(f"open /proc/{pid}/stat"), open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
        return file.read(4096).rpartition(b")")[2].decode().split()
