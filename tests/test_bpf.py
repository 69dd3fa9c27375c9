"""The compiler of filters: what a program decides is what the rules say, for every policy."""

import ctypes
import os

import pytest
from bpf_interpreter import run
from hypothesis import given, settings
from hypothesis import strategies as st

from hako import bpf
from hako.failure import Failure

X86_64, X86 = bpf.AUDIT_ARCH["x86_64"], bpf.AUDIT_ARCH["x86"]
ACTIONS = st.sampled_from(
    [bpf.ALLOW, bpf.KILL_PROCESS, bpf.LOG, bpf.ERRNO + 1, bpf.ERRNO + 38, bpf.TRAP, bpf.TRACE + 7]
)
# Numbers near each other and near the edges, so that they meet.
WORDS = st.sampled_from([0, 1, 2, 3, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1])
NUMBERS = st.one_of(st.integers(0, 12), st.sampled_from([0x3FFFFFFF, 0x40000000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]))
LEAVES = st.one_of(
    st.tuples(st.just("arg"), st.integers(0, 5)),
    st.tuples(st.just("number"), WORDS),
)
VALUES = st.recursive(LEAVES, lambda parts: st.tuples(st.sampled_from("&|"), parts, parts).map(tuple), max_leaves=5)
COMPARISONS = st.tuples(
    st.just("compare"), st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), VALUES, VALUES, st.booleans()
)
CONDITIONS = st.recursive(
    COMPARISONS,
    lambda parts: st.one_of(
        st.tuples(st.just("not"), parts), st.tuples(st.sampled_from(["and", "or"]), parts, parts, parts)
    ),
    max_leaves=6,
)
RULES = st.builds(bpf.Rule, ACTIONS, st.one_of(st.none(), CONDITIONS))
TABLES = st.dictionaries(NUMBERS, st.lists(RULES, max_size=3), max_size=8)
POLICIES = st.builds(
    bpf.Policy,
    st.fixed_dictionaries({"x86_64": TABLES}, optional={"x86": TABLES}),
    st.builds(bpf.Rule, ACTIONS),
    st.sampled_from([bpf.KILL_THREAD, bpf.ERRNO + 1]),
)


def decided(policy, arch, number, args):
    """The action that the rules themselves give."""
    rule = bpf.decide(policy, arch, number, args)
    return policy.foreign if rule is None else rule.action


@settings(max_examples=400, deadline=None)
@given(POLICIES, st.lists(st.tuples(NUMBERS, st.lists(WORDS, min_size=6, max_size=6)), min_size=1, max_size=8))
def test_a_program_decides_as_its_rules(policy, calls):
    program = bpf.compile_policy(policy)
    for number, args in calls:
        for near in {number, max(number - 1, 0), min(number + 1, 2**32 - 1)}:
            for arch in (X86_64, X86, 0xC00000B7):
                assert run(program, arch, near, args) == decided(policy, arch, near, args)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(RULES, max_size=3), min_size=8, max_size=8), st.randoms(use_true_random=False))
def test_large_programs_too(some, chance):
    """Jumps reach further than 255 instructions."""
    table = {number: chance.choice(some) for number in chance.sample(range(2000), 250)}
    policy = bpf.Policy({"x86_64": table}, bpf.Rule(bpf.ERRNO + 1))
    try:
        program = bpf.compile_policy(policy)
    except Failure as err:
        assert "more than the 4096 instructions" in str(err)
        return
    for number in range(0, 2001, 7):
        for args in ([1, 2, 3, 2**32, 0, 2**64 - 1], [0] * 6):
            assert run(program, X86_64, number, args) == decided(policy, X86_64, number, args)


def test_the_search_is_short():
    """Not a comparison a call: some 300 rules take at most a dozen steps."""
    table = {number: [bpf.Rule(bpf.ALLOW)] for number in range(0, 600, 2)}
    program = bpf.compile_policy(bpf.Policy({"x86_64": table}, bpf.Rule(bpf.ERRNO + 1)))
    steps = []
    for number in (0, 1, 299, 300, 599, 700):
        run(program, X86_64, number, [0] * 6, steps)
    assert max(steps) <= 18


def test_neighbours_share_a_range():
    table = {number: [bpf.Rule(bpf.ALLOW)] for number in range(300)}
    program = bpf.compile_policy(bpf.Policy({"x86_64": table}, bpf.Rule(bpf.ERRNO + 1)))
    assert len(program) // 8 <= 12


def test_dead_rules_are_dropped():
    alone = bpf.Policy({"x86_64": {1: [bpf.Rule(bpf.ALLOW)]}}, bpf.Rule(bpf.KILL_PROCESS))
    behind = [
        bpf.Rule(bpf.ALLOW),
        bpf.Rule(bpf.TRAP),
        bpf.Rule(bpf.LOG, ("compare", "==", ("arg", 0), ("number", 1), False)),
    ]
    never = bpf.Rule(bpf.TRAP, ("compare", "==", ("number", 1), ("number", 2), False))
    as_default = bpf.Rule(bpf.KILL_PROCESS, ("compare", "==", ("arg", 0), ("number", 1), False))
    for rules in (behind, [never, *behind]):
        assert bpf.compile_policy(bpf.Policy({"x86_64": {1: rules}}, alone.default)) == bpf.compile_policy(alone)
    nothing = bpf.Policy({"x86_64": {}}, alone.default)
    assert bpf.compile_policy(bpf.Policy({"x86_64": {1: [as_default]}}, alone.default)) == bpf.compile_policy(nothing)


def test_more_than_the_kernel_takes_is_said():
    table = {number: [bpf.Rule(bpf.ALLOW)] for number in range(0, 10000, 2)}
    with pytest.raises(Failure, match="the rules need more than the 4096 instructions"):
        bpf.compile_policy(bpf.Policy({"x86_64": table}, bpf.Rule(bpf.ERRNO + 1)))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(ACTIONS.filter(lambda action: action >> 16 == 5), CONDITIONS), min_size=1, max_size=3), st.data()
)
def test_the_kernel_decides_the_same(pairs, data):
    """In the real kernel: rules for one harmless call, getpriority, in a child that ends without the interpreter."""
    if os.uname().machine != "x86_64":
        return
    getpriority = 140
    args = data.draw(st.lists(WORDS, min_size=6, max_size=6))
    rules = [bpf.Rule(action, condition) for action, condition in pairs]
    policy = bpf.Policy({"x86_64": {getpriority: [*rules, bpf.Rule(bpf.ERRNO + 77)]}}, bpf.Rule(bpf.ALLOW))
    rule = bpf.decide(policy, X86_64, getpriority, args)
    program = bpf.compile_policy(policy)
    assert in_kernel(program, getpriority, args) == rule.action & 0xFFFF


def in_kernel(program, number, args):
    """The errno of the call NUMBER with ARGS in a child under PROGRAM."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(program, len(program))
    prog = (ctypes.c_uint64 * 2)(len(program) // 8, ctypes.addressof(code))
    words = [ctypes.c_ulong(word) for word in args]
    pid = os.fork()
    if pid == 0:
        libc.prctl(38, 1, 0, 0, 0)
        libc.prctl(22, 2, prog)
        libc.syscall(number, *words)
        os._exit(ctypes.get_errno())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
