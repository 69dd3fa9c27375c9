"""The Kafel language: every construct, and every mistake with its place."""

import pytest
from bpf_interpreter import run
from hypothesis import given, settings
from hypothesis import strategies as st

from hako import bpf, kafel
from hako.failure import Failure

ALLOW, KILL = bpf.ALLOW, bpf.KILL_THREAD
READ, WRITE, OPEN, EXIT, SOCKET = 0, 1, 2, 60, 41
BIG = 2**32


def policy(text, files=None, groups=None, arch="x86_64"):
    """TEXT as a Policy; FILES are there to be included, GROUPS for USE."""

    def found(among, lenient):
        return lambda name: kafel.Source(name, among[name], lenient) if name in (among or {}) else None

    return kafel.parse(kafel.Source("t", text), arch, found(files, False), found(groups, True))


def action(text, number, *args, **more):
    """What the policy TEXT, compiled, decides for the call NUMBER with ARGS."""
    made = policy(text, **more)
    padded = [*args, *[0] * (6 - len(args))]
    by_program = run(bpf.compile_policy(made), bpf.AUDIT_ARCH["x86_64"], number, padded)
    rule = bpf.decide(made, bpf.AUDIT_ARCH["x86_64"], number, padded)
    assert by_program == (made.foreign if rule is None else rule.action)
    return by_program


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("ALLOW", 0x7FFF0000),
        ("LOG", 0x7FFC0000),
        ("TRACE(65535)", 0x7FF0FFFF),
        ("USER_NOTIF", 0x7FC00000),
        ("ERRNO(1)", 0x00050001),
        ("TRAP(0x10)", 0x00030010),
        ("KILL", 0),
        ("KILL_THREAD", 0),
        ("DENY", 0),
        ("KILL_PROCESS", 0x80000000),
    ],
)
def test_actions(word, value):
    assert action(f"{word} {{ read }} DEFAULT ALLOW", READ) == value
    assert action(f"ALLOW {{ read }} DEFAULT {word}", WRITE) == value


def test_without_default_it_is_kill():
    assert action("ALLOW { read }", WRITE) == KILL


def test_other_architectures_and_x32_are_refused():
    program = bpf.compile_policy(policy("DEFAULT ALLOW"))
    assert run(program, bpf.AUDIT_ARCH["x86"], READ, [0] * 6) == KILL
    assert run(program, bpf.AUDIT_ARCH["x86_64"], 0x40000000 | READ, [0] * 6) == KILL
    assert run(program, bpf.AUDIT_ARCH["x86_64"], READ, [0] * 6) == ALLOW
    assert action("ALLOW { SYSCALL[0x40000001] } DEFAULT ERRNO(1)", 0x40000001) == ALLOW


def test_policies_use_and_order():
    text = (
        "POLICY a { ALLOW { read, write { fd == 1 } } } POLICY b { USE a, ERRNO(2) { write } } USE b DEFAULT ERRNO(3)"
    )
    assert [action(text, WRITE, 1), action(text, WRITE, 2), action(text, READ)] == [ALLOW, bpf.ERRNO + 2, ALLOW]
    assert action("POLICY unused { ALLOW { read } } DEFAULT ERRNO(3)", READ) == bpf.ERRNO + 3
    assert action("ALLOW { read } ERRNO(9) { read }", READ) == ALLOW
    assert action("ALLOW { read }, ERRNO(9) { write } KILL { }", WRITE) == bpf.ERRNO + 9


@pytest.mark.parametrize(
    ("condition", "args", "true"),
    [
        ("fd == 1", [1], True),
        ("fd == 1", [BIG + 1], True),  # a 32-bit argument: the high half does not count
        ("count == 1", [0, 0, BIG + 1], False),  # a 64-bit one
        ("count == 1", [0, 0, 1], True),
        ("fd == 0x100000001", [1], False),
        ("fd == -1", [0xFFFFFFFFFFFFFFFF], True),
        ("fd != 1", [2], True),
        ("count < 0x100000000", [0, 0, 0xFFFFFFFF], True),
        ("count < 0x100000000", [0, 0, BIG], False),
        ("count <= 5", [0, 0, 5], True),
        ("count > 5", [0, 0, BIG], True),
        ("count >= 5", [0, 0, 4], False),
        ("count & 2 == 2", [0, 0, 3], True),
        ("count | 1 == 3", [0, 0, 2], True),
        ("count & 6 | 1 == 5", [0, 0, 4], True),
        ("(count & 6) == 4", [0, 0, 5], True),
        ("!(fd == 1)", [1], False),
        ("! fd == 1", [2], True),
        ("fd == 1 && count == 2", [1, 0, 2], True),
        ("fd == 1 && count == 2 || fd == 9", [9], True),
        ("fd == 9 || fd == 1 && count == 2", [1, 0, 3], False),
        ("fd == 1, fd == 2", [2], True),
        ("fd == 1 || fd == 2, count == 7 && fd == 3", [3, 0, 7], True),
        ("fd == count", [5, 0, 5], True),
        ("buf == count", [0, BIG + 1, 1], False),
        ("(fd) == (1)", [1], True),
        ("(fd == 1) && ((count == 2))", [1, 0, 2], True),
        ("1 == 1", [], True),
        ("0x100000001 == 1", [], False),
        ("1 < fd", [2], True),
        ("0b101 == fd", [5], True),
        ("fd == 010", [8], True),
    ],
)
def test_conditions(condition, args, true):
    assert action(f"ALLOW {{ write {{ {condition} }} }}", WRITE, *args) == (ALLOW if true else KILL)


def test_arguments_may_be_declared():
    assert action("ALLOW { write(a, b) { a == 1 } }", WRITE, 1) == ALLOW
    assert action("ALLOW { write(a) { a == 1 } }", WRITE, BIG + 1) == KILL  # a declared name counts 64 bits
    assert action("ALLOW { SYSCALL[1](a) { a == 1 } }", WRITE, 1) == ALLOW


def test_numbers_and_constants():
    text = "#define STDOUT 1\n# define WRITE 1\nALLOW { WRITE(a) { a == STDOUT }, read {} }"
    assert [action(text, WRITE, 1), action(text, WRITE, 2), action(text, READ)] == [ALLOW, KILL, ALLOW]
    assert action("ALLOW { SYSCALL[-1] }", 0xFFFFFFFF) == ALLOW
    assert action("ALLOW { SYSCALL[0x100000001] }", WRITE) == ALLOW
    assert action("#define A 1 #define A 1 ALLOW { SYSCALL[1] }", WRITE) == ALLOW


@pytest.mark.parametrize(
    ("kernels", "usual", "number"),
    [
        ("newstat", "stat", 4),
        ("newfstat", "fstat", 5),
        ("newlstat", "lstat", 6),
        ("newuname", "uname", 63),
        ("sendfile64", "sendfile", 40),
        ("umount", "umount2", 166),
        ("sysctl", "_sysctl", 156),
        ("mseal", "mseal", 462),
        ("clone3", "clone3", 435),
    ],
)
def test_the_kernels_names_and_the_usual_ones(kernels, usual, number):
    assert action(f"ALLOW {{ {kernels} }}", number) == action(f"ALLOW {{ {usual} }}", number) == ALLOW


def test_architecture_guards():
    assert action("ALLOW { read ON x86_64, write ON { arm, AMD64 } }", WRITE) == ALLOW
    assert action("ALLOW { read ON arm64, nosuchcall ON mips }", READ) == KILL
    assert action("ALLOW { nosuchcall(a) ON mips { zzz == 1 }, read }", READ) == ALLOW


def test_includes():
    files = {"a": "POLICY a { ALLOW { read } }", "b": "#define N 7\n", "c": '#include "a" "b"\n'}
    assert action('#include "a"\nUSE a', READ, files=files) == ALLOW
    assert action('#include "b";ERRNO(7) { read }', READ, files=files) == bpf.ERRNO + 7
    assert action('#include "c";\nUSE a ALLOW { write { fd == N } }', WRITE, 7, files=files) == ALLOW


def test_comments_and_blanks():
    assert action("// x\n/* y\n * z **/ALLOW{read}/**/DEFAULT KILL// end", READ) == ALLOW


def test_groups():
    groups = {"file-io": "POLICY file-io { ALLOW { read, madeup_elsewhere_is_an_error } }"}
    with pytest.raises(Failure, match="undefined syscall"):
        policy("USE file-io", groups=groups)
    groups = {"file-io": "// reading\nPOLICY file-io { ALLOW { read, cacheflush } }"}
    assert action("USE file-io", READ, groups=groups) == ALLOW
    with pytest.raises(Failure, match="undefined syscall 'cacheflush'"):
        policy("ALLOW { cacheflush }")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t:1:1: syntax error, unexpected end of file"),
        (" \n// x", "t:2:5: syntax error, unexpected end of file"),
        ("ALLOW { nosuch }", "t:1:9: undefined syscall 'nosuch'"),
        ("ALLOW { READ }", "t:1:9: undefined syscall 'READ'"),
        ("NOSUCH { read }", "t:1:1: syntax error, unexpected name 'NOSUCH'"),
        ("ERRNO(65536) { read }", "t:1:7: Errno value 65536 out of range (0-65535)"),
        ("TRAP(70000) { read }", "t:1:6: Trap value 70000 out of range (0-65535)"),
        ("ERRNO(X) { read }", "t:1:7: syntax error, unexpected name 'X', expecting a number"),
        ("ERRNO { read }", "t:1:7: syntax error, unexpected '{', expecting '('"),
        ("ALLOW { read", "t:1:13: syntax error, unexpected end of file, expecting ',' or '}'"),
        ("ALLOW { read, }", "t:1:15: syntax error, unexpected '}'"),
        ("ALLOW { write { nope == 1 } }", "t:1:17: undefined argument 'nope'"),
        ("ALLOW { write() { fd == 1 } }", "t:1:19: undefined argument 'fd'"),
        ("ALLOW { SYSCALL[1] { fd == 1 } }", "t:1:22: undefined argument 'fd'"),
        ("ALLOW { write { fd } }", "t:1:20: syntax error, unexpected '}'"),
        ("ALLOW { write { fd == 1 == 2 } }", "t:1:25: syntax error, unexpected '=='"),
        ("ALLOW { write { fd = 1 } }", "t:1:20: unexpected char '='"),
        ("ALLOW { write(a, a) }", "t:1:18: redefinition of argument 'a'"),
        ("ALLOW { write(a,b,c,d,e,f,g) }", "t:1:27: too many arguments defined for syscall"),
        ("DEFAULT ALLOW DEFAULT KILL", "t:1:15: redefinition of default action"),
        ("POLICY a {} POLICY a {}", "t:1:20: redefinition of policy 'a'"),
        ("POLICY a { DEFAULT KILL }", "t:1:12: syntax error, unexpected 'DEFAULT'"),
        ("USE a POLICY a {}", "t:1:5: undefined policy 'a'"),
        ("POLICY a { USE a }", "t:1:16: undefined policy 'a'"),
        ("#define A 1 #define A 2", "t:1:21: redefinition of constant 'A'"),
        ("#define ALLOW 1", "t:1:9: syntax error, unexpected 'ALLOW', expecting a name"),
        ("ALLOW { SYSCALL[0x10000000000000000] }", "t:1:17: number '0x10000000000000000' out of range"),
        ("ALLOW { read } /* x", "t:1:16: unterminated comment"),
        ("ALLOW\r\n{ read }", "t:1:6: unexpected char '\\r'"),
        ("\ufeffALLOW { read }", "t:1:1: unexpected char '\\ufeff'"),
        ("ALLOW { read }\0", "t:1:15: unexpected char '\\x00'"),
        ("ALLOW { read ON nowhere }", "t:1:17: unknown architecture 'nowhere'"),
        ("ALLOW { read ON { x86, i386 } }", "t:1:24: duplicate architecture 'i386'"),
        ('#include "none"\n', "t:1:10: could not include file 'none'"),
        ('#include"none"\n', "t:1:9: unexpected filename"),
        ('#include "none"', "t:1:16: unterminated include statement"),
        ('#include "none', "t:1:10: unterminated include statement"),
        ("#include none\n", "t:1:10: unexpected filename"),
        ("ALLOW { write { fd == " + "1&" * 250 + "1 } }", "maximum expression depth (200) exceeded"),
        ("ALLOW { write { " + "(" * 300 + "fd == 1", "maximum expression depth (200) exceeded"),
        ("ALLOW { write { " + "!" * 300 + "fd == 1", "maximum expression depth (200) exceeded"),
        ("ALLOW { write { " + "fd|" * 20 + "fd == 1 } }", "required stack size exceeds available BPF memory"),
    ],
)
def test_mistakes_are_told_with_their_place(text, message):
    with pytest.raises(Failure) as caught:
        policy(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ALLOW { read { fd == " + "9" * 100000 + " } }", "t:1:22: number '" + "9" * 57 + "...' out of range"),
        ("ALLOW { " + "x" * 1000 + " }", "t:1:9: undefined syscall '" + "x" * 57 + "...'"),
        (
            "".join(
                f"POLICY p{i} {{ USE p{i - 1}, USE p{i - 1} }} " if i else "POLICY p0 { ALLOW { read } } "
                for i in range(40)
            ),
            "more than 20000 rules",
        ),
        ('#include "words"\n' * 40, "more than 100000 words"),
        (
            "ALLOW { " + ", ".join(["read { " + "(" * 150 + "fd == 1" + ")" * 150 + " }"] * 2500) + " }",
            "more than 100000",
        ),
    ],
    ids=["number", "name", "doubling", "includes", "parentheses"],
)
def test_what_grows_is_cut_short(text, message):
    with pytest.raises(Failure) as caught:
        policy(text, files={"words": "ALLOW { " + "read, " * 2000 + "read }\n"})
    assert message in str(caught.value)
    assert len(str(caught.value)) < 200


def test_many_parentheses_take_no_long_time():
    text = "ALLOW { " + ", ".join(["read { " + "(" * 100 + "fd == 1" + ")" * 100 + " }"] * 400) + " }"
    assert action(text, READ, 1) == ALLOW


def test_an_include_of_itself_ends():
    with pytest.raises(Failure, match=r"maximum include depth \(16\) exceeded"):
        policy('#include "a"\n', files={"a": '#include "a"\n'})


def test_a_mistake_in_an_included_file_is_told_there():
    with pytest.raises(Failure, match=r"^inner:2:9: undefined syscall 'nosuch'$"):
        policy('#include "inner"\n', files={"inner": "\nALLOW { nosuch }"})


WORDS = [
    "ALLOW",
    "KILL",
    "ERRNO",
    "USE",
    "POLICY",
    "DEFAULT",
    "SYSCALL",
    "ON",
    "#define",
    '#include "a"\n',
    "read",
    "fd",
]
WORDS += [
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    ",",
    "==",
    "<",
    "&",
    "|",
    "&&",
    "||",
    "!",
    "0",
    "1",
    "0x",
    "-1",
    "//",
    "/*",
    "x86",
]


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(WORDS), max_size=30).map(" ".join)))
def test_nothing_but_a_failure_comes_of_nonsense(text):
    try:
        made = policy(text, files={"a": "POLICY a {}"})
    except Failure as err:
        assert "\n" not in str(err)
        return
    assert bpf.compile_policy(made)
