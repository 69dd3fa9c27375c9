"""hako/prototypes.py: the arguments of system calls, and the program that writes it."""

import ctypes
import pathlib
import subprocess
import sys

import pytest

from hako import prototypes

MAKE = pathlib.Path(__file__).parent.parent / "tools" / "make_prototypes.py"
TOKENS = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_
LAST = 1000  # numbers are asked for up to here; x32's begin at 2**30
# Numbers that no kernel ever served: there is no prototype.
NEVER_SERVED = set("afs_syscall epoll_ctl_old epoll_wait_old getpmsg putpmsg security tuxcall vserver".split())
# What libseccomp 2.5.4 cannot know: younger than it, or the kernel's own name of arm64's fadvise64.
YOUNGER = set(
    "cachestat fadvise64_64 fchmodat2 file_getattr file_setattr futex_requeue futex_wait futex_wake getxattrat "
    "listmount listxattrat lsm_get_self_attr lsm_list_modules lsm_set_self_attr map_shadow_stack mseal "
    "open_tree_attr removexattrat setxattrat statmount uprobe uretprobe".split()
)
USUAL = {kernels: usual for usual, kernels in prototypes.ALIASES.items()}


def known(arch):
    """The names of the system calls that libseccomp knows on ARCH."""
    library = ctypes.CDLL("libseccomp.so.2")
    resolve = library.seccomp_syscall_resolve_num_arch
    resolve.argtypes = (ctypes.c_uint32, ctypes.c_int)
    resolve.restype = ctypes.c_void_p
    free = ctypes.CDLL(None).free
    free.argtypes = (ctypes.c_void_p,)
    names = set()
    for number in range(LAST):
        name = resolve(TOKENS[arch], number)
        if name:
            names.add(ctypes.string_at(name).decode())
            free(name)
    return names


@pytest.mark.parametrize("arch", TOKENS)
def test_every_call_that_libseccomp_knows(arch):
    names = known(arch)
    assert len(names) > 300
    assert {name for name in names if prototypes.arguments(name, arch) is None} == names & NEVER_SERVED


def test_no_call_is_misspelt():
    """Each name is one of x86_64, or among those that libseccomp may be too old for."""
    names = {USUAL.get(name, name) for name in prototypes.PROTOTYPES}
    assert names - known("x86_64") <= YOUNGER
    assert set(prototypes.PROTOTYPES) >= YOUNGER


@pytest.mark.parametrize("arch", TOKENS)
def test_arguments_are_six_at_most_and_no_name_is_there_twice(arch):
    for name in prototypes.PROTOTYPES:
        arguments = prototypes.arguments(name, arch)
        assert len(arguments) <= 6, name
        assert len(dict(arguments)) == len(arguments), name
        for argument, size in arguments:
            assert argument.isascii() and argument.isidentifier(), name
            assert size in (4, 8), name


def test_no_call_is_there_twice():
    """A second line for a call would silently win over the first."""
    lines = pathlib.Path(prototypes.__file__).read_text().split("PROTOTYPES = {\n")[1].split("}\n")[0].splitlines()
    names = [line.split('"')[1] for line in lines]
    assert names == sorted(prototypes.PROTOTYPES)


SIZES = {  # from the SYSCALL_DEFINE in Linux 6.18
    "read": [("fd", 4), ("buf", 8), ("count", 8)],
    "write": [("fd", 4), ("buf", 8), ("count", 8)],
    "open": [("filename", 8), ("flags", 4), ("mode", 4)],  # umode_t, 2 bytes, counts as 4
    "fcntl": [("fd", 4), ("cmd", 4), ("arg", 8)],
    "ioctl": [("fd", 4), ("cmd", 4), ("arg", 8)],
    "lseek": [("fd", 4), ("offset", 8), ("whence", 4)],
    "readv": [("fd", 8), ("vec", 8), ("vlen", 8)],  # unsigned long fd
    "mmap": [("addr", 8), ("len", 8), ("prot", 8), ("flags", 8), ("fd", 8), ("off", 8)],
    "mprotect": [("start", 8), ("len", 8), ("prot", 8)],
    "execve": [("filename", 8), ("argv", 8), ("envp", 8)],
    "socket": [("family", 4), ("type", 4), ("protocol", 4)],
    "sendto": [("fd", 4), ("buff", 8), ("len", 8), ("flags", 4), ("addr", 8), ("addr_len", 4)],
    "kill": [("pid", 4), ("sig", 4)],
    "ptrace": [("request", 8), ("pid", 8), ("addr", 8), ("data", 8)],
    "prctl": [("option", 4), ("arg2", 8), ("arg3", 8), ("arg4", 8), ("arg5", 8)],
    "arch_prctl": [("option", 4), ("arg2", 8)],
    "personality": [("personality", 4)],
    "unshare": [("unshare_flags", 8)],
    "quotactl": [("cmd", 4), ("special", 8), ("id", 4), ("addr", 8)],
    "timer_delete": [("timer_id", 4)],
    "clock_gettime": [("which_clock", 4), ("tp", 8)],
    "add_key": [("_type", 8), ("_description", 8), ("_payload", 8), ("plen", 8), ("ringid", 4)],
    "fanotify_mark": [("fanotify_fd", 4), ("flags", 4), ("mask", 8), ("dfd", 4), ("pathname", 8)],
    "preadv2": [("fd", 8), ("vec", 8), ("vlen", 8), ("pos_l", 8), ("pos_h", 8), ("flags", 4)],
    "io_submit": [("ctx_id", 8), ("nr", 8), ("iocbpp", 8)],
    "landlock_add_rule": [("ruleset_fd", 4), ("rule_type", 4), ("rule_attr", 8), ("flags", 4)],
    "mseal": [("start", 8), ("len", 8), ("flags", 8)],
    "clone3": [("uargs", 8), ("size", 8)],
    "getpid": [],
    "rt_sigreturn": [],
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    assert prototypes.arguments(name) == SIZES[name]


def test_clone_has_its_last_two_the_other_way_round_on_aarch64():
    first = [("clone_flags", 8), ("newsp", 8), ("parent_tidptr", 8)]
    assert prototypes.arguments("clone") == [*first, ("child_tidptr", 8), ("tls", 8)]
    assert prototypes.arguments("clone", "aarch64") == [*first, ("tls", 8), ("child_tidptr", 8)]


@pytest.mark.parametrize("usual", prototypes.ALIASES)
def test_both_names_of_a_call_are_taken(usual):
    assert prototypes.arguments(usual) == prototypes.arguments(prototypes.ALIASES[usual])
    assert prototypes.arguments(usual) is not None
    assert usual not in prototypes.PROTOTYPES


@pytest.mark.parametrize("name", ["", "nosuch", "Read", "read ", "sys_read", "fd", "tuxcall", "stat64", "waitpid"])
def test_what_is_not_a_call_of_a_64_bit_kernel_is_not_known(name):
    assert prototypes.arguments(name) is None


def make(place, header):
    """Run tools/make_prototypes.py on a tree with the text HEADER as include/linux/syscalls.h."""
    path = place / "include/linux/syscalls.h"
    path.parent.mkdir(parents=True)
    path.write_text(header)
    return subprocess.run([sys.executable, "-I", MAKE, place], capture_output=True, text=True, check=False)


def test_what_the_program_writes_is_what_is_here_but_for_the_header(place):
    """All that is not read from the header is as in hako/prototypes.py: nobody edited that by hand."""
    done = make(place, "")
    assert (done.returncode, done.stderr) == (0, "")
    here = pathlib.Path(prototypes.__file__).read_text().splitlines()
    assert [line for line in done.stdout.splitlines() if line not in here] == []
    made = {}
    exec(done.stdout, made)
    assert len(made["PROTOTYPES"]) > 100


def test_the_program_reads_prototypes(place):
    done = make(
        place,
        "/* a comment, asmlinkage long sys_commented(int a); */\n"
        "asmlinkage long sys_new1(const char __user *path,\n\t\tunsigned\tflags, umode_t mode, loff_t pos,\n"
        "\t\tconst struct a __user *const __user *argv, unsigned long n);\n"
        "asmlinkage long sys_new2(void);\n"
        "asmlinkage long sys_stat(const char __user *filename, struct old __user *statbuf);\n"
        "asmlinkage long sys_socket(int, int, int);\n",
    )
    made = {}
    exec(done.stdout, made)
    assert made["PROTOTYPES"]["new1"] == "path:8 flags:4 mode:4 pos:8 argv:8 n:8"
    assert made["PROTOTYPES"]["new2"] == ""
    assert made["PROTOTYPES"]["socket"] == "family:4 type:4 protocol:4"
    assert not {"commented", "stat"} & set(made["PROTOTYPES"])


@pytest.mark.parametrize(
    "prototype, message",
    [
        ("sys_new(int, int fd);", "new: an argument without a name, to be written: 'int'\n"),
        ("sys_new(unsigned int);", "new: an argument without a name, to be written: 'unsigned int'\n"),
        ("sys_new(int fd, void __user *);", "new: an argument without a name, to be written: 'void __user *'\n"),
        ("sys_new(strange_t x);", "new: of what size? 'strange_t x'\n"),
        ("sys_new(int a); asmlinkage long sys_new(int b);", "new: declared twice, to be written\n"),
    ],
)
def test_the_program_guesses_nothing(place, prototype, message):
    done = make(place, f"asmlinkage long {prototype}\n")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)
