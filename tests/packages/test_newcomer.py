"""A newcomer's first hour: a clone, its README.md and a terminal, as root and as an ordinary user.

The clone is one of the last commit. What is typed, and what must come of it, is read from the
README.md in there, in the order of the page: its blocks, and what stands between backticks in
the text and in the table "I want to". An example of a command line, with placeholders, waits
until there is what they stand for.
"""

import contextlib
import json
import os
import pathlib
import re
import select
import signal
import subprocess
import time

import pytest
from test_tty import Caller

from hako import core

TOP = pathlib.Path(__file__).parent.parent.parent
SECONDS = 1800  # against hanging: one of the commands builds all, with what it fetches
WAY_OUT = re.compile(r"(?i)\w+_proxy|pip_\w+|ssl_cert_\w+")  # variables that say how the package index is reached
PART = re.compile(
    r"^```(?P<fence>\w*)\n(?P<fenced>.*?)^```$"
    r"|(?<=\n\n)(?P<indented>(?: {4}[^\n]*\n)+)"
    r"|^(?P<table>(?:\|[^\n]*\n)+)"
    r"|(?<!`)`(?P<span>[^`]+)`(?!`)",
    re.M | re.S,
)
WORDS = {  # what the placeholders stand for
    **{"src:dst": "$(which busybox):/bin/busybox", "PID": "$(cat pid)", "cmd": "true"},
    **{"FILE": "file", "UPPER": "upper"},
}
FILES = {"rules": "DEFAULT ALLOW", "request.json": '{"cmd": ["true"]}'}
# What stands behind options alone, and what these need of the machine.
OPERANDS = {"hako-run": "--mount $(which busybox):/bin/busybox:ro dir /bin/sh -c :", "hako-limit": "true"}
FEATURES = {"--network=pasta": "pasta", "--map=subid": "id-ranges"}
# Places of one's own, not the system's, and a look at what was done there; what takes long is only looked for.
PLACES = "PREFIX=$HOME/local APPARMOR=$HOME/apparmor.d"
OWN = [
    (r"^make install\b.*", f"make install {PLACES} && $HOME/local/bin/hako-policy default true"),
    (r"^make uninstall\b.*", f'make uninstall {PLACES} && [ -z "$(find $HOME/local ! -type d)" ]'),
    (r"^make (check[\w-]*|bench|fuzz|soak|hostile-table)\b", r"make -n \1 >make-says"),
    (r"^pip ", r"python3 -m venv $HOME/fresh && $HOME/fresh/bin/pip "),
    (r"^python3 -m hako\b.*", r"(cd / && $HOME/fresh/bin/python3 -m hako)"),
]


class Newcomer(Caller):
    """Somebody at a shell, with HOME and what every user has; `told` is what was typed and shown."""

    def __init__(self, who, home):
        self.mark, self.told = f"newcomer-{os.getpid()}", ""
        places = ["/usr/local/bin", "/usr/bin", "/bin"]
        if who.uid == 0:
            places = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        prompts = {"PS1": f"{self.mark} $? ", "PS2": f"{self.mark} > "}
        way_out = {name: value for name, value in os.environ.items() if WAY_OUT.fullmatch(name)}
        who.env = {**way_out, **prompts, "PATH": ":".join(places), "HOME": str(home), "LANG": "C.UTF-8", "TERM": "dumb"}
        super().__init__(who, "bash", "--noprofile", "--norc", "--noediting", "-i")
        self.answer()

    def answer(self):
        """Wait for the prompt; return the status that it tells, None in the midst of a command, and what was shown.

        A shell that the command has started is left.
        """
        end = time.monotonic() + SECONDS
        while not (found := re.search(rf"{self.mark} (\d+|>) \Z", shown := self.seen.decode(errors="replace"))):
            if re.search(r"^/ [#$] (\x1b\[6n)?\Z", shown, re.M):
                self.told, self.seen = self.told + shown, b""
                self.type("exit\n")
            readable, _, _ = select.select([self.master], [], [], 1)
            assert time.monotonic() < end and (not readable or self.look()), self.told + shown
        self.told, self.seen = self.told + shown, b""
        return None if found[1] == ">" else int(found[1]), shown[: found.start()]

    def do(self, line):
        """Type LINE; return its status and what it has shown, less what the shell says of its jobs."""
        self.type(f"{line}\n")
        status, shown = self.answer()
        lines = shown.replace("\r", "").removeprefix(f"{line}\n").splitlines()
        return status, [line for line in lines if not re.match(r"\[\d+\]", line)]

    def must(self, line):
        """Type LINE, which must succeed; what it has shown."""
        status, shown = self.do(line)
        assert status in (0, None), self.told
        return shown

    def hang_up(self):
        """Leave the terminal, whatever is going on there."""
        with contextlib.suppress(OSError):
            os.close(self.master)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


@pytest.fixture
def newcomer(who, delegated, place):
    """WHO, in a clone at home. A cgroup is delegated to them, as a service manager does it for a session."""
    del delegated
    home = place / "home"
    home.mkdir()
    os.chown(home, who.uid, who.uid if who.prefix else -1)
    subprocess.run(["git", "-C", TOP, "bundle", "create", "-q", place / "hako.bundle", "HEAD"], check=True)
    somebody = Newcomer(who, home)
    somebody.clone = home / "hako"
    yield somebody
    somebody.hang_up()


def parts(text):
    """What a reader of TEXT, Markdown, may copy, in its order: [(kind, what it is)]."""
    for found in PART.finditer(text):
        kind = found["fence"] if found["fenced"] is not None else found.lastgroup
        if kind != "table":
            yield kind, found[found.lastgroup]
        elif found["table"].startswith("| I want to"):
            yield from (("example", span) for span in re.findall(r"`([^`]+)`", found["table"]))


def console(block):
    """The transcript BLOCK as [(what is typed, the lines that it shows)]."""
    steps = []
    for line in block.splitlines():
        if line.startswith(("$ ", "> ")):
            steps.append((line[2:], []))
        else:
            steps[-1][1].append(line)
    return steps


def own(command):
    """COMMAND as somebody types it who wants it in places of their own, and now."""
    for pattern, instead in OWN:
        command = re.sub(pattern, instead, command)
    return command


def read(newcomer, kind, text):
    """Do what a part of the page says; return the examples in it, which are for when all else has been done."""
    if kind == "console":
        for line, expected in console(text):
            shown = newcomer.do(line)[1]
            assert " ".join(shown).split() == " ".join(expected).split(), newcomer.told  # ls makes columns
    elif kind == "python":
        for line in ("cat >program.py <<'END'", *text.splitlines(), "END"):
            newcomer.must(line)
        assert newcomer.must("python3 program.py") == re.findall(r"print\(.*  # (.*)", text), newcomer.told
    elif kind == "span":
        mention(newcomer, " ".join(text.split()))
    elif kind == "example" or all(line.strip().partition(" ")[0] in core.COMMANDS for line in text.splitlines()):
        return [line.partition("  #")[0].strip() for line in text.splitlines()]
    else:
        for line in text.splitlines():
            newcomer.must(own(line.removeprefix("    ") if kind == "indented" else line))
    return []


def mention(newcomer, text):
    """Do what is done about TEXT, which stands in a sentence."""
    if re.match(r"(make|pip|python3)\b", text):
        newcomer.must(own(text))
    elif text.endswith("/bin/NAME"):
        newcomer.must(f"PATH=$PWD/{text.removesuffix('/NAME')}:$PATH")
    elif re.fullmatch(r"[a-z]+/[\w./-]+", text):
        newcomer.must(f"ls -d {text}")


def complete(example):
    """The command line EXAMPLE with what its placeholders stand for, or what helps with a name alone."""
    words = re.sub(rf"\b({'|'.join(WORDS)})\b", lambda word: WORDS[word[0]], example).split()
    if len(words) == 1 and example not in ("hako-ps", "hako-check"):
        words.append("--help")
    elif all(word.startswith("--") for word in words[1:]):
        words.append(OPERANDS.get(words[0], ""))
    return " ".join(words)


def prepare(newcomer, commands):
    """Have there what placeholders stand for; the sandbox is the one of COMMANDS that has a pid file."""
    sandbox = next(line for line in commands if "--pid-file" in line and line.endswith("&"))
    newcomer.must("wait")
    newcomer.must(re.sub(r"sleep \d+", "sleep 1000", sandbox))
    newcomer.must("until [ -e pid ]; do sleep 0.1; done")
    newcomer.must("mkdir upper")
    for name, contents in FILES.items():
        newcomer.must(f"echo '{contents}' >{name}")


def attempt(newcomer, example, checked):
    """Type EXAMPLE; it does what it says, or it is refused where hako-check, which has said CHECKED, says so."""
    if example.partition(" ")[0] not in core.COMMANDS:
        return mention(newcomer, example)
    features = json.loads(checked.stdout)["features"]
    works = all(features[feature]["works"] for option, feature in FEATURES.items() if option in example)
    expected = 125 if not works else checked.returncode if example == "hako-check" else 0
    status, shown = newcomer.do(complete(example))
    assert status == expected, newcomer.told
    assert works or re.fullmatch(r"hako-run: .*", "\n".join(shown)), newcomer.told
    return None


def test_all_that_the_readme_says_works_as_it_says(newcomer, who):
    """Each command that is there to be copied; and one test, as CONTRIBUTING.md runs it."""
    newcomer.must("cd && git clone -qc advice.detachedHead=false ../hako.bundle hako && cd hako")
    found = list(parts((newcomer.clone / "README.md").read_text()))
    assert {"console", "python", "example", "span"} <= {kind for kind, _ in found}
    examples = [example for kind, text in found for example in read(newcomer, kind, text)]
    (one_test,) = re.findall(r"```sh\n(.*?)\n```", (newcomer.clone / "CONTRIBUTING.md").read_text(), re.S)
    assert re.search(r"^[1-9]\d* passed", newcomer.must(one_test)[-1]), newcomer.told
    assert newcomer.must("$HOME/fresh/bin/hako-run --version") == newcomer.must("hako-run --version")
    prepare(newcomer, [line for kind, text in found if kind == "console" for line, _ in console(text)])
    checked = who.run(newcomer.clone / "build/venv/bin/hako-check", "--json")
    for example in examples:
        attempt(newcomer, example, checked)
    assert {example.partition(" ")[0] for example in examples} >= set(core.COMMANDS)
    newcomer.must(own("make uninstall"))
    newcomer.do("kill $!; wait")
    newcomer.type("exit\n")
    assert newcomer.end()[0] in (0, 128 + signal.SIGTERM)
