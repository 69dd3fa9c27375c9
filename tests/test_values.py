"""The readers of values, mounts, ids, pid files and command lines: whatever text they get, all of it or none."""

import itertools
import os
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hako import core, identity, newfile, sandbox, subids, values
from hako.failure import Failure

ODD = ["", "0", "00", "-1", "+1", " 1", "1 ", "1_0", "0x10", "1e3", "\u0661", "\u00b2"]
ODD += ["4294967295", "4294967296", "9" * 19, "9" * 30]
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
NUMBERS = st.sampled_from(ODD) | st.integers(-2, 2**70).map(str) | st.text("0123456789.KMGkm -+", max_size=6) | TEXTS
PATHS = st.text(st.sampled_from('ab:\\/,. \n"\u00e9\udcff'), min_size=1, max_size=12)
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def refused(function, *args):
    """What FUNCTION makes of ARGS; None if it refuses them, in one line."""
    try:
        return function(*args)
    except Failure as err:
        assert "\n" not in str(err)
        return None


@given(NUMBERS)
def test_a_whole_number_is_digits_and_fits(text):
    right = re.fullmatch("[0-9]{1,20}", text) and int(text) < 2**63
    assert refused(values.whole, "-x", text) == (int(text) if right else None)


@given(NUMBERS)
def test_a_size_is_digits_and_a_unit_and_fits(text):
    found = re.fullmatch("([0-9]{1,20})([KMG]?)", text)
    size = int(found[1]) * UNITS[found[2]] if found else 2**63
    assert refused(values.size, "-x", text) == (size if size < 2**63 else None)


@given(NUMBERS)
def test_seconds_are_digits_perhaps_with_a_point_and_more_than_none(text):
    right = re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,20})?", text) and float(text) > 0
    assert refused(values.seconds, "-x", text) == (float(text) if right else None)


@given(NUMBERS)
def test_an_id_is_one_the_kernel_takes_or_a_name_or_nothing(text):
    """Other tools have taken "+0", " 0" or 4294967296 for root."""
    number = int(text) if re.fullmatch("[0-9]{1,20}", text) else None
    for found in (refused(identity.find_group, text), (refused(identity.find_user, text, False) or [None])[0]):
        assert found == (number if number is not None and number < 2**32 - 1 else None)


@given(st.text() | PATHS)
def test_no_name_makes_an_exception_of_the_lookup(name):
    assume(name not in ("root", "daemon"))
    user, group = refused(identity.find_user, name, True), refused(identity.find_group, name)
    assert user is None or user[0] >= 0
    assert group is None or group >= 0


@given(st.lists(st.sampled_from(["kill", "CAP_KILL", "cap_sys_admin", "all", "ALL", "", "cap_"]) | TEXTS, max_size=3))
def test_capabilities_are_those_that_there_are(names):
    found = refused(lambda: ("is", identity.capabilities(names)))
    words = {name.lower().removeprefix("cap_") for name in names}
    known = set(identity.kernel.CAPABILITIES) | {"all"}
    assert (found is None) == bool(words - known)
    assert found is None or (found[1] is None) == ("all" in words)


def escaped(path):
    """PATH as it stands in a SPEC."""
    return re.sub(r"(\\*)(:|\Z)", lambda found: found[1] * 2 + ("\\:" if found[2] else ""), path)


@given(PATHS, PATHS, st.lists(st.sampled_from(sorted(sandbox.MOUNT_FLAGS)), max_size=3))
def test_a_mount_comes_out_as_it_went_in(src, dst, flags):
    assume(sandbox.steps(dst))
    assume(not (flags and dst.endswith("\\")) and not src.endswith("\\") and not dst.endswith("\\"))
    spec = ":".join([escaped(src), escaped(dst), *([",".join(flags)] if flags else [])])
    found = refused(sandbox.bind, "-m", spec)
    if {"ro", "rw"} <= set(flags):
        assert found is None
    else:
        assert (found.src, found.dst, found.flags) == (src, dst, frozenset(flags))


@given(PATHS | st.text(), st.text("ab:\\/", max_size=10))
def test_a_spec_is_at_a_place_below_the_root_or_refused(first, second):
    for function in (sandbox.bind, sandbox.tmpfs):
        for spec in (first, second, f"{first}:{second}"):
            found = refused(function, "-m", spec)
            assert found is None or sandbox.steps(found.dst)


@given(st.sampled_from(["tmpfs", "tmpfs:", "tmp", ""]), NUMBERS)
def test_an_overlay_is_a_directory_or_a_tmpfs_with_a_limit(word, text):
    found = refused(sandbox.overlay, "--overlay", word + text)
    if found is not None and found.upper is None:
        assert found.size is None or found.size > 0
    assert found is None or found.upper is None or found.upper.partition(":")[0] != "tmpfs"


@given(st.lists(st.text("ab/.", min_size=1, max_size=6), max_size=8))
def test_parents_come_first_and_of_two_at_one_place_the_later(paths):
    mounts = [sandbox.Tmpfs(path) for path in paths if sandbox.steps(path)]
    made = sandbox.ordered(mounts)
    places = [sandbox.steps(mount.dst) for mount in made]
    assert len(set(places)) == len(places)
    for i, place in enumerate(places):
        assert all(later[: len(place)] == place or place[: len(later)] != later for later in places[i:])
    for mount in made:
        assert mount is [other for other in mounts if sandbox.steps(other.dst) == sandbox.steps(mount.dst)][-1]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["me", "0", "you", ""]), NUMBERS, NUMBERS), max_size=4), st.binary(max_size=30)
)
def test_ranges_of_ids_are_whole_or_refused(tmp_path_factory, lines, junk):
    path = tmp_path_factory.getbasetemp() / "subid"
    text = "".join(":".join(fields) + "\n" for fields in lines)
    path.write_bytes(text.encode(errors="surrogateescape") + junk)
    found = refused(subids.delegated, str(path), ["me"])
    for first, count in found or ():
        assert 0 < count <= 2**32 - 1 - first
        assert (str(first).zfill(1), str(count)) == (str(int(first)), str(int(count)))
    if found and refused(lambda: subids.check_apart("/etc/subuid", found) or True):
        taken = sorted((first, first + count) for first, count in found)
        assert all(end <= first for (_, end), (first, _) in itertools.pairwise(taken))


@settings(deadline=None)
@given(st.binary(max_size=40) | st.integers(0, 2**40).map(lambda pid: b"%d\n" % pid))
def test_only_an_old_pid_file_is_replaced(tmp_path_factory, there):
    path = tmp_path_factory.getbasetemp() / "pid"
    path.write_bytes(there)
    file = refused(newfile.PidFile, str(path))
    assert (file is None) == bool(there[:32].strip(b"0123456789\n"))
    assert path.read_bytes() == there
    if file is not None:
        file.show_pid(12345)
        assert path.read_bytes() == b"12345\n"
        file.remove()
        file.close()
        assert not path.exists()
    assert [name for name in os.listdir(path.parent) if name.startswith(".pid")] == []


def options_of(name):
    """The long options of the usual usage of the command NAME: {option: whether it takes a value}."""
    found = re.findall(r"(?m)^  (?:-\w, )?(--[a-z0-9-]+)(=?)", core.load(name).__doc__)
    return {option: bool(value) for option, value in found if option not in OTHER_USAGES}


OTHER_USAGES = ("--help", "--version", "--list", "--dump", "--export", "--learn")
OPERANDS = {"hako-run": ["TARGET"], "hako-enter": ["PID"], "hako-policy": ["POLICY"], "seccomp-exec": ["RULES"]}
CHAINED = [name for name in core.COMMANDS if "[ARG...]" in core.load(name).__doc__]  # the others end a chain
WORDS = TEXTS.filter(lambda word: not word.startswith("-"))


@pytest.mark.parametrize("name", CHAINED)
@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_command_line_comes_out_as_it_went_in(name, data):
    options = options_of(name)
    chosen = data.draw(st.lists(st.sampled_from(sorted(options)), unique=True, max_size=5))
    values_ = {option: data.draw(TEXTS) if options[option] else True for option in chosen}
    words = []
    for option, value in values_.items():
        apart = options[option] and data.draw(st.booleans())
        words += [option, value] if apart else [f"{option}={value}" if options[option] else option]
    operands = {operand: data.draw(WORDS) for operand in OPERANDS.get(name, [])}
    prog, rest = data.draw(WORDS), data.draw(st.lists(TEXTS, max_size=6))
    args = core.read(name, core.load(name), [*words, *operands.values(), prog, *rest])
    assert (args["PROG"], args["ARG"]) == (prog, rest)
    assert {operand: args[operand] for operand in operands} == operands
    for option, value in values_.items():
        assert args[option] == ([value] if isinstance(args[option], list) else value)
    assert not [
        option for option in set(options) - set(chosen) if args[option] and "default" not in name_of(name, option)
    ]


def name_of(name, option):
    """What the help text of the command NAME says of OPTION."""
    text = core.load(name).__doc__
    return re.search(rf"(?ms)^  (?:-\w, )?{option}\b.*?(?=^  -|\n\n)", text)[0]


@pytest.mark.parametrize("name", core.COMMANDS)
@settings(deadline=None, max_examples=40)
@given(st.data())
def test_no_command_line_does_anything_but_be_refused(name, data):
    odd = st.sampled_from(["--", "-", "", "x", "--help=1", "--hel", "-vv", "-xv", "--versio", *options_of(name)])
    args = refused(core.read, name, core.load(name), data.draw(st.lists(odd | TEXTS, max_size=8)))
    assert args is None or name not in CHAINED or {"PROG", "ARG"} <= set(args)
