"""The processes around PROG: the supervisor outside, the init inside, the pid file.

A command that waits makes a child with clone3 and becomes its supervisor. In a
sandbox with a pid namespace of its own that child becomes the init, which makes
the process that will be PROG, and ends when PROG does; with it the kernel ends
everything in there. The init dies with the supervisor (PR_SET_PDEATHSIG), which
PROG could undo for itself but not for the init.
"""

import _signal
import os
import select
import stat

from hako import identity, kernel
from hako.failure import FAILED, Failure, call, show

ENDING = (kernel.SIGINT, kernel.SIGTERM, kernel.SIGHUP, kernel.SIGQUIT)
FORWARDED = (kernel.SIGUSR1, kernel.SIGUSR2, kernel.SIGWINCH, kernel.SIGCONT, kernel.SIGTSTP)
EPERM, ESRCH, EISDIR, EOPNOTSUPP, ENOSPC = 1, 3, 21, 95, 28


class Channels:
    """What the processes tell each other, all close-on-exec.

    started   PROG's process writes its pid, as the caller's /proc has it, and
              "!" if it fails; exec closes it
    ended     the init writes PROG's wait status, decimal, or why it failed itself
    alive     the supervisor writes a byte when the id maps are written; it closes when it ends,
              or when the sandbox is to end
    """

    __slots__ = ("alive", "ended", "started")

    def __init__(self):
        with call("pipe2"):
            self.started, self.ended, self.alive = os.pipe(), os.pipe(), os.pipe()

    def of_supervisor(self):
        """Keep the supervisor's ends. What it cannot write it finds out by itself, not by dying of a signal."""
        _signal.signal(kernel.SIGPIPE, _signal.SIG_IGN)
        _signal.signal(kernel.SIGXFSZ, _signal.SIG_IGN)
        for fd in (self.started[1], self.ended[1], self.alive[0]):
            os.close(fd)

    def of_child(self, waiting):
        """Keep the child's ends, at which the supervisor's death shows; WAITING gets the one that exec closes."""
        for fd in (self.started[0], self.ended[0], self.alive[1]):
            os.close(fd)
        waiting.append(self.started[1])


def hold_signals():
    """Block what a supervisor reads by signalfd; return those: the caller's ignored ones stay ignored.

    SIGCHLD gets its default action, or the kernel would reap the child itself.
    """
    _signal.signal(kernel.SIGCHLD, _signal.SIG_DFL)
    ending = [number for number in ENDING if _signal.getsignal(number) is not _signal.SIG_IGN]
    with call("rt_sigprocmask"):
        _signal.pthread_sigmask(_signal.SIG_BLOCK, (*ENDING, *FORWARDED, kernel.SIGCHLD))
    return (*ending, *FORWARDED)


def default_signals():
    """Give PROG default actions and an empty mask, whatever the caller had."""
    for number in range(1, _signal.NSIG):
        if _signal.getsignal(number) is _signal.SIG_IGN:
            _signal.signal(number, _signal.SIG_DFL)
    kernel.default_reserved_signals()
    with call("rt_sigprocmask"):
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def die_with_parent(channels):
    """Have the kernel kill this process when its parent ends; end now if it has.

    A change of uid or gid clears that, so it comes behind the last one, and
    again behind each. getppid() would be 0 in a pid namespace, so the pipe tells.
    """
    kernel.prctl("SET_PDEATHSIG", kernel.SIGKILL)
    poll = select.poll()
    poll.register(channels.started[1], 0)
    with call("poll"):
        alone = poll.poll(0)  # POLLERR: nobody reads any more
    if alone:
        os._exit(128 + kernel.SIGKILL)


def be_init(prog, who, channels):
    """Be PID 1 around the process PROG: reap, forward signals, and end with it; never return.

    It holds nothing of the host and takes WHO's ids: /proc/1 gives nothing away.
    """
    try:
        settle_init(who, channels)
        serve(prog, channels)
    except (Failure, OSError) as err:
        os.write(channels.ended[1], os.fsencode(str(err)))
    os._exit(FAILED)


def settle_init(who, channels):
    """Make this process the init: as WHO, with nothing of the caller's."""
    kernel.close_all_but([channels.ended[1], channels.started[1], channels.alive[0]])
    with call("chdir /"):
        os.chdir("/")  # now, or with PROG's pivot_root, the sandbox's; the caller's would lead out
    identity.assume(who)
    kernel.prctl("SET_DUMPABLE", 0)
    die_with_parent(channels)
    os.close(channels.started[1])
    for fd in (0, 1, 2):
        os.close(fd)  # a caller that reads to the end waits for PROG, not for us


def serve(prog, channels):
    """Reap and forward until PROG or the supervisor ends.

    The death of the supervisor shows at the pipe too: where the caller lacks
    CAP_KILL, its death signal does not reach a process of another uid.
    """
    signals = kernel.signalfd((kernel.SIGCHLD, *FORWARDED))
    poll = select.poll()
    poll.register(signals, select.POLLIN)
    poll.register(channels.alive[0], 0)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if channels.alive[0] in ready:
            os._exit(128 + kernel.SIGKILL)
        number, sender = kernel.read_signal(signals)
        if number == kernel.SIGCHLD:
            reap(prog, channels)
        elif sender == 0:  # from outside the pid namespace; those inside have no business with PID 1
            forward(prog, number)


def forward(prog, number):
    """Send PROG the signal NUMBER. It may have changed its uid: then it is out of reach."""
    try:
        os.kill(prog, number)
    except (PermissionError, ProcessLookupError):
        pass


def reap(prog, channels):
    """Wait for every child that has ended; when PROG is among them, say how it ended and end too."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == prog:
            os.write(channels.ended[1], b"%d" % status)
            os._exit(0)
        if pid == 0:
            return


def forget(waiting):
    """Close the descriptors WAITING, and stdin and stdout, which are PROG's: this process waits and never execs."""
    os.close(0)
    os.close(1)
    for fd in waiting:
        os.close(fd)
    waiting.clear()


class Supervisor:
    """The parent of a sandbox: waits for it, passes signals on, and knows how it ended."""

    __slots__ = ("channels", "ended_by", "how", "pid", "pidfd", "signal_fd", "told")

    def __init__(self, pid, pidfd, channels, signals):
        channels.of_supervisor()
        self.pid, self.pidfd, self.channels = pid, pidfd, channels
        self.signal_fd = kernel.signalfd(signals)
        self.ended_by, self.told, self.how = None, b"", ""

    def wait(self, on_start=None, also=None):
        """Wait for the end; return the exit status for it: PROG's, or 128 and the signal's number.

        ON_START is called with the pid once PROG runs. ALSO has descriptors and
        what to call when they are readable; it may change meanwhile. After it,
        how says for people how PROG ended.
        """
        also = {} if also is None else also
        signal_fd = self.signal_fd
        started = self.channels.started[0]
        poll = select.poll()
        for fd in (self.pidfd, signal_fd, started):
            poll.register(fd, select.POLLIN)
        ready = set()
        while self.pidfd not in ready:
            for fd in also:
                poll.register(fd, select.POLLIN)
            with call("poll"):
                ready = {fd for fd, _ in poll.poll()}
            for fd in ready & set(also):
                poll.unregister(fd)
                also[fd]()
            if started in ready and not self.hear(started):
                poll.unregister(started)
                if on_start and b"!" not in self.told and not self.ended_by:
                    on_start(int(self.told or self.pid))
            if signal_fd in ready:
                self.pass_on(kernel.read_signal(signal_fd)[0])
        return self.status()

    def hear(self, started):
        """Read what PROG's process tells; false at the end of it."""
        text = os.read(started, 64)
        self.told += text
        return bool(text)

    def pass_on(self, number):
        """Do what signal NUMBER asks for: end the sandbox, or pass it on."""
        if number in ENDING:
            self.ended_by = number
            self.kill()
            return
        self.send(number)
        if number == kernel.SIGTSTP:
            os.kill(os.getpid(), kernel.SIGSTOP)  # as the shell that sent it expects

    def kill(self):
        """Have the sandbox end: by the kernel, or by its init if that is not ours to kill."""
        alive = self.channels.alive
        if alive[1] is not None:
            os.close(alive[1])
            self.channels.alive = (alive[0], None)
        self.send(kernel.SIGKILL)

    def end(self):
        """End the sandbox and see it gone, if that has not been seen yet."""
        try:
            self.kill()
            self.reap()
        except Failure:
            pass  # there is nobody to wait for any more

    def send(self, number):
        """Send signal NUMBER to the child, if it is still there and ours to send signals to."""
        try:
            kernel.pidfd_send_signal(self.pidfd, number)
        except Failure as err:
            if err.errno not in (EPERM, ESRCH):
                raise

    def reap(self):
        """Wait for the child; return its wait status as waitpid() has it."""
        with call("wait4"):
            return os.waitpid(self.pid, 0)[1]

    def status(self):
        """The exit status that tells how it ended; all of the sandbox has ended."""
        own = self.reap()
        if self.ended_by:
            self.how = f"ended by signal {self.ended_by}"
            return 128 + self.ended_by
        report = os.read(self.channels.ended[0], 4096)
        failed = bool(report) and not report.isdigit()
        if failed and b"!" not in self.told:  # else PROG's process has said why
            raise Failure(os.fsdecode(report))
        code = os.waitstatus_to_exitcode(own if failed or not report else int(report))
        self.how = f"exited with status {code}" if code >= 0 else f"killed by signal {-code}"
        return code if code >= 0 else 128 - code


class PidFile:
    """A file that holds a pid while a sandbox can be entered.

    It is written without a name and then linked to its place, so it is never
    there by half, not even after SIGKILL; and never through a link.
    """

    __slots__ = ("directory", "fd", "identity", "name", "path", "temporary")

    def __init__(self, path):
        self.path, self.identity, self.temporary = path, None, None
        place, self.name = os.path.split(path)
        if self.name in ("", ".", ".."):
            raise Failure(f"--pid-file: not the name of a file: {path!r}")
        with call(f"open {show(place or '.')}"):
            self.directory = os.open(place or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.check()
        with call(f"open O_TMPFILE {show(place or '.')}"):
            self.fd = self.unnamed()

    def unnamed(self):
        """A descriptor of a file without a name in the directory; with one that goes, where there is no O_TMPFILE."""
        flags = os.O_WRONLY | os.O_CLOEXEC
        try:
            return os.open(f"/proc/self/fd/{self.directory}", flags | os.O_TMPFILE, 0o644)
        except OSError as err:
            if err.errno not in (EISDIR, EOPNOTSUPP):
                raise
        self.temporary = f".{self.name}.{os.getpid()}"
        return os.open(self.temporary, flags | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=self.directory)

    def check(self):
        """Refuse to replace anything but an old pid file."""
        try:
            fd = os.open(self.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.directory)
        except FileNotFoundError:
            return
        except OSError as err:
            raise Failure(f"--pid-file: {show(self.path)} is there and cannot be read: {err.strerror}") from err
        try:
            text = os.read(fd, 32) if stat.S_ISREG(os.fstat(fd).st_mode) else b"?"
        finally:
            os.close(fd)
        if text.strip(b"0123456789\n"):
            raise Failure(f"--pid-file: {show(self.path)} is there and is not a pid file")

    def write(self, pid):
        """Write PID and show the file in its place."""
        with call(f"write {show(self.path)}"):
            text = b"%d\n" % pid
            if os.write(self.fd, text) != len(text):
                raise OSError(ENOSPC, "")
        self.check()
        with call(f"link {show(self.path)}"):
            self.place()
            self.identity = self.inode(os.fstat(self.fd))

    def place(self):
        """Give the file its name, in the place of an old pid file."""
        if self.temporary:
            os.rename(self.temporary, self.name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
            self.temporary = None
            return
        try:
            os.unlink(self.name, dir_fd=self.directory)
        except FileNotFoundError:
            pass
        os.link(f"/proc/self/fd/{self.fd}", self.name, dst_dir_fd=self.directory)

    def close(self):
        """Forget about it: nothing was written."""
        self.remove()
        os.close(self.fd)
        os.close(self.directory)

    def remove(self):
        """Take the file away, if it is still ours."""
        if self.temporary:
            os.unlink(self.temporary, dir_fd=self.directory)
        if self.identity is None:
            return
        try:
            there = os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
            if self.inode(there) == self.identity:
                os.unlink(self.name, dir_fd=self.directory)
        except OSError:
            pass  # somebody was faster

    @staticmethod
    def inode(result):
        """What tells one file from another."""
        return result.st_dev, result.st_ino
