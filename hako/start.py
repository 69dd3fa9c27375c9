"""The exec of PROG under a filter that may allow no exec at all, and no other call of ours."""

import os

from hako import bpf, kernel
from hako.failure import Failure


def let_through(program, secret, listener=False):
    """PROGRAM with a few instructions in front that let the exec of PROG through, and the sending of a LISTENER.

    They know it by SECRET, 192 random bits in the argument registers that the
    call does not use. All are compared, whatever the first ones are: how long
    it takes tells nothing. The exec clears them, so PROG never sees them.
    """
    front = bpf.Program()
    rules = 0  # the label behind all of it
    allow = front.put(bpf.RET, bpf.ALLOW)
    known = front.jump(bpf.JEQ_K, 0, allow, rules)
    for code, k in reversed(list(differences(secret))):
        known = front.emit(code, k, at=known)
    entry = front.jump(bpf.JEQ_K, kernel.NUMBER["sendmsg"], known, rules) if listener else rules
    entry = front.jump(bpf.JEQ_K, kernel.NUMBER["execve"], known, entry)
    entry = front.emit(bpf.LD_ABS, bpf.OFFSET_NR, at=entry)
    entry = front.jump(bpf.JEQ_K, bpf.AUDIT_ARCH[bpf.MACHINE_ARCH[kernel.MACHINE]], entry, rules)
    front.emit(bpf.LD_ABS, bpf.OFFSET_ARCH, at=entry)
    count = len(front.code) + len(program) // 8
    if count > bpf.MOST_INSTRUCTIONS:
        raise Failure(f"the rules and the start of PROG need {count} instructions, the kernel takes 4096")
    return front.bytes() + program


def differences(secret):
    """Instructions that leave 0 in A if arguments 3 to 5 are the words of SECRET, else another number."""
    for i, word in enumerate(secret.words):
        for high in (0, 1):
            yield bpf.LD_ABS, bpf.OFFSET_ARGS + 8 * (3 + i) + 4 * high
            yield bpf.SUB_K, word >> (32 if high else 0) & bpf.LOW32
            if (i, high) != (0, 0):
                yield bpf.LDX_MEM, 0
                yield bpf.OR_X, 0
            yield bpf.ST, 0


def execute(program, secret, path, argv, env, socket=None):
    """Load PROGRAM and become PATH with ARGV and ENV: see kernel.load_and_execute()."""
    os.stat(path)  # what fails, fails before there is a filter: under it there may be no way to say so
    if not os.access(path, os.X_OK, effective_ids=True) or os.path.isdir(path):
        raise PermissionError(13, os.strerror(13))
    words = [os.fsencode(word) for word in argv]
    variables = [os.fsencode(f"{name}={value}") for name, value in env.items()]
    try:
        kernel.load_and_execute(program, secret, (os.fsencode(path), words, variables), socket)
    except OSError as err:
        err.final = True  # under the filter there is no second try, at another place of PATH
        raise


def enforce(program, secret, last, plain):
    """Load PROGRAM: now, or if this link is the LAST right before the exec of PROG. Return what executes PROG.

    PLAIN does if nothing else is to. What follows a link that is not the last is
    a command of ours with calls of its own: they are under the filter, as they
    would be if it were executed.
    """
    kernel.prctl("SET_NO_NEW_PRIVS", 1)
    if not last:
        kernel.seccomp(program)
        return plain
    return lambda path, argv, env: execute(program, secret, path, argv, env)
