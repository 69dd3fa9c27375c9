"""F: ids, capabilities, keys."""

import pytest

from hostile import probes

NAMES = probes.of("F")
# Nothing says as whom PROG is to run: it has the caller's groups, which the pages say.
KEEPING = {
    *("hako-run, root", "hako-run --as-pid-1, root", "hako-run landlock-exec, root", "hako-limit hako-run, root"),
    *("hako-policy, root", "hako-policy --limit-walltime, root"),
}
# What became root in one tool or another, or is no number at all.
BAD = ["", " 0", "+0", "-1", "0x0", "0 ", "4294967295", "4294967296", "1000 "]


def test_without_a_sandbox_they_succeed(who, control):
    reached, within = control(NAMES)
    # Root has all capabilities by its uid, and gains none; an ordinary user has none to begin with.
    within -= {"file-capabilities"} if who.name == "root" else {"capabilities"}
    assert reached >= within


def test_they_reach_nothing(way):
    assert probes.reached(way.attack(NAMES)) == set()


def test_the_groups_of_root_are_gone(way):
    """Wherever it is said as whom PROG is to run, or that is another. An ordinary user cannot clear any."""
    if way.site.who.name != "root":
        assert way.attack(["groups-of-caller"])["groups-of-caller"] != probes.REACHED
        return
    groups = ["setpriv", "--groups=4,24", "--"]
    found = [
        way.site.attack(lambda site, argv, words=words: [*groups, *words(site, argv)], ["groups-of-caller"])
        for words in (lambda site, argv: [str(site.probe), *argv[1:]], way.words)
    ]
    assert [each["groups-of-caller"] == probes.REACHED for each in found] == [True, way.name in KEEPING]


@pytest.mark.parametrize("option", ["--user", "--group", "--uid", "--gid"])
@pytest.mark.parametrize("value", BAD)
def test_an_id_is_parsed_whole_by_hako_policy(who, option, value):
    done = who.run("hako-policy", f"{option}={value}", "kiss", "--", "/bin/echo", "ran")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert done.stderr.startswith(f"hako-policy: {option}: ")


@pytest.mark.parametrize("option", ["--user", "--group"])
@pytest.mark.parametrize("value", BAD)
def test_an_id_is_parsed_whole_by_hako_enter(who, option, value):
    done = who.run("hako-enter", f"{option}={value}", "1", "/bin/echo", "ran")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert done.stderr.startswith(f"hako-enter: {option}: ")
