"""Old and restricted hosts: each call that a filter around hako may not know; sandboxes in sandboxes.

Works, or one line names the cause and the way out.
"""

import pytest

from conftest import SYSTEM
from hostile import probes, ways

CALLS = ["openat2", "clone3", "mount_setattr", "close_range", "pidfd_open", "open_tree"]
SETS = {**{name: [name] for name in CALLS}, "together": CALLS}
MISSING = "[hako needs Linux 5.14, and no filter around it, as of a container, that knows less; see hako-check]"
NAMES = ["surroundings", *probes.of("A"), *probes.of("B"), *probes.of("F"), *probes.of("H")]
# What needs none of them does not notice.
INDIFFERENT = {
    "seccomp-exec": ["seccomp-exec", "default", "/bin/echo", "ran"],
    "landlock-exec": ["landlock-exec", "--rwx=/", "/bin/echo", "ran"],
    "rlimit-exec": ["rlimit-exec", "--nofile=64", "/bin/echo", "ran"],
}


@pytest.fixture(params=SETS)
def lacking(request, place):
    """A command that runs the rest of its line where some calls are not implemented; the calls."""
    calls = SETS[request.param]
    (place / "filter").write_text(f"ERRNO(38) {{ {', '.join(calls)} }} DEFAULT ALLOW")
    return ["seccomp-exec", str(place / "filter")], calls


def explained(text, calls):
    """Whether TEXT is one line that names one of CALLS as missing, and what to do."""
    command, call, *_ = text.split(" ")
    ends = text.endswith(f": Function not implemented {MISSING}\n")
    named = call.rstrip(":") in calls or call.startswith(
        "mount('"
    )  # which is how the sandals tool names what it was for
    return text.count("\n") == 1 and command.startswith("hako-") and named and ends


def outcome(way, front):
    """How the attacks in WAY behind the command FRONT ended: what subprocess has, and {name: what came of it}."""
    site = way.site
    argv = [*front, *way.words(site, ["/bin/probe", *site.told(True), *NAMES])]
    done = site.who.run(*argv, cwd=site.home, env=site.env)
    site.put_back()
    return done, dict(line.split(" ", 1) for line in done.stdout.splitlines())


@pytest.mark.long
def test_every_way_where_calls_are_missing(way, lacking):
    """None is weaker for it."""
    front, calls = lacking
    done, found = outcome(way, front)
    if done.returncode == 0:
        assert probes.reached(found) - set(way.free) == {"surroundings"}
        return
    assert found == {}
    if "subid" in way.name:  # who loads a filter sets no_new_privs, under which newuidmap cannot work
        assert "newuidmap" in done.stderr or explained(done.stderr, calls)
    elif "hako-enter" in way.name:  # the sandbox that was to be entered is not there, or cannot be
        status = 125 if calls == ["pidfd_open"] else 99
        assert (done.returncode, explained(done.stderr.splitlines(True)[0], calls)) == (status, True)
    else:
        assert (done.returncode, explained(done.stderr, calls)) == (125, True)


@pytest.mark.parametrize("name", ["hako-run", "hako-policy"])
def test_where_calls_are_missing(sites, who, lacking, name):
    """The sample of it; without pidfd_open alone there is nothing to miss."""
    front, calls = lacking
    site = sites(who.name)
    confined = ways.run() if name == "hako-run" else ways.policy()
    argv = confined(site, ["/bin/probe", *site.told(True), "surroundings"])
    assert site.who.run(*argv).stdout == "surroundings reached\n"
    done = site.who.run(*front, *argv)
    if calls == ["pidfd_open"]:
        assert (done.returncode, done.stdout) == (0, "surroundings reached\n")
    else:
        assert (done.returncode, done.stdout, explained(done.stderr, calls)) == (125, "", True), done.stderr


@pytest.mark.parametrize("name", INDIFFERENT)
def test_links_miss_nothing(who, lacking, name):
    front, _ = lacking
    done = who.run(*front, *INDIFFERENT[name])
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")


def test_hako_enter_where_calls_are_missing(who, lacking, place):
    """Into a sandbox that was made where there are all."""
    front, calls = lacking
    argv = who.sandbox("/bin/sh", "-c", "read x", options=[f"--pid-file={place}/pid", "--proc"])
    process = who.start(*argv, stdin=-1)
    while not (place / "pid").exists():
        assert process.poll() is None
    try:
        done = who.run(
            *front, "hako-enter", "--fork", (place / "pid").read_text().strip(), "/bin/busybox", "echo", "ran"
        )
    finally:
        process.communicate("x\n")
    if done.returncode == 0:
        assert (done.stdout, set(calls) & {"clone3", "close_range", "pidfd_open"}) == ("ran\n", set())
    else:
        assert (done.returncode, done.stdout, explained(done.stderr, calls)) == (125, "", True)


@pytest.mark.vm
def test_on_this_host_nothing_is_reached(way):
    """All at once, for machines where each for itself would take too long."""
    assert probes.reached(way.attack(NAMES)) == {"surroundings"}


@pytest.mark.vm
def test_on_this_host_all_is_reached_without(who, control):
    reached, within = control([name for name in NAMES if name != "surroundings"])
    assert reached >= within - ({"file-capabilities"} if who.name == "root" else {"capabilities"})


# Sandboxes in sandboxes

BWRAP = ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]


@pytest.mark.parametrize("name", ["hako-run", "hako-run --as-pid-1", "hako-policy"])
def test_hako_in_bwrap(who, sites, name):
    """For root there only as long as it has capabilities: without, uid 0 cannot be mapped, and one line says so."""
    way = ways.WAYS[name][1]
    site = sites(who.name)
    outer = [*BWRAP, "--bind", str(site.place), str(site.place)]
    argv = way(site, ["/bin/probe", *site.told(True), *NAMES])
    done = site.who.run(*outer, *argv, cwd=site.home, env=site.env)
    site.put_back()
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert (done.returncode, probes.reached(found)) == (0, {"surroundings"}), done.stderr
    done = site.who.run(*outer, "--cap-drop", "ALL", *argv, cwd=site.home, env=site.env)
    site.put_back()
    if who.name == "user":
        assert done.returncode == 0
    else:
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
        hint = "[uid 0 may be mapped only by who has CAP_SETFCAP: give the outer sandbox --user; see hako-check]"
        assert done.stderr == f"{name.split()[0]}: write /proc/self/uid_map '0 0 1': Operation not permitted {hint}\n"


def test_bwrap_in_hako(who):
    """Under Landlock, as uid 0 is, nothing can be mounted; as another it works as ever."""
    inner = ["/usr/bin/bwrap", "--unshare-all", "--bind", "/", "/", "--dev", "/dev", "/bin/busybox", "echo", "ran"]
    done = who.inside(*inner, options=[*SYSTEM, "--user=65534", "--proc", "--dev"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")
    if who.name == "root":
        done = who.inside(*inner, options=[*SYSTEM, "--proc", "--dev"])
        assert (done.returncode, done.stdout) == (1, "")


def test_hako_in_hako_in_hako(who, sites):
    """What is reached in the innermost is nothing, either."""

    def nested(site, argv):
        return ways.nested(site, argv, ["/rw/inner", "/rw/innermost"])

    found = sites(who.name).attack(nested, NAMES)
    assert probes.reached(found) == {"surroundings"}


def test_the_filters_do_what_they_say(who, lacking, compiled):
    """The control: behind such a filter these calls, and no others, are not implemented."""
    front, calls = lacking
    numbers = {
        "open_tree": 428,
        "pidfd_open": 434,
        "clone3": 435,
        "close_range": 436,
        "openat2": 437,
        "mount_setattr": 442,
    }
    program = compiled(
        "#include <errno.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n"
        "int main(int c, char **v) { while (*++v) if (syscall(atoi(*v), -1, -1, -1, -1, -1) < 0 && errno == ENOSYS)"
        " puts(*v); }"
    )
    done = who.run(*front, program, *map(str, numbers.values()))
    assert sorted(done.stdout.split()) == sorted(str(numbers[name]) for name in calls)
