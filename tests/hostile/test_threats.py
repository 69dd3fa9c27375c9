"""The list of threats and what it names."""

import ast
import pathlib
import subprocess

import pytest

from hostile import probes, ways
from hostile.threats import THREATS

TESTS = pathlib.Path(__file__).parent.parent


def path_of(module):
    """The file of MODULE as the list names it."""
    if module.startswith(("test_", "vm/")):
        return TESTS / f"{module}.py"
    return TESTS / f"hostile/test_{module}.py"


@pytest.mark.parametrize("letter", list(THREATS))
def test_every_test_that_is_named_is_there(letter):
    assert THREATS[letter]
    for threat, names in THREATS[letter]:
        assert names, threat
        for name in names:
            module, _, function = name.partition("::")
            tree = ast.parse(path_of(module).read_text())
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


def test_every_letter_and_every_test_of_this_directory_is_in_the_list():
    assert list(THREATS) == list("ABCDEFGHIJKL")
    named = {name for threats in THREATS.values() for _, names in threats for name in names}
    for path in pathlib.Path(__file__).parent.glob("test_[a-l]_*.py"):
        tests = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        found = {f"{path.stem.removeprefix('test_')}::{name}" for name in tests if name.startswith("test_")}
        controls = {name for name in found if name.partition("::")[2] in CONTROLS}
        assert found - controls <= named


CONTROLS = {
    "test_without_a_sandbox_they_succeed",
    "test_what_they_try_is_there",
    "test_a_limit_can_be_raised_where_it_stands",
}


def test_the_attacks_are_those_of_the_program(probe):
    lines = subprocess.run([probe, "list"], capture_output=True, text=True, check=True).stdout.splitlines()
    others = ["surroundings", "groups-of-caller"]  # which no table shows
    assert sorted(line.split()[0] for line in lines) == sorted([*probes.ATTACKS, *others])
    assert sorted(line.split()[0] for line in lines if "special" in line) == sorted([*probes.SPECIAL, *others])


def test_every_attack_is_made_in_a_module():
    made = {name for letter in "ABFH" for name in probes.of(letter)} | set(probes.SPECIAL)
    assert made == set(probes.ATTACKS)


def test_the_readme_shows_every_attack_and_that_none_succeeds_in_hako():
    """The table is the last one that was made: what is in there is what is tried, and none is worse than in bwrap."""
    lines = (TESTS.parent / "README.md").read_text().partition("## Held against attacks")[2].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    titles, shown = rows[0], {row[0]: row[1:] for row in rows[1:]}
    assert titles[1:5] == ["nothing", "hako-run", "hako-policy", "bwrap"]
    known = {f"{letter}: {words}": name for name, (letter, words, _) in probes.ATTACKS.items()}
    assert {known[words] for words in shown} >= set(probes.ATTACKS) - set(probes.LACKING)
    for cells in shown.values():
        assert cells[0] != "-"
        assert cells[1:3] == ["-", "-"]


def test_every_command_that_confines_is_a_way():
    words = " ".join(ways.WAYS)
    for command in ("hako-run", "hako-enter", "hako-policy", "hako-limit", "seccomp-exec", "landlock-exec"):
        assert command in words
