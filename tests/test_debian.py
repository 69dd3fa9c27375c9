"""The Debian package: it builds, lintian finds nothing wrong, and what has to be is in it."""

import pathlib
import re
import shutil
import subprocess
import tempfile

import pytest

import hako
from conftest import DEADLINE
from hako import core

TOP = pathlib.Path(__file__).parent.parent


def do(*argv):
    """Run ARGV, which must succeed; what it printed."""
    done = subprocess.run(
        list(map(str, argv)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE * 4,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def package():
    """The package, and a directory with what is in it."""
    place = pathlib.Path(tempfile.mkdtemp(prefix="hako-deb-", dir="/tmp"))
    do(TOP / "tools/build-deb", place)
    (made,) = place.glob("*.deb")
    do("dpkg-deb", "-x", made, place / "root")
    yield made, place / "root"
    shutil.rmtree(place)


def test_the_version_is_that_of_the_tree(package):
    made, _ = package
    assert do("dpkg-deb", "-f", made, "Version") == f"{hako.__version__}\n"
    assert re.match(r"hako \((\S+)\) ", (TOP / "debian/changelog").read_text())[1] == hako.__version__


def test_lintian_finds_nothing_wrong(package):
    made, _ = package
    said = subprocess.run(["lintian", made], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (said.returncode, [line for line in said.stdout.splitlines() if line[:2] in ("E:", "W:")]) == (0, [])


def test_all_is_in_it(package):
    _, root = package
    modules = root / "usr/lib/python3/dist-packages/hako"
    ours = {path.relative_to(TOP / "hako") for path in (TOP / "hako").rglob("*") if path.is_file()}
    assert {path for path in ours if path.suffix != ".pyc"} == {
        path.relative_to(modules) for path in modules.rglob("*") if path.is_file()
    }
    assert {path.name for path in (root / "usr/bin").iterdir()} == set(core.COMMANDS)
    pages = {path.name.removesuffix(".gz") for path in (root / "usr/share/man").rglob("*.gz")}
    assert pages == {path.name for path in (TOP / "man").iterdir()}
    assert {path.name for path in (root / "usr/share/bash-completion/completions").iterdir()} >= set(core.COMMANDS)
    assert (root / "usr/share/zsh/vendor-completions/_hako").exists()
    assert (root / "usr/share/fish/vendor_completions.d/hako-run.fish").exists()


def test_the_commands_are_isolated_and_know_where_their_modules_are(package):
    _, root = package
    for command in core.COMMANDS:
        first, second, *_ = (root / "usr/bin" / command).read_text().splitlines()
        assert first == "#!/usr/bin/python3 -IS"
        assert second == 'import sys; sys.path[:0] = ["/usr/lib/python3/dist-packages"]'
