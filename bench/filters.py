"""filters.py BIN - filters for system calls beside those that libseccomp makes of the same rules

Compile time in this process; load time and the time of an allowed call
(getppid, in a loop) in a small C program; starts as whole processes. Each in
turn and round again; prints medians and ratios. The rules: 300 calls allowed by
name, the rest refused with EPERM.
"""

import ctypes
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import progress

from hako import bpf, kafel, kernel, oci, rules, syscalls

ROUNDS = int(os.environ.get("ROUNDS", "200"))
LOOP = r"""
#include <fcntl.h>
#include <linux/filter.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec; }
/* Load the program in the file ARGV[1], if any; print the ns that took, and those of one getppid(2). */
int main(int argc, char **argv) {
    static struct sock_filter code[4096];
    struct sock_fprog prog = {0, code};
    double load = 0, began;
    if (argc > 1) {
        prog.len = read(open(argv[1], O_RDONLY), code, sizeof code) / sizeof *code;
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        began = now();
        if (prctl(PR_SET_SECCOMP, 2, &prog)) return 1;
        load = now() - began;
    }
    began = now();
    for (int i = 0; i < 200000; i++) syscall(SYS_getppid);
    printf("%f %f\n", load, (now() - began) / 200000);
}
"""


def names():
    """Three hundred calls of this architecture, getppid among them, with gaps in the numbers."""
    arch = rules.architecture()
    found = [syscalls.name(arch, number) for number in range(470) if number % 6]
    return [name for name in found if not name.startswith("SYSCALL")][:300]


def by_hako(text):
    """TEXT, a Kafel policy, compiled by hako."""
    return bpf.compile_policy(kafel.parse(kafel.Source("bench", text), rules.architecture(), None, rules.group))


def by_hako_from_json(allowed):
    """The same rules as the JSON of a container runtime, compiled by hako."""
    rule = {"names": allowed, "action": "SCMP_ACT_ALLOW"}
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": [rule]}
    return bpf.compile_policy(
        oci.parse(kafel.Source("bench", json.dumps(profile)), rules.architecture(), set(), (6, 1))
    )


def by_libseccomp(allowed):
    """The program that libseccomp makes of the same rules."""
    library = kernel.libseccomp()
    library.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.seccomp_init(bpf.ERRNO + 1))
    for name in allowed:
        library.seccomp_rule_add(context, bpf.ALLOW, library.seccomp_syscall_resolve_name(name.encode()), 0)
    fd = os.memfd_create("bench")
    library.seccomp_export_bpf(context, fd)
    library.seccomp_release(context)
    data = os.pread(fd, 2**20, 0)
    os.close(fd)
    return data


def compile_times(text, allowed):
    """Milliseconds to compile, {name: [ms]}."""
    makers = {
        "hako, Kafel": lambda: by_hako(text),
        "hako, JSON": lambda: by_hako_from_json(allowed),
        "libseccomp": lambda: by_libseccomp(allowed),
    }
    times = {name: [] for name in makers}
    for turn in range(ROUNDS):
        for name, make in makers.items():
            began = time.perf_counter()
            make()
            times[name].append((time.perf_counter() - began) * 1000)
        progress.show(f"compile: {turn + 1} of {ROUNDS} rounds")
    progress.show("")
    return times


def kernel_times(programs, place):
    """Nanoseconds to load each of PROGRAMS, {name: bytes}, and of a call under it: {name: [(ns, ns)]}."""
    (place / "loop.c").write_text(LOOP)
    subprocess.run(["cc", "-O2", "-o", place / "loop", place / "loop.c"], check=True)
    for name, program in programs.items():
        (place / name).write_bytes(program)
    times = {name: [] for name in ("none", *programs)}
    rounds = max(ROUNDS // 4, 10)
    for turn in range(rounds):
        progress.show(f"load and call: {turn} of {rounds} rounds")
        for name, found in times.items():
            argv = [place / "loop", *([place / name] if name != "none" else [])]
            words = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
            found.append(tuple(map(float, words)))
    progress.show("")
    return times


def start_times(tools):
    """Seconds to start true, {name: [s]}."""
    commands = {
        "rlimit-exec --core=0 true": [f"{tools}/rlimit-exec", "--core=0", "/bin/true"],
        "seccomp-exec default true": [f"{tools}/seccomp-exec", "default", "/bin/true"],
    }
    times = {name: [] for name in commands}
    for turn in range(ROUNDS):
        for name, argv in commands.items():
            began = time.perf_counter()
            os.waitpid(os.posix_spawn(argv[0], argv, os.environ), 0)
            times[name].append(time.perf_counter() - began)
        progress.show(f"start: {turn + 1} of {ROUNDS} rounds")
    progress.show("")
    return times


def main(tools):
    """Measure and print."""
    allowed = names()
    text = f"ALLOW {{ {', '.join(allowed)} }} DEFAULT ERRNO(1)"
    programs = {"hako": by_hako(text), "libseccomp": by_libseccomp(allowed)}
    print(f"{len(allowed)} calls by name; {ROUNDS} rounds; medians")
    for name, program in programs.items():
        print(f"instructions   {name:12} {len(program) // 8}")
    for name, values in compile_times(text, allowed).items():
        print(f"compile        {name:12} {statistics.median(values):.2f} ms")
    with tempfile.TemporaryDirectory() as place:
        times = kernel_times(programs, pathlib.Path(place))
    none = statistics.median(call for _, call in times["none"])
    for name in programs:
        loads, calls = zip(*times[name], strict=True)
        print(f"load           {name:12} {statistics.median(loads) / 1000:.0f} us")
        print(f"one call       {name:12} {statistics.median(calls) - none:+.1f} ns over {none:.1f} ns without a filter")
    starts = {name: statistics.median(values) * 1000 for name, values in start_times(tools).items()}
    for name, value in starts.items():
        print(f"{name:27} {value:.2f} ms")
    first, second = starts.values()
    print(f"seccomp-exec is {second / first:.2f} times rlimit-exec")


if __name__ == "__main__":
    main(sys.argv[1])
