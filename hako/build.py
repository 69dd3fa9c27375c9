"""Builds a sandbox around the process that will be PROG: namespaces, ids, mounts, root.

The only place that does. No path of the sandbox is followed by name: a mount
point is found with openat2 below the new root and kept as a descriptor. What
the caller names on the host (TARGET, SRC, FILE) is opened as the caller says it.
"""

import fcntl
import os
import stat

from hako import kernel, sandbox
from hako.failure import SEE_CHECK, Failure, call, refused, show

EPERM, ENOENT, EXDEV, ENOTDIR, ENOSPC, ELOOP, EUSERS = 1, 2, 18, 20, 28, 40, 87
LOCKED = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NODEV
READ_ONLY = LOCKED | kernel.MOUNT_ATTR_NOEXEC | kernel.MOUNT_ATTR_RDONLY

# What of /proc could tune the kernel is read-only; what tells of the host is
# covered. Those that this kernel lacks are passed over: there is nothing to cover.
PROC_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger", "mtrr", "dynamic_debug")
PROC_COVERED = (
    *("acpi", "asound", "cmdline", "config.gz", "diskstats", "driver", "interrupts", "iomem", "ioports"),
    *("kallsyms", "kcore", "keys", "key-users", "partitions", "pressure"),
    *("kmsg", "kpagecgroup", "kpagecount", "kpageflags", "latency_stats", "modules", "sched_debug", "scsi"),
    *("slabinfo", "swaps", "timer_list", "timer_stats", "vmallocinfo", "zoneinfo", "pagetypeinfo"),
)
PROC_COVERED_HERE = "the /proc here is partly covered: an inner sandbox shares it"
PROC_HINTS = {EPERM: f"{PROC_COVERED_HERE}; {SEE_CHECK}"}
SHAREABLE = ("ipc", "uts", "cgroup")
DEVICES = {  # what of the caller's /dev is shown: name: major, minor
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
MASKS = {"mode": "0755", "size": "4k", "nr_inodes": 8}  # mount options
SHM = {"mode": "1777"}
PTS = {"newinstance": None, "ptmxmode": "0666", "mode": "0620"}
DEV_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}


def no_namespaces(errno, flags, way="namespaces need CAP_SYS_ADMIN"):
    """What clone3 may mean by ERRNO, asked for the namespaces FLAGS, as a hint; WAY is that of those but a user's."""
    if errno == EPERM:
        user_namespace = flags & kernel.CLONE_NEWUSER
        return f"{'user namespaces are not to be had here; root needs none' if user_namespace else way}; {SEE_CHECK}"
    return f"{limit_of_namespaces(flags)}; {SEE_CHECK}" if errno in (ENOSPC, EUSERS) else ""


def limit_of_namespaces(flags):
    """Which limit those of FLAGS have met, as far as that can be seen. See namespaces(7), /proc/sys/user."""
    for name, flag in kernel.NAMESPACES.items():
        if flags & flag:
            try:
                with open(f"/proc/sys/user/max_{name}_namespaces", "rb") as file:
                    none = file.read() == b"0\n"
            except OSError:
                none = False
            if none:
                return f"user.max_{name}_namespaces is 0 here{'; root needs none' if name == 'user' else ''}"
    return "as many as user.max_*_namespaces allows are there, or they are nested too deep"


def namespaces(box):
    """The CLONE_NEW* flags that the Sandbox BOX needs."""
    flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID
    for name in SHAREABLE:
        flags |= 0 if name in box.share else kernel.NAMESPACES[name]
    if box.network == "none":
        flags |= kernel.CLONE_NEWNET
    if needs_user_namespace(box):
        flags |= kernel.CLONE_NEWUSER
        flags |= kernel.CLONE_NEWNET if box.network == "pasta" else 0
    return flags


def needs_user_namespace(box):
    """Whether BOX needs a user namespace, made by this process with the capabilities that it has now."""
    asked = box.userns == "always" or box.ids is not None
    return asked or (box.userns == "auto" and not kernel.capable(kernel.CAP_SYS_ADMIN))


def check(box):
    """Refuse early what BOX names on the host and is not there; it is opened for good by those inside."""
    sources = open_sources(box)
    if box.target is not None:
        os.close(open_root(box))
    for fd in sources.values():
        os.close(fd)
    if box.network not in ("none", "host", "pasta"):
        os.close(open_network(box.network))
    if box.setup is not None and not os.access(box.setup, os.X_OK):
        raise Failure(f"--setup: {show(box.setup)}: not there, or not executable")


def open_root(box):
    """A descriptor of the directory that becomes the root of BOX, which has a target."""
    if box.prepared:
        return open_target(box.target)
    with call(f"chroot('{box.target}')"):
        return os.open(box.target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def open_target(target):
    """A descriptor of the directory TARGET; a Failure if it is not one that was prepared."""
    with call(f"open {show(target)}", "TARGET, the root to be, must be a directory", (ENOENT, ENOTDIR)):
        fd = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if os.path.samestat(os.fstat(fd), os.stat("/")):
        raise Failure(f"{show(target)} is the root directory, not a sandbox")
    try:
        flags = os.O_PATH | os.O_DIRECTORY
        os.close(kernel.openat2(fd, ".hako", flags, kernel.RESOLVE_NO_SYMLINKS | kernel.RESOLVE_BENEATH, ".hako"))
    except Failure as err:
        if err.errno not in (ENOENT, ENOTDIR, ELOOP):
            raise
        hint = f"[mkdir {show(os.path.join(target, '.hako'))}, if it is meant to be a sandbox]"
        raise Failure(f"{show(target)} has no directory .hako {hint}", errno=err.errno) from err
    return fd


def open_sources(box):
    """Descriptors of what the binds of BOX show, {Bind: fd}; without what is optional and not there."""
    sources = {}
    for mount in box.mounts:
        if isinstance(mount, sandbox.Bind):
            try:
                hint = "~ is for the shell, in front of a word: $HOME" if mount.src.startswith("~") else ""
                with call(f"open {show(mount.src)}", hint, (ENOENT,)):
                    sources[mount] = os.open(mount.src, os.O_PATH | os.O_CLOEXEC)
            except Failure as err:
                if "optional" not in mount.flags or err.errno not in (ENOENT, ENOTDIR):
                    raise
    return sources


def open_network(path):
    """A descriptor of the network namespace PATH; a Failure if it is anything else."""
    with call(f"--network: open {show(path)}", "neither none, host nor pasta, so a file", (ENOENT,)):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        kind = fcntl.ioctl(fd, kernel.NS_GET_NSTYPE)
    except OSError:
        kind = None
    if kind != kernel.CLONE_NEWNET:
        os.close(fd)
        raise Failure(f"--network: {show(path)} is not a network namespace")
    return fd


def write_id_maps(pid, ids):
    """Map the identity.IdMaps IDS in the user namespace of process PID (or "self")."""
    for path, text, hint in id_map_files(pid, ids):
        write(path, text, hint)


def id_map_files(pid, ids):
    """The files to write for that, with what to write, and a hint for when the kernel refuses."""
    own = ids.outside()[0] == 0
    hint = "uid 0 may be mapped only by who has CAP_SETFCAP: give the outer sandbox --user; " if own else ""
    if ids.writer == "inside":  # the kernel's price for a gid_map by an ordinary user
        yield f"/proc/{pid}/setgroups", "deny", SEE_CHECK
    yield f"/proc/{pid}/gid_map", "\n".join("{} {} {}".format(*triple) for triple in ids.gids), SEE_CHECK
    yield f"/proc/{pid}/uid_map", "\n".join("{} {} {}".format(*triple) for triple in ids.uids), hint + SEE_CHECK


def write(path, text, hint=""):
    """Write TEXT to the existing PATH in one go."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as err:
        raise refused(f"open {path}", err.errno, "hako needs /proc" if err.errno == ENOENT else SEE_CHECK) from err
    try:
        with call(f"write {path} {text!r}", hint):
            os.write(fd, text.encode())
    finally:
        os.close(fd)


def enter(box, program, ids, layers=None):
    """Turn this process, alone in its new namespaces, into one inside BOX: root, mounts, names.

    IDS are the identity.IdMaps of its user namespace, or None; LAYERS the
    overlay.Layers of its root, or None. Return the Builder, which has what was made.
    """
    target = None if box.target is None else open_root(box)
    sources = open_sources(box)
    if ids and ids.writer != "inside":  # from here on files are made, which needs ids that the namespace has
        take_ids(*ids.inside)
    builder = Builder(box, program, target, sources, layers)
    setup = absolute(box.setup) if box.setup is not None else None
    umask = os.umask(0o022)  # what is made is for PROG, whatever the caller's files are to be
    builder.mount_all()
    os.umask(umask)
    if setup is not None:
        run_setup(setup, builder.root)
        program.say(f"setup: {show(setup)}")
    builder.pivot()
    if box.hostname is not None:
        kernel.sethostname(box.hostname)
        program.say(f"hostname: {show(box.hostname)}")
    return builder


def take_ids(uid, gid):
    """Become UID and GID and keep the capabilities in the user namespace."""
    kernel.prctl("SET_KEEPCAPS", 1)
    kernel.carry_out(kernel.set_ids_calls(uid, gid))
    kernel.capset(kernel.capget()[1])
    kernel.prctl("SET_KEEPCAPS", 0)


def join_network(box, made, say):
    """Put the network of BOX in force; MADE is the descriptor of its namespace, if it is made already."""
    if box.network == "pasta":
        if made is not None:
            kernel.setns(made, kernel.CLONE_NEWNET, "--network pasta")
        say("network: lo, and what pasta does")
    elif box.network == "none":
        kernel.bring_up_lo()
        say("network: lo alone")
    elif box.network != "host":
        fd = open_network(box.network)
        kernel.setns(fd, kernel.CLONE_NEWNET, f"--network {show(box.network)}")
        os.close(fd)
        say(f"network: {show(box.network)}")


class Builder:
    """The mounts of one sandbox while they are made.

    layers   the overlay.Layers of the root, or None
    root     descriptor of the mount that becomes the root
    dev      that of the minimal device tree, or None
    fresh    mounts made here, in which mount points are made: {steps: descriptor of its root}
    sized    those of limited size among them: [(descriptor, mount point)]
    """

    def __init__(self, box, program, target, sources, layers):
        self.box, self.program, self.target, self.sources, self.layers = box, program, target, sources, layers
        self.root, self.dev, self.fresh, self.sized = None, None, {}, []

    def mount_all(self):
        """Make the root and every mount, parents first."""
        with call("open /"):
            here = os.open("/", os.O_PATH | os.O_CLOEXEC)
        # First of all: from here on nothing goes from these mounts to the host's, or back.
        kernel.mount_setattr(here, kernel.AT_RECURSIVE, 0, "/", propagation=kernel.MS_PRIVATE)
        os.close(here)
        self.mount_root()
        for mount in self.box.mounts:
            self.mount(mount)
        # Only now: mount points and files may have been made in them.
        if self.dev is not None:
            kernel.mount_setattr(self.dev, 0, kernel.MOUNT_ATTR_RDONLY, "/dev")
        if self.target is None and not self.box.writable:
            kernel.mount_setattr(self.root, 0, kernel.MOUNT_ATTR_RDONLY, "/")

    def mount(self, mount):
        """Make MOUNT, of one of the classes of hako.sandbox."""
        getattr(self, f"mount_{type(mount).__name__.lower()}")(mount)

    def mount_root(self):
        """Put what becomes the root where pivot_root takes it from."""
        if self.target is None:
            self.mount_empty_root()
        else:
            self.mount_target()

    def mount_empty_root(self):
        """Put an empty tmpfs over the root of this mount namespace: no directory of the host is needed for it.

        Who is there already, this process, goes on seeing what is below.
        """
        options = {"mode": "0755", **self.owner(), **sized(self.box.size)}
        self.root = kernel.fsmount("tmpfs", options, LOCKED, "/")
        with call("open /"):
            place = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        kernel.move_mount(self.root, place, "/")
        os.close(place)
        self.fresh[()] = self.root
        if self.box.size is not None and self.box.writable:
            self.sized.append((self.root, "/"))
        self.program.say(f"root: an empty tmpfs, {'rw' if self.box.writable else 'ro'},nosuid,nodev")

    def mount_target(self):
        """Put a copy of the mounts at TARGET over it, read-only in every part before it can be seen; or an overlay."""
        if self.layers is None:
            attr = LOCKED | (0 if self.box.writable else kernel.MOUNT_ATTR_RDONLY)
            self.root = self.copy(self.target, True, attr, show(self.box.target))
            how = "rw" if self.box.writable else "ro"
        else:
            self.root = self.fresh[()] = self.layers.mount(self.target)
            if self.box.overlay.size is not None:
                self.sized.append((self.layers.upper, "/"))
            how = f"changes to {self.layers.told()}"
        kernel.move_mount(self.root, self.target, show(self.box.target))
        self.program.say(f"root: {show(self.box.target)} {how},nosuid,nodev")

    @staticmethod
    def copy_as_it_is(fd, text, below=kernel.AT_RECURSIVE):
        """An unattached copy of the mount at FD, with what is mounted BELOW or, 0, without."""
        return kernel.open_tree(fd, b"", kernel.AT_EMPTY_PATH | kernel.OPEN_TREE_CLONE | below, text)

    @classmethod
    def copy(cls, fd, recursive, attr, text):
        """The same, with what is mounted below if RECURSIVE, with the MOUNT_ATTR_* ATTR, and apart from the others."""
        below = kernel.AT_RECURSIVE if recursive else 0
        tree = cls.copy_as_it_is(fd, text, below)
        kernel.mount_setattr(tree, below, attr, text, propagation=kernel.MS_PRIVATE)
        return tree

    def mount_bind(self, mount):
        """Show the caller's SRC at DST."""
        source = self.sources.get(mount)
        if source is None:
            self.program.say(f"mount: {show(mount.src)} is not there, and optional")
            return
        attr = LOCKED if "dev" not in mount.flags else kernel.MOUNT_ATTR_NOSUID
        attr |= kernel.MOUNT_ATTR_RDONLY if "ro" in mount.flags else 0
        attr |= kernel.MOUNT_ATTR_NOEXEC if "noexec" in mount.flags else 0
        tree = self.copy(source, "norec" not in mount.flags, attr, show(mount.src))
        self.attach(tree, mount.dst, is_directory(source))
        os.close(tree)
        os.close(source)
        self.program.say(f"mount: {show(mount.src)} on {show(mount.dst)} {','.join(sorted(mount.flags)) or 'rw'}")

    def mount_tmpfs(self, mount):
        """Put an empty tmpfs at DST; it belongs to PROG."""
        attr = LOCKED | (kernel.MOUNT_ATTR_RDONLY if mount.ro else 0)
        fd = kernel.fsmount("tmpfs", self.tmpfs_options(mount), attr, show(mount.dst))
        self.attach(fd, mount.dst, True)
        self.fresh[sandbox.steps(mount.dst)] = fd
        if mount.size is not None:
            self.sized.append((fd, mount.dst))
        self.program.say(f"tmpfs: {show(mount.dst)}")

    def tmpfs_options(self, mount):
        """Mount options of the Tmpfs MOUNT."""
        mode = "1777" if sandbox.steps(mount.dst) == ("tmp",) else "0755"
        return {"mode": mode, **self.owner(), **sized(mount.size), **mount.options}

    def made(self):
        """The file systems that were made here for PROG: {steps: descriptor}, as `fresh` but for the device tree."""
        return {steps: fd for steps, fd in self.fresh.items() if fd != self.dev}

    def owner(self):
        """Mount options that give a new file system to PROG."""
        who = self.program.identity
        given = {"uid": who.uid, "gid": who.gid}
        return {key: value for key, value in given.items() if value is not None}

    def mount_directory(self, entry):
        """Make the directory DST, unless it is there."""
        os.close(self.mount_point(entry.dst, True))
        self.program.say(f"directory: {show(entry.dst)}")

    def mount_symlink(self, entry):
        """Make the symbolic link DST."""
        parent, name = self.parent_of(entry.dst)
        with call(f"symlink {show(entry.dst)}"):
            os.symlink(entry.target, name, dir_fd=parent)
        self.give(parent, name)
        os.close(parent)
        self.program.say(f"symlink: {show(entry.dst)} to {show(entry.target)}")

    def mount_file(self, entry):
        """Make the file DST with its contents."""
        parent, name = self.parent_of(entry.dst)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        data = os.fsencode(entry.contents)
        with call(f"file {show(entry.dst)}"):
            fd = os.open(name, flags, 0o644, dir_fd=parent)
            while data:
                data = data[os.write(fd, data) :]
        os.close(fd)
        self.give(parent, name)
        os.close(parent)
        self.program.say(f"file: {show(entry.dst)}")

    def parent_of(self, dst):
        """A descriptor of the directory of DST, which lies in a fresh mount and is made if need be, and the name."""
        steps = sandbox.steps(dst)
        root = max((known for known in self.fresh if known == steps[: len(known)]), key=len)
        return self.make(self.fresh[root], steps[len(root) : -1], True, dst, within(root)), steps[-1]

    def give(self, parent, name):
        """Give the new file NAME in the directory PARENT to PROG."""
        who = self.program.identity
        if who.uid is not None or who.gid is not None:
            with call(f"chown {show(name)}"):
                ids = (-1 if known is None else known for known in (who.uid, who.gid))
                os.chown(name, *ids, dir_fd=parent, follow_symlinks=False)

    def mount_proc(self, mount):
        """Mount a fresh proc of this pid namespace at DST and cover what it must not show.

        A sandbox inside this one cannot mount its own without the covers: the
        kernel lets nobody see more of proc in a new user namespace than before.
        """
        try:
            attr = LOCKED | kernel.MOUNT_ATTR_NOEXEC | (kernel.MOUNT_ATTR_RDONLY if mount.ro else 0)
            fd = kernel.fsmount("proc", {}, attr, show(mount.dst))
        except Failure as err:
            if err.errno != EPERM:
                raise
            option = "--rw-bind=/proc" if self.target is None else "--mount=/proc:/proc"
            hint = f"{PROC_COVERED_HERE} with {option}; {SEE_CHECK}"
            raise refused("fsmount proc", err.errno, hint) from err
        covered = {name: place for name in PROC_COVERED if (place := self.find(fd, name)) is not None}
        masks = self.make_masks(mount, covered)
        self.attach(fd, mount.dst, True)
        for name, mask in masks.items():
            # Found anew: a descriptor from before the attachment is not below a mount of ours.
            self.put(mask, self.find(fd, name), f"/proc/{name}")
        for name in PROC_READ_ONLY:
            self.lock(fd, name)
        os.close(fd)
        self.program.say(f"proc: {show(mount.dst)}")

    def make_masks(self, mount, covered):
        """Unattached mounts of an empty file or directory, one to put over each of COVERED: {name: descriptor}.

        A mount can be copied only while it is attached (Linux < 6.15), so the
        tmpfs they are in stands at the mount point of MOUNT meanwhile.
        """
        stage = kernel.fsmount("tmpfs", MASKS, 0, "for masks")
        self.attach(stage, mount.dst, True)
        for name, directory in ((b"f", False), (b"d", True)):
            os.close(self.touch(stage, name, directory))
        kernel.mount_setattr(stage, 0, READ_ONLY, "mask")
        masks = {}
        for name, place in covered.items():
            source = b"d" if is_directory(place) else b"f"
            masks[name] = kernel.open_tree(stage, source, kernel.OPEN_TREE_CLONE, "mask")
            os.close(place)
        with call("fchdir mask"):
            os.fchdir(stage)
        kernel.umount2(b".", kernel.MNT_DETACH)
        os.close(stage)
        return masks

    @staticmethod
    def put(tree, place, text):
        """Attach the mount TREE at PLACE and be done with both descriptors."""
        kernel.move_mount(tree, place, text)
        os.close(tree)
        os.close(place)

    def lock(self, proc, name):
        """Make NAME in the file system at PROC read-only, if it is there."""
        place = self.find(proc, name)
        if place is None:
            return
        self.put(self.copy(place, True, READ_ONLY, f"/proc/{name}"), place, f"/proc/{name}")

    @staticmethod
    def find(directory, name):
        """A descriptor of the file NAME in DIRECTORY, or None if it is not there."""
        try:
            return kernel.openat2(directory, name, os.O_PATH | os.O_NOFOLLOW, kernel.RESOLVE_BENEATH, name)
        except Failure as err:
            if err.errno != ENOENT:
                raise
            return None

    def mount_dev(self, mount):
        """Put a minimal device tree at DST; it becomes read-only when all is mounted."""
        fd = kernel.fsmount("tmpfs", {"mode": "0755", "size": "64k", "nr_inodes": 256}, LOCKED, show(mount.dst))
        self.attach(fd, mount.dst, True)
        self.fresh[sandbox.steps(mount.dst)] = self.dev = fd
        for name, number in DEVICES.items():
            self.show_device(fd, name, number)
        with call(f"symlink in {show(mount.dst)}"):
            for name, goal in DEV_LINKS.items():
                os.symlink(goal, name, dir_fd=fd)
        for name in ("shm", "pts"):
            os.close(self.touch(fd, name, True))
        self.mount_own_of_dev(mount)
        self.program.say(f"dev: {show(mount.dst)}")

    def mount_own_of_dev(self, mount):
        """Mount what no other sandbox shares of the device tree at DST: shm and pts."""
        noexec = LOCKED | kernel.MOUNT_ATTR_NOEXEC
        shm = kernel.fsmount("tmpfs", SHM, noexec, "/dev/shm")
        pts = kernel.fsmount("devpts", PTS, kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NOEXEC, "/dev/pts")
        for name, fd in (("shm", shm), ("pts", pts)):
            self.attach(fd, f"{mount.dst}/{name}", True)
            os.close(fd)

    def show_device(self, dev, name, number):
        """Show the caller's device NAME in DEV, if it really is the one with NUMBER (major, minor)."""
        with call(f"open /dev/{name}"):
            source = os.open(f"/dev/{name}", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        found = os.fstat(source)
        if not stat.S_ISCHR(found.st_mode) or found.st_rdev != os.makedev(*number):
            raise Failure(f"--dev: /dev/{name} here is not the device {number[0]}:{number[1]}")
        attr = kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NOEXEC
        tree = self.copy(source, False, attr, f"/dev/{name}")
        self.put(tree, self.touch(dev, name, False), f"/dev/{name}")
        os.close(source)

    def attach(self, tree, dst, directory):
        """Attach the mount TREE at DST of the new root; DIRECTORY says what it is, should DST be made."""
        place = self.mount_point(dst, directory)
        if os.path.samestat(os.fstat(place), os.fstat(self.root)):
            which = "" if self.target is None else ", which is TARGET"
            raise Failure(f"mount point {show(dst)}: it is the root itself{which}")
        if is_directory(place) != directory:
            what = (
                "not a directory, and what it is to show is"
                if directory
                else "a directory, and what it is to show is not"
            )
            raise Failure(f"mount point {show(dst)}: it is {what}")
        kernel.move_mount(tree, place, show(dst))
        os.close(place)

    def mount_point(self, dst, directory):
        """A descriptor of DST in the new root; below a fresh mount it is made, elsewhere it must be there."""
        links = kernel.RESOLVE_IN_ROOT | kernel.RESOLVE_NO_MAGICLINKS
        try:
            return kernel.openat2(self.root, dst, os.O_PATH, links, show(dst))
        except Failure as err:
            steps = sandbox.steps(dst)
            above = [known for known in self.fresh if known == steps[: len(known)]]
            if err.errno == kernel.ENOSYS:
                raise
            if err.errno != ENOENT or not above or ".." in steps:
                hint = "nothing is made in TARGET: make it there first" if err.errno == ENOENT else ""
                raise refused(f"mount point {show(dst)}", err.errno, hint) from err
        root = max(above, key=len)
        return self.make(self.fresh[root], steps[len(root) :], directory, dst, within(root))

    def make(self, fd, names, directory, dst, within):
        """Make the path NAMES below FD, in that mount only, WITHIN (RESOLVE_*) it; return a descriptor of the last."""
        place = os.dup(fd)
        for i, name in enumerate(names):
            with_slash = os.path.join(*names[: i + 1])
            parent = place
            try:
                place = kernel.openat2(fd, with_slash, os.O_PATH, within, show(dst))
            except Failure as err:
                if err.errno == EXDEV:
                    raise refused(f"mount point {show(dst)}", ENOENT, "nothing is made in what is mounted") from err
                if err.errno != ENOENT:
                    raise
                place = self.touch(parent, name, directory or i + 1 < len(names))
                self.give(parent, name)
            os.close(parent)
        return place

    @staticmethod
    def touch(parent, name, directory):
        """Make the directory or file NAME in the directory PARENT; return a descriptor of it."""
        with call(f"mount point {show(name)}"):
            if directory:
                os.mkdir(name, 0o755, dir_fd=parent)
            else:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
                os.close(os.open(name, flags, 0o644, dir_fd=parent))
            return os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)

    def pivot(self):
        """Make the new root this process's, and its pid namespace's, and let go of the old one.

        pivot_root puts the old root over the new one, "." on ".": no name in
        the sandbox is looked up, .hako not either. Unmounting it takes all
        mounts of the host away at once.
        """
        with call("open /"):
            old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        with call("fchdir root"):
            os.fchdir(self.root)
        kernel.pivot_root(b".", b".")
        with call("fchdir old root"):
            os.fchdir(old)
        kernel.umount2(b".", kernel.MNT_DETACH)
        with call("chdir /"):
            os.chdir("/")
        os.close(old)


def within(root):
    """How to find names below ROOT, the steps to a fresh mount: in that mount alone, through links only in the root."""
    links = kernel.RESOLVE_BENEATH | kernel.RESOLVE_NO_SYMLINKS
    if not root:  # an overlay: it has those of TARGET
        links = kernel.RESOLVE_IN_ROOT | kernel.RESOLVE_NO_MAGICLINKS
    return links | kernel.RESOLVE_NO_XDEV


def absolute(path):
    """PATH, absolute: what it names is run from another directory."""
    if path.startswith("/"):
        return path
    with call("getcwd"):
        return os.path.join(os.getcwd(), path)


def sized(size):
    """Mount options of a tmpfs for SIZE bytes; inodes too: each is a KiB of the kernel's memory, with nothing in it."""
    return {} if size is None else {"size": size, "nr_inodes": size // 1024 + 64}


def is_directory(fd):
    """Whether the descriptor FD is of a directory."""
    return stat.S_ISDIR(os.fstat(fd).st_mode)


def run_setup(path, root):
    """Run the host program PATH with the new root as its current directory; a Failure unless it ends with 0."""
    with call("fchdir root"):
        os.fchdir(root)
    held = kernel.capget()[1]
    kernel.capset(held)
    kernel.set_ambient([cap for cap in range(64) if held >> cap & 1])
    with call(f"--setup {show(path)}"):
        pid = os.posix_spawn(path, [path], os.environ, setsigmask=())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    kernel.set_ambient([])
    if code:
        how = f"exited with status {code}" if code > 0 else f"was killed by signal {-code}"
        raise Failure(f"--setup: {show(path)} {how}")
