"""hako-policy: what is in the root and what is not, what restricts PROG, what ends it, what makes no sandbox."""

import json
import os
import pathlib
import socket
import subprocess

import pytest
from test_limit import alive
from test_policy import SEEDS
from test_run_mounts import REMOUNT
from test_terminal import INJECT, terminal  # noqa: F401  a fixture

from conftest import BUSYBOX, SLOW, wait_until
from hako import kernel

BUILT_IN = ("compile", "default", "judge", "kiss", "network", "python")
KISS = '"@include" = ["kiss"]\n'
SEE_LIST = "see seccomp-exec --list"  # a hint
vm = pytest.mark.vm
WATCHED = ("--limit-walltime=9",)


def run(who, policy, *argv, options=(), **popen):
    """Run ARGV by hako-policy with OPTIONS under POLICY: a name, or the text of one."""
    if "\n" in policy:
        path = who.box.parent / "policy.toml"
        path.write_text(policy)
        policy = str(path)
    return who.run("hako-policy", *options, policy, *argv, **popen)


def sh(who, policy, code, options=(), **popen):
    """Run CODE by the shell likewise."""
    return run(who, policy, "/bin/sh", "-c", code, options=options, **popen)


def report_of(done):
    """The report that is the last line of what DONE said."""
    return json.loads(done.stderr.splitlines()[-1])


# What the issue asks for


@vm
@pytest.mark.parametrize("name", list(SEEDS))
def test_the_seeds_run_bash_with_the_listings_that_they_show(who, name):
    temporary = "tmp\n" if "mount_new_tmpfs" in SEEDS[name] else ""
    listing = f"bin\ndev\nlib\nlib64\nproc\n{temporary}usr\n"
    done = run(who, SEEDS[name], "/bin/bash", input="pwd\nls\nls /dev\nexit 7\n")
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout == f"/\n{listing}null\nrandom\nurandom\nzero\n"


@vm
def test_print_1(who):
    done = who.run("hako-policy", "default", "--", "python3", "-c", "print(1)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


@vm
@pytest.mark.parametrize(
    ("code", "seconds", "found"),
    [
        ("import time; time.sleep(30)", 1, f"timeLimit: {SLOW:g} seconds are over"),
        ("x = bytearray(1 << 28)", 30, "memoryLimit: 67108864 bytes of memory were not enough: a process was killed"),
    ],
)
def test_the_judge_reports_the_limit_that_strikes(who, delegated, code, seconds, found):
    options = [f"--limit-walltime={SLOW * seconds:g}", "--limit-memory=64M", "--report=-"]
    done = run(who, "judge", "python3", "-c", code, options=options)
    assert done.returncode == 124
    assert done.stderr.splitlines()[0] == f"hako-policy: {found}"
    report = report_of(done)
    assert f"{report['status']}: {report['reason']}" == found
    assert report["pids_peak"] >= 3
    delegated.wait_until_empty()


def test_the_judge_reports_one_that_ends_well(who, delegated):
    done = run(who, "judge", "python3", "-c", "print(input())", options=["--report=-"], input="fig\n")
    assert (done.returncode, done.stdout) == (0, "fig\n")
    report = report_of(done)
    assert (report["status"], report["code"], report["output_bytes"], report["oom_kills"]) == ("exited", 0, 4, 0)
    delegated.wait_until_empty()


# The root


@pytest.mark.parametrize("name", BUILT_IN)
def test_each_built_in_policy_runs_a_program(who, delegated, name):
    done = sh(who, name, "echo ran; exit 3", options=["--network=none"])
    assert (done.returncode, done.stdout, done.stderr) == (3, "ran\n", "")
    delegated.wait_until_empty()


def test_nothing_of_the_host_shows(who, place):
    """In the default policy: names, mounts, processes, variables; the host's own are the control."""
    (place / "secret").write_text("secret")
    code = "ls -A /; ls -A /home /tmp /var/tmp; cat /etc/hostname; hostname; ls /etc; set -- /proc/[0-9]*; echo $#"
    done = sh(who, "default", f"exec 2>&1; {code}; cat {place}/secret; grep -c hako-test /proc/self/mountinfo")
    assert done.stdout.splitlines() == [
        *"bin dev etc home lib lib64 proc sbin tmp usr var".split(),
        *("/home:", "hako", "", "/tmp:", "", "/var/tmp:"),
        "cat: /etc/hostname: No such file or directory",
        "hako",
        *"alternatives group hosts ld.so.cache localtime mtab nsswitch.conf os-release passwd".split(),
        "2",  # the init and the shell
        f"cat: {place}/secret: No such file or directory",
        "0",
    ]
    variables = run(who, "default", "/usr/bin/env").stdout.splitlines()
    assert sorted(variables) == ["HOME=/home/hako", "LANG=C.UTF-8", "PATH=/usr/local/bin:/usr/bin:/bin"]
    assert "SECRET" in who.run("env").stdout


def test_no_path_of_the_host_shows_the_root(who):
    """Its file system is in no mount of ours while PROG runs; that of /usr, which is, is the control."""
    code = "import os; d = [os.stat(p).st_dev for p in ('/', '/usr')]; print(*d, flush=True); input()"
    process = who.start("hako-policy", "default", "python3", "-c", code, stdin=subprocess.PIPE)
    try:
        root, usr = (f"{os.major(int(dev))}:{os.minor(int(dev))}" for dev in process.stdout.readline().split())
        here = [line.split()[2] for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()]
        assert (root in here, usr in here) == (False, True)
    finally:
        process.communicate("\n")
    assert process.returncode == 0


@vm
def test_the_root_is_read_only_and_what_is_shown_too(who):
    for path in ("/x", "/etc/x", "/etc/passwd", "/home/x", "/usr/x", "/dev/x", "/var/x"):
        done = sh(who, "default", f"echo x >>{path}")
        assert done.returncode == 2, path
        assert "Read-only file system" in done.stderr, path
    assert sh(who, "default", "echo x >/tmp/x && echo x >/home/hako/x && cat /tmp/x /home/hako/x").stdout == "x\nx\n"


def test_the_root_can_be_writable_and_has_a_size(who):
    policy = f"{KISS}[root]\nwritable = true\nsize = '64K'\n"
    assert sh(who, policy, "mkdir /new && echo x >/new/x && cat /new/x && stat -c %a / /new").stdout == "x\n755\n755\n"
    done = sh(who, policy, "head -c 100000 /dev/zero >/x")
    assert "No space left on device" in done.stderr
    done = sh(who, policy, "head -c 100000 /dev/zero >/x", options=["--report=-"])
    assert report_of(done)["status"] == "diskLimit"
    done = run(who, f"{KISS}files = [{{target = '/x', contents = '{'x' * 9999}'}}]\n[root]\nsize = 4096\n", "true")
    assert (done.returncode, done.stderr) == (125, "hako-policy: file /x: No space left on device\n")


def test_read_only_cannot_be_undone_from_inside(who, compiled):
    probe = compiled(REMOUNT)
    for goal, path in (("/", "/x"), ("/data", "/data/x")):
        (who.box.parent / "src").mkdir(exist_ok=True)
        (who.box.parent / "src").chmod(0o777)
        bind = f"-bind={who.box.parent}/src:/data"
        options = [f"--ro-bind={probe}:/probe", f"--ro{bind}"]
        assert run(who, KISS, "/probe", goal, path, options=options).stdout == "Read-only file system\n"
        options = [f"--ro-bind={probe}:/probe", f"--rw{bind}"]
        assert run(who, f"{KISS}root.writable = true\n", "/probe", goal, path, options=options).stdout == "written\n"


def test_files_links_and_directories(who):
    """With modes of their own, whatever the caller's umask is; they belong to PROG."""
    policy = f"""{KISS}
    files = [{{ target = "/a/b/file", contents = "one\\ntwo" }}, {{ target = "/tmp/in/file", contents = "" }}]
    mount_new_tmpfs = true
    [filesystem]
    dirs = [{{ destination = "/empty/dir" }}, {{ destination = "/a/b" }}]
    symlinks = [{{ original = "b/file", link = "/a/link" }}, {{ original = "/nowhere", link = "/dangling" }}]
    """
    ids = ("--uid=7", "--gid=8")
    code = "cat /a/link; echo; readlink /dangling; stat -c '%A %u %g %n' /a /a/b /a/b/file /empty/dir /tmp/in/file"
    done = sh(who, policy, code, options=ids, umask=0o077)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        *("one", "two", "/nowhere", "drwxr-xr-x 7 8 /a", "drwxr-xr-x 7 8 /a/b", "-rw-r--r-- 7 8 /a/b/file"),
        *("drwxr-xr-x 7 8 /empty/dir", "-rw-r--r-- 7 8 /tmp/in/file"),
    ]


def test_options_put_things_there(who, place):
    (place / "work").mkdir()
    os.chown(place / "work", who.uid, -1)
    (place / "file").write_text("host")
    options = [
        *(f"--ro-bind={place}/file:/ro/file", f"--rw-bind={place}/work:/rw", "--tmpfs=/t:64K", "--dev"),
        *("--symlink=/ro/file:/link", "--file=/made=made", f"--work-dir={place}/work", "--env=A=b", "--env=SECRET"),
        *("--hostname=box",),
    ]
    code = (
        "cat /link /made; pwd; echo $A $SECRET; hostname; echo w >here; cat /rw/here; ls -d /dev/tty; echo x >/ro/file"
    )
    done = sh(who, "kiss", code, options=options)
    assert done.stdout == "hostmade/hako\nb host\nbox\nw\n/dev/tty\n"
    assert "Read-only file system" in done.stderr
    assert (place / "work/here").read_text() == "w\n"
    assert sh(who, "kiss", "head -c 99999 /dev/zero >/t/x", options=options).returncode == 1
    assert sh(who, "kiss", "pwd", options=[*options, "--chdir=/t"]).stdout == "/t\n"


@pytest.mark.parametrize("name", ["with space", "new\nline", "back\\slash", "ünïcode", b"\xff\xfe", "co:lon"])
def test_names_of_any_kind(who, place, name):
    name = os.fsencode(name)
    path = os.fsencode(place) + b"/" + name
    pathlib.Path(os.fsdecode(path)).write_text("there")
    escaped = name.replace(b":", b"\\:")
    option = b"--ro-bind=" + os.fsencode(place) + b"/" + escaped + b":/in/" + escaped
    done = run(who, "kiss", "/usr/bin/cat", b"/in/" + name, options=[option])
    assert (done.stdout, done.stderr) == ("there", "")


def test_a_source_may_be_a_link_and_is_what_it_leads_to(who, place):
    (place / "dir").mkdir()
    (place / "dir/file").write_text("there")
    (place / "link").symlink_to("dir")
    (place / "deep").symlink_to("link/file")
    options = [f"--ro-bind={place}/link:/a", f"--ro-bind={place}/deep:/b"]
    assert sh(who, "kiss", "cat /a/file /b; test -L /a || echo none", options=options).stdout == "theretherenone\n"


def test_devices_are_devices_only_where_asked(who):
    assert sh(who, "kiss", "echo x >/dev/null && head -c 2 /dev/zero | od -An -tx1").stdout == " 00 00\n"
    policy = f'{KISS}mounts = [{{ source = "/dev/null", target = "/dev/none", dev = false }}]\n'
    assert "Permission denied" in sh(who, policy, "echo x >/dev/none").stderr


def test_a_writable_source_needs_its_own_rights(who, place):
    """What is the caller's stays the caller's to write, or not."""
    (place / "dir").mkdir()
    (place / "dir").chmod(0o700)
    os.chown(place / "dir", who.uid, -1)
    assert sh(who, "kiss", "touch /d/x", options=[f"--rw-bind={place}/dir:/d"]).returncode == 0
    assert (place / "dir/x").stat().st_uid == who.uid


# What is not there, and what leads elsewhere


def test_a_missing_source(who, place):
    """One line, and nothing is built; optional, it is left out."""
    mount = f'mounts = [{{ source = "{place}/none", target = "/none"@ }}]\n'
    done = run(who, KISS + mount.replace("@", ""), "touch", "/ran")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == f"hako-policy: open {place}/none: No such file or directory\n"
    done = sh(who, KISS + mount.replace("@", ", optional = true"), "test -e /none || echo none")
    assert (done.stdout, done.stderr) == ("none\n", "")
    (place / "none").write_text("there")
    assert sh(who, KISS + mount.replace("@", ", optional = true"), "cat /none").stdout == "there"


def test_links_in_binds_lead_nowhere_else(who, place):
    """A mount point in a bind is looked for inside the new root; nothing is made on the host, nor below a bind."""
    (place / "victim").mkdir()
    (place / "evil").mkdir()
    for name, goal in (("abs", place / "victim"), ("up", "../../../../.." + str(place / "victim")), ("usr", "/usr")):
        (place / "evil" / name).symlink_to(goal)
    (place / "evil/proc").symlink_to("/proc/1/root")
    before = sorted(path.name for path in place.rglob("*"))
    for name in ("abs", "up", "abs/sub", "missing", "missing/deep"):
        done = run(who, "kiss", "true", options=[f"--ro-bind={place}/evil:/evil", f"--tmpfs=/evil/{name}"])
        message = f"mount point /evil/{name}: No such file or directory [nothing is made in what is mounted]"
        assert (done.returncode, done.stderr) == (125, f"hako-policy: {message}\n")
    done = run(who, "kiss", "/x/usr/bin/true", options=[f"--ro-bind={place}/evil:/x", "--tmpfs=/x/usr"])
    assert done.returncode == 127  # it is over the sandbox's /usr
    done = run(who, "kiss", "true", options=[f"--ro-bind={place}/evil:/x", "--tmpfs=/x/proc"])
    why = (
        "Too many levels of symbolic links" if who.name == "root" else "Permission denied"
    )  # for /proc/1 is the init's
    assert (done.returncode, done.stderr) == (125, f"hako-policy: mount point /x/proc: {why}\n")
    assert sorted(path.name for path in place.rglob("*")) == before
    assert list((place / "victim").iterdir()) == []


def test_a_mount_point_swapped_meanwhile(who, place):
    """A component that is now a directory, now a link to a directory of the host: never anything there."""
    (place / "victim").mkdir(mode=0o777)
    (place / "victim").chmod(0o777)
    (place / "src/real").mkdir(parents=True)
    (place / "src/link").symlink_to(place / "victim")
    swap = "import ctypes, sys\nc = ctypes.CDLL(None)\nwhile True: c.renameat2(-100, b'real', -100, b'link', 2)"
    swapper = subprocess.Popen(["/usr/bin/python3", "-c", swap], cwd=place / "src")
    try:
        for _ in range(20):
            done = sh(who, "kiss", "touch /s/real/x", options=[f"--ro-bind={place}/src:/s", "--tmpfs=/s/real"])
            assert done.returncode in (0, 1, 125)
            assert list((place / "victim").iterdir()) == []
    finally:
        swapper.kill()
        swapper.wait()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--ro-bind=/usr:/a/../..", "kiss"], "--ro-bind: '..' in it: '/usr:/a/../..'"),
        (["--tmpfs=/", "kiss"], "--tmpfs: it is the root itself: '/'"),
        (["--tmpfs=/x:0", "kiss"], "--tmpfs: a size of 0 would mean no limit: '/x:0'"),
        (["--symlink=x", "kiss"], "--symlink: not TARGET:LINK: 'x'"),
        (["--file=/x", "kiss"], "--file: not DST=CONTENTS: '/x'"),
        (["--file=/usr/x=1", "kiss"], "{kiss}: /usr/x: lies in the mount /usr, where nothing is made"),
        (["--tmpfs=/etc/x", "--file=/etc=1", "kiss"], "{kiss}: /etc/x: lies below the file /etc"),
        (["--report=", "kiss"], "--report: not the name of a file: ''"),
        (["--limit-nofile=-1", "kiss"], "--limit-nofile: not a whole number: '-1'"),
        (["--limit-memory=1", "kiss"], "--limit-memory: not from 4096 to 9223372036854775807: '1'"),
        (["--limit-walltime=0", "kiss"], "--limit-walltime: not seconds, more than 0, like 2 or 0.5: '0'"),
        (["--uid=4294967295", "kiss"], "--uid: more than 4294967294: '4294967295'"),
        (["--user=nosuchuser", "kiss"], "--user: no such user: 'nosuchuser'"),
        (["--cap-add=nonsense", "kiss"], "--cap-add: no such capability: 'nonsense'"),
        (["--keep-fd=77", "kiss"], "--keep-fd: not open: '77'"),
        (["--keep-fd=2", "kiss"], "--keep-fd: 0, 1 and 2 are always kept: '2'"),
        (["--tty", "--no-tty", "kiss"], "--tty and --no-tty: one of them"),
        (["--tty", "kiss"], "--tty: stdin is not a terminal"),
        (["--hostname=", "kiss"], "--hostname: not of 1 to 64 bytes: ''"),
        (
            ["--network=nowhere", "kiss"],
            "--network: neither none, host, pasta[:ARGS] nor a file with a slash: 'nowhere'",
        ),
        (["--network=/usr", "kiss"], "--network: /usr is not a network namespace"),
        (["--seccomp=nonsense", "kiss"], f"--seccomp: neither a built-in profile nor a file: 'nonsense' [{SEE_LIST}]"),
        (["--env=NOT_SET_HERE", "kiss"], "--env: not set here: 'NOT_SET_HERE'"),
        (["--report=/no/such/file", "kiss"], "--report: open /no/such: No such file or directory"),
        (["--work-dir=/no/such", "kiss"], "open /no/such: No such file or directory"),
        (["--bogus", "kiss"], "unknown option: '--bogus' [see hako-policy --help]"),
        (["--hostname=a", "--hostname=b", "kiss"], "--hostname: given twice"),
        (["/no/such.toml"], "open /no/such.toml: No such file or directory"),
        ([""], "no such policy: '' [built in: compile, default, judge, kiss, network, python; a file has a slash]"),
    ],
)
def test_bad_input_is_one_line_and_nothing_runs(who, place, argv, message):
    kiss = pathlib.Path(__file__).parent.parent / "hako/policies/kiss.toml"
    done = who.run("hako-policy", f"--rw-bind={place}:/mark", *argv, "touch", "/mark/ran")
    assert (done.returncode, done.stdout, (place / "ran").exists()) == (125, "", False)
    assert done.stderr == f"hako-policy: {message.replace('{kiss}', str(kiss))}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bogus = 1\n", "{}:1: bogus: unknown key"),
        ("\nmounts = [{ source = 1 }]\n", "{}:2: mounts[0].source: not a string"),
        ("mounts = [\n", "{}:2:1: "),
        ('[seccomp]\nrules = "nonsense"\n', "{}:2: seccomp.rules: neither a built-in profile nor a file: 'nonsense' ["),
    ],
)
def test_bad_policies_are_told_by_their_place(who, text, message):
    done = run(who, text, "true")
    assert done.returncode == 125
    assert done.stderr.startswith(f"hako-policy: {message.format(who.box.parent / 'policy.toml')}")
    assert done.stderr.count("\n") == 1


# As whom, and with what


def test_ids_inside(who):
    ids = "id -u; id -g; id -G"
    assert sh(who, f"uid = 5\ngid = 6\n{KISS}", ids).stdout == "5\n6\n6\n"
    assert sh(who, "kiss", ids, options=["--uid=0", "--gid=0"]).stdout == "0\n0\n0\n"
    assert sh(who, "kiss", ids).stdout == f"{who.uid}\n{who.uid}\n{who.uid}\n"
    done = sh(who, "kiss", "cat /proc/self/status", options=["--uid=5", "--gid=6"])
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith("Cap")] == ["0" * 16] * 5
    assert "NoNewPrivs:\t1" in done.stdout


@pytest.mark.root
def test_no_group_of_root_is_kept_by_accident(who):
    done = run(who, "kiss", "true", options=["--uid=5"])
    message = "hako-policy: uid: needs gid or group too: PROG would keep the caller's group\n"
    assert (done.returncode, done.stderr) == (125, message)
    assert sh(who, "kiss", "id -u; id -g", options=["--user=nobody"]).stdout == "65534\n65534\n"


def test_an_ordinary_user_with_other_groups_may_be_somebody_inside(who):
    """Who cannot take them away keeps them."""
    if os.geteuid() == 0:
        who.prefix = ["setpriv", f"--reuid={who.uid or 65534}", "--regid=65534", "--groups=65534,12345", "--"]
    assert sh(who, "kiss", "id -u; id -g", options=["--uid=0", "--gid=0"]).stdout == "0\n0\n"


@pytest.mark.parametrize("limits", [(), WATCHED])
def test_capabilities_that_are_kept(who, limits):
    """In all sets those, and no other; a filter that goes by them knows of them."""

    def sets(*options):
        done = sh(who, "kiss", "cat /proc/self/status", options=[*options, *limits])
        return [int(line.split()[1], 16) for line in done.stdout.splitlines() if line.startswith("Cap")]

    assert sets() == [0] * 5
    assert sets("--cap-add=kill", "--cap-add=CAP_SYS_CHROOT") == [1 << 5 | 1 << 18] * 5
    assert sets("--cap-add=chown", "--uid=5", "--gid=6") == [1] * 5
    own = int(who.run("grep", "CapPrm", "/proc/self/status").stdout.split()[1], 16)
    assert sets("--cap-add=all") == [own if who.name == "root" else (1 << len(kernel.CAPABILITIES)) - 1] * 5
    assert sh(who, "kiss", "chroot /usr /bin/true", options=limits).returncode == 125
    assert sh(who, "kiss", "chroot / /bin/true", options=["--cap-add=sys_chroot", *limits]).returncode == 0


def test_a_filter_goes_by_the_capabilities_that_are_kept(who):
    refused = {
        "names": ["chroot"],
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": 39,
        "excludes": {"caps": ["CAP_SYS_CHROOT"]},
    }
    path = who.box.parent / "rules.json"
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refused]}))
    options = [f"--seccomp={path}"]
    assert "Directory not empty" in sh(who, "kiss", "chroot / /bin/true", options=options).stderr
    assert sh(who, "kiss", "chroot / /bin/true", options=[*options, "--cap-add=sys_chroot"]).returncode == 0


@pytest.mark.root
def test_a_capability_that_the_caller_lacks(who):
    argv = ["hako-policy", "--cap-add=kill", "kiss", "/bin/true"]
    done = who.run("setpriv", "--inh-caps=-kill", "--bounding-set=-kill", *argv)
    assert (done.returncode, done.stderr) == (125, "hako-policy: --cap-add: cap_kill is not the caller's to give\n")


def test_the_environment_is_what_the_policy_says(who):
    who.env.update(LC_ALL="C", MORE="more")
    policy = f'{KISS}[env]\nA = "a b"\npass = ["MORE", "LESS"]\n'
    names = "A LANG LANGUAGE LC_ALL MORE TERM".split()
    done = run(who, policy, "/usr/bin/env")
    assert sorted(line.partition("=")[0] for line in done.stdout.splitlines()) == names
    assert "A=a b\n" in done.stdout
    assert "MORE=more\n" in done.stdout


def test_prog_is_that_of_the_policy_then_the_shell(who):
    command = f'{KISS}[command]\ncmdline = ["/bin/echo", "from", "the policy"]\ncwd = "/usr"\n'
    assert run(who, command).stdout == "from the policy\n"
    assert run(who, command, "/bin/pwd").stdout == "/usr\n"
    who.env["SHELL"] = "/bin/bash"
    assert run(who, "kiss", input="echo $0\n").stdout == "/bin/bash\n"
    del who.env["SHELL"]
    assert run(who, "kiss", input="echo $0\n").stdout == "/bin/sh\n"
    assert run(who, "python", input="print(5)").stdout == "5\n"


def test_namespaces(who):
    """All are new, but for those that are shared."""
    names = "cgroup ipc mnt net pid uts".split()
    here = {name: os.readlink(f"/proc/self/ns/{name}") for name in names}
    code = "cd /proc/self/ns; readlink " + " ".join(names)
    inside = dict(zip(names, sh(who, "kiss", code).stdout.split(), strict=True))
    assert not set(inside.values()) & set(here.values())
    shared = "".join(f'{{ type = "{name}", share = true }},' for name in ("cgroup", "ipc", "network", "uts"))
    done = sh(who, f"{KISS}namespaces = [{shared}]\n", f"{code}; hostname")
    inside = dict(zip(names, done.stdout.split(), strict=False))
    assert {name for name in names if inside[name] == here[name]} == {"cgroup", "ipc", "net", "uts"}
    assert done.stdout.split()[-1] == socket.gethostname()


@pytest.mark.root
def test_a_network_namespace_by_its_file(who):
    holder = subprocess.Popen(["unshare", "-n", "sleep", "60"])
    try:
        path = f"/proc/{holder.pid}/ns/net"
        wait_until(lambda: os.readlink(path) != os.readlink("/proc/self/ns/net"))
        done = sh(who, "kiss", "readlink /proc/self/ns/net", options=[f"--network={path}"])
        assert done.stdout.strip() == os.readlink(path)
    finally:
        holder.kill()
        holder.wait()


def test_descriptors_of_the_caller_are_closed(who, place):
    fd = os.open(place, os.O_RDONLY)
    try:
        code = f"import os; print([f for f in (3, 4, 5, {fd}) if os.path.exists(f'/proc/self/fd/{{f}}')])"
        done = run(who, "default", "python3", "-c", code, options=["--limit-walltime=9"], pass_fds=[fd])
        assert done.stdout == "[]\n"
    finally:
        os.close(fd)


@pytest.mark.parametrize("options", [(), (*WATCHED, "--limit-output=1M", "--report=/dev/null", "--changes=/dev/null")])
def test_descriptors_that_are_kept(who, place, options):
    """They alone; the hako-policy's own are nobody's to keep."""
    code = "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd')))"
    fds = [os.open("/etc/passwd", os.O_RDONLY), os.open("/", os.O_RDONLY), os.open(place, os.O_PATH)]
    try:
        more = [*options, f"--keep-fd={fds[0]}"]
        done = run(who, "default", "python3", "-Ic", code, options=more, pass_fds=fds)
        assert (done.stderr, set(eval(done.stdout)) - {0, 1, 2, fds[0]} <= {3, 4}) == ("", True)
        assert fds[0] in eval(done.stdout)
        code = f"import os; print(os.pread({fds[0]}, 4, 0).decode(), end='')"
        done = run(who, "default", "python3", "-Ic", code, options=more, pass_fds=fds)
        assert (done.stdout, done.stderr) == ("root", "")
        for fd in {*range(3, 40)} - set(fds):
            done = run(who, "default", "true", options=[*options, f"--keep-fd={fd}"])
            assert (done.returncode, done.stderr) == (125, f"hako-policy: --keep-fd: not open: '{fd}'\n")
    finally:
        for fd in fds:
            os.close(fd)


# What restricts PROG


def test_limits_of_each_process(who):
    options = ["--limit-nofile=33", "--limit-core=0", "--limit-cpu=44", "--limit-fsize=1M", "--limit-as=1G"]
    done = sh(who, "kiss", "ulimit -n; ulimit -c; ulimit -t; ulimit -f; ulimit -v; ulimit -Hn", options=options)
    assert done.stdout == "33\n0\n44\n2048\n1048576\n33\n"
    assert sh(who, "kiss", "while :; do :; done", options=["--limit-cpu=1"]).returncode == 137
    done = sh(who, "default", "head -c 9999 /dev/zero >/tmp/x", options=["--limit-fsize=1K"])
    assert done.returncode == 153


def test_limits_of_all_together(who, delegated):
    done = sh(who, "kiss", "while :; do sleep 30 & done", options=["--limit-pids=20", "--report=-"])
    assert (done.returncode, report_of(done)["status"]) == (124, "pidsLimit")
    done = sh(who, f"{KISS}[cgroup]\nmemory = '64M'\ncpu = 50\n", "head -c 200M /dev/zero | tail")
    assert done.returncode == 124
    assert done.stderr.endswith(
        "hako-policy: memoryLimit: 67108864 bytes of memory were not enough: a process was killed\n"
    )
    delegated.wait_until_empty()


@vm
def test_limits_without_a_cgroup(who):
    done = sh(who, "kiss", "sleep 30", options=["--limit-walltime=0.3"])
    assert (done.returncode, done.stderr) == (124, "hako-policy: timeLimit: 0.3 seconds are over\n")
    done = sh(who, "kiss", "while echo fig; do :; done", options=["--limit-output=4K"])
    assert (done.returncode, len(done.stdout)) == (124, 4096)
    assert done.stderr == "hako-policy: outputLimit: more than 4096 bytes of output\n"


@pytest.mark.usefixtures("delegated")
def test_a_limit_that_cannot_be_had_is_called_by_its_key(who):
    done = sh(who, f"{KISS}[cgroup]\nnonsense.max = 1\n", "echo ran")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("hako-policy: cgroup.nonsense.max: no cgroup here has the controller nonsense, ")


def test_the_filter_is_in_force(who):
    status = "grep Seccomp: /proc/self/status"
    unshare = "unshare -U true && echo done"
    assert sh(who, "kiss", f"{status}; {unshare}").stdout == "Seccomp:\t0\ndone\n"
    done = sh(who, "default", f"{status}; {unshare}")
    assert done.stdout == "Seccomp:\t2\n"
    assert "Operation not permitted" in done.stderr
    assert sh(who, "default", f"{status}; {unshare}", options=["--seccomp=none"]).stdout == "Seccomp:\t0\ndone\n"
    listed = f'{KISS}[seccomp]\ndismatch_action = "allow"\nsyscalls = ["unshare"]\n'
    assert sh(who, listed, unshare).returncode == 128 + 31


@vm
def test_landlock_is_in_force(who):
    base = f"{KISS}mount_new_tmpfs = true\n"
    code = "cat /usr/share/common-licenses/BSD >/dev/null && echo read; echo x >/tmp/x && echo written; true"
    assert sh(who, base, code).stdout == "read\nwritten\n"
    done = sh(who, f'{base}[landlock]\nrx = ["/usr", "/bin", "/lib", "/lib64"]\nrw = ["/dev"]\n', code)
    if kernel.landlock_abi() < 5:  # it could not deny all that is to be denied: refused, not weaker
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
        assert done.stderr.startswith("hako-policy: landlock: Linux ")
        return
    assert done.stdout == "read\n"
    assert "Permission denied" in done.stderr
    done = sh(who, f'{base}[landlock]\nrx = ["/bin"]\n', code)
    hint = "Landlock: PROG, its interpreter and its libraries must be allowed, see landlock in the policy"
    assert (done.returncode, done.stderr) == (126, f"hako-policy: /bin/sh: Permission denied [{hint}]\n")
    done = sh(who, f'{base}[landlock]\nrx = ["/no/such"]\n', code)
    assert (done.returncode, done.stderr) == (125, "hako-policy: open /no/such: No such file or directory\n")


def test_landlock_restricts_tcp(who):
    code = "import socket; socket.create_server(('127.0.0.1', int(__import__('sys').argv[1]))); print('bound')"
    policy = '"@include" = ["default"]\n[landlock]\nbind_tcp = [8080]\n'
    assert run(who, policy, "python3", "-c", code, "8080").stdout == "bound\n"
    assert "Permission denied" in run(who, policy, "python3", "-c", code, "8081").stderr


@pytest.mark.root
def test_the_interpreter_is_not_executed_again(who, place):
    """A script that names /proc/self/exe would be our interpreter again, for its owner to overwrite (CVE-2019-5736)."""
    (place / "again").write_text("#!/proc/self/exe\nprint('again')\n")
    (place / "again").chmod(0o755)
    done = run(who, "kiss", "/again", options=[f"--ro-bind={place}/again:/again"])
    assert (done.returncode, done.stderr) == (126, "hako-policy: /again: Permission denied\n")


def test_nothing_is_injected_into_the_terminal(who, terminal):  # noqa: F811  the fixture
    done = run(who, "default", "python3", "-c", INJECT, stdin=terminal[1])
    assert done.stdout.splitlines() == [f"{name} Operation not permitted" for name in ("SCTTY", "STI", "SETD", "LINUX")]


# How it ends


@pytest.mark.parametrize("options", [(), WATCHED])
@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["/bin/sh", "-c", "exit 42"], 42, ""),
        (["/bin/sh", "-c", "kill -SEGV $$"], 139, ""),
        (["/usr/lib"], 126, "hako-policy: /usr/lib: Permission denied [a directory]\n"),
        (["no-such-program"], 127, "hako-policy: no-such-program: No such file or directory\n"),
    ],
)
def test_exit_status(who, argv, status, message, options):
    done = run(who, "kiss", *argv, options=options)
    assert (done.returncode, done.stderr) == (status, message)


def test_a_signal_that_is_repeated_leaves_no_core_file(who):
    """Its control is a shell that dies of it."""
    cores = "ulimit -c unlimited; cd data; exec"
    os.chown(who.box / "data", who.uid, -1)
    done = who.run("sh", "-c", f"{cores} hako-policy --limit-walltime=9 kiss /bin/sh -c 'kill -SEGV $$'", cwd=who.box)
    assert (done.returncode, os.listdir(who.box / "data")) == (139, [])
    who.run("sh", "-c", f"{cores} sh -c 'kill -SEGV $$'", cwd=who.box)
    pattern = pathlib.Path("/proc/sys/kernel/core_pattern").read_text()
    assert bool(os.listdir(who.box / "data")) == ("/" not in pattern and not pattern.startswith("|"))


@pytest.mark.parametrize("options", [(), WATCHED])
def test_the_report_is_one(who, place, options):
    for argv, found in (
        (["/bin/sh", "-c", "exit 3"], ("exited", 3, None, "")),
        (["/bin/sh", "-c", "kill -9 $$"], ("killed", None, "SIGKILL", "")),
        (["/none"], ("internalError", None, None, "hako-policy: /none: No such file or directory")),
    ):
        path = place / "report"
        done = run(who, "kiss", *argv, options=[*options, f"--report={path}"])
        report = json.loads(path.read_text())
        assert tuple(report[key] for key in ("status", "code", "signal", "reason")) == found
        assert done.stderr == (f"{found[3]}\n" if found[3] else "")
        path.unlink()


@pytest.mark.parametrize("options", [(), WATCHED])
@pytest.mark.parametrize(("number", "status"), [(15, 143), (2, 130), (9, -9)])
def test_a_signal_ends_all_of_it(who, options, number, status):
    mark = f"30{os.getpid()}{number}{len(options)}{who.uid}"
    process = who.start("hako-policy", *options, "kiss", "/bin/sh", "-c", f"sleep {mark} & echo on; wait")
    assert process.stdout.readline() == "on\n"
    wait_until(lambda: alive(mark))
    process.send_signal(number)
    process.communicate()
    assert process.returncode == status
    wait_until(lambda: not [pid for pid in alive(mark) if pid != process.pid])


@pytest.mark.parametrize("options", [(), WATCHED])
def test_signals_are_passed_on(who, options):
    code = "trap 'echo got it; exit 5' USR1; echo on; while :; do sleep 0.05; done"
    process = who.start("hako-policy", *options, "kiss", "/bin/sh", "-c", code)
    assert process.stdout.readline() == "on\n"
    process.send_signal(10)
    assert process.communicate()[0] == "got it\n"
    assert process.returncode == 5


def test_nothing_is_left_of_what_prog_started(who):
    mark = f"31{os.getpid()}{who.uid}"
    done = sh(who, "kiss", f"sleep {mark} & setsid sleep {mark} & echo done")
    assert done.stdout == "done\n"
    wait_until(lambda: not alive(mark))


def test_verbose_says_each_step(who):
    policy = f"""{KISS}hostname = "box"
    files = [{{ target = "/f", contents = "" }}]
    [limits]
    nofile = 99
    [seccomp]
    rules = "default"
    [landlock]
    rwx = ["/"]
    """
    done = run(who, policy, "/bin/true", options=["--verbose"])
    lines = [line.removeprefix("hako-policy: ") for line in done.stderr.splitlines()[:-1]]
    order = [
        *(f"policy: {who.box.parent}/policy.toml", "network: lo alone", "root: an empty tmpfs, ro,nosuid,nodev"),
        *("mount: /bin on /bin ro", "mount: /dev/null on /dev/null dev", "file: /f", "proc: /proc"),
        *("mount: /usr on /usr ro", "hostname: box", "limits: nofile 99", "landlock: rwx=/", "seccomp: default"),
        *("execute: /bin/true", "PROG exited with status 0"),
    ]
    assert [line for line in lines if line in order] == order
    assert report_of(done)["code"] == 0
    if who.name == "user":
        assert f"user namespace: uid and gid ({who.uid}, {who.uid}) inside are ({who.uid}, {who.uid}) outside" in lines


# In chains, and printed


def test_links_behind_it_are_run_inside(who):
    done = run(who, "kiss", "rlimit-exec", "--nofile=17", "/bin/sh", "-c", "ulimit -n")
    assert (done.stdout, done.stderr) == ("17\n", "")
    done = run(
        who, "default", "seccomp-exec", "compute", "/bin/sh", "-c", "grep -c . /proc/self/status >/dev/null; echo ok"
    )
    assert done.stdout == "ok\n"
    done = run(who, "kiss", "rlimit-exec", "--nofile=17", "/bin/true", options=["--seccomp=minimal"])
    message = "rlimit-exec: setrlimit RLIMIT_NOFILE 17: Operation not permitted\n"  # the filter is there before it
    assert (done.returncode, done.stderr) == (125, message)
    done = who.run("hako-limit", "--time=0.3", "hako-policy", "default", "sleep", "30")
    assert (done.returncode, done.stderr) == (124, "hako-limit: timeLimit: 0.3 seconds are over\n")


def test_a_policy_in_a_sandbox_shows_what_is_there(who):
    """Its sources are those of the outer one; an own proc the kernel refuses there."""
    text = 'mount_new_procfs = false\nmounts = [{ source = "/bin", target = "/b" }]\n'
    path = who.box.parent / "inner.toml"
    path.write_text(text)
    options = ["--uid=5", "--gid=5"] if who.name == "root" else []
    argv = ["hako-policy", *options, f"--ro-bind={BUSYBOX}:/bin/busybox", "--tmpfs=/bin/x", "--proc"]
    empty = who.box.parent / "empty.toml"
    empty.write_text("")
    done = who.run(*argv, str(empty), "hako-policy", str(path), "/b/busybox", "ls", "/", "/b")
    assert (done.returncode, done.stdout) == (0, "/:\nb\n\n/b:\nbusybox\nx\n")


def test_what_is_printed_has_prog_and_all_that_was_asked_for(who, place):
    printed = who.run("hako-policy", "--print", "kiss", "echo", "a b", "c")
    (place / "printed.toml").write_text(printed.stdout)
    done = who.run("hako-policy", str(place / "printed.toml"))
    assert (done.stdout, done.stderr, done.returncode) == ("a b c\n", "", 0)
    for option in ("--cap-add=chown", "--keep-fd=1"):
        done = who.run("hako-policy", "--print", option, "kiss", "true")
        message = f"hako-policy: {option.partition('=')[0]}: no policy has that to be printed\n"
        assert (done.returncode, done.stdout, done.stderr) == (125, "", message)


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_is_printed_is_a_policy_that_says_the_same(who, place, name):
    options = ["--file=/made=made", "--limit-nofile=99", "--env=A=b", "--tmpfs=/scratch:1M"]
    printed = who.run("hako-policy", *options, "--print", name)
    assert (printed.returncode, printed.stderr) == (0, "")
    (place / "printed.toml").write_text(printed.stdout)
    again = who.run("hako-policy", "--print", str(place / "printed.toml"))
    assert again.stdout == printed.stdout
    done = sh(who, str(place / "printed.toml"), "cat /made; ulimit -n", options=["--network=none", "--limit-cpu=9"])
    if name != "judge":  # which needs a cgroup
        assert (done.stdout, done.stderr) == ("made99\n", "")
