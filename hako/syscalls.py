"""Names and numbers of system calls: libseccomp's, what is newer than it, and the kernel's own names."""

from hako import bpf, kernel

# Newer than libseccomp 2.5.4; the same number on every architecture that matters here.
NEWER = {
    "cachestat": 451,
    "fchmodat2": 452,
    "map_shadow_stack": 453,
    "futex_wake": 454,
    "futex_wait": 455,
    "futex_requeue": 456,
    "statmount": 457,
    "listmount": 458,
    "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460,
    "lsm_list_modules": 461,
    "mseal": 462,
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
    "open_tree_attr": 467,
    "file_getattr": 468,
    "file_setattr": 469,
}
NEWER_NAMES = {number: name for name, number in NEWER.items()}
OF_ONE = {"uretprobe": {"x86_64": 335}}
# What the kernel calls a function, and user space the call.
INTERNAL = {
    "newstat": "stat",
    "newfstat": "fstat",
    "newlstat": "lstat",
    "newuname": "uname",
    "sendfile64": "sendfile",
    "umount": "umount2",
    "sysctl": "_sysctl",
}


def number(arch, name):
    """The number of the call NAME on ARCH (libseccomp's name), None if it has none there."""
    if "\0" in name:  # where a name would end for C
        return None
    if arch not in ("x86", "arm"):  # there umount, sendfile64 and others are calls of their own
        name = INTERNAL.get(name, name)
    found = kernel.syscall_number(bpf.AUDIT_ARCH[arch], name.encode(errors="replace"))
    if found >= 0:
        return found
    return NEWER.get(name, OF_ONE.get(name, {}).get(arch))


def exists(name):
    """Whether some architecture has the call NAME."""
    name = INTERNAL.get(name, name)
    if name in NEWER or name in OF_ONE:
        return True
    return kernel.syscall_number(bpf.AUDIT_ARCH["x86_64"], name.encode(errors="replace")) != -1


def name(arch, nr):
    """The usual name of the call NR on ARCH, or "SYSCALL[NR]"."""
    own = next((name for name, numbers in OF_ONE.items() if numbers.get(arch) == nr), None)
    known = own or NEWER_NAMES.get(nr) or kernel.syscall_name(bpf.AUDIT_ARCH[arch], nr if nr < 2**31 else nr - 2**32)
    return known or f"SYSCALL[{nr}]"
