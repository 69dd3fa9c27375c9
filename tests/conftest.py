"""Who runs the commands, where, and in what box.

Every test that an ordinary user can run runs twice: as root and as a real
unprivileged uid. The commands are those of build/venv/bin, found on PATH.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest

BIN = pathlib.Path(sys.executable).parent
ORDINARY = 65534
BUSYBOX = shutil.which("busybox")
SYSTEM = [f"--mount={path}:{path}:ro" for path in ("/usr", "/lib", "/lib64") if os.path.exists(path)]
DEADLINE = 60  # seconds, against hanging


class Who:
    """Somebody who runs commands: "root", or "user", an ordinary uid with a group and nothing else."""

    def __init__(self, name):
        self.name = name
        self.uid = ORDINARY if name == "user" and os.getuid() == 0 else os.getuid()
        ids = (f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups")
        self.prefix = ["setpriv", *ids, "--"] if name == "user" and os.getuid() == 0 else []
        self.env = {"PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8", "SECRET": "host"}
        self.box = None

    def run(self, *argv, **options):
        """Run ARGV to its end; text in and out."""
        options = {"capture_output": True, "text": True, "timeout": DEADLINE, "env": self.env, **options}
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run([*self.prefix, *map(os.fsencode, argv)], check=False, **options)

    def start(self, *argv, **options):
        """Start ARGV; text in and out."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": self.env, **options}
        return subprocess.Popen([*self.prefix, *map(os.fsencode, argv)], **options)

    def inside(self, *argv, options=(), **popen):
        """Run ARGV in the box by hako-run with OPTIONS; busybox is there."""
        return self.run(*self.sandbox(*argv, options=options), **popen)

    def sandbox(self, *argv, options=()):
        """The command line of that."""
        return ["hako-run", f"--mount={BUSYBOX}:/bin/busybox:ro", *options, str(self.box), *argv]

    def python(self, code, *argv, options=(), **popen):
        """Run CODE by Python in the box, with the system's libraries."""
        return self.inside("/usr/bin/python3", "-I", "-c", code, *argv, options=[*SYSTEM, *options], **popen)


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


def pytest_collection_modifyitems(items, config):
    """An ordinary user is not asked for what only root can do."""
    if os.getuid() != 0:
        alone = [item for item in items if item.get_closest_marker("root")]
        items[:] = [item for item in items if item not in alone]
        config.hook.pytest_deselected(items=alone)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A skip is a failure where everything must work."""
    del item, call
    report = (yield).get_result()
    if report.skipped and os.environ.get("HAKO_MUST_WORK") == "1" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"


@pytest.fixture
def who(request, place):
    """Somebody, with a box of their own."""
    somebody = Who(request.param)
    os.chown(place, somebody.uid, somebody.uid if somebody.prefix else -1)
    somebody.box = prepare(place / "box")
    return somebody


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
