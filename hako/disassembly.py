"""A seccomp program for people."""

from hako import bpf, syscalls

ARCHES = {number: name for name, number in bpf.AUDIT_ARCH.items()}
JUMPS = {0x10: "==", 0x20: ">", 0x30: ">=", 0x40: "&"}
SUMS = {0x00: "+", 0x10: "-", 0x20: "*", 0x30: "/", 0x40: "|", 0x50: "&", 0x60: "<<", 0x70: ">>", 0xA0: "^"}


def text(program):
    """PROGRAM, a bytes of struct sock_filter, a line an instruction.

    LINE: what it does; a conditional jump says where it goes if true and if not.
    """
    lines = []
    known = {0: ("", next(iter(bpf.AUDIT_ARCH)))}  # what A holds at an instruction, and the architecture; jumps go down
    for i in range(0, len(program), 8):
        code = int.from_bytes(program[i : i + 2], "little")
        yes, no = program[i + 2 : i + 4]
        k = int.from_bytes(program[i + 4 : i + 8], "little")
        number = i // 8
        loaded, arch = known.get(number, ("", ""))
        lines.append(f"{number:4}: {instruction(code, k, number, yes, no, loaded, arch)}\n")
        if code == bpf.JA:
            known.setdefault(number + 1 + k, (loaded, arch))
        elif code & 7 == 5:
            of_arch = loaded == "arch" and code == bpf.JEQ_K
            known.setdefault(number + 1 + no, (loaded, arch))
            known.setdefault(number + 1 + yes, (loaded, ARCHES.get(k, arch) if of_arch else arch))
        else:
            known.setdefault(number + 1, (field(k) if code == bpf.LD_ABS else loaded, arch))
    return "".join(lines)


def field(offset):
    """The field of struct seccomp_data at OFFSET."""
    if offset in (0, 4):
        return ("nr", "arch")[offset // 4]
    if offset in (8, 12):
        return ("ip", "ip >> 32")[offset % 8 // 4]
    return f"args[{(offset - 16) // 8}]{' >> 32' if offset % 8 else ''}"


def instruction(code, k, number, yes, no, loaded, arch):
    """One instruction, at NUMBER; LOADED is what A holds, ARCH the architecture it is about."""
    kind = code & 7
    if kind == 5:
        if code == bpf.JA:
            return f"goto {number + 1 + k}"
        what = "X" if code & 8 else operand(k, loaded, arch)
        return f"if A {JUMPS[code & 0xF0]} {what} goto {number + 1 + yes} else {number + 1 + no}"
    if kind == 6:
        return f"return {bpf.action_name(k) if code == bpf.RET else 'A'}"
    if kind == 4:
        return "A = -A" if code == 0x84 else f"A = A {SUMS.get(code & 0xF0, '?')} {'X' if code & 8 else f'{k:#x}'}"
    simple = {
        bpf.LD_ABS: f"A = {field(k)}",
        bpf.LD_IMM: f"A = {k:#x}",
        bpf.LDX_IMM: f"X = {k:#x}",
        bpf.LD_MEM: f"A = M[{k}]",
        bpf.LDX_MEM: f"X = M[{k}]",
        bpf.ST: f"M[{k}] = A",
        bpf.STX: f"M[{k}] = X",
        bpf.TAX: "X = A",
        bpf.TXA: "A = X",
    }
    return simple.get(code, f"code {code:#x} {k:#x}")


def operand(k, loaded, arch):
    """K, compared with what was LOADED, by its name if it has one."""
    if loaded == "arch":
        return ARCHES.get(k, f"{k:#x}")
    if loaded == "nr":
        name = syscalls.name(arch, k) if arch else "SYSCALL"
        return f"{k:#x}" if name.startswith("SYSCALL") else name
    return f"{k:#x}"
