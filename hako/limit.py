"""Starts PROG under limits, and sees how it ends.

supervisor   the caller's process: has the clock, the counters and the output
  keeper     its child: reaps, ends what is left, removes the cgroup (hako.keep)
    PROG     the keeper's, in a cgroup of its own from birth
"""

import math
import os
import resource
import select
import time

from hako import cgroup, group, keep, kernel, meter, registry, supervise
from hako.failure import Failure, call

LIMITED = 124  # as timeout(1)
NEVER = 3600.0  # seconds between looks when there is nothing to look at
CLEARING = 20  # milliseconds for which the keeper's end is waited for: no caller is to wait longer for a cgroup to go


class Run:
    """One PROG under limits on its way: what its processes have in common.

    limits            a limits.Limits
    records           a records.Records, or None
    say               takes a line for stderr
    own               its group.Group, or None
    counters          a meter.Meter
    out               an output.Output, or None
    disks             a supervise.Disks
    channels          supervise.Channels
    began             monotonic time
    """

    __slots__ = ("began", "channels", "counters", "disks", "limits", "out", "own", "records", "say", "start_time")

    def __init__(self, limits, records, output, say):
        self.start_time, self.began = time.time(), time.monotonic()
        self.limits, self.records, self.say = limits, records, say
        wanted = () if records is None else records.controllers()
        self.own = group.create(limits.needed(), ("cpuacct", *wanted), limits.parent)
        try:
            if self.own is not None:
                self.own.limit(limits)
            if self.own is None or not self.own.can_kill():
                need_proc()
            self.counters = meter.Meter(self.own)
            self.out = None if output is None else output.Output(limits.output)
            self.disks = supervise.Disks()
            self.channels = supervise.Channels()
        except BaseException:
            self.clear()
            raise

    def clear(self):
        """Remove the cgroup."""
        if self.own is not None:
            self.own.remove()

    def close_outside(self):
        """Let go, in the process that will be PROG, of what is its supervisor's."""
        if self.own is not None:
            self.own.close()
        if self.records is not None:
            self.records.close()
        self.disks.close()
        for fd in self.counters.files:
            os.close(fd)


def enter(limits, records, output, waiting, say, enlist=registry.unlisted):
    """Return in the process that will be PROG, under LIMITS; the others never return.

    RECORDS, a records.Records or None, is what is written down; OUTPUT the
    module of that name if there is a limit of it; SAY takes a line for stderr;
    ENLIST is a registry.lister().
    """
    try:
        run = Run(limits, records, output, say)
    except Failure as err:
        if records is not None:
            found = {"status": "internalError", "reason": str(err)}
            records.finish(time.time(), lambda told: told.take(found), err.status)
        raise
    try:
        signals = supervise.hold_signals()
        dumpable = kernel.prctl("GET_DUMPABLE")
        kernel.prctl("SET_DUMPABLE", 0)  # our memory and files are none of PROG's, which may have our uid
        child, pidfd = kernel.clone3(0)
    except BaseException:
        run.clear()
        raise
    if child:
        supervise.forget(waiting)
        Limiter(run, child, pidfd, signals).serve(enlist)
    keeper_pid = start(run)
    run.channels.of_child(waiting)
    become_limited(run)
    supervise.default_signals()
    supervise.die_with_parent(run.channels)
    if os.getppid() != keeper_pid:
        os._exit(128 + kernel.SIGKILL)  # it died before there was a signal for that
    kernel.prctl("SET_DUMPABLE", dumpable)


def need_proc():
    """Refuse to begin where the processes of PROG could not be found to be ended."""
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        raise Failure("no cgroup can be made here, and no process be found without /proc [behind hako-run: --proc]")


def start(run):
    """Be the keeper of RUN; return its pid in its child, which is in the cgroup from birth."""
    keeper_pid = os.getpid()
    try:
        keeper = keep.Keeper(run.channels, run.own)
        prog, _ = kernel.clone3(0, None if run.own is None else run.own.clone_into())
    except Failure as err:
        os.write(run.channels.ended[1], os.fsencode(str(err)))
        os._exit(1)
    if prog:
        run.channels.of_child([])
        keeper.keep(prog)
    return keeper_pid


def become_limited(run):
    """Make this process, the keeper's child, one under the limits of RUN."""
    if run.own is not None:
        run.own.enter()
    elif run.limits.cpu_time is not None:
        limit_cpu_time(run.limits.cpu_time)
    if run.out is not None:
        run.out.take_over()
    run.close_outside()


def limit_cpu_time(seconds):
    """Have the kernel end this process past SECONDS of CPU time, in whole ones: a supervisor looks now and then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    most = min(math.ceil(seconds), *(value for value in (soft, hard) if value != resource.RLIM_INFINITY), 2**62)
    with call(f"setrlimit RLIMIT_CPU {most}"):
        resource.prlimit(0, resource.RLIMIT_CPU, (most, most))


class Limiter(supervise.Supervisor):
    """The supervisor of PROG under limits.

    cause     of the statuses of hako-report(5), the limit that struck; None: none did
    reason    what there is to say of it
    kill_at   monotonic time at which SIGTERM is followed by SIGKILL; None before
    took      seconds from the start to the end
    used      (user seconds, system seconds, peak resident bytes) of all whose end was waited for
    """

    __slots__ = ("cause", "cpu_look", "kill_at", "killed", "look", "reason", "run", "sampler", "took", "used")

    def __init__(self, run, pid, pidfd, signals):
        super().__init__(pid, pidfd, run.channels, signals)
        self.run, self.cause, self.reason, self.kill_at, self.killed = run, None, "", None, False
        self.took, self.used = None, None
        self.look = self.cpu_look = run.began
        run.counters.keeper = pid
        self.sampler = None if run.records is None else run.records.sampler(run.counters, run.limits, run.began)

    def serve(self, enlist):
        """Wait for PROG; write the report; exit with the status that tells how it ended. Never return."""
        entries = []
        also = {**self.run.counters.files}
        self.run.disks.watch(also)
        if self.run.out is not None:
            self.run.out.watch(also)
        for inbox in supervise.watched:
            inbox.watch(also)
        failure = None
        try:
            status = self.wait(
                lambda _: entries.append(enlist(self.pid, None, self.run.own, self.run.limits)), also, self.clock
            )
        except Failure as err:
            self.kill()
            status, failure = err.status, str(err)
        for entry in entries:
            entry.remove()
        if self.sampler is not None:
            self.sampler.close()
        try:
            for put_right in supervise.at_end:  # a limit kills hako-run too
                put_right(self)
        except Failure as err:
            status, failure = err.status, failure or str(err)
        if self.ended_by:
            self.cause = None
        if line := failure or (self.cause and f"{self.cause}: {self.reason}"):
            self.run.say(line)
        if self.run.records is not None:
            status = self.run.records.finish(self.run.start_time, lambda told: self.report(told, failure), status)
        self.let_go()
        os._exit(status)

    def let_go(self):
        """Have the keeper remove the cgroup, and reap it, unless that takes long: then it is on its own."""
        os.close(self.channels.alive[1])
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        if poll.poll(CLEARING) and self.reap():
            self.run.clear()  # it was killed, and has not
        cgroup.reap_hastening()

    def end_fd(self):
        """The descriptor that becomes readable when PROG and all that is left of it have ended."""
        return self.channels.ended[0]

    def send(self, number):
        """Have the keeper send PROG signal NUMBER; no signal kills the keeper, which has to clear up."""
        if number != kernel.SIGKILL:
            super().send(number)

    def kill(self):
        """End PROG and all that it started: here, if there is a way, and by the keeper."""
        self.killed = True
        run = self.run
        if run.own is not None and run.own.can_kill():
            run.own.kill()
        try:
            os.write(self.channels.alive[1], b"k")
        except BrokenPipeError:
            pass  # the keeper was killed itself

    def clock(self):
        """Look at the limits; return the seconds until the next look."""
        now = time.monotonic()
        if self.run.out is not None and self.run.out.failed:
            raise self.run.out.failed
        pauses = [NEVER]
        if self.sampler is not None:
            pauses.append(self.sampler.pause(now))
        if self.kill_at is not None and not self.killed:
            if now >= self.kill_at:
                self.kill()
            else:
                pauses.append(self.kill_at - now)
        elif not self.cause and not self.ended_by:
            if self.find(now, last=False):
                self.strike(now)
                return 0
            pauses += self.pauses(now)
        return min(pauses)

    def pauses(self, now):
        """The seconds until each of the next looks."""
        limits, counters = self.run.limits, self.run.counters
        if limits.time is not None:
            yield self.run.began + limits.time - now
        if limits.cpu_time is not None:
            yield self.cpu_look - now
        if counters.polled:
            yield self.look - now

    def find(self, now, last):
        """Find the limit that struck, if one did: the first in their order. LAST: PROG has ended."""
        limits, counters = self.run.limits, self.run.counters
        if last or counters.changed or (counters.polled and now >= self.look):
            counters.changed = False
            self.look = now + (counters.pause() or NEVER)
            if self.binds("memory") and counters.out_of_memory(last):
                most = "the memory was" if limits.memory is None else f"{limits.memory} bytes of memory were"
                return self.found("memoryLimit", f"{most} not enough: a process was killed")
            if self.binds("pids") and counters.forks_refused():
                most = "too many" if limits.pids is None else f"more than {limits.pids}"
                return self.found("pidsLimit", f"{most} processes: a fork was refused")
        if limits.time is not None and now >= self.run.began + limits.time and not last:
            return self.found("timeLimit", f"{limits.time:g} seconds are over")
        if limits.cpu_time is not None and (last or now >= self.cpu_look) and self.cpu_time_is_used_up(now):
            return self.found("cpuTimeLimit", f"{limits.cpu_time:g} seconds of CPU time are used up")
        if self.run.out is not None and self.run.out.over:
            return self.found_output()
        return False

    def found(self, cause, reason):
        """Keep CAUSE, a limit that struck, and the REASON to give."""
        self.cause, self.reason = cause, reason
        if self.sampler is not None:
            self.sampler.strike(cause)
        return True

    def found_output(self):
        """Keep the limit of output as the cause."""
        return self.found("outputLimit", f"more than {self.run.limits.output} bytes of output")

    def binds(self, name):
        """Whether a limit of the controller NAME is there, and ends PROG when it strikes."""
        limits = self.run.limits
        return name in limits.needed() and name not in limits.tolerate

    def cpu_time_is_used_up(self, now):
        """Whether the CPU time is; else the next look is when it could be: each CPU gives one second a second."""
        left = self.run.limits.cpu_time - sum(self.cpu())
        self.cpu_look = now + max(left / len(os.sched_getaffinity(0)), meter.SOON)
        return left <= 0

    def cpu(self):
        """Seconds of CPU time used, (user, system)."""
        if self.used is not None and not self.run.counters.has_cpu():
            return self.used[:2]
        return self.run.counters.cpu()

    def strike(self, now):
        """End PROG, or ask it to end first, if there is time for that."""
        if self.run.limits.grace is None or self.cause == "memoryLimit":
            self.kill()
            return
        self.kill_at = now + self.run.limits.grace
        if self.run.out is not None and self.run.out.over:
            self.run.out.stop()
        own_words = cmdline("self")
        # Not those of our chain that wait, which never executed anything: hako-run would end the sandbox at once.
        self.run.counters.signal(kernel.SIGTERM, lambda pid: cmdline(pid) == own_words)

    def status(self):
        """The exit status that tells how it ended; all that PROG started has ended."""
        self.took = time.monotonic() - self.run.began
        told = os.read(self.channels.ended[0], 4096)
        fields = told.split()
        if len(fields) != 4 or not fields[0].isdigit():
            raise Failure(os.fsdecode(told) or "the process that keeps PROG was killed")
        self.used = float(fields[1]), float(fields[2]), int(fields[3]) * 1024
        if not self.cause and not self.ended_by:
            self.find(time.monotonic(), last=True)
        self.pass_on_the_rest()
        status = self.ended_with(int(fields[0]))
        if not self.cause and not self.ended_by and (full := self.run.disks.full()):
            self.found("diskLimit", f"no room is left in {', '.join(full)}")
        return 128 + self.ended_by if self.ended_by else LIMITED if self.cause else status

    def pass_on_the_rest(self):
        """Pass on what PROG has written and nobody has read yet."""
        out = self.run.out
        if out is None:
            return
        number = out.drain(bool(self.cause or self.ended_by), self.signal_fd, supervise.ENDING)
        self.ended_by = self.ended_by or number
        if out.failed:
            raise out.failed
        if out.over:
            self.found_output()

    def report(self, told, failure):
        """Fill in TOLD, a report.Report; FAILURE says what failed, None: nothing."""
        self.tell(told)
        told.real_time = time.monotonic() - self.run.began if self.took is None else self.took
        told.take(self.run.counters.figures())
        told.user_time, told.system_time = self.cpu()
        told.max_rss = None if self.used is None else supervise.max_rss(self.used[2])
        told.output_bytes = None if self.run.out is None else self.run.out.count
        if failure is not None:
            told.status, told.reason = "internalError", failure
        elif self.cause:
            told.status, told.reason = self.cause, self.reason


def cmdline(pid):
    """The command line of process PID, b"" if it is gone. A process that never executed anything has its parent's."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""
