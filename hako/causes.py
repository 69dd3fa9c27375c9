"""Why this host refuses what Linux can do, and what to do about it.

One errno has many causes: a sysctl, AppArmor, the filter of a container, the
age of the kernel. What tells them apart is read here, by the process that was
refused, in the place where it was.
"""

import os

from hako import cgroup, kernel, overlay
from hako.failure import Failure

EPERM, ENOENT, EACCES, ENODEV, EINVAL, ENOSPC, ENOSYS, EUSERS, EOPNOTSUPP = 1, 2, 13, 19, 22, 28, 38, 87, 95
OF_ARGUMENTS = (0, 7, 9, 14, EINVAL)  # success, E2BIG, EBADF, EFAULT, EINVAL: the kernel looked at them
FILTERS = 2  # Seccomp in /proc/PID/status
SINCE = {  # the Linux that brought a call
    "seccomp": (3, 17),
    "pidfd_send_signal": (5, 1),
    **dict.fromkeys(("open_tree", "move_mount", "fsopen", "fsconfig", "fsmount"), (5, 2)),
    **dict.fromkeys(("clone3", "pidfd_open"), (5, 3)),
    "openat2": (5, 6),
    "close_range": (5, 9),
    "mount_setattr": (5, 12),
    **dict.fromkeys(("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"), (5, 13)),
}
PROFILE = "/etc/apparmor.d/hako"
RESTRICTED = "kernel.apparmor_restrict_unprivileged_userns"
CLONE = "kernel.unprivileged_userns_clone"
MOST = "user.max_user_namespaces"
CONTAINER = "in a container: start it without that filter (docker, podman: --security-opt seccomp=unconfined)"
DELEGATE = "systemd-run --user --scope -p Delegate=yes, then this again; or root may delegate, see hako-limit(1)"


class Refusal(Failure):
    """A Failure with the CAUSE, a word for programs, and ADVICE, what to do about it."""

    def __init__(self, line, cause, advice, errno=None):
        super().__init__(line, errno=errno)
        self.cause, self.advice = cause, advice


def because(err, cause, advice):
    """The Refusal of what failed by the Failure ERR, for CAUSE, with ADVICE."""
    return Refusal(line(err), cause, advice, err.errno)


def line(err):
    """What the Failure ERR says, without its hint."""
    return str(err).partition(" [")[0]


def sysctl(name):
    """The text of the sysctl NAME, None if there is none."""
    return text_of(f"/proc/sys/{name.replace('.', '/')}")


def text_of(path):
    """The text of the small file PATH without white space around it, None if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return os.fsdecode(file.read()).strip("\0 \n")
    except OSError:
        return None


def release():
    """The release of this Linux, a pair of numbers."""
    words = os.uname().release.split(".")
    return int(words[0]), int("".join(char for char in words[1] if char.isdigit()) or 0)


def is_filtered(name, errno):
    """Whether it is a filter that answers the call NAME with ERRNO: it looks at no argument then."""
    status = text_of("/proc/self/status") or ""
    if status and f"Seccomp:\t{FILTERS}" not in status:
        return False
    return errno not in OF_ARGUMENTS and kernel.nonsense(name) == errno


def security_label():
    """The label that AppArmor, SELinux or Smack gave this process; None if it is confined by none of them."""
    label = text_of("/proc/self/attr/apparmor/current") or text_of("/proc/self/attr/current")
    # That of a profile of AppArmor that confines nobody, as ours is one, ends so.
    return None if not label or label == "unconfined" or label.endswith("(unconfined)") else label


def of(err):
    """The Refusal that the Failure ERR is, as far as its call and errno tell."""
    if isinstance(err, Refusal):
        return err
    name, errno = str(err).split(" ")[0].rstrip(":"), err.errno
    if name in SINCE and errno == ENOSYS and release() < SINCE[name]:
        return because(err, "kernel", f"Linux {'.'.join(map(str, SINCE[name]))} or newer has it")
    if name in kernel.NUMBER and errno is not None and is_filtered(name, errno):
        return because(err, "seccomp", CONTAINER)
    if errno == ENOSYS:
        return because(err, "kernel", "a kernel that was built with it")
    if errno == ENOENT and "needs /proc" in str(err):
        return because(err, "no-proc", "mount /proc here; behind hako-run: --proc")
    label = security_label()
    if errno in (EPERM, EACCES) and label:
        return because(err, "security-module", f"have the security module allow it to what it calls {label}")
    return because(err, "unknown", "see the page of that call")


def is_privileged():
    """Whether this process has CAP_SYS_ADMIN on the host: restrictions of ordinary users are not for it."""
    return kernel.capable(kernel.CAP_SYS_ADMIN) and not is_inside()


def of_user_namespaces(err, privileged):
    """The Refusal of user namespaces, or of power in them, by the Failure ERR, of who was PRIVILEGED before."""
    known = of(err)
    if known.cause in ("kernel", "seccomp", "no-proc"):
        return known
    if err.errno in (ENOSPC, EUSERS):
        return exhausted(err)
    if not privileged and sysctl(CLONE) == "0":
        return because(err, CLONE, f"as root: sysctl -w {CLONE}=1")
    if not privileged and sysctl(RESTRICTED) == "1":
        return because(err, "apparmor", load_profile())
    if err.errno == EINVAL:
        return because(err, "kernel", "a kernel that was built with CONFIG_USER_NS")
    if "CAP_SETFCAP" in str(err):
        return because(err, "setfcap", "uid 0 here has not CAP_SETFCAP: give the outer sandbox --user")
    if known.cause == "unknown" and str(err).startswith("clone3") and err.errno == EPERM:
        return because(err, "chroot", "nobody makes one in a chroot, which pivot_root is not, or without an id here")
    return known


def load_profile():
    """How to load our profile for AppArmor."""
    install = "" if os.path.exists(PROFILE) else "install etc/apparmor.d/hako of hako there, then: "
    return f"as root: {install}apparmor_parser -r {PROFILE}"


def exhausted(err):
    """The Refusal of one user namespace more, by the Failure ERR."""
    most = sysctl(MOST)
    if most == "0":
        return because(err, MOST, f"as root: sysctl -w {MOST}=10000")
    advice = f"fewer of them in each other, or more of them: {MOST} is {most} here, and each outer one has its own"
    return because(err, "too-many", advice)


def is_inside():
    """Whether this process is in a user namespace that somebody made."""
    try:
        return os.stat("/proc/self/ns/user").st_ino != kernel.INITIAL_USER_NAMESPACE
    except OSError:
        return False


def of_namespaces(err):
    """The Refusal of the other namespaces by the Failure ERR."""
    kinds = [name for name in kernel.NAMESPACES if name not in ("user", "time")]
    if err.errno == ENOSPC:
        none = [f"user.max_{name}_namespaces" for name in kinds if sysctl(f"user.max_{name}_namespaces") == "0"]
        return because(err, "too-many", f"as root: sysctl -w {none[0]}=10000" if none else "end some of them")
    missing = [name for name in kinds if not os.path.exists(f"/proc/self/ns/{name}")]
    if err.errno == EINVAL and missing:
        return because(err, "kernel", f"a kernel that was built with these namespaces: {' '.join(missing)}")
    return of(err)


def of_mounts(err):
    """The Refusal of mounts by the Failure ERR, of a process that may mount as far as capabilities go."""
    known = of(err)
    if known.cause == "unknown" and err.errno == EPERM:
        hint = "if this is behind landlock-exec, or in a sandbox of uid 0: give that another user"
        return because(err, "landlock", f"under Landlock nothing can be mounted; {hint}")
    if err.errno == EINVAL and str(err).startswith("pivot_root"):
        return because(err, "initramfs", "pivot_root needs a root that is mounted, not that of an initramfs")
    return known


def of_overlay(err):
    """The Refusal of an overlay by the Failure ERR."""
    if err.errno == ENODEV:
        return because(err, "kernel", "as root: modprobe overlay, if this kernel has it")
    if err.errno in (EPERM, EINVAL) and release() < (5, 11):
        return because(err, "kernel", "Linux 5.11 or newer has it for who is not root")
    return of_mounts(err)


def of_proc(err):
    """The Refusal of a fresh proc by the Failure ERR: nobody sees more of proc in a new user namespace than before."""
    if err.errno != EPERM or is_filtered("mount", EPERM):
        return of_mounts(err)
    mounts = overlay.mounts()
    procs = {fields[4] for fields in mounts if fields[fields.index("-") + 1] == "proc"}
    covers = [fields[4] for fields in mounts if any(fields[4].startswith(f"{place}/") for place in procs)]
    if not procs:
        return because(err, "no-proc", "mount /proc here first; behind hako-run: --proc")
    where = f"the /proc here is partly covered, at {min(covers)}: " if covers else ""
    way = "show it with --mount=/proc:/proc, or start the container with --security-opt "
    way += "systempaths=unconfined (docker) or unmask=ALL (podman)"
    return because(err, "covered", where + way)


def of_landlock(err):
    """The Refusal of Landlock by the Failure ERR."""
    if err.errno == EOPNOTSUPP:
        return because(err, "lsm", "boot with landlock in the list lsm=, see /sys/kernel/security/lsm")
    return of(err)


def of_cgroup(err, controller):
    """The Refusal of a cgroup with CONTROLLER by the Failure ERR."""
    if err.errno in (EPERM, EACCES, 16, 30):  # EBUSY: systemd's; EROFS
        return because(err, "delegation", DELEGATE)
    if err.errno is not None:
        return of(err)
    return because(err, *why_no_controller(controller))


def why_no_controller(controller):
    """The cause, and advice, if the cgroup here cannot have CONTROLLER."""
    tops = cgroup.tops()
    if not tops:
        return "unmounted", "as root: mount -t cgroup2 none /sys/fs/cgroup; in a container, have it mounted there"
    if controller in (text_of(f"{tops.get('', '')}/cgroup.controllers") or "").split():
        return "delegation", DELEGATE
    for fields in map(str.split, (text_of("/proc/cgroups") or "").splitlines()):
        if fields[0] == controller and fields[3] == "0":
            return "boot", f"boot without cgroup_disable={controller}"
        if fields[0] == controller and fields[1] != "0":
            return "unmounted", f"as root: mount the hierarchy of version 1 that has {controller}"
    return "kernel", f"a kernel that was built with the controller {controller}, or one that was not taken away outside"
