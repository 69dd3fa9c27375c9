"""Completion in the shells themselves: what they make of a line typed so far, at a terminal.

bash and zsh insert all that they find into the line, which is then read; fish prints it.
"""

import os
import pathlib
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest

from conftest import BIN, DEADLINE, Who, wait_until
from hako import core, kernel, policy, rules

TOP = pathlib.Path(__file__).parent.parent
SHELLS = ("bash", "zsh", "fish")
START = {  # what makes ^T insert all completions and write the line to the file "line"
    "bash": r"""
PS1='ready> '; bind 'set enable-bracketed-paste off'; bind 'set completion-query-items -1'
. {made}/hako.bash
bind '"\C-xi": insert-completions'
written() {{ printf %s "$READLINE_LINE" >new; mv new line; READLINE_LINE=; }}
bind -x '"\C-xw": written'
bind '"\C-t": "\C-xi\C-xw"'
""",
    "zsh": r"""
PS1='ready> '; unsetopt zle_bracketed_paste; unset zle_bracketed_paste; fpath=({made} $fpath)
autoload -U compinit; compinit -u -D
zstyle ':completion:all-matches:*' insert yes
zstyle ':completion:all-matches:*' completer _all_matches _complete
zle -C all-matches complete-word _generic
written() {{ printf %s "$BUFFER" >new; mv new line; BUFFER=; }}
zle -N written; bindkey -e; bindkey '^Xi' all-matches; bindkey '^Xw' written; bindkey -s '^T' '^Xi^Xw'
""",
}
ARGV = {"bash": ["bash", "--noprofile", "--norc", "-i"], "zsh": ["zsh", "-f", "-i"]}


class Shell:
    """A shell at a terminal, in the directory PLACE, that completes by what was MADE."""

    def __init__(self, name, made, place):
        self.name, self.made, self.place = name, made, place
        self.env = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(place), "TERM": "dumb", "LANG": "C.UTF-8", "MINE": "1"}
        if name == "fish":
            return
        (place / "start").write_text(START[name].format(made=made))
        self.terminal, other = os.openpty()
        options = {"stdin": other, "stdout": other, "stderr": other, "env": self.env, "cwd": place}
        self.process = subprocess.Popen(ARGV[name], start_new_session=True, **options)
        os.close(other)
        self.type(". ./start\r")
        self.await_prompt()

    def type(self, text):
        os.write(self.terminal, text.encode())

    def await_prompt(self):
        seen, end = b"", time.monotonic() + DEADLINE
        while b"\nready> " not in seen.replace(b"\r", b"\n"):
            assert select.select([self.terminal], [], [], max(end - time.monotonic(), 0))[0], seen
            seen += os.read(self.terminal, 65536)

    def complete(self, line):
        """The words that could be the last of LINE."""
        if self.name == "fish":
            code = f"source {self.made}/hako.fish; complete -C $argv[1]"
            done = subprocess.run(
                ["fish", "-N", "-c", code, line],
                cwd=self.place,
                env=self.env,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=True,
            )
            assert done.stderr == ""
            return {word.partition("\t")[0] for word in done.stdout.splitlines()}
        (self.place / "line").unlink(missing_ok=True)
        self.type(f"{line}\x14")
        wait_until(self.has_written)
        text = (self.place / "line").read_text()
        before = line.rpartition(" ")[0]
        return {word for word in text.removeprefix(before).replace("\\", "").split() if word != line.rpartition(" ")[2]}

    def has_written(self):
        if select.select([self.terminal], [], [], 0)[0]:
            os.read(self.terminal, 65536)  # or it would stop, when the terminal is full
        return (self.place / "line").exists()

    def end(self):
        if self.name != "fish":
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            os.close(self.terminal)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the generator makes."""
    directory = tmp_path_factory.mktemp("completions")
    env = {"PYTHONPATH": str(TOP)}
    subprocess.run([sys.executable, TOP / "tools/make_completions.py", directory], check=True, env=env)
    return directory


@pytest.fixture(scope="module", params=SHELLS)
def shell(request, made, tmp_path_factory):
    """A shell that completes."""
    place = tmp_path_factory.mktemp(request.param)
    (place / "rules.kafel").touch()
    (place / "sandbox" / "deep").mkdir(parents=True)
    (place / ".config/hako/policies").mkdir(parents=True)
    (place / ".config/hako/policies/mine.toml").touch()
    found = Shell(request.param, made, place)
    yield found
    found.end()


def bare(words):
    """WORDS without what is behind an option's name, and a directory's; of an option's value, that alone."""
    return {word.rstrip("=/").rpartition("=")[2] for word in words}


def test_the_files_are_right(made):
    for name, argv in {"hako.bash": ["bash", "-n"], "_hako": ["zsh", "-n"], "hako.fish": ["fish", "-n"]}.items():
        done = subprocess.run([*argv, made / name], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "@" not in re.sub(r'\$@|"\$\{?[A-Z_a-z]+\[@\]|\[@\]', "", (made / name).read_text())


@pytest.mark.parametrize("name", list(core.COMMANDS))
def test_every_option_of_the_docstring(shell, name):
    listed = core.load(name).__doc__.partition("\nOptions:\n")[2].partition("\n\n")[0]
    wanted = {line.split("  ")[1].split(", ")[-1].partition("=")[0] for line in listed.splitlines() if line[2] == "-"}
    assert len(wanted) > 1
    assert bare(shell.complete(f"{name} --")) >= wanted
    for option in wanted:
        assert option in bare(shell.complete(f"{name} {option[:-1]}"))
        break


@pytest.mark.parametrize(
    "line, wanted, unwanted",
    [
        ("hako-run --mou", "--mount", "--map"),
        ("hako-run --mount=san", "--mount=sandbox", ""),
        ("hako-run -m san", "sandbox", "rules.kafel"),
        ("hako-run san", "sandbox", "rules.kafel"),
        ("hako-run r", "", "rules.kafel"),  # no directory
        ("hako-run --userns=", "--userns=auto --userns=always --userns=never", ""),
        ("hako-run --userns al", "always", "auto"),
        ("hako-run --env=MI", "--env=MINE", ""),
        ("hako-run --user=nobo", "--user=nobody", ""),
        ("hako-run -u nobo", "nobody", ""),
        ("hako-run --group=nogr", "--group=nogroup", ""),
        ("hako-run --cap-add=net_b", "--cap-add=net_bind_service --cap-add=net_broadcast", "--cap-add=net_raw"),
        ("hako-run sandbox seccomp-e", "seccomp-exec", "sandbox"),
        ("hako-run sandbox seccomp-exec ", "minimal rules.kafel", "hako-run"),
        ("hako-run --mount=a:b:ro -v sandbox -- seccomp-exec mini", "minimal", "rules.kafel"),
        ("hako-run sandbox seccomp-exec --le", "--learn", "--list"),
        ("hako-run sandbox seccomp-exec minimal --le", "", "--learn"),  # that is PROG's
        ("hako-limit --memory 64M hako-run --mount=a:b sandbox rlimit-exec --nof", "--nofile", ""),
        ("hako-limit --time=1 hako-run -m a:b sandbox seccomp-exec min", "minimal", ""),
        ("seccomp-exec --learn=new seccomp-e", "seccomp-exec", ""),
        ("seccomp-exec --learn=new mini", "", "minimal"),
        ("seccomp-exec --dump r", "rules.kafel", ""),
        ("rlimit-exec --core=0 -- hako-r", "hako-run", ""),
        ("landlock-exec --fs=", "--fs=none", ""),
        ("landlock-exec --scope=s", "--scope=signal", ""),
        ("hako-policy m", "mine", "minimal"),
        ("hako-policy ju", "judge", ""),
        ("hako-policy --seccomp=mi", "--seccomp=minimal", ""),
        ("hako-policy judge hako-l", "hako-limit", ""),
        ("hako-policy judge rlimit-exec --core", "--core", ""),
        ("hako-run sandbox hako-l", "hako-limit", "sandbox"),
        ("hako-run sandbox -- seccomp-e", "seccomp-exec", "sandbox"),
        ("hako-run sandbox seccomp-exec minimal landlock-e", "landlock-exec", "minimal"),
        ("hako-run sandbox seccomp-exec minimal landlock-exec --ro=san", "--ro=sandbox", ""),
        ("hako-run sandbox rlimit-exec --nofile=9 hako-limit --cpu=5 seccomp-exec min", "minimal", "rules.kafel"),
        ("hako-run -Wm a:b sandbox seccomp-exec mini", "minimal", "sandbox"),  # -m takes a:b
        ("hako-run -Wma:b sandbox seccomp-exec mini", "minimal", "sandbox"),
        ("hako-run -N pa", "pasta", "none"),
        ("hako-run --network=ru", "--network=rules.kafel", ""),
        ("hako-run --overlay=tm", "--overlay=tmpfs", ""),
        ("hako-run --chdir=san", "", "sandbox"),  # it is inside
        ("hako-enter --cap-add net_b", "net_bind_service net_broadcast", "net_raw"),
        ("hako-enter 1 seccomp-exec mini", "minimal", "rules.kafel"),
        ("hako-limit --tolerate=p", "--tolerate=pids", ""),
        ("hako-limit --usage=ru", "--usage=rules.kafel", ""),
        ("hako-plot ru", "rules.kafel", ""),
        ("hako-check --clean san", "sandbox", "rules.kafel"),
        ("hako-policy --ro-bind=san", "--ro-bind=sandbox", ""),
        ("seccomp-exec -I san", "sandbox", "rules.kafel"),
        ("seccomp-exec --include=sandbox ru", "rules.kafel", ""),
        ("seccomp-exec --list mini", "", "minimal"),
        ("hako-task --st", "--stream", "--progress"),
        ("hako-ps --js", "--json", ""),
        ("hako-top --js", "--json", ""),
    ],
)
def test_a_line(shell, line, wanted, unwanted):
    found = bare(shell.complete(line))
    assert bare(wanted.split()) <= found
    assert not bare(unwanted.split()) & found


def test_names_are_all_there(shell):
    """Profiles, policies and capabilities, as the commands have them."""
    profiles = {name for name, _ in rules.listed(rules.PROFILES)}
    assert bare(shell.complete("seccomp-exec ")) >= profiles
    policies = {path.stem for path in pathlib.Path(policy.POLICIES).iterdir()}
    assert bare(shell.complete("hako-policy ")) >= policies
    assert bare(shell.complete("hako-enter --cap-add ")) >= {*kernel.CAPABILITIES, "all"}


def test_the_pids_of_sandboxes(shell, place):
    """Those of their inits, which --pid-file names; not those of other processes."""
    who = Who("root" if os.getuid() == 0 else "user")
    place.chmod(0o755)
    for name in (".hako", "bin"):
        (place / "box" / name).mkdir(parents=True)
    (place / "box/bin/busybox").touch()
    busybox = shutil.which("busybox")
    pid_file = place / "pid"
    sandbox = who.start(
        "hako-run",
        f"--mount={busybox}:/bin/busybox:ro",
        f"--pid-file={pid_file}",
        place / "box",
        "/bin/busybox",
        "cat",
        stdin=subprocess.PIPE,
    )
    try:
        wait_until(pid_file.exists)
        found = shell.complete("hako-enter ")
        assert pid_file.read_text().strip() in found
        assert str(os.getpid()) not in found
    finally:
        sandbox.kill()
        sandbox.communicate()
