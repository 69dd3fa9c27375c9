"""Finds rule files, tells their format by what is in them, and makes programs of them."""

import os
import stat

from hako import bpf, kernel
from hako.failure import Failure, call, refused, show

# kafel, and json with oci, are imported where a text is to be read: what is
# compiled already, as the built-in profiles are, needs neither.

PROFILES = os.path.join(os.path.dirname(__file__), "profiles")
MOST_BYTES = 2**18  # of a rule file; the largest known is 60 KB
ENOENT = 2


def architecture():
    """The architecture of this machine, by libseccomp's name."""
    return bpf.MACHINE_ARCH[kernel.MACHINE]


def program(name, include=(), capabilities=()):
    """The program of the profile or file NAME: a bytes of struct sock_filter.

    INCLUDE are the directories of #include; CAPABILITIES the numbers of those
    that PROG will hold.
    """
    made = compiled(name) or parse(name, include, capabilities)
    if isinstance(made, bytes):
        return made
    try:
        return bpf.compile_policy(made)
    except Failure as err:
        raise Failure(f"{show(name)}: {err}") from err


def policy(name, include=(), capabilities=()):
    """The bpf.Policy of the profile or file NAME, as program() has it."""
    made = parse(name, include, capabilities)
    if isinstance(made, bytes):
        raise Failure(f"{show(name)}: a compiled program: to tell what it refuses takes the rules")
    return made


def compiled(name):
    """The program of the built-in profile NAME, as `make patterns` made it for this architecture, or None."""
    if not name or "/" in name:
        return None
    try:
        with open(os.path.join(PROFILES, "compiled", f"{name}.{architecture()}"), "rb") as file:
            return file.read()
    except OSError:
        return None


def parse(name, include=(), capabilities=()):
    """The bpf.Policy of the profile or file NAME, or its bytes if it is compiled already."""
    from hako import kafel

    source = profile(name)
    if source:
        return kafel.parse(source, architecture(), included_profile, group)
    try:
        data = read(name)
    except Failure as err:
        if err.errno != ENOENT or "/" in name:
            raise
        raise refused(f"open {show(name)}", ENOENT, f"no built-in profile either: {advice_on(name)}") from err
    if is_program(data):
        return checked_program(name, data)
    source = text(name, data)
    if source.text.lstrip(" \t\r\n").startswith("{"):
        from hako import oci

        held = {f"CAP_{kernel.CAPABILITIES[cap].upper()}" for cap in capabilities if cap < len(kernel.CAPABILITIES)}
        return oci.parse(source, architecture(), held, release())
    return kafel.parse(source, architecture(), lambda name: included(include, name), group)


def advice_on(name):
    """A hint for who gave NAME, which is neither a built-in profile nor a file."""
    from hako import near

    return f"{near.question(os.path.basename(name), [known for known, _ in listed(PROFILES)])}see seccomp-exec --list"


def profile(name):
    """The Source of the built-in profile NAME, or None."""
    return built_in(PROFILES, name)


def is_profile(name: str) -> bool:
    """Whether there is a built-in profile NAME."""
    return "/" not in name and not name.startswith(".") and os.path.exists(os.path.join(PROFILES, f"{name}.kafel"))


def included_profile(name):
    """The Source of the built-in profile in the file NAME, "x.kafel", or None."""
    return built_in(PROFILES, name.removesuffix(".kafel"))


def release():
    """The release of the running kernel, (major, minor)."""
    numbers = os.uname().release.split(".")[:2]
    return tuple(int("".join(char for char in number if char.isdigit()) or 0) for number in numbers)


def built_in(directory, name):
    """The Source of the built-in file NAME in DIRECTORY, or None."""
    from hako import kafel

    if not name or "/" in name or name.startswith("."):
        return None
    try:
        with open(os.path.join(directory, f"{name}.kafel"), encoding="utf-8") as file:
            return kafel.Source(name, file.read(), lenient=True)
    except OSError:
        return None


def group(name):
    """The Source of the built-in group NAME, or None."""
    return built_in(os.path.join(PROFILES, "groups"), name)


def listed(directory):
    """What the built-in files in DIRECTORY are for: [(name, line)], by name."""
    found = []
    for entry in sorted(os.listdir(directory)):
        if entry.endswith(".kafel"):
            with open(os.path.join(directory, entry), encoding="utf-8") as file:
                found.append((entry.removesuffix(".kafel"), file.readline().strip("/ \n").partition(" - ")[2]))
    return found


def included(directories, name):
    """The Source of NAME below the first of DIRECTORIES that has it, or None."""
    for directory in directories:
        path = os.path.join(directory, name)
        if os.path.exists(path):
            return text(path, read(path))
    return None


def read(path, pipes=True):
    """The bytes of the file PATH, once, from one descriptor; a Failure if it is none that ends.

    Without PIPES it must be a plain file: then nothing is waited for.
    """
    with call(f"open {show(path)}"):
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        with call(f"read {show(path)}"):
            mode = os.fstat(fd).st_mode
            if stat.S_ISDIR(mode):
                raise Failure(f"{show(path)}: is a directory")
            if not (stat.S_ISREG(mode) or (pipes and stat.S_ISFIFO(mode))):
                raise Failure(f"{show(path)}: {'neither a file nor a pipe' if pipes else 'not a plain file'}")
            if pipes:
                os.set_blocking(fd, True)  # non-blocking was for the opening: of a pipe that nobody writes
            data = b""
            while len(data) <= MOST_BYTES and (more := os.read(fd, 65536)):
                data += more
    finally:
        os.close(fd)
    if len(data) > MOST_BYTES:
        raise Failure(f"{show(path)}: larger than {MOST_BYTES} bytes")
    return data


def text(path, data):
    """DATA, read from PATH, as a Source."""
    from hako import kafel

    try:
        return kafel.Source(show(path), data.decode())
    except UnicodeDecodeError as err:
        source = kafel.Source(show(path), data[: err.start].decode())
        raise Failure(f"{source.at(len(source.text))}: not UTF-8") from err


def is_program(data):
    """Whether DATA looks like a compiled program: a load of the architecture or number first, zeros in it."""
    return len(data) % 8 == 0 and len(data) >= 8 and data[:4] in (b"\x20\0\0\0", b"\x06\0\0\0")


def checked_program(name, data):
    """DATA if it is a program that the kernel may take: it checks the rest itself."""
    count = len(data) // 8
    if count > bpf.MOST_INSTRUCTIONS:
        raise Failure(f"{show(name)}: {count} instructions, the kernel takes {bpf.MOST_INSTRUCTIONS}")
    if data[-8:-6] not in (b"\x06\0", b"\x16\0"):
        raise Failure(f"{show(name)}: a compiled program that does not end with a return")
    return data
