"""pool.py BIN - how long a small program in a fresh sandbox takes by warm workers, beside what else there is

The work: a static `true` in new namespaces of every kind, with /proc, a minimal
/dev, a tmpfs /tmp and the system's directories read-only. One at a time: blocks
of BLOCK of each in turn, ROUNDS times, so that a machine that slows down slows
all of them. Many: COUNT tasks by hako-task --stream and by xargs, by turns.
Prints medians, and ratios to bubblewrap. BIN is the directory of the commands.
"""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import progress

ROUNDS = int(os.environ.get("ROUNDS", "20"))
BLOCK = int(os.environ.get("BLOCK", "20"))
COUNT = int(os.environ.get("COUNT", "2000"))
JOBS = 2
SYSTEM = [path for path in ("/usr", "/bin", "/lib", "/lib64", "/etc") if os.path.isdir(path)]
LARGE = int(os.environ.get("LARGE", str(4 << 30)))  # bytes of a large caller
TRUE = "int main(void) { return 0; }\n"


def compiled(place):
    """The path of a static program in the directory PLACE that does nothing."""
    source = place / "true.c"
    source.write_text(TRUE)
    subprocess.run(["cc", "-O2", "-static", "-o", place / "true", source], check=True)
    return str(place / "true")


def peers(true, place):
    """Other programs that do it, as far as each can: {name: argv}."""
    binds = [word for path in SYSTEM for word in ("--ro-bind", path, path)]
    same = ["bwrap", "--unshare-all", *binds, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    found = {
        "bwrap": [*same, "--ro-bind", true, "/true", "--die-with-parent", "--new-session", "/true"],
        "unshare (namespaces and /proc alone)": ["unshare", "-Urpmniu", "--fork", "--mount-proc", true],
        "firejail": ["firejail", "--quiet", "--noprofile", "--net=none", "--private-dev", "--private-tmp", true],
        "crun": ["crun", "run", "-b", bundle(true, place), "bench-crun"],
        "systemd-nspawn": [
            "systemd-nspawn",
            "-q",
            "--register=no",
            "--keep-unit",
            "-D",
            f"{place}/bundle/rootfs",
            "/true",
        ],
    }
    return {name: argv for name, argv in found.items() if works(argv)}


def bundle(true, place):
    """A directory for container runtimes in PLACE with the same program."""
    root = place / "bundle/rootfs"
    for name in ("proc", "dev", "tmp", "usr", "etc"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(true, root / "true")
    (root / "etc/os-release").touch()
    kinds = ("pid", "mount", "ipc", "uts", "network", "cgroup")
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
    ]
    config = {
        "ociVersion": "1.0.2",
        "process": {"args": ["/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs", "readonly": True},
        "mounts": mounts,
        "linux": {"namespaces": [{"type": kind} for kind in kinds]},
    }
    (place / "bundle/config.json").write_text(json.dumps(config))
    return str(place / "bundle")


def works(argv):
    """Whether ARGV is to be had here, and ends well."""
    try:
        return (
            shutil.which(argv[0]) is not None
            and subprocess.run(argv, **quiet(), check=False, timeout=20).returncode == 0
        )
    except subprocess.TimeoutExpired:
        return False


def quiet():
    """No input and no output."""
    return {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def timed(function):
    """Milliseconds that FUNCTION takes, for each of BLOCK times."""
    took = []
    for _ in range(BLOCK):
        began = time.perf_counter()
        function()
        took.append((time.perf_counter() - began) * 1000)
    return took


def one_at_a_time(hako, sandbox, true, place):
    """{name: milliseconds} of each way, by turns."""
    pool = hako.Pool(1)

    def warm():
        if not pool.run(sandbox, ["/true"], stdout=None, stderr=None).ok:
            sys.exit("pool: it failed")

    ways = {
        "hako.Pool": warm,
        "vfork and exec alone, no sandbox": lambda: os.waitpid(os.posix_spawn(true, [true], {}), 0),
    }
    for name, argv in peers(true, place).items():
        ways[name] = lambda argv=argv: subprocess.run(argv, **quiet(), check=True)
    took = {name: [] for name in ways}
    for round_ in range(ROUNDS + 1):
        for name, function in ways.items():
            found = timed(function)
            if round_:  # the first warms up
                took[name] += found
        progress.show(f"one at a time: {round_} of {ROUNDS} rounds")
    pool.shutdown()
    return {name: statistics.median(values) for name, values in took.items()}


CALLER = """
import sys, time, statistics
sys.path[:0] = eval(sys.argv[1])
import hako
ballast = bytearray(int(sys.argv[3])) if int(sys.argv[3]) else b""
for i in range(0, len(ballast), 4096):
    ballast[i] = 1
sandbox = hako.Sandbox(**eval(sys.argv[2]))
while line := sys.stdin.readline():
    took = []
    for _ in range(int(line)):
        began = time.perf_counter()
        assert hako.run(["/true"], sandbox=sandbox, stdout=None, stderr=None).ok
        took.append((time.perf_counter() - began) * 1000)
    print(*took, flush=True)
"""


def callers(options, paths):
    """Medians, in milliseconds, of hako.run from a small caller and from a large one."""
    started = []
    for size in (0, LARGE):
        argv = [sys.executable, "-c", CALLER, repr(paths), repr(options), str(size)]
        started.append(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    took = [[], []]
    for round_ in range(max(ROUNDS // 2, 1) * 2 + 1):
        for number, caller in enumerate(started):
            caller.stdin.write(f"{BLOCK}\n")
            caller.stdin.flush()
            line = list(map(float, caller.stdout.readline().split()))
            took[number] += line if round_ else []
        progress.show(f"small and large caller: {round_} rounds")
    for caller in started:
        caller.stdin.close()
        caller.wait()
    return [statistics.median(found) for found in took]


def many(tools, true, place):
    """Tasks a second, JOBS at once: {name: median of five turns}."""
    mounts = [{"type": "proc", "dest": "/proc"}, {"type": "dev", "dest": "/dev"}, {"type": "tmpfs", "dest": "/tmp"}]
    mounts.append({"type": "bind", "src": true, "dest": "/true", "ro": True})
    request = {"cmd": ["/true"], "rootfs": SYSTEM, "mounts": mounts}
    turn = max(COUNT // 5, 1)
    (place / "requests").write_text((json.dumps(request) + "\n") * turn)
    peer = peers(true, place).get("bwrap")
    took = {}
    for number in range(6):
        began = time.perf_counter()
        with open(place / "requests", "rb") as requests:
            done = subprocess.run(
                [f"{tools}/hako-task", "--stream", f"--jobs={JOBS}"], stdin=requests, stdout=subprocess.PIPE, check=True
            )
        ended = time.perf_counter()
        if done.stdout != b'{"status":"exited","code":0}\n' * turn:
            sys.exit("hako-task: it failed")
        if number:
            took.setdefault("hako-task --stream", []).append(turn / (ended - began))
        if peer:
            began = time.perf_counter()
            lines = b"\n" * turn
            argv = ["xargs", "-P", str(JOBS), "-I", "{}", *peer]
            subprocess.run(argv, input=lines.replace(b"\n", b"x\n"), stdout=subprocess.DEVNULL, check=True)
            if number:
                took.setdefault("xargs bwrap", []).append(turn / (time.perf_counter() - began))
        progress.show(f"many: {number} of 5 turns")
    return {name: statistics.median(values) for name, values in took.items()}


def report(rows, unit, base):
    """Print ROWS, {name: number}, with the ratios to that of BASE."""
    progress.show("")
    for name, value in rows.items():
        ratio = f"{value / rows[base]:7.2f}" if base in rows else "      -"
        print(f"{value:9.2f} {unit}  {ratio}  {name}", flush=True)


def main(tools):
    """Measure and print."""
    site = [str(pathlib.Path(__file__).parent.parent), str(pathlib.Path(tools).parent / "lib/hako-site")]
    sys.path[:0] = site
    import hako

    with tempfile.TemporaryDirectory() as directory:
        place = pathlib.Path(directory)
        place.chmod(0o755)
        true = compiled(place)
        box = place / "box"
        for path in ("/.hako", "/proc", "/dev", "/tmp", *SYSTEM):
            (box / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
        (box / "true").touch()
        options = {
            "root": str(box),
            "mounts": [*(f"{path}:{path}:ro" for path in SYSTEM), f"{true}:/true:ro"],
            **{"proc": True, "dev": True, "tmpfs": ["/tmp"]},
        }
        print(f"one at a time, {ROUNDS * BLOCK} each, ms and ratio to bwrap")
        report(one_at_a_time(hako, hako.Sandbox(**options), true, place), "ms", "bwrap")
        small, large = callers(options, site)
        print(f"hako.run, ms and ratio: from a small caller, and one of {LARGE >> 30} GiB")
        report({"small": small, "large": large}, "ms", "small")
        print(f"{COUNT} tasks, {JOBS} at once, a second and ratio to xargs -P{JOBS} bwrap")
        report(many(tools, true, place), "/s", "xargs bwrap")


main(sys.argv[1])
