"""E: system calls, by raw calls of every kind that the machine has."""

import os
import signal

import pytest

CALLS = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
static long attempt(const char *name)
{
    char zeroes[128] = {};
    if (!strcmp(name, "namespace")) { /* clone's flags can be looked at, those of clone3 cannot */
        zeroes[3] = 0x10, zeroes[32] = 17;
        long pid = syscall(435, zeroes, 64);
        if (!pid) _exit(0);
        return pid;
    }
    if (!strcmp(name, "io_uring")) return syscall(425, 1, zeroes);
    if (!strcmp(name, "bpf")) { /* BPF_MAP_CREATE: a map of one element */
        int attributes[32] = {2, 4, 4, 1};
        return syscall(SYS_bpf, 0, attributes, sizeof attributes);
    }
    if (!strcmp(name, "keyctl")) return syscall(SYS_keyctl, 0, -3, 1);
    if (!strcmp(name, "userfaultfd")) return syscall(SYS_userfaultfd, 1);
    if (!strcmp(name, "int80")) {
        long result = 0;
#ifdef __x86_64__
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory"); /* getpid */
#endif
        return result;
    }
    if (!strcmp(name, "x32")) return syscall(0x40000000 | SYS_getpid);
    return -2;
}
int main(int argc, char **argv) {
    long result = attempt(argv[1]);
    puts(result == -1 ? strerror(errno) : "done");
    return result == -1;
}
"""
PROFILES = ["minimal", "compute", "network", "default", "io-heavy"]
NAMES = ["namespace", "io_uring", "bpf", "keyctl", "userfaultfd", "int80"]


@pytest.mark.parametrize("name", NAMES)
def test_ways_round_a_profile(who, compiled, name):
    """Each gets somewhere without, or the kernel has it not at all; under the profiles none does."""
    program = compiled(CALLS)
    control = who.run(program, name)
    if control.returncode:
        assert control.stdout == "Function not implemented\n" or (name in ("bpf", "userfaultfd") and who.name == "user")
    elif name == "int80" and os.uname().machine != "x86_64":
        return  # it was not made
    for profile in PROFILES:
        done = who.run("seccomp-exec", profile, program, name)
        assert "done" not in done.stdout
        assert done.returncode in (1, -signal.SIGSYS)


def test_x32_is_refused_and_not_only_missing(who, compiled):
    """Most kernels have it not; a filter that compared numbers alone would pass it on, for those that do."""
    if os.uname().machine != "x86_64":
        return
    program = compiled(CALLS)
    control = who.run(program, "x32")
    assert control.stdout in ("Function not implemented\n", "done\n")
    done = who.run("seccomp-exec", "default", program, "x32")
    assert done.returncode == -signal.SIGSYS or done.stdout == "Operation not permitted\n"


@pytest.mark.parametrize(("offset", "refused"), [(0x100000000, True), (0, False), (0x100000001, False)])
def test_arguments_are_compared_in_full(who, place, offset, refused):
    (place / "policy").write_text("ERRNO(13) { lseek { offset == 0x100000000 } } DEFAULT ALLOW")
    code = f"import os; print(os.lseek(os.open('/usr/bin/env', os.O_RDONLY), {offset}, os.SEEK_SET))"
    assert who.run("/usr/bin/python3", "-c", code).stdout == f"{offset}\n"
    done = who.run("seccomp-exec", place / "policy", "/usr/bin/python3", "-c", code)
    assert ("Permission denied" in done.stderr, done.stdout == f"{offset}\n") == (refused, not refused)


def test_no_new_privs_is_set_by_the_tool(who):
    argv = ["grep", "NoNewPrivs", "/proc/self/status"]
    assert who.run(*argv).stdout.split()[1] == "0"
    assert who.run("seccomp-exec", "default", *argv).stdout.split()[1] == "1"
