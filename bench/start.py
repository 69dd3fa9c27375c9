"""start.py BIN - how long the commands in the directory BIN take, beside what else there is

Whole processes, from spawn to wait, each command in turn and round again, so
that a machine that slows down slows all of them. Prints medians and ratios to
the bare interpreter that the commands run under; and the private memory of a
supervisor with its init.
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

ROUNDS = int(os.environ.get("ROUNDS", "200"))


def commands(tools, box, busybox):
    """What is timed, {name: argv}."""
    python = (pathlib.Path(tools) / "hako-run").read_text().split(None, 1)[0].removeprefix("#!")
    run = [f"{tools}/hako-run", f"--mount={busybox}:/bin/busybox:ro", box]
    true = ["/bin/busybox", "true"]
    links = ["rlimit-exec", "--nofile=64", "rlimit-exec", "--core=0", "rlimit-exec", "--cpu=9"]
    timed = {
        "python3 -I -c pass": [python, "-I", "-c", "pass"],
        "hako-run true": [*run, *true],
        "hako-run --proc --dev --tmpfs true": [*run[:-1], "--proc", "--dev", "--tmpfs=/tmp", box, *true],
        "hako-run and three rlimit-exec, true": [*run, *links, *true],
        "rlimit-exec true": [f"{tools}/rlimit-exec", "--nofile=64", *true],
        "hako-limit --memory --time true": [f"{tools}/hako-limit", "--memory=64M", "--time=5", *true],
        "hako-limit --time --output true": [f"{tools}/hako-limit", "--time=5", "--output=1M", *true],
        "hako-limit --memory --time hako-run true": [
            *(f"{tools}/hako-limit", "--memory=64M", "--time=5", "hako-run", *run[1:]),
            *true,
        ],
        "prlimit true": ["prlimit", "--nofile=64", *true],
        "busybox true": true,
    }
    if shutil.which("bwrap"):
        same = ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", box, "/"]
        same += ["--ro-bind", busybox, "/bin/busybox"]
        timed["bwrap true, the same isolation"] = [*same, *true]
    if os.path.isdir("/run/systemd/system"):
        scope = ["systemd-run", "--quiet", "--scope", "-p", "MemoryMax=64M", "-p", "RuntimeMaxSec=5"]
        timed["systemd-run --scope true"] = [*scope, *true]
    timed |= {
        f"{tool} run, a bundle with --memory": [tool, "run", "-b", bundle(box, busybox), f"bench-{tool}"]
        for tool in ("crun", "runc")
    }
    return {name: argv for name, argv in timed.items() if works(argv)}


def bundle(box, busybox):
    """A directory for container runtimes with the same program and limit; BUSYBOX is copied."""
    place = pathlib.Path(f"{box}-bundle")
    (place / "rootfs/bin").mkdir(parents=True, exist_ok=True)
    shutil.copy(busybox, place / "rootfs/bin/busybox")
    kinds = ("pid", "mount", "ipc", "uts", "network")
    config = {
        "ociVersion": "1.0.2",
        "process": {"args": ["/bin/busybox", "true"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs", "readonly": True},
        "linux": {
            "namespaces": [{"type": kind} for kind in kinds],
            "resources": {"memory": {"limit": 64 << 20}},
        },
    }
    (place / "config.json").write_text(json.dumps(config))
    return str(place)


def works(argv):
    """Whether ARGV is to be had here, and ends well: some of them do not with these cgroups."""
    if not shutil.which(argv[0]):
        return False
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.run(argv, check=False, timeout=60, **quiet).returncode == 0


def once(argv):
    """Run ARGV to its end; return the seconds it took."""
    began = time.perf_counter()
    pid = os.posix_spawnp(argv[0], argv, os.environ)
    _, status = os.waitpid(pid, 0)
    took = time.perf_counter() - began
    if status:
        raise SystemExit(f"{argv[0]} ended with wait status {status}")
    return took


def private_kilobytes(pid):
    """The private memory of process PID, clean and dirty, in KiB."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("Private_"))


def memory(argv):
    """The private memory of the supervisor and the init of the sandbox that ARGV makes, in KiB each."""
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = private_kilobytes(process.pid), private_kilobytes(children[0])
    process.communicate(b"\n")
    return found


def main(tools):
    """Time and print."""
    busybox = shutil.which("busybox")
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        for name in (".hako", "bin", "proc", "dev", "tmp"):
            os.makedirs(f"{place}/{name}")
        pathlib.Path(f"{place}/bin/busybox").touch()
        timed = commands(tools, place, busybox)
        times = {name: [] for name in timed}
        for turn in range(ROUNDS + 5):
            for name, argv in timed.items():
                took = once(argv)
                if turn >= 5:
                    times[name].append(took)
            progress.show(f"{turn + 1} of {ROUNDS + 5} rounds")
        progress.show("")
        shutil.rmtree(f"{place}-bundle", ignore_errors=True)
        shell = [*timed["hako-run true"][:-2], "/bin/busybox", "sh", "-c", "echo; read x"]
        supervisor, init = memory(shell)
    report(times, supervisor, init)


def report(times, supervisor, init):
    """Print TIMES, {name: [seconds]}, and the KiB of SUPERVISOR and INIT."""
    medians = {name: statistics.median(values) * 1000 for name, values in times.items()}
    bare = medians["python3 -I -c pass"]
    print(f"{ROUNDS} rounds; medians")
    for name, value in medians.items():
        print(f"{name:38} {value:7.2f} ms {value / bare:6.2f} times the bare interpreter")
    one, four = medians["hako-run true"], medians["hako-run and three rlimit-exec, true"]
    print(f"a chain of four is {four / one:.2f} times a chain of one")
    limited, link = medians["hako-limit --memory --time true"], medians["rlimit-exec true"]
    print(f"hako-limit --memory --time is {limited / link:.2f} times rlimit-exec")
    if "bwrap true, the same isolation" in medians:
        print(f"hako-run is {one / medians['bwrap true, the same isolation']:.1f} times bwrap")
    print(f"private memory: supervisor {supervisor / 1024:.1f} MB, init {init / 1024:.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1])
