"""SECURITY.md: the order of operations that it tells is that of the system calls."""

import itertools
import json
import os
import pathlib
import re
import subprocess

import pytest

from conftest import BUSYBOX, DEADLINE
from hako import cgroup, core

TEXT = (pathlib.Path(__file__).parent.parent / "SECURITY.md").read_text()
START = "eventfd2"  # the first call of hako.core
TRUE = ["/bin/busybox", "true"]
MARKERS = ("userns", "root", "terminal", "version 1")
pytestmark = pytest.mark.root


def lists():
    """The numbered lists: {what stands over it: [(call, what is among its arguments, its marker or None)]}."""
    found, title, above = {}, None, ""
    for line in TEXT.splitlines():
        if line.startswith("### "):
            above = title = line[4:]
        elif re.fullmatch(r"The [a-z ]+:", line):
            title = f"{above}: {line[4:-1]}"
        elif step := re.match(r"\d+\. `(\w+) ?(.*?)`(?: \*\(([a-z0-9 ]+)\)\*)?", line):
            found.setdefault(title, []).append(step.groups())
    return found


def trace(who, argv, **options):
    """The system calls of ARGV: {pid: [(call, arguments and result)]}, each process up to its exec of PROG."""
    path = who.box.parent / "trace"
    done = who.run("strace", "-f", "-v", "-s", "300", "-o", str(path), *argv, **options)
    assert (done.returncode, done.stderr) == (0, "")
    calls, begun, pending = {}, False, {}
    for line in path.read_text().splitlines():
        pid, text = line.split(maxsplit=1)
        if resumed := re.match(r"<\.\.\. \w+ resumed>(.*)", text):
            if (place := pending.pop(pid)) is not None:
                calls[pid][place][1] += resumed[1]
            continue
        if not (made := re.match(r"(\w+)\((.*)", text)):
            continue
        begun = begun or made[1] == START
        of_process = calls.setdefault(pid, []) if begun else []
        if not any(name == "execve" for name, _ in of_process):
            of_process.append([made[1], made[2]])
            if text.endswith("<unfinished ...>"):
                pending[pid] = len(of_process) - 1
        elif text.endswith("<unfinished ...>"):
            pending[pid] = None
    return calls


def that(calls, *steps):
    """The calls of the first process in CALLS that takes all of STEPS, (call, argument), one behind the other."""
    return next(made for made in calls.values() if len(places(steps, made)) == len(steps))


def places(steps, calls):
    """Where each of STEPS, (call, argument), is among CALLS, behind the one before it; fewer if one is not there."""
    found, at = [], 0
    for name, argument in steps:
        while at < len(calls) and not (calls[at][0] == name and argument in calls[at][1]):
            at += 1
        if at == len(calls):
            break
        found.append(at)
        at += 1
    return found


def check(title, calls, names=(), markers=()):
    """See that the list TITLE, as far as it is for MARKERS, is in the order of CALLS, and none is a place earlier.

    NAMES are [(word of the list, what it is here)].
    """
    steps = []
    for name, argument, marker in lists()[title]:
        if marker is None or marker in markers:
            steps.append((name, dict(names).get(argument, argument)))
    found = places(steps, calls)
    assert len(found) == len(steps), f"{steps[len(found)]} is not there"
    for i, (step, after) in enumerate(itertools.pairwise(steps)):
        before = calls[found[i - 1] + 1 if i else 0 : found[i]]
        assert not places([after], before), f"{after} is before {step}, too"


@pytest.mark.parametrize("markers", [("userns",), ("root", "terminal")], ids=["userns", "root"])
def test_the_order_of_hako_run(who, markers):
    user = ["--userns=always", "--user=65534", "--group=65534"] if "userns" in markers else []
    options = ["--hostname=box", "--proc", "--chdir=/tmp", f"--pid-file={who.box.parent}/pid", *user]
    ours, theirs = os.openpty()
    stdin = theirs if "terminal" in markers else subprocess.DEVNULL
    calls = trace(who, who.sandbox("/bin/busybox", "sleep", "0.3", options=options), stdin=stdin)
    os.close(ours)
    os.close(theirs)
    init, prog = that(calls, ("prctl", 'PR_SET_NAME, "hako-init"')), that(calls, ("pivot_root", ""))
    names = [("TARGET", f'"{who.box}"'), ("SRC", f'"{BUSYBOX}"')]
    check("hako-run: the process outside", next(iter(calls.values())), names, markers)
    check("hako-run: the init", init, names, markers)
    check("hako-run: the process that will be the program", prog, names, markers)


def test_the_filter_of_a_chain_is_the_last_before_prog(who):
    """Nothing else is called in between."""
    calls = trace(who, who.sandbox("seccomp-exec", "minimal", *TRUE))
    prog = that(calls, ("pivot_root", ""))
    assert [name for name, _ in prog][-2:] == ["seccomp", "execve"]


def test_the_order_of_hako_enter(who):
    file = who.box.parent / "pid"
    inmate = who.start(*who.sandbox("/bin/sh", "-c", "echo up; read x", options=[f"-p{file}"]), stdin=subprocess.PIPE)
    assert inmate.stdout.readline() == "up\n"
    while not file.exists():
        assert inmate.poll() is None
    calls = trace(who, ["hako-enter", "--fork", file.read_text().strip(), *TRUE])
    inmate.communicate("\n", timeout=DEADLINE)
    check("hako-enter --fork", that(calls, ("setns", "")))
    check("hako-enter --fork: child of it", that(calls, ("execve", '"/bin/busybox"')))


def test_the_order_of_hako_limit(who, delegated):
    calls = trace(who, ["hako-limit", "--pids=20", BUSYBOX, "true"])
    markers = ["version 1"] if "pids" in cgroup.places() else []
    check("hako-limit", next(iter(calls.values())))
    check("hako-limit: keeper", that(calls, ("prctl", "PR_SET_CHILD_SUBREAPER")))
    check("hako-limit: process that will be the program", that(calls, ("execve", f'"{BUSYBOX}"')), markers=markers)
    delegated.wait_until_empty()


def test_the_order_of_a_sandbox_made_ahead(who):
    request = {
        "cmd": [BUSYBOX, "true"],
        "rootfs": [BUSYBOX],
        "mounts": [{"type": "proc", "dest": "/proc"}],
        "seccompPolicy": "DEFAULT ALLOW",
        "report": True,
    }
    calls = trace(who, ["hako-task", "--stream", "--jobs=1"], input=json.dumps(request) + "\n")
    zygote = that(calls, ("pivot_root", ""))
    # Two may be made ahead, and either be the first that is ready: the one that is given the task makes a process.
    init = that(calls, ("execveat", ""), ("clone3", "CLONE_VFORK"))
    prog = that(calls, ("execve", f'"{BUSYBOX}"'))
    check("A sandbox made ahead: the zygote", zygote)
    check("A sandbox made ahead: the init", init)
    check("A sandbox made ahead: the process that will be the program", prog, markers=["root"])


def test_every_list_is_checked_and_every_command_promises():
    assert len(lists()) == len(re.findall(r"(?m)^(?:### |The [a-z ]+:$)", TEXT))
    assert {marker for steps in lists().values() for *_, marker in steps} == {None, *MARKERS}
    table = TEXT.partition("| command |")[2].partition("\n\n")[0]
    assert set(re.findall(r"(?m)^\| `([a-z-]+)`", table)) == set(core.COMMANDS)
