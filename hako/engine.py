"""Runs jobs, many at once, in one process: cells made ahead or from the beginning, what they cost, how they end."""

import os
import resource
import time
from _collections import deque

from hako import build, cell, group, guard, identity, kernel, sandbox, steps, supervise, zygote
from hako import plan as plans
from hako.failure import Failure, call, line_of, refused
from hako.loop import Loop

MOST_ZYGOTES = 16  # of plans of which none is used now
MOST_TRIES = 2  # of a job whose zygote died
MOST_SLOTS = 200  # of a zygote: their numbers are bytes
DESCRIPTORS = 2**16  # as many as this process may want
FILES, MESSAGE = 253, 2**16
ESRCH = 3
GONE = (32, 104)  # EPIPE and ECONNRESET
CAP_KILL = 5
SOON = 0.005  # seconds until the next attempt to remove a cgroup


class Cell:
    """A sandbox in SLOT that waits for its order, or has it.

    pid, pidfd  of its init
    home        the Zygote that made it, or None
    job         who has it, or None
    """

    __slots__ = ("engine", "home", "job", "pid", "pidfd", "slot")

    def __init__(self, engine, slot, pid, pidfd, home=None):
        self.engine, self.slot, self.pid, self.pidfd, self.home, self.job = engine, slot, pid, pidfd, home, None
        engine.cells.add(self)
        engine.loop.watch(pidfd, self.end)

    def order(self, job):
        """Have PROG of JOB run in it; return what cell.put_order() does."""
        self.job = job
        records = cell.put_order(self.slot, job.plan, job.order)
        order = job.order
        files = [*order.stdio, *(fd for fd, _ in order.cgroups)]
        data = b"".join(fd.to_bytes(4, "little") for fd in files)
        try:
            self.slot.socket.sendmsg([b"o"], [(1, cell.RIGHTS, data)], kernel.MSG_NOSIGNAL)
        except OSError as err:
            if err.errno not in GONE:
                raise refused("sendmsg", err.errno) from err
            # It has ended, and tells why.
        return records

    def kill(self):
        """End it, with all that is in there."""
        try:
            kernel.pidfd_send_signal(self.pidfd, kernel.SIGKILL)
        except Failure as err:
            if err.errno != ESRCH:
                raise

    def end(self):
        """See how it has ended."""
        self.engine.loop.forget(self.pidfd)
        self.engine.cells.discard(self)
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        if self.job is not None:
            self.job.over(status, self.slot)
            self.let_go()
        elif self.home is not None:
            self.home.lose(self)
        else:
            self.let_go()

    def let_go(self):
        """Have its slot used again."""
        (self.home or self.engine).put_back(self.slot)


class Zygote:
    """A zygote of PLAN, as the engine sees it.

    pid, pidfd  of it
    control     the socket to it
    slots       cell.Slots, of which those with the numbers `free` have no cell in them
    making      numbers of those in which it is to make one, in that order
    spares      Cells that wait for a job
    waiting     jobs that wait for a cell
    live        how many Cells there are in them
    ready       whether it has built its root
    ended       whether it is gone
    failure     a Failure that none of those waiting was told, or None
    named       what named() had found when it was made
    """

    __slots__ = (
        *("control", "ended", "engine", "failure", "free", "live", "making", "named", "pid", "pidfd", "plan"),
        *("ready", "region", "slots", "spares", "waiting"),
    )

    def __init__(self, engine, of, parts):
        self.engine, self.plan, self.failure, self.named = engine, of, None, named(of.box)
        self.ready, self.ended, self.live = False, False, 0
        count = min(2 * engine.jobs + 1, MOST_SLOTS, engine.slots)
        self.region, self.slots = steps.Region(count * cell.SIZE), []
        self.free, self.making, self.spares, self.waiting = deque(range(count)), deque(), deque(), deque()
        try:
            self.slots += (cell.Slot(self.region, number * cell.SIZE) for number in range(count))
            self.control, inner = kernel.socketpair()
        except Failure:
            self.let_go()
            raise
        flags = kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS
        flags |= 0 if "uts" in of.box.share else kernel.CLONE_NEWUTS
        try:
            ids = engine.ids(of)
            self.pid, self.pidfd = engine.clone(flags)
            if not self.pid:
                zygote.be(of, parts, ids, inner, self.slots)
            engine.map_ids(self.pid, self.pidfd, ids, self.control)
        except (Failure, OSError):
            os.close(self.control)
            self.let_go()
            raise
        finally:
            os.close(inner)
        engine.loop.watch(self.control, self.hear)

    def take(self, job):
        """Give JOB a cell, now or later; and have the next one made meanwhile."""
        if self.failure is not None:
            failure, self.failure = self.failure, None
            job.fail(str(failure))
            return
        if self.spares:
            job.go(self.spares.popleft())
        else:
            self.waiting.append(job)
        self.make_ahead()

    def make_ahead(self):
        """Have as many cells made as wait for one, and one more for each job that may come next."""
        wanted = len(self.waiting) + self.engine.ahead
        while self.free and len(self.making) + len(self.spares) < wanted:
            number = self.free.popleft()
            self.slots[number].clear()
            self.making.append(number)
            if self.ready:
                self.ask(number)

    def ask(self, number):
        """Have it make a cell in the slot NUMBER."""
        try:
            os.write(self.control, bytes([number]))
        except OSError:
            kernel.pidfd_send_signal(self.pidfd, kernel.SIGKILL)  # it has died, or cannot be asked; that shows soon

    def hear(self):
        """Take what it says."""
        said = read(self.control)
        if not said or said.startswith(zygote.STOPPED):
            self.end(os.fsdecode(said[1:]))
        elif said.startswith(b"r") and not self.ready:
            self.ready = True
            for slot in self.slots:
                slot.know(said[1:])
            for number in self.making:
                self.ask(number)
        else:
            self.take_cell(int.from_bytes(said[1:], "little"))

    def take_cell(self, pid):
        """Take the cell of the init PID, the next of those that it was to make."""
        slot = self.slots[self.making.popleft()]
        self.live += 1
        try:
            pidfd = kernel.pidfd_open(pid)
        except Failure as err:
            supervise.end_child(pid)
            self.give_up(slot, err)
            return
        made = Cell(self.engine, slot, pid, pidfd, self)
        if self.waiting:
            self.waiting.popleft().go(made)
        else:
            self.spares.append(made)

    def lose(self, spare):
        """The cell SPARE has ended before it had a job: tell the next why, unless it was to."""
        if self.ended:
            self.put_back(spare.slot)
            return
        if spare in self.spares:
            self.spares.remove(spare)
        self.give_up(spare.slot, spare.slot.failure() or Failure("the init of a sandbox was killed"))

    def give_up(self, slot, failure):
        """The cell in SLOT, which had no job, is gone because of FAILURE: tell the next job."""
        self.put_back(slot)
        if self.waiting:
            self.waiting.popleft().fail(str(failure))
        else:
            self.failure = failure

    def put_back(self, slot):
        """Nobody uses SLOT any more."""
        self.live -= 1
        if self.ended:
            self.let_go()
            return
        self.free.append(self.slots.index(slot))
        if self.waiting:
            self.make_ahead()

    def let_go(self):
        """Give back the memory, if nobody is in it any more."""
        if not self.live:
            for slot in self.slots:
                slot.close()
            self.region.close()

    def end(self, why):
        """It has ended, or ends now: WHY, or it was killed, "". Those that it made and that have a job go on."""
        self.engine.loop.forget(self.control)
        self.engine.drop(self)
        supervise.end_child(self.pid)
        os.close(self.pidfd)
        while (said := read(self.control)).startswith(b"p"):  # of what it has made, and nobody will take
            supervise.end_child(int.from_bytes(said[1:], "little"))
        os.close(self.control)
        self.ended = True
        for spare in self.spares:
            spare.kill()
        self.let_go()
        waiting, self.waiting = self.waiting, deque()
        for job in waiting:
            if why:
                job.fail(why)
            else:
                self.engine.try_again(job)

    def retire(self):
        """End it, for the host has something else at one of its paths by now; those that wait take cells of another."""
        waiting, self.waiting = self.waiting, deque()
        self.end("")
        for job in waiting:
            self.engine.take(job)

    def is_idle(self):
        """Whether nobody has or wants a cell of it."""
        return not self.waiting and len(self.free) + len(self.making) + len(self.spares) == len(self.slots)


class Engine:
    """Runs jobs, at most JOBS at once; WARM: by zygotes, where that can be.

    ahead      how many cells are made before somebody wants them, for each plan
    queue      jobs that wait for their turn
    running    those that had it and are not over
    cells      all Cells
    zygotes    {plan: Zygote}, the one that was used last comes last
    free       Slots of cells without a zygote that nobody uses
    places     what group.find() has found
    exposed    what group.own_by() has, by what it is asked for
    null       descriptor of /dev/null
    listing    its listing.Listing, or None
    slots      how many slots a zygote may have by what descriptors there may be
    """

    __slots__ = (
        *("ahead", "cells", "exposed", "free", "janitor", "jobs", "listing", "loop", "null", "places", "queue"),
        *("running", "slots", "warm", "zygotes"),
    )

    def __init__(self, jobs, warm=True):
        self.jobs, self.warm, self.loop = jobs, warm, Loop()
        self.ahead = max(1, min(jobs, len(os.sched_getaffinity(0))))
        self.queue, self.running, self.cells = deque(), set(), set()
        self.zygotes, self.free, self.places, self.exposed = {}, [], {}, {}
        self.janitor, self.listing = None, None
        with call("open /dev/null", "behind hako-run: --dev"):
            self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.slots = max(2, (raise_descriptors() - zygote.HIGH) // 3)

    def submit(self, job):
        """Run JOB when its turn comes."""
        job.engine = self
        self.queue.append(job)
        self.start_next()

    def start_next(self):
        """Start jobs, as many as may run."""
        while self.queue and len(self.running) < self.jobs:
            job = self.queue.popleft()
            self.running.add(job)
            if self.listing is not None:
                self.listing.note()
            job.start(self)

    def leave(self, job):
        """JOB is over; if it ran, that is counted."""
        if job in self.running:
            self.running.remove(job)
            if self.listing is not None:
                self.listing.count()

    def cancel(self, job):
        """JOB does not run if it does not yet."""
        if job in self.queue:
            self.queue.remove(job)

    def withdraw(self, job):
        """JOB wants no turn and no cell any more."""
        self.cancel(job)
        for one in self.zygotes.values():
            if job in one.waiting:
                one.waiting.remove(job)

    def take(self, job):
        """Give JOB a cell for its plan, now or later: its go(cell) or fail(why) is called."""
        of = job.plan
        try:
            parts = plans.split(of.box, of.capabilities()) if self.warm else None
            made = self.make_alone(job) if parts is None else self.zygote_of(of, parts)
        except (Failure, OSError) as err:
            job.fail(line_of(err))
            return
        if parts is None:
            job.go(made)
        else:
            made.take(job)

    def zygote_of(self, of, parts):
        """The Zygote of the plan OF, whose mounts are in PARTS."""
        one = self.zygotes.get(of)
        if one is not None and one.named != named(of.box):
            one.retire()
            one = self.zygotes.get(of)
        if one is None:
            self.make_room()
            one = Zygote(self, of, parts)
        else:
            del self.zygotes[of]
        self.zygotes[of] = one  # the last one that was used comes last
        return one

    def try_again(self, job):
        """Give JOB, whose zygote was killed, a cell of another; but not for ever."""
        job.tries += 1
        if job.tries > MOST_TRIES:
            job.fail("the process that makes its sandbox was killed")
        else:
            self.take(job)

    def make_room(self):
        """End zygotes that were not used for the longest time, if there are many."""
        for one in list(self.zygotes.values()):
            if len(self.zygotes) < MOST_ZYGOTES:
                return
            if one.is_idle():
                one.end("")

    def drop(self, one):
        """Forget the Zygote ONE."""
        if self.zygotes.get(one.plan) is one:
            del self.zygotes[one.plan]

    def make_alone(self, job):
        """A Cell for JOB that is built from the beginning."""
        of = job.plan
        ids = self.ids(of)
        slot = self.free.pop() if self.free else self.new_slot()
        slot.clear()
        try:
            pid, pidfd = self.clone(build.namespaces(of.box))
            if not pid:
                zygote.be_alone(of, ids, slot, job.layers)
            self.map_ids(pid, pidfd, ids, slot.socket.fileno())
        except (Failure, OSError):
            self.put_back(slot)
            raise
        return Cell(self, slot, pid, pidfd)

    @staticmethod
    def new_slot():
        """A Slot of no zygote."""
        region = steps.Region(cell.SIZE)
        try:
            return cell.Slot(region, 0)
        except Failure:
            region.close()
            raise

    def put_back(self, slot):
        """Nobody uses SLOT, which is of no zygote, any more."""
        self.free.append(slot)

    @staticmethod
    def ids(of):
        """The identity.IdMaps of a sandbox of the plan OF."""
        of.identity.note_groups()
        ids = identity.id_maps(of.identity)
        outside = ids.outside()[0]
        if outside != os.geteuid() and not kernel.capable(CAP_KILL):
            # Not the end of this process either would end it: the kernel asks whether this may send it a signal.
            raise Failure(f"uid {outside}: without CAP_KILL a sandbox of another user cannot be ended")
        of.guarded = guard.writes_interpreter(ids.host_uid(of.identity), ())
        return ids

    @staticmethod
    def clone(flags):
        """A child in new namespaces, FLAGS; a Failure says where they are to be had."""
        try:
            return kernel.clone3(flags)
        except Failure as err:
            hint = build.no_namespaces(err.errno, flags)
            raise Failure(f"{err} [{hint}]" if hint else str(err), errno=err.errno) from err

    @staticmethod
    def map_ids(pid, pidfd, ids, control):
        """Map IDS in the user namespace of process PID, if that is for this process to do, and tell it by CONTROL.

        If that fails, it is the end of the process, whose pidfd is PIDFD.
        """
        if ids.writer != "caller":
            return
        try:
            build.write_id_maps(pid, ids)
            os.write(control, b"m")
        except (Failure, OSError):
            supervise.end_child(pid)
            os.close(pidfd)
            raise

    def is_exposed(self, of):
        """Whether PROG of the plan OF would own the cgroup of version 2 that this process is in.

        A user namespace of its own is enough to mount that, and what is written to cgroup.kill there ends all in it.
        """
        who = of.identity
        key = who.uid, bool(who.held())
        if key not in self.exposed:
            self.exposed[key] = group.own_by(identity.id_maps(who).host_uid(who))
        return self.exposed[key]

    def new_group(self, limits, wanted):
        """A new group.Group for the Limits LIMITS, with the controllers WANTED if they are to be had; or None."""
        needed = limits.needed()
        if not needed and not wanted:
            return None
        key = (*needed, None, *wanted, None, limits.parent)
        if key not in self.places:
            self.places[key] = group.find(needed, wanted, limits.parent)
            if self.places[key] is not None:
                group.clean(self.places[key][0])
        if self.places[key] is None:
            return None
        if self.janitor is None:  # before there is a cgroup that would be left if there can be none
            from hako.janitor import Janitor

            self.janitor = Janitor()
        made = group.make(*self.places[key], needed)
        if made is not None:
            self.janitor.know(made)
        return made

    def end_group(self, made):
        """Remove the Group MADE, now or, if the kernel is not ready for it, soon; all in it are dead."""
        if made.try_to_remove():
            if self.janitor is not None:
                self.janitor.forget(made)
        else:
            made.kill()
            self.loop.at(time.monotonic() + SOON, lambda: self.end_group(made))

    def close(self):
        """End all: jobs, zygotes, and what is left of cgroups."""
        if self.listing is not None:
            self.listing.close()
            self.listing = None
        self.queue.clear()
        self.jobs = 0  # what comes now does not run any more
        for job in list(self.running):
            job.stop()
        while self.running or any(timer.function for timer in self.loop.timers):
            self.loop.turn()
        for one in list(self.zygotes.values()):
            one.end("")
        while self.cells:
            self.loop.turn()
        if self.janitor is not None:
            self.janitor.close()
        os.close(self.null)


def named(box):
    """What the paths of the host that the sandbox.Sandbox BOX names lead to: [(device, inode), or None for nothing].

    As long as a zygote shows it, no other file has that number.
    """
    paths = [mount.src for mount in box.mounts if isinstance(mount, sandbox.Bind)]
    found = []
    for path in paths if box.target is None else [box.target, *paths]:
        try:
            status = os.stat(path)
            found.append((status.st_dev, status.st_ino))
        except OSError:
            found.append(None)
    return found


def read(control):
    """The next message at the descriptor CONTROL, b"" if there is none and the other end is closed.

    That it was closed before all was read there is told first, once, and before what came from there.
    """
    for _ in range(2):
        try:
            return os.read(control, MESSAGE)
        except OSError:
            pass
    return b""


def raise_descriptors():
    """Have this process open as many descriptors as it may, and PROG as many as before; return how many those are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(hard, DESCRIPTORS) if hard != resource.RLIM_INFINITY else DESCRIPTORS
    if most > soft != resource.RLIM_INFINITY:
        cell.descriptors_of_prog = soft, hard
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return soft
