"""The ids of --map=subid: those that /etc/subuid and /etc/subgid give to a user, in a user namespace.

What they hold is for newuidmap and newgidmap, setuid programs, to put in force.
Who may map any id, as root may, does it without them.
"""

import os

from hako import identity, kernel, outside, values
from hako.failure import SEE_CHECK, Failure, call

PACKAGE = "uidmap"


def id_maps(who):
    """The identity.IdMaps for PROG as the Identity WHO: inside, 0 is the caller and what is delegated to it follows.

    Root is not mapped: for it, what is delegated begins at 0.
    """
    names = names_of_user()
    maps = []
    for path, own, option, wanted in (
        ("/etc/subuid", os.getuid(), "--user", who.uid),
        ("/etc/subgid", os.getgid(), "--group", who.gid),
    ):
        ranges = [] if os.getuid() == 0 else [(own, 1)]
        ranges += delegated(path, names)
        check_apart(path, ranges)
        first = 0
        maps.append([])
        for outer, count in ranges:
            maps[-1].append((first, outer, count))
            first += count
        if wanted is not None and wanted >= first:
            raise Failure(f"{option}: {wanted} is not among the ids of --map=subid, 0 to {first - 1}")
    if identity.may_map():
        return identity.IdMaps(*maps, (0, 0), "caller")
    if kernel.prctl("GET_NO_NEW_PRIVS"):
        raise Failure(f"--map=subid: newuidmap is a setuid program, and no_new_privs is set here [{SEE_CHECK}]")
    for name in ("newgidmap", "newuidmap"):
        outside.find(name, PACKAGE)
    return identity.IdMaps(*maps, (0, 0), "newuidmap")


def names_of_user():
    """The caller's name, if it has one, and uid, as the files have them in their first column."""
    import pwd

    uid = os.getuid()
    try:
        return [pwd.getpwuid(uid).pw_name, str(uid)]
    except KeyError:
        return [str(uid)]


def delegated(path, names):
    """The ranges that PATH, /etc/subuid or /etc/subgid, gives to who has NAMES: [(first, count)]."""
    try:
        with call(f"open {path}"), open(path, "rb") as file:
            lines = os.fsdecode(file.read()).split("\n")
    except Failure as err:
        if not isinstance(err.__cause__, FileNotFoundError):
            raise
        lines = []
    found = []
    for number, line in enumerate(lines, 1):
        name, *fields = line.split(":")
        if name not in names:
            continue  # whatever it is, it is somebody else's
        if len(fields) != 2 or not all(map(values.digits, fields)) or not int(fields[1]):
            raise Failure(f"--map=subid: {path}:{number}: not NAME:FIRST:COUNT: {line!r}")
        first, count = map(int, fields)
        if first + count - 1 > identity.LARGEST_ID:
            raise Failure(f"--map=subid: {path}:{number}: ids end at {identity.LARGEST_ID}: {line!r}")
        found.append((first, count))
    if not found:
        hint = f"add a line like {names[0]}:100000:65536; {SEE_CHECK}"
        raise Failure(f"--map=subid: {path} gives nothing to {names[0]} [{hint}]")
    return found


def check_apart(path, ranges):
    """Refuse RANGES, [(first, count)], of PATH that have an id in common: the kernel would, without a reason."""
    last = -1
    for first, count in sorted(ranges):
        if first <= last:
            raise Failure(f"--map=subid: {path}: {first} is there twice, or the caller's own id")
        last = first + count - 1


def write(pid, ids):
    """Have newgidmap and newuidmap map the IdMaps IDS in the user namespace of process PID."""
    for name, triples in (("newgidmap", ids.gids), ("newuidmap", ids.uids)):
        path = outside.find(name, PACKAGE)
        outside.run([path, str(pid), *(str(number) for triple in triples for number in triple)], name)
