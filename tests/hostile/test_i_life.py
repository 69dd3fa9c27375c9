"""I: whoever is killed, whenever: nothing is left, and in every way that waits."""

import os
import random
import signal
import time

import pytest
from test_run_life import alive, gone, mark, up  # noqa: F401  mark is a fixture

from conftest import DEADLINE
from hako import kernel


def test_an_init_that_is_starved_does_what_it_has_to(way, mark):  # noqa: F811
    """PROG may have its uid, and take its limits and its priority away."""
    done = way.site.who.run(*way.words(way.site, ["/bin/probe", "starve", mark]))
    if "hako-enter" in way.name:  # what it enters for has been killed, and that is the end of the sandbox
        assert done.returncode in (7, 128 + signal.SIGKILL)
    else:
        assert (done.returncode, done.stdout) == (7, "left\n")
    assert gone(mark)


@pytest.mark.alone
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_the_end_of_the_supervisor_is_the_end_of_all(way, mark, number):  # noqa: F811
    argv = way.words(way.site, ["/bin/probe", "stay", mark])
    process = way.site.who.start(*argv)
    assert up(process) == "up\n"
    assert len(alive(mark)) >= 3
    process.send_signal(number)
    process.communicate(timeout=DEADLINE)
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert gone(mark)


@pytest.mark.long
@pytest.mark.alone
def test_at_any_moment(way, mark):  # noqa: F811
    argv = way.words(way.site, ["/bin/probe", "stay", mark])
    for _ in range(40):
        process = way.site.who.start(*argv)
        time.sleep(random.random() * 0.15)
        process.kill()
        process.communicate(timeout=DEADLINE)
        assert gone(mark)


FRONTS = {
    "run": ["hako-run", "-m@:/bin/probe:ro", "BOX"],
    "run-user": ["hako-run", "--user=65534", "--group=65534", "-m@:/bin/probe:ro", "BOX"],
    "limit": ["hako-limit", "--time=300"],
    "policy": ["hako-policy", "--ro-bind=@:/bin/probe", "--tmpfs=/tmp", "POLICY", "--"],
}


@pytest.mark.long
@pytest.mark.parametrize("name", FRONTS)
def test_a_supervisor_that_dies_before_there_is_a_death_signal(who, place, probe, mark, name):  # noqa: F811
    """Each prctl is held back: it dies while a child of its is on the way to the one that sets the signal."""
    (place / "policy").write_text("")
    words = {"BOX": str(who.box), "POLICY": str(place / "policy")}
    argv = [words.get(word, word.replace("@", str(probe))) for word in FRONTS[name]]
    argv += [str(probe) if name == "limit" else "/bin/probe", "stay", mark]
    slow = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=prctl", "-e", "inject=prctl:delay_enter=400ms"]
    ran = 0
    for moment in range(1, 14):
        process = who.start(*slow, *argv)
        time.sleep(moment * 0.25)
        ran += len(alive(mark)) > 0
        os.kill(kernel.children(process.pid)[0], signal.SIGKILL)
        process.communicate(timeout=DEADLINE)
        assert gone(mark)
    assert ran


def test_what_prog_leaves_behind_goes_with_it(way, mark):  # noqa: F811
    """And holds up nobody who reads to the end."""
    done = way.site.who.run(*way.words(way.site, ["/bin/probe", "leave", mark]))
    assert (done.returncode, done.stdout) == (7, "left\n")
    assert gone(mark)


@pytest.mark.alone
def test_who_has_itself_traced_is_not_taken_for_ended(way):
    """By who has made it: waitpid tells then when it stops, too. It runs on to its end."""
    done = way.site.who.run(*way.words(way.site, ["/bin/probe", "traced"]))
    assert (done.returncode, done.stderr) == (7, "")


def test_a_signal_of_prog_is_told(way):
    done = way.site.who.run(*way.words(way.site, ["/bin/probe", "die"]))
    assert done.returncode == 128 + signal.SIGSEGV
