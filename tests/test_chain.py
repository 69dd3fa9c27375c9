"""What every command must do: the chain, PROG untouched by Python, exit statuses, help."""

import fcntl
import os
import signal
import subprocess

import pytest

from hako import __version__, core

COMMANDS = list(core.COMMANDS)
WITHOUT_OPERANDS = ("hako-check", "hako-ps", "hako-task", "hako-top")  # they do with none


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_version(who, command):
    done = who.run(command, "--help")
    assert (done.returncode, done.stdout) == (0, core.load(command).__doc__.strip("\n") + "\n")
    assert who.run(command, "--version").stdout == f"hako {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bogus"], "unknown option: '--bogus' [see {0} --help]"),
        (["--hel"], "unknown option: '--hel' [--help? see {0} --help]"),
        (["-Z"], "unknown option: '-Z' [see {0} --help]"),
        (["--help=x"], "--help: takes no value: '--help=x'"),
        (["--help\n"], "unknown option: '--help\\n' [--help? see {0} --help]"),
    ],
)
def test_a_wrong_option_is_one_line(who, command, argv, message):
    done = who.run(command, *argv, "true")
    assert (done.returncode, done.stderr) == (125, f"{command}: {message.format(command)}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_that_cannot_be_written(who, command):
    done = who.run("sh", "-c", f"{command} --help > /dev/full")
    assert (done.returncode, done.stderr) == (125, f"{command}: write stdout: No space left on device\n")
    done = who.run("sh", "-c", f"{command} --help >&-")
    assert (done.returncode, done.stderr) == (125, f"{command}: write stdout: Bad file descriptor\n")


def test_a_closed_stdin_is_at_its_end(who):
    """Who reads it does not wait for ever."""
    done = who.run("sh", "-c", "exec hako-task <&-")
    assert (done.returncode, done.stdout, done.stderr) == (1, '{"status":"requestInvalid"}\n', "")
    assert who.run("sh", "-c", "exec hako-task --stream <&-").returncode == 0
    done = who.run("sh", "-c", "exec seccomp-exec /dev/stdin true <&-")
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)


@pytest.mark.parametrize("limit", range(3, 12))
def test_few_descriptors_are_one_line(who, limit):
    done = who.run("prlimit", f"--nofile={limit}", "--", *who.sandbox("/bin/busybox", "true"))
    if done.stderr.startswith("hako-run: "):
        assert (done.returncode, done.stderr.count("\n")) == (125, 1)
        assert done.stderr.endswith(": Too many open files\n")
    else:
        assert done.returncode in (0, 1, 127)  # the interpreter itself could not start, or all went well
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in WITHOUT_OPERANDS])
def test_missing_operands_are_one_line(who, command):
    done = who.run(command)
    usage = " ".join(core.load(command).__doc__.partition("Usage:")[2].partition(f"\n  {command} (")[0].split())
    first = usage.partition(f" {command} ")[0]  # of several
    missing = {"hako-run": "TARGET", "hako-enter": "PID", "seccomp-exec": "RULES", "hako-policy": "POLICY"}
    name = "FILE" if command == "hako-plot" else missing.get(command, "PROG")
    assert (done.returncode, done.stderr) == (125, f"{command}: {name} is missing [{first}]\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["minimal"], "PROG is missing [seccomp-exec [options] [--include=DIR]... RULES [--] PROG [ARG...]]"),
        (["--dump"], "RULES is missing [seccomp-exec [--include=DIR]... (--export=FILE | --dump) RULES]"),
        (["--learn=x"], "PROG is missing [seccomp-exec --learn=FILE [--] PROG [ARG...]]"),
        (["--list", "x"], "too many operands: 'x' [seccomp-exec --list]"),
        (["--list", "--dump", "x"], "what does not go together: --list --dump [see seccomp-exec --help]"),
    ],
)
def test_the_usage_that_was_meant_is_told(who, argv, message):
    done = who.run("seccomp-exec", *argv)
    assert (done.returncode, done.stderr) == (125, f"seccomp-exec: {message}\n")


@pytest.mark.parametrize(
    ("command", "option"), [("rlimit-exec", "--nofile"), ("hako-run", "--user"), ("hako-enter", "-u")]
)
def test_an_option_without_its_value(who, command, option):
    done = who.run(command, option)
    assert (done.returncode, done.stderr) == (125, f"{command}: {option}: needs a value [see {command} --help]\n")


def test_an_option_given_twice(who):
    done = who.run("rlimit-exec", "--core=0", "--core=1", "true")
    assert (done.returncode, done.stderr) == (125, "rlimit-exec: --core: given twice\n")


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["sh", "-c", "exit 42"], 42, ""),
        (["/etc/passwd"], 126, "rlimit-exec: /etc/passwd: Permission denied [not executable: chmod +x]\n"),
        (["/"], 126, "rlimit-exec: /: Permission denied [a directory]\n"),
        (["nosuchcommand"], 127, "rlimit-exec: nosuchcommand: No such file or directory\n"),
        (["/no/such"], 127, "rlimit-exec: /no/such: No such file or directory\n"),
        ([""], 127, "rlimit-exec: an empty name cannot be run: ''\n"),
        (["no\nsuch"], 127, "rlimit-exec: 'no\\nsuch': No such file or directory\n"),
    ],
)
def test_exit_status_of_a_link(who, argv, status, message):
    done = who.run("rlimit-exec", *argv)
    assert (done.returncode, done.stderr) == (status, message)


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["/bin/sh", "-c", "exit 42"], 42, ""),
        (["/bin/probe"], 139, ""),
        (["/file"], 126, "hako-run: /file: Permission denied [not executable: chmod +x]\n"),
        (["nosuchcommand"], 127, "hako-run: nosuchcommand: No such file or directory\n"),
        (["/bin/script"], 126, "hako-run: /bin/script: No such file or directory [{0}]\n"),
    ],
)
@pytest.mark.parametrize("options", [(), ("--as-pid-1",)], ids=["init", "as-pid-1"])
def test_exit_status_of_a_command_that_waits(who, argv, status, message, options, compiled):
    crash = compiled("int main() { *(volatile int *)0 = 1; }")
    script = who.box / "bin/script"
    script.write_text("#!/no/such/shell\n")
    script.chmod(0o755)
    done = who.inside(*argv, options=[f"--mount={crash}:/bin/probe:ro", *options])
    hint = "its interpreter or dynamic loader is missing here"
    assert (done.returncode, done.stderr) == (status, message.format(hint))


def test_a_link_keeps_the_pid(who):
    process = who.start("rlimit-exec", "rlimit-exec", "--core=0", "sh", "-c", "echo $$")
    pid = int(process.communicate(timeout=60)[0])
    assert pid == process.pid


def test_options_end_at_prog(who):
    done = who.run("rlimit-exec", "--core=0", "echo", "--core=x", "--", "-n")
    assert done.stdout == "--core=x -- -n\n"
    assert who.run("rlimit-exec", "--", "echo", "--", "a").stdout == "-- a\n"
    assert who.inside("--", "/bin/busybox", "echo", "--mount", "--").stdout == "--mount --\n"


def test_a_link_changes_nothing_else(who):
    """Environment, descriptors, dispositions, mask, umask, cwd: as the caller had them, with its control."""
    probe = [
        "sh",
        "-c",
        "env | sort | grep -v ^_; ls -l /proc/self/fd | wc -l; umask; pwd; grep Sig[BIC] /proc/self/status",
    ]

    def unusual():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        os.umask(0o27)

    env = {**who.env, "LC_ALL": "C", "PYTHONPATH": "/nowhere", "PYTHONSTARTUP": "x"}
    with open("/dev/null") as extra:
        options = {"preexec_fn": unusual, "env": env, "pass_fds": [extra.fileno()], "cwd": "/usr"}
        plain = who.run(*probe, **options)
        chained = who.run("rlimit-exec", "rlimit-exec", *probe, **options)
    assert plain.stdout == chained.stdout
    assert "PYTHONPATH" in plain.stdout
    assert chained.stderr == ""


def test_no_locale_is_left_behind(who):
    """In the C locale CPython sets LC_CTYPE; PROG does not see it."""
    env = {"PATH": who.env["PATH"]}
    assert who.run("env", env=env).stdout == who.run("rlimit-exec", "env", env=env).stdout


def test_sigpipe_ends_prog(who):
    assert who.run("rlimit-exec", "sh", "-c", "kill -PIPE $$").returncode == -signal.SIGPIPE


def test_standard_descriptors_that_are_closed_stay_closed(who):
    probe = "for n in 0 1 2; do [ -e /proc/self/fd/$n ] && echo $n; done > {0}; exit 0"
    for command, path in (([], "plain"), (["rlimit-exec"], "chained")):
        out = who.box / "data" / path
        argv = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command, "sh", "-c", probe.format(out)]
        assert who.run(*argv).returncode == 0
    assert (who.box / "data/plain").read_text() == (who.box / "data/chained").read_text()


def test_closed_standard_descriptors_and_a_sandbox(who):
    """None of our own descriptors takes their place."""
    argv = who.sandbox("/bin/sh", "-c", "busybox ls -l /proc/self/fd > /data/fds", options=["-W", "--proc"])
    done = who.run("sh", "-c", 'exec "$@" <&- 2>&- >&-', "sh", *argv)
    assert done.returncode == 0
    lines = (who.box / "data/fds").read_text().splitlines()
    assert [line.split(" ", 20)[-1].partition("-> ")[2] for line in lines[1:]] == ["/proc/2/fd", "/data/fds"] or all(
        "pipe" not in line and "eventfd" not in line for line in lines
    )


@pytest.mark.parametrize("size", [131071])
def test_long_arguments(who, size):
    done = who.run("rlimit-exec", "sh", "-c", "echo ${#1}", "sh", "x" * size)
    assert done.stdout == f"{size}\n"
    assert who.inside("/bin/sh", "-c", "echo ${#1}", "sh", "x" * size).stdout == f"{size}\n"


def test_many_arguments_and_variables(who):
    variables = [f"--env=V{i}=x" for i in range(2000)]
    arguments = ["a"] * 30000
    done = who.inside("/bin/sh", "-c", "busybox env | busybox wc -l; echo $#", "sh", *arguments, options=variables)
    names = {"V", "PWD", "SHLVL"}
    assert done.stdout.split()[1] == "30000"
    assert int(done.stdout.split()[0]) in range(2000, 2001 + len(names))


def test_every_byte_passes(who):
    text = bytes(range(1, 256))
    done = who.run("rlimit-exec", "printf", "%s", text, text=False)
    assert done.stdout == text
    done = who.inside("/bin/sh", "-c", 'busybox printf %s "$X"', options=[b"--env=X=" + text], text=False)
    assert done.stdout == text
    assert who.inside("/bin/sh", "-c", 'echo "[$1$2]"', "sh", "", "").stdout == "[]\n"


def test_bad_values_far_down_the_chain_run_nothing(who):
    """All of a chain is prepared before anything of it is in force."""
    mark, setup = who.box.parent / "ran", who.box.parent / "setup"
    setup.write_text(f"#!/bin/sh\ntouch {mark}\n")
    setup.chmod(0o755)
    good = who.inside("rlimit-exec", "--core=0", "/bin/busybox", "true", options=[f"--setup={setup}"])
    assert (good.returncode, mark.exists()) == (0, True)
    mark.unlink()
    bad = who.inside("rlimit-exec", "--core=x", "/bin/busybox", "true", options=[f"--setup={setup}"])
    assert (bad.returncode, mark.exists()) == (125, False)
    assert bad.stderr == "rlimit-exec: --core: not a size, a whole number or one with K, M or G: 'x'\n"


def test_a_chain_works_in_a_root_without_python(who):
    done = who.inside("rlimit-exec", "--nofile=16", "/bin/sh", "-c", "ulimit -n; command -v python3")
    assert (done.returncode, done.stdout) == (127, "16\n")


def test_a_chain_is_one_interpreter_and_a_name_with_a_slash_is_not(who):
    """Bare names are not looked up on PATH; with a slash they are executed, like anything else."""
    env = {**who.env, "PATH": "/usr/bin:/bin"}
    tool = subprocess.run(["which", "rlimit-exec"], capture_output=True, text=True, check=True, env=who.env).stdout
    assert who.run(tool.strip(), "rlimit-exec", "--nofile=17", "sh", "-c", "ulimit -n", env=env).stdout == "17\n"
    done = who.run(tool.strip(), "/no/rlimit-exec", "--nofile=17", "sh", "-c", "ulimit -n", env=env)
    assert done.returncode == 127
    assert who.run("rlimit-exec", tool.strip(), "--nofile=18", "sh", "-c", "ulimit -n").stdout == "18\n"


def test_a_command_under_another_name(who, place):
    """It would become itself, for ever."""
    tool = subprocess.run(["which", "hako-run"], capture_output=True, text=True, check=True, env=who.env).stdout.strip()
    (place / "other").symlink_to(tool)
    done = who.run(place / "other", "--help")
    message = f"other: no command of hako has this name: {', '.join(COMMANDS)}\n"
    assert (done.returncode, done.stderr) == (125, message)


def test_a_later_link_keeps_nothing_of_ours(who):
    """The outer command closes what the inner is to keep; its own descriptors may take the number then."""
    inner = who.box / "data/inner"
    for name in (".hako", "bin", "proc"):
        (inner / name).mkdir(parents=True)
    (inner / "bin/busybox").touch()
    with open("/dev/null") as first:
        fds = [fcntl.fcntl(first.fileno(), fcntl.F_DUPFD, 200) for _ in range(4)]  # others have lower ones open
    try:
        for fd in (*fds, *range(3, 12)):
            again = ["hako-run", f"--keep-fd={fd}", "-m/bin/busybox:/bin/busybox", "-m/proc:/proc", "/data/inner"]
            done = who.inside(*again, "/bin/busybox", "true", options=["--proc", "--user=1000"], pass_fds=fds)
            assert (done.returncode, done.stderr) == (125, f"hako-run: --keep-fd: not open: '{fd}'\n")
    finally:
        for fd in fds:
            os.close(fd)


def test_nothing_is_imported_from_the_sandbox(who):
    """A planted module is not loaded, whatever it is called (seen: warnings.py, from inside os.execvp)."""
    for name in ("warnings", "encodings/idna", "traceback", "linecache", "hako/core"):
        path = who.box / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text("import os; os.write(2, b'PLANTED')")
    for argv in (["nosuch"], ["/file"], ["/bin/busybox", "true"], ["rlimit-exec", "--nofile=99999999999", "x"]):
        assert "PLANTED" not in who.inside(*argv, cwd=who.box).stderr


def test_an_interrupted_command_leaves_no_traceback(who):
    process = who.start("rlimit-exec", "sleep", "60")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (-signal.SIGINT, "")
