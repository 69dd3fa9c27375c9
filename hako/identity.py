"""As whom PROG runs: names to numbers outside the sandbox, then ids, groups and capabilities."""

import os

from hako import kernel, values
from hako.failure import Failure, call, refused

LARGEST_ID = 2**32 - 2  # 2**32 - 1 is -1, "no change", to the kernel
CAP_SETGID, CAP_SETUID = 6, 7
EPERM = 1


class Identity:
    """As whom PROG runs.

    uid, gid       numbers inside the sandbox, or None for the caller's own
    clear_groups   whether the supplementary groups go
    capabilities   numbers of those that PROG keeps, or None for every one
    groups         what supplementary groups there are besides the own, see note_groups()
    """

    __slots__ = ("capabilities", "clear_groups", "gid", "groups", "uid")

    def __init__(self, uid=None, gid=None, clear_groups=False, capabilities=()):
        self.uid, self.gid, self.clear_groups = uid, gid, clear_groups
        self.capabilities, self.groups = capabilities, None

    def note_groups(self):
        """Note the supplementary groups: in a user namespace all that are not mapped look like one, perhaps the own."""
        with call("getgroups"):
            self.groups = set(os.getgroups()) - {os.getegid()}

    def held(self):
        """The numbers of the capabilities that PROG keeps."""
        return range(len(kernel.CAPABILITIES)) if self.capabilities is None else self.capabilities

    def powerless(self):
        """The same without capabilities."""
        same = Identity(self.uid, self.gid, self.clear_groups)
        same.groups = self.groups
        return same


class IdMaps:
    """The ids of a user namespace.

    uids, gids   triples INSIDE OUTSIDE COUNT
    inside       (uid, gid) as the sandbox is made with them
    writer       who puts it in force: "inside", a process in there that maps its own ids; "caller",
                 who may map any; "newuidmap", see subids
    """

    __slots__ = ("gids", "inside", "uids", "writer")

    def __init__(self, uids, gids, inside, writer):
        self.uids, self.gids, self.inside, self.writer = uids, gids, inside, writer

    def outside(self):
        """The ids inside, (uid, gid), as the host sees them."""
        return tuple(
            outer(triples, number) for triples, number in zip((self.uids, self.gids), self.inside, strict=True)
        )

    def host_uid(self, who):
        """The uid of PROG as the Identity WHO, as the host sees it.

        With a capability it may have that of any id, and of these uid 0 inside
        is the one that may have files of the host.
        """
        uid = self.inside[0] if who.uid is None or who.held() else who.uid
        return outer(self.uids, uid)

    def told(self):
        """It, for people."""
        if len(self.uids) == 1 and self.uids[0][2] == 1:
            return f"uid and gid {self.inside} inside are {self.outside()} outside"
        kinds = (("uid", self.uids), ("gid", self.gids))
        return "; ".join(f"{kind} map {', '.join(' '.join(map(str, t)) for t in triples)}" for kind, triples in kinds)


def outer(triples, number):
    """The id outside that NUMBER is by TRIPLES, INSIDE OUTSIDE COUNT."""
    return next(first + number - inside for inside, first, count in triples if inside <= number < inside + count)


def may_map():
    """Whether this process may map any id in a user namespace that it makes."""
    return kernel.capable(CAP_SETUID) and kernel.capable(CAP_SETGID)


def id_maps(who):
    """The IdMaps for PROG as the Identity WHO: one user and one group.

    A caller who may map any id has PROG run under that very id on the host too;
    who may not maps the own one.
    """
    own = os.geteuid(), os.getegid()
    inside = own[0] if who.uid is None else who.uid, own[1] if who.gid is None else who.gid
    privileged = may_map()
    outside = inside if privileged else own
    uids, gids = [(inside[0], outside[0], 1)], [(inside[1], outside[1], 1)]
    return IdMaps(uids, gids, inside, "caller" if privileged else "inside")


def resolve(user, group, cap_add):
    """The Identity that the options --user, --group and --cap-add mean on this host (None: not given)."""
    uid, gid = (None, None) if user is None else find_user(user, group is None)
    if group is not None:
        gid = find_group(group)
    return Identity(uid, gid, uid is not None or gid is not None, capabilities(cap_add))


def find_user(user, need_group):
    """The uid of USER, a name or a number, and the gid of its primary group if NEED_GROUP."""
    import pwd

    try:
        entry = pwd.getpwuid(number("--user", user)) if values.digits(user) else pwd.getpwnam(user)
    except KeyError:
        if not values.digits(user):
            raise Failure(f"--user: no such user: {user!r}") from None
        if need_group:
            raise Failure(f"--user: {user} is not in passwd: give --group too") from None
        return int(user), None
    except ValueError as err:
        raise Failure(f"--user: {err}: {user!r}") from err
    return entry.pw_uid, entry.pw_gid


def find_group(group):
    """The gid of GROUP, a name or a number."""
    import grp

    if values.digits(group):
        return number("--group", group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise Failure(f"--group: no such group: {group!r}") from None
    except ValueError as err:
        raise Failure(f"--group: {err}: {group!r}") from err


def number(option, text):
    """TEXT, digits, as an id that the kernel takes."""
    if int(text) > LARGEST_ID:
        raise Failure(f"{option}: ids end at {LARGEST_ID}: {text!r}")
    return int(text)


def capabilities(names):
    """The numbers of the capabilities NAMES ("cap_kill", "KILL"), sorted; None if one is "all"."""
    found = set()
    for name in names:
        word = name.lower().removeprefix("cap_")
        if word != "all" and word not in kernel.CAPABILITIES:
            from hako import near

            raise Failure(f"--cap-add: no such capability: {name!r}{near.hint(word, kernel.CAPABILITIES)}")
        found.add(word)
    if "all" in found:
        return None
    return tuple(sorted(kernel.CAPABILITIES.index(word) for word in found))


def assume(identity):
    """Become IDENTITY for good: ids, capabilities, no_new_privs."""
    kernel.carry_out(assume_calls(identity))


def assume_calls(identity):
    """The same, for kernel.carry_out(), in this process or in a child."""
    caps = kept(identity, kernel.capget()[1])
    return [
        *([kernel.prctl_call("SET_SECUREBITS", 0)] if kernel.prctl("GET_SECUREBITS") else []),
        *kernel.bounding_calls(caps),
        *change_calls(identity, caps, [lambda: clear_groups(identity)] if identity.clear_groups else []),
    ]


def kept(identity, held):
    """The numbers of the capabilities that IDENTITY keeps of those HELD, a bit mask."""
    caps = identity.capabilities
    if caps is None:
        caps = tuple(cap for cap in range(len(kernel.CAPABILITIES)) if held >> cap & 1)
    for cap in caps:
        if not held >> cap & 1:
            raise Failure(f"--cap-add: cap_{kernel.CAPABILITIES[cap]} is not the caller's to give")
    return caps


def change_calls(identity, caps, groups=()):
    """What of it comes behind the bounding set, with the capabilities CAPS kept; GROUPS clears the groups.

    The order is the kernel's: the bounding set and the groups need the
    capabilities that the change of ids takes away, the gids must go before the
    uids; no_new_privs comes last but for what the caller does under it.
    """
    return [
        kernel.prctl_call("SET_KEEPCAPS", 1 if caps else 0),  # else the change of uid clears them
        *groups,
        *kernel.set_ids_calls(identity.uid, identity.gid),
        kernel.capset_call(sum(1 << cap for cap in caps)),
        *kernel.ambient_calls(caps),
        kernel.prctl_call("SET_KEEPCAPS", 0),
        kernel.prctl_call("SET_NO_NEW_PRIVS", 1),
    ]


def told(identity):
    """IDENTITY, which this process has taken on, for people."""
    kept = identity.capabilities
    kept = "all" if kept is None else ",".join(kernel.CAPABILITIES[cap] for cap in kept) or "none"
    return f"uid {os.geteuid()}, gid {os.getegid()}, capabilities: {kept}"


def clear_groups(identity):
    """Clear the supplementary groups of IDENTITY, of which an ordinary user may have the own one alone."""
    if identity.groups is None:
        identity.note_groups()
    try:
        os.setgroups([])
    except PermissionError as err:
        if identity.groups:
            hint = "an ordinary user cannot clear the supplementary groups: run without --user and --group"
            raise refused("setgroups", EPERM, hint) from err
