"""One sandbox from its birth to the exec of PROG, and what its processes do by themselves, as steps.

init    PID 1 of the sandbox: sets up what belongs to this sandbox alone, waits for an Order, makes PROG,
        reaps until PROG has ended, and ends
  PROG  takes the places of stdin, stdout and stderr, drops what it has to, and becomes the program

The init begins with the memory of a zygote, becomes a program of a few steps,
or is the Python process that built the sandbox; PROG begins with the init's
memory. No Python runs in them. They and their supervisor meet in a Slot.
"""

import _socket
import os
import struct

from hako import identity, kernel, steps
from hako.failure import call, show

SIZE = 16 * 2**20  # of a Slot: what the kernel takes of arguments, and more; only what is used takes memory
SETUP = 2**18  # of that, for the set-up
# Descriptors of the init; what comes with an order begins at FIRST.
SOCKET, PROC, GUARD, DOMAIN, MEMORY, PROGRAM, FIRST = 3, 4, 5, 6, 7, 8, 9
EACCES = 13
NOBODY = 1  # the pid of a PROG that is not there yet: no child has it
FAILS = 125  # the status of an init that fails
SETUP_ROOM = 1000  # steps of its set-up, most of which are there for a request of many mounts
ROOM = 32  # steps of an init that has its order
MOST_DESCRIPTORS = 250  # in one message: the kernel takes 253
CLONE_VM, CLONE_VFORK, CLONE_PARENT_SETTID, CLONE_ARGS = 0x100, 0x4000, 0x100000, 88
SECOND_ARGUMENT = 2  # of the words of a step
CONTROL_SIZE = 16 + 4 * MOST_DESCRIPTORS + 8  # a struct cmsghdr with so many
CLOEXEC, RIGHTS = 0x40000000, 1
SOL_SOCKET, SO_SNDBUF, SO_TIMESTAMPNS, SEND_BUFFER = 1, 7, 35, 212992  # as hako.sinks.streams()
RLIMIT_NOFILE = 7
X_OK, AT_FDCWD = 1, kernel.AT_FDCWD & steps.MASK
ADDR_NO_RANDOMIZE = 0x0040000
PR_SET_NAME = 15
STATUS = struct.Struct("=i")
RECORD = struct.Struct("=Qq")
USAGE = struct.Struct("=4q q 13q")  # struct rusage: user and system time, ru_maxrss, the rest

# RLIMIT_NOFILE of PROG, soft and hard, if it is not that of the engine's process.
descriptors_of_prog = None


class Order:
    """What one PROG gets: all is bytes.

    argv      its arguments, the first its name
    env       what is in its environment, "NAME=VALUE"
    path      directories to look for a name without a slash in, or None for the name as it is
    work_dir  where it starts, from / on
    stdio     three descriptors, for 0, 1 and 2
    cgroups   descriptors of the files cgroup.procs that it joins, with the names of the directories
    channels  [Channel] that are made inside
    streams   None, or those of 1 and 2 that are one of two sockets, which are made inside for both
    filter    a seccomp program beside that of the plan, or None
    """

    __slots__ = ("argv", "cgroups", "channels", "env", "filter", "path", "stdio", "streams", "work_dir")

    def __init__(self, argv, env, stdio, path=None, work_dir=b"/"):
        self.argv, self.env, self.stdio, self.path, self.work_dir = argv, env, stdio, path, work_dir
        self.cgroups, self.channels, self.streams, self.filter = (), [], None, None


class Channel:
    """A fifo, or a plain file, made at PATH inside for PROG to write; PLACES are those of 1 and 2 that it is."""

    __slots__ = ("fifo", "path", "places")

    def __init__(self, path, fifo, places):
        self.path, self.fifo, self.places = path, fifo, places


class Slot:
    """Where the processes of a sandbox and their supervisor meet: a part of a Region, from START on, and two sockets.

    socket    the supervisor's
    inner     the sandbox's
    names     {address of a step: (text, hints)}
    record    address of what failed: see hako.steps
    fails     address of the steps of who fails
    entry     address of the steps of the init once it has its order
    setup     steps.Arena of the set-up
    orders    that of an order
    prog      address of the pid that PROG has got, if it has been made
    """

    __slots__ = (
        *("ends", "entry", "fails", "inner", "message", "names", "orders", "prog", "record", "region"),
        *("setup", "socket", "status", "usage"),
    )

    def __init__(self, region, start):
        self.region, self.names, self.prog = region, {}, None
        with call("socketpair"):
            self.inner, self.socket = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        arena = steps.Arena(region, start, start + SETUP)
        self.record, self.status, self.usage = arena.space(RECORD.size), arena.space(8), arena.space(USAGE.size)
        data, control = arena.words(0), arena.space(CONTROL_SIZE)
        self.message = arena.words(0, 0, arena.words(data, 8), 1, control, CONTROL_SIZE, 0)
        ends = steps.Steps(arena, 2, 0, self.record, self.names)
        self.fails = ends.here
        ends.call("exit_group", FAILS, error=steps.ON)
        self.ends = ends.call("exit_group", 0, error=steps.ON)
        self.entry = arena.space(ROOM * steps.SIZE)
        self.setup, self.orders = arena, steps.Arena(region, start + SETUP, start + SIZE)

    def clear(self):
        """Forget what became of the last one, and what was sent and never read."""
        first = self.record - self.region.address
        last = self.usage - self.region.address + USAGE.size
        self.region.bytes[first:last] = bytes(last - first)
        self.setup.fill(self.message + 5 * 8, CONTROL_SIZE)  # recvmsg has put there how much the last one took
        for socket in (self.socket, self.inner):
            empty(socket)

    def unpack(self, form, address):
        """The values at ADDRESS, a struct.Struct FORM."""
        return form.unpack_from(self.region.bytes, address - self.region.address)

    def failure(self, records=()):
        """The Failure of the step that failed, None if none did; RECORDS are those of the places where PROG is not."""
        step, errno = self.unpack(RECORD, self.record)
        if not step:
            return None
        if any(self.unpack(RECORD, record)[1] == -EACCES for record in records) and errno == -kernel.ENOENT:
            errno = -EACCES  # of a name that is looked for, what is there counts more than what is not
        return steps.failure(self.names, step, -errno)

    def know(self, names):
        """Take over what the steps of the set-up are: NAMES, as of zygote.named_steps()."""
        import marshal

        for step, found in marshal.loads(names).items():
            self.names[self.record + step if step >= 0 else -step] = found

    def wait_status(self):
        """The wait status of PROG."""
        return self.unpack(STATUS, self.status)[0]

    def has_made_prog(self):
        """Whether PROG has become its program, or has failed."""
        return self.prog is not None and self.unpack(STATUS, self.prog)[0] > NOBODY

    def used(self):
        """What all in there but the init have used: user seconds, system seconds, peak resident bytes."""
        seconds, micro, system, system_micro, peak, *_ = self.unpack(USAGE, self.usage)
        return seconds + micro / 1e6, system + system_micro / 1e6, peak * 1024

    def steps(self, room, arena=None, at=None):
        """New steps.Steps, for ROOM of them, at the address AT or in ARENA, by default that of orders."""
        return steps.Steps(arena or self.orders, room, self.fails, self.record, self.names, at)

    def close(self):
        """Let go of the sockets."""
        self.socket.close()
        self.inner.close()


def set_up(slot, plan, own=None):
    """Put the steps of the init of SLOT up to its order, for PLAN; return the address of the first.

    OWN puts what a zygote has left to it; then it becomes its init_program() on
    the way, with a memory of its own: nobody is killed for another's, and none
    of those inside could look into the zygote's.
    """
    made = slot.steps(SETUP_ROOM, slot.setup)
    made.call("close_range", FIRST, 2**32 - 1)
    if own is not None:
        own(made)
    made.ready(kernel.chdir_call("/"))
    made.call("setsid")
    if kernel.has_keys():
        put_session_keyring(made, slot)
    made.call("rt_sigprocmask", 2, made.arena.words(0), None, 8)
    if own is None:
        put_calls(made, kernel.bounding_calls(plan.capabilities()))
        put_wait(made, slot)
        return made.first
    # The exec would take the capabilities away from who is not uid 0: those that are still needed are made ambient,
    # for which they must be inheritable, which those outside the bounding set cannot become.
    needed = sorted({*plan.capabilities(), kernel.CAP_SYS_ADMIN})
    made.ready(kernel.capset_call(kernel.capget()[1], sum(1 << cap for cap in needed)))
    put_calls(made, kernel.bounding_calls(plan.capabilities()))
    put_calls(made, kernel.ambient_calls(needed))
    words = made.arena.texts([b"hako-init"]), made.arena.texts([])
    made.call("execveat", PROGRAM, b"", *words, kernel.AT_EMPTY_PATH, what="execveat hako-init")
    return made.first


def put_session_keyring(made, slot):
    """Put what kernel.join_session_keyring() does, but that it tries again whatever the error."""
    join, ignored = kernel.session_keyring_call(), slot.setup.words(0, 0)
    again = slot.steps(3 * len(kernel.KEY_PAUSES), slot.setup)
    made.ready(join, error=again.here, record=ignored)
    for pause in kernel.KEY_PAUSES:
        last = pause == kernel.KEY_PAUSES[-1]
        time = slot.setup.words(*divmod(int(pause * 1e9), 10**9))
        again.call("nanosleep", time, None, error=steps.ON, record=ignored)
        again.ready(join, error=None if last else again.here + 2 * steps.SIZE, record=None if last else ignored)
        again.go_to(made.here)


def put_calls(made, calls):
    """Put the CALLS, made ready, behind the steps MADE."""
    for ready in calls:
        made.ready(ready)


def init_program(slot):
    """A descriptor of the program that the init of SLOT becomes: it goes on with steps in the slot's region."""
    region = slot.region
    waiting = slot.steps(4, slot.setup)
    put_wait(waiting, slot)

    def put(made):
        made.call("mmap", *kernel.mmap_arguments(region.address, region.size, MEMORY))
        made.ready(kernel.prctl_call("SET_DUMPABLE", 0))  # nobody is in there yet who could look into it
        made.call("prctl", PR_SET_NAME, b"hako-init")
        made.go_to(waiting.first)

    return steps.program(put, slot.fails, slot.record, slot.names)


def put_wait(made, slot):
    """Put the waiting for the order of SLOT."""
    made.ready(kernel.prctl_call("SET_PDEATHSIG", kernel.SIGKILL))
    # Also the end of a supervisor that died before there was a signal for that.
    made.call("recvmsg", SOCKET, slot.message, CLOEXEC, zero=slot.ends)
    made.go_to(slot.entry)


def put_order(slot, plan, order):
    """Put the steps of the init and of PROG for ORDER, by PLAN, into SLOT; return what put_execution() does."""
    arena = slot.orders
    arena.at = arena.start
    become = identity.change_calls(plan.identity, plan.capabilities())
    prog = slot.steps(64 + len(become) + len(plan.rlimits) + len(order.cgroups) + 8 * len(order.channels))
    descriptor = FIRST + 3
    for _, name in order.cgroups:
        what = f"write {show(name)}/cgroup.procs"
        prog.call("write", descriptor, arena.put(b"0"), 1, what=what)
        descriptor += 1
    if order.cgroups and "cgroup" not in plan.box.share:
        prog.call("unshare", kernel.CLONE_NEWCGROUP, what="unshare cgroup")  # its root is where PROG is now
    prog.call("setpgid", 0, 0)
    for number in range(3):
        prog.call("dup3", FIRST + number, number, 0)
    if plan.fixed_addresses:
        prog.call("personality", ADDR_NO_RANDOMIZE)
    put_calls(prog, become)
    prog.call("chdir", order.work_dir, what=f"Setting work dir to '{os.fsdecode(order.work_dir)}'")
    make_channels(prog, slot, order, descriptor)
    if descriptors_of_prog is not None:
        prog.call("prlimit64", 0, RLIMIT_NOFILE, arena.words(*descriptors_of_prog), None)
    for name, number, pair in plan.rlimits:
        prog.call("prlimit64", 0, number, arena.words(*pair), None, what=f"setrlimit {name}")
    if plan.guarded:
        prog.ready(kernel.landlock_restrict_self_call(GUARD))
    if plan.landlock is not None:
        prog.ready(kernel.landlock_restrict_self_call(DOMAIN))
    prog.call("close_range", 3, 2**32 - 1)
    records = put_execution(prog, slot, plan, order)
    put_init(slot, plan, prog)
    return records


def make_channels(prog, slot, order, descriptor):
    """Put the making of the channels of ORDER, whose first DESCRIPTOR is known, and the sending of them."""
    sent = []
    if order.streams is not None:
        for place in (1, 2):
            pair = slot.orders.space(8)
            prog.call("socketpair", 1, 5 | os.O_CLOEXEC, 0, pair)
            sent.append(descriptor)
            for end, option, value in ((0, SO_TIMESTAMPNS, 1), (1, SO_SNDBUF, SEND_BUFFER)):
                number = slot.orders.put(struct.pack("=i", value))
                prog.call("setsockopt", descriptor + end, SOL_SOCKET, option, number, 4)
            if place in order.streams:
                prog.call("dup3", descriptor + 1, place, 0)
            descriptor += 2
    for channel in order.channels:
        path = plain(channel.path)
        if channel.fifo:
            prog.call("mknodat", AT_FDCWD, channel.path, 0o010600, 0, what=f"Creating fifo '{path}'")
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            prog.call("openat", AT_FDCWD, channel.path, flags | os.O_NOFOLLOW, 0, what=f"Opening '{path}'")
        else:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            prog.call("openat", AT_FDCWD, channel.path, flags, 0o600, what=f"Creating '{path}'")
        sent.append(descriptor)
        descriptor += 1
        if channel.places:
            flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
            prog.call("openat", AT_FDCWD, channel.path, flags, 0, what=f"Opening '{path}'")
            for place in channel.places:
                prog.call("dup3", descriptor, place, 0)
            descriptor += 1
    for first in range(0, len(sent), MOST_DESCRIPTORS):
        send(prog, slot.orders, sent[first : first + MOST_DESCRIPTORS])


def send(prog, arena, descriptors):
    """Put the sending of the DESCRIPTORS to the supervisor. See unix(7), SCM_RIGHTS."""
    data = b"".join(number.to_bytes(4, "little") for number in descriptors)
    length = 16 + len(data)
    control = arena.put(length.to_bytes(8, "little") + (1 | RIGHTS << 32).to_bytes(8, "little") + data + bytes(8))
    message = arena.words(0, 0, arena.words(arena.put(b"c"), 1), 1, control, length, 0)
    prog.call("sendmsg", SOCKET, message, 0x4000)


def put_execution(prog, slot, plan, order):
    """Put the exec of ORDER behind PROG, under the filters; return the addresses of records of the places it is not at.

    A name is looked for by access(2), not by exec: under a filter there is no second try.
    """
    arena = slot.orders
    argv, env = arena.texts(order.argv), arena.texts(order.env)
    what = f"exec '{plain(order.argv[0])}'"
    if order.path is None:
        put_exec(prog, arena, plan, order, (arena.text(order.argv[0]), argv, env), what)
        return []
    records = []
    for place in order.path:
        name = arena.text((place or b".").rstrip(b"/") + b"/" + order.argv[0])
        tail = slot.steps(8)
        put_exec(tail, arena, plan, order, (name, argv, env), what)
        records.append(arena.words(0, 0))
        prog.call("faccessat", AT_FDCWD, name, X_OK, zero=tail.first, error=steps.ON, record=records[-1])
    prog.call("execve", b"", argv, env, what=what)  # which fails, and tells so
    return records


def put_exec(made, arena, plan, order, words, what):
    """Put the loading of the filters of ORDER and PLAN, and the exec of WORDS, addresses."""
    for program in filter(None, (order.filter, *plan.filters)):
        code = arena.words(len(program) // 8, arena.put(program))
        made.call("seccomp", kernel.SECCOMP_SET_MODE_FILTER, 0, code, what="seccomp SECCOMP_SET_MODE_FILTER")
    made.call("execve", *words, *(plan.secret.words if plan.secret else ()), what=what)


def put_init(slot, plan, prog):
    """Put what the init does once it has its order, whose PROG begins with the first of the steps PROG."""
    init = slot.steps(ROOM, at=slot.entry)
    flags, arguments = CLONE_VM | CLONE_VFORK | CLONE_PARENT_SETTID, slot.orders.space(CLONE_ARGS)
    made = init.call("clone3", arguments, CLONE_ARGS, what="clone3 PROG", zero=prog.first)
    put_calls(init, identity.change_calls(plan.identity.powerless(), ()))
    init.call("close_range", 0, 2**32 - 1)
    init.ready(kernel.prctl_call("SET_PDEATHSIG", kernel.SIGKILL))
    wait = init.call("wait4", -1, slot.status, 0, None, until=NOBODY)
    slot.prog = steps.until(wait)
    init.redirect(made, into=slot.prog)
    # If PROG has itself traced, by who has made it, wait4 tells when it stops too, and only then there is something to
    # detach: it runs on.
    stopped = init.call(
        *("ptrace", kernel.PTRACE_DETACH, 0, 0, 0), zero=wait, error=steps.ON, record=slot.orders.words(0, 0)
    )
    slot.orders.fill(arguments, flags, 0, 0, stopped + 8 * SECOND_ARGUMENT, kernel.SIGCHLD, *(0,) * 6)
    init.call("getrusage", -1, slot.usage)
    init.call("exit_group", 0)


def plain(path):
    """The bytes PATH, for a message in the words of the sandals tool."""
    return os.fsdecode(path)


def places(name, path):
    """The directories of PATH in which NAME is to be looked for; None if it is a path itself."""
    return None if b"/" in name else path.split(b":")


def empty(socket):
    """Read and forget what came through SOCKET."""
    while True:
        try:
            data, control, _, _ = socket.recvmsg(64, 2048, kernel.MSG_DONTWAIT | CLOEXEC)
        except OSError:
            return
        for fd in descriptors(control):
            os.close(fd)
        if not data:
            return


def descriptors(control: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in CONTROL, as of recvmsg()."""
    data = b"".join(data for level, kind, data in control if (level, kind) == (1, RIGHTS))
    return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]
