"""Files that are there whole or not at all: written without a name, then put in their place."""

import os
import stat

from hako.failure import Failure, call, refused, show

EPERM, ENOENT, EACCES, EISDIR, ENOSPC, ELOOP, EOPNOTSUPP = 1, 2, 13, 21, 28, 40, 95

# {(device and inode of the directory, name): the option}: one file is not for two.
wanted = {}


class NewFile:
    """A file on its way to PATH, the value of OPTION.

    It is opened at once, so that what cannot be written fails before anything
    happens; SIGKILL at any moment leaves no half of it.
    """

    __slots__ = ("directory", "fd", "name", "option", "path", "temporary")

    def __init__(self, option, path):
        self.option, self.path, self.temporary = option, path, None
        place, self.name = os.path.split(path)
        if self.name in ("", ".", ".."):
            raise Failure(f"{option}: not the name of a file: {path!r}")
        with call(f"{option}: open {show(place or '.')}"):
            self.directory = os.open(place or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.check()
        there = os.fstat(self.directory)
        other = wanted.setdefault((there.st_dev, there.st_ino, self.name), option)
        if other != option:
            raise Failure(f"{option}: the file of {other}: {show(path)}")
        with call(f"{option}: open O_TMPFILE {show(place or '.')}"):
            self.fd = self.unnamed()

    def check(self):
        """Refuse to replace what is in the place of the file and is not to be replaced."""
        if os.path.isdir(self.path):
            raise refused(f"{self.option}: {show(self.path)}", EISDIR)
        with call(f"{self.option}: {show(self.path)}"):
            try:
                there = os.lstat(self.name, dir_fd=self.directory)
            except FileNotFoundError:
                return
        self.check_sticky(there)

    def check_sticky(self, there):
        """Refuse to replace THERE, an os.stat_result, if it is another's in a directory like /tmp. See inode(7)."""
        directory, us = os.fstat(self.directory), os.geteuid()
        if directory.st_mode & stat.S_ISVTX and us not in (0, there.st_uid, directory.st_uid):
            raise refused(f"{self.option}: {show(self.path)} is another's in a sticky directory", EPERM)

    def unnamed(self):
        """A descriptor of a file without a name in the directory; with one that goes, where there is no O_TMPFILE."""
        flags = os.O_WRONLY | os.O_CLOEXEC
        try:
            return os.open(f"/proc/self/fd/{self.directory}", flags | os.O_TMPFILE, 0o644)
        except OSError as err:
            if err.errno not in (EISDIR, EOPNOTSUPP):
                raise
        self.temporary = self.other_name()
        return os.open(self.temporary, flags | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=self.directory)

    def other_name(self):
        """A name beside that of the file, nobody else's."""
        return f".{self.name[:200]}.{os.getpid()}.{os.urandom(4).hex()}"

    def write(self, data):
        """Write DATA, all that there is to be."""
        with call(f"write {show(self.path)}"):
            if os.write(self.fd, data) != len(data):
                raise OSError(ENOSPC, "")

    def place(self):
        """Give the file its name, in the place of whatever had it."""
        with call(f"link {show(self.path)}"):
            if self.temporary or not self.link(self.name):
                name = self.temporary or self.other_name()
                if not self.temporary and self.link(name):
                    self.temporary = name
                try:
                    os.rename(name, self.name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
                except OSError:
                    self.discard()
                    raise
                self.temporary = None

    def link(self, name):
        """Give the file without a name NAME; whether nothing has that name yet."""
        try:
            os.link(f"/proc/self/fd/{self.fd}", name, dst_dir_fd=self.directory)
        except FileExistsError:
            return False
        return True

    def discard(self):
        """Take the file away while it has another name than its own."""
        if self.temporary:
            os.unlink(self.temporary, dir_fd=self.directory)
            self.temporary = None

    def close(self):
        """Let go of it; what has not its name yet is gone."""
        self.discard()
        os.close(self.fd)
        os.close(self.directory)


class PidFile(NewFile):
    """A file that holds a pid while a sandbox can be entered. Never through a link."""

    __slots__ = ("identity",)

    def __init__(self, path):
        self.identity = None
        super().__init__("--pid-file", path)

    def check(self):
        """Refuse to replace anything but an old pid file."""
        try:
            fd = os.open(self.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.directory)
        except FileNotFoundError:
            return
        except OSError as err:
            raise Failure(f"--pid-file: {show(self.path)} is there and cannot be read: {err.strerror}") from err
        try:
            there = os.fstat(fd)
            text = os.read(fd, 32) if stat.S_ISREG(there.st_mode) else b"?"
        finally:
            os.close(fd)
        if text.strip(b"0123456789\n"):
            raise Failure(f"--pid-file: {show(self.path)} is there and is not a pid file")
        self.check_sticky(there)

    def show_pid(self, pid):
        """Write PID and show the file in its place."""
        self.write(b"%d\n" % pid)
        self.check()
        self.identity = self.inode(os.fstat(self.fd))
        self.place()

    def remove(self):
        """Take the file away, if it is still ours."""
        self.discard()
        if self.identity is None:
            return
        try:
            with call(f"unlink {show(self.path)}"):
                there = os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
                if self.inode(there) == self.identity:
                    os.unlink(self.name, dir_fd=self.directory)
        except Failure as err:
            if err.errno != ENOENT:  # somebody was faster
                raise

    @staticmethod
    def inode(result):
        """What tells one file from another."""
        return result.st_dev, result.st_ino


class Stream:
    """What is written to as it comes, the file PATH, the value of OPTION; - is stderr."""

    __slots__ = ("fd", "path")

    def __init__(self, option, path, flags=0):
        self.path = path
        if path == "-":
            self.fd = os.dup(2)
            return
        # Not waiting: not for who reads a fifo, and not when that one stops to read.
        flags |= os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        self.fd = open_in_place(f"{option}: open {show(path)}", path, flags)

    def write(self, data):
        """Write DATA, as one piece."""
        with call(f"write {show(self.path)}"):
            if os.write(self.fd, data) != len(data):
                raise OSError(ENOSPC, "")

    def place(self):
        """It is in its place."""

    def close(self):
        """Let go of it."""
        os.close(self.fd)


def replacing(option, path):
    """A file to be at PATH, the value of OPTION, whole or not at all; - is stderr.

    What is there and cannot be replaced (a fifo, a terminal, /dev/fd/3) is written to.
    """
    return Stream(option, path) if is_stream(path) else NewFile(option, path)


def recording(option, path):
    """A file at PATH, the value of OPTION, to which more and more is written; - is stderr."""
    return Stream(option, path, 0 if is_stream(path) else os.O_CREAT | os.O_TRUNC)


def open_in_place(what, path, flags):
    """A descriptor of PATH, opened with FLAGS, perhaps made; a Failure of WHAT.

    A symbolic link is not followed: somebody may have planted it, PROG of an earlier run too, if it can write there.
    """
    with call(what, "it is a symbolic link", (ELOOP,)):
        return os.open(path, flags | (0 if is_of_system(path) else os.O_NOFOLLOW), 0o644)


def is_of_system(path):
    """Whether PATH is in /dev or /proc, as /dev/stderr and /dev/fd/3, where a link is the system's."""
    return os.path.normpath(path).startswith(("/dev/", "/proc/"))


def is_stream(path):
    """Whether PATH is - or there, and neither a file nor a directory, nor a link of somebody's."""
    if path == "-":
        return True
    try:
        mode = (os.stat if is_of_system(path) else os.lstat)(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))


def check(option, path):
    """Refuse a PATH, the value of OPTION, that cannot be written."""
    if not is_stream(path):
        NewFile(option, path).close()
    elif path != "-" and not os.access(path, os.W_OK):  # not opened: the reader of a fifo would see an end
        raise refused(f"{option}: open {show(path)}", EACCES)


def clean(directory):
    """Remove the temporary files that killed commands left in DIRECTORY, a descriptor; return their names.

    One is this user's, and nobody has the pid in its name.
    """
    removed = []
    for name in sorted(filter(is_temporary, os.listdir(directory))):
        with call(f"unlink {show(name)}"):
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
            pid = name.rsplit(".", 2)[1]
            if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and not os.path.exists(f"/proc/{pid}"):
                os.unlink(name, dir_fd=directory)
                removed.append(name)
    return removed


def is_temporary(name):
    """Whether NAME is one that NewFile.other_name() makes."""
    words = name.rsplit(".", 2)
    if len(words) != 3 or not name.startswith(".") or len(words[0]) < 2 or len(words[2]) != 8:
        return False
    return words[1].isascii() and words[1].isdigit() and set(words[2]) <= set("0123456789abcdef")
