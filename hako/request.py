"""A request of hako-task: from a JSON text to a checked description. See hako-task(5).

Nothing is looked up or opened here. What is wrong is told as the sandals tool
tells it, the same thing first where there are several: the types of all keys
in the order of the text, then what is in them in the order of THEN.
"""

from hako import identity, json, rlimits, values
from hako.failure import Failure

MIB = 2**20
LARGEST_ID = 2**31 - 1
LARGEST_PORT = 2**16 - 1
MOST_SECONDS = 10**9  # of a time limit; more is taken for this
NAME = "sandals"  # of host and domain, unless given
MOUNT_TYPES = ("bind", "proc", "tmpfs", "dev")
TMPFS_OPTIONS = ("size", "mode", "nr_inodes", "nr_blocks")
SUFFIXES = "kKmMgG"  # of those that are numbers
ENCODINGS = ("text", "base64")
NETWORKS = ("none", "host")
ACCESS = ("ro", "rw", "rx", "rwx")
TCP = ("bind_tcp", "connect_tcp")
SCOPES = ("abstract-unix", "signal")
MOVING = ("cgroup.procs", "cgroup.threads", "tasks")  # files of a cgroup: who is in there is killed in the end


class Invalid(Exception):
    """A request that is none. DESCRIPTION says why, None if it is not even JSON; ID is its id if it has one.

    inside   whether it is in what the sandals tool looks at only when it is inside: its exit status is another then
    """

    def __init__(self, description, id=None):
        super().__init__(description)
        self.description, self.id, self.inside = description, id, False


class Request:
    """What is to be run and how; None is what was not given.

    As in the sandals tool:

    cmd             PROG and its arguments, one at least
    host_name       inside
    domain_name     inside
    uid, gid        inside, numbers
    chroot          directory of the host that becomes the root; None: the host's own root
    mounts          (Mount, ...), in the order in which they are done
    cgroup_config   ((file, text to write), ...), in order, for a cgroup; None: no cgroup
    cgroup          directory of a cgroup that is there
    cgroup_root     directory in which one is made
    seccomp_policy  a policy in Kafel, its text
    va_randomize    whether addresses are random
    env             ("NAME=VALUE", ...) as given, with repetitions, perhaps without "="
    work_dir        where PROG starts, inside, from / on if it does not begin there; "" is no directory
    time_limit      seconds, a float, 0 to MOST_SECONDS
    pipes           (Channel, ...)
    copy_files      (Channel, ...)
    std_streams     a Channel, of which only dest and limit count

    Others:

    stdin           bytes: what PROG reads; str: the path of the host's file that it reads; None: nothing
    rootfs          paths of the host to show read-only at the same place in an empty root; None: as chroot says
    limits          {name as in rlimits.LIMITS: (soft, hard)}
    landlock        a Landlock, or None
    overlay         an Overlay, or None
    outputs         an Outputs, or None
    id              a str, an int or a finite float, to be echoed
    report          whether the response has the report in it
    capabilities    numbers of those that PROG keeps, or None for every one; as in identity.Identity
    network         one of NETWORKS
    """

    __slots__ = (
        *("capabilities", "cgroup", "cgroup_config", "cgroup_root", "chroot", "cmd", "copy_files", "domain_name"),
        *("env", "gid", "host_name", "id", "landlock", "limits", "mounts", "network", "outputs", "overlay"),
        *("pipes", "report", "rootfs", "seccomp_policy", "std_streams", "stdin", "time_limit", "uid"),
        *("va_randomize", "work_dir"),
    )

    def __init__(self):
        for name in self.__slots__:
            setattr(self, name, None)
        self.host_name = self.domain_name = NAME
        self.uid = self.gid = 0
        self.work_dir, self.network = "/", "none"
        self.va_randomize, self.report = True, False
        self.cmd = self.env = self.mounts = self.pipes = self.copy_files = self.capabilities = ()
        self.limits = {}


class Mount:
    """One of mounts.

    type     one of MOUNT_TYPES
    dest     where, inside
    src      of a bind, the path of the host; else what was given, which counts for nothing
    options  of a tmpfs, ((one of TMPFS_OPTIONS, its value as text for the kernel), ...)
    ro       whether it is read-only
    """

    __slots__ = ("dest", "options", "ro", "src", "type")

    def __init__(self, type, dest, src=None, options=(), ro=False):
        self.type, self.dest, self.src, self.options, self.ro = type, dest, src, options, ro


class Channel:
    """Where output goes: one of pipes or copyFiles, or stdStreams.

    dest            path of the host
    src             path inside, or None
    stdout, stderr  whether it is that of PROG
    limit           bytes
    """

    __slots__ = ("dest", "limit", "src", "stderr", "stdout")

    def __init__(self, dest, src=None, stdout=False, stderr=False, limit=values.LARGEST):
        self.dest, self.src, self.stdout, self.stderr, self.limit = dest, src, stdout, stderr, limit


class Landlock:
    """What Landlock leaves, in the words of landlock.Rules.

    paths    [(one of ACCESS, absolute path inside)], or None: files are not restricted
    ports    [(one of TCP, number)], or None: TCP is not restricted
    scopes   of SCOPES, what must not leave the sandbox
    """

    __slots__ = ("paths", "ports", "scopes")

    def __init__(self, paths=None, ports=None, scopes=()):
        self.paths, self.ports, self.scopes = paths, ports, scopes


class Overlay:
    """Where what is written goes instead of chroot.

    upper    absolute path of a directory, or None: a tmpfs
    size     bytes that the tmpfs holds, or None
    changes  whether the response lists what has changed
    """

    __slots__ = ("changes", "size", "upper")

    def __init__(self, upper=None, size=None, changes=False):
        self.upper, self.size, self.changes = upper, size, changes


class Outputs:
    """What of the output is put into the response.

    stdout, stderr  whether it is
    limit           bytes of each
    encoding        one of ENCODINGS
    """

    __slots__ = ("encoding", "limit", "stderr", "stdout")

    def __init__(self, stdout=True, stderr=True, limit=MIB, encoding="text"):
        self.stdout, self.stderr, self.limit, self.encoding = stdout, stderr, limit, encoding


def parse(data):
    """The Request of DATA, the bytes of one JSON text."""
    return checked(document(data))


def document(data):
    """The value of DATA, the bytes of one JSON text."""
    try:
        return json.read(data)
    except json.TooDeep:
        raise Invalid("Nested too deep") from None
    except ValueError:
        raise Invalid(None) from None


def checked(value):
    """The Request of VALUE, as document() has it."""
    try:
        found = members(value, None, FIRST)
        request = Request()
        for key, inner in found.items():
            setattr(request, SLOTS[key], inner)
        for key, reader in THEN.items():
            if key in found or key == "cmd":
                try:
                    setattr(request, SLOTS[key], reader(found.get(key), (None, key)))
                except Invalid as err:
                    err.inside = key == "mounts"
                    raise
        agree(request, found)
    except Invalid as err:
        err.id = identifier_of(value)
        raise
    return request


def identifier_of(document):
    """The id in DOCUMENT, if it has one that can be echoed."""
    try:
        return identifier(document["id"], None)
    except (Invalid, KeyError, TypeError, IndexError):
        return None


def agree(request, found):
    """See whether what FOUND of a request says fits together in REQUEST."""
    if "rootfs" in found and "chroot" in found:
        raise wrong((None, "rootfs"), "Not with 'chroot'")
    if "overlay" in found and "chroot" not in found:
        raise wrong((None, "overlay"), "'chroot' is required")
    if request.outputs is not None:
        leave(request, found["outputs"])


def leave(request, given):
    """Leave the streams that go elsewhere in REQUEST out of its outputs, if they are not asked for there, in GIVEN."""
    for name in ("stdout", "stderr"):
        others = {
            "stdStreams": request.std_streams is not None,
            "pipes": any(getattr(channel, name) for channel in request.pipes),
            "copyFiles": any(getattr(channel, name) for channel in request.copy_files),
        }
        for key, taken in others.items():
            if taken and given.get(name):
                raise wrong(((None, "outputs"), name), f"Goes to '{key}'")
            if taken:
                setattr(request.outputs, name, False)


def wrong(path, message):
    """The Invalid that MESSAGE describes about what is at PATH: None for the root, else (PATH, key or index)."""
    words = []
    while path is not None:
        path, key = path
        words.insert(0, f"[{key}]" if type(key) is int else f".{key}")
    place = "".join(words).removeprefix(".")
    return Invalid(f"{place}: {message}" if place else message)


def string(value, path):
    """VALUE, at PATH, which must be a string."""
    if type(value) is not str:
        raise wrong(path, "Expecting a string")
    return value


def boolean(value, path):
    """VALUE, at PATH, which must be a boolean."""
    if type(value) is not bool:
        raise wrong(path, "Expecting a boolean")
    return value


def array(value, path):
    """VALUE, at PATH, which must be an array."""
    if type(value) is not list:
        raise wrong(path, "Expecting an array")
    return value


def mapping(value, path):
    """VALUE, at PATH, which must be an object."""
    if type(value) is not dict:
        raise wrong(path, "Expecting an object")
    return value


def number(value, path):
    """VALUE, at PATH, which must be a number, 0 or more."""
    if type(value) not in (int, float) or value < 0:
        raise wrong(path, "Expecting non-negative number")
    return value


def user(value, path):
    """VALUE, at PATH, as an id: what is behind the point is cut off, unless that would make root of it."""
    if number(value, path) > LARGEST_ID:
        raise wrong(path, "Value too big")
    if 0 < value < 1:
        raise wrong(path, "Expecting a whole number")
    return int(value)


def limit(value, path):
    """VALUE, at PATH, as a number of bytes: what is behind the point is cut off, too large is the largest."""
    return int(min(number(value, path), values.LARGEST))


def seconds(value, path):
    """VALUE, at PATH, as seconds."""
    return float(min(number(value, path), MOST_SECONDS))


def whole(value, path, most=values.LARGEST):
    """VALUE, at PATH, as a whole number up to MOST."""
    if number(value, path) > most:
        raise wrong(path, "Value too big")
    if value != int(value):
        raise wrong(path, "Expecting a whole number")
    return int(value)


def identifier(value, path):
    """VALUE, at PATH, as an id: a string, or a number that can be written again."""
    if type(value) not in (str, int, float):
        raise wrong(path, "Expecting a string or a number")
    if value in (json.INFINITY, -json.INFINITY):
        raise wrong(path, "Value too big")
    return value


def choice(*known):
    """A reader of a string that is one of those KNOWN."""
    expected = " or ".join(f"'{word}'" for word in known)

    def read(value, path):
        """VALUE, at PATH, which must be one of them."""
        if string(value, path) not in known:
            raise wrong(path, f"Expecting {expected}")
        return value

    return read


def strings(value, path):
    """VALUE, at PATH, as a tuple of strings."""
    for index, inner in enumerate(array(value, path)):
        if type(inner) is not str:
            string(inner, (path, index))
    return tuple(value)


def items(value, path, reader):
    """VALUE, at PATH, an array, as a tuple of what READER makes of each."""
    return tuple([reader(inner, (path, index)) for index, inner in enumerate(array(value, path))])


def members(value, path, readers):
    """VALUE, at PATH, an object of keys of READERS, as a dictionary of what these make of each."""
    found = {}
    for key, inner in mapping(value, path).items():
        place = (path, key)
        reader = readers.get(key)
        if reader is None:
            raise wrong(place, "Unknown key")
        found[key] = reader(inner, place)
    return found


def absolute(value, path):
    """VALUE, at PATH, as a path that begins at the root."""
    if not string(value, path).startswith("/"):
        raise wrong(path, "Expecting an absolute path")
    return value


def command(value, path):
    """VALUE, at PATH, the strings of the command, or None."""
    del path
    if not value:
        raise Invalid("'cmd' missing or empty")
    return value


def std_streams(value, path):
    """VALUE, at PATH, as the Channel of both streams."""
    found = members(value, path, {"dest": string, "limit": limit})
    require(found, path, "dest")
    return Channel(**found)


def require(found, path, key):
    """See that KEY is among those FOUND at PATH."""
    if key not in found:
        raise wrong(path, f"'{key}' missing")


def channel(value, path):
    """VALUE, at PATH, as a Channel."""
    found = members(value, path, OF_CHANNEL)
    require(found, path, "dest")
    return Channel(**found)


def pipe(value, path):
    """VALUE, at PATH, as the Channel of a pipe."""
    found = channel(value, path)
    if not found.stdout and not found.stderr and found.src is None:
        raise wrong(path, "'stdout' or 'stderr' or 'src' is required")
    return found


def copy_file(value, path):
    """VALUE, at PATH, as the Channel of a file to copy."""
    found = channel(value, path)
    if found.src is None:
        raise wrong(path, "'src' missing")
    return found


def cgroup_config(value, path):
    """VALUE, at PATH, as pairs of a cgroup's file and what to write there."""
    return tuple(cgroup_setting(key, text, (path, key)) for key, text in value.items())


def cgroup_setting(key, text, path):
    """KEY and TEXT, at PATH, as a pair of those."""
    name = key.lstrip("/")
    if name in ("", ".", "..") or "/" in name:
        raise wrong(path, "Not a file of a cgroup")
    if name in MOVING:
        raise wrong(path, "Moves processes, which hako-task does itself")
    return name, string(text, path)


def mount(value, path):
    """VALUE, at PATH, as a Mount."""
    found = members(value, path, OF_MOUNT)
    require(found, path, "type")
    require(found, path, "dest")
    if found["type"] == "bind":
        require(found, path, "src")
    if found["type"] not in MOUNT_TYPES:
        raise wrong((path, "type"), f"'{found['type']}' is not supported")
    if "options" in found:
        known = TMPFS_OPTIONS if found["type"] == "tmpfs" else ()
        words = filter(None, found["options"].split(","))
        found["options"] = tuple(mount_option(word, known, (path, "options")) for word in words)
    return Mount(**found)


def mount_option(word, known, path):
    """WORD, NAME=VALUE, at PATH, as a pair; its name is one of those KNOWN."""
    name, _, value = word.partition("=")
    if name not in known:
        raise wrong(path, f"'{word}' is not supported")
    if name == "mode":
        valid = 0 < len(value) < 6 and not value.strip("01234567") and int(value, 8) <= 0o7777
    else:
        valid = values.digits(value[:-1] if value[-1:] in (*SUFFIXES, "%" if name == "size" else "k") else value)
    if not valid:
        raise wrong(path, f"'{word}' has no valid value")
    return name, value


def standard_input(value, path):
    """VALUE, at PATH: bytes, the contents, or a str, the path of a file."""
    if type(value) is str:
        return value.encode()
    if type(value) is not dict:
        raise wrong(path, "Expecting a string or an object")
    found = members(value, path, {"path": string})
    require(found, path, "path")
    return found["path"]


def shown(value, path):
    """VALUE, at PATH, as a path of the host that is shown at the same place."""
    parts = absolute(value, path).split("/")
    if ".." in parts or not any(part not in ("", ".") for part in parts):
        raise wrong(path, "Expecting a path below / without '..'")
    return value


def resource_limits(value, path):
    """VALUE, at PATH, as resource limits: {name: (soft, hard)}."""
    return members(value, path, OF_LIMITS)


def resource_limit(name):
    """A reader of the resource limit NAME."""

    def read(value, path):
        """VALUE, at PATH, as a pair of soft and hard limit."""
        if type(value) is str:
            return told(path, rlimits.pair, name, value)
        if type(value) not in (int, float):
            raise wrong(path, "Expecting a string or a number")
        return (whole(value, path),) * 2

    return read


def size(value, path):
    """VALUE, at PATH, as bytes: a number, or a string that may end in K, M or G."""
    if type(value) is str:
        return told(path, values.size, "", value)
    if type(value) not in (int, float):
        raise wrong(path, "Expecting a string or a number")
    return whole(value, path)


def told(path, function, *args):
    """What FUNCTION makes of ARGS; its Failure, which begins with an option, is told of what is at PATH."""
    try:
        return function(*args)
    except Failure as err:
        message = str(err).partition(": ")[2]
        raise wrong(path, message[0].upper() + message[1:]) from None


def landlock(value, path):
    """VALUE, at PATH, as a Landlock."""
    readers = {
        **{name: lambda value, path: items(value, path, absolute) for name in ACCESS},
        **{name: lambda value, path: items(value, path, port) for name in TCP},
        "scope": lambda value, path: items(value, path, choice(*SCOPES)),
    }
    found = members(value, path, readers)
    return Landlock(pairs(found, ACCESS), pairs(found, TCP), found.get("scope", ()))


def port(value, path):
    """VALUE, at PATH, as the number of a TCP port."""
    return whole(value, path, LARGEST_PORT)


def pairs(found, names):
    """Pairs of those NAMES that were FOUND and each of what they list; None if none was."""
    if not any(name in found for name in names):
        return None
    return [(name, item) for name in names for item in found.get(name, ())]


def overlay(value, path):
    """VALUE, at PATH, as an Overlay."""
    if value == "tmpfs":
        return Overlay()
    if type(value) is not dict:
        raise wrong(path, "Expecting 'tmpfs' or an object")
    found = Overlay(**members(value, path, {"upper": upper, "size": size, "changes": boolean}))
    if found.upper is not None and found.size is not None:
        raise wrong((path, "size"), "Only with a tmpfs")
    if found.size == 0:
        raise wrong((path, "size"), "0 would mean no limit")
    return found


def upper(value, path):
    """VALUE, at PATH, as the directory of an overlay, None for a tmpfs."""
    if string(value, path) == "tmpfs":
        return None
    if not value.startswith("/"):
        raise wrong(path, "Expecting 'tmpfs' or an absolute path")
    return value


def outputs(value, path):
    """VALUE, at PATH, as an Outputs."""
    readers = {"stdout": boolean, "stderr": boolean, "limit": limit, "encoding": choice(*ENCODINGS)}
    return Outputs(**members(value, path, readers))


def capabilities(value, path):
    """VALUE, at PATH, names of capabilities, as their numbers; None if one is "all"."""
    for index, name in enumerate(value):
        told((path, index), identity.capabilities, [name])
    return identity.capabilities(value)


def anything(value, path):
    """VALUE, at PATH, whatever it is."""
    del path
    return value


OF_MOUNT = {"type": string, "src": string, "dest": string, "options": string, "ro": boolean}
OF_CHANNEL = {"dest": string, "src": string, "stdout": boolean, "stderr": boolean, "limit": limit}
OF_LIMITS = {name: resource_limit(name) for name in rlimits.LIMITS}
FIRST = {
    **{"cmd": strings, "hostName": string, "domainName": string, "uid": user, "gid": user, "chroot": string},
    **{"mounts": array, "cgroupConfig": mapping, "cgroup": string, "cgroupRoot": string, "seccompPolicy": string},
    **{"vaRandomize": boolean, "env": strings, "workDir": string, "timeLimit": seconds, "pipes": array},
    **{"copyFiles": array, "stdStreams": mapping},
    **{"stdin": anything, "rootfs": array, "limits": mapping, "landlock": mapping, "overlay": anything},
    **{"outputs": mapping, "id": identifier, "report": boolean, "capabilities": strings},
    "network": choice(*NETWORKS),
}
SLOTS = {key: "".join(f"_{char.lower()}" if char.isupper() else char for char in key) for key in FIRST}
THEN = {
    "stdStreams": std_streams,
    "cmd": command,
    "cgroupConfig": cgroup_config,
    "pipes": lambda value, path: items(value, path, pipe),
    "copyFiles": lambda value, path: items(value, path, copy_file),
    "mounts": lambda value, path: items(value, path, mount),
    "stdin": standard_input,
    "rootfs": lambda value, path: items(value, path, shown),
    "limits": resource_limits,
    "landlock": landlock,
    "overlay": overlay,
    "outputs": outputs,
    "capabilities": capabilities,
}
