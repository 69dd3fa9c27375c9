"""Tasks of hako-task(5): from a checked request to a job, and from its end to a response."""

import _signal
import os

from hako import cell, group, guard, identity, job, json, plan, request, sandbox, sinks, supervise
from hako.failure import Failure, call
from hako.limits import Limits

DEFAULT_PATH = "/bin:/usr/bin"
OF_ONE_TASK = {  # keys that say nothing of the sandbox: what differs in these alone shares a zygote
    *("cmd", "env", "workDir", "stdin", "id", "pipes", "copyFiles", "stdStreams", "outputs", "report"),
    *("timeLimit", "cgroupConfig", "cgroup", "cgroupRoot"),
}
OWN = {"/dev/stdout": 1, "/dev/fd/1": 1, "/proc/self/fd/1": 1, "/dev/stderr": 2, "/dev/fd/2": 2, "/proc/self/fd/2": 2}
EXTRA = {"exited": "code", "killed": "signal"}
MOST_PLANS = 256
# What a file of version 2 is called in version 1, where what is written there means the same.
VERSION_1 = {
    "memory.max": "memory.limit_in_bytes",
    "memory.high": "memory.soft_limit_in_bytes",
    "memory.swappiness": "memory.swappiness",
    "pids.max": "pids.max",
}


class Plans:
    """The plan.Plans of requests that came before, by what they say of the sandbox."""

    __slots__ = ("known",)

    def __init__(self):
        self.known = {}

    def of(self, document, wanted):
        """The Plan of DOCUMENT, which is the request.Request WANTED."""
        import marshal

        key = marshal.dumps([(name, value) for name, value in document.items() if name not in OF_ONE_TASK], 2)
        found = self.known.get(key)
        if found is None:
            found = plan_of(wanted)
            if len(self.known) >= MOST_PLANS:
                self.known.clear()
            self.known[key] = found
        return found


def plan_of(wanted):
    """The plan.Plan of the request.Request WANTED."""
    target = wanted.chroot if wanted.chroot is not None else None if wanted.rootfs is not None else "/"
    box = sandbox.Sandbox(
        target=target,
        prepared=False,
        writable=target is not None,
        mounts=[*of_root(wanted, target), *map(mount_of, wanted.mounts)],
        network=wanted.network,
        hostname=wanted.host_name,
        userns="always",
    )
    if wanted.overlay is not None:
        box.overlay = sandbox.Overlay(wanted.overlay.upper, wanted.overlay.size)
    who = identity.Identity(wanted.uid, wanted.gid, identity.may_map(), wanted.capabilities)
    made = plan.Plan(box, who, domain=wanted.domain_name, fixed_addresses=not wanted.va_randomize, words=True)
    made.limited(wanted.limits)
    if wanted.landlock is not None:
        made.restricted(wanted.landlock.paths, wanted.landlock.ports, wanted.landlock.scopes)
    if wanted.seccomp_policy is not None:
        made.filtered(program(wanted))
    return made


def of_root(wanted, target):
    """What is mounted on the root TARGET before the mounts of WANTED."""
    if wanted.rootfs is not None:
        return [sandbox.Bind(path, path, flags(path, True)) for path in wanted.rootfs]
    touched = {sandbox.steps(mount.dest)[:1] for mount in wanted.mounts}
    # Of the host's root no device can be opened: it has a small /dev instead.
    return [sandbox.Dev()] if target == "/" and ("dev",) not in touched and os.path.isdir("/dev") else []


def mount_of(mount):
    """The request.Mount MOUNT as one of hako.sandbox."""
    if mount.type == "bind":
        return sandbox.Bind(mount.src, mount.dest, flags(mount.src, mount.ro))
    if mount.type == "tmpfs":
        return sandbox.Tmpfs(mount.dest, options={"mode": "1777", **dict(mount.options)}, ro=mount.ro)
    return sandbox.Proc(mount.dest, mount.ro) if mount.type == "proc" else sandbox.Dev(mount.dest)


def flags(src, read_only):
    """The flags of a bind of SRC."""
    return {*(["ro"] if read_only else []), *(["dev"] if sandbox.is_device(src) else [])}


def program(wanted):
    """The seccomp program of the policy, in Kafel, of the request.Request WANTED."""
    from hako import bpf, kafel, rules

    try:
        source = kafel.Source("Seccomp policy", wanted.seccomp_policy)
        return bpf.compile_policy(kafel.parse(source, rules.architecture(), lambda _: None, rules.group))
    except Failure as err:
        invalid = request.Invalid(str(err).replace("Seccomp policy:", "Seccomp policy: ", 1) + "\n", wanted.id)
        invalid.inside = True
        raise invalid from None


class Task(job.Job):
    """The task of the request.Request WANTED by PLAN; RESPOND takes the response, a dictionary, and the Task.

    patient   whether to wait for the reader of a dest that is a fifo
    outside   whether it failed outside the sandbox
    taken     {"stdout" or "stderr": its sinks.Sink}, what goes into the response
    ways_out  sinks.Files that are open, whether there is a sink already or not
    """

    __slots__ = ("outside", "patient", "respond", "settings", "taken", "wanted", "ways_out")

    def __init__(self, of, wanted, respond, patient=False):
        files = [(name.partition(".")[0], name, text) for name, text in wanted.cgroup_config or ()]
        super().__init__(of, Limits(time=wanted.time_limit, files=[file for file in files if file[0] != "cgroup"]))
        self.limits.called = {name: name for _, name, _ in files}
        self.limits.parent, self.settings = wanted.cgroup_root, files
        self.wanted, self.respond, self.patient, self.outside, self.taken = wanted, respond, patient, False, {}
        self.changes, self.ways_out = bool(wanted.overlay and wanted.overlay.changes), []

    def prepare(self):
        """Make the order, and open what output goes to."""
        wanted, null = self.wanted, self.engine.null
        self.outside = True
        path = os.fsencode(os.environ.get("PATH", DEFAULT_PATH))
        argv = [os.fsencode(word) for word in wanted.cmd]
        if not argv[0]:
            self.outside = False
            raise Failure("exec '': No such file or directory")
        self.order = cell.Order(
            argv,
            [os.fsencode(word) for word in wanted.env],
            [self.standard_input(), null, null],
            cell.places(argv[0], path),
            os.fsencode(wanted.work_dir),
        )
        if guard.is_terminal(self.order.stdio[0]):
            self.order.filter = guard.terminal_filter()
        self.open_outputs()
        if wanted.std_streams is not None:
            self.open_streams(wanted.std_streams)
        for channel in wanted.pipes:
            self.open_pipe(channel)
        for channel in wanted.copy_files:
            self.open_copy(channel)
        self.outside = False

    def standard_input(self):
        """A descriptor of what PROG reads."""
        given = self.wanted.stdin
        if given is None:
            return self.engine.null
        if isinstance(given, str):
            flags = os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC
            try:
                fd = patiently(os.open, given, flags) if self.patient else os.open(given, flags | os.O_NONBLOCK)
            except OSError as err:
                raise sinks.failed("Opening", given, err.errno) from err
            os.set_blocking(fd, True)
        else:
            fd = sinks.filled(given)
        self.passed.append(fd)
        return fd

    def open_outputs(self):
        """Open what goes into the response."""
        wanted = self.wanted.outputs
        for place, name in ((1, "stdout"), (2, "stderr")):
            if wanted is not None and getattr(wanted, name):
                self.taken[name] = self.pipe([place], sinks.Memory(), wanted.limit)

    def pipe(self, places, out, limit, name="@stdout"):
        """Have what PROG writes to PLACES, of 1 and 2, go to OUT, LIMIT bytes at most; return the Sink."""
        with call("pipe2"):
            ours, theirs = os.pipe()
        self.passed.append(theirs)
        for place in places:
            self.order.stdio[place] = theirs
        sink = sinks.Sink(ours, out, limit, name)
        self.sinks.append(sink)
        return sink

    def way_out(self, dest):
        """The sinks.File DEST."""
        if dest in OWN:
            found = sinks.given(OWN[dest], dest)
        else:
            found = patiently(sinks.opened, dest, True) if self.patient else sinks.opened(dest)
        self.ways_out.append(found)
        return found

    def open_streams(self, channel):
        """Have both streams go to CHANNEL in order."""
        out, held = self.way_out(channel.dest), []

        def take(fd):
            held.append(fd)
            if len(held) == 2:
                self.add(sinks.Streams(held, out, channel.limit))

        self.order.streams = [1, 2]
        self.inside += [take, take]

    def open_pipe(self, channel):
        """Have what goes into a pipe, or a fifo, go to CHANNEL."""
        out, places = self.way_out(channel.dest), places_of(channel)
        self.leave(places)
        if channel.src is None:
            self.pipe(places, out, channel.limit, "@stderr" if places == [2] else "@stdout")
            return
        self.order.channels.append(cell.Channel(os.fsencode(channel.src), True, places))
        self.inside.append(lambda fd: self.add(sinks.Sink(fd, out, channel.limit, channel.src)))

    def open_copy(self, channel):
        """Have a file made, and copied to CHANNEL in the end."""
        out, places = self.way_out(channel.dest), places_of(channel)
        self.leave(places)
        self.order.channels.append(cell.Channel(os.fsencode(channel.src), False, places))
        self.inside.append(lambda fd: self.add(sinks.Copy(fd, out, channel.limit, channel.src)))

    def leave(self, places):
        """PLACES, of 1 and 2, are another's from now on."""
        order = self.order
        if order.streams is not None:
            order.streams = [place for place in order.streams if place not in places]
        for channel in order.channels:
            channel.places = [place for place in channel.places if place not in places]

    def open_layers(self):
        """Open the layers of the overlay, if there is one."""
        self.outside = True
        try:
            super().open_layers()
        except Failure as err:
            raise Failure(str(err).replace("--overlay:", "overlay:", 1), errno=err.errno) from err
        self.outside = False

    def join_group(self):
        """Have it in a cgroup, if it asks for one or needs one."""
        if self.wanted.cgroup_config is None:
            super().join_group()
            return
        self.outside = True
        if self.wanted.cgroup is None:
            self.own = self.made_group()
        else:
            self.own = Existing(self.wanted.cgroup)
        for controller, name, text in self.settings:
            self.set(controller, self.name_of(controller, name), text)
        self.order.cgroups = self.own.open_procs()
        self.passed += [fd for fd, _ in self.order.cgroups]
        self.outside = False

    def made_group(self):
        """The group.Group that is made for it."""
        try:
            made = self.engine.new_group(self.limits, ("cpuacct",))
        except Failure as err:
            message = str(err).replace("mkdir ", "Creating ", 1).replace("--parent:", "cgroupRoot:", 1)
            raise Failure(message, errno=err.errno) from err
        if made is None:
            raise Failure(f"Creating a cgroup: Permission denied [{group.WAY_OUT}]")
        return made

    def make_counters(self):
        """The meter.Meter; what was counted before is found when the kernel tells, or in the end."""
        found = super().make_counters()
        found.changed = False
        return found

    def name_of(self, controller, name):
        """What the file NAME of CONTROLLER is called in the version that there is."""
        if controller == "cgroup":
            self.own.homes.setdefault("cgroup", "")
        return VERSION_1.get(name, name) if self.own.version(controller) == 1 else name

    def set(self, controller, name, text):
        """Write TEXT into the file NAME of CONTROLLER."""
        hierarchy = self.own.homes[controller]
        path, what = os.path.join(self.own.paths[hierarchy], name), "Opening"
        if name.startswith("memory.") and text == "max" and self.own.version(controller) == 1:
            text = "-1"  # what it is called there
        try:
            fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.own.files[hierarchy])
            what = "Writing"
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
        except OSError as err:
            raise sinks.failed(what, path, err.errno) from err

    def lose(self, err):
        """Output is lost, by the Failure ERR, which is outside."""
        super().lose(err)
        self.outside = True

    def ended(self):
        """Respond."""
        for way_out in self.ways_out:
            way_out.close()
        self.respond(self.response(), self)

    def response(self):
        """The response, a dictionary."""
        told, wanted = self.report, self.wanted
        found = {"status": told.status}
        if told.status in EXTRA:
            found[EXTRA[told.status]] = getattr(told, EXTRA[told.status])
        if told.status == "internalError":
            found["description"] = told.reason
        if wanted.id is not None:
            found["id"] = wanted.id
        for name, sink in self.taken.items():
            found[name] = encoded(bytes(sink.out.data), wanted.outputs.encoding)
        if wanted.overlay is not None and wanted.overlay.changes:
            listed = self.changes if isinstance(self.changes, bytes) else b""
            found["changes"] = [json.read(line) for line in listed.splitlines()]
        if wanted.report:
            found = {**told.values(), **found}
        return found


class Existing(group.Group):
    """The cgroup in the directory PATH, which somebody else has made, and which stays."""

    __slots__ = ()

    def __init__(self, path):
        super().__init__(os.path.basename(path), {})
        with call(f"Opening '{path}'"):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        hierarchy = group.hierarchy_of(path)
        self.files[hierarchy], self.paths[hierarchy] = fd, path
        known = hierarchy.split(",") if hierarchy else ("memory", "pids", "cpu", "io", "cpuset")
        self.homes.update(dict.fromkeys(known, hierarchy))

    def can_kill(self):
        """Never: others may be in there."""
        return False

    def try_to_remove(self):
        """Let go of it."""
        self.close()
        return True


def patiently(opening, *args):
    """What OPENING makes of ARGS, which may wait for somebody at the other end of a fifo: signals end that."""
    held = _signal.pthread_sigmask(_signal.SIG_UNBLOCK, supervise.ENDING)  # nothing has been made yet
    try:
        return opening(*args)
    finally:
        _signal.pthread_sigmask(_signal.SIG_SETMASK, held)


def places_of(channel):
    """Those of 1 and 2 that CHANNEL takes."""
    return [place for place, taken in ((1, channel.stdout), (2, channel.stderr)) if taken]


def encoded(data, encoding):
    """DATA, bytes, as a string in ENCODING."""
    if encoding == "text":
        return data.decode(errors="replace")
    from binascii import b2a_base64

    return b2a_base64(data, newline=False).decode()


def invalid(err):
    """The response to what request.Invalid ERR is about."""
    found = {"status": "requestInvalid"}
    if err.description is not None:
        found["description"] = err.description
    if err.id is not None:
        found["id"] = err.id
    return found


def failed(why, wanted):
    """The response to the request.Request WANTED that cannot be tried; WHY is a line."""
    found = {"status": "internalError", "description": why}
    return found if wanted.id is None else {**found, "id": wanted.id}


def line(response):
    """RESPONSE, a dictionary, as a line of JSON."""
    return json.line(response)
