"""What PROG could turn against its caller: the caller's terminal, and our own interpreter."""

import os
import sys

from hako import kernel
from hako.failure import SEE_CHECK, Failure, call, refused

# linux/filter.h and linux/seccomp.h
LOAD, JUMP_EQUAL, AND, RETURN = 0x20, 0x15, 0x54, 0x06
ALLOW, ERRNO_EPERM = 0x7FFF0000, 0x00050000 | 1
OFFSET_NR, OFFSET_ARCH, OFFSET_ARG1 = 0, 4, 24
X32_BIT = 0x40000000
# By machine: its AUDIT_ARCH_* with the numbers of ioctl there. The 32-bit
# architecture runs on the same kernel; 514 is ioctl's number for x32.
IOCTLS = {
    "x86_64": ((0xC000003E, (16, 514)), (0x40000003, (54,))),
    "aarch64": ((0xC00000B7, (29,)), (0x40000028, (54,))),
}
# TIOCSTI and TIOCLINUX type and paste for the caller, TIOCSETD changes what the
# terminal is, TIOCSCTTY takes it over, which makes TIOCSTI lawful.
REFUSED = {"TIOCSTI": 0x5412, "TIOCLINUX": 0x541C, "TIOCSETD": 0x5423, "TIOCSCTTY": 0x540E}
NO_TERMINAL = 9, 22, 25  # EBADF, EINVAL, ENOTTY

# Refer goes along: a ruleset that does not name it denies it everywhere.
OUTSIDE = kernel.LANDLOCK_ACCESS_FS["execute"] | kernel.LANDLOCK_ACCESS_FS["refer"]
# Capabilities by which nobody gets at a file of another; with any other, somebody might.
HARMLESS = (
    *("kill", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner"),
    *("sys_nice", "sys_resource", "sys_time", "wake_alarm", "block_suspend", "audit_write", "syslog"),
)


def terminal_filter():
    """A seccomp filter under which ioctl fails with EPERM for the requests in REFUSED."""
    requests = instruction(LOAD, OFFSET_ARG1)  # the low half: the kernel, too, looks at 32 bits of it
    for i, request in enumerate(REFUSED.values()):
        requests += instruction(JUMP_EQUAL, request, len(REFUSED) - i)
    requests += instruction(RETURN, ALLOW) + instruction(RETURN, ERRNO_EPERM)
    program = instruction(LOAD, OFFSET_ARCH)
    for arch, numbers in IOCTLS[kernel.MACHINE]:
        block = instruction(LOAD, OFFSET_NR) + instruction(AND, 0xFFFFFFFF ^ X32_BIT)
        for i, number in enumerate(numbers):
            block += instruction(JUMP_EQUAL, number, len(numbers) - i)
        block += instruction(RETURN, ALLOW) + requests
        program += instruction(JUMP_EQUAL, arch, 0, len(block) // 8) + block
    return program + instruction(RETURN, ALLOW)


def instruction(code, value, if_true=0, if_false=0):
    """One struct sock_filter."""
    return code.to_bytes(2, "little") + bytes((if_true, if_false)) + value.to_bytes(4, "little")


def protect_terminal(fds, own_session):
    """Let PROG inject nothing into the caller's terminal, if it has it at one of FDS.

    Without a session of its own (OWN_SESSION) it may also open /dev/tty.
    no_new_privs is set already.
    """
    if not own_session or any(map(is_terminal, fds)):
        kernel.seccomp(terminal_filter())


def is_terminal(fd):
    """Whether FD is open and a terminal. Who cannot be told so by the kernel takes it for one."""
    try:
        return is_known_terminal(fd)
    except Failure:
        return True


def is_known_terminal(fd):
    """Whether FD is one; what the kernel does not say is a Failure, and not a no as of os.isatty()."""
    try:
        os.get_terminal_size(fd)
    except OSError as err:
        if err.errno in NO_TERMINAL:
            return False
        raise refused(f"ioctl TIOCGWINSZ of descriptor {fd}", err.errno) from err
    return True


def protect_interpreter(uid, capabilities):
    """Let nothing outside the root be executed, if PROG could write our interpreter: see interpreter_ruleset()."""
    ruleset = interpreter_ruleset(uid, capabilities, "/")
    if ruleset is not None:
        kernel.landlock_restrict_self(ruleset)
        os.close(ruleset)


def interpreter_ruleset(uid, capabilities, root):
    """A Landlock ruleset under which nothing outside ROOT can be executed; None if PROG cannot write our interpreter.

    UID and CAPABILITIES (numbers) are PROG's as the host sees them: in a user
    namespace of its own it has the caller's uid, and no capability.

    PROG may be a link to /proc/self/exe, or a script that names it: then the
    kernel executes this very interpreter again, whoever is inside finds it at
    /proc/PID/exe, and if its owner overwrites it (CVE-2019-5736). A Landlock
    rule on the root ends that. It also forbids mount(2), so PROG with
    CAP_SYS_ADMIN, who can do as it likes anyhow, goes without.
    """
    if not writes_interpreter(uid, capabilities):
        return None
    if kernel.landlock_abi() < 2:  # version 1 would refuse renames between directories
        raise Failure(
            "landlock: this kernel has not version 2 of it, and PROG could overwrite the interpreter of hako "
            f"[run PROG as another with --user; see hako-run(1), CAVEATS; {SEE_CHECK}]"
        )
    with call(f"open {root}"):
        place = os.open(root, os.O_PATH | os.O_CLOEXEC)
    ruleset = kernel.landlock_create_ruleset(OUTSIDE)
    kernel.landlock_allow_beneath(ruleset, OUTSIDE, place, root)
    os.close(place)
    return ruleset


def writes_interpreter(uid, capabilities):
    """Whether a process of UID with CAPABILITIES may write our interpreter, and is not all-powerful anyhow."""
    if kernel.CAP_SYS_ADMIN in capabilities:
        return False
    if any(kernel.CAPABILITIES[cap] not in HARMLESS for cap in capabilities):
        return True
    return INTERPRETER is None or INTERPRETER.st_uid == uid or bool(INTERPRETER.st_mode & 0o022)


def stat_interpreter():
    """The os.stat_result of our interpreter; None if it is out of sight."""
    try:
        return os.stat(sys.executable)
    except (OSError, TypeError):
        return None


INTERPRETER = stat_interpreter()  # now: inside the sandbox the name may be anything's
