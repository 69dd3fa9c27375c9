#!/bin/sh
# build.sh - build what nobody has read, see all that the build did, take it or leave it
#
# Usage: sh build.sh [--apply] BOX COMMAND [ARG...]
#
# BOX is a directory with .hako in it, and with the project: mkdir -p box/.hako && mv
# project box/src. COMMAND, as make, runs in /src: it may change all that is there, sees
# the host's programs, and neither network nor anybody's files; it has BUILD_SECONDS, 600
# unless set, 64 processes and 1 GB. These take a cgroup: an ordinary user calls it by
# systemd-run --user --scope -p Delegate=yes. What COMMAND writes goes to an overlay; the
# changes are listed and, with --apply, if COMMAND has succeeded, made in BOX as well:
# files and directories, no links, no owners, nothing setuid. The status is COMMAND's, or
# 124 if a limit ended it. It shows hako-limit, and hako-run --overlay --changes.
set -u
apply=no
[ "$1" != --apply ] || { apply=yes && shift; }
box=$1
shift
made=$(mktemp -d) || exit
trap 'chmod -R u+rwX "$made"; rm -rf "$made"' EXIT
mkdir "$made/upper" || exit

set -- "$box" rlimit-exec --fsize=1G --core=0 "$@"
for path in /usr /bin /lib /lib64 /etc/alternatives; do
	[ ! -e "$path" ] || set -- --mount="$path:$path:ro" "$@"
done
hako-limit --time="${BUILD_SECONDS:-600}" --pids=64 --memory=1G --output=16M \
	hako-run --overlay="$made/upper" --changes="$made/changes" --proc --dev --tmpfs=/tmp:256M \
	--env=PATH=/usr/bin:/bin --env=HOME=/tmp --chdir=/src "$@" </dev/null
status=$?
[ "$status" = 0 ] || apply=no

[ ! -e "$made/changes" ] || python3 -I - "$made/changes" "$made/upper" "$box" "$apply" <<'END' || exit
import json, os, shutil, sys

changes, upper, box, apply = sys.argv[1:]
with open(changes) as file:
    found = sorted((json.loads(line) for line in file), key=lambda change: change["path"])
for change in found:
    path, kind, what = change["path"], change["kind"], change["type"]
    if not f"{path}/".startswith("/src/"):  # a mount point
        continue
    print(kind, what, ascii(path))  # the name is a stranger's choice
    if apply == "no":
        continue
    if (kind != "deleted" and what not in ("file", "directory")) or "bytes" in change or "listed" in change:
        print("left out:", ascii(path))  # a link or the like, a name that is no text, a tree too deep
        continue
    place, is_directory = box + path, os.path.isdir(box + path) and not os.path.islink(box + path)
    if is_directory and (kind == "deleted" or what != "directory"):
        shutil.rmtree(place)
    elif os.path.lexists(place) and not is_directory:
        os.unlink(place)
    if kind == "deleted":
        continue
    if what == "directory":
        os.makedirs(place, exist_ok=True)
    else:
        shutil.copyfile(upper + path, place, follow_symlinks=False)
        os.chmod(place, 0o755 if os.stat(upper + path).st_mode & 0o100 else 0o644)
END
exit "$status"
