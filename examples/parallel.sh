#!/bin/sh
# parallel.sh - run a program that nobody trusts on many inputs at once, in a sandbox for each
#
# Usage: sh parallel.sh (xargs | parallel | task) PROGRAM INPUT...
#
# PROGRAM, a script or binary of this machine, reads one INPUT on stdin; it has 5 seconds, 16
# processes, 64 MB, 4 KB of output, and neither files nor network. For each input there is
# a line, as they end: its name, the exit status, 124 if a limit struck, and the first line
# of the output. It shows the same by xargs -P, by GNU parallel, and by hako-task --stream,
# which is the fastest: its workers stay. Limits of processes and memory take a cgroup: an
# ordinary user calls it by systemd-run --user --scope -p Delegate=yes.
set -u
how=$1
program=$(realpath "$2") || exit
shift 2

case $how in
one) # what the first two run, for each
	output=$(hako-limit --time=5 --pids=16 --memory=64M --output=4K \
		hako-policy --ro-bind="$program:/program" default /program <"$1")
	printf '%s: %s %s\n' "$1" "$?" "$(printf '%s\n' "$output" | head -n 1)"
	;;
xargs) printf '%s\0' "$@" | xargs -0 -n 1 -P "$(nproc)" sh "$0" one "$program" ;;
parallel) printf '%s\0' "$@" | parallel -0 -P "$(nproc)" sh "$0" one "$program" ;;
task)
	python3 -Ic '
import json, os, sys

program, *inputs = sys.argv[1:]
root = [path for path in ("/usr", "/bin", "/lib", "/lib64") if os.path.exists(path)]
memory = "memory.max" if os.path.exists("/sys/fs/cgroup/cgroup.controllers") else "memory.limit_in_bytes"
for path in inputs:
    request = {
        "id": path,
        "cmd": ["/program"],
        "env": ["PATH=/usr/bin:/bin"],
        "stdin": {"path": path},
        "rootfs": root,
        "mounts": [{"type": "bind", "src": program, "dest": "/program", "ro": True}],
        "timeLimit": 5,
        "cgroupConfig": {"pids.max": "16", memory: str(64 << 20)},
        "seccompPolicy": "ERRNO(1) { socket, unshare, mount, ptrace, bpf, keyctl, io_uring_setup } DEFAULT ALLOW",
        "outputs": {"stdout": True, "limit": 4096},
    }
    print(json.dumps(request))
' "$program" "$@" | hako-task --stream | python3 -Ic '
import json, signal, sys

for line in sys.stdin:
    told = json.loads(line)
    if "description" in told:
        sys.exit("parallel.sh: " + told["description"])
    status = told.get("code", 124)
    if told["status"] == "killed":
        status = 128 + signal.Signals[told["signal"]]
    print(told["id"] + ":", status, told.get("stdout", "").partition("\n")[0])
'
	;;
esac
