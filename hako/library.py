"""The library: sandboxes as values, and what runs in them. See hako(3).

What is asked for is carried out by a worker, a small process that is started
once: the caller is never forked, however large it is and however many threads
it has. An option means what it means to the command that has it.

The worker is started when something is run for the first time, with the
environment of that moment: what a policy passes on of it is from there. It
ends with the caller, in whatever way that ends, and with it all that runs. A
fork of the caller starts its own. At most 100 programs of run(), popen() and
stream() run at once; more wait for their turn, and their time runs already.

hako-ps(1) and hako-top(1) list each worker, those of a Pool too, by the command
line of the caller, and each program that has run for a second.
"""

from __future__ import annotations

import asyncio
import marshal
import os
import select
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import IO, Any, Final, Literal

from hako.failure import Failure
from hako.link import Link, Links, WorkerLost, close_all

__all__ = ["PIPE", "Chunk", "Failure", "Process", "Result", "Sandbox", "Stream", "TaskFailed", "WorkerLost", "run"]

PIPE: Final = subprocess.PIPE
DEVNULL: Final = subprocess.DEVNULL
CAPTURE: Final = -10
STDOUT: Final = subprocess.STDOUT
PIECE: Final = 1 << 16
LONGEST: Final = 2.0**31  # seconds
AT_ONCE: Final = 100  # programs that run; more wait until one of them has ended
TEXT: Final = (str, bytes, os.PathLike)
SWITCHES: Final = ("proc", "dev", "writable", "changes")
LISTS: Final = ("mounts", "tmpfs", "capabilities", "share", "tolerate")
TABLES: Final = {
    "symlinks": (TEXT, "text"),
    "files": ((str, bytes), "text"),
    "env": (TEXT, "text"),
    "rlimits": ((int, str), "a number or text"),
}
# What each of the others may be; text where nothing is said.
NUMBERS: Final = dict.fromkeys(("uid", "gid", "pids", "cpu", "cpu_weight"), (int, "a whole number"))
SECONDS: Final = dict.fromkeys(("time", "cpu_time"), ((int, float), "a number"))
SIZES: Final = dict.fromkeys(("memory", "swap", "output"), ((int, str), "a whole number or text"))
VALUES: Final = {**NUMBERS, **SECONDS, **SIZES}

Text = str | bytes
Program = Sequence[str | bytes | os.PathLike[str]]
Size = int | str
File = int | IO[Any] | None
Status = Literal[
    "exited",
    "killed",
    "timeLimit",
    "cpuTimeLimit",
    "memoryLimit",
    "pidsLimit",
    "outputLimit",
    "diskLimit",
    "internalError",
]


class TaskFailed(Exception):
    """A program that did not exit with 0; RESULT says how it ended instead."""

    def __init__(self, result: Result) -> None:
        super().__init__(result)
        self.result = result

    def __str__(self) -> str:
        words = (self.result.status, self.result.code, self.result.signal)
        how = " ".join(str(word) for word in words if word is not None)
        return f"{how}: {self.result.reason}" if self.result.reason else how


@dataclass(frozen=True, slots=True)
class Result:
    """How a program ended and what it, and all that it started, used; None is what was not measured.

    The names are those of hako-report(5).

    status                             which of the ways to end it was
    code                               exit status, 0 to 255; None unless it exited
    signal                             name of the signal that killed it, "SIGKILL"; None unless killed
    reason                             for people, why it was ended, or could not run; else ""
    start_time                         "2026-11-21T23:00:00.123456Z"
    real_time, user_time, system_time  seconds
    max_rss, memory_peak               bytes
    pids_peak, oom_kills               counts
    forks_refused, output_bytes        a count, and bytes
    stdout, stderr                     what was captured; b"" if nothing was
    changes                            what an overlay's program did, dictionaries as lines of hako-run --changes
    """

    status: Status
    code: int | None = None
    signal: str | None = None
    reason: str = ""
    start_time: str = ""
    real_time: float = 0.0
    user_time: float | None = None
    system_time: float | None = None
    max_rss: int | None = None
    memory_peak: int | None = None
    pids_peak: int | None = None
    oom_kills: int | None = None
    forks_refused: int | None = None
    output_bytes: int | None = None
    stdout: bytes = b""
    stderr: bytes = b""
    changes: tuple[Mapping[str, Any], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether it exited with 0."""
        return self.status == "exited" and self.code == 0

    def check(self) -> Result:
        """Itself, if it exited with 0; else TaskFailed is raised."""
        if not self.ok:
            raise TaskFailed(self)
        return self


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of output, DATA, of what STREAM says."""

    stream: Literal["stdout", "stderr"]
    data: bytes


def result_of(told: Mapping[str, Any]) -> Result:
    """The Result that the worker has TOLD."""
    changes: tuple[Mapping[str, Any], ...] = ()
    if told.get("changes"):
        import json

        changes = tuple(json.loads(line) for line in told["changes"].splitlines())
    return Result(**told["report"], stdout=told.get("stdout", b""), stderr=told.get("stderr", b""), changes=changes)


def plain(value: Any) -> Any:
    """VALUE, which check_kinds() has seen, in types that marshal knows, so that it can be sent and compared."""
    if isinstance(value, TEXT):
        return os.fsdecode(value)
    if isinstance(value, Mapping):
        return {plain(key): plain(inner) for key, inner in sorted(value.items())}
    return tuple(plain(inner) for inner in value) if isinstance(value, Sequence) else value


class Sandbox:
    """A description of a sandbox: immutable, reusable, picklable; equal ones are equal. Nothing is made by making one.

    The root is an empty one, filled by a POLICY of hako-policy(5), a name or a
    file ("default" unless there is a root), or the prepared directory ROOT of
    hako-run(1). A namespace of each kind is new for each program: user, pid,
    mount, network, ipc, uts, cgroup, but for those that are to SHARE the
    host's, of "ipc", "uts" and "cgroup". No capability is kept but for
    CAPABILITIES; no_new_privs is set.

    What is added to it (SIZE: bytes, or text like "256M"):

    mounts        "SRC:DST[:FLAGS]" each, as hako-run --mount
    tmpfs         "DST[:SIZE]" each
    proc, dev     a fresh /proc, a minimal /dev; a policy decides unless told
    symlinks      {place: what the link says}, in an empty root
    files         {place: contents}, in an empty root
    work_dir      directory of the host that is seen at /hako, to be written, where programs start
    writable      whether ROOT may be written
    overlay       where what is written goes instead of ROOT: a directory, "tmpfs" or "tmpfs:SIZE"
    changes       whether Result.changes lists what was written there
    env           {NAME: value}; nothing else is in the environment but what a policy puts there
    chdir         directory inside
    user, group   names or numbers of the host; uid, gid: numbers inside
    hostname      inside
    network       "none", "host", or the path of a network namespace
    seccomp       rules of seccomp-exec(1): a built-in profile or a file; "none" for no filter
    landlock      {"ro", "rw", "rx" or "rwx": paths inside; "bind_tcp" or "connect_tcp": ports; "scope": words}
    rlimits       {name as an option of rlimit-exec(1): number, or text "SOFT:HARD"}, for each process

    Limits of all that a program starts, which end it when they strike, as
    hako-limit(1) has them:

    memory, swap  SIZE                     status memoryLimit
    pids          processes and threads    status pidsLimit
    time          seconds on the clock     status timeLimit
    cpu_time      seconds of CPU time      status cpuTimeLimit
    output        SIZE of stdout and stderr together, status outputLimit
    cpu           percent of one core, which slows down and ends nothing; cpu_weight: 1 to 10000
    tolerate      of "memory" and "pids", what does not end the program when it is refused
    parent        the cgroup in which each program's own is made

    Errors: TypeError for arguments that are none, ValueError for text with a
    NUL; Failure, when something is run, for values that are wrong. What this
    machine refuses is in the Result, status internalError.
    """

    __slots__ = ("_key", "_options")
    _key: bytes
    _options: dict[str, Any]

    def __init__(
        self,
        *,
        policy: str | os.PathLike[str] | None = None,
        root: str | os.PathLike[str] | None = None,
        mounts: Sequence[str] = (),
        tmpfs: Sequence[str] = (),
        proc: bool | None = None,
        dev: bool | None = None,
        symlinks: Mapping[str, str] | None = None,
        files: Mapping[str, Text] | None = None,
        work_dir: str | os.PathLike[str] | None = None,
        writable: bool = False,
        overlay: str | os.PathLike[str] | None = None,
        changes: bool = False,
        env: Mapping[str, str] | None = None,
        chdir: str | None = None,
        user: str | None = None,
        group: str | None = None,
        uid: int | None = None,
        gid: int | None = None,
        capabilities: Sequence[str] = (),
        hostname: str | None = None,
        network: str | None = None,
        share: Sequence[str] = (),
        seccomp: str | os.PathLike[str] | None = None,
        landlock: Mapping[str, Sequence[Any]] | None = None,
        rlimits: Mapping[str, Size] | None = None,
        memory: Size | None = None,
        swap: Size | None = None,
        pids: int | None = None,
        cpu: int | None = None,
        cpu_weight: int | None = None,
        time: float | None = None,
        cpu_time: float | None = None,
        output: Size | None = None,
        tolerate: Sequence[str] = (),
        parent: str | None = None,
    ) -> None:
        given = {name: value for name, value in locals().items() if name != "self"}
        check_kinds(given)
        options = {name: plain(value) for name, value in given.items() if value is not None and value is not False}
        options = {name: value for name, value in options.items() if value not in ((), {})}
        absolute(options)
        object.__setattr__(self, "_options", options)
        object.__setattr__(self, "_key", marshal.dumps(dict(sorted(options.items())), 2))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Sandbox cannot be changed: {name} [see replace()]")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Sandbox cannot be changed: {name} [see replace()]")

    def __repr__(self) -> str:
        return f"Sandbox({', '.join(f'{name}={value!r}' for name, value in self._options.items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sandbox) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], Sandbox], tuple[dict[str, Any]]]:
        return described, (self._options,)

    def replace(self, **options: Any) -> Sandbox:
        """The same Sandbox with other OPTIONS; None takes one away."""
        return Sandbox(**{**self._options, **options})

    def run(
        self,
        argv: Program,
        *,
        input: Text | None = None,
        stdin: File = None,
        stdout: File = CAPTURE,
        stderr: File = CAPTURE,
        env: Mapping[str, str] | None = None,
        time: float | None = None,
    ) -> Result:
        """Run ARGV to its end and return the Result.

        INPUT, bytes or text, is what it reads; or STDIN is a file or descriptor
        of the caller; else it reads nothing. STDOUT and STDERR are captured,
        unless they are files, descriptors, DEVNULL, or for stderr STDOUT. ENV is
        added to the sandbox's, TIME is instead of its limit. A program that
        fails is no error: see Result.check(). A KeyboardInterrupt ends it.
        Errors: Failure, WorkerLost.
        """
        message, files = order(self, argv, (stdin, stdout, stderr), input, env, time)
        return result_of(links().ask(message, files))

    async def run_async(
        self,
        argv: Program,
        *,
        input: Text | None = None,
        stdin: File = None,
        stdout: File = CAPTURE,
        stderr: File = CAPTURE,
        env: Mapping[str, str] | None = None,
        time: float | None = None,
    ) -> Result:
        """As run(), for asyncio. Who cancels it ends the program."""
        message, files = order(self, argv, (stdin, stdout, stderr), input, env, time)
        loop, of = asyncio.get_running_loop(), links()
        link = of.begin(message, files)
        ready: asyncio.Future[None] = loop.create_future()
        try:
            loop.add_reader(link.fileno(), lambda: None if ready.done() else ready.set_result(None))
            try:
                await ready
            finally:
                loop.remove_reader(link.fileno())
        except BaseException:
            link.close()
            raise
        return result_of(of.end(link))

    def popen(
        self,
        argv: Program,
        *,
        stdin: File = None,
        stdout: File = None,
        stderr: File = None,
        env: Mapping[str, str] | None = None,
        time: float | None = None,
    ) -> Process:
        """Start ARGV and return the Process.

        STDIN, STDOUT and STDERR are files or descriptors of the caller, PIPE for
        one end of a pipe at the Process, or None for nothing; STDERR may be
        STDOUT. ENV and TIME as in run(). Errors: Failure, WorkerLost.
        """
        return self._start(argv, (stdin, stdout, stderr), None, env, time)

    def stream(
        self,
        argv: Program,
        *,
        input: Text | None = None,
        env: Mapping[str, str] | None = None,
        time: float | None = None,
    ) -> Stream:
        """Start ARGV and return an iterator of its output, a Chunk at a time, as it comes: see Stream.

        INPUT, ENV and TIME as in run(). Errors: Failure, WorkerLost.
        """
        return Stream(self._start(argv, (None, PIPE, PIPE), input, env, time))

    def _start(
        self,
        argv: Program,
        stdio: tuple[File, File, File],
        input: Text | None,
        env: Mapping[str, str] | None,
        time: float | None,
    ) -> Process:
        """The Process of ARGV; each PIPE in STDIO becomes one."""
        ours: dict[str, IO[bytes]] = {}
        theirs: list[int] = []
        given: list[File] = []
        for name, file in zip(("stdin", "stdout", "stderr"), stdio, strict=True):
            if file == PIPE and isinstance(file, int):
                reader, writer = os.pipe()
                mine, its = (writer, reader) if name == "stdin" else (reader, writer)
                ours[name] = os.fdopen(mine, "wb" if name == "stdin" else "rb", 0)
                theirs.append(its)
                given.append(its)
            else:
                given.append(file)
        try:
            message, files = order(self, argv, (given[0], given[1], given[2]), input, env, time)
            return Process(message, files, ours)
        except BaseException:
            for mine_open in ours.values():
                mine_open.close()
            raise
        finally:
            close_all(theirs)


def described(options: dict[str, Any]) -> Sandbox:
    """The Sandbox of OPTIONS: how one is unpickled."""
    return Sandbox(**options)


def check_kinds(given: Mapping[str, Any]) -> None:
    """TypeError if an argument of Sandbox among GIVEN is not of its kind, ValueError if text has a NUL."""
    for name, value in given.items():
        if name in SWITCHES:
            if value not in (True, False, None) or (value is False and name in ("proc", "dev")):
                raise TypeError(f"{name}: {'True or None' if name in ('proc', 'dev') else 'a bool'}, not {value!r}")
        elif value is None:
            pass
        elif name in LISTS:
            check_list(name, value)
        elif name in TABLES or name == "landlock":
            check_table(name, value)
        else:
            check_kind(name, value, *VALUES.get(name, (TEXT, "text")))


def check_table(name: str, table: Any) -> None:
    """TypeError or ValueError if TABLE, the argument NAME, is no mapping of what that has."""
    if not isinstance(table, Mapping):
        raise TypeError(f"{name}: a mapping, not {table!r}")
    for key, value in table.items():
        check_kind(name, key, TEXT, "text")
        if name == "landlock":
            check_list(f"{name}: {key}", value, (int, *TEXT), "numbers or text")
        else:
            check_kind(f"{name}: {key}", value, *TABLES[name], may_have_nul=name == "files")
        if name == "env" and ("=" in os.fsdecode(key) or not key):
            raise ValueError(f"env: an empty name, or one with '=': {key!r}")


def check_list(name: str, items: Any, kinds: tuple[type, ...] = TEXT, called: str = "text") -> None:
    """TypeError if ITEMS, of the argument NAME, is no sequence of what is of KINDS, which are CALLED so."""
    if isinstance(items, str | bytes) or not isinstance(items, Sequence):
        raise TypeError(f"{name}: a sequence, not {items!r}")
    for item in items:
        check_kind(name, item, kinds, called)


def check_kind(name: str, value: Any, kinds: Any, called: str, may_have_nul: bool = False) -> None:
    """TypeError if VALUE, of the argument NAME, is not of KINDS, which are CALLED so; ValueError if it has a NUL."""
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(f"{name}: {called}, not {value!r}")
    if isinstance(value, TEXT) and not may_have_nul and "\0" in os.fsdecode(value):
        raise ValueError(f"{name}: a NUL: {value!r}")


def absolute(options: dict[str, Any]) -> None:
    """Make the paths of the host in OPTIONS absolute: who runs it may be elsewhere."""
    for name in ("root", "work_dir"):
        if name in options:
            options[name] = beyond(options[name])
    if "overlay" in options and options["overlay"].partition(":")[0] != "tmpfs":
        options["overlay"] = beyond(options["overlay"])
    if "mounts" in options:
        options["mounts"] = tuple(
            spec if spec.startswith("/") or not spec else f"{os.getcwd()}/".replace(":", r"\:") + spec
            for spec in options["mounts"]
        )
    if "/" in options.get("policy", "") or options.get("policy", "").endswith(".toml"):
        options["policy"] = os.path.abspath(options["policy"])
    if "/" in options.get("network", ""):
        options["network"] = beyond(options["network"])
    if options.get("seccomp", "none") != "none":
        from hako import rules

        if not rules.is_profile(options["seccomp"]):  # what has no slash may be a file
            options["seccomp"] = beyond(options["seccomp"])


def beyond(path: str) -> str:
    """PATH from / on; an empty one, which is an error elsewhere, as it is."""
    return path if path.startswith("/") or not path else os.path.join(os.getcwd(), path)


def order(
    sandbox: Sandbox,
    argv: Program,
    stdio: tuple[File, File, File],
    input: Text | None,
    env: Mapping[str, str] | None,
    time: float | None,
) -> tuple[dict[str, Any], list[int]]:
    """The message to a worker that asks for ARGV in SANDBOX, and descriptors that go with it, to be closed then."""
    if isinstance(argv, str | bytes) or not argv:
        raise TypeError("argv: a sequence of strings, one at least")
    words = [os.fsencode(word) for word in argv]
    if not words[0] or any(b"\0" in word for word in words):
        raise ValueError("argv: an empty name, or a NUL")
    message: dict[str, Any] = {"sandbox": sandbox._key, "argv": words}
    if env:
        check_table("env", env)
        message["env"] = {os.fsdecode(name): os.fsdecode(value) for name, value in env.items()}
    if time is not None:
        if not 0 < time < LONGEST:
            raise ValueError(f"time: not seconds, more than 0: {time!r}")
        message["time"] = float(time)
    if input is not None and stdio[0] is not None:
        raise TypeError("input and stdin: one of them")
    files: list[int] = []
    try:
        kinds = [kind_of(place, file, files) for place, file in enumerate(stdio)]
    except BaseException:
        close_all(files)
        raise
    if input is not None:
        kinds[0] = "input"
        message["input"] = input.encode() if isinstance(input, str) else bytes(memoryview(input))
    message["stdio"] = kinds
    return message, files


def kind_of(place: int, file: File, files: list[int]) -> Any:
    """What the worker is told of FILE at PLACE, 0 to 2; its descriptor is added to FILES."""
    if file is None or file == DEVNULL:
        return None
    if file == CAPTURE and place:
        return "capture"
    if file == STDOUT and place == 2:
        return "stdout"
    fd = file if isinstance(file, int) else file.fileno()
    if fd < 0:
        raise ValueError(f"not a descriptor: {file!r}")
    files.append(os.dup(fd))
    return len(files) - 1


class Process:
    """A program that runs. To leave its `with` block, or to forget it, ends it.

    stdin, stdout, stderr   the caller's end of a pipe, unbuffered, or None
    """

    def __init__(self, message: dict[str, Any], files: list[int], ours: dict[str, IO[bytes]]) -> None:
        self.stdin, self.stdout, self.stderr = (ours.get(name) for name in ("stdin", "stdout", "stderr"))
        self._result: Result | None = None
        self._lock = threading.Lock()
        self._links = links()
        self._link: Link | None = self._links.begin(message, files)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the program, if it runs, and close the pipes."""
        if self._link is not None:
            self._link.close()
            self._link = None
        for file in (self.stdin, self.stdout, self.stderr):
            if file is not None:
                file.close()

    def poll(self) -> Result | None:
        """The Result, if the program has ended."""
        try:
            return self.wait(0)
        except TimeoutError:
            return None

    def wait(self, timeout: float | None = None) -> Result:
        """Wait until the program has ended; return the Result. TimeoutError: TIMEOUT seconds were not enough."""
        end = None if timeout is None else monotonic() + timeout
        if not self._lock.acquire(timeout=-1 if timeout is None else timeout):
            raise TimeoutError(f"it has not ended after {timeout} seconds")
        try:
            if self._result is None:
                if self._link is None:
                    raise RuntimeError("the process is closed")
                poll = select.poll()
                poll.register(self._link.fileno(), select.POLLIN)
                if not poll.poll(None if end is None else max(0, end - monotonic()) * 1000):
                    raise TimeoutError(f"it has not ended after {timeout} seconds")
                link, self._link = self._link, None
                self._result = result_of(self._links.end(link))
            return self._result
        finally:
            self._lock.release()

    def kill(self) -> None:
        """End the program, and all that it started, by SIGKILL; wait() tells when that has happened."""
        link = self._link
        if link is not None:
            link.send({"kill": True}, [])


class Stream:
    """An iterator of the Chunks of a program's output, as they come, in the order of each of both streams.

    It ends when the program has ended and all is read; then `result` is there.
    To leave its `with` block ends the program.
    """

    result: Result

    def __init__(self, process: Process) -> None:
        self._process = process
        self._chunks = self._read()

    def __iter__(self) -> Iterator[Chunk]:
        return self._chunks

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()

    def _read(self) -> Iterator[Chunk]:
        names: dict[int, Literal["stdout", "stderr"]] = {}
        poll = select.poll()
        pipes: tuple[tuple[Literal["stdout", "stderr"], IO[bytes] | None], ...] = (
            ("stdout", self._process.stdout),
            ("stderr", self._process.stderr),
        )
        for name, file in pipes:
            assert file is not None
            names[file.fileno()] = name
            poll.register(file.fileno(), select.POLLIN)
        while names:
            for fd, _ in poll.poll():
                data = os.read(fd, PIECE)
                if data:
                    yield Chunk(names[fd], data)
                else:
                    poll.unregister(fd)
                    del names[fd]
        self.result = self._process.wait()
        self._process.close()


_links: Links | None = None
_links_lock = threading.Lock()


def links() -> Links:
    """The links of this process to the worker that serves run(), popen() and stream()."""
    global _links
    found = _links
    if found is None or found.pid != os.getpid():  # a child of the program's own has none of its parent's
        with _links_lock:
            if _links is None or _links.pid != os.getpid():
                _links = Links(AT_ONCE)
            found = _links
    return found


def after_fork() -> None:
    """In a child that the program has forked: another thread of its may have had the lock."""
    global _links_lock
    _links_lock = threading.Lock()


os.register_at_fork(after_in_child=after_fork)


def run(argv: Program, *, sandbox: Sandbox | None = None, **options: Any) -> Result:
    """Run ARGV to its end in SANDBOX, or in one of the OPTIONS of Sandbox; return the Result.

    OPTIONS of Sandbox.run() are those too: input, stdin, stdout, stderr. Errors: Failure, WorkerLost.
    """
    of_run: dict[str, Any] = {
        name: options.pop(name) for name in ("input", "stdin", "stdout", "stderr") if name in options
    }
    if sandbox is None:
        sandbox = Sandbox(**options)
    else:
        of_run.update({name: options.pop(name) for name in ("env", "time") if name in options})
        if options:
            raise TypeError(f"with sandbox, not: {', '.join(options)} [see Sandbox.replace()]")
    return sandbox.run(argv, **of_run)
