"""landlock-exec: every right that it gives or takes, and the ways round it.

Where this kernel's Landlock lacks a right, that landlock-exec refuses is what is
tested, and what is left with --best-effort.
"""

import contextlib
import errno
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile

import pytest

from conftest import DEADLINE
from hako import kernel

vm = pytest.mark.vm
ABI = kernel.landlock_abi()
BEHIND = {"--ro", "--rw", "--rx", "--rwx", "--ldd", "--fs"}  # what restricts files
SINCE = [  # what is newer than the second version
    ("truncate", 3, BEHIND),
    ("bind_tcp", 4, {"--bind-tcp", "--connect-tcp", "--tcp"}),
    ("connect_tcp", 4, {"--bind-tcp", "--connect-tcp", "--tcp"}),
    ("ioctl_dev", 5, BEHIND),
    ("abstract-unix", 6, {"--scope=abstract-unix"}),
    ("signal", 6, {"--scope=signal"}),
]
PROBE = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
static char *path(char *name) {
    static char paths[9][4096];
    static int n;
    sprintf(paths[n], "%s/%s", getenv("DIR"), name);
    return paths[n++];
}
int act(char *what) {
    char *file = path("file"), *new = path("new");
    struct sockaddr_un address = {AF_UNIX};
    int fd, n;
#define IS(name) !strcmp(what, name)
    if (IS("read")) return open(file, O_RDONLY);
    if (IS("list")) return open(path("."), O_RDONLY | O_DIRECTORY);
    if (IS("write")) return open(file, O_WRONLY);
    if (IS("append")) return open(file, O_WRONLY | O_APPEND);
    if (IS("truncate")) return truncate(file, 0);
    if (IS("open-truncate")) return open(file, O_RDONLY | O_TRUNC);
    if (IS("ftruncate")) return (fd = open(file, O_RDWR)) < 0 ? fd : ftruncate(fd, 0);
    if (IS("create")) return open(new, O_CREAT | O_EXCL | O_WRONLY, 0600);
    if (IS("make-reg")) return mknod(new, S_IFREG | 0600, 0);
    if (IS("tmpfile")) return open(path("."), O_TMPFILE | O_RDWR, 0600);
    if (IS("make-dir")) return mkdir(new, 0700);
    if (IS("make-sym")) return symlink("file", new);
    if (IS("make-fifo")) return mkfifo(new, 0600);
    if (IS("make-char")) return mknod(new, S_IFCHR | 0600, makedev(1, 3));
    if (IS("make-whiteout")) return mknod(new, S_IFCHR | 0600, makedev(0, 0));
    if (IS("make-block")) return mknod(new, S_IFBLK | 0600, makedev(7, 0));
    if (IS("make-sock")) {
        strcpy(address.sun_path, new);
        return bind(socket(AF_UNIX, SOCK_STREAM, 0), (void *)&address, sizeof address);
    }
    if (IS("remove-file")) return unlink(file);
    if (IS("remove-dir")) return rmdir(path("empty"));
    if (IS("rename")) return rename(file, new);
    if (IS("rename-dir")) return rename(path("empty"), path("full/new"));
    if (IS("refer-rename")) return rename(file, path("full/new"));
    if (IS("refer-exchange")) return renameat2(-1, file, -1, path("full/file"), RENAME_EXCHANGE);
    if (IS("refer-link")) return link(file, path("full/new"));
    if (IS("execute")) return execl(path("program"), "program", NULL);
    if (IS("ioctl")) return (fd = open(getenv("DIR"), O_RDONLY | O_NOCTTY)) < 0 ? fd : ioctl(fd, TIOCGPTN, &n);
    errno = 255;
    return -1;
}
int main(int argc, char **argv) {
    int i, status;
    char *top = getenv("DIR");
    if (argc == 2) return act(argv[1]) < 0 ? errno : 0;
    for (i = 1; i < argc; i++) {  /* each in a directory and a process of its own */
        if (!fork()) {
            char dir[4096];
            sprintf(dir, "DIR=%s/%s", top, argv[i]);
            putenv(dir);
            _exit(act(argv[i]) < 0 ? errno : 0);
        }
        wait(&status);
        printf("%s %d\n", argv[i], WEXITSTATUS(status));
        fflush(stdout);
    }
}
"""
# What each option allows, by the actions of PROBE; all others it denies.
READS = {"read", "list"}
WRITES = {
    *("write", "append", "truncate", "open-truncate", "ftruncate", "create", "make-reg", "tmpfile", "make-dir"),
    *("make-sym", "make-fifo", "make-sock", "remove-file", "remove-dir", "rename", "rename-dir"),
    *("refer-rename", "refer-exchange", "refer-link", "ioctl"),
}
NEVER = {"make-char", "make-block"}
# The device 0:0, which nobody can open: a device to Linux 6.18, to Debian's 6.1.192 one more file that is made.
EITHER = {"make-whiteout"}
ALLOWED = {
    "ro": READS,
    "rx": {*READS, "execute"},
    "rw": READS | WRITES,
    "rwx": {*READS, *WRITES, "execute"},
    "elsewhere": set(),
}
# What only root may do, or a file system cannot: overlay knows no O_TMPFILE before Linux 6.3, and no such device.
LESS = {"make-block": errno.EPERM, "make-char": errno.EPERM, "tmpfile": errno.EOPNOTSUPP}
ACTIONS = sorted((READS | WRITES | NEVER | EITHER | {"execute"}) - {"ioctl"})


def allows(access, action):
    """Whether the option ACCESS allows ACTION, as far as this kernel can deny it."""
    too_old = ABI < 3 and (action == "truncate" or (action == "open-truncate" and access != "elsewhere"))
    return too_old or action in ALLOWED[access]


def lacks(options):
    """What OPTIONS take that this kernel lacks, as landlock-exec says it."""
    names = {option.partition("=")[0] for option in options} | set(options)
    if {"--rw=/", "--rwx=/"} & names:  # nothing that is newer is denied anywhere
        names -= BEHIND
    found = [(since, name) for name, since, takers in SINCE if since > ABI and names & takers]
    return ", ".join(f"{name} ({since})" for since, name in sorted(found))


def landlocked(who, options, *argv, **more):
    """Run ARGV behind landlock-exec with OPTIONS; where the kernel cannot, see it refused, then do what it can."""
    lack = lacks(options)
    if not lack:
        return who.run("landlock-exec", *options, *argv, **more)
    complaint = f"landlock-exec: landlock: Linux {os.uname().release} has version {ABI} of it, without {lack}"
    refused = who.run("landlock-exec", *options, *argv, **more)
    assert (refused.returncode, refused.stdout) == (125, "")
    assert refused.stderr == f"{complaint} [PROG can run without, with --best-effort; see hako-check]\n"
    done = who.run("landlock-exec", "--best-effort", *options, *argv, **more)
    first, _, done.stderr = done.stderr.partition("\n")
    assert first == f"{complaint}: PROG runs without"
    return done


@pytest.fixture
def probe(compiled):
    """The program that tries one action and exits with its errno."""
    return compiled(PROBE)


@pytest.fixture
def tree(who, compiled):
    """A function that makes a directory to act in, of WHO's own."""

    def make(name):
        path = who.box.parent / name
        for directory in ("", "empty", "full"):
            (path / directory).mkdir(parents=True)
        for file in ("file", "full/file"):
            (path / file).write_text("text")
        shutil.copy(compiled("int main() { return 0; }"), path / "program")
        for each in (path, *path.rglob("*")):
            os.chown(each, who.uid, -1)
        return path

    return make


@pytest.mark.parametrize("access", list(ALLOWED))
@pytest.mark.parametrize("action", ACTIONS)
def test_each_right(who, tree, probe, access, action):
    """With its control: the same program in another such directory, without a restriction."""
    control = who.run(probe, action, env={"DIR": str(tree("control"))}).returncode
    assert control == 0 or control == LESS.get(action)
    path = tree("tree")
    options = ["--fs=none", f"--rx={probe}", *([f"--{access}={path}"] if access != "elsewhere" else [])]
    done = landlocked(who, options, probe, action, env={**who.env, "DIR": str(path)})
    assert done.stderr == ""
    codes = {0} if allows(access, action) else {errno.EACCES}
    codes |= {control} - {0} | ({0} if action in EITHER and "w" in access else set())
    assert done.returncode in codes
    if done.returncode:
        assert (path / "file").read_text() == "text"
        assert not (path / "new").exists()


@vm
@pytest.mark.parametrize("access", list(ALLOWED))
def test_all_rights_at_once(who, tree, probe, access):
    """The same by one command, for a machine on which each takes a second."""
    for action in ACTIONS:
        tree(f"control/{action}")
        tree(f"tree/{action}")
    path = who.box.parent / "tree"
    env = {**who.env, "DIR": str(who.box.parent / "control")}
    control = dict(line.split() for line in who.run(probe, *ACTIONS, env=env).stdout.splitlines())
    assert {action: int(code) for action, code in control.items() if code != "0"}.items() <= LESS.items()
    options = ["--fs=none", f"--rx={probe}", *([f"--{access}={path}"] if access != "elsewhere" else [])]
    done = landlocked(who, options, probe, *ACTIONS, env={**who.env, "DIR": str(path)})
    assert (done.returncode, done.stderr) == (0, "")
    found = dict(line.split() for line in done.stdout.splitlines())
    for action in ACTIONS:
        codes = {"0"} if allows(access, action) else {str(errno.EACCES)}
        codes |= {control[action]} - {"0"} | ({"0"} if action in EITHER and "w" in access else set())
        assert found[action] in codes, action
        assert found[action] == "0" or not (path / action / "new").exists(), action
    assert list(found) == ACTIONS


@pytest.mark.parametrize("access", [pytest.param(name, marks=vm if name in ("ro", "rw") else ()) for name in ALLOWED])
def test_ioctl_of_a_device(who, probe, access):
    """A file as PATH; opening the device to read is allowed with every option."""
    env = {**who.env, "DIR": "/dev/ptmx"}
    assert who.run(probe, "ioctl", env=env).returncode == 0
    options = ["--fs=none", f"--rx={probe}", *([f"--{access}=/dev/ptmx"] if access != "elsewhere" else [])]
    done = landlocked(who, options, probe, "ioctl", env=env)
    allowed = access in ("rw", "rwx") or (ABI < 5 and access != "elsewhere")
    assert (done.returncode, done.stderr) == (0 if allowed else errno.EACCES, "")


@pytest.mark.parametrize(("access", "allowed"), [("ro", {"read"}), ("rw", {"read", "write", "append", "ftruncate"})])
def test_a_file_as_path(who, tree, probe, access, allowed):
    """The file alone: it cannot be removed, and its neighbours are out of reach."""
    path = tree("tree")
    for action in ("read", "write", "append", "ftruncate", "remove-file", "rename", "refer-link", "list", "execute"):
        options = [f"--{access}={path}/file", f"--rx={probe}"]
        done = landlocked(who, options, probe, action, env={**who.env, "DIR": str(path)})
        assert done.returncode == (0 if action in allowed else errno.EACCES), action


def test_execution_of_a_file_that_is_allowed(who, tree, probe):
    path = tree("tree")
    env = {**who.env, "DIR": str(path)}
    assert landlocked(who, [f"--rx={path}/program", f"--rx={probe}"], probe, "execute", env=env).returncode == 0
    assert landlocked(who, [f"--rw={path}/program", f"--rx={probe}"], probe, "execute", env=env).returncode == 13


@vm
def test_moving_to_where_more_is_allowed(who, tree, probe):
    """A file must not gain rights by it: the kernel says that it is another device."""
    path = tree("tree")
    options = [f"--rw={path}", f"--rwx={path}/full", f"--rx={probe}"]
    for action in ("refer-rename", "refer-exchange", "refer-link"):
        done = landlocked(who, options, probe, action, env={**who.env, "DIR": str(path)})
        assert done.returncode == errno.EXDEV, action


def test_more_beneath_adds_and_takes_nothing_away(who, tree, probe):
    path = tree("tree")
    for options in ([f"--rw={path}", f"--ro={path}/file"], [f"--ro={path}", f"--rw={path}/file"]):
        done = landlocked(who, [*options, f"--rx={probe}"], probe, "write", env={**who.env, "DIR": str(path)})
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("how", ["name", "link", "descriptor", "dots"])
def test_ways_round_a_name(who, tree, how):
    """A file is what it is, by whatever name it is reached."""
    path, other = tree("tree"), tree("other")
    (path / "link").symlink_to(other / "file")
    name = {
        "name": other / "file",
        "link": path / "link",
        "descriptor": "/proc/self/fd/9/file",
        "dots": path / "../other/file",
    }[how]
    argv = ["/bin/sh", "-c", f"exec 9<{other}; read line <{name}; echo $line"]
    everything = ["--rx=/usr", "--rx=/lib", "--rx=/lib64", "--rx=/bin", "--ro=/proc", f"--ro={path}"]
    everything = [option for option in everything if os.path.exists(option.partition("=")[2])]
    assert who.run(*argv).stdout == "text\n"
    assert landlocked(who, [*everything, f"--ro={other}"], *argv).stdout == "text\n"
    assert "Permission denied" in landlocked(who, everything, *argv).stderr


@vm
@pytest.mark.root
def test_ways_round_names_for_root(who):
    """By a handle of the file, in a copy of its mount, and in a mount of one's own that nobody sees."""
    code = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
    result = libc.syscall(*args)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result
def by_handle():
    handle, ident, place = (ctypes.c_uint32 * 34)(128), ctypes.c_int(), int(sys.argv[2])
    if libc.name_to_handle_at(place, b"file", handle, ctypes.byref(ident), 0) < 0:
        raise OSError(ctypes.get_errno(), "")
    fd = libc.open_by_handle_at(place, handle, os.O_RDONLY)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "")
def in_copy():
    os.open("file", os.O_RDONLY, dir_fd=call(428, -100, sys.argv[1].encode(), 1))
def in_new():
    fs = call(430, b"tmpfs", 0)
    call(431, fs, 6, None, None, 0)
    os.open("new", os.O_CREAT | os.O_RDWR, dir_fd=call(432, fs, 0, 0))
for way in (by_handle, in_copy, in_new):
    try:
        print(way() or "done")
    except OSError as err:
        print(err.errno)
"""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:  # not every file system has handles
        pathlib.Path(path, "file").touch()
        place = os.open(path, os.O_RDONLY)
        argv = ["/usr/bin/python3", "-I", "-c", code, path, str(place)]
        assert who.run(*argv, pass_fds=[place]).stdout.split() == ["done"] * 3
        options = [f"--rx={name}" for name in ("/usr", "/lib", "/lib64") if os.path.exists(name)]
        done = landlocked(who, options, *argv, pass_fds=[place])
        assert (done.stdout.split(), done.stderr) == ([str(errno.EACCES)] * 3, "")
        os.close(place)


def test_what_is_open_already_stays_open(who, tree):
    path = tree("tree")
    with open(path / "file") as file:
        done = landlocked(who, ["--ldd"], "/bin/cat", stdin=file)
    assert (done.stdout, done.stderr) == ("text\n"[:4], "")


@vm
def test_mounts_are_refused(who):
    """The control is a mount namespace without Landlock."""
    code = (
        "import ctypes, os; c = ctypes.CDLL(None, use_errno=True); c.unshare(0x10020000);"
        "print(c.mount(b'none', b'/tmp', b'tmpfs', 0, None), ctypes.get_errno())"
    )
    assert who.run("/usr/bin/python3", "-c", code).stdout.startswith("0 ")
    done = landlocked(who, ["--rwx=/"], "/usr/bin/python3", "-c", code)
    assert done.stdout == f"-1 {errno.EPERM}\n"


def test_processes_outside_are_not_to_be_traced(who):
    """Any domain does it."""
    sleeper = who.start("sleep", "300")
    code = f"import os; print(os.readlink('/proc/{sleeper.pid}/exe'))"
    try:
        assert who.run("/usr/bin/python3", "-c", code).returncode == 0
        done = landlocked(who, ["--rwx=/"], "/usr/bin/python3", "-c", code)
        assert "PermissionError: [Errno 13]" in done.stderr
    finally:
        sleeper.kill()
        sleeper.communicate()


def test_it_is_a_link(who):
    """The pid is the caller's, and so are descriptors, environment and dispositions; no_new_privs is set."""
    probe = ["sh", "-c", "env | sort | grep -v ^_; ls /proc/self/fd; umask; grep Sig[^Q] /proc/self/status"]
    with open("/dev/null") as extra:
        options = {"pass_fds": [extra.fileno()]}
        assert landlocked(who, ["--rwx=/"], *probe, **options).stdout == who.run(*probe, **options).stdout
    process = who.start("landlock-exec", "--rwx=/", "sh", "-c", "echo $$; grep NoNew /proc/self/status")
    assert process.communicate(timeout=DEADLINE)[0] == f"{process.pid}\nNoNewPrivs:\t1\n"


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["sh", "-c", "exit 42"], 42, ""),
        (["/etc/passwd"], 126, "landlock-exec: /etc/passwd: Permission denied [not executable: chmod +x]\n"),
        (["/"], 126, "landlock-exec: /: Permission denied [a directory]\n"),
        (["nosuch"], 127, "landlock-exec: nosuch: No such file or directory\n"),
        (["/no/such"], 127, "landlock-exec: /no/such: No such file or directory\n"),
    ],
)
@pytest.mark.parametrize("ldd", [False, True])
def test_exit_status(who, argv, status, message, ldd):
    done = landlocked(who, ["--rwx=/", *(["--ldd"] if ldd else [])], *argv)
    assert (done.returncode, done.stderr) == (status, message)


@pytest.mark.parametrize("options", [["--fs=none"], ["--ro=/"], ["--rw=/"], ["--rx=/bin/true"]])
def test_prog_that_is_not_allowed_says_why(who, options):
    """The errno misleads: the file may be executed, as far as its mode goes."""
    done = landlocked(who, options, "/bin/true")
    hint = "Landlock: PROG, its interpreter and its libraries must be allowed, see --ldd"
    if options == ["--rx=/bin/true"] and done.returncode == 127:
        assert "libc" in done.stderr  # a static interpreter, or none
        return
    assert (done.returncode, done.stderr) == (126, f"landlock-exec: /bin/true: Permission denied [{hint}]\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ro=/no/such"], "open /no/such: No such file or directory"),
        (["--rw="], "open '': No such file or directory"),
        (["--ro=/etc/passwd/x"], "open /etc/passwd/x: Not a directory"),
        (["--rx=\n"], "open '\\n': No such file or directory"),
        (["--fs=all"], "--fs: not none: 'all'"),
        (["--fs="], "--fs: not none: ''"),
        (["--tcp=yes"], "--tcp: not none: 'yes'"),
        (["--scope=all"], "--scope: not abstract-unix or signal: 'all'"),
        (["--scope="], "--scope: not abstract-unix or signal: ''"),
        (["--connect-tcp=0"], "--connect-tcp: nothing listens at port 0: '0'"),
        ([], "nothing is restricted [say what is allowed, or --fs=none, --tcp=none, --scope]"),
        (["--best-effort"], "nothing is restricted [say what is allowed, or --fs=none, --tcp=none, --scope]"),
        (["--fs=none", "--fs=none"], "--fs: given twice"),
    ],
)
def test_bad_values_run_nothing(who, options, message):
    mark = who.box / "data/ran"
    best = ["--best-effort"] if lacks(options) else []
    done = who.run("landlock-exec", *best, *options, "touch", mark)
    assert (done.returncode, mark.exists()) == (125, False)
    assert done.stderr.splitlines()[-1] == f"landlock-exec: {message}"
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--bind-tcp", "--connect-tcp"])
@pytest.mark.parametrize("value", ["", "-1", "+1", " 1", "0x10", "80,81", "http", "\u0661"])
def test_ports_that_are_none(who, option, value):
    done = who.run("landlock-exec", f"{option}={value}", "true")
    assert (done.returncode, done.stderr) == (125, f"landlock-exec: {option}: not a whole number: {value!r}\n")


@pytest.mark.parametrize("option", ["--bind-tcp", "--connect-tcp"])
@pytest.mark.parametrize("value", ["65536", "1" * 30, "9" * 5000])
def test_ports_that_are_too_large(who, option, value):
    done = who.run("landlock-exec", f"{option}={value}", "true")
    assert (done.returncode, done.stderr) == (125, f"landlock-exec: {option}: more than 65535: {value!r}\n")


def test_a_pipe_is_no_path(who):
    done = who.run("landlock-exec", "--best-effort", "--ro=/dev/fd/0", "true", input="")
    hint = "it is in no file system that has names"
    message = f"landlock-exec: landlock_add_rule /dev/fd/0: File descriptor in bad state [{hint}]"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (125, message)


def test_names_of_any_bytes(who, tree):
    odd = os.fsdecode(os.fsencode(tree("tree")) + b"/a b\n\xff\\")
    os.mkdir(odd)
    os.chown(odd, who.uid, -1)
    done = landlocked(who, ["--ldd", f"--rw={odd}"], "/bin/touch", f"{odd}/new")
    assert (done.returncode, os.listdir(odd)) == (0, ["new"])


@vm
def test_rulesets_stack(who, tree, probe):
    """Neither of two gives back what the other takes."""
    path = tree("tree")
    env = {**who.env, "DIR": str(path)}
    tight, wide = [f"--ro={path}", f"--rx={probe}"], ["--rwx=/"]
    best = ["--best-effort"] if lacks(tight) else []
    for first, second in ((tight, wide), (wide, tight)):
        for action, status in (("read", 0), ("write", errno.EACCES)):
            done = who.run("landlock-exec", *best, *first, "landlock-exec", *best, *second, probe, action, env=env)
            assert done.returncode == status, (first, action)


def test_no_more_than_sixteen_rulesets(who):
    link = ["landlock-exec", "--rwx=/"]
    assert who.run(*link * 16, "echo", "held").stdout == "held\n"
    done = who.run(*link * 17, "echo", "held")
    message = "landlock-exec: landlock_restrict_self: Argument list too long [a process can be under 16 rulesets]\n"
    assert (done.returncode, done.stdout, done.stderr) == (125, "", message)


@vm
def test_what_is_allowed_everywhere_takes_no_newer_kernel(who, tree, probe):
    """So all but execution can be left alone from the second version on."""
    path = tree("tree")
    argv = ["landlock-exec", "--rw=/", f"--rx={probe}", probe]
    assert who.run(*argv, "truncate", env={**who.env, "DIR": str(path)}).returncode == 0
    assert who.run(*argv, "execute", env={**who.env, "DIR": str(path)}).returncode == errno.EACCES


# TCP

DIAL = """
import ctypes, errno, socket, struct, sys
MPTCP, FASTOPEN = 262, 0x20000000
libc = ctypes.CDLL(None, use_errno=True)
def tcp(protocol=0, family=socket.AF_INET):
    return socket.socket(family, socket.SOCK_STREAM, protocol)
def dial(s, port, host="127.0.0.1"):
    s.settimeout(20)
    s.connect((host, port))
def sendmmsg(port):
    s, data = tcp(), ctypes.create_string_buffer(b"x")
    address = ctypes.create_string_buffer(struct.pack("=H", 2) + struct.pack(">H4B8x", port, 127, 0, 0, 1))
    iov = (ctypes.c_uint64 * 2)(ctypes.addressof(data), 1)
    header = (ctypes.c_uint64 * 8)(ctypes.addressof(address), 16, ctypes.addressof(iov), 1)
    if libc.sendmmsg(s.fileno(), header, 1, FASTOPEN) < 0:
        raise OSError(ctypes.get_errno(), "")
def io_uring():
    if libc.syscall(425, 1, bytearray(120) and (ctypes.c_char * 120)()) < 0:
        raise OSError(ctypes.get_errno(), "")
ACTS = {
    "connect": lambda port: dial(tcp(), port),
    "connect6": lambda port: dial(tcp(family=socket.AF_INET6), port, "::ffff:127.0.0.1"),
    "bind": lambda port: tcp().bind(("127.0.0.1", port)),
    "bind6": lambda port: tcp(family=socket.AF_INET6).bind(("::1", port)),
    "listen": lambda port: tcp().listen(1),
    "mptcp": lambda port: dial(tcp(MPTCP), port),
    "mptcp-bind": lambda port: tcp(MPTCP).bind(("127.0.0.1", 0)),
    "fastopen": lambda port: tcp().sendto(b"x", FASTOPEN, ("127.0.0.1", port)),
    "fastopen-sendmsg": lambda port: tcp().sendmsg([b"x"], [], FASTOPEN, ("127.0.0.1", port)),
    "fastopen-sendmmsg": sendmmsg,
    "fastopen-option": lambda port: (s := tcp(), s.setsockopt(6, 30, 1), dial(s, port), s.send(b"x")),
    "io_uring": lambda port: io_uring(),
    "udp": lambda port: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", ("127.0.0.1", 9)),
    "unix": lambda port: socket.socketpair(),
}
for word in sys.argv[1:]:
    act, _, port = word.partition(":")
    try:
        ACTS[act](int(port or 0))
        print(act, "ok")
    except OSError as err:
        print(act, errno.errorcode[err.errno])
"""


@contextlib.contextmanager
def listeners(count):
    """The ports of COUNT sockets that listen, by TCP Fast Open too, on the loopback."""
    sockets = [socket.create_server(("127.0.0.1", 0), backlog=50) for _ in range(count)]
    for each in sockets:
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
    try:
        yield [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def free_ports(count):
    """COUNT ports at which nobody listens."""
    with listeners(count) as ports:
        return ports


def dial(who, options, *words):
    """What DIAL says to WORDS behind landlock-exec with OPTIONS, or without it if they are None."""
    argv = ["/usr/bin/python3", "-I", "-c", DIAL, *words]
    done = who.run(*argv) if options is None else landlocked(who, options, *argv)
    assert (done.returncode, done.stderr) == (0, "")
    return dict(line.split() for line in done.stdout.splitlines())


def denied(answers):
    """ANSWERS by DIAL; on a kernel that cannot restrict TCP, and was seen to say so, what it leaves open."""
    return answers if ABI >= 4 else dict.fromkeys(answers, "ok")


@vm
def test_ports_to_connect_to(who):
    with listeners(2) as (one, other):
        words = [f"connect:{one}", f"connect6:{one}", "bind:0", "bind6:0"]
        assert set(dial(who, None, *words).values()) == {"ok"}
        answers = dial(who, [f"--connect-tcp={one}"], *words)
        assert answers == denied({"connect": "ok", "connect6": "ok", "bind": "EACCES", "bind6": "EACCES"})
        words = [f"connect:{other}", f"connect6:{other}"]
        assert set(dial(who, None, *words).values()) == {"ok"}
        answers = dial(who, [f"--connect-tcp={one}"], *words)
        assert answers == denied({"connect": "EACCES", "connect6": "EACCES"})
        answers = dial(who, [f"--connect-tcp={one}", f"--connect-tcp={other}"], *words)
        assert set(answers.values()) == {"ok"}


def test_ports_to_bind(who):
    one, other = free_ports(2)
    with listeners(1) as (port,):
        words = [f"bind:{one}", f"bind6:{one}", f"connect:{port}"]
        assert set(dial(who, None, *words).values()) == {"ok"}
        answers = dial(who, [f"--bind-tcp={one}"], *words)
        assert answers == denied({"bind": "ok", "bind6": "ok", "connect": "EACCES"})
        answers = dial(who, [f"--bind-tcp={one}"], f"bind:{other}", "bind6:0")
        assert answers == denied({"bind": "EACCES", "bind6": "EACCES"})


def test_port_0_is_one_that_the_kernel_chooses(who):
    (port,) = free_ports(1)
    assert dial(who, ["--bind-tcp=0"], "bind:0", f"bind6:{port}") == denied({"bind": "ok", "bind6": "EACCES"})


@vm
def test_no_tcp_at_all(who):
    """No socket of it can be made, so none can listen without bind either; what is not TCP goes on."""
    with listeners(1) as (port,):
        words = [f"connect:{port}", "bind:0", "listen", "udp", "unix"]
        assert set(dial(who, None, *words).values()) == {"ok"}
        expected = {"connect": "EACCES", "bind": "EACCES", "listen": "EACCES", "udp": "ok", "unix": "ok"}
        assert dial(who, ["--tcp=none"], *words) == denied(expected)


@pytest.mark.parametrize("options", [["--tcp=none"], pytest.param(["--connect-tcp=9"], marks=vm), ["--bind-tcp=0"]])
def test_ways_round_tcp(who, options):
    """What speaks TCP without bind or connect of a TCP socket; Landlock alone lets all of it through."""
    fails = {
        "mptcp": "EPROTONOSUPPORT",
        "mptcp-bind": "EPROTONOSUPPORT",
        "fastopen": "ENOTSUP",
        "fastopen-sendmsg": "ENOTSUP",
        "fastopen-sendmmsg": "ENOTSUP",
        "fastopen-option": "EACCES",
        "io_uring": "ENOSYS",
    }
    if options == ["--tcp=none"]:
        fails |= {act: "EACCES" for act in fails if act.startswith("fastopen")}
    with listeners(1) as (port,):
        words = [f"{act}:{port}" for act in fails]
        control = dial(who, None, *words)
        answers = dial(who, options, *words)
    with open("/proc/net/protocols") as protocols:
        lacking = set() if "\nMPTCP " in protocols.read() else {"mptcp", "mptcp-bind"}
    with contextlib.suppress(FileNotFoundError), open("/proc/sys/kernel/io_uring_disabled") as file:
        lacking |= {"io_uring"} if file.read() != "0\n" else set()
    assert {act for act in control if control[act] != "ok"} <= lacking
    assert answers == (fails if ABI >= 4 else control)


def test_ways_round_tcp_by_32_bit_calls(who, place):
    """The kernel agrees with the numbers: socket(AF_INET, SOCK_STREAM, IPPROTO_MPTCP) and socketcall by int 0x80."""
    if os.uname().machine != "x86_64":
        return
    source = place / "probe.c"
    source.write_text(r"""
        int call(int nr, int a, int b, int c) {
            int r;
            __asm__ volatile("int $0x80" : "=a"(r) : "a"(nr), "b"(a), "c"(b), "d"(c) : "memory");
            return r < 0 ? -r : 0;
        }
        int main(int argc, char **argv) { return argc > 1 ? call(102, 0, 0, 0) : call(359, 2, 1, 262); }
    """)
    subprocess.run(["cc", "-static", "-no-pie", "-o", place / "probe", source], check=True)
    control = [who.run(place / "probe", *argv).returncode for argv in ((), ("x",))]
    assert control == [0, errno.EINVAL]
    found = [landlocked(who, ["--connect-tcp=9"], place / "probe", *argv).returncode for argv in ((), ("x",))]
    assert found == ([errno.EPROTONOSUPPORT, errno.ENOSYS] if ABI >= 4 else control)


def test_without_tcp_options_tcp_is_free(who):
    with listeners(1) as (port,):
        answers = dial(who, ["--rwx=/"], f"connect:{port}", f"mptcp:{port}", "bind:0", f"fastopen:{port}")
    assert set(answers.values()) <= {"ok", "EPROTONOSUPPORT"}
    done = landlocked(who, ["--rwx=/"], "grep", "Seccomp:", "/proc/self/status")
    assert done.stdout == "Seccomp:\t0\n"


# Scopes

ABSTRACT = """
import socket, sys, errno
inside = socket.socket(socket.AF_UNIX); inside.bind("\\0inside" + sys.argv[1]); inside.listen(1)
for name in ("inside" + sys.argv[1], sys.argv[1]):
    try:
        socket.socket(socket.AF_UNIX).connect("\\0" + name)
        print("ok")
    except OSError as err:
        print(errno.errorcode[err.errno])
try:
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", "\\0" + sys.argv[1] + "d")
    print("ok")
except OSError as err:
    print(errno.errorcode[err.errno])
"""
SIGNAL = """
import errno, os, signal, sys, time
child = os.fork()
if child == 0:
    time.sleep(300)
for pid in (child, int(sys.argv[1]), int(sys.argv[1])):
    try:
        os.kill(pid, signal.SIGCONT if pid != child else signal.SIGKILL)
        print("ok")
    except OSError as err:
        print(errno.errorcode[err.errno])
os.waitpid(child, 0)
"""


@pytest.mark.parametrize(
    ("options", "answers"),
    [
        (["--scope=abstract-unix"], ["ok", "EPERM", "EPERM"]),
        pytest.param(["--scope=signal", "--scope=abstract-unix"], ["ok", "EPERM", "EPERM"], marks=vm),
        (["--scope=signal"], ["ok", "ok", "ok"]),
    ],
)
def test_abstract_sockets(who, options, answers):
    name = f"hako-test-{os.getpid()}-{who.name}"
    with socket.socket(socket.AF_UNIX) as stream, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        stream.bind(f"\0{name}")
        stream.listen(10)
        datagrams.bind(f"\0{name}d")
        argv = ["/usr/bin/python3", "-I", "-c", ABSTRACT, name]
        assert who.run(*argv).stdout.split() == ["ok"] * 3
        assert landlocked(who, options, *argv).stdout.split() == (answers if ABI >= 6 else ["ok"] * 3)


@pytest.mark.parametrize(
    ("options", "answers"),
    [
        pytest.param(["--scope=signal"], ["ok", "EPERM", "EPERM"], marks=vm),
        (["--scope=abstract-unix"], ["ok", "ok", "ok"]),
    ],
)
def test_signals(who, options, answers):
    outside = who.start("sleep", "300")
    try:
        argv = ["/usr/bin/python3", "-I", "-c", SIGNAL, str(outside.pid)]
        assert who.run(*argv).stdout.split() == ["ok"] * 3
        assert landlocked(who, options, *argv).stdout.split() == (answers if ABI >= 6 else ["ok"] * 3)
    finally:
        outside.kill()
        outside.communicate()


# In chains

HINT = "under Landlock, of landlock-exec or of a sandbox of uid 0, nothing can be mounted; see hako-check"


@vm
def test_behind_hako_run(who):
    """PATH is a name inside."""
    best = ["--best-effort"] if lacks(["--ro"]) else []
    argv = ["landlock-exec", *best, "--ro=/data", "--rx=/bin", "/bin/sh", "-c"]
    (who.box / "data/file").write_text("text\n")
    (who.box / "etc/file").write_text("text\n")
    assert who.inside("/bin/sh", "-c", "busybox cat /etc/file").stdout == "text\n"
    done = who.inside(*argv, "busybox cat /data/file; busybox cat /etc/file; busybox touch /data/new", options=["-W"])
    assert done.stdout == "text\n"
    said = done.stderr.splitlines()[bool(best) :]
    assert said == ["cat: can't open '/etc/file': Permission denied", "touch: /data/new: Permission denied"]
    done = who.inside("landlock-exec", *best, "--ro=/no/such", "/bin/busybox", "true")
    message = "landlock-exec: open /no/such: No such file or directory"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (125, message)


@vm
def test_in_front_of_hako_run(who):
    """What is no domain of files goes well with it; with files, nothing can be mounted, and the line says so."""
    done = who.run("landlock-exec", "--rwx=/", *who.sandbox("/bin/busybox", "true"))
    message = f"hako-run: move_mount {who.box}: Operation not permitted [{HINT}]\n"
    assert (done.returncode, done.stderr) == (125, message)
    options = ["--tcp=none", "--scope=signal", "--scope=abstract-unix"]
    done = landlocked(who, options, *who.sandbox("/bin/busybox", "echo", "inside"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "inside\n", "")


def test_by_name_and_by_path(who):
    """The chain says the same if each command is executed."""
    tool = shutil.which("landlock-exec", path=who.env["PATH"])
    for argv in (["--ro=/no/such", "true"], ["--rwx=/", "nosuch"], ["--rwx=/", "sh", "-c", "exit 7"]):
        best = ["--best-effort"] if lacks(argv) else []
        found = [who.run("landlock-exec", "--rwx=/", name, *best, *argv) for name in ("landlock-exec", tool)]
        assert found[0].returncode == found[1].returncode
        assert found[0].stderr == found[1].stderr


def test_a_filter_behind_it(who, place):
    """seccomp-exec goes on as ever, and both hold."""
    (place / "rules").write_text("ERRNO(77) { uname } DEFAULT ALLOW")
    (place / "rules").chmod(0o644)
    code = """
import os
for act in (os.uname, lambda: open("/etc/passwd")):
    try:
        act()
    except OSError as err:
        print(err.errno)
"""
    rules = ["seccomp-exec", place / "rules", "/usr/bin/python3", "-I", "-c", code]
    options = [f"--rx={path}" for path in ("/usr", "/lib", "/lib64", "/bin") if os.path.exists(path)]
    done = landlocked(who, options, *rules)
    assert (done.stdout, done.stderr) == ("77\n13\n", "")


def test_the_last_link_alone_gives_the_hint(who):
    """A link behind it would not, if it were executed."""
    done = landlocked(who, ["--ro=/"], "rlimit-exec", "--core=0", "/bin/true")
    assert (done.returncode, done.stderr) == (126, "rlimit-exec: /bin/true: Permission denied\n")


def test_the_first_error_in_a_chain_leaves_nothing_restricted(who):
    done = who.run("landlock-exec", "--rwx=/", "rlimit-exec", "--cpu=x", "true")
    assert (done.returncode, done.stderr) == (125, "rlimit-exec: --cpu: not a whole number: 'x'\n")


def test_on_a_kernel_without_landlock(who, place):
    """As an outer filter makes it look."""
    (place / "rules").write_text("ERRNO(38) { landlock_create_ruleset } DEFAULT ALLOW")
    (place / "rules").chmod(0o644)
    tool = shutil.which("landlock-exec", path=who.env["PATH"])
    argv = ["seccomp-exec", place / "rules", tool, "--ro=/"]
    complaint = f"landlock-exec: landlock: Linux {os.uname().release} offers none here"
    done = who.run(*argv, "true")
    message = f"{complaint} [PROG can run without, with --best-effort; see hako-check]\n"
    assert (done.returncode, done.stderr) == (125, message)
    done = who.run(*argv, "--best-effort", "sh", "-c", "grep NoNew /proc/self/status")
    assert (done.stdout, done.stderr) == ("NoNewPrivs:\t1\n", f"{complaint}: PROG runs without\n")
