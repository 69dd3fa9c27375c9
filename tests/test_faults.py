"""Faults, call by call: whatever system call of the set-up fails, whatever process is killed before it.

Each case is run once under tests/faults/tracer.c, which lists the calls that the
processes of hako make up to PROG's exec; then once for each of these calls, for
each way in which it can go wrong. PROG is tests/faults/probe.c, which tells
all that it is under: it does not run, or runs under everything, and nothing in
between. hako-task is asked for it in JSON, and answers every request whatever
goes wrong, unless it cannot go on itself. Of the library it is the worker whose
calls go wrong: the program that uses it hears of that.

HAKO_FAULTS says which of the calls are tried, besides those that once were handled wrongly:
N            each N-th: `make check` tries few, `make check-hostile` all
N+M          each N-th, beginning M later
PLACE/N/WAY  that call of the process PLACE in that WAY, and no other: a failure tells which
"""

import ctypes
import errno
import json
import os
import pathlib
import pty
import re
import shutil
import subprocess
import sys
import termios

import pytest
from test_run_ids import DELEGATED, FILES
from test_run_life import up
from test_run_network import World

from conftest import DEADLINE, SLOW
from hako import bpf, kernel

HERE = pathlib.Path(__file__).parent / "faults"
ASKED = os.environ.get("HAKO_FAULTS", "800")
ARCH = bpf.AUDIT_ARCH[bpf.MACHINE_ARCH[kernel.MACHINE]]
# Who waits for all others: the process that is started, or of the library its child.
SUPERVISOR, WORKER = "0", "0.0"
# The first call of hako.core, eventfd2, and of a worker that has its modules.
MARKS = {SUPERVISOR: {"x86_64": 290, "aarch64": 19}[kernel.MACHINE], WORKER: kernel.NUMBER["close_range"]}
KEYCTL = kernel.NUMBER["keyctl"]
LIBRARY = ctypes.CDLL(None, use_errno=True)
STATUS = 7  # the probe's
PROGRAM = 900  # descriptor of a program of the host, that nothing else here has

# What can go wrong with a call: the process is killed before it, or it fails. EPERM is what
# code may take for something that is not needed; ENOMEM and the like nobody expects.
KILL, DENIED, SHORT = "kill", "denied", "short"
ERRNO = {
    DENIED: {"read": errno.EIO, "close": errno.EIO},
    SHORT: {
        **dict.fromkeys(("openat", "pipe2", "dup", "socket", "socketpair", "signalfd4", "eventfd2"), errno.EMFILE),
        **dict.fromkeys(("clone", "clone3", "fork", "vfork"), errno.EAGAIN),
        **dict.fromkeys(("write", "pwrite64"), errno.ENOSPC),
        **dict.fromkeys(("read", "close", "lseek", "getdents64"), errno.EIO),
    },
}
OTHERWISE = {DENIED: errno.EPERM, SHORT: errno.ENOMEM}
DONE_ALL_THE_SAME = {"close"}
NEVER_FAIL = "exit_group exit rt_sigreturn getpid gettid getppid getuid geteuid getgid getegid umask".split()
WORKER_KILLED = "hako.run: the worker was killed\n"
# Its status may be this too: PROG cannot be executed.
STATUSES = dict.fromkeys(("execve", "newfstatat", "faccessat2"), (126, 127))

# What was handled wrongly once: case, process, call, what it names, which of those calls, from the end if negative.
ONCE = [
    ("run", "0", "newfstatat", "", -1),
    ("run", "0", "unlinkat", "pid", 0),
    ("run-user-namespace", "0.0", "close", "", 0),
    ("run-overlay", "0", "rt_sigaction", "", -3),
    ("run-overlay", "0", "signalfd4", "", -1),
    ("limit", "0.1", "close", "", 0),
    ("limit", "0.1", "close", "", 3),
    ("limit", "0", "poll", "", -1),
    ("limit", "0", "openat", "memory.memsw.limit_in_bytes", 0),
    ("limit-time", "0", "poll", "", -1),
    ("limit-time", "0", "openat", "/hako-inside", 0),
    ("enter", "0", "newfstatat", "", 0),
    ("task", "0.0", "setsid", "", 0),
    ("task", "0.0", "keyctl", "", -1),
    ("task", "0", "sendmsg", "", 0),
    ("task", "0", "ftruncate", "", 0),
    ("task-cgroup", "0", "clone3", "", 0),
    ("task-overlay", "0.1", "unlinkat", "", -1),
    ("task-overlay", "0.1", "exit_group", "", 0),
    ("task-stream", "0", "pidfd_open", "", 0),
    ("task-stream", "0.0.1", "prctl", "", -1),
    ("task-stream", "0.0.0", "mmap", "", -1),
    ("run-at-terminal", "0.0.0", "ioctl", "", 0),
    ("run-tty", "0", "ioctl", "", 0),
    ("enter-tty", "0", "ioctl", "", 0),
    ("run-pasta", "0.2.0", "close", "", 0),
    ("run-pasta", "0.2.0", "close", "", -1),
    ("run-pasta", "0.2.0", "wait4", "", -1),
    ("library", "0.0", "prlimit64", "", 0),
    ("library", "0.0", "poll", "", 0),
    ("library", "0.0", "recvmsg", "", 1),
    ("library", "0.0", "newfstatat", "overlay.py", 0),
]


class Call:
    """A system call: the N-th of the process PLACE, NUMBER, with its first argument and a TEXT that it names."""

    def __init__(self, place, n, number, argument="", text=""):
        self.place, self.n, self.number, self.argument, self.text = place, n, number, argument, text
        self.name = kernel.syscall_name(ARCH, int(number)) or number

    def __str__(self):
        return f"call {self.n} of process {self.place}, {self.name} {self.text or self.argument}"


class Fault:
    """What goes wrong: CALL, in the WAY of KILL, DENIED or SHORT.

    supervisor   the place of the process that waits for all others
    """

    def __init__(self, call, way, supervisor=SUPERVISOR):
        self.call, self.way, self.supervisor = call, way, supervisor
        self.errno = 0 if way == KILL else ERRNO[way].get(call.name, OTHERWISE[way])
        self.how = KILL if way == KILL else "after" if call.name in DONE_ALL_THE_SAME else "fail"

    def __str__(self):
        return f"{self.call}: {errno.errorcode.get(self.errno, 'killed')}"

    def words(self):
        """The arguments of the tracer."""
        return self.call.place, str(self.call.n), self.call.number, self.how, str(self.errno)

    def asked(self):
        """How HAKO_FAULTS names it."""
        return f"{self.call.place}/{self.call.n}/{self.way}"

    def kills_the_supervisor(self):
        """Whether nobody is there to clear up."""
        return self.way == KILL and self.of_the_supervisor()

    def of_the_supervisor(self):
        """Whether it happens to that one."""
        return self.call.place == self.supervisor

    def may_come_late(self, found):
        """Whether all that was FOUND is a cgroup: the supervisor waits 20 ms for the keeper to remove it."""
        return self.way == KILL and self.call.place == "0.1" and all(words.startswith("left: ") for words in found)

    def may_cut(self):
        """Whether what the supervisor writes may end with half a line: it writes a long one in pieces."""
        return self.of_the_supervisor() and (self.way == KILL or self.call.name in ("write", "poll"))


class Outcome:
    """How a run ended: RECORD, the lines of the tracer; OUT and ERR, what was written; FILES, {name: text} of DESTS.

    is_raw   whether the terminal at stdin is not as it was
    """

    def __init__(self, record, out, err, files, is_raw):
        self.lines = [line.split() for line in record.splitlines()]
        self.out, self.err, self.files, self.is_raw = out, err, files, is_raw
        ends = [int(words[0]) for words in self.told("exit")] + [-int(words[0]) for words in self.told("signal")]
        self.status = ends[0] if ends else None

    def told(self, word):
        """The rest of each line that begins with WORD."""
        return [line[1:] for line in self.lines if line[0] == word]

    def was_over(self):
        """Whether process 0 had ended, or was ending, when the fault happened."""
        return bool(self.told("over"))

    def calls(self):
        """The calls that were made."""
        return [Call(*words) for words in self.told("call")]

    def answers(self):
        """The responses of hako-task, whole lines; ValueError if one is none."""
        return [json.loads(line) for line in self.out.splitlines(keepends=True) if line.endswith("\n")]

    def unguarded(self):
        """The same without the filter that PROG gets because the kernel does not say that it has no terminal."""
        files = {name: text.replace("seccomp 2", "seccomp 0") for name, text in self.files.items()}
        other = Outcome("", self.out.replace("seccomp 2", "seccomp 0"), self.err, files, self.is_raw)
        other.lines, other.status = self.lines, self.status
        return other

    def is_cut(self):
        """Whether the last line is not whole."""
        return self.out != "" and not self.out.endswith("\n")


class Stage:
    """Where a case is run: WHO runs it, in the directory PLACE; the TRACER and the PROBE are programs.

    inmate     the pid of a process in a sandbox, or None
    requests   what hako-task is asked for
    terminal   both ends of the one at stdin, or None
    start      the place of the process whose set-up it is, and the number of its first call
    """

    def __init__(self, who, place, tracer, probe, start):
        self.who, self.place, self.tracer, self.probe, self.start = who, place, tracer, probe, start
        self.inmate, self.requests, self.terminal = None, (), None
        self.keyring = LIBRARY.syscall(KEYCTL, 0, -3, 0)  # KEYCTL_GET_KEYRING_ID of the session
        self.before = self.files()

    def files(self):
        """What is in the directory and below."""
        return {str(path.relative_to(self.place)) for path in self.place.rglob("*")}

    def words(self, *directories, status=STATUS, program=PROGRAM):
        """The arguments of the probe."""
        return "STDOUT", str(self.keyring), str(program), str(status), *directories

    def run(self, argv, fault=None):
        """Run ARGV, with the FAULT if there is one; return the Outcome."""
        record = self.place / "record"
        if self.who.cgroups and not self.who.cgroups.again:
            self.who.cgroups.sweep()
        for name in os.listxattr(self.place / "upper"):
            os.removexattr(self.place / "upper", name)  # a mark of the overlay that was there before
        ours, theirs = os.pipe()
        argv = [str(os.fstat(theirs).st_ino) if word == "STDOUT" else word for word in argv]
        what = ("0", "0", "0", "nothing", "0") if fault is None else fault.words()
        source = self.input()
        before = termios.tcgetattr(source) if self.terminal else None
        process = subprocess.Popen(
            [self.tracer, record, *what, *map(str, self.start), str(int(10 * SLOW)), *self.who.command(argv)],
            stdin=source,
            stdout=theirs,
            stderr=subprocess.PIPE,
            env=self.who.env,
            cwd=self.place,
            pass_fds=(PROGRAM,),
        )
        os.close(theirs)
        _, err = process.communicate(timeout=DEADLINE)
        with open(ours, "rb") as file:
            out = file.read()
        assert process.returncode == 0, err
        text = record.read_text()
        record.unlink()
        files = {name: (self.place / name).read_bytes().decode("latin-1") for name in DESTS & self.files()}
        is_raw = self.terminal is not None and termios.tcgetattr(source) != before
        if is_raw:
            termios.tcsetattr(source, termios.TCSANOW, before)
        os.close(source)
        return Outcome(text, out.decode(), err.decode(), files, is_raw)

    def input(self):
        """A descriptor of the terminal, or of the requests, a line each."""
        if self.terminal is not None:
            return os.dup(self.terminal[1])
        fd = os.memfd_create("requests")
        os.write(fd, "".join(json.dumps(request) + "\n" for request in self.requests).encode())
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def cgroups(self):
        """The cgroups that were left."""
        return [pathlib.Path(path) for path in self.who.cgroups.left()] if self.who.cgroups else []

    def take_away(self, path):
        """Remove PATH, which should not be there."""
        if path.is_dir() and path not in self.cgroups():
            shutil.rmtree(path)
        else:
            path.rmdir() if path.is_dir() else path.unlink()


class Subids:
    """A host whose /etc delegates ids to WHO; prefix is what leads there."""

    def __init__(self, who, place):
        ids, then = DELEGATED[who.name], ["sh", "-c", "echo up; exec sleep 100000"]
        argv = ["unshare", "--mount", "sh", "-c", FILES, "sh", ids, ids, place, *then]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        up(self.process)
        self.prefix = ["nsenter", f"--target={self.process.pid}", "--mount", "--"]

    def end(self):
        """End it."""
        self.process.kill()
        self.process.communicate(timeout=DEADLINE)


HOSTS = {"subids": Subids, "network": lambda _, place: World(place)}


class Case:
    """A command line, made by ARGV(stage).

    commands   the names that a message may begin with
    control     the exit status without a fault
    needs       of "cgroups", the caller's own; "inmate", a sandbox that is there; "terminal", at stdin; "root",
                which starts the tests; and of HOSTS, a host that only root can make
    requests    makes of a stage the requests of hako-task
    supervisor  the place of the process that waits for all others
    """

    def __init__(self, argv, *commands, control=STATUS, needs=(), requests=None, supervisor=SUPERVISOR):
        self.argv, self.commands, self.control, self.needs = argv, commands, control, set(needs)
        self.requests, self.supervisor = requests, supervisor
        self.root = bool(self.needs & {"root", "cgroups", *HOSTS})  # who delegates cgroups is root


def run(*options, directories=("/", "/bin"), program=PROGRAM):
    """The command line of hako-run with OPTIONS; PROG tells what is in DIRECTORIES and, if kept, of the PROGRAM."""

    def argv(stage):
        keep = [f"--keep-fd={program}"] if program == PROGRAM else []
        own = [f"--mount={stage.probe}:/bin/probe:ro", "--hostname=box", "--env=A=b", *keep]
        given = [word.replace("PLACE", str(stage.place)) for word in options]
        words = stage.words(*directories, program=program)
        return ["hako-run", *own, *given, str(stage.who.box), "/bin/probe", *words]

    return argv


def enter(*options):
    """The command line of hako-enter with OPTIONS."""

    def argv(stage):
        words = stage.words("/", "/bin", program=-1)
        return ["hako-enter", *options, "--env=A=b", stage.inmate, "/bin/probe", *words]

    return argv


def limit(*options, status=STATUS):
    """The command line of hako-limit with OPTIONS."""
    return lambda stage: ["hako-limit", *options, str(stage.probe), *stage.words(status=status)]


def limited_run(stage):
    """A chain of hako-limit and hako-run."""
    return ["hako-limit", "--memory=256M", "--time=30", "--report=report", *run("--proc", program=-1)(stage)]


def confined_run(stage):
    """A chain of all that confines."""
    words = run("--proc", program=-1)(stage)
    at = words.index("/bin/probe")
    return [
        *words[:at],
        "seccomp-exec",
        "default",
        "landlock-exec",
        "--rwx=/",
        "rlimit-exec",
        "--nofile=99",
        *words[at:],
    ]


def policy(name):
    """The command line of hako-policy with the policy NAME."""

    def argv(stage):
        words = stage.words("/", "/dev", program=-1)
        return ["hako-policy", f"--ro-bind={stage.probe}:/probe", name, "--", "/probe", *words]

    return argv


def library(stage):
    """The command line of a program that uses the library."""
    words = str(stage.who.box), f"{stage.probe}:/bin/probe:ro", *stage.words(*EVERYWHERE, program=-1)
    return [sys.executable, "-IBc", PROGRAM_OF_LIBRARY, *words]


def task(*options, needs=(), requests):
    """The case of hako-task with OPTIONS that is asked for each of REQUESTS."""

    def made(stage):
        return [request_of(stage, number, **request) for number, request in enumerate(requests)]

    return Case(lambda _: ["hako-task", *options], "hako-task", control=0, needs=needs, requests=made)


def request_of(stage, number, **more):
    """The request of that NUMBER, with MORE: the probe in the box, and a dest for each of its streams."""
    binds = {"type": "bind", "src": str(stage.probe), "dest": "/bin/probe", "ro": True}
    fresh = [
        {"type": kind, "dest": f"/{place}"} for kind, place in (("proc", "proc"), ("dev", "dev"), ("tmpfs", "tmp"))
    ]
    words = stage.words("/", "/dev", "/tmp", "/bin", program=-1)
    request = {
        **{"id": number, "cmd": ["/bin/probe", *words], "env": ["A=b"], "chroot": str(stage.who.box)},
        **{"mounts": [binds, *fresh], "timeLimit": 1000 * SLOW, "limits": {"nofile": 500}, **more},
    }
    return json.loads(json.dumps(request).replace("PLACE", str(stage.place)))


PID_AND_REPORT = "--pid-file=PLACE/pid", "--report=PLACE/report"
ALL_LIMITS = "--memory=256M", "--pids=50", "--time=30", "--output=1M", "--report=report"
EVERYWHERE = "/", "/dev", "/tmp", "/bin"
# What one knows of how the program ended, as hako-run would have it.
PROGRAM_OF_LIBRARY = r"""
import os, signal, sys, hako
box, bind, *words = sys.argv[1:]
try:
    told = hako.run(
        ["/bin/probe", *words], root=box, mounts=[bind], proc=True, dev=True, tmpfs=["/tmp"], hostname="box",
        env={"A": "b"}, overlay="tmpfs", changes=True, memory="256M", pids=50, time=30, stdout=1, stderr=2,
        seccomp="default", landlock={"rwx": ["/"]}, rlimits={"nofile": 99},
    )
except (hako.Failure, hako.WorkerLost) as err:
    failure = str(err)
else:
    failure = told.reason if told.status == "internalError" else ""
if failure:
    os.write(2, f"hako.run: {failure}\n".encode())
sys.exit(125 if failure else told.code if told.code is not None else 128 + signal.Signals[told.signal])
"""
# What tasks ask for. Nobody writes to the fifo.
IN_RESPONSE = {"outputs": {"stdout": True}}
BY_FILES = {
    "stdin": "given",
    "pipes": [{"dest": "PLACE/dest-pipe", "stdout": True}, {"dest": "PLACE/dest-fifo", "src": "/tmp/fifo"}],
    "copyFiles": [{"dest": "PLACE/dest-copy", "src": "/tmp/copy", "stdout": True}],
}
BY_STREAMS = {"stdStreams": {"dest": "PLACE/dest-streams"}, "report": True, "landlock": {"rwx": ["/"]}}
IN_GROUP = {"cgroupConfig": {"memory.max": "268435456", "pids.max": "50"}}
ON_OVERLAY = {"overlay": {"upper": "PLACE/upper", "changes": True}}
CHANGE = {"copyFiles": [{"dest": "PLACE/dest-copy", "src": "/made", "stderr": True}]}
DESTS = {"dest-pipe", "dest-fifo", "dest-copy", "dest-streams"}
CASES = {
    "run": Case(run(*PID_AND_REPORT), "hako-run"),
    "run-proc-dev": Case(run("--proc", "--dev", "--tmpfs=/tmp:1M", directories=EVERYWHERE), "hako-run"),
    "run-user-namespace": Case(run("--userns=always", "--tmpfs=/tmp", *PID_AND_REPORT), "hako-run"),
    "run-as-user": Case(run("--user=65534", "--group=65534", *PID_AND_REPORT), "hako-run", needs=["root"]),
    "run-chain": Case(confined_run, "hako-run", "seccomp-exec", "landlock-exec", "rlimit-exec"),
    "run-overlay": Case(run("--overlay=PLACE/upper", "--changes=PLACE/changes"), "hako-run"),
    "run-overlay-tmpfs": Case(run("--overlay=tmpfs", "--as-pid-1"), "hako-run"),
    "run-at-terminal": Case(run(*PID_AND_REPORT), "hako-run", needs=["terminal"]),
    "run-tty": Case(run("--tty", "--dev", *PID_AND_REPORT), "hako-run", needs=["terminal"]),
    "run-setup": Case(run("--setup=PLACE/setup", "--overlay=tmpfs"), "hako-run"),
    "run-subid": Case(run("--map=subid", "--overlay=tmpfs", "--changes=PLACE/changes"), "hako-run", needs=["subids"]),
    "run-pasta": Case(run("--network=pasta"), "hako-run", needs=["network"]),
    "enter": Case(enter("--fork"), "hako-enter", needs=["inmate"]),
    "enter-tty": Case(enter("--fork", "--tty"), "hako-enter", needs=["inmate", "terminal"]),
    "enter-exec": Case(enter(), "hako-enter", needs=["inmate"]),
    "limit": Case(limit(*ALL_LIMITS), "hako-limit", needs=["cgroups"]),
    "limit-time": Case(limit("--time=0.2", status=-1), "hako-limit", control=124),
    "limit-run": Case(limited_run, "hako-limit", "hako-run", needs=["cgroups"]),
    "policy-default": Case(policy("default"), "hako-policy"),
    "policy-judge": Case(policy("judge"), "hako-policy", needs=["cgroups"]),
    "task": task(requests=[BY_FILES]),
    "task-cgroup": task(needs=["cgroups"], requests=[{**IN_GROUP, **BY_STREAMS}]),
    "task-overlay": task(requests=[{**ON_OVERLAY, **CHANGE, **IN_RESPONSE}]),
    "task-stream": task("--stream", "--jobs=1", requests=[IN_RESPONSE, BY_FILES]),
    "library": Case(library, "hako.run", needs=["cgroups"], supervisor=WORKER),
}


@pytest.fixture
def stage(who, place, compiled, request):
    """Where the case is run."""
    case = CASES[request.getfixturevalue("name")]
    if "cgroups" in case.needs and os.getuid() == 0:
        request.getfixturevalue("delegated")
    (place / "host").mkdir()
    hosts = [HOSTS[name](who, place / "host") for name in sorted(case.needs & set(HOSTS))]
    who.prefix = [word for host in hosts for word in host.prefix] + who.prefix
    (place / "setup").write_text("#!/bin/sh\n: >made\n")
    (place / "setup").chmod(0o755)
    (place / "upper").mkdir()
    os.chown(place / "upper", who.uid, -1)
    tracer, probe = (compiled((HERE / f"{name}.c").read_text()) for name in ("tracer", "probe"))
    inmate = None
    if "inmate" in case.needs:
        options = [f"--mount={probe}:/bin/probe:ro", f"--pid-file={place}/inmate"]
        argv = who.sandbox("/bin/busybox", "sleep", "10000", options=options)
        inmate = subprocess.Popen(who.command(argv), env=who.env, stderr=subprocess.PIPE)
        while not (place / "inmate").exists():
            assert inmate.poll() is None, inmate.stderr.read()
    made = Stage(who, place, tracer, probe, (case.supervisor, MARKS[case.supervisor]))
    made.inmate = (place / "inmate").read_text().strip() if inmate else None
    if case.requests:
        made.requests = case.requests(made)
    if "terminal" in case.needs:
        made.terminal = pty.openpty()
        os.fchown(made.terminal[1], who.uid, -1)
    program = os.open("/bin/true", os.O_RDONLY)
    os.dup2(program, PROGRAM)
    os.close(program)
    yield made
    for fd in (PROGRAM, *(made.terminal or ())):
        os.close(fd)
    for host in hosts:
        host.end()
    if inmate:
        inmate.terminate()
        inmate.communicate(timeout=DEADLINE)


# What a message calls a system call, where not by its name: the library's name for it, or the step that it is part of.
WORDS = {
    "ioctl": ("tcgetattr", "tcsetattr"),
    "clone": ("fork",),
    "prlimit64": ("setrlimit",),
    "linkat": ("link",),
    "memfd_create": ("Writing 'stdin'",),
    "poll": ("write stdout",),
    "chdir": ("Setting work dir",),
    "fchdir": ("chroot",),
    "pread64": ("pread",),
    "fchown": ("chown",),
    "unlinkat": ("unlink",),
    "symlinkat": ("symlink",),
    "mkdirat": ("mkdir",),
    "wait4": ("waitpid",),
    "execve": ("exec ",),
    "fsetxattr": ("setxattr",),
    "fremovexattr": ("setxattr",),
    **dict.fromkeys(("fsopen", "fsconfig", "fsmount"), ("mount",)),
}
OF_FILES = "open openat openat2 newfstatat fstat read write pwrite64 close fcntl lseek mkdirat symlinkat linkat".split()
OF_FILES += "pread64 unlinkat mkdir fchownat fchown fchmodat readlinkat readlink getdents64 flock ioctl access".split()
OF_FILES += "chown chmod recvmsg mknodat".split()
STEPS = ["open ", "stat ", "mount point ", "file /", "symlink ", "mkdir ", "write ", "flock ", "readlink ", "link /"]
STEPS += ["readdir ", "chroot(", "Opening ", "Creating ", "Writing ", "Reading "]
STEPS += ["remove what", "chown ", "keep descriptor", "recvmsg", "poll", "--", "ioctl NS_GET_PARENT"]
# What posix_spawn() is made of, in both processes, and what it is to start.
OF_SPAWN = "clone clone3 vfork mmap munmap rt_sigaction rt_sigprocmask dup2 openat close execve".split()
OUTSIDE = "newuidmap: ", "newgidmap: ", "pasta: ", "--setup "
PLACE = re.compile(r"a system call at ([a-z_]+\.py|<frozen importlib[a-z_.]*>):\d+: ")  # of one that nothing names
LASTING = "id", "status", "code", "signal", "reason", "description", "stdout", "changes"  # keys of a response
IMPORT = re.compile(r"^[a-z.-]+: (the worker ended: )?(import |/\S+: )")
NETWORK = re.compile(r"(interface (?!lo )\S+) \w+\n")  # of what the probe tells
# They ask whether something is there: if the kernel does not say, it is not.
ASK = ("newfstatat", "fcntl", "access", "faccessat2", "landlock_create_ruleset")
# Of a program of the host: not to be had, or kept from PROG by Landlock, since it is not known not to be needed.
MISSING, CONFINED = (f"a program of the host: {number << 8}\n" for number in (errno.ENOENT, errno.EACCES))


def wrong_with(line, fault, case):
    """What is wrong with LINE, which is to say that FAULT happened; None if nothing is."""
    name = fault.call.name
    if not line.startswith(tuple(f"{command}: " for command in case.commands)):
        return "who failed?"
    if IMPORT.search(line) or "remove .hako-work" in line or (not fault.of_the_supervisor() and "was killed" in line):
        return None
    if name in ASK or "gives nothing to" in line or (name == "rt_sigaction" and "pasta: " in line):
        return None  # a name that cannot be read is none; pasta wants SIGPIPE to be as it was
    if os.strerror(fault.errno) not in line:
        return "why?"
    words = (name, *WORDS.get(name, ()), *(STEPS if name in OF_FILES else ()), *(OUTSIDE if name in OF_SPAWN else ()))
    if case.requests and not fault.of_the_supervisor():
        words += ("mount(",)  # as the sandals tool calls all of it
    return None if any(word in line for word in words) or PLACE.search(line) else "which call?"


def wrong_with_status(case, control, fault, outcome):
    """Say what is wrong with how OUTCOME ended, and with what it said, when FAULT happened in CASE."""
    status, err = outcome.status, outcome.err
    unharmed = (status, err) == (control.status, control.err)
    if fault.kills_the_supervisor() and case.supervisor == WORKER:
        if not unharmed and (status, err) != (125, WORKER_KILLED):
            yield f"the worker is killed, and status {status}, {err!r}"
    elif fault.kills_the_supervisor():
        if status != -9 or err not in ("", control.err):
            yield f"killed, and status {status}, {err!r}"
    elif fault.way == KILL:
        if status not in (control.status, 125, 137) or (status == 125) != (err.count("\n") == 1 and not unharmed):
            yield f"a process killed, and status {status}, {err!r}"
    elif status == 125:
        if err.count("\n") != 1:
            yield f"not one line: {err!r}"
        elif wrong := wrong_with(err, fault, case):
            yield f"{wrong} {err!r}"
    elif status == control.status:
        if not unharmed and (fault.call.name, *outcome.told("hit")[0][1:]) != ("write", "2"):
            yield f"it did no harm, and said {err!r}"
    elif status not in STATUSES.get(fault.call.name, ()):
        yield f"status {status}, {err!r}"


def wrong_with_answers(case, control, fault, outcome):
    """Say what is wrong with the responses of hako-task in OUTCOME, and with how it ended."""
    try:
        told, expected = outcome.answers(), control.answers()
    except ValueError as wrong:
        yield f"{wrong}: {outcome.out!r}"
        return
    if outcome.is_cut() and not fault.may_cut():
        yield f"half a line: {outcome.out!r}"
    harmed = [pair for pair in zip(told, expected, strict=False) if lasting(pair[0]) != lasting(pair[1])]
    for answer, other in harmed:
        if answer.get("id") != other["id"]:
            yield f"it does not belong to a request: {shown(answer)}"
        if wrong := wrong_with_answer(answer, fault, case):
            yield f"{wrong} {shown(answer)}"
    if len(harmed) > 1:
        yield "more than one task is harmed"
    if fault.of_the_supervisor() and outcome.status not in (0, 1):
        yield from wrong_with_end(case, fault, outcome)
    elif outcome.status not in ((0,) if len(expected) > 1 else (0, 1)) or len(told) != len(expected):
        yield f"status {outcome.status}, {len(told)} responses, {outcome.err!r}"
    elif outcome.err != "".join(f"hako-task: {line}\n" for line in descriptions(harmed) if len(expected) == 1):
        yield f"it said {outcome.err!r}, and {[shown(answer) for answer, _ in harmed]}"
    elif not harmed and outcome.files != control.files:
        yield f"it did no harm, and wrote {outcome.files.keys()}"


def wrong_with_end(case, fault, outcome):
    """Say what is wrong with the end of hako-task itself in OUTCOME."""
    status, err = outcome.status, outcome.err
    if fault.kills_the_supervisor():
        if status != -9 or err:
            yield f"killed, and status {status}, {err!r}"
    elif status == 125:
        if err.count("\n") != 1:
            yield f"not one line: {err!r}"
        elif wrong := wrong_with(err, fault, case):
            yield f"{wrong} {err!r}"
    elif status not in STATUSES.get(fault.call.name, ()):
        yield f"status {status}, {err!r}"


def shown(answer):
    """The response ANSWER without what PROG wrote."""
    return {key: value for key, value in answer.items() if key != "stdout"}


def descriptions(harmed):
    """What the first of each pair of responses in HARMED says was wrong."""
    return [answer["description"] for answer, _ in harmed if "description" in answer]


def lasting(answer):
    """The response ANSWER without the figures that differ from one run to the next."""
    return {key: value for key, value in answer.items() if key in LASTING}


def wrong_with_answer(answer, fault, case):
    """What is wrong with ANSWER, which is not the one that is there without FAULT; None if nothing is."""
    if answer["status"] == "internalError":
        return wrong_with(f"hako-task: {answer['description']}", fault, case)
    killed = fault.way == KILL and (answer["status"], answer.get("signal")) == ("killed", "SIGKILL")
    return None if killed else "what is that?"


def wrong_with_traces(stage, case, fault, outcome):
    """Say what is left of OUTCOME, and take it away, but for what cleared_up() sees to."""
    for words in outcome.told("left"):
        yield f"process {' '.join(words)} is left"
    if max(int(words[0]) for words in outcome.told("lag")) > 2000 * SLOW:
        yield f"outlived by {outcome.told('lag')} ms"
    # The last work of a supervisor, or of a child of it, is to take away what it made: what fails then is in the way.
    failed = outcome.status == 125 or '"internalError"' in outcome.out
    last = fault.call.place in (case.supervisor, *(["0.1"] if case.requests else []))
    ran = any(texts(case, outcome)) or (case.requests and outcome.status == 125)
    gone = fault.kills_the_supervisor()
    excused = gone or (failed and last and ran)
    for name in sorted(stage.files() - stage.before):
        path = stage.place / name
        if name.startswith(".hako-work-") and excused:
            continue
        if wrong := wrong_with_file(path, excused):
            yield wrong
        if path.exists():
            stage.take_away(path)
    if missing := stage.before - stage.files():
        yield f"gone: {missing}"
    if str(stage.place) in pathlib.Path("/proc/self/mountinfo").read_text():
        yield "a mount is left"
    # The supervisor does not wait for good for who removes its cgroup; who then kills that one leaves nobody.
    alone = gone or (fault.way == KILL and outcome.was_over())
    if stage.cgroups() and not alone:
        yield f"left: {stage.cgroups()}"
    if outcome.is_raw and not gone and not (fault.of_the_supervisor() and fault.call.name == "ioctl"):
        yield "the terminal is not as it was"


def wrong_with_file(path, excused):
    """What is wrong with the file PATH, which is new; None if it may be there, whole, some only if that is EXCUSED."""
    if path.name in DESTS or path.parent.name == "upper":
        return None  # a task's, whose texts() are known; or of what it did in the overlay
    text = path.read_text() if path.is_file() else ""
    if path.name == "report":
        try:
            return None if json.loads(text)["status"] else "no status"
        except ValueError:
            return f"half a report: {text!r}"
    if path.name == "changes":
        return None if all(json.loads(line) for line in text.splitlines()) else "half a list"
    if path.name == "pid" and excused:
        return None if re.fullmatch("[0-9]+\n", text) else f"half a pid file: {text!r}"
    return f"left: {path}"


def texts(case, outcome):
    """What each PROG of CASE has written, by OUTCOME."""
    if not case.requests:
        return [outcome.out]
    try:
        found = [answer["stdout"] for answer in outcome.answers() if "stdout" in answer]
    except ValueError:
        found = []  # wrong_with_answers() tells of it
    # What the fifo gets and, in the overlay, stderr, is nothing.
    return found + [text for name, text in sorted(outcome.files.items()) if text]


def wrong_with_prog(case, control, outcome):
    """Say what is wrong with the PROG of OUTCOME.

    The end of what it wrote may be missing, if who passes it on was killed.
    """
    whole = texts(case, control)
    known = [*whole, *(text.replace(MISSING, CONFINED) for text in whole)]
    # pasta may end at any time: its interface is down, then gone.
    known += [NETWORK.sub(now, text) for text in whole for now in (r"\1 0\n", "")]
    for text in texts(case, outcome):
        if not any(full.startswith(text) for full in known):
            yield f"PROG ran under something else: {set(text.splitlines()) ^ set(whole[-1].splitlines())}"
    if outcome.status == STATUS and not outcome.out:
        yield "PROG did not run"


def not_cleared_up(stage, argv):
    """Run ARGV once more where something was left by who could not clear up; yield what is left still."""

    def there():
        return [*stage.place.glob(".hako-work-*"), *stage.cgroups()]

    if not there():
        return
    if stage.who.cgroups:
        stage.who.cgroups.again = True
    stage.run(argv)
    if stage.who.cgroups:
        stage.who.cgroups.again = False
    for path in there():
        yield f"not even removed by the next: {path}"
    for name in stage.files() - stage.before:
        (stage.place / name).unlink()


def chosen(name, calls, way, who):
    """Those of CALLS, of the case NAME run by WHO, of which each is to go wrong in the WAY: see above."""
    if "/" in ASKED:
        return [call for call in calls if Fault(call, way).asked() == ASKED]
    stride, _, later = ASKED.partition("+")
    first = sum(f"{name}{way}{who.name}".encode()) + int(later or 0)
    found = dict.fromkeys(calls[first % min(int(stride), len(calls)) :: int(stride)])
    for case, place, call, text, which in ONCE:
        same = [other for other in calls if (other.place, other.name) == (place, call) and text in other.text]
        if case == name and same:  # a host may have other files of cgroups
            found[same[which]] = None
    return found


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.root if case.root else ()) for name, case in CASES.items()]
)
@pytest.mark.parametrize("way", (KILL, DENIED, SHORT))
def test_a_fault_leaves_nothing_half_done(name, way, stage, request):
    case = CASES[name]
    argv = case.argv(stage)
    for _ in range(5):  # where much else runs a limit of 0.2 seconds may strike before PROG has told all
        control = stage.run(argv)
        ends = {text[-4:] for text in texts(case, control)}
        if ends == {"end\n"}:
            break
    assert (control.status, ends) == (case.control, {"end\n"}), control.err
    for path in stage.files() - stage.before:
        stage.take_away(stage.place / path)
    assert not control.is_raw
    wrong, calls = [], [call for call in control.calls() if call.place.startswith(case.supervisor)]
    assert {call.place for call in calls} > {case.supervisor} or name == "enter-exec"
    calls = [call for call in calls if way == KILL or call.name not in NEVER_FAIL]
    faults = [Fault(call, way, case.supervisor) for call in chosen(name, calls, way, stage.who)]
    assert faults, f"there is no {ASKED}"
    for fault in faults:
        again = f"HAKO_FAULTS={fault.asked()} build/venv/bin/python3 -m pytest -q '{request.node.nodeid}'"
        found = try_out(stage, case, argv, control, fault)
        if found and fault.may_come_late(found):  # on a busy machine, though not twice
            found = try_out(stage, case, argv, control, fault)
        wrong += [f"{fault}: {words}\n  {again}" for words in found]
    assert not wrong, "\n".join(wrong)


def try_out(stage, case, argv, control, fault):
    """What is wrong when FAULT happens to ARGV, the command line of CASE, which without it ends as CONTROL."""
    outcome = stage.run(argv, fault)
    return [*judge(stage, case, control, fault, outcome), *not_cleared_up(stage, argv)]


def judge(stage, case, control, fault, outcome):
    """Say what is wrong with OUTCOME, that of CASE when FAULT happened; CONTROL is the one without a fault."""
    if fault.call.name == "ioctl" and not any("seccomp 2" in text for text in texts(case, control)):
        outcome = outcome.unguarded()
    if outcome.told("hit"):
        yield from (wrong_with_answers if case.requests else wrong_with_status)(case, control, fault, outcome)
    elif (outcome.status, outcome.err) != (control.status, control.err):
        yield f"nothing happened, and status {outcome.status}, {outcome.err!r}"
    yield from wrong_with_prog(case, control, outcome)
    yield from wrong_with_traces(stage, case, fault, outcome)


@pytest.mark.parametrize("name", ["run-proc-dev"])
def test_the_probe_tells_what_it_is_under(name, stage):
    """Else that PROG runs under everything would say nothing."""
    inside = stage.run(CASES[name].argv(stage))
    outside = stage.run([str(stage.probe), *stage.words(*EVERYWHERE)])
    assert (inside.status, outside.status) == (STATUS, STATUS)
    told = [{line.split(" ", 1)[0]: line for line in done.out.splitlines()} for done in (inside, outside)]
    differ = {key for key in told[0] if told[0][key] != told[1].get(key)}
    assert differ >= {"pid", "no_new_privs", "host", "keyring", "mount", "/.", "/dev/shm"}
    if stage.who.name == "root":
        assert differ >= {"caps", "bounding" + "0" * 41}
