"""soak.py - run many sandboxes, and count what there is before and after

Usage:
  soak.py [options]
  soak.py --help

Options:
  --sequential=N  so many, one after the other, of each kind in turn [default: 10000]
  --together=N    so many at the same time, on one TARGET and on as many [default: 300]
  --pid-max=N     let pids end at N, so that they are used again and again; the kernel begins anew at 300
  --user          as an ordinary user; else as who runs this
  --help          print this text

Root's is run in a pid namespace and in cgroups of its own, where nobody else
disturbs the count: nothing that is there afterwards was not there before, and no
sandbox may fail. On a terminal it shows how far it is. Exit status: 0 if so, else 1.
"""

import collections
import itertools
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import docopt

from conftest import BUSYBOX, DEADLINE, Cgroups, Who, prepare

STATUS = 7
SHELL = ["/bin/sh", "-c", f"echo in; exit {STATUS}"]
WAIT = ["/bin/sh", "-c", f"read x; exit {STATUS}"]
PID_MAX = pathlib.Path("/proc/sys/kernel/pid_max")
OWN_PID_MAX = (6, 14)  # since then each pid namespace has its own


def main(args):
    """Run it all; return the exit status."""
    if os.getuid() == 0 and "HAKO_SOAK" not in os.environ:
        return again_alone()
    who = Who("user" if args["--user"] else "root")
    place = pathlib.Path(tempfile.mkdtemp(prefix="hako-soak-"))
    place.chmod(0o777)
    who.env = {**who.env, "TMPDIR": str(place)}
    who.box = prepare(place / "box")
    (place / "upper").mkdir()
    os.chown(place / "upper", who.uid, -1)
    who.cgroups = Cgroups() if os.getuid() == 0 else None
    usual = PID_MAX.read_text()
    if args["--pid-max"]:
        end_pids_at(int(args["--pid-max"]))
    try:
        return soak(who, place, int(args["--sequential"]), int(args["--together"]))
    finally:
        if args["--pid-max"]:
            PID_MAX.write_text(usual)
        if who.cgroups:
            who.cgroups.remove()
        shutil.rmtree(place)


def again_alone():
    """Run this again where no process is but its own; return its exit status."""
    own = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, *sys.argv]
    return subprocess.run(own, check=False, env={**os.environ, "HAKO_SOAK": "1"}).returncode


def end_pids_at(number):
    """Let the pids of this namespace end at NUMBER."""
    release = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2]))
    if release < OWN_PID_MAX and "HAKO_VM" not in os.environ:
        sys.exit("soak.py: --pid-max: before Linux 6.14 it would be for all of the machine, not for this alone")
    PID_MAX.write_text(str(number))
    PID_MAX.with_name("ns_last_pid").write_text(str(number - 1))


def soak(who, place, sequential, together):
    """Run SEQUENTIAL and TOGETHER sandboxes as WHO in the directory PLACE; return the exit status."""
    failures, before = collections.Counter(), counts(who, place)
    took, pids = one_by_one(who, place, sequential, failures)
    one_target = [who.box] * together
    all_at_once(who, place, one_target, failures)
    all_at_once(who, place, [prepare(place / f"box-{i}") for i in range(together)], failures)
    for i in range(together):
        shutil.rmtree(place / f"box-{i}")
    after = counts(who, place)
    tell(who, took, pids, before, after, failures)
    return 1 if failures or before != after else 0


def kinds(who, place):
    """The command lines that take turns."""
    return [
        who.sandbox(*SHELL, options=["--proc", "--dev", "--tmpfs=/tmp:1M"]),
        who.sandbox(*SHELL, options=["--userns=always", f"--pid-file={place}/pid", f"--report={place}/report"]),
        who.sandbox(*SHELL, options=[f"--overlay={place}/upper", "--as-pid-1"]),
        ["hako-limit", "--memory=64M", "--pids=20", "--time=60", *who.sandbox(*SHELL)],
        ["hako-limit", "--time=60", "--output=1K", BUSYBOX, "sh", *SHELL[1:]],
        ["hako-policy", "default", "--", *SHELL],
    ]


def one_by_one(who, place, count, failures):
    """Run COUNT sandboxes; return the seconds that each took, by kind, and the pids of them all."""
    lines, took, pids = kinds(who, place), collections.defaultdict(list), []
    for i in range(count):
        began = time.monotonic()
        process = start(who, lines[i % len(lines)], stdin=subprocess.DEVNULL)
        pids.append(process.pid)
        judge(process, "in\n", failures)
        took[i % len(lines)].append(time.monotonic() - began)
        progress(f"{i + 1} of {count}")
    (place / "report").unlink(missing_ok=True)
    return took, pids


def start(who, argv, **options):
    """Start ARGV as WHO, always in the same cgroups."""
    if who.cgroups:
        who.cgroups.again = who.cgroups.count > 0
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(who.command(argv), env=who.env, **pipes)


def judge(process, out, failures):
    """Wait for PROCESS, and count it among the FAILURES unless it wrote OUT and ended as it should."""
    found = process.communicate(timeout=10 * DEADLINE)
    if (process.returncode, *found) != (STATUS, out.encode(), b""):
        failures[f"status {process.returncode}, {found[0]!r}, {found[1]!r}"] += 1


def all_at_once(who, place, targets, failures):
    """Run a sandbox on each of TARGETS at the same time; enter some of them."""
    processes = []
    for i, target in enumerate(targets):
        options = [f"--mount={BUSYBOX}:/bin/busybox:ro", f"--pid-file={place}/pid-{i}", "--proc"]
        processes.append(start(who, ["hako-run", *options, str(target), *WAIT]))
        progress(f"{i + 1} of {len(targets)} are starting")
    files = [place / f"pid-{i}" for i in range(len(targets))]
    wait_for(lambda: all(file.exists() for file in files) or any(process.poll() is not None for process in processes))
    for file in [file for file in files if file.exists()][:: max(len(targets) // 20, 1)]:
        judge(start(who, ["hako-enter", "--fork", file.read_text().strip(), *SHELL]), "in\n", failures)
    progress(f"{len(targets)} are running")
    for process in processes:
        process.stdin.close()
        process.stdin = None
    for process in processes:
        judge(process, "", failures)


def wait_for(condition):
    """Wait until CONDITION() is true, and not for ever."""
    end = time.monotonic() + 10 * DEADLINE
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)


def counts(who, place):
    """What there is, {what: how much}; of processes what this one can see, and of files what is in PLACE."""
    wait_for(lambda: not reap() and not (who.cgroups and who.cgroups.left()))
    pids = [pid for pid in os.listdir("/proc") if pid.isdigit()] if os.getuid() == 0 else ["self"]
    namespaces = {os.readlink(path) for pid in pids for path in pathlib.Path(f"/proc/{pid}/ns").iterdir()}
    groups = [
        path for top in (who.cgroups.tops if who.cgroups else ()) for path in top.rglob("hako-*") if path.is_dir()
    ]
    return {
        "processes": len(pids),
        "namespaces": len(namespaces),
        "mounts": len(pathlib.Path("/proc/self/mountinfo").read_text().splitlines()),
        "descriptors": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
        "cgroups": len([path for path in groups if path.name != "hako-callers"]),
        "files": len([path for path in place.rglob("*") if path.name != "leaf"]),
    }


def reap():
    """Wait for those that have ended and whose parents are gone; whether one is still there. A keeper ends late."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def progress(text):
    """Show TEXT on the terminal, in the place of what was there."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


def tell(who, took, pids, before, after, failures):
    """Say what came of it."""
    progress("")
    wraps = sum(second < first for first, second in itertools.pairwise(pids))
    print(f"{who.name}: {len(pids)} one after the other, pids began anew {wraps} times")
    for kind, times in sorted(took.items()):
        few = max(len(times) // 10, 1)
        first, last = (statistics.median(part) * 1000 for part in (times[:few], times[-few:]))
        print(
            f"  {' '.join(kinds(who, pathlib.Path('.'))[kind][:2])} ...: {first:.0f} ms at first, {last:.0f} ms at last"
        )
    for what, number in before.items():
        print(f"  {what}: {number} before, {after[what]} after")
    for failure, number in failures.most_common(10):
        print(f"  {number} times: {failure}")


if __name__ == "__main__":
    sys.exit(main(docopt.docopt(__doc__)))
