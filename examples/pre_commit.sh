#!/bin/sh
# pre_commit.sh - before a commit, run the hooks of a checkout whose authors nobody knows
#
# Usage: ln -s /path/of/pre_commit.sh .git/hooks/pre-commit
#
# Each program in the directory hooks of the checkout is run in a sandbox. It sees in /src,
# read-only, what is about to be committed and nothing else: no work tree, no .git, no home
# directory, no network; it has HOOK_SECONDS, 60 unless set, and 64 processes. The commit is
# refused if one fails.
# It shows hako-policy with options alone, and a chain of it and rlimit-exec.
set -u
made=$(mktemp -d) || exit
trap 'rm -rf "$made"' EXIT
git checkout-index --all --prefix="$made/src/" || exit

failed=0
for hook in "$made"/src/hooks/*; do
	[ -x "$hook" ] || continue
	name=${hook##*/}
	set -- default rlimit-exec --nproc=64 "/src/hooks/$name"
	# Root's processes that limit does not count; a cgroup does, which root may make.
	[ "$(id -u)" != 0 ] || set -- --limit-pids=64 default "/src/hooks/$name"
	hako-policy --ro-bind="$made/src:/src" --chdir=/src --limit-walltime="${HOOK_SECONDS:-60}" --limit-output=1M \
		--limit-as=1G "$@" </dev/null
	status=$?
	[ "$status" = 0 ] || failed=1
	printf 'pre-commit: %s: %s\n' "$name" "$status"
done
exit "$failed"
