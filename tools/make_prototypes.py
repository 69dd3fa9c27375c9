"""Write hako/prototypes.py: the arguments of the system calls, their names and sizes.

Usage: python3 tools/make_prototypes.py TREE > hako/prototypes.py

TREE holds include/linux/syscalls.h: kernel sources, or the headers as Debian packs them:

  apt-get download linux-headers-6.12.117+deb12-common    (apt-cache search linux-headers common)
  dpkg-deb -x linux-headers-*.deb headers
  python3 tools/make_prototypes.py headers/usr/src/linux-headers-*-common > hako/prototypes.py

That header gives every type, but not always the name that the kernel shows in its
traces, which is the one in SYSCALL_DEFINE: where they differ, where a prototype has
no names or two forms, where the call is younger or older than the header, it is
WRITTEN here, as in Linux 6.18. What it should be, a kernel with CONFIG_FTRACE_SYSCALLS
says in /sys/kernel/tracing/events/syscalls/sys_enter_NAME/format.

Sizes are those of a 64-bit kernel. What is less than 4 bytes is passed, and counts, as 4.
Whatever is not understood ends the program: nothing is guessed.
"""

import pathlib
import re
import sys

HEAD = '''"""The arguments of system calls: what each is called and how wide it is. Made by tools/make_prototypes.py.

Names are those of Linux 6.18 in SYSCALL_DEFINE, which ftrace shows; sizes are in bytes, on a 64-bit kernel.
"""

ALIASES = {  # the usual name: the kernel's
'''
MIDDLE = """}
BY_ARCH = {  # what is not everywhere as on x86_64
    ("aarch64", "clone"): "clone_flags:8 newsp:8 parent_tidptr:8 tls:8 child_tidptr:8",  # CONFIG_CLONE_BACKWARDS
}
PROTOTYPES = {
"""
TAIL = '''}


def arguments(name, arch="x86_64"):
    """The arguments of the system call NAME on ARCH, x86_64 or aarch64: a list of (name, bytes), 4 or 8; else None.

    NAME is the kernel's or the usual one, newstat or stat. See syscall(2).
    """
    kernels = ALIASES.get(name, name)
    text = BY_ARCH.get((arch, kernels), PROTOTYPES.get(kernels))
    if text is None:
        return None
    pairs = [word.split(":") for word in text.split()]
    return [(argument, int(size)) for argument, size in pairs]
'''

ALIASES = {
    "_sysctl": "sysctl",
    "fstat": "newfstat",
    "lstat": "newlstat",
    "sendfile": "sendfile64",
    "stat": "newstat",
    "umount2": "umount",
    "uname": "newuname",
}

FOUR = set(
    "int unsigned u32 s32 __u32 __s32 uint32_t pid_t uid_t gid_t mode_t umode_t qid_t key_t key_serial_t "
    "clockid_t timer_t mqd_t rwf_t".split()
) | {"unsigned int", "enum landlock_rule_type"}
EIGHT = set(
    "long size_t loff_t off_t u64 __u64 aio_context_t "
    "cap_user_header_t cap_user_data_t".split()  # these two are pointers
) | {"unsigned long"}

# Prototypes of what no 64-bit kernel offers by that name: 32-bit and 16-bit forms, other machines', old structures.
# The header's stat, fstat, lstat, uname and sendfile are old forms too: ALIASES leads to the new ones.
OTHERS = re.compile(
    "|".join(
        (
            ".*(32|16)",
            "f?(stat|truncate|statfs|cntl)64|lstat64|fstatat64|llseek|sync_file_range2|mmap_pgoff",
            "old_.*|oldumount|olduname|[fl]?stat|uname|sendfile|gethostname|nice|stime|waitpid",
            "sig(action|nal|pending|procmask|suspend)|sgetmask|ssetmask",
            "ipc|socketcall|recv|send|pciconfig_.*|spu_.*|ni_.*",
        )
    )
)

# Each argument with its size: the name of a call, then NAME:BYTES ...
WRITTEN = """
accept fd:4 upeer_sockaddr:8 upeer_addrlen:8
accept4 fd:4 upeer_sockaddr:8 upeer_addrlen:8 flags:4
add_key _type:8 _description:8 _payload:8 plen:8 ringid:4
arch_prctl option:4 arg2:8
bind fd:4 umyaddr:8 addrlen:4
bpf cmd:4 uattr:8 size:4
clock_adjtime which_clock:4 utx:8
clone clone_flags:8 newsp:8 parent_tidptr:8 child_tidptr:8 tls:8
connect fd:4 uservaddr:8 addrlen:4
execveat fd:4 filename:8 argv:8 envp:8 flags:4
fanotify_mark fanotify_fd:4 flags:4 mask:8 dfd:4 pathname:8
fsconfig fd:4 cmd:4 _key:8 _value:8 aux:4
fsmount fs_fd:4 flags:4 attr_flags:4
fsopen _fs_name:8 flags:4
getcpu cpup:8 nodep:8 unused:8
getpeername fd:4 usockaddr:8 usockaddr_len:8
getrandom ubuf:8 len:8 flags:4
getresgid rgidp:8 egidp:8 sgidp:8
getresuid ruidp:8 euidp:8 suidp:8
getsockname fd:4 usockaddr:8 usockaddr_len:8
getxattr pathname:8 name:8 value:8 size:8
inotify_add_watch fd:4 pathname:8 mask:4
io_pgetevents ctx_id:8 min_nr:8 nr:8 events:8 timeout:8 usig:8
io_setup nr_events:4 ctxp:8
io_submit ctx_id:8 nr:8 iocbpp:8
io_uring_register fd:4 opcode:4 arg:8 nr_args:4
io_uring_setup entries:4 params:8
ioperm from:8 num:8 turn_on:4
iopl level:4
keyctl option:4 arg2:8 arg3:8 arg4:8 arg5:8
lgetxattr pathname:8 name:8 value:8 size:8
listen fd:4 backlog:4
listxattr pathname:8 list:8 size:8
llistxattr pathname:8 list:8 size:8
lremovexattr pathname:8 name:8
lsetxattr pathname:8 name:8 value:8 size:8 flags:4
madvise start:8 len_in:8 behavior:4
memfd_create uname:8 flags:4
migrate_pages pid:4 maxnode:8 old_nodes:8 new_nodes:8
mmap addr:8 len:8 prot:8 flags:8 fd:8 off:8
modify_ldt func:4 ptr:8 bytecount:8
move_mount from_dfd:4 from_pathname:8 to_dfd:4 to_pathname:8 flags:4
mq_getsetattr mqdes:4 u_mqstat:8 u_omqstat:8
mq_notify mqdes:4 u_notification:8
mq_open u_name:8 oflag:4 mode:4 u_attr:8
mq_timedreceive mqdes:4 u_msg_ptr:8 msg_len:8 u_msg_prio:8 u_abs_timeout:8
mq_timedsend mqdes:4 u_msg_ptr:8 msg_len:8 msg_prio:4 u_abs_timeout:8
mq_unlink u_name:8
open_tree dfd:4 filename:8 flags:4
openat2 dfd:4 filename:8 how:8 usize:8
poll ufds:8 nfds:4 timeout_msecs:4
ppoll ufds:8 nfds:4 tsp:8 sigmask:8 sigsetsize:8
pselect6 n:4 inp:8 outp:8 exp:8 tsp:8 sig:8
readlinkat dfd:4 pathname:8 buf:8 bufsiz:4
recvfrom fd:4 ubuf:8 size:8 flags:4 addr:8 addr_len:8
recvmmsg fd:4 mmsg:8 vlen:4 flags:4 timeout:8
removexattr pathname:8 name:8
rt_sigaction sig:4 act:8 oact:8 sigsetsize:8
rt_sigpending uset:8 sigsetsize:8
rt_sigprocmask how:4 nset:8 oset:8 sigsetsize:8
rt_sigreturn
sched_getattr pid:4 uattr:8 usize:4 flags:4
sched_setattr pid:4 uattr:8 flags:4
semop semid:4 tsops:8 nsops:4
semtimedop semid:4 tsops:8 nsops:4 timeout:8
sendmmsg fd:4 mmsg:8 vlen:4 flags:4
sendto fd:4 buff:8 len:8 flags:4 addr:8 addr_len:4
setns fd:4 flags:4
setxattr pathname:8 name:8 value:8 size:8 flags:4
shmget key:4 size:8 shmflg:4
shutdown fd:4 how:4
socket family:4 type:4 protocol:4
socketpair family:4 type:4 protocol:4 usockvec:8
statfs pathname:8 buf:8
statx dfd:4 filename:8 flags:4 mask:4 buffer:8
symlink oldname:8 newname:8
vmsplice fd:4 uiov:8 nr_segs:8 flags:4
wait4 upid:4 stat_addr:8 options:4 ru:8
waitid which:4 upid:4 infop:8 options:4 ru:8

cachestat fd:4 cstat_range:8 cstat:8 flags:4
fchmodat2 dfd:4 filename:8 mode:4 flags:4
file_getattr dfd:4 filename:8 ufattr:8 usize:8 at_flags:4
file_setattr dfd:4 filename:8 ufattr:8 usize:8 at_flags:4
futex_requeue waiters:8 flags:4 nr_wake:4 nr_requeue:4
futex_wait uaddr:8 val:8 mask:8 flags:4 timeout:8 clockid:4
futex_wake uaddr:8 mask:8 nr:4 flags:4
getxattrat dfd:4 pathname:8 at_flags:4 name:8 uargs:8 usize:8
listmount req:8 mnt_ids:8 nr_mnt_ids:8 flags:4
listxattrat dfd:4 pathname:8 at_flags:4 list:8 size:8
lsm_get_self_attr attr:4 ctx:8 size:8 flags:4
lsm_list_modules ids:8 size:8 flags:4
lsm_set_self_attr attr:4 ctx:8 size:4 flags:4
map_shadow_stack addr:8 size:8 flags:4
mseal start:8 len:8 flags:8
open_tree_attr dfd:4 filename:8 flags:4 uattr:8 usize:8
removexattrat dfd:4 pathname:8 at_flags:4 name:8
setxattrat dfd:4 pathname:8 at_flags:4 name:8 uargs:8 usize:8
statmount req:8 buf:8 bufsize:8 flags:4
uprobe
uretprobe

create_module name:8 size:8
get_kernel_syms table:8
get_thread_area u_info:8
lookup_dcookie cookie64:8 buf:8 len:8
nfsservctl cmd:4 argp:8 resp:8
query_module name:8 which:4 buf:8 bufsize:8 ret:8
set_thread_area u_info:8
sysctl args:8
uselib library:8
"""


def written():
    """WRITTEN as {call: "NAME:BYTES ..."}."""
    calls = {}
    for line in filter(None, WRITTEN.split("\n")):
        name, _, arguments = line.partition(" ")
        if name in calls:
            sys.exit(f"{name}: written twice")
        calls[name] = arguments
    return calls


def prototypes(header):
    """What HEADER, a text, declares: pairs of a call's name and its arguments in C; one call perhaps more than once."""
    code = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    for name, arguments in re.findall(r"asmlinkage\s+long\s+sys_(\w+)\s*\(([^;]*)\)\s*;", code):
        if not OTHERS.fullmatch(name):
            yield name, arguments


def translated(name, arguments):
    """ARGUMENTS of the call NAME, in C, as "NAME:BYTES ..."."""
    if arguments.split() == ["void"]:
        return ""
    return " ".join(measured(name, argument) for argument in arguments.split(","))


def measured(name, argument):
    """ARGUMENT of the call NAME, in C, as "NAME:BYTES"."""
    words = [word for word in argument.replace("*", " * ").split() if word not in ("const", "__user")]
    kind, called = " ".join(words[:-1]), words[-1]
    if not called.isidentifier() or f"{kind} {called}" in FOUR | EIGHT or called in FOUR | EIGHT:
        sys.exit(f"{name}: an argument without a name, to be written: {argument.strip()!r}")
    if kind.endswith("*"):
        return f"{called}:8"
    if kind not in FOUR | EIGHT:
        sys.exit(f"{name}: of what size? {argument.strip()!r}")
    return f"{called}:{4 if kind in FOUR else 8}"


def table(header):
    """All calls: those that are written, else as in HEADER, a text."""
    calls = written()
    declared = {}
    for name, arguments in prototypes(header):
        if name in calls:
            continue
        if name in declared:
            sys.exit(f"{name}: declared twice, to be written")
        declared[name] = translated(name, arguments)
    return calls | declared


def source(header):
    """The text of hako/prototypes.py, from HEADER, a text."""
    aliases = [f'    "{usual}": "{kernels}",\n' for usual, kernels in sorted(ALIASES.items())]
    calls = [f'    "{name}": "{arguments}",\n' for name, arguments in sorted(table(header).items())]
    return "".join([HEAD, *aliases, MIDDLE, *calls, TAIL])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.stdout.write(source(pathlib.Path(sys.argv[1], "include/linux/syscalls.h").read_text()))
