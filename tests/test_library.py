"""The library, used by programs: every test is one that is run by whoever is to run it.

What a program prints last is a Python literal, which the test looks at.
"""

import ast
import inspect
import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys

import pytest

import hako
from conftest import BUSYBOX, DEADLINE, wait_until

TOP = pathlib.Path(__file__).parent.parent
HEAD = "import asyncio, os, pickle, signal, sys, threading, time\nimport hako\n"
BOX = "root='@/box', mounts=['#:/bin/busybox:ro'], "
MINE = '"@include" = ["default"]\n[[files]]\ntarget = "/mine"\ncontents = "yes"\n'
MOST_OF_IT = "{'rx': ['/usr', '/bin', '/lib', '/lib64', '/proc'], 'rw': ['/dev']}"
BUSY = "i=0; while [ $i -lt 600000 ]; do i=$((i+1)); done"


def start(who, code, *argv, **options):
    """Start the program CODE."""
    return who.start(sys.executable, "-I", "-c", HEAD + code, *argv, **options)


def said(who, code, *argv, **options):
    """What the program CODE prints last; it fails in nothing."""
    done = who.run(sys.executable, "-I", "-c", HEAD + code, *argv, **options)
    assert (done.stderr, done.returncode) == ("", 0)
    return ast.literal_eval(done.stdout.splitlines()[-1])


def places(who, text):
    """TEXT with the test's directory for @, busybox for #."""
    return text.replace("@", str(who.box.parent)).replace("#", BUSYBOX)


# What a Sandbox is: each argument, what it does (options, script, output), and the control (options, output).

PROBES = {
    "policy": ("policy='@/mine.toml'", "cat /mine", "yes", "", ""),
    "root": (BOX, "echo /f*", "/file", "", "/f*"),
    "mounts": (
        "mounts=['@/data:/m:ro']",
        "cat /m/x; touch /m/y || echo no",
        "seen\nno",
        "mounts=['@/data:/m']",
        "seen",
    ),
    "tmpfs": ("tmpfs=['/s:1M']", "head -c 2000000 /dev/zero >/s/x || echo full", "full", "tmpfs=['/s:4M']", ""),
    "proc": (f"{BOX}proc=True", "busybox test -e /proc/1 && echo yes", "yes", BOX, ""),
    "dev": (f"{BOX}dev=True", "busybox test -c /dev/null && echo yes", "yes", BOX, ""),
    "symlinks": ("symlinks={'/l': '/goal'}", "readlink /l", "/goal", "", ""),
    "files": (r"files={'/f': b'\xff\x01text'}", "od -An -c /f", r"377 001   t   e   x   t", "", ""),
    "work_dir": (
        "work_dir='@/data'",
        "pwd; cat x; : > y && echo written",
        "/hako\nseen\nwritten",
        "",
        "/home/hako\nwritten",
    ),
    "writable": (f"{BOX}writable=True", "echo x > /data/w && echo written", "written", BOX, ""),
    "overlay": (f"{BOX}overlay='@/upper'", "echo x > /data/w && echo written", "written", BOX, ""),
    "env": ("env={'A': 'b c', 'PATH': '/bin'}", 'echo "$A $PATH"', "b c /bin", "", "/usr/local/bin:/usr/bin:/bin"),
    "chdir": ("chdir='/tmp'", "pwd", "/tmp", "", "/home/hako"),
    "uid": ("uid=7, gid=8", "id -u", "7", "", "%"),
    "gid": ("uid=7, gid=8", "id -g", "8", "", "%"),
    "capabilities": (
        "capabilities=['net_bind_service']",
        "grep CapEff /proc/self/status | cut -f2",
        "0000000000000400",
        "",
        "0" * 16,
    ),
    "hostname": ("hostname='there'", "hostname", "there", "", "hako"),
    "network": ("network='host'", "readlink /proc/self/ns/net | grep -c $NET", "1", "", "0"),
    "share": (
        f"{BOX}proc=True, share=['ipc', 'uts', 'cgroup']",
        "for n in ipc uts cgroup; do busybox readlink /proc/self/ns/$n; done | busybox grep -c -e $IPC -e $UTS -e $CG",
        "3",
        f"{BOX}proc=True",
        "0",
    ),
    "seccomp": ("seccomp='@/rules'", "mkdir /tmp/x || echo no", "no", "", ""),
    "landlock": (f"landlock={MOST_OF_IT}", "cat /etc/group >/dev/null || echo no", "no", "", ""),
    "rlimits": ("rlimits={'nofile': '33:44'}", "ulimit -n; ulimit -Hn", "33\n44", "rlimits={'nofile': 55}", "55\n55"),
}


@pytest.mark.parametrize("name", PROBES)
def test_an_argument_of_sandbox(who, name):
    with_it, script, wanted, without, control = (places(who, text) for text in PROBES[name])
    prepare(who)
    code = f"""
net, ipc, uts, cg = (os.readlink(f"/proc/self/ns/{{name}}") for name in ("net", "ipc", "uts", "cgroup"))
env = {{"NET": net, "IPC": ipc, "UTS": uts, "CG": cg}}
for name in env:
    env[name] = env[name].strip("abcdefghijklmnopqrstuvwxyz:[]")
found = []
for options in (dict({with_it}), dict({without})):
    result = hako.Sandbox(**options).run(["/bin/sh", "-c", sys.argv[1]], env=env)
    assert result.status == "exited", result
    found.append(result.stdout.decode().strip())
print(found)
"""
    control = str(who.uid) if control == "%" else control
    assert said(who, code, script) == [wanted, control]
    assert not (who.box / "data/w").exists() or name == "writable"
    assert (who.box.parent / "upper/data/w").exists() == (name == "overlay")


def prepare(who):
    """Make what the probes need."""
    for name in ("data", "upper"):
        (who.box.parent / name).mkdir()
        (who.box.parent / name).chmod(0o777)
    (who.box.parent / "data/x").write_text("seen\n")
    (who.box.parent / "mine.toml").write_text(MINE)
    (who.box.parent / "rules").write_text("ERRNO(1) { mkdir, mkdirat } DEFAULT ALLOW")
    for path in (*who.box.parent.glob("*"), who.box / "data"):
        os.chown(path, who.uid, who.uid)


# Limits: how a program ends with it, and without.
LIMITS = {
    "memory": ("memory='32M'", "head -c 99000000 /dev/zero | tail -c 90000000 | wc -c", "memoryLimit"),
    "pids": ("pids=3", "sleep 1 & sleep 1 & sleep 1 & sleep 1 & wait", "pidsLimit"),
    "time": ("time=0.3", "sleep 2", "timeLimit"),
    "cpu_time": ("cpu_time=0.2", BUSY, "cpuTimeLimit"),
    "output": ("output='1K'", "head -c 2000 /dev/zero", "outputLimit"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_of_sandbox(who, delegated, name):
    limit, script, wanted = LIMITS[name]
    code = f"print([hako.Sandbox(**o).run(['sh', '-c', sys.argv[1]]).status for o in (dict({limit}), {{}})])"
    assert said(who, code, script) == [wanted, "exited"]
    delegated.wait_until_empty()


def test_cpu(who, delegated):
    """A fifth of a core takes five times as long, for what is more than one period of 0.1 s."""
    code = """
for cpu in (20, None):
    result = hako.run(["sh", "-c", sys.argv[1]], cpu=cpu)
    print(result.real_time / (result.user_time + result.system_time))
"""
    done = who.run(sys.executable, "-I", "-c", HEAD + code, BUSY)
    limited, free = map(float, done.stdout.split())
    assert limited > 2.5
    assert limited > 1.5 * free or free > 2.5  # on a machine that others use too
    delegated.wait_until_empty()


@pytest.mark.parametrize(
    ("options", "names", "values"),
    [
        ("memory='64M', swap='8M'", ("memory.swap.max", "memory.memsw.limit_in_bytes"), (8 << 20, 72 << 20)),
        ("memory='64M'", ("memory.swap.max", "memory.memsw.limit_in_bytes"), (0, 64 << 20)),
        ("cpu_weight=200", ("cpu.weight", "cpu.shares"), (200, 2048)),
    ],
)
def test_what_only_the_kernel_shows(who, delegated, options, names, values):
    """Swap and weight, where neither swaps nor competes anybody: what the kernel was told."""
    code = f"""
process = hako.Sandbox({options}).popen(["sh", "-c", "echo ready; exec cat"], stdin=hako.PIPE, stdout=hako.PIPE)
process.stdout.readline()
print("ready", flush=True)
sys.stdin.read()
print(process.close())
"""
    process = start(who, code, stdin=subprocess.PIPE)
    assert process.stdout.readline() == "ready\n"
    found = [file for top in delegated.tops for name in names for file in top.glob(f"leaf-*/*/**/{name}")]
    told = {int(file.read_text()) for file in found if file.parent.name != "callers"}
    assert process.communicate("")[1] == ""
    assert told & {values[0], values[1]}
    delegated.wait_until_empty()


def test_tolerate(who, delegated):
    """What is refused does not end the program then."""
    script = "(sleep 0.1 & sleep 0.1 & sleep 0.1 & sleep 0.1 & wait) 2>/dev/null; echo on"
    code = "print([(r := hako.run(['sh', '-c', sys.argv[1]], pids=3, tolerate=t)).status for t in (['pids'], [])])"
    assert said(who, code, script) == ["exited", "pidsLimit"]
    delegated.wait_until_empty()


@pytest.mark.root
def test_parent(who, delegated):
    """The cgroup is made where it is asked for."""
    made = [top / "there" for top in delegated.tops if (top / "pids.max").exists() or "pids" in str(top)]
    made = [path for path in made if not path.exists()][:1]
    made[0].mkdir()
    code = """
process = hako.Sandbox(pids=9, parent=sys.argv[1]).popen(["sh", "-c", "echo; exec cat"], stdin=-1, stdout=-1)
process.stdout.readline()
print([name for name in os.listdir(sys.argv[1]) if name.startswith("hako-")])
process.close()
"""
    assert len(said(who, code, str(made[0]))) == 1
    wait_until(lambda: not [path for path in made[0].iterdir() if path.is_dir()])


@pytest.mark.root
@pytest.mark.parametrize("options", ["user='nobody', group='nogroup'", ""])
def test_user(who, options):
    """USER and GROUP say who it is outside: what is root's alone is not for nobody."""
    (who.box.parent / "secret").write_text("root's")
    (who.box.parent / "secret").chmod(0o600)
    code = f"print(hako.run(['cat', '/s'], mounts=[sys.argv[1] + ':/s:ro'], {options}).stdout)"
    assert said(who, code, str(who.box.parent / "secret")) == (b"" if "nobody" in options else b"root's")


@pytest.mark.root
def test_group(who):
    (who.box.parent / "secret").write_text("the group's")
    os.chown(who.box.parent / "secret", 1, 54321)
    (who.box.parent / "secret").chmod(0o040)
    found = [
        said(who, f"print(hako.run(['cat', '/s'], mounts=[sys.argv[1] + ':/s:ro'], {options}).stdout)", str(path))
        for path in [who.box.parent / "secret"]
        for options in ("user='65534', group='54321'", "user='65534', group='54322'")
    ]
    assert found == [b"the group's", b""]


def test_changes(who):
    prepare(who)
    options = places(who, f"{BOX}overlay='tmpfs:8M'")
    code = f"""
for changes in (True, False):
    result = hako.run(["/bin/sh", "-c", "echo x > /data/w; exit 3"], {options}, changes=changes)
    print([result.stderr, result.code, sorted(change["path"] for change in result.changes)])
"""
    done = who.run(sys.executable, "-I", "-c", HEAD + code)
    assert done.stdout.splitlines() == ["[b'', 3, ['/data/w']]", "[b'', 3, []]"]
    assert not (who.box / "data/w").exists()


def test_every_argument_is_tested():
    """Of what Sandbox can do, nothing is left out above."""
    tested = {*PROBES, *LIMITS, "cpu", "swap", "cpu_weight", "tolerate", "parent", "user", "group", "changes"}
    assert set(inspect.signature(hako.Sandbox).parameters) == tested


# What a Sandbox is as a value.


def test_a_sandbox_is_a_value():
    one = hako.Sandbox(env={"A": "1", "B": "2"}, mounts=["/usr:/u:ro"], memory="64M", uid=0)
    same = hako.Sandbox(env={"B": "2", "A": "1"}, mounts=("/usr:/u:ro",), memory="64M", uid=0)
    assert one == same
    assert len({one, same, hako.Sandbox()}) == 2
    assert one != hako.Sandbox()
    assert one != one.replace(uid=1)
    assert one.replace(uid=1).replace(uid=0) == one
    assert one.replace(uid=None, env=None, mounts=(), memory=None) == hako.Sandbox()
    assert pickle.loads(pickle.dumps(one)) == one
    assert eval(repr(one), {"Sandbox": hako.Sandbox}) == one


@pytest.mark.parametrize("change", ["one.memory = 1", "one._options = {}", "del one._key", "one.x = 1"])
def test_a_sandbox_cannot_be_changed(change):
    one = hako.Sandbox(memory="64M")
    with pytest.raises(AttributeError, match="a Sandbox cannot be changed"):
        exec(change, {"one": one})
    assert one == hako.Sandbox(memory="64M")


def test_relative_paths_are_of_where_the_sandbox_was_described(who):
    prepare(who)
    code = """
os.chdir(sys.argv[1])
found = hako.Sandbox(mounts=["data:/m:ro"]), hako.Sandbox(work_dir="data"), hako.Sandbox(policy="./mine.toml")
os.chdir("/")
print([pickle.loads(pickle.dumps(box)).run(["sh", "-c", "cat /m/x /hako/x /mine"]).stdout for box in found])
"""
    assert said(who, code, str(who.box.parent)) == [b"seen\n", b"seen\n", b"yes"]


def test_files_of_rules_are_what_they_are_when_a_program_is_run(who):
    """Though the worker knows the sandbox already."""
    prepare(who)
    code = """
os.chdir(sys.argv[1])
def write(file, text):
    with open("new", "w") as rules: rules.write(text)
    os.rename("new", file)
rules, found = "ERRNO(5) { mkdir, mkdirat } DEFAULT ALLOW", []
for number in range(3):
    write("own.toml", '"@include" = ["default"]\\n[[files]]\\ntarget = "/mine"\\ncontents = "%d"\\n' % number)
    write("rules", rules.replace("5", str(20 + number)))
    found.append(hako.Sandbox(policy="./own.toml").run(["cat", "/mine"]).stdout)
    mkdir = "import os\\ntry: os.mkdir('/tmp/x')\\nexcept OSError as err: print(err.errno)"
    found.append(hako.Sandbox(seccomp="./rules", tmpfs=["/tmp"]).run(["/usr/bin/python3", "-ISc", mkdir]).stdout)
print(found)
"""
    expected = [b"0", b"20\n", b"1", b"21\n", b"2", b"22\n"]
    assert said(who, code, str(who.box.parent)) == expected


@pytest.mark.parametrize("name", ["rules", "./rules", "compute"])
def test_a_filter_is_a_profile_or_a_file_of_where_the_sandbox_was_described(who, name):
    """A file that is called as a profile is not taken."""
    prepare(who)
    code = """
hako.run(["true"])  # the worker is where it was started
os.chdir(sys.argv[1])
for file, text in {"rules": "ERRNO(5) { mkdir, mkdirat } DEFAULT ALLOW", "compute": "DEFAULT KILL"}.items():
    with open(file, "w") as rules:
        rules.write(text)
box = hako.Sandbox(seccomp=sys.argv[2])
os.chdir("/")
print(pickle.loads(pickle.dumps(box)).run(["sh", "-c", "mkdir /tmp/x && echo made"]).stdout)
"""
    assert said(who, code, str(who.box.parent), name) == (b"made\n" if name == "compute" else b"")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mounts": "/usr:/usr"}, "mounts: a sequence, not '/usr:/usr'"),
        ({"mounts": [5]}, "mounts: text, not 5"),
        ({"share": "ipc"}, "share: a sequence, not 'ipc'"),
        ({"tmpfs": [5]}, "tmpfs: text, not 5"),
        ({"capabilities": [True]}, "capabilities: text, not True"),
        ({"landlock": {"ro": "/usr"}}, "landlock: ro: a sequence, not '/usr'"),
        ({"landlock": {"ro": [None]}}, "landlock: ro: numbers or text, not None"),
        ({"landlock": ["/usr"]}, "landlock: a mapping, not ['/usr']"),
        ({"env": "A=b"}, "env: a mapping, not 'A=b'"),
        ({"env": {"A": 5}}, "env: A: text, not 5"),
        ({"files": {"/x": 5}}, "files: /x: text, not 5"),
        ({"symlinks": {5: "x"}}, "symlinks: text, not 5"),
        ({"rlimits": {"nofile": 3.5}}, "rlimits: nofile: a number or text, not 3.5"),
        ({"writable": 2}, "writable: a bool, not 2"),
        ({"proc": False}, "proc: True or None, not False"),
        ({"pids": True}, "pids: a whole number, not True"),
        ({"uid": "0"}, "uid: a whole number, not '0'"),
        ({"user": 1000}, "user: text, not 1000"),
        ({"root": 5}, "root: text, not 5"),
        ({"hostname": 1.5}, "hostname: text, not 1.5"),
        ({"memory": object}, "memory: a whole number or text, not <class 'object'>"),
        ({"memory": []}, "memory: a whole number or text, not []"),
        ({"time": "2"}, "time: a number, not '2'"),
        ({"chdir": ["/"]}, "chdir: text, not ['/']"),
        ({"nonsense": 1}, "Sandbox.__init__() got an unexpected keyword argument 'nonsense'"),
    ],
)
def test_an_argument_of_another_kind(options, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        hako.Sandbox(**options)


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A": "x\0y"}, {"A\0": "x"}])
def test_an_environment_that_is_none(env):
    message = "env: an empty name, or one with '='|env(: A)?: a NUL"
    with pytest.raises(ValueError, match=message):
        hako.Sandbox(env=env)
    with pytest.raises(ValueError, match=message):
        hako.run(["true"], env=env, sandbox=hako.Sandbox())


@pytest.mark.parametrize("name", ["root", "work_dir", "policy", "seccomp", "network", "chdir", "hostname", "overlay"])
def test_text_has_no_nul(name):
    with pytest.raises(ValueError, match=f"^{name}: a NUL: 'a.x00b'$"):
        hako.Sandbox(**{name: "a\0b"})


def test_bytes_are_text_in_the_file_system_s_encoding(who):
    code = """
box = hako.Sandbox(env={b"A": b"x\\xff"}, files={"/f": b"\\0\\xff"})
print(box.run(["sh", "-c", 'printf "$A$B"; cat /f'], env={b"B": b"y\\xfe"}).stdout)
"""
    assert said(who, code) == b"x\xffy\xfe\0\xff"


def test_what_breaks_the_worker_ends_nothing_else(who):
    """Whatever it is: the check of kinds is in its way, so the key is made by hand."""
    code = """
import marshal, threading
found = []
thread = threading.Thread(target=lambda: found.append(hako.run(["sleep", "1"]).status))
thread.start()
box = hako.Sandbox()
object.__setattr__(box, "_key", marshal.dumps({"user": 1000}, 2))
try:
    box.run(["true"])
except hako.Failure as err:
    found.append(str(err))
thread.join()
print(found)
"""
    assert said(who, code) == ["a bug in hako: AttributeError(\"'int' object has no attribute 'isascii'\")", "exited"]


def test_what_was_used_is_told_though_a_limit_struck(who):
    """And what became of the program itself."""
    code = """
late = hako.run(["sh", "-c", "while :; do :; done"], time=1)
loud = hako.run(["yes"], output=1000)
ends = [[done.status, done.code, done.signal] for done in (late, loud)]
print([*ends, late.user_time > 0.1, late.system_time >= 0])
"""
    ends = ["timeLimit", None, "SIGKILL"], ["outputLimit", None, "SIGKILL"]
    assert said(who, code) == [*ends, True, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("pids=0", "pids: not from 1 to 4194304: '0'"),
        ("memory=0", "memory: less than a page, 4096 bytes: '0'"),
        ("memory='10X'", "memory: not a size, a whole number or one with K, M or G: '10X'"),
        ("memory='256MB'", "memory: not a size, a whole number or one with K, M or G: '256MB'"),
        ("memory=''", "memory: not a size, a whole number or one with K, M or G: ''"),
        ("swap='1M'", "swap: needs memory"),
        ("time=0", "time: not seconds, more than 0, like 2 or 0.5: '0'"),
        ("time=-1", "time: not seconds, more than 0, like 2 or 0.5: '-1'"),
        ("time=float('nan')", "time: not seconds, more than 0, like 2 or 0.5: 'nan'"),
        ("cpu=0", "cpu: not from 1 to 1000000: '0'"),
        ("cpu_weight=10001", "cpu_weight: not from 1 to 10000: '10001'"),
        ("output=0", "output: nothing is not to be limited to: '0'"),
        ("tolerate=['pids']", "tolerate: there is no limit of 'pids' to tolerate"),
        ("share=['net']", "share: not cgroup, ipc or uts: 'net' [network='host' shares the network]"),
        ("share=['uts'], hostname='x'", "hostname: with share of uts it would be the host's own that changes"),
        ("writable=True", "writable: needs root"),
        ("overlay='tmpfs'", "overlay: needs root"),
        ("overlay=''", "overlay: needs root"),
        ("parent='/nonexistent'", "parent: there is no limit that takes a cgroup"),
        ("changes=True", "changes: needs root"),
        ("root='/nonexistent', changes=True", "changes: needs overlay"),
        ("root='/nonexistent', policy='judge'", "policy and root: one of them"),
        ("root='/nonexistent', files={'/x': 'y'}", "files: nothing is made in root"),
        ("root='/nonexistent', writable=True, overlay='tmpfs'", "writable and overlay: one of them"),
        ("root='/nonexistent', user='0', uid=0", "user and uid, group and gid: one of each"),
        ("landlock={'read': ['/']}", "landlock: none of ro, rx, rw, rwx, bind_tcp, connect_tcp, scope: 'read'"),
        ("rlimits={'files': 3}", "rlimits: no such limit: 'files'"),
        ("rlimits={'nofile': 'x'}", "rlimits: nofile: not a whole number: 'x'"),
        ("network='pasta'", "network: pasta is for hako-run and hako-policy alone"),
        ("network='hots'", "network: neither none, host, pasta[:ARGS] nor a file with a slash: 'hots'"),
        ("files={'/../x': 'y'}", "files: '..' in it: '/../x'"),
        ("symlinks={'/': 'y'}", "symlinks: it is the root itself: '/'"),
        ("mounts=['/usr']", "mounts: not SRC:DST or SRC:DST:FLAGS: '/usr'"),
        ("hostname=''", "hostname: not of 1 to 64 bytes: ''"),
        ("capabilities=['net_admn']", "capabilities: no such capability: 'net_admn' [net_admin?]"),
        ("root='/nonexistent', capabilities=['x']", "capabilities: no such capability: 'x'"),
        ("root='/nonexistent', user='no one'", "user: no such user: 'no one'"),
    ],
)
def test_a_value_that_is_wrong_runs_nothing(who, options, message):
    code = f"""
try:
    print(["ran", hako.run(["true"], {options})])
except hako.Failure as err:
    print([str(err)])
"""
    assert said(who, code) == [message]


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ("[]", "TypeError: argv: a sequence of strings, one at least"),
        ("'true'", "TypeError: argv: a sequence of strings, one at least"),
        ("['']", "ValueError: argv: an empty name, or a NUL"),
        ("['true', 'a\\0b']", "ValueError: argv: an empty name, or a NUL"),
        ("[1]", "TypeError: expected str, bytes or os.PathLike object, not int"),
        ("['cat'], input=b'', stdin=0", "TypeError: input and stdin: one of them"),
        ("['cat'], input=5", "TypeError: memoryview: a bytes-like object is required, not 'int'"),
        ("['cat'], stdin=-7", "ValueError: not a descriptor: -7"),
        ("['cat'], stdin=999", "OSError: [Errno 9] Bad file descriptor"),
        ("['cat'], sandbox=hako.Sandbox(), time=0", "ValueError: time: not seconds, more than 0: 0"),
        ("['cat'], sandbox=hako.Sandbox(), pids=1", "TypeError: with sandbox, not: pids [see Sandbox.replace()]"),
    ],
)
def test_a_call_that_is_wrong(argv, error):
    with pytest.raises(Exception) as caught:  # which, is compared below
        eval(f"hako.run({argv})", {"hako": hako})
    assert f"{type(caught.value).__name__}: {caught.value}" == error


# Running.


def test_run_tells_how_it_ended(who):
    code = """
found = [hako.run(argv) for argv in (["sh", "-c", "echo out; echo err >&2; exit 3"], ["sh", "-c", "kill -SEGV $$"])]
print([(r.status, r.code, r.signal, r.ok, r.stdout, r.stderr, r.output_bytes) for r in found])
"""
    assert said(who, code) == [
        ("exited", 3, None, False, b"out\n", b"err\n", 8),
        ("killed", None, "SIGSEGV", False, b"", b"", 0),
    ]


def test_what_cannot_be_run_says_why(who):
    code = "print([(r := hako.run([prog])).status + ': ' + r.reason for prog in ('nosuch', '/etc/group', '/x/y')])"
    assert said(who, code) == [
        "internalError: exec 'nosuch': No such file or directory",
        "internalError: exec '/etc/group': Permission denied",
        "internalError: exec '/x/y': No such file or directory",
    ]


def test_results_and_errors_pickle(who):
    code = """
result = hako.run(["sh", "-c", "echo x; exit 4"])
assert pickle.loads(pickle.dumps(result)) == result
try:
    result.check()
except hako.TaskFailed as err:
    again = pickle.loads(pickle.dumps(err))
    assert (again.result, str(again)) == (result, str(err))
    assert hako.run(["true"]).check().ok
    failure = pickle.loads(pickle.dumps(hako.WorkerLost()))
    print([str(err), str(failure), isinstance(failure, hako.Failure)])
"""
    assert said(who, code) == ["exited 4", "the worker was killed", True]


def test_env_and_time_of_one_run(who):
    code = """
box = hako.Sandbox(env={"A": "1", "B": "2"}, time=9)
print([box.run(["sh", "-c", "echo $A $B"], env={"B": "3"}).stdout, box.run(["sleep", "9"], time=0.2).status])
"""
    assert said(who, code) == [b"1 3\n", "timeLimit"]


def test_input_and_output_of_all_kinds(who):
    code = """
os.chdir(sys.argv[1])
with open("in", "w+b") as file, open("out", "w+b") as out:
    file.write(b"from a file")
    file.seek(0)
    found = [
        hako.run(["cat"]).stdout,
        hako.run(["cat"], input=b"bytes").stdout,
        hako.run(["cat"], input="text \\u00e9").stdout,
        hako.run(["cat"], input=b"").stdout,
        hako.run(["cat"], stdin=file).stdout,
        hako.run(["sh", "-c", "echo a; echo b >&2"], stderr=hako.STDOUT),
        hako.run(["sh", "-c", "echo a; echo b >&2"], stdout=out.fileno(), stderr=hako.DEVNULL),
        hako.run(["sh", "-c", "echo c; echo d >&2"], stdout=None, stderr=out),
    ]
    found[5] = found[5].stdout, found[5].stderr
    found[6:] = [(r.stdout, r.stderr) for r in found[6:]]
    out.seek(0)
    print([*found, out.read()])
"""
    assert said(who, code, str(who.box.parent)) == [
        *(b"", b"bytes", "text \u00e9".encode(), b"", b"from a file"),
        *((b"a\nb\n", b""), (b"", b""), (b"", b""), b"a\nd\n"),
    ]


def test_output_that_goes_to_a_file_is_limited_too(who):
    code = """
with open(sys.argv[1] + "/out", "w+b") as out:
    result = hako.run(["sh", "-c", "while echo 0123456789; do :; done"], output=100, stdout=out, stderr=hako.STDOUT)
    out.seek(0)
    print([result.status, len(out.read())])
"""
    assert said(who, code, str(who.box.parent)) == ["outputLimit", 100]


def test_much_input_and_output(who):
    """100 MB each way."""
    code = """
data = os.urandom(1 << 20) * 100
result = hako.run(["cat"], input=data)
print([result.status, result.stdout == data])
"""
    assert said(who, code) == ["exited", True]


def test_many_and_long_arguments(who):
    code = """
result = hako.run(["sh", "-c", "echo $#; echo ${#1}", "sh", *["x" * 100000] * 15])
too_long = hako.run(["echo", "x" * 200000])
print([result.stdout, too_long.status, too_long.reason])
"""
    assert said(who, code) == [b"15\n100000\n", "internalError", "exec 'echo': Argument list too long"]


def test_popen(who):
    code = """
box = hako.Sandbox()
with box.popen(["cat"], stdin=hako.PIPE, stdout=hako.PIPE) as process:
    process.stdin.write(b"one")
    first = process.stdout.read(3)
    running = process.poll()
    try:
        process.wait(0.01)
    except TimeoutError as err:
        late = str(err)
    process.stdin.close()
    result = process.wait()
assert process.poll() is process.wait() is result
with box.popen(["sh", "-c", "echo out; echo err >&2"], stdout=hako.PIPE, stderr=hako.STDOUT) as process:
    both = process.stdout.read()
killed = box.popen(["sleep", "99"])
killed.kill()
killed.kill()
closed = box.popen(["sleep", "99"])
closed.close()
try:
    closed.wait()
except RuntimeError as err:
    print([first, running, late, result.status, both, killed.wait().signal, str(err)])
"""
    late = "it has not ended after 0.01 seconds"
    wanted = [b"one", None, late, "exited", b"out\nerr\n", "SIGKILL", "the process is closed"]
    assert said(who, code) == wanted


def test_many_that_wait_for_their_caller(who):
    """More than there are CPUs: none keeps another from its turn. Of more than run at once one can be killed."""
    code = """
box = hako.Sandbox()
all = [box.popen(["cat"], stdin=hako.PIPE, stdout=hako.PIPE) for _ in range(100)]
for number, process in enumerate(all):
    process.stdin.write(str(number).encode())
    assert process.stdout.read(len(str(number))) == str(number).encode()
more = box.popen(["true"])
again = box.popen(["true"])
more.kill()
found = [more.wait().signal, again.poll()]
for process in all:
    process.close()
print([*found, again.wait().code])
"""
    assert said(who, code) == ["SIGKILL", None, 0]


def test_stream(who):
    code = """
script = "for i in 1 2 3; do echo $i; read line; done; echo e >&2; exit 5"
chunks = []
with hako.Sandbox().stream(["sh", "-c", script], input="a\\nb\\nc\\n") as stream:
    chunks += stream
joined = {name: b"".join(c.data for c in chunks if c.stream == name) for name in ("stdout", "stderr")}
with hako.Sandbox().stream(["sh", "-c", "echo first; sleep 99"]) as endless:
    first = next(endless)
print([joined, stream.result.code, first.data, first.stream])
"""
    assert said(who, code) == [{"stdout": b"1\n2\n3\n", "stderr": b"e\n"}, 5, b"first\n", "stdout"]


def test_threads(who):
    """50 at once, each with its own answer."""
    code = """
found = {}
def work(number):
    for turn in range(4):
        found[number, turn] = hako.run(["sh", "-c", "cat; sleep 0.1"], input=f"{number} {turn}").stdout
threads = [threading.Thread(target=work, args=(number,)) for number in range(50)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print([len(found), all(out == f"{n} {t}".encode() for (n, t), out in found.items())])
"""
    assert said(who, code) == [200, True]


def test_asyncio(who):
    """40 at once; who cancels one ends it."""
    code = """
box = hako.Sandbox()
async def main():
    results = await asyncio.gather(*[box.run_async(["sh", "-c", f"sleep 0.1; echo {n}"]) for n in range(40)])
    task = asyncio.create_task(box.run_async(["sh", "-c", "sleep 0.5; echo late > /hako/mark"], time=9))
    slow = hako.Sandbox(work_dir=sys.argv[1])
    task = asyncio.create_task(slow.run_async(["sh", "-c", "echo > /hako/began; sleep 2; echo > /hako/mark"]))
    while not os.path.exists(sys.argv[1] + "/began"):
        await asyncio.sleep(0.01)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass
    try:
        await asyncio.wait_for(box.run_async(["sleep", "99"]), 0.3)
    except TimeoutError:
        pass
    await box.run_async(["sleep", "2.2"])
    return [[int(r.stdout) for r in results] == list(range(40)), os.path.exists(sys.argv[1] + "/mark")]
print(asyncio.run(main()))
"""
    assert said(who, code, str(who.box.parent)) == [True, False]


def test_keyboard_interrupt_ends_the_program(who):
    code = """
signal.signal(signal.SIGINT, signal.default_int_handler)
box = hako.Sandbox(work_dir=sys.argv[1])
print("ready", flush=True)
try:
    box.run(["sh", "-c", "echo > /hako/began; sleep 1; echo > /hako/mark"])
except KeyboardInterrupt:
    box.run(["sleep", "1.5"])
    print([os.path.exists(sys.argv[1] + "/mark"), box.run(["echo", "on"]).stdout])
"""
    process = start(who, code, str(who.box.parent))
    wait_until((who.box.parent / "began").exists)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE)
    assert (out.splitlines()[-1], err) == (str([False, b"on\n"]), "")


# The caller and the worker.

KIN = """
def kin(name):
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                stat = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        if int(stat[1]) == name and stat[0] != "Z":
            found.append(int(pid))
    return found
"""


def test_a_worker_that_dies(who):
    """Idle: nobody sees it. Mid-task: who waits is told, the next one has another."""
    code = f"""{KIN}
box = hako.Sandbox()
box.run(["true"])
[first] = kin(os.getpid())
os.kill(first, signal.SIGKILL)
while kin(os.getpid()):
    time.sleep(0.01)
idle = box.run(["echo", "again"]).stdout
process = box.popen(["sh", "-c", "echo; sleep 99"], stdout=hako.PIPE)
process.stdout.readline()
[second] = kin(os.getpid())
os.kill(second, signal.SIGKILL)
try:
    process.wait()
except hako.WorkerLost as err:
    lost = str(err)
end = process.stdout.read()  # nobody has it any more
print([idle, lost, end, box.run(["echo", "on"]).stdout, first != second])
"""
    assert said(who, code) == [b"again\n", "the worker was killed", b"", b"on\n", True]


def test_a_program_that_is_killed_leaves_nothing(who, delegated):
    code = f"""{KIN}
process = hako.Sandbox(pids=9, memory="64M").popen(["sh", "-c", "sleep 98765 & echo; sleep 98765"], stdout=hako.PIPE)
process.stdout.readline()
print(kin(os.getpid()), flush=True)
time.sleep(99)
"""
    process = start(who, code)
    workers = ast.literal_eval(process.stdout.readline())
    assert len(workers) == 1
    assert len(delegated.left()) > 0
    process.kill()
    process.communicate()
    wait_until(lambda: not pathlib.Path(f"/proc/{workers[0]}").exists() or state(workers[0]) == "Z")
    wait_until(
        lambda: "98765" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False).stdout
    )
    delegated.wait_until_empty()


def test_a_worker_that_is_killed_leaves_nothing(who, delegated):
    """Processes and cgroups of what it ran go with it, while its caller lives on."""
    code = f"""{KIN}
process = hako.Sandbox(pids=9, memory="64M").popen(["sh", "-c", "sleep 98764 & echo; sleep 98764"], stdout=hako.PIPE)
process.stdout.readline()
for worker in kin(os.getpid()):
    os.kill(worker, signal.SIGKILL)
print("killed", flush=True)
sys.stdin.read()
"""
    process = start(who, code, stdin=subprocess.PIPE)
    assert process.stdout.readline() == "killed\n"
    wait_until(
        lambda: "98764" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False).stdout
    )
    delegated.wait_until_empty()
    assert process.communicate("")[1] == ""


def test_what_is_forgotten_ends(who):
    code = """
process = hako.Sandbox().popen(["sleep", "99"], stdout=hako.PIPE)
stdout = process.stdout
del process
print([stdout.read(), hako.run(["echo", "on"]).stdout])
"""
    assert said(who, code) == [b"", b"on\n"]


def state(pid):
    """The letter of the state of process PID; Z if there is none."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_the_end_of_the_caller_is_the_end_of_its_worker(who):
    code = f"{KIN}\nhako.run(['true'])\nprint(kin(os.getpid()))"
    [worker] = said(who, code)
    wait_until(lambda: state(worker) == "Z")


def test_a_fork_of_the_caller(who):
    """It has a worker of its own; and the caller's programs end although the fork has their sockets too."""
    code = """
box = hako.Sandbox()
process = box.popen(["sh", "-c", "echo; sleep 99"], stdout=hako.PIPE)
process.stdout.readline()
reader, writer = os.pipe()
child = os.fork()
if not child:
    os.write(writer, box.run(["echo", "child"]).stdout)
    time.sleep(99)
of_child = os.read(reader, 99)
stdout, process.stdout = process.stdout, None
process.close()
end = stdout.read()
found = [of_child, end, box.run(["echo", "parent"]).stdout]
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
print(found)
"""
    assert said(who, code) == [b"child\n", b"", b"parent\n"]


def test_multiprocessing(who):
    (who.box.parent / "program.py").write_text("""
import multiprocessing
import hako
box = hako.Sandbox()
def work(number):
    return int(box.run(["echo", str(number)]).check().stdout)
if __name__ == "__main__":
    found = [work(7)]
    for method in ("fork", "spawn"):
        with multiprocessing.get_context(method).Pool(4) as pool:
            found += pool.map(work, range(12))
    print(found)
""")
    done = who.run(sys.executable, "-I", who.box.parent / "program.py")
    assert done.stderr == ""
    assert ast.literal_eval(done.stdout) == [7, *range(12), *range(12)]


def test_the_caller_is_never_forked(who):
    """What it starts shares its memory until the exec: nothing is copied, however large it is."""
    trace = who.box.parent / "trace"
    code = "hako.run(['true'])\nwith hako.Pool(2) as pool:\n    pool.submit(hako.Sandbox(), ['true']).result()"
    trace_of_the_caller = ["strace", "-qq", "-o", trace, "-e", "trace=fork,vfork,clone,clone3"]
    done = who.run(*trace_of_the_caller, sys.executable, "-I", "-c", HEAD + code)
    assert (done.returncode, done.stderr) == (0, "")
    calls = [line for line in trace.read_text().splitlines() if "clone" in line and "CLONE_THREAD" not in line]
    assert len(calls) == 2
    assert all("CLONE_VM" in line and "CLONE_VFORK" in line for line in calls)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_caller_without_standard_descriptors(who, number):
    """What is not open is not ours: nothing that the caller writes there gets to the worker."""
    code = f"""
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
hako.run(["true"])
process = hako.Sandbox().popen(["cat"], stdin=hako.PIPE, stdout=hako.PIPE)
found = []
for place in ({number},):
    try:
        found.append(os.readlink(f"/proc/self/fd/{{place}}").partition(":")[0])
    except OSError:
        found.append(None)
process.stdin.write(b"x")
process.stdin.close()
found.append(process.stdout.read())
result = hako.run(["sh", "-c", "echo out; echo err >&2"])
told = os.open(sys.argv[1] + ".said", os.O_WRONLY | os.O_CREAT)
os.write(told, repr([*found, result.stdout, result.stderr]).encode())
"""
    path = who.box.parent / "file"
    done = who.run("sh", "-c", f'exec "$@" {number}>&-', "sh", sys.executable, "-I", "-c", HEAD + code, str(path))
    assert done.returncode == 0
    place, *found = ast.literal_eval(path.with_name("file.said").read_text())
    assert place in (str(path), "pipe", "/dev/null", None)
    assert found == [b"x", b"out\n", b"err\n"]


def test_a_caller_that_ignores_sigchld(who):
    code = """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
found = [hako.run(["sh", "-c", "sleep 0 & wait; exit 3"]).code]
found.append(hako.run(["grep", "SigIgn", "/proc/self/status"]).stdout)
with hako.Pool(1) as pool:
    found.append(pool.submit(hako.Sandbox(), ["true"]).result().code)
print(found)
"""
    assert said(who, code) == [3, b"SigIgn:\t0000000000000000\n", 0]


def test_what_the_caller_lets_its_children_have_is_not_kept_open(who):
    """Somebody may wait for the end of it."""
    code = """
reader, writer = os.pipe()
os.set_inheritable(writer, True)
hako.run(["true"])
inside = hako.run(["ls", "/proc/self/fd"]).stdout.split()
os.close(writer)
print([os.read(reader, 1), len(inside)])
"""
    assert said(who, code) == [b"", 4]


def test_a_caller_with_few_descriptors(who):
    """The worker has more, PROG as many as the caller."""
    code = """
import resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
boxes = [hako.Sandbox(hostname=f"h{number}") for number in range(20)]
print([boxes[0].run(["sh", "-c", "ulimit -n"]).stdout, sum(box.run(["true"]).ok for box in boxes)])
"""
    assert said(who, code) == [b"256\n", 20]


def test_a_caller_in_a_directory_that_is_gone(who):
    code = """
os.mkdir(sys.argv[1] + "/gone")
os.chdir(sys.argv[1] + "/gone")
os.rmdir(sys.argv[1] + "/gone")
print(hako.run(["cat", "/m/x"], mounts=[sys.argv[1] + "/data:/m:ro"]).stdout)
"""
    prepare(who)
    assert said(who, code, str(who.box.parent)) == b"seen\n"


def test_fds_and_memory_stay_as_they_are(who):
    """Of the caller, and of the worker, with runs that end, are killed, time out, and fail."""
    code = f"""{KIN}
def measure():
    [worker] = kin(os.getpid())
    with open(f"/proc/{{worker}}/statm") as file:
        pages = int(file.read().split()[1])
    return len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{{worker}}/fd")), pages
box = hako.Sandbox()
def turn():
    box.run(["cat"], input=b"x")
    with box.popen(["sleep", "99"], stdin=hako.PIPE, stdout=hako.PIPE):
        pass
    with box.popen(["sleep", "99"]) as process:
        process.kill()
        process.wait()
    box.run(["sleep", "99"], time=0.01)
    box.run(["nosuch"])
    try:
        hako.run(["true"], pids=0)
    except hako.Failure:
        pass
for _ in range(30):
    turn()
time.sleep(0.3)
before = measure()
for _ in range(100):
    turn()
time.sleep(0.3)
after = measure()
print([after[0] - before[0], after[1] - before[1], after[2] - before[2]])
"""
    fds, of_worker, pages = said(who, code)
    assert fds == 0
    assert abs(of_worker) <= 4  # spare sandboxes come and go
    assert pages < 512  # 2 MB


def test_a_user_s_program_is_typed(tmp_path):
    """mypy --strict of the library, and of a program that uses it: what is right passes, what is wrong does not."""
    mypy = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={tmp_path}", "--follow-imports=silent"]
    ours = [f"hako/{name}.py" for name in ("__init__", "library", "link", "pool")]
    done = subprocess.run([*mypy, *ours], cwd=TOP, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("Success: no issues found in 4 source files\n", 0)
    good = """
import asyncio
import hako
box: hako.Sandbox = hako.Sandbox(memory="256M", mounts=["/usr:/u:ro"], time=1.5)
result: hako.Result = box.run(["true"], input=b"x").check()
code: int | None = hako.run(["true"], sandbox=box).code
with hako.Pool(4) as pool:
    out: bytes = pool.submit(box, ["true"]).result().stdout
    codes: list[int | None] = [one.code for one in pool.map(box, [["true"]])]
with box.popen(["cat"], stdin=hako.PIPE) as process:
    assert process.stdin is not None
    process.stdin.write(b"x")
for chunk in box.stream(["true"]):
    data: bytes = chunk.data
async def main() -> hako.Result:
    return await box.run_async(["true"])
asyncio.run(main())
"""
    done = subprocess.run([*mypy, "-c", good], cwd=TOP, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("Success: no issues found in 1 source file\n", 0)
    for bad in ("hako.Sandbox(memory=[1])", "hako.Sandbox(nonsense=1)", "hako.Sandbox().run('x').codes"):
        done = subprocess.run(
            [*mypy, "-c", f"import hako\n{bad}\n"], cwd=TOP, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout.count("error:")) == (1, 1)


def test_what_hako_offers():
    assert all(getattr(hako, name) is not None for name in hako.__all__)
    with pytest.raises(AttributeError, match="module 'hako' has no attribute 'nonsense'"):
        _ = hako.nonsense


@pytest.mark.parametrize("name", ["pidfd_open", "close_range"])
def test_a_worker_that_cannot_work_says_why(who, place, name):
    """And goes on saying it."""
    (place / "filter").write_text(f"ERRNO(38) {{ {name} }} DEFAULT ALLOW")
    code = "import hako\nfor _ in range(3): print(hako.run(['true']).reason)"
    argv = [sys.executable, "-I", "-c", code]
    assert who.run(*argv).stdout == "\n\n\n"
    done = who.run("seccomp-exec", str(place / "filter"), *argv)
    assert (done.stderr, len(done.stdout.splitlines())) == ("", 3)
    for line in done.stdout.splitlines():
        assert line.startswith(f"{name} ")
        assert line.endswith("see hako-check]")


def test_so_it_does_of_a_task(who, place):
    (place / "filter").write_text("ERRNO(38) { pidfd_open } DEFAULT ALLOW")
    code = 'import hako\nprint(hako.Pool(1).submit_task(b\'{"cmd": ["true"], "id": 4}\').result().decode())'
    done = who.run("seccomp-exec", str(place / "filter"), sys.executable, "-I", "-c", code)
    found = ast.literal_eval(done.stdout)
    assert (done.stderr, found["status"], found["id"]) == ("", "internalError", 4)
    assert found["description"].startswith("pidfd_open ")


def test_a_worker_that_cannot_go_on_says_why(who, place):
    (place / "filter").write_text("ERRNO(12) { poll } DEFAULT ALLOW")
    code = "import hako\ntry: hako.run(['true'])\nexcept hako.WorkerLost as err: print(err)"
    done = who.run("seccomp-exec", str(place / "filter"), sys.executable, "-I", "-c", code)
    assert (done.stderr, done.stdout) == ("", "the worker ended: poll: Cannot allocate memory\n")


def test_an_answer_that_cannot_be_read_is_not_the_next(who):
    code = """
from hako import worker
receive = worker.receive
def fail(from_socket):
    raise OSError(12, "no memory")
worker.receive = fail
try:
    hako.run(["echo", "1"])
except OSError as err:
    found = [err.errno]
worker.receive = receive
print([*found, hako.run(["echo", "2"]).stdout])
"""
    assert said(who, code) == [12, b"2\n"]
