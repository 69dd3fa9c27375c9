"""The keys of a policy file: from what a TOML document says to the fields of a policy.Policy.

Those of two older generations of the language and ours; where two keys mean
the same they end in the same field. See hako-policy(5).
"""

import os

from hako import rules, sandbox, syscalls, values
from hako.failure import Failure, call, show
from hako.toml import brief

KINDS = {str: "a string", bool: "true or false", int: "a whole number", list: "a list", dict: "a table"}
LARGEST_ID = 2**32 - 2  # 2**32 - 1 is -1, "no change", to the kernel
LARGEST_PORT = 2**16 - 1
MOST_PIDS = 2**22  # the kernel's PID_MAX_LIMIT
PAGE = 4096
MOST_NAME = 255  # bytes of a file's name, the kernel's
MOST_SECONDS = 10**9
MOST_HOSTNAME = 64  # bytes, the kernel's
PATH_MAX = 4096  # with the 0 at the end
LIMITS = {  # (whether it is a size, the least, the most)
    **{"as": (True, 0, values.LARGEST), "core": (True, 0, values.LARGEST), "fsize": (True, 0, values.LARGEST)},
    **{"cpu": (False, 1, values.LARGEST), "nofile": (False, 0, values.LARGEST)},
    **{"memory": (True, PAGE, values.LARGEST), "pids": (False, 1, MOST_PIDS), "output": (True, 1, values.LARGEST)},
}  # and walltime, in seconds
CGROUP = {"swap": (True, 0, values.LARGEST), "cpu": (False, 1, 10**6), "cpu_weight": (False, 1, 10**4)}
NAMESPACES = ("cgroup", "ipc", "uts")
MOUNT_KEYS = {  # by type; all have source, target or destination, fstype or type
    "": ("rw", "dev", "noexec", "norec", "optional"),
    "tmpfs": ("rw", "size"),
    "devfs": (),
    "proc": (),
}
DEVICES = ("null", "random", "urandom", "zero")  # what mount_new_devfs shows
ACCESS = {"r": "ro", "rw": "rw", "rx": "rx", "rwx": "rwx"}
SCOPES = ("abstract-unix", "signal")
DISMATCH_ACTIONS = ("kill_process", "log", "allow")
TCP = {"tcp.bind": "bind_tcp", "tcp.connect": "connect_tcp"}
REFUSED = {
    "rootdir": "the root is always a tmpfs of its own: hako-run takes a directory",
    "rootfs": "the root is always a tmpfs of its own: mounts say what is in it",
    "userns": "ids are those of uid, gid, user and group",
}


class Wrong(Exception):
    """What is wrong at PATH, a tuple of keys and indexes, which stands at OFFSET, None if nobody knows."""

    def __init__(self, path, offset, message):
        super().__init__(message)
        self.path, self.offset = path, offset


class Node:
    """A VALUE of a document, as in toml.Item, the PATH to it, and its OFFSET in the text."""

    __slots__ = ("offset", "path", "value")

    def __init__(self, value, path=(), offset=None):
        self.value, self.path, self.offset = value, path, offset

    def wrong(self, message):
        """The Wrong MESSAGE about this."""
        return Wrong(self.path, self.offset, message)

    def unknown(self, known):
        """The Wrong of this, which has none of the keys KNOWN."""
        from hako import near

        return self.wrong(f"unknown key{near.hint(str(self.path[-1]), known)}")

    def of(self, kind):
        """The value, which must be a KIND."""
        if type(self.value) is not kind:
            raise self.wrong(f"not {KINDS[kind]}")
        return self.value

    def items(self):
        """The nodes of a list."""
        return [Node(item.value, (*self.path, index), item.offset) for index, item in enumerate(self.of(list))]

    def members(self):
        """The nodes of a table: {key: node}."""
        return {key: Node(item.value, (*self.path, key), item.offset) for key, item in self.of(dict).items()}

    def table(self, *known, needs=()):
        """The nodes of a table that has no key but those KNOWN, and those that it NEEDS."""
        members = self.members()
        for key, node in members.items():
            if key not in known and key not in needs:
                raise node.unknown((*known, *needs))
        for key in needs:
            if key not in members:
                raise self.wrong(f"{key} is missing")
        return members

    def word(self):
        """A string that names something: not empty, and without a 0."""
        if not self.of(str) or "\0" in self.value:
            raise self.wrong("a string with a NUL in it" if self.value else "an empty string")
        return self.value

    def words(self):
        """A list of those, a tuple."""
        return tuple(node.word() for node in self.items())

    def choice(self, known):
        """A string that is one of those KNOWN."""
        if self.of(str) not in known:
            raise self.wrong(f"not {' or '.join(map(repr, known))}")
        return self.value

    def whole(self, least, most):
        """A whole number from LEAST to MOST."""
        if not least <= self.of(int) <= most:
            raise self.wrong(f"not from {least} to {most}")
        return self.value

    def size(self, least, most):
        """A number of bytes from LEAST to MOST: a whole number, or a string that may end in K, M or G."""
        if type(self.value) is str:
            try:
                return Node(values.size("", self.value[:30]), self.path, self.offset).whole(least, most)
            except Failure as err:
                raise self.wrong("not a size, a whole number or one with K, M or G") from err
        if type(self.value) is not int:
            raise self.wrong("not a size, a whole number or one with K, M or G")
        return self.whole(least, most)

    def quantity(self, sized, least, most):
        """A size if SIZED, else a whole number, from LEAST to MOST."""
        return self.size(least, most) if sized else self.whole(least, most)

    def seconds(self):
        """Seconds, more than 0."""
        if type(self.value) not in (int, float) or not 0 < self.value <= MOST_SECONDS:
            raise self.wrong(f"not seconds, more than 0 and at most {MOST_SECONDS}, like 2 or 0.5")
        return float(self.value)

    def place(self):
        """A path inside that names a place below the root, as /a/b."""
        self.word()
        problem = place_problem(self.value)
        if problem:
            raise self.wrong(problem)
        return place(self.value)


def includes(node):
    """The nodes of the policies that the document at NODE includes."""
    listed = node.members().get("@include")
    return listed.items() if listed else []


def rules_named(name, directory):
    """What NAME means as rules for system calls: none, a profile, or a file of DIRECTORY, which gets its full path."""
    if name == "none" or rules.is_profile(name):
        return name
    with call("getcwd"):
        path = os.path.abspath(os.path.join(directory, name))
    if not os.path.exists(path):
        raise Failure(f"neither a built-in profile nor a file: {brief(name)!r} [{rules.advice_on(name)}]")
    return path


def place(path):
    """PATH, of the sandbox, in its plainest form."""
    return "/" + "/".join(sandbox.steps(path))


def place_problem(path):
    """Why nothing can be put at PATH of the sandbox, None if it can."""
    steps = sandbox.steps(path)
    if not steps:
        return "it is the root itself"
    if ".." in steps:
        return "'..' in it"
    if len(os.fsencode(path)) >= PATH_MAX:
        return f"longer than the {PATH_MAX - 1} bytes that a path may have"
    return None


class Reader:
    """Reads what a policy file in DIRECTORY says into the Policy MADE: one method for each key.

    kinds     what is put where: {steps: kind}
    setters   {name of a variable: the key that has set it}
    network   (node, whether the network is to be the host's), or None
    """

    def __init__(self, made, directory):
        self.made, self.directory = made, directory
        self.kinds, self.setters, self.network = {}, {}, None

    def read(self, node):
        """All of the document at NODE."""
        for key, item in node.members().items():
            if key in REFUSED:
                raise item.wrong(f"not taken: {REFUSED[key]}")
            method = getattr(self, f"key_{key}", None)
            if method is not None:
                method(item)
            elif key != "@include":
                raise item.unknown([name[4:] for name in dir(self) if name.startswith("key_")])
        if self.network is not None:
            node, shared = self.network
            if shared != (self.made.network == "host") and self.made.network is not None:
                raise node.wrong(f"network.mode is {brief(self.made.network)!r}")
            self.made.network = self.made.network or ("host" if shared else "none")

    def put(self, node, entry, kind):
        """Put ENTRY, of KIND, which NODE asks for, into the root. Of two of a kind the later has the place."""
        other = self.kinds.setdefault(sandbox.steps(entry.dst), kind)
        if other != kind:
            raise node.wrong(f"{other} has put something else at {show(brief(entry.dst))} already")
        self.made.tree.append(entry)

    def set(self, node, field, value, same="another key"):
        """Set the FIELD, which NODE asks for, to VALUE; SAME key may have done so, but not to another value."""
        if getattr(self.made, field) not in (None, value):
            raise node.wrong(f"{same} says otherwise")
        setattr(self.made, field, value)

    def key_share_net(self, node):
        """Whether PROG has the host's network."""
        self.share(node, "network", node.of(bool))

    def key_share_uts(self, node):
        """Whether PROG has the host's names."""
        self.share(node, "uts", node.of(bool))

    def key_namespaces(self, node):
        """Which namespaces are the host's: a list of type and share."""
        shared = {}
        for item in node.items():
            members = item.table("share", needs=("type",))
            name = members["type"].choice((*NAMESPACES, "network"))
            shared[name] = (item, "share" in members and members["share"].of(bool))
        for name, (item, wanted) in shared.items():
            self.share(item, name, wanted)

    def share(self, node, name, wanted):
        """Whether the namespace NAME is the host's is WANTED; NODE asks for it."""
        if name == "network":
            if self.network is not None and self.network[1] != wanted:
                raise node.wrong("another key says otherwise")
            self.network = node, wanted
        elif self.made.share.setdefault(name, wanted) != wanted:
            raise node.wrong("another key says otherwise")

    def key_network(self, node):
        """The network: mode, and options of pasta."""
        members = node.table("options", needs=("mode",))
        mode = members["mode"].word()
        if mode not in ("none", "host", "pasta") and "/" not in mode:
            raise members["mode"].wrong("neither none, host, pasta nor a file")
        self.made.network = mode
        if "options" in members:
            if mode != "pasta":
                raise members["options"].wrong("they are for pasta")
            self.made.network_options = members["options"].words()

    def key_uid(self, node):
        """The user id inside."""
        self.set(node, "uid", node.whole(0, LARGEST_ID))

    def key_gid(self, node):
        """The group id inside."""
        self.set(node, "gid", node.whole(0, LARGEST_ID))

    def key_user(self, node):
        """The user, a name or number of the host."""
        self.made.user = node.word()

    def key_group(self, node):
        """The group, a name or number of the host."""
        self.made.group = node.word()

    def key_uidmaps(self, node):
        """The user id, as a map of one id, the caller's own."""
        self.map_id(node, "uid", os.getuid())

    def key_gidmaps(self, node):
        """The group id, as a map of one id, the caller's own."""
        self.map_id(node, "gid", os.getgid())

    def map_id(self, node, field, own):
        """The FIELD, the id inside for OWN, from a map with one entry of one id."""
        for item in node.items():
            members = item.table("host_id", "count", needs=("container_id",))
            if len(node.value) > 1 or ("count" in members and members["count"].of(int) != 1):
                raise item.wrong("one id only: a policy maps no ranges")
            if "host_id" in members and members["host_id"].of(int) != own:
                raise members["host_id"].wrong(f"not the caller's own, {own}: it is the only one that can be had")
            self.set(item, field, members["container_id"].whole(0, LARGEST_ID), field)

    def key_hostname(self, node):
        """The name of the host."""
        if len(os.fsencode(node.word())) > MOST_HOSTNAME:
            raise node.wrong(f"longer than {MOST_HOSTNAME} bytes")
        self.made.hostname = node.value

    def key_mount_new_tmpfs(self, node):
        """Whether /tmp is a tmpfs."""
        if node.of(bool):
            self.first(node, sandbox.Tmpfs("/tmp"))

    def key_mount_new_devfs(self, node):
        """Whether the four devices are in /dev."""
        for name in DEVICES if node.of(bool) else ():
            self.first(node, sandbox.Bind(f"/dev/{name}", f"/dev/{name}", {"dev"}))

    def first(self, node, entry):
        """Put ENTRY before all else: an entry of mounts may take its place."""
        self.put(node, entry, "mounts")
        self.made.tree.insert(0, self.made.tree.pop())

    def key_mount_new_procfs(self, node):
        """Whether /proc is a fresh proc, if nothing else is there."""
        self.made.procfs = node.of(bool)

    def key_mounts(self, node):
        """What is mounted: a list."""
        for item in node.items():
            self.put(item, mount(item), "mounts")

    def key_files(self, node, kind="files"):
        """What files are made: a list, by the key KIND."""
        for item in node.items():
            members = item.table("target", "destination", needs=("contents",))
            target = either(item, members, ("target", "destination"))
            entry = sandbox.File(target.place(), members["contents"].of(str))
            if self.kinds.get(sandbox.steps(entry.dst), kind) == kind or not self.has(entry):
                self.put(target, entry, kind)

    def has(self, entry):
        """Whether the last at the place of ENTRY, a sandbox.File, is the same."""
        there = [other for other in self.made.tree if other.dst == entry.dst]
        return isinstance(there[-1], sandbox.File) and there[-1].contents == entry.contents

    def key_filesystem(self, node):
        """What files, directories and symbolic links are made."""
        members = node.table("files", "dirs", "symlinks")
        if "files" in members:
            self.key_files(members["files"], "filesystem.files")
        for item in members["dirs"].items() if "dirs" in members else ():
            dst = item.table(needs=("destination",))["destination"]
            self.put(dst, sandbox.Directory(dst.place()), "filesystem.dirs")
        for item in members["symlinks"].items() if "symlinks" in members else ():
            link = item.table(needs=("original", "link"))
            entry = sandbox.Symlink(link["original"].word(), link["link"].place())
            self.put(link["link"], entry, "filesystem.symlinks")

    def key_root(self, node):
        """The tmpfs that is the root."""
        members = node.table("writable", "size")
        if "writable" in members:
            self.made.writable = members["writable"].of(bool)
        if "size" in members:
            self.made.size = members["size"].size(PAGE, values.LARGEST)

    def key_env(self, node):
        """The environment; a list named pass is of those variables that the caller has."""
        for name, item in node.members().items():
            if name == "pass" and type(item.value) is list:
                for word in item.items():
                    self.pass_on(word)
            else:
                self.variable(item, name, item, "env")

    def pass_on(self, node):
        """The variable that NODE names has the caller's value, if the caller has one."""
        if "=" in node.word():
            raise node.wrong("'=' in the name of a variable")
        if node.value in self.made.env:
            raise node.wrong("env sets it")
        self.made.passed[node.value] = True

    def variable(self, place, name, value, key):
        """The variable NAME, given at the node PLACE, has the value of the node VALUE, by the KEY of the policy."""
        Node(name, place.path, place.offset).word()
        if "=" in name:
            raise place.wrong("'=' in the name of a variable")
        if name in self.made.passed:
            raise place.wrong("env.pass has it")
        if "\0" in value.of(str):
            raise value.wrong("a string with a NUL in it")
        if self.setters.setdefault(name, key) != key and self.made.env[name] != value.value:
            raise place.wrong("another key says otherwise")
        self.made.env[name] = value.value

    def key_envs(self, node):
        """The environment, as a list of name and value; without a value it is the caller's, or empty."""
        for item in node.items():
            members = item.table("value", needs=("name",))
            name = members["name"].word()
            self.variable(members["name"], name, members.get("value", Node(os.environ.get(name, ""))), "envs")

    def key_limits(self, node):
        """The limits: a table, or a list of type and value."""
        if type(node.value) is not list:
            for name, item in node.table(*LIMITS, "walltime").items():
                self.limit(item, name, item)
            return
        for item in node.items():
            members = item.table(needs=("type", "value"))
            self.limit(item, members["type"].choice((*LIMITS, "walltime")), members["value"])

    def limit(self, node, name, value):
        """The limit NAME is that of the node VALUE; NODE asks for it."""
        number = value.seconds() if name == "walltime" else value.quantity(*LIMITS[name])
        if self.made.limits.setdefault(name, number) != number:
            raise node.wrong("limits has another one already")

    def key_cgroup(self, node):
        """Limits of a cgroup, and what to write into files of its controllers."""
        for name, item in node.members().items():
            if name in ("memory", "pids") and type(item.value) is not dict:
                self.limit(item, name, item)
            elif name in CGROUP and type(item.value) is not dict:
                self.made.cgroup[name] = item.quantity(*CGROUP[name])
            else:
                self.controller_file(item, name)

    def controller_file(self, node, name):
        """What to write into the file NAME, or if NODE is a table into the files that it has."""
        if type(node.value) is dict and len(name) <= MOST_NAME:
            for key, item in node.members().items():
                self.controller_file(item, f"{name}.{key}")
            return
        controller, dot, rest = name.partition(".")
        if not dot:
            raise node.unknown(("memory", "pids", *CGROUP))
        plain = (controller + rest).replace("_", "").replace(".", "")
        if not (controller and rest and plain.isascii() and plain.isalnum()) or controller == "cgroup":
            raise node.wrong("not a file of a controller, as memory.high")
        if len(name) > MOST_NAME:
            raise node.wrong("a name that no file has")
        text = str(node.whole(0, values.LARGEST)) if type(node.value) is int else node.word()
        self.made.cgroup[name] = text

    def key_seccomp(self, node):
        """The filter: syscalls with dismatch_action, or rules, or path."""
        members = node.table("syscalls", "dismatch_action", "rules", "path")
        given = [key for key in ("syscalls", "rules", "path") if key in members]
        if len(given) != 1:
            raise node.wrong("one of syscalls, rules and path must say what is allowed")
        if "dismatch_action" in members and given != ["syscalls"]:
            raise members["dismatch_action"].wrong("it is for syscalls")
        self.made.seccomp = getattr(self, f"by_{given[0]}")(members)

    def by_syscalls(self, members):
        """The filter of the MEMBERS syscalls and dismatch_action, as (action, names)."""
        action = members["dismatch_action"].choice(DISMATCH_ACTIONS) if "dismatch_action" in members else "kill_process"
        names = members["syscalls"].items()
        for node in names:
            if not syscalls.exists(node.word()) and syscalls.number(rules.architecture(), node.value) is None:
                raise node.wrong(f"no such system call: {brief(node.value)!r}")
        return action, tuple(node.value for node in names)

    def by_rules(self, members):
        """The filter of the member rules."""
        node = members["rules"]
        try:
            return rules_named(node.word(), self.directory)
        except Failure as err:
            raise node.wrong(str(err)) from err

    def by_path(self, members):
        """The filter of the member path: the same in the words of the later generation."""
        word = members["path"].word()
        if word == "unconfined":
            return "none"
        if word == "audit":
            return "log", ()
        if word == "podman":
            raise members["path"].wrong("""Podman's is not here: rules = "default" is near to it""")
        return self.by_rules({"rules": members["path"]})

    def key_landlock(self, node):
        """What Landlock leaves: files, TCP ports, scopes."""
        members = node.table("ro", "rw", "rx", "rwx", "bind_tcp", "connect_tcp", "scope", "resources", "fs", "net")
        if "resources" in members:
            self.resources(members["resources"])
        for access in ("ro", "rw", "rx", "rwx"):
            if access in members:
                self.allow(access, members[access].items(), members[access])
        if "fs" in members:
            self.allow(None, [], members["fs"])
            for rule in (item.table(needs=("path", "access")) for item in members["fs"].items()):
                self.allow(access_of(rule["access"]), [rule["path"]], members["fs"])
        for name in ("bind_tcp", "connect_tcp"):
            if name in members:
                self.allow_ports(name, members[name].items(), members[name])
        if "net" in members:
            self.allow_ports(None, [], members["net"])
            for rule in (item.table(needs=("port", "access")) for item in members["net"].items()):
                self.allow_ports(TCP[rule["access"].choice(TCP)], [rule["port"]], members["net"])
        if "scope" in members:
            self.made.landlock_scopes.update({item.choice(SCOPES): True for item in members["scope"].items()})

    def resources(self, node):
        """Which domains are restricted, and which are not though an included file says so."""
        restricted = {}
        for item in node.items():
            members = item.table("unrestrict", needs=("type",))
            name = members["type"].choice(("fs", *TCP))
            restricted[name] = not ("unrestrict" in members and members["unrestrict"].of(bool))
        if "fs" in restricted:
            self.made.landlock_paths = {} if restricted["fs"] else False
        tcp = {restricted.get(name) for name in TCP}
        if True in tcp:
            self.made.landlock_ports = {}
        if False in tcp:
            if tcp != {False}:
                raise node.wrong("TCP is restricted as a whole: tcp.bind and tcp.connect go together")
            self.made.landlock_ports = False

    def allow(self, access, paths, node):
        """Allow ACCESS, None for none, to PATHS, nodes; NODE asks for it."""
        if self.made.landlock_paths is False:
            raise node.wrong("resources says that files are not restricted")
        allowed = self.made.landlock_paths = self.made.landlock_paths or {}
        for path in paths:
            if allowed.setdefault(path.word(), access) != access:
                raise path.wrong("named twice, with different access")

    def allow_ports(self, right, ports, node):
        """Allow RIGHT to PORTS, nodes; NODE asks for it."""
        if self.made.landlock_ports is False:
            raise node.wrong("resources says that TCP is not restricted")
        allowed = self.made.landlock_ports = self.made.landlock_ports or {}
        for port in ports:
            allowed[right, port.whole(0, LARGEST_PORT)] = True

    def key_command(self, node):
        """PROG and ARG, and the directory where they start."""
        members = node.table("cmdline", "cwd")
        if "cmdline" in members:
            self.made.cmdline = command(members["cmdline"].items()) or None
        if "cwd" in members:
            self.made.cwd = members["cwd"].word()


def either(node, members, keys, default=None):
    """The one of MEMBERS, those of NODE, that has one of KEYS, which mean the same; DEFAULT if none has."""
    found = [members[key] for key in keys if key in members]
    if len(found) > 1:
        raise found[1].wrong(f"the same as {keys[0]}, which is there too")
    if not found and default is None:
        raise node.wrong(f"{keys[0]} is missing")
    return found[0] if found else default


def mount(node):
    """The entry that NODE, one of mounts, asks for."""
    of_all = ("source", "target", "destination", "fstype", "type")
    members = node.table(*of_all, *(key for keys in MOUNT_KEYS.values() for key in keys))
    fstype = either(node, members, ("fstype", "type"), Node(""))
    kind = fstype.choice(MOUNT_KEYS)
    for key, item in members.items():
        if key not in of_all and key not in MOUNT_KEYS[kind]:
            raise item.wrong(f"not for {f'a {kind}' if kind else 'what the host has'}")
    if not kind:
        return bind(node, members)
    target = either(node, members, ("target", "destination"))
    if "source" in members and members["source"].of(str) not in ("", kind):
        raise members["source"].wrong(f"a {kind} has none")
    if "rw" in members and not members["rw"].of(bool):
        raise members["rw"].wrong("a tmpfs is always writable")
    if kind == "devfs":
        return sandbox.Dev(target.place())
    if kind == "proc":
        return sandbox.Proc(target.place())
    return sandbox.Tmpfs(target.place(), members["size"].size(1, values.LARGEST) if "size" in members else None)


def bind(node, members):
    """The Bind that NODE with MEMBERS asks for."""
    if "source" not in members:
        raise node.wrong("source is missing")
    source = members["source"].word()
    target = either(node, members, ("target", "destination"), members["source"] if source.startswith("/") else None)
    flags = {key: members[key].of(bool) for key in MOUNT_KEYS[""] if key in members}
    flags["ro"] = not flags.pop("rw", False)
    flags.setdefault("dev", sandbox.is_device(source))
    return sandbox.Bind(source, target.place(), {key for key, wanted in flags.items() if wanted})


def access_of(node):
    """The access to files that NODE, as "r-x", means; None for none at all."""
    letters = node.of(str).replace("-", "")
    if letters and letters not in ACCESS:
        raise node.wrong("not r, w and x in this order, perhaps with -, or w or x without r, which is not to be had")
    return ACCESS.get(letters)


def command(nodes):
    """PROG and its arguments: a tuple of the strings of NODES."""
    for index, node in enumerate(nodes):
        if "\0" in node.of(str) or (index == 0 and not node.value):
            raise node.wrong("an empty name cannot be run" if not node.value else "a string with a NUL in it")
    return tuple(node.value for node in nodes)
