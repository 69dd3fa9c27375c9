"""The sandboxes that run here, as their supervisors have listed them in the registry.

What a file says counts only if the process is there, with the start time that
it names: others may have written it, or mean a pid of another pid namespace.
"""

import fcntl
import os
import stat
import time

from hako import group, kernel, meter, registry
from hako.failure import Failure, show

COUNTS = ("jobs", "running", "ended")
AGAIN = object()
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Listed:
    """A process that a file names: what it says of it.

    pid, start   its pid and its start time in ticks, numbers
    cgroups      {hierarchy: directory}
    homes        {controller: hierarchy}
    limits       {name: number}
    parent       pid of its parent
    """

    __slots__ = ("cgroups", "homes", "limits", "parent", "pid", "start")

    def __init__(self):
        self.cgroups, self.homes, self.limits = {}, {}, {}

    def take(self, key, value):
        """Take the line of KEY and VALUE."""
        name, _, rest = value.partition(" ")
        if key in ("supervisor", "task"):
            self.pid, self.start = int(name), int(rest)
        elif key == "cgroup":
            self.cgroups["" if name == "-" else name] = rest
        elif key == "home":
            self.homes[name] = "" if rest == "-" else rest
        elif key == "limit":
            self.limits[name] = limit = int(rest) if rest.isdigit() else float(rest)
            if not 0 <= limit < float("inf"):
                raise ValueError("no limit")

    def check(self):
        """A ValueError or a Failure if the process is another, or gone."""
        state, parent, *_ = fields = registry.stat(self.pid)
        self.parent = int(parent)
        if int(fields[19]) != self.start or state in "ZX":
            raise ValueError("another process")

    @property
    def name(self):
        """What tells it from every other process."""
        return self.pid, self.start

    def end(self, number):
        """Send it the signal NUMBER; whether it was still there."""
        try:
            fd = kernel.pidfd_open(self.pid)
        except Failure:
            return False
        try:
            if int(registry.start_time(self.pid)) != self.start:
                return False  # the pid is another's by now; if not, so the pidfd is this one's
            kernel.pidfd_send_signal(fd, number)
        except (OSError, Failure):
            return False
        finally:
            os.close(fd)
        return True


class Supervisor(Listed):
    """A process that supervises, or a worker, which runs tasks.

    child        pid of its child: an init, or a keeper; None for a worker
    inside       pid by which to enter the sandbox, or None
    command      which of hako's it is
    counts       of a worker: {"jobs": how many run at once, "running": how many do, "ended": how many have}
    tasks        Tasks that it runs
    """

    __slots__ = ("child", "command", "counts", "inside", "tasks")

    def __init__(self, lines):
        super().__init__()
        self.child, self.inside, self.counts, found = None, None, {}, []
        of = self
        for line in lines:
            key, _, value = line.partition(" ")
            if key == "task":
                of = Task(self)
                found.append(of)
            of.take(key, value)
        self.check()
        if not self.command or (self.child is None and len(self.counts) < len(COUNTS)):
            raise ValueError("no supervisor")
        self.tasks = [task for task in found if task.is_there()]

    def take(self, key, value):
        """Take the line of KEY and VALUE."""
        if key in ("child", "inside"):
            setattr(self, key, int(value))
        elif key == "command":
            self.command = value
        elif key in COUNTS:
            self.counts[key] = int(value)
        else:
            super().take(key, value)


class Task(Listed):
    """A task that WORKER runs, by its init, which is what `pid` means.

    began   the monotonic time at which it was started
    argv    the words of its command line, as far as the worker has told them
    """

    __slots__ = ("argv", "began", "worker")

    kind, ending = "task", kernel.SIGKILL  # nobody but its worker is there to be asked politely

    def __init__(self, worker):
        super().__init__()
        self.worker, self.began, self.argv = worker, None, None

    def take(self, key, value):
        """Take the line of KEY and VALUE."""
        if key == "began":
            self.began = int(value) / 1000
        elif key == "words":
            self.argv = os.fsdecode(bytes.fromhex(value)).split("\0")
        else:
            super().take(key, value)

    def is_there(self):
        """Whether it still runs: its init is there, and its worker's child."""
        try:
            self.check()
        except (Failure, ValueError):
            return False
        return self.parent == self.worker.pid and None not in (self.began, self.argv)

    @property
    def supervisor(self):
        """The pid of its worker."""
        return self.worker.pid

    @property
    def age(self):
        """Seconds since it was started."""
        return max(time.monotonic() - self.began, 0.0)

    def words(self):
        """Its command line."""
        return self.argv

    def shown(self):
        """Its command line, for people, below that of its worker."""
        return f"  {' '.join(map(show, self.argv))}"

    def told(self):
        """What there is to say of it, for JSON."""
        return told(self, None)

    def used(self):
        """What it uses, as of used()."""
        return used(self, self.pid)


class Sandbox:
    """A sandbox: its SUPERVISORS, outermost first, each the parent of the next one's. A worker is taken for one."""

    __slots__ = ("supervisors",)

    ending = kernel.SIGTERM

    def __init__(self, supervisors):
        self.supervisors = supervisors

    @property
    def kind(self):
        """What it is."""
        return "sandbox" if self.counts is None else "worker"

    @property
    def counts(self):
        """Those of a worker, else None."""
        last = self.supervisors[-1]
        return last.counts if last.child is None else None

    @property
    def tasks(self):
        """Those of a worker, else none."""
        return self.supervisors[-1].tasks

    @property
    def name(self):
        """What tells it from every other one."""
        return self.supervisors[0].name

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
        """Its command line, without the interpreter; of a worker of the library its program's; [] if it has ended."""
        words, command = cmdline(self.supervisor), self.supervisors[0].command
        if command == registry.LIBRARY:
            return cmdline(self.supervisors[0].parent)
        names = [os.path.basename(word) for word in words]
        return [command, *words[names.index(command) + 1 :]] if command in names else words

    def shown(self):
        """Its command line, for people; before it, how many tasks a worker runs."""
        line, counts = " ".join(map(show, self.words())), self.counts
        if counts is None:
            return line
        return f"({counts['running']} of {counts['jobs']} run, {counts['ended']} ended) {line}"

    def end(self, number):
        """Send its supervisor the signal NUMBER; whether that was still there."""
        return self.supervisors[0].end(number)

    def told(self):
        """What there is to say of it, for JSON."""
        return told(self, self.counts)

    def used(self):
        """What it uses, as of used()."""
        last = self.supervisors[-1]
        own = next((found for found in self.supervisors if found.cgroups), last)
        return used(own, last.child or last.pid)


def told(one, tasks):
    """What there is to say of ONE, a Sandbox or a Task, for JSON; TASKS are the counts of a worker."""
    return {
        "pid": one.pid,
        "supervisor": one.supervisor,
        "kind": one.kind,
        "age": round(one.age, 2),
        "tasks": tasks,
        "command": one.words(),
        "limits": one.limits,
    }


def used(listed, keeper):
    """What is used in the cgroup of LISTED, if it has one, or by those that descend from the process KEEPER.

    As meter.Meter.now() has it, the memory from /proc where no cgroup counts it.
    """
    viewed = group.view(listed.cgroups, listed.homes) if listed.cgroups else None
    try:
        counters = meter.Meter(viewed, watching=False)
        counters.keeper = keeper
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
    """The Sandboxes of this user that run here, the oldest first, each worker before its Tasks.

    What killed supervisors left is removed.
    """
    supervisors = []
    for path in registry.places():
        try:
            directory = registry.open_directory(path)
        except Failure:
            continue
        names = [name for name in os.listdir(directory) if name.removesuffix(registry.NEW).isdigit()]
        supervisors += [one for name in names if (one := read(directory, name))]
        os.close(directory)
    supervisors.sort(key=lambda one: (one.start, one.pid))
    sandboxes = joined({one.pid: one for one in supervisors})
    return [one for sandbox in sandboxes for one in (sandbox, *sandbox.tasks)]


def read(directory, name):
    """The Supervisor of the file NAME in DIRECTORY; None if it is none, or not any more: then the file is removed."""
    for _ in range(registry.TRIES):
        found = read_once(directory, name)
        if found is not AGAIN:
            return found
    return None


def read_once(directory, name):
    """The same, or AGAIN: there is another file by now."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        if not is_locked(fd):
            if not os.path.samestat(os.fstat(fd), os.stat(name, dir_fd=directory, follow_symlinks=False)):
                return AGAIN
            os.unlink(name, dir_fd=directory)
            return None
        return Supervisor(os.fsdecode(os.read(fd, registry.MOST_BYTES)).splitlines())
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
        outer = parents.get(one.parent)
        # An orphan becomes the keeper's child too; who never executed anything has its command line.
        if outer is not None and cmdline(outer.pid) == cmdline(one.pid):
            inner[outer.pid] = one
    behind = {one.pid for one in inner.values()}
    made = [[one] for one in supervisors.values() if one.pid not in behind]
    for chain in made:
        while chain[-1].pid in inner:
            chain.append(inner[chain[-1].pid])
    return list(map(Sandbox, made))


def clock(seconds):
    """SECONDS as hours, minutes and seconds."""
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
