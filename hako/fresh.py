"""What a sandbox changed in the file systems that were made for it: its empty root, each tmpfs.

Before PROG runs they are read by the process inside that made them. What it found
goes out, with copies of their mounts, below which nothing is mounted. A supervisor
compares, once nobody is in there any more: the outermost, which no limit ends. As
in hako.changes, which does the reading, what is there is PROG's work.
"""

import os
import stat

from hako import changes as reading
from hako import json, kernel, sandbox, supervise
from hako.failure import call, show

# The names of what is sent: of the file that says what was there, and of the user
# namespace whose ids are those in there. A file system has the name of its place.
FOUND, USER = b"found", b"user"
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Watch(supervise.Inbox):
    """Sees what changes in a sandbox.

    listing   the changes.Listing to write
    tree      sandbox.Sandbox.mounts, which has what files were there at first
    sender    the socket by which it is told, or None where there is nobody to tell
    """

    __slots__ = ("listing", "sender", "tree")

    def __init__(self, listing, tree):
        socket, self.sender = kernel.socketpair()
        super().__init__(socket)
        self.listing, self.tree = listing, tree

    def watch(self, files):
        """As Inbox.watch(), in the process that sees."""
        self.close_sender()
        super().watch(files)

    def hand_over(self):
        """Have the next supervisor of limits watch and finish."""
        supervise.watched.append(self)
        supervise.at_end.append(self.finish)

    def take_back(self):
        """Undo that, inside: those that come behind have nothing to do with it."""
        supervise.watched.remove(self)
        supervise.at_end.remove(self.finish)

    def close_sender(self):
        """Let go of it, where nobody tells."""
        os.close(self.sender)
        self.sender = None

    def finish(self, supervisor):
        """Write the list if PROG ran, as SUPERVISOR knows, which is None if not; nobody is in there any more."""
        self.receive_the_rest()
        held = {name: fd for fd, name in self.held}
        if supervisor is None or supervisor.code is None or not supervisor.runs() or FOUND not in held:
            self.listing.close()
            return
        if USER in held:  # there this may go where PROG has made a directory that nobody may enter
            kernel.setns(held.pop(USER), kernel.CLONE_NEWUSER, "user namespace of the sandbox")
        self.listing.write(changes(held, self.tree))
        self.listing.close()


class Reader(reading.Reader):
    """Reads one of the file systems.

    path      where it is in the sandbox, bytes; b"" for the root
    known     {path in it: os.stat_result} of what was there at first, b"" is itself
    below     {path of a directory in it: names} of those
    contents  {path in the sandbox: bytes} of the files that had any, and of the symbolic links
    """

    __slots__ = ("below", "contents", "known", "path")

    def __init__(self, fd, path, known, contents):
        super().__init__(fd)
        self.path, self.known, self.contents, self.below = path, known, contents, {}
        for name in known:
            if name:
                self.below.setdefault(os.path.dirname(name), []).append(os.path.basename(name))

    def changes(self):
        """Yield each Change, as of itself."""
        status = os.fstat(self.upper)
        if reading.attributes(status) != reading.attributes(self.known[b""]):
            yield reading.Change(self.path or b"/", "changed", status)
        yield from super().changes()

    def missing(self, level):
        """Yield a Change for each thing that was in LEVEL and is not any more."""
        for name in self.below.get(level.path, ()):
            if reading.status_of(level.upper, name) is None:
                path = level.path_of(name)
                yield reading.Change(self.path + b"/" + path, "deleted", self.known[path])

    def look(self, level, name):
        """The Change, if it is one, that NAME in LEVEL is, and its Level, if it is a directory to be read."""
        path, status = level.path_of(name), reading.status_of(level.upper, name)
        if status is None:
            return None, None  # somebody was faster: somebody who had entered is in there still
        known, place = self.known.get(path), self.path + b"/" + path
        directory = stat.S_ISDIR(status.st_mode)
        listed = not directory or len(path) < reading.LONGEST
        same = known is not None and self.is_same(known, level.upper, name, status, place)
        change = None if same and listed else reading.Change(place, "changed" if known else "added", status, listed)
        return change, reading.Level(path, False, False) if directory and listed else None

    def is_same(self, known, directory, name, status, place):
        """Whether NAME in DIRECTORY, which has STATUS, is what was KNOWN at PLACE. Its times do not count."""
        if reading.attributes(status) != reading.attributes(known):
            return False
        contents = self.contents.get(place, b"")
        if stat.S_ISLNK(status.st_mode):
            return os.readlink(name, dir_fd=directory) == contents
        return stat.S_ISDIR(status.st_mode) or (
            status.st_size == len(contents) and read(directory, name, len(contents)) == contents
        )


def read(directory, name, size):
    """The first SIZE bytes of the file NAME in DIRECTORY."""
    fd = kernel.openat2(directory, name, READ, reading.BENEATH, show(name))
    with open(fd, "rb") as file, call(f"read {show(name)}"):
        return file.read(size)


def send(made, socket):
    """Send the file systems MADE, {steps: descriptor}, through SOCKET, and what is in them."""
    found = {}
    for steps, fd in sorted(made.items()):
        path = name_of(steps)
        copy = kernel.open_tree(fd, b"", kernel.AT_EMPTY_PATH | kernel.OPEN_TREE_CLONE, show(path))
        there = [(b"", os.fstat(copy))]
        there += [(change.path[1:], change.status) for change in Reader(copy, b"", dict(there), {}).changes()]
        found[path.hex()] = {name.hex(): packed(status) for name, status in there}
        kernel.send_descriptor(socket, copy, path)
        os.close(copy)
    with call("memfd_create"):
        fd = os.memfd_create("found")
    with open(fd, "wb") as file, call("write memfd"):
        file.write(json.line(found))
        file.flush()
        kernel.send_descriptor(socket, fd, FOUND)


def name_of(steps):
    """The path in the sandbox of STEPS, bytes."""
    return os.fsencode("/" + "/".join(steps))


def packed(status):
    """What of the os.stat_result STATUS counts."""
    return status.st_mode, status.st_uid, status.st_gid, status.st_size


def unpacked(mode, uid, gid, size):
    """An os.stat_result of that."""
    return os.stat_result((mode, 0, 0, 1, uid, gid, size, 0, 0, 0))


def changes(held, tree):
    """Yield each Change in the file systems HELD, {name: descriptor} as send() has sent them.

    TREE as in Watch.
    """
    found = json.read(kernel.read_memfd(held.pop(FOUND)))
    contents = {name_of(sandbox.steps(entry.dst)): data for entry in tree if (data := contents_of(entry)) is not None}
    for path, fd in held.items():
        yield from reader(fd, path, found, contents).changes()


def reader(fd, path, found, contents):
    """The Reader of the file system FD at PATH, where FOUND was found."""
    known = {bytes.fromhex(name): unpacked(*fields) for name, fields in found[path.hex()].items()}
    return Reader(fd, path.rstrip(b"/"), known, contents)


def contents_of(entry):
    """What is in the file, or what the symbolic link says, that ENTRY makes; None if it makes neither."""
    if isinstance(entry, sandbox.File):
        return os.fsencode(entry.contents)
    return os.fsencode(entry.target) if isinstance(entry, sandbox.Symlink) else None
