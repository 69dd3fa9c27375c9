"""D: the caller's terminal, at PROG's stdin."""

import errno
import fcntl
import os
import subprocess
import termios

import pytest
from bpf_interpreter import run as decide

from conftest import DEADLINE, SYSTEM
from hako import guard
from hostile import probes

# Whose controlling terminal it is matters to the kernel: to type on it is free for a session that has it, to take it
# over for one that has none.
NAMES = {
    "controlling": [name for name in probes.TERMINAL if name != "take-over"],
    "strange": [name for name in probes.TERMINAL if name != "controlling"],
}


def test_without_a_sandbox_they_succeed(control):
    found = [control(names, terminal=terminal) for terminal, names in NAMES.items()]
    assert set.union(*(reached for reached, _ in found)) == set.union(*(within for _, within in found))


def test_they_reach_nothing(way):
    for terminal, names in NAMES.items():
        found = way.attack(names, terminal=terminal)
        assert probes.reached(found) == set()
        if "hako-policy" not in way.name:  # without arguments it would give PROG a terminal of its own
            assert found["type"] == "Operation not permitted"


X32 = 0x40000000
# By machine: every audit architecture and number by which ioctl can be called, and a number of another call.
IOCTL = {
    "x86_64": ([(0xC000003E, 16), (0xC000003E, 16 | X32), (0xC000003E, 514 | X32), (0x40000003, 54)], 1),
    "aarch64": ([(0xC00000B7, 29), (0x40000028, 54)], 64),
}


def test_the_filter_knows_every_way_to_call_ioctl():
    """Also those that this kernel was not built with, with bits that the kernel does not look at."""
    program = guard.terminal_filter()
    ways, write = IOCTL[os.uname().machine]
    for arch, number in ways:
        for request in (0x5412, 0x541C, 0x5423, 0x540E):  # TIOCSTI, TIOCLINUX, TIOCSETD, TIOCSCTTY
            for high in (0, 1, 0xFFFFFFFF):
                assert decide(program, arch, number, [0, request | high << 32, 0, 0, 0, 0]) == 0x00050000 | errno.EPERM
            assert decide(program, arch, write, [0, request, 0, 0, 0, 0]) == 0x7FFF0000
        assert decide(program, arch, number, [0, termios.TIOCGWINSZ, 0, 0, 0, 0]) == 0x7FFF0000


CHANGE = "stty -echo -icanon -isig; "


def lead():
    """Lead a session with the terminal at 0."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def changed_by(who, argv, **streams):
    """The exit status of ARGV at a terminal of its own, but for STREAMS, and whether the modes are others then."""
    master, slave = os.openpty()
    os.fchmod(slave, 0o666)
    before = termios.tcgetattr(slave)
    streams = {"stdin": slave, "stdout": slave, "stderr": slave, **streams}
    process = who.start(*argv, preexec_fn=lead, **streams)
    status = process.wait(timeout=DEADLINE)
    after = termios.tcgetattr(slave)
    os.close(master)
    os.close(slave)
    return status, after != before


@pytest.mark.parametrize(
    ("front", "code", "status"),
    [
        (["hako-run", "BOX"], "true", 0),
        (["hako-policy", "--no-tty", "default", "--"], "true", 0),
        (["hako-run", "BOX"], "kill -SEGV $$", 139),
        (["hako-limit", "--time=0.5", "hako-run", "BOX"], "while :; do :; done", 124),
        (["hako-policy", "--no-tty", "--limit-walltime=0.5", "default", "--"], "while :; do :; done", 124),
    ],
    ids=["hako-run", "hako-policy", "killed", "limited", "policy limited"],
)
def test_the_modes_are_put_back(who, front, code, status):
    """However PROG ends; without a sandbox it leaves the terminal as it likes."""
    box = [*SYSTEM, "--env=PATH=/usr/bin", str(who.box), "--"]
    argv = [word for part in front for word in (box if part == "BOX" else [part])]
    assert changed_by(who, ["/usr/bin/dash", "-c", CHANGE]) == (0, True)
    assert changed_by(who, [*argv, "/usr/bin/dash", "-c", CHANGE + code]) == (status, False)


def test_the_modes_may_be_those_of_another_in_the_pipeline(who):
    """A pager behind it has set them for itself."""
    argv = ["hako-run", *SYSTEM, "--env=PATH=/usr/bin", str(who.box), "/usr/bin/dash", "-c", CHANGE]
    assert changed_by(who, argv, stdout=subprocess.DEVNULL) == (0, True)


def test_the_modes_are_put_back_behind_what_enters(who, place):
    argv = who.sandbox("/bin/sh", "-c", "read x", options=[*SYSTEM, f"--pid-file={place}/pid", "--proc"])
    process = who.start(*argv, stdin=subprocess.PIPE)
    while not (place / "pid").exists():
        assert process.poll() is None
    enter = ["hako-enter", "--fork", "--env=PATH=/usr/bin", (place / "pid").read_text().strip()]
    try:
        assert changed_by(who, [*enter, "/usr/bin/dash", "-c", CHANGE]) == (0, False)
    finally:
        process.communicate("x\n")
