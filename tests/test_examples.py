"""The examples, run as they say: what they print, also of programs that mean harm."""

import itertools
import os
import pathlib
import re
import shutil
import signal
import socket
import stat
import subprocess
import textwrap

import pytest
from test_run_ids import DELEGATED, FILES

from conftest import BIN, BUSYBOX, SLOW, Who

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
PYTHON = BIN / "python3"
SECOND, SECONDS = f"{SLOW:g}", f"{5 * SLOW:g}"  # for what never ends alone, and beside what does
SHADOW = "No such file or directory: '/etc/shadow'"
# For dash: as many processes as it may have, each of which tries on.
BOMB = "f() { f | f & f; }; f"


@pytest.fixture
def port():
    """A TCP port of the host's lo on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        yield listener.getsockname()[1]


def connect(port):
    """A command, in one line for a shell, that says so if it can connect to PORT."""
    return f'python3 -c \'import socket; socket.create_connection(("127.0.0.1", {port})); print("connected")\''


def write(path, text, mode=0o644):
    """Make the file PATH, and the directories above it, with TEXT in it; return PATH."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    path.chmod(mode)
    return path


def own(who, path):
    """Make WHO the owner of PATH and of all beneath it."""
    for each in (path, *path.rglob("*")):
        os.chown(each, who.uid, who.uid, follow_symlinks=False)


def test_each_is_listed_tried_and_says_how_it_is_called():
    listed = re.findall(r"^\| `(\w+\.\w+)` \|", (EXAMPLES / "README.md").read_text(), re.M)
    there = [path for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")]
    assert sorted(listed) == sorted(path.name for path in there)
    for path in there:
        text = path.read_text()
        assert re.search(rf"^(# |\"\"\"){path.name} - .*\n(# ?)?\n(# )?Usage: ", text, re.M)
        tests = pathlib.Path(__file__).read_text() + (EXAMPLES.parent / "tests/test_grid.py").read_text()
        assert f'"{path.name}"' in tests or f"/{path.name}" in tests
        assert max(map(len, text.splitlines())) <= 120


# judge.py

ADD = '#include <stdio.h>\nint main(void) { int a, b; scanf("%d%d", &a, &b); printf("%d\\n", a + b); }\n'
SOLUTIONS = {
    "add.c": (ADD, ["accepted", "accepted"]),
    "add.py": ("print(sum(map(int, input().split())))", ["accepted", "accepted"]),
    "seven.py": ("print(7)", ["accepted", "wrong answer"]),
    "silent.py": ("import sys; sys.exit(0)", ["wrong answer", "wrong answer"]),
    "crash.c": ("int main(void) { *(volatile int *)0 = 1; }", ["runtime error"] * 2),
    "loop.c": ("int main(void) { for (;;); }", ["time limit"] * 2),
    "bomb.c": ("#include <unistd.h>\nint main(void) { for (;;) fork(); }", ["process limit"] * 2),
    "memory.py": ("x = b'1' * (1 << 28)", ["memory limit"] * 2),
    "flood.py": ("while True: print('y' * 1000)", ["output limit"] * 2),
    "shadow.py": ("print(open('/etc/shadow').read())", ["runtime error"] * 2),
    "write.py": ("open('/hako/prog', 'w').write('print(7)')", ["runtime error"] * 2),
    # What the judge expects is nowhere to be found.
    "search.py": ("print(open('{place}/tests/1.out').read())", ["runtime error"] * 2),
    "network.py": ("import socket; socket.socket(); print(7)", ["runtime error"] * 2),
}


def judge(who, place, name, text):
    """What judge.py prints for TEXT in the file NAME."""
    for number, (read, written) in enumerate({"3 4\n": "7\n", "5 6\n": "11\n"}.items(), 1):
        write(place / f"tests/{number}.in", read)
        write(place / f"tests/{number}.out", written)
    return who.run(PYTHON, EXAMPLES / "judge.py", write(place / name, text), place / "tests")


@pytest.mark.parametrize("name", SOLUTIONS)
def test_judge(who, delegated, place, name):
    text, verdicts = SOLUTIONS[name]
    done = judge(who, place, name, text.replace("{place}", str(place)))
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"{number}: {verdict}" for number, verdict in enumerate(verdicts, 1)]
    assert done.returncode == int(set(verdicts) != {"accepted"})
    delegated.wait_until_empty()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int main(void) { return x; }", "undeclared (first use in this function)"),
        ('#include "/etc/shadow"', "fatal error: /etc/shadow: No such file or directory"),
        ('#include "/dev/zero"', "memory"),  # by the compiler itself, or by the limit
        ("char x[1 << 28] = {1}; int main(void) {}", "File size limit exceeded"),
    ],
)
def test_judge_of_what_cannot_be_compiled(who, delegated, place, text, message):
    done = judge(who, place, "wrong.c", text)
    assert (done.returncode, done.stderr, done.stdout.splitlines()[0]) == (1, "", "compile error")
    assert message in done.stdout
    delegated.wait_until_empty()


def test_judge_says_who_may_have_a_cgroup(place):
    user = Who("user")
    done = judge(user, place, "add.c", ADD)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"judge.py: mkdir \S+: Permission denied \[root may, .*Delegate=yes.*\]\n", done.stderr)


# model_code.py


@pytest.fixture
def learned(who, place):
    """A filter, learned from a sample by WHO."""
    sample = write(place / "sample.py", "import json, math\nprint(json.dumps({'pi': round(math.pi, 3)}))\n")
    done = who.run(PYTHON, EXAMPLES / "model_code.py", "--learn", place / "filter", sample)
    assert (done.returncode, done.stdout, done.stderr) == (0, '{"pi": 3.142}\n', "")
    return place / "filter"


def model_code(who, learned, text, seconds="10"):
    """What model_code.py does with the program TEXT."""
    return who.run(PYTHON, EXAMPLES / "model_code.py", learned, seconds, input=text)


def test_model_code(who, learned):
    done = model_code(who, learned, "import sys; print(6 * 7); print('no', file=sys.stderr); sys.exit(3)")
    assert (done.returncode, done.stdout, done.stderr) == (3, "42\n", "no\n")


def test_model_code_passes_on_what_is_written_at_once(who, learned, place):
    argv = [PYTHON, EXAMPLES / "model_code.py", learned, str(50 * SLOW)]
    write(place / "code", "print(1, flush=True)\nwhile True: pass")
    with open(place / "code") as code, who.start(*argv, stdin=code, stderr=subprocess.STDOUT) as child:
        try:
            assert child.stdout.readline() == "1\n"
        finally:
            child.terminate()
        assert child.stdout.read() == ""  # nothing yet of how it ended: it ran still
    assert child.returncode == -signal.SIGTERM


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("while True: pass", 124, f"model_code.py: timeLimit: {SECOND} seconds are over"),
        ("while True: print('y' * 4000)", 124, "model_code.py: outputLimit: more than 1048576 bytes of output"),
        ("import os\nos.kill(os.getpid(), 9)", 1, "PermissionError: [Errno 1] Operation not permitted"),
        ("import os\nwhile True: os.fork()", 1, "PermissionError: [Errno 1] Operation not permitted"),
        ("import os; os.execv('/bin/sh', ['sh'])", 1, "PermissionError: [Errno 1] Operation not permitted"),
        ("import socket; socket.socket()", 1, "PermissionError: [Errno 1] Operation not permitted"),
        ("open('/etc/shadow')", 1, f"FileNotFoundError: [Errno 2] {SHADOW}"),
        ("x = b'1' * (1 << 30)", 1, "MemoryError"),
    ],
)
def test_model_code_that_means_harm(who, learned, text, status, message):
    done = model_code(who, learned, text, SECOND if "pass" in text else "30")
    assert (done.returncode, done.stderr.splitlines()[-1]) == (status, message)


# build.sh

MAKEFILE = """\
prog: lib/prog.c
\t$(CC) -o prog lib/prog.c
\trm old
\tmkdir out
\tcp prog out/again
"""


@pytest.fixture
def project(who, place):
    """A directory for build.sh, WHO's own, with a project in it."""
    box = place / "project"
    (box / ".hako").mkdir(parents=True)
    write(box / "src/Makefile", MAKEFILE)
    write(box / "src/lib/prog.c", "int main(void) { return 42; }\n")
    write(box / "src/old", "old\n")
    own(who, box)
    return box


def build(who, *argv, seconds="60"):
    """What build.sh does with ARGV."""
    return who.run("sh", EXAMPLES / "build.sh", *argv, env={**who.env, "BUILD_SECONDS": seconds})


def contents(box):
    """What is in BOX: {path: what a file contains, None for a directory}."""
    return {str(path.relative_to(box)): path.read_bytes() if path.is_file() else None for path in box.rglob("*")}


def test_build_lists_what_it_would_change_and_changes_it_on_request(who, delegated, project):
    before = contents(project)
    done = build(who, project, "make", "-s")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "deleted file '/src/old'",
        "added directory '/src/out'",
        "added file '/src/out/again'",
        "added file '/src/prog'",
    ]
    assert contents(project) == before
    again = build(who, "--apply", project, "make", "-s")
    assert (again.returncode, again.stdout, again.stderr) == (0, done.stdout, "")
    after = contents(project)
    assert after.keys() - before.keys() == {"src/out", "src/out/again", "src/prog"}
    assert before.keys() - after.keys() == {"src/old"}
    assert who.run(project / "src/prog").returncode == 42
    delegated.wait_until_empty()


def test_build_applies_nothing_of_one_that_fails(who, delegated, project):
    before = contents(project)
    done = build(who, "--apply", project, "sh", "-c", "echo new >new; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "added file '/src/new'\n", "")
    assert contents(project) == before
    delegated.wait_until_empty()


def test_build_applies_neither_links_nor_modes_nor_goes_where_links_lead(who, delegated, project, place):
    """Nor does it follow one that was in the project already."""
    (place / "outside").mkdir()
    write(place / "outside/kept", "kept\n")
    (project / "src/link").symlink_to(place / "outside")
    (project / "src/file").symlink_to(place / "outside/kept")
    own(who, place)
    made = (
        "rm link file old; mkdir link; echo x >link/kept; echo x >file; ln -s /etc old; cp /bin/sh shell; mkfifo fifo"
    )
    done = build(who, "--apply", project, "sh", "-c", f"{made}; chmod 6777 shell; echo x >\"$(printf '\\033[2J')\"")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "added file '/src/\\x1b[2J'",
        "added fifo '/src/fifo'",
        "left out: '/src/fifo'",
        "changed file '/src/file'",
        "changed directory '/src/link'",
        "added file '/src/link/kept'",
        "changed symlink '/src/old'",
        "left out: '/src/old'",
        "added file '/src/shell'",
    ]
    assert contents(place / "outside") == {"kept": b"kept\n"}
    assert (project / "src/file").read_text() == (project / "src/link/kept").read_text() == "x\n"
    assert not (project / "src/link").is_symlink()
    assert (project / "src/old").read_text() == "old\n"
    assert stat.S_IMODE((project / "src/shell").stat().st_mode) == 0o755
    delegated.wait_until_empty()


def test_build_that_means_harm(who, delegated, project, port):
    """It has neither files nor network, and limits."""
    assert who.run("sh", "-c", connect(port)).stdout == "connected\n"
    done = build(
        who, project, "sh", "-c", f"cat /etc/shadow {project}/src/old; {connect(port)}; ls /home /root; exit 0"
    )
    assert (done.returncode, done.stdout) == (0, "")
    for line in ("cat: /etc/shadow: No such file", f"cat: {project}/src/old: No such file", "Connection refused"):
        assert line in done.stderr
    endless = build(who, project, "sh", "-c", "while :; do :; done", seconds=SECOND)
    assert (endless.returncode, endless.stdout) == (124, "")
    assert endless.stderr == f"hako-limit: timeLimit: {SECOND} seconds are over\n"
    bomb = build(who, project, "sh", "-c", BOMB)
    assert (bomb.returncode, bomb.stdout) == (124, "")
    # A shell that is killed may have written half a line.
    assert bomb.stderr.endswith("hako-limit: pidsLimit: more than 64 processes: a fork was refused\n")
    delegated.wait_until_empty()


# chroot_shell.sh


@pytest.fixture
def root(who, place):
    """A root directory made of busybox, WHO's own, with a file of the caller's beside it."""
    path = place / "stable"
    for name in (".hako", "bin", "etc"):
        (path / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, path / "bin/busybox")
    for name in ("sh", "ls", "rm", "hostname", "id", "cat", "tty", "wc"):
        (path / "bin" / name).symlink_to("busybox")
    write(path / "etc/motd", "hello\n")
    own(who, path)
    return path


def test_chroot_shell(who, root):
    before = contents(root)
    script = "ls /; hostname; cat /etc/motd; rm -r /etc /bin/cat; echo new >/new; ls / /bin; tty; exit 3"
    done = who.run("sh", EXAMPLES / "chroot_shell.sh", root, "/bin/sh", "-c", script)
    first, second = (
        "bin dev etc proc tmp",
        "/: bin dev new proc tmp  /bin: busybox hostname id ls rm sh tty wc not a tty",
    )
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.replace("\n", " ") == f"{first} stable hello {second} "
    assert contents(root) == before


def test_chroot_shell_on_a_terminal(who, root):
    """script(1) is the terminal; what is typed goes to a shell with job control."""
    command = f"sh {EXAMPLES}/chroot_shell.sh {root}"
    done = who.run("script", "-qec", command, "/dev/null", input="tty; sleep 9 & kill %1; echo $((6 * 7)); exit 4\n")
    assert done.returncode == 4
    assert "/dev/pts/0" in done.stdout
    assert "42" in done.stdout


def test_chroot_shell_in_what_means_harm(who, root, place):
    """A root whose programs look for the host finds itself."""
    write(place / "secret", "secret\n")
    assert who.run("cat", place / "secret").stdout == "secret\n"
    script = f"cat {place}/secret /etc/shadow /proc/1/root/{place}/secret; ls /sys; cat /proc/net/dev | wc -l"
    done = who.run("sh", EXAMPLES / "chroot_shell.sh", root, "/bin/sh", "-c", script)
    assert done.stdout == "3\n"  # two lines of heading, and lo
    assert done.stderr.count("No such file or directory") == 3
    assert done.stderr.count("Permission denied") == 1  # not even the root of the init can be looked at


@pytest.mark.root
def test_chroot_shell_of_a_user_with_more_ids(root, place):
    """Uid 0 inside, and the others are there."""
    user = Who("user")
    own(user, root)
    (place / "files").mkdir()
    files = ["unshare", "--mount", "sh", "-c", FILES, "sh", DELEGATED["user"], DELEGATED["user"], place / "files"]
    user.prefix = [*files, *user.prefix]
    done = user.run("sh", EXAMPLES / "chroot_shell.sh", root, "/bin/sh", "-c", "id -u; cat /proc/self/uid_map")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["0", "0", str(user.uid), "1", "1", "100000", "65536"]


def test_chroot_shell_without_leave(who, root):
    (root / ".hako").rmdir()
    done = who.run("sh", EXAMPLES / "chroot_shell.sh", root)
    assert (done.returncode, done.stdout) == (125, "")
    assert ".hako" in done.stderr


# pre_commit.sh


@pytest.fixture
def checkout(who, place):
    """A checkout of WHO's whose commits pre_commit.sh looks at."""
    assert who.run("git", "init", "-q", place / "checkout").returncode == 0
    (place / "checkout/.git/hooks/pre-commit").symlink_to(EXAMPLES / "pre_commit.sh")
    return place / "checkout"


def commit(who, checkout, hooks, seconds="60"):
    """What git says to a commit with HOOKS: {name: script}."""
    for name, script in hooks.items():
        write(checkout / "hooks" / name, f"#!/bin/sh\n{script}\n", 0o755)
    own(who, checkout)
    assert who.run("git", "-C", checkout, "add", ".").returncode == 0
    identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    return who.run("git", "-C", checkout, *identity, "commit", "-qm", "One", env={**who.env, "HOOK_SECONDS": seconds})


def test_pre_commit(who, delegated, checkout):
    """A hook sees what is to be committed: not what is in the work tree alone."""
    write(checkout / "text", "fine\n")
    hooks = {"look": "cat text; ls -A; pwd", "todo": "! grep -r TODO /src --include=text"}
    done = commit(who, checkout, hooks)
    assert (done.returncode, done.stdout) == (0, "")
    lines = ["fine", "hooks", "text", "/src", "pre-commit: look: 0", "pre-commit: todo: 0"]
    assert done.stderr.splitlines() == lines  # where git has the output of hooks
    write(checkout / "text", "TODO\n")
    own(who, checkout)
    refused = commit(who, checkout, {"look": "exit 0"})
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == ["pre-commit: look: 0", "/src/text:TODO", "pre-commit: todo: 1"]
    assert who.run("git", "-C", checkout, "log", "--format=%s").stdout == "One\n"
    delegated.wait_until_empty()


def test_pre_commit_of_hooks_that_mean_harm(who, delegated, checkout, port):
    """Each is refused what it is after, or ended; the commit is refused."""
    assert who.run("sh", "-c", connect(port)).stdout == "connected\n"
    hooks = {
        "a": f"cat {checkout}/hooks/a /etc/shadow",
        "b": connect(port),
        "c": "echo echo harm >/src/hooks/d",
        "d": "while :; do :; done",
        "e": BOMB,
        "f": "ls /src/.git",
        "g": "yes",
    }
    done = commit(who, checkout, hooks, SECONDS)
    assert done.returncode == 1
    found = dict(re.findall(r"pre-commit: (\w): (\d+)$", done.stderr, re.MULTILINE))  # behind half a line of the bomb's
    bomb = "124" if who.uid == 0 else "2"
    assert found == {"a": "1", "b": "1", "c": "2", "d": "124", "e": bomb, "f": "2", "g": "124"}
    for line in (
        f"cat: {checkout}/hooks/a: No such file or directory",
        "cat: /etc/shadow: No such file or directory",
        "ConnectionRefusedError: [Errno 111] Connection refused",
        "cannot create /src/hooks/d: Read-only file system",
        f"hako-policy: timeLimit: {SECONDS} seconds are over",
        "Cannot fork",
        "ls: cannot access '/src/.git': No such file or directory",
        "hako-policy: outputLimit: more than 1048576 bytes of output",
    ):
        assert line in done.stderr
    delegated.wait_until_empty()


# parallel.sh

PROGRAM = """\
#!/bin/sh
read -r line
case $line in
loop) while :; do :; done ;;
bomb) {bomb} ;;
flood) while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done ;;
memory) python3 -c 'b"1" * (1 << 28)' ;;
shadow) cat /etc/shadow && echo read ;;
network) {connect} ;;
crash) kill -SEGV $$ ;;
*) echo "$line" | tr a-z A-Z ;;
esac
"""
ANSWERS = {
    **{"loop": "124 ", "bomb": "124 ", "flood": f"124 {'y' * 46}", "memory": "124 ", "shadow": "1 ", "network": "1 "},
    **{"crash": "139 ", "a fig": "0 A FIG", "date's": "0 DATE'S"},
}


@pytest.mark.parametrize("how", ["xargs", "parallel", "task"])
def test_parallel(who, delegated, place, how, port):
    text = PROGRAM.replace("{bomb}", BOMB).replace("{connect}", connect(port))
    program = write(place / "program", text, 0o755)
    assert who.run(program, input="network\n").stdout == "connected\n"
    plain = [f"input {number}" for number in range(6)]
    for name in itertools.chain(ANSWERS, plain):
        write(place / "in" / name, f"{name}\n")
    done = who.run("sh", EXAMPLES / "parallel.sh", how, "../program", *ANSWERS, *plain, cwd=place / "in")
    expected = {**ANSWERS, **{name: f"0 {name.upper()}" for name in plain}}
    assert sorted(done.stdout.splitlines()) == sorted(f"{name}: {answer}" for name, answer in expected.items())
    assert done.returncode == 0
    delegated.wait_until_empty()


@pytest.mark.parametrize("how", ["xargs", "parallel", "task"])
def test_parallel_says_who_may_have_a_cgroup(place, how):
    user = Who("user")
    program = write(place / "program", "#!/bin/sh\necho ran\n", 0o755)
    done = user.run("sh", EXAMPLES / "parallel.sh", how, program, write(place / "input", ""))
    assert "ran" not in done.stdout
    assert "Permission denied [root may" in done.stderr
    assert "Delegate=yes" in done.stderr
