"""Starts a sandbox: makes the processes around PROG and brings the one that will be PROG into its place.

supervisor     the caller's process: waits outside
  init         PID 1 of the sandbox's pid namespace
    PROG       a child of the init; with as_pid_1 PID 1 of one more pid namespace
"""

import os
import time

from hako import build, identity, init, kernel, newfile, program, supervise
from hako.failure import Failure, call

EPERM, ENOSPC, EUSERS = 1, 28, 87


class Launch:
    """One sandbox on its way: what the three processes of it have in common.

    box, prog   what to build, how to start PROG
    ids         the identity.IdMaps of its user namespace, or None
    pid_file    a newfile.PidFile, or None
    records     a records.Records, or None
    disks       a supervise.Disks, if there are records
    terminal    a terminal.Terminal, if PROG gets one of its own, or None
    waiting     descriptors that stay open until PROG's exec
    began       seconds since the epoch, and monotonic time
    """

    __slots__ = (
        *("began", "box", "channels", "disks", "ids"),
        *("pid_file", "prog", "records", "terminal", "waiting"),
    )

    def __init__(self, box, prog, pid_file, records, waiting, terminal):
        self.began = time.time(), time.monotonic()
        self.box, self.prog, self.waiting = box, prog, waiting
        self.pid_file = newfile.PidFile(pid_file) if pid_file is not None else None
        self.terminal = terminal()
        self.records = records()
        self.disks = None if self.records is None else supervise.Disks()
        self.ids = identity.id_maps(prog.identity) if build.needs_user_namespace(box) else None
        self.channels = supervise.Channels()

    def finish(self, supervisor, failure, status):
        """Take the pid file away and write the report; return the exit STATUS, another if that fails.

        SUPERVISOR is None if there never was one; FAILURE is why PROG did not run, or None.
        """
        if self.pid_file:
            self.pid_file.remove()
        if self.records is None:
            return status
        return self.records.finish(self.began[0], lambda told: self.report(told, supervisor, failure), status)

    def report(self, told, supervisor, failure):
        """Fill in TOLD, a report.Report."""
        told.real_time = time.monotonic() - self.began[1]
        if supervisor is not None:
            supervisor.tell(told)
        if failure is not None:
            told.status, told.reason = "internalError", str(failure)
        elif supervisor.code is not None and not supervisor.ended_by and (full := self.disks.full()):
            told.status, told.reason = "diskLimit", f"no room is left in {', '.join(full)}"


def enter(box, prog, pid_file, records, waiting, terminal=lambda: None):
    """Return inside the Sandbox BOX, in the process that will be PROG; the other processes never return.

    PID_FILE is a path or None; RECORDS opens the records.Records, TERMINAL the
    terminal.Terminal; both may return None.
    """
    program.check_kept(prog, waiting)  # before anything is opened
    launch = Launch(box, prog, pid_file, records, waiting, terminal)
    signals = supervise.hold_signals()
    pid, pidfd = new_namespaces(launch)
    if pid:
        wait_outside(launch, new_supervisor(launch, pid, pidfd, launch.channels, signals))
    launch.channels.of_child(waiting)
    enter_user_namespace(launch)
    kernel.rename_process("hako-init")
    kernel.join_session_keyring()
    with call("setsid"):
        os.setsid()
    supervise.die_with_parent(launch.channels)
    child, _ = kernel.clone3(kernel.CLONE_NEWPID if box.as_pid_1 else 0)
    if child:
        init.be(child, prog.identity.powerless(), launch.channels)
    become_inmate(launch)


def new_namespaces(launch):
    """Make the child in the namespaces of LAUNCH's box; return pid and pidfd, 0 and -1 in it."""
    try:
        return kernel.clone3(build.namespaces(launch.box))
    except Failure as err:
        failure = Failure(f"{err}{why_not(err.errno, launch.ids is not None)}", errno=err.errno)
        launch.finish(None, failure, failure.status)
        raise failure from err


def new_supervisor(launch, *parent):
    """The supervisor of LAUNCH, made of PARENT, the arguments of supervise.Supervisor."""
    if launch.terminal is None:
        return supervise.Supervisor(*parent)
    return launch.terminal.supervisor(*parent)


def why_not(errno, user_namespace):
    """What clone3 may mean by ERRNO, with a USER_NAMESPACE asked for or not, as a hint."""
    if errno == EPERM and not user_namespace:
        return " [namespaces need CAP_SYS_ADMIN, or --userns=always]"
    if errno in (EPERM, ENOSPC, EUSERS) and user_namespace:
        return " [user namespaces are not to be had here; root needs none]"
    if errno == kernel.EINVAL and program.watched:
        return " [behind hako-enter, hako-run needs --fork there]"
    return ""


def wait_outside(launch, supervisor):
    """Be the supervisor: exit with the status of what runs in the sandbox."""
    supervise.forget(launch.waiting)
    supervisor.measures = launch.records is not None
    try:
        if launch.ids and launch.ids.privileged:
            build.write_id_maps(supervisor.pid, launch.ids)
            os.write(launch.channels.alive[1], b"m")
        also = {}
        if launch.disks:
            launch.disks.watch(also)
        status = supervisor.wait(launch.pid_file.show_pid if launch.pid_file else None, also)
    except Failure as err:
        supervisor.end()
        launch.finish(supervisor, err, err.status)
        raise
    except BaseException:
        supervisor.end()
        raise
    launch.prog.say(f"PROG {supervisor.how}")
    os._exit(launch.finish(supervisor, None, status))


def enter_user_namespace(launch):
    """Have the ids of the new user namespace mapped, if there is one."""
    ids = launch.ids
    if ids and ids.privileged:
        os.read(launch.channels.alive[0], 1)
    elif ids:
        show_self()
        build.write_id_maps("self", ids)
    if ids:
        launch.prog.say(f"user namespace: uid and gid {ids.inside} inside are {ids.outside} outside")
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


def become_inmate(launch):
    """Enter the sandbox with this process and make it what PROG is to find."""
    if launch.box.as_pid_1:
        with call("readlink /proc/self", "hako needs /proc"):
            os.write(launch.channels.started[1], os.readlink("/proc/self").encode())
    if launch.box.as_pid_1 or launch.terminal is not None:  # who leads a session may have a terminal
        with call("setsid"):
            os.setsid()
    else:
        with call("setpgid"):
            os.setpgid(0, 0)  # not the init's: a group with nobody to wake it cannot be stopped
    supervise.send_disks(build.enter(launch.box, launch.prog, launch.ids))
    host_uid = launch.ids.outside[0] if launch.ids else None
    own_terminal = ()
    if launch.terminal is not None:
        launch.terminal.give(launch.box, launch.prog.identity)
        own_terminal = launch.terminal.places
    program.settle(launch.prog, launch.waiting, host_uid, own_session=True, own_terminal=own_terminal)
