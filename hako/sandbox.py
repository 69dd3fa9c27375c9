"""What a sandbox is to be: data, checked, without a system call."""

from hako import values
from hako.failure import Failure

USERNS_MODES = ("auto", "always", "never")
MOUNT_FLAGS = {"ro", "rw", "norec", "dev", "noexec", "optional"}


class Sandbox:
    """What hako-run and hako-policy build around PROG.

    target      directory that becomes the root; contains .hako. None: an empty tmpfs
    prepared    whether it has to contain that; else it may be any, / too
    mounts      [Bind, Tmpfs, Proc or Dev, without TARGET also Directory, Symlink or File],
                parents first, one at a place
    writable    whether the root may be written
    size        bytes that the root holds, without TARGET; None for the kernel's half of the memory
    overlay     an Overlay to write instead of TARGET, or None
    setup       host program to run before the pivot, or None
    network     "none", "host", "pasta" or the path of a network namespace
    pasta       further arguments for pasta, a list
    share       names of NAMESPACES that are the host's
    hostname    or None for the host's
    userns      whether to make a user namespace: auto (without CAP_SYS_ADMIN), always, never
    ids         the identity.IdMaps of it, or None: one user, PROG's
    as_pid_1    whether PROG is PID 1 instead of the init
    """

    __slots__ = (
        *("target", "prepared", "mounts", "writable", "size", "overlay", "setup", "network", "pasta", "share"),
        *("hostname", "userns", "ids", "as_pid_1"),
    )

    def __init__(self, **fields):
        self.target, self.writable, self.size, self.setup = None, False, None, None
        self.hostname, self.userns, self.as_pid_1, self.share = None, "auto", False, ()
        self.overlay, self.pasta, self.ids, self.prepared = None, (), None, True
        for name, value in fields.items():
            setattr(self, name, value)


class Overlay:
    """Where what is written goes instead of TARGET: the directory UPPER, or None: a tmpfs of at most SIZE bytes."""

    __slots__ = ("size", "upper")

    def __init__(self, upper, size=None):
        self.upper, self.size = upper, size


class Bind:
    """The file or directory SRC of the caller, seen at DST of the sandbox; FLAGS as in MOUNT_FLAGS."""

    __slots__ = ("dst", "flags", "src")

    def __init__(self, src, dst, flags=()):
        self.src, self.dst, self.flags = src, dst, frozenset(flags)


class Tmpfs:
    """An empty tmpfs at DST, of at most SIZE bytes (None: the kernel's half of the memory); read-only if RO.

    OPTIONS are further mount options of it, {key: value}.
    """

    __slots__ = ("dst", "options", "ro", "size")

    def __init__(self, dst, size=None, options=None, ro=False):
        self.dst, self.size, self.options, self.ro = dst, size, options or {}, ro


class Proc:
    """A fresh, masked proc at DST; read-only if RO."""

    __slots__ = ("dst", "ro")

    def __init__(self, dst="/proc", ro=False):
        self.dst, self.ro = dst, ro


class Dev:
    """A minimal device tree at DST."""

    __slots__ = ("dst",)

    def __init__(self, dst="/dev"):
        self.dst = dst


class Directory:
    """An empty directory at DST."""

    __slots__ = ("dst",)

    def __init__(self, dst):
        self.dst = dst


class Symlink:
    """A symbolic link at DST that says TARGET."""

    __slots__ = ("dst", "target")

    def __init__(self, target, dst):
        self.target, self.dst = target, dst


class File:
    """A file at DST with CONTENTS, a str as of os.fsdecode()."""

    __slots__ = ("contents", "dst")

    def __init__(self, dst, contents):
        self.dst, self.contents = dst, contents


def bind(option, spec):
    """The Bind that SPEC, "SRC:DST[:FLAGS]", the value of OPTION, means."""
    fields = split(spec)
    if len(fields) not in (2, 3):
        raise Failure(f"{option}: not SRC:DST or SRC:DST:FLAGS: {spec!r}")
    src, dst = fields[:2]
    if not src:
        raise Failure(f"{option}: SRC is empty: {spec!r}")
    flags = fields[2].split(",") if len(fields) == 3 else []
    for flag in flags:
        if flag not in MOUNT_FLAGS:
            hint = f"one of {', '.join(sorted(MOUNT_FLAGS))}"
            raise Failure(f"{option}: unknown flag {flag!r}: {spec!r} [{hint}]")
    if {"ro", "rw"} <= set(flags):
        raise Failure(f"{option}: both ro and rw: {spec!r}")
    check_mount_point(option, dst, spec)
    return Bind(src, dst, flags)


def tmpfs(option, spec):
    """The Tmpfs that SPEC, "DST[:SIZE]", the value of OPTION, means."""
    dst, *sizes = split(spec)
    if len(sizes) > 1:
        raise Failure(f"{option}: not DST or DST:SIZE: {spec!r}")
    check_mount_point(option, dst, spec)
    return Tmpfs(dst, limited(option, sizes[0], spec) if sizes else None)


def overlay(option, text):
    """The Overlay that TEXT, a directory or "tmpfs[:SIZE]", the value of OPTION, means."""
    if not text:
        raise Failure(f"{option}: neither a directory nor tmpfs: {text!r}")
    word, given, size = text.partition(":")
    if word != "tmpfs":
        return Overlay(text)
    return Overlay(None, limited(option, size, text) if given else None)


def limited(option, size, spec):
    """SIZE, part of SPEC, the value of OPTION, in bytes, more than 0."""
    count = values.size(option, size)
    if count == 0:
        raise Failure(f"{option}: a size of 0 would mean no limit: {spec!r}")
    return count


def check_mount_point(option, dst, spec):
    """Refuse a DST that names no place below the root."""
    if not dst:
        raise Failure(f"{option}: DST is empty: {spec!r}")
    if not steps(dst):
        raise Failure(f"{option}: DST is the root itself, which is TARGET: {spec!r}")


def split(spec):
    r"""SPEC at its colons; "\:" is a colon, and "\\" before a colon is a backslash."""
    fields, field, backslashes = [], "", 0
    for char in spec:
        if char == "\\":
            backslashes += 1
            continue
        if char == ":":
            field += "\\" * (backslashes // 2)
            if backslashes % 2:
                field += ":"
            else:
                fields.append(field)
                field = ""
        else:
            field += "\\" * backslashes + char
        backslashes = 0
    return [*fields, field + "\\" * backslashes]


def is_device(src):
    """Whether SRC, by its name, is a device or a directory of devices: such a Bind is of no use without "dev"."""
    names = steps(src)
    return src.startswith("/") and len(names) > 1 and names[0] == "dev" and ".." not in names


def steps(path):
    """The names along PATH, a tuple, without empty ones and "."."""
    return tuple(name for name in path.split("/") if name not in ("", "."))


def ordered(mounts):
    """MOUNTS with parents first; of two at one mount point the later."""
    last = {steps(mount.dst): mount for mount in mounts}
    return [last[key] for key in sorted(last)]
