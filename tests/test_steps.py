"""Steps, which a process carries out without Python: the code is that of tools/steps, and does what it says."""

import ast
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from hako import kernel, steps

TOP = pathlib.Path(__file__).parent.parent
TOOLS = {"x86_64": "x86_64-linux-gnu-", "aarch64": "aarch64-linux-gnu-"}
EBADF = 9


def codes(machine):
    """CODE and (START, GO) of MACHINE, as the source has them."""
    tree, found = ast.parse((TOP / "hako/steps.py").read_text()), {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("CODE", "(START, GO)"):
            table = next(ast.literal_eval(inner) for inner in ast.walk(node) if isinstance(inner, ast.Dict))
            found[ast.unparse(node.targets[0])] = table[machine]
    return found["CODE"], found["(START, GO)"]


@pytest.mark.parametrize("machine", sorted(TOOLS))
def test_the_code_is_what_the_source_assembles_to(machine, tmp_path):
    prefix = TOOLS[machine] if machine != kernel.MACHINE else ""
    source, made, raw = TOP / f"tools/steps/{machine}.S", tmp_path / "made.o", tmp_path / "made.bin"
    subprocess.run([f"{prefix}as", source, "-o", made], check=True)
    subprocess.run([f"{prefix}objcopy", "-O", "binary", "-j", ".text", made, raw], check=True)
    code, (start, go) = codes(machine)
    assert raw.read_bytes().hex() == code
    symbols = subprocess.run([f"{prefix}nm", made], capture_output=True, text=True, check=True).stdout.splitlines()
    assert {f"{start:016x} t start", f"{go:016x} t go", f"{len(code) // 2:016x} t table"} <= set(symbols)


class Table:
    """A region with steps, and a child that carries them out."""

    def __init__(self):
        self.region = steps.Region(1 << 20)
        self.arena, self.names = steps.Arena(self.region, 0, 1 << 20), {}
        self.record, self.kept = self.arena.words(0, 0), self.arena.words(0)
        ends = self.steps(1, 0)
        self.fails = ends.call("exit_group", 99)

    def steps(self, room, fails=None):
        """New steps."""
        return steps.Steps(self.arena, room, self.fails if fails is None else fails, self.record, self.names)

    def word(self, address):
        """The word at ADDRESS."""
        at = address - self.region.address
        return int.from_bytes(self.region.bytes[at : at + 8], "little")

    def run(self, first):
        """Carry out the steps from FIRST on, in a child that shares this memory; return its wait status."""
        arguments = self.arena.words(0x100, 0, 0, 0, kernel.SIGCHLD, *(0,) * 6)
        pid = steps.Machine().clone(arguments, 88, first)
        assert pid > 0
        return os.waitpid(pid, 0)[1]


@pytest.fixture
def table():
    made = Table()
    yield made
    made.region.close()


def test_steps_are_carried_out_one_after_the_other(table):
    ours, theirs = os.pipe()
    made = table.steps(3)
    made.call("write", theirs, table.arena.put(b"one "), 4)
    made.call("write", theirs, table.arena.put(b"two"), 3)
    made.call("exit_group", 7)
    assert os.waitstatus_to_exitcode(table.run(made.first)) == 7
    assert os.read(ours, 100) == b"one two"
    os.close(ours)
    os.close(theirs)


def test_a_result_is_kept_where_it_is_wanted(table):
    made = table.steps(2)
    made.call("openat", kernel.AT_FDCWD, b"/dev/null", os.O_RDONLY, 0, into=table.kept)
    made.call("exit_group", 0)
    free = os.dup(0)
    os.close(free)
    assert table.run(made.first) == 0
    assert table.word(table.kept) == free


def test_a_failure_is_kept_and_ends_it(table):
    made = table.steps(3)
    made.call("setsid")
    failing = made.call("close", 4000, what="close the door")
    made.call("exit_group", 0)
    assert os.waitstatus_to_exitcode(table.run(made.first)) == 99
    assert table.word(table.record) == failing
    failure = steps.failure(table.names, failing, 2**64 - table.word(table.record + 8))
    assert (str(failure), failure.errno) == (f"close the door: {os.strerror(EBADF)}", EBADF)


def test_a_failure_that_does_not_matter_goes_on_at_the_next_step(table):
    made = table.steps(2)
    made.call("close", 4000, error=steps.ON)
    made.call("exit_group", 5)
    assert os.waitstatus_to_exitcode(table.run(made.first)) == 5


def test_the_result_zero_may_lead_elsewhere(table):
    other = table.steps(1)
    other.call("exit_group", 3)
    made = table.steps(3)
    made.call("close", 4000, error=steps.ON, zero=other.first)  # a failure is no zero
    made.call("setpgid", 0, 0, zero=other.first)
    made.call("exit_group", 0)
    assert os.waitstatus_to_exitcode(table.run(made.first)) == 3


def test_a_step_is_repeated_until_its_result_is_what_is_wanted(table):
    ours, theirs = os.pipe()
    os.write(theirs, b"abcdef")
    made = table.steps(2)
    made.call("read", ours, table.arena.space(8), 1, until=1)
    made.call("exit_group", 0)
    assert table.run(made.first) == 0
    assert os.read(ours, 100) == b"bcdef"
    again = table.steps(2)
    again.call("read", ours, table.arena.space(8), 2, until=1)
    again.call("exit_group", 0)
    os.write(theirs, b"12345")  # 2, 2, 1
    assert table.run(again.first) == 0
    os.set_blocking(ours, False)
    with pytest.raises(BlockingIOError):
        os.read(ours, 1)
    os.close(ours)
    os.close(theirs)


def test_a_child_of_a_child_goes_its_own_way(table):
    """vfork: the parent goes on when the child is gone, and waits for the very one that it made."""
    inner = table.steps(1)
    inner.call("exit_group", 42)
    status = table.arena.words(0)
    made = table.steps(4)
    arguments = table.arena.words(0x4100, 0, 0, 0, kernel.SIGCHLD, *(0,) * 6)
    fork = made.call("clone3", arguments, 88, zero=inner.first)
    wait = made.call("wait4", -1, status, 0, None, until=1)
    made.redirect(fork, into=steps.until(wait))
    made.call("exit_group", 1)
    assert os.waitstatus_to_exitcode(table.run(made.first)) == 1
    assert os.waitstatus_to_exitcode(table.word(status)) == 42


def test_a_process_may_go_on_by_steps_itself(table):
    made = table.steps(1)
    made.call("exit_group", 17)
    pid = os.fork()
    if not pid:
        steps.Machine().go(made.first, 0, 0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 17


def test_what_does_not_fit_is_refused(table):
    made = table.steps(1)
    made.call("setsid")
    with pytest.raises(kernel.Failure, match="more steps than there is room for"):
        made.call("setsid")
    with pytest.raises(kernel.Failure, match="Argument list too long"):
        table.arena.texts([b"x" * (1 << 20)])


def test_no_code_can_be_written():
    """Where writable memory is never executable (PR_SET_MDWE), it works all the same."""
    code = """
import os, sys
sys.path[:0] = %r
from hako import foreign, kernel, steps
PR_SET_MDWE, DENIED = 65, 13
if foreign.call(kernel.NUMBER["prctl"], PR_SET_MDWE, 1, 0, 0, 0, 0):
    sys.exit(0 if foreign.get_errno() == 22 else 1)  # before Linux 6.3
address = steps.Region(4096).address
assert foreign.call(MPROTECT, address, 4096, 5, 0, 0, 0) == -1
assert foreign.get_errno() == DENIED
steps.Machine()
""" % [str(TOP), *(place for place in sys.path if "site-packages" in place)]
    code = code.replace("MPROTECT", str({"x86_64": 10, "aarch64": 226}[kernel.MACHINE]))
    done = subprocess.run([sys.executable, "-Ic", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_signals_end_a_child_as_any_other(table):
    made = table.steps(1)
    made.call("wait4", -1, None, 0, None, error=made.first)  # nothing to wait for: again and again
    arguments = table.arena.words(0x100, 0, 0, 0, kernel.SIGCHLD, *(0,) * 6)
    pid = steps.Machine().clone(arguments, 88, made.first)
    os.kill(pid, signal.SIGTERM)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGTERM


def test_a_program_is_made_of_steps_alone(table):
    """Who becomes it has another memory, and shares the region if the steps map it."""
    region, status = table.region, table.arena.words(0)
    after = table.steps(2)
    after.call("getpid", into=status)
    after.call("exit_group", 23)

    def put(made):
        made.call("mmap", *kernel.mmap_arguments(region.address, region.size, region.fd))
        made.call("setpgid", 0, 0, zero=after.first)

    fd = steps.program(put, table.fails, table.record, {})
    os.set_inheritable(region.fd, True)
    words = table.arena.texts([b"it"]), table.arena.texts([])
    made = table.steps(1)
    made.call("execveat", fd, b"", *words, kernel.AT_EMPTY_PATH)
    arguments = table.arena.words(0x100, 0, 0, 0, kernel.SIGCHLD, *(0,) * 6)
    pid = steps.Machine().clone(arguments, 88, made.first)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 23
    assert table.word(status) == pid
    os.close(fd)
