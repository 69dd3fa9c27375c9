"""hako-policy --changes: what PROG did in the root and in each tmpfs, by no word of PROG's."""

import json
import os
import resource
import signal
import subprocess

import pytest
from test_hako_policy import BUILT_IN, KISS, run, sh
from test_run_life import up
from test_run_overlay import DEEP, told

from conftest import DEADLINE

SYSTEM = f"{KISS}mount_new_tmpfs = true\n"
ROOT = f"{SYSTEM}[root]\nwritable = true\n"
FILES = (
    *("--file=/etc/kept=same", "--file=/etc/file=0123", "--file=/etc/gone=once", "--symlink=file:/etc/link"),
    *("--symlink=x:/etc/other", "--tmpfs=/tree/in/deep", "--tmpfs=/more:1M", "--file=/more/file=more"),
)
vm = pytest.mark.vm


def listed(who, policy, code, options=(), **popen):
    """What is listed when CODE has been run by the shell, and how that ended."""
    path = who.box.parent / "list"
    done = sh(who, policy, code, options=[f"--changes={path}", *options], **popen)
    found = told(path)
    path.unlink()
    return found, done


def changed(*argv, **more):
    """What is listed by CODE, which ends well and silently."""
    found, done = listed(*argv, **more)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return found


# What is listed


@vm
def test_what_was_added_changed_and_deleted(who):
    code = """
    cd /etc; printf 3210 >file; rm gone; rm link; ln -s none link; rm other; mkdir other; echo x >other/in
    mkdir -p /new/deep; echo hello >/new/deep/file; mkfifo /tmp/fifo; chmod 700 /tree; echo 12345 >/more/file
    ln -s /etc/shadow /tmp/shadow; rm -f /etc/kept; printf same >/etc/kept; chmod 755 /tmp
    python3 -Ic 'import socket; socket.socket(1).bind("/tree/in/deep/socket")'
    """
    assert changed(who, ROOT, code, options=FILES) == {
        ("/etc/file", "changed", "file", 4),
        ("/etc/gone", "deleted", "file", 4),
        ("/etc/link", "changed", "symlink", None),
        ("/etc/other", "changed", "directory", None),
        ("/etc/other/in", "added", "file", 2),
        ("/new", "added", "directory", None),
        ("/new/deep", "added", "directory", None),
        ("/new/deep/file", "added", "file", 6),
        ("/tmp", "changed", "directory", None),
        ("/tmp/fifo", "added", "fifo", None),
        ("/tmp/shadow", "added", "symlink", None),
        ("/tree", "changed", "directory", None),
        ("/tree/in/deep/socket", "added", "socket", None),
        ("/more/file", "changed", "file", 6),
    }


@pytest.mark.parametrize("options", [(), FILES, ("--uid=5", "--gid=6", *FILES)])
@pytest.mark.parametrize("name", [*BUILT_IN, ROOT])
def test_what_the_policy_puts_there_is_no_change(who, delegated, name, options):
    more = () if name == ROOT else ("--tmpfs=/scratch", "--network=none")
    assert changed(who, name, "test -d /", options=[*more, *options]) == set()
    delegated.wait_until_empty()


def test_what_is_the_same_again_is_no_change(who):
    """Whatever its times say."""
    code = """
    cd /etc; printf same >kept; touch -d 2001-01-01 file . /; echo x >gone; printf once >gone; mkdir /x; rmdir /x
    mv link l; mv l link; ln kept /hard; rm kept; mv /hard kept; mv /tree /wood; mv /wood /tree
    """
    assert changed(who, ROOT, code, options=FILES) == set()


def test_another_content_shows_whatever_the_size_and_the_times_are(who):
    code = """
    import os
    for name in ("/etc/file", "/more/file"):
        before = os.stat(name)
        with open(name, "r+") as file:
            file.write("x")
        os.utime(name, ns=(before.st_atime_ns, before.st_mtime_ns))
        after = os.stat(name)
        assert (before.st_size, before.st_mtime_ns, before.st_ino) == (after.st_size, after.st_mtime_ns, after.st_ino)
    """
    code = "".join(line[4:] for line in code.splitlines(keepends=True))
    found = changed(who, ROOT, f"exec python3 -Ic '{code.strip()}'", options=FILES)
    assert found == {("/etc/file", "changed", "file", 4), ("/more/file", "changed", "file", 4)}


def test_what_is_the_callers_and_devices_are_not_listed(who, place):
    """A tmpfs below what is the caller's is."""
    (place / "work/sub").mkdir(parents=True)
    for path in (place / "work", place / "work/sub"):
        os.chown(path, who.uid, -1)
    options = [f"--rw-bind={place}/work:/w", "--tmpfs=/w/sub", "--dev"]
    code = "echo x >/w/file; echo x >/dev/shm/x; echo x >/w/sub/x; chmod 700 /w"
    assert changed(who, SYSTEM, code, options=options) == {("/w/sub/x", "added", "file", 2)}
    assert sorted(os.listdir(place / "work")) == ["file", "sub"]
    assert os.listdir(place / "work/sub") == []


def test_a_read_only_root_is_listed_with_its_tmpfs_alone(who):
    found, done = listed(who, SYSTEM, "echo x >/x; echo x >/tmp/x")
    assert (found, done.returncode) == ({("/tmp/x", "added", "file", 2)}, 0)
    assert "Read-only file system" in done.stderr


def test_many_file_systems(who):
    """More than a socket holds at once."""
    options = [f"--tmpfs=/t/{i}" for i in range(300)]
    code = "i=0; while [ $i -lt 300 ]; do : >/t/$i/x; i=$((i+1)); done"
    assert changed(who, SYSTEM, code, options=options) == {(f"/t/{i}/x", "added", "file", 0) for i in range(300)}


def test_without_proc(who):
    code = "mkdir /tmp/a; : >/tmp/a/x; chmod 0 /tmp/a"
    found = {("/tmp/a", "added", "directory", None), ("/tmp/a/x", "added", "file", 0)}
    policy = f"mount_new_procfs = false\n{SYSTEM}"
    for limits in ((), ("--limit-walltime=50",)):
        assert changed(who, policy, code, options=limits) == found


# PROG is hostile


def test_links_lead_nowhere(who, place):
    """Neither those in the place of a directory nor those in the place of a file: what is behind them is not read."""
    (place / "host").mkdir()
    (place / "host/in").write_text("same")
    code = f"rm -r /etc /more/file; ln -s {place}/host /etc; ln -s {place}/host/in /more/file; ln -s / /tmp/root"
    code += f"; ln -s {place}/host /more/dir"
    assert changed(who, ROOT, code, options=FILES) == {
        ("/etc", "changed", "symlink", None),
        ("/more/file", "changed", "symlink", None),
        ("/more/dir", "added", "symlink", None),
        ("/tmp/root", "added", "symlink", None),
    }


def test_what_would_wait_or_is_hidden(who):
    """A fifo in the place of a file, and where nobody may look: the reader neither waits nor is kept out."""
    code = """
    rm /etc/file; mkfifo /etc/file; mkdir -p /tmp/a/b; echo x >/tmp/a/b/c; mkfifo /tmp/a/b/p; chmod 0 /tmp/a/b/p
    chmod 0 /tmp/a/b; chmod 0 /tmp/a; printf none >/etc/gone; chmod 0 /etc/gone; chmod 0 /etc /more
    """
    assert changed(who, ROOT, code, options=FILES) == {
        ("/etc", "changed", "directory", None),
        ("/etc/file", "changed", "fifo", None),
        ("/etc/gone", "changed", "file", 4),
        ("/more", "changed", "directory", None),
        *((f"/tmp/{name}", "added", "directory", None) for name in ("a", "a/b")),
        ("/tmp/a/b/c", "added", "file", 2),
        ("/tmp/a/b/p", "added", "fifo", None),
    }


def test_the_directory_above_a_mount_point_is_another(who):
    """What is mounted there is listed where the policy put it."""
    code = "echo x >/tree/in/deep/x; mv /tree /wood; mkdir -p /tree/in/deep/y; echo x >/tree/in/deep/z"
    assert changed(who, ROOT, code, options=FILES) == {
        *((f"/wood{name}", "added", "directory", None) for name in ("", "/in", "/in/deep")),
        ("/tree/in/deep/x", "added", "file", 2),
        ("/tree/in/deep/y", "added", "directory", None),
        ("/tree/in/deep/z", "added", "file", 2),
    }
    code = "echo x >/tree/in/deep/x; mv /tree /wood"
    assert changed(who, ROOT, code, options=FILES) == {
        *((f"/wood{name}", "added", "directory", None) for name in ("", "/in", "/in/deep")),
        ("/tree", "deleted", "directory", None),
        ("/tree/in/deep/x", "added", "file", 2),
    }


def test_of_a_directory_that_is_gone_only_itself(who):
    code = "rm -r /etc; umount /more 2>/dev/null; rmdir /more /tree/in/deep 2>/dev/null; true"
    assert changed(who, ROOT, code, options=FILES) == {("/etc", "deleted", "directory", None)}


def test_mounts_of_prog_hide_nothing(who):
    """In namespaces of its own it may cover what it has done."""
    code = "echo x >/more/x; unshare -Umr sh -c 'mount -t tmpfs none /more; echo y >/more/y; umount -l /tmp'"
    found, _ = listed(who, ROOT, code, options=FILES)
    assert found == {("/more/x", "added", "file", 2)}


def test_a_root_that_prog_makes_writable_is_listed(who):
    """With a capability that undoes all that."""
    code = "mount -o remount,rw,bind / && echo x >/x && umount /more && echo x >/more/x && mount -t tmpfs none /more"
    options = ["--cap-add=sys_admin", "--uid=0", "--gid=0", *FILES]
    assert changed(who, SYSTEM, code, options=options) == {
        ("/x", "added", "file", 2),
        ("/more/x", "added", "file", 2),
    }


def test_names_of_any_kind(who):
    names = [b"\xff", b"a\xc3", b'quote"\\', b"tab\t\nline", b"\xed\xb3\xbf", b"\x1b[2J", "\U0001f600".encode()]
    path = who.box.parent / "list"
    done = run(who, SYSTEM, "touch", *(b"/tmp/" + name for name in names), options=[f"--changes={path}"])
    assert (done.returncode, done.stderr) == (0, "")
    assert path.read_bytes().isascii()
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert len(lines) == len(names)
    found = {bytes.fromhex(line["bytes"]) if "bytes" in line else line["path"].encode() for line in lines}
    assert found == {b"/tmp/" + name for name in names}


@pytest.mark.parametrize("name", ["a b", "a\nb", "a\\b", "\u00e4\u4e16", b"\xff\xfe"])
def test_names_of_the_policy_of_any_kind(who, name):
    path, name = who.box.parent / "list", os.fsencode(name)
    options = [b"--tmpfs=/t/" + name, b"--file=/t/" + name + b"/" + name + b"=" + name, f"--changes={path}"]
    done = run(who, SYSTEM, "touch", b"/t/" + name + b"/x", options=options)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = [json.loads(line) for line in path.read_bytes().splitlines()]
    found = bytes.fromhex(line["bytes"]) if "bytes" in line else line["path"].encode()
    assert found == b"/t/" + name + b"/x"


def test_a_deep_tree(who):
    """Listed as far as a path can be; few descriptors are needed, and the stack is short."""
    path = who.box.parent / "list"
    code = DEEP.replace("/data", "/tmp")
    options = [f"--changes={path}", "--chdir=/tmp"]
    few = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))  # noqa: E731
    done = run(who, SYSTEM, "/usr/bin/python3", "-Ic", code, "10000", "one", options=options, preexec_fn=few)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    paths = {line["path"] for line in lines}
    assert paths == {"/tmp/one" + "/x" * i for i in range(len(paths))}
    assert 3839 <= len(max(paths, key=len)) < 4096 + 4
    assert [line["path"] for line in lines if line.get("listed") is False] == [max(paths, key=len)]


def test_many_entries_are_streamed(who):
    code = "import os\nos.chdir('/tmp')\nfor i in range(30000): os.mknod(f'{i:0250}')\n"
    code += "for i in range(500): os.mkdir(f'd{i}'); os.mknod(f'd{i}/in')"
    path, limit = who.box.parent / "list", 45 * 2**20
    few = lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # noqa: E731
    done = run(who, SYSTEM, "/usr/bin/python3", "-Ic", code, options=[f"--changes={path}"], preexec_fn=few)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(told(path)) == 31000


def test_nothing_of_it_is_left_with_prog(who, place):
    """Nor with the init, in which root may look."""
    code = "ls /proc/self/fd | wc -l; ls /proc/1/fd | wc -l"
    options = [f"--changes={place}/list"]
    count = sh(who, ROOT, code, options=options).stdout
    assert count == sh(who, ROOT, code).stdout
    assert count.startswith("4\n")


# The file


def test_the_list_on_stderr_is_no_output_of_prog(who):
    options = ["--changes=-", "--limit-output=4"]
    done = sh(who, SYSTEM, "echo x >/tmp/x; echo abc", options=options)
    line = '{"path": "/tmp/x", "kind": "added", "type": "file", "size": 2}\n'
    assert (done.returncode, done.stdout, done.stderr) == (0, "abc\n", line)


@pytest.mark.parametrize("limits", [(), ("--limit-walltime=50",)])
def test_the_list_is_there_only_if_prog_ran(who, place, limits):
    (place / "list").write_text("old")
    os.chown(place / "list", who.uid, -1)
    options = [f"--changes={place}/list", f"--report={place}/report", *limits]
    for argv, status in ((("/bin/none",), 127), (("/bin/true",), 125)):
        more = ["--chdir=/none"] if status == 125 else []
        assert run(who, SYSTEM, *argv, options=[*options, *more]).returncode == status
        assert (place / "list").read_text() == "old"
    assert sh(who, SYSTEM, "echo x >/tmp/x; exit 3", options=options).returncode == 3
    assert told(place / "list") == {("/tmp/x", "added", "file", 2)}
    assert (place / "list").stat().st_mode & 0o777 == 0o644
    assert sorted(os.listdir(place)) == ["box", "list", "policy.toml", "report"]


@pytest.mark.parametrize("limits", [(), ("--limit-walltime=50",)])
def test_a_signal_that_ends_the_sandbox(who, place, limits):
    path = place / "policy.toml"
    path.write_text(SYSTEM)
    argv = ["hako-policy", f"--changes={place}/list", *limits, path, "/bin/sh", "-c", "echo >/tmp/x; echo up; read x"]
    process = who.start(*argv, stdin=subprocess.PIPE)
    assert up(process) == "up\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=DEADLINE)
    assert (process.returncode, told(place / "list")) == (143, {("/tmp/x", "added", "file", 1)})


def test_a_limit_that_strikes(who, place, delegated):
    """It ends the sandbox, and not who sees what is left of it, also by the rights of those inside."""
    code = "mkdir /tmp/a; echo >/tmp/a/x; chmod 0 /tmp/a;"
    found = {("/tmp/a", "added", "directory", None), ("/tmp/a/x", "added", "file", 1)}
    for more, limit in (("sleep 30", "walltime=0.5"), ("yes", "output=4K"), ("while :; do sleep 30 & done", "pids=20")):
        done = sh(who, SYSTEM, code + more, options=[f"--changes={place}/list", f"--limit-{limit}"])
        assert (done.returncode, told(place / "list")) == (124, found), limit
        (place / "list").unlink()
        delegated.wait_until_empty()


def test_links_behind_it_know_nothing_of_it(who, place):
    argv = ["hako-limit", "--time=30", "--output=1K", "/bin/sh", "-c", "echo x >/tmp/x; echo out"]
    for limits in ((), ("--limit-walltime=50",)):
        done = run(who, SYSTEM, *argv, options=[f"--changes={place}/list", *limits])
        assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "")
        assert told(place / "list") == {("/tmp/x", "added", "file", 2)}


@pytest.mark.parametrize(
    ("policy", "path", "message"),
    [
        (SYSTEM, "", "--changes: not the name of a file: ''"),
        (SYSTEM, "{place}/none/list", "--changes: open {place}/none: No such file or directory"),
        (SYSTEM, "{place}", "--changes: {place}: Is a directory"),
        (
            "kiss",
            "-",
            "--changes: the root is read-only and there is no tmpfs: nothing is there to be changed",
        ),
    ],
)
def test_a_list_that_cannot_be(who, place, policy, path, message):
    """Nothing runs."""
    options = [f"--changes={path.format(place=place)}", f"--rw-bind={place}:/mark"]
    done = run(who, policy, "touch", "/mark/ran", options=options)
    message = f"hako-policy: {message.format(place=place)}\n"
    assert (done.returncode, done.stderr, (place / "ran").exists()) == (125, message, False)


@pytest.mark.root
@pytest.mark.parametrize("limits", [(), ("--limit-walltime=50",)])
def test_a_list_on_a_full_disk(who, place, limits):
    disk = place / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,mode=777", "none", disk], check=True)
    try:
        (disk / "fill").write_bytes(b"x" * 4096)
        done = sh(who, SYSTEM, "echo x >/tmp/x", options=[f"--changes={disk}/list", *limits])
        assert (done.returncode, done.stderr) == (125, f"hako-policy: write {disk}/list: No space left on device\n")
        assert os.listdir(disk) == ["fill"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_in_a_sandbox_of_another(who):
    """The file is one inside."""
    shown = (f"{{ source = '{name}', target = '{name}' }}" for name in ("/bin", "/usr", "/lib", "/lib64"))
    (who.box.parent / "inner.toml").write_text(f"mount_new_procfs = false\nmounts = [{', '.join(shown)}]\n")
    ids = ["--uid=5", "--gid=5"] if who.name == "root" else []
    argv = ["hako-policy", "--changes=/list", "--tmpfs=/t", who.box.parent / "inner.toml", "/bin/touch", "/t/x"]
    path = who.box.parent / "list"
    done = run(who, ROOT, *argv, options=[*ids, f"--changes={path}"])
    assert (done.returncode, done.stderr) == (0, "")
    assert told(path) == {("/list", "added", "file", 61)}
