"""The ways to TCP that Landlock does not see, and a seccomp filter that closes them.

Landlock looks at bind(2) and connect(2) of TCP sockets. MPTCP and SMC sockets
speak TCP to whoever does not know them, and are no TCP sockets to it;
MSG_FASTOPEN connects in sendto(2); listen(2) takes a port without bind(2); and
io_uring makes calls that no filter sees.
"""

from hako import bpf, kernel

# By machine and architecture that runs there, the numbers of the calls.
X32 = bpf.X32[0]
CALLS = {
    "x86_64": {
        "x86_64": {
            "socket": (41, X32 + 41),
            "sendto": (44, X32 + 44),
            "sendmsg": (46, X32 + 518),
            "sendmmsg": (307, X32 + 538),
            "io_uring_setup": (425, X32 + 425),
        },
        "x86": {
            "socket": (359,),
            "sendto": (369,),
            "sendmsg": (370,),
            "sendmmsg": (345,),
            "io_uring_setup": (425,),
            "socketcall": (102,),
        },
    },
    "aarch64": {
        "aarch64": {
            "socket": (198,),
            "sendto": (206,),
            "sendmsg": (211,),
            "sendmmsg": (269,),
            "io_uring_setup": (425,),
        },
        "arm": {
            "socket": (281,),
            "sendto": (290,),
            "sendmsg": (296,),
            "sendmmsg": (374,),
            "io_uring_setup": (425,),
        },
    },
}
FLAGS = {"sendto": 3, "sendmsg": 2, "sendmmsg": 3}  # which argument they are
MSG_FASTOPEN = 0x20000000
AF_INET, AF_INET6, AF_SMC = 2, 10, 43
SOCK_STREAM, SOCK_TYPE_MASK = 1, 0xF
IPPROTO_IP, IPPROTO_TCP, IPPROTO_SMC, IPPROTO_MPTCP = 0, 6, 256, 262
EACCES, ENOSYS, EPROTONOSUPPORT, EOPNOTSUPP, EAFNOSUPPORT = 13, 38, 93, 95, 97


def program(sockets):
    """The filter, a bytes of struct sock_filter; without SOCKETS no TCP socket can be made at all.

    Each call fails as on a kernel that lacks what it is for, so that programs do without.
    """
    calls = {}
    for arch, numbers in CALLS[kernel.MACHINE].items():
        calls[arch] = {number: rules(name, sockets) for name, found in numbers.items() for number in found}
    return bpf.compile_policy(bpf.Policy(calls, bpf.Rule(bpf.ALLOW), foreign=bpf.ALLOW))


def rules(name, sockets):
    """The rules for the call NAME."""
    if name == "socket":
        return list(socket_rules(sockets))
    if name in FLAGS:
        asked = ("&", ("arg", FLAGS[name]), ("number", MSG_FASTOPEN))
        return [bpf.Rule(bpf.ERRNO + EOPNOTSUPP, ("compare", "!=", asked, ("number", 0), False))]
    return [bpf.Rule(bpf.ERRNO + ENOSYS)]  # what they would do is in memory, out of a filter's sight


def socket_rules(sockets):
    """The rules for socket(2)."""
    internet = is_one_of(("arg", 0), AF_INET, AF_INET6)
    yield bpf.Rule(bpf.ERRNO + EAFNOSUPPORT, is_one_of(("arg", 0), AF_SMC))
    others = is_one_of(("arg", 2), IPPROTO_SMC, IPPROTO_MPTCP)
    yield bpf.Rule(bpf.ERRNO + EPROTONOSUPPORT, ("and", internet, others))
    if not sockets:
        stream = is_one_of(("&", ("arg", 1), ("number", SOCK_TYPE_MASK)), SOCK_STREAM)
        yield bpf.Rule(bpf.ERRNO + EACCES, ("and", internet, stream, is_one_of(("arg", 2), IPPROTO_IP, IPPROTO_TCP)))


def is_one_of(value, *numbers):
    """The condition that VALUE, of 32 bits, is one of NUMBERS."""
    return ("or", *(("compare", "==", value, ("number", number), False) for number in numbers))
