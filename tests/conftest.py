"""Who runs the commands, where, and in what box.

Every test that an ordinary user can run runs twice: as root and as a real
unprivileged uid. The commands are those of build/venv/bin, found on PATH.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from hako import cgroup

BIN = pathlib.Path(sys.executable).parent
ORDINARY = 65534
BUSYBOX = shutil.which("busybox")
SYSTEM = [f"--mount={path}:{path}:ro" for path in ("/usr", "/lib", "/lib64") if os.path.exists(path)]
SLOW = float(os.environ.get("HAKO_SLOW", "1"))  # how many times slower than usual this machine is
DEADLINE = 60 * SLOW  # seconds, against hanging

# A shell's background job and nohup(1) ignore them, and what they start would too: hako leaves it so.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


class Who:
    """Somebody who runs commands: "root", or "user", an ordinary uid with a group and nothing else."""

    def __init__(self, name):
        self.name = name
        self.uid = ORDINARY if name == "user" and os.getuid() == 0 else os.getuid()
        ids = (f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups")
        self.prefix = ["setpriv", *ids, "--"] if name == "user" and os.getuid() == 0 else []
        self.env = {"PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8", "SECRET": "host"}
        self.box, self.cgroups = None, None

    def command(self, argv):
        """ARGV as this somebody runs it."""
        words = [*self.prefix, *map(os.fsencode, argv)]
        return words if self.cgroups is None else [*self.cgroups.entering(self.uid), *words]

    def run(self, *argv, **options):
        """Run ARGV to its end; text in and out."""
        options = {"capture_output": True, "text": True, "timeout": DEADLINE, "env": self.env, **options}
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(self.command(argv), check=False, **options)

    def start(self, *argv, **options):
        """Start ARGV; text in and out."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": self.env, **options}
        return subprocess.Popen(self.command(argv), **options)

    def inside(self, *argv, options=(), **popen):
        """Run ARGV in the box by hako-run with OPTIONS; busybox is there."""
        return self.run(*self.sandbox(*argv, options=options), **popen)

    def sandbox(self, *argv, options=()):
        """The command line of that."""
        return ["hako-run", f"--mount={BUSYBOX}:/bin/busybox:ro", *options, str(self.box), *argv]

    def python(self, code, *argv, options=(), **popen):
        """Run CODE by Python in the box, with the system's libraries."""
        return self.inside("/usr/bin/python3", "-I", "-c", code, *argv, options=[*SYSTEM, *options], **popen)


NO_KEY = (
    "keyctl KEYCTL_JOIN_SESSION_KEYRING: Disk quota exceeded"
    " [this user has as many keys as kernel.keys.maxkeys allows: keyrings(7)]"
)


def without_keys(who, times, *argv, **popen):
    """Run ARGV, whose processes are each refused keyctl so many TIMES, by the user's quota.

    Return how that ended, and how they joined new keyrings: "-" for each that was refused, "" for others.
    """
    trace = who.box.parent / "trace"
    strace = ["strace", "-f", "-qq", "-e", "trace=keyctl", "-e", "signal=none"]
    inject = f"inject=keyctl:error=EDQUOT:when=1..{times}"
    done = who.run(*strace, "-o", str(trace), "-e", inject, *argv, **popen)
    return done, re.findall(r"KEYCTL_JOIN_SESSION_KEYRING, .*= (-?)", trace.read_text())


def pytest_generate_tests(metafunc):
    """Tests that take who run as everybody that can be had; marked root, as root alone."""
    if "who" in metafunc.fixturenames:
        alone = metafunc.definition.get_closest_marker("root")
        names = ["root"] if os.getuid() == 0 else []
        names += [] if alone else ["user"]
        metafunc.parametrize("who", names, indirect=True)


def pytest_configure(config):
    """Say what the marks mean."""
    config.addinivalue_line("markers", "root: only root can do it")
    config.addinivalue_line("markers", "vm: worth repeating on a stock kernel with cgroup v2 alone")


def pytest_collection_modifyitems(items, config):
    """An ordinary user is not asked for what only root can do, nor for cgroups that only root can delegate."""
    if os.getuid() != 0:
        alone = [item for item in items if item.get_closest_marker("root") or "delegated" in item.fixturenames]
        items[:] = [item for item in items if item not in alone]
        config.hook.pytest_deselected(items=alone)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A skip is a failure where everything must work."""
    del item, call
    report = (yield).get_result()
    if report.skipped and os.environ.get("HAKO_MUST_WORK") == "1" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"


def pytest_runtest_logreport(report):
    """Say at once what failed where several workers run, not when all have: that may be an hour later."""
    if report.failed and hasattr(report, "node"):
        why = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
        print(f"\n{report.nodeid}", *(why or report.longreprtext.splitlines()[-1:]), sep="\n", flush=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    """Forget what failed in a run that did not come to its end: --last-failed is all of them then."""
    if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and session.config.cache:
        session.config.cache.set("cache/lastfailed", {})


@pytest.fixture
def who(request, place):
    """Somebody, with a box of their own."""
    somebody = Who(request.param)
    os.chown(place, somebody.uid, somebody.uid if somebody.prefix else -1)
    somebody.box = prepare(place / "box")
    return somebody


class Cgroups:
    """A cgroup of the tests in each hierarchy, below which every command gets one that is delegated to its user."""

    def __init__(self):
        self.count, self.again, name = 0, False, f"tests-of-hako-{os.getpid()}-{os.urandom(4).hex()}"
        self.tops = [pathlib.Path(place) / name for place in cgroup.places().values()]
        for top in self.tops:
            top.mkdir()
            if (top / "cgroup.subtree_control").exists():
                names = (top / "cgroup.controllers").read_text().split()
                (top / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in names))
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (top.parent / file).exists() and not (top / "cgroup.controllers").exists():
                    (top / file).write_text((top.parent / file).read_text())

    def entering(self, uid):
        """The words in front of a command that is to be in a new leaf, UID's own; AGAIN, in the last."""
        enter = 'while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || exit 99; shift; done; shift; exec "$@"'
        leaves = [top / f"leaf-{self.count}" for top in self.tops]
        if self.again:
            leaves = [leaf / cgroup.CALLERS if (leaf / cgroup.CALLERS).exists() else leaf for leaf in leaves]
            return ["sh", "-c", enter, "sh", *map(str, leaves), "--"]
        self.count += 1
        leaves = [top / f"leaf-{self.count}" for top in self.tops]
        for leaf in leaves:
            leaf.mkdir()
            for file in ("cpuset.cpus", "cpuset.mems"):
                if (leaf / file).exists() and not (leaf / "cgroup.controllers").exists():
                    (leaf / file).write_text((leaf.parent / file).read_text())
            for name in (".", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control", "tasks"):
                if (leaf / name).exists():
                    os.chown(leaf / name, uid, -1)
        return ["sh", "-c", enter, "sh", *map(str, leaves), "--"]

    def prefer(self):
        """Let what is in here have the CPU before anybody else."""
        for top in self.tops:
            for file, most in (("cpu.weight", "10000"), ("cpu.shares", "262144")):
                if (top / file).exists():
                    (top / file).write_text(most)

    def left(self):
        """What commands have left below their leaves, but for where their callers are."""
        leaves = [leaf for top in self.tops for leaf in top.glob("leaf-*") if leaf.stat().st_nlink > 2]
        found = {path for leaf in leaves for path in leaf.iterdir() if path.is_dir()}
        return sorted(str(path) for path in found if path.name != cgroup.CALLERS)

    def sweep(self):
        """Remove the leaves that nobody is in any more: with thousands each look at them would take its time."""
        for top in self.tops:
            for leaf in top.glob("leaf-*"):
                remove_directory(leaf / cgroup.CALLERS)
                remove_directory(leaf)

    def wait_until_empty(self):
        """Wait until nothing is left there: a slow machine may see to it when the command has ended already."""
        wait_until(lambda: not self.left())

    def remove(self):
        """Remove all of it, with what is still in there."""
        for top in self.tops:
            directories = [top, *(path for path in top.rglob("*") if path.is_dir())]
            for directory in sorted(directories, key=lambda path: len(path.parts), reverse=True):
                for pid in (directory / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
                wait_until(lambda directory=directory: not remove_directory(directory))


def remove_directory(path):
    """Remove the directory PATH; whether it is still there."""
    try:
        path.rmdir()
    except OSError:
        pass
    return path.exists()


def wait_until(condition):
    """Wait until CONDITION() is true, and not for ever."""
    end = time.monotonic() + DEADLINE / 4
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def delegated(who):
    """The cgroups of WHO, delegated as a service manager does it; nothing may be left in them."""
    who.cgroups = Cgroups()
    yield who.cgroups
    who.cgroups.remove()


@pytest.fixture
def place():
    """A directory that everybody may enter; pytest's tmp_path is for root alone."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="hako-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory):
    """Compile C, statically; return the path, one that everybody may execute."""
    made = {}

    def compile_(source):
        if source not in made:
            path = pathlib.Path(tempfile.mkdtemp(prefix="hako-probe-"))
            path.chmod(0o755)
            (path / "probe.c").write_text(source)
            subprocess.run(["cc", "-static", "-O1", "-w", "-o", path / "probe", path / "probe.c"], check=True)
            made[source] = path / "probe"
        return made[source]

    yield compile_
    del tmp_path_factory
    for path in made.values():
        shutil.rmtree(path.parent)


def prepare(path):
    """Make a directory for hako-run at PATH, with mount points for all that the tests mount."""
    for name in (".hako", "bin", "proc", "dev", "tmp", "data", "usr", "lib", "lib64", "sub", "etc"):
        (path / name).mkdir(parents=True)
    for name in ("bin/busybox", "bin/probe", "file"):
        (path / name).touch()
    (path / "bin/sh").symlink_to("busybox")
    for directory in (path, path / "data"):
        directory.chmod(0o777)
    return path
