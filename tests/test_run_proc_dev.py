"""hako-run --proc and --dev: what they show, hide and forbid."""

import os
import stat

import pytest

TUNING = ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/proc/sys/net/ipv4/ip_forward")
LEAKING = """
acpi asound cmdline config.gz diskstats driver interrupts iomem ioports kallsyms kcore key-users keys kmsg kpagecgroup
kpagecount kpageflags latency_stats modules pagetypeinfo partitions pressure scsi sched_debug slabinfo swaps timer_list
timer_stats vmallocinfo zoneinfo
""".split()
WRITE = """
import os, sys
for path in sys.argv[1:]:
    try:
        fd = os.open(path, os.O_WRONLY)
        print("opened", path)
    except OSError as err:
        print(err.strerror)
"""


def test_proc_is_that_of_the_sandbox(who):
    done = who.inside("/bin/busybox", "ps", "-o", "pid,comm,args", options=["--proc"])
    lines = [line.split(None, 2) for line in done.stdout.splitlines()[1:]]
    assert [line[:2] for line in lines] == [["1", "hako-init"], ["2", "busybox"]]
    assert lines[0][2].strip("\0 ") == "hako-init"
    point = who.inside("/bin/busybox", "grep", " /proc proc ", "/proc/mounts", options=["--proc"]).stdout
    assert {"rw", "nosuid", "nodev", "noexec"} <= set(point.split()[3].split(","))


@pytest.mark.parametrize("options", [(), ("--user=0", "--group=0"), ("--cap-add=all",), ("--userns=always",)])
def test_the_kernel_cannot_be_tuned(who, options):
    done = who.python(WRITE, *TUNING, options=["--proc", *options])
    assert set(done.stdout.splitlines()) <= {"Read-only file system", "Permission denied"}
    assert len(done.stdout.splitlines()) == len(TUNING)
    if who.name == "root":
        assert "Permission denied" not in done.stdout
    if who.name == "root":
        assert who.run("/usr/bin/python3", "-c", WRITE, *TUNING).stdout.startswith("opened")


@pytest.mark.parametrize("options", [(), ("--user=0", "--group=0")])
def test_what_tells_of_the_host_is_covered(who, options):
    code = """for n in $0 $*; do
        if [ -d /proc/$n ]; then busybox find /proc/$n -mindepth 1 | busybox wc -l
        elif [ -e /proc/$n ]; then busybox wc -c < /proc/$n; fi
    done"""
    done = who.inside("/bin/sh", "-c", code, *LEAKING, options=["--proc", *options])
    present = [name for name in LEAKING if os.path.exists(f"/proc/{name}")]
    assert present
    assert (done.stdout.split(), done.stderr) == (["0"] * len(present), "")


def test_the_covers_cannot_be_taken_away(who, compiled):
    """Not by a second proc either, in namespaces where PROG has every capability."""
    probe = compiled(r"""
        #define _GNU_SOURCE
        #include <errno.h>
        #include <fcntl.h>
        #include <sched.h>
        #include <stdio.h>
        #include <string.h>
        #include <sys/mount.h>
        #include <sys/wait.h>
        #include <unistd.h>
        int main() {
            umount2("/proc/keys", MNT_DETACH);
            umount2("/proc/sys", MNT_DETACH);
            unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID);
            if (fork()) { wait(0); return 0; }
            umount2("/proc/keys", MNT_DETACH);
            umount2("/proc/sys", MNT_DETACH);
            puts(mount("proc", "/data", "proc", 0, 0) ? strerror(errno) : "mounted");
            puts(open("/proc/sys/kernel/core_pattern", O_WRONLY) < 0 ? "refused" : "opened");
            char buffer[9];
            printf("%d\n", (int)read(open("/proc/keys", O_RDONLY), buffer, 9));
        }
    """)
    options = [f"-m{probe}:/bin/probe:ro", "--proc", "--tmpfs=/data"]
    done = who.inside("/bin/probe", options=options)
    assert done.stdout == "Operation not permitted\nrefused\n0\n"
    control = who.inside("/bin/probe", options=[*options, "-m/proc:/proc"])
    assert control.stdout.startswith("Operation not permitted" if who.name == "root" else "mounted")


@pytest.mark.parametrize("options", [(), ("--user=0", "--group=0"), ("--user=65534",)])
def test_the_init_gives_nothing_away(who, options):
    """Not its links, memory, environment, descriptors; and what anybody may read is empty of the host."""
    code = """
import os, sys
for name in ("root", "cwd", "exe"):
    try:
        print(os.readlink(f"/proc/1/{name}"))
    except OSError as err:
        print(err.strerror)
for name in ("environ", "maps", "mem", "auxv", "io", "fd/0", "fd/3", "fd/4", "fd/5", "fd/6", "map_files", "fdinfo"):
    try:
        path = f"/proc/1/{name}"
        print(os.listdir(path) if name in ("map_files", "fdinfo") else open(path, "rb").read(99))
    except FileNotFoundError:
        pass
    except OSError as err:
        print(err.strerror)
print(open("/proc/1/cmdline").read().strip(chr(0)), open("/proc/1/comm").read())
"""
    done = who.python(code, options=["--proc", *options], env={**who.env, "SECRET": "hidden"})
    *denied, names = done.stdout.strip().splitlines()
    assert set(denied) == {"Permission denied"}
    assert len(denied) > 9
    assert names == "hako-init hako-init"


def test_the_init_cannot_be_traced_or_killed(who, compiled):
    probe = compiled(r"""
        #include <errno.h>
        #include <signal.h>
        #include <stdio.h>
        #include <string.h>
        #include <sys/ptrace.h>
        int main() {
            puts(ptrace(PTRACE_SEIZE, 1, 0, 0) ? strerror(errno) : "traced");
            for (int i = 1; i < 32; i++) kill(1, i);
            puts(ptrace(PTRACE_SEIZE, getppid(), 0, 0) ? strerror(errno) : "traced");
        }
    """)
    done = who.inside("/bin/probe", options=[f"-m{probe}:/bin/probe:ro", "--proc"])
    assert (done.returncode, done.stdout) == (0, "Operation not permitted\nOperation not permitted\n")


def test_as_pid_1_there_is_no_init(who):
    done = who.inside("/bin/busybox", "ps", "-o", "pid,comm", options=["--proc", "--as-pid-1"])
    assert done.stdout == "PID   COMMAND\n    1 busybox\n"


def test_dev(who):
    code = """
import os, stat
for name in sorted(os.listdir("/dev")):
    status = os.lstat("/dev/" + name)
    number = os.major(status.st_rdev), os.minor(status.st_rdev)
    what = os.readlink("/dev/" + name) if stat.S_ISLNK(status.st_mode) else number
    print(name, what)
"""
    done = who.python(code, options=["--dev", "--proc"])
    assert done.stdout.splitlines() == [
        "fd /proc/self/fd",
        "full (1, 7)",
        "null (1, 3)",
        "ptmx pts/ptmx",
        "pts (0, 0)",
        "random (1, 8)",
        "shm (0, 0)",
        "stderr /proc/self/fd/2",
        "stdin /proc/self/fd/0",
        "stdout /proc/self/fd/1",
        "tty (5, 0)",
        "urandom (1, 9)",
        "zero (1, 5)",
    ]


def test_the_devices_work(who):
    code = "busybox head -c 3 /dev/zero | busybox wc -c; echo x > /dev/null; echo x > /dev/full; busybox head -c 9 /dev/urandom | busybox wc -c; (echo y > /dev/stdout) | busybox cat; echo z > /dev/shm/z; busybox cat /dev/shm/z; echo n > /dev/new"  # noqa: E501
    done = who.inside("/bin/sh", "-c", code, options=["--dev", "--proc"])
    assert done.stdout == "3\n9\ny\nz\n"
    assert done.stderr == (
        "sh: write error: No space left on device\n/bin/sh: can't create /dev/new: Read-only file system\n"
    )


@pytest.mark.parametrize("options", [(), ("--user=1000", "--group=1000")])
def test_ptys_of_its_own(who, options):
    code = "import os, pty; m, s = pty.openpty(); os.write(m, b'x\\n'); print(os.ttyname(s), os.read(s, 9))"
    done = who.python(code, options=["--dev", "--proc", *options])
    assert (done.stdout, done.stderr) == ("/dev/pts/0 b'x\\n'\n", "")


def test_more_devices_can_be_mounted_into_it(who):
    source = "/dev/null"
    done = who.inside("/bin/sh", "-c", "echo x > /dev/more/null", options=["--dev", f"-m{source}:/dev/more/null:dev"])
    assert (done.returncode, done.stderr) == (0, "")


def test_a_tmpfs_in_the_place_of_dev_is_refused(who):
    done = who.inside("/bin/true", options=["--dev", "--tmpfs=/dev"])
    assert (done.returncode, done.stderr) == (125, "hako-run: --tmpfs: /dev is made by --dev\n")


def test_mount_points_of_proc_and_dev_must_be_there(who):
    for name in ("proc", "dev"):
        (who.box / name).rmdir()
        done = who.inside("/bin/busybox", "true", options=[f"--{name}"])
        hint = "nothing is made in TARGET: make it there first"
        assert done.stderr == f"hako-run: mount point /{name}: No such file or directory [{hint}]\n"


@pytest.mark.root
def test_a_false_device_is_refused(who):
    """An outer sandbox may have anything at /dev/null."""
    (who.box / "dev/null").touch()
    inner = who.box / "data/inner"
    for name in (".hako", "bin", "dev"):
        (inner / name).mkdir(parents=True)
    (inner / "bin/busybox").touch()
    inner_run = ["hako-run", "--dev", "-m/bin/busybox:/bin/busybox", "/data/inner", "/bin/busybox", "true"]
    done = who.inside(*inner_run, options=["--user=65534", "--proc"])
    assert (done.returncode, done.stderr) == (125, "hako-run: --dev: /dev/null here is not the device 1:3\n")
    assert stat.S_ISREG(os.stat(who.box / "dev/null").st_mode)
