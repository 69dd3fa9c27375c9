"""What a program needs to start: its interpreters, its dynamic loader, its shared libraries.

Found by reading files, as ld.so(8) would search; nothing is executed, as ldd(1)
would. Of a file that is damaged, and may be meant to be, comes a Failure.
"""

import os
import stat

from hako.failure import Failure, call, show

PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
DT_NULL, DT_NEEDED, DT_STRTAB, DT_RPATH, DT_RUNPATH, DT_FLAGS_1 = 0, 1, 5, 15, 29, 0x6FFFFFFB
DF_1_NODEFLIB = 0x800
MOST_BYTES, PATH_MAX = 2**20, 4096  # of a table; of a name
MOST_SCRIPT = 256  # bytes of a script at which the kernel looks
# By class: offset and size of fields of the ELF header, of a program header, of a dynamic entry.
LAYOUTS = {
    1: {"phoff": (28, 4), "phnum": (44, 2), "phdr": 32, "offset": 4, "vaddr": 8, "filesz": 16, "word": 4},
    2: {"phoff": (32, 8), "phnum": (56, 2), "phdr": 56, "offset": 8, "vaddr": 16, "filesz": 32, "word": 8},
}
TRIPLETS = {3: "i386-linux-gnu", 40: "arm-linux-gnueabihf", 62: "x86_64-linux-gnu", 183: "aarch64-linux-gnu"}
PLATFORMS = {3: "i686", 40: "v7l", 62: "x86_64", 183: "aarch64"}
CACHE, PRELOAD = "/etc/ld.so.cache", "/etc/ld.so.preload"
CACHE_MAGIC = b"glibc-ld.so.cache1.1"
# The same libraries for newer processors; the loader takes what the processor has.
VARIANTS = ("glibc-hwcaps/x86-64-v2", "glibc-hwcaps/x86-64-v3", "glibc-hwcaps/x86-64-v4")
# Names that musl takes for itself: lib, one of these, and a dot.
MUSL_ITSELF = ("c", "pthread", "rt", "m", "dl", "util", "xnet")


class File:
    """A regular file, open to be read; None of its bytes is believed."""

    def __init__(self, path):
        self.path = path
        with call(f"open {show(path)}"):
            self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(self.fd).st_mode):
            os.close(self.fd)
            raise Failure(f"{show(path)}: not a regular file")

    def __enter__(self):
        return self

    def __exit__(self, kind, err, traceback):
        os.close(self.fd)

    def read(self, size, offset=0):
        """SIZE bytes from OFFSET on, or what there is of them."""
        if offset >= 2**63 - size:
            return b""
        with call(f"read {show(self.path)}"):
            return os.pread(self.fd, size, offset)

    def exactly(self, size, offset):
        """SIZE bytes from OFFSET on; a Failure if there are less, or it is more than a file like this has."""
        data = self.read(size, offset) if size <= MOST_BYTES else b""
        if len(data) < size:
            raise self.damaged()
        return data

    def string(self, offset):
        """The string at OFFSET, up to its zero."""
        data, zero, _ = self.read(PATH_MAX, offset).partition(b"\0")
        if not zero:
            raise self.damaged()
        return os.fsdecode(data)

    def damaged(self):
        """The Failure that this is no ELF file that can be read."""
        return Failure(f"{show(self.path)}: damaged: its ELF headers lead out of it")


class Elf:
    """What the headers of the ELF file FILE say of its start.

    kind      class and machine: only a library of the same can be loaded
    interp    the dynamic loader, or None
    needed    names of libraries
    rpath, runpath    lists of directories
    nodeflib  whether the usual directories are left out
    loader    the Elf for which this one is loaded, None for the program
    """

    def __init__(self, file, loader=None):
        self.path, self.loader = file.path, loader
        ident = file.exactly(64, 0)
        self.layout = LAYOUTS.get(ident[4])
        if self.layout is None or ident[5] != 1:
            raise file.damaged()
        self.kind = (ident[4], number(ident, 18, 2))
        self.interp, self.needed, self.rpath, self.runpath, self.nodeflib = None, [], [], [], False
        segments = list(self.segments(file, ident))
        for kind, offset, _, size in segments:
            if kind == PT_INTERP and self.interp is None:
                self.interp = os.fsdecode(file.exactly(size, offset).partition(b"\0")[0])
            elif kind == PT_DYNAMIC:
                self.read_dynamic(file, file.exactly(size, offset), segments)

    def segments(self, file, ident):
        """The program headers: pairs of type, file offset, address, size in the file."""
        layout = self.layout
        size, word = layout["phdr"], layout["word"]
        headers = file.exactly(size * number(ident, *layout["phnum"]), number(ident, *layout["phoff"]))
        for at in range(0, len(headers), size):
            fields = (number(headers, at + layout[name], word) for name in ("offset", "vaddr", "filesz"))
            yield number(headers, at, 4), *fields

    def read_dynamic(self, file, data, segments):
        """Take what the dynamic section DATA says."""
        word = self.layout["word"]
        entries = []
        for at in range(0, len(data) - 2 * word + 1, 2 * word):
            entries.append((number(data, at, word), number(data, at + word, word)))
            if entries[-1][0] == DT_NULL:
                break
        tables = [value for tag, value in entries if tag == DT_STRTAB]
        loaded = [(offset, start, size) for kind, offset, start, size in segments if kind == PT_LOAD]
        places = (offset + at - start for at in tables for offset, start, size in loaded if start <= at < start + size)
        strings = next(places, None)
        for tag, value in entries:
            if tag in (DT_NEEDED, DT_RPATH, DT_RUNPATH):
                if strings is None:
                    raise file.damaged()
                self.take(tag, file.string(strings + value))
            elif tag == DT_FLAGS_1:
                self.nodeflib = bool(value & DF_1_NODEFLIB)

    def take(self, tag, text):
        """Take the string TEXT of an entry TAG."""
        if tag == DT_NEEDED:
            self.needed.append(text)
        elif tag == DT_RPATH:
            self.rpath = text.split(":")
        else:
            self.runpath = text.split(":")

    def chain(self):
        """This one, the one for which it is loaded, and so on up to the program."""
        above = self
        while above is not None:
            yield above
            above = above.loader


def number(data, offset, size):
    """The unsigned number of SIZE bytes at OFFSET of DATA."""
    return int.from_bytes(data[offset : offset + size], "little")


def needs(program, environ, find):
    """What the file PROGRAM needs to start in ENVIRON: {path: "rx", or "ro" for what is read alone}.

    FIND returns the path of a program by its name, or None.
    """
    found, programs = {}, [program]
    for path in programs:  # grows meanwhile
        found[path] = "rx"
        with File(path) as file:
            head = file.read(MOST_SCRIPT)
            if head.startswith(b"\x7fELF"):
                found.update(Libraries(Elf(file), environ).all())
        programs += [other for other in interpreters(head, find) if other not in programs]
    return found


def interpreters(head, find):
    """What is executed for the script that begins with HEAD: its interpreter; what that is to FIND, if it is env(1)."""
    words = script_words(head)
    if len(words) < 2 or os.path.basename(words[0]) != "env":
        return words[:1]
    told = [word for word in words[1].split() if not word.startswith("-") and "=" not in word]
    return [path for path in (words[0], find(told[0]) if told else None) if path is not None]


def script_words(head):
    """The interpreter and the argument, if there is one, of a script that begins with HEAD, as the kernel reads it."""
    if not head.startswith(b"#!"):
        return []
    line, newline, _ = head[2:].partition(b"\n")
    words = line.strip(b" \t").replace(b"\t", b" ").split(b" ", 1)
    if not words[0] or b"\0" in line or (not newline and len(head) == MOST_SCRIPT and len(words) == 1):
        return []
    return [os.fsdecode(word.strip(b" ")) for word in words]


class Libraries:
    """The search for what the Elf PROGRAM needs, in the order of its dynamic loader."""

    def __init__(self, program, environ):
        self.program, self.environ = program, environ
        self.musl = os.path.basename(program.interp or "").startswith("ld-musl-")
        self.files = {}
        self.cache = None

    def all(self):
        """{path: "rx" or "ro"} for all that the program needs; nothing, if it has no dynamic loader."""
        if not self.program.interp:
            return {}
        for path in self.tables():
            if os.path.exists(path):
                self.files[path] = "ro"
        waiting = [(name, self.program, False) for name in self.preloaded()]
        waiting += [(name, self.program, True) for name in self.program.needed]
        seen = set()
        for name, loader, required in waiting:
            if name in seen or self.is_itself(name):
                continue
            seen.add(name)
            for elf in self.find(name, loader, required):
                self.files[elf.path] = "ro"
                waiting += [(more, elf, True) for more in elf.needed]
        self.files[self.program.interp] = "rx"
        return self.files

    def tables(self):
        """The files that the dynamic loader itself reads, if they are there."""
        if not self.musl:
            return CACHE, PRELOAD
        return (self.musl_path(),)

    def musl_path(self):
        """The file with the directories of musl: of /lib/ld-musl-ARCH.so.1 it is /etc/ld-musl-ARCH.path."""
        return f"/etc/{os.path.basename(self.program.interp).partition('.')[0]}.path"

    def preloaded(self):
        """The names of libraries that are loaded before all others; one that is not there is passed over."""
        preloaded = names(self.environ.get("LD_PRELOAD", ""))
        if not self.musl and os.path.exists(PRELOAD):
            with File(PRELOAD) as file:
                preloaded += names(os.fsdecode(file.read(MOST_BYTES)))
        return preloaded

    def is_itself(self, name):
        """Whether NAME is the dynamic loader, which is loaded already."""
        if self.musl:
            return any(name.startswith(f"lib{own}.") for own in MUSL_ITSELF)
        return name == os.path.basename(self.program.interp)

    def find(self, name, loader, required):
        """The Elfs of the library NAME that LOADER needs: of the first place that has it, in all its variants."""
        if "/" in name:
            found = self.usable([self.expand(name, loader)[0]], loader)
        else:
            found = next(filter(None, (self.usable(paths, loader) for paths in self.places(name, loader))), [])
        if not found and required:
            raise Failure(f"--ldd: {show(name)}, which {show(loader.path)} needs, is not to be found")
        return found

    def usable(self, paths, loader):
        """The Elfs of PATHS that are there and of the program's kind."""
        found = []
        for path in paths:
            try:
                with File(path) as file:
                    elf = Elf(file, loader) if file.read(4) == b"\x7fELF" else None
            except Failure as err:
                if err.errno is None and os.path.isfile(path):
                    raise
                continue
            if elf and elf.kind == self.program.kind:
                found.append(elf)
        return found

    def places(self, name, loader):
        """Where NAME may be, a list of paths for each place, in order."""
        above = list(loader.chain())
        if self.musl:
            directories = self.own_directories() + [part for elf in above for part in self.paths_of(elf)]
        else:
            directories = [] if loader.runpath else [place for elf in above for place in self.rpath_of(elf)]
            directories += self.own_directories()
            directories += [place for part in loader.runpath for place in self.expand(part, loader)]
        for directory in directories:
            yield [os.path.join(directory or ".", part, name) for part in (*VARIANTS, "")]
        if not self.musl:
            yield self.from_cache(name)
        for directory in () if loader.nodeflib else self.usual():
            yield [os.path.join(directory, part, name) for part in (*VARIANTS, "")]

    def own_directories(self):
        """The directories of LD_LIBRARY_PATH."""
        text = self.environ.get("LD_LIBRARY_PATH", "")
        return text.replace(";", ":").split(":") if text else []

    def rpath_of(self, elf):
        """The directories that ELF hands on to what it loads, and what that loads."""
        return [] if elf.runpath else [place for part in elf.rpath for place in self.expand(part, elf)]

    def paths_of(self, elf):
        """The directories of ELF under musl, to which RPATH and RUNPATH are one."""
        return [place for part in elf.runpath or elf.rpath for place in self.expand(part, elf)]

    def expand(self, text, elf):
        """TEXT of ELF without $ORIGIN, $LIB and $PLATFORM: all that it may mean."""
        origin = os.path.dirname(os.path.abspath(elf.path if elf.loader else os.path.realpath(elf.path)))
        machine = self.program.kind[1]
        text = substitute(substitute(text, "ORIGIN", origin), "PLATFORM", PLATFORMS.get(machine, ""))
        libs = (f"lib/{TRIPLETS.get(machine, '')}", "lib64", "lib")
        return list(dict.fromkeys(substitute(text, "LIB", lib) for lib in libs))

    def usual(self):
        """The directories in which a dynamic loader looks last."""
        if self.musl:
            try:
                with File(self.musl_path()) as file:
                    return os.fsdecode(file.read(MOST_BYTES)).replace("\n", ":").strip(":").split(":")
            except Failure:
                return ["/lib", "/usr/local/lib", "/usr/lib"]
        triplet = TRIPLETS.get(self.program.kind[1], "")
        lib = "lib64" if self.program.kind[0] == 2 else "lib32"
        return [f"/lib/{triplet}", f"/usr/lib/{triplet}", f"/{lib}", f"/usr/{lib}", "/lib", "/usr/lib"]

    def from_cache(self, name):
        """The paths that ld.so.cache has for NAME; none, if it is not there or of another form."""
        if self.cache is None:
            try:
                with File(CACHE) as file:
                    self.cache = Cache(file.read(4 * MOST_BYTES))
            except Failure:
                self.cache = Cache(b"")
        return self.cache.paths(name)


class Cache:
    """An ld.so.cache, DATA, of glibc 2.2 or newer; an empty one, if it is of another form. See ldconfig(8)."""

    def __init__(self, data):
        self.data = data[max(data.find(CACHE_MAGIC), 0) :]  # one for older loaders may stand before it
        self.places = {}
        known = self.data.startswith(CACHE_MAGIC)
        count = min(number(self.data, 20, 4), len(self.data) // 24 - 2) if known else 0
        for at in range(48, 48 + 24 * count, 24):
            name = self.string(number(self.data, at + 4, 4), 256)
            self.places.setdefault(name, []).append(number(self.data, at + 8, 4))

    def string(self, offset, most=PATH_MAX):
        """The string at OFFSET, MOST bytes at most."""
        return self.data[offset : offset + most].partition(b"\0")[0]

    def paths(self, name):
        """The paths of the library NAME, in all its variants."""
        found = [self.string(offset) for offset in self.places.get(os.fsencode(name), ())]
        return [os.fsdecode(path) for path in found if path.startswith(b"/")]


def names(text):
    """The names in TEXT, between colons or blanks."""
    return text.replace(":", " ").split()


def substitute(text, name, value):
    """TEXT with VALUE for $NAME and ${NAME}."""
    text = text.replace(f"${{{name}}}", value)
    before, *parts = text.split(f"${name}")
    for part in parts:  # $LIBRARY is not $LIB
        goes_on = part[:1].isalnum() or part[:1] == "_"
        before += (f"${name}" if goes_on else value) + part
    return before
