"""The process outside: a command that waits makes a child with clone3 and becomes its supervisor."""

import _signal
import os
import select

from hako import kernel
from hako.failure import Failure, call, show

ENDING = (kernel.SIGINT, kernel.SIGTERM, kernel.SIGHUP, kernel.SIGQUIT)
FORWARDED = (kernel.SIGUSR1, kernel.SIGUSR2, kernel.SIGWINCH, kernel.SIGCONT, kernel.SIGTSTP)
EPERM, ESRCH = 1, 3

# Sockets to supervisors, all close-on-exec, that want to have the file systems of limited size.
disks = []

# Called by a supervisor, with itself, when all is over: what another of the chain does, unless it was killed.
at_end = []

# What is to be watched meanwhile by who calls those: each has watch(), as Inbox.
watched = []


def end_child(pid):
    """Kill the child PID, which nobody has waited for yet, and see it gone."""
    os.kill(pid, kernel.SIGKILL)
    os.waitpid(pid, 0)


class Channels:
    """What the processes tell each other, all close-on-exec.

    started   PROG's process writes its pid, as the caller's /proc has it, and
              "!" and why if it fails; exec closes it
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
        waiting.append(self.started[1])
        for fd in (self.started[0], self.ended[0], self.alive[1]):
            os.close(fd)


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


def forward(prog, number):
    """Send PROG the signal NUMBER. It may have changed its uid: then it is out of reach."""
    try:
        os.kill(prog, number)
    except (PermissionError, ProcessLookupError):
        pass


def die_of(number):
    """End this process by signal NUMBER, of which a child died, without a core file; return if that cannot be."""
    kernel.prctl("SET_DUMPABLE", 0)
    try:
        if number != kernel.SIGKILL:
            _signal.signal(number, _signal.SIG_DFL)
        os.kill(os.getpid(), number)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
    except (OSError, ValueError):
        pass  # Python has no signals 32 and 33


def forget(waiting):
    """Close the descriptors WAITING, and stdin and stdout, which are PROG's: this process waits and never execs."""
    os.close(0)
    os.close(1)
    for fds in (waiting, disks):
        for fd in fds:
            os.close(fd)
        fds.clear()


class Inbox:
    """Descriptors that come through SOCKET from inside, with a name each: held is [(descriptor, name)]."""

    __slots__ = ("held", "socket")

    def __init__(self, socket):
        self.socket, self.held = socket, []

    def watch(self, files):
        """Register with FILES, as Supervisor.wait() has them, what there is to receive."""
        files[self.socket] = select.POLLIN, lambda: self.receive() or files.pop(self.socket)

    def receive(self):
        """Take one; false when there is nobody left to send one."""
        received = kernel.receive_descriptor(self.socket)
        if received is not None:
            self.held.append(received)
        return received is not None

    def receive_the_rest(self):
        """Take what has come."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        while poll.poll(0) and self.receive():
            pass


class Disks(Inbox):
    """The file systems of limited size in a sandbox, which its supervisor holds to see whether one ran full.

    The process that makes them sends them, by the names of their mount points,
    through every socket in `disks`.
    """

    __slots__ = ()

    def __init__(self):
        socket, sender = kernel.socketpair()
        super().__init__(socket)
        disks.append(sender)

    def close(self):
        """Let go of it, in the process that sends."""
        os.close(self.socket)

    def full(self):
        """The mount points of those that have no room left, for a message."""
        self.receive_the_rest()
        return [show(name) for fd, name in self.held if is_full(fd)]


def is_full(fd):
    """Whether the file system of FD has no block or no inode left."""
    found = os.fstatvfs(fd)
    return not found.f_bfree or not found.f_ffree


def send_disks(sized):
    """Send the file systems SIZED, [(descriptor, mount point)], to the supervisors that watch them."""
    for socket in disks:
        for fd, name in sized:
            kernel.send_descriptor(socket, fd, os.fsencode(name)[:4096])


class Supervisor:
    """The parent of a sandbox: waits for it, passes signals on, and knows how it ended.

    code     PROG's exit status, or minus the number of the signal that killed it; None: PROG did not run
    measures whether to find out what the child and those that it waited for used
    rusage   that, at the end
    """

    __slots__ = (
        *("channels", "code", "ended_by", "how", "measures", "pid", "pidfd"),
        *("rusage", "signal_fd", "told"),
    )

    def __init__(self, pid, pidfd, channels, signals):
        channels.of_supervisor()
        self.pid, self.pidfd, self.channels = pid, pidfd, channels
        self.signal_fd = kernel.signalfd(signals)
        self.ended_by, self.told, self.how = None, b"", ""
        self.code, self.rusage, self.measures = None, None, False

    def end_fd(self):
        """The descriptor that becomes readable when PROG has ended."""
        return self.pidfd

    def wait(self, on_start=None, also=None, clock=None):
        """Wait for the end; return the exit status for it: PROG's, or 128 and the signal's number.

        ON_START is called with the pid once PROG runs. ALSO is {descriptor:
        (POLL* events, function)}, which may change meanwhile. CLOCK is called
        each time round and returns the seconds until it wants to be called
        again, None for never. After it, how says for people how PROG ended.
        """
        also = {} if also is None else also
        signal_fd, started, ended = self.signal_fd, self.channels.started[0], self.end_fd()
        poll = select.poll()
        for fd in (ended, signal_fd, started):
            poll.register(fd, select.POLLIN)
        ready = set()
        while ended not in ready:
            pause = clock() if clock else None
            asked = list(also)
            for fd in asked:
                poll.register(fd, also[fd][0])
            with call("poll"):
                ready = {fd for fd, _ in poll.poll(pause if pause is None else max(pause, 0) * 1000)}
            for fd in asked:
                poll.unregister(fd)
            for fd in asked:
                if fd in ready and fd in also:
                    also[fd][1]()
            for fd in ready & {started}:
                if not self.hear(fd):
                    poll.unregister(fd)
                    if on_start and self.runs() and not self.ended_by and not self.has_ended():
                        on_start(int(self.told or self.pid))
            if signal_fd in ready:
                self.pass_on(kernel.read_signal(signal_fd)[0])
        return self.status()

    def hear(self, started):
        """Read what PROG's process tells; false at the end of it."""
        text = os.read(started, 8192)
        self.told += text
        return bool(text)

    def has_ended(self):
        """Whether it is over with the init, which told why or is gone: PROG's process, too, then, whatever that did."""
        poll = select.poll()
        poll.register(self.channels.ended[0], select.POLLIN)
        return bool(poll.poll(0))

    def runs(self):
        """Whether PROG's process has not told that it failed."""
        return b"!" not in self.told

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
        except (Failure, OSError):
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
            if self.measures:
                _, status, self.rusage = os.wait4(self.pid, 0)
            else:  # that one imports a module
                _, status = os.waitpid(self.pid, 0)
        return status

    def status(self):
        """The exit status that tells how it ended; all of the sandbox has ended."""
        own = self.reap()
        if self.ended_by:
            self.how = f"ended by signal {self.ended_by}"
            self.code = -kernel.SIGKILL
            return 128 + self.ended_by
        report = os.read(self.channels.ended[0], 4096)
        failed = bool(report) and not report.isdigit()
        if failed and self.runs():  # else PROG's process has said why
            raise Failure(os.fsdecode(report))
        return self.ended_with(own if failed or not report else int(report))

    def ended_with(self, status):
        """Keep the wait status STATUS; return it as an exit status."""
        code = os.waitstatus_to_exitcode(status)
        self.how = f"exited with status {code}" if code >= 0 else f"killed by signal {-code}"
        self.code = code if self.runs() else None
        return code if code >= 0 else 128 - code

    def tell(self, report):
        """Write into REPORT how PROG ended, and what the child and those that it waited for used."""
        if self.code is None:
            report.status, report.reason = "internalError", os.fsdecode(self.told.partition(b"!")[2])
        elif self.code < 0:
            report.status, report.signal = "killed", signal_name(-self.code)
        else:
            report.status, report.code = "exited", self.code
        if self.ended_by:
            report.reason = f"ended by {signal_name(self.ended_by)}"
        if self.rusage is not None:
            report.user_time, report.system_time = self.rusage.ru_utime, self.rusage.ru_stime
            report.max_rss = max_rss(self.rusage.ru_maxrss * 1024)


def signal_name(number):
    """The name of the signal NUMBER, "SIGTERM"; of one without a name, the number."""
    names = [name for name in dir(_signal) if name.startswith("SIG") and getattr(_signal, name) == number]
    names = [name for name in names if "_" not in name and not name.startswith("SIGRT")]
    return str(number) if not names else "SIGPOLL" if "SIGPOLL" in names else min(names)


def max_rss(measured):
    """MEASURED, the peak resident bytes of a tree that began as a copy of this process; None if that hides it.

    To the kernel, what a process was before its exec is part of its peak.
    """
    try:
        with open("/proc/self/status", "rb") as file:
            own = next(int(line.split()[1]) * 1024 for line in file if line.startswith(b"VmHWM:"))
    except (OSError, StopIteration):
        return None
    return measured if measured > own else None
