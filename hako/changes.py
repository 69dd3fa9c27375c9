"""What a sandbox changed: reads the upper layer of its overlay beside TARGET, once nobody is in there any more.

What is in there is PROG's work: only directories are opened, no symbolic link is
followed, and no mount crossed. Whatever the depth and the number of entries, few
descriptors are open and little is in memory. See hako.fresh for a root without TARGET.
"""

import _signal
import os
import stat

from hako import json, kernel, newfile, overlay, supervise
from hako.failure import Failure, call, refused, show

PIECE = 2**16  # bytes written at once
ENODATA, EOPNOTSUPP = 61, 95
BENEATH = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_NO_XDEV
LONGEST = 4096 - 257  # of a path to which any name can be added: no program takes longer ones
TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


class Listing:
    """The list of all changes, the file PATH."""

    __slots__ = ("file", "path")

    def __init__(self, path):
        self.file, self.path = newfile.replacing("--changes", path), path

    def refuse_in(self, layers):
        """Refuse a list that is in one of the overlay.Layers LAYERS."""
        directory = getattr(self.file, "directory", None)
        known = [fd for fd in (layers.target, layers.upper) if fd is not None]
        if directory is not None and any(overlay.is_in(directory, fd) for fd in known):
            self.close()
            raise Failure(f"--changes: {show(self.path)} is in TARGET or UPPER")

    def write(self, found):
        """Write each Change of FOUND. That may take long: what ends a program ends this, and the file is as before."""
        with call("rt_sigprocmask"):
            _signal.pthread_sigmask(_signal.SIG_UNBLOCK, supervise.ENDING)
        lines, size = [], 0
        for change in found:
            lines.append(change.line())
            size += len(lines[-1])
            if size > PIECE:
                self.file.write(b"".join(lines))
                lines, size = [], 0
        self.file.write(b"".join(lines))
        self.file.place()

    def close(self):
        """Forget about it."""
        self.file.close()


class Change:
    """One difference.

    path     in the sandbox, bytes
    kind     added, changed or deleted
    status   os.stat_result of what is there, or of what was
    listed   false for a directory whose path is too long to list what is in it
    """

    __slots__ = ("kind", "listed", "path", "status")

    def __init__(self, path, kind, status, listed=True):
        self.path, self.kind, self.status, self.listed = path, kind, status, listed

    def line(self):
        """It, as a line of JSON; what of its path is no UTF-8 is in there in hexadecimal too."""
        text = self.path.decode(errors="replace")
        fields = {"path": text, "kind": self.kind, "type": TYPES[stat.S_IFMT(self.status.st_mode)], "size": None}
        if stat.S_ISREG(self.status.st_mode):
            fields["size"] = self.status.st_size
        if text.encode() != self.path:
            fields["bytes"] = self.path.hex()
        if not self.listed:
            fields["listed"] = False
        return json.dumped(fields, ", ", ": ").encode() + b"\n"


class Level:
    """A directory that is being read.

    path     below the root of the layer, or of the file system, bytes
    below    whether TARGET has a directory there
    opaque   whether that is hidden
    names    what is yet to be looked at; None at the end
    at       where the rest of the directory is to be read
    upper, lower   descriptors of the two directories, while they are needed
    """

    __slots__ = ("at", "below", "lower", "names", "opaque", "path", "upper")

    def __init__(self, path, below, opaque):
        self.path, self.below, self.opaque = path, below, opaque
        self.names, self.at, self.upper, self.lower = [], 0, None, None

    def path_of(self, name):
        """The path of NAME in it."""
        return self.path + b"/" + name if self.path else name

    def close(self):
        """Let go of the descriptors."""
        for fd in (self.upper, self.lower):
            if fd is not None:
                os.close(fd)
        self.upper = self.lower = None


class Reader:
    """Reads a tree of directories, that of the descriptor UPPER; what a change is there says who inherits it."""

    __slots__ = ("upper",)

    def __init__(self, upper):
        self.upper = upper

    def changes(self):
        """Yield each Change: all that was added with a directory, only the directory where all of one was deleted."""
        levels = [Level(b"", True, False)]
        while levels:
            level = levels[-1]
            if level.upper is None:
                yield from self.open(level)
            while level.names == []:
                level.names = kernel.getdents64(level.upper)
            if level.names is None:
                level.close()
                levels.pop()
                continue
            change, deeper = self.look(level, level.names.pop())
            if change is not None:
                yield change
            if deeper is not None:
                level.at = os.lseek(level.upper, 0, os.SEEK_CUR)
                level.close()
                levels.append(deeper)

    def open(self, level):
        """Open LEVEL, for the first time or again; yield what is missing in it."""
        level.upper = open_below(self.upper, level.path, os.O_RDONLY)
        if level.at:
            os.lseek(level.upper, level.at, os.SEEK_SET)
        else:
            yield from self.missing(level)


class LayerReader(Reader):
    """Reads the upper layer of an overlay.

    lower    descriptor of the other
    opaque   the extended attribute of a directory that hides the one of TARGET
    """

    __slots__ = ("lower", "opaque")

    def __init__(self, layers):
        super().__init__(layers.upper)
        self.lower, self.opaque = layers.target, f"{overlay.mark(layers.inner)}.overlay.opaque"

    def open(self, level):
        """Open the directories of LEVEL, for the first time or again; yield what an opaque one hides."""
        level.lower = open_below(self.lower, level.path, os.O_PATH) if level.below else None
        yield from super().open(level)

    def missing(self, level):
        """Find out whether LEVEL is opaque; yield what it hides then."""
        level.opaque = level.opaque or self.is_opaque(level.upper)
        if level.opaque and level.below:
            yield from hidden(level)

    def is_opaque(self, fd):
        """Whether the directory FD of the upper layer hides the one of TARGET."""
        try:
            return os.getxattr(fd, self.opaque) == b"y"
        except OSError as err:
            if err.errno not in (ENODATA, EOPNOTSUPP):
                raise
            return False

    def look(self, level, name):
        """The Change, if it is one, that NAME in LEVEL is, and its Level, if it is a directory to be read."""
        path = level.path_of(name)
        upper, lower = status_of(level.upper, name), None
        if level.below:
            lower = status_of(level.lower, name)
        if lower is not None and is_whiteout(lower):
            lower = None
        if upper is None:
            return None, None  # somebody was faster: somebody who had entered is in there still
        if is_whiteout(upper):
            return (Change(b"/" + path, "deleted", lower) if lower else None), None
        kind = "changed" if lower else "added"
        if not stat.S_ISDIR(upper.st_mode):
            return Change(b"/" + path, kind, upper), None
        merged = lower is not None and stat.S_ISDIR(lower.st_mode)
        listed = len(path) < LONGEST
        told = not merged or not listed or attributes(upper) != attributes(lower)
        change = Change(b"/" + path, kind, upper, listed) if told else None
        return change, Level(path, merged, level.opaque) if listed else None


def hidden(level):
    """Yield a Change for each thing in the lower directory of LEVEL, opaque, that is not in the upper one."""
    fd = open_below(level.lower, b"", os.O_RDONLY)
    while (names := kernel.getdents64(fd)) is not None:
        for name in names:
            lower = status_of(fd, name)
            if lower and not is_whiteout(lower) and status_of(level.upper, name) is None:
                yield Change(b"/" + level.path_of(name), "deleted", lower)
    os.close(fd)


def open_below(root, path, flags):
    """A descriptor of the directory PATH below ROOT."""
    try:
        return kernel.openat2(root, path or b".", flags | os.O_DIRECTORY, BENEATH, "")
    except Failure as err:
        raise refused(f"openat2 {show(b'/' + path)}", err.errno) from err


def status_of(directory, name):
    """The os.stat_result of NAME in DIRECTORY, not followed; None if it is not there."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise refused(f"stat {show(name)}", err.errno) from err


def is_whiteout(status):
    """Whether STATUS is of what stands for something deleted: the character device 0:0."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def attributes(status):
    """What of STATUS is a directory's own."""
    return status.st_mode, status.st_uid, status.st_gid
