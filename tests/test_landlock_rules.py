"""The rules of landlock-exec, without a kernel: what is lacking, what a ruleset handles, the bits, the filter."""

import errno
import os
import re

from bpf_interpreter import run as decide
from hypothesis import example, given
from hypothesis import strategies as st

from hako import bpf, kernel, landlock, tcp
from hako.commands import landlock_exec
from hako.failure import Failure

paths = st.lists(st.tuples(st.sampled_from(sorted(landlock.ACCESS)), st.sampled_from(["/", "//", "/usr", "x", ""])))
ports = st.lists(st.tuples(st.sampled_from(["bind_tcp", "connect_tcp"]), st.integers(0, 65535)))
all_rules = st.builds(
    landlock.Rules, st.none() | paths, st.none() | ports, st.lists(st.sampled_from(["signal", "abstract-unix"]))
)


@given(all_rules, st.integers(0, 9))
def test_what_is_lacking_is_what_the_version_has_not(rules, abi):
    lack = landlock.lacking(rules, abi)
    assert set(lack) == landlock.asked(rules) - landlock.available(abi)
    assert all(since > abi for since in lack.values())
    assert list(lack.values()) == sorted(lack.values())
    if rules.paths is None and rules.ports is None and not rules.scopes:
        assert lack == {}
    if rules.paths is not None and not any(path.startswith("/") and not path.strip("/") for _, path in rules.paths):
        assert ("truncate" in lack) == (abi < 3)
        assert ("ioctl_dev" in lack) == (abi < 5)


@given(all_rules, st.integers(0, 9))
def test_a_ruleset_handles_what_the_version_has(rules, abi):
    domain = landlock.Domain(rules, abi)
    known = {0: 0, 1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)
    assert domain.bits(landlock.FILES, landlock.FILES) == 2**known - 1
    assert (domain.filter is not None) == (rules.ports is not None and abi >= 4)
    for access in landlock.ACCESS.values():
        assert not access & {"make_char", "make_block"}


@given(st.text(max_size=8) | st.integers(-5, 70000).map(str))
@example("65535")
@example("65536")
def test_a_port_is_a_whole_number_or_an_error(text):
    try:
        number = landlock_exec.port("--bind-tcp", text)
    except Failure as err:
        is_number = re.fullmatch(r"[0-9]+", text, re.ASCII)
        assert str(err) == f"--bind-tcp: {'more than 65535' if is_number else 'not a whole number'}: {text!r}"
        assert not is_number or int(text) > 65535
    else:
        assert re.fullmatch(r"[0-9]+", text, re.ASCII)
        assert number == int(text)


def test_the_rights_are_those_of_the_kernel_header():
    """Bits and names of linux/landlock.h, as far as the one installed here goes."""
    with open("/usr/include/linux/landlock.h") as header:
        found = re.findall(r"#define LANDLOCK_ACCESS_FS_(\w+)\s+\(1ULL << (\d+)\)", header.read())
    assert len(found) >= 13
    assert {name.lower(): 1 << int(bit) for name, bit in found}.items() <= kernel.LANDLOCK_ACCESS_FS.items()


# The filter for TCP


def test_ways_round_tcp_on_every_architecture():
    """Of 32-bit programs and x32 too, whose calls have other numbers."""
    for machine, architectures in tcp.CALLS.items():
        if machine != os.uname().machine:
            continue
        for sockets in (False, True):
            program = tcp.program(sockets)
            for arch, numbers in architectures.items():
                check_filter(program, sockets, bpf.AUDIT_ARCH[arch], numbers)


def test_the_numbers_are_those_of_libseccomp():
    """For every architecture; x32, which has the calls of x86_64 with a bit more, counts some anew."""
    x32 = 0x4000003E
    for architectures in tcp.CALLS.values():
        for arch, numbers in architectures.items():
            audit = [bpf.AUDIT_ARCH[arch], *([x32] if arch == "x86_64" else [])]
            for name, found in numbers.items():
                assert [kernel.syscall_name(*pair) for pair in zip(audit, found, strict=True)] == [name] * len(audit)


def check_filter(program, sockets, arch, numbers):
    """See what PROGRAM says to the calls NUMBERS on ARCH."""

    def answers(name, *args):
        found = {decide(program, arch, number, (*args, *[0] * (6 - len(args)))) for number in numbers[name]}
        (answer,) = found
        return answer & 0xFFFF if answer & 0xFFFF0000 == bpf.ERRNO else "ok" if answer == bpf.ALLOW else answer

    junk = 0xDEAD << 32  # the kernel looks at the low half alone
    for family in (2, 10):
        assert answers("socket", family | junk, 1 | junk, 262 | junk) == errno.EPROTONOSUPPORT
        assert answers("socket", family, 1 | 0x80800, 256) == errno.EPROTONOSUPPORT
        assert answers("socket", family | junk, 1 | 0x80800 | junk, junk) == ("ok" if sockets else errno.EACCES)
        assert answers("socket", family, 1, 6) == ("ok" if sockets else errno.EACCES)
        assert answers("socket", family, 1, 132) == "ok"  # SCTP
        assert answers("socket", family, 2, 17) == "ok"
    assert answers("socket", 43, 1, 0) == errno.EAFNOSUPPORT
    assert answers("socket", 1, 1, 0) == "ok"
    assert answers("socket", 17, 3, 0x0106) == "ok"  # of a packet socket it is another number
    for name, index in (("sendto", 3), ("sendmsg", 2), ("sendmmsg", 3)):
        for flags, expected in (
            (0, "ok"),
            (0x4040, "ok"),
            (0x20000000 | junk, errno.EOPNOTSUPP),
            (~0, errno.EOPNOTSUPP),
        ):
            args = [0] * 6
            args[index] = flags & 2**64 - 1
            assert answers(name, *args) == expected
    for name in {"io_uring_setup", "socketcall"} & set(numbers):
        assert answers(name) == errno.ENOSYS
