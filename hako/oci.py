"""The seccomp profiles of Docker, Podman and the OCI runtime specification: JSON to a bpf.Policy. Pure.

Read as runc reads them, by libseccomp's names. Where libseccomp leaves two
rules for a call to chance, the strictest of those that match decides. What
runc passes over (an unknown key, a type, a name that refuses nothing) is an
error here. x32 is refused, whether a profile names it or not: see bpf.py.
Nothing listens to SCMP_ACT_NOTIFY, so such a call fails with ENOSYS.
See seccomp_rule_add(3) and the runtime specification, config-linux.md.
"""

import errno
import json
import re

from hako import bpf, kernel, syscalls
from hako.failure import Failure

ACTIONS = {
    "SCMP_ACT_KILL": bpf.KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": bpf.KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": bpf.KILL_PROCESS,
    "SCMP_ACT_TRAP": bpf.TRAP,
    "SCMP_ACT_ERRNO": bpf.ERRNO,
    "SCMP_ACT_NOTIFY": bpf.USER_NOTIF,
    "SCMP_ACT_TRACE": bpf.TRACE,
    "SCMP_ACT_LOG": bpf.LOG,
    "SCMP_ACT_ALLOW": bpf.ALLOW,
}
STRICTEST_FIRST = (  # the kernel's order, see seccomp(2)
    *(bpf.KILL_PROCESS, bpf.KILL_THREAD, bpf.TRAP, bpf.ERRNO),
    *(bpf.USER_NOTIF, bpf.TRACE, bpf.LOG, bpf.ALLOW),
)
WITH_ERRNO = (bpf.ERRNO, bpf.TRACE)
ERRNOS = {name: number for name, number in vars(errno).items() if name.startswith("E")}
ALLOWING = (bpf.ALLOW, bpf.LOG)
OPERATORS = {
    "SCMP_CMP_NE": "!=",
    "SCMP_CMP_LT": "<",
    "SCMP_CMP_LE": "<=",
    "SCMP_CMP_EQ": "==",
    "SCMP_CMP_GE": ">=",
    "SCMP_CMP_GT": ">",
    "SCMP_CMP_MASKED_EQ": "==",
}
FLAGS = {  # none of them decides about a call: they are known, and left to whoever loads the program
    *("SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"),
    *("SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"),
}
ARCHITECTURES = {  # by the specification's name: libseccomp's
    f"SCMP_ARCH_{name.upper()}": name
    for name in (
        *("x86", "x86_64", "x32", "arm", "aarch64", "mips", "mips64", "mips64n32", "mipsel", "mipsel64", "mipsel64n32"),
        *("ppc", "ppc64", "ppc64le", "s390", "s390x", "parisc", "parisc64", "riscv64", "loongarch64", "m68k"),
        *("sh", "sheb"),
    )
}
SUB_ARCHITECTURES = {"x86_64": ("x86",), "aarch64": ("arm",)}
DOCKER_ARCHITECTURE = {"x86_64": "amd64", "x86": "x86", "aarch64": "arm64", "arm": "arm"}
DOCKER_ARCHITECTURES = {  # in includes and excludes; libseccomp's names, Go's, and what Docker made of both
    *("386", "x86", "amd64", "x32", "arm", "arm64", "mips", "mips64", "mips64n32", "mips64p32", "mipsel", "mipsle"),
    *("mipsel64", "mips64le", "mipsel64n32", "mips3l64n32", "mips64p32le", "ppc", "ppc64", "ppc64le", "s390", "s390x"),
    *("parisc", "parisc64", "riscv64", "loong64", "loongarch64", "m68k", "sh", "sheb"),
}
CAPABILITIES = {f"CAP_{name.upper()}" for name in kernel.CAPABILITIES}

# On x86 these are also, or only, parts of socketcall and ipc: see socketcall(2), ipc(2).
# {name: number of its own}; libseccomp gives them negative numbers there.
SOCKETCALL, IPC = 102, 117
_SOCKET = (  # in the order of socketcall's numbers, from 1
    *(("socket", 359), ("bind", 361), ("connect", 362), ("listen", 363), ("accept", None), ("getsockname", 367)),
    *(("getpeername", 368), ("socketpair", 360), ("send", None), ("recv", None), ("sendto", 369), ("recvfrom", 371)),
    *(("shutdown", 373), ("setsockopt", 366), ("getsockopt", 365), ("sendmsg", 370), ("recvmsg", 372)),
    *(("accept4", 364), ("recvmmsg", 337), ("sendmmsg", 345)),
)
_IPC = (
    *(("semop", None, 1), ("semget", 393, 2), ("semctl", 394, 3), ("semtimedop", None, 4), ("msgsnd", 400, 11)),
    *(("msgrcv", 401, 12), ("msgget", 399, 13), ("msgctl", 402, 14), ("shmat", 397, 21), ("shmdt", 398, 22)),
    *(("shmget", 395, 23), ("shmctl", 396, 24)),
)
MULTIPLEXED = {  # name: (its own number, the call that it is a part of, its number there, bits that count)
    **{name: (own, SOCKETCALL, part, bpf.LOW32) for part, (name, own) in enumerate(_SOCKET, 1)},
    **{name: (own, IPC, part, 0xFFFF) for name, own, part in _IPC},  # the upper 16 bits are a version
}

MOST_CHARACTERS = 2**20  # the largest known profile has 20,000
MOST_ARGS = bpf.MOST_INSTRUCTIONS // 4  # no more comparisons of 64 bits fit into a program
NAME = re.compile(r"[A-Za-z0-9_]{1,64}")
RELEASE = re.compile(r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})")

PROFILE = {
    **{"defaultAction": str, "defaultErrnoRet": int, "defaultErrno": str, "architectures": list, "archMap": list},
    **{"flags": list, "listenerPath": str, "listenerMetadata": str, "syscalls": list},
}
ARCH_MAP = {"architecture": str, "subArchitectures": list}
RULE = {
    **{"names": list, "name": str, "action": str, "errnoRet": int, "errno": str, "args": list},
    **{"includes": dict, "excludes": dict, "comment": str},
}
ARG = {"index": int, "value": int, "valueTwo": int, "op": str}
CONDITIONS = {"arches": list, "caps": list, "minKernel": str}
KINDS = {str: "a string", int: "a whole number", list: "a list", dict: "an object"}


class Place:
    """Where a rule stands; made into words when somebody asks."""

    __slots__ = ("file", "where")

    def __init__(self, file, where):
        self.file, self.where = file, where

    def __str__(self):
        return f"{self.file}: {self.where}"


def parse(source, arch, capabilities, release):
    """The bpf.Policy of SOURCE (a kafel.Source) for ARCH, libseccomp's name of the native architecture.

    CAPABILITIES are the names ("CAP_CHOWN") of those that PROG will hold, RELEASE is
    the kernel's (major, minor). A Failure names FILE:LINE:COL where the JSON is none,
    else FILE and the member.
    """
    profile = document(source)
    try:
        return policy(source.name, profile, arch, (DOCKER_ARCHITECTURE[arch], frozenset(capabilities), release))
    except Failure as err:
        raise Failure(f"{source.name}: {err}") from err


def document(source):
    """What the JSON of SOURCE says."""
    if len(source.text) > MOST_CHARACTERS:
        raise Failure(f"{source.name}: larger than {MOST_CHARACTERS} characters")
    if source.text.startswith("\ufeff"):
        raise Failure(f"{source.name}:1:1: begins with a byte order mark")
    try:
        # parse_int: int() refuses 4300 digits with an error that has no place; 25 are out of every range too.
        return json.loads(source.text, object_pairs_hook=members, parse_int=lambda digits: int(digits[:25]))
    except json.JSONDecodeError as err:
        message = err.msg.rstrip(": ").removesuffix(" at")
        raise Failure(f"{source.name}:{err.lineno}:{err.colno}: {message[0].lower()}{message[1:]}") from err
    except RecursionError as err:
        raise Failure(f"{source.name}: nested too deeply") from err


def members(pairs):
    """The object of PAIRS; None, which no JSON has for a key, tells of one that occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set()
        found[None] = next(key for key, _ in pairs if key in seen or seen.add(key))
    return found


def wrong(where, message):
    """The Failure MESSAGE at the member WHERE, "" for the whole."""
    return Failure(f"{where}: {message}" if where else message)


def quoted(text):
    """TEXT in quotes, its beginning if it is long."""
    return repr(text if len(text) <= 64 else f"{text[:64]}...")


def fields(value, where, kinds, needed=()):
    """The members of the object VALUE that are not null, {key: value}; each must be of its kind in KINDS."""
    if type(value) is not dict:
        raise wrong(where, "not an object")
    if None in value:
        raise wrong(where, f"duplicate key {quoted(value[None])}")
    for key, member in value.items():
        if key not in kinds:
            raise wrong(where, f"unknown key {quoted(key)}")
        if member is not None and type(member) is not kinds[key]:  # not isinstance: True is an int
            raise wrong(inside(where, key), f"not {KINDS[kinds[key]]}")
    for key in needed:
        if value.get(key) is None:
            raise wrong(where, f"no {key}")
    return {key: member for key, member in value.items() if member is not None}


def inside(where, key):
    """The place of the member KEY of the object WHERE."""
    return f"{where}.{key}" if where else key


def known(text, names, where, what):
    """TEXT, if it is one of NAMES; WHAT they are called."""
    if type(text) is not str:
        raise wrong(where, "not a string")
    if text not in names:
        raise wrong(where, f"unknown {what} {quoted(text)}")
    return text


def each_known(texts, names, where, what):
    """TEXTS, if all of them are in NAMES."""
    return [known(text, names, f"{where}[{index}]", what) for index, text in enumerate(texts)]


def within(number, most, where):
    """NUMBER, if it is from 0 to MOST."""
    if not 0 <= number <= most:
        raise wrong(where, f"{number} is not from 0 to {most}")
    return number


def policy(file, profile, native, machine):
    """The Policy of PROFILE, the JSON of FILE; MACHINE as of applies()."""
    profile = fields(profile, "", PROFILE, ("defaultAction",))
    for key in ("listenerPath", "listenerMetadata"):
        if profile.get(key):
            raise wrong(key, "nothing here can listen")
    each_known(profile.get("flags", ()), FLAGS, "flags", "flag")
    default = action(profile, "", "defaultAction", "defaultErrno")
    calls = {arch: {} for arch in architectures(profile, native)}
    for index, value in enumerate(profile.get("syscalls", ())):
        where = f"syscalls[{index}]"
        rule = checked(value, where)
        found = action(rule, where, "action", "errno")
        # As runc: what says the same as the default says nothing, also beside another rule for the call.
        if applies(rule, where, machine) and found != default:
            add(calls, rule, found, Place(file, where))
    for table in calls.values():
        for rules in table.values():
            rules.sort(key=lambda rule: (STRICTEST_FIRST.index(rule.action & 0xFFFF0000), rule.condition is None))
    return bpf.Policy(calls, bpf.Rule(default, None, Place(file, "defaultAction")))


def action(holder, where, key, errno_key):
    """The action, SECCOMP_RET_* with its data, that HOLDER at WHERE has under KEY."""
    found = ACTIONS[known(holder[key], ACTIONS, inside(where, key), "action")]
    data = errno_of(holder, where, errno_key)
    return found | data if found in WITH_ERRNO else found


def errno_of(holder, where, key):
    """The errno that HOLDER has as a number under KEY and "Ret", or as a name, Podman's way, under KEY."""
    number, name = holder.get(f"{key}Ret"), holder.get(key)
    if number is not None:
        within(number, 4095, inside(where, f"{key}Ret"))  # MAX_ERRNO: what is above would be a result
    if name:
        named = ERRNOS[known(name, ERRNOS, inside(where, key), "errno")]
        if number not in (None, named):
            raise wrong(inside(where, key), f"{name} is {named}, not {number}")
        return named
    return errno.EPERM if number is None else number  # as runc, which has the same for SCMP_ACT_TRACE


def architectures(profile, native):
    """The architectures on NATIVE for which PROFILE has rules, itself first."""
    listed = architectures_in(profile.get("architectures", ()), "architectures")
    families = {}
    for index, value in enumerate(profile.get("archMap", ())):
        where = f"archMap[{index}]"
        family = fields(value, where, ARCH_MAP, ("architecture",))
        name = ARCHITECTURES[known(family["architecture"], ARCHITECTURES, f"{where}.architecture", "architecture")]
        if name in families:
            raise wrong(where, f"duplicate architecture {name}")
        families[name] = [name, *architectures_in(family.get("subArchitectures", ()), f"{where}.subArchitectures")]
    if listed and families:
        raise wrong("archMap", "cannot be beside architectures")
    named = families.get(native, ()) if families else listed or [native]
    if native not in named:
        raise wrong("archMap" if families else "architectures", f"not for {native}")
    return [native, *(arch for arch in SUB_ARCHITECTURES.get(native, ()) if arch in named)]


def architectures_in(names, where):
    """NAMES of architectures as the specification has them, as libseccomp's."""
    return [ARCHITECTURES[name] for name in each_known(names, ARCHITECTURES, where, "architecture")]


def checked(value, where):
    """The rule VALUE, its "names" and "args" in full and in order."""
    rule = fields(value, where, RULE, ("action",))
    if ("name" in rule) == ("names" in rule):
        raise wrong(where, "both name and names" if "name" in rule else "no names")
    names = rule.get("names", [rule.get("name")])
    if not names:
        raise wrong(f"{where}.names", "no name in it")
    for index, name in enumerate(names):
        if type(name) is not str or not NAME.fullmatch(name):
            spot = f"{where}.names[{index}]" if "names" in rule else f"{where}.name"
            raise wrong(spot, f"no system call {quoted(name)}" if type(name) is str else "not a string")
    args = rule.get("args", ())
    if len(args) > MOST_ARGS:
        raise wrong(f"{where}.args", f"{len(args)}, more than {MOST_ARGS}")
    args = [argument(arg, f"{where}.args[{index}]") for index, arg in enumerate(args)]
    return {**rule, "names": names, "args": args}


def argument(value, where):
    """The condition VALUE for one argument."""
    arg = fields(value, where, ARG, ("index", "value", "op"))
    within(arg["index"], 5, f"{where}.index")
    for key in ("value", "valueTwo"):
        within(arg.get(key, 0), 2**64 - 1, f"{where}.{key}")
    known(arg["op"], OPERATORS, f"{where}.op", "operator")
    return arg


def applies(rule, where, machine):
    """Whether RULE counts on MACHINE, its (architecture as Docker calls it, capabilities, release)."""
    arch, held, release = machine
    arches, caps, least = conditions(rule.get("includes", {}), f"{where}.includes")
    included = (not arches or arch in arches) and held.issuperset(caps) and (least is None or release >= least)
    arches, caps, least = conditions(rule.get("excludes", {}), f"{where}.excludes")
    excluded = arch in arches or not held.isdisjoint(caps) or (least is not None and release >= least)
    return included and not excluded


def conditions(value, where):
    """The (arches, caps, minKernel) of an includes or excludes; minKernel as (major, minor), or None."""
    found = fields(value, where, CONDITIONS)
    # Names that Docker does not know either make it drop the rule: a misspelt one could lift a restriction.
    arches = each_known(found.get("arches", ()), DOCKER_ARCHITECTURES, f"{where}.arches", "architecture")
    caps = each_known(found.get("caps", ()), CAPABILITIES, f"{where}.caps", "capability")
    if "minKernel" not in found:
        return arches, caps, None
    release = RELEASE.fullmatch(found["minKernel"])
    if release is None:
        raise wrong(f"{where}.minKernel", f"{quoted(found['minKernel'])} is not MAJOR.MINOR")
    return arches, caps, tuple(map(int, release.groups()))


def add(calls, rule, action, place):
    """Put RULE, which does ACTION, into CALLS, {architecture: {number: [Rule, ...]}}."""
    if action not in ALLOWING:
        # Not there on this architecture: as runc, nothing to refuse. On none: misspelt, or newer than
        # libseccomp, and the call would go on being made. A rule that allows is stricter without it.
        for index, name in enumerate(rule["names"]):
            if not exists(name):
                raise wrong(f"{place.where}.names[{index}]", f"no system call {quoted(name)}")
    for arch, table in calls.items():
        # A 64-bit program that enters by int 0x80 shows seccomp all of its registers (measured), the call
        # takes the low halves: comparing the rest would be a way round.
        wide = arch in SUB_ARCHITECTURES
        made = bpf.Rule(action, condition(rule["args"], wide), place)
        for name in dict.fromkeys(rule["names"]):
            for number, spot in spots(arch, name, made):
                table.setdefault(number, []).append(spot)


def condition(args, wide):
    """The condition of a rule with ARGS; WIDE: of 64 bits."""
    parts = [comparison(arg, wide) for arg in args]
    if len(parts) < 2:
        return parts[0] if parts else None
    # As runc: once an argument is there twice, each condition is a rule by itself.
    repeated = len({arg["index"] for arg in args}) < len(args)
    return ("or" if repeated else "and", *parts)


def comparison(arg, wide):
    """The condition ARG."""
    left, right = ("arg", arg["index"]), arg["value"]
    if arg["op"] == "SCMP_CMP_MASKED_EQ":
        # libseccomp masks both sides.
        left, right = ("&", left, ("number", arg["value"])), arg.get("valueTwo", 0) & arg["value"]
    return ("compare", OPERATORS[arg["op"]], left, ("number", right), wide)


def spots(arch, name, rule):
    """Where RULE for the call NAME stands on ARCH: (number, Rule) pairs."""
    if arch != "x86" or name not in MULTIPLEXED:
        number = number_of(arch, name)
        if number is not None:
            yield number, rule
        return
    own, whole, part, mask = MULTIPLEXED[name]
    if own is not None:
        yield own, rule
    # There the arguments are in memory, where no filter sees them: what may be refused is refused, as by
    # libseccomp, but what is allowed on a condition only is not allowed, unlike libseccomp.
    if rule.condition is None or rule.action not in ALLOWING:
        inner = ("compare", "==", ("&", ("arg", 0), ("number", mask)), ("number", part), False)
        yield whole, bpf.Rule(rule.action, inner, rule.place)


def number_of(arch, name):
    """The number of the call NAME on ARCH, None if it has none there."""
    if name not in syscalls.INTERNAL:
        return syscalls.number(arch, name)
    # Profiles mean libseccomp's names: umount is not another word for umount2 here.
    found = kernel.syscall_number(bpf.AUDIT_ARCH[arch], name.encode())
    return found if found >= 0 else None


def exists(name):
    """Whether some architecture has the call NAME."""
    if name not in syscalls.INTERNAL:
        return syscalls.exists(name)
    return kernel.syscall_number(bpf.AUDIT_ARCH["x86_64"], name.encode()) != -1
