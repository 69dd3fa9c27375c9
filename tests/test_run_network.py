"""hako-run --network=pasta: what is reached, what is not, and that nothing of it stays.

The world of these tests is a network namespace that stands for the host, with a
router behind it, and a /dev/net/tun that everybody may open, as udev makes it.
"""

import os
import pathlib
import select
import signal
import stat
import subprocess
import sys
import time

import pytest
from test_run_life import gone, up
from test_run_overlay import own

from conftest import BIN, DEADLINE, SYSTEM, Who, prepare, wait_until

pytestmark = pytest.mark.root

WORLD = r"""
mount --bind "$1/tun" /dev/net/tun
ip link set dev lo up
unshare --net sh -c 'echo here; exec sleep 100000' >"$1/here" & router=$!
until [ -s "$1/here" ]; do :; done
echo $router
ip link add name vhost type veth peer name vrouter
ip link set dev vrouter netns $router
ip addr add 10.9.0.1/24 dev vhost
ip addr add fd00:9::1/64 dev vhost nodad
ip link set dev vhost up
nsenter --target $router --net sh -c 'ip link set dev lo up; ip addr add 10.9.0.2/24 dev vrouter
ip addr add fd00:9::2/64 dev vrouter nodad; ip link set dev vrouter up'
ip route add default via 10.9.0.2
ip -6 route add default via fd00:9::2
"$2" -Ic "$3" host 127.0.0.1/7001 ::1/7001 0.0.0.0/7002 &
nsenter --target $router --net "$2" -Ic "$3" router 0.0.0.0/7003 ::/7004 &
wait
"""
SERVER = """
import socket, sys, threading
def tcp(server, name):
    server.listen(64)
    while True:
        connection, _ = server.accept()
        connection.recv(64)
        connection.sendall(name)
        connection.close()
def udp(server, name):
    while True:
        _, whom = server.recvfrom(64)
        server.sendto(name, whom)
for spec in sys.argv[2:]:
    address, _, port = spec.rpartition("/")
    for kind, serve in ((socket.SOCK_STREAM, tcp), (socket.SOCK_DGRAM, udp)):
        server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        if ":" in address:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind((address, int(port)))
        threading.Thread(target=serve, args=(server, sys.argv[1].encode()), daemon=True).start()
print("serving", flush=True)
threading.Event().wait()
"""
CLIENT = """
import socket, sys
for spec in sys.argv[1:]:
    kind, address, port = spec.split("/")
    kinds = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
    client = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kinds[kind])
    client.settimeout(1)
    try:
        client.connect((address, int(port)))
        client.send(b"x")
        print(spec, client.recv(64).decode())
    except OSError as err:
        print(spec, "nothing")
"""
OUTSIDE = ["tcp/10.9.0.2/7003", "udp/10.9.0.2/7003", "tcp/fd00:9::2/7004", "udp/fd00:9::2/7004"]
HOST = ["tcp/127.0.0.1/7001", "udp/127.0.0.1/7001", "tcp/::1/7001", "udp/::1/7001", "tcp/0.0.0.0/7001"]
HOST += ["tcp/10.9.0.1/7002", "tcp/10.9.0.1/7001", "tcp/10.9.0.2/7001", "udp/10.9.0.2/7001", "tcp/fd00:9::2/7001"]


class World:
    """A host with a network of its own, and a router behind it: pid is of a process in the former."""

    def __init__(self, directory):
        os.mknod(directory / "tun", 0o666 | stat.S_IFCHR, os.makedev(10, 200))
        (directory / "tun").chmod(0o666)
        argv = ["unshare", "--net", "--mount", "sh", "-c", WORLD, "sh", directory, sys.executable, SERVER]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.router = up(self.process).strip()
        assert [self.process.stdout.readline() for _ in range(2)] == ["serving\n"] * 2
        self.prefix = ["nsenter", f"--target={self.process.pid}", "--net", "--mount", "--"]

    def those_inside(self):
        """The pids of all processes in the host's network but its own: hako-run, its helpers and pasta."""
        goal, found = os.stat(f"/proc/{self.process.pid}/ns/net").st_ino, []
        for entry in pathlib.Path("/proc").iterdir():
            try:
                inside = entry.name.isdigit() and (entry / "ns/net").stat().st_ino == goal
                if inside and os.getpgid(int(entry.name)) != self.process.pid:
                    found.append(entry.name)
            except OSError:
                pass  # it has ended
        return found

    def end(self):
        """End all of it."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=DEADLINE)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The world, with nothing left in it at the end."""
    world = World(tmp_path_factory.mktemp("world"))
    yield world
    world.end()


@pytest.fixture(params=["root", "user"])
def somebody(request, place, world):
    """Somebody in the world; nothing of what they start may be left."""
    somebody = Who(request.param)
    somebody.plain, somebody.prefix = somebody.prefix, [*world.prefix, *somebody.prefix]
    somebody.box = prepare(place / "box")
    own(somebody, place)
    started, start = [], somebody.start
    somebody.start = lambda *argv, **options: started.append(start(*argv, **options)) or started[-1]
    yield somebody
    for process in started:
        process.kill()
    wait_until(lambda: not world.those_inside())


def reached(somebody, addresses, options=(), network="pasta"):
    """What answers of ADDRESSES, "tcp/ADDRESS/PORT", in a sandbox with the NETWORK."""
    argv = ["/usr/bin/python3", "-Ic", CLIENT, *addresses]
    done = somebody.inside(*argv, options=[*SYSTEM, f"--network={network}", *options])
    assert (done.returncode, done.stderr) == (0, "")
    return answers(done.stdout)


def answers(text):
    """TEXT, the output of CLIENT, as {address: who answered}, without those that did not."""
    pairs = [line.split() for line in text.splitlines()]
    return {address: name for address, name in pairs if name != "nothing"}


def test_the_outside_is_reached(somebody):
    assert reached(somebody, OUTSIDE) == dict.fromkeys(OUTSIDE, "router")
    assert reached(somebody, OUTSIDE, network="none") == {}


@pytest.mark.parametrize(
    "options", [("--as-pid-1",), ("--userns=always", "--user=0", "--group=0"), ("--user=1000", "--group=1000")]
)
def test_it_goes_with_other_options(somebody, options):
    assert reached(somebody, OUTSIDE[:1], options) == {OUTSIDE[0]: "router"}


def test_the_loopback_of_the_host_is_not_reached(somebody):
    """pasta by itself leads there: by 127.0.0.1, by ::1 and by the address of the router."""
    argv = [
        *somebody.prefix,
        *([] if somebody.plain else ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]),
    ]
    argv += ["pasta", "--quiet", "--config-net", "--", "/usr/bin/python3", "-Ic", CLIENT, *HOST]
    control = answers(subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE, check=False).stdout)
    assert {"tcp/127.0.0.1/7001", "tcp/::1/7001", "tcp/10.9.0.2/7001", "udp/10.9.0.2/7001"} <= set(control)
    assert reached(somebody, HOST) == {}
    assert reached(somebody, HOST, network="host")["tcp/127.0.0.1/7001"] == "host"


def test_nobody_reaches_inside_unless_a_port_is_named(somebody, world):
    """Neither the host, by its loopback, nor others, by the address of the host."""
    serve = SERVER.replace('print("serving"', 'print("up"')
    for network, ports in (("pasta", []), ("pasta:-t,7010,-u,7010", [7010])):
        argv = somebody.sandbox(
            *("/usr/bin/python3", "-Ic", serve, "inside", "0.0.0.0/7010", "0.0.0.0/7011"),
            options=[*SYSTEM, f"--network={network}"],
        )
        process = somebody.start(*argv)
        assert up(process) == "up\n"
        found = {}
        for pid, address in ((world.process.pid, "127.0.0.1"), (world.router, "10.9.0.1")):
            asked = [f"{kind}/{address}/{port}" for port in (7010, 7011) for kind in ("tcp", "udp")]
            client = ["nsenter", f"--target={pid}", "--net", "/usr/bin/python3", "-Ic", CLIENT, *asked]
            done = subprocess.run(client, capture_output=True, text=True, timeout=DEADLINE, check=True)
            found |= answers(done.stdout)
        process.terminate()
        process.communicate(timeout=DEADLINE)
        places = [f"{kind}/{address}" for kind in ("tcp", "udp") for address in ("127.0.0.1", "10.9.0.1")]
        assert found == {f"{place}/{port}": "inside" for place in places for port in ports}


def test_a_port_of_the_loopback_of_the_host_that_is_named(somebody):
    assert set(reached(somebody, HOST, network="pasta:-T,7001")) == {HOST[0], HOST[2], HOST[4]}
    assert set(reached(somebody, HOST[:2], network="pasta:--tcp-ns=7001")) == {HOST[0]}
    assert set(reached(somebody, [*OUTSIDE, HOST[0]], network="pasta:-4,--no-udp")) == {OUTSIDE[0]}


def test_pasta_has_no_rights_on_the_host(somebody, world):
    """It is the caller, or for root an id that nobody has, in a user namespace; what it holds is its own."""
    leak = os.open("/", os.O_RDONLY)
    argv = somebody.sandbox("/bin/sh", "-c", "echo up; read x", options=["--network=pasta"])
    process = somebody.start(*argv, stdin=subprocess.PIPE, pass_fds=[leak])
    assert up(process) == "up\n"
    helpers = [pid for pid in world.those_inside() if pid != str(process.pid)]
    names = {pid: pathlib.Path(f"/proc/{pid}/comm").read_text().strip() for pid in helpers}
    ours = os.readlink("/proc/self/ns/user")
    assert sorted(names.values())[0] == "hako-pasta"
    assert [name for name in names.values() if name.startswith(("pasta", "passt"))]
    for pid, name in names.items():
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
        lines = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        if name == "hako-init" or name.startswith("hako-run"):
            continue
        expected = ["4294967294" if somebody.name == "root" else "65534"] * 4
        assert [lines["Uid"].split(), lines["Gid"].split()] == [expected, expected]
        if name != "hako-pasta":
            command = pathlib.Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            ports = ["--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none"]
            assert (command[-9:-1], "--no-map-gw" in command) == (ports, True)
        assert lines["Groups"].strip() == ""
        assert os.readlink(f"/proc/{pid}/ns/user") != ours
        held = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        assert "/" not in held
        assert not any(str(somebody.box) in path for path in held)
        if name != "hako-pasta":
            assert os.readlink(f"/proc/{pid}/root") == "/"
            assert os.listdir(f"/proc/{pid}/root") == []
    os.close(leak)
    process.communicate("\n", timeout=DEADLINE)


def test_nobody_but_prog_holds_its_output(somebody):
    argv = somebody.sandbox("/bin/sh", "-c", "exec >&-; read x", options=["--network=pasta"])
    process = somebody.start(*argv, stdin=subprocess.PIPE)
    try:
        assert select.select([process.stdout], [], [], DEADLINE)[0]
        assert (process.stdout.read(), process.poll()) == ("", None)
    finally:
        process.stdin.close()
        process.wait(timeout=DEADLINE)
        process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("options", [(), ("--as-pid-1",)], ids=["init", "as-pid-1"])
def test_pasta_ends_with_the_sandbox(somebody, world, number, options):
    argv = somebody.sandbox("/bin/sh", "-c", "echo up; busybox sleep 300", options=["--network=pasta", *options])
    process = somebody.start(*argv)
    assert up(process) == "up\n"
    assert len(world.those_inside()) >= 3  # hako-run, hako-pasta, pasta
    process.send_signal(number)
    process.communicate(timeout=DEADLINE)
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert world.those_inside() == []  # seen gone by the one that ended


def test_a_stopped_helper_holds_up_nothing(somebody, world):
    argv = somebody.sandbox("/bin/sh", "-c", "echo up; read x; exit 3", options=["--network=pasta"])
    process = somebody.start(*argv, stdin=subprocess.PIPE)
    assert up(process) == "up\n"
    for pid in set(world.those_inside()) - {str(process.pid)}:
        os.kill(int(pid), signal.SIGSTOP)
    process.communicate("\n", timeout=DEADLINE)
    assert process.returncode == 3


def test_nothing_survives_a_kill_at_any_moment(somebody, world):
    for i in range(25):
        argv = somebody.sandbox("/bin/sh", "-c", "busybox sleep 300; :", "netmark", options=["--network=pasta"])
        process = somebody.start(*argv)
        time.sleep(0.01 * i)
        process.kill()
        process.communicate(timeout=DEADLINE)
        assert gone("netmark")
        wait_until(lambda: not world.those_inside())


def test_sigchld_ignored_by_the_caller(somebody):
    """The kernel would reap the helpers itself, and waiting for them fail."""
    argv = somebody.sandbox("/bin/sh", "-c", "exit 7", options=["--network=pasta"])
    done = somebody.run(*argv, preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    assert (done.returncode, done.stderr) == (7, "")


def test_many_at_once(somebody):
    argv = somebody.sandbox("/bin/busybox", "true", options=["--network=pasta"])
    processes = [somebody.start(*argv) for _ in range(20)]
    ends = [(process.communicate(timeout=DEADLINE)[1], process.returncode) for process in processes]
    assert set(ends) == {("", 0)}


def test_it_can_be_entered(somebody, place):
    argv = somebody.sandbox(
        *("/bin/sh", "-c", "echo up; read x"), options=[*SYSTEM, "--network=pasta", f"--pid-file={place}/pid"]
    )
    process = somebody.start(*argv, stdin=subprocess.PIPE)
    assert up(process) == "up\n"
    end = time.monotonic() + DEADLINE
    while not (place / "pid").exists():
        assert time.monotonic() < end
    enter = ["hako-enter", "--fork", (place / "pid").read_text().strip()]
    done = somebody.run(*enter, "/usr/bin/python3", "-Ic", CLIENT, OUTSIDE[0], HOST[0])
    process.communicate("\n", timeout=DEADLINE)
    assert (answers(done.stdout), done.stderr) == ({OUTSIDE[0]: "router"}, "")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("pasta:,", "--network: not an argument for pasta here: ''"),
        ("pasta:-t,,1", "--network: not an argument for pasta here: ''"),
        ("pasta:-f", "--network: not an argument for pasta here: '-f'"),
        ("pasta:-4f", "--network: not an argument for pasta here: '-4f'"),
        ("pasta:--foreground", "--network: not an argument for pasta here: '--foreground'"),
        ("pasta:--fore", "--network: not an argument for pasta here: '--fore'"),
        ("pasta:--netns=/proc/1/ns/net", "--network: not an argument for pasta here: '--netns=/proc/1/ns/net'"),
        ("pasta:--userns,x", "--network: not an argument for pasta here: '--userns'"),
        ("pasta:--runas=0", "--network: not an argument for pasta here: '--runas=0'"),
        ("pasta:-P,/x", "--network: not an argument for pasta here: '-P'"),
        ("pasta:--help", "--network: not an argument for pasta here: '--help'"),
        ("pasta:-t,x", "pasta: Invalid port specifier x"),
        ("pasta:sh", "pasta: Both --netns and PID or command given"),
        ("pasta:--,sh", "--network: not an argument for pasta here: '--'"),
        ("pasta:-i,none", "pasta: External interface not usable"),
        ("Pasta", "--network: open Pasta: No such file or directory [neither none, host nor pasta, so a file]"),
    ],
)
def test_bad_arguments_are_one_line_and_nothing_runs(somebody, network, message):
    options = ["-W", f"--network={network}"]
    done = somebody.inside("/bin/sh", "-c", "echo ran >/data/ran", options=options)
    if message.startswith("pasta: "):  # what pasta says, which may change
        assert done.stderr.startswith("hako-run: pasta: ")
        assert done.stderr.count("\n") == 1
    else:
        assert done.stderr == f"hako-run: {message}\n"
    assert (done.returncode, os.listdir(somebody.box / "data")) == (125, [])


def test_pasta_that_is_not_there(somebody):
    argv = somebody.sandbox("/bin/busybox", "echo", "ran", options=["--network=pasta"])
    done = somebody.run("/usr/bin/env", f"PATH={BIN}", *argv)
    message = "hako-run: pasta: No such file or directory [install it: Debian's package passt; see hako-check]\n"
    assert (done.returncode, done.stdout, done.stderr) == (125, "", message)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("echo first >&2; echo pasta: not today >&2; exit 1", "pasta: not today"),
        ("exit 7", "pasta exited with status 7"),
        ("kill -KILL $$", "pasta was killed by signal 9"),
        ("printf 'a\\033[2J' >&2; exit 1", "pasta: 'a\\x1b[2J'"),
        ("yes noise | head -n 20000 >&2; echo last >&2; exit 1", "pasta: last"),
    ],
)
def test_pasta_that_fails(somebody, place, text, reason):
    """Nothing runs."""
    fake = place / "fake"
    fake.mkdir()
    (fake / "pasta").write_text(f"#!/bin/sh\n{text}\n")
    (fake / "pasta").chmod(0o755)
    argv = somebody.sandbox("/bin/sh", "-c", "echo ran >/data/ran", options=["-W", "--network=pasta"])
    done = somebody.run("/usr/bin/env", f"PATH={fake}:{BIN}:/usr/bin:/bin", *argv)
    assert (done.returncode, done.stdout, done.stderr) == (125, "", f"hako-run: {reason}\n")
    assert os.listdir(somebody.box / "data") == []


@pytest.mark.parametrize("text", ["exec sleep 300", "while :; do echo noise >&2; done"])
def test_pasta_that_hangs_can_be_interrupted(somebody, place, text):
    fake = place / "fake"
    fake.mkdir()
    os.mkfifo(fake / "started")
    (fake / "started").chmod(0o666)
    (fake / "pasta").write_text(f"#!/bin/sh\necho >{fake}/started\n{text}\n")
    (fake / "pasta").chmod(0o755)
    argv = somebody.sandbox("/bin/sh", "-c", "echo ran >/data/ran", options=["-W", "--network=pasta"])
    process = somebody.start("/usr/bin/env", f"PATH={fake}:{BIN}:/usr/bin:/bin", *argv)
    assert (fake / "started").read_text() == "\n"
    process.terminate()
    assert process.communicate(timeout=DEADLINE) == ("", "")
    assert (process.returncode, os.listdir(somebody.box / "data")) == (143, [])


def test_without_tun(somebody, world):
    """A device that only root may open, as it is where there is no udev: pasta is not root."""
    hint = "pasta needs it and has not root's rights: it is for everybody, of mode 0666, mostly; see hako-check"
    message = f"hako-run: open /dev/net/tun: Permission denied [{hint}]\n"
    script = f'mount --bind {world.process.args[7]}/closed /dev/net/tun; exec "$@"'
    closed = pathlib.Path(world.process.args[7]) / "closed"
    if not closed.exists():
        os.mknod(closed, 0o600 | stat.S_IFCHR, os.makedev(10, 200))
    somebody.prefix = [*world.prefix, "unshare", "--mount", "sh", "-c", script, "sh", *somebody.plain]
    done = somebody.inside("/bin/busybox", "echo", "ran", options=["--network=pasta"])
    assert (done.returncode, done.stdout, done.stderr) == (125, "", message)


def test_prog_has_nothing_of_it(somebody):
    """No descriptor, no process, and no right to change its network."""
    code = "import os; print(sorted(map(int, os.listdir('/proc/self/fd'))), *filter(str.isdigit, os.listdir('/proc')))"
    done = somebody.python(code, options=["--proc", "--network=pasta"])
    assert done.stdout == "[0, 1, 2, 3] 1 2\n"


@pytest.mark.parametrize("user", [None, "0", "65534", "4294967294", "4294967293"])
def test_prog_has_no_rights_over_its_network(somebody, user):
    """Not as uid 0 either, without a user namespace: the uid that made the one of the network would have all.

    By a raw packet it could come to the loopback of the host, which older pastas let through.
    """
    options = ["--network=pasta", *([f"--user={user}", "--group=0"] if user else [])]
    done = somebody.inside("/bin/busybox", "ip", "link", "set", "lo", "down", options=options)
    assert done.stderr == "ip: SIOCSIFFLAGS: Operation not permitted\n"
    code = "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"
    done = somebody.python(code, options=options)
    assert "PermissionError: [Errno 1] Operation not permitted" in done.stderr
    assert somebody.python(code, options=[*options, "--cap-add=net_raw"]).stderr == ""
