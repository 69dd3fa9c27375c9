"""rlimit-exec: every limit of setrlimit(2) by its name."""

import resource

import pytest

OPEN_FIVE = "import os; [os.dup(0) for _ in range(5)]"
BYTES = ["as", "core", "data", "fsize", "memlock", "msgqueue", "rss", "stack"]
COUNTS = ["cpu", "locks", "nice", "nofile", "nproc", "rtprio", "rttime", "sigpending"]
LINES = {  # in /proc/self/limits
    "as": "Max address space",
    "core": "Max core file size",
    "cpu": "Max cpu time",
    "data": "Max data size",
    "fsize": "Max file size",
    "locks": "Max file locks",
    "memlock": "Max locked memory",
    "msgqueue": "Max msgqueue size",
    "nice": "Max nice priority",
    "nofile": "Max open files",
    "nproc": "Max processes",
    "rss": "Max resident set",
    "rtprio": "Max realtime priority",
    "rttime": "Max realtime timeout",
    "sigpending": "Max pending signals",
    "stack": "Max stack size",
}


def limits(who, *options):
    """The soft and hard limits that PROG has, by the kernel's names."""
    text = who.run("rlimit-exec", *options, "cat", "/proc/self/limits").stdout
    return {line[:25].strip(): line[25:].split()[:2] for line in text.splitlines()}


@pytest.mark.parametrize("name", BYTES + COUNTS)
def test_soft_and_hard_are_set(who, name):
    before = limits(who)[LINES[name]]
    value = {"as": "2G", "data": "1G", "stack": "4M", "nice": "0", "rtprio": "0"}.get(name)
    if value is None:
        value = "64K" if name in BYTES else "100"
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(value[-1], 1)
    number = int(value.rstrip("KMG")) * factor
    if before[1] != "unlimited":
        number = min(number, int(before[1]))
    after = limits(who, f"--{name}={number}" if factor == 1 else f"--{name}={value}")[LINES[name]]
    assert after == [str(number)] * 2


def test_soft_and_hard_apart(who):
    assert limits(who, "--nofile=16:32")["Max open files"] == ["16", "32"]
    assert limits(who, "--core=0:unlimited")["Max core file size"] == ["0", "unlimited"]
    assert limits(who, "--cpu=unlimited")["Max cpu time"] == ["unlimited", "unlimited"]


def test_a_limit_that_is_not_named_stays(who):
    before = limits(who)
    after = limits(who, "--core=0")
    assert {name for name in before if before[name] != after[name]} <= {"Max core file size"}


def test_limit_binds(who):
    """EMFILE comes from the limit: the same program succeeds without it."""
    assert who.run("/usr/bin/python3", "-c", OPEN_FIVE).returncode == 0
    limited = who.run("rlimit-exec", "--nofile=6", "/usr/bin/python3", "-c", OPEN_FIVE)
    assert "[Errno 24] Too many open files" in limited.stderr


def test_prog_cannot_raise_it_again(who):
    done = who.run("rlimit-exec", "--nofile=16", "setpriv", "--bounding-set=-all", "--inh-caps=-all", "true")
    code = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (17, 17))"
    control = who.run("/usr/bin/python3", "-c", code)
    limited = who.run("rlimit-exec", "--nofile=16", "/usr/bin/python3", "-c", code)
    assert (done.returncode, control.returncode) in ((0, 0), (1, 0), (127, 0))
    assert limited.returncode == 1 or "CAP_SYS_RESOURCE" in control.stdout
    assert "ValueError: not allowed to raise maximum limit" in limited.stderr


@pytest.mark.parametrize("value", ["", "-1", "+1", " 1", "1k", "0x10", "1e3", "\u0661", "1:", ":1", "1:2:3"])
def test_a_value_that_is_not_a_whole_number_limits_nothing_and_runs_nothing(who, value):
    mark = who.box / "data/ran"
    done = who.run("rlimit-exec", f"--nofile={value}", "touch", str(mark))
    assert (done.returncode, mark.exists()) == (125, False)
    soft, _, hard = value.partition(":")
    wrong = hard if soft == "1" and value != "1" else soft
    assert done.stderr == f"rlimit-exec: --nofile: not a whole number: {wrong!r}\n"


@pytest.mark.parametrize("value", ["", "1T", "K", "1KK", "1 K", "-1M"])
def test_a_size_that_is_none(who, value):
    done = who.run("rlimit-exec", f"--fsize={value}", "true")
    assert done.returncode == 125
    assert done.stderr == f"rlimit-exec: --fsize: not a size, a whole number or one with K, M or G: {value!r}\n"


@pytest.mark.parametrize(
    ("limit", "most"), [(f"nofile={2**63}", f"{2**63 - 1}"), ("fsize=9999999999G", f"{2**63 - 1} bytes")]
)
def test_a_value_that_is_too_large(who, limit, most):
    done = who.run("rlimit-exec", f"--{limit}", "true")
    name, _, value = limit.partition("=")
    assert (done.returncode, done.stderr) == (125, f"rlimit-exec: --{name}: more than {most}: {value!r}\n")


def test_soft_above_hard(who):
    done = who.run("rlimit-exec", "--nofile=20:10", "true")
    assert (done.returncode, done.stderr) == (
        125,
        "rlimit-exec: --nofile: the soft limit is above the hard limit: '20:10'\n",
    )


def test_failing_call_is_named(who):
    done = who.run("rlimit-exec", "--nofile=999999999999", "true")
    assert done.returncode == 125
    assert done.stderr == "rlimit-exec: setrlimit RLIMIT_NOFILE 999999999999: Operation not permitted\n"


def test_all_values_are_checked_before_the_first_is_set(who):
    done = who.run("rlimit-exec", "--fsize=0", "--nofile=x", "true")
    assert done.stderr == "rlimit-exec: --nofile: not a whole number: 'x'\n"


def test_little_address_space_is_no_traceback(who):
    done = who.run("rlimit-exec", "--as=1M", "rlimit-exec", "--core=0", "/bin/true")
    assert done.returncode in (125, 126, 127, -9, -11)
    assert "Traceback" not in done.stderr


def test_python_knows_the_same_limits():
    """A limit that a newer Python names and we lack would be missed here."""
    known = {name.removeprefix("RLIMIT_").lower() for name in dir(resource) if name.startswith("RLIMIT_")}
    assert known - {"ofile"} <= set(BYTES + COUNTS)
