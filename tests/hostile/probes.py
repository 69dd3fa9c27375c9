"""The attacks that probes.c makes: by name the letter of the threat, what is tried, and who can do it on a host."""

import os

ROOT, ANYBODY = "root", "anybody"
# {name: (letter, what it is for people, whose control succeeds)}
ATTACKS = {
    "descriptors": ("A", "find a descriptor of the caller", ANYBODY),
    "walk-descriptors": ("A", "walk the host from a directory that the caller had open", ANYBODY),
    "execute-descriptors": ("A", "execute what the caller had open", ANYBODY),
    "current-directory": ("A", "start in the caller's directory", ANYBODY),
    "links": ("A", "walk the host by `/proc/PID/{root,cwd,fd}`", ANYBODY),
    "program-of-others": ("A", "read the `exe` and `cwd` of processes that are not its own", ANYBODY),
    "memory-of-others": ("A", "read their memory, environment, maps, descriptors", ANYBODY),
    "secrets": ("A", "find the caller's environment in `/proc`", ANYBODY),
    "trace-others": ("A", "trace them, read their memory, take their descriptors", ANYBODY),
    "kernel-settings": ("A", "open anything of the kernel's in `/proc` for writing", ANYBODY),
    "core-pattern": ("A", "open `core_pattern` for writing", ROOT),
    "sysrq": ("A", "open `sysrq-trigger` for writing", ROOT),
    "kernel-secrets": ("A", "read `kcore`, `keys`, `timer_list`, `kmsg`, ... in `/proc`", ANYBODY),
    "covers": ("A", "the same behind the covers, or in a second `/proc`", ANYBODY),
    "namespaces": ("A", "open the namespaces of others", ANYBODY),
    "by-path": ("B", "open a file of the host by its path", ANYBODY),
    "leave-root": ("B", "leave the root by a second chroot", ANYBODY),
    "leave-by-proc": ("B", "leave it by `..` behind links of `/proc`", ANYBODY),
    "old-root": ("B", "take the root away and look beneath", ANYBODY),
    "by-handle": ("B", "open a file of the host by its handle", ROOT),
    "write-root": ("B", "write into a read-only root", ANYBODY),
    "write-read-only": ("B", "change what is shown read-only", ANYBODY),
    "remount": ("B", "make it writable, by five calls, also in a user namespace", ANYBODY),
    "device-in-mount": ("B", "read a device that lies in a mount", ANYBODY),
    "device-in-root": ("B", "read a device that lies in the root", ANYBODY),
    "device": ("B", "make a device and read it", ROOT),
    "setuid-file": ("B", "become root by a setuid file that lies in a mount", ANYBODY),
    "file-capabilities": ("F", "gain a capability of such a file", ANYBODY),
    "capabilities": ("F", "have any capability, in any of the five sets", ANYBODY),
    "other-ids": ("F", "take another uid, gid or group", ROOT),
    "new-privileges": ("F", "be without no_new_privs", ANYBODY),
    "keyring": ("F", "find a key in the caller's session keyring", ANYBODY),
    "abstract-socket": ("H", "connect to an abstract socket of the host", ANYBODY),
    "socket-file": ("H", "connect to a socket of the host by its path", ANYBODY),
    "loopback": ("H", "connect to a port of the host's loopback", ANYBODY),
    "interfaces": ("H", "see the host's network interfaces", ANYBODY),
    "system-v": ("H", "attach to System V memory of the host", ANYBODY),
    "message-queue": ("H", "open a POSIX message queue of the host", ANYBODY),
    "shared-memory": ("H", "open POSIX shared memory of the host", ANYBODY),
    "pids": ("H", "signal a process of the host, or get its pidfd", ANYBODY),
    "host-name": ("H", "set the host name", ROOT),
    "clocks": ("H", "set a clock", ROOT),
    "kernel-modules": ("H", "load a kernel module", ROOT),
    "kernel-privileges": ("H", "load another kernel, or use a file as swap space", ROOT),
    "limits": ("J", "raise a limit of its cgroup", ANYBODY),
    "type": ("D", "type into the caller's terminal (TIOCSTI)", ANYBODY),
    "type-high": ("D", "the same with high bits set in the request", ANYBODY),
    "type-32": ("D", "the same by the 32-bit call", ANYBODY),
    "take-over": ("D", "take the caller's terminal over (TIOCSCTTY)", ANYBODY),
    "discipline": ("D", "change its line discipline (TIOCSETD)", ANYBODY),
    "paste": ("D", "have TIOCLINUX looked at, which pastes on a console", ANYBODY),
    "controlling": ("D", "open the caller's terminal by `/dev/tty`", ANYBODY),
    "host-pty": ("D", "open another terminal of the host", ANYBODY),
}
# What some kernels lack altogether: there is nothing to reach. {name: the file that tells}
LACKING = {"sysrq": "/proc/sysrq-trigger", "kernel-modules": "/proc/modules"}
ST_NODEV = 4
# Special ones, which the others are not tried with: they need a terminal, or a cgroup with limits.
TERMINAL = [name for name, (letter, _, _) in ATTACKS.items() if letter == "D"]
SPECIAL = [*TERMINAL, "limits"]
REACHED = "reached"


def of(letter):
    """The names of the attacks of the threat LETTER that need nothing special."""
    return [name for name, (theirs, _, _) in ATTACKS.items() if theirs == letter and name not in SPECIAL]


def reached(found):
    """The names in FOUND, {name: what came of it}, that reached what they were after."""
    return {name for name, what in found.items() if what == REACHED}


def within_reach(names, whose, site):
    """Those of NAMES that "root" or "user", WHOSE, must reach on the SITE without a sandbox."""
    able = {name for name in names if ATTACKS[name][2] == ANYBODY or whose == "root"}
    made_by_root = {"device-in-root", "device-in-mount", "setuid-file", "file-capabilities"}
    return able - lacking(site.place) - (made_by_root if os.getuid() != 0 else set())


def lacking(place):
    """The names of the attacks that are after what this machine, or the file system of PLACE, has not."""
    flags = os.statvfs(place).f_flag
    found = {name for name, path in LACKING.items() if not os.path.exists(path)}
    found |= {"device", "device-in-root", "device-in-mount"} if flags & ST_NODEV else set()
    found |= {"setuid-file", "file-capabilities"} if flags & os.ST_NOSUID else set()
    return found | ({"interfaces"} if os.listdir("/sys/class/net") == ["lo"] else set())
