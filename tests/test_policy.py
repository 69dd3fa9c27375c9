"""The policy language: every key of its three generations, options, files, and every mistake with its place."""

import os
import pathlib
import subprocess
import sys
import time

import pytest
import test_pages
from bpf_interpreter import run
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hako import bpf, policy, policy_keys, policy_options, rules, sandbox, syscalls, toml
from hako.failure import Failure

TOP = pathlib.Path(__file__).parent.parent
COMPUTE = "compute? see seccomp-exec --list"  # what a hint says
SEEDS = {  # the policies that the first generation's own page shows
    "2022-08-15": """
mount_new_tmpfs = true
mount_new_devfs = true
mounts = [
  { source = "/bin"  , target = "/bin"  },
  { source = "/lib"  , target = "/lib"  },
  { source = "/lib64", target = "/lib64"},
  { source = "/usr"  , target = "/usr"  },
]

[env]
TERM = {{ os_env "TERM" }}
    """,
    "2023-11-04": """
mounts = [
  { source = "/bin"        , target = "/bin"         },
  { source = "/lib"        , target = "/lib"         },
  { source = "/lib64"      , target = "/lib64"       },
  { source = "/usr"        , target = "/usr"         },
  { source = "/dev/null"   , target = "/dev/null"     , rw = true },
  { source = "/dev/random" , target = "/dev/random"   , rw = true },
  { source = "/dev/urandom", target = "/dev/urandom"  , rw = true },
  { source = "/dev/zero"   , target = "/dev/zero"     , rw = true },
]

[env]
LANG     = {{ os_env "LANG"     }}
LANGUAGE = {{ os_env "LANGUAGE" }}
LC_ALL   = {{ os_env "LC_ALL"   }}
TERM     = {{ os_env "TERM"     }}
    """,
}
PROC = ("Proc", {"dst": "/proc"})
DEVICES = [
    bind for name in ("null", "random", "urandom", "zero") for bind in [(f"/dev/{name}", f"/dev/{name}", {"dev"})]
]
BUILT_IN = ["compile", "default", "judge", "kiss", "network", "python"]


def plain(value):
    """VALUE, a Policy or a part of one, as what can be compared."""
    if isinstance(value, policy.Policy):
        return {field: plain(getattr(value, field)) for field in value.__slots__ if field != "name"}
    if type(value).__module__ == "hako.sandbox":
        fields = {field: getattr(value, field) for field in value.__slots__}
        # What no policy can say of a mount, and is as it was made.
        assert (fields.pop("ro", False), fields.pop("options", {})) == (False, {})
        return type(value).__name__, fields
    return [plain(item) for item in value] if isinstance(value, list) else value


def bind(src, dst, flags=("ro",)):
    return "Bind", {"src": src, "dst": dst, "flags": frozenset(flags)}


def in_order(entries):
    """ENTRIES, as of plain(), parents first."""
    return sorted(entries, key=lambda entry: entry[1]["dst"].split("/"))


def parse(text):
    return policy.parse("p.toml", text)


def mistake(text):
    """What is said about TEXT, which is wrong."""
    with pytest.raises(Failure) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def home(place, monkeypatch):
    """A directory for policies in a home of its own."""
    monkeypatch.setenv("HOME", str(place))
    directory = place / ".config/hako/policies"
    directory.mkdir(parents=True)
    return directory


def test_the_seeds_policies_load_unchanged(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("LANG", 'a"b\n')
    monkeypatch.delenv("LANGUAGE", raising=False)
    monkeypatch.delenv("LC_ALL", raising=False)
    system = [bind(path, path) for path in ("/bin", "/lib", "/lib64", "/usr")]
    devices = [bind(*device) for device in DEVICES]
    first, second = (parse(text) for text in SEEDS.values())
    tmpfs = ("Tmpfs", {"dst": "/tmp", "size": None})
    assert plain(first.tree) == in_order([*system, *devices, PROC, tmpfs])
    assert plain(second.tree) == in_order([*system, *devices, PROC])
    assert first.env == {"TERM": "xterm"}
    assert second.env == {"LANG": 'a"b\n', "LANGUAGE": "", "LC_ALL": "", "TERM": "xterm"}
    assert (first.network, first.writable, first.seccomp, first.limits) == ("none", False, None, {})


def test_kiss_is_the_seeds_policy():
    seed, kiss = parse(SEEDS["2023-11-04"]), policy.load("kiss")
    for entry in kiss.tree:
        if entry.dst == "/lib64":
            entry.flags -= {"optional"}
    assert plain(kiss) == plain(seed)


def tree(text):
    """What TEXT puts into the root, but for /proc."""
    return [entry for entry in plain(parse(text).tree) if entry != PROC]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('mounts = [{ source = "/a", target = "/b" }]', [bind("/a", "/b")]),
        ('mounts = [{ source = "/a", target = "/b", rw = false }]', [bind("/a", "/b")]),
        ('mounts = [{ source = "/a", target = "/b", rw = true }]', [bind("/a", "/b", ())]),
        ('mounts = [{ source = "/a", destination = "/b", type = "", rw = true }]', [bind("/a", "/b", ())]),
        ('mounts = [{ source = "/a" }]', [bind("/a", "/a")]),
        ('mounts = [{ source = "a", target = "b/./c//" }]', [bind("a", "/b/c")]),
        (
            '[[mounts]]\nsource = "/a"\noptional = true\nnoexec = true\nnorec = true',
            [bind("/a", "/a", {"ro", "optional", "noexec", "norec"})],
        ),
        ('mounts = [{ source = "/dev/fuse", rw = true }]', [bind("/dev/fuse", "/dev/fuse", {"dev"})]),
        ('mounts = [{ source = "/dev/fuse", dev = false }]', [bind("/dev/fuse", "/dev/fuse", {"ro"})]),
        ('mounts = [{ source = "/dev/../etc", target = "/x" }]', [bind("/dev/../etc", "/x")]),
        ('mounts = [{ source = "/srv", dev = true }]', [bind("/srv", "/srv", {"ro", "dev"})]),
        ('mounts = [{ source = "/a", target = "/b" }, { source = "/c", target = "/b" }]', [bind("/c", "/b")]),
        ('mounts = [{ source = "", target = "/t", fstype = "tmpfs" }]', [("Tmpfs", {"dst": "/t", "size": None})]),
        (
            'mounts = [{ source = "tmpfs", target = "/t", fstype = "tmpfs", rw = true, size = "4K" }]',
            [("Tmpfs", {"dst": "/t", "size": 4096})],
        ),
        ('mounts = [{ source = "", destination = "/d", type = "devfs" }]', [("Dev", {"dst": "/d"})]),
        (
            'mounts = [{ target = "/tmp", fstype = "tmpfs", size = 1 }]\nmount_new_tmpfs = true',
            [("Tmpfs", {"dst": "/tmp", "size": 1})],
        ),
        ("mount_new_tmpfs = false\nmount_new_devfs = false", []),
        ("mount_new_devfs = true", [bind(*device) for device in DEVICES]),
        ('files = [{ target = "/f", contents = "x\\u0000\\n" }]', [("File", {"dst": "/f", "contents": "x\0\n"})]),
        ('[filesystem]\nfiles = [{ destination = "/f", contents = "" }]', [("File", {"dst": "/f", "contents": ""})]),
        ('[filesystem]\ndirs = [{ destination = "/d" }]', [("Directory", {"dst": "/d"})]),
        (
            '[filesystem]\nsymlinks = [{ original = "../x", link = "/l" }]',
            [("Symlink", {"dst": "/l", "target": "../x"})],
        ),
        (
            'mounts = [{ target = "/a/t", fstype = "tmpfs" }]\nfiles = [{ target = "/a/t/f", contents = "" }]\n'
            'filesystem.dirs = [{ destination = "/a" }]',
            [
                ("Directory", {"dst": "/a"}),
                ("Tmpfs", {"dst": "/a/t", "size": None}),
                ("File", {"dst": "/a/t/f", "contents": ""}),
            ],
        ),
    ],
)
def test_what_is_put_into_the_root(text, expected):
    assert tree(text) == expected


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("", [PROC]),
        ("mount_new_procfs = true", [PROC]),
        ("mount_new_procfs = false", []),
        ('mounts = [{ source = "/proc" }]', [bind("/proc", "/proc")]),
        ('mounts = [{ target = "/p", fstype = "proc" }]', [("Proc", {"dst": "/p"}), PROC]),
        ('mount_new_procfs = false\nmounts = [{ target = "/proc", fstype = "proc" }]', [PROC]),
    ],
)
def test_a_fresh_proc_is_there_unless_something_else_is(text, there):
    assert plain(parse(text).tree) == there


SYSCALLS = ("kill_process", ("read", "write"))


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("share_net = true", "network", "host"),
        ("share_net = false", "network", "none"),
        ("", "network", "none"),
        ('namespaces = [{ type = "network", share = true }]', "network", "host"),
        ('namespaces = [{ type = "network" }]\nnetwork.mode = "pasta"', "network", "pasta"),
        ('network.mode = "/run/netns/x"', "network", "/run/netns/x"),
        ('share_net = true\nnetwork = { mode = "host" }', "network", "host"),
        ('[network]\nmode = "pasta"\noptions = ["-t", "80,90:9"]', "network_options", ("-t", "80,90:9")),
        ("share_uts = true", "share", {"uts": True}),
        ("share_uts = false", "share", {}),
        ('namespaces = [{ type = "ipc", share = true }, { type = "cgroup" }]', "share", {"ipc": True}),
        ('namespaces = [{ type = "ipc", share = true }, { type = "ipc" }]', "share", {}),
        ("uid = 4294967294", "uid", 4294967294),
        ("gid = 0", "gid", 0),
        ('user = "nobody"', "user", "nobody"),
        ('group = "5"', "group", "5"),
        ("uidmaps = [{ container_id = 7 }]", "uid", 7),
        (f"gidmaps = [{{ container_id = 7, host_id = {os.getgid()}, count = 1 }}]", "gid", 7),
        ('hostname = "h"', "hostname", "h"),
        ("", "hostname", None),
        ("root.writable = true", "writable", True),
        ('root = { size = "1M" }', "size", 2**20),
        ('[env]\nA = ""\n"B C" = "d"\npass = "e"', "env", {"A": "", "B C": "d", "pass": "e"}),
        ('env.pass = ["LANG", "TERM", "LANG"]', "passed", {"LANG": True, "TERM": True}),
        (
            'envs = [{ name = "A", value = "b" }, { name = "POLICY_HAS" }, { name = "POLICY_LACKS" }]',
            "env",
            {"A": "b", "POLICY_HAS": "x", "POLICY_LACKS": ""},
        ),
        (
            'limits = { as = "1G", core = 0, cpu = 2, fsize = "16K", nofile = 9, walltime = 1 }',
            "limits",
            {"as": 2**30, "core": 0, "cpu": 2, "fsize": 2**14, "nofile": 9, "walltime": 1.0},
        ),
        (
            'limits = { walltime = 0.25, memory = "64M", pids = 3, output = "1" }',
            "limits",
            {"walltime": 0.25, "memory": 2**26, "pids": 3, "output": 1},
        ),
        (
            'limits = [{ type = "as", value = 5 }, { type = "walltime", value = 2 }]',
            "limits",
            {"as": 5, "walltime": 2.0},
        ),
        ('cgroup = { memory = "1M", pids = 4 }', "limits", {"memory": 2**20, "pids": 4}),
        ("limits.pids = 4\ncgroup.pids = 4", "limits", {"pids": 4}),
        (
            'limits.memory = "1M"\n[cgroup]\nswap = "4K"\ncpu = 50\ncpu_weight = 10',
            "cgroup",
            {"swap": 4096, "cpu": 50, "cpu_weight": 10},
        ),
        (
            '[cgroup]\nmemory.high = "100M"\n"io.weight" = 5\nhugetlb.2MB.max = "0"',
            "cgroup",
            {"memory.high": "100M", "io.weight": "5", "hugetlb.2MB.max": "0"},
        ),
        ('cgroup.cpu.uclamp.min = "1.0"', "cgroup", {"cpu.uclamp.min": "1.0"}),
        ('seccomp.rules = "compute"', "seccomp", "compute"),
        ('seccomp.rules = "none"', "seccomp", None),
        ('seccomp.rules = "/etc/passwd"', "seccomp", "/etc/passwd"),
        ('seccomp.path = "/etc/passwd"', "seccomp", "/etc/passwd"),
        ('seccomp.path = "unconfined"', "seccomp", None),
        ('seccomp.path = "audit"', "seccomp", ("log", ())),
        ('seccomp.syscalls = ["read", "write"]', "seccomp", SYSCALLS),
        ('seccomp = { syscalls = ["read", "write"], dismatch_action = "kill_process" }', "seccomp", SYSCALLS),
        ('seccomp = { syscalls = ["mount"], dismatch_action = "allow" }', "seccomp", ("allow", ("mount",))),
        (
            'landlock.ro = ["/usr", "/lib"]\nlandlock.rwx = ["/tmp"]',
            "landlock_paths",
            {"/usr": "ro", "/lib": "ro", "/tmp": "rwx"},
        ),
        (
            '[[landlock.fs]]\npath = "/a"\naccess = "r-x"\n[[landlock.fs]]\npath = "/b"\naccess = "rw"\n'
            '[[landlock.fs]]\npath = "/c"\naccess = "---"',
            "landlock_paths",
            {"/a": "rx", "/b": "rw"},
        ),
        ("landlock.rx = []", "landlock_paths", {}),
        ("landlock.fs = []", "landlock_paths", {}),
        ("landlock.net = []", "landlock_ports", {}),
        ('landlock.resources = [{ type = "fs" }]', "landlock_paths", {}),
        ('landlock.resources = [{ type = "fs", unrestrict = true }]', "landlock_paths", None),
        ("landlock = {}", "landlock_paths", None),
        (
            "landlock.bind_tcp = [80]\nlandlock.connect_tcp = [0, 65535]",
            "landlock_ports",
            {("bind_tcp", 80): True, ("connect_tcp", 0): True, ("connect_tcp", 65535): True},
        ),
        ('landlock.net = [{ port = 443, access = "tcp.connect" }]', "landlock_ports", {("connect_tcp", 443): True}),
        ('landlock.resources = [{ type = "tcp.bind" }]', "landlock_ports", {}),
        ('landlock.ro = ["/"]', "landlock_ports", None),
        ('landlock.scope = ["signal", "abstract-unix"]', "landlock_scopes", {"signal": True, "abstract-unix": True}),
        ('[command]\ncmdline = ["prog", "", "-x"]', "cmdline", ("prog", "", "-x")),
        ("command.cmdline = []", "cmdline", None),
        ('command.cwd = "/srv"', "cwd", "/srv"),
    ],
)
def test_keys(text, field, expected, monkeypatch):
    monkeypatch.setenv("POLICY_HAS", "x")
    monkeypatch.delenv("POLICY_LACKS", raising=False)
    assert getattr(parse(text), field) == expected


SIZE = "not a size, a whole number or one with K, M or G"
ACCESS = "not r, w and x in this order, perhaps with -, or w or x without r, which is not to be had"
LIMITS = "'as' or 'core' or 'fsize' or 'cpu' or 'nofile' or 'memory' or 'pids' or 'output' or 'walltime'"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nsorce = 1", "2: sorce: unknown key"),
        ('mounts = [{ source = "/a" },\n  { sorce = "/b" }]', "2: mounts[1].sorce: unknown key [source?]"),
        ('[[mounts]]\nsource = "/a"\n[[mounts]]\ntarget = "/b"', "3: mounts[1]: source is missing"),
        ('mounts = [{ source = "a" }]', "1: mounts[0]: target is missing"),
        ('mounts = [{ fstype = "tmpfs" }]', "1: mounts[0]: target is missing"),
        (
            'mounts = [{ source = "/a", target = "/a", destination = "/a" }]',
            "1: mounts[0].destination: the same as target, which is there too",
        ),
        (
            'mounts = [{ source = "/a", fstype = "ext4" }]',
            "1: mounts[0].fstype: not '' or 'tmpfs' or 'devfs' or 'proc'",
        ),
        ('mounts = [{ target = "/a", fstype = "tmpfs", optional = true }]', "1: mounts[0].optional: not for a tmpfs"),
        ('mounts = [{ source = "/a", size = 1 }]', "1: mounts[0].size: not for what the host has"),
        ('mounts = [{ target = "/a", fstype = "tmpfs", rw = false }]', "1: mounts[0].rw: a tmpfs is always writable"),
        ('mounts = [{ source = "/a", target = "/b", fstype = "proc" }]', "1: mounts[0].source: a proc has none"),
        (
            'mounts = [{ target = "/a", fstype = "tmpfs", size = 0 }]',
            "1: mounts[0].size: not from 1 to 9223372036854775807",
        ),
        ('mounts = [{ target = "/a", fstype = "tmpfs", size = "5X" }]', f"1: mounts[0].size: {SIZE}"),
        ('mounts = [{ source = "", target = "/a" }]', "1: mounts[0].source: an empty string"),
        ('mounts = [{ source = "\\u0000", target = "/a" }]', "1: mounts[0].source: a string with a NUL in it"),
        ('mounts = [{ source = "/a", target = "/./" }]', "1: mounts[0].target: it is the root itself"),
        ('mounts = [{ source = "/a/../b" }]', "1: mounts[0].source: '..' in it"),
        (
            f'mounts = [{{ source = "/a", target = "/{"x" * 4095}" }}]',
            "1: mounts[0].target: longer than the 4095 bytes that a path may have",
        ),
        ("mounts = {}", "1: mounts: not a list"),
        ("mounts = [1]", "1: mounts[0]: not a table"),
        ("mounts = [{ source = 1 }]", "1: mounts[0].source: not a string"),
        ('mounts = [{ source = "/a", rw = 1 }]', "1: mounts[0].rw: not true or false"),
        ('files = [{ target = "/a" }]', "1: files[0]: contents is missing"),
        ('files = [{ contents = "a" }]', "1: files[0]: target is missing"),
        (
            'files = [{ target = "/a", contents = "" }]\nmounts = [\n{ source = "/a" }]',
            "3: mounts[0]: files has put something else at /a already",
        ),
        (
            'filesystem.dirs = [{ destination = "/a" }]\nfilesystem.symlinks = [{ original = "x", link = "/a" }]',
            "2: filesystem.symlinks[0].link: filesystem.dirs has put something else at /a already",
        ),
        (
            'filesystem.symlinks = [{ original = "", link = "/a" }]',
            "1: filesystem.symlinks[0].original: an empty string",
        ),
        (
            'files = [{ target = "/a\\n", contents = "" }]\nfilesystem.dirs = [{ destination = "/a\\n" }]',
            "2: filesystem.dirs[0].destination: files has put something else at '/a\\n' already",
        ),
        (
            'files = [{ target = "/a", contents = "1" }]\n'
            'filesystem.files = [{ destination = "/a", contents = "1" }, { destination = "/a", contents = "2" }]',
            "2: filesystem.files[1].destination: files has put something else at /a already",
        ),
        ('envs = [{ name = "A", value = "b" }]\nenv.B = "c"\nenv.A = "c"', "3: env.A: another key says otherwise"),
        (
            'env.A = "b"\nenvs = [{ name = "A", value = "b" }, { name = "A" }]',
            "2: envs[1].name: another key says otherwise",
        ),
        ('share_net = "yes"', "1: share_net: not true or false"),
        ('share_net = true\n[network]\nmode = "none"', "1: share_net: network.mode is 'none'"),
        ('namespaces = [{ type = "network" }]\nshare_net = true', "2: share_net: another key says otherwise"),
        ('namespaces = [{ type = "uts" }]\nshare_uts = true', "2: share_uts: another key says otherwise"),
        ('namespaces = [{ type = "pid" }]', "1: namespaces[0].type: not 'cgroup' or 'ipc' or 'uts' or 'network'"),
        ('network.mode = "hots"', "1: network.mode: neither none, host, pasta nor a file"),
        ('network.options = ["-t"]', "1: network: mode is missing"),
        ('[network]\nmode = "host"\noptions = ["-t"]', "3: network.options: they are for pasta"),
        ("uid = -1", "1: uid: not from 0 to 4294967294"),
        ("gid = 4294967295", "1: gid: not from 0 to 4294967294"),
        ("uid = true", "1: uid: not a whole number"),
        ('uid = "0"', "1: uid: not a whole number"),
        ("uid = 0.0", "1: uid: not a whole number"),
        (
            "uidmaps = [{ container_id = 0 }, { container_id = 1 }]",
            "1: uidmaps[0]: one id only: a policy maps no ranges",
        ),
        ("uidmaps = [{ container_id = 0, count = 5 }]", "1: uidmaps[0]: one id only: a policy maps no ranges"),
        (
            f"uidmaps = [{{ container_id = 0, host_id = {os.getuid() + 1} }}]",
            f"1: uidmaps[0].host_id: not the caller's own, {os.getuid()}: it is the only one that can be had",
        ),
        ("uid = 1\nuidmaps = [{ container_id = 0 }]", "2: uidmaps[0]: uid says otherwise"),
        ('hostname = ""', "1: hostname: an empty string"),
        (f'hostname = "{"é" * 33}"', "1: hostname: longer than 64 bytes"),
        ('root.size = "1K"', "1: root.size: not from 4096 to 9223372036854775807"),
        ('root.path = "/"', "1: root.path: unknown key"),
        (
            'rootdir.path = "/"',
            "1: rootdir: not taken: the root is always a tmpfs of its own: hako-run takes a directory",
        ),
        ('env = ["A"]', "1: env: not a table"),
        ("env.A = 1", "1: env.A: not a string"),
        ('env."A=B" = ""', "1: env.A=B: '=' in the name of a variable"),
        ('env."" = ""', "1: env.'': an empty string"),
        ('env.A = "\\u0000"', "1: env.A: a string with a NUL in it"),
        ('[env]\npass = ["A",\n"B=C"]', "3: env.pass[1]: '=' in the name of a variable"),
        ('[env]\nA = ""\npass = ["A"]', "3: env.pass[0]: env sets it"),
        ('[env]\npass = ["A"]\nA = ""', "3: env.A: env.pass has it"),
        ("limits.as = -1", "1: limits.as: not from 0 to 9223372036854775807"),
        ('limits.as = "8589934592G"', f"1: limits.as: {SIZE}"),
        ("limits.as = 1.5", f"1: limits.as: {SIZE}"),
        ('limits.cpu = "1"', "1: limits.cpu: not a whole number"),
        ("limits.cpu = 0", "1: limits.cpu: not from 1 to 9223372036854775807"),
        ("limits.walltime = 0", "1: limits.walltime: not seconds, more than 0 and at most 1000000000, like 2 or 0.5"),
        ("limits.walltime = nan", "1: limits.walltime: not seconds, more than 0 and at most 1000000000, like 2 or 0.5"),
        ("limits.memory = 4095", "1: limits.memory: not from 4096 to 9223372036854775807"),
        ("limits.pids = 0", "1: limits.pids: not from 1 to 4194304"),
        ("limits.stack = 1", "1: limits.stack: unknown key"),
        ('limits = [{ type = "stack", value = 1 }]', f"1: limits[0].type: not {LIMITS}"),
        ("limits.pids = 5\ncgroup.pids = 6", "2: cgroup.pids: limits has another one already"),
        ("cgroup.swap = 0", " cgroup.swap: needs a limit of memory"),
        ("cgroup.cpu = 0", "1: cgroup.cpu: not from 1 to 1000000"),
        ("cgroup.weight = 5", "1: cgroup.weight: unknown key [cpu_weight?]"),
        ('cgroup.cgroup.procs = "1"', "1: cgroup.cgroup.procs: not a file of a controller, as memory.high"),
        ('cgroup."memory./../x" = "1"', "1: cgroup.memory./../x: not a file of a controller, as memory.high"),
        ("cgroup.memory.high = true", "1: cgroup.memory.high: not a string"),
        ("seccomp = {}", "1: seccomp: one of syscalls, rules and path must say what is allowed"),
        (
            '[seccomp]\nsyscalls = []\nrules = "default"',
            "1: seccomp: one of syscalls, rules and path must say what is allowed",
        ),
        ('seccomp = { rules = "default", dismatch_action = "log" }', "1: seccomp.dismatch_action: it is for syscalls"),
        (
            'seccomp = { syscalls = [], dismatch_action = "trap" }',
            "1: seccomp.dismatch_action: not 'kill_process' or 'log' or 'allow'",
        ),
        ('[seccomp]\nsyscalls = ["read",\n  "wirte"]', "3: seccomp.syscalls[1]: no such system call: 'wirte'"),
        ('seccomp.syscalls = ["read }"]', "1: seccomp.syscalls[0]: no such system call: 'read }'"),
        (
            'seccomp.rules = "computee"',
            f"1: seccomp.rules: neither a built-in profile nor a file: 'computee' [{COMPUTE}]",
        ),
        ('seccomp.path = "podman"', '1: seccomp.path: Podman\'s is not here: rules = "default" is near to it'),
        ('landlock.fs = [{ path = "/a", access = "wr" }]', f"1: landlock.fs[0].access: {ACCESS}"),
        ('landlock.fs = [{ path = "/a", access = "-w-" }]', f"1: landlock.fs[0].access: {ACCESS}"),
        ('landlock = { ro = ["/a"], rw = ["/a"] }', "1: landlock.rw[0]: named twice, with different access"),
        ("landlock.bind_tcp = [65536]", "1: landlock.bind_tcp[0]: not from 0 to 65535"),
        ('landlock.net = [{ port = 1, access = "tcp" }]', "1: landlock.net[0].access: not 'tcp.bind' or 'tcp.connect'"),
        ('landlock.scope = ["unix"]', "1: landlock.scope[0]: not 'abstract-unix' or 'signal'"),
        (
            'landlock.resources = [{ type = "tcp.bind", unrestrict = true }]',
            "1: landlock.resources: TCP is restricted as a whole: tcp.bind and tcp.connect go together",
        ),
        (
            '[landlock]\nresources = [{ type = "fs", unrestrict = true }]\nro = []',
            "3: landlock.ro: resources says that files are not restricted",
        ),
        (
            '[landlock]\nnet = [{ port = 1, access = "tcp.bind" }]\nresources = [\n'
            '{ type = "tcp.bind", unrestrict = true }, { type = "tcp.connect", unrestrict = true }]',
            "2: landlock.net: resources says that TCP is not restricted",
        ),
        ('command.cmdline = ["", "a"]', "1: command.cmdline[0]: an empty name cannot be run"),
        ('command.cmdline = "a"', "1: command.cmdline: not a list"),
        ('command.cwd = ""', "1: command.cwd: an empty string"),
        ('"@include" = "default"', "1: @include: not a list"),
        ("a = ", "1:5: unexpected end of file, expecting a value"),
        (
            'env.A = "{{ os_env }}"',
            '1:10: not a call: \'{{ os_env }}"\' [calls: os_env "...", os_homedir "...", fs_read_to_string "...", '
            "os_uid, os_gid; two braces that are none are written {\\u007b]",
        ),
        ('uid = 1\nuser = "x"', " uid and user: one of them says as whom PROG runs"),
        ('gid = 1\ngroup = "x"', " gid and group: one of them says with which group PROG runs"),
        ('share_uts = true\nhostname = "x"', " hostname: with share_uts it would be the host's own that changes"),
        (
            'mounts = [{ source = "/usr" }]\nfiles = [{ target = "/usr/x", contents = "" }]',
            " /usr/x: lies in the mount /usr, where nothing is made",
        ),
        ('filesystem.dirs = [{ destination = "/proc/x" }]', " /proc/x: lies in the mount /proc, where nothing is made"),
        (
            'mounts = [{ source = "/a", target = "/bin/a" }]\n'
            'filesystem.symlinks = [{ original = "usr/bin", link = "/bin" }]',
            " /bin/a: lies below the symbolic link /bin",
        ),
        (
            'files = [{ target = "/f", contents = "" }, { target = "/f/g", contents = "" }]',
            " /f/g: lies below the file /f",
        ),
    ],
)
def test_mistakes_are_told_with_their_place(text, message):
    assert mistake(text) == f"p.toml:{message}"


def test_messages_are_short_whatever_the_text_is():
    long = "x" * 200_000
    for text in (
        *(f'"{long}" = 1', f'seccomp.rules = "{long}"', f'seccomp.syscalls = ["{long}"]', f'limits.as = "{long}"'),
        *(f'[env]\n"{long}=" = ""', f'"@include" = ["{long}"]', f'"@include" = ["./{long}"]', f"hostname = '{long}'"),
        *(
            f'cgroup."memory.{long}" = "1"',
            f'cgroup."memory.{long}".x.y = {{}}',
            f"network.mode = '/{long}'\nshare_net = true",
        ),
        *(
            f"a = '{{{{ fs_read_to_string \"{long}\" }}}}'",
            f"a = '{{{{ {long} }}}}'",
            f"mounts = [{{ source = '/{long}' }}]",
        ),
    ):
        assert len(mistake(text)) < 300


def test_calls(monkeypatch, place):
    (place / "file").write_bytes("a\"b\n'''\\é\r\n".encode())
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.setenv("POLICY_HAS", 'v"')
    monkeypatch.delenv("POLICY_LACKS", raising=False)
    found = parse(f"""
        [env]
        A = {{{{ os_env "POLICY_HAS" }}}}
        B = "<{{{{ os_env "POLICY_LACKS" }}}}>"
        C = {{{{ os_homedir "/.cache" }}}}
        D = '''{{{{ fs_read_to_string "{place}/file" }}}}'''
        E = "{{{{ os_uid }}}}:{{{{ os_gid }}}}"
        """).env
    assert list(found.values()) == ['v"', "<>", "/home/x/.cache", "a\"b\n'''\\é\r\n", f"{os.getuid()}:{os.getgid()}"]


def test_home_is_looked_up_without_HOME(monkeypatch):  # noqa: N802
    import pwd

    monkeypatch.delenv("HOME")
    assert parse('env.A = {{ os_homedir "/x" }}').env == {"A": pwd.getpwuid(os.getuid()).pw_dir + "/x"}
    monkeypatch.setenv("HOME", "relative")
    assert mistake('env.A = {{ os_homedir "/x" }}') == (
        "p.toml:1:9: os_homedir: HOME is not set to a directory: 'relative'"
    )


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30))
@settings(max_examples=100, deadline=None)
def test_no_value_of_the_caller_breaks_out(text):
    key = "HAKO_TEST_POLICY"
    os.environ[key] = text
    try:
        for string in (f'"{{{{ os_env "{key}" }}}}"', f"'''{{{{ os_env '{key}' }}}}'''", f'{{{{ os_env "{key}" }}}}'):
            assert parse(f"[env]\nA = {string}").env == {"A": text}
    finally:
        del os.environ[key]


def test_values_that_are_not_utf_8_are_the_callers_own(monkeypatch):
    monkeypatch.setenv("POLICY_HAS", "\udcff")
    made = parse('env.A = {{ os_env "POLICY_HAS" }}')
    assert made.env == {"A": "\udcff"}
    with pytest.raises(Failure, match=r"^not UTF-8, as TOML must be: '\\udcff'$"):
        policy.to_toml(made)


def loading(name):
    """What is said about the policy NAME, which cannot be loaded."""
    with pytest.raises(Failure) as caught:
        policy.load(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_where_policies_are_looked_for(home, monkeypatch):
    (home / "mine.toml").write_text("uid = 1")
    (home / "judge.toml").write_text("uid = 2")
    (home / "x.y.toml").write_text("uid = 3")
    monkeypatch.chdir(home.parent)
    assert policy.places() == [str(home), "/etc/hako/policies", str(TOP / "hako/policies")]
    assert [policy.load(name).uid for name in ("mine", "judge", "x.y", "policies/judge.toml", f"{home}/mine.toml")] == [
        *(1, 2, 3, 2, 1)
    ]
    assert policy.load("mine").name == f"{home}/mine.toml"
    assert policy.load("default").name == f"{TOP}/hako/policies/default.toml"
    assert loading("mine.toml") == "open mine.toml: No such file or directory"
    assert loading("policies/mine") == "open policies/mine: No such file or directory"
    for name in ("nosuch", ""):
        built_in = "compile, default, judge, kiss, network, python"
        assert loading(name) == f"no such policy: {name!r} [built in: {built_in}; a file has a slash]"
    (home / "default.toml").symlink_to("nowhere")
    assert policy.load("default").name == f"{TOP}/hako/policies/default.toml"
    (home / "default.toml").unlink()
    (home / "default.toml").mkdir()
    assert loading("default") == f"{home}/default.toml: is a directory"


def test_the_home_of_somebody_else_is_passed_over(who, place):
    closed = place / "closed"
    (closed / ".config/hako/policies").mkdir(parents=True)
    (closed / ".config/hako/policies/default.toml").write_text("uid = 1")
    closed.chmod(0o700)
    code = "from hako import policy; print(policy.load('default').uid)"
    env = {**who.env, "HOME": str(closed), "PYTHONPATH": str(TOP)}
    done = who.run(sys.executable, "-c", code, env=env)
    assert (done.stdout, done.stderr) == ("None\n" if who.prefix else "1\n", "")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "not a plain file"),
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.symlink_to("/dev/zero"), "not a plain file"),
        (lambda path: path.write_text("#" * (2**18 + 1)), "larger than 262144 bytes"),
        (lambda path: path.write_bytes(b"a = 1\nb = '\xff'"), ":2:6: not UTF-8"),
    ],
)
def test_files_that_are_none_for_policies(make, message, place):
    make(place / "p.toml")
    separator = "" if message.startswith(":") else ": "
    assert loading(f"{place}/p.toml") == f"{place}/p.toml{separator}{message}"
    expected = f"p.toml:1:5: fs_read_to_string: {place}/p.toml{separator}{message}"
    assert mistake(f'a = {{{{ fs_read_to_string "{place}/p.toml" }}}}') == expected
    assert mistake(f'"@include" = ["{place}/p.toml"]') == f"p.toml:1: @include[0]: {place}/p.toml{separator}{message}"


def test_a_file_of_the_greatest_size(place):
    (place / "p.toml").write_text("#" * 2**18)
    assert policy.load(f"{place}/p.toml").uid is None


def test_includes(home, place):
    (place / "sub").mkdir()
    (place / "main.toml").write_text(
        '"@include" = ["sub/one.toml", "byname"]\nuid = 1\nenv.A = "main"\n'
        'mounts = [{ source = "/main", target = "/x" }]\n[network]\nmode = "host"\n'
    )
    (place / "sub/one.toml").write_text(
        '"@include" = ["two.toml"]\nuid = 2\ngid = 2\nenv = { A = "one", B = "one" }\nlandlock.ro = ["/a"]\n'
        'mounts = [{ source = "/one", target = "/x" }, { source = "/one", target = "/y" }]\n'
    )
    (place / "sub/two.toml").write_text(
        'gid = 3\nhostname = "two"\nlimits.cpu = 2\nenv.C = "two"\nlandlock.rw = ["/a"]\nnetwork.mode = "pasta"\n'
        'landlock.bind_tcp = [1]\nshare_uts = true\nseccomp.rules = "default"\n'
    )
    (home / "byname.toml").write_text(
        'limits = { cpu = 3, core = 0 }\nenv.pass = ["C"]\nseccomp.rules = "none"\nshare_uts = false\n'
        'landlock.resources = [{ type = "tcp.bind", unrestrict = true }, { type = "tcp.connect", unrestrict = true }]'
    )
    found = policy.load(f"{place}/main.toml")
    assert (found.uid, found.gid, found.hostname, found.network) == (1, 2, "two", "host")
    assert (found.limits, found.seccomp, found.share) == ({"cpu": 3, "core": 0}, None, {})
    assert (found.env, found.passed) == ({"A": "main", "B": "one"}, {"C": True})
    assert (found.landlock_paths, found.landlock_ports) == ({"/a": "ro"}, None)
    assert plain(found.tree) == [PROC, bind("/main", "/x"), bind("/one", "/y")]


def test_what_landlock_allows_adds_up():
    base = parse('landlock = { ro = ["/a"], bind_tcp = [1] }')
    for over in (
        "landlock = { ro = [], net = [] }",
        'landlock.resources = [{ type = "fs" }, { type = "tcp.bind" }]',
        "",
    ):
        assert plain(policy.merge(base, parse(over))) == plain(base)
    more = policy.merge(base, parse('landlock = { rx = ["/a"], rw = ["/b"], connect_tcp = [2] }'))
    assert more.landlock_paths == {"/a": "rx", "/b": "rw"}
    assert more.landlock_ports == {("bind_tcp", 1): True, ("connect_tcp", 2): True}


def test_rules_and_includes_are_looked_for_beside_the_file_that_names_them(place, monkeypatch):
    (place / "rules").write_text("ALLOW { read }")
    (place / "p.toml").write_text('seccomp.rules = "rules"\n"@include" = ["q.toml"]')
    (place / "q.toml").write_text("uid = 5")
    monkeypatch.chdir("/")
    assert policy.load(f"{place}/p.toml").seccomp == f"{place}/rules"
    monkeypatch.chdir(place)
    found = policy.load("p.toml")
    assert (found.seccomp, found.uid) == (f"{place}/rules", 5)


def test_includes_that_go_on_for_ever(place):
    (place / "a.toml").write_text('\n"@include" = ["b.toml"]')
    (place / "b.toml").write_text('"@include" = ["default", "./a.toml"]')
    assert loading(f"{place}/a.toml") == f"{place}/b.toml:1: @include[1]: it includes itself"
    (place / "self.toml").write_text('"@include" = ["link.toml"]')
    (place / "link.toml").symlink_to("self.toml")
    assert loading(f"{place}/self.toml") == f"{place}/self.toml:1: @include[0]: it includes itself"
    for number in range(9):
        (place / f"{number}.toml").write_text(f'"@include" = ["{number + 1}.toml"]')
    (place / "9.toml").write_text("uid = 9")
    assert policy.load(f"{place}/1.toml").uid == 9
    assert loading(f"{place}/0.toml") == f"{place}/8.toml:1: @include[0]: more than 8 files deep"
    for number in range(6):
        (place / f"{number}.toml").write_text(f'"@include" = ["{number + 1}.toml", "{number + 1}.toml"]')
    (place / "6.toml").write_text("")
    assert loading(f"{place}/0.toml").endswith("more than 64 includes")


def test_a_mistake_in_an_included_file_is_told_there(place):
    (place / "a.toml").write_text('\n"@include" = ["b.toml"]')
    (place / "b.toml").write_text("\n\nuid = -1")
    assert loading(f"{place}/a.toml") == f"{place}/b.toml:3: uid: not from 0 to 4294967294"
    (place / "b.toml").unlink()
    assert (
        loading(f"{place}/a.toml") == f"{place}/a.toml:2: @include[0]: open {place}/b.toml: No such file or directory"
    )


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_built_in_policies(name, monkeypatch):
    assert policy.built_in() == BUILT_IN
    monkeypatch.setenv("HOME", "/nonexistent")
    made = policy.load(name)
    text = (TOP / f"hako/policies/{name}.toml").read_text()
    assert text.startswith(f"# {name} - ")
    assert all(len(line) <= 120 for line in text.splitlines())
    sources = [entry.src for entry in made.tree if isinstance(entry, sandbox.Bind)]
    assert {sandbox.steps(source)[0] for source in sources} <= {
        *("bin", "dev", "etc", "lib", "lib32", "lib64"),
        *("libx32", "sbin", "usr"),
    }
    assert "/etc" not in sources
    assert made.network == ("pasta" if name == "network" else "none")
    assert not made.writable
    for entry in made.tree:
        if isinstance(entry, sandbox.Bind):
            assert "ro" in entry.flags or entry.src in {device[0] for device in DEVICES}
            assert os.path.exists(entry.src) or "optional" in entry.flags
        if isinstance(entry, sandbox.Tmpfs):
            assert entry.size
    if name != "kiss":
        assert made.limits["core"] == 0
        assert policy.filter_program(made) == rules.program("minimal" if name == "judge" else "default")
    assert plain(parse(policy.to_toml(made))) == plain(made)


def test_what_the_judge_limits():
    assert set(policy.load("judge").limits) == {*policy_keys.LIMITS, "walltime"} - {"as"}
    assert policy.load("judge").passed == {}


def options(**given):
    """The Policy of the options GIVEN, with "_" for "-"."""
    return policy_options.from_args({f"--{name.replace('_', '-')}": value for name, value in given.items()})


def test_options_add_and_override(place, monkeypatch):
    monkeypatch.chdir(place)
    base = parse(
        'user = "nobody"\ngroup = "x"\nhostname = "h"\nenv = { A = "a", B = "b" }\nlimits = { cpu = 1, as = "1G" }\n'
        'mounts = [{ source = "/usr" }, { target = "/tmp", fstype = "tmpfs" }]\nseccomp.rules = "default"\n'
        'network = { mode = "pasta", options = ["-t"] }\ncommand = { cwd = "/tmp", cmdline = ["p"] }\n'
    )
    over = options(
        ro_bind=["/opt:/usr", r"a\:b:/c", "rel", "/dev/fuse"],
        rw_bind=["/srv"],
        tmpfs=["/t:4K", "u"],
        dev=True,
        proc=True,
        symlink=["../a:/l"],
        file=["/f=x=y"],
        work_dir=".",
        env=["A=1", "C"],
        uid="5",
        hostname="g",
        network="none",
        seccomp="none",
        limit_cpu="2",
        limit_walltime="0.5",
        limit_memory="64M",
    )
    made = policy.merge(base, over)
    expected = [
        *(bind("/opt", "/usr"), bind("a:b", "/c"), bind("rel", f"{place}/rel"), bind("/srv", "/srv", ())),
        *(bind("/dev/fuse", "/dev/fuse", {"ro", "dev"}), bind(".", "/hako", ()), PROC, ("Dev", {"dst": "/dev"})),
        *(("Tmpfs", {"dst": dst, "size": size}) for dst, size in (("/t", 4096), ("/u", None), ("/tmp", None))),
        *(("Symlink", {"dst": "/l", "target": "../a"}), ("File", {"dst": "/f", "contents": "x=y"})),
    ]
    assert plain(made.tree) == in_order(expected)
    assert (made.env, made.limits) == (
        {"A": "1", "B": "b", "C": None},
        {"cpu": 2, "as": 2**30, "walltime": 0.5, "memory": 2**26},
    )
    assert (made.uid, made.user, made.gid, made.group, made.hostname) == (5, None, None, "x", "g")
    assert (made.network, made.network_options, made.seccomp) == ("none", (), None)
    assert (made.cwd, made.cmdline) == ("/hako", ("p",))
    assert plain(policy.merge(base, {"uid": 5})) == plain(policy.merge(base, policy.Policy(uid=5)))


def test_no_option_changes_nothing():
    for name in BUILT_IN:
        made = policy.load(name)
        assert plain(policy.merge(made, policy_options.from_args({}))) == plain(made)


@pytest.mark.parametrize(
    ("base", "given", "ids"),
    [
        ('user = "a"\ngroup = "b"', {"user": "c"}, (None, None, "c", None)),
        ("uid = 1\ngid = 2", {"user": "c"}, (None, None, "c", None)),
        ("uid = 1\ngid = 2", {"uid": "3"}, (3, 2, None, None)),
        ('user = "a"\ngroup = "b"', {"gid": "3"}, (None, 3, "a", None)),
        ("gid = 2", {"group": "g"}, (None, None, None, "g")),
        ("", {"uid": "0", "gid": "0"}, (0, 0, None, None)),
    ],
)
def test_ids_of_options_stand_for_those_of_the_policy(base, given, ids):
    made = policy.merge(parse(base), options(**given))
    assert (made.uid, made.gid, made.user, made.group) == ids


@pytest.mark.parametrize(
    ("given", "network"),
    [
        ("host", ("host", ())),
        ("pasta", ("pasta", ())),
        ("pasta:", ("pasta", ())),
        ("pasta:-t,80:8080,-4", ("pasta", ("-t", "80:8080", "-4"))),
        ("./a:b", ("./a:b", ())),
    ],
)
def test_networks_of_options(given, network):
    made = options(network=given)
    assert (made.network, made.network_options) == network


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ro_bind": [""]}, "--ro-bind: not SRC or SRC:DST: ''"),
        ({"ro_bind": [":/a"]}, "--ro-bind: not SRC or SRC:DST: ':/a'"),
        ({"rw_bind": ["a:b:c"]}, "--rw-bind: not SRC or SRC:DST: 'a:b:c'"),
        ({"rw_bind": ["/a:/b/.."]}, "--rw-bind: '..' in it: '/a:/b/..'"),
        ({"rw_bind": ["/"]}, "--rw-bind: it is the root itself: '/'"),
        ({"tmpfs": ["/a:5X"]}, "--tmpfs: not a size, a whole number or one with K, M or G: '5X'"),
        ({"tmpfs": ["/a:0"]}, "--tmpfs: a size of 0 would mean no limit: '/a:0'"),
        ({"tmpfs": ["/a:1:2"]}, "--tmpfs: not DST or DST:SIZE: '/a:1:2'"),
        ({"tmpfs": [""]}, "--tmpfs: it is the root itself: ''"),
        ({"symlink": ["/a"]}, "--symlink: not TARGET:LINK: '/a'"),
        ({"symlink": [":/a"]}, "--symlink: not TARGET:LINK: ':/a'"),
        ({"file": ["/a"]}, "--file: not DST=CONTENTS: '/a'"),
        ({"file": ["/a=1"], "tmpfs": ["/a"]}, "--file: --tmpfs has put something else at /a already"),
        ({"ro_bind": ["/a"], "rw_bind": ["/a"]}, "--rw-bind: --ro-bind has put something else at /a already"),
        ({"dev": True, "tmpfs": ["/dev"]}, "--tmpfs: --dev has put something else at /dev already"),
        ({"work_dir": ""}, "--work-dir: an empty value: ''"),
        ({"env": ["=x"]}, "--env: not NAME or NAME=VALUE: '=x'"),
        ({"user": ""}, "--user: an empty value: ''"),
        ({"uid": "-1"}, "--uid: not a whole number: '-1'"),
        ({"gid": "4294967295"}, "--gid: more than 4294967294: '4294967295'"),
        ({"hostname": ""}, "--hostname: not of 1 to 64 bytes: ''"),
        ({"network": "hots"}, "--network: neither none, host, pasta[:ARGS] nor a file with a slash: 'hots'"),
        ({"limit_as": "1T"}, "--limit-as: not a size, a whole number or one with K, M or G: '1T'"),
        ({"limit_cpu": "1K"}, "--limit-cpu: not a whole number: '1K'"),
        ({"limit_cpu": "0"}, "--limit-cpu: not from 1 to 9223372036854775807: '0'"),
        ({"limit_memory": "1"}, "--limit-memory: not from 4096 to 9223372036854775807: '1'"),
        ({"limit_walltime": "0"}, "--limit-walltime: not seconds, more than 0, like 2 or 0.5: '0'"),
        ({"limit_walltime": "1000000001"}, "--limit-walltime: not from 0 to 1000000000: '1000000001'"),
        ({"seccomp": "computee"}, f"--seccomp: neither a built-in profile nor a file: 'computee' [{COMPUTE}]"),
        ({"seccomp": ""}, "--seccomp: an empty value: ''"),
    ],
)
def test_mistakes_in_options(given, message):
    with pytest.raises(Failure) as caught:
        options(**given)
    assert str(caught.value) == message


def test_options_that_contradict_the_policy():
    base = policy.parse("p.toml", "share_uts = true\nmounts = [{ source = '/usr' }]")
    for over, message in (
        ({"hostname": "x"}, "p.toml: hostname: with share_uts it would be the host's own that changes"),
        ({"file": ["/usr/x="]}, "p.toml: /usr/x: lies in the mount /usr, where nothing is made"),
    ):
        with pytest.raises(Failure) as caught:
            policy.merge(base, options(**over))
        assert str(caught.value) == message


def test_the_environment(monkeypatch):
    monkeypatch.setenv("POLICY_HAS", "x")
    monkeypatch.delenv("POLICY_LACKS", raising=False)
    made = parse('env = { A = "b", pass = ["POLICY_HAS", "POLICY_LACKS"] }')
    assert policy.variables(made) == [("POLICY_HAS", None), ("A", "b")]
    made = policy.merge(made, options(env=["POLICY_LACKS"]))
    assert policy.variables(made) == [("POLICY_HAS", None), ("A", "b"), ("POLICY_LACKS", None)]
    with pytest.raises(Failure, match=r"^--env: not set here: 'POLICY_LACKS'$"):
        policy.to_toml(made)
    made = policy.merge(made, options(env=["POLICY_LACKS=y", "POLICY_HAS"]))
    assert parse(policy.to_toml(made)).env == {"A": "b", "POLICY_LACKS": "y", "POLICY_HAS": "x"}


def decide(made, name):
    """What the filter of the Policy MADE decides for the call NAME."""
    arch = rules.architecture()
    return run(policy.filter_program(made), bpf.AUDIT_ARCH[arch], syscalls.number(arch, name), [0] * 6)


@pytest.mark.parametrize(
    ("action", "listed", "others"),
    [
        ("kill_process", bpf.ALLOW, bpf.KILL_PROCESS),
        ("log", bpf.ALLOW, bpf.LOG),
        ("allow", bpf.KILL_PROCESS, bpf.ALLOW),
    ],
)
def test_lists_of_calls(action, listed, others):
    # cacheflush is of other architectures, open not of every one; mseal is newer than libseccomp
    names = '"read", "read", "newuname", "open", "cacheflush", "mseal"'
    made = parse(f'seccomp = {{ syscalls = [{names}], dismatch_action = "{action}" }}')
    found = [decide(made, name) for name in ("read", "uname", "mseal", "write", "close")]
    assert found == [listed, listed, listed, others, others]
    other = next(arch for arch in bpf.AUDIT_ARCH if arch != rules.architecture())
    assert run(policy.filter_program(made), bpf.AUDIT_ARCH[other], 0, [0] * 6) == bpf.KILL_PROCESS


def test_rules_of_a_file(place):
    (place / "rules").write_text('#include "more"\nERRNO(1) { write }')
    (place / "more").write_text("DEFAULT ALLOW")
    made = parse(f'seccomp.rules = "{place}/rules"')
    assert [decide(made, name) for name in ("read", "write")] == [bpf.ALLOW, bpf.ERRNO + 1]
    assert policy.filter_program(parse("")) is None
    assert decide(parse('seccomp.path = "audit"'), "mount") == bpf.LOG
    profile = place / "profile.json"
    profile.write_text('{"defaultAction": "SCMP_ACT_LOG"}')
    assert decide(parse(f'seccomp.path = "{profile}"'), "read") == bpf.LOG


def test_what_is_printed():
    made = policy.merge(
        parse('mounts = [{ source = "/usr" }]\nfiles = [{ target = "/f", contents = "{\\u007b\\n" }]\nhostname = "h"'),
        options(rw_bind=["/srv:/w"], limit_as="1K", network="pasta:-4", seccomp="compute"),
    )
    assert policy.to_toml(made) == (
        'hostname = "h"\n'
        "mounts = [\n"
        '  { target = "/proc", fstype = "proc" },\n'
        '  { source = "/usr", target = "/usr" },\n'
        '  { source = "/srv", target = "/w", rw = true },\n'
        "]\n"
        "files = [\n"
        '  { target = "/f", contents = "{\\u007b\\n" },\n'
        "]\n"
        "\n"
        "[network]\n"
        'mode = "pasta"\n'
        'options = ["-4"]\n'
        "\n"
        "[limits]\n"
        "as = 1024\n"
        "\n"
        "[seccomp]\n"
        'rules = "compute"\n'
    )


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=8)
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
PLACES = st.lists(NAMES.filter(lambda name: name not in (".", "..")), min_size=1, max_size=3).map(
    lambda names: "/" + "/".join(names)
)
SIZES = st.integers(4096, 2**63 - 1)
FLAGS = st.sets(st.sampled_from(["ro", "dev", "noexec", "norec", "optional"]))
ENTRIES = st.one_of(
    st.builds(sandbox.Bind, st.one_of(WORDS, st.sampled_from(["/dev/null", "/dev/../x"])), PLACES, FLAGS),
    st.builds(sandbox.Tmpfs, PLACES, st.none() | SIZES),
    st.builds(sandbox.Proc, PLACES),
    st.builds(sandbox.Dev, PLACES),
    st.builds(sandbox.Directory, PLACES),
    st.builds(sandbox.Symlink, WORDS, PLACES),
    st.builds(sandbox.File, PLACES, st.text(max_size=20)),
)
VARIABLES = st.one_of(WORDS, st.just("pass")).map(lambda name: name.replace("=", "-"))
FILES = st.from_regex(r"(memory|io|hugetlb|x)\.[a-zA-Z0-9_]{1,5}(\.max)?", fullmatch=True)
CALLS = st.lists(st.sampled_from(["read", "open", "mseal", "newstat"]), max_size=3).map(tuple)
POLICIES = st.fixed_dictionaries(
    {},
    optional={
        "tree": st.lists(ENTRIES, max_size=5),
        "procfs": st.booleans(),
        "writable": st.booleans(),
        "size": SIZES,
        "network": st.sampled_from(["none", "host", "./x", "/run/netns/\n"]),
        "share": st.dictionaries(st.sampled_from(policy_keys.NAMESPACES), st.booleans()),
        "uid": st.integers(0, 2**32 - 2),
        "group": WORDS,
        "env": st.dictionaries(VARIABLES, st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))),
        "passed": st.dictionaries(VARIABLES, st.just(True)),
        "limits": st.fixed_dictionaries(
            {"memory": SIZES},
            optional={
                "walltime": st.floats(1e-9, 1e9),
                "as": st.integers(0, 2**63 - 1),
                "pids": st.integers(1, 2**22),
                "cpu": st.integers(1, 2**63 - 1),
            },
        ),
        "seccomp": st.one_of(
            st.sampled_from(["none", "compute", "/etc/passwd"]),
            st.tuples(st.sampled_from(policy_keys.DISMATCH_ACTIONS), CALLS),
        ),
        "landlock_paths": st.dictionaries(WORDS, st.sampled_from([None, "ro", "rw", "rx", "rwx"])),
        "landlock_ports": st.dictionaries(
            st.tuples(st.sampled_from(["bind_tcp", "connect_tcp"]), st.integers(0, 65535)), st.just(True)
        ),
        "landlock_scopes": st.dictionaries(st.sampled_from(policy_keys.SCOPES), st.just(True)),
        "cmdline": st.lists(WORDS, min_size=1, max_size=3).map(tuple),
        "cwd": WORDS,
    },
)


@settings(max_examples=150, deadline=None)
@given(POLICIES, st.dictionaries(FILES, WORDS), st.booleans())
def test_what_is_printed_loads_back_to_the_same(fields, files, swap):
    cgroup = {**files, **({"swap": 7, "cpu": 50, "cpu_weight": 1} if swap and "limits" in fields else {})}
    try:
        made = policy.merge(policy.Policy(name="made"), {**fields, "cgroup": cgroup})
    except Failure as err:
        assert "lies" in str(err)
        assume(False)
    text = policy.to_toml(made)
    again = policy.parse("again", text)
    assert plain(again) == plain(made)
    assert policy.to_toml(again) == text


def test_pasta_and_names_are_printed():
    text = 'network = { mode = "pasta", options = ["-t", "80"] }\nhostname = "x"\nuser = "u"\ngid = 3\n'
    assert plain(parse(policy.to_toml(parse(text)))) == plain(parse(text))


KEYS = sorted(name.removeprefix("key_") for name in vars(policy_keys.Reader) if name.startswith("key_"))
INNER = [
    *("source", "target", "destination", "fstype", "type", "rw", "optional", "size", "contents", "original", "link"),
    *("mode", "options", "share", "pass", "A", "name", "value", "as", "memory", "pids", "walltime", "swap", "cpu"),
    *("syscalls", "dismatch_action", "rules", "path", "ro", "rwx", "fs", "net", "port", "access", "scope", "resources"),
    *("unrestrict", "bind_tcp", "cmdline", "cwd", "writable", "files", "dirs", "symlinks", "container_id", "x.y"),
]
SCALARS = st.one_of(
    st.sampled_from(
        ["/a", "/a/b", "/proc", "", "tmpfs", "none", "uts", "network", "read", "1M", "r-x", "fs", "\0", ".."]
    ),
    st.sampled_from(["{{ os_uid }}", '{{ os_env "HOME" }}', "{{", "}}", '"', "'''", "\\"]),
    st.booleans(),
    st.integers(-2, 70000),
    st.floats(),
    st.text(max_size=5),
)
DATA = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(INNER), inner, max_size=4)),
    max_leaves=10,
)


def mangled(data):
    """DATA as TOML whose strings may be calls."""
    lines = "".join(f"{toml.key(key)} = {toml.value(value)}\n" for key, value in data.items())
    return lines.replace("{\\u007b", "{{").replace('\\"', '"')


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.dictionaries(st.sampled_from([*KEYS, "@include", "rootdir", "x"]), DATA, max_size=4).map(mangled),
        st.dictionaries(st.sampled_from(KEYS), DATA, max_size=4).map(
            lambda data: "".join(f"{toml.key(key)} = {toml.value(value)}\n" for key, value in data.items())
        ),
        st.lists(
            st.sampled_from([*KEYS, *INNER, "=", "=", "\n", "{", "}", "[", "]", '"', "{{", "}}", "1", ",", "."])
        ).map(" ".join),
        st.text(max_size=60),
    )
)
def test_nothing_but_a_failure_comes_of_nonsense(text):
    try:
        made = policy.parse("p.toml", text)
    except Failure as err:
        assert str(err).startswith("p.toml:")
        assert "\n" not in str(err)
        assert len(str(err)) < 500
        return
    assert plain(policy.parse("q.toml", policy.to_toml(made))) == plain(made)


@pytest.mark.parametrize(
    "text",
    [
        "mounts = [" + '{source="/a/b/c/d"},' * 13000 + "]",
        "mounts = [" + ",".join(f'{{source="/{i}"}}' for i in range(13000)) + "]",
        'mounts = [{ source = "' + "/a" * 2**16 + '" }]',
        "mounts = [" + ('{ source = "' + "/a" * 2000 + '" },') * 60 + "]",
        "files = [" + ",".join(f'{{target="{"/a" * i}/f",contents=""}}' for i in range(1, 490)) + "]",
        "[env]\n" + "".join(f'A{i} = "{{{{ os_env "X" }}}}"\n' for i in range(8000)),
        "seccomp.syscalls = [" + '"read",' * 30000 + "]",
        "[cgroup]\n" + "".join(f'"a.b{i}" = "1"\n' for i in range(12000)),
        "cgroup." + "a." * 14 + "a = {" + "a.a.a.a.a.a.a.a.a = {" * 20 + "}" * 21,
    ],
    ids=lambda text: text[:20],
)
def test_no_policy_takes_long(text):
    began = time.process_time()
    try:
        made = parse(text)
        policy.filter_program(made)
        policy.to_toml(made)
    except Failure as err:
        assert len(str(err)) < 300
    assert time.process_time() - began < 10


def test_what_is_imported_to_load_a_policy():
    """Start-up is a feature: re and typing, which tomllib takes, would double it."""
    places = [str(TOP), *(place for place in sys.path if "site-packages" in place)]
    code = "from hako import policy, policy_options; policy.load('default'); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-IS", "-c", f"import sys; sys.path[:0] = {places!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    slow = {*("re", "enum", "functools", "collections", "contextlib", "typing", "tomllib", "json", "datetime")}
    assert slow & set(done.stdout.split()) == set()


PAGE = TOP / "man/hako-policy.5"


def test_the_page_names_every_key_call_and_policy():
    text = set(test_pages.words(test_pages.rendered(PAGE)).replace(",", " ").split())
    calls = policy.Loader().calls
    assert {*KEYS, *policy_keys.LIMITS, *policy_keys.CGROUP, *calls, '"@include"', "walltime"} - text == set()
    headings = {
        heading.get("id"): section for section in test_pages.rendered(PAGE).iter("section") for heading in section
    }
    listed = headings["Where_policies_are"]
    terms = listed.find("dl").findall("*")
    told = [
        f"# {test_pages.words(name)} - {test_pages.words(line)}"
        for name, line in zip(terms[::2], terms[1::2], strict=True)
    ]
    assert told == [(TOP / f"hako/policies/{name}.toml").read_text().partition("\n")[0] for name in BUILT_IN]


def test_the_examples_of_the_page_are_policies():
    displays = ["".join(pre.itertext()) for pre in test_pages.sections(PAGE)["EXAMPLES"].iter("pre")]
    for display in displays:
        lines = [line[2:] for line in display.strip("\n").splitlines()]
        assert lines[0].startswith("cat >")
        assert parse("\n".join(lines[1 : lines.index("END")])).tree
    assert len(displays) == 3
