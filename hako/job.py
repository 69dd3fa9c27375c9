"""One PROG on its way: where its output goes, which limits hold, how it ends. hako.engine runs it."""

import os
import time

from hako import cell, kernel, meter, report, supervise, verdict
from hako.failure import EXPECTED, Failure, call, line_of

MESSAGE = 2**16
EAGAIN = 11


class Job:
    """One PROG; who wants one makes a class of it with prepare() and ended().

    plan       the plan.Plan of its sandbox
    limits     the limits.Limits of all that it starts
    order      its cell.Order, once it is prepared
    sinks      sinks of its output
    inside     functions that take the descriptors of what is made inside, in the order of cell.make_channels()
    passed     descriptors to close once PROG has them
    figures    controllers without which figures would be missing
    changes    whether to list what changed in the overlay; then the list, bytes, a line of JSON each
    layers     the overlay.Layers, or None
    killed     whether it was to end before it did
    report     the report.Report, once it is over
    """

    __slots__ = (
        *("ahead", "began", "cell", "changes", "counters", "disks", "draining", "engine", "figures", "inside"),
        *("killed", "layers", "limits", "order", "own", "passed", "peak", "plan", "records", "report", "silent"),
        *("sinks", "start_time", "state", "status", "text", "timer", "tries", "user", "verdict", "watched"),
    )

    def __init__(self, plan, limits):
        self.plan, self.limits, self.figures, self.changes = plan, limits, (), False
        self.sinks, self.inside, self.passed, self.disks, self.watched = [], [], [], [], {}
        self.cell = self.own = self.counters = self.verdict = self.layers = self.report = self.order = None
        self.ahead = False
        self.timer = self.text = self.peak = self.user = self.status = self.engine = None
        self.tries, self.records, self.state, self.silent, self.killed = 0, (), "new", False, False
        self.draining = set()
        self.start_time, self.began = time.time(), time.monotonic()

    def prepare(self):
        """Make the order, and open what output goes to."""
        raise NotImplementedError

    def ended(self):
        """Tell who wanted it: the report is filled in."""
        raise NotImplementedError

    def start(self, engine):
        """Run it by ENGINE."""
        self.engine, self.state = engine, "waiting"
        self.start_time, self.began = time.time(), time.monotonic()
        try:
            self.prepare()
            self.open_layers()
            self.join_group()
            self.counters = self.make_counters()
        except EXPECTED as err:
            self.fail(line_of(err))
            return
        self.verdict = verdict.Verdict(self.limits, self.counters, self.began)
        for fd, (events, function) in self.counters.files.items():
            engine.loop.watch(fd, lambda function=function: self.notice(function), events)
        self.look()
        if self.state == "waiting":
            engine.take(self)

    def join_group(self):
        """Have it in a cgroup of its own, if a limit or a figure needs one, or PROG could write this process's."""
        figures = self.figures or (("cpuacct",) if self.engine.is_exposed(self.plan) else ())
        self.own = self.engine.new_group(self.limits, figures)
        if self.own is not None:
            self.own.limit(self.limits)
            self.order.cgroups = self.own.open_procs()
            self.passed += [fd for fd, _ in self.order.cgroups]

    def make_counters(self):
        """The meter.Meter, or what stands for one."""
        return meter.Meter(self.own)

    def open_layers(self):
        """Open the layers of the overlay, if there is one."""
        box = self.plan.box
        if box.overlay is None:
            return
        from hako import build, overlay

        self.layers = overlay.Layers(box, True, build.open_root(box))
        self.layers.make_work(self.engine.ids(self.plan).outside())

    def go(self, made):
        """Have PROG run in the engine.Cell MADE."""
        if self.state != "waiting":
            made.kill()
            return
        self.cell, self.state, self.ahead = made, "running", made.home is not None
        self.counters.keeper = made.pid
        try:
            self.records = made.order(self)
        except Failure as err:
            self.text = str(err)
            made.job = self
            made.kill()
            return
        self.close_passed()
        if self.inside or made.home is None:
            self.engine.loop.watch(made.slot.socket.fileno(), self.receive)
        for sink in self.sinks:
            self.follow(sink)

    def receive(self):
        """Take what comes from inside."""
        while True:
            try:
                data, control, _, _ = self.cell.slot.socket.recvmsg(MESSAGE, 2048, kernel.MSG_DONTWAIT | cell.CLOEXEC)
            except (BlockingIOError, ConnectionResetError):
                return  # nothing is there; or it ended without having read what it was told
            except OSError as err:
                self.text = self.text or f"recvmsg: {err.strerror}"  # what comes now, output perhaps, comes too late
                return
            self.take(data[:1], data[1:], cell.descriptors(control))
            if not data:
                return

    def take(self, kind, data, files):
        """Take DATA of the KIND that hako.zygote and hako.cell send, with the descriptors FILES."""
        if kind == b"!":
            self.text = os.fsdecode(data)
        elif kind == b"n":
            self.cell.slot.know(data)
        elif kind == b"d":
            self.disks.append((files.pop(), os.fsdecode(data)))
        elif kind == b"u" and self.layers.upper is None:
            self.layers.upper = files.pop()
        elif kind == b"i":
            self.user = files.pop()
        elif kind == b"c":
            taken, files = files, []
            for fd in taken:
                self.inside.pop(0)(fd)
        for fd in files:
            os.close(fd)

    def add(self, sink):
        """Have SINK passed on too."""
        self.sinks.append(sink)
        if self.state == "running":
            self.follow(sink)

    def follow(self, sink):
        """Wait for what SINK waits for."""
        sink.held = True
        loop, last = self.engine.loop, self.watched.get(sink)
        now = None if sink.fd is None else (sink.fd, sink.events)
        if now != last:
            if last is not None:
                loop.forget(last[0])
                del self.watched[sink]
            if now is not None:
                self.watched[sink] = now
                loop.watch(now[0], lambda: self.serve(sink), now[1])

    def serve(self, sink):
        """Pass on what there is at SINK."""
        self.engine.loop.forget(self.watched.pop(sink)[0])  # first: it may be closed, and the number be another's then
        if self.state == "draining":
            self.drain(sink)
            self.conclude()
            return
        try:
            sink.serve()
        except Failure as err:
            self.lose(err)
            self.kill()
        self.follow(sink)
        if sink.overrun:
            self.strike("outputLimit", self.overrun())

    def overrun(self):
        """What there is to say of too much output."""
        return f"more than {self.limits.output} bytes of output" if self.limits.output else "more output than its limit"

    def notice(self, function):
        """The kernel tells of a counter: FUNCTION takes notice."""
        function()
        self.look()

    def look(self):
        """Look at the limits, and be called when it is time to look again."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.state not in ("waiting", "running") or self.verdict.cause:
            return
        now = time.monotonic()
        if self.verdict.find(now, last=False):
            self.kill()
            return
        pause = min(self.verdict.pauses(now), default=None)
        if pause is not None:
            self.timer = self.engine.loop.at(now + pause, self.look)

    def strike(self, cause, reason):
        """The limit CAUSE is met, which means REASON: end PROG."""
        if not self.verdict.cause:
            self.verdict.found(cause, reason)
        self.kill()

    def kill(self):
        """End PROG and all that it started."""
        if self.cell is not None:
            if not (self.killed or self.silent or self.counters.has_cpu()):
                used = self.counters.cpu()  # the init cannot tell any more, and what it reaps then counts nowhere
                self.verdict.used = used if any(used) else None
            self.killed = True
            self.cell.kill()
        elif self.state in ("new", "waiting"):
            self.engine.withdraw(self)
            self.finish()

    def stop(self):
        """End it, and tell nobody."""
        self.silent = True
        self.kill()
        if self.state == "draining":
            for sink in self.draining:
                sink.close()
            self.draining.clear()
            self.conclude()

    def fail(self, text):
        """It cannot run, for the reason TEXT."""
        self.text = text
        self.finish()

    def over(self, status, slot):
        """Its init has ended with the wait STATUS; nobody is in the sandbox any more. SLOT has the rest."""
        self.receive()
        self.engine.loop.forget(slot.socket.fileno())
        failed = slot.failure(self.records)
        if failed is not None:
            self.text = self.text or str(failed)
        elif os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            self.status = slot.wait_status()
            *used, self.peak = slot.used()
            self.verdict.used = tuple(used)
        elif os.WIFSIGNALED(status):
            self.status = kernel.SIGKILL
            if not (self.killed or slot.has_made_prog()):
                self.text = self.text or "the process that makes the sandbox was killed"
        else:
            self.text = self.text or "the init of the sandbox has failed"
        self.cell = None
        if not self.verdict.cause and self.text is None:
            self.verdict.find(time.monotonic(), last=True)
        self.finish()

    def finish(self):
        """Pass on what is left of the output; then it is over."""
        self.state, self.draining = "draining", set() if self.silent else set(self.sinks)
        if self.timer is not None:
            self.timer.cancel()
        self.close_passed()
        for fd, _ in self.watched.values():
            self.engine.loop.forget(fd)
        self.watched.clear()
        for sink in list(self.draining):
            self.drain(sink)
        self.conclude()

    def drain(self, sink):
        """Pass on what is left of SINK, or be called when who takes it is ready."""
        try:
            done = sink.drain()
        except Failure as err:
            self.lose(err)
            done = True
        if done:
            self.draining.discard(sink)
        else:
            self.follow(sink)

    def lose(self, err):
        """Output is lost, by the Failure ERR."""
        self.text = str(err)

    def close_passed(self):
        """Close what PROG has now."""
        while self.passed:
            os.close(self.passed.pop())

    def conclude(self):
        """Tell how it ended, once all is passed on."""
        if self.draining or (self.layers is not None and self.read_layers()):
            return
        self.state = "over"
        for sink in self.sinks:
            sink.close()
        self.fill()
        if self.counters is not None:
            for fd in self.counters.files:
                self.engine.loop.forget(fd)
                os.close(fd)
        for fd, _ in self.disks:
            os.close(fd)
        if self.user is not None:
            os.close(self.user)
        if self.own is not None:
            self.engine.end_group(self.own)
        self.engine.leave(self)
        if not self.silent:
            self.ended()
        self.engine.start_next()

    def fill(self):
        """Fill in the report."""
        told = self.report = report.Report(self.start_time)
        told.real_time = time.monotonic() - self.began
        if self.counters is not None and self.status is not None:
            told.take(self.counters.figures())
            known = self.verdict.used or self.counters.has_cpu()
            told.user_time, told.system_time = self.verdict.cpu() if known else (None, None)
        if self.peak is not None:
            # Before its exec PROG was its init: by a zygote one of a few pages, else a copy of this process.
            told.max_rss = self.peak if self.ahead else supervise.max_rss(self.peak)
        if self.sinks:
            told.output_bytes = sum(sink.count for sink in self.sinks)
        cause, reason = (self.verdict.cause, self.verdict.reason) if self.verdict else (None, "")
        if any(sink.overrun for sink in self.sinks):
            cause, reason = "outputLimit", self.overrun()
        if self.text is not None:
            told.status, told.reason = "internalError", self.text
            return
        if self.status is not None or not cause:
            code = os.waitstatus_to_exitcode(kernel.SIGKILL if self.status is None else self.status)
            told.status = "exited" if code >= 0 else "killed"
            told.code = code if code >= 0 else None
            told.signal = None if code >= 0 else supervise.signal_name(-code)
        if cause:
            told.status, told.reason = cause, reason
        elif full := [name for fd, name in self.disks if supervise.is_full(fd)]:
            told.status, told.reason = "diskLimit", f"no room is left in {', '.join(full)}"

    def read_layers(self):
        """Have what changed in the layers read, and their work directory removed, by a child; whether that is going on.

        It may take a while, and it needs the rights of the user namespace in which they were written.
        """
        layers, self.layers = self.layers, None
        if layers.upper is None and layers.work is None:
            layers.close()
            return False
        wanted = self.changes and self.status is not None
        try:
            with call("memfd_create"):
                listing = os.memfd_create("changes", os.MFD_CLOEXEC)
            pid, pidfd = kernel.clone3(0)
        except Failure as err:
            self.text = self.text or str(err)
            layers.close()
            return False
        if not pid:
            read(layers, self.user, listing, wanted)
        layers.close()

        def end():
            self.engine.loop.forget(pidfd)
            os.close(pidfd)
            _, status = os.waitpid(pid, 0)
            try:
                self.changes = kernel.read_memfd(listing)
            except Failure as err:
                self.text = self.text or str(err)
            if status:
                # Of one that was killed it is the list, as far as there is one.
                why = "" if os.WIFSIGNALED(status) else os.fsdecode(self.changes)
                self.text, self.changes = self.text or why or "who reads the changes was killed", b""
            self.conclude()

        self.engine.loop.watch(pidfd, end)
        return True


def read(layers, user, listing, wanted):
    """Write the changes in LAYERS, if they are WANTED, to the descriptor LISTING; remove the work directory.

    USER is the descriptor of their user namespace, or None if there never was
    one. Never return: the status is not 0 if it failed, and LISTING says why then.
    """
    status = 1
    try:
        if user is not None:
            kernel.setns(user, kernel.CLONE_NEWUSER, "user namespace of the sandbox")
        layers.remove_work()
        if wanted and layers.upper is not None:
            from hako.changes import LayerReader

            with open(listing, "wb", closefd=False) as file:
                for change in LayerReader(layers).changes():
                    file.write(change.line())
        status = 0
    except (Failure, OSError) as err:
        os.ftruncate(listing, 0)
        os.pwrite(listing, os.fsencode(line_of(err)), 0)
    finally:
        os._exit(status)
