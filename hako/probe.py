"""What of Linux works here, tried for real: each feature by a child of its own, with a deadline.

A probe returns a detail, or "", in the process that tried it, or raises a
Failure there. It may return in another process than it was called in: one that
it made in new namespaces. Either way that process tells what it found.
"""

import _socket
import fcntl
import os
import pwd  # noqa: F401  subids imports it later, in a root that may lack it
import resource
import select
import time

from hako import (
    bpf,
    build,
    causes,
    cgroup,
    group,
    guard,
    identity,
    json,
    kernel,
    landlock,
    limits,
    outside,
    overlay,
    pasta,
    subids,
    supervise,
    tcp,  # noqa: F401  landlock imports it later
)
from hako.causes import Refusal
from hako.failure import FAILED, Failure, call, refused

SIGSYS = 31
ANSWER = 77  # an errno that no call of the probes gives
OTHERS = ("mnt", "pid", "net", "ipc", "uts", "cgroup")
LIMITS = {"memory": 64 << 20, "pids": 16, "cpu": 50}
EVERY_COMMAND = ("hako-run", "hako-enter", "hako-limit", "hako-policy")
BUILDERS = ("hako-run", "hako-policy")


class Feature:
    """One feature of Linux.

    name       a word, for programs too
    commands   those that cannot do all that they promise without it
    needs      names of the features without which it is not tried
    probe      the function that tries it
    """

    __slots__ = ("commands", "name", "needs", "probe")

    def __init__(self, name, probe, commands, needs=()):
        self.name, self.probe, self.commands, self.needs = name, probe, commands, needs


class Finding:
    """What came out for one Feature.

    works     True, False, or None: it was not tried
    detail    what there is to say if it works, or ""
    why       what failed and how, or None
    cause     a word for that, or None
    advice    what to do about it, or None
    """

    __slots__ = ("advice", "cause", "detail", "feature", "why", "works")

    def __init__(self, feature, works, detail="", why=None, cause=None, advice=None):
        self.feature, self.works, self.detail = feature, works, detail
        self.why, self.cause, self.advice = why, cause, advice


def features():
    """Every Feature, those first that others need."""
    ours = own()
    own_namespaces = ("clone3", "user-namespaces") if ours else ("clone3",)
    mounts = (*own_namespaces, "mounts")
    return [
        Feature("clone3", clone3, EVERY_COMMAND),
        Feature("close-range", close_range, EVERY_COMMAND),
        Feature("openat2", openat2, BUILDERS),
        Feature("pidfds", pidfds, EVERY_COMMAND),
        Feature("user-namespaces", user_namespaces, BUILDERS, ("clone3",)),
        Feature("namespaces", namespaces, BUILDERS, own_namespaces),
        Feature("setns", join, ("hako-enter",), (*own_namespaces, "namespaces", "pidfds")),
        Feature("mounts", mounts_by_name, BUILDERS, own_namespaces),
        Feature("fd-mounts", mounts_by_descriptor, BUILDERS, own_namespaces),
        Feature("proc", proc, BUILDERS, (*mounts, "namespaces")),
        Feature("overlay", overlay_of_layers, ("hako-run",), mounts),
        Feature("overlay-tmpfs", overlay_on_tmpfs, ("hako-run",), (*mounts, "overlay")),
        Feature("id-ranges", id_ranges, ("hako-run",), ("clone3", "user-namespaces")),
        Feature("pasta", network, BUILDERS, ("clone3", "close-range", "user-namespaces", "namespaces", "setns")),
        *(Feature(f"cgroup-{name}", lambda name=name: cgroups(name), ("hako-limit", "hako-policy")) for name in LIMITS),
        Feature("seccomp", seccomp, (*BUILDERS, "seccomp-exec", "landlock-exec")),
        Feature("seccomp-actions", seccomp_actions, ("hako-policy", "seccomp-exec"), ("seccomp",)),
        Feature("seccomp-notify", seccomp_notify, ("seccomp-exec",), ("seccomp",)),
        Feature("libseccomp", libseccomp, ("hako-policy", "seccomp-exec")),
        # Who is not root in a sandbox of hako-run cannot overwrite our interpreter: see guard.
        Feature("landlock", landlock_at_all, (*(() if ours else ("hako-run",)), "hako-policy", "landlock-exec")),
        Feature("landlock-files", landlock_files, ("hako-policy", "landlock-exec"), ("landlock",)),
        Feature("landlock-tcp", landlock_tcp, ("hako-policy", "landlock-exec"), ("landlock", "seccomp")),
        Feature("landlock-scopes", landlock_scopes, ("hako-policy", "landlock-exec"), ("landlock",)),
        Feature("no-tiocsti", no_tiocsti, ()),
    ]


def load():
    """Load now what is loaded late: once the root is another one there may be nothing to load."""
    try:
        kernel.libseccomp()
    except Failure:
        pass  # its probe tells


def look(seconds):
    """Yield the Finding of each Feature in turn; a probe may take so many SECONDS."""
    kernel.prctl("SET_CHILD_SUBREAPER", 1)
    working = set()
    for feature in features():
        missing = [name for name in feature.needs if name not in working]
        if missing:
            yield Finding(feature, None, why=f"needs {missing[0]}", cause="needs", advice=f"see {missing[0]}")
            continue
        finding = attempt(feature, seconds)
        if finding.works:
            working.add(feature.name)
        yield finding


def attempt(feature, seconds):
    """The Finding of FEATURE, by a child that has so many SECONDS."""
    with call("pipe2"):
        told, tell = os.pipe()
    with call("fork"):
        pid = os.fork()
    if not pid:
        be(feature, told, tell)
    os.close(tell)
    text = read_line(told, seconds)
    status = end(pid)
    os.close(told)
    if text is None:
        return Finding(feature, False, why=f"no answer in {seconds:g} seconds", cause="deadline", advice="try again")
    if text:
        return Finding(feature, **json.read(text.splitlines()[0]))
    if status == -SIGSYS:
        why = "a call of it ends in SIGSYS"
        return Finding(feature, False, why=why, cause="seccomp", advice=causes.CONTAINER)
    return Finding(feature, False, why=f"its probe ended with {status}", cause="unknown", advice="try again")


def read_line(fd, seconds):
    """What comes from FD up to the end of a line, or its end; None if that takes more than SECONDS."""
    text, last, poll = b"", time.monotonic() + seconds, select.poll()
    poll.register(fd, select.POLLIN)
    while not text.endswith(b"\n"):
        if not poll.poll(max(0, last - time.monotonic()) * 1000):
            return None
        piece = os.read(fd, 65536)
        if not piece:
            break
        text += piece
    return text


def end(pid):
    """Kill the child PID and all of its process group, and see them gone; return its exit code.

    It is not reaped yet, so the number is its own. What it leaves is ours, see look().
    """
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, kernel.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass  # it has no group yet, or has ended
    status = os.waitpid(pid, 0)[1]
    try:
        while True:
            os.waitpid(-pid, 0)
    except ChildProcessError:
        return os.waitstatus_to_exitcode(status)


def be(feature, told, tell):
    """Be the child that tries FEATURE and TELLs; never return."""
    try:
        os.close(told)
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        kernel.prctl("SET_PDEATHSIG", kernel.SIGKILL)
        os.write(tell, json.line(result(feature.probe)))
    finally:
        os._exit(0)


def result(probe):
    """What PROBE finds, the fields of a Finding."""
    try:
        return {"works": True, "detail": probe()}
    except Failure as err:
        known = causes.of(err)
    except OSError as err:
        known = causes.of(refused(str(err.filename or "a system call"), err.errno))
    except Exception as err:
        known = Refusal(f"a bug in hako: {err!r}", "bug", "report it")
    return {"works": False, "why": causes.line(known), "cause": known.cause, "advice": known.advice}


def own():
    """The flag of a user namespace, if hako-run needs one for this user; else 0."""
    return 0 if kernel.capable(kernel.CAP_SYS_ADMIN) else kernel.CLONE_NEWUSER


def flags_of(names):
    """The CLONE_NEW* flags of the namespaces NAMES."""
    return sum(kernel.NAMESPACES[name] for name in names)


def need(condition, text):
    """Fail with TEXT unless CONDITION is true: the kernel does as if, and does not."""
    if not condition:
        raise Refusal(text, "unknown", "report it: a kernel that does not do what it says")


def own_ids():
    """The identity.IdMaps of one user and group, which are what they are outside."""
    uid, gid = os.geteuid(), os.getegid()
    return identity.IdMaps([(uid, uid, 1)], [(gid, gid, 1)], (uid, gid), "inside")


def enter(flags):
    """Return in a child in new namespaces, CLONE_NEW* FLAGS, of our ids; this process waits and ends as that does."""
    ids = own_ids()
    pid, _ = kernel.clone3(flags)
    if pid:
        end_as(pid)
    kernel.prctl("SET_PDEATHSIG", kernel.SIGKILL)
    if flags & kernel.CLONE_NEWUSER:
        write_maps(ids)


def end_as(pid):
    """Wait for the child PID and end as it does."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    kernel.prctl("SET_DUMPABLE", 0)
    if code < 0:
        os.kill(os.getpid(), -code)
    os._exit(code)


def write_maps(ids):
    """Map IDS in the user namespace of this process."""
    if not kernel.prctl("GET_DUMPABLE"):
        kernel.prctl("SET_DUMPABLE", 1)  # else the maps are root's
    build.write_id_maps("self", ids)


def stay(flags, mapped=True):
    """The pid of a child that stays in new namespaces, CLONE_NEW* FLAGS, until it is killed, its ids MAPPED or not."""
    ids = own_ids()
    with call("pipe2"):
        told, tell = os.pipe()
    pid, _ = kernel.clone3(flags)
    if not pid:
        kernel.prctl("SET_PDEATHSIG", kernel.SIGKILL)
        if mapped and flags & kernel.CLONE_NEWUSER:
            write_maps(ids)
        os.write(tell, b"-")
        select.select([], [], [])
    os.close(tell)
    if not os.read(told, 1):
        end_as(pid)  # it has told why
    os.close(told)
    return pid


def some_directory():
    """A directory, one that is there: not /proc, which is still needed, if there is another."""
    with os.scandir("/") as entries:
        found = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    return min(found, key="/proc".__eq__)


# Calls


def clone3():
    """A child with a pidfd, as every command makes it."""
    pid, pidfd = kernel.clone3(0)
    if not pid:
        os._exit(ANSWER)
    need(select.select([pidfd], [], []), "clone3: its pidfd does not tell of the end")
    need(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == ANSWER, "clone3: the child did not run")
    return ""


def close_range():
    """A descriptor less."""
    fd = os.dup(0) if is_open(0) else os.eventfd(0)
    kernel.close_range(fd, fd)
    need(not is_open(fd), "close_range: the descriptor is still open")
    return ""


def is_open(fd):
    """Whether FD is open."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def openat2():
    """A path that does not leave its root."""
    with call("open directory"):
        root = os.open(some_directory(), os.O_PATH)
    found = kernel.openat2(root, "..", os.O_PATH, kernel.RESOLVE_IN_ROOT, "..")
    need(os.path.samestat(os.fstat(root), os.fstat(found)), "openat2: RESOLVE_IN_ROOT has no effect")
    return ""


def pidfds():
    """A process that is signalled, and whose end is seen, by its pidfd."""
    with call("fork"):
        pid = os.fork()
    if not pid:
        select.select([], [], [])
    try:
        fd = kernel.pidfd_open(pid)
        kernel.pidfd_send_signal(fd, kernel.SIGKILL)
        select.select([fd], [], [])
    finally:
        supervise.end_child(pid)
    return ""


# Namespaces


def user_namespaces():
    """One, with our ids in it, and power over what belongs to it."""
    privileged = causes.is_privileged()
    try:
        enter(kernel.CLONE_NEWUSER | kernel.CLONE_NEWUTS)
        kernel.sethostname("hako")
    except Failure as err:
        raise causes.of_user_namespaces(err, privileged) from err
    return ""


def namespaces():
    """All others of a sandbox, with its own lo up."""
    try:
        enter(own() | flags_of(OTHERS))
        kernel.bring_up_lo()
    except Failure as err:
        raise causes.of_namespaces(err) from err
    return " ".join(OTHERS)


def join():
    """The namespaces of another process, through its pidfd."""
    flags = own() | kernel.CLONE_NEWNS | kernel.CLONE_NEWUTS | kernel.CLONE_NEWPID
    pid = stay(flags)
    try:
        kernel.setns(kernel.pidfd_open(pid), flags, "pidfd")
    finally:
        supervise.end_child(pid)
    return ""


# Mounts


def stage(more=0):
    """Return in new namespaces, MORE too, in a new tmpfs, which is the current directory and a place of mounts."""
    place = some_directory()
    enter(own() | kernel.CLONE_NEWNS | more)
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    kernel.mount("tmpfs", place, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "mode=0755")
    os.chdir(place)


def mounts_by_name():
    """A tmpfs, a bind in it, read-only, and a root that is another."""
    try:
        stage()
        for name in ("source", "place"):
            os.mkdir(name)
        kernel.mount("source", "place", None, kernel.MS_BIND)
        locked = kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount(None, "place", None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | locked)
        need(not is_writable("place"), "mount: a read-only bind is written")
        kernel.pivot_root(b".", b".")
        kernel.umount2(b".", kernel.MNT_DETACH)
    except Failure as err:
        raise causes.of_mounts(err) from err
    return ""


def is_writable(place):
    """Whether a directory can be made in the directory PLACE."""
    try:
        os.mkdir(os.path.join(place, "new"))
    except OSError:
        return False
    return True


def mounts_by_descriptor():
    """A tmpfs made, attached, copied in part and made read-only without a name."""
    place = some_directory()
    try:
        enter(own() | kernel.CLONE_NEWNS)
        here = os.open("/", os.O_PATH)
        kernel.mount_setattr(here, kernel.AT_RECURSIVE, 0, "/", propagation=kernel.MS_PRIVATE)
        made = kernel.fsmount("tmpfs", {"mode": "0755"}, build.LOCKED, "tmpfs")
        kernel.move_mount(made, os.open(place, os.O_PATH), place)
        os.mkdir("source", dir_fd=made)
        tree = kernel.open_tree(made, b"source", kernel.OPEN_TREE_CLONE, "tmpfs")
        kernel.mount_setattr(tree, 0, kernel.MOUNT_ATTR_RDONLY, "tmpfs")
        os.fchdir(tree)
        need(not is_writable("."), "mount_setattr: a read-only mount is written")
    except Failure as err:
        raise causes.of_mounts(err) from err
    return ""


def proc():
    """A fresh one, of a new pid namespace."""
    try:
        stage(kernel.CLONE_NEWPID)
        os.mkdir("proc")
        kernel.mount("proc", "proc", "proc", kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC)
        with call("open proc/1/stat"), open("proc/1/stat", "rb"):
            pass
    except Failure as err:
        raise causes.of_proc(err) from err
    return ""


def overlay_of_layers():
    """A file that is changed in the upper layer alone."""
    try:
        stage()
        for name in ("lower", "upper", "work", "merged"):
            os.mkdir(name)
        put("lower/file", "as it was")
        options = "lowerdir=lower,upperdir=upper,workdir=work"
        options += ",userxattr" if overlay.mark(False) == "user" else ""
        kernel.mount("overlay", "merged", "overlay", kernel.MS_NOSUID | kernel.MS_NODEV, options)
        put("merged/file", "changed")
        need(causes.text_of("lower/file") == "as it was", "overlay: the lower layer is written")
        need(causes.text_of("upper/file") == "changed", "overlay: the upper layer is not written")
    except Failure as err:
        raise causes.of_overlay(err) from err
    return ""


def put(path, text):
    """Write TEXT to the file PATH."""
    with call(f"write {path}"), open(path, "wb") as file:
        file.write(text.encode())


def overlay_on_tmpfs():
    """The extended attributes that the upper layer needs, on a tmpfs."""
    stage()
    kind = overlay.mark(False)
    try:
        with call(f"setxattr {kind}"):
            os.setxattr(".", f"{kind}.hako", b"")
    except Failure as err:
        if err.errno == causes.EOPNOTSUPP:
            raise causes.because(err, "kernel", "Linux 6.6 or newer has it; on a disk, --overlay=UPPER works") from err
        raise
    return ""


# Ids and network


def id_ranges():
    """Those that are delegated, in force."""
    names = subids.names_of_user()
    for path in ("/etc/subuid", "/etc/subgid"):
        try:
            subids.delegated(path, names)
        except Failure as err:
            advice = f"as root: add a line like {names[0]}:100000:65536 to {path}"
            raise causes.because(err, "subids", advice) from err
    if not identity.may_map():
        if kernel.prctl("GET_NO_NEW_PRIVS"):
            advice = "not under a program that sets it: a container, a sandbox, setpriv"
            raise Refusal("newuidmap is a setuid program, and no_new_privs is set here", "no-new-privs", advice)
        find("newgidmap", subids.PACKAGE)
        find("newuidmap", subids.PACKAGE)
    ids = subids.id_maps(identity.Identity())
    pid = stay(kernel.CLONE_NEWUSER, mapped=False)
    try:
        if ids.writer == "caller":
            build.write_id_maps(pid, ids)
        else:
            subids.write(pid, ids)
    finally:
        supervise.end_child(pid)
    return f"{sum(count for _, _, count in ids.uids)} uids, {sum(count for _, _, count in ids.gids)} gids"


def find(name, package):
    """The path of the program NAME, of PACKAGE."""
    try:
        return outside.find(name, package)
    except Failure as err:
        raise causes.because(err, "program", f"as root: apt-get install {package}, or the like of it") from err


def network():
    """The network that pasta makes."""
    find("pasta", pasta.PACKAGE)
    made, sitter, files, up = pasta.Pasta([]), None, {}, []
    supervise.hold_signals()  # as hako-pasta expects it of who makes it
    try:
        if own():
            sitter = stay(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNET)
            user, net = (os.open(f"/proc/{sitter}/ns/{name}", os.O_RDONLY) for name in ("user", "net"))
            made.take(user, net, (os.geteuid(), os.getegid()))
        else:
            made.make_namespaces(os.geteuid())
        made.start(files, lambda: up.append(True))
        while not up:
            select.select(list(files), [], [])
            for _, hear in list(files.values()):
                hear()
    except Failure as err:
        raise of_pasta(err) from err
    finally:
        made.end()
        if sitter:
            supervise.end_child(sitter)
    return ""


def of_pasta(err):
    """The Refusal of pasta by the Failure ERR."""
    text = str(err)
    if text.startswith(f"open {pasta.TUN}"):
        missing = not os.path.exists(pasta.TUN)
        return causes.because(err, "tun", f"as root: {'modprobe tun' if missing else f'chmod 666 {pasta.TUN}'}")
    known = causes.of(err)
    return causes.because(err, "pasta", "see pasta(1)") if known.cause == "unknown" else known


# Cgroups


def cgroups(controller):
    """One of our own with CONTROLLER, a limit in force, and a process in it."""
    made = None
    try:
        made = group.create({controller: f"cgroup-{controller}"}, (), None)
        made.limit(limits.Limits(**{controller: LIMITS[controller]}))
        with call("fork"):
            pid = os.fork()
        if not pid:
            result_of_entering(made)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code:
            raise refused("write cgroup.procs", code)
    except Failure as err:
        raise causes.of_cgroup(err, controller) from err
    finally:
        version = made and made.version(controller)
        if made:
            made.kill()
            made.remove()
    return f"version {version}"


def result_of_entering(made):
    """Move this process into the group.Group MADE; exit with 0, or the errno."""
    try:
        made.enter()
        if made.clone_into() is not None:
            cgroup.write_to(os.path.join(made.paths[""], "cgroup.procs"), "0")
    except Failure as err:
        os._exit(err.errno or FAILED)
    os._exit(0)


# Filters


def answer(action):
    """A filter that gives ACTION for sethostname and allows all else."""
    code = guard.instruction(guard.LOAD, guard.OFFSET_NR)
    code += guard.instruction(guard.JUMP_EQUAL, kernel.NUMBER["sethostname"], 0, 1)
    return code + guard.instruction(guard.RETURN, action) + guard.instruction(guard.RETURN, guard.ALLOW)


def seccomp():
    """A filter, and that it answers."""
    kernel.prctl("SET_NO_NEW_PRIVS", 1)
    kernel.seccomp(answer(bpf.ERRNO | ANSWER))
    need(kernel.nonsense("sethostname") == ANSWER, "seccomp: the filter does not answer")
    return ""


def seccomp_actions():
    """Each action of a filter, by what becomes of a child."""
    kernel.prctl("SET_NO_NEW_PRIVS", 1)
    plain = kernel.nonsense("sethostname")
    expected = {
        bpf.KILL_PROCESS: -SIGSYS,
        bpf.KILL_THREAD: -SIGSYS,
        bpf.TRAP: -SIGSYS,
        bpf.ERRNO | ANSWER: ANSWER,
        bpf.TRACE: causes.ENOSYS,  # nobody traces
        bpf.LOG: plain,
        bpf.ALLOW: plain,
    }
    for action, code in expected.items():
        need(outcome(action) == code, f"seccomp: {bpf.action_name(action)} does not do what it is for")
    return " ".join(bpf.NAMES[action & 0xFFFF0000] for action in expected)


def outcome(action):
    """The exit code of a child that makes a call for which its filter has ACTION; its errno, unless it is killed."""
    with call("fork"):
        pid = os.fork()
    if not pid:
        kernel.prctl("SET_DUMPABLE", 0)
        kernel.seccomp(answer(action))
        os._exit(kernel.nonsense("sethostname"))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def seccomp_notify():
    """A call that waits for its supervisor, and gets its answer."""
    kernel.prctl("SET_NO_NEW_PRIVS", 1)
    try:
        listener = kernel.seccomp_listener(answer(bpf.USER_NOTIF))
    except Failure as err:
        if err.errno == kernel.EBUSY:
            advice = "not under another supervisor: a process has one at most"
            raise causes.because(err, "supervised", advice) from err
        if err.errno == causes.EINVAL:
            raise causes.because(err, "kernel", "Linux 5.19 or newer has it") from err
        raise
    with call("fork"):
        pid = os.fork()
    if not pid:
        os._exit(kernel.nonsense("sethostname"))
    kernel.answer_notification(listener, kernel.receive_notification(listener).id, ANSWER)
    need(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == ANSWER, "seccomp: a notification has no answer")
    return ""


def libseccomp():
    """The library, and that it knows a call."""
    try:
        number = kernel.syscall_number(bpf.AUDIT_ARCH[bpf.MACHINE_ARCH[kernel.MACHINE]], b"clone3")
    except Failure as err:
        raise causes.because(err, "library", "as root: apt-get install libseccomp2, or the like of it") from err
    need(number == kernel.NUMBER["clone3"], "libseccomp: it does not know clone3")
    return ""


# Landlock


def landlock_version(least):
    """The version of Landlock here; a Refusal if it is less than LEAST."""
    abi = kernel.landlock_abi()
    if not abi:
        err = refused("landlock_create_ruleset", kernel.nonsense("landlock_create_ruleset"))
        raise causes.of_landlock(err) from err
    if abi < least:
        brought = {2: "5.19", 4: "6.7", 5: "6.10", 6: "6.12"}[least]
        raise Refusal(f"version {abi}, and this came with {least}", "kernel", f"Linux {brought} or newer has it")
    return abi


def landlock_at_all():
    """A domain in which a directory cannot be read."""
    abi = landlock_version(2)
    ruleset = kernel.landlock_create_ruleset(kernel.LANDLOCK_ACCESS_FS["read_dir"])
    kernel.prctl("SET_NO_NEW_PRIVS", 1)
    kernel.landlock_restrict_self(ruleset)
    need(refusal(lambda: os.listdir("/")) == causes.EACCES, "landlock: what is denied works")
    return f"version {abi}"


def landlock_files():
    """A domain in which no file is left."""
    restrict(5, paths=[])
    need(refusal(lambda: os.listdir("/")) == causes.EACCES, "landlock: what is denied works")
    return ""


def landlock_tcp():
    """A domain in which no port but one can be bound."""
    restrict(4, ports=[("bind_tcp", 1)])
    with call("socket"):
        socket = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    need(refusal(lambda: socket.bind(("127.0.0.1", 0))) == causes.EACCES, "landlock: what is denied works")
    return ""


def landlock_scopes():
    """A domain that no signal leaves."""
    parent = os.getppid()
    need(refusal(lambda: os.kill(parent, 0)) is None, "kill: the parent cannot be reached")
    restrict(6, scopes=tuple(landlock.SCOPES))
    need(refusal(lambda: os.kill(parent, 0)) == causes.EPERM, "landlock: what is denied works")
    return ""


def restrict(least, **rules):
    """Hold this process to landlock.Rules of RULES, which need version LEAST."""
    domain = landlock.Domain(landlock.Rules(**rules), landlock_version(least))
    domain.make()
    domain.enforce()


def refusal(attempt):
    """The errno of what ATTEMPT() does, None if it succeeds."""
    try:
        attempt()
    except OSError as err:
        return err.errno
    return None


# Terminals


def no_tiocsti():
    """A terminal of our own, on which nothing can be typed by whoever has it."""
    with call("openpty"):
        _, terminal = os.openpty()
    with call("fork"):
        pid = os.fork()
    if not pid:
        os._exit(refusal(lambda: type_on(terminal)) or 0)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
        old = causes.sysctl("dev.tty.legacy_tiocsti") is None
        advice = "Linux 6.2 or newer can refuse it" if old else "as root: sysctl -w dev.tty.legacy_tiocsti=0"
        raise Refusal("TIOCSTI types on a terminal; hako refuses it to PROG", "sysctl", advice)
    return ""


def type_on(terminal):
    """Type on TERMINAL, a descriptor, as who has it as theirs and no capability: with CAP_SYS_ADMIN one always may."""
    TIOCSCTTY, TIOCSTI = 0x540E, 0x5412
    os.setsid()
    fcntl.ioctl(terminal, TIOCSCTTY, 0)
    kernel.capset(0)
    fcntl.ioctl(terminal, TIOCSTI, b"x")
