"""landlock-exec --ldd: what a program needs to start, found without running it; files that are meant to mislead."""

import os
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import BUSYBOX, SYSTEM
from hako import elf, kernel
from hako.failure import Failure

BEST = ["--best-effort"] if kernel.landlock_abi() < 5 else []
LDD = ["landlock-exec", *BEST, "--ldd"]
NOTHING = {}  # of programs that env(1) could look for
PROGRAMS = ["ls", "cat", "sh", "bash", "env", "python3", "perl", "tar", "setpriv", "openssl", "git", "mandoc"]


def said(done):
    """What DONE said on stderr, without the line of --best-effort."""
    return "".join(done.stderr.splitlines(keepends=True)[len(BEST) :])


def cc(directory, name, code, *options):
    """Compile CODE to NAME in DIRECTORY."""
    (directory / "source.c").write_text(code)
    subprocess.run(["cc", "-w", "-o", directory / name, directory / "source.c", *options], check=True)
    return directory / name


@pytest.fixture
def libraries(place):
    """A function that builds a program and its libraries in PLACE: it needs liba, that needs libb in b/."""

    def build(tag, a="$ORIGIN/a", b="$ORIGIN/../b"):
        for name in "ab":
            (place / name).mkdir()
        cc(place, "b/libb.so", "int b() { return 42; }", "-shared", "-fPIC")
        link = [f"-Wl,{tag}"]
        to_b = [f"-Wl,-rpath,{b}"] if b else ["-Wl,--allow-shlib-undefined"]
        cc(place, "a/liba.so", "int a() { return b(); }", "-shared", "-fPIC", *link, *to_b, f"-L{place}/b", "-lb")
        to_a = [f"-Wl,-rpath,{a}"] if a else []
        more = ["-Wl,--allow-shlib-undefined", f"-L{place}/a", "-la"]
        return cc(place, "program", 'int main() { printf("%d\\n", a()); }', *link, *to_a, *more)

    return build


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_finds_what_ldd_finds(name):
    path = shutil.which(name, path="/usr/bin:/bin:/usr/sbin")
    if path is None:
        return
    listed = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    words = [word for line in listed.splitlines() for word in line.split() if word.startswith("/")]
    found = elf.needs(path, {}, NOTHING.get)
    assert {os.path.realpath(word) for word in words} <= {os.path.realpath(path) for path in found}
    assert found[path] == "rx"
    assert all(access == "rx" for path, access in found.items() if "/ld-" in path)
    assert [access for path, access in found.items() if "libc.so" in path] == ["ro"]


@pytest.mark.parametrize("argv", [["/bin/echo", "started"], ["echo", "started"], ["sh", "-c", "echo started"]])
def test_prog_starts(who, argv):
    """With nothing else allowed; that is, nothing else can be read."""
    done = who.run(*LDD, *argv)
    assert (done.returncode, done.stdout, said(done)) == (0, "started\n", "")
    done = who.run(*LDD, "cat", "/etc/passwd")
    assert (done.returncode, said(done)) == (1, "cat: /etc/passwd: Permission denied\n")


def test_a_static_program_needs_itself_alone(who):
    assert elf.needs(BUSYBOX, {}, None) == {BUSYBOX: "rx"}
    assert who.run(*LDD, BUSYBOX, "echo", "started").stdout == "started\n"


@pytest.mark.parametrize("tag", ["--enable-new-dtags", "--disable-new-dtags"], ids=["RUNPATH", "RPATH"])
def test_libraries_beside_the_program(who, place, libraries, tag):
    program = libraries(tag)
    assert who.run(program).stdout == "42\n"
    done = who.run(*LDD, program)
    assert (done.stdout, said(done)) == ("42\n", "")
    found = elf.needs(str(program), {}, None)
    assert found[f"{place}/a/liba.so"] == found[f"{place}/a/../b/libb.so"] == "ro"
    (place / "links").mkdir()
    (place / "links/program").symlink_to(program)
    assert who.run(*LDD, place / "links/program").stdout == "42\n"


def test_libraries_that_need_each_other(who, place):
    """In a ring; the search ends where it began."""
    rpath = "-Wl,-rpath,$ORIGIN"
    for _ in range(2):  # for the first there is nothing to be linked with yet
        for name, other in ("ab", "ba"):
            code = f"int {name}() {{ return 21; }} int {other}(); int {name}2() {{ return {other}(); }}"
            needed = [f"-L{place}", f"-l{other}"] if (place / f"lib{other}.so").exists() else []
            cc(place, f"lib{name}.so", code, "-shared", "-fPIC", rpath, *needed)
    program = cc(place, "program", 'int main() { printf("%d\\n", a2() + b2()); }', rpath, f"-L{place}", "-la", "-lb")
    assert who.run(program).stdout == "42\n"
    assert who.run(*LDD, program, timeout=30).stdout == "42\n"
    assert elf.needs(str(program), {}, None)[f"{place}/liba.so"] == "ro"


def test_rpath_holds_for_what_a_library_needs(who, libraries):
    """RUNPATH does not; the program's own needs are the control."""
    program = libraries("--disable-new-dtags", a="$ORIGIN/a:$ORIGIN/b", b=None)
    assert who.run(program).stdout == "42\n"
    assert who.run(*LDD, program).stdout == "42\n"


def test_runpath_does_not(who, libraries):
    program = libraries("--enable-new-dtags", a="$ORIGIN/a:$ORIGIN/b", b=None)
    assert who.run(program).returncode == 127
    done = who.run(*LDD, program)
    message = f"landlock-exec: --ldd: libb.so, which {program.parent}/a/liba.so needs, is not to be found\n"
    assert (done.returncode, done.stderr) == (125, message)


def test_rpath_does_not_hold_for_a_library_with_a_runpath(who, place, libraries):
    libraries("--enable-new-dtags", b="$ORIGIN/nowhere")
    argv = ["-Wl,--disable-new-dtags", "-Wl,--allow-shlib-undefined", "-Wl,-rpath,$ORIGIN/a:$ORIGIN/b"]
    program = cc(place, "other", 'int main() { printf("%d\\n", a()); }', *argv, f"-L{place}/a", "-la")
    assert who.run(program).returncode == 127
    assert who.run(*LDD, program).returncode == 125


def test_ld_library_path(who, place, libraries):
    program = libraries("--enable-new-dtags", a=None, b=None)
    env = {**who.env, "LD_LIBRARY_PATH": f"{place}/none:{place}/a:{place}/b"}
    assert who.run(program, env=env).stdout == "42\n"
    assert who.run(*LDD, program, env=env).stdout == "42\n"
    assert who.run(*LDD, program).returncode == 125


def test_ld_preload(who, place, libraries):
    program = libraries("--enable-new-dtags")
    cc(place, "libc42.so", "int b() { return 43; }", "-shared", "-fPIC")
    env = {**who.env, "LD_PRELOAD": f"{place}/libc42.so {place}/nosuch.so"}
    assert who.run(program, env=env).stdout == "43\n"
    assert who.run(*LDD, program, env=env).stdout == "43\n"


def test_a_library_for_another_machine_is_passed_over(who, place, libraries):
    """As the dynamic loader does; here one whose header says so."""
    program = libraries("--enable-new-dtags", a="$ORIGIN/other:$ORIGIN/a")
    (place / "other").mkdir()
    data = bytearray((place / "a/liba.so").read_bytes())
    data[18:20] = b"\x08\0"
    (place / "other/liba.so").write_bytes(data)
    assert who.run(program).stdout == "42\n"
    assert who.run(*LDD, program).stdout == "42\n"


def script(path, text):
    """Write an executable file; return its path."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("text", "out"),
    [
        ("#!/bin/sh\necho started $1\n", "started x\n"),
        ("#! \t /bin/sh  -e \t\necho started $1\n", "started x\n"),
        ("#!/usr/bin/env sh\necho started $1\n", "started x\n"),
        ("#!/usr/bin/env -S sh -e\necho started $1\n", "started x\n"),
        ("#!/bin/echo", None),
        ("#!/bin/echo started", None),
    ],
)
def test_scripts(who, place, text, out):
    """They do behind landlock-exec what they do without it."""
    path = script(place / "script", text)
    control, done = who.run(path, "x"), who.run(*LDD, path, "x")
    assert (done.returncode, done.stdout) == (control.returncode, control.stdout)
    assert out is None or done.stdout == out


def test_scripts_of_scripts(who, place):
    script(place / "0", "#!/bin/sh\necho started $#\n")
    for i in range(1, 5):
        script(place / str(i), f"#!{place}/{i - 1}\n")
    assert who.run(*LDD, place / "4").stdout == who.run(place / "4").stdout == "started 4\n"


@pytest.mark.parametrize("interpreter", ["{0}/script", "{0}/env x", "{0}/other"])
def test_a_script_in_a_loop(who, place, interpreter):
    """The kernel refuses it; the search ends before."""
    path = script(place / "script", f"#!{interpreter.format(place)}\n")
    for name in ("env", "other"):
        (place / name).symlink_to(path)
    done = who.run(*LDD, path, env={**who.env, "PATH": f"{who.env['PATH']}:{place}"})
    message = f"landlock-exec: {path}: Too many levels of symbolic links\n"
    assert (done.returncode, said(done)) == (126, message)


NO_FORMAT = "neither a program for this machine nor a script with #! and an interpreter"


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("#!/no/such\n", 125, "open /no/such: No such file or directory"),
        ("#!\n", 126, f"{{0}}: Exec format error [{NO_FORMAT}]"),
        ("#!" + "x" * 300, 126, f"{{0}}: Exec format error [{NO_FORMAT}]"),
        ("", 126, f"{{0}}: Exec format error [{NO_FORMAT}]"),
        ("text", 126, f"{{0}}: Exec format error [{NO_FORMAT}]"),
        ("\x7fELF", 125, "{0}: damaged: its ELF headers lead out of it"),
        ("\x7fELF" + "\0" * 99, 125, "{0}: damaged: its ELF headers lead out of it"),
        ("#!/\n", 125, "/: not a regular file"),
        ("#!/dev/null\n", 125, "/dev/null: not a regular file"),
    ],
)
def test_what_cannot_be_started(who, place, text, status, message):
    path = script(place / "program", text)
    done = who.run(*LDD, path)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (status, f"landlock-exec: {message.format(path)}")


def test_a_program_that_cannot_be_read(place):
    """It may be executed all the same; what it needs is not to be found out."""
    path = place / "program"
    shutil.copy("/bin/true", path)
    path.chmod(0o711)
    ids = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"] if os.getuid() == 0 else []
    path.chmod(0o711 if ids else 0o111)
    tool = shutil.which("landlock-exec", path=os.path.dirname(os.sys.executable))
    assert subprocess.run([*ids, path], check=False).returncode == 0
    done = subprocess.run([*ids, tool, *BEST, "--ldd", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (125, f"landlock-exec: open {path}: Permission denied\n")


def test_other_commands_in_between(who, place):
    """What the chain ends in counts; they themselves are not executed."""
    (place / "rules").write_text("ERRNO(77) { getpid } DEFAULT ALLOW")
    (place / "rules").chmod(0o644)
    links = ["rlimit-exec", "--core=0", "seccomp-exec", place / "rules"]
    done = who.run(*LDD, *links, "echo", "started")
    assert (done.returncode, done.stdout, said(done)) == (0, "started\n", "")
    done = who.run(*LDD, *links, "cat", "/etc/passwd")
    assert (done.returncode, said(done)) == (1, "cat: /etc/passwd: Permission denied\n")
    done = who.inside(*LDD, "rlimit-exec", "--core=0", "ls", "/usr", options=SYSTEM)
    assert (done.returncode, said(done)) == (2, "ls: cannot open directory '/usr': Permission denied\n")


def test_not_into_another_root(who):
    done = who.run(*LDD, *who.sandbox("/bin/busybox", "true"))
    assert (done.returncode, said(done)) == (125, "landlock-exec: --ldd: /bin/busybox is in another root than this\n")


def test_inside_a_sandbox(who):
    """What is there counts, on the PATH of there."""
    options = [*SYSTEM, "--env=PATH=/nowhere:/usr/bin"]
    done = who.inside(*LDD, "ls", "/bin", options=options)
    assert (done.returncode, said(done)) == (2, "ls: cannot open directory '/bin': Permission denied\n")
    done = who.inside(*LDD, "--ro=/bin", "ls", "/bin", options=options)
    assert "busybox" in done.stdout.split()
    done = who.inside(*LDD, "nosuch", options=options)
    assert (done.returncode, said(done)) == (127, "landlock-exec: nosuch: No such file or directory\n")


def test_nobody_is_kept_waiting(place):
    """By a fifo, or a device without an end, in the place of a file."""
    os.mkfifo(place / "fifo")
    for path in (place / "fifo", "/dev/zero", "/dev/tty", place):
        with pytest.raises(Failure, match=r"not a regular file|No such device"):
            elf.File(str(path))


with open("/bin/true", "rb") as program:
    TRUE = program.read()
changes = st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6)
dynamic = TRUE.find(b"\1\0\0\0\0\0\0\0", 2000)


def attempt(path, data):
    """What DATA, as a program at PATH, is found to need; None if it is found to be damaged."""
    path.write_bytes(data)
    try:
        return elf.needs(str(path), {}, NOTHING.get)
    except Failure as err:
        assert "\n" not in str(err)
        return None


@settings(max_examples=400, deadline=None)
@given(changes=changes, length=st.integers(0, len(TRUE)))
def test_damaged_programs(tmp_path_factory, changes, length):
    path = tmp_path_factory.getbasetemp() / "damaged"
    data = bytearray(TRUE)
    for offset, change in changes:
        data[offset : offset + len(change)] = change
    for part in (data, data[:length]):
        found = attempt(path, part)
        assert found is None or found[str(path)] == "rx"


@settings(max_examples=200, deadline=None)
@given(header=st.binary(max_size=60), rest=st.binary(max_size=500), kind=st.sampled_from([1, 2]))
def test_programs_of_nothing(tmp_path_factory, header, rest, kind):
    path = tmp_path_factory.getbasetemp() / "nothing"
    attempt(path, b"\x7fELF" + bytes([kind, 1]) + header + rest)


@given(head=st.binary(max_size=300))
def test_script_lines(head):
    words = elf.script_words(b"#!" + head)
    assert len(words) <= 2
    assert all(word == word.strip(" \t") or " " not in word for word in words[:1])
    assert elf.script_words(head) == [] or head.startswith(b"#!")


@given(count=st.integers(0, 2**32 - 1), rest=st.binary(max_size=400), before=st.binary(max_size=40))
def test_caches_of_nothing(count, rest, before):
    cache = elf.Cache(before + elf.CACHE_MAGIC + count.to_bytes(4, "little") + rest)
    for name in [*cache.places, b"libc.so.6"]:
        assert all(path.startswith("/") for path in cache.paths(os.fsdecode(name)))


def test_the_cache_of_this_system():
    with open(elf.CACHE, "rb") as file:
        cache = elf.Cache(file.read())
    listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    pairs = [(line.split()[0], line.split()[-1]) for line in listed.splitlines() if "=>" in line]
    assert pairs
    for name, path in pairs:
        assert path in cache.paths(name)


@given(st.text(alphabet="$ORIGN{}LB_x/", max_size=30))
def test_substitution(text):
    done = elf.substitute(text, "LIB", "lib")
    assert "${LIB}" not in done
    assert done == text or "LIB" in text
    assert elf.substitute("$LIB/$LIBRARY/${LIB}", "LIB", "x") == "x/$LIBRARY/x"
