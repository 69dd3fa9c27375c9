"""hako-task, one request: what each key does, how each task ends, what is answered."""

import base64
import json
import os
import pathlib
import signal
import socket
import stat
import subprocess

import pytest

from conftest import BUSYBOX, DEADLINE, NO_KEY, SYSTEM, wait_until, without_keys
from hako import group

vm = pytest.mark.vm
PYTHON = ["/usr/bin/python3", "-I", "-S", "-c"]
PROC = {"type": "proc", "dest": "/proc"}
TMP = {"type": "tmpfs", "dest": "/tmp"}
ROOTFS = [path for path in ("/usr", "/bin", "/lib", "/lib64") if os.path.exists(path)]
ALLOW = "DEFAULT ALLOW"
HUNGRY = "x = bytearray(200 << 20)"


def ask(who, request, **popen):
    """The response to REQUEST, and how hako-task ended."""
    text = request if isinstance(request, str) else json.dumps(request)
    done = who.run("hako-task", input=text, **popen)
    assert done.stdout.endswith("\n")
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout), done


def answer(who, *cmd, status=0, **keys):
    """The response to the request to run CMD with KEYS; with this exit STATUS, and what goes to stderr."""
    response, done = ask(who, {"cmd": cmd, **keys})
    failed = response["status"] == "internalError"
    assert (done.returncode, done.stderr) == (status, f"hako-task: {response['description']}\n" if failed else "")
    return response


def said(who, *cmd, **keys):
    """What CMD, run with KEYS, writes to stdout; it ends well and writes nothing else."""
    response = answer(who, *cmd, **{"outputs": {}, **keys})
    assert (response["status"], response["code"], response["stderr"]) == ("exited", 0, "")
    return response["stdout"]


def sh(who, code, *args, **keys):
    """The same of CODE, run by the shell."""
    return said(who, "sh", "-c", code, "sh", *args, **keys)


def python(who, code, **keys):
    """The same of CODE, run by Python."""
    return said(who, *PYTHON, code, **keys)


def failed(who, *cmd, status=0, **keys):
    """The description of the internalError that CMD with KEYS ends in."""
    response = answer(who, *cmd, status=status, **keys)
    assert response["status"] == "internalError"
    return response["description"]


def writable(place, who):
    """PLACE, where WHO may write."""
    os.chown(place, who.uid, -1)
    return place


# The protocol


def test_the_example_of_the_sandals_tool(who):
    request = {"cmd": ["ps", "-A"], "pipes": [{"dest": "/dev/stdout", "stdout": True}], "mounts": [PROC]}
    done = who.run("hako-task", input=json.dumps(request))
    *lines, response = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["PID", "1", "2"]
    assert [line.split()[-1] for line in lines] == ["CMD", "hako-init", "ps"]
    assert (response, done.stderr, done.returncode) == ('{"status":"exited","code":0}', "", 0)


def test_a_response_is_one_line_of_compact_json(who):
    done = who.run("hako-task", input='{"cmd": ["true"]} \n\t ')
    assert (done.stdout, done.stderr, done.returncode) == ('{"status":"exited","code":0}\n', "", 0)


@pytest.mark.parametrize(
    "text",
    ["", " \n", '{"cmd":["true"]', '{"cmd":["true"]}x', '{"cmd":["true"]}{"cmd":["true"]}', "{'cmd':1}", "\x01", "nan"],
)
def test_what_is_not_json_has_no_description(who, text):
    done = who.run("hako-task", input=text)
    assert (done.stdout, done.stderr, done.returncode) == ('{"status":"requestInvalid"}\n', "", 1)


@pytest.mark.parametrize(
    "request_, description, status",
    [
        ({}, "'cmd' missing or empty", 1),
        ([], "Expecting an object", 1),
        ({"cmd": ["true", 1]}, "cmd[1]: Expecting a string", 1),
        ({"cmd": ["true"], "uid": -1}, "uid: Expecting non-negative number", 1),
        ({"cmd": ["true"], "gid": 2**31}, "gid: Value too big", 1),
        ({"cmd": ["true"], "zzz": 1}, "zzz: Unknown key", 1),
        ({"cmd": ["true"], "mounts": [PROC, {**TMP, "zzz": 1}]}, "mounts[1].zzz: Unknown key", 0),
        ({"cmd": ["true"], "mounts": [{"dest": "/"}]}, "mounts[0]: 'type' missing", 0),
        ({"cmd": ["true"], "pipes": [{"dest": "x"}]}, "pipes[0]: 'stdout' or 'stderr' or 'src' is required", 1),
        ({"cmd": ["true"], "copyFiles": [{"dest": "x"}]}, "copyFiles[0]: 'src' missing", 1),
        ({"cmd": ["true"], "stdStreams": {}}, "stdStreams: 'dest' missing", 1),
        ({"cmd": ["true"], "cgroupConfig": {"memory.max": 1}}, "cgroupConfig.memory.max: Expecting a string", 1),
        *(
            ({"cmd": ["true"], "cgroupConfig": {key: "0"}}, f"cgroupConfig.{key}: {moves}", 1)
            for moves in ["Moves processes, which hako-task does itself"]
            for key in ("cgroup.procs", "/cgroup.procs", "cgroup.threads", "tasks")
        ),
    ],
)
def test_what_is_invalid_is_told_with_its_place(who, place, request_, description, status):
    """And nothing is done. Of mounts the sandals tool finds that inside, and exits otherwise: so programs know it."""
    response, done = ask(who, request_, cwd=place)
    assert response == {"status": "requestInvalid", "description": description}
    assert (done.returncode, done.stderr, sorted(os.listdir(place))) == (status, "", ["box"])


def test_the_id_is_in_every_response(who):
    for number in ("text", 5, 0.5):
        assert answer(who, "true", id=number) == {"status": "exited", "code": 0, "id": number}
        assert ask(who, {"cmd": ["true"], "zzz": 1, "id": number})[0]["id"] == number
        assert ask(who, {"cmd": ["true"], "seccompPolicy": "zzz", "id": number})[0]["id"] == number
        assert answer(who, "nosuch", id=number)["id"] == number


def test_it_takes_no_operand(who):
    done = who.run("hako-task", "true", input='{"cmd":["true"]}')
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("hako-task: too many operands: 'true'")


def test_a_response_of_any_length(who):
    response = answer(who, *PYTHON, "print('x' * 5000000)", outputs={"limit": 10**7})
    assert response == {"status": "exited", "code": 0, "stdout": "x" * 5000000 + "\n", "stderr": ""}
    key = "k" * 10000
    assert ask(who, {key: 1})[0]["description"] == f"{key}: Unknown key"


def test_a_request_may_come_slowly_and_be_long(who):
    process = who.start("hako-task", stdin=subprocess.PIPE)
    process.stdin.write('{"cmd":["wc","-c"],"outputs":{},')
    process.stdin.flush()
    process.stdin.write('"stdin":"' + "x" * 3000000 + '"}')
    out, _ = process.communicate(timeout=DEADLINE)
    assert json.loads(out)["stdout"] == "3000000\n"


# What runs


def test_a_name_is_looked_for_on_the_path_of_the_caller_inside(who):
    prog = who.box / "bin/there"
    prog.write_text("#!/bin/busybox sh\nbusybox echo $0\n")
    prog.chmod(0o755)
    bind = [{"type": "bind", "src": BUSYBOX, "dest": "/bin/busybox"}]
    keys = {"chroot": str(who.box), "mounts": bind}
    who.env["PATH"] += ":/nowhere"
    assert said(who, "there", **keys) == "/bin/there\n"
    assert said(who, "/bin/there", **keys) == "/bin/there\n"
    assert failed(who, "busybox", "true", **keys, workDir="/bin/x").startswith("Setting work dir to '/bin/x': ")
    hidden = {"cmd": ["there"], **keys}
    bare = [*who.prefix, "env", "-i", "PATH=/usr/bin", who.env["PATH"].split(":")[0] + "/hako-task"]
    done = subprocess.run(bare, input=json.dumps(hidden), capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert json.loads(done.stdout)["description"] == "exec 'there': No such file or directory"
    bare.remove("PATH=/usr/bin")  # the default
    done = subprocess.run(bare, input=json.dumps(hidden), capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert json.loads(done.stdout) == {"status": "exited", "code": 0}


def test_the_first_word_is_passed_on_as_it_is(who):
    assert said(who, "sh", "-c", "echo $0") == "sh\n"


@pytest.mark.parametrize(
    "name, reason",
    [
        ("nosuch", "No such file or directory"),
        ("/nosuch", "No such file or directory"),
        ("", "No such file or directory"),
        ("/etc/passwd", "Permission denied"),
        ("/usr", "Permission denied"),
    ],
)
def test_what_cannot_be_run(who, name, reason):
    assert failed(who, name) == f"exec '{name}': {reason}"


def test_what_is_on_the_path_and_cannot_be_run_is_told_rather(who, place):
    (place / "plain").write_text("text")
    who.env["PATH"] = f"{place}:{who.env['PATH']}"
    assert failed(who, "plain") == "exec 'plain': Permission denied"


def test_the_environment_is_the_one_given(who):
    assert said(who, "env") == ""
    assert said(who, "env", env=["B=1", "A=2", "B=3", "bare", "ü=ö"]) == "B=1\nA=2\nB=3\nbare\nü=ö\n"


def test_the_directory(who):
    assert said(who, "pwd") == "/\n"
    assert said(who, "pwd", workDir="/usr/bin") == "/usr/bin\n"
    assert said(who, "pwd", workDir="usr/bin") == "/usr/bin\n"
    for name in ("", "/nosuch"):
        assert failed(who, "pwd", workDir=name) == f"Setting work dir to '{name}': No such file or directory"


def test_names_of_host_and_domain(who):
    code = "import os; print(os.uname().nodename, open('/proc/sys/kernel/domainname').read())"
    assert python(who, code, mounts=[PROC]).split() == ["sandals", "sandals"]
    assert python(who, code, mounts=[PROC], hostName="a", domainName="b").split() == ["a", "b"]
    assert failed(who, "true", hostName="x" * 65) == "sethostname: Invalid argument"
    assert failed(who, "true", domainName="x" * 65) == "setdomainname: Invalid argument"


@pytest.mark.parametrize("uid, gid", [(0, 0), (5, 6), (1.9, 2e1), (2147483647, 2147483647)])
def test_ids(who, uid, gid):
    code = "import os; print(*os.getresuid(), *os.getresgid(), open('/proc/self/uid_map').read())"
    found = [int(word) for word in python(who, code, uid=uid, gid=gid, mounts=[PROC]).split()]
    assert found == [int(uid)] * 3 + [int(gid)] * 3 + [int(uid), found[7], 1]
    assert found[7] == (int(uid) if who.name == "root" else who.uid)  # root may map any


def test_capabilities(who):
    """None, also of uid 0, but for those that are asked for; and one more shows that they are real."""
    code = "grep -E 'Cap|NoNew' /proc/self/status; /usr/bin/python3 -Ic 'import socket; socket.socket(2, 3, 1)' 2>&1"
    code += "| tail -1"

    def sets(*names, uid=0):
        found = sh(who, code, mounts=[PROC], capabilities=names, uid=uid).splitlines()
        assert found[5] == "NoNewPrivs:\t1"
        return {line.split()[1] for line in found[:5]}, found[6:]

    for uid in (0, 7):
        assert sets(uid=uid) == ({"0" * 16}, ["PermissionError: [Errno 1] Operation not permitted"])
        assert sets("net_raw", uid=uid) == ({f"{1 << 13:016x}"}, [])
        assert sets("CAP_NET_RAW", "CAP_CHOWN", uid=uid) == ({f"{1 << 13 | 1:016x}"}, [])
        every = int(pathlib.Path("/proc/sys/kernel/cap_last_cap").read_text())
        assert sets("all", uid=uid) == ({f"{(2 << every) - 1:016x}"}, [])


def test_network(who):
    interfaces = "import socket; print(*sorted(name for _, name in socket.if_nameindex()))"
    assert python(who, interfaces) == "lo\n"
    host = sorted(name for _, name in socket.if_nameindex())
    assert python(who, interfaces, network="host").split() == host
    loop = "import socket\ns = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
    assert python(who, loop) == ""


def test_stdin(who, place):
    assert said(who, "cat") == ""
    assert said(who, "readlink", "/proc/self/fd/0", mounts=[PROC]) == "/dev/null\n"
    assert said(who, "cat", stdin="two\nlines") == "two\nlines"
    (place / "in").write_text("of a file")
    assert said(who, "cat", stdin={"path": str(place / "in")}) == "of a file"
    text = answer(who, "cat", stdin={"path": "/nosuch"}, status=1)["description"]
    assert text == "Opening '/nosuch': No such file or directory"
    refused = answer(who, *PYTHON, "import os; os.write(0, b'x')", stdin="text", outputs={})
    assert "Bad file descriptor" in refused["stderr"] or "Operation not permitted" in refused["stderr"]


TERMINAL = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for request in (0x5423, 0x5412, 0x541C, 0x540E):  # TIOCSETD, TIOCSTI, TIOCLINUX, TIOCSCTTY
    libc.ioctl(0, ctypes.c_ulong(request), ctypes.create_string_buffer(8))
    print(ctypes.get_errno())
    ctypes.set_errno(0)
"""


def test_a_terminal_is_not_to_be_typed_into(who):
    """Nor taken over, whoever has named it. The control finds no filter: one of these succeeds."""
    ours, theirs = os.openpty()
    os.chmod(os.ttyname(theirs), 0o666)
    assert python(who, TERMINAL, stdin={"path": os.ttyname(theirs)}) == "1\n" * 4
    assert who.run(*PYTHON, TERMINAL, stdin=theirs).stdout.startswith("0\n")
    os.close(ours)
    os.close(theirs)


def test_addresses(who):
    code = "cat /proc/self/personality; grep -m1 heap /proc/self/maps | cut -d- -f1"
    found = [sh(who, code, mounts=[PROC], vaRandomize=False).split() for _ in range(2)]
    assert found[0] == found[1]
    assert found[0][0] == "00040000"
    found = [sh(who, code, mounts=[PROC], vaRandomize=True).split() for _ in range(2)]
    assert (found[0][0], found[0][1] == found[1][1]) == ("00000000", False)


# The root


def test_the_root_of_the_host(who):
    assert sh(who, "ls -d /etc/passwd; ls -A / | wc -l").split() == ["/etc/passwd", str(len(os.listdir("/")))]
    assert sh(who, "echo >/dev/null; head -c3 /dev/zero | wc -c; ls /dev/shm") == "3\n"


def test_chroot(who):
    bind = {"type": "bind", "src": BUSYBOX, "dest": "/bin/busybox", "ro": True}
    found = said(who, "/bin/busybox", "ls", "/", chroot=str(who.box), mounts=[bind]).split()
    assert found == sorted(name for name in os.listdir(who.box) if name[0] != ".")
    assert failed(who, "true", chroot="/nosuch") == "chroot('/nosuch'): No such file or directory"
    assert failed(who, "true", chroot="/etc/passwd") == "chroot('/etc/passwd'): Not a directory"


def test_the_root_cannot_be_left(who):
    """Not by the trick that the sandals tool is open to, with the capability for it."""
    code = (
        "import os\nos.mkdir('/tmp/x')\nos.chroot('/tmp/x')\n"
        "for _ in range(50): os.chdir('..')\nos.chroot('.')\nprint(sorted(os.listdir('/')))"
    )
    keys = {"rootfs": ROOTFS, "mounts": [TMP], "capabilities": ["sys_chroot"]}
    found = python(who, code, **keys)
    assert found == f"{sorted(name[1:] for name in [*ROOTFS, '/tmp'])}\n"
    assert "etc" in os.listdir("/")


def test_rootfs(who):
    assert sh(who, "ls /", rootfs=ROOTFS).split() == sorted(path[1:] for path in ROOTFS)
    response = answer(who, "sh", "-c", "touch /x; touch /usr/x", rootfs=ROOTFS, outputs={})
    assert response["stderr"].count("Read-only file system") == 2
    mounts = [PROC, TMP, {"type": "dev", "dest": "/dev"}, {"type": "tmpfs", "dest": "/a/b", "options": "mode=0755"}]
    found = sh(who, "ls / /a; echo x >/tmp/x; cat /tmp/x; stat -c %a /tmp /a/b; ls /dev", rootfs=ROOTFS, mounts=mounts)
    assert found.split("\n\n")[1].split()[:5] == ["/a:", "b", "x", "1777", "755"]
    assert "null" in found


def test_a_bind_and_read_only(who, place):
    (place / "shown").mkdir()
    (place / "shown/file").write_text("text")
    writable(place / "shown", who)
    bind = {"type": "bind", "src": str(place / "shown"), "dest": "/mnt"}
    assert sh(who, "cat /mnt/file; touch /mnt/new", mounts=[bind]) == "text"
    assert (place / "shown/new").exists()
    response = answer(who, "touch", "/mnt/other", mounts=[{**bind, "ro": True}], outputs={})
    assert response["stderr"] == "touch: cannot touch '/mnt/other': Read-only file system\n"


def test_read_only_holds_for_what_is_mounted_below(who):
    bind = {"type": "bind", "src": "/dev", "dest": "/mnt"}
    name = f"hako-{os.urandom(4).hex()}"
    try:
        assert sh(who, f"touch /mnt/shm/{name}", mounts=[bind]) == ""
        response = answer(who, "touch", f"/mnt/shm/{name}", mounts=[{**bind, "ro": True}], outputs={})
        assert "Read-only file system" in response["stderr"]
    finally:
        pathlib.Path("/dev/shm", name).unlink(missing_ok=True)


def test_mounts_that_cannot_be_done(who):
    """Nothing is made on the host for them."""
    name = f"/nosuch-{os.urandom(4).hex()}"
    assert failed(who, "true", mounts=[{"type": "tmpfs", "dest": name}]) == (
        f"mount('tmpfs','{name}','tmpfs'): No such file or directory"
    )
    assert failed(who, "true", mounts=[{"type": "bind", "src": name, "dest": "/mnt"}]) == (
        f"mount('{name}','/mnt','bind'): No such file or directory"
    )
    box = {"chroot": str(who.box), "mounts": [{"type": "tmpfs", "dest": "/x"}]}
    assert failed(who, "true", **box) == f"mount('tmpfs','{who.box}/x','tmpfs'): No such file or directory"
    assert not os.path.exists(name)
    assert not (who.box / "x").exists()


def test_mounts_are_nosuid_and_nodev(who):
    found = sh(who, "cut -d' ' -f 5-6 /proc/self/mountinfo", rootfs=ROOTFS, mounts=[PROC, TMP])
    flags = dict(line.split() for line in found.splitlines())
    assert {"/", "/usr", "/tmp", "/proc"} <= set(flags)
    assert [place for place in flags if not {"nosuid", "nodev"} <= set(flags[place].split(","))] == []


def test_a_full_tmpfs_is_proc_s_own_affair(who):
    keys = {"mounts": [{**TMP, "options": "size=1m"}], "outputs": {}}
    response = answer(who, "sh", "-c", "head -c 2000000 /dev/zero >/tmp/x", **keys)
    assert (response["status"], response["code"]) == ("exited", 1)
    assert "No space left on device" in response["stderr"]
    assert answer(who, "sh", "-c", "head -c 900000 /dev/zero >/tmp/x", **keys)["code"] == 0


def test_an_overlay(who, place):
    """What is written is listed, and chroot is as it was."""
    code = "busybox echo new >/new; busybox rm /file; busybox ls /"
    bind = {"type": "bind", "src": BUSYBOX, "dest": "/bin/busybox", "ro": True}
    keys = {"chroot": str(who.box), "mounts": [bind], "outputs": {}, "stdin": "", "env": ["PATH=/bin"]}
    before = sorted(os.listdir(who.box))
    told = [
        {"path": "/file", "kind": "deleted", "type": "file", "size": 0},
        {"path": "/new", "kind": "added", "type": "file", "size": 4},
    ]
    for overlay in ({"changes": True}, {"changes": True, "size": "1M"}, {"upper": str(place / "up"), "changes": True}):
        (place / "up").mkdir(exist_ok=True)
        writable(place / "up", who)
        writable(place, who)
        response = answer(who, "/bin/busybox", "sh", "-c", code, **keys, overlay=overlay)
        assert (response["status"], response["stderr"]) == ("exited", "")
        assert sorted(response["changes"], key=lambda change: change["path"]) == told
        assert "new" in response["stdout"].split()
        assert sorted(os.listdir(who.box)) == before
    assert sorted(path.name for path in (place / "up").iterdir()) == ["file", "new"]
    assert sorted(os.listdir(place)) == ["box", "up"]
    assert "changes" not in answer(who, "/bin/busybox", "true", **keys, overlay="tmpfs")
    response = answer(who, "/bin/busybox", "true", **keys, overlay={"upper": str(place / "nosuch")}, status=1)
    hint = "UPPER is a directory that is there, or tmpfs"
    assert response["description"] == f"overlay: open {place}/nosuch: No such file or directory [{hint}]"


# Where output goes


def test_without_a_channel_it_goes_nowhere(who):
    done = who.run(
        "hako-task", input=json.dumps({"cmd": ["sh", "-c", "echo out; echo err >&2; ls -l /proc/self/fd >&2"]})
    )
    assert (done.stdout, done.stderr) == ('{"status":"exited","code":0}\n', "")
    assert sh(who, "ls /proc/self/fd", mounts=[PROC]).split() == ["0", "1", "2", "3"]  # one is ls's own


def test_outputs(who):
    code = "echo out; echo err >&2; printf '\\377\\0'"
    found = answer(who, "sh", "-c", code, outputs={})
    assert (found["stdout"], found["stderr"]) == ("out\n\ufffd\0", "err\n")
    found = answer(who, "sh", "-c", code, outputs={"encoding": "base64", "stderr": False})
    assert base64.b64decode(found["stdout"]) == b"out\n\xff\0"
    assert "stderr" not in found
    found = answer(who, "sh", "-c", "echo 123456789; sleep 60", outputs={"limit": 5})
    assert (found["status"], found["stdout"]) == ("outputLimit", "12345")
    assert answer(who, "printf", "12345", outputs={"limit": 5})["status"] == "exited"


@pytest.mark.parametrize(
    "channel, out",
    [({"stdout": True}, "out\n"), ({"stderr": True}, "err\n"), ({"stdout": True, "stderr": True}, "out\nerr\n")],
)
def test_a_pipe(who, place, channel, out):
    writable(place, who)
    (place / "dest").write_text("old and longer than what comes")
    writable(place / "dest", who)
    keys = {"pipes": [{"dest": str(place / "dest"), **channel}]}
    assert answer(who, "sh", "-c", "echo out; echo err >&2", **keys) == {"status": "exited", "code": 0}
    assert (place / "dest").read_text() == out


def test_a_dest_is_made_for_its_owner_alone_from_the_directory_of_the_caller(who, place):
    writable(place, who)
    request = {"cmd": ["echo", "x"], "pipes": [{"dest": "dest", "stdout": True}]}
    assert ask(who, request, cwd=place)[0]["status"] == "exited"
    assert (stat.S_IMODE((place / "dest").stat().st_mode), (place / "dest").read_text()) == (0o600, "x\n")


def test_the_last_of_several_pipes_has_the_stream(who, place):
    writable(place, who)
    names = [str(place / name) for name in ("first", "second", "both")]
    keys = {"pipes": [{"dest": name, "stdout": True} for name in names[:2]], "stdStreams": {"dest": names[2]}}
    answer(who, "sh", "-c", "echo out; echo err >&2", **keys)
    assert [pathlib.Path(name).read_bytes() for name in names] == [b"", b"out\n", b"\x80\0\0\4err\n"]


def test_a_fifo(who, place):
    """From the directory where PROG starts, or anywhere inside; for a stream too."""
    writable(place, who)
    tmp = {"mounts": [TMP], "workDir": "/tmp"}
    pipes = [
        {"dest": str(place / "one"), "src": "one"},
        {"dest": str(place / "two"), "src": "/tmp/two", "stdout": True},
    ]
    code = "echo via one >one; stat -c '%F %a' one two; exec >/tmp/two; echo again"
    assert answer(who, "sh", "-c", code, **tmp, pipes=pipes)["status"] == "exited"
    assert (place / "one").read_text() == "via one\n"
    assert (place / "two").read_text() == "fifo 600\nfifo 600\nagain\n"
    text = failed(who, "true", pipes=[{"dest": str(place / "x"), "src": "/usr"}])
    assert text == "Creating fifo '/usr': File exists"
    assert failed(who, "true", **tmp, pipes=[{"dest": str(place / "x"), "src": "a/b"}]) == (
        "Creating fifo 'a/b': No such file or directory"
    )


@pytest.mark.parametrize("key", ["pipes", "copyFiles"])
@pytest.mark.parametrize(
    "limit, status, kept", [(0, "outputLimit", 0), (4, "outputLimit", 4), (5, "exited", 5), (5.9, "exited", 5)]
)
def test_a_limit(who, place, key, limit, status, kept):
    writable(place, who)
    channel = {"dest": str(place / "dest"), "src": "file", "stdout": True, "limit": limit}
    response = answer(who, "printf", "12345", mounts=[TMP], workDir="/tmp", **{key: [channel]})
    assert (response["status"], (place / "dest").read_text()) == (status, "12345"[:kept])


def test_a_limit_of_nothing_and_no_output(who, place):
    writable(place, who)
    pipe = {"dest": str(place / "dest"), "stdout": True, "limit": 0}
    assert answer(who, "true", pipes=[pipe])["status"] == "exited"


def test_a_flood_ends_at_once(who, place):
    writable(place, who)
    pipe = {"dest": str(place / "dest"), "stdout": True, "limit": 100000}
    assert answer(who, "yes", pipes=[pipe]) == {"status": "outputLimit"}
    assert (place / "dest").stat().st_size == 100000
    found = answer(who, *PYTHON, "while True: print(1)", outputs={"limit": 4})
    assert found == {"status": "outputLimit", "stdout": "1\n1\n", "stderr": ""}  # it did not find out


def test_files_are_copied(who, place):
    writable(place, who)
    tmp = {"mounts": [TMP], "workDir": "/tmp"}

    def copied(code, status="exited", name="file", **keys):
        (place / "dest").unlink(missing_ok=True)
        copy = {"dest": str(place / "dest"), "src": name}
        response = answer(who, "sh", "-c", code, **tmp, copyFiles=[copy], **keys)
        assert response["status"] == status
        return (place / "dest").read_text()

    assert copied("echo text >file; stat -c '%a %s' file >>file") == "text\n600 5\n"
    assert copied("echo text >file; rm file") == "text\n"
    assert copied("echo text >new; mv new file") == ""
    assert copied("true") == ""
    assert copied("echo text >file; kill -9 $$", "killed") == "text\n"
    assert copied("echo text >file; sleep 60", "timeLimit", timeLimit=1) == "text\n"
    assert copied("true", "internalError", name="no/such") == ""
    both = [{"dest": str(place / "dest"), "src": "s", "stdout": True, "stderr": True}]
    answer(who, "sh", "-c", "echo out; echo err >&2", **tmp, copyFiles=both)
    assert (place / "dest").read_text() == "out\nerr\n"
    assert failed(who, "true", copyFiles=[{"dest": str(place / "dest"), "src": "/usr"}]) == (
        "Creating '/usr': File exists"
    )
    assert failed(who, "true", copyFiles=[{"dest": str(place / "dest"), "src": "/usr/no/such"}]) == (
        "Creating '/usr/no/such': No such file or directory"
    )


def test_streams_are_framed(who, place):
    writable(place, who)
    code = "echo out; echo err >&2; printf abc"
    answer(who, "sh", "-c", code, stdStreams={"dest": str(place / "dest")})
    framed = b"\0\0\0\4out\n\x80\0\0\4err\n\0\0\0\3abc"
    assert (place / "dest").read_bytes() == framed
    response = answer(who, "sh", "-c", code, stdStreams={"dest": str(place / "dest"), "limit": 10})
    assert (response, (place / "dest").read_bytes()) == ({"status": "outputLimit"}, framed[:10])
    response = answer(who, "sh", "-c", code, stdStreams={"dest": str(place / "dest"), "limit": len(framed)})
    assert response == {"status": "exited", "code": 0}


def test_streams_keep_their_order(who, place):
    writable(place, who)
    code = "import os\nfor number in range(2000): os.write(1 + number % 2, b'%d' % number); os.write(1, b'')"
    answer(who, *PYTHON, code, stdStreams={"dest": str(place / "dest")})
    expected = b"".join(
        (len(str(number)) | number % 2 << 31).to_bytes(4, "big") + b"%d" % number for number in range(2000)
    )
    assert (place / "dest").read_bytes() == expected


def test_a_write_that_is_too_large_for_the_streams(who, place):
    writable(place, who)
    code = "import os\nos.write(1, bytes(200000))\ntry: os.write(1, bytes(500000))\n"
    code += "except OSError as err: os.write(2, b'%d' % err.errno)"
    answer(who, *PYTHON, code, stdStreams={"dest": str(place / "dest")})
    assert (place / "dest").read_bytes() == (200000).to_bytes(4, "big") + bytes(200000) + b"\x80\0\0\x0290"


def test_nobody_waits_for_who_is_left(who):
    """PROG has ended: what is there is taken, and what it started is killed."""
    mark = f"mark-{os.urandom(8).hex()}"
    response = answer(who, "sh", "-c", f"(sleep 300; : {mark}) & echo done; exit 3", mark, outputs={})
    assert response == {"status": "exited", "code": 3, "stdout": "done\n", "stderr": ""}
    assert subprocess.run(["pgrep", "-f", mark], check=False, capture_output=True).returncode == 1


@pytest.mark.parametrize("name", ["/nosuch/dest", "/dev"])
@pytest.mark.parametrize("key", ["pipes", "copyFiles", "stdStreams"])
def test_a_dest_that_cannot_be_opened(who, name, key):
    channel = {"dest": name, **({} if key == "stdStreams" else {"src": "/tmp/x"})}
    reason = "Is a directory" if name == "/dev" else "No such file or directory"
    keys = {key: channel if key == "stdStreams" else [channel], "mounts": [TMP]}
    assert failed(who, "true", status=1, **keys) == f"Opening '{name}': {reason}"


def test_a_dest_that_is_full(who):
    for key, channel in (("pipes", {"stdout": True}), ("copyFiles", {"src": "/tmp/x", "stdout": True})):
        keys = {key: [{"dest": "/dev/full", **channel}], "mounts": [TMP]}
        assert failed(who, "echo", "x", status=1, **keys) == "Writing '/dev/full': No space left on device"
        assert answer(who, "true", **keys) == {"status": "exited", "code": 0}
    text = failed(who, "echo", "x", status=1, stdStreams={"dest": "/dev/full"})
    assert text == "Writing '/dev/full': No space left on device"


def test_a_dest_that_waits_for_its_reader(who, place):
    """A signal ends that; else it is as any other."""
    os.mkfifo(place / "fifo")
    writable(place / "fifo", who)
    request = json.dumps({"cmd": ["echo", "x"], "pipes": [{"dest": str(place / "fifo"), "stdout": True}]})
    process = who.start("hako-task", stdin=subprocess.PIPE)
    process.stdin.write(request)
    process.stdin.close()
    with open(place / "fifo") as file:
        assert file.read() == "x\n"
    assert process.stdout.read() == '{"status":"exited","code":0}\n'
    assert process.wait(DEADLINE) == 0
    process = who.start("hako-task", stdin=subprocess.PIPE)
    process.stdin.write(request)
    process.stdin.close()
    wait_until(lambda: waits_for_a_fifo(process.pid))
    process.terminate()
    assert process.wait(DEADLINE) in (-signal.SIGTERM, 128 + signal.SIGTERM)


def waits_for_a_fifo(pid):
    """Whether the process PID, or its child by setpriv, is in open(2)."""
    return pathlib.Path(f"/proc/{pid}/wchan").read_text() in ("wait_for_partner", "fifo_open")


# How it ends


@pytest.mark.parametrize("code", [0, 1, 125, 255])
def test_exited(who, code):
    assert answer(who, "sh", "-c", f"exit {code}") == {"status": "exited", "code": code}


@pytest.mark.parametrize(
    "number, name",
    [
        (9, "SIGKILL"),
        (15, "SIGTERM"),
        (11, "SIGSEGV"),
        (29, "SIGPOLL"),
        (31, "SIGSYS"),
        (32, "32"),
        (34, "34"),
        (64, "64"),
    ],
)
def test_killed(who, number, name):
    code = f"import os; os.kill(os.getpid(), {number})"
    assert answer(who, *PYTHON, code) == {"status": "killed", "signal": name}


@pytest.mark.parametrize("seconds", [0, 0.2])
def test_time_limit(who, seconds):
    mark = f"mark-{os.urandom(8).hex()}"
    assert answer(who, "sh", "-c", f"(trap '' TERM; sleep 300; : {mark}) & sleep 300", mark, timeLimit=seconds) == {
        "status": "timeLimit"
    }
    assert subprocess.run(["pgrep", "-f", mark], check=False, capture_output=True).returncode == 1


def test_time_that_is_enough(who):
    assert answer(who, "true", timeLimit=1e300) == {"status": "exited", "code": 0}


def test_too_much_output_counts_more_than_any_other_end(who, place):
    """It is found in the end, when all output is looked at once more."""
    writable(place, who)
    copy = {"dest": str(place / "dest"), "src": "file", "limit": 3}
    keys = {"mounts": [TMP], "workDir": "/tmp", "copyFiles": [copy]}
    for code, limit in (("sleep 60", 1), ("kill -9 $$", 60), ("exit 5", 60)):
        response = answer(who, "sh", "-c", f"echo text >file; {code}", timeLimit=limit, **keys)
        assert (response, (place / "dest").read_text()) == ({"status": "outputLimit"}, "tex")


def test_a_report(who):
    response = answer(who, "sh", "-c", "echo x; exit 4", outputs={}, report=True, id=1)
    keys = (
        "status code signal reason start_time real_time user_time system_time max_rss memory_peak pids_peak oom_kills"
    )
    assert list(response) == [*keys.split(), "forks_refused", "output_bytes", "id", "stdout", "stderr"]
    assert (response["status"], response["code"], response["signal"], response["output_bytes"]) == (
        "exited",
        4,
        None,
        2,
    )
    assert 0 < response["user_time"] + response["system_time"] < response["real_time"] < DEADLINE
    response = answer(who, *PYTHON, "x = b'x' * (100 << 20)", report=True)
    assert 100 << 20 < response["max_rss"] < 200 << 20
    response = answer(who, "nosuch", report=True)
    assert (response["code"], response["reason"]) == (None, "exec 'nosuch': No such file or directory")


# Limits


def test_limits(who):
    code = "import os\nfor _ in range(9): os.dup(0)"
    assert answer(who, *PYTHON, code, limits={"nofile": 20})["code"] == 0
    response = answer(who, *PYTHON, code, limits={"nofile": 8}, outputs={})
    assert "[Errno 24] Too many open files" in response["stderr"]
    assert sh(who, "ulimit -S -n; ulimit -H -n; ulimit -c", limits={"nofile": "9:10", "core": 0}) == "9\n10\n0\n"
    assert answer(who, "sh", "-c", "while :; do :; done", limits={"cpu": 1}) == {
        "status": "killed",
        "signal": "SIGKILL",
    }


@pytest.mark.parametrize(
    "policy, text",
    [
        ("zzz", "1:1: "),
        ("POLICY a { ALLOW { nosuchcall } }\nUSE a DEFAULT KILL", "1:20: "),
        ("\n  USE nosuch DEFAULT KILL", "2:7: "),
        ('#include "x"\nDEFAULT KILL', "1:"),
    ],
)
def test_a_policy_that_is_none(who, policy, text):
    response, done = ask(who, {"cmd": ["true"], "seccompPolicy": policy})
    assert (response["status"], done.returncode, done.stderr) == ("requestInvalid", 0, "")
    assert response["description"].startswith(f"Seccomp policy: {text}")
    assert response["description"].endswith("\n")


def test_a_policy(who):
    keys = {"outputs": {}, "mounts": [TMP]}
    make = ["mkdir", "/tmp/x"]
    assert answer(who, *make, seccompPolicy=ALLOW, **keys)["code"] == 0
    response = answer(who, *make, seccompPolicy="POLICY a { ERRNO(5) { mkdir } } USE a DEFAULT ALLOW", **keys)
    assert response["stderr"] == "mkdir: cannot create directory '/tmp/x': Input/output error\n"
    response = answer(who, *make, seccompPolicy="POLICY a { KILL { mkdir } } USE a DEFAULT ALLOW")
    assert response == {"status": "killed", "signal": "SIGSYS"}


def test_a_policy_does_not_keep_prog_from_being_run_but_from_running_others(who):
    policy = "POLICY a { ERRNO(5) { execve } } USE a DEFAULT ALLOW"
    assert sh(who, "echo runs", seccompPolicy=policy) == "runs\n"
    assert "Input/output error" in answer(who, "sh", "-c", "ls", seccompPolicy=policy, outputs={})["stderr"]


def test_landlock(who, place):
    (place / "file").write_text("text")
    system = ["/usr", "/lib", "/lib64", "/bin", "/etc", "/dev"]
    paths = [path for path in system if os.path.exists(path)]
    response = answer(who, "cat", str(place / "file"), landlock={"rx": paths}, outputs={})
    assert response["stderr"] == f"cat: {place}/file: Permission denied\n"
    assert said(who, "cat", str(place / "file"), landlock={"rx": paths, "ro": [str(place)]}) == "text"
    code = "import socket\nsocket.create_server(('127.0.0.1', 5000))"
    assert python(who, code, landlock={"bind_tcp": [5000]}) == ""
    assert "Permission denied" in answer(who, *PYTHON, code, landlock={"bind_tcp": [5001]}, outputs={})["stderr"]
    text = failed(who, "true", landlock={"ro": ["/nosuch"]})
    assert "/nosuch" in text
    assert text.endswith("No such file or directory")


# cgroups


@vm
def test_memory_in_a_cgroup(who, delegated):
    keys = {"cgroupConfig": {"memory.max": "64M"}}
    assert answer(who, *PYTHON, HUNGRY, **keys) == {"status": "memoryLimit"}
    assert answer(who, "true", **keys) == {"status": "exited", "code": 0}
    assert answer(who, *PYTHON, HUNGRY, cgroupConfig={"memory.max": "max"}) == {"status": "exited", "code": 0}
    assert answer(who, "sh", "-c", f"/usr/bin/python3 -Ic '{HUNGRY}'; exit 0", **keys) == {"status": "memoryLimit"}
    delegated.wait_until_empty()


@vm
def test_processes_in_a_cgroup(who, delegated):
    code = "for i in 1 2 3 4; do sleep 60 & done 2>/dev/null; sleep 0.3"
    assert answer(who, "bash", "-c", code, cgroupConfig={"pids.max": "3"}) == {"status": "pidsLimit"}
    assert answer(who, "bash", "-c", code, cgroupConfig={"pids.max": "30"}) == {"status": "exited", "code": 0}
    delegated.wait_until_empty()


@vm
def test_a_cgroup_of_its_own_without_a_key(who, delegated):
    """It is the root of what PROG sees of cgroups."""
    assert set(sh(who, "cut -d: -f3 /proc/self/cgroup", mounts=[PROC], cgroupConfig={}).split()) >= {"/"}
    delegated.wait_until_empty()


HERE = 'p=$(grep -E "pids|0::" /proc/self/cgroup | head -1 | cut -d: -f3); d=/sys/fs/cgroup/pids$p; '
HERE += "[ -d $d ] || d=/sys/fs/cgroup$p; mkdir $d/mine; "  # where pids is limited


@vm
@pytest.mark.usefixtures("delegated")
def test_a_cgroup_below_another(who):
    """cgroupRoot is the directory in which it is made; nothing is left there."""
    request = json.dumps({"cmd": ["true"], "cgroupConfig": {"pids.max": "5"}, "cgroupRoot": "DIR"})
    code = "if [ -e $d/cgroup.subtree_control ]; then mkdir $d/callers; echo $$ >$d/callers/cgroup.procs; "
    code += "echo +pids >$d/cgroup.subtree_control; fi; "
    code += f"echo '{request}' | sed s,DIR,$d/mine, | hako-task; ls -d $d/mine/*/; rmdir $d/mine"
    done = who.run("sh", "-c", HERE + code)
    assert done.stdout == '{"status":"exited","code":0}\n', done.stderr


@vm
def test_what_a_cgroup_refuses(who, delegated):
    for key, value, what in (
        ("pids.nosuch", "1", "Opening '{}/pids.nosuch': No such file or directory"),
        ("pids.max", "zzz", "Writing '{}/pids.max': Invalid argument"),
    ):
        text = failed(who, "true", status=1, cgroupConfig={"pids.max": "9", key: value})
        directory = text.partition("'")[2].partition("'")[0].rpartition("/")[0]
        assert text == what.format(directory)
        assert not os.path.exists(directory)
    text = failed(who, "true", status=1, cgroupConfig={}, cgroupRoot="/nosuch")
    assert text == "cgroupRoot: no cgroup /nosuch here"
    delegated.wait_until_empty()


@pytest.mark.parametrize("when, status", [(1, "internalError"), (99, "exited")])
def test_no_cgroup_is_left_where_nobody_can_be_made_who_would_remove_it(who, delegated, when, status):
    """That is the first process that is made."""
    strace = ["strace", "-o", "/dev/null", "-e", f"inject=clone3:error=EAGAIN:when={when}"]
    request = {"cmd": ["true"], "cgroupConfig": {"pids.max": "9"}}
    assert json.loads(who.run(*strace, "hako-task", input=json.dumps(request)).stdout)["status"] == status
    delegated.wait_until_empty()


@pytest.mark.parametrize("times", [3, 4])
@pytest.mark.parametrize(("mode", "asked"), [((), 1), (("--stream",), 0)])
def test_a_key_is_waited_for(who, mode, asked, times):
    """Also by what a zygote has made; who makes one sandbox has ASKED for its own keyring before."""
    done, joined = without_keys(who, times + asked, "hako-task", *mode, input='{"cmd":["true"]}\n')
    if asked:
        assert joined == ["-"] * times + [""] * (times < 4)
    exited, refused = {"status": "exited", "code": 0}, {"status": "internalError", "description": NO_KEY}
    assert json.loads(done.stdout) == (exited if times < 4 else refused)


def test_without_a_cgroup_of_ones_own(who):
    if who.name == "root":
        return
    text = failed(who, "true", status=1, cgroupConfig={"pids.max": "9"})
    assert text.startswith("Creating /sys/fs/cgroup/")
    assert text.endswith(f": Permission denied [{group.WAY_OUT}]")
    text = failed(who, "true", status=1, cgroupConfig={})
    assert text.endswith(f": Permission denied [{group.WAY_OUT}]")


@pytest.fixture
def stand_in(who, place):
    """A directory that looks like a cgroup, and what writes counters into it."""
    directory = place / "cgroup"
    directory.mkdir()
    for name in ("cgroup.procs", "memory.max", "memory.events", "pids.max", "pids.events"):
        (directory / name).touch()
        writable(directory / name, who)
    return directory


def test_the_counters_of_a_cgroup_that_is_there(who, stand_in):
    """Zero or not: what was counted before counts. Only what a key begins with is looked at."""

    def status(**config):
        names = {name.replace("_", "."): value for name, value in config.items()}
        return answer(who, "true", cgroupConfig=names, cgroup=str(stand_in), cgroupRoot="/nosuch")["status"]

    assert status(memory_max="5", pids_max="6") == "exited"
    assert [(stand_in / name).read_text() for name in ("memory.max", "pids.max", "cgroup.procs")] == ["5", "6", "0"]
    (stand_in / "memory.events").write_text("low 0\noom 3\noom_kill 0\n")
    (stand_in / "pids.events").write_text("max 2\n")
    assert status(memory_max="5") == "exited"
    assert status(memory_max="5", pids_max="6") == "pidsLimit"
    (stand_in / "memory.events").write_text("low 0\noom 3\noom_kill 1\n")
    assert status(memory_max="5", pids_max="6") == "memoryLimit"
    assert status(memory_max="5") == "memoryLimit"
    assert status(pids_max="5") == "pidsLimit"
    assert status() == "exited"
    assert sorted(os.listdir(stand_in)) == ["cgroup.procs", "memory.events", "memory.max", "pids.events", "pids.max"]


def test_counters_are_read_once_more_in_the_end(who, stand_in):
    """Before the answer; but not when the time is over."""
    (stand_in / "memory.events").write_text("oom_kill 1\n")
    keys = {"cgroupConfig": {"memory.max": "5"}, "cgroup": str(stand_in)}
    assert answer(who, "kill", "-9", "$$", **keys)["status"] == "memoryLimit"
    assert answer(who, "nosuch", **keys)["status"] == "internalError"
    assert answer(who, "sleep", "60", timeLimit=0.3, **keys)["status"] == "timeLimit"


def test_a_cgroup_that_is_not_there(who, place):
    text = failed(who, "true", status=1, cgroupConfig={}, cgroup=str(place / "no"))
    assert text == f"Opening '{place}/no': No such file or directory"


@vm
@pytest.mark.usefixtures("delegated")
def test_a_cgroup_that_is_there_stays(who):
    request = json.dumps({"cmd": ["true"], "cgroupConfig": {}, "cgroup": "DIR"})
    code = f"echo '{request}' | sed s,DIR,$d/mine, | hako-task; rmdir $d/mine && echo was there"
    done = who.run("sh", "-c", HERE + code)
    assert done.stdout == '{"status":"exited","code":0}\nwas there\n'


# Life and death


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL])
def test_a_signal_ends_it_all(who, delegated, number):
    mark = f"mark-{os.urandom(8).hex()}"
    code = f"trap '' HUP INT QUIT TERM; (sleep 300; : {mark}) & echo up; wait; sleep 300"
    pipes = [{"dest": "/dev/stderr", "stdout": True}]
    request = {"cmd": ["sh", "-c", code, mark], "pipes": pipes, "cgroupConfig": {"pids.max": "9"}}
    process = who.start("hako-task", stdin=subprocess.PIPE)
    process.stdin.write(json.dumps(request))
    process.stdin.close()
    assert process.stderr.readline() == "up\n"
    process.send_signal(number)
    assert process.stdout.read() == ""
    assert process.wait(DEADLINE) == (-number if number == signal.SIGKILL else 128 + number)
    wait_until(lambda: subprocess.run(["pgrep", "-f", mark], check=False, capture_output=True).returncode == 1)
    delegated.wait_until_empty()


def test_in_a_chain(who):
    """Behind others it is a command like any other, and imports nothing from the new root."""
    request = json.dumps({"cmd": ["echo", "x"], "outputs": {}, "uid": who.uid, "gid": who.uid})
    links = [*SYSTEM, "--mount=/bin:/bin:ro", "--proc", "--dev", "--env=PATH=/bin:/usr/bin"]
    ids = ["--user=5", "--group=5"] if who.name == "root" else []
    for words in (["rlimit-exec", "--core=0"], ["hako-run", *links, *ids, str(who.box)]):
        done = who.run(*words, "hako-task", input=request)
        assert (json.loads(done.stdout or "{}"), done.stderr) == (
            {"status": "exited", "code": 0, "stdout": "x\n", "stderr": ""},
            "",
        )
