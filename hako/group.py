"""A cgroup of our own, with limits for all that is in it, and its end.

A host has the controllers in the one hierarchy of cgroups version 2, in
hierarchies of version 1, or some here and some there. A Group is one cgroup in
each that is needed. Who watches it holds a lock on the directories: what is
there without a lock was left behind by one that was killed. See cgroups(7).
"""

import fcntl
import os
import time

from hako import cgroup, kernel
from hako.failure import SEE_CHECK, Failure, call, refused, show

EPERM, ENOENT, ESRCH, EACCES, EBUSY, EROFS, EOPNOTSUPP = 1, 2, 3, 13, 16, 30, 95
DENIED = (EACCES, EPERM, EROFS)
OF_SWAP = ("memory.swap.max", "memory.memsw.limit_in_bytes")  # missing where the kernel does not account for swap
KILLING = 2.0  # seconds for which the end of killed processes is waited for
PAUSE = 0.005
WAY_OUT = f"root may, and others under: systemd-run --user --scope -p Delegate=yes; {SEE_CHECK}"


class Group:
    """A cgroup of our own: a directory in each hierarchy that is needed.

    name     of each directory
    where    {hierarchy: directory} below which they may be
    files    {hierarchy: descriptor of the directory, locked}
    doors    {hierarchy: descriptor of the directory in it that PROG is in}
    paths    {hierarchy: the directory, for messages}
    homes    {controller: hierarchy}
    """

    __slots__ = ("doors", "files", "homes", "name", "paths", "where")

    def __init__(self, name, where):
        self.name, self.where, self.files, self.doors, self.paths, self.homes = name, where, {}, {}, {}, {}

    def add(self, hierarchy, controllers):
        """Make the directory in the HIERARCHY for CONTROLLERS; a Failure if it cannot be made."""
        path = os.path.join(self.where[hierarchy], self.name)
        with call(f"mkdir {show(path)}", WAY_OUT):
            os.mkdir(path, 0o755)
        inside = os.path.join(path, cgroup.INSIDE)
        try:
            if "cpuset" in controllers and hierarchy:
                inherit_cpuset(self.where[hierarchy], path)
            self.open(hierarchy)
            self.add_inside(hierarchy, inside)
        except BaseException:
            rmdir(inside)
            rmdir(path)
            if hierarchy in self.files:
                os.close(self.files.pop(hierarchy))  # who can do without goes on, and is to know of none
            raise
        self.homes.update(dict.fromkeys(controllers, hierarchy))

    def add_inside(self, hierarchy, path):
        """Make the directory PATH that PROG will be in.

        The files with the limits are not in there, but above: a sandbox may
        mount its cgroups in a namespace of its own, which begins where it is,
        and the files are for their owner to write, whose uid PROG may have.
        """
        with call(f"mkdir {show(path)}"):
            os.mkdir(path, 0o755)
        with call(f"open {show(path)}"):
            self.doors[hierarchy] = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open(self, hierarchy):
        """Open and lock the directory in the HIERARCHY; EAGAIN or ENOENT if another has the lock or removed it."""
        path = os.path.join(self.where[hierarchy], self.name)
        with call(f"open {show(path)}"):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with call(f"flock {show(path)}"):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.path.samestat(os.fstat(fd), os.stat(path)):
                    raise FileNotFoundError(ENOENT, "")
        except Failure:
            os.close(fd)
            raise
        self.files[hierarchy], self.paths[hierarchy] = fd, path

    def write(self, controller, name, value):
        """Write VALUE to the file NAME of CONTROLLER."""
        hierarchy = self.homes[controller]
        with call(f"write {show(os.path.join(self.paths[hierarchy], name))} {value!r}"):
            fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.files[hierarchy])
            try:
                os.write(fd, os.fsencode(str(value)))
            finally:
                os.close(fd)

    def limit(self, limits):
        """Put the limits.Limits LIMITS in force."""
        for controller, name, value in limits.settings(self.version):
            try:
                self.write(controller, name, value)
            except Failure as err:
                if name not in OF_SWAP or err.errno not in (ENOENT, EOPNOTSUPP) or swap_is_there():
                    raise

    def open_file(self, controller, name):
        """A descriptor of the file NAME of CONTROLLER, to read; None if there is none."""
        hierarchy = self.homes.get(controller)
        if hierarchy is None:
            return None
        try:
            return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.files[hierarchy])
        except OSError:
            return None

    def read(self, controller, name):
        """The text of the file NAME of CONTROLLER, "" if there is none."""
        fd = self.open_file(controller, name)
        return "" if fd is None else read_fd(fd)

    def version(self, controller):
        """2 or 1: the version of the hierarchy that has CONTROLLER; None if it is not in use."""
        hierarchy = self.homes.get(controller)
        return None if hierarchy is None else 1 if hierarchy else 2

    def clone_into(self):
        """The descriptor for clone3's CLONE_INTO_CGROUP, or None without version 2."""
        return self.doors.get("")

    def enter(self):
        """Move this process into the directories of version 1; into that of version 2 it is born."""
        for procs, path in self.open_procs(born=True):
            with call(f"write {show(path)}/cgroup.procs"):
                os.write(procs, b"0")
            os.close(procs)

    def open_procs(self, born=False):
        """Descriptors of the files by which a process moves into the directories: [(descriptor, directory)].

        Without that of version 2 for one that is BORN there. The limits are set by now.
        """
        found = []
        for hierarchy in self.files:
            if hierarchy or not born:
                fd, path = self.inside(hierarchy)
                with call(f"open {show(path)}/cgroup.procs"):
                    found.append((os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=fd), path))
        return found

    def inside(self, hierarchy):
        """The directory that PROG is in, a descriptor and for messages; ours itself, if it was there before us."""
        above = self.paths[hierarchy]
        if hierarchy not in self.doors:
            return self.files[hierarchy], above
        path = os.path.join(above, cgroup.INSIDE)
        if hierarchy and self.homes.get("cpuset") == hierarchy:
            inherit_cpuset(above, path)
        return self.doors[hierarchy], path

    def close(self):
        """Let go of the directories."""
        self.close_doors()
        while self.files:  # none twice, should one fail
            os.close(self.files.popitem()[1])

    def close_doors(self):
        """Let go of those that PROG is in: it is in there, or never will be."""
        while self.doors:
            os.close(self.doors.popitem()[1])

    def can_kill(self):
        """Whether there is a way to kill all in here at once."""
        return "" in self.files or "freezer" in self.homes

    def populated(self):
        """Whether there is a process in here, or below."""
        if "" in self.files:
            return b"populated 1" in read_at(self.files[""], "cgroup.events")
        return any(pids(fd) for fd in self.files.values())

    def pids(self):
        """The pids of the processes in here and below, as this process's pid namespace has them."""
        return sorted({pid for fd in self.files.values() for pid in pids(fd) if pid})

    def kill(self):
        """Kill every process in here at once: not one can fork meanwhile."""
        if "" in self.files:
            write_at(self.files[""], "cgroup.kill", b"1")
        elif "freezer" in self.homes:
            self.kill_frozen()

    def kill_frozen(self):
        """What version 1 has in the place of cgroup.kill: nobody moves while each gets its signal.

        The signals are there when the cgroup thaws: none gets to run before it ends.
        """
        freezer = self.files[self.homes["freezer"]]
        write_at(freezer, "freezer.state", b"FROZEN")
        end = time.monotonic() + KILLING
        while b"FROZEN" not in read_at(freezer, "freezer.state") and time.monotonic() < end:
            time.sleep(PAUSE / 10)
        for pid in pids(freezer):
            kill(pid)
        write_at(freezer, "freezer.state", b"THAWED")

    def try_to_remove(self):
        """Remove the directories, and those made below, that the kernel lets go; return whether all are gone.

        A look at what is below takes a descriptor: who has no other is here because of that.
        """
        self.close_doors()
        for hierarchy, fd in list(self.files.items()):
            if remove_below(fd) and rmdir(self.paths[hierarchy]):
                os.close(self.files.pop(hierarchy))
        return not self.files

    def remove(self):
        """Remove the directories, and those that were made below; what is in there has been killed.

        Return whether all are gone. The end of a process takes the kernel a moment;
        so may what a call fails for, of which only the last is told.
        """
        end = time.monotonic() + KILLING
        while True:
            try:
                if self.try_to_remove():
                    return True
                if time.monotonic() > end:
                    return False
                self.kill()
                signal(self.pids, kernel.SIGKILL)  # who is in one hierarchy and not in that which kills
            except (Failure, OSError):
                if time.monotonic() > end:
                    raise
            time.sleep(PAUSE)


def hierarchy_of(path):
    """The hierarchy that the cgroup in the directory PATH is in: its controllers in version 1, "" in version 2.

    A directory that is in none is taken for one of version 2.
    """
    path = os.path.realpath(path)
    for version, options, _, place in cgroup.mounted():
        if version == 1 and f"{path}/".startswith(f"{place.rstrip('/')}/"):
            return ",".join(sorted(options & set(cgroup.read("/proc/cgroups").split())))
    return ""


def swap_is_there():
    """Whether this machine has swap to limit."""
    return cgroup.read("/proc/swaps").count("\n") > 1


def read_fd(fd):
    """All text of FD, which is closed; "" if the kernel will not tell."""
    try:
        return os.read(fd, 1 << 16).decode()
    except OSError:
        return ""
    finally:
        os.close(fd)


def read_at(directory_fd, name):
    """The bytes of the file NAME in the cgroup DIRECTORY_FD, none if there is no such file."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
    except OSError:
        return b""
    data = []
    try:
        while piece := os.read(fd, 1 << 16):
            data.append(piece)
    except OSError:
        pass  # removed meanwhile
    os.close(fd)
    return b"".join(data)


def write_at(directory_fd, name, data):
    """Write DATA to the file NAME in the cgroup DIRECTORY_FD."""
    with call(f"write {name}"):
        fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory_fd)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)


def below(fd):
    """The names of the cgroups right below the directory FD."""
    if os.fstat(fd).st_nlink == 2:
        return []
    try:
        with os.scandir(fd) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def subdirectory(fd, name):
    """A descriptor of the directory NAME in the directory FD; None if it is gone."""
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
    except OSError:
        return None


def pids(fd):
    """The pids in the cgroup directory FD and below; 0 for one of another pid namespace."""
    found = [int(word) for word in read_at(fd, "cgroup.procs").split()]
    for name in below(fd):
        inner = subdirectory(fd, name)
        if inner is not None:
            found += pids(inner)
            os.close(inner)
    return found


def kill(pid):
    """Kill process PID, which cannot have been reaped meanwhile."""
    try:
        os.kill(pid, kernel.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def pidfd(pid):
    """A descriptor of process PID, None if it is gone."""
    try:
        return kernel.pidfd_open(pid)
    except Failure:
        return None


def signal(pids_of, number, spare=None):
    """Send signal NUMBER to the processes that PIDS_OF() lists, without those for which SPARE(pid) is true."""
    found = {pid: pidfd(pid) for pid in pids_of()}
    there = set(pids_of())  # who is listed now as well is the one that the pidfd is of
    for pid, fd in found.items():
        if fd is not None:
            if pid in there and not (spare and spare(pid)):
                send(fd, number)
            os.close(fd)


def send(fd, number):
    """Send signal NUMBER to the process of the pidfd FD, if it is there and ours."""
    try:
        kernel.pidfd_send_signal(fd, number)
    except Failure as err:
        if err.errno not in (EPERM, ESRCH):
            raise


def rmdir(path, directory_fd=None):
    """Remove the cgroup PATH below DIRECTORY_FD; whether it is gone."""
    try:
        os.rmdir(path, dir_fd=directory_fd)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def remove_below(fd):
    """Remove the cgroups below the directory FD; whether all are gone."""
    gone = True
    for name in below(fd):
        inner = subdirectory(fd, name)
        if inner is not None:
            try:
                gone = remove_below(inner) and rmdir(name, fd) and gone
            finally:
                os.close(inner)
    return gone


def inherit_cpuset(parent, path):
    """Give the new cgroup PATH of version 1 the CPUs and memory nodes of PARENT: it starts with none."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        cgroup.write_to(os.path.join(path, name), cgroup.read(os.path.join(parent, name)).strip())


def create(needed, wanted, parent):
    """A Group with the controllers NEEDED, {controller: the option that needs it}, and those WANTED that are to be had.

    PARENT as in cgroup.places(). None: nothing is needed, and nothing is to be had.
    """
    found = find(needed, wanted, parent)
    return None if found is None else make(*found, needed)


def find(needed, wanted, parent):
    """Where such a Group may be: {hierarchy: directory}, and {controller: hierarchy}; or None."""
    try:
        where = cgroup.places(parent)
    except Failure:
        if needed or parent is not None:
            raise
        return None
    homes = {controller: home(controller, where) for controller in (*needed, *wanted)}
    for controller, option in needed.items():
        if homes[controller] is None:
            known = " ".join(available(key, place) for key, place in where.items()).split()
            have = f"there are {' '.join(sorted(known))}" if known else "there are none"
            raise Failure(f"{option}: no cgroup here has the controller {controller}, {have} [{WAY_OUT}]")
    return where, homes


def make(where, homes, needed):
    """A Group at a place that find() has found, or None."""
    for _ in range(16):
        group = Group(f"hako-{os.getpid()}-{os.urandom(4).hex()}", where)
        try:
            fill(group, homes, needed)
        except Failure as err:
            group.remove()
            if err.errno in (kernel.EAGAIN, ENOENT) and os.path.isdir(next(iter(where.values()))):
                continue  # somebody who clears up took it for left behind, before it was locked
            raise
        return group if group.files else None
    raise Failure("cgroup: others are in the way")


def own_by(uid):
    """Whether UID owns the cgroup of version 2 that this process is in, and that is not the root: it can be killed."""
    try:
        place = cgroup.places().get("")
    except Failure:
        return False
    return place is not None and owner(place) == uid and os.path.exists(os.path.join(place, "cgroup.kill"))


def view(paths, homes):
    """Another's Group, without its locks, to be read: PATHS and HOMES as in that; what is gone is left out."""
    group = Group("", {})
    for hierarchy, path in paths.items():
        try:
            group.files[hierarchy] = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
    group.homes = {controller: hierarchy for controller, hierarchy in homes.items() if hierarchy in group.files}
    return group


def home(controller, where):
    """The hierarchy among WHERE, {hierarchy: directory}, that has CONTROLLER; None if none has."""
    for hierarchy, place in where.items():
        if controller in (hierarchy.split(",") if hierarchy else available("", place).split()):
            return hierarchy
    return None


def available(hierarchy, place):
    """The controllers, separated by blanks, that a cgroup below PLACE can have."""
    if hierarchy:
        return hierarchy.replace(",", " ")
    try:
        return cgroup.read(os.path.join(place, "cgroup.controllers")).strip()
    except Failure:
        return ""


def fill(group, homes, needed):
    """Make the directories of GROUP that HOMES, {controller: hierarchy}, ask for, NEEDED or not.

    That of version 2 is made in any case, if it can be: it kills. Else the freezer is for that.
    """
    by_hierarchy = {}
    for controller, hierarchy in homes.items():
        if hierarchy is not None:
            by_hierarchy.setdefault(hierarchy, []).append(controller)
    if "" in group.where:
        with_controllers(group, by_hierarchy.pop("", []), needed)
    if "" in group.files and by_hierarchy.get(homes.get("cpuacct")) == ["cpuacct"]:
        del by_hierarchy[homes["cpuacct"]]  # version 2 counts CPU time without a controller
    if not group.can_kill() and "freezer" in group.where:
        by_hierarchy.setdefault("freezer", []).append("freezer")
    for hierarchy, controllers in by_hierarchy.items():
        try:
            group.add(hierarchy, controllers)
        except Failure as err:
            if err.errno not in DENIED or any(controller in needed for controller in controllers):
                raise


def with_controllers(group, controllers, needed):
    """Make the directory of GROUP in version 2 with CONTROLLERS, the NEEDED ones at least."""
    required = [controller for controller in controllers if controller in needed]
    try:
        if controllers:
            controllers = delegate(group.where[""], controllers, required)
        group.add("", controllers)
    except Failure as err:
        if required or err.errno not in (*DENIED, EBUSY):
            raise


def delegate(place, controllers, required):
    """Let the cgroups below PLACE have CONTROLLERS; return those that they have then, all REQUIRED ones among them.

    Who is in the way moves down, for a limit; nobody does for a figure.
    """
    path = os.path.join(place, "cgroup.subtree_control")
    have = cgroup.read(path).split()
    missing = [controller for controller in controllers if controller not in have]
    if missing and is_occupied(place):
        if not set(missing) & set(required):
            return [controller for controller in controllers if controller in have]
        refuse_unit(place)
        make_room(place)
    for controller in missing:
        try:
            cgroup.write_to(path, f"+{controller}", WAY_OUT)
            have.append(controller)
        except Failure:
            if controller in required:
                raise
    return [controller for controller in controllers if controller in have]


def is_occupied(place):
    """Whether processes in PLACE are in the way: anywhere but in the root, which alone has no type."""
    return bool(cgroup.read(os.path.join(place, "cgroup.procs"))) and os.path.exists(os.path.join(place, "cgroup.type"))


def refuse_unit(place):
    """Refuse to rearrange PLACE if systemd manages it: it would take the controllers, and so the limits, away again."""
    if not place.endswith((".scope", ".service", ".slice")):
        return
    for name in ("user.delegate", "trusted.delegate"):
        try:
            if os.getxattr(place, name) == b"1":
                return
        except OSError:
            continue
    raise Failure(f"{show(place)} is systemd's, and not delegated [{WAY_OUT}]", errno=EBUSY)


def make_room(place):
    """Move the processes in PLACE to a leaf of it: version 2 lets a cgroup have processes or controlled children."""
    leaf, procs = os.path.join(place, cgroup.CALLERS), os.path.join(place, "cgroup.procs")
    with call(f"mkdir {show(leaf)}", WAY_OUT):
        try:
            os.mkdir(leaf, 0o755)
        except FileExistsError:
            pass
    for _ in range(20):
        there = cgroup.read(procs).split()
        if not there:
            return
        for pid in there:
            try:
                cgroup.write_to(os.path.join(leaf, "cgroup.procs"), pid, WAY_OUT)
            except Failure as err:
                if err.errno != ESRCH:
                    raise
    raise refused(f"move the processes of {show(place)} to {cgroup.CALLERS}", EBUSY, "they start others all the time")


def clean(where):
    """Remove what killed supervisors left below WHERE, {hierarchy: directory}; return the names."""
    left = set()
    for place in where.values():
        with call(f"readdir {place}"):
            left.update(filter(cgroup.is_ours, os.listdir(place)))
    return [name for name in sorted(left) if remove_left(name, where)]


def leftovers():
    """The cgroups of ours that may have been left, anywhere: {name: {hierarchy: directory that it is in}}.

    Root sees everybody's, others their own.
    """
    found = {}
    for hierarchy, top in cgroup.tops().items():
        for place, names, _ in os.walk(top):
            ours = [name for name in names if cgroup.is_ours(name)]
            names[:] = set(names) - set(ours)
            for name in ours:
                if os.geteuid() in (0, owner(os.path.join(place, name))):
                    found.setdefault(name, {})[hierarchy] = place
    return found


def owner(path):
    """The uid of the owner of PATH, None if it is gone."""
    try:
        return os.stat(path).st_uid
    except OSError:
        return None


def remove_left(name, where):
    """Remove the group NAME below WHERE, {hierarchy: directory}, if nobody has locked it, and kill who is in there.

    Return whether it is gone; None if it is somebody's. One whose pid is
    somebody's stays until later.
    """
    if os.path.exists(f"/proc/{name.split('-')[1]}"):
        return None
    group = Group(name, where)
    try:
        for hierarchy, place in where.items():
            if os.path.isdir(os.path.join(place, name)):
                group.open(hierarchy)
                group.homes[hierarchy] = hierarchy
    except Failure:
        group.close()  # somebody's, or gone
        return None
    gone = None
    try:
        if group.files:
            group.kill()
            gone = group.remove()
    except Failure:
        pass  # another user's, or another has removed it meanwhile: no business of ours
    group.close()
    return gone
