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

from hako import cgroup, group, keep, kernel, meter, modes, registry, supervise, verdict
from hako.failure import SEE_CHECK, Failure, as_failure, call, line_of

LIMITED = 124  # as timeout(1)
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
        hint = f"behind hako-run: --proc; {SEE_CHECK}"
        raise Failure(f"no cgroup can be made here, and no process be found without /proc [{hint}]")


def start(run):
    """Be the keeper of RUN; return its pid in its child, which is in the cgroup from birth."""
    keeper_pid = os.getpid()
    try:
        keeper = keep.Keeper(run.channels, run.own)
        prog, _ = kernel.clone3(0, None if run.own is None else run.own.clone_into())
        if prog:
            run.channels.of_child([])
    except (Failure, OSError) as err:
        os.write(run.channels.ended[1], os.fsencode(line_of(err)))
        os._exit(1)
    if prog:
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

    verdict   the verdict.Verdict on its limits
    kill_at   monotonic time at which SIGTERM is followed by SIGKILL; None before
    took      seconds from the start to the end
    peak      peak resident bytes of all whose end was waited for; None before that
    """

    __slots__ = ("kill_at", "killed", "peak", "run", "sampler", "took", "verdict")

    def __init__(self, run, pid, pidfd, signals):
        super().__init__(pid, pidfd, run.channels, signals)
        self.run, self.kill_at, self.killed, self.took, self.peak = run, None, False, None, None
        self.verdict = verdict.Verdict(run.limits, run.counters, run.began)
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
        except (Failure, OSError) as err:
            self.kill()
            failure = as_failure(err)
            status, failure = failure.status, str(failure)
        for entry in entries:
            entry.remove()
        if self.sampler is not None:
            self.sampler.close()
        try:
            modes.put_back()
            for put_right in supervise.at_end:  # a limit kills hako-run too
                put_right(self)
        except (Failure, OSError) as err:
            late = as_failure(err)
            status, failure = late.status, failure or str(late)
        if self.ended_by:
            self.verdict.cause = None
        if line := failure or (self.verdict.cause and f"{self.verdict.cause}: {self.verdict.reason}"):
            self.run.say(line)
        if self.run.records is not None:
            status = self.run.records.finish(self.run.start_time, lambda told: self.report(told, failure), status)
        self.let_go()
        os._exit(status)

    def let_go(self):
        """Have the keeper remove the cgroup, and reap it, unless that takes long: then it is on its own.

        All is said already; so it is too if something fails.
        """
        try:
            os.close(self.channels.alive[1])
            cgroup.reap_hastening()
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            if poll.poll(CLEARING) and self.reap():
                self.run.clear()  # it was killed, and has not
        except (Failure, OSError):
            pass

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
        pauses = [verdict.NEVER]
        if self.sampler is not None:
            pauses.append(self.sampler.pause(now))
        if self.kill_at is not None and not self.killed:
            if now >= self.kill_at:
                self.kill()
            else:
                pauses.append(self.kill_at - now)
        elif not self.verdict.cause and not self.ended_by:
            if self.find(now, last=False):
                self.strike(now)
                return 0
            pauses += self.verdict.pauses(now)
        return min(pauses)

    def find(self, now, last):
        """Find the limit that struck, if one did. LAST: PROG has ended."""
        if self.verdict.find(now, last):
            return self.note()
        return self.run.out is not None and self.run.out.over and self.found_output()

    def note(self):
        """Put it into the record of use that a limit struck, now."""
        if self.sampler is not None:
            self.sampler.strike(self.verdict.cause)
        return True

    def found_output(self):
        """Keep the limit of output as the cause."""
        self.verdict.found("outputLimit", f"more than {self.run.limits.output} bytes of output")
        return self.note()

    def strike(self, now):
        """End PROG, or ask it to end first, if there is time for that."""
        if self.run.limits.grace is None or self.verdict.cause == "memoryLimit":
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
        self.verdict.used, self.peak = (float(fields[1]), float(fields[2])), int(fields[3]) * 1024
        if not self.verdict.cause and not self.ended_by:
            self.find(time.monotonic(), last=True)
        self.pass_on_the_rest()
        status = self.ended_with(int(fields[0]))
        if not self.verdict.cause and not self.ended_by and (full := self.run.disks.full()):
            self.verdict.found("diskLimit", f"no room is left in {', '.join(full)}")
            self.note()
        return 128 + self.ended_by if self.ended_by else LIMITED if self.verdict.cause else status

    def pass_on_the_rest(self):
        """Pass on what PROG has written and nobody has read yet."""
        out = self.run.out
        if out is None:
            return
        number = out.drain(bool(self.verdict.cause or self.ended_by), self.signal_fd, supervise.ENDING)
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
        told.user_time, told.system_time = self.verdict.cpu()
        told.max_rss = None if self.peak is None else supervise.max_rss(self.peak)
        told.output_bytes = None if self.run.out is None else self.run.out.count
        if failure is not None:
            told.status, told.reason = "internalError", failure
        elif self.verdict.cause:
            told.status, told.reason = self.verdict.cause, self.verdict.reason


def cmdline(pid):
    """The command line of process PID, b"" if it is gone. A process that never executed anything has its parent's."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return b""
