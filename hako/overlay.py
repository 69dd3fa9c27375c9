"""Copy on write over TARGET: the layers of an overlay.

The supervisor outside holds them: it locks UPPER, makes the work directory that
the kernel wants beside it, and takes that away again. The process that will be
PROG mounts them. What the kernel leaves in UPPER tells by itself what was done:
what is made or changed is there, the device 0:0 (a whiteout) stands for what is
deleted, and an opaque directory hides the one of TARGET. Its other marks are
off: redirect_dir, metacopy, index. See the kernel's filesystems/overlayfs.rst.
"""

import fcntl
import os
import stat

from hako import kernel
from hako.failure import SEE_CHECK, Failure, call, refused, show

ENOENT, EACCES, ENODEV, ENOTDIR, EINVAL, ELOOP, EOPNOTSUPP = 2, 13, 19, 20, 22, 40, 95
DIRECTORY = os.O_DIRECTORY | os.O_CLOEXEC
WORK = ".hako-work-"
BENEATH = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_NO_XDEV


class Layers:
    """The layers of one sandbox's overlay.

    box      the sandbox.Sandbox
    inner    whether they are mounted in a user namespace of ours
    target   descriptor of TARGET, the lower layer
    upper    that of the upper layer; of a tmpfs, once somebody has made it
    parent   that of the directory that UPPER and the work directory are in, or None
    work     that of the work directory, or None
    """

    __slots__ = ("box", "inner", "parent", "target", "upper", "work")

    def __init__(self, box, inner, target):
        self.box, self.inner, self.target = box, inner, target
        self.upper = self.parent = self.work = None
        path = box.overlay.upper
        if path is not None:
            hint = "UPPER is a directory that is there, or tmpfs"
            with call(f"--overlay: open {show(path)}", hint, (ENOENT, ENOTDIR)):
                self.upper = os.open(path, os.O_RDONLY | DIRECTORY)
            self.check_apart(path)
            self.lock(path)

    def check_apart(self, path):
        """Refuse layers of which one is in the other: TARGET would be written."""
        if is_in(self.upper, self.target):
            raise Failure(f"--overlay: {show(path)} is in TARGET, or TARGET itself")
        if is_in(self.target, self.upper):
            raise Failure(f"--overlay: TARGET is in {show(path)}")

    def lock(self, path):
        """Keep other sandboxes from UPPER as long as this process, and those it makes, have it open."""
        try:
            with call(f"flock {show(path)}"):
                fcntl.flock(self.upper, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except Failure as err:
            hint = "another sandbox has it as its UPPER" if err.errno == kernel.EAGAIN else ""
            raise refused(f"flock {show(path)}", err.errno, hint) from err

    def make_work(self, owner):
        """Make the work directory beside UPPER, for OWNER: uid and gid, or None for the caller."""
        if self.upper is None:
            return
        path = self.box.overlay.upper
        with call(f"open {show(path)}/.."):
            self.parent = os.open("..", os.O_PATH | DIRECTORY, dir_fd=self.upper)
        if mount_id(self.parent) != mount_id(self.upper):
            hint = "the work directory has its place beside UPPER: take a directory below it"
            raise Failure(f"--overlay: {show(path)} is where a file system is mounted [{hint}]")
        name, made = work_name(self.upper), True
        try:
            with call(f"mkdir {show(path)}/../{name}"):
                os.mkdir(name, 0o700, dir_fd=self.parent)
        except Failure as err:
            if not isinstance(err.__cause__, FileExistsError):
                raise
            made = False
        try:
            self.work = self.open_work(self.parent)
            self.check_work(f"{show(path)}/../{name}", owner)
        except BaseException:
            if made:
                os.rmdir(name, dir_fd=self.parent)
            raise

    def open_work(self, parent):
        """A descriptor of the work directory in PARENT."""
        name = work_name(self.upper)
        return kernel.openat2(parent, name, os.O_RDONLY | os.O_DIRECTORY, BENEATH, name)

    def check_work(self, text, owner):
        """Refuse a work directory that is not ours, or not one: what is in there the kernel removes, and so do we."""
        status = os.fstat(self.work)
        known = {os.geteuid(), *(owner or ())[:1]}
        if status.st_uid not in known or status.st_mode & 0o022 or set(os.listdir(self.work)) - {"work", "index"}:
            raise Failure(f"--overlay: {text} is there and is not a work directory of ours")
        with call(f"remove what is in {text}"):
            remove_below(self.work)  # of a volatile mount that was killed: the kernel would refuse it
        if owner is not None:
            with call(f"chown {text}"):
                os.fchown(self.work, *owner)

    def told(self):
        """Where changes go, for people."""
        return "a tmpfs" if self.box.overlay.upper is None else show(self.box.overlay.upper)

    def mount(self, target):
        """A new, unattached overlay over TARGET, the descriptor of this mount namespace; upper becomes its own."""
        path = self.box.overlay.upper
        refuse_mounts_below(target, show(self.box.target))
        if path is None:
            upper, work = self.make_in_tmpfs(target)
        else:
            upper, work = self.open_again(path)
            refuse_mounts_below(upper, show(path))
            os.close(self.upper)  # not for the lock: the supervisor has it
        self.upper = upper
        fd = mount_layers(target, upper, work, self.told())
        if path is None:
            kernel.umount2(b".", kernel.MNT_DETACH)
        os.close(work)
        return fd

    def open_again(self, path):
        """Descriptors of UPPER and of the work directory in this mount namespace: the kernel takes no others."""
        with call(f"open {show(path)}"):
            upper = os.open(path, os.O_RDONLY | DIRECTORY)
            parent = os.open("..", os.O_PATH | DIRECTORY, dir_fd=upper)
        work = self.open_work(parent)
        os.close(parent)
        for fd, known in ((upper, self.upper), (work, self.work)):
            if not os.path.samestat(os.fstat(fd), os.fstat(known)):
                raise Failure(f"--overlay: {show(path)} is another directory than before")
        return upper, work

    def make_in_tmpfs(self, target):
        """Descriptors of an upper layer that looks like TARGET, and of a work directory, in a new tmpfs.

        It is mounted over TARGET and is the current directory then: the layers
        of an overlay must be mounted (Linux < 6.15), but only until it is.
        """
        options, size = {"mode": "0700"}, self.box.overlay.size
        if size is not None:  # inodes too: each is a KiB of the kernel's memory, with nothing in the file
            options.update(size=size, nr_inodes=size // 1024 + 64)
        stage = kernel.fsmount("tmpfs", options, 0, "--overlay")
        kernel.move_mount(stage, target, "--overlay")
        with call("fchdir tmpfs"):
            os.fchdir(stage)
        os.close(stage)
        looks = os.fstat(target)
        with call("mkdir tmpfs"):
            for name in ("upper", "work"):
                os.mkdir(name, 0o700)
            if not self.inner:  # a user namespace may lack these ids; there it belongs to who makes it
                os.chown("upper", looks.st_uid, looks.st_gid)
            os.chmod("upper", stat.S_IMODE(looks.st_mode))
            return [os.open(name, os.O_RDONLY | DIRECTORY) for name in ("upper", "work")]

    def remove_work(self):
        """Take the work directory away: nothing is mounted any more."""
        if self.work is None:
            return
        name = work_name(self.upper)
        with call(f"remove {name}"):
            remove_below(self.work)
            os.rmdir(name, dir_fd=self.parent)
        os.close(self.work)
        self.work = None

    def close(self):
        """Let go of the layers, and of the lock."""
        for fd in (self.target, self.upper, self.parent, self.work):
            if fd is not None:
                os.close(fd)


def mount_layers(target, upper, work, text):
    """An unattached overlay of the directories TARGET, UPPER and WORK, descriptors; TEXT stands for UPPER.

    Their names do not matter, so neither do commas and colons in them; and
    /proc/PID/mountinfo shows them as they are given here. Volatile, or the end
    of every sandbox would write all of UPPER's file system to the disk.
    """
    if not os.access(".", os.W_OK | os.X_OK, dir_fd=upper, effective_ids=True):
        raise refused(f"--overlay: {text}", EACCES, f"it is uid {os.geteuid()} of the sandbox that has to write there")
    kind = mark(False)
    probe(work, kind, text)
    options = {
        "lowerdir": f"/proc/self/fd/{target}",
        "upperdir": f"/proc/self/fd/{upper}",
        "workdir": f"/proc/self/fd/{work}",
        **{"redirect_dir": "nofollow", "metacopy": "off", "index": "off", "volatile": None},
    }
    if kind == "user":
        options["userxattr"] = None
    try:
        return kernel.fsmount("overlay", options, kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV, text)
    except Failure as err:
        hint = {
            ENODEV: f"this kernel has no overlay; {SEE_CHECK}",
            EINVAL: "its file system cannot be the upper layer of an overlay",
            ELOOP: "it is in TARGET, or TARGET in it",
        }.get(err.errno, "")
        raise refused(f"--overlay: mount {text}", err.errno, hint) from err


def mark(inner):
    """Which extended attributes the kernel marks directories with: "user" ones in a user namespace, else "trusted".

    Ours, or with INNER one below it.
    """
    if inner:
        return "user"
    with call("stat /proc/self/ns/user", "hako needs /proc"):
        return "trusted" if os.stat("/proc/self/ns/user").st_ino == kernel.INITIAL_USER_NAMESPACE else "user"


def probe(work, kind, text):
    """Refuse a file system without extended attributes of KIND: deleted directories would come back, or EIO.

    The kernel mounts it all the same. WORK is a directory of it, of ours; TEXT names it.
    """
    try:
        with call("setxattr"):
            os.setxattr(work, f"{kind}.hako", b"")
            os.removexattr(work, f"{kind}.hako")
    except Failure as err:
        hint = f"its file system has no {kind} extended attributes; a tmpfs has user ones since Linux 6.6"
        raise refused(f"--overlay: setxattr {text}", err.errno, hint if err.errno == EOPNOTSUPP else "") from err


def is_in(fd, directory):
    """Whether the directory FD is DIRECTORY or below it, by its name or, behind another mount, in its file system."""
    device, path = place(fd)
    other, above = place(directory)
    return climbs_to(fd, directory) or (device == other is not None and f"{path}/".startswith(f"{above}/"))


def climbs_to(fd, directory):
    """Whether ".." leads from the directory FD to DIRECTORY, or is there already."""
    goal = os.fstat(directory)
    with call("open .."):
        here = os.open(".", os.O_PATH | DIRECTORY, dir_fd=fd)
        while True:
            status = os.fstat(here)
            above = os.open("..", os.O_PATH | DIRECTORY, dir_fd=here)
            os.close(here)
            here = above
            found = os.path.samestat(status, goal)
            if found or os.path.samestat(status, os.fstat(above)):
                os.close(here)
                return found


def place(fd):
    """The device of the file system that the directory FD is in, and its path there, as mountinfo writes them.

    None and "" behind a chroot, from which its mount cannot be seen.
    """
    name, number = name_of(fd), mount_id(fd)
    for fields in mounts():
        if fields[0] == number:
            below = name.removeprefix(fields[4].rstrip("/")).strip("/")
            return fields[2], f"{fields[3].rstrip('/')}/{below}".rstrip("/")
    return None, ""


def mounts():
    """The fields of each line of /proc/self/mountinfo."""
    with call("open /proc/self/mountinfo", "hako needs /proc"), open("/proc/self/mountinfo", "rb") as file:
        return [os.fsdecode(line).split(" ") for line in file]


def mount_id(fd):
    """The number of the mount that the descriptor FD is on, as mountinfo has it."""
    with call(f"open /proc/self/fdinfo/{fd}", "hako needs /proc"), open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        return next(line.split()[1].decode() for line in file if line.startswith(b"mnt_id:"))


def name_of(fd):
    """The name of the directory FD, as mountinfo writes it."""
    with call("readlink /proc/self/fd", "hako needs /proc"):
        name = os.readlink(f"/proc/self/fd/{fd}")
    for char in "\\ \t\n":
        name = name.replace(char, f"\\{ord(char):03o}")
    return name


def refuse_mounts_below(fd, text):
    """Refuse the directory FD, called TEXT, if anything is mounted below it: a layer shows one file system.

    What is behind a mount would show, or, in a user namespace, nothing would.
    """
    name, number = name_of(fd).rstrip("/"), mount_id(fd)
    for fields in mounts():
        if fields[1] == number and fields[4].startswith(f"{name}/"):
            hint = "an overlay shows one file system: unmount it, or show it with --mount"
            raise Failure(f"--overlay: {text} has a mount below it: {show(fields[4])} [{hint}]")


def clean(parent):
    """Remove the work directories that killed commands left in the directory PARENT, a descriptor; return their names.

    One is this user's, and its UPPER is beside it and nobody's.
    """
    removed = []
    uppers = {}
    for name in os.listdir(parent):
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
            uppers[f"{WORK}{found.st_ino}"] = name
    for name in sorted(set(uppers) & set(uppers.values())):
        upper = kernel.openat2(parent, uppers[name], os.O_RDONLY | os.O_DIRECTORY, BENEATH, show(uppers[name]))
        try:
            fcntl.flock(upper, fcntl.LOCK_EX | fcntl.LOCK_NB)
            work = kernel.openat2(parent, name, os.O_RDONLY | os.O_DIRECTORY, BENEATH, name)
            if os.fstat(work).st_uid == os.geteuid() and not set(os.listdir(work)) - {"work", "index"}:
                remove_below(work)
                os.rmdir(name, dir_fd=parent)
                removed.append(name)
            os.close(work)
        except BlockingIOError:
            pass  # in use
        finally:
            os.close(upper)
    return removed


def work_name(upper):
    """The name of the work directory that goes with UPPER: the same each time, so that one that was left is found."""
    return f"{WORK}{os.fstat(upper).st_ino}"


def remove_below(fd, depth=8):
    """Remove what is in the work directory FD: directories of the kernel, at most DEPTH deep, and what is in them."""
    for name in os.listdir(fd):
        if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=fd)
            continue
        os.chmod(name, 0o700, dir_fd=fd)  # of mode 0 so far; nobody else can write here
        below = kernel.openat2(fd, name, os.O_RDONLY | os.O_DIRECTORY, BENEATH, name)
        if depth:
            remove_below(below, depth - 1)
        os.close(below)
        os.rmdir(name, dir_fd=fd)
