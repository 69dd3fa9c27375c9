"""As whom PROG runs: names to numbers outside the sandbox, then ids, groups and capabilities."""

import os

from hako import kernel, values
from hako.failure import Failure, call

LARGEST_ID = 2**32 - 2  # 2**32 - 1 is -1, "no change", to the kernel
CAP_SETGID, CAP_SETUID = 6, 7


class Identity:
    """As whom PROG runs.

    uid, gid       numbers inside the sandbox, or None for the caller's own
    clear_groups   whether the supplementary groups go
    capabilities   numbers of those that PROG keeps, or None for every one
    """

    __slots__ = ("capabilities", "clear_groups", "gid", "uid")

    def __init__(self, uid=None, gid=None, clear_groups=False, capabilities=()):
        self.uid, self.gid, self.clear_groups = uid, gid, clear_groups
        self.capabilities = capabilities

    def held(self):
        """The numbers of the capabilities that PROG keeps."""
        return range(len(kernel.CAPABILITIES)) if self.capabilities is None else self.capabilities

    def powerless(self):
        """The same without capabilities."""
        return Identity(self.uid, self.gid, self.clear_groups)


class IdMaps:
    """The ids of a user namespace, one user and one group.

    inside, outside   (uid, gid) as PROG has them, and as the host sees them
    privileged        whether the caller may map any id, and so these are not its own
    """

    __slots__ = ("inside", "outside", "privileged")

    def __init__(self, inside, outside, privileged):
        self.inside, self.outside, self.privileged = inside, outside, privileged


def id_maps(who):
    """The IdMaps for PROG as the Identity WHO.

    A caller who may map any id has PROG run under that very id on the host too;
    who may not maps the own one.
    """
    own = os.geteuid(), os.getegid()
    inside = own[0] if who.uid is None else who.uid, own[1] if who.gid is None else who.gid
    privileged = kernel.capable(CAP_SETUID) and kernel.capable(CAP_SETGID)
    return IdMaps(inside, inside if privileged else own, privileged)


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
            raise Failure(f"--cap-add: no such capability: {name!r}")
        found.add(word)
    if "all" in found:
        return None
    return tuple(sorted(kernel.CAPABILITIES.index(word) for word in found))


def assume(identity):
    """Become IDENTITY for good: ids, capabilities, no_new_privs.

    The order is the kernel's: the bounding set and the groups need the
    capabilities that the change of ids takes away; no_new_privs comes last but
    for what the caller does under it.
    """
    held = kernel.capget()[1]
    caps = identity.capabilities
    if caps is None:
        caps = tuple(cap for cap in range(len(kernel.CAPABILITIES)) if held >> cap & 1)
    for cap in caps:
        if not held >> cap & 1:
            raise Failure(f"--cap-add: cap_{kernel.CAPABILITIES[cap]} is not the caller's to give")
    if kernel.prctl("GET_SECUREBITS"):
        kernel.prctl("SET_SECUREBITS", 0)
    kernel.limit_bounding(caps)
    kernel.prctl("SET_KEEPCAPS", 1 if caps else 0)  # else the change of uid clears them
    change_ids(identity)
    kernel.capset(sum(1 << cap for cap in caps))
    kernel.set_ambient(caps)
    kernel.prctl("SET_KEEPCAPS", 0)
    kernel.prctl("SET_NO_NEW_PRIVS", 1)


def told(identity):
    """IDENTITY, which this process has taken on, for people."""
    kept = identity.capabilities
    kept = "all" if kept is None else ",".join(kernel.CAPABILITIES[cap] for cap in kept) or "none"
    return f"uid {os.geteuid()}, gid {os.getegid()}, capabilities: {kept}"


def change_ids(identity):
    """Set the groups, then all of the gids, then all of the uids: the other way round would be too late."""
    with call("getgroups"):
        groups = set(os.getgroups()) - {os.getegid()}
    if identity.clear_groups and groups:
        hint = "an ordinary user cannot clear the supplementary groups: run without --user and --group"
        with call("setgroups", hint):
            os.setgroups([])
    if identity.gid is not None:
        with call(f"setresgid {identity.gid}"):
            os.setresgid(identity.gid, identity.gid, identity.gid)
    if identity.uid is not None:
        with call(f"setresuid {identity.uid}"):
            os.setresuid(identity.uid, identity.uid, identity.uid)
