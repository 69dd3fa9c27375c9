"""The sandboxes that run here, as their supervisors have listed them in the registry.

What a file says counts only if the process is there, with the start time that
it names: others may have written it, or mean a pid of another pid namespace.
"""

import fcntl
import os
import stat
import time

from hako import group, kernel, meter, registry
from hako.failure import Failure

MOST_BYTES = 1 << 16  # of a file
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Supervisor:
    """A process that supervises: what its file says.

    pid, start   its pid and its start time in ticks, numbers
    child        pid of its child: an init, or a keeper
    inside       pid by which to enter the sandbox, or None
    command      which of hako's it is
    cgroups      {hierarchy: directory}
    homes        {controller: hierarchy}
    limits       {name: number}
    parent       pid of its parent
    """

    __slots__ = ("cgroups", "child", "command", "homes", "inside", "limits", "parent", "pid", "start")

    def __init__(self, lines):
        self.inside = None
        self.cgroups, self.homes, self.limits = {}, {}, {}
        for line in lines:
            key, _, value = line.partition(" ")
            name, _, rest = value.partition(" ")
            if key == "supervisor":
                self.pid, self.start = int(name), int(rest)
            elif key in ("child", "inside"):
                setattr(self, key, int(value))
            elif key == "command":
                self.command = value
            elif key == "cgroup":
                self.cgroups["" if name == "-" else name] = rest
            elif key == "home":
                self.homes[name] = "" if rest == "-" else rest
            elif key == "limit":
                self.limits[name] = float(rest) if "." in rest else int(rest)
        state, self.parent, *_ = fields = registry.stat(self.pid)
        if int(fields[19]) != self.start or state in "ZX" or not (self.child and self.command):
            raise ValueError("another process")


class Sandbox:
    """A sandbox: its SUPERVISORS, outermost first, each the parent of the next one's."""

    __slots__ = ("supervisors",)

    def __init__(self, supervisors):
        self.supervisors = supervisors

    @property
    def supervisor(self):
        """The pid of the outermost supervisor, with which all ends."""
        return self.supervisors[0].pid

    @property
    def pid(self):
        """The pid by which to enter it; None if there is nothing to enter."""
        return self.supervisors[-1].inside

    @property
    def age(self):
        """Seconds since it was started."""
        return max(time.clock_gettime(time.CLOCK_BOOTTIME) - self.supervisors[0].start / TICK, 0.0)

    @property
    def limits(self):
        """Its limits: {name: number}."""
        found = {}
        for supervisor in self.supervisors:
            for name, value in supervisor.limits.items():
                found[name] = min(value, found.get(name, value))
        return found

    def words(self):
        """Its command line, without the interpreter; [] if it has ended."""
        words, command = cmdline(self.supervisor), self.supervisors[0].command
        names = [os.path.basename(word) for word in words]
        return [command, *words[names.index(command) + 1 :]] if command in names else words

    def end(self, number):
        """Send its supervisor the signal NUMBER; whether that was still there."""
        supervisor = self.supervisors[0]
        try:
            fd = kernel.pidfd_open(supervisor.pid)
        except Failure:
            return False
        try:
            if int(registry.start_time(supervisor.pid)) != supervisor.start:
                return False  # the pid is another's by now; if not, the pidfd is the supervisor's
            kernel.pidfd_send_signal(fd, number)
        except (OSError, Failure):
            return False
        finally:
            os.close(fd)
        return True

    def told(self):
        """What there is to say of it, for JSON."""
        return {
            "pid": self.pid,
            "supervisor": self.supervisor,
            "age": round(self.age, 2),
            "command": self.words(),
            "limits": self.limits,
        }

    def used(self):
        """What it uses: as meter.Meter.now() has it, the memory from /proc where no cgroup counts it."""
        own = next((found for found in self.supervisors if found.cgroups), None)
        viewed = None if own is None else group.view(own.cgroups, own.homes)
        try:
            counters = meter.Meter(viewed, watching=False)
            counters.keeper = self.supervisors[-1].child
            found = counters.now()
            if found["memory"] is None:
                found["memory"] = sum(map(resident, counters.pids()))
            return found
        finally:
            if viewed is not None:
                viewed.close()


def cmdline(pid):
    """The command line of process PID, words; [] if it is gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return os.fsdecode(file.read()).split("\0")[:-1]
    except OSError:
        return []


def resident(pid):
    """The resident bytes of process PID; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * PAGE
    except OSError:
        return 0


def found():
    """The Sandboxes of this user that run here, the oldest first. What killed supervisors left is removed."""
    supervisors = []
    for path in registry.places():
        try:
            directory = registry.open_directory(path)
        except Failure:
            continue
        supervisors += [one for name in os.listdir(directory) if name.isdigit() and (one := read(directory, name))]
        os.close(directory)
    supervisors.sort(key=lambda one: (one.start, one.pid))
    return joined({one.pid: one for one in supervisors})


def read(directory, name):
    """The Supervisor of the file NAME in DIRECTORY; None if it is none, or not any more: then the file is removed."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        if not is_locked(fd):
            if os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=directory, follow_symlinks=False)):
                os.unlink(name, dir_fd=directory)
            return None
        return Supervisor(os.fsdecode(os.read(fd, MOST_BYTES)).splitlines())
    except (OSError, Failure, ValueError, AttributeError):
        return None  # gone, half written, or nobody's we know
    finally:
        os.close(fd)


def is_locked(fd):
    """Whether somebody has a lock on FD; if not, this process has it until it closes FD."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def joined(supervisors):
    """The Sandboxes of SUPERVISORS, {pid: Supervisor}: of one chain if one's parent is the child of the other."""
    parents = {one.child: one for one in supervisors.values()}
    inner = {}
    for one in supervisors.values():
        outer = parents.get(int(one.parent))
        # An orphan becomes the keeper's child too; who never executed anything has its command line.
        if outer is not None and cmdline(outer.pid) == cmdline(one.pid):
            inner[outer.pid] = one
    behind = {one.pid for one in inner.values()}
    made = [[one] for one in supervisors.values() if one.pid not in behind]
    for chain in made:
        while chain[-1].pid in inner:
            chain.append(inner[chain[-1].pid])
    return list(map(Sandbox, made))
