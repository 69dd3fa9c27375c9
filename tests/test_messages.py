"""What a newcomer types, and what is answered: one line that says what is wrong, and what to do if there is a way."""

import ast
import difflib
import pathlib
import shutil

import docopt
import pytest

from conftest import BIN, BUSYBOX, wait_until
from hako import core, near, patterns

TOP = pathlib.Path(__file__).parent.parent
RUN = "hako-run [options] [--mount=SPEC]... [--tmpfs=SPEC]... [--env=SPEC]... [--cap-add=CAP]... [--keep-fd=N]..."
ENTER = "hako-enter [options] [--env=SPEC]... [--cap-add=CAP]... [--keep-fd=N]... PID [--] [PROG [ARG...]]"
LIMIT = "hako-limit [options] [--cgroup=SPEC]... [--tolerate=NAME]... [--] PROG [ARG...]"
BECOMES = "TARGET, the root to be, must be a directory"
MISSING = "its interpreter or dynamic loader is missing here"
NO_FORMAT = "neither a program for this machine nor a script with #! and an interpreter"
SIZE = "not a size, a whole number or one with K, M or G"
FILES = {  # what lies about where they are typed
    "text": "hello\n",
    "name.kafel": "ALLOW {\n  read,\n  wrote\n}\nDEFAULT KILL\n",
    "comma.kafel": "ALLOW {\n  read write\n}\nDEFAULT KILL\n",
    "comma.json": '{"defaultAction": "SCMP_ACT_ALLOW",}\n',
    "action.json": '{"defaultAction": "SCMP_ACT_ALOW"}\n',
    "unit.toml": '[limits]\nmemory = "64MB"\n',
    "quotes.toml": "[limits]\nmemory = 64M\n",
    "table.toml": '[limit]\nmemory = "64M"\n',
    "key.toml": 'mounts = [\n  { src = "/usr" },\n]\n',
    "type.toml": '[limits]\npids = "8"\n',
    "bracket.toml": '[limits\nmemory = "64M"\n',
}
HAKO_RUN = [
    ("hako-run", 125, f"TARGET is missing [{RUN} TARGET [--] [PROG [ARG...]]]"),
    ("hako-run --monut=/usr:/usr box /bin/sh", 125, "unknown option: '--monut' [--mount? see hako-run --help]"),
    ("hako-run -mount=/usr:/usr box /bin/sh", 125, "unknown option: '-mount' [--mount? see hako-run --help]"),
    (
        "hako-run --memory=64M box /bin/sh",
        125,
        "unknown option: '--memory' [an option of hako-limit; see hako-run --help]",
    ),
    ("hako-run --mount", 125, "--mount: needs a value [see hako-run --help]"),
    ("hako-run --dev=yes box /bin/sh", 125, "--dev: takes no value: '--dev=yes'"),
    ("hako-run --dev --dev box /bin/sh", 125, "--dev: given twice"),
    (
        "hako-run box --mount=/usr:/usr:ro /bin/sh",
        127,
        "--mount=/usr:/usr:ro: No such file or directory [options stand before the operands]",
    ),
    ("hako-run plain /bin/sh", 125, "plain has no directory .hako [mkdir plain/.hako, if it is meant to be a sandbox]"),
    ("hako-run nosuch /bin/sh", 125, f"open nosuch: No such file or directory [{BECOMES}]"),
    ("hako-run /bin/sh", 125, f"open /bin/sh: Not a directory [{BECOMES}]"),
    ("hako-run / /bin/sh", 125, "/ is the root directory, not a sandbox"),
    ("hako-run --mount=/nosuch:/data box /bin/sh", 125, "open /nosuch: No such file or directory"),
    ("hako-run --mount=/usr box /bin/sh", 125, "--mount: not SRC:DST or SRC:DST:FLAGS: '/usr'"),
    (
        "hako-run --mount=/usr:/usr:readonly box /bin/sh",
        125,
        "--mount: unknown flag 'readonly': '/usr:/usr:readonly' [one of dev, noexec, norec, optional, ro, rw]",
    ),
    (
        "hako-run --mount=/usr:/opt box /bin/sh",
        125,
        "mount point /opt: No such file or directory [nothing is made in TARGET: make it there first]",
    ),
    (
        "hako-run --mount=/usr:/file box /bin/sh",
        125,
        "mount point /file: it is not a directory, and what it is to show is",
    ),
    ("hako-run --tmpfs=/tmp:64MB box /bin/sh", 125, f"--tmpfs: {SIZE}: '64MB'"),
    (
        "hako-run --mount=~/nosuch:/data box /bin/sh",
        125,
        "open ~/nosuch: No such file or directory [~ is for the shell, in front of a word: $HOME]",
    ),
    (
        "hako-run box cat",
        127,
        "cat: No such file or directory [outside of the sandbox it is there: mount it, or set PATH]",
    ),
    (
        "hako-run box rlimit-exec /usr/bin/env",
        127,
        "/usr/bin/env: No such file or directory [outside of the sandbox it is there: mount it]",
    ),
    ("hako-run box nosuch", 127, "nosuch: No such file or directory"),
    ("hako-run box ./nosuch", 127, "./nosuch: No such file or directory"),
    ("hako-run --env=PATH=bin box nosuch", 127, "nosuch: No such file or directory"),
    ("hako-run box", 127, "/sbin/init: No such file or directory [the default: hako-run takes another PROG]"),
    ("hako-run box seccomp-exce compute /bin/sh", 127, "seccomp-exce: No such file or directory [seccomp-exec?]"),
    ("hako-run box hako-limt /bin/sh", 127, "hako-limt: No such file or directory [hako-limit?]"),
    ("hako-run box /bin/dynamic", 126, f"/bin/dynamic: No such file or directory [{MISSING}]"),
    ("hako-run box /bin/script", 126, f"/bin/script: No such file or directory [{MISSING}]"),
    ("hako-run box /file", 126, "/file: Permission denied [not executable: chmod +x]"),
    ("hako-run box /data", 126, "/data: Permission denied [a directory]"),
    ("hako-run box /bin/foreign", 126, f"/bin/foreign: Exec format error [{NO_FORMAT}]"),
    ("hako-run box /bin/lines", 126, f"/bin/lines: Exec format error [{NO_FORMAT}]"),
    (
        "hako-run --mount={busybox}:/data/prog:noexec --tmpfs=/data box /data/prog",
        126,
        "/data/prog: Permission denied [on a mount with noexec]",
    ),
    ("hako-run --user=nosuchuser box /bin/sh", 125, "--user: no such user: 'nosuchuser'"),
    ("hako-run --user=54321 box /bin/sh", 125, "--user: 54321 is not in passwd: give --group too"),
    ("hako-run --group=nosuchgroup box /bin/sh", 125, "--group: no such group: 'nosuchgroup'"),
    ("hako-run --cap-add=net_admn box /bin/sh", 125, "--cap-add: no such capability: 'net_admn' [net_admin?]"),
    (
        "hako-run --network=bridge box /bin/sh",
        125,
        "--network: open bridge: No such file or directory [neither none, host nor pasta, so a file]",
    ),
    (
        "PATH={bin} hako-run --network=pasta box /bin/sh",
        125,
        "pasta: No such file or directory [install it: Debian's package passt; see hako-check]",
    ),
    ("hako-run --map=root box /bin/sh", 125, "--map: neither self nor subid: 'root'"),
    ("hako-run --userns=yes box /bin/sh", 125, "--userns: not auto, always or never: 'yes'"),
    ("hako-run --env=NOTSET box /bin/sh", 125, "--env: not set here: 'NOTSET'"),
    ("hako-run --chdir=/nosuch box /bin/sh", 125, "chdir /nosuch: No such file or directory"),
    ("hako-run --keep-fd=99 box /bin/sh", 125, "--keep-fd: not open: '99'"),
    ("hako-run --report=/nosuch/r box /bin/sh", 125, "--report: open /nosuch: No such file or directory"),
    (
        "hako-run --report=/dev/full --mount={busybox}:/bin/busybox box /bin/busybox true",
        125,
        "write /dev/full: No space left on device",
    ),
    (
        "hako-run --overlay=nosuch box /bin/sh",
        125,
        "--overlay: open nosuch: No such file or directory [UPPER is a directory that is there, or tmpfs]",
    ),
    ("hako-run --changes=f box /bin/sh", 125, "--changes: only with --overlay is there anything to list"),
    ("hako-run --setup=nosuch box /bin/sh", 125, "--setup: nosuch: not there, or not executable"),
    ("hako-run --pid-file=/nosuch/p box /bin/sh", 125, "--pid-file: open /nosuch: No such file or directory"),
    ("hako-run --tty box /bin/sh", 125, "--tty: stdin is not a terminal"),
    ("hako-run --help >&-", 125, "write stdout: Bad file descriptor"),
    ("hako-run --help >/dev/full", 125, "write stdout: No space left on device"),
]
OTHERS = [
    ("hako-enter", 125, f"PID is missing [{ENTER}]"),
    ("hako-enter box", 125, "PID: not a whole number: 'box'"),
    ("hako-enter --frok 1", 125, "unknown option: '--frok' [--fork? see hako-enter --help]"),
    ("hako-enter --tty 1", 125, "--tty: needs --fork: somebody has to pass on what is typed"),
    ("hako-limit", 125, f"PROG is missing [{LIMIT}]"),
    ("hako-limit --memory=64MB true", 125, f"--memory: {SIZE}: '64MB'"),
    (
        "hako-limit --memory=64 true",
        125,
        "--memory: less than a page, 4096 bytes: '64' [without K, M or G it is bytes]",
    ),
    ("hako-limit --memory 64M", 125, f"PROG is missing [{LIMIT}]"),
    ("hako-limit --mem=64M true", 125, "unknown option: '--mem' [--memory? see hako-limit --help]"),
    ("hako-limit -memory=64M true", 125, "unknown option: '-memory' [--memory? see hako-limit --help]"),
    ("hako-limit -mem=64M true", 125, "unknown option: '-m' [--memory? see hako-limit --help]"),
    ("hako-enter -env=HOME 1", 125, "unknown option: '-env' [--env? see hako-enter --help]"),
    (
        "hako-limit --user=nobody true",
        125,
        "unknown option: '--user' [an option of hako-run, hako-enter, hako-policy; see hako-limit --help]",
    ),
    ("hako-limit --time=2s true", 125, "--time: not seconds, more than 0, like 2 or 0.5: '2s'"),
    ("hako-limit --pids=0 true", 125, "--pids: not from 1 to 4194304: '0'"),
    ("hako-limit --cpu=200% true", 125, "--cpu: not a whole number: '200%'"),
    ("hako-limit --swap=0 true", 125, "--swap: needs --memory"),
    ("hako-limit --live true", 125, "--live: stderr is not a terminal"),
    ("hako-limit --time=5 nosuch", 127, "nosuch: No such file or directory"),
    ("rlimit-exec", 125, "PROG is missing [rlimit-exec [options] [--] PROG [ARG...]]"),
    ("rlimit-exec --nofiles=9 true", 125, "unknown option: '--nofiles' [--nofile? see rlimit-exec --help]"),
    ("rlimit-exec --nofile=9:8 true", 125, "--nofile: the soft limit is above the hard limit: '9:8'"),
    ("rlimit-exec --nofile=64 ./text", 126, "./text: Permission denied [not executable: chmod +x]"),
    ("rlimit-exec --nofile=64 ./plain", 126, "./plain: Permission denied [a directory]"),
    ("rlimit-exec --nofile=64 text", 127, "text: No such file or directory"),
    ('rlimit-exec ""', 127, "an empty name cannot be run: ''"),
    (
        "seccomp-exec compute",
        125,
        "PROG is missing [seccomp-exec [options] [--include=DIR]... RULES [--] PROG [ARG...]]",
    ),
    (
        "seccomp-exec computee true",
        125,
        "open computee: No such file or directory [no built-in profile either: compute? see seccomp-exec --list]",
    ),
    (
        "seccomp-exec ls -l",
        125,
        "open ls: No such file or directory [no built-in profile either: see seccomp-exec --list]",
    ),
    ("seccomp-exec plain true", 125, "plain: is a directory"),
    ("seccomp-exec name.kafel true", 125, "name.kafel:3:3: undefined syscall 'wrote'"),
    (
        "seccomp-exec comma.kafel true",
        125,
        "comma.kafel:2:8: syntax error, unexpected name 'write', expecting ',' or '}'",
    ),
    ("seccomp-exec comma.json true", 125, "comma.json:1:36: expecting property name enclosed in double quotes"),
    ("seccomp-exec action.json true", 125, "action.json: defaultAction: unknown action 'SCMP_ACT_ALOW'"),
    ("seccomp-exec --lern=f true", 125, "unknown option: '--lern' [--learn? see seccomp-exec --help]"),
    ("landlock-exec ls", 125, "nothing is restricted [say what is allowed, or --fs=none, --tcp=none, --scope]"),
    ("landlock-exec --ro=/nosuch ls", 125, "open /nosuch: No such file or directory"),
    (
        "landlock-exec --ro=/usr ls",
        126,
        "ls: Permission denied [Landlock: PROG, its interpreter and its libraries must be allowed, see --ldd]",
    ),
    ("landlock-exec --connect-tcp=http ls", 125, "--connect-tcp: not a whole number: 'http'"),
    ("landlock-exec --scope=net ls", 125, "--scope: not abstract-unix or signal: 'net'"),
    (
        "hako-policy juge true",
        125,
        "no such policy: 'juge' [judge? built in: compile, default, judge, kiss, network, python; a file has a slash]",
    ),
    ("hako-policy nosuch.toml true", 125, "open nosuch.toml: No such file or directory"),
    ("hako-policy unit.toml true", 125, f"unit.toml:2: limits.memory: {SIZE}"),
    (
        "hako-policy quotes.toml true",
        125,
        "quotes.toml:2:10: neither a string, which has quotes, a number, true nor false",
    ),
    ("hako-policy table.toml true", 125, "table.toml:1: limit: unknown key [limits?]"),
    ("hako-policy key.toml true", 125, "key.toml:2: mounts[0].src: unknown key [source?]"),
    ("hako-policy type.toml true", 125, "type.toml:2: limits.pids: not a whole number"),
    ("hako-policy bracket.toml true", 125, "bracket.toml:1:8: unexpected end of line, expecting ']'"),
    ("hako-policy --memory=64M kiss true", 125, "unknown option: '--memory' [--limit-memory? see hako-policy --help]"),
    (
        "hako-policy --mount=/a:/b kiss true",
        125,
        "unknown option: '--mount' [an option of hako-run; see hako-policy --help]",
    ),
    ("hako-policy --ro-bind=/nosuch kiss true", 125, "open /nosuch: No such file or directory"),
    (
        "hako-policy --seccomp=computee kiss true",
        125,
        "--seccomp: neither a built-in profile nor a file: 'computee' [compute? see seccomp-exec --list]",
    ),
    ("hako-policy kiss nosuch", 127, "nosuch: No such file or directory"),
    (
        "SHELL=/nosuch hako-policy kiss",
        127,
        "/nosuch: No such file or directory [the default: hako-policy takes another PROG]",
    ),
    ("hako-task request.json", 125, "too many operands: 'request.json' [hako-task [options]]"),
    ("hako-task --ordered", 125, "--ordered: needs --stream"),
    ("hako-task --listen=/nosuch/s", 125, "bind /nosuch/s: No such file or directory"),
    ("hako-ps --jsno", 125, "unknown option: '--jsno' [--json? see hako-ps --help]"),
    ("hako-plot text", 125, "text: not two lines of use in it yet [hako-limit --usage writes them]"),
    ("hako-plot -o x.jpg text", 125, "--output: ends neither in .svg nor in .png: 'x.jpg'"),
    ("hako-top", 125, "stdin and stdout are not a terminal [--json is for programs]"),
    ("hako-check mounts", 125, "too many operands: 'mounts' [hako-check [--json] [--deadline=SECONDS]]"),
]


@pytest.fixture
def typed(who, place):
    """Has a shell of WHO run a line where FILES are, a box without a program in it, and a plain directory."""
    (place / "plain").mkdir()
    for name, text in FILES.items():
        (place / name).write_text(text)
    programs = {
        "dynamic": pathlib.Path(shutil.which("env")).read_bytes(),
        "script": b"#!/no/such/shell\n",
        "lines": b"echo hello\n",
        "foreign": other_machine(pathlib.Path(BUSYBOX).read_bytes()),
    }
    for name, data in programs.items():
        (who.box / "bin" / name).write_bytes(data)
        (who.box / "bin" / name).chmod(0o755)
    return lambda line: who.run("sh", "-c", line.replace("{busybox}", BUSYBOX).replace("{bin}", str(BIN)), cwd=place)


def other_machine(program):
    """The bytes of PROGRAM, an ELF file, as if they were for a machine that nobody has: its e_machine is another."""
    return program[:18] + b"\xfe\x7f" + program[20:]


@pytest.mark.parametrize(("line", "status", "message"), [*HAKO_RUN, *OTHERS], ids=lambda part: str(part)[:60])
def test_a_mistake_is_answered(typed, line, status, message):
    name = [word for word in line.split() if word in core.COMMANDS][-1]
    done = typed(line)
    assert (done.stderr, done.stdout, done.returncode) == (f"{name}: {message}\n", "", status)


@pytest.mark.parametrize(
    "line",
    [
        "hako-run --mount={busybox}:/bin/busybox:ro box /bin/busybox true",
        "hako-limit --time=50 true",
        "rlimit-exec --nofile=64 true",
        "seccomp-exec compute true",
        "landlock-exec --ldd --fs=none true",
        "hako-policy kiss true",
    ],
)
def test_what_is_right_is_not(typed, line):
    """The control."""
    done = typed(line)
    assert (done.stderr, done.stdout, done.returncode) == ("", "", 0)


def test_a_process_that_cannot_be_entered(who):
    """It has ended, or is in no sandbox."""
    process = who.start("sleep", "300")
    wait_until(lambda: pathlib.Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
    see = "hako-ps lists the sandboxes that run"
    try:
        done = who.run("hako-enter", str(process.pid))
    finally:
        process.kill()
        process.communicate()
    reason = "it has not both mounts and pids of its own"
    assert done.stderr == f"hako-enter: process {process.pid} is not in a sandbox: {reason} [{see}]\n"
    done = who.run("hako-enter", str(process.pid))
    assert done.stderr == f"hako-enter: pidfd_open {process.pid}: No such process [{see}]\n"


def test_a_limit_of_memory_without_a_cgroup_to_put_it_in(who):
    """An ordinary user is told who may, and how."""
    done = who.run("hako-limit", "--memory=64M", "true")
    if who.name == "root":
        assert (done.returncode, done.stderr) == (0, "")
        return
    advice = "root may, and others under: systemd-run --user --scope -p Delegate=yes; see hako-check"
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert done.stderr.startswith("hako-limit: mkdir ")
    assert done.stderr.endswith(f": Permission denied [{advice}]\n")


@pytest.mark.parametrize(
    ("request_", "response"),
    [
        ("{}", """{"status":"requestInvalid","description":"'cmd' missing or empty"}"""),
        ('{"cmd": "ls"}', '{"status":"requestInvalid","description":"cmd: Expecting an array"}'),
        ('{"cmd": ["ls"], "chrot": "/"}', '{"status":"requestInvalid","description":"chrot: Unknown key"}'),
        (
            '{"cmd": ["ls"], "timeLimit": "2s"}',
            '{"status":"requestInvalid","description":"timeLimit: Expecting non-negative number"}',
        ),
        ('{cmd: ["ls"]}', '{"status":"requestInvalid"}'),
    ],
)
def test_a_request_that_is_none(who, request_, response):
    """It is answered as the sandals tool does it."""
    done = who.run("hako-task", input=request_)
    assert (done.stdout, done.stderr, done.returncode) == (f"{response}\n", "", 1)


# Others' words: those of the sandals tool, of libkafel, of JSON; and what only a program reads.
OF_OTHERS = ("cell", "json", "kafel", "request", "sinks", "task")
NAMES = ("Landlock", "Linux", "Podman's")
SAYING = ("Failure", "call", "refused", "wrong")


def messages():
    """What the modules of hako say in a Failure: (place, text), with {} for what is filled in."""
    for path in sorted((TOP / "hako").rglob("*.py")):
        if path.stem in OF_OTHERS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            text = node.args[0]
            if name in SAYING and isinstance(text, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in text.values]
                yield f"{path.name}:{node.lineno}", "".join(parts)
            elif name in SAYING and isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield f"{path.name}:{node.lineno}", text.value


def test_how_messages_are_written():
    """One line, lower case but for placeholders and names, no full stop, nothing empty behind a colon."""
    found = list(messages())
    assert len(found) > 300
    for place, text in found:
        first = text.split()[0].rstrip(":") if text else ""
        assert text, place
        assert "\n" not in text, place
        assert not text.removesuffix("..").endswith((".", ":", "!")), (place, text)  # but for the name of a directory
        assert first[0].islower() or not first[0].isalpha() or first == first.upper() or first in NAMES, (place, text)
        assert "error:" not in text.lower(), place


@pytest.mark.parametrize("name", list(core.COMMANDS))
def test_an_option_with_a_letter_missing_is_offered(name):
    """Unless that is another option, or as near to one."""
    options = {option.long for option in getattr(patterns, core.COMMANDS[name])(docopt).flat(docopt.Option)}
    for option in options:
        wrong = f"{option[:4]}{option[5:]}"
        if len(option) > 5 and wrong not in options:
            offered = near.option(wrong, options, {}).removesuffix("? ")
            assert offered == option or likeness(wrong, offered) >= likeness(wrong, option), wrong


def likeness(word, other):
    """How like the two are, as difflib reckons it."""
    return difflib.SequenceMatcher(None, other.lstrip("-"), word.lstrip("-")).ratio()


def test_what_is_like_nothing_is_offered_nothing():
    assert near.option("--bogus", ["--mount", "--env", "-m"], {"hako-limit": ["--memory"]}) == ""
    assert near.option("--x", ["--xx"], {"hako-limit": ["--x"]}) == ""
    assert near.nearest("judge" * 100, ["judge" * 100]) is None  # it would take its time
    assert near.hint("qqq", ["judge"]) == near.question("qqq", ["judge"]) == ""
