"""Joins an existing sandbox: finds out what a process is in, then moves this process there.

Everything is read through one directory of /proc and one pidfd that are known
to be of the same process, so that a pid that was reused is noticed.
"""

import fcntl
import os
import resource
import select

from hako import cgroup, identity, kernel
from hako.failure import Failure, call, refused

ENOENT, ESRCH, EACCES = 2, 3, 13
SEE_PS = "hako-ps lists the sandboxes that run"


class Inmate:
    """A process in a sandbox, by which the sandbox is joined.

    pid     as the caller's /proc has it
    pidfd   its descriptor
    proc    descriptor of its /proc/PID
    flags   CLONE_NEW* of the namespaces in which it differs from this process
    """

    __slots__ = ("flags", "pid", "pidfd", "proc")

    def __init__(self, pid):
        self.open(pid)
        try:
            self.flags = self.differing()
        except PermissionError:
            self.take_child()
            self.flags = self.differing()
        missing = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID
        if self.flags & missing != missing:
            reason = "it has not both mounts and pids of its own"
            raise Failure(f"process {pid} is not in a sandbox: {reason} [{SEE_PS}]")
        self.check_root()

    def open(self, pid):
        """Open process PID."""
        self.pid = pid
        try:
            self.pidfd = kernel.pidfd_open(pid)
        except Failure as err:
            hints = {**dict.fromkeys((kernel.EINVAL, ENOENT), "a thread, or no process"), ESRCH: SEE_PS}
            if err.errno not in hints:
                raise
            raise refused(f"pidfd_open {pid}", err.errno, hints[err.errno]) from err
        with call(f"open /proc/{pid}"):
            self.proc = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if poll.poll(0):  # else it is still there, so /proc/PID is this process's
            raise Failure(f"process {pid} has ended")

    def close(self):
        """Let go of the process."""
        os.close(self.pidfd)
        os.close(self.proc)

    def read(self, name):
        """The text of the file NAME of the process."""
        with call(f"open /proc/{self.pid}/{name}"):
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)
        with open(fd, "rb") as file, call(f"read /proc/{self.pid}/{name}"):
            return os.fsdecode(file.read())

    def status(self):
        """/proc/PID/status as {name: text}."""
        lines = (line.partition(":") for line in self.read("status").splitlines())
        return {name: text.strip() for name, _, text in lines}

    def differing(self):
        """The namespaces in which the process differs from this one; PermissionError if it is not for us to know."""
        flags = 0
        for name, flag in kernel.NAMESPACES.items():
            try:
                own = os.stat(f"/proc/self/ns/{name}")
            except FileNotFoundError:
                continue  # this kernel has no such namespaces
            try:
                its = os.stat(f"ns/{name}", dir_fd=self.proc)
            except FileNotFoundError as err:
                raise Failure(f"process {self.pid} has ended") from err
            if not os.path.samestat(own, its):
                flags |= flag
        return flags

    def check_root(self):
        """Refuse a process whose root is the caller's: a sandbox that is still being made, or half of one."""
        try:
            root = os.stat("root", dir_fd=self.proc)
        except OSError:
            return  # not ours to see; enter() looks again, from inside
        refuse_own_root(self.pid, root, os.stat("/"))

    def take_child(self):
        """Take the place of this process by its first child, if this is the init of a sandbox.

        The init of hako-run cannot be looked into by anybody but root. What an
        ordinary user may join is the process that the init has made for PROG,
        which has the very namespaces: unless it has gone and made others.
        """
        depth = self.status()["NSpid"].split()
        if len(depth) < 2 or depth[-1] != "1":
            raise Failure(f"process {self.pid} is not yours to join: {os.strerror(EACCES)}")
        children = self.read(f"task/{self.pid}/children").split()
        init = self.pid
        self.close()
        if not children:
            raise Failure(f"process {init} has no child to join by")
        self.open(int(children[0]))
        status = self.status()
        if status["PPid"] != str(init) or len(status["NSpid"].split()) != len(depth):
            raise Failure(f"process {init}: its child {self.pid} is in other namespaces")
        self.check_owner()

    def check_owner(self):
        """Refuse to follow the process into a user namespace that it made itself, below the sandbox's."""
        with call(f"open /proc/{self.pid}/ns/user"):
            fd = os.open("ns/user", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.proc)
        try:
            with call("ioctl NS_GET_PARENT"):
                parent = fcntl.ioctl(fd, kernel.NS_GET_PARENT)
            ours = os.path.samestat(os.fstat(parent), os.stat("/proc/self/ns/user"))
            os.close(parent)
        finally:
            os.close(fd)
        if not ours:
            raise Failure(f"process {self.pid} has left the user namespace of its sandbox")

    def outside(self, kind, inside):
        """The id outside that INSIDE is in the process's user namespace, KIND "uid" or "gid"."""
        for first, outer, count in self.id_map(kind):
            if first <= inside < first + count:
                return outer + inside - first
        raise Failure(f"process {self.pid}: its user namespace has no {kind} {inside}")

    def inside(self, kind, outside):
        """The id in the process's user namespace that OUTSIDE is out here, KIND "uid" or "gid"."""
        for first, outer, count in self.id_map(kind) if self.flags & kernel.CLONE_NEWUSER else ():
            if outer <= outside < outer + count:
                return first + outside - outer
        return outside

    def id_map(self, kind):
        """The uid or gid map (KIND) of the process: triples INSIDE OUTSIDE COUNT, as seen from here."""
        return [tuple(map(int, line.split())) for line in self.read(f"{kind}_map").splitlines()]


def enter(inmate, program, with_cgroup):
    """Move this process into the namespaces and cgroups of INMATE; return the uid of PROG as the host has it.

    None: no user namespace is joined, and PROG's uid is the same everywhere.
    """
    settle_ids(inmate, program.identity)
    lower_limits(inmate.read("limits"))
    if with_cgroup:
        # First: the files of cgroups are the host's, out of reach from inside.
        cgroup.join(inmate.read("cgroup"), program.say)
    host_uid = inmate.outside("uid", program.identity.uid) if inmate.flags & kernel.CLONE_NEWUSER else None
    own_root = os.stat("/")
    kernel.setns(inmate.pidfd, inmate.flags, f"{kernel.namespace_names(inmate.flags)} of process {inmate.pid}")
    refuse_own_root(inmate.pid, os.stat("/"), own_root)
    inmate.close()
    program.say(f"joined {kernel.namespace_names(inmate.flags)} of process {inmate.pid}")
    return host_uid


def refuse_own_root(pid, root, own):
    """Refuse the process PID if its ROOT is our OWN, both os.stat_result."""
    if os.path.samestat(root, own):
        raise Failure(f"process {pid} is not in a sandbox: its root is the caller's")


def settle_ids(inmate, who):
    """Fill in the ids that WHO leaves open: those of INMATE, as its user namespace has them.

    Groups go now, in the caller's namespace, which may allow it when that one does not.
    """
    who.note_groups()
    status = inmate.status()
    if who.uid is None:
        who.uid = inmate.inside("uid", int(status["Uid"].split()[1]))
    if who.gid is None:
        who.gid = inmate.inside("gid", int(status["Gid"].split()[1]))
    if kernel.capable(identity.CAP_SETGID):
        with call("setgroups"):
            os.setgroups([])
        who.groups = set()


def lower_limits(text):
    """Lower the resource limits of this process to those in TEXT, a /proc/PID/limits; never raise one.

    Its lines, behind the first, are in the order of the RLIMIT_* numbers.
    """
    for number, line in enumerate(text.splitlines()[1:]):
        theirs = [resource.RLIM_INFINITY if word == "unlimited" else int(word) for word in line[26:].split()[:2]]
        ours = resource.prlimit(0, number)
        lower = tuple(min(pair, key=lambda value: value % 2**64) for pair in zip(ours, theirs, strict=True))
        if lower != ours:
            with call(f"setrlimit {line[:26].strip()}"):
                resource.prlimit(0, number, lower)
