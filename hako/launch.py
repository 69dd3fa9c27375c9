"""Starts a sandbox: makes the processes around PROG and brings the one that will be PROG into its place.

supervisor     the caller's process: waits outside
  init         PID 1 of the sandbox's pid namespace
    PROG       a child of the init; with as_pid_1 PID 1 of one more pid namespace
"""

import os
import time

from hako import build, identity, init, kernel, modes, newfile, program, registry, supervise
from hako.failure import FAILED, Failure, as_failure, call


class Launch:
    """One sandbox on its way: what the three processes of it have in common.

    box, prog   what to build, how to start PROG
    ids         the identity.IdMaps of its user namespace, or None
    pid_file    a newfile.PidFile, or None
    records     a records.Records, or None
    disks       a supervise.Disks, if there are records
    layers      the overlay.Layers of its root, or None
    changes     the changes.Listing of what has changed in the layers, or None
    watch       a fresh.Watch of what changes where there are none, or None
    pasta       the pasta.Pasta that does its network, or None
    sockets     the supervisor's, and the one through which the child sends it descriptors; or None
    inside      descriptor of its user namespace, received so, or None
    terminal    a terminal.Terminal, if PROG gets one of its own, or None
    waiting     descriptors that stay open until PROG's exec
    repeats     whether the supervisor ends by the signal that PROG did: it has one itself, which is to see that
    began       seconds since the epoch, and monotonic time
    entry       its registry.Entry, in the supervisor
    """

    __slots__ = (
        *("began", "box", "changes", "channels", "disks", "entry", "ids", "inside", "layers", "pasta"),
        *("pid_file", "prog", "records", "repeats", "sockets", "terminal", "waiting", "watch"),
    )

    def __init__(self, box, prog, files, records, waiting, repeats, terminal):
        pid_file, changes = files
        self.began = time.time(), time.monotonic()
        self.box, self.prog, self.waiting, self.repeats = box, prog, waiting, repeats
        self.entry = registry.Nowhere
        self.pid_file = newfile.PidFile(pid_file) if pid_file is not None else None
        self.terminal = terminal()
        self.records = records()
        self.changes, self.watch = (changes(), None) if box.overlay else (None, changes())
        self.disks = None if self.records is None else supervise.Disks()
        prog.identity.note_groups()
        self.ids = (box.ids or identity.id_maps(prog.identity)) if build.needs_user_namespace(box) else None
        self.channels = supervise.Channels()
        self.layers = self.inside = self.pasta = None
        if box.network == "pasta":
            from hako.pasta import Pasta  # here and below: loaded already, while the chain was prepared

            self.pasta = Pasta(box.pasta)
        listening = self.changes or self.pasta or (self.ids and self.ids.writer == "newuidmap")
        self.sockets = kernel.socketpair() if listening else None
        if box.overlay:
            self.open_layers()

    def open_layers(self):
        """Open the layers of the overlay."""
        from hako.overlay import Layers

        self.layers = Layers(self.box, self.ids is not None, build.open_target(self.box.target))
        if self.changes:
            self.changes.refuse_in(self.layers)
        self.layers.make_work(self.ids.outside() if self.ids else None)

    def is_held(self):
        """Whether the child waits until the supervisor has done what it cannot do itself."""
        return bool(self.pasta or (self.ids and self.ids.writer != "inside"))

    def meet(self, pid, files):
        """Take what the child PID sends at once, and do for it what it cannot do itself.

        What is to be read for that meanwhile goes to FILES, as Supervisor.wait() has it.
        """
        net = None
        if self.sockets:
            os.close(self.sockets[1])
        if self.sockets and self.ids:
            self.inside = self.receive()
            net = self.receive() if self.pasta else None
        if self.ids and self.ids.writer == "caller":
            build.write_id_maps(pid, self.ids)
        elif self.ids and self.ids.writer == "newuidmap" and self.inside is not None:  # else it has ended
            from hako import subids

            subids.write(pid, self.ids)
        if net is not None:
            self.pasta.take(self.inside, net, self.ids.inside)
        if self.pasta and self.pasta.net is not None:
            self.pasta.start(files, self.release)
        elif self.is_held():
            self.release()
        if self.watch and self.repeats:  # there is somebody outside who sees
            self.watch.close_sender()
        elif self.watch:
            self.watch.watch(files)

    def release(self):
        """Let the child go on."""
        try:
            os.write(self.channels.alive[1], b"m")
        except BrokenPipeError:
            pass  # it has ended already, and has told why

    def send(self, fd, name):
        """Send the supervisor the descriptor FD as NAME."""
        kernel.send_descriptor(self.sockets[1], fd, name)

    def send_what_tells(self, made):
        """Send that by which it is seen what PROG changes in what the build.Builder MADE has made."""
        if self.changes and self.box.overlay.upper is None:
            self.send(self.layers.upper, b"upper")
        if self.watch:
            from hako import fresh

            fresh.send(made.made(), self.watch.sender)

    def send_namespace(self, name, socket=None):
        """Send the supervisor this process's namespace NAME, through SOCKET if it has another one for that."""
        with call(f"open /proc/self/ns/{name}", "hako needs /proc"):
            fd = os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        kernel.send_descriptor(socket or self.sockets[1], fd, name.encode())
        os.close(fd)

    def receive(self):
        """The next descriptor that the child has sent; None if it has ended."""
        received = kernel.receive_descriptor(self.sockets[0])
        return None if received is None else received[0]

    def tell(self, init, pid, enlist):
        """Tell by which PID the sandbox of INIT can be entered: PROG runs. ENLIST is a registry.lister()."""
        if self.pid_file:
            self.pid_file.show_pid(pid)
        self.entry = enlist(init, pid)

    def put_away(self, ran):
        """Take away what was made outside: the sandbox has ended, or there was none. Tell what changed, if PROG RAN.

        What fails of that keeps nothing else from going.
        """
        modes.put_back()
        self.entry.remove()
        try:
            if self.pasta:
                self.pasta.end()
        finally:
            try:
                if self.pid_file:
                    self.pid_file.remove()
            finally:
                if self.layers is not None:
                    self.put_layers_away(ran)

    def put_layers_away(self, ran):
        """Take away what was made beside the layers; tell what changed in them, if PROG RAN."""
        if self.inside is not None and self.ids.writer != "caller":
            # There it may go where PROG has made a directory that nobody may enter.
            kernel.setns(self.inside, kernel.CLONE_NEWUSER, "user namespace of the sandbox")
        self.layers.remove_work()
        if self.changes and ran:
            self.list_changes()

    def list_changes(self):
        """Write the list of what is in the upper layer, unless the sandbox ended before there was one."""
        from hako.changes import LayerReader

        if self.box.overlay.upper is None:
            self.layers.upper = self.receive()
        if self.layers.upper is not None:
            self.changes.write(LayerReader(self.layers).changes())

    def give_up(self):
        """Take away what was made outside, as far as that can be: something failed already, and that is to be told."""
        try:
            self.put_away(ran=False)
        except (Failure, OSError):
            pass

    def finish(self, supervisor, failure, status):
        """Take the pid file away and write the report; return the exit STATUS, another if that fails.

        SUPERVISOR is None if there never was one; FAILURE is why PROG did not run, or None.
        """
        late = None
        try:
            if failure is None:
                self.put_away(ran=supervisor.runs())
            else:
                self.give_up()
            if self.watch and not self.repeats:
                self.watch.finish(supervisor if failure is None else None)
        except (Failure, OSError) as err:
            late = failure = failure or as_failure(err)
        if self.records is not None:
            status = self.records.finish(self.began[0], lambda told: self.report(told, supervisor, failure), status)
        if late:
            raise late
        return status

    def report(self, told, supervisor, failure):
        """Fill in TOLD, a report.Report."""
        told.real_time = time.monotonic() - self.began[1]
        if supervisor is not None:
            supervisor.tell(told)
        if failure is not None:
            told.status, told.reason = "internalError", str(failure)
        elif supervisor.code is not None and not supervisor.ended_by and (full := self.disks.full()):
            told.status, told.reason = "diskLimit", f"no room is left in {', '.join(full)}"


def enter(box, prog, files, records, waiting, enlist=registry.unlisted, repeats=False, terminal=lambda: None):
    """Return inside the Sandbox BOX, in the process that will be PROG; the other processes never return.

    FILES are the path of --pid-file or None, and what opens the changes.Listing
    or, without an overlay, the fresh.Watch; RECORDS opens the records.Records,
    TERMINAL the terminal.Terminal, and each of the three may return None;
    ENLIST is a registry.lister(); REPEATS: as in Launch.
    """
    program.check_kept(prog, waiting)  # before anything is opened
    launch = Launch(box, prog, files, records, waiting, repeats, terminal)
    supervisor = begin(launch)
    if supervisor is not None:
        wait_outside(launch, supervisor, enlist)
    launch.channels.of_child(waiting)
    enter_user_namespace(launch)
    # The init too, by which others enter the sandbox.
    build.join_network(box, launch.pasta.net if launch.pasta else None, prog.say)
    kernel.rename_process("hako-init")
    kernel.join_session_keyring()
    with call("setsid"):
        os.setsid()
    supervise.die_with_parent(launch.channels)
    with call("eventfd2"):
        settled = os.eventfd(0)
    child, _ = kernel.clone3(kernel.CLONE_NEWPID if box.as_pid_1 else 0)
    if child:
        init.be(child, prog.identity.powerless(), launch.channels, settled)
    become_inmate(launch, settled)


def begin(launch):
    """Make the child of LAUNCH; return its supervisor, None in the child."""
    pid = 0
    try:
        signals = supervise.hold_signals()
        pid, pidfd = new_namespaces(launch)
        return new_supervisor(launch, pid, pidfd, launch.channels, signals) if pid else None
    except (Failure, OSError) as err:
        if pid:
            supervise.end_child(pid)
        failure = as_failure(err)
        launch.finish(None, failure, failure.status)
        raise failure from err


def new_namespaces(launch):
    """Make the child in the namespaces of LAUNCH's box; return pid and pidfd, 0 and -1 in it."""
    who = launch.prog.identity
    if launch.pasta and not launch.ids:
        launch.pasta.make_namespaces(os.geteuid() if who.uid is None else who.uid)
    try:
        return kernel.clone3(build.namespaces(launch.box))
    except Failure as err:
        raise Failure(f"{err}{why_not(err.errno, build.namespaces(launch.box))}", errno=err.errno) from err


def new_supervisor(launch, *parent):
    """The supervisor of LAUNCH, made of PARENT, the arguments of supervise.Supervisor."""
    if launch.terminal is None:
        return supervise.Supervisor(*parent)
    return launch.terminal.supervisor(*parent)


def why_not(errno, flags):
    """What clone3 may mean by ERRNO, asked for the namespaces FLAGS, as a hint."""
    if errno == kernel.EINVAL and program.watched:
        return " [behind hako-enter, hako-run needs --fork there]"
    hint = build.no_namespaces(errno, flags, "namespaces need CAP_SYS_ADMIN, or --userns=always")
    return f" [{hint}]" if hint else ""


def wait_outside(launch, supervisor, enlist):
    """Be the supervisor: exit with the status of what runs in the sandbox. ENLIST is a registry.lister()."""
    supervisor.measures = launch.records is not None
    try:
        supervise.forget(launch.waiting)
        also = {}
        launch.meet(supervisor.pid, also)
        if launch.disks:
            launch.disks.watch(also)
        status = supervisor.wait(lambda pid: launch.tell(supervisor.pid, pid, enlist), also)
    except (Failure, OSError) as err:
        supervisor.end()
        failure = as_failure(err)
        launch.finish(supervisor, failure, failure.status)
        raise failure from err
    except BaseException:
        supervisor.end()
        launch.give_up()
        raise
    launch.prog.say(f"PROG {supervisor.how}")
    status = launch.finish(supervisor, None, status)
    if launch.repeats and supervisor.code is not None and supervisor.code < 0:
        supervise.die_of(-supervisor.code)
    os._exit(status)


def enter_user_namespace(launch):
    """Have the ids of the new user namespace mapped, if there is one, and wait for what else is done outside."""
    ids = launch.ids
    if ids and ids.writer != "caller":
        show_self()
    if ids and ids.writer == "inside":
        build.write_id_maps("self", ids)
    if ids and launch.sockets:
        launch.send_namespace("user")
    if ids and launch.pasta:
        launch.send_namespace("net")
    if ids and launch.watch and ids.writer != "caller":
        launch.send_namespace("user", launch.watch.sender)
    if launch.is_held() and not os.read(launch.channels.alive[0], 1):
        os._exit(FAILED)  # the supervisor has failed, and said why
    if ids:
        launch.prog.say(f"user namespace: {ids.told()}")
    kernel.prctl("SET_DUMPABLE", 0)  # only now: the maps of a process that is not dumpable are root's


def show_self():
    """Make this process dumpable: the id maps of one that is not are root's.

    Behind another hako-run it is not, and is alone in there; behind hako-enter
    it is not either, and those inside would look into it.
    """
    if not kernel.prctl("GET_DUMPABLE"):
        if program.watched:
            raise Failure(
                "no user namespace for hako-run behind hako-enter, which others could look into "
                "[run it by its path, with a slash]"
            )
        kernel.prctl("SET_DUMPABLE", 1)


def become_inmate(launch, settled):
    """Enter the sandbox with this process and make it what PROG is to find, once the init has written to SETTLED."""
    if launch.box.as_pid_1:
        with call("readlink /proc/self", "hako needs /proc"):
            pid = os.readlink("/proc/self")
        with call("write the pid of the sandbox"):
            os.write(launch.channels.started[1], pid.encode())
    if launch.box.as_pid_1 or launch.terminal is not None:  # who leads a session may have a terminal
        with call("setsid"):
            os.setsid()
    else:
        with call("setpgid"):
            os.setpgid(0, 0)  # not the init's: a group with nobody to wake it cannot be stopped
    made = build.enter(launch.box, launch.prog, launch.ids, launch.layers)
    supervise.send_disks(made.sized)
    launch.send_what_tells(made)
    host_uid = launch.ids.host_uid(launch.prog.identity) if launch.ids else None
    own_terminal = ()
    if launch.terminal is not None:
        launch.terminal.give(launch.box, launch.prog.identity)
        own_terminal = launch.terminal.places
    with call("read eventfd"):  # PROG, of the same uid, could take from the init what it needs; and if that fails
        os.eventfd_read(settled)  # at what we would fail at too, one of us says so
    program.settle(launch.prog, launch.waiting, host_uid, own_session=True, own_terminal=own_terminal)
