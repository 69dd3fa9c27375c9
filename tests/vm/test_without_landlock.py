"""hako-run on a kernel without Landlock: who could overwrite the interpreter is refused, others miss nothing."""

import json
import pathlib

import pytest

pytestmark = pytest.mark.usefixtures("nothing_is_left")
REFUSED = (
    "hako-run: landlock: this kernel has not version 2 of it, and PROG could overwrite the interpreter of hako "
    "[run PROG as another with --user; see hako-run(1), CAVEATS; see hako-check]\n"
)


def mark(who, *options):
    """Run what leaves a mark in the box of WHO; return how it ended, its stderr and whether the mark is there."""
    done = who.inside("/bin/busybox", "touch", "/data/ran", options=["--writable", *options])
    return done.returncode, done.stderr, (who.box / "data/ran").exists()


def test_this_is_such_a_kernel():
    assert "landlock" not in pathlib.Path("/sys/kernel/security/lsm").read_text().split(",")


@pytest.mark.root
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--as-pid-1",),
        ("--user=0",),
        ("--userns=always",),
        ("--cap-add=kill",),
        ("--user=65534", "--cap-add=dac_override"),
    ],
    ids=" ".join,
)
def test_who_could_overwrite_the_interpreter_is_refused(who, options):
    """In one line, before PROG."""
    pid_file = who.box.parent / "pid"
    assert mark(who, f"--pid-file={pid_file}", *options) == (125, REFUSED, False)
    assert not pid_file.exists()


@pytest.mark.root
@pytest.mark.parametrize(
    "options", [("--user=65534",), ("--user=65534", "--cap-add=kill"), ("--cap-add=sys_admin",)], ids=" ".join
)
def test_root_runs_who_cannot_and_who_may_do_anything(who, options):
    assert mark(who, *options) == (0, "", True)


def test_hako_check_says_so(who):
    """And what to do; hako-run of an ordinary user needs none."""
    done = who.run("hako-check", "--json")
    told = json.loads(done.stdout)
    found = told["features"]["landlock"]
    assert (done.returncode, found["works"], found["cause"]) == (1, False, "lsm")
    assert found["why"] == "landlock_create_ruleset: Operation not supported"
    assert found["advice"].startswith("boot with landlock in the list lsm=")
    assert [name for name in told["features"] if told["features"][name]["why"] == "needs landlock"] == [
        *("landlock-files", "landlock-tcp", "landlock-scopes")
    ]
    lacking = {name for name, command in told["commands"].items() if "landlock" in command["lacks"]}
    assert lacking == {"hako-policy", "landlock-exec", *(["hako-run"] if who.name == "root" else [])}


@pytest.mark.parametrize("options", [(), ("--as-pid-1",), ("--cap-add=all",)], ids=" ".join)
def test_an_ordinary_user_misses_nothing(who, options):
    if who.name == "root":
        options = ("--user=65534",)
    assert mark(who, *options) == (0, "", True)
