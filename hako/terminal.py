"""PROG's own terminal: a pty of the sandbox, and the relay between it and the caller's terminal.

The pty is made inside, by the process that becomes PROG, which sends its master
out to the supervisor. Nothing of the caller's terminal is inside then.
"""

import fcntl
import os
import select
import termios

from hako import guard, kernel, modes, program, sandbox, supervise
from hako.failure import Failure, call, refused

PIECE, HELD = 1 << 16, 1 << 17  # bytes; the second is more than a pty can hold
PTMX = (5, 2)  # major, minor
EIO = 5
OWN = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# As cfmakeraw(3), but for the output, which is a case of its own.
INPUT_MODES = (
    *(termios.IGNBRK, termios.BRKINT, termios.PARMRK, termios.ISTRIP, termios.INLCR, termios.IGNCR),
    *(termios.ICRNL, termios.IXON, termios.IXOFF),
)
LOCAL_MODES = (termios.ECHO, termios.ECHONL, termios.ICANON, termios.ISIG, termios.IEXTEN)


def prepare():
    """Refuse a stdin that is not a terminal; return what opens the Terminal."""
    if not guard.is_known_terminal(0):
        raise Failure("--tty: stdin is not a terminal")
    if supervise.at_end:  # an earlier link gives us its pty for stdin
        return lambda: Terminal().connect()
    return open_outside().connect


def imply():
    """What opens the Terminal, or returns None: 0, 1 and 2 must be our terminal, and we in its foreground.

    What was not asked for refuses nothing, and is not stopped in the background.
    """
    if not modes.is_one() or not modes.is_controlling(0) or modes.is_background(0):
        return lambda: None
    terminal = open_outside()
    return lambda: terminal.connect() if modes.is_one() else terminal.let_go()  # a limit of output has taken some away


def open_outside():
    """The Terminal, opened now: inside an outer sandbox the caller's terminal may not be ours to open."""
    terminal = Terminal()
    program.needed += [terminal.keyboard, terminal.screen]
    supervise.at_end.append(lambda _: put_back(terminal.keyboard, terminal.saved))
    return terminal


def attributes(fd):
    """The attributes of the terminal FD, as termios.tcgetattr() has them."""
    try:
        return termios.tcgetattr(fd)
    except termios.error as err:
        raise refused("tcgetattr stdin", err.args[0]) from err


def raw(saved, output):
    """The attributes SAVED, but raw: each byte goes through as it is; what is written too, if OUTPUT."""
    made = [*saved[:6], [*saved[6]]]
    made[0] &= ~sum(INPUT_MODES)
    if output:
        made[1] &= ~termios.OPOST
    made[3] &= ~sum(LOCAL_MODES)
    made[6][termios.VMIN], made[6][termios.VTIME] = 1, 0
    return made


def put_back(fd, saved):
    """Give the terminal FD the attributes SAVED, unless it is gone or others have it now."""
    try:
        if not modes.is_background(fd):
            termios.tcsetattr(fd, termios.TCSANOW, saved)
    except (termios.error, OSError):
        pass


def open_own(fd, flags):
    """A description of our own of the terminal FD, which does not wait: the flag for that is shared with the caller's.

    /dev/tty is for the terminal of another user, as behind su(1).
    """
    place = f"/proc/self/fd/{fd}"
    try:
        return os.open(place, flags | OWN)
    except OSError:
        if modes.is_controlling(fd):
            place = "/dev/tty"
    with call(f"--tty: open {place}"):
        return os.open(place, flags | OWN)


class Terminal:
    """The caller's terminal, at stdin, and the one of PROG.

    places            which of 0, 1 and 2 are the caller's terminal, or another, and become PROG's
    saved             attributes of the caller's terminal
    keyboard, screen  the supervisor's descriptors of it, to read and to write
    receiver, sender  by which the master comes out of the sandbox
    master, held      the supervisor's descriptors of the pty: of both its ends, or None.
                      While it holds PROG's end, PROG may close and open it as it likes
    typed, shown      what was read from the keyboard, or from PROG, and is not passed on yet
    files             what to wait for, as Supervisor.wait() has it
    gone              whether the caller's terminal was hung up
    """

    __slots__ = (
        *("places", "saved", "keyboard", "screen", "receiver", "sender"),
        *("master", "held", "typed", "shown", "files", "gone"),
    )

    def __init__(self):
        self.saved, self.master, self.held, self.gone = attributes(0), None, None, False
        self.keyboard = open_own(0, os.O_RDONLY)
        self.screen = open_own(([fd for fd in (1, 2) if guard.is_known_terminal(fd)] or [0])[0], os.O_WRONLY)
        self.places, self.receiver, self.sender = None, None, None
        self.typed, self.shown, self.files = b"", b"", {}

    def connect(self):
        """Open the way out of the sandbox, and look which places are the terminal's now; return this Terminal."""
        self.places = [fd for fd in (0, 1, 2) if guard.is_known_terminal(fd)]
        self.receiver, self.sender = kernel.socketpair()
        return self

    def let_go(self):
        """Be done with it: PROG gets none."""
        program.needed[:] = [fd for fd in program.needed if fd not in (self.keyboard, self.screen)]
        os.close(self.keyboard)
        os.close(self.screen)

    def supervisor(self, *parent):
        """The supervisor that passes on, made of PARENT, the arguments of supervise.Supervisor."""
        return Supervisor(self, *parent)

    def give(self, box, who):
        """Make PROG's terminal and put it in the places of the caller's; this process leads a session without one.

        BOX is the sandbox.Sandbox that this process is in, None if others are in it
        already; WHO is the identity of PROG.
        """
        master = open_master(box, who)
        with call("ioctl TIOCSPTLCK"):
            fcntl.ioctl(master, kernel.TIOCSPTLCK, bytes(4))
        self.resize(master)
        with call("ioctl TIOCGPTPEER"):  # without O_NOCTTY, which TIOCSCTTY, refused behind hako-run, would be for
            end = fcntl.ioctl(master, kernel.TIOCGPTPEER, os.O_RDWR | os.O_CLOEXEC)
        set_attributes(end, self.saved)
        with call("fchown of the pty"):
            os.fchown(end, *(-1 if number is None else number for number in (who.uid, who.gid)))
        for fd in self.places:
            os.dup2(end, fd)
        kernel.send_descriptor(self.sender, master, b"m")
        for fd in (end, master, self.keyboard, self.screen, self.receiver, self.sender):
            os.close(fd)
        program.needed[:] = [fd for fd in program.needed if fd not in (self.keyboard, self.screen)]

    def watch(self, files):
        """Register with FILES, as Supervisor.wait() has them, what there is to pass on."""
        self.files = files
        os.close(self.sender)
        files[self.receiver] = select.POLLIN, self.receive

    def receive(self):
        """Take the pty that is PROG's, if there is one, and begin to pass on."""
        received = kernel.receive_descriptor(self.receiver)
        del self.files[self.receiver]
        os.close(self.receiver)
        if received is None:
            return
        self.master = received[0]
        os.set_blocking(self.master, False)
        with call("ioctl TIOCGPTPEER"):
            self.held = fcntl.ioctl(self.master, kernel.TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        self.resize(self.master)
        self.make_raw()
        self.look()

    def resize(self, master):
        """Give the pty of MASTER the size of the caller's window; the kernel tells PROG's foreground."""
        with call("ioctl TIOCGWINSZ"):
            size = fcntl.ioctl(self.keyboard, termios.TIOCGWINSZ, bytes(8))
        with call("ioctl TIOCSWINSZ"):
            fcntl.ioctl(master, termios.TIOCSWINSZ, size)

    def make_raw(self):
        """Have the caller's terminal pass everything on. In the background the kernel stops us, until there is `fg`."""
        if self.master is not None and not self.gone:
            # What does not go through the pty comes without its carriage returns.
            set_attributes(self.keyboard, raw(self.saved, output=1 in self.places))

    def put_back(self):
        """Give the caller's terminal back as it was."""
        if self.master is not None:
            put_back(self.keyboard, self.saved)

    def look(self):
        """Wait for what can be passed on: nothing more is read from a side as long as the other does not take it."""
        reading = 0 if self.shown else select.POLLIN
        self.expect(self.master, reading | (select.POLLOUT if self.typed else 0), self.serve)
        self.expect(self.keyboard, 0 if self.typed else select.POLLIN, self.type)
        self.expect(self.screen, select.POLLOUT if self.shown else 0, self.show)

    def expect(self, fd, events, function):
        """Have FUNCTION called at EVENTS of FD, if there are any to wait for."""
        if events and not self.gone:
            self.files[fd] = events, function
        else:
            self.files.pop(fd, None)

    def serve(self):
        """Exchange with PROG's terminal what can be exchanged now."""
        if self.typed:
            self.pass_in()
        if not self.shown and self.fetch():
            self.show()
        self.look()

    def type(self):
        """Pass on what is typed."""
        try:
            self.typed = os.read(self.keyboard, PIECE)
        except BlockingIOError:
            return
        except OSError:
            self.hang_up()
            return
        if not self.typed:
            self.look_for_hang_up()
            return
        self.pass_in()
        self.look()

    def look_for_hang_up(self):
        """Find out whether the terminal is gone: somebody else may have undone its raw mode, and then typed ^D."""
        try:
            termios.tcgetattr(self.keyboard)
        except termios.error:
            self.hang_up()

    def pass_in(self):
        """Give PROG's terminal as much of what was typed as it takes."""
        try:
            self.typed = self.typed[os.write(self.master, self.typed) :]
        except BlockingIOError:
            pass

    def fetch(self):
        """Read a piece of what PROG wrote; whether there was one."""
        try:
            self.shown = os.read(self.master, PIECE)
        except BlockingIOError:
            pass
        return bool(self.shown)

    def show(self):
        """Write what PROG wrote, as far as the caller's terminal takes it; whether that is all of it."""
        try:
            while self.shown:
                self.shown = self.shown[os.write(self.screen, self.shown) :]
        except BlockingIOError:
            pass
        except OSError:
            self.hang_up()
        self.look()
        return not self.shown

    def hang_up(self):
        """Be done: the caller's terminal is gone."""
        self.gone, self.shown, self.typed = True, b"", b""
        self.look()

    def drain(self, hurried, signal_fd):
        """Pass on what is left when PROG has ended: all of it, or what is taken at once if HURRIED.

        What PROG has left behind in a sandbox that goes on may write for ever: no
        more than a pty can hold. Return the number of a signal that came by
        SIGNAL_FD and ends this, or None.
        """
        if self.receiver in self.files:
            self.receive()
        poll = select.poll()
        poll.register(self.screen, select.POLLOUT)
        poll.register(signal_fd, select.POLLIN)
        left = 0 if self.master is None else HELD
        while not self.gone:
            if not self.shown:
                if left <= 0 or not self.fetch():
                    break
                left -= len(self.shown)
            if not self.show():
                ready = [fd for fd, _ in poll.poll(0 if hurried else None)]
                if signal_fd in ready and (number := kernel.read_signal(signal_fd)[0]) in supervise.ENDING:
                    return number
                if not ready:
                    break
        return None


def open_master(box, who):
    """The master of a new pty: in the /dev/pts of the Sandbox BOX, where it has a name, or in one that nobody sees.

    It is for WHO, an identity.Identity. BOX is None if others are in the sandbox already.
    """
    flags = os.O_RDWR | OWN
    devices = [] if box is None else [mount.dst for mount in box.mounts if isinstance(mount, sandbox.Dev)]
    if not devices:
        options = {"newinstance": None, "ptmxmode": "0666", "mode": "0620"}
        # Our own ids may be none in the user namespace that was joined.
        options.update({key: number for key, number in (("uid", who.uid), ("gid", who.gid)) if number is not None})
        pts = kernel.fsmount("devpts", options, kernel.MOUNT_ATTR_NOSUID | kernel.MOUNT_ATTR_NOEXEC, "for --tty")
        with call("open ptmx"):
            return os.open("ptmx", flags, dir_fd=pts)
    name = f"{devices[0]}/pts/ptmx"
    with call("open /"):
        root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    master = kernel.openat2(root, name, flags, kernel.RESOLVE_IN_ROOT | kernel.RESOLVE_NO_SYMLINKS, name)
    if os.fstat(master).st_rdev != os.makedev(*PTMX):
        raise Failure(f"--tty: {name} is not the device {PTMX[0]}:{PTMX[1]}")
    os.close(root)
    return master


def set_attributes(fd, attributes_):
    """Give the terminal FD the attributes ATTRIBUTES_."""
    try:
        termios.tcsetattr(fd, termios.TCSANOW, attributes_)
    except termios.error as err:
        raise refused("tcsetattr", err.args[0]) from err


class Supervisor(supervise.Supervisor):
    """A supervise.Supervisor that passes on between the caller's terminal and PROG's meanwhile."""

    __slots__ = ("terminal",)

    def __init__(self, terminal, *parent):
        super().__init__(*parent)
        self.terminal = terminal

    def wait(self, on_start=None, also=None, clock=None):
        """As it does; the caller's terminal is as it was when this returns or fails."""
        files = {} if also is None else also
        try:
            self.terminal.watch(files)
            status = super().wait(on_start, files, lambda: self.look(clock))
            number = self.terminal.drain(bool(self.ended_by), self.signal_fd)
        finally:
            self.terminal.put_back()
        return status if number is None else 128 + number

    def look(self, clock):
        """End the sandbox when the caller's terminal is gone; else do as CLOCK says."""
        if self.terminal.gone and not self.ended_by:
            super().pass_on(kernel.SIGHUP)
        return clock() if clock else None

    def pass_on(self, number):
        """Do what signal NUMBER asks for; the size goes through the terminal."""
        try:
            self.pass_on_with_terminal(number)
        except Failure as err:
            if err.errno != EIO:
                raise
            self.terminal.hang_up()  # SIGCONT comes to who was stopped when the shell has gone

    def pass_on_with_terminal(self, number):
        """The same, where the terminal may be gone: EIO."""
        terminal = self.terminal
        if number == kernel.SIGWINCH:
            if terminal.master is not None:
                terminal.resize(terminal.master)
            return
        if number == kernel.SIGTSTP:
            terminal.put_back()
        super().pass_on(number)
        if number in (kernel.SIGTSTP, kernel.SIGCONT):
            terminal.make_raw()
