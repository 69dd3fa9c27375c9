"""What is confined, and how: the site that the attacks are made on, and every way to run a program in a sandbox.

A way is a function from a Site and an argv to a command line: a further command,
or another tool, is one more function and a line in a table.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import termios

from test_run_ids import DELEGATED, FILES

from conftest import BUSYBOX, DEADLINE, Who, prepare

HERE = pathlib.Path(__file__).parent
TOP = HERE.parent.parent
LIBC = ctypes.CDLL(None, use_errno=True)
ROOT_CAPABLE = bytes.fromhex("0100000201000000000000000000000000000000")  # VFS_CAP_REVISION_2, effective: cap_chown
IPC_CREAT, O_CREAT = 0o1000, 0o100


def compile_probe(directory):
    """Compile the attacks into DIRECTORY; return the path of the program."""
    path = pathlib.Path(directory) / "probe"
    subprocess.run(["cc", "-static", "-O1", "-Wall", "-Werror", "-o", path, HERE / "probes.c"], check=True)
    return path


class Site:
    """A place with everything that the attacks are to reach or not, the same for every way.

    box    a directory for hako-run, with a device in it if root made it
    ro, rw what is shown at /ro and /rw: to be read, to be written
    home   the caller's current directory, with the mark, which is shown nowhere
    """

    def __init__(self, who, probe):
        self.who, self.stack = who, contextlib.ExitStack()
        self.place = pathlib.Path(tempfile.mkdtemp(prefix="hako-site-"))
        self.stack.callback(shutil.rmtree, self.place, ignore_errors=True)
        self.place.chmod(0o755)
        self.box = prepare(self.place / "box")
        self.ro, self.rw, self.home = (self.place / name for name in ("ro", "rw", "home"))
        for path in (self.ro, self.rw, self.home, self.box / "ro", self.box / "rw"):
            path.mkdir()
        self.ro.chmod(0o777)
        self.rw.chmod(0o777)
        self.probe = self.place / "probe"
        shutil.copy(probe, self.probe)
        self.name = f"hako-{secrets.token_hex(8)}"
        self.word, self.secret = secrets.token_hex(16), secrets.token_hex(16)
        self.env = {**who.env, "SECRET": self.secret}
        self.make_files()
        self.make_inner()
        self.pty = os.ttyname(self.open_pty()[1])
        self.victim = self.start_victim()
        self.port = self.listen()
        self.make_ipc()

    def close(self):
        """Take all of it away again."""
        self.stack.close()

    def make_files(self):
        """The mark, and what lies in the mounts."""
        (self.home / "mark").write_text(self.word)
        (self.home / "policy").write_text("")
        (self.ro / "file").write_text("as it was\n")
        (self.ro / "file").chmod(0o666)
        for path in (self.ro, self.box) if os.getuid() == 0 else ():
            os.mknod(path / "zero", 0o666 | 0o020000, os.makedev(1, 5))
            (path / "zero").chmod(0o666)
        for name in ("setuid", "capable"):
            shutil.copy(self.probe, self.ro / name)
        (self.ro / "setuid").chmod(0o4755)
        if os.getuid() == 0:
            os.setxattr(self.ro / "capable", "security.capability", ROOT_CAPABLE)
        if self.who.prefix:
            for path, _, _ in os.walk(self.place):
                os.chown(path, self.who.uid, self.who.uid)
        done = subprocess.run([self.probe, "handle", self.home / "mark"], capture_output=True, text=True, check=False)
        self.handle = done.stdout.strip()

    def make_inner(self):
        """Directories for a sandbox in a sandbox in a sandbox."""
        for box in (self.rw / "inner", self.rw / "innermost"):
            for name in (".hako", "bin", "ro", "rw", "proc", "dev", "tmp"):
                (box / name).mkdir(parents=True)
            (box / "bin/probe").touch()

    def open_pty(self):
        """A pty that is nobody's controlling terminal: master and slave."""
        pair = os.openpty()
        for fd in pair:
            self.stack.callback(os.close, fd)
        os.chmod(os.ttyname(pair[1]), 0o666)
        return pair

    def start_victim(self):
        """A process of the caller; return its pid."""
        options = {"cwd": self.home, "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "env": self.env}
        code = "echo up; exec sleep 3600"
        process = subprocess.Popen(self.who.command(["sh", "-c", code]), **options)
        self.stack.callback(process.communicate, timeout=DEADLINE)
        self.stack.callback(process.kill)
        process.stdout.readline()
        return process.pid

    def listen(self):
        """Sockets to be found by name, path and port; return the port."""
        inet = socket.create_server(("127.0.0.1", 0))
        for name in (f"\0{self.name}", str(self.home / "socket")):
            server = socket.socket(socket.AF_UNIX)
            server.bind(name)
            server.listen(512)
            self.stack.callback(server.close)
        (self.home / "socket").chmod(0o777)
        self.stack.callback(inet.close)
        return inet.getsockname()[1]

    def make_ipc(self):
        """Shared memory, System V's and the other one, and a message queue, for everybody."""
        umask = os.umask(0)
        self.key = secrets.randbelow(2**30) + 1
        ident = LIBC.shmget(self.key, 4096, IPC_CREAT | 0o666)
        assert ident >= 0
        self.stack.callback(LIBC.shmctl, ident, 0, None)
        smallest = (ctypes.c_long * 8)(0, 1, 16)  # struct mq_attr: RLIMIT_MSGQUEUE is for all of a user's together
        queue = LIBC.mq_open(b"/" + self.name.encode(), os.O_RDWR | O_CREAT, 0o666, smallest)
        assert queue >= 0
        self.stack.callback(LIBC.mq_unlink, b"/" + self.name.encode())
        os.close(queue)
        path = pathlib.Path("/dev/shm") / self.name
        path.touch(0o666)
        self.stack.callback(path.unlink, missing_ok=True)
        os.umask(umask)

    def told(self, inside):
        """What the attacks are told, INSIDE a sandbox or not."""
        paths = {"root": "", "ro": "/ro", "rw": "/rw", "empty": "/tmp"}
        if not inside:
            paths = {"root": self.box, "ro": self.ro, "rw": self.rw, "empty": self.box / "tmp", "alone": "1"}
        facts = {
            "mark": self.home / "mark",
            "word": self.word[::-1],
            "secret": self.secret[::-1],
            "victim": self.victim,
            "handle": self.handle,
            "abstract": self.name,
            "socket": self.home / "socket",
            "port": self.port,
            "key": self.name,
            "ipc": self.key,
            "queue": f"/{self.name}",
            "shm": f"/{self.name}",
            "pty": self.pty,
            "uts": os.stat("/proc/self/ns/uts").st_ino,
        }
        return [f"{key}={value}" for key, value in {**paths, **facts}.items()]

    def put_back(self):
        """Undo what an attack that succeeded has changed."""
        for path in (self.ro / "made", self.box / "made"):
            if path.is_file() and path.parent == self.ro:
                path.rename(self.ro / "file")
            elif path.is_dir():
                path.rmdir()
        if (self.ro / "file").stat().st_mode & 0o777 != 0o666:
            (self.ro / "file").chmod(0o666)

    def attack(self, way, names=(), terminal=None, **options):
        """Try the attacks NAMES, or all, confined as WAY says, None for not at all; return {name: what came of it}.

        TERMINAL: they have one at 0, "controlling" that of their session or
        "strange" nobody's yet. OPTIONS are those of Who.run().
        """
        program = [str(self.probe)] if way is None else ["/bin/probe"]
        argv = [*program, *self.told(way is not None), *names]
        argv = argv if way is None else way(self, argv)

        def prepare():
            self.add_key()
            if terminal == "controlling":
                os.setsid()
                fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        leaked = [os.open(self.home, os.O_RDONLY), os.open(self.probe, os.O_RDONLY), *os.pipe()]
        stdin = self.open_pty()[1] if terminal else subprocess.DEVNULL
        try:
            options = {"cwd": self.home, "env": self.env, "stdin": stdin, **options}
            done = self.who.run(*argv, pass_fds=leaked, preexec_fn=prepare, **options)
        finally:
            for fd in leaked:
                os.close(fd)
            self.put_back()
        assert done.returncode == 0, (done.returncode, done.stderr)
        return dict(line.split(" ", 1) for line in done.stdout.splitlines())

    def add_key(self):
        """Give this process a session keyring with a key that everybody may search."""
        keyctl, add_key = (250, 248) if os.uname().machine == "x86_64" else (219, 217)
        LIBC.syscall(keyctl, 1, 0)
        key = LIBC.syscall(add_key, b"user", self.name.encode(), b"secret", 6, -3)
        for ident in (key, -3):
            LIBC.syscall(keyctl, 5, ident, 0x3F3F3F3F)


def shown(site):
    """What hako-run is told to show of SITE."""
    binds = [f"--mount={site.probe}:/bin/probe:ro", f"--mount={BUSYBOX}:/bin/busybox:ro"]
    return [*binds, f"--mount={site.ro}:/ro:ro", f"--mount={site.rw}:/rw", "--proc", "--dev", "--tmpfs=/tmp"]


def run(*options, behind=()):
    """hako-run with OPTIONS and the commands BEHIND it."""
    return lambda site, argv: ["hako-run", *shown(site), *options, str(site.box), *behind, *argv]


def delegated(whose, *options):
    """hako-run with OPTIONS, by "root" or by the "user" that WHOSE says, to whom ids are delegated; root starts it."""
    user = Who("user")
    change = user.prefix if whose == "user" else []

    def way(site, argv):
        (site.place / "files").mkdir(exist_ok=True)
        files = [
            "unshare",
            "--mount",
            "sh",
            "-c",
            FILES,
            "sh",
            DELEGATED[whose],
            DELEGATED[whose],
            site.place / "files",
        ]
        return [*map(str, files), *change, *run("--map=subid", *options)(site, argv)]

    return way


def limit(site, argv):
    """hako-limit in front of it, passing the output on itself."""
    return ["hako-limit", "--time=300", "--output=1M", *run()(site, argv)]


def policy(*options):
    """hako-policy with OPTIONS, on a policy that says nothing."""

    def way(site, argv):
        binds = [f"--ro-bind={site.probe}:/bin/probe", f"--ro-bind={site.ro}:/ro", f"--rw-bind={site.rw}:/rw"]
        return ["hako-policy", *binds, "--proc", "--dev", "--tmpfs=/tmp", *options, f"{site.home}/policy", "--", *argv]

    return way


ENTER = """
hako-run --pid-file="$1/pid" "${@:3:$2}" /bin/probe wait <> "$1/fifo" &
while [ ! -e "$1/pid" ]; do kill -0 $! || exit 99; sleep 0.02; done
hako-enter --fork "$(cat "$1/pid")" "${@:3+$2}"
status=$?
echo 1<> "$1/fifo"
wait
exit $status
"""


def enter(*options):
    """hako-enter into a hako-run with OPTIONS that is there already."""

    def way(site, argv):
        with contextlib.suppress(FileExistsError):
            os.mkfifo(site.rw / "fifo")
            (site.rw / "fifo").chmod(0o666)
        words = [*shown(site), *options, str(site.box)]
        return ["bash", "-c", ENTER, "bash", str(site.rw), str(len(words)), *words, *argv]

    return way


def nested(site, argv, boxes=("/rw/inner",)):
    """hako-run in hako-run, with BOXES as the roots of the inner ones."""
    inner = ["hako-run", "-m/bin/probe:/bin/probe:ro", "-m/ro:/ro:ro", "-m/rw:/rw", "-m/proc:/proc", "--dev"]
    words = [word for box in boxes for word in (*inner, "--tmpfs=/tmp", box)]
    return run("--user=65534")(site, [*words, *argv])


TASK = """
import json, subprocess, sys
done = subprocess.run(["hako-task", *sys.argv[2:]], input=sys.argv[1] + "\\n", stdout=subprocess.PIPE, text=True)
told = json.loads(done.stdout)
sys.stdout.write(told.get("stdout", ""))
sys.stderr.write(told.get("stderr", done.stdout))
if told["status"] == "internalError":
    if "--stream" in sys.argv:  # without, it has said that itself
        sys.stderr.write(f"hako-task: {told['description']}\\n")
    sys.exit(125)
sys.exit(told["code"] if told["status"] == "exited" else 99)
"""


def task(*options, **keys):
    """hako-task with OPTIONS, a request with the further KEYS."""

    def way(site, argv):
        binds = [(site.probe, "/bin/probe", True), (BUSYBOX, "/bin/busybox", True)]
        binds += [(site.ro, "/ro", True), (site.rw, "/rw", False)]
        mounts = [{"type": "bind", "src": str(src), "dest": dest, "ro": only} for src, dest, only in binds]
        mounts += [
            {"type": kind, "dest": dest} for kind, dest in (("proc", "/proc"), ("dev", "/dev"), ("tmpfs", "/tmp"))
        ]
        request = {"cmd": argv, "rootfs": [], "mounts": mounts, "outputs": {}, **keys}
        return [sys.executable, "-Ic", TASK, json.dumps(request), *options]

    return way


LIBRARY = """
import sys
sys.path.insert(0, sys.argv[1])
import hako
result = hako.Sandbox(**eval(sys.argv[2])).run(sys.argv[3:], stdin=0, stdout=1, stderr=2)
if result.status == "internalError":
    sys.stderr.write(f"hako-library: {result.reason}\\n")
    sys.exit(125)
sys.stderr.write(result.reason)
sys.exit(result.code if result.status == "exited" else 99)
"""


def library(**options):
    """The library, a hako.Sandbox with OPTIONS."""

    def way(site, argv):
        mounts = [f"{site.probe}:/bin/probe:ro", f"{BUSYBOX}:/bin/busybox:ro", f"{site.ro}:/ro:ro", f"{site.rw}:/rw"]
        given = {"root": str(site.box), "mounts": mounts, "proc": True, "dev": True, "tmpfs": ["/tmp"], **options}
        return [sys.executable, "-Ic", LIBRARY, str(TOP), repr(given), *argv]

    return way


def bwrap(site, argv):
    """bwrap, as tight as its manual says how."""
    words = ["bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    words += ["--ro-bind", site.box, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    words += ["--ro-bind", site.ro, "/ro", "--bind", site.rw, "/rw", "--ro-bind", site.probe, "/bin/probe"]
    return [*map(str, words), *argv]


UNSHARE = """
mount --bind "$1" "$1" && mount --rbind "$2" "$1/ro" && mount -o remount,bind,ro "$1/ro" &&
mount --bind "$3" "$1/rw" && mount --bind "$4" "$1/bin/probe" && mount -t proc proc "$1/proc" &&
mount -t tmpfs none "$1/tmp" && mount -t tmpfs none "$1/dev" && touch "$1/dev/null" &&
mount --bind /dev/null "$1/dev/null" && mount -o remount,bind,ro "$1" && exec chroot "$1" "${@:5}"
"""


def unshare(site, argv):
    """unshare(1), the namespaces and a chroot by hand."""
    words = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--net", "--ipc"]
    words += ["--uts", "--cgroup", "bash", "-c", UNSHARE, "bash", site.box, site.ro, site.rw, site.probe]
    return [*map(str, words), *argv]


# By name: as whom, and the way.
WAYS = {
    "hako-run": ("user", run()),
    "hako-run, root": ("root", run()),
    "hako-run --as-pid-1": ("user", run("--as-pid-1")),
    "hako-run --user, root": ("root", run("--user=65534")),
    "hako-run --as-pid-1, root": ("root", run("--as-pid-1")),
    "hako-run --as-pid-1 --user, root": ("root", run("--as-pid-1", "--user=65534")),
    "hako-run --userns=always, root": ("root", run("--userns=always", "--user=1000")),
    "hako-run --user=0": ("user", run("--user=0", "--group=0")),
    "hako-run --overlay": ("user", run("--overlay=tmpfs")),
    "hako-run --map=subid": ("root", delegated("user")),
    "hako-run --map=subid, root": ("root", delegated("root")),
    "hako-run --map=subid --user": ("root", delegated("user", "--user=1000", "--group=1000", "--as-pid-1")),
    "hako-run seccomp-exec": ("user", run(behind=("seccomp-exec", "default"))),
    "hako-run landlock-exec, root": ("root", run(behind=("landlock-exec", "--rwx=/"))),
    "hako-limit hako-run, root": ("root", limit),
    "hako-limit hako-run": ("user", limit),
    "hako-policy": ("user", policy()),
    "hako-policy, root": ("root", policy()),
    "hako-policy --user, root": ("root", policy("--user=65534")),
    "hako-policy --seccomp": ("user", policy("--seccomp=default")),
    "hako-policy --limit-walltime, root": ("root", policy("--limit-walltime=300", "--limit-output=1M")),
    "hako-enter": ("user", enter()),
    "hako-enter, root": ("root", enter()),
    "hako-enter, into --as-pid-1": ("user", enter("--as-pid-1")),
    "hako-run hako-run": ("user", nested),
    "hako-task": ("user", task()),
    "hako-task, root": ("root", task()),
    "hako-task --stream": ("user", task("--stream")),
    "hako-task --stream, root": ("root", task("--stream")),
    "hako-task --stream, uid, root": ("root", task("--stream", uid=65534, gid=65534)),
    "library": ("user", library()),
    "library, root": ("root", library()),
    "library, output, root": ("root", library(output="1M", uid=65534, gid=65534)),
    "library, overlay": ("user", library(overlay="tmpfs")),
}
# What a way allows on purpose.
FREE = {"hako-run --overlay": ("write-root",), "library, overlay": ("write-root",)}
if tuple(map(int, os.uname().release.split(".")[:2])) < (6, 6):
    del (
        WAYS["hako-run --overlay"],
        WAYS["library, overlay"],
    )  # a tmpfs has no user extended attributes, and hako-run says so
OTHERS = {"bwrap": bwrap, "unshare": unshare}


def somebody(name):
    """The Who of NAME, "root" or "user"; None if they cannot be had here."""
    return None if name == "root" and os.getuid() != 0 else Who(name)
