"""J: who is short of what; a limit is PROG's to meet, not to raise."""

import ast
import json
import os
import sys

import pytest

from conftest import BUSYBOX, wait_until
from hostile import probes, ways

STRANGER = 61234  # nobody else's uid: what is counted by uid is counted for this alone


@pytest.mark.vm
def test_a_limit_can_be_raised_where_it_stands(who, sites, delegated):
    """The control: in the cgroup that has the limit, by its owner; unless the kernel itself sees to it (nsdelegate)."""
    site = sites(who.name)
    place = next(top for top in delegated.tops if (top / "pids.max").exists()) / "leaf-raised"
    place.mkdir()
    (place / "pids.max").write_text("1000")
    for path in (place, place / "cgroup.procs", place / "pids.max"):
        os.chown(path, who.uid, -1)
    prefix = site.who.prefix
    site.who.prefix = ["sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', str(place), *prefix]
    try:
        found = site.attack(None, ["limits"])
    finally:
        site.who.prefix = prefix
    assert (found["limits"] == probes.REACHED) == (not is_seen_to(place))


def is_seen_to(place):
    """Whether the hierarchy of the cgroup PLACE lets nobody change a limit from the namespace that begins there."""
    with open("/proc/mounts") as file:
        mounts = [line.split() for line in file]
    return any("nsdelegate" in fields[3] and str(place).startswith(f"{fields[1]}/") for fields in mounts)


@pytest.mark.vm
@pytest.mark.parametrize("way_name", ["hako-run", "hako-run --user", "hako-policy", "hako-policy --user"])
@pytest.mark.parametrize("option", ["--pids=40", "--memory=256M"])
def test_no_limit_can_be_raised(who, sites, delegated, way_name, option):
    site = sites(who.name)
    user = ("--user=65534",) if way_name.endswith("--user") else ()
    confined = ways.policy(*user) if "policy" in way_name else ways.run(*user)
    site.who.cgroups = who.cgroups
    try:
        found = site.attack(lambda site, argv: ["hako-limit", option, *confined(site, argv)], ["limits"])
        limit = option.replace("--", "--limit-")
        found |= {"policy": site.attack(ways.policy(*user, limit), ["limits"])["limits"]}
    finally:
        site.who.cgroups = None
    assert probes.reached(found) == set()
    delegated.wait_until_empty()


# uid 0 inside, where its caller has it to give, owns what the caller owns.
OWN_LIMITS = {
    "hako-task": ways.task("--stream", cgroupConfig={"pids.max": "40", "memory.max": "268435456"}),
    "hako-task, uid": ways.task(cgroupConfig={"pids.max": "40"}, uid=65534, gid=65534),
    "library": ways.library(pids=40, memory="256M"),
    "library, uid": ways.library(pids=40, uid=65534, gid=65534),
}


@pytest.mark.vm
@pytest.mark.parametrize("way_name", list(OWN_LIMITS))
def test_nor_one_of_a_task(who, sites, delegated, way_name):
    site = sites(who.name)
    site.who.cgroups = who.cgroups
    try:
        found = site.attack(OWN_LIMITS[way_name], ["limits"])
    finally:
        site.who.cgroups = None
    assert probes.reached(found) == set()
    delegated.wait_until_empty()


def one_line_or_fine(done, *, name="hako"):
    """Whether DONE did what it was to, or says in one line of a command why not."""
    if done.returncode == 0 and not done.stderr:
        return output(done) == "ran\n"
    lines = done.stderr.splitlines()
    return output(done) == "" and "Traceback" not in done.stderr and len(lines) == 1 and lines[0].startswith(name)


def is_fine(done):
    """Whether DONE ran PROG."""
    return (done.returncode, output(done)) == (0, "ran\n")


def output(done):
    """What PROG wrote, by what DONE did: hako-task has it in a response, and exits with 0 if there is one."""
    return json.loads(done.stdout).get("stdout", "") if done.stdout.startswith("{") else done.stdout


PROGRAM = """
import hako, sys
try:
    told = hako.run(["/bin/echo", "ran"], policy="kiss")
except hako.Failure as err:
    sys.exit(f"hako.run: {err}")
sys.stdout.buffer.write(told.stdout)
sys.exit(told.code if told.status == "exited" else f"hako.run: {told.reason}")
"""
COMMANDS = {
    "hako-run": ["hako-run", "--proc"],
    "hako-policy": ["hako-policy", "kiss", "--", "/bin/echo", "ran"],
    "hako-limit": ["hako-limit", "--time=60", "--output=1M", "/bin/echo", "ran"],
    "seccomp-exec": ["seccomp-exec", "default", "/bin/echo", "ran"],
    "landlock-exec": ["landlock-exec", "--rwx=/", "/bin/echo", "ran"],
    "hako-task": ["hako-task"],
    "hako.run": [sys.executable, "-I", "-c", PROGRAM],
}


# A worker that has none for its client's socket cannot tell it so.
NO_DESCRIPTOR = ": Too many open files", "[RLIMIT_NOFILE must be", "hako.run: the worker was killed"


def command(who, name):
    """The command line of NAME, which has "ran" printed."""
    if name == "hako-run":
        return who.sandbox("/bin/busybox", "echo", "ran", options=COMMANDS[name][1:])
    return COMMANDS[name]


def ran(who, name, *prefix, **wanted):
    """What the command NAME did behind PREFIX; the request is for hako-task, and what is WANTED of it."""
    shown = {"type": "bind", "src": BUSYBOX, "dest": "/bin/busybox"}
    wanted |= {"cmd": ["/bin/busybox", "echo", "ran"], "chroot": str(who.box), "mounts": [shown]}
    return who.run(*prefix, *command(who, name), input=json.dumps({**wanted, "outputs": {"stdout": True}}))


@pytest.mark.parametrize("name", list(COMMANDS))
def test_few_descriptors(who, name):
    """With enough of them all is well; with fewer one line says so; with none to speak of Python cannot start."""
    fine = []
    step = 5 if name in ("hako-task", "hako.run") else 1  # those two take longer to start
    for limit in (*range(5, 40, step), 1100):
        done = ran(who, name, "prlimit", f"--nofile={limit}", "--")
        if done.returncode == 1 and "hako" not in done.stderr.partition(":")[0]:
            continue  # the interpreter's own complaint
        fine.append(is_fine(done))
        assert one_line_or_fine(done) or done.returncode == 127, (limit, done)
        if not fine[-1] and done.returncode != 127:
            assert any(reason in done.stderr for reason in NO_DESCRIPTOR), (limit, done)
    assert fine[-1]


@pytest.mark.parametrize("name", ["hako-limit", "hako-task"])
def test_few_descriptors_leave_no_cgroup(who, delegated, name):
    """Who has made a cgroup before there were too few has one left to look into it with."""
    fine = []
    who.cgroups = delegated
    for limit in (*range(5, 40), 1100):
        done = ran(who, name, "prlimit", f"--nofile={limit}", "--", cgroupConfig={"pids.max": "40"})
        fine.append(is_fine(done))
        delegated.wait_until_empty()
    assert (fine[0], fine[-1]) == (False, True)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_little_memory(who, name):
    fine = []
    for megabytes in (16, 20, 22, 24, 26, 28, 30, 34, 40, 60, 100, 400, 9000):
        done = ran(who, name, "prlimit", f"--as={megabytes << 20}", "--")
        fine.append(is_fine(done))
        if done.stderr.startswith(name):
            assert one_line_or_fine(done), (megabytes, done)
        assert output(done) == ("ran\n" if fine[-1] else "")
    assert fine[-1]


@pytest.mark.root
@pytest.mark.parametrize("name", ["hako-run", "hako-policy", "hako-limit", "hako-task", "hako.run"])
def test_few_processes(who, name):
    """Whose uid has no more: one line, and nothing stays."""
    who.prefix = ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups", "--"]
    fine = []
    for limit in (1, 2, 3, 4, 5, 30):
        done = ran(who, name, "prlimit", f"--nproc={limit}", "--")
        fine.append(is_fine(done))
        assert one_line_or_fine(done), (limit, done)
        if not fine[-1]:
            assert done.stderr.endswith(": Resource temporarily unavailable\n"), (limit, done)
        wait_until(lambda: processes_of(STRANGER) == [])  # a worker ends when it sees that its caller has
    assert (fine[0], fine[-1]) == (False, True)


def processes_of(uid):
    """The pids of the processes of UID."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{entry}").st_uid == uid:
                found.append(entry)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("kind", ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"])
@pytest.mark.parametrize("name", ["hako-run", "hako-policy"])
def test_few_namespaces(who, kind, name):
    """Of one kind there are none left: the line says which could not be had and what limits them."""
    code = 'echo 0 > "/proc/sys/user/max_$1_namespaces" || exit 99; shift; exec "$@"'
    # In a user namespace, for the limits of that alone; the commands are not root there.
    outer = ["unshare", "--user", "--map-root-user", "sh", "-c", code, "sh", kind]
    always = ["--userns=always"] if name == "hako-run" else []
    argv = command(who, name)
    done = who.run(*outer, argv[0], *always, *argv[1:])
    needed = kind != "user" or name == "hako-run"
    if not needed:
        assert (done.returncode, done.stdout) == (0, "ran\n")
        return
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (125, "", 1)
    assert done.stderr.startswith(f"{name}: clone3 ")
    hint = f"user.max_{kind}_namespaces is 0 here{'; root needs none' if kind == 'user' else ''}"
    assert done.stderr.endswith(f": No space left on device [{hint}; see hako-check]\n")


def test_a_flood_into_a_closed_reader_ends(who):
    """PROG dies of SIGPIPE, and hako-run and hako-limit tell."""
    for front in ([], ["hako-limit", "--output=1G"]):
        argv = [*front, *who.sandbox("/bin/busybox", "yes")]
        process = who.start(*argv)
        process.stdout.close()
        assert process.wait(timeout=60) in (128 + 13, 0)
        process.stderr.close()


def test_disk_and_inodes_of_a_tmpfs_are_bounded(who):
    code = """
import os
def fill(step):
    for i in range(100000):
        try:
            step(i)
        except OSError as err:
            return i, err.strerror
print(fill(lambda i: os.mknod(f"/data/{i}")))
for name in os.listdir("/data"):
    os.unlink(f"/data/{name}")
fd = os.open("/data/x", os.O_WRONLY | os.O_CREAT)
print(fill(lambda i: os.write(fd, bytes(4096))))
"""
    done = who.python(code, options=["--tmpfs=/data:1M"])
    inodes, blocks = map(ast.literal_eval, done.stdout.splitlines())
    assert (inodes[1], blocks) == ("No space left on device", (256, "No space left on device"))
    assert inodes[0] <= 1088
