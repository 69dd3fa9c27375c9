"""Control groups, version 2 and 1: which a process is in, where more can be made, how to join them. See cgroups(7)."""

import os

from hako.failure import SEE_CHECK, Failure, call, show

EPERM, EACCES = 1, 13
CALLERS = "hako-callers"  # where the processes go that are in the way: version 2 has them in leaves only
INSIDE = "hako-inside"  # where PROG goes in a cgroup with limits


def join(text, say):
    """Move this process into the cgroups that TEXT, a /proc/PID/cgroup, names.

    Where the caller may not (EACCES, EPERM) it stays, and SAY gets a line;
    unless there are limits of hako-limit, which are to hold for whoever enters.
    """
    own, mounts = parse(read("/proc/self/cgroup")), mounted()
    for hierarchy, path in parse(text).items():
        if own.get(hierarchy) == path:
            continue
        place = directory(hierarchy, path, mounts)
        if place is None:
            say(f"cgroup {hierarchy or 'v2'}: not mounted here")
            continue
        try:
            write_to(os.path.join(place, "cgroup.procs"), "0", "--no-cgroup stays outside")
            say(f"cgroup {show(place)}: joined")
        except Failure as err:
            if err.errno not in (EACCES, EPERM) or any(is_ours(name) for name in path.split("/")):
                raise
            say(f"cgroup {show(place)}: not the caller's to join")


def write_to(path, text, hint=""):
    """Write TEXT to the file PATH of a cgroup, in one go."""
    with call(f"write {show(path)} {text!r}", hint), open(path, "wb", buffering=0) as file:
        file.write(text.encode())


def read(path):
    """The text of the file PATH."""
    with call(f"open {path}", "hako needs /proc"), open(path, "rb") as file:
        return os.fsdecode(file.read())


def parse(text):
    """TEXT, a /proc/PID/cgroup, as {controllers of the hierarchy, "" for version 2: path}."""
    lines = (line.split(":", 2) for line in text.splitlines())
    return {controllers: path for _, controllers, path in lines}


def mounted():
    """The hierarchies that are mounted here: [(version, options, root of the mount, mount point)]."""
    found = []
    for line in read("/proc/self/mountinfo").splitlines():
        if " - cgroup" in line:
            fields = line.split()
            fstype, _, options = fields[fields.index("-") + 1 :]
            if fstype in ("cgroup", "cgroup2"):
                version = 2 if fstype == "cgroup2" else 1
                found.append((version, set(options.split(",")), unescape(fields[3]), unescape(fields[4])))
    return found


def directory(hierarchy, path, mounts):
    """The directory of the cgroup PATH in the HIERARCHY, as parse() names it; None if it is not in MOUNTS."""
    for version, options, root, place in mounts:
        if (version == 2) if not hierarchy else (version == 1 and set(hierarchy.split(",")) <= options):
            inside = os.path.relpath(path, root)
            if not inside.startswith(".."):
                return os.path.normpath(os.path.join(place, inside))
    return None


def unescape(field):
    """A path of mountinfo as it is: there, blanks and backslashes are octal."""
    for char in " \t\n\\":
        field = field.replace(f"\\{ord(char):03o}", char)
    return field


def is_ours(name):
    """Whether NAME is that of a Group's directory: hako-, the pid of who made it, eight hexadecimal digits."""
    words = name.split("-")
    if len(words) != 3 or words[0] != "hako" or len(words[2]) != 8:
        return False
    return words[1].isascii() and words[1].isdigit() and set(words[2]) <= set("0123456789abcdef")


def places(parent=None):
    """Where cgroups of our own may be made: {controllers of the hierarchy, "" for version 2: directory}.

    That is the caller's cgroup, or PARENT: a path as /proc/PID/cgroup has it,
    one below a mount point, or one relative to the caller's.
    """
    mounts = mounted()
    if parent is not None:
        parent = strip(parent, [place for _, _, _, place in mounts])
    found = {}
    for hierarchy, path in parse(read("/proc/self/cgroup")).items():
        if hierarchy.startswith("name="):
            continue  # without a controller: somebody's to keep processes in order by
        base = os.path.dirname(path) if os.path.basename(path) in (CALLERS, INSIDE) else path
        place = directory(hierarchy, base if parent is None else os.path.join(base, parent), mounts)
        if place is not None and os.path.isdir(place):
            found[hierarchy] = place
    if not found:
        if parent is not None:
            raise Failure(f"--parent: no cgroup {show(parent)} here")
        raise Failure(f"no cgroup file system is mounted here [{SEE_CHECK}]")
    return found


def tops():
    """Where the hierarchies with controllers are mounted: {controllers, "" for version 2: directory}."""
    found, mounts = {}, mounted()
    for hierarchy in parse(read("/proc/self/cgroup")):
        for version, options, _, place in mounts:
            if version == 2 if not hierarchy else version == 1 and set(hierarchy.split(",")) <= options:
                found.setdefault(hierarchy, place)
    return found


def strip(parent, mount_points):
    """PARENT without the mount point of a hierarchy in front."""
    parent = os.path.normpath(parent)
    for place in sorted(mount_points, key=len, reverse=True):
        if parent == place or parent.startswith(f"{place}/"):
            return f"/{os.path.relpath(parent, place)}"
    return parent


# The child that hasten() made, until somebody has waited for it.
hastening = []


def hasten(controllers):
    """Have the kernel prepare for moves between cgroups of version 1, if that has one of CONTROLLERS.

    The first move after some time waits for every CPU once, 5 to 10 ms; those
    right behind it do not. So a child moves, to where it is already, while we
    go on: nothing has changed then. See cgroup_attach_lock() in the kernel.
    """
    for hierarchy, path in parse(read("/proc/self/cgroup")).items() if controllers and not hastening else ():
        if set(hierarchy.split(",")) & set(controllers):
            place = directory(hierarchy, path, mounted())
            pid = os.fork() if place else None
            if pid == 0:
                try:
                    write_to(os.path.join(place, "cgroup.procs"), "0")
                finally:
                    os._exit(0)
            hastening.extend([pid] if pid else [])
            return


def reap_hastening():
    """Wait for the child that hasten() made, if it is ours."""
    while hastening:
        try:
            os.waitpid(hastening.pop(), 0)
        except ChildProcessError:
            pass  # our parent's
