"""Processes that make sandboxes: zygotes, and those that build one for themselves alone.

A zygote lives in a user namespace and on a root that it has built once, with
all that the sandboxes of one plan share. What it makes has namespaces of its
own, copies those few mounts, and adds by steps what is its alone: proc, each
tmpfs, the terminals. Where a sandbox can share nothing, or could look below
its own proc, one process builds it from the beginning and becomes its init.
"""

import _signal
import fcntl
import gc
import os
import select
import sys

import hako
from hako import build, cell, guard, identity, kernel, program, sandbox, steps, supervise
from hako import plan as plans
from hako.failure import EXPECTED, FAILED, Failure, call, line_of, refused, show

NODEV = kernel.MS_NOSUID | kernel.MS_NODEV
NOEXEC = NODEV | kernel.MS_NOEXEC
CLONE = cell.CLONE_VM | kernel.CLONE_PARENT | kernel.CLONE_CLEAR_SIGHAND
HIGH = 1000  # descriptors from here on are out of the way of cell's fixed ones
STOPPED = b"!"  # before why it failed
OWN, SEEN = b"own", b"seen"  # where a child makes its proc; where the caller's is


def be(plan, parts, ids, control, slots):
    """Be the zygote of PLAN, whose mounts are in PARTS as of plans.split(), in the user namespace of IDS; never return.

    CONTROL is the descriptor of a socket: what comes are numbers of SLOTS, one
    byte each; what goes is "r" and the names of steps, "p" and a pid, four bytes, or "!" and why it failed.
    """
    try:
        memory = slots[0].region.fd
        control, memory, *inners = take_descriptors([control, memory, *(slot.inner.fileno() for slot in slots)])
        shared, own = parts
        made = Layout(plan, shared)
        settle(plan, ids, control)
        # By /proc its children map their ids, each before anybody is in there with it; then none has this memory.
        kernel.prctl("SET_DUMPABLE", 1)
        lay_out(made)
        seen = look_at_proc()
        made.pivot()
        if any(isinstance(mount, sandbox.Proc) for mount in own):
            hide_proc(seen)
        name_host(plan)
        arrange(plan, ids, seen, memory)

        def way(number):
            """As serve() wants it of NUMBER."""
            slot = slots[number]
            program = high(cell.init_program(slot))
            return inners[number], program, cell.set_up(slot, plan, lambda steps: put_own(steps, plan, made, own))

        serve(plan, control, way, slots[0])
    except BaseException as err:
        stop(control, err)


def be_alone(plan, ids, slot, layers):
    """Be the init of the sandbox of PLAN, built from the beginning, in the user namespace of IDS; never return.

    It is the one of SLOT, through whose socket go what Inbox names in hako.job;
    LAYERS are the overlay.Layers of its root, or None.
    """
    control = slot.inner.fileno()
    try:
        opened = () if layers is None or layers.upper is None else (layers.upper, layers.work)
        control, *opened = take_descriptors([control, *opened])
        if opened:
            layers.upper, layers.work = opened
        made = Whole(plan, plan.box.mounts, layers)
        settle(plan, ids, control)
        kernel.prctl("SET_DUMPABLE", 0)  # only now: the maps of a process that is not dumpable are root's
        build.join_network(plan.box, None, made.program.say)
        lay_out(made)
        tell(made, control, layers)
        made.pivot()
        name_host(plan)
        arrange(plan, ids, None, 0)
        os.dup2(control, cell.SOCKET, inheritable=False)
        first = cell.set_up(slot, plan)
        os.write(control, b"n" + named_steps(slot))
        steps.Machine().go(first, 0, 0)
    except BaseException as err:
        stop(control, err)


def tell(made, control, layers):
    """Send what of the Whole MADE, over LAYERS or None, is to be looked at from outside."""
    for fd, name in made.sized:
        kernel.send_descriptor(control, fd, b"d" + os.fsencode(name)[:4000])
    if layers is not None:
        kernel.send_descriptor(control, layers.upper, b"u")
        with call("open /proc/self/ns/user", "hako needs /proc"):
            user = os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        kernel.send_descriptor(control, user, b"i")


def named_steps(slot):
    """What the steps of SLOT's set-up are, by how far from its record they lie, for another process.

    Those of the program that an init becomes, which is at the same place for all: by minus their address.
    """
    import marshal

    end = slot.region.address + slot.setup.end
    first = slot.record
    named = {step - first if step >= first else -step: found for step, found in slot.names.items() if step < end}
    return marshal.dumps(named)


def stop(control, err):
    """Send ERR through CONTROL, and end."""
    if not isinstance(err, EXPECTED):
        sys.excepthook(type(err), err, err.__traceback__)
    try:
        os.write(control, STOPPED + os.fsencode(line_of(err))[:4000])
    except OSError:
        pass
    os._exit(FAILED)


def take_descriptors(kept):
    """Keep the descriptors KEPT, and nothing else of the parent's; return their new numbers."""
    sys.path.clear()  # from here on nothing may be imported: the root will be another
    hako.__path__ = []
    with call("open /dev/null"):
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    kernel.close_all_but([*kept, null])
    kept = list(map(high, kept))
    for number in range(3):
        os.dup2(null, number)
    kernel.close_range(3, HIGH - 1)
    return kept


def settle(plan, ids, control):
    """Enter the user namespace of IDS, of which who sends a byte to CONTROL knows; die with the parent."""
    default_signals()
    if ids.writer == "inside":
        show_self()
        build.write_id_maps("self", ids)
    elif os.read(control, 16) != b"m":
        os._exit(FAILED)
    if plan.identity.clear_groups:
        identity.clear_groups(plan.identity)
    if ids.writer != "inside":
        build.take_ids(*ids.inside)
    kernel.rename_process("hako-init")
    kernel.prctl("SET_PDEATHSIG", kernel.SIGKILL)
    poll = select.poll()
    poll.register(control, 0)
    if poll.poll(0):
        os._exit(FAILED)  # it is dead already
    gc.disable()


def show_self():
    """Make this process dumpable: the id maps of one that is not are root's, and behind another command it is not."""
    if not kernel.prctl("GET_DUMPABLE"):
        if program.watched:
            raise Failure("no user namespace behind hako-enter, which others could look into")
        kernel.prctl("SET_DUMPABLE", 1)


def default_signals():
    """Have default actions and an empty mask: what is made here inherits them."""
    supervise.default_signals()
    for number in range(1, _signal.NSIG):
        if callable(_signal.getsignal(number)):
            _signal.signal(number, _signal.SIG_DFL)


class Making:
    """What build.Builder wants to know of who runs in there."""

    __slots__ = ("identity",)

    def __init__(self, who):
        self.identity = who

    @staticmethod
    def say(line):
        """Say nothing of LINE."""
        del line


class Layout(build.Builder):
    """The root that the sandboxes of a plan share, without what each has for itself: of the MOUNTS.

    words   whether messages are in the words of the sandals tool
    """

    def __init__(self, plan, mounts, layers=None):
        box = sandbox.Sandbox(**{name: getattr(plan.box, name) for name in plan.box.__slots__})
        box.mounts = mounts
        self.words = plan.words
        target = None if box.target is None else build.open_root(box)
        super().__init__(box, Making(plan.identity), target, open_sources(plan, box), layers)

    def mount(self, mount):
        """Make MOUNT; a failure is told in those words."""
        if not self.words or isinstance(mount, sandbox.Directory):
            super().mount(mount)
            return
        try:
            super().mount(mount)
        except Failure as err:
            words = named(mount, self.box.target)
            if err.errno == kernel.ENOSYS:
                raise refused(words, err.errno, kernel.MISSING) from err
            raise Failure(f"{words}: {reason(err)}", errno=err.errno) from err

    def mount_own_of_dev(self, mount):
        """Leave it to each sandbox."""


class Whole(Layout):
    """The root of one sandbox, with all of it."""

    mount_own_of_dev = build.Builder.mount_own_of_dev


def named(mount, root):
    """MOUNT, on ROOT, as the sandals tool names it."""
    kind = type(mount).__name__.lower()
    source = mount.src if isinstance(mount, sandbox.Bind) else kind
    return f"mount('{source}','{'' if root in (None, '/') else root.rstrip('/')}{mount.dst}','{kind}')"


def reason(err):
    """What the Failure ERR says besides its call and object."""
    return os.strerror(err.errno) if err.errno else str(err)


def lay_out(made):
    """Make the mounts of the Layout MADE."""
    umask = os.umask(0o022)  # what is made is for PROG, whatever the caller's files are to be
    made.mount_all()
    os.umask(umask)


def look_at_proc():
    """A descriptor of the caller's proc, not mounted anywhere.

    Who mounts one in a user namespace must see one that is not covered, and by
    it ids are mapped in a root that has none.
    """
    flags = kernel.OPEN_TREE_CLONE | kernel.AT_RECURSIVE
    return kernel.open_tree(kernel.AT_FDCWD, b"/proc", flags, "/proc")


def open_sources(plan, box):
    """As build.open_sources(), of BOX; a failure is told in the words of PLAN."""
    if not plan.words:
        return build.open_sources(box)
    sources = {}
    for mount in box.mounts:
        if isinstance(mount, sandbox.Bind):
            try:
                sources[mount] = os.open(mount.src, os.O_PATH | os.O_CLOEXEC)
            except OSError as err:
                raise Failure(f"{named(mount, box.target)}: {err.strerror}", errno=err.errno) from err
    return sources


def hide_proc(proc):
    """Put the caller's PROC below the root, where no name leads, and make that the current directory.

    A child has it too, and makes its own proc there, with what it is masked with: OWN is for that. At a
    mount point of the root both would be in reach of others: who may write the directory that it lies in
    renames it, and a mount goes where its mount point goes.
    """
    with call("open /"):
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    below = kernel.fsmount("tmpfs", build.MASKS, 0, "below /")
    kernel.move_mount(below, root, "/")
    for name, directory in ((b"f", False), (b"d", True), (OWN, True), (SEEN, True)):
        place = build.Builder.touch(below, name, directory)
        if name == SEEN:
            kernel.move_mount(proc, place, "below /")
        os.close(place)
    kernel.mount_setattr(below, 0, build.READ_ONLY, "below /")
    with call("fchdir below /"):
        os.fchdir(below)
    kernel.pivot_root(b".", b".")  # what was the root lies on this one now
    with call("chroot /"):
        os.fchdir(root)
        os.chroot(".")
        os.fchdir(below)
    os.close(below)
    os.close(root)


def name_host(plan):
    """Give the names that PLAN has for host and domain, in a namespace of ours."""
    for what, name in (("sethostname", plan.box.hostname), ("setdomainname", plan.domain)):
        if name is None:
            continue
        try:
            getattr(kernel, what)(name)
        except Failure as err:
            raise (refused(what, err.errno) if plan.words else err) from err


def arrange(plan, ids, proc, memory):
    """Put the descriptors into the places that cell gives them: the rulesets, PROC or None, MEMORY, a Region's.

    They are there after an exec too; PROG closes them.
    """
    ruleset = guard.interpreter_ruleset(ids.host_uid(plan.identity), (), "/")
    if plan.landlock is not None:
        plan.landlock.make()
    domain = None if plan.landlock is None else plan.landlock.ruleset
    wanted = {cell.GUARD: ruleset, cell.DOMAIN: domain, cell.MEMORY: memory, cell.PROC: proc}
    wanted |= {cell.SOCKET: None, cell.PROGRAM: None}
    moved = {place: high(0 if fd is None else fd) for place, fd in wanted.items()}
    for place, fd in moved.items():
        os.dup2(fd, place)


def high(fd):
    """A descriptor of what FD is that is out of the way."""
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, HIGH)
    except OSError as err:
        hint = f"RLIMIT_NOFILE must be more than {HIGH} here" if err.errno == kernel.EINVAL else ""
        raise refused("fcntl F_DUPFD_CLOEXEC", err.errno, hint) from err


def put_own(made, plan, layout, own):
    """Put into MADE, steps of the init of PLAN, what each sandbox has for itself: ids, lo, the mounts OWN.

    LAYOUT is the zygote's root.
    """
    put_ids(made)
    if plan.box.network == "none":
        made.call("socket", kernel.AF_INET, kernel.SOCK_DGRAM, 0)
        made.call("ioctl", cell.FIRST, kernel.SIOCSIFFLAGS, made.arena.put(kernel.LO_UP), what="ioctl SIOCSIFFLAGS lo")
        made.call("close", cell.FIRST)
    for mount in own:
        if isinstance(mount, sandbox.Proc):
            put_proc(made, mount)
        elif isinstance(mount, sandbox.Tmpfs):
            data = plans.options(layout.tmpfs_options(mount))
            made.ready(kernel.mount_call("tmpfs", mount.dst, "tmpfs", NODEV | read_only(mount), data))
        else:
            put_dev(made, mount)


def read_only(mount):
    """The MS_* flag, or none, that MOUNT asks for."""
    return kernel.MS_RDONLY if mount.ro else 0


def put_ids(made):
    """Put the mapping of this process's ids to themselves in a user namespace that a child of it is in."""
    files = (
        ("setgroups", "deny"),
        ("gid_map", f"{os.getegid()} {os.getegid()} 1"),
        ("uid_map", f"{os.geteuid()} {os.geteuid()} 1"),
    )
    for name, text in files:
        made.call("openat", cell.PROC, b"self/" + name.encode(), os.O_WRONLY | os.O_CLOEXEC, what=f"open {name}")
        made.call("write", cell.FIRST, made.arena.put(text.encode()), len(text), what=f"write {name} {text!r}")
        made.call("close", cell.FIRST)


def put_proc(made, mount):
    """Put the mounting of a proc at MOUNT's place, and its masks, as build.Builder.mount_proc().

    It is made where nobody can change what leads there, and moved when it is complete.
    """
    own = os.fsdecode(OWN)
    _, hints, words = kernel.mount_call("proc", own, "proc", NOEXEC | read_only(mount), hints=build.PROC_HINTS)
    made.ready((f"mount {show(mount.dst)}", hints, words))
    for name in build.PROC_COVERED:
        place = build.Builder.find(cell.PROC, name)
        if place is not None:
            source = "d" if build.is_directory(place) else "f"
            made.ready(kernel.mount_call(source, f"{own}/{name}", None, kernel.MS_BIND))
            os.close(place)
    for name in build.PROC_READ_ONLY:
        place = build.Builder.find(cell.PROC, name)
        if place is not None:
            path = f"{own}/{name}"
            made.ready(kernel.mount_call(path, path, None, kernel.MS_BIND | kernel.MS_REC))
            flags = kernel.MS_BIND | kernel.MS_REMOUNT | kernel.MS_RDONLY | NOEXEC
            made.ready(kernel.mount_call(None, path, None, flags))
            os.close(place)
    made.ready(kernel.mount_call(own, mount.dst, None, kernel.MS_MOVE))
    # As long as the kernel sees a proc without covers, PROG could have one too, in a user namespace of its own.
    made.ready(kernel.mount_call("d", os.fsdecode(SEEN), None, kernel.MS_BIND))


def put_dev(made, mount):
    """Put the mounting of what each sandbox has for itself of the Dev MOUNT."""
    dst = mount.dst.rstrip("/")
    made.ready(kernel.mount_call("tmpfs", f"{dst}/shm", "tmpfs", NOEXEC, plans.options(build.SHM)))
    flags = kernel.MS_NOSUID | kernel.MS_NOEXEC
    made.ready(kernel.mount_call("devpts", f"{dst}/pts", "devpts", flags, plans.options(build.PTS)))


def serve(plan, control, way, slot):
    """Make a child for each number that comes through CONTROL; answer with its pid.

    WAY makes ready, of a number, the end of the socket, the program that its
    init becomes, and the first of its steps; SLOT is that of the first.
    """
    machine, flags = steps.Machine(), build.namespaces(plan.box)
    ways = {0: way(0)}
    arguments = slot.setup.words(flags | CLONE, *(0,) * 10)
    os.write(control, b"r" + named_steps(slot))
    gc.collect()
    gc.freeze()
    while wanted := os.read(control, 1):
        if wanted[0] not in ways:  # they are many, and most of them seldom used
            ways[wanted[0]] = way(wanted[0])
        inner, program, first = ways[wanted[0]]
        os.dup2(inner, cell.SOCKET)
        os.dup2(program, cell.PROGRAM)
        pid = machine.clone(arguments, cell.CLONE_ARGS, first)
        if pid < 0:
            hint = build.no_namespaces(-pid, flags)
            raise refused(f"clone3 {kernel.namespace_names(flags)}", -pid, hint)
        os.write(control, b"p" + pid.to_bytes(4, "little"))
    os._exit(0)
