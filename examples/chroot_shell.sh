#!/bin/sh
# chroot_shell.sh - a shell in a root directory, in which everything may be broken and nothing stays
#
# Usage: sh chroot_shell.sh ROOT [COMMAND [ARG...]]
#
# ROOT is a root directory, as debootstrap makes it or as a container is unpacked to, with
# .hako in it, which says that it may be used: debootstrap stable root && mkdir root/.hako.
# What is written goes to memory, 256 MB at most, and is forgotten; there is no network.
# On a terminal the shell has one of its own. It is the caller's uid; that of an ordinary
# user to whom /etc/subuid delegates ids is 0 inside, with those behind it.
# It shows hako-run --overlay, --tty and --map.
set -u
root=$1
shift
[ "$#" -gt 0 ] || set -- /bin/sh

map=self
if [ "$(id -u)" != 0 ] && grep -qs -e "^$(id -un):" -e "^$(id -u):" /etc/subuid; then
	map=subid
fi
tty=
if [ -t 0 ] && [ -t 1 ] && [ -t 2 ]; then
	tty=--tty
fi
exec hako-run --overlay=tmpfs:256M --proc --dev --tmpfs=/tmp:64M --hostname="$(basename "$root")" \
	--env=PATH=/usr/sbin:/usr/bin:/sbin:/bin --env=HOME=/ --env=TERM="${TERM:-dumb}" --map="$map" $tty "$root" "$@"
