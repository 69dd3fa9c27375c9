"""A machine for seccomp programs, as the kernel's: what a compiled filter decides, without loading it."""

import struct

MASK = 0xFFFFFFFF


def run(program, audit_arch, number, args, steps=None):
    """What PROGRAM returns for the call NUMBER with six ARGS on AUDIT_ARCH; STEPS, a list, gets how many it took."""
    data = struct.pack("<IIQ6Q", number, audit_arch, 0, *args)
    code = [struct.unpack_from("<HBBI", program, i) for i in range(0, len(program), 8)]
    a = x = at = count = 0
    memory = [0] * 16
    while True:
        op, yes, no, k = code[at]
        at += 1
        count += 1
        if op == 0x20:
            assert k % 4 == 0 and k < len(data)
            a = struct.unpack_from("<I", data, k)[0]
        elif op in (0x00, 0x60):
            a = k if op == 0x00 else memory[k]
        elif op in (0x01, 0x61):
            x = k if op == 0x01 else memory[k]
        elif op in (0x02, 0x03):
            memory[k] = a if op == 0x02 else x
        elif op in (0x07, 0x87):
            a, x = (a, a) if op == 0x07 else (x, x)
        elif op in (0x44, 0x4C, 0x54, 0x5C):
            other = x if op & 8 else k
            a = (a | other) & MASK if op & 0xF0 == 0x40 else a & other
        elif op == 0x05:
            at += k
        elif op & 7 == 5:
            other = x if op & 8 else k
            holds = {0x10: a == other, 0x20: a > other, 0x30: a >= other}[op & 0xF0]
            at += yes if holds else no
        else:
            assert op == 0x06, hex(op)
            if steps is not None:
                steps.append(count)
            return k
