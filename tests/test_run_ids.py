"""hako-run --map=subid: ids that /etc/subuid and /etc/subgid delegate, in a user namespace.

The files of the tests are seen in a mount namespace of their own.
"""

import os
import pathlib
import subprocess
import time

import pytest
from test_run_life import gone, up
from test_run_overlay import own, told

from conftest import BIN, BUSYBOX, DEADLINE, Who, prepare

FILES = """
mount -t tmpfs none "$3"; mkdir "$3/upper" "$3/work"
printf "$1" >"$3/upper/subuid"; printf "$2" >"$3/upper/subgid"
mount -t overlay -o lowerdir=/etc,upperdir="$3/upper",workdir="$3/work" none /etc
umount -l "$3"; shift 3; exec "$@"
"""
DELEGATED = {"root": "root:200000:65536\n", "user": "nobody:100000:65536\n"}
FIRST = {"root": 200000, "user": 100000}
IDS = (
    "busybox cat /proc/self/uid_map /proc/self/gid_map; busybox id -u; busybox id -g; busybox cat /proc/self/setgroups"
)
NOTHING = "/etc/{file} gives nothing to {name} [add a line like {name}:100000:65536; see hako-check]"

pytestmark = pytest.mark.root


@pytest.fixture(params=["root", "user"])
def somebody(request, place):
    """Root and an ordinary user, with ids delegated to them; delegate() changes that."""
    somebody = Who(request.param)
    somebody.plain = somebody.prefix

    def delegate(uids=None, gids=None):
        uids = DELEGATED[somebody.name] if uids is None else uids
        gids = uids if gids is None else gids
        files = ["unshare", "--mount", "sh", "-c", FILES, "sh", uids, gids, place / "files"]
        somebody.prefix = [*files, *somebody.plain]

    (place / "files").mkdir()
    somebody.delegate = delegate
    delegate()
    somebody.box = prepare(place / "box")
    own(somebody, place)
    return somebody


def triples(somebody, count=65536):
    """What the map of SOMEBODY is to be, as the words of a line or two."""
    if somebody.name == "root":
        return ["0", "200000", str(count)]
    return ["0", "65534", "1", "1", "100000", str(count)]


@pytest.mark.parametrize("options", [(), ("--as-pid-1",), ("--userns=always",)])
def test_the_map(somebody, options):
    done = somebody.inside("/bin/sh", "-c", IDS, options=["--proc", "--map=subid", *options])
    assert done.stderr == ""
    assert done.stdout.split() == [*triples(somebody), *triples(somebody), "0", "0", "allow"]


def test_self_is_the_default(somebody):
    for options in ((), ("--map=self",)):
        done = somebody.inside("/bin/sh", "-c", IDS, options=["--proc", "--userns=always", *options])
        uid = str(somebody.uid)
        expected = [uid, uid, "1", uid, uid, "1", uid, uid, "allow" if somebody.name == "root" else "deny"]
        assert done.stdout.split() == expected


def test_user_is_an_id_inside(somebody, place):
    """Outside it is none of the caller's, and files that it makes tell."""
    (place / "out").mkdir()
    (place / "out").chmod(0o777)
    code = "busybox touch /data/made; busybox grep -E '^(Uid|Gid|Groups|Cap...):' /proc/self/status"
    options = ["--proc", "--map=subid", "--user=33", "--group=44", f"-m{place}/out:/data"]
    done = somebody.inside("/bin/sh", "-c", code, options=options)
    lines = dict(line.split(":", 1) for line in done.stdout.splitlines())
    assert (lines["Uid"].split(), lines["Gid"].split(), lines["Groups"].strip()) == (["33"] * 4, ["44"] * 4, "")
    assert {lines[name].strip() for name in lines if name.startswith("Cap")} == {"0" * 16}
    made = (place / "out/made").stat()
    shift = 0 if somebody.name == "root" else -1
    assert (made.st_uid, made.st_gid) == (FIRST[somebody.name] + 33 + shift, FIRST[somebody.name] + 44 + shift)


def test_the_callers_files_are_out_of_reach(somebody, place):
    """Root's always, for root is not mapped; an ordinary user's, but for uid 0 inside, which is that user."""
    (place / "src").mkdir()
    (place / "src/secret").write_text("secret\n")
    (place / "src/secret").chmod(0o600)
    own(somebody, place / "src")
    code = "busybox cat /data/secret"
    common = [f"-m{place}/src:/data", "--cap-add=dac_override", "--userns=always"]
    control = somebody.inside("/bin/sh", "-c", code, options=[*common, "--user=0", "--group=0"])
    assert control.stdout == "secret\n"
    done = somebody.inside("/bin/sh", "-c", code, options=[*common[:1], "--map=subid", "--user=33", "--group=33"])
    assert done.stderr == "cat: can't open '/data/secret': Permission denied\n"
    done = somebody.inside("/bin/sh", "-c", code, options=[*common, "--map=subid"])
    denied = "cat: can't open '/data/secret': Permission denied\n"
    assert (done.stdout, done.stderr) == (("", denied) if somebody.name == "root" else ("secret\n", ""))


def test_every_id_of_the_map_can_be_had(somebody):
    code = "import os; os.setgroups([5]); os.setgid(1000); os.setuid(65535); "
    code += "print(os.getuid(), os.getgid(), os.getgroups())"
    options = ["--map=subid", "--cap-add=setuid", "--cap-add=setgid"]
    assert somebody.python(code, options=options).stdout == "65535 1000 [5]\n"
    done = somebody.python("import os; os.setuid(70000)", options=options)
    assert "Invalid argument" in done.stderr


@pytest.mark.parametrize("option", ["--user", "--group"])
def test_an_id_that_the_map_has_not(somebody, option):
    last = 65535 if somebody.name == "root" else 65536
    other = ["--group=0"] if option == "--user" else []
    done = somebody.inside("/bin/busybox", "true", options=["--map=subid", f"{option}={last}", *other])
    assert (done.returncode, done.stderr) == (0, "")
    done = somebody.inside("/bin/busybox", "echo", "ran", options=["--map=subid", f"{option}={last + 1}", *other])
    message = f"hako-run: {option}: {last + 1} is not among the ids of --map=subid, 0 to {last}\n"
    assert (done.returncode, done.stdout, done.stderr) == (125, "", message)


def test_supplementary_groups_are_cleared(somebody):
    """Also without --user: with the caller's, PROG would read what others under its ids do not."""
    code = "busybox grep Groups /proc/self/status"
    somebody.delegate()
    somebody.prefix = [word if word != "--clear-groups" else "--groups=4,24" for word in somebody.prefix]
    if somebody.name == "root":
        somebody.prefix += ["setpriv", "--groups=4,24", "--"]
    done = somebody.inside("/bin/sh", "-c", code, options=["--proc", "--map=subid"])
    assert done.stdout.split() == ["Groups:"]
    control = somebody.inside("/bin/sh", "-c", code, options=["--proc", "--userns=always"])
    assert len(control.stdout.split()) == 3


def test_several_ranges_follow_one_another(somebody):
    name = "root" if somebody.name == "root" else "nobody"
    uid = str(somebody.uid)
    somebody.delegate(f"{name}:300000:10\n{uid}:200000:5\n{name}:100000:1\n", f"{uid}:100000:65536\n")
    done = somebody.inside("/bin/busybox", "cat", "/proc/self/uid_map", options=["--proc", "--map=subid"])
    first = [] if somebody.name == "root" else [["0", uid, "1"]]
    at = len(first)
    expected = [*first, [str(at), "300000", "10"], [str(at + 10), "200000", "5"], [str(at + 15), "100000", "1"]]
    assert [line.split() for line in done.stdout.splitlines()] == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", NOTHING),
        ("other:100000:65536\\n", NOTHING),
        ("{name}\\n", "/etc/{file}:1: not NAME:FIRST:COUNT: '{name}'"),
        ("{name}:1\\n", "/etc/{file}:1: not NAME:FIRST:COUNT: '{name}:1'"),
        ("{name}:1:2:3\\n", "/etc/{file}:1: not NAME:FIRST:COUNT: '{name}:1:2:3'"),
        ("\\n#\\n{name}:1:0\\n", "/etc/{file}:3: not NAME:FIRST:COUNT: '{name}:1:0'"),
        ("{name}:+1:2\\n", "/etc/{file}:1: not NAME:FIRST:COUNT: '{name}:+1:2'"),
        ("{name}: 1:2\\n", "/etc/{file}:1: not NAME:FIRST:COUNT: '{name}: 1:2'"),
        ("{name}:0x1:2\\n", "/etc/{file}:1: not NAME:FIRST:COUNT: '{name}:0x1:2'"),
        ("{name}:1:-2\\n", "/etc/{file}:1: not NAME:FIRST:COUNT: '{name}:1:-2'"),
        ("{name}:1:2\\r\\n", "/etc/{file}:1: not NAME:FIRST:COUNT: '{name}:1:2\\r'"),
        ("{name}:\\377:2\\n", "/etc/{file}:1: not NAME:FIRST:COUNT: '{name}:\\udcff:2'"),
        ("{name}:1:4294967295\\n", "/etc/{file}:1: ids end at 4294967294: '{name}:1:4294967295'"),
        ("{name}:9:9\\n{name}:17:9\\n", "/etc/{file}: 17 is there twice, or the caller's own id"),
    ],
)
@pytest.mark.parametrize("file", ["subuid", "subgid"])
def test_lines_that_delegate_nothing(somebody, line, message, file):
    """One line says which, and nothing runs."""
    name = "root" if somebody.name == "root" else "nobody"
    line, message = line.format(name=name), message.format(name=name, file=file)
    somebody.delegate(*((line, None) if file == "subuid" else (None, line)))
    if file == "subuid":
        somebody.delegate(line, DELEGATED[somebody.name])
    done = somebody.inside("/bin/busybox", "echo", "ran", options=["--map=subid"])
    if "\\r" in message or "udcff" in message:
        message = message.encode().decode("unicode_escape").encode("unicode_escape", "surrogatepass").decode()
    assert (done.returncode, done.stdout, done.stderr) == (125, "", f"hako-run: --map=subid: {message}\n")


def test_the_callers_own_id_cannot_be_delegated_to_it(somebody):
    """For root it could: its own is not mapped, and root's to map."""
    if somebody.name == "user":
        somebody.delegate("nobody:65530:10\n")
        done = somebody.inside("/bin/busybox", "echo", "ran", options=["--map=subid"])
        message = "hako-run: --map=subid: /etc/subuid: 65534 is there twice, or the caller's own id\n"
        assert (done.returncode, done.stdout, done.stderr) == (125, "", message)


def test_lines_of_others_do_not_matter(somebody):
    name = "root" if somebody.name == "root" else "nobody"
    junk = f"x{name}:1:2\\n{name}x:y\\n:\\n::\\n\\n\\377\\nother:0:4294967295\\n 0:1:2\\n"
    somebody.delegate(f"{junk}{name}:500000:3\n")
    done = somebody.inside("/bin/busybox", "cat", "/proc/self/uid_map", options=["--proc", "--map=subid"])
    assert done.stdout.split()[-3:-1] == [str(len(done.stdout.splitlines()) - 1), "500000"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--map="], "--map: neither self nor subid: ''"),
        (["--map=Subid"], "--map: neither self nor subid: 'Subid'"),
        (["--map=subid", "--userns=never"], "--map=subid: needs a user namespace, and --userns=never forbids it"),
    ],
)
def test_a_bad_value(somebody, options, message):
    done = somebody.inside("/bin/busybox", "echo", "ran", options=options)
    assert (done.returncode, done.stdout, done.stderr) == (125, "", f"hako-run: {message}\n")


def test_newuidmap_that_is_not_there_or_refuses(somebody, place):
    if somebody.name == "root":
        return  # needs none
    ran = ["/bin/busybox", "echo", "ran"]
    argv = somebody.sandbox(*ran, options=["--map=subid"])
    done = somebody.run("/usr/bin/env", f"PATH={BIN}", *argv)
    message = "newgidmap: No such file or directory [install it: Debian's package uidmap; see hako-check]"
    assert (done.returncode, done.stdout, done.stderr) == (125, "", f"hako-run: {message}\n")
    fake = place / "fake"
    fake.mkdir()
    for text, reason in (
        ("#!/bin/sh\necho first >&2\necho newuidmap: not you >&2\nexit 1\n", "newuidmap: not you"),
        ("#!/bin/sh\nexit 7\n", "newuidmap exited with status 7"),
        ("#!/bin/sh\nkill -KILL $$\n", "newuidmap was killed by signal 9"),
        ("#!/bin/sh\nprintf '\\033[2J' >&2; exit 1\n", "newuidmap: '\\x1b[2J'"),
        # More than a pipe holds.
        ("#!/bin/sh\nyes noise | head -n 20000 >&2; echo last >&2; exit 1\n", "newuidmap: last"),
    ):
        (fake / "newgidmap").write_text('#!/bin/sh\nexec /usr/bin/newgidmap "$@"\n')
        (fake / "newuidmap").write_text(text)
        for path in fake.iterdir():
            path.chmod(0o755)
        done = somebody.run("/usr/bin/env", f"PATH={fake}:{BIN}", *argv)
        assert (done.returncode, done.stdout, done.stderr) == (125, "", f"hako-run: {reason}\n")


def test_under_no_new_privs(somebody):
    """A setuid program has no effect there; root needs none."""
    argv = somebody.sandbox("/bin/busybox", "echo", "ran", options=["--map=subid"])
    done = somebody.run("setpriv", "--no-new-privs", *argv)
    if somebody.name == "root":
        assert (done.returncode, done.stdout) == (0, "ran\n")
        return
    message = "hako-run: --map=subid: newuidmap is a setuid program, and no_new_privs is set here [see hako-check]\n"
    assert (done.returncode, done.stdout, done.stderr) == (125, "", message)


def test_in_a_sandbox_it_is_refused(somebody):
    inner = ["hako-run", "--map=subid", "/data", "/bin/true"]
    done = somebody.inside(*inner, options=["--proc"])
    message = "hako-run: --map=subid: only outside of every sandbox: what it reads is the host's\n"
    assert (done.returncode, done.stderr) == (125, message)


@pytest.mark.parametrize("options", [(), ("--user=33", "--group=33")])
def test_a_sandbox_with_many_ids_ends_and_can_be_entered(somebody, place, options):
    argv = somebody.sandbox(
        *("/bin/sh", "-c", "echo up; busybox sleep 300", "many-ids"),
        options=["--proc", "--map=subid", f"--pid-file={place}/pid", *options],
    )
    process = somebody.start(*argv)
    assert up(process) == "up\n"
    end = time.monotonic() + DEADLINE
    while not (place / "pid").exists():
        assert time.monotonic() < end
    pid = (place / "pid").read_text().strip()
    done = somebody.run("hako-enter", "--fork", pid, "/bin/busybox", "id")
    inside = "33" if options else "0"
    assert (done.stdout, done.stderr) == (f"uid={inside} gid={inside}\n", "")
    done = somebody.run("hako-enter", "--fork", "--user=44", "--group=55", pid, "/bin/busybox", "id")
    assert done.stdout == "uid=44 gid=55\n"
    process.kill()
    process.communicate(timeout=DEADLINE)
    assert gone("many-ids")


def test_a_tmpfs_and_devices_belong_to_prog(somebody):
    code = "busybox stat -c %u:%g /tmp /dev/shm; busybox touch /tmp/x; echo x >/dev/null; busybox stat -c %u /tmp/x"
    options = ["--map=subid", "--tmpfs=/tmp", "--dev", "--proc", "--user=33", "--group=44"]
    done = somebody.inside("/bin/sh", "-c", code, options=options)
    assert (done.stdout, done.stderr) == ("33:44\n0:0\n33\n", "")


def test_overlays_and_their_changes(somebody, place):
    """What is made belongs to ids that are none of the caller's, who is told of it all the same."""
    upper = place / "upper"
    upper.mkdir()
    first = FIRST[somebody.name] if somebody.name == "root" else somebody.uid
    os.chown(upper, first, first)
    code = "busybox mkdir -m 0777 /new"
    options = ["--map=subid", f"--overlay={upper}", f"--changes={place}/list"]
    assert somebody.inside("/bin/sh", "-c", code, options=options).returncode == 0
    again = "busybox mkdir /new/own; echo x >/new/own/x; busybox chmod 0 /new/own/x /new/own"
    done = somebody.inside("/bin/sh", "-c", again, options=[*options, "--user=33", "--group=44"])
    assert (done.returncode, done.stderr) == (0, "")
    paths = {line[0] for line in told(place / "list")}
    assert paths == {"/new", "/new/own", "/new/own/x"}
    owner = FIRST[somebody.name] + 33 - (somebody.name == "user")
    assert (upper / "new/own").stat().st_uid == owner
    assert sorted(os.listdir(place)) == ["box", "files", "list", "upper"]


def test_the_interpreter_is_out_of_reach_with_capabilities(somebody, place):
    """With a capability PROG may be uid 0 inside, whose files the interpreter's may be."""
    if somebody.name == "root":
        return  # root, who owns it, is not mapped
    again = somebody.box / "bin/again"
    again.write_text("#!/proc/self/exe\nprint('again')\n")
    again.chmod(0o755)
    owned = place / "python3"
    subprocess.run(["cp", "/usr/bin/python3.11", owned], check=True)
    os.chown(owned, somebody.uid, somebody.uid)
    script = pathlib.Path(somebody.run("sh", "-c", "command -v hako-run").stdout.strip())
    mine = place / "hako-run"
    mine.write_text(script.read_text().replace(script.read_text().split("\n")[0], f"#!{owned} -IS", 1))
    mine.chmod(0o755)
    system = [f"-m{path}:{path}:ro" for path in ("/usr", "/lib", "/lib64") if os.path.exists(path)]
    argv = [mine, f"-m{BUSYBOX}:/bin/busybox:ro", "--proc", *system, "--map=subid"]
    for options, status in (
        (["--user=33", "--group=33"], 0),
        ([], 126),
        (["--user=33", "--group=33", "--cap-add=setuid"], 126),
    ):
        done = somebody.run(*argv, *options, somebody.box, "/bin/again")
        assert done.returncode == status
