"""What pip makes of the tree: a source distribution, a wheel of that, and commands in a fresh environment."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile

import pytest

import hako
from conftest import DEADLINE
from hako import core

TOP = pathlib.Path(__file__).parent.parent
OUT_OF_TREE = {"build", ".git", "__pycache__"}
BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, 'build_' + sys.argv[1])(sys.argv[2])"
PLANTED = "import os; os.write(2, b'planted')"


def do(*argv, **options):
    """Run ARGV, which must succeed; what it printed."""
    options = {"capture_output": True, "text": True, "timeout": DEADLINE * 4, **options}
    return subprocess.run([str(word) for word in argv], check=True, stdin=subprocess.DEVNULL, **options).stdout


@pytest.fixture(scope="module")
def venv():
    """A fresh environment with hako in it: from a wheel from a source distribution, as pip does it.

    Without a network: what hako needs is lent by our own.
    """
    place = pathlib.Path(tempfile.mkdtemp(prefix="hako-venv-", dir="/tmp"))
    place.chmod(0o755)
    shutil.copytree(TOP, place / "tree", ignore=lambda _, names: OUT_OF_TREE.intersection(names))
    do(sys.executable, "-c", BUILD, "sdist", place, cwd=place / "tree")
    do("tar", "-xf", place / f"hako-{hako.__version__}.tar.gz", cwd=place)
    do(sys.executable, "-c", BUILD, "wheel", place, cwd=place / f"hako-{hako.__version__}")
    do(os.path.realpath(sys.executable), "-m", "venv", "--without-pip", place / "venv")
    made = place / "venv"
    pip = (sys.executable, "-m", "pip", "--python", made / "bin/python3", "install", "--no-index", "--no-deps")
    do(*pip, place / f"hako-{hako.__version__}-py3-none-any.whl")
    (site,) = made.glob("lib/python3.*/site-packages")
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    yield made
    shutil.rmtree(place)


def installed(who, venv, *places):
    """WHO, with the commands of VENV on PATH, PLACES in front."""
    who.env["PATH"] = ":".join(map(str, (*places, venv / "bin", "/usr/bin", "/bin")))
    return who


def test_all_is_in_its_place(venv):
    assert {path.name for path in (venv / "share/man").rglob("*.?")} == {path.name for path in (TOP / "man").iterdir()}
    assert {*core.COMMANDS, "hako-python"} <= {path.name for path in (venv / "bin").iterdir()}
    (package,) = venv.glob("lib/python3.*/site-packages/hako")
    files = {path.relative_to(TOP / "hako") for path in (TOP / "hako").rglob("*") if path.is_file()}
    ours = {path for path in files if path.suffix != ".pyc"}
    assert ours <= {path.relative_to(package) for path in package.rglob("*")}


@pytest.mark.parametrize("python", ["the environment's", "another"])
def test_the_commands_work_whatever_python_is_on_path(venv, who, python):
    installed(who, venv, *(["/usr/bin"] if python == "another" else []))
    done = who.inside("rlimit-exec", "--nofile=16", "/bin/sh", "-c", "ulimit -n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "16\n", "")
    assert who.run("seccomp-exec", "minimal", "sh", "-c", "exit 7").returncode == 7
    assert who.run("hako-run", "--version").stdout == f"hako {hako.__version__}\n"


def test_by_a_link_from_elsewhere(venv, who, place):
    """As pipx has it, and whoever has no bin directory of the environment on PATH."""
    (place / "hako-run").symlink_to(venv / "bin/hako-run")
    who.env["PATH"] = f"{place}:/usr/bin:/bin"
    assert who.run("hako-run", "--version").stdout == f"hako {hako.__version__}\n"


@pytest.mark.parametrize("first", ["venv/bin", "/usr/bin"])
def test_nothing_planted_is_imported(venv, who, place, first):
    """Python without -I imports it; the commands, which pip alone would start so, do not."""
    installed(who, venv, *([first] if first == "/usr/bin" else []))
    for name in ("sitecustomize", "usercustomize", "docopt", "os", "hako"):
        (place / f"{name}.py").write_text(PLANTED)
    who.env["PYTHONPATH"] = str(place)
    assert "planted" in who.run(venv / "bin/python3", "-c", "pass", cwd=place).stderr
    done = who.run("rlimit-exec", "--core=0", "echo", "ran", cwd=place)
    assert (done.stdout, done.stderr) == ("ran\n", "")


def test_no_trace_of_either_python(venv, who):
    """PROG finds the environment and the signals that the caller had."""
    installed(who, venv, "/usr/bin")
    who.env = {"PATH": who.env["PATH"], "A": "b"}  # no LANG: CPython sets LC_CTYPE then
    for program in (["env"], ["grep", "SigIgn", "/proc/self/status"], ["ls", "/proc/self/fd"]):
        assert who.run("rlimit-exec", *program).stdout == who.run(*program).stdout


def test_a_python_that_is_gone_is_named(venv, who, place):
    for name in ("hako-run", "hako-python"):
        shutil.copy(venv / "bin" / name, place)
    text = (place / "hako-python").read_text()
    (place / "hako-python").write_text(text.replace(f"#!{venv}/bin/", "#!/no/such/", 1))
    done = who.run(place / "hako-run", "--version")
    python = re.match(r"#!(.*)", (place / "hako-python").read_text())[1]
    reason = "No such file or directory [pip has installed hako for it]"
    assert (done.returncode, done.stderr) == (125, f"hako-run: execve {python}: {reason}\n")


def test_python_m_hako_lists_the_commands(venv):
    listed = do(venv / "bin/python3", "-m", "hako", cwd="/").splitlines()
    assert [line.partition(" - ")[0] for line in listed] == list(core.COMMANDS)
    assert all(line.partition(" - ")[2] for line in listed)


def test_the_version_stands_once():
    texts = [path.read_text() for path in (TOP / "setup.cfg", TOP / "pyproject.toml", TOP / "hako/core.py")]
    assert not any(hako.__version__ in text for text in texts)
