"""hako-run --overlay and --changes: TARGET is never written, UPPER tells what was done."""

import contextlib
import json
import os
import resource
import shutil
import signal
import stat
import subprocess
import time

import pytest
from test_run_life import gone, up
from test_run_mounts import REMOUNT

from conftest import BUSYBOX, DEADLINE, SYSTEM, Who

BE_THERE = "UPPER is a directory that is there, or tmpfs"
WORK = r"""
cd /data
echo more >>file
busybox rm old
busybox rm -r tree
busybox mkdir tree new
echo x >tree/made
echo y >new/made
busybox ln -s /nowhere link
busybox chmod 700 kept
"""
DONE = {
    ("/data/file", "changed", "file", 9),
    ("/data/old", "deleted", "file", 4),
    ("/data/tree/deep", "deleted", "directory", None),
    ("/data/tree/made", "added", "file", 2),
    ("/data/new", "added", "directory", None),
    ("/data/new/made", "added", "file", 2),
    ("/data/link", "added", "symlink", None),
    ("/data/kept", "changed", "directory", None),
}


@pytest.fixture
def upper(who, place):
    """An UPPER for WHO, beside a box that has something to be changed."""
    data = who.box / "data"
    (data / "tree/deep").mkdir(parents=True)
    (data / "kept").mkdir(mode=0o755)
    (data / "kept/below").touch()
    (data / "file").write_text("lots")
    (data / "old").write_text("once")
    (place / "upper").mkdir()
    own(who, place)
    return place / "upper"


def own(who, top):
    """Give all of TOP to WHO: a file of somebody else cannot be changed in a user namespace."""
    for root, _, files in os.walk(top):
        for name in (".", *files):
            os.chown(os.path.join(root, name), who.uid, who.uid, follow_symlinks=False)


def snapshot(top):
    """All there is below TOP, so that two are equal only if nothing was done meanwhile."""
    found = []
    for root, _, files in os.walk(top):
        for name in (".", *files):
            status = os.lstat(os.path.join(root, name))
            found.append((root, name, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return sorted(found)


def read(path):
    """The lines of a list of changes."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def told(path):
    """Those as tuples; none may be there twice."""
    lines = read(path)
    found = {(line["path"], line["kind"], line["type"], line["size"]) for line in lines}
    assert len(found) == len(lines)
    return found


# The layers


@pytest.mark.parametrize("where", ["upper", "tmpfs", "tmpfs:64K"])
def test_target_is_not_written(who, place, upper, where):
    before = snapshot(who.box)
    option = f"--overlay={place}/{where}" if where == "upper" else f"--overlay={where}"
    done = who.inside("/bin/sh", "-c", f"{WORK} busybox cat file tree/*; busybox ls", options=[option])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "lotsmore\nx\nfile\nkept\nlink\nnew\ntree\n"
    assert snapshot(who.box) == before
    assert sorted(os.listdir(place)) == ["box", "upper"]
    assert sorted(os.listdir(upper)) == (["data"] if where == "upper" else [])


def test_without_it_target_is_written(who, upper):
    """The control of the above."""
    assert upper.exists()
    before = snapshot(who.box)
    assert who.inside("/bin/sh", "-c", WORK, options=["-W"]).returncode == 0
    assert snapshot(who.box) != before


def test_upper_goes_on_where_it_was(who, upper):
    option = f"--overlay={upper}"
    assert who.inside("/bin/sh", "-c", WORK, options=[option]).returncode == 0
    done = who.inside("/bin/busybox", "find", "/data", options=[option])
    names = ["", "/file", "/kept", "/kept/below", "/link", "/new", "/new/made", "/tree", "/tree/made"]
    assert sorted(done.stdout.split()) == [f"/data{name}" for name in names]
    assert who.inside("/bin/busybox", "ls", "/data", options=["--overlay=tmpfs"]).stdout == "file\nkept\nold\ntree\n"


def test_upper_holds_what_was_made_and_changed_and_whiteouts(who, upper):
    assert who.inside("/bin/sh", "-c", WORK, options=[f"--overlay={upper}"]).returncode == 0
    assert (upper / "data/file").read_text() == "lotsmore\n"
    assert sorted(os.listdir(upper / "data")) == ["file", "kept", "link", "new", "old", "tree"]
    old = (upper / "data/old").lstat()
    assert (stat.S_ISCHR(old.st_mode), old.st_rdev) == (True, 0)


@pytest.mark.root
def test_root_writes_by_the_rights_of_prog(who, upper):
    """The overlay is written with the rights of who mounted it, but only what PROG may write."""
    option = f"--overlay={upper}"
    for path in (who.box / "data", who.box / "data/file"):
        path.chmod(0o755)
    done = who.inside("/bin/sh", "-c", "echo x >>/data/file; echo x >/data/y", options=[option, "--user=65534"])
    denied = "".join(f"/bin/sh: can't create /data/{name}: Permission denied\n" for name in ("file", "y"))
    assert (done.stderr, os.listdir(upper)) == (denied, [])
    done = who.inside("/bin/busybox", "chmod", "4777", "/data/file", options=[option, "--user=65534"])
    assert done.stderr == "chmod: /data/file: Operation not permitted\n"
    done = who.inside("/bin/busybox", "mknod", "/data/node", "c", "1", "3", options=[option])
    assert done.stderr == "mknod: /data/node: Operation not permitted\n"


@pytest.mark.root
@pytest.mark.parametrize("where", ["upper", "tmpfs"])
def test_devices_and_setuid_files_are_inert(who, place, upper, compiled, where):
    """Those of TARGET, and those that were copied up."""
    option = f"--overlay={upper}" if where == "upper" else "--overlay=tmpfs"
    probe = compiled('#include <stdio.h>\nint main() { printf("%d\\n", geteuid()); }')
    os.mknod(who.box / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (who.box / "null").chmod(0o666)
    shutil.copy(probe, who.box / "id")
    (who.box / "id").chmod(0o4755)
    code = "busybox cat /null; busybox touch /null /id; busybox cat /null"
    done = who.inside("/bin/sh", "-c", code, options=[option])
    assert done.stderr == "cat: can't open '/null': Permission denied\n" * 2
    assert who.inside("/id", options=[option, "--user=65534"]).stdout == "65534\n"
    assert who.run("setpriv", "--reuid=65534", "--clear-groups", who.box / "id").stdout == "0\n"
    del place


@pytest.mark.parametrize("options", [(), ("--user=0", "--group=0"), ("--cap-add=dac_override",)])
def test_target_cannot_be_reached_from_inside(who, compiled, upper, options):
    """Neither the layers nor the host are to be found: the mounts name none, and the overlay cannot be taken off."""
    probe = compiled(REMOUNT)
    (who.box / "data/file").chmod(0o666)
    option = "--overlay=tmpfs" if options and who.name == "root" else f"--overlay={upper}"
    common = [f"-m{probe}:/bin/probe:ro", "--proc", option, *options]
    done = who.inside("/bin/probe", "/", "/data/file", options=common)
    assert (done.stdout, (who.box / "data/file").read_text()) == ("written\n", "lots")
    done = who.inside("/bin/busybox", "grep", " / / ", "/proc/self/mountinfo", options=common)
    assert "upperdir=/proc/self/fd/" in done.stdout
    assert str(who.box.parent) not in done.stdout


def test_nodev_and_nosuid_are_seen(who, upper):
    done = who.inside("/bin/busybox", "grep", " / / ", "/proc/self/mountinfo", options=["--proc", f"--overlay={upper}"])
    flags = done.stdout.split()[5].split(",")
    assert {"rw", "nosuid", "nodev"} <= set(flags)


@pytest.mark.parametrize(
    "name", ["a b", "a\nb", "a\\b", "\u00e4\u4e16", b"\xff\xfe", "a:b", "a,b", "-m", "a\\", "a\\:b,c=d"]
)
def test_names_of_any_kind(who, place, name):
    name = os.fsencode(name)
    upper, target, changes = (os.fsencode(place) + b"/" + kind + name for kind in (b"u", b"t", b"c"))
    os.mkdir(upper)
    os.rename(who.box, target)
    own(who, place)
    argv = ["hako-run", f"--mount={BUSYBOX}:/bin/busybox:ro", b"--overlay=" + upper, b"--changes=" + changes, target]
    done = who.run(*argv, "/bin/busybox", "mkdir", b"/data/" + name)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(upper + b"/data") == [name]
    with open(changes, "rb") as file:
        line = json.loads(file.read().decode())
    path = bytes.fromhex(line["bytes"]) if "bytes" in line else line["path"].encode()
    assert path == b"/data/" + name
    assert sorted(os.listdir(os.fsencode(place))) == sorted(map(os.path.basename, (upper, target, changes)))


def test_relative_names_are_the_callers(who, place, upper):
    argv = ["hako-run", f"--mount={BUSYBOX}:/bin/busybox:ro", "--overlay=.", "--changes=../list", "../box"]
    done = who.run(*argv, "/bin/busybox", "touch", "/data/x", cwd=upper)
    assert (done.returncode, done.stderr) == (0, "")
    assert (os.listdir(upper), sorted(os.listdir(place))) == (["data"], ["box", "list", "upper"])


@pytest.mark.parametrize("where", ["upper", "tmpfs"])
def test_mount_points_are_made(who, place, upper, where):
    """In the overlay, by its links; not in TARGET, and not in what is mounted in it."""
    option = f"--overlay={upper}" if where == "upper" else "--overlay=tmpfs"
    (place / "src").mkdir()
    (place / "src/there").touch()
    (who.box / "etc/link").symlink_to("/data")
    (who.box / "etc/dangling").symlink_to("/nowhere")
    before = snapshot(who.box), snapshot(place / "src")
    mounts = [f"-m{place}/src:/a/b/c:ro", f"-m{place}/src/there:/etc/link/made/file:ro", "--tmpfs=/new/tmp"]
    done = who.inside("/bin/busybox", "ls", "-A", "/a/b/c", "/data/made", "/new", options=[option, *mounts])
    assert (done.stdout, done.stderr) == ("/a/b/c:\nthere\n\n/data/made:\nfile\n\n/new:\ntmp\n", "")
    for dst in ("/a/b/c/none", "/etc/dangling", "/etc/dangling/x", "/none/.."):
        done = who.inside("/bin/busybox", "true", options=[option, *mounts, f"-m{place}/src:{dst}"])
        assert (done.returncode, done.stderr.count("\n")) == (125, 1), dst
        assert done.stderr.startswith("hako-run: ")
    assert (snapshot(who.box), snapshot(place / "src")) == before
    done = who.inside("/bin/busybox", "true", options=mounts)
    assert "nothing is made in TARGET" in done.stderr


def test_a_tmpfs_looks_like_target(who, upper):
    """UPPER is a root of its own; a tmpfs has the mode of TARGET and, without a user namespace, its owner."""
    del upper
    who.box.chmod(0o2751)
    os.chown(who.box, who.uid, 4321 if who.name == "root" else who.uid)
    who.box.chmod(0o2751)
    done = who.inside("/bin/busybox", "stat", "-c", "%a %u %g", "/", options=["--overlay=tmpfs"])
    assert done.stdout == f"2751 {who.uid} {4321 if who.name == 'root' else who.uid}\n"


def test_a_tmpfs_with_a_size(who, upper):
    del upper
    fill = "busybox dd if=/bin/busybox of=/data/x bs=4096 count=64 2>/dev/null || echo full"
    assert who.inside("/bin/sh", "-c", fill, options=["--overlay=tmpfs:64K"]).stdout == "full\n"
    assert who.inside("/bin/sh", "-c", fill, options=["--overlay=tmpfs:1M"]).stdout == ""
    many = "cd /data; i=0; while [ $i -lt 300 ]; do : >$i || exit; i=$((i+1)); done 2>/dev/null; echo all"
    assert who.inside("/bin/sh", "-c", many, options=["--overlay=tmpfs:64K"]).stdout == ""
    assert who.inside("/bin/sh", "-c", many, options=["--overlay=tmpfs:1M"]).stdout == "all\n"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--overlay=", "--overlay: neither a directory nor tmpfs: ''"),
        ("--overlay=/no/such", f"--overlay: open /no/such: No such file or directory [{BE_THERE}]"),
        ("--overlay=/etc/passwd", f"--overlay: open /etc/passwd: Not a directory [{BE_THERE}]"),
        ("--overlay=tmpfs:", "--overlay: not a size, a whole number or one with K, M or G: ''"),
        ("--overlay=tmpfs:0", "--overlay: a size of 0 would mean no limit: 'tmpfs:0'"),
        ("--overlay=tmpfs:1x", "--overlay: not a size, a whole number or one with K, M or G: '1x'"),
        ("--overlay={box}", "--overlay: {box} is in TARGET, or TARGET itself"),
        ("--overlay={box}/data/..", "--overlay: {box}/data/.. is in TARGET, or TARGET itself"),
        ("--overlay={box}/data", "--overlay: {box}/data is in TARGET, or TARGET itself"),
        ("--overlay={place}", "--overlay: TARGET is in {place}"),
        ("--overlay=/", "--overlay: TARGET is in /"),
    ],
)
def test_a_bad_value_is_one_line_and_nothing_runs(who, place, upper, option, message):
    before = snapshot(who.box), sorted(os.listdir(place)), os.listdir(upper)
    done = who.inside("/bin/busybox", "echo", "ran", options=[option.format(box=who.box, place=place)])
    message = message.format(box=who.box, place=place)
    assert (done.returncode, done.stdout, done.stderr) == (125, "", f"hako-run: {message}\n")
    assert (snapshot(who.box), sorted(os.listdir(place)), os.listdir(upper)) == before


@pytest.mark.root
@pytest.mark.parametrize("kind", ["root", "user"])
def test_layers_that_are_one_behind_another_mount(who, place, upper, kind):
    """A bind mount makes UPPER look as if it were elsewhere."""
    somebody = Who(kind)
    somebody.box = who.box
    own(somebody, place)
    (place / "bound").mkdir()
    (upper / "in").mkdir()
    for bound, option, message in (
        (who.box / "data", place / "bound/kept", f"{place}/bound/kept is in TARGET, or TARGET itself"),
        (who.box / "data/kept", place / "bound/b", f"{place}/bound/b is in TARGET, or TARGET itself"),
        (place, place / "bound", f"TARGET is in {place}/bound"),
    ):
        (who.box / "data/kept/b").mkdir(exist_ok=True)
        subprocess.run(["mount", "--bind", bound, place / "bound"], check=True)
        try:
            done = somebody.inside("/bin/busybox", "echo", "ran", options=[f"--overlay={option}"])
        finally:
            subprocess.run(["umount", place / "bound"], check=True)
        assert (done.returncode, done.stdout, done.stderr) == (125, "", f"hako-run: --overlay: {message}\n")
    assert [name for name in os.listdir(who.box / "data") if "work" in name] == []


@pytest.mark.root
@pytest.mark.parametrize("kind", ["root", "user"])
def test_what_cannot_be_a_layer(who, place, upper, kind):
    """A mount below TARGET or UPPER, an UPPER that is one, a file system that cannot be one."""
    somebody = Who(kind)
    somebody.box = who.box
    own(somebody, place)
    hint = "an overlay shows one file system: unmount it, or show it with --mount"
    beside = "the work directory has its place beside UPPER: take a directory below it"
    cannot = "its file system cannot be the upper layer of an overlay"
    lacks = "its file system has no {} extended attributes; a tmpfs has user ones since Linux 6.6"
    lacks = lacks.format("trusted" if kind == "root" else "user")
    for at, option, message in (
        (who.box / "sub", upper, f"{who.box} has a mount below it: {who.box}/sub [{hint}]"),
        (who.box / "sub", "tmpfs", f"{who.box} has a mount below it: {who.box}/sub [{hint}]"),
        (upper / "in", upper, f"{upper} has a mount below it: {upper}/in [{hint}]"),
        (upper, upper, f"{upper} is where a file system is mounted [{beside}]"),
        (place / "ram", place / "ram/in", f"setxattr {place}/ram/in: Operation not supported [{lacks}]"),
        (place / "over", place / "over/in", f"mount {place}/over/in: Invalid argument [{cannot}]"),
    ):
        at.mkdir(exist_ok=True)
        kind_of_mount = ["-t", "ramfs", "none"] if "ram" in at.name else ["-t", "tmpfs", "-o", "mode=777", "none"]
        if at.name == "over":
            for name in ("l", "u", "w"):
                (place / name).mkdir()
            layers = f"lowerdir={place}/l,upperdir={place}/u,workdir={place}/w"
            kind_of_mount = ["-t", "overlay", "-o", layers, "none"]
        subprocess.run(["mount", *kind_of_mount, at], check=True)
        at.chmod(0o777)
        (at / "in").mkdir()
        os.chown(at / "in", somebody.uid, somebody.uid)
        try:
            done = somebody.inside("/bin/busybox", "echo", "ran", options=[f"--overlay={option}"])
            left = [name for name in os.listdir(at) if "work" in name]
        finally:
            subprocess.run(["umount", at], check=True)
        assert (done.returncode, done.stdout, done.stderr) == (125, "", f"hako-run: --overlay: {message}\n")
        assert left == []


def test_a_file_of_nobody_here_cannot_be_changed(who, upper):
    """In a user namespace with one id, it cannot be copied up; and nothing else is changed instead."""
    if who.name == "user" and os.getuid() == 0:
        os.chown(who.box / "data/file", 0, 0)
        (who.box / "data/file").chmod(0o666)
        done = who.inside("/bin/sh", "-c", "echo x >>/data/file", options=[f"--overlay={upper}"])
        assert done.stderr == "/bin/sh: can't create /data/file: Value too large for defined data type\n"
        assert (who.box / "data/file").read_text() == "lots"


# One sandbox at a time


def test_two_at_once_on_one_upper(who, upper):
    """The kernel would only warn, in its log, that what comes of it is undefined."""
    argv = who.sandbox("/bin/sh", "-c", "echo up; read x; echo x >/data/file", options=[f"--overlay={upper}"])
    process = who.start(*argv, stdin=subprocess.PIPE)
    assert up(process) == "up\n"
    done = who.inside("/bin/busybox", "echo", "ran", options=[f"--overlay={upper}/../upper"])
    hint = "another sandbox has it as its UPPER"
    message = f"hako-run: flock {upper}/../upper: Resource temporarily unavailable [{hint}]\n"
    assert (done.returncode, done.stdout, done.stderr) == (125, "", message)
    assert who.inside("/bin/busybox", "echo", "ran", options=["--overlay=tmpfs"]).stdout == "ran\n"
    process.communicate("\n", timeout=DEADLINE)
    assert (process.returncode, (upper / "data/file").read_text()) == (0, "x\n")
    assert who.inside("/bin/busybox", "echo", "ran", options=[f"--overlay={upper}"]).stdout == "ran\n"


def test_a_work_directory_that_was_left_is_used_again(who, place, upper):
    """SIGKILL leaves it; whoever comes next takes it away."""
    argv = who.sandbox("/bin/sh", "-c", "echo up; read x", "left-work", options=[f"--overlay={upper}"])
    process = who.start(*argv, stdin=subprocess.PIPE)
    assert up(process) == "up\n"
    process.kill()
    process.communicate(timeout=DEADLINE)
    assert gone("left-work")
    assert len(os.listdir(place)) == 3
    assert who.inside("/bin/sh", "-c", "busybox rm /data/old", options=[f"--overlay={upper}"]).returncode == 0
    assert sorted(os.listdir(place)) == ["box", "upper"]


@pytest.mark.parametrize("make", ["link", "file", "full", "open", *["foreign"] * (os.getuid() == 0)])
def test_a_work_directory_of_somebody_else(who, place, upper, make):
    """In a directory that others may write, it may be a trap: what is in it would be removed."""
    work = place / f".hako-work-{upper.stat().st_ino}"
    (place / "victim").mkdir()
    (place / "victim/precious").touch()
    if make == "link":
        work.symlink_to(place / "victim")
    elif make == "file":
        work.touch()
    else:
        work.mkdir(mode=0o700)
        os.chown(work, 1234 if make == "foreign" else who.uid, -1)
        if make == "full":
            (work / "precious").touch()
        work.chmod({"open": 0o777, "foreign": 0o755}.get(make, 0o700))
    before = snapshot(place)
    done = who.inside("/bin/busybox", "echo", "ran", options=[f"--overlay={upper}"])
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert snapshot(place) == before


@pytest.mark.parametrize("options", [(), ("--as-pid-1",), ("--userns=always",)])
def test_nothing_is_left(who, place, upper, options):
    """However it ends."""
    if options == ("--userns=always",) and who.name == "root":
        options = (*options, "--user=0")
    for argv, status in (
        (("/bin/sh", "-c", f"{WORK} exit 3"), 3),
        (("/bin/sh", "-c", "busybox kill -SEGV $$; exit 139"), 139),
        (("/bin/none",), 127),
    ):
        done = who.inside(*argv, options=[f"--overlay={upper}", *options])
        assert (done.returncode, sorted(os.listdir(place))) == (status, ["box", "upper"])
        for name in os.listdir(upper):
            shutil.rmtree(upper / name)
    for bad in ("--chdir=/none", "--setup=/bin/false", "-m/usr:/bin/busybox/x"):
        done = who.inside("/bin/busybox", "true", options=[f"--overlay={upper}", bad, *options])
        assert (done.returncode, sorted(os.listdir(place))) == (125, ["box", "upper"])
    argv = who.sandbox("/bin/sh", "-c", "echo up; read x", options=[f"--overlay={upper}", *options])
    process = who.start(*argv, stdin=subprocess.PIPE)
    assert up(process) == "up\n"
    process.terminate()
    process.communicate(timeout=DEADLINE)
    assert (process.returncode, sorted(os.listdir(place))) == (143, ["box", "upper"])


@pytest.mark.root
def test_root_in_a_user_namespace_needs_an_upper_of_that_uid(who, place, upper):
    options = [f"--overlay={upper}", "--userns=always", "--user=1000", "--group=1000"]
    for path in (who.box, *who.box.rglob("*")):
        os.chown(path, 1000, 1000, follow_symlinks=False)
    done = who.inside("/bin/sh", "-c", WORK, options=options)
    hint = "it is uid 1000 of the sandbox that has to write there"
    assert (done.returncode, done.stderr) == (125, f"hako-run: --overlay: {upper}: Permission denied [{hint}]\n")
    os.chown(upper, 1000, 1000)
    changes = f"--changes={place}/list"
    assert who.inside("/bin/sh", "-c", WORK, options=[*options, changes]).returncode == 0
    assert told(place / "list") == DONE
    assert sorted(os.listdir(place)) == ["box", "list", "upper"]


def test_entered_it_shows_the_overlay_too(who, upper, place):
    argv = who.sandbox(
        *("/bin/sh", "-c", "echo new >/data/new; echo up; read x"),
        options=[f"--overlay={upper}", f"--pid-file={place}/pid"],
    )
    process = who.start(*argv, stdin=subprocess.PIPE)
    assert up(process) == "up\n"
    end = time.monotonic() + DEADLINE
    while not (place / "pid").exists():
        assert time.monotonic() < end
    done = who.run("hako-enter", "--fork", (place / "pid").read_text().strip(), "/bin/busybox", "cat", "/data/new")
    process.communicate("\n", timeout=DEADLINE)
    assert done.stdout == "new\n"


# What has changed


@pytest.mark.parametrize("where", ["upper", "tmpfs"])
@pytest.mark.parametrize("options", [(), ("--as-pid-1",)])
def test_changes(who, place, upper, where, options):
    option = f"--overlay={upper}" if where == "upper" else "--overlay=tmpfs"
    done = who.inside("/bin/sh", "-c", WORK, options=[option, f"--changes={place}/list", *options])
    assert (done.returncode, done.stderr) == (0, "")
    assert told(place / "list") == DONE
    assert (place / "list").stat().st_mode & 0o777 == 0o644
    assert sorted(os.listdir(place)) == ["box", "list", "upper"]


def test_no_changes_are_an_empty_list(who, place, upper):
    done = who.inside("/bin/busybox", "cat", "/data/file", options=[f"--overlay={upper}", f"--changes={place}/list"])
    assert (done.stdout, (place / "list").read_text()) == ("lots", "")


def test_mount_points_that_were_made_are_changes(who, place, upper):
    options = ["--overlay=tmpfs", f"--changes={place}/list", "--tmpfs=/new/tmp"]
    assert who.inside("/bin/busybox", "touch", "/new/tmp/not-told", options=options).returncode == 0
    assert {line[0] for line in told(place / "list")} == {"/new", "/new/tmp"}
    del upper


def test_each_type_and_what_became_another(who, place, upper):
    code = "cd /data; busybox mkfifo fifo; busybox rm file; busybox mkdir file; echo >file/in; busybox rm -r tree; "
    code += "echo 12 >tree; busybox ln -s x new; busybox rm old; busybox mkfifo old"
    options = ["--overlay=tmpfs", f"--changes={place}/list"]
    assert who.inside("/bin/sh", "-c", code, options=options).returncode == 0
    assert told(place / "list") == {
        ("/data/fifo", "added", "fifo", None),
        ("/data/file", "changed", "directory", None),
        ("/data/file/in", "added", "file", 1),
        ("/data/tree", "changed", "file", 3),
        ("/data/new", "added", "symlink", None),
        ("/data/old", "changed", "fifo", None),
    }
    del upper


def test_what_an_opaque_directory_hides_is_deleted_at_every_depth(who, place, upper):
    (who.box / "data/tree/deep/a").mkdir()
    (who.box / "data/tree/deep/b").touch()
    (who.box / "data/tree/file").write_text("same")
    own(who, who.box)
    code = "cd /data; busybox rm -r tree; busybox mkdir -p tree/deep; echo -n same >tree/file"
    options = [f"--overlay={upper}", f"--changes={place}/list"]
    assert who.inside("/bin/sh", "-c", code, options=options).returncode == 0
    assert told(place / "list") == {
        ("/data/tree/deep/a", "deleted", "directory", None),
        ("/data/tree/deep/b", "deleted", "file", 0),
        ("/data/tree/file", "changed", "file", 4),
    }


def test_what_prog_hides_is_found(who, place, upper):
    """Directories that nobody may enter, also those of TARGET; the caller, an ordinary user, could not."""
    (who.box / "data/kept").chmod(0o500)
    code = (
        "cd /data; busybox chmod 700 kept; echo >kept/x; busybox mkdir -p new/a; echo >new/a/x; busybox mkfifo new/p; "
    )
    code += "busybox chmod 0 new/a new/p kept; busybox chmod 0 new"
    for where in (str(upper), "tmpfs"):
        options = [f"--overlay={where}", f"--changes={place}/list"]
        assert who.inside("/bin/sh", "-c", code, options=options).returncode == 0
        found = {line[0] for line in told(place / "list")}
        assert found == {f"/data/{name}" for name in ("kept", "kept/x", "new", "new/a", "new/a/x", "new/p")}
    assert sorted(os.listdir(place)) == ["box", "list", "upper"]


def test_links_are_not_followed(who, place, upper):
    (place / "outside").mkdir()
    (place / "outside/secret").touch()
    code = f"cd /data; busybox ln -s {place}/outside tree/to; busybox rm -r kept; busybox ln -s {place}/outside kept"
    options = [f"--overlay={upper}", f"--changes={place}/list"]
    assert who.inside("/bin/sh", "-c", code, options=options).returncode == 0
    assert told(place / "list") == {
        ("/data/tree/to", "added", "symlink", None),
        ("/data/kept", "changed", "symlink", None),
    }


DEEP = """
import os, sys
for name in sys.argv[2:]:
    os.mkdir(name); os.chdir(name)
    for i in range(int(sys.argv[1])):
        os.mkdir("x"); os.chdir("x")
    open("end", "w").close()
    os.chdir("/data")
"""


def test_a_deep_tree(who, place, upper):
    """10,000 deep: listed as far as a path can be; few descriptors are needed and the stack is short."""
    options = [*SYSTEM, f"--overlay={upper}", f"--changes={place}/list", "--chdir=/data"]
    argv = who.sandbox("/usr/bin/python3", "-Ic", DEEP, "10000", "one", options=options)
    done = who.run(*argv, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)))
    assert (done.returncode, done.stderr) == (0, "")
    try:
        lines = read(place / "list")
        paths = {line["path"] for line in lines if line["path"].startswith("/data/one")}
        last = max(paths, key=len)
        assert paths == {"/data/one" + "/x" * i for i in range(len(paths))}
        assert 3839 <= len(last) < 4096
        cut = [line for line in lines if line.get("listed") is False]
        assert [line["path"] for line in cut] == [last]
        options[-3] = "--overlay=tmpfs"
        assert who.inside("/usr/bin/python3", "-Ic", DEEP, "1500", "two", options=options).returncode == 0
        assert len(read(place / "list")) == 1502
    finally:
        subprocess.run(["rm", "-rf", upper], check=True)  # shutil.rmtree() is not up to it


def test_many_entries_are_streamed(who, place, upper):
    """A million would be read in the same memory: there is too little here to hold these."""
    (who.box / "data/file").chmod(0o666)
    code = "import os\nos.mkdir('/data/many')\nos.chdir('/data/many')\n"
    code += "for i in range(50000): os.mknod(f'{i:0250}')"
    options = [*SYSTEM, "--overlay=tmpfs", f"--changes={place}/list"]
    argv = who.sandbox("/usr/bin/python3", "-Ic", code, options=options)
    limit = 45 * 2**20
    done = who.run(*argv, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    assert (done.returncode, done.stderr) == (0, "")
    expected = {(f"/data/many/{i:0250}", "added", "file", 0) for i in range(50000)}
    assert told(place / "list") == {*expected, ("/data/many", "added", "directory", None)}
    del upper


def test_many_directories(who, place, upper):
    """Each is gone into, and the reading of the one above goes on where it was; so for those deleted in one."""
    for i in range(1000):
        (who.box / "data/tree" / str(i)).touch()
    own(who, who.box)
    code = "import os, shutil\nshutil.rmtree('/data/tree')\nos.mkdir('/data/tree')\n"
    code += "for i in range(500, 3000): os.mkdir(f'/data/tree/{i}'); os.mknod(f'/data/tree/{i}/in')\n"
    for option in ("--overlay=tmpfs", f"--overlay={upper}"):
        options = [*SYSTEM, option, f"--changes={place}/list"]
        assert who.inside("/usr/bin/python3", "-Ic", code, options=options).returncode == 0
        expected = {(f"/data/tree/{i}", "deleted", "file", 0) for i in range(500)}
        expected |= {(f"/data/tree/{i}/in", "added", "file", 0) for i in range(500, 3000)}
        expected |= {(f"/data/tree/{i}", "changed", "directory", None) for i in range(500, 1000)}
        expected |= {(f"/data/tree/{i}", "added", "directory", None) for i in range(1000, 3000)}
        assert told(place / "list") == {*expected, ("/data/tree/deep", "deleted", "directory", None)}


def test_names_that_are_not_utf_8_are_escaped(who, place, upper):
    del upper
    names = [
        b"\xff",
        b"a\xc3",
        b'quote"\\',
        b"tab\t\nline",
        b"\xed\xb3\xbf",
        b"\x7f\x1b[2J",
        "\U0001f600\u2028".encode(),
    ]
    done = who.inside(
        *("/bin/busybox", "touch", *(b"/data/" + name for name in names)),
        options=["--overlay=tmpfs", f"--changes={place}/list"],
    )
    assert done.returncode == 0
    data = (place / "list").read_bytes()
    assert data.isascii()
    assert data.count(b"\n") == len(names)
    lines = [json.loads(line) for line in data.splitlines()]
    paths = {bytes.fromhex(line["bytes"]) if "bytes" in line else line["path"].encode() for line in lines}
    assert paths == {b"/data/" + name for name in names}
    assert sum("bytes" in line for line in lines) == 3
    assert not any(0xD800 <= ord(char) < 0xE000 for line in lines for char in line["path"])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "--changes: not the name of a file: ''"),
        ("{place}/none/list", "--changes: open {place}/none: No such file or directory"),
        ("{place}", "--changes: {place}: Is a directory"),
        ("{box}/list", "--changes: {box}/list is in TARGET or UPPER"),
        ("{place}/upper/list", "--changes: {place}/upper/list is in TARGET or UPPER"),
        ("/proc/list", "--changes: open O_TMPFILE /proc: {proc}"),
    ],
)
def test_a_list_that_cannot_be(who, place, upper, path, message):
    """Nothing runs."""
    path = path.format(place=place, box=who.box)
    options = [f"--overlay={upper}", f"--changes={path}"]
    done = who.inside("/bin/sh", "-c", "echo ran >/data/ran", options=options)
    reason = "No such file or directory" if who.name == "root" else "Permission denied"
    message = message.format(place=place, box=who.box, proc=reason)
    assert (done.returncode, done.stderr) == (125, f"hako-run: {message}\n")
    assert os.listdir(upper) == []


def test_changes_without_an_overlay(who, place):
    done = who.inside("/bin/busybox", "echo", "ran", options=["-W", f"--changes={place}/list"])
    message = "hako-run: --changes: only with --overlay is there anything to list\n"
    assert (done.returncode, done.stdout, done.stderr) == (125, "", message)


def test_the_list_is_there_only_if_prog_ran(who, place, upper):
    (place / "list").write_text("old")
    os.chown(place / "list", who.uid, -1)
    options = [f"--overlay={upper}", f"--changes={place}/list", "--tmpfs=/new"]
    for argv, status in ((("/bin/none",), 127), (("/bin/busybox", "true"), 125)):
        more = ["--chdir=/none"] if status == 125 else []
        assert who.inside(*argv, options=[*options, *more]).returncode == status
        assert (place / "list").read_text() == "old"
    assert who.inside("/bin/sh", "-c", "exit 3", options=options).returncode == 3
    assert told(place / "list") == {("/new", "added", "directory", None)}
    process = who.start(*who.sandbox("/bin/sh", "-c", "echo >/data/x; echo up; read x", options=options), stdin=-1)
    assert up(process) == "up\n"
    process.terminate()
    process.communicate(timeout=DEADLINE)
    assert (process.returncode, len(told(place / "list"))) == (143, 2)


def test_the_list_on_stderr(who, upper):
    done = who.inside("/bin/sh", "-c", WORK, options=[f"--overlay={upper}", "--changes=-"])
    assert {json.loads(line)["path"] for line in done.stderr.splitlines()} == {line[0] for line in DONE}


def test_a_link_in_the_place_of_the_list_is_not_followed(who, place, upper):
    (place / "victim").write_text("precious")
    (place / "list").symlink_to("victim")
    options = [f"--overlay={upper}", f"--changes={place}/list"]
    assert who.inside("/bin/sh", "-c", WORK, options=options).returncode == 0
    assert (place / "victim").read_text() == "precious"
    assert told(place / "list") == DONE


@pytest.mark.root
def test_a_list_on_a_full_disk(who, place, upper):
    disk = place / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,mode=777", "none", disk], check=True)
    try:
        (disk / "fill").write_bytes(b"x" * 4096)
        done = who.inside("/bin/sh", "-c", WORK, options=[f"--overlay={upper}", f"--changes={disk}/list"])
        assert (done.returncode, done.stderr) == (125, f"hako-run: write {disk}/list: No space left on device\n")
        assert (os.listdir(disk), sorted(os.listdir(place))) == (["fill"], ["box", "disk", "upper"])
    finally:
        subprocess.run(["umount", disk], check=True)


def test_while_the_list_is_written_a_signal_ends_it(who, place, upper):
    """A tree that takes long to read is PROG's doing; the list is whole, or it is not there."""
    code = "import os\nfor i in range(20000): os.mkdir(f'/data/{i}')\nprint('up', flush=True)"
    argv = who.sandbox("/usr/bin/python3", "-Ic", code, options=[*SYSTEM, "--overlay=tmpfs", f"--changes={place}/list"])
    process = who.start(*argv)
    assert up(process) == "up\n"
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    with contextlib.suppress(OSError), open(children) as file:
        while file.read():
            file.seek(0)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE)
    assert process.returncode == -signal.SIGTERM
    assert sorted(os.listdir(place)) == ["box", "upper"]
    del upper


def test_nothing_of_the_layers_is_left_with_prog(who, upper, place):
    """The socket, the layers and the lock are the supervisor's."""
    code = "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd')))"
    options = [*SYSTEM, "--proc", f"--overlay={upper}", f"--changes={place}/list"]
    assert who.inside("/usr/bin/python3", "-Ic", code, options=options).stdout == "[0, 1, 2, 3]\n"
    tmpfs = [*SYSTEM, "--proc", "--overlay=tmpfs", f"--changes={place}/list"]
    assert who.inside("/usr/bin/python3", "-Ic", code, options=tmpfs).stdout == "[0, 1, 2, 3]\n"
