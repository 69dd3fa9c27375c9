"""What CONTRIBUTING.md says, done."""

import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

TOP = pathlib.Path(__file__).parent.parent
TEXT = (TOP / "CONTRIBUTING.md").read_text()
MAIN = "import sys; sys.path[:0] = sys.argv[1].split(':'); from hako import core; core.main(sys.argv[2:])"


@pytest.fixture
def link(place, who):
    """What runs the link of the page, in a copy of the house to which it was added."""
    shutil.copytree(TOP / "hako", place / "hako", ignore=shutil.ignore_patterns("__pycache__"))
    module, line = re.findall(r" *```python\n(.*?) *```", TEXT, re.S)
    (place / "hako/commands/umask_exec.py").write_text(module)
    core = (place / "hako/core.py").read_text()
    (place / "hako/core.py").write_text(re.sub(r"(\nCOMMANDS = .*\n)", rf"\1{line}", core))
    argv = [sys.executable, TOP / "tools/make_patterns.py"]
    made = subprocess.run(argv, env={"PYTHONPATH": str(place)}, capture_output=True, text=True, check=True).stdout
    (place / "hako/patterns.py").write_text(made)
    places = ":".join([str(place), *(path for path in sys.path if "site-packages" in path)])
    python = pathlib.Path(sys.executable).resolve()
    return lambda *argv: who.run(python, "-I", "-c", MAIN, places, *argv)


def test_the_link_of_the_page_works(link):
    done = link("umask-exec", "027", "rlimit-exec", "--core=0", "umask-exec", "71", "sh", "-c", "umask; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "0071\n", "")
    done = link("umask-exec", "8", "true")
    assert (done.returncode, done.stderr) == (125, "umask-exec: MASK: not octal, 0 to 777: '8'\n")
    assert link("umask-exec", "--help").stdout.startswith("umask-exec - ")


def test_how_to_run_one_test():
    (line,) = re.findall(r"```sh\n(.*?)\n```", TEXT, re.S)
    argv = shlex.split(line)
    assert argv[0] == "build/venv/bin/python3"
    done = subprocess.run(
        [sys.executable, *argv[1:], "-p", "no:cacheprovider", "--collect-only"],
        cwd=TOP,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "test_rlimit_exec.py::" in done.stdout


def test_what_is_named_is_there():
    for name in re.findall(r"`((?:hako|tests|tools|man|bin)/[\w/.]*)`", TEXT):
        assert "umask" in name or (TOP / name).exists()
    for name in re.findall(r"`(\w+\.py)`", TEXT):
        assert (TOP / "hako" / name).exists()
