#!/usr/bin/env python3
"""judge.py - an online judge: compile a stranger's program, run it on each test, print the verdicts

Usage: python3 judge.py SOLUTION TESTS

SOLUTION is in C (.c) or Python (.py). TESTS is a directory of pairs: 1.in is what the program reads, 1.out what
it is to write. Exits with 0 if all is accepted. It shows Sandbox, Pool and Result. The compiler has limits as well,
for it may be bombed. They take a cgroup: root has one; others by systemd-run --user --scope -p Delegate=yes ...
"""

import sys
import tempfile
from pathlib import Path

import hako

COMPILE = hako.Sandbox(policy="compile", time=30, memory="512M", pids=32, output="64K", rlimits={"fsize": 64 << 20})
JUDGE = hako.Sandbox(policy="judge", cpu_time=2, time=10, memory="64M", pids=8, output="64K")
COMMANDS = {  # what makes /hako/prog of a program on stdin, and what runs it
    ".c": (["cc", "-O2", "-x", "c", "-o", "prog", "-", "-lm"], ["/hako/prog"]),
    ".py": (["cp", "/dev/stdin", "prog"], ["python3", "-I", "/hako/prog"]),
}
VERDICTS = {
    **dict.fromkeys(("timeLimit", "cpuTimeLimit"), "time limit"),
    "memoryLimit": "memory limit",
    "pidsLimit": "process limit",
    "outputLimit": "output limit",
    "internalError": "failure of the judge",
}


def verdict(result, expected):
    """What to say of RESULT, if EXPECTED was to be written; white space does not count."""
    if not result.ok:
        return VERDICTS.get(result.status, "runtime error")
    return "accepted" if result.stdout.split() == expected.split() else "wrong answer"


def main(solution, tests):
    """Judge the file SOLUTION by the directory TESTS; return the exit status."""
    build, run = COMMANDS[solution.suffix]
    inputs = sorted(tests.glob("*.in"), key=lambda path: (len(path.name), path.name))
    with tempfile.TemporaryDirectory() as made, hako.Pool() as pool:
        compiled = pool.run(COMPILE.replace(work_dir=made), build, input=solution.read_bytes(), stderr=hako.STDOUT)
        if compiled.status == "internalError":  # of this machine, not of the program
            sys.exit(f"judge.py: {compiled.reason}")
        if not compiled.ok:
            print("compile error", compiled.reason or compiled.stdout.decode(errors="replace"), sep="\n")
            return 1
        sandbox = JUDGE.replace(mounts=[f"{made}:/hako:ro"])
        futures = [pool.submit(sandbox, run, input=path.read_bytes()) for path in inputs]
        found = []
        for path, future in zip(inputs, futures, strict=True):
            found.append(verdict(future.result(), path.with_suffix(".out").read_bytes()))
            print(f"{path.stem}: {found[-1]}", flush=True)
    return int(set(found) != {"accepted"})


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
