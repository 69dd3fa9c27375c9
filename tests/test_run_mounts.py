"""hako-run: TARGET, mounts, tmpfs, setup; what may be written and what is never touched."""

import os
import shutil
import subprocess
import time

import pytest

from conftest import BUSYBOX

# What hints say.
BECOMES = "TARGET, the root to be, must be a directory"
FLAGS = "one of dev, noexec, norec, optional, ro, rw"
NETWORKS = "neither none, host nor pasta, so a file"

REMOUNT = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>
static void put(const char *p, const char *s) { int f = open(p, O_WRONLY); write(f, s, strlen(s)); close(f); }
/* In a user namespace of its own, with every capability there: remount ARGV[1] writable, write ARGV[2]. */
int main(int argc, char **argv) {
    char map[64];
    unsigned uid = getuid(), gid = getgid();
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) == 0) {
        put("/proc/self/setgroups", "deny");
        snprintf(map, sizeof map, "0 %u 1", uid), put("/proc/self/uid_map", map);
        snprintf(map, sizeof map, "0 %u 1", gid), put("/proc/self/gid_map", map);
    }
    mount(0, argv[1], 0, MS_REMOUNT | MS_BIND, 0);
    umount2(argv[1], MNT_DETACH);
    int fd = open(argv[2], O_WRONLY | O_CREAT, 0666);
    puts(fd >= 0 ? "written" : strerror(errno));
}
"""


def mounts(place):
    """The mounts of the host below PLACE; other tests mount elsewhere meanwhile."""
    with open("/proc/self/mountinfo") as file:
        return [line for line in file if str(place) in line]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/", "/ is the root directory, not a sandbox"),
        ("/etc/passwd", f"open /etc/passwd: Not a directory [{BECOMES}]"),
        ("/no/such", f"open /no/such: No such file or directory [{BECOMES}]"),
        ("", f"open '': No such file or directory [{BECOMES}]"),
        ("/usr", "/usr has no directory .hako [mkdir /usr/.hako, if it is meant to be a sandbox]"),
        ("/dev/null", f"open /dev/null: Not a directory [{BECOMES}]"),
    ],
)
def test_a_target_that_is_none(who, target, message):
    done = who.run("hako-run", target, "/bin/true")
    assert (done.returncode, done.stderr) == (125, f"hako-run: {message}\n")


def test_targets_made_to_confuse(who, place):
    os.mkfifo(place / "fifo")
    os.symlink("loop", place / "loop")
    (place / "linked").mkdir()
    os.symlink("/", place / "linked/.hako")
    (place / "filed").mkdir()
    (place / "filed/.hako").touch()
    for name, message in (
        ("fifo", f"open {{}}: Not a directory [{BECOMES}]"),
        ("loop", "open {}: Too many levels of symbolic links"),
        ("linked", "{0} has no directory .hako [mkdir {0}/.hako, if it is meant to be a sandbox]"),
        ("filed", "{0} has no directory .hako [mkdir {0}/.hako, if it is meant to be a sandbox]"),
    ):
        done = who.run("hako-run", str(place / name), "/bin/true")
        assert (done.returncode, done.stderr) == (125, f"hako-run: {message.format(place / name)}\n")


def test_the_root_is_the_target_and_nothing_else(who):
    done = who.inside("/bin/busybox", "ls", "-A", "/", "/.hako", "/..")
    here = "\n".join(sorted(os.listdir(who.box)))
    assert done.stdout == f"/:\n{here}\n\n/..:\n{here}\n\n/.hako:\n"


def test_the_root_is_read_only_unless_asked(who):
    done = who.inside("/bin/busybox", "touch", "/new")
    assert (done.returncode, done.stderr) == (1, "touch: /new: Read-only file system\n")
    assert who.inside("/bin/busybox", "touch", "/new", options=["-W"]).returncode == 0
    assert (who.box / "new").exists()


@pytest.mark.root
def test_read_only_holds_below(who):
    """Also for mounts below SRC and below TARGET."""
    for place in (who.box / "sub", who.box.parent / "src/deep"):
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        source = who.box.parent / "src"
        for path in ("/sub/x", "/data/x", "/data/deep/x"):
            done = who.inside("/bin/busybox", "touch", path, options=[f"-m{source}:/data:ro"])
            assert done.stderr == f"touch: {path}: Read-only file system\n"
        assert who.inside("/bin/busybox", "touch", "/data/deep/x", options=[f"-m{source}:/data"]).returncode == 0
        assert who.inside("/bin/busybox", "touch", "/data/x", options=[f"-m{source}:/data:norec"]).returncode == 0
        done = who.inside("/bin/busybox", "ls", "/data/deep", options=[f"-m{source}:/data:norec"])
        assert done.stdout == ""
    finally:
        for place in (who.box / "sub", who.box.parent / "src/deep"):
            subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("options", [(), ("--user=0", "--group=0"), ("--cap-add=dac_override",)])
def test_read_only_cannot_be_undone_from_inside(who, compiled, options):
    probe = compiled(REMOUNT)
    (who.box.parent / "src").mkdir(mode=0o777)
    (who.box.parent / "src").chmod(0o777)
    mount = f"-m{who.box.parent}/src:/data:ro"
    for goal, path in (("/data", "/data/x"), ("/", "/x")):
        common = [f"-m{probe}:/bin/probe:ro", "--proc", *options]
        done = who.inside("/bin/probe", goal, path, options=[*common, mount])
        assert done.stdout == "Read-only file system\n"
    control = who.inside("/bin/probe", "/data", "/data/x", options=[*common, mount.removesuffix(":ro"), "-W"])
    assert control.stdout == "written\n"


def test_flags_of_a_mount(who, place):
    source = place / "src"
    source.mkdir()
    (source / "prog").write_text("#!/bin/sh\necho ran\n")
    (source / "prog").chmod(0o755)
    assert who.inside("/data/prog", options=[f"-m{source}:/data"]).stdout == "ran\n"
    done = who.inside("/data/prog", options=[f"-m{source}:/data:ro,noexec"])
    assert (done.returncode, done.stderr) == (126, "hako-run: /data/prog: Permission denied [on a mount with noexec]\n")
    done = who.inside("/bin/busybox", "ls", "/data", options=["-m/no/such:/data:ro,optional"])
    assert (done.returncode, done.stdout) == (0, "")
    done = who.inside("/bin/busybox", "ls", "/data", options=["-m/no/such:/data:ro"])
    assert (done.returncode, done.stderr) == (125, "hako-run: open /no/such: No such file or directory\n")


@pytest.mark.root
def test_devices_and_setuid_files_are_inert(who, place, compiled):
    probe = compiled('#include <stdio.h>\nint main() { printf("%d\\n", geteuid()); }')
    source = place / "src"
    source.mkdir()
    os.mknod(source / "null", 0o666 | 0o020000, os.makedev(1, 3))
    os.mknod(who.box / "null", 0o666 | 0o020000, os.makedev(1, 3))
    for path in (source / "null", who.box / "null"):
        path.chmod(0o666)
    shutil.copy(probe, source / "id")
    (source / "id").chmod(0o4755)
    mount = f"-m{source}:/data"
    for path in ("/data/null", "/null"):
        done = who.inside("/bin/busybox", "cat", path, options=[mount])
        assert done.stderr == f"cat: can't open '{path}': Permission denied\n"
    assert who.inside("/bin/busybox", "cat", "/data/null", options=[f"{mount}:dev"]).returncode == 0
    assert who.inside("/data/id", options=[mount, "--user=65534"]).stdout == "65534\n"
    assert who.run("setpriv", "--reuid=65534", "--clear-groups", source / "id").stdout == "0\n"
    done = who.inside("/bin/busybox", "mknod", "/data/new", "c", "1", "3", options=[mount])
    assert (done.returncode, done.stderr) == (1, "mknod: /data/new: Operation not permitted\n")


@pytest.mark.parametrize("name", ["a b", "a\nb", "a\\b", "\u00e4\u4e16", b"\xff\xfe", "a:b", "-m", "a\\"])
def test_names_of_any_kind(who, place, name):
    name = os.fsencode(name)
    source, target = os.fsencode(place) + b"/" + name, os.fsencode(who.box) + name
    os.mkdir(source)
    with open(source + b"/there", "w"):
        pass
    os.rename(who.box, target)
    os.mkdir(target + b"/" + name)
    spelled = name.replace(b":", b"\\:")
    spelled = spelled + b"\\" if spelled.endswith(b"\\") else spelled
    mount = b"--mount=" + os.fsencode(place) + b"/" + spelled + b":/" + spelled + b":ro"
    argv = ["hako-run", f"--mount={BUSYBOX}:/bin/busybox:ro", mount, target, "/bin/busybox", "ls", b"/" + name]
    done = who.run(*argv)
    assert (done.returncode, done.stdout, done.stderr) == (0, "there\n", "")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--mount=", "--mount: not SRC:DST or SRC:DST:FLAGS: ''"),
        ("--mount=/usr", "--mount: not SRC:DST or SRC:DST:FLAGS: '/usr'"),
        ("--mount=/usr:/data:ro:x", "--mount: not SRC:DST or SRC:DST:FLAGS: '/usr:/data:ro:x'"),
        ("--mount=:/data", "--mount: SRC is empty: ':/data'"),
        ("--mount=/usr:", "--mount: DST is empty: '/usr:'"),
        ("--mount=/usr:/", "--mount: DST is the root itself, which is TARGET: '/usr:/'"),
        ("--mount=/usr://.//", "--mount: DST is the root itself, which is TARGET: '/usr://.//'"),
        ("--mount=/usr:/data:", f"--mount: unknown flag '': '/usr:/data:' [{FLAGS}]"),
        ("--mount=/usr:/data:RO", f"--mount: unknown flag 'RO': '/usr:/data:RO' [{FLAGS}]"),
        ("--mount=/usr:/data:ro,rw", "--mount: both ro and rw: '/usr:/data:ro,rw'"),
        ("--mount=/usr:/file", "mount point /file: it is a directory, and what it is to show is not"),
        ("--mount=/etc/passwd:/data", "mount point /data: it is a directory, and what it is to show is not"),
        (
            "--mount=/usr:/none",
            "mount point /none: No such file or directory [nothing is made in TARGET: make it there first]",
        ),
        ("--mount=/usr:/file/x", "mount point /file/x: Not a directory"),
        ("--tmpfs=", "--tmpfs: DST is empty: ''"),
        ("--tmpfs=/", "--tmpfs: DST is the root itself, which is TARGET: '/'"),
        ("--tmpfs=/tmp:1:2", "--tmpfs: not DST or DST:SIZE: '/tmp:1:2'"),
        ("--tmpfs=/tmp:0", "--tmpfs: a size of 0 would mean no limit: '/tmp:0'"),
        ("--tmpfs=/tmp:-1", "--tmpfs: not a size, a whole number or one with K, M or G: '-1'"),
        ("--network=", "--network: neither none, host nor a file: ''"),
        ("--network=/no/such", f"--network: open /no/such: No such file or directory [{NETWORKS}]"),
        ("--network=/etc/passwd", "--network: /etc/passwd is not a network namespace"),
        ("--network=/proc/self/ns/mnt", "--network: /proc/self/ns/mnt is not a network namespace"),
        ("--network=/dev/zero", "--network: /dev/zero is not a network namespace"),
        ("--hostname=", "--hostname: not of 1 to 64 bytes: ''"),
        ("--hostname=" + "x" * 65, "--hostname: not of 1 to 64 bytes: '" + "x" * 65 + "'"),
        ("--userns=sometimes", "--userns: not auto, always or never: 'sometimes'"),
        ("--setup=/no/such", "--setup: /no/such: not there, or not executable"),
        ("--setup=/etc/passwd", "--setup: /etc/passwd: not there, or not executable"),
        ("--setup=/bin/false", "--setup: /bin/false exited with status 1"),
        ("--chdir=/none", "chdir /none: No such file or directory"),
        ("--chdir=/file", "chdir /file: Not a directory"),
        ("--keep-fd=77", "--keep-fd: not open: '77'"),
        ("--keep-fd=-1", "--keep-fd: not a whole number: '-1'"),
        ("--keep-fd=2", "--keep-fd: 0, 1 and 2 are always kept: '2'"),
        ("--keep-fd=99999999999", "--keep-fd: not open: '99999999999'"),
        ("--env==x", "--env: not NAME or NAME=VALUE: '=x'"),
        ("--env=", "--env: not NAME or NAME=VALUE: ''"),
        ("--env=NOT_SET", "--env: not set here: 'NOT_SET'"),
        ("--cap-add=", "--cap-add: no such capability: ''"),
        ("--cap-add=nonsense", "--cap-add: no such capability: 'nonsense'"),
    ],
)
def test_a_bad_value_is_one_line_and_nothing_runs(who, option, message):
    before = mounts(who.box), sorted(os.listdir(who.box))
    done = who.inside("/bin/busybox", "echo", "ran", options=[option])
    if "/usr:/file" in option and "/x" not in option:
        message = "mount point /file: it is not a directory, and what it is to show is"
    assert (done.returncode, done.stdout, done.stderr) == (125, "", f"hako-run: {message}\n")
    assert (mounts(who.box), sorted(os.listdir(who.box))) == before


def test_a_mount_point_that_leads_to_the_root_is_refused(who):
    for dst in ("/..", "/data/..", "/bin/../../"):
        done = who.inside("/bin/busybox", "true", options=[f"-m/usr:{dst}"])
        message = f"hako-run: mount point {dst}: it is the root itself, which is TARGET\n"
        assert (done.returncode, done.stderr) == (125, message)


def test_the_callers_umask_is_for_prog_not_for_the_sandbox(who):
    code = "busybox umask; busybox ls /tmp/a/b/passwd /dev/null"
    options = ["--tmpfs=/tmp", "-m/etc:/tmp/a/b:ro", "--dev", "--user=65534"]
    done = who.inside("/bin/sh", "-c", code.replace("busybox umask", "umask"), options=options, umask=0o077)
    assert (done.stdout, done.stderr) == ("0077\n/dev/null\n/tmp/a/b/passwd\n", "")


def test_of_two_at_one_mount_point_the_later_wins_and_mount_wins_over_the_rest(who, place):
    for name in ("one", "two"):
        (place / name).mkdir()
        (place / name / name).touch()
    one, two = f"-m{place}/one:/data", f"-m{place}/two:/data/"
    assert who.inside("/bin/busybox", "ls", "/data", options=[one, two]).stdout == "two\n"
    assert who.inside("/bin/busybox", "ls", "/data", options=[two, one]).stdout == "one\n"
    assert who.inside("/bin/busybox", "ls", "/data", options=[one, "--tmpfs=/data"]).stdout == "one\n"
    done = who.inside("/bin/busybox", "ls", "/proc", options=[f"-m{place}/one:/proc", "--proc"])
    assert done.stdout == "one\n"


def test_mounts_are_made_parents_first(who, place):
    (place / "src/in").mkdir(parents=True)
    (place / "src/in/hidden").touch()
    options = ["--tmpfs=/data/in", f"-m{place}/src:/data"]
    assert (
        who.inside("/bin/busybox", "ls", "-A", "/data", "/data/in", options=options).stdout
        == "/data:\nin\n\n/data/in:\n"
    )


def test_tmpfs(who):
    options = ["--tmpfs=/tmp:64K", "--tmpfs=/data"]
    code = "busybox stat -c %a /tmp /data; echo hi > /data/x; busybox cat /data/x; busybox grep -w /tmp /proc/mounts"
    done = who.inside("/bin/sh", "-c", code, options=[*options, "--proc"])
    mode, _, hi, line = done.stdout.splitlines()
    assert (mode, hi) == ("1777", "hi")
    assert {"nosuid", "nodev", "size=64k"} <= set(line.split()[3].split(","))
    fill = "busybox dd if=/bin/busybox of=/tmp/x bs=4096 count=64 2>/dev/null || echo full"
    assert who.inside("/bin/sh", "-c", fill, options=["--tmpfs=/tmp:64K", "--dev"]).stdout == "full\n"
    assert who.inside("/bin/sh", "-c", fill, options=["--tmpfs=/tmp:1M", "--dev"]).stdout == ""
    assert os.listdir(who.box / "tmp") == []


def test_a_tmpfs_belongs_to_prog(who):
    options = ["--tmpfs=/data", "--user=1234", "--group=1234"]
    done = who.inside("/bin/busybox", "stat", "-c", "%u %g %a", "/data", options=options)
    assert done.stdout == "1234 1234 755\n"


def test_mount_points_are_made_below_a_tmpfs_and_nowhere_else(who, place):
    (place / "src").mkdir()
    (place / "src/file").write_text("shown\n")
    made = ["--tmpfs=/data", f"-m{place}/src:/data/a/b/c:ro", f"-m{place}/src/file:/data/f:ro", "--tmpfs=/data/a/t"]
    done = who.inside("/bin/busybox", "cat", "/data/a/b/c/file", "/data/f", options=made)
    assert done.stdout == "shown\nshown\n"
    within = [*made, f"-m{place}/src/file:/data/a/b/c/new:ro"]
    done = who.inside("/bin/busybox", "true", options=within)
    assert (done.returncode, os.listdir(place / "src")) == (125, ["file"])
    assert "/data/a/b/c/new: " in done.stderr
    assert os.listdir(who.box / "data") == []


def test_a_mount_point_is_found_inside_the_root(who, place):
    """Absolute links, "..", and links through /proc end inside, or nowhere."""
    (place / "src").mkdir()
    (place / "src/there").touch()
    (who.box / "etc/absolute").symlink_to("/data")
    (who.box / "etc/climbing").symlink_to("../../../../../../data")
    for dst in ("/etc/absolute", "/etc/climbing", "/../../data", "data", "/etc/../data"):
        done = who.inside("/bin/busybox", "ls", "/data", options=[f"-m{place}/src:{dst}"])
        assert done.stdout == "there\n", dst
    (who.box / "etc/outside").symlink_to(place / "src")
    (who.box / "etc/magic").symlink_to("/proc/self/root")
    for dst in ("/etc/outside", "/etc/magic/usr"):
        done = who.inside("/bin/busybox", "true", options=[f"-m{place}/src:{dst}"])
        assert done.returncode == 125
        assert done.stderr.startswith(f"hako-run: mount point {dst}: ")


def test_a_component_swapped_meanwhile(who, place):
    """Whoever swaps a directory for a link to the host in a loop has the mount inside, or none."""
    outside = place / "outside"
    outside.mkdir()
    (place / "src").mkdir()
    (who.box / "data/spot/in").mkdir(parents=True)
    swap = f"while :; do mv {who.box}/data/spot {who.box}/data/x; ln -s {outside} {who.box}/data/spot; "
    swap += f"rm {who.box}/data/spot; mv {who.box}/data/x {who.box}/data/spot; done"
    (outside / "in").mkdir()
    swapper = subprocess.Popen(["sh", "-c", swap], stderr=subprocess.DEVNULL)
    try:
        for _ in range(40):
            done = who.inside("/bin/busybox", "ls", "/", options=[f"-m{place}/src:/data/spot/in"])
            assert done.returncode in (0, 125)
            assert mounts(outside) == []
    finally:
        swapper.kill()
        swapper.wait()
    assert os.listdir(outside) == ["in"]


def test_nothing_is_changed_in_target_and_source(who, place):
    source = place / "src"
    source.mkdir()
    (source / "file").write_text("as it was")

    def snapshot():
        found = []
        for top in (who.box, source):
            for root, _, files in os.walk(top):
                for name in [".", *files]:
                    status = os.lstat(os.path.join(root, name))
                    found.append((root, name, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        return sorted(found)

    before = snapshot()
    options = [f"-m{source}:/data", f"-m{source}/file:/file:ro", "--proc", "--dev", "--tmpfs=/tmp"]
    assert who.inside("/bin/busybox", "true", options=options).returncode == 0
    assert snapshot() == before


def test_nothing_propagates(who, place):
    before = mounts(place)
    process = who.start(
        *who.sandbox("/bin/sh", "-c", "echo up; read x; busybox ls /data", options=[f"-m{place}:/data"]),
        stdin=subprocess.PIPE,
    )
    assert process.stdout.readline() == "up\n"
    during = mounts(place)
    (place / "late").mkdir()
    if os.getuid() == 0:
        subprocess.run(["mount", "-t", "tmpfs", "none", place / "late"], check=True)
        (place / "late/hidden").touch()
    try:
        probe = process.communicate("\n", timeout=60)[0]
    finally:
        if os.getuid() == 0:
            subprocess.run(["umount", place / "late"], check=True)
    assert during == before
    assert "late" in probe
    assert "hidden" not in probe


def test_the_old_root_is_gone(who):
    done = who.inside("/bin/busybox", "cat", "/proc/self/mountinfo", options=["--proc"])
    points = {line.split()[4] for line in done.stdout.splitlines()}
    assert points <= {"/", "/bin/busybox", "/proc"} | {point for point in points if point.startswith("/proc/")}
    ids = {line.split()[0] for line in done.stdout.splitlines()}
    parents = [line.split()[1] for line in done.stdout.splitlines() if line.split()[1] not in ids]
    assert len(parents) <= 1  # the root's own, the namespace's anchor; none before Linux 6.6


def test_chroot_tricks_stay_inside(who, compiled):
    """The double chroot, with every capability in a namespace of its own."""
    probe = compiled(r"""
        #define _GNU_SOURCE
        #include <fcntl.h>
        #include <sched.h>
        #include <stdio.h>
        #include <sys/stat.h>
        #include <unistd.h>
        int main() {
            int i, here = open("/", O_RDONLY | O_DIRECTORY);
            unshare(CLONE_NEWUSER);
            chroot("/data"), fchdir(here);
            for (i = 0; i < 100; i++) chdir("..");
            chroot(".");
            puts(access("/etc/passwd", F_OK) ? "inside" : "outside");
        }
    """)
    done = who.inside("/bin/probe", options=[f"-m{probe}:/bin/probe:ro", "--cap-add=all"])
    assert done.stdout == "inside\n"
    assert who.run(probe).stdout == "outside\n"


def test_setup_runs_outside_with_the_new_root_as_its_directory(who, place):
    setup = place / "setup"
    setup.write_text(f"#!/bin/sh\nls > {place}/data.ls; cat /proc/self/status > {place}/status; echo $SECRET\n")
    setup.chmod(0o755)
    (place / "data.ls").touch()
    (place / "data.ls").chmod(0o666)
    (place / "status").touch()
    (place / "status").chmod(0o666)
    done = who.inside("/bin/busybox", "echo", "prog", options=["--setup=./setup"], cwd=place)
    assert (done.returncode, done.stdout) == (0, "host\nprog\n")
    assert (place / "data.ls").read_text().split() == sorted(os.listdir(who.box), key=str.lower) or "bin" in (
        place / "data.ls"
    ).read_text()
    assert "CapEff:\t0000000000000000" not in (place / "status").read_text()


def test_a_setup_that_mounts(who, place):
    setup = place / "setup"
    setup.write_text(f"#!/bin/sh\n{BUSYBOX} mount -t tmpfs -o mode=755 made data && echo made > data/file\n")
    setup.chmod(0o755)
    done = who.inside("/bin/busybox", "cat", "/data/file", options=[f"--setup={setup}"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "made\n", "")


def test_a_setup_killed_by_a_signal(who, place):
    setup = place / "setup"
    setup.write_text("#!/bin/sh\nkill -KILL $$\n")
    setup.chmod(0o755)
    done = who.inside("/bin/busybox", "true", options=[f"--setup={setup}"])
    assert (done.returncode, done.stderr) == (125, f"hako-run: --setup: {setup} was killed by signal 9\n")


def test_verbose_says_each_step(who):
    options = ["-v", "--proc", "--dev", "--tmpfs=/tmp", "-m/usr:/usr:ro"]
    lines = who.inside("/bin/busybox", "true", options=options).stderr.splitlines()
    assert all(line.startswith("hako-run: ") for line in lines)
    for step in (
        "network: lo alone",
        f"root: {who.box} ro,nosuid,nodev",
        "mount: /usr on /usr ro",
        f"dropped: uid {who.uid}, gid {who.uid}, capabilities: none; no_new_privs",
        "execute: /bin/busybox",
        "PROG exited with status 0",
    ):
        assert f"hako-run: {step}" in lines


def test_a_caller_whose_directory_was_deleted(who, place):
    gone = place / "gone"
    gone.mkdir(mode=0o777)
    done = who.run("sh", "-c", f'cd {gone} && rmdir {gone} && exec "$@"', "sh", *who.sandbox("/bin/busybox", "pwd"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "/\n", "")


def test_relative_paths_are_the_callers(who, place):
    (place / "src").mkdir()
    (place / "src/there").touch()
    done = who.run(
        "hako-run", f"-m{BUSYBOX}:/bin/busybox", "-msrc:/data", "box", "/bin/busybox", "ls", "/data", cwd=place
    )
    assert done.stdout == "there\n"


def test_a_hundred_mounts(who, place):
    """Many mounts are neither slow nor short of descriptors."""
    (place / "src").mkdir()
    options = ["--tmpfs=/data", *(f"-m{place}/src:/data/{i}:ro" for i in range(100))]
    began = time.monotonic()
    done = who.inside("/bin/sh", "-c", "busybox ls /data | busybox wc -l", options=options)
    assert (done.returncode, done.stdout) == (0, "100\n")
    assert time.monotonic() - began < 30
    limited = who.run("rlimit-exec", "--nofile=40", *who.sandbox("/bin/busybox", "true", options=options))
    assert (limited.returncode, limited.stderr.count("\n")) == (125, 1)
    assert "Too many open files" in limited.stderr
