"""K: what goes in goes in whole, in every way."""

import itertools
import os

import pytest

EVERY_BYTE = bytes(range(1, 256))
ARGUMENTS = {
    "long": [b"x" * 131071],
    "many": [b"a"] * 30000,
    "empty": [b"", b"", b""],
    "bytes": [EVERY_BYTE, b"-x", b"--", b"\xff\xfe", b"a\nb"],
}
EMPTY = r"""
#include <unistd.h>
int main(int argc, char **argv) { char *none[] = {0}; execve(argv[1], none, none); return 99; }
"""


def counted(words):
    """What the probe says of WORDS: how many, how many bytes, and their sum."""
    total = 0
    for byte in itertools.chain.from_iterable(words):
        total = (total * 31 + byte) % 2**64
    return f"{len(words)} {sum(map(len, words))} {total}\n"


@pytest.mark.parametrize("kind", list(ARGUMENTS))
def test_arguments_arrive_whole(way, kind):
    done = way.site.who.run(*way.words(way.site, ["/bin/probe", "arguments", *ARGUMENTS[kind]]))
    assert (done.returncode, done.stdout, done.stderr) == (0, counted(ARGUMENTS[kind]), "")


@pytest.mark.alone
@pytest.mark.parametrize("closed", ["0", "1", "2", "01", "02", "12", "012"])
def test_closed_descriptors(way, closed):
    """PROG runs, and finds nothing in their places."""
    words = " ".join(f"{fd}>&-" for fd in closed)
    argv = way.words(way.site, ["/bin/probe", "closed", closed])
    done = way.site.who.run("sh", "-c", f'exec "$@" {words}', "sh", *argv)
    assert (done.returncode, done.stderr) == (0, "")


OF_OTHERS = "hako-run", "hako-enter", "hako-policy", "hako-limit", "seccomp-exec", "landlock-exec", "rlimit-exec"


@pytest.mark.parametrize("name", OF_OTHERS)
def test_no_argv_at_all(who, compiled, name):
    path = next(f"{place}/{name}" for place in who.env["PATH"].split(":") if os.path.exists(f"{place}/{name}"))
    done = who.run(compiled(EMPTY), path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert f" is missing [{name} " in done.stderr


def test_two_thousand_variables(who):
    variables = [f"--env=V{i}={i}" for i in range(2000)]
    done = who.run("hako-policy", *variables, "kiss", "--", "/usr/bin/env")
    assert {f"V{i}={i}" for i in range(2000)} <= set(done.stdout.splitlines())
