"""What a tree of processes uses, and which limits of its cgroup it met.

The figures are those of its Group; without one, of the processes that descend
from its keeper, as /proc has them. See hako-report(5) for what they mean.
"""

import os
import select

from hako import cgroup, group, kernel
from hako.failure import Failure, call

TICK = os.sysconf("SC_CLK_TCK")
SOON, LATER = 0.01, 0.05  # seconds between looks at what the kernel does not tell about by itself
CHARGE = 64 * os.sysconf("SC_PAGESIZE")  # bytes that a CPU takes at once, near the limit in vain: MEMCG_CHARGE_BATCH
STATISTICS = {  # by version: the files of the figures
    2: {"memory": "memory.current", "memory_peak": "memory.peak", "pids": "pids.current", "pids_peak": "pids.peak"},
    1: {
        "memory": "memory.usage_in_bytes",
        "memory_peak": "memory.max_usage_in_bytes",
        "pids": "pids.current",
        "pids_peak": "pids.peak",
    },
}


class Meter:
    """The counters of one tree.

    own       its group.Group, or None
    keeper    pid of its keeper, of which all in it descend
    files     what Supervisor.wait() is to watch: where the kernel tells
    polled    {what: seconds until the next look}, where it does not
    oom_event descriptor by which version 1 tells that memory is short, or None
    changed   whether the kernel has told since the last look
    """

    __slots__ = ("changed", "files", "keeper", "oom_event", "own", "polled")

    def __init__(self, own, watching=True):
        self.own, self.keeper, self.files, self.polled, self.oom_event = own, None, {}, {}, None
        self.changed = True
        if own is not None and watching:
            self.watch_memory()
            self.watch_pids()

    def watch_memory(self):
        """Have the kernel tell when it kills for want of memory."""
        version = self.own.version("memory")
        if version == 2:
            self.watch("memory.events", "memory")
        elif version == 1:
            self.oom_event = self.register_oom_event()
            if self.oom_event is None:
                self.polled["memory"] = LATER
            else:
                self.files[self.oom_event] = select.POLLIN, self.expect_kill

    def watch_pids(self):
        """Have the kernel tell when it refuses a fork; version 1 does not."""
        version = self.own.version("pids")
        if version == 2:
            self.watch("pids.events", "pids")
        elif version == 1:
            self.polled["pids"] = LATER

    def watch(self, name, controller):
        """Be called when the file NAME of CONTROLLER changes: only to look."""
        fd = self.own.open_file(controller, name)
        if fd is not None:
            os.read(fd, 4096)
            self.files[fd] = select.POLLPRI, lambda: self.notice(fd)

    def register_oom_event(self):
        """A descriptor that becomes readable when memory is short in our cgroup of version 1, or None."""
        control = self.own.open_file("memory", "memory.oom_control")
        if control is None:
            return None
        with call("eventfd2"):
            event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self.own.write("memory", "cgroup.event_control", f"{event} {control}")
        except Failure:
            os.close(event)
            return None
        finally:
            os.close(control)
        return event

    def notice(self, fd):
        """The file FD changed: it has to be read to tell of the next change."""
        os.pread(fd, 4096, 0)
        self.changed = True

    def expect_kill(self):
        """Memory is short, and somebody is about to be killed: look soon."""
        os.eventfd_read(self.oom_event)
        self.polled["memory"] = SOON
        self.changed = True

    def pause(self):
        """Seconds until the next look at what the kernel does not tell about; None for never."""
        return min(self.polled.values(), default=None)

    def out_of_memory(self, last):
        """Whether a process was killed because our own limit of memory, or one above, was reached.

        What a cgroup below ours killed for its own limit is not ours to report.
        LAST: PROG has ended, and in version 1 the count of a cgroup below may be gone with it.
        """
        if self.own.version("memory") == 1 and self.oom_event is not None:
            # Also told when it was short in a cgroup above; then we need not have met our own.
            return self.was_short() and (bool(self.oom_kills()) or (last and self.met_limit()))
        if not self.oom_kills():
            return False
        text = self.own.read("memory", "memory.events.local")
        local = pairs(text)
        if not text or local.get("oom") or local.get("oom_kill"):
            return True  # also where nobody tells
        return not pairs(self.own.read("memory", "memory.events")).get("oom")

    def was_short(self):
        """Whether version 1 has told that memory was short in our own cgroup."""
        return "memory" in self.polled or readable(self.oom_event)

    def met_limit(self):
        """Whether our own cgroup of version 1 ever used all that it may; on Linux 6.18 failcnt does not tell."""
        return any(self.reached(prefix) for prefix in ("memory", "memory.memsw"))

    def reached(self, prefix):
        """The same of the counter whose files begin with PREFIX; False if there is none."""
        most, limit = (self.own.read("memory", f"{prefix}.{name}") for name in ("max_usage_in_bytes", "limit_in_bytes"))
        return bool(most and limit) and int(most) > int(limit) - CHARGE

    def oom_kills(self):
        """How many processes were killed for want of memory; None if that is not counted."""
        version = None if self.own is None else self.own.version("memory")
        if version is None:
            return None
        if version == 2:
            return pairs(self.own.read("memory", "memory.events")).get("oom_kill")
        found = total(self.own.files[self.own.homes["memory"]], "memory.oom_control", "oom_kill")
        return None if not found and self.oom_event is not None and self.was_short() else found

    def forks_refused(self):
        """How many forks our own limit of pids refused; None if that is not counted."""
        if self.own is None or self.own.version("pids") is None:
            return None
        return total(self.own.files[self.own.homes["pids"]], "pids.events", "max", "pids.max")

    def number(self, key):
        """The figure KEY of STATISTICS; None if it is not measured."""
        controller = key.partition("_")[0]
        version = None if self.own is None else self.own.version(controller)
        text = "" if version is None else self.own.read(controller, STATISTICS[version][key]).strip()
        return int(text) if text.isdigit() else None

    def has_cpu(self):
        """Whether the cgroup counts CPU time."""
        return self.own is not None and ("" in self.own.files or self.own.version("cpuacct") is not None)

    def cpu(self):
        """Seconds of CPU time used, (user, system), also by those that have ended."""
        if self.own is not None and "" in self.own.files:
            found = pairs(group.read_at(self.own.files[""], "cpu.stat").decode())
            return found.get("user_usec", 0) / 1e6, found.get("system_usec", 0) / 1e6
        if self.own is not None and self.own.version("cpuacct"):
            names = ("cpuacct.usage_user", "cpuacct.usage_sys")
            return tuple(int(self.own.read("cpuacct", name) or 0) / 1e9 for name in names)
        return self.cpu_of_descendants()

    def cpu_of_descendants(self):
        """The same by /proc: what they used, and those that they, and the keeper, waited for."""
        used = cpu_of(self.keeper)[2:]
        for pid in descendants(self.keeper):
            own = cpu_of(pid)
            used = used[0] + own[0] + own[2], used[1] + own[1] + own[3]
        return used

    def pids(self):
        """The pids of the tree."""
        return descendants(self.keeper) if self.own is None else self.own.pids()

    def signal(self, number, spare):
        """Send signal NUMBER to every process of the tree for which SPARE, called with the pid, is false."""
        group.signal(self.pids, number, spare)

    def now(self):
        """What is used now: {"memory": bytes, "cpu": seconds, "pids": count, "io_read", "io_write": bytes}."""
        pids = self.number("pids")
        read, written = self.io()
        return {
            "memory": self.number("memory"),
            "cpu": sum(self.cpu()),
            "pids": len(self.pids()) if pids is None else pids,
            "io_read": read,
            "io_write": written,
        }

    def io(self):
        """Bytes read from and written to block devices; None if they are not counted."""
        if self.own is None:
            return None, None
        if self.own.version("io") == 2:
            words = self.own.read("io", "io.stat").split()
            return tuple(sum(int(word[7:]) for word in words if word.startswith(key)) for key in ("rbytes=", "wbytes="))
        if self.own.version("blkio") == 1:
            lines = self.own.read("blkio", "blkio.throttle.io_service_bytes_recursive").splitlines()
            fields = [line.split() for line in lines if len(line.split()) == 3]
            return tuple(sum(int(field[2]) for field in fields if field[1] == key) for key in ("Read", "Write"))
        return None, None

    def figures(self):
        """The figures for the report, at the end."""
        return {
            "memory_peak": self.number("memory_peak"),
            "pids_peak": self.number("pids_peak"),
            "oom_kills": self.oom_kills(),
            "forks_refused": self.forks_refused(),
        }


def pairs(text):
    """TEXT, lines of a name and a number, as {name: number}."""
    return {name: int(number) for name, number in (line.split() for line in text.splitlines() if " " in line)}


def readable(event):
    """Whether the eventfd EVENT has something to tell."""
    poll = select.poll()
    poll.register(event, select.POLLIN)
    return bool(poll.poll(0))


def total(fd, name, key, own_limit=None):
    """The sum of KEY in the files NAME of the cgroup FD and those below.

    Without those below that have a limit of their own, by their file OWN_LIMIT.
    """
    found = pairs(group.read_at(fd, name).decode()).get(key, 0)
    for inner_name in group.below(fd):
        inner = group.subdirectory(fd, inner_name)
        if inner is not None:
            ours = own_limit is None or inner_name == cgroup.INSIDE  # what PROG writes there is no limit of another
            if ours or group.read_at(inner, own_limit).strip() == b"max":
                found += total(inner, name, key, own_limit)
            os.close(inner)
    return found


def cpu_of(pid):
    """Seconds that process PID used: user, system, and those of the children that it waited for; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0, 0, 0, 0
    return tuple(int(field) / TICK for field in fields[11:15])


def descendants(pid):
    """The pids of the processes that descend from process PID."""
    found = kernel.children(pid)
    for child in found:
        found += kernel.children(child)
    return found
