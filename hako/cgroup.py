"""Control groups, version 2 and 1: which a process is in, and how to join them."""

import os

from hako.failure import call, show

EACCES, EPERM = 13, 1


def join(text, say):
    """Move this process into the cgroups that TEXT, a /proc/PID/cgroup, names.

    Where the caller may not (EACCES, EPERM) it stays, and SAY gets a line.
    """
    own = parse(read("/proc/self/cgroup"))
    for hierarchy, path in parse(text).items():
        if own.get(hierarchy) == path:
            continue
        place = directory(hierarchy, path)
        if place is None:
            say(f"cgroup {hierarchy or 'v2'}: not mounted here")
            continue
        try:
            with open(os.path.join(place, "cgroup.procs"), "wb", buffering=0) as file:
                file.write(b"0")
            say(f"cgroup {show(place)}: joined")
        except OSError as err:
            if err.errno not in (EACCES, EPERM):
                with call(f"write {show(os.path.join(place, 'cgroup.procs'))}", "--no-cgroup stays outside"):
                    raise
            say(f"cgroup {show(place)}: not the caller's to join")


def read(path):
    """The text of the file PATH."""
    with call(f"open {path}", "hako needs /proc"), open(path, "rb") as file:
        return os.fsdecode(file.read())


def parse(text):
    """TEXT, a /proc/PID/cgroup, as {controllers of the hierarchy, "" for version 2: path}."""
    lines = (line.split(":", 2) for line in text.splitlines())
    return {controllers: path for _, controllers, path in lines}


def directory(hierarchy, path):
    """The directory of the cgroup PATH in the HIERARCHY, as parse() names it; None if it is not mounted."""
    for line in read("/proc/self/mountinfo").splitlines():
        fields = line.split()
        root, place = unescape(fields[3]), unescape(fields[4])
        fstype, _, options = fields[fields.index("-") + 1 :]
        mounted = "" if fstype == "cgroup2" else options if fstype == "cgroup" else None
        if mounted is None or not same_hierarchy(hierarchy, fstype, options):
            continue
        inside = os.path.relpath(path, root)
        if not inside.startswith(".."):
            return os.path.normpath(os.path.join(place, inside))
    return None


def same_hierarchy(hierarchy, fstype, options):
    """Whether a mount of FSTYPE with super OPTIONS is the HIERARCHY, as parse() names it."""
    if not hierarchy:
        return fstype == "cgroup2"
    return fstype == "cgroup" and set(hierarchy.split(",")) <= set(options.split(","))


def unescape(field):
    """A path of mountinfo as it is: there, blanks and backslashes are octal."""
    for char in " \t\n\\":
        field = field.replace(f"\\{ord(char):03o}", char)
    return field
