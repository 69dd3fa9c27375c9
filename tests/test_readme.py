"""The README's own commands, and what an installation puts where."""

import pathlib
import re
import subprocess
import sys

import pytest

from conftest import BUSYBOX, wait_until

TOP = pathlib.Path(__file__).parent.parent


README = (TOP / "README.md").read_text()


def blocks(kind):
    """The blocks of the README that are marked KIND."""
    return re.findall(rf"```{kind}\n(.*?)```", README, re.S)


def test_the_transcripts_are_true(who, place):
    """Every console block prints what it says, in the directory that the sh block makes."""
    script, expected = [*blocks("sh")], []
    for block in blocks("console"):
        for line in block.splitlines():
            if line.startswith("$ "):
                script.append(line.removeprefix("$ "))
            else:
                expected.append(line)
    assert len(expected) > 5
    done = who.run(
        "sh", "-c", "\n".join(script), cwd=place, stderr=subprocess.STDOUT, capture_output=False, stdout=subprocess.PIPE
    )
    assert done.stdout.splitlines() == expected


def test_the_python_is_true(who):
    """What a print() prints is what stands behind it."""
    code = "\n".join(blocks("python"))
    wanted = re.findall(r"print\(.*  # (.*)", code)
    assert len(wanted) > 2
    done = who.run(sys.executable, "-I", "-c", code)
    assert (done.stdout.splitlines(), done.stderr) == (wanted, "")


def test_the_commands_named_are_there():
    text = (TOP / "README.md").read_text()
    targets = re.findall(r"(?:`|^ +)make ([a-z-]+)", text, re.M)
    made = re.findall(r"^([a-z-]+):", (TOP / "Makefile").read_text(), re.M)
    assert {"demo", "check", "hostile-table"} <= set(targets) <= set(made)


@pytest.mark.root
@pytest.mark.parametrize("line", re.findall(r"^    ((?:hako|rlimit|seccomp|landlock)-.*)", README, re.M))
def test_the_first_lines_run(who, place, delegated, line):
    """With what the placeholders stand for in the places of those."""
    del delegated
    (place / "rules").write_text("POLICY all { ALLOW { write } } USE all DEFAULT ALLOW\n")
    (place / "request.json").write_text('{"cmd": ["true"]}')
    values = {
        "request.json": place / "request.json",
        "src": place,
        "dst": "/data",
        "dir": who.box,
        "cmd": "true",
        "rules": place / "rules",
    }
    sandbox = who.start(*who.sandbox("/bin/busybox", "cat", options=[f"--pid-file={place}/pid"]), stdin=subprocess.PIPE)
    try:
        wait_until((place / "pid").exists)
        values["PID"] = (place / "pid").read_text().strip()
        line = re.sub(rf"\b({'|'.join(values)})\b", lambda word: str(values[word[0]]), line)
        line = line.replace("hako-run ", f"hako-run --mount={BUSYBOX}:/bin/busybox:ro ")
        done = who.run("sh", "-c", line)
        assert (done.returncode, done.stderr) == (0, "") or (line == "hako-check" and done.returncode == 1)
        assert done.stdout in ("", '{"status":"exited","code":0}\n') or line in ("hako-ps", "hako-check")
    finally:
        sandbox.communicate()
