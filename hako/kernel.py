"""The system calls that Python lacks, with the names and constants of the kernel's headers.

All foreign functions and prctl live here. A wrapper bears its call's name and argument
order; TEXT in its last place says for the message what a descriptor stands
for. Every error is a Failure that names the call and that object.
"""

import os
import time

# Not prctl, the Python half of python-prctl: it makes 160 properties at
# import, 1.6 ms of a start of 20, for names that its C half has too.
import _prctl

from hako import foreign
from hako.failure import SEE_CHECK, Failure, call, refused, show

MACHINE = os.uname().machine
NUMBERS = {  # by call: x86_64, aarch64
    "clone3": (435, 435),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "close_range": (436, 436),
    "openat2": (437, 437),
    "mount_setattr": (442, 442),
    "execve": (59, 221),
    "execveat": (322, 281),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setsid": (112, 157),
    "chdir": (80, 49),
    "socketpair": (53, 199),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "capget": (125, 90),
    "capset": (126, 91),
    "setns": (308, 268),
    "unshare": (272, 97),
    "sethostname": (170, 161),
    "socket": (41, 198),
    "signalfd4": (289, 74),
    "rt_sigaction": (13, 134),
    "prctl": (157, 167),
    "keyctl": (250, 219),
    "nanosleep": (35, 101),
    "seccomp": (317, 277),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "getdents64": (217, 61),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "exit_group": (231, 94),
    "wait4": (61, 260),
    "getrusage": (98, 165),
    "dup3": (292, 24),
    "setpgid": (109, 154),
    "rt_sigprocmask": (14, 135),
    "prlimit64": (302, 261),
    "personality": (135, 92),
    "openat": (257, 56),
    "close": (3, 57),
    "faccessat": (269, 48),
    "read": (0, 63),
    "getpid": (39, 172),
    "write": (1, 64),
    "ioctl": (16, 29),
    "mknodat": (259, 33),
    "umask": (95, 166),
    "setdomainname": (171, 162),
    "setsockopt": (54, 208),
    "ptrace": (101, 117),
}
try:
    NUMBER = {name: pair[("x86_64", "aarch64").index(MACHINE)] for name, pair in NUMBERS.items()}
except ValueError:
    raise Failure(f"hako runs on x86_64 and aarch64, not on {MACHINE}") from None

_syscall = foreign.call

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

PTRACE_DETACH = 17

CLONE_NEWTIME = 0x80
CLONE_PARENT = 0x8000
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PIDFD = 0x1000
CLONE_CLEAR_SIGHAND = 0x100000000
CLONE_INTO_CGROUP = 0x200000000
NAMESPACES = {  # by name in /proc/PID/ns
    "user": CLONE_NEWUSER,
    "mnt": CLONE_NEWNS,
    "pid": CLONE_NEWPID,
    "net": CLONE_NEWNET,
    "ipc": CLONE_NEWIPC,
    "uts": CLONE_NEWUTS,
    "cgroup": CLONE_NEWCGROUP,
    "time": CLONE_NEWTIME,
}
INITIAL_USER_NAMESPACE = 0xEFFFFFFD  # its inode number, on every machine
NS_GET_PARENT = 0xB702
NS_GET_NSTYPE = 0xB703
TIOCSPTLCK, TIOCGPTPEER = 0x40045431, 0x5441

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC = 1 << 5, 1 << 12, 1 << 13, 1 << 14
MS_PRIVATE = 1 << 18
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSOPEN_CLOEXEC = 1
FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
MNT_DETACH = 2

# Seconds to wait for a key, and again: the kernel takes back those of processes that have ended a while later.
KEY_PAUSES = (0.01, 0.1, 1)

AF_INET, SOCK_DGRAM, SIOCSIFFLAGS = 2, 2, 0x8914
LO_UP = b"lo".ljust(16, b"\0") + (1).to_bytes(24, "little")  # struct ifreq with IFF_UP

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

MSG_DONTWAIT, MSG_NOSIGNAL = 0x40, 0x4000
EPERM, ENOENT, EINTR, E2BIG, EAGAIN, EACCES, EBUSY, EINVAL, ENOSYS, EBADFD = 1, 2, 4, 7, 11, 13, 16, 22, 38, 77
ETOOMANYREFS, EDQUOT = 109, 122
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER, SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 3, 1 << 5
# What answers so to a call that this kernel should have.
MISSING = "hako needs Linux 5.14, and no filter around it, as of a container, that knows less"
# If one of those is not permitted, that is the host's doing, or a filter's: hako-check says whose.
OF_HOST = frozenset(
    "close_range openat2 open_tree move_mount mount_setattr fsopen fsconfig fsmount mount umount2 pivot_root seccomp "
    "landlock_create_ruleset landlock_add_rule landlock_restrict_self".split()
)

SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGUSR1, SIGUSR2 = 1, 2, 3, 9, 10, 12
SIGPIPE, SIGTERM, SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP = 13, 15, 17, 18, 19, 20
SIGXFSZ, SIGWINCH = 25, 28

LANDLOCK_ACCESS_FS = {
    name: 1 << bit
    for bit, name in enumerate(
        "execute write_file read_file read_dir remove_dir remove_file make_char make_dir make_reg "
        "make_sock make_fifo make_block make_sym refer truncate ioctl_dev".split()
    )
}
LANDLOCK_ACCESS_NET = {"bind_tcp": 1 << 0, "connect_tcp": 1 << 1}
LANDLOCK_SCOPE = {"abstract_unix_socket": 1 << 0, "signal": 1 << 1}

CAP_SYS_ADMIN = 21
CAPABILITIES = (
    "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable "
    "net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio "
    "sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time "
    "sys_tty_config mknod lease audit_write audit_control setfcap mac_override mac_admin syslog "
    "wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore"
).split()


def _call(name, what, *args, hints=None):
    """Make the system call NAME; return its result. WHAT is its object in the message, HINTS are {errno: hint}."""
    result = _syscall(NUMBER[name], *args, *(0,) * (6 - len(args)))
    if result == -1:
        raise _refused(f"{name} {what}" if what else name, hints)
    return result


def _refused(what, hints=None):
    """The Failure of the call and object WHAT, which has just failed; HINTS are {errno: hint}."""
    errno = foreign.get_errno()
    usual = MISSING if errno == ENOSYS else SEE_CHECK if errno == EPERM and what.split()[0] in OF_HOST else ""
    return refused(what, errno, (hints or {}).get(errno, usual))


def _ready(name, what, *args, hints=None):
    return f"{name} {what}" if what else name, hints, (NUMBER[name], *args, *(0,) * (6 - len(args)))


def carry_out(calls):
    """Make the CALLS, one after the other: what functions that end in _call or _calls have made ready, or functions."""
    for ready in calls:
        if not isinstance(ready, tuple):
            ready()
        elif _syscall(*ready[2]) == -1:
            raise _refused(ready[0], ready[1])


def _uint64s(*values):
    return (foreign.c_uint64 * len(values))(*values)


def nonsense(name):
    """The errno of the call NAME, all of whose arguments are -1; 0 should it succeed.

    The kernel looks at the arguments of most calls first: what is not EINVAL,
    EFAULT or the like comes from a filter, or from a kernel that lacks the call.
    """
    return foreign.get_errno() if _syscall(NUMBER[name], *[-1] * 6) == -1 else 0


def clone3(flags, cgroup=None):
    """Make a child with CLONE_* FLAGS, without its parent's signal handlers; return pid and pidfd.

    In the child: 0 and -1. It is born into CGROUP, the descriptor of a
    directory. As fork(2), but the interpreter is not told: only for a process
    with one thread. See clone3(2).
    """
    pidfd = foreign.c_int(-1)
    flags |= CLONE_PIDFD | CLONE_CLEAR_SIGHAND | (0 if cgroup is None else CLONE_INTO_CGROUP)
    end = 0 if flags & CLONE_PARENT else SIGCHLD  # the former: as this process's own
    args = _uint64s(flags, foreign.addressof(pidfd), 0, 0, end, 0, 0, 0, 0, 0, cgroup or 0)
    pid = _call("clone3", namespace_names(flags), args, foreign.sizeof(args))
    return pid, pidfd.value if pid else -1


def namespace_names(flags):
    """The namespaces in CLONE_NEW* FLAGS, for a message: "user,mnt"."""
    return ",".join(name for name, flag in NAMESPACES.items() if flags & flag)


def mmap_at(address, size, fd):
    """Map SIZE bytes of the file FD at ADDRESS, shared, to be read and written; EEXIST: something is. See mmap(2)."""
    return _call("mmap", f"{size} bytes", *mmap_arguments(address, size, fd))


def mmap_arguments(address, size, fd):
    """The arguments of mmap(2) for that."""
    PROT_READ_WRITE, MAP_SHARED, MAP_NORESERVE, MAP_FIXED_NOREPLACE = 3, 1, 0x4000, 0x100000
    return address, size, PROT_READ_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED_NOREPLACE, fd, 0


def mmap_code(fd, size):
    """The address of the first SIZE bytes of the file FD, to be executed. See mmap(2)."""
    PROT_READ_EXEC, MAP_PRIVATE = 5, 2
    hints = {EPERM: "this process may execute no code but that of files", EACCES: "here no memory may be executed"}
    return _call("mmap", "PROT_EXEC", None, size, PROT_READ_EXEC, MAP_PRIVATE, fd, 0, hints=hints)


def munmap(address, size):
    """Give back SIZE bytes at ADDRESS. See munmap(2)."""
    _call("munmap", "", address, size)


def unshare(flags):
    """Move into new namespaces, CLONE_NEW* FLAGS. See unshare(2)."""
    _call("unshare", namespace_names(flags), flags)


def setns(fd, flags, text):
    """Join the namespaces FLAGS of the pidfd or namespace FD, all or none. See setns(2)."""
    _call("setns", text, fd, flags)


def pidfd_open(pid):
    """A descriptor of process PID, close-on-exec. EINVAL or ENOENT: a thread. See pidfd_open(2)."""
    return _call("pidfd_open", pid, pid)


def pidfd_send_signal(pidfd, number):
    """Send signal NUMBER (0 only asks) to the process of PIDFD. ESRCH: it ended. See pidfd_send_signal(2)."""
    _call("pidfd_send_signal", number, pidfd, number)


def close_range(first, last):
    """Close descriptors FIRST to LAST, both included. See close_range(2)."""
    _call("close_range", f"{first} {last}", first, last)


def close_all_but(kept):
    """Close every descriptor above 2 that is not in KEPT."""
    first = 3
    for fd in sorted({fd for fd in kept if fd > 2}):
        if fd > first:
            close_range(first, fd - 1)
        first = fd + 1
    close_range(first, 2**32 - 1)


def openat2(dirfd, path, flags, resolve, text):
    """Open PATH below DIRFD with the RESOLVE_* rules RESOLVE; close-on-exec. See openat2(2).

    EAGAIN means that a rename or mount happened meanwhile and is tried again;
    after 128 times somebody does it on purpose, and it is the answer.
    """
    how = _uint64s(flags | os.O_CLOEXEC, 0, resolve)
    for _ in range(128):
        fd = _syscall(NUMBER["openat2"], dirfd, os.fsencode(path), how, foreign.sizeof(how), 0, 0)
        if fd != -1 or foreign.get_errno() != EAGAIN:
            break
    if fd == -1:
        raise _refused(f"openat2 {text}")
    return fd


def getdents64(fd):
    """The next names (bytes) in the directory FD, without "." and ".."; None at its end. See getdents64(2).

    Unlike os.scandir() it holds no descriptor, and another one can go on, by lseek(2) to where this one is.
    """
    buffer = foreign.string_buffer(bytes(4096))
    size = _call("getdents64", "", fd, buffer, foreign.sizeof(buffer))
    data, names, at = buffer.raw[:size], [], 0
    while at < size:  # struct linux_dirent64: 64-bit ino and off, 16-bit reclen, 8-bit type, name
        length = int.from_bytes(data[at + 16 : at + 18], "little")
        names.append(data[at + 19 : at + length].partition(b"\0")[0])
        at += length
    return [name for name in names if name not in (b".", b"..")] if size else None


def open_tree(dirfd, path, flags, text):
    """A descriptor of the mount at PATH below DIRFD; with OPEN_TREE_CLONE, of a copy. See open_tree(2)."""
    return _call("open_tree", text, dirfd, os.fsencode(path), flags | os.O_CLOEXEC)


def mount_setattr(fd, flags, attr_set, text, propagation=0):
    """Set MOUNT_ATTR_* ATTR_SET on the mount FD; with AT_RECURSIVE, on all below it. See mount_setattr(2)."""
    attr = _uint64s(attr_set, 0, propagation, 0)
    _call("mount_setattr", text, fd, b"", flags | AT_EMPTY_PATH, attr, foreign.sizeof(attr))


def move_mount(from_fd, to_fd, text):
    """Attach the mount FROM_FD at the file or directory TO_FD. See move_mount(2)."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    hint = f"under Landlock, of landlock-exec or of a sandbox of uid 0, nothing can be mounted; {SEE_CHECK}"
    hints = {EPERM: hint, EACCES: SEE_CHECK}  # the latter is a security module's
    _call("move_mount", text, from_fd, b"", to_fd, b"", flags, hints=hints)


def fsmount(fstype, options, attr, text):
    """A new, unattached mount of file system FSTYPE. See fsopen(2), fsconfig(2), fsmount(2).

    OPTIONS: {key: string, or None for a flag}; ATTR: MOUNT_ATTR_*.
    """
    fd = _call("fsopen", fstype, fstype.encode(), FSOPEN_CLOEXEC)
    try:
        for key, value in options.items():
            kind = FSCONFIG_SET_FLAG if value is None else FSCONFIG_SET_STRING
            text_value = value if value is None else str(value).encode()
            _call("fsconfig", f"{fstype} {key} {text}", fd, kind, key.encode(), text_value)
        _call("fsconfig", f"{fstype} {text}", fd, FSCONFIG_CMD_CREATE)
        return _call("fsmount", f"{fstype} {text}", fd, FSMOUNT_CLOEXEC, attr)
    finally:
        os.close(fd)


def mount_call(source, target, fstype, flags, data=None, hints=None):
    """Mount FSTYPE from SOURCE at TARGET, or change what is mounted there, as MS_* FLAGS say. See mount(2).

    The sandbox itself is built by descriptors; this is for who has only names.
    """
    words = [None if word is None else os.fsencode(word) for word in (source, target, fstype, data)]
    return _ready("mount", show(target), *words[:3], flags, words[3], hints=hints)


def mount(source, target, fstype, flags, data=None):
    """As mount_call(), now."""
    carry_out([mount_call(source, target, fstype, flags, data)])


def pivot_root_call(new_root, put_old):
    """Make NEW_ROOT the root and put the old one at PUT_OLD. See pivot_root(2), NOTES."""
    return _ready("pivot_root", f"{show(new_root)} {show(put_old)}", os.fsencode(new_root), os.fsencode(put_old))


def pivot_root(new_root, put_old):
    """As pivot_root_call(), now."""
    carry_out([pivot_root_call(new_root, put_old)])


def umount2_call(target, flags):
    """Unmount TARGET. See umount2(2)."""
    return _ready("umount2", show(target), os.fsencode(target), flags)


def umount2(target, flags):
    """As umount2_call(), now."""
    carry_out([umount2_call(target, flags)])


def sethostname_call(name):
    """Set the host name, 1 to 64 bytes. See sethostname(2)."""
    name = os.fsencode(name)
    return _ready("sethostname", show(name), name, len(name))


def sethostname(name):
    """As sethostname_call(), now."""
    carry_out([sethostname_call(name)])


def bring_up_lo():
    """Bring the interface lo up in the network namespace of the caller. See netdevice(7)."""
    import fcntl

    fd = _call("socket", "AF_INET", AF_INET, SOCK_DGRAM | os.O_CLOEXEC, 0)
    with call("ioctl SIOCSIFFLAGS lo"):
        fcntl.ioctl(fd, SIOCSIFFLAGS, LO_UP)
    os.close(fd)


def setdomainname(name):
    """Set the domain name, at most 64 bytes. See setdomainname(2)."""
    name = os.fsencode(name)
    _call("setdomainname", show(name), name, len(name))


def read_memfd(fd):
    """All bytes of the memfd FD, wherever it is at. FD is closed."""
    try:
        with call("pread memfd"):
            data = b""
            while piece := os.pread(fd, max(1, os.fstat(fd).st_size - len(data)), len(data)):
                data += piece
    finally:
        os.close(fd)
    return data


def signalfd(numbers):
    """A descriptor from which the blocked signals NUMBERS are read, 128 bytes each. See signalfd(2)."""
    mask = _uint64s(sum(1 << (number - 1) for number in numbers))
    return _call("signalfd4", "", -1, mask, foreign.sizeof(mask), os.O_CLOEXEC)


def read_signal(fd):
    """The number of the next signal at FD, a signalfd, and the pid of who sent it; 0 from outside the namespace."""
    with call("read signalfd"):
        info = os.read(fd, 128)  # struct signalfd_siginfo
    return int.from_bytes(info[:4], "little"), int.from_bytes(info[12:16], "little")


def default_reserved_signals():
    """Give the signals 32 and 33 their default action: libc keeps them for itself and lets nobody set them."""
    for number in (32, 33):
        _call("rt_sigaction", number, number, bytes(32), None, 8)


def prctl(option, *args):
    """Make the prctl OPTION, PR_* without the prefix, by its name. See prctl(2)."""
    with call(f"prctl PR_{option}"):
        return _prctl.prctl(getattr(_prctl, f"PR_{option}"), *args)


def _raw_prctl(option, *args):
    return _syscall(NUMBER["prctl"], option, *args, *(0,) * (5 - len(args)))


def prctl_call(option, *args):
    """As prctl(), made ready; OPTION is one that python-prctl knows."""
    return _ready("prctl", f"PR_{option}", getattr(_prctl, f"PR_{option}"), *args)


def ambient_calls(caps):
    """Make the ambient capability set exactly CAPS (numbers). python-prctl has no PR_CAP_AMBIENT."""
    PR_CAP_AMBIENT, RAISE, CLEAR_ALL = 47, 2, 4
    calls = [_ready("prctl", "PR_CAP_AMBIENT_CLEAR_ALL", PR_CAP_AMBIENT, CLEAR_ALL)]
    for cap in caps:
        calls.append(_ready("prctl", f"PR_CAP_AMBIENT_RAISE cap_{CAPABILITIES[cap]}", PR_CAP_AMBIENT, RAISE, cap))
    return calls


def set_ambient(caps):
    """As ambient_calls(), now."""
    carry_out(ambient_calls(caps))


def bounding_calls(caps):
    """Drop every capability not in CAPS (numbers) from the bounding set, also those without a name here."""
    named = range(len(CAPABILITIES))  # python-prctl takes no other
    PR_CAPBSET_READ, PR_CAPBSET_DROP = 23, 24
    with call("prctl PR_CAPBSET_READ"):
        held = [cap for cap in named if cap not in caps and _prctl.prctl(PR_CAPBSET_READ, cap)]
    cap = len(named)
    while _raw_prctl(PR_CAPBSET_READ, cap) != -1:
        held.append(cap)
        cap += 1
    return [_ready("prctl", f"PR_CAPBSET_DROP {cap}", PR_CAPBSET_DROP, cap) for cap in held]


def _capabilities_header():
    return (foreign.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process


def capget():
    """The effective, permitted and inheritable capabilities of this process, bit masks. See capget(2)."""
    data = (foreign.c_uint32 * 6)()
    _call("capget", "", _capabilities_header(), data)
    return tuple(data[i] | data[i + 3] << 32 for i in range(3))


def capable(cap):
    """Whether this process has the capability CAP in effect."""
    return bool(capget()[0] >> cap & 1)


def capset_call(mask, inheritable=None):
    """Make the effective and permitted capabilities the bit mask MASK; so INHERITABLE, unless given. See capset(2)."""
    sets = (mask, mask, mask if inheritable is None else inheritable)
    data = (foreign.c_uint32 * 6)(*(part & 0xFFFFFFFF for part in sets), *(part >> 32 for part in sets))
    return _ready("capset", f"{mask:#x}", _capabilities_header(), data)


def capset(mask):
    """As capset_call(), now."""
    carry_out([capset_call(mask)])


def chdir_call(path):
    """Change the current directory to PATH. See chdir(2)."""
    return _ready("chdir", show(path), os.fsencode(path))


def setsid_call():
    """Lead a session of its own. See setsid(2)."""
    return _ready("setsid", "")


def set_ids_calls(uid, gid):
    """Set all of the gids to GID, then all of the uids to UID, each unless it is None. See setresuid(2)."""
    calls = [] if gid is None else [_ready("setresgid", gid, gid, gid, gid)]
    return calls if uid is None else [*calls, _ready("setresuid", uid, uid, uid, uid)]


def has_keys():
    """Whether this kernel has keys, and session keyrings. See keyctl(2)."""
    KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING = 0, -3
    try:
        _call("keyctl", "KEYCTL_GET_KEYRING_ID", KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0)
    except Failure as err:
        return err.errno != ENOSYS
    return True


def session_keyring_call():
    """Join a new, empty session keyring. See keyctl(2)."""
    KEYCTL_JOIN_SESSION_KEYRING = 1
    hints = {EDQUOT: "this user has as many keys as kernel.keys.maxkeys allows: keyrings(7)"}
    return _ready("keyctl", "KEYCTL_JOIN_SESSION_KEYRING", KEYCTL_JOIN_SESSION_KEYRING, hints=hints)


def join_session_keyring():
    """Join a new, empty session keyring; nothing to leave on a kernel without keys. See keyctl(2)."""
    for pause in (*KEY_PAUSES, None):
        try:
            carry_out([session_keyring_call()])
            return
        except Failure as err:
            if err.errno == ENOSYS:
                return
            if err.errno != EDQUOT or pause is None:
                raise
        time.sleep(pause)


def seccomp(program):
    """Load the filter PROGRAM, a bytes of struct sock_filter; no_new_privs is set already. See seccomp(2)."""
    _call("seccomp", "SECCOMP_SET_MODE_FILTER", SECCOMP_SET_MODE_FILTER, 0, _sock_fprog(program))


def seccomp_listener(program):
    """As seccomp(), for a program that notifies; return the descriptor of its listener. See seccomp_unotify(2)."""
    flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
    return _call("seccomp", "SECCOMP_SET_MODE_FILTER", SECCOMP_SET_MODE_FILTER, flags, _sock_fprog(program))


def _sock_fprog(program):
    code = foreign.string_buffer(program)
    prog = _uint64s(len(program) // 8, foreign.addressof(code))
    prog.code = code  # kept as long as what points to it
    return prog


class Secret:
    """Three random 64-bit words: a filter may let a call through by them, in registers that the call does not use."""

    __slots__ = ("words",)

    def __init__(self):
        data = os.urandom(24)
        self.words = [int.from_bytes(data[i : i + 8], "little") for i in (0, 8, 16)]


def _string_array(words):
    buffers = [foreign.string_buffer(word + b"\0") for word in words]
    array = _uint64s(*map(foreign.addressof, buffers), 0)
    array.buffers = buffers  # kept as long as what points to them
    return array


def load_and_execute(program, secret, what, socket=None):
    """Load the filter PROGRAM and become WHAT: path, argv and environment, bytes. Return never.

    SECRET goes along with the calls that the filter is to let through. With
    SOCKET, the filter notifies, and its listener is sent there. All is prepared
    before: between the filter and the exec this makes no call but those, for
    the filter may allow no other. OSError: the exec failed.
    """
    number, sendmsg, execve = NUMBER["seccomp"], NUMBER["sendmsg"], NUMBER["execve"]
    flags, message = 0, None
    if socket is not None:
        flags = SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
        message = _message(foreign.string_buffer(b"x"))
    path, argv, env = what
    load = (number, SECCOMP_SET_MODE_FILTER, flags, _sock_fprog(program), 0, 0, 0)
    send = (sendmsg, socket, message, 0, *secret.words)
    execute = (execve, path, _string_array(argv), _string_array(env), *secret.words)
    listener = _syscall(*load)
    if listener == -1:
        hints = {EBUSY: "a process has one supervisor at most", EINVAL: f"or this is before Linux 5.19; {SEE_CHECK}"}
        raise _refused("seccomp SECCOMP_SET_MODE_FILTER", hints if socket is not None else None)
    if socket is not None:
        message.control[2] = listener
        _syscall(*send)
    _syscall(*execute)
    raise OSError(foreign.get_errno(), os.strerror(foreign.get_errno()))


def socketpair():
    """Two connected Unix sockets that keep messages apart, close-on-exec. See socketpair(2)."""
    AF_UNIX, SOCK_SEQPACKET = 1, 5
    pair = (foreign.c_int * 2)()
    _call("socketpair", "AF_UNIX", AF_UNIX, SOCK_SEQPACKET | os.O_CLOEXEC, 0, pair)
    return tuple(pair)


def _message(data, descriptor=0):
    """A struct msghdr with DATA (a buffer) and DESCRIPTOR. See unix(7), SCM_RIGHTS."""
    SOL_SOCKET, SCM_RIGHTS = 1, 1
    iov = _uint64s(foreign.addressof(data), foreign.sizeof(data))
    control = _uint64s(20, SOL_SOCKET | SCM_RIGHTS << 32, descriptor)  # struct cmsghdr, the descriptor behind it
    message = _uint64s(0, 0, foreign.addressof(iov), 1, foreign.addressof(control), 24, 0)
    message.data, message.iov, message.control = data, iov, control  # kept as long as what points to them
    return message


def send_descriptor(socket, descriptor, data):
    """Send DESCRIPTOR and DATA, 1 byte or more, through SOCKET."""
    hints = {ETOOMANYREFS: "this user has more of them on their way than RLIMIT_NOFILE allows"}
    _call("sendmsg", "", socket, _message(foreign.string_buffer(data), descriptor), MSG_NOSIGNAL, hints=hints)


def receive_descriptor(socket):
    """A descriptor that comes through SOCKET, close-on-exec, and the data with it (4096 bytes); None at its end."""
    MSG_CMSG_CLOEXEC = 0x40000000
    message = _message(foreign.string_buffer(bytes(4096)))
    size = _call("recvmsg", "", socket, message, MSG_CMSG_CLOEXEC)
    if size and message[5] < 20:
        raise Failure("recvmsg: a message without a descriptor")
    return (message.control[2] & 0xFFFFFFFF, message.data.raw[:size]) if size else None


class Notification:
    """A system call that waits for its supervisor: struct seccomp_notif. See seccomp_unotify(2)."""

    __slots__ = ("arch", "args", "id", "nr", "pid")

    def __init__(self, data):
        self.id = int.from_bytes(data[:8], "little")
        self.pid, _, self.nr, self.arch = (int.from_bytes(data[i : i + 4], "little") for i in (8, 12, 16, 20))
        self.args = [int.from_bytes(data[i : i + 8], "little") for i in range(32, 80, 8)]


def receive_notification(listener):
    """The next Notification of LISTENER; None if its process is gone meanwhile. See seccomp_unotify(2)."""
    import fcntl

    SECCOMP_IOCTL_NOTIF_RECV = 0xC0502100
    data = bytearray(80)
    try:
        fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, data)
    except OSError as err:
        if err.errno in (ENOENT, EINTR):
            return None
        raise refused("ioctl SECCOMP_IOCTL_NOTIF_RECV", err.errno) from err
    return Notification(data)


def notification_waits(listener, ident):
    """Whether the process of the call IDENT still waits for an answer."""
    import fcntl

    SECCOMP_IOCTL_NOTIF_ID_VALID = 0x40082102
    try:
        fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, ident.to_bytes(8, "little"))
    except OSError:
        return False
    return True


def answer_notification(listener, ident, error=None):
    """Let the call IDENT go on, or have it fail with ERROR. Whose process is gone needs none."""
    import fcntl

    SECCOMP_IOCTL_NOTIF_SEND, SECCOMP_USER_NOTIF_FLAG_CONTINUE = 0xC0182101, 1
    flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE if error is None else 0
    words = (ident, 0, (-(error or 0) & 0xFFFFFFFF) | flags << 32)
    try:
        fcntl.ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, b"".join(word.to_bytes(8, "little") for word in words))
    except OSError as err:
        if err.errno != ENOENT:
            raise refused("ioctl SECCOMP_IOCTL_NOTIF_SEND", err.errno) from err


_seccomp_library = None


def libseccomp():
    """The system's libseccomp, which knows the numbers of system calls on every architecture.

    Loaded when the first name is looked up: most starts need none.
    """
    global _seccomp_library
    import ctypes

    if _seccomp_library is None:
        with call("dlopen libseccomp.so.2", f"install libseccomp2; {SEE_CHECK}"):
            _seccomp_library = ctypes.PyDLL("libseccomp.so.2")
        _seccomp_library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
        _seccomp_library.free.argtypes = (ctypes.c_void_p,)
    return _seccomp_library


def syscall_number(arch, name):
    """The number of the call NAME (bytes) for ARCH, an AUDIT_ARCH_*; negative if it has none there.

    -1: no architecture has it. See seccomp_syscall_resolve_name(3).
    """
    return libseccomp().seccomp_syscall_resolve_name_arch(arch, name)


def syscall_name(arch, number):
    """The name of the call NUMBER for ARCH, an AUDIT_ARCH_*; None if it has none."""
    pointer = libseccomp().seccomp_syscall_resolve_num_arch(arch, number)
    if not pointer:
        return None
    import ctypes

    name = ctypes.string_at(pointer).decode()
    libseccomp().free(pointer)
    return name


def landlock_abi():
    """The version of Landlock that this kernel has, 0 if none. See landlock(7)."""
    LANDLOCK_CREATE_RULESET_VERSION = 1
    version = _syscall(NUMBER["landlock_create_ruleset"], 0, 0, LANDLOCK_CREATE_RULESET_VERSION, 0, 0, 0)
    return max(version, 0)


def landlock_create_ruleset(access_fs, access_net=0, scoped=0):
    """A descriptor of a ruleset, close-on-exec, that denies what no rule in it allows.

    ACCESS_FS, ACCESS_NET and SCOPED are bits of LANDLOCK_ACCESS_FS,
    LANDLOCK_ACCESS_NET and LANDLOCK_SCOPE. See landlock_create_ruleset(2).
    """
    attr = _uint64s(access_fs, access_net, scoped)  # a kernel without the last ones takes them if they are 0
    return _call("landlock_create_ruleset", "", attr, foreign.sizeof(attr), 0)


def landlock_allow_beneath(ruleset, access, parent, text):
    """Allow ACCESS, bits of LANDLOCK_ACCESS_FS, at and beneath PARENT, a descriptor. See landlock_add_rule(2)."""
    LANDLOCK_RULE_PATH_BENEATH = 1
    # struct landlock_path_beneath_attr is packed: a 64-bit mask, a 32-bit descriptor.
    rule = access.to_bytes(8, "little") + parent.to_bytes(4, "little")
    hints = {EBADFD: "it is in no file system that has names"}
    _call("landlock_add_rule", text, ruleset, LANDLOCK_RULE_PATH_BENEATH, rule, 0, hints=hints)


def landlock_allow_port(ruleset, access, port):
    """Allow ACCESS, bits of LANDLOCK_ACCESS_NET, to the TCP port PORT. See landlock_add_rule(2)."""
    LANDLOCK_RULE_NET_PORT = 2
    _call("landlock_add_rule", port, ruleset, LANDLOCK_RULE_NET_PORT, _uint64s(access, port), 0)


def landlock_restrict_self_call(ruleset):
    """Hold this process to RULESET for good; no_new_privs is set already. See landlock_restrict_self(2)."""
    return _ready("landlock_restrict_self", "", ruleset, 0, hints={E2BIG: "a process can be under 16 rulesets"})


def landlock_restrict_self(ruleset):
    """As landlock_restrict_self_call(), now."""
    carry_out([landlock_restrict_self_call(ruleset)])


def rename_process(name):
    """Overwrite this process's command line and environment in memory: /proc/PID shows NAME alone.

    PR_SET_MM would do it too, but needs CAP_SYS_RESOURCE. os.environ is a copy
    and stays. See proc(5), /proc/PID/cmdline: anybody may read it.
    """
    with call("open /proc/self/stat", "hako needs /proc"), open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    arg_start, env_end = int(fields[45]), int(fields[48])
    text = name.encode() + b"\0"
    foreign.memset(arg_start, 0, env_end - arg_start)
    foreign.memmove(arg_start, text, min(len(text), env_end - arg_start - 1))
    prctl("SET_NAME", name)


def release(pid):
    """Let the child PID run on, which has stopped because it has itself traced: by us, as its parent. See ptrace(2)."""
    _syscall(NUMBER["ptrace"], PTRACE_DETACH, pid, 0, 0, 0, 0)


def children(pid):
    """The pids of the children of process PID, none if it is gone. See proc(5), /proc/PID/task/TID/children."""
    found = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    except OSError:
        pass
    return found
