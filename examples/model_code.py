#!/usr/bin/env python3
"""model_code.py - run Python that a language model wrote, and show what it prints as it comes

Usage: python3 model_code.py --learn FILTER SAMPLE...
       python3 model_code.py FILTER [SECONDS] < CODE

The first runs each SAMPLE, a program that you trust, and writes the system calls that
they make to FILTER. The second runs CODE, which nobody has read, under the policy python
with that filter: what no sample did fails with "Operation not permitted". So CODE can
start no process and no thread unless a sample does, and limits of one process are
enough: this works for everybody, without a cgroup. It shows Sandbox.stream(), and
seccomp-exec --learn behind hako-policy. It exits with CODE's status, with 124 if that
was ended, after SECONDS, 10 unless given, at the latest.
"""

import os
import subprocess
import sys

import hako

PYTHON = ["python3", "-I", "-"]


def learn(path, samples):
    """Write what SAMPLES do into the filter PATH, or add it there; return the exit status."""
    # No other filter meanwhile: learning needs calls that those of the policy refuse.
    command = ["hako-policy", "--seccomp=none", "python", "seccomp-exec", f"--learn={path}", *PYTHON]
    for sample in samples:
        with open(sample, "rb") as file:
            subprocess.run(command, stdin=file, check=True)
    return 0


def run(path, seconds="10"):
    """Run what is on stdin under the filter PATH for at most SECONDS; return the exit status."""
    limits = {"as": "512M", "cpu": 10, "nofile": 64, "fsize": "16M"}
    sandbox = hako.Sandbox(
        policy="python", seccomp=os.path.abspath(path), time=float(seconds), output="1M", rlimits=limits
    )
    with sandbox.stream(PYTHON, input=sys.stdin.buffer.read()) as stream:
        for chunk in stream:
            file = getattr(sys, chunk.stream).buffer
            file.write(chunk.data)
            file.flush()
    result = stream.result
    if result.status != "exited":
        print(f"model_code.py: {result.status}: {result.reason or result.signal}", file=sys.stderr)
    return 124 if result.code is None else result.code


if __name__ == "__main__":
    sys.exit(learn(sys.argv[2], sys.argv[3:]) if sys.argv[1] == "--learn" else run(*sys.argv[1:]))
