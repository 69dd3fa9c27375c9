"""hako-check: what works is told, and what a host lacks is named with its cause.

Hosts that lack something are made: by an outer filter that answers a call, by a
sysctl of a user namespace, by what is mounted, by what is on PATH.
"""

import ast
import fcntl
import json
import os
import pathlib
import re
import signal
import subprocess
from unittest import mock

import pytest
from test_limit import alive, start_tree
from test_run_life import gone, up
from test_run_overlay import own

from conftest import BIN, DEADLINE, SLOW, Cgroups, Who, prepare, wait_until
from hako import causes, kernel, newfile, probe

TOP = pathlib.Path(__file__).parent.parent
COMMANDS = {"hako-run", "hako-enter", "hako-limit", "hako-policy", "seccomp-exec", "landlock-exec"}
BEFORE = {}
NAMES = [feature.name for feature in probe.features()]
ABLE = r"""
mount -t tmpfs none "$1"; mkdir "$1/upper" "$1/work"
for file in subuid subgid; do printf 'root:200000:65536\nnobody:100000:65536\n' >"$1/upper/$file"; done
mount -t overlay -o lowerdir=/etc,upperdir="$1/upper",workdir="$1/work" none /etc
mknod "$1/tun" c 10 200; chmod 666 "$1/tun"; mount --bind "$1/tun" /dev/net/tun
umount -l "$1"; shift
"""
# What is not tried where a feature does not work, besides what needs what is not tried.
BUILT = {"user-namespaces", "namespaces", "setns", "mounts", "fd-mounts", "proc", "overlay", "overlay-tmpfs"}
AFTER = {
    "clone3": BUILT | {"id-ranges", "pasta"},
    "close-range": {"pasta"},
    "pidfds": {"setns", "pasta"},
    "setns": {"pasta"},
    "mounts": {"proc", "overlay", "overlay-tmpfs"},
    "seccomp": {"seccomp-actions", "seccomp-notify", "landlock-tcp"},
    "landlock": {"landlock-files", "landlock-tcp", "landlock-scopes"},
}


def check(who, *before, options=(), **popen):
    """Run hako-check behind the words BEFORE; return its exit status and what it says, of features and commands."""
    done = who.run(*before, "hako-check", "--json", *options, **popen)
    assert (done.stderr, done.stdout.count("\n")) == ("", 1)
    told = json.loads(done.stdout)
    assert list(told["features"]) == NAMES
    return done.returncode, told["features"], told["commands"]


def failing(features):
    """The causes of those FEATURES that do not work, {name: cause}; of what was not tried None."""
    return {
        name: told["cause"] if told["works"] is False else None for name, told in features.items() if not told["works"]
    }


def plain(who):
    """What of the features WHO has without a filter; looked up once."""
    if who.name not in BEFORE:
        BEFORE[who.name] = check(who)[1]
    return BEFORE[who.name]


def expected_of_this_kernel(who):
    """What fails for WHO on an old one."""
    abi = kernel.landlock_abi()
    versions = {"landlock": 2, "landlock-files": 5, "landlock-tcp": 4, "landlock-scopes": 6}
    found = {name: "kernel" for name, version in versions.items() if abi < version}
    return found | ({"overlay-tmpfs": "kernel"} if causes.release() < (6, 6) and who.name == "user" else {})


@pytest.fixture(params=["root", "user"])
def somebody(request, place):
    """Root and an ordinary user, both on a host that root prepares."""
    somebody = Who(request.param)
    os.chown(place, somebody.uid, -1)
    somebody.box = prepare(place / "box")
    return somebody


def on(somebody, script, *words):
    """Have SOMEBODY on a host where root has run SCRIPT, a shell's, with WORDS, in a mount namespace of its own."""
    somebody.prefix = ["unshare", "--mount", "sh", "-c", f'{script}\nexec "$@"', "sh", *words, *somebody.prefix]


@pytest.fixture
def able(somebody, place):
    """Somebody on a host where nothing is missing."""
    (place / "files").mkdir()
    on(somebody, ABLE, place / "files")
    somebody.cgroups = Cgroups()
    yield somebody
    somebody.cgroups.remove()


def answering(place, *calls, errno=None):
    """The words in front of a command for which a filter answers CALLS with ERRNO, or kills."""
    action = "KILL" if errno is None else f"ERRNO({errno})"
    (place / "rules").write_text(f"{action} {{ {', '.join(calls)} }} DEFAULT ALLOW")
    (place / "rules").chmod(0o644)
    return ["seccomp-exec", place / "rules"]


# What works


@pytest.mark.root
def test_a_host_where_nothing_is_missing(able):
    status, features, commands = check(able)
    missing = failing(features)
    assert missing.pop("no-tiocsti", "sysctl") == "sysctl"
    assert missing == expected_of_this_kernel(able)
    assert set(commands) == COMMANDS
    lacking = {name for name, told in commands.items() if not told["works"]}
    assert status == (1 if lacking & {"hako-run", "hako-policy", "hako-limit"} else 0)
    assert lacking == set() or missing
    assert features["id-ranges"]["detail"].startswith("65536 uids" if able.name == "root" else "65537 uids")
    able.cgroups.wait_until_empty()


@pytest.mark.vm
def test_what_fails_is_what_this_kernel_lacks(who, delegated):
    """But for what is installed, or not."""
    _, features, _ = check(who)
    missing = failing(features)
    for name in ("id-ranges", "pasta", "no-tiocsti"):
        missing.pop(name, None)
    expected = expected_of_this_kernel(who)
    assert missing == expected
    assert all(features[name]["why"] for name in expected)
    delegated.wait_until_empty()


def test_it_sees_the_end_of_all_that_it_started(who):
    """Not even a zombie is left to somebody else."""
    process = who.start("hako-check", stdout=subprocess.DEVNULL, start_new_session=True)
    process.wait(DEADLINE)
    process.stderr.close()
    assert str(process.pid) not in set(sessions())


def sessions():
    """The session of each process."""
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            yield path.read_text().rpartition(")")[2].split()[3]
        except OSError:
            continue  # it has ended


@pytest.mark.root
def test_it_leaves_nothing(able):
    """No process, no mount, no cgroup, no file."""
    mark = f"mark-{os.urandom(8).hex()}"
    script = 'cat /proc/self/mountinfo; hako-check >/dev/null; cat /proc/self/mountinfo; ls -A; : "$0"'
    done = able.run("sh", "-c", script, mark, cwd=able.box / "data")
    lines = done.stdout.splitlines()
    assert (done.stderr, len(lines) % 2) == ("", 0)
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]
    assert gone(mark)
    able.cgroups.wait_until_empty()


def test_the_table(who):
    """The same as the JSON, for people: what does not work is followed by what to do."""
    status, features, commands = check(who)
    done = who.run("hako-check")
    assert (done.returncode, done.stderr) == (status, "")
    first, last = done.stdout.split("\n\n")
    expected = [("FEATURE", "WORKS")]
    for name, told in features.items():
        expected.append((name, {True: "yes", False: "no", None: "-"}[told["works"]]))
        expected += [("",)] if told["works"] is False else []
    lines = first.splitlines()
    assert [tuple(line[:22].split()) or ("",) for line in lines] == expected
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        name = line.partition(" ")[0]
        if name in features and features[name]["works"] is False:
            assert re.sub(r"hako-\d+-\w+", "", features[name]["why"]) in re.sub(r"hako-\d+-\w+", "", line)
            assert after.strip() == features[name]["advice"]
    verdicts = [line.split() for line in last.splitlines()[1:]]
    assert verdicts == [
        [name, "yes" if told["works"] else "no", *told["lacks"]] for name, told in sorted(commands.items())
    ]


def test_a_command_lacks_what_it_needs_and_does_not_work(who):
    _, features, commands = check(who)
    for name, told in commands.items():
        lacks = [key for key, feature in features.items() if name in feature["commands"] and not feature["works"]]
        assert (told["works"], told["lacks"]) == (not lacks, lacks)


@pytest.mark.vm
def test_what_it_says_of_landlock_is_what_there_is(who):
    _, features, _ = check(who)
    assert features["landlock"]["detail"] == f"version {kernel.landlock_abi()}"


# Calls that are missing, or refused


@pytest.mark.parametrize(
    ("call", "feature"),
    [
        ("clone3", "clone3"),
        ("close_range", "close-range"),
        ("openat2", "openat2"),
        ("pidfd_open", "pidfds"),
        ("pidfd_send_signal", "pidfds"),
        ("setns", "setns"),
        ("mount", "mounts"),
        ("pivot_root", "mounts"),
        ("umount2", "mounts"),
        ("open_tree", "fd-mounts"),
        ("move_mount", "fd-mounts"),
        ("mount_setattr", "fd-mounts"),
        ("fsopen", "fd-mounts"),
        ("fsconfig", "fd-mounts"),
        ("fsmount", "fd-mounts"),
        ("seccomp", "seccomp"),
        ("landlock_create_ruleset", "landlock"),
        ("landlock_restrict_self", "landlock"),
        ("landlock_add_rule", "landlock-tcp"),
    ],
)
@pytest.mark.parametrize("errno", [kernel.ENOSYS, kernel.EPERM], ids=["ENOSYS", "EPERM"])
def test_a_call_that_a_filter_answers(who, place, call, feature, errno):
    """That feature fails, with that call and cause; what needs it is not tried; all else is as it was."""
    before = plain(who)
    assert before[feature]["works"] is True
    status, features, commands = check(who, *answering(place, call, errno=errno))
    untried = dict.fromkeys(AFTER.get(feature, ()))
    assert failing(features) == {**failing(before), **untried, feature: "seccomp"}
    assert features[feature]["why"].startswith(call)
    assert features[feature]["why"].endswith(f": {os.strerror(errno)}")
    assert "seccomp=unconfined" in features[feature]["advice"]
    assert all(features[name]["why"].startswith("needs ") for name in untried)
    assert status == 1
    assert [name for name in features[feature]["commands"] if commands[name]["works"]] == []


@pytest.mark.parametrize(("call", "feature"), [("openat2", "openat2"), ("mount", "mounts"), ("setns", "setns")])
def test_a_call_for_which_a_filter_kills(who, place, call, feature):
    before = plain(who)
    _, features, _ = check(who, *answering(place, call))
    untried = dict.fromkeys(AFTER.get(feature, ()))
    assert failing(features) == {**failing(before), **untried, feature: "seccomp"}
    assert features[feature]["why"] == "a call of it ends in SIGSYS"


@pytest.mark.parametrize("call", ["clone3", "open_tree", "move_mount", "mount_setattr", "fsopen", "openat2"])
def test_a_command_that_misses_a_call_points_here(who, place, call):
    """In one line; with it, it works."""
    argv = who.sandbox("/bin/busybox", "true", options=["--proc"])
    argv[0] = BIN / "hako-run"
    done = who.run(*answering(place, call, errno=kernel.ENOSYS), *argv)
    assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert re.fullmatch(rf"hako-run: {call}\b.*: Function not implemented \[(.*; )?see hako-check\]\n", done.stderr)
    done = who.run(*answering(place, "kexec_load", errno=kernel.ENOSYS), *argv)
    assert (done.returncode, done.stderr) == (0, "")


# User namespaces


NESTED = ["unshare", "--user", "--map-root-user"]


@pytest.mark.parametrize(("most", "cause"), [("0", "user.max_user_namespaces"), ("1000", None)])
def test_no_user_namespace_by_the_sysctl(who, most, cause):
    script = 'echo "$0" >/proc/sys/user/max_user_namespaces && exec "$@"'
    status, features, commands = check(who, *NESTED, "sh", "-c", script, most)
    found = features["user-namespaces"]
    assert (found["works"], found["cause"]) == (cause is None, cause)
    if cause:
        assert found["why"] == "clone3 user,uts: No space left on device"
        assert found["advice"] == "as root: sysctl -w user.max_user_namespaces=10000"
        assert (status, commands["hako-run"]["works"]) == (1, False)
        assert failing(features)["id-ranges"] is None
    assert features["mounts"]["works"]  # who has CAP_SYS_ADMIN needs none for that


@pytest.mark.parametrize(("most", "cause"), [("1", "too-many"), ("1000", None)])
def test_one_user_namespace_too_many(who, most, cause):
    """The limit is that of an outer one: the sysctl that is seen is not it."""
    script = 'echo "$0" >/proc/sys/user/max_user_namespaces && exec unshare --user --map-root-user "$@"'
    _, features, _ = check(who, *NESTED, "sh", "-c", script, most)
    assert (features["user-namespaces"]["works"], features["user-namespaces"]["cause"]) == (cause is None, cause)


@pytest.mark.root
@pytest.mark.parametrize(
    ("name", "value", "cause", "advice"),
    [
        ("apparmor_restrict_unprivileged_userns", "1", "apparmor", "apparmor_parser -r /etc/apparmor.d/hako"),
        ("apparmor_restrict_unprivileged_userns", "0", "unknown", "see the page of that call"),
        (
            "unprivileged_userns_clone",
            "0",
            "kernel.unprivileged_userns_clone",
            "as root: sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        ("unprivileged_userns_clone", "1", "unknown", "see the page of that call"),
    ],
)
def test_a_sysctl_that_keeps_ordinary_users_from_power_in_them(somebody, place, name, value, cause, advice):
    """There is one, and no power in it: so it looks if a filter refuses certain arguments alone."""
    (place / "kernel").mkdir()
    (place / "kernel" / name).write_text(f"{value}\n")
    on(somebody, 'mount --bind "$1" /proc/sys/kernel; shift', place / "kernel")
    (place / "rules").write_text("ERRNO(1) { sethostname(name, len) { len == 4 } } DEFAULT ALLOW")
    _, features, _ = check(somebody, "seccomp-exec", place / "rules")
    found = features["user-namespaces"]
    assert found["why"] == "sethostname hako: Operation not permitted"
    if somebody.name == "root":
        cause, advice = "unknown", "see the page of that call"  # such a sysctl is not for root
    assert (found["works"], found["cause"]) == (False, cause)
    assert advice in found["advice"]
    _, features, _ = check(somebody)
    assert features["user-namespaces"]["works"]


@pytest.mark.root
def test_in_a_chroot(somebody, place):
    """Nobody has a user namespace there."""
    (place / "root").mkdir()
    on(somebody, 'mount --rbind / "$1"; root=$1; shift; exec chroot "$root" "$@"', place / "root")
    _, features, _ = check(somebody)
    assert (features["user-namespaces"]["works"], features["user-namespaces"]["cause"]) == (False, "chroot")
    assert features["user-namespaces"]["why"] == "clone3 user,uts: Operation not permitted"


# Proc


@pytest.mark.root
def test_a_proc_that_is_partly_covered(somebody):
    """An ordinary user would see more in a fresh one; root may."""
    on(somebody, "mount -t tmpfs none /proc/bus")
    _, features, _ = check(somebody)
    if somebody.name == "root":
        assert features["proc"]["works"]
        return
    assert (features["proc"]["works"], features["proc"]["cause"]) == (False, "covered")
    assert "partly covered, at /proc/bus: show it with --mount=/proc:/proc" in features["proc"]["advice"]
    assert features["mounts"]["works"]
    done = somebody.inside("/bin/busybox", "true", options=["--proc"])
    assert done.stderr.endswith("an inner sandbox shares it with --mount=/proc:/proc; see hako-check]\n")


# Programs and delegation


@pytest.mark.root
def test_programs_that_are_not_there(able):
    _, features, _ = check(able, "/usr/bin/env", f"PATH={BIN}")
    assert (features["pasta"]["works"], features["pasta"]["cause"]) == (False, "program")
    assert features["pasta"]["why"] == "pasta: No such file or directory"
    assert "install passt" in features["pasta"]["advice"]
    if able.name == "root":
        assert features["id-ranges"]["works"]  # somebody may map any id needs none
    else:
        assert features["id-ranges"]["cause"] == "program"
        assert features["id-ranges"]["why"] == "newgidmap: No such file or directory"


@pytest.mark.root
def test_newuidmap_under_no_new_privs(able):
    _, features, _ = check(able, "setpriv", "--no-new-privs")
    assert features["id-ranges"]["works"] == (able.name == "root")
    assert features["id-ranges"]["cause"] == (None if able.name == "root" else "no-new-privs")


@pytest.mark.root
def test_ids_that_nobody_has_delegated(somebody, place):
    """The files are there and name another."""
    (place / "files").mkdir()
    on(somebody, ABLE.replace("root:", "other:").replace("nobody:", "another:"), place / "files")
    _, features, _ = check(somebody)
    name = "root" if somebody.name == "root" else "nobody"
    assert features["id-ranges"]["cause"] == "subids"
    assert features["id-ranges"]["advice"] == f"as root: add a line like {name}:100000:65536 to /etc/subuid"


@pytest.mark.root
def test_a_tun_that_only_root_may_open(somebody, place):
    """Pasta is not root."""
    (place / "files").mkdir()
    on(somebody, ABLE.replace("chmod 666", "chmod 600"), place / "files")
    _, features, _ = check(somebody)
    assert (features["pasta"]["cause"], features["pasta"]["advice"]) == ("tun", "as root: chmod 666 /dev/net/tun")


@pytest.mark.root
def test_what_does_not_answer_is_killed(able, place):
    """And what it started."""
    mark = f"mark-{os.urandom(8).hex()}"
    (place / "pasta").write_text(f'#!/bin/sh\nsh -c "sleep 300; :" {mark} & wait\n')
    (place / "pasta").chmod(0o755)
    path = f"PATH={place}:{BIN}:/usr/bin:/bin"
    _, features, _ = check(able, "/usr/bin/env", path, options=[f"--deadline={2 * SLOW:g}"])
    why = f"no answer in {2 * SLOW:g} seconds"
    found = features["pasta"]
    assert (found["works"], found["cause"], found["why"]) == (False, "deadline", why)
    assert gone(mark)
    assert features["id-ranges"]["works"]


@pytest.mark.vm
def test_cgroups_that_nobody_has_delegated(who):
    """An ordinary user is told how to get one; root has it."""
    _, features, commands = check(who)
    for name in ("cgroup-memory", "cgroup-pids", "cgroup-cpu"):
        if who.name == "root":
            assert features[name]["detail"] in ("version 1", "version 2")
            continue
        assert (features[name]["works"], features[name]["cause"]) == (False, "delegation")
        assert "systemd-run --user --scope -p Delegate=yes" in features[name]["advice"]
    assert commands["hako-limit"]["works"] == (who.name == "root")


@pytest.mark.vm
def test_cgroups_that_are_delegated(who, delegated):
    _, features, commands = check(who)
    assert [features[name]["cause"] for name in features if name.startswith("cgroup-")] == [None] * 3
    assert commands["hako-limit"]["works"]
    delegated.wait_until_empty()


@pytest.mark.root
def test_cgroups_that_are_not_mounted(somebody):
    on(somebody, "umount -R /sys/fs/cgroup")
    _, features, _ = check(somebody)
    found = features["cgroup-memory"]
    assert (found["cause"], found["why"]) == ("unmounted", "no cgroup file system is mounted here")


# In a chain


def test_in_a_sandbox(who):
    """What works in there: no more of proc than what is there; root has not what it takes to be root further in."""
    done = who.inside("hako-check", "--json", options=["--proc", "--dev"])
    features = json.loads(done.stdout)["features"]
    assert (done.returncode, done.stderr) == (1, "")
    if who.name == "root":
        assert features["user-namespaces"]["cause"] == "setfcap"
    else:
        assert features["user-namespaces"]["works"]
        assert features["proc"]["cause"] == "covered"
        assert features["overlay"]["works"]
    assert (features["openat2"]["works"], features["libseccomp"]["works"]) == (True, True)
    assert "a bug in hako" not in done.stdout  # as if something were still to be imported
    outside = json.loads(who.run("hako-check", "--json").stdout)["features"]
    for name in ("landlock", "landlock-files", "landlock-tcp", "landlock-scopes", "seccomp", "pidfds"):
        assert features[name]["works"] == outside[name]["works"]


@pytest.mark.parametrize(
    ("names", "place"), [(["proc", "etc", "usr"], "/etc"), (["usr", "proc"], "/usr"), (["proc"], "/proc")]
)
def test_what_is_tried_covers_proc_only_where_there_is_nothing_else(names, place, monkeypatch):
    found = [mock.Mock(path=f"/{name}", **{"is_dir.return_value": True}) for name in names]
    scandir = mock.MagicMock()
    scandir.return_value.__enter__.return_value = found
    monkeypatch.setattr(os, "scandir", scandir)
    assert probe.some_directory() == place


def test_in_a_sandbox_without_proc(who):
    done = who.inside("hako-check", "--json")
    features = json.loads(done.stdout)["features"]
    assert (done.returncode, done.stderr) == (1, "")
    assert features["user-namespaces"]["cause"] == "no-proc"
    assert features["cgroup-memory"]["works"] is False


def test_what_waits_has_its_status(who, place):
    """To hako-run and hako-limit it is PROG."""
    report = place / "report"
    done = who.run("hako-limit", f"--report={report}", "hako-check")
    assert (done.returncode, json.loads(report.read_text())["code"]) == (1, 1)
    assert done.stdout.startswith("FEATURE")
    assert who.run("hako-limit", "hako-check", "--clean").returncode == who.run("hako-check", "--clean").returncode


def test_to_what_waits_it_runs(who, place):
    """The pid file is there while it does, which is until somebody reads what it says."""
    pid_file = place / "pid"
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)  # JSON is longer
    argv = who.sandbox("hako-check", "--json", options=["--proc", f"--pid-file={pid_file}"])
    process = who.start(*argv, stdout=write)
    os.close(write)
    wait_until(pid_file.exists)
    with open(read, "rb") as file:
        assert len(file.read()) > 4096
    assert (process.communicate(timeout=DEADLINE)[1], process.returncode) == ("", 1)
    assert not pid_file.exists()


def test_behind_a_link(who):
    for link in (["rlimit-exec", "--core=0"], ["landlock-exec", "--scope=signal"], ["seccomp-exec", "unrestricted"]):
        done = who.run(*link, "hako-check", "--json")
        assert json.loads(done.stdout)["features"]["openat2"]["works"], done.stderr
    _, features, _ = check(who, "landlock-exec", "--rwx=/")
    assert (features["fd-mounts"]["cause"], features["mounts"]["cause"]) == ("landlock", "landlock")
    assert check(who, "landlock-exec", "--ldd", "--ro=/proc", "--rwx=/tmp")[1]["clone3"]["works"]


# Usage


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["word"], "too many operands: 'word' [hako-check [--json] [--deadline=SECONDS]]"),
        (["--clean", "a", "b"], "too many operands: 'b' [hako-check --clean [--json] [DIR]]"),
        (["--deadline=0"], "--deadline: not seconds, more than 0, like 2 or 0.5: '0'"),
        (["--deadline=x"], "--deadline: not seconds, more than 0, like 2 or 0.5: 'x'"),
        (["--clean", "/no/such"], "open /no/such: No such file or directory"),
        (["--clean", "/etc/passwd"], "open /etc/passwd: Not a directory"),
    ],
)
def test_bad_usage(who, argv, message):
    done = who.run("hako-check", *argv)
    assert (done.returncode, done.stderr) == (125, f"hako-check: {message}\n")
    assert "FEATURE" not in done.stdout


def test_output_that_cannot_be_written(who):
    done = who.run("sh", "-c", "hako-check > /dev/full")
    assert (done.returncode, done.stderr) == (125, "hako-check: write stdout: No space left on device\n")


def test_the_page_has_every_feature_and_cause():
    page = (TOP / "man/hako-check.1").read_text()
    listed = {word for line in re.findall(r"^\.It (.+)", page, re.MULTILINE) for word in line.split(" , ")}
    used = {causes.CLONE, causes.MOST, "apparmor", "needs", "deadline"}
    for name in ("causes", "probe"):
        for node in ast.walk(ast.parse((TOP / f"hako/{name}.py").read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
                "because",
                "Refusal",
            ):
                used |= {arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)}
    assert {"kernel", "seccomp", "tun", "unknown", "delegation"} < used
    assert (used | set(NAMES)) - listed == set()


# Cleaning


@pytest.mark.vm
def test_clean_removes_the_cgroup_of_a_killed_command_alone(who, delegated):
    """And ends who is in it; one that is watched stays."""
    marks = [f"mark-{os.urandom(8).hex()}" for _ in range(2)]
    (left, keeper), (running, _) = (start_tree(who, mark, "--memory=256M") for mark in marks)
    before = set(delegated.left())
    left.send_signal(signal.SIGSTOP)  # else it would see to it when the keeper is gone
    os.kill(keeper, signal.SIGKILL)
    left.kill()
    left.wait(DEADLINE)
    wait_until(lambda: not pathlib.Path(f"/proc/{left.pid}").exists() and not pathlib.Path(f"/proc/{keeper}").exists())
    done = who.run("hako-check", "--clean", "--json")
    assert done.stderr == ""
    told = json.loads(done.stdout)
    removed = before - set(delegated.left())
    assert removed
    assert removed <= set(told["removed"]) or not removed & set(told["removed"])  # root may have been faster, elsewhere
    assert not set(delegated.left()) & {*told["removed"], *told["left"]}
    assert (gone(marks[0]), len(alive(marks[1]))) == (True, 3)
    running.terminate()
    running.communicate(timeout=DEADLINE)
    delegated.wait_until_empty()
    for stream in (left.stdout, left.stderr):
        stream.close()


def test_clean_removes_temporary_files_alone(who, place):
    """Such as have the name that a report has on its way, and nobody's pid."""
    there = place / "there"
    there.mkdir()
    gone_pid = 2**22 + 1  # there are none above
    kept = {
        f".report.{os.getpid()}.0badcafe": "somebody's",
        f"report.{gone_pid}.0badcafe": "not hidden",
        f".report.{gone_pid}.0BADCAFE": "not of ours",
        f".report.{gone_pid}.0badcaf": "not of ours",
        f".{gone_pid}.0badcafe": "of no file",
        ".report": "something else",
    }
    for name, text in kept.items():
        (there / name).write_text(text)
    (there / f".directory.{gone_pid}.0badcafe").mkdir()
    (there / f".link.{gone_pid}.0badcafe").symlink_to(".report")
    left = f".a.report.{gone_pid}.0badcafe"
    (there / left).write_text("half")
    own(who, there)
    for name in os.listdir(there):
        os.chown(there / name, who.uid, who.uid if who.uid else -1, follow_symlinks=False)
    foreign = there / f".foreign.{gone_pid}.0badcafe"
    if os.getuid() == 0:
        foreign.write_text("another's")
        os.chown(foreign, 12345, 12345)
    before = set(os.listdir(there))
    os.chown(there, who.uid, -1)
    done = who.run("hako-check", "--clean", str(there))
    assert f"removed {there}/{left}\n" in done.stdout
    assert [line for line in done.stdout.splitlines() if str(there) in line] == [f"removed {there}/{left}"]
    assert set(os.listdir(there)) == before - {left}


def test_the_name_of_a_temporary_file_is_known(place):
    new = newfile.NewFile("--report", str(place / "report"))
    assert newfile.is_temporary(new.other_name())
    new.close()


def test_clean_removes_the_work_directory_of_a_killed_sandbox_alone(who, place):
    there = place / "layers"
    mark = f"mark-{os.urandom(8).hex()}"
    for name in ("left", "used"):
        (there / name).mkdir(parents=True)
    own(who, place)
    os.chown(there, who.uid, -1)
    code = f"echo up; busybox sleep 300; : {mark}"
    processes = [
        who.start(*who.sandbox("/bin/sh", "-c", code, options=[f"--overlay={there / name}"]))
        for name in ("left", "used")
    ]
    for process in processes:
        up(process)
    processes[0].kill()
    processes[0].communicate(timeout=DEADLINE)
    works = {name: f".hako-work-{(there / name).stat().st_ino}" for name in ("left", "used")}
    assert set(os.listdir(there)) == {"left", "used", *works.values()}
    wait_until(lambda: len(alive(mark)) < 4)

    def cleaned():
        done = who.run("hako-check", "--clean", str(there))
        assert works["used"] not in done.stdout
        return f"removed {there}/{works['left']}\n" in done.stdout

    wait_until(cleaned)  # the lock goes with the last process of the sandbox
    assert set(os.listdir(there)) == {"left", "used", works["used"]}
    processes[1].terminate()
    processes[1].communicate(timeout=DEADLINE)
    assert gone(mark)


def test_clean_where_there_is_nothing(who, place):
    done = who.run("hako-check", "--clean", str(place))
    assert (done.stderr, str(place) in done.stdout) == ("", False)
