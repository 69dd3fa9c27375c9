"""What hako-ps is told of a process that runs many tasks: how many, and each of those that last.

Nothing is written for a task that is over soon: it is counted, and the file is
written again a moment later, once for all that happened meanwhile.
"""

import time

from hako import registry
from hako.failure import Failure

MOMENT = 1.0  # seconds from what happens to when it is written; what lasts longer is listed itself


class Listing:
    """The entry in the registry of this process, in which ENGINE runs jobs by COMMAND.

    ended   how many are over
    timer   the loop.Timer at which it is written again, or None: nothing new has happened
    texts   {job: registry.task_text()} of those that are listed
    """

    __slots__ = ("command", "ended", "engine", "entry", "texts", "timer")

    def __init__(self, engine, command):
        self.engine, self.command, self.ended, self.texts, self.timer = engine, command, 0, {}, None
        self.entry = registry.Entry(self.text())

    def text(self):
        """What the file says now."""
        counts = {"jobs": self.engine.jobs, "running": len(self.engine.running), "ended": self.ended}
        return registry.worker_text(self.command, counts, self.texts.values())

    def note(self):
        """Something has happened that is to be written soon."""
        if self.timer is None:
            self.timer = self.engine.loop.at(time.monotonic() + MOMENT, self.tell)

    def count(self):
        """One more job is over."""
        self.ended += 1
        self.note()

    def tell(self):
        """Write what happened; and again, if something may be still missing."""
        self.timer = None
        begun = time.monotonic() - MOMENT
        lasting = [job for job in self.engine.running if job.cell is not None and job.began <= begun]
        lasting.sort(key=lambda job: job.began)
        try:
            self.texts = {job: self.texts.get(job) or text_of(job) for job in lasting}
            self.entry.rewrite(self.text())
        except (OSError, Failure):
            self.note()  # somebody who reads may have had a lock for a moment
        if len(lasting) < len(self.engine.running):
            self.note()

    def close(self):
        """List it no longer."""
        if self.timer is not None:
            self.timer.cancel()
        self.entry.remove()


def text_of(job):
    """What there is to say of JOB, which has a cell."""
    return registry.task_text(job.cell.pid, job.began, job.order.argv, job.own, job.limits)


def begin(engine, command):
    """Have this process, in which ENGINE runs jobs by COMMAND, be listed from now on, if it can be."""
    try:
        engine.listing = Listing(engine, command)
    except (OSError, Failure):
        pass  # it runs them all the same
