"""The exec of PROG under a filter that may allow no exec at all, and no other call of ours."""

import os

from hako import bpf, kernel
from hako.failure import Failure


def let_through(program, secret):
    """PROGRAM with a few instructions in front that let the calls with the pointers of SECRET through.

    So the exec of PROG is none of the rules' business, and no other call can
    look like it; nor can another sendmsg look like that of the listener.
    """
    pointers = (secret.path, secret.argv, secret.envp)
    calls = {
        "execve": ("and", *(equal(i, address) for i, address in enumerate(pointers))),
        "sendmsg": equal(1, secret.message),
    }
    front = bpf.Program()
    rules = 0  # the label behind all of it
    allow = front.put(bpf.RET, bpf.ALLOW)
    entry = rules
    for name, condition in calls.items():
        entry = front.jump(bpf.JEQ_K, kernel.NUMBER[name], front.condition(condition, allow, rules), entry)
    entry = front.emit(bpf.LD_ABS, bpf.OFFSET_NR, at=entry)
    entry = front.jump(bpf.JEQ_K, bpf.AUDIT_ARCH[bpf.MACHINE_ARCH[kernel.MACHINE]], entry, rules)
    front.emit(bpf.LD_ABS, bpf.OFFSET_ARCH, at=entry)
    count = len(front.code) + len(program) // 8
    if count > bpf.MOST_INSTRUCTIONS:
        raise Failure(f"the rules and the start of PROG need {count} instructions, the kernel takes 4096")
    return front.bytes() + program


def equal(index, address):
    """The condition that argument INDEX is ADDRESS."""
    return ("compare", "==", ("arg", index), ("number", address), True)


def execute(program, secret, path, argv, env, socket=None):
    """Load PROGRAM and become PATH with ARGV and ENV: see kernel.load_and_execute()."""
    os.stat(path)  # what fails, fails before there is a filter: under it there may be no way to say so
    if not os.access(path, os.X_OK, effective_ids=True) or os.path.isdir(path):
        raise PermissionError(13, os.strerror(13))
    words = [os.fsencode(word) for word in argv]
    variables = [os.fsencode(f"{name}={value}") for name, value in env.items()]
    secret.put_exec(os.fsencode(path), words, variables)
    try:
        kernel.load_and_execute(program, secret, socket)
    except OSError as err:
        err.final = True  # under the filter there is no second try, at another place of PATH
        raise
