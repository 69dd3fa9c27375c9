"""As whom PROG runs, with what: ids, groups, capabilities, environment, descriptors, namespaces."""

import os
import pathlib
import socket
import subprocess

import pytest

from conftest import NO_KEY, without_keys

EVERY = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
NONE = "0" * 16


def status(who, *options, **popen):
    """/proc/self/status of PROG, as {name: text}."""
    done = who.inside("/bin/busybox", "cat", "/proc/self/status", options=["--proc", *options], **popen)
    assert done.stderr == ""
    return {line.partition(":")[0]: line.partition(":")[2].strip() for line in done.stdout.splitlines()}


@pytest.mark.vm
@pytest.mark.parametrize("options", [(), ("--user=1000",), ("--userns=always",), ("--as-pid-1",)])
def test_nothing_is_kept(who, options):
    got = status(who, *options)
    assert {got[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {NONE}
    assert got["NoNewPrivs"] == "1"


@pytest.mark.parametrize(("user", "group"), [("1000", None), ("nobody", None), ("1234", "4321"), ("nobody", "0")])
def test_every_id_is_changed(who, user, group):
    got = status(who, f"--user={user}", *([f"--group={group}"] if group else []))
    uid = {"nobody": "65534"}.get(user, user)
    gid = group or {"1000": "1000", "nobody": "65534"}[user]
    assert got["Uid"].split() == [uid] * 4
    assert got["Gid"].split() == [gid] * 4
    assert got["Groups"] == ""


def test_the_callers_ids_are_the_default(who):
    assert status(who)["Uid"].split() == [str(who.uid)] * 4


@pytest.mark.parametrize("option", ["--user", "--group"])
@pytest.mark.parametrize(
    "value",
    ["", " 0", "0 ", "+0", "-1", "0x0", "-0", "1000 ", "\u0661", "4294967295", "4294967296", "9" * 30, "no\nbody"],
)
def test_an_id_is_parsed_whole(who, option, value):
    """Never root (seen: three of these became root elsewhere)."""
    done = who.inside("/bin/busybox", "id", "-u", options=[f"{option}={value}"])
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith(f"hako-run: {option}: ")
    assert (done.stderr.count("\n"), repr(value) in done.stderr) == (1, True)


def test_a_uid_without_passwd_entry_needs_a_group(who):
    done = who.inside("/bin/busybox", "id", options=["--user=123456"])
    assert (done.returncode, done.stderr) == (125, "hako-run: --user: 123456 is not in passwd: give --group too\n")
    assert status(who, "--user=123456", "--group=7")["Gid"].split() == ["7"] * 4


@pytest.mark.root
def test_supplementary_groups_are_cleared(who):
    with_groups = ["setpriv", "--groups=4,24", "--"]
    argv = who.sandbox("/bin/busybox", "grep", "Groups", "/proc/self/status", options=["--proc"])
    assert who.run(*with_groups, *argv).stdout.split() == ["Groups:", "4", "24"]
    for option in ("--user=65534", "--group=65534", "--user=0"):
        assert who.run(*with_groups, argv[0], option, *argv[1:]).stdout.split() == ["Groups:"]


@pytest.mark.root
def test_groups_that_cannot_be_cleared_are_an_error(who):
    ordinary = ["setpriv", "--reuid=65534", "--regid=65534", "--groups=4,65534", "--"]
    argv = who.sandbox("/bin/busybox", "true")
    hint = "an ordinary user cannot clear the supplementary groups: run without --user and --group"
    for user in ("1000", "65534"):  # the latter: what group 4 looks like inside
        done = who.run(*ordinary, argv[0], f"--user={user}", *argv[1:])
        assert (done.returncode, done.stderr) == (125, f"hako-run: setgroups: Operation not permitted [{hint}]\n")
    assert who.run(*ordinary, *argv).returncode == 0


@pytest.mark.parametrize("name", ["cap_kill", "KILL", "CAP_Kill"])
def test_capabilities_that_are_asked_for(who, name):
    for options in ((), ("--user=1000",)):
        got = status(who, f"--cap-add={name}", *options)
        assert {got[kind] for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {f"{1 << 5:016x}"}


def test_every_capability(who):
    got = status(who, "--cap-add=all")
    with open("/proc/self/status") as file:
        own = next(line.split()[1] for line in file if line.startswith("CapPrm"))
    expected = own if who.name == "root" else f"{(1 << 41) - 1:016x}"
    assert (got["CapEff"], got["CapBnd"], got["CapAmb"]) == (expected,) * 3


@pytest.mark.root
def test_a_capability_that_the_caller_lacks(who):
    argv = who.sandbox("/bin/busybox", "true")
    done = who.run("setpriv", "--inh-caps=-kill", "--bounding-set=-kill", argv[0], "--cap-add=kill", *argv[1:])
    assert (done.returncode, done.stderr) == (125, "hako-run: --cap-add: cap_kill is not the caller's to give\n")


@pytest.mark.root
def test_what_the_caller_had_is_gone(who):
    """Ambient capabilities, securebits and keepcaps of the caller."""
    before = ["setpriv", "--inh-caps=+kill", "--ambient-caps=+kill", "--securebits=+no_setuid_fixup", "--"]
    argv = who.sandbox("/bin/busybox", "cat", "/proc/self/status", options=["--proc", "--user=1000"])
    control = who.run(*before, "grep", "CapAmb", "/proc/self/status").stdout
    assert control.split()[1] == f"{1 << 5:016x}"
    lines = dict(line.split(":", 1) for line in who.run(*before, *argv).stdout.splitlines())
    assert {lines[kind].strip() for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {NONE}
    code = "import ctypes; print(ctypes.CDLL(None).prctl(27), ctypes.CDLL(None).prctl(7))"  # GET_SECUREBITS, KEEPCAPS
    argv = who.sandbox("/usr/bin/python3", "-c", code, options=["-m/usr:/usr", "-m/lib:/lib", "-m/lib64:/lib64"])
    assert who.run(*before, *argv).stdout == "0 0\n"


def test_the_environment_is_empty(who):
    assert who.inside("/usr/bin/env", options=["-m/usr:/usr", "-m/lib:/lib", "-m/lib64:/lib64"]).stdout == ""
    options = ["-m/usr:/usr", "-m/lib:/lib", "-m/lib64:/lib64", "--env=A=1", "-e", "B=x=y", "--env=SECRET", "--env=A=2"]
    done = who.inside("/usr/bin/env", options=options)
    assert sorted(done.stdout.splitlines()) == ["A=2", "B=x=y", "SECRET=host"]


def test_prog_is_found_on_the_path_of_the_sandbox(who):
    assert who.inside("busybox", "echo", "found").stdout == "found\n"
    done = who.inside("busybox", "echo", "found", options=["--env=PATH=/sbin:/data"])
    hint = "outside of the sandbox it is there: mount it, or set PATH"
    assert (done.returncode, done.stderr) == (127, f"hako-run: busybox: No such file or directory [{hint}]\n")
    assert who.inside("busybox", "echo", "found", options=["--env=PATH=/sbin::bin", "-c/"]).stdout == "found\n"


def test_chdir(who):
    assert who.inside("/bin/busybox", "pwd").stdout == "/\n"
    assert who.inside("/bin/busybox", "pwd", options=["--chdir=/data"]).stdout == "/data\n"
    assert who.inside("/bin/busybox", "pwd", options=["-c", "data/../tmp"]).stdout == "/tmp\n"


@pytest.mark.root
def test_chdir_is_by_progs_own_rights(who):
    (who.box / "data").chmod(0o700)
    done = who.inside("/bin/busybox", "pwd", options=["--chdir=/data", "--user=1000"])
    assert (done.returncode, done.stderr) == (125, "hako-run: chdir /data: Permission denied\n")


@pytest.mark.parametrize("options", [(), ("--as-pid-1",)])
def test_only_the_descriptors_that_are_kept(who, place, options):
    """Whatever the caller had open, directories included."""
    code = "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd')))"
    kept = os.open("/etc/passwd", os.O_RDONLY)
    leaked = [os.open("/", os.O_RDONLY), os.open(place, os.O_PATH), *os.pipe()]
    try:
        fds = [kept, *leaked]
        control = who.run("/usr/bin/python3", "-c", code, pass_fds=fds)
        assert set(fds) <= set(eval(control.stdout))
        done = who.python(code, options=["--proc", *options], pass_fds=fds)
        assert eval(done.stdout) == [0, 1, 2, 3]  # 3: the directory being listed
        done = who.python(code, options=["--proc", f"--keep-fd={kept}", *options], pass_fds=fds)
        assert set(eval(done.stdout)) - {0, 1, 2, kept} <= {3}
        assert kept in eval(done.stdout)
        done = who.inside("/bin/sh", "-c", f"busybox head -c 4 <&{kept}", options=[f"--keep-fd={kept}"], pass_fds=fds)
        assert done.stdout == "root"
        for fd in (*leaked, *range(3, 20)):
            done = who.inside(f"/proc/self/fd/{fd}", options=["--proc", *options], pass_fds=leaked)
            assert done.returncode in (126, 127)
    finally:
        for fd in fds:
            os.close(fd)


@pytest.mark.parametrize("fd", [0, 1, 2])
def test_a_directory_as_standard_descriptor_is_refused(who, fd):
    """From it PROG could walk the host. The interpreter itself refuses it, before our first line."""
    argv = who.sandbox("/bin/sh", "-c", "echo ran > /data/ran", options=["-W"])
    assert who.run(*argv).returncode == 0
    (who.box / "data/ran").unlink()
    done = who.run("sh", "-c", f'exec "$@" {fd}</', "sh", *argv)
    assert (done.returncode, (who.box / "data/ran").exists()) == (1, False)


def test_namespaces_of_its_own(who):
    code = "for n in $0 $*; do busybox readlink /proc/self/ns/$n; done"
    inside = who.inside("/bin/sh", "-c", code, *EVERY, options=["--proc"]).stdout.split()
    outside = [os.readlink(f"/proc/self/ns/{name}") for name in EVERY]
    same = [name for name, ours, theirs in zip(EVERY, outside, inside, strict=True) if ours == theirs]
    assert same == (["user"] if who.name == "root" else [])


@pytest.mark.vm
def test_user_namespaces_by_choice(who):
    code = "busybox readlink /proc/self/ns/user; busybox cat /proc/self/uid_map /proc/self/setgroups"
    done = who.inside("/bin/sh", "-c", code, options=["--proc", "--userns=always", "--user=1000"])
    assert done.stdout.split()[1:4] == ["1000", "1000" if who.name == "root" else str(who.uid), "1"]
    assert done.stdout.split()[0] != os.readlink("/proc/self/ns/user")
    done = who.inside("/bin/sh", "-c", code, options=["--proc", "--userns=never"])
    if who.name == "root":
        assert done.stdout.split()[0] == os.readlink("/proc/self/ns/user")
    else:
        hint = "namespaces need CAP_SYS_ADMIN, or --userns=always; see hako-check"
        message = f"hako-run: clone3 mnt,pid,net,ipc,uts,cgroup: Operation not permitted [{hint}]\n"
        assert (done.returncode, done.stderr) == (125, message)


def test_network(who):
    """None of the host's by default, lo is up; with host, the host's."""
    code = "busybox sed 1,2d /proc/net/dev | busybox cut -d: -f1 | busybox tr -d ' '; busybox ping -c1 -W1 127.0.0.1 | busybox grep -c ' 0% packet loss'"  # noqa: E501
    done = who.inside("/bin/sh", "-c", code, options=["--proc", "--cap-add=net_raw"])
    assert done.stdout == "lo\n1\n"
    lines = pathlib.Path("/proc/net/dev").read_text().splitlines()[2:]
    interfaces = [line.partition(":")[0].strip() for line in lines]
    done = who.inside("/bin/sh", "-c", code, options=["--proc", "--network=host"])
    assert done.stdout.split()[: len(interfaces)] == interfaces


@pytest.mark.root
def test_another_network_namespace(who):
    process = who.start(
        *who.sandbox("/bin/sh", "-c", "echo up; busybox readlink /proc/self/ns/net; read x", options=["--proc"]),
        stdin=subprocess.PIPE,
    )
    assert process.stdout.readline() == "up\n"
    name = process.stdout.readline()
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    option = f"--network=/proc/{children[0]}/ns/net"
    done = who.inside("/bin/busybox", "readlink", "/proc/self/ns/net", options=["--proc", option])
    process.communicate("\n", timeout=60)
    assert (done.stdout, done.stderr) == (name, "")


def test_hostname(who):
    assert who.inside("/bin/busybox", "hostname", options=["-H", "box.example"]).stdout == "box.example\n"
    assert who.inside("/bin/busybox", "hostname").stdout == socket.gethostname() + "\n"
    assert who.inside("/bin/busybox", "hostname", options=["-H", "x" * 64]).stdout == "x" * 64 + "\n"


def test_out_of_reach(who):
    """Abstract sockets and SysV shared memory of the host; with the host's network the socket is there."""
    with socket.socket(socket.AF_UNIX) as server:
        name = f"hako-test-{os.getpid()}"
        server.bind(f"\0{name}")
        server.listen()
        code = "import socket, sys; s = socket.socket(socket.AF_UNIX); print(s.connect_ex('\\0' + sys.argv[1]))"
        assert who.python(code, name).stdout == "111\n"
        assert who.python(code, name, options=["--network=host"]).stdout == "0\n"
    done = who.inside("/bin/sh", "-c", "busybox kill -0 $0", str(os.getpid()))
    assert done.returncode != 0


def test_the_session_keyring_is_new(who, compiled):
    probe = compiled(r"""
        #include <stdio.h>
        #include <sys/syscall.h>
        int main() { printf("%ld\n", syscall(SYS_keyctl, 0, -3, 0)); } /* GET_KEYRING_ID, session */
    """)
    argv = who.sandbox("/bin/probe", options=[f"-m{probe}:/bin/probe:ro"])
    outside = who.run("sh", "-c", f'{probe}; exec "$@"', "sh", *argv).stdout.split()
    assert len(set(outside)) == 2


@pytest.mark.parametrize("times", [1, 3, 4])
def test_a_key_is_waited_for(who, times):
    """The kernel takes back those of processes that have ended a while later."""
    done, joined = without_keys(who, times, *who.sandbox("/bin/busybox", "echo", "ran"))
    assert joined == ["-"] * times + [""] * (times < 4)
    refused = (125, "", f"hako-run: {NO_KEY}\n")
    assert (done.returncode, done.stdout, done.stderr) == ((0, "ran\n", "") if times < 4 else refused)


def test_nested_three_deep(who):
    """Each in its own root and pid namespace; the inner ones share the proc of the first."""
    inner = "data/inner"
    for depth in (who.box, who.box / inner):
        for name in (".hako", "bin", "proc", inner):
            (depth / inner / name).mkdir(parents=True, exist_ok=True)
        (depth / inner / "bin/busybox").touch()
    again = ["hako-run", "-m/bin/busybox:/bin/busybox:ro", "-m/proc:/proc", f"/{inner}"]
    done = who.inside(*again, *again, "/bin/sh", "-c", "busybox echo $$", options=["--proc", "--user=65534"])
    assert done.returncode == 127  # no /bin/sh in there
    done = who.inside(*again, *again, "/bin/busybox", "sh", "-c", "echo $$", options=["--proc", "--user=65534"])
    assert (done.stdout, done.stderr) == ("2\n", "")
    if who.name == "root":
        done = who.inside(*again, "/bin/busybox", "true", options=["--proc"])
        hint = "uid 0 may be mapped only by who has CAP_SETFCAP: give the outer sandbox --user; see hako-check"
        message = f"hako-run: write /proc/self/uid_map '0 0 1': Operation not permitted [{hint}]\n"
        assert (done.returncode, done.stderr) == (125, message)


CAPS = ["dac_override", "setuid", "chown", "setfcap", "sys_ptrace"]


@pytest.mark.parametrize(
    "options", [(), ("--as-pid-1",), *(("--user=65534", f"--cap-add={cap}") for cap in CAPS)], ids=" ".join
)
def test_the_interpreter_is_out_of_reach(who, options):
    """A script that names /proc/self/exe would be our interpreter again, for its owner to overwrite (CVE-2019-5736)."""
    (who.box / "bin/again").write_text("#!/proc/self/exe\nprint('again')\n")
    (who.box / "bin/again").chmod(0o755)
    system = [f"-m{path}:{path}:ro" for path in ("/usr", "/lib", "/lib64") if os.path.exists(path)]
    done = who.inside("/bin/again", options=["--proc", *system, *options])
    if who.name == "root":
        assert (done.returncode, done.stderr) == (126, "hako-run: /bin/again: Permission denied\n")
        assert who.inside("/bin/again", options=["--proc", *system, "--user=65534"]).stdout == "again\n"
    else:
        code = "import os; print(os.access('/usr/bin/python3.11', os.W_OK))"
        assert (done.stdout, who.run("/usr/bin/python3", "-c", code).stdout) == ("again\n", "False\n")
    assert who.inside("/bin/sh", "-c", "busybox mv /data/a /etc/a 2>&1", options=["-W"]).stdout.count("No such") == 1
    (who.box / "data/a").touch()
    (who.box / "etc").chmod(0o777)
    assert who.inside("/bin/busybox", "mv", "/data/a", "/etc/a", options=["-W", *options]).returncode == 0
