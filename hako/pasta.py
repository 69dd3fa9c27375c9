"""--network=pasta: a network that the program pasta makes, outside, of sockets of its own.

It runs in the user namespace to which the sandbox's network namespace belongs,
with capabilities there and none on the host. Where the sandbox has no user
namespace, one is made for the two, with an id in it that nobody has.

supervisor
  hako-pasta   PID 1 of a pid namespace, so that nothing of pasta outlives it; ends with the supervisor
    pasta      goes to the background when the network is up
"""

import os
import select

from hako import build, identity, kernel, outside
from hako.failure import FAILED, SEE_CHECK, Failure, call, line_of

PACKAGE = "passt"
MADE = b"-"  # what the process that makes namespaces says of it
NOBODYS = (2**32 - 2, 2**32 - 3)  # ids: those above 2**31 are given to nobody
TUN = "/dev/net/tun"
# The rest is no part of what the sandbox is promised: the ports of the host's lo (-T, -U), or ports
# of the host that lead into the sandbox (-t, -u), would all be forwarded that anybody listens on.
PORTS = {"t": "--tcp-ports", "u": "--udp-ports", "T": "--tcp-ns", "U": "--udp-ns"}
OPTIONS = ("--quiet", "--config-net", "--no-map-gw", "--no-netns-quit", "--netns-only", "--netns=/proc/self/fd/0")
# What would make it another program, or another network's, and letters that take no value.
OURS = ("--foreground", "--pid", "--netns", "--netns-only", "--userns", "--runas", "--fd", "--help", "--version")
OUR_LETTERS, ALONE = "fPFh", "qdefh46"


def arguments(text):
    """TEXT, the ARGS of pasta:ARGS, as words: those between its commas."""
    words = text.split(",") if text else []
    for word in words:
        name = word.partition("=")[0]
        long = name.startswith("--")
        ours = any(option.startswith(name) for option in OURS) if long else set(letters(word)) & set(OUR_LETTERS)
        if not word or ours:
            raise Failure(f"--network: not an argument for pasta here: {word!r}")
    return words


def letters(word):
    """The one-letter options in WORD."""
    if not word.startswith("-") or word.startswith("--"):
        return ""
    count = next((i + 1 for i, letter in enumerate(word[1:]) if letter not in ALONE), len(word))
    return word[1 : count + 1]


def command(path, words):
    """The command line of pasta, at PATH, with WORDS of the user's: no port is forwarded unless they say so."""
    argv = [path, *OPTIONS]
    given = {letter for word in words for letter in letters(word)}
    names = {word.partition("=")[0] for word in words if word.startswith("--")}
    for letter, option in PORTS.items():
        if letter not in given and not any(option.startswith(name) for name in names):
            argv += [option, "none"]
    return argv + words


class Pasta:
    """pasta for one sandbox.

    argv      its command line
    user, net descriptors of the namespaces that it is to be in and to serve
    ids       uid and gid in the former
    pid       of hako-pasta
    life      the pipe that ends it
    told      what has come through the pipe ready
    """

    __slots__ = ("argv", "ids", "life", "net", "pid", "ready", "told", "user")

    def __init__(self, words):
        self.argv = command(outside.find("pasta", PACKAGE), words)
        self.user = self.net = self.ids = self.pid = self.life = self.ready = None
        self.told = b""

    def make_namespaces(self, uid):
        """Make a user namespace and in it a network namespace, neither of them PROG's, whose uid is UID.

        This process has every capability. Who has the uid that made a user
        namespace has all in it, also without any: so that is to be nobody's.
        """
        owner = next(number for number in NOBODYS if number != uid)
        with call("pipe2"):
            (made, tell), (wait, end) = os.pipe(), os.pipe()
        pid, _ = kernel.clone3(0)
        if not pid:
            stand_in(owner, (made, end), tell, wait)
        os.close(tell)
        os.close(wait)
        text, namespaces, failure = b"", None, None
        try:
            text = os.read(made, 4096)
            if text == MADE:
                namespaces = namespaces_of(pid, owner)
        except (Failure, OSError) as err:
            failure = err
        os.close(end)
        os.waitpid(pid, 0)
        text += os.read(made, 4096)
        os.close(made)
        if text != MADE:  # looked at first: what failed here may have, because it was gone
            why = os.fsdecode(text.removeprefix(MADE)) or "the process that makes its namespaces was killed"
            raise Failure(f"{why} [pasta needs a user namespace; {SEE_CHECK}]")
        if failure:
            raise failure
        self.take(*namespaces, (0, 0))

    def take(self, user, net, ids):
        """Serve the network namespace NET from the user namespace USER, with IDS."""
        self.user, self.net, self.ids = user, net, ids

    def start(self, files, when_up):
        """Start it. FILES gets what is to be read; there WHEN_UP is called once the network is up.

        What fails is a Failure, there too.
        """
        with call("pipe2"):
            self.life, self.ready = os.pipe(), os.pipe()
        pid, _ = kernel.clone3(0)
        if not pid:
            self.move()
        os.close(self.life[0])
        os.close(self.ready[1])
        with call("wait4"):
            os.waitpid(pid, 0)
        # Who makes hako-pasta writes a line for its pid, behind what that itself has written already, if it failed.
        first, made, rest = os.read(self.ready[0], 4096).partition(b"\n")
        if not made:
            raise Failure(os.fsdecode(first))
        number, _, rest = rest.partition(b"\n")
        self.pid, self.told = int(number), first + rest
        files[self.ready[0]] = select.POLLIN, lambda: self.hear(files, when_up)

    def hear(self, files, when_up):
        """Read what hako-pasta tells, to its end: why it failed, or "up"."""
        text = os.read(self.ready[0], 4096)
        self.told += text
        if text:
            return
        del files[self.ready[0]]
        os.close(self.ready[0])
        if self.told != b"up":
            raise Failure(os.fsdecode(self.told) or "pasta has ended")
        when_up()

    def end(self):
        """End it, if it was started, and see it gone."""
        if self.life is None:
            return
        os.close(self.life[1])
        if self.pid is None:
            return
        try:
            os.kill(self.pid, kernel.SIGKILL)  # it may be stopped
        except PermissionError:
            pass  # without CAP_KILL; it sees the end of life
        os.waitpid(self.pid, 0)

    def move(self):
        """Move to the user namespace and make hako-pasta, a child of the supervisor; never return."""
        try:
            kept = {self.user, self.net, self.life[0], self.ready[1]}
            kernel.close_all_but(kept)
            for fd in {0, 1, 2} - kept:
                os.close(fd)
            kernel.setns(self.user, kernel.CLONE_NEWUSER, "user namespace of the sandbox")
            build.take_ids(*self.ids)
            self.drop_groups()
            with call("pipe2"):
                wait, end = os.pipe()
            pid, _ = kernel.clone3(kernel.CLONE_NEWPID | kernel.CLONE_PARENT)
            if pid:
                os.write(self.ready[1], b"\n%d\n" % pid)
                os._exit(0)
            os.close(end)
            os.read(wait, 1)  # until that is told
            os.close(wait)
            self.serve()
        except (Failure, OSError) as err:
            os.write(self.ready[1], os.fsencode(line_of(err)))
        except BaseException:
            os.write(self.ready[1], b"a bug in hako: pasta was not started")
        finally:  # also where that cannot be said, or need not: the network was up
            os._exit(FAILED)

    @staticmethod
    def drop_groups():
        """Clear the supplementary groups, if they are not an ordinary user's own, who may not."""
        try:
            os.setgroups([])
        except PermissionError:
            pass

    def serve(self):
        """Be hako-pasta: start pasta, tell how that went, and end when it or the supervisor ends."""
        kernel.rename_process("hako-pasta")
        kernel.prctl("SET_PDEATHSIG", kernel.SIGKILL)
        hint = f"pasta needs it and has not root's rights: it is for everybody, of mode 0666, mostly; {SEE_CHECK}"
        with call(f"open {TUN}", hint):
            os.close(os.open(TUN, os.O_RDWR | os.O_CLOEXEC))
        held = kernel.capget()[1]
        kernel.capset(held)
        kernel.set_ambient([cap for cap in range(64) if held >> cap & 1])
        signals = kernel.signalfd((kernel.SIGCHLD,))
        front, said = outside.start(self.argv, "pasta", self.net)
        os.set_blocking(said.fd, False)
        poll = select.poll()
        poll.register(signals, select.POLLIN)
        poll.register(said.fd, select.POLLIN)
        poll.register(self.life[0], 0)
        while self.life[0] not in (ready := {fd for fd, _ in poll.poll()}):
            if said.fd in ready and said.hear() == b"":
                poll.unregister(said.fd)
            if signals in ready:
                kernel.read_signal(signals)
                self.reap(front, said)
        os._exit(0)

    def reap(self, front, said):
        """Wait for every child that has ended: FRONT, by which pasta says that the network is up, and pasta itself."""
        how, pid, is_left = None, -1, True
        while pid and is_left:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                is_left = False
            else:
                how = status if pid == front else how
        if how is not None:  # told last: what fails before is no network that is up
            if how:
                said.hear_rest()
            os.write(self.ready[1], os.fsencode(outside.complaint("pasta", how, said.text) if how else "up"))
            try:
                os.close(self.ready[1])
            except OSError:
                pass  # it is closed all the same, see close(2)
        if how or not is_left:
            os._exit(FAILED)


def stand_in(owner, others, tell, wait):
    """Be in new namespaces, uid OWNER's, until WAIT is at its end; TELL gets MADE, or why it fails. Never return.

    OTHERS are the caller's ends of those pipes.
    """
    try:
        for fd in others:
            os.close(fd)
        build.take_ids(owner, owner)
        kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNET)
        os.write(tell, MADE)
        os.read(wait, 1)
    except (Failure, OSError) as err:
        os.write(tell, os.fsencode(line_of(err)))
    except BaseException:
        os.write(tell, b"a bug in hako: no namespaces were made")
    finally:  # also where that cannot be said
        os._exit(0)


def namespaces_of(pid, owner):
    """Map root of the user namespace of PID to OWNER; return descriptors of that and of PID's network namespace."""
    ids = [(0, owner, 1)]
    build.write_id_maps(pid, identity.IdMaps(ids, ids, (0, 0), "caller"))
    with call(f"open /proc/{pid}/ns", "hako needs /proc"):
        return [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("user", "net")]
