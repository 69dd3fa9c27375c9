"""Runs PROG under a filter that tells: which calls it makes (learn), or which were refused (report).

A supervisor outside the filter gets each call by seccomp's user notification.
It is not what holds PROG: where the supervisor is gone, the kernel refuses what
it would have been asked about. See seccomp_unotify(2).
"""

import json
import os
import select
import stat
import time

from hako import bpf, core, kafel, kernel, newfile, program, progress, report, rules, start, supervise, syscalls
from hako.failure import Failure, call, show

SIGSYS = 31
EPERM, ENOSPC, MOST_ERRNO = 1, 28, 4095
# Arguments that tell more than the call: of these few different values are written down.
TELLING = {"ioctl": 1, "fcntl": 1, "prctl": 0, "socket": 0, "arch_prctl": 0, "personality": 0, "madvise": 2}
MOST_VALUES = 8
# What the kernel makes a process call by itself, at a moment that no run needs to have met.
ALWAYS = ("restart_syscall", "rt_sigreturn", "exit", "exit_group")
HEADER = "// Written by seccomp-exec --learn: what was used, and nothing else.\n"


def enter(watcher):
    """Return in the process that will be PROG; the parent serves WATCHER and exits with PROG's status."""
    signals = supervise.hold_signals()
    channels = supervise.Channels()
    sockets = kernel.socketpair()
    watcher.begin()
    dumpable = kernel.prctl("GET_DUMPABLE")
    kernel.prctl("SET_DUMPABLE", 0)  # the supervisor's memory and files are none of PROG's, which may have its uid
    try:
        pid, pidfd = kernel.clone3(0)
    except Failure:
        watcher.undo()
        raise
    if pid:
        os.close(sockets[1])
        supervisor = supervise.Supervisor(pid, pidfd, channels, signals)
        supervise.forget(core.waiting)
        serve(supervisor, watcher, sockets[0])
    os.close(sockets[0])
    channels.of_child(core.waiting)
    supervise.default_signals()
    supervise.die_with_parent(channels)
    kernel.prctl("SET_DUMPABLE", dumpable)
    kernel.prctl("SET_NO_NEW_PRIVS", 1)
    secret = kernel.Secret()
    code = start.let_through(bpf.compile_policy(watcher.policy()), secret, listener=True)
    core.execute = lambda path, argv, env: start.execute(code, secret, path, argv, env, sockets[1])


def serve(supervisor, watcher, socket):
    """Answer every call until PROG and all that it started are gone; exit with PROG's status."""
    listener = Listener(socket, watcher)
    status = supervisor.wait(also=listener.files)
    if listener.killed and status == 128 + kernel.SIGKILL:
        status = 128 + SIGSYS  # as the rules say: SIGKILL was our way to it
    number = listener.drain(supervisor.signal_fd)
    status = status if number is None else 128 + number
    watcher.close()
    os._exit(status)


class Listener:
    """The descriptor by which the kernel asks: first the socket through which it comes, then itself."""

    def __init__(self, socket, watcher):
        self.socket, self.watcher, self.fd, self.killed = socket, watcher, None, False
        self.files = {socket: (select.POLLIN, self.receive)}

    def receive(self):
        """Take the listener from the socket."""
        received = kernel.receive_descriptor(self.socket)
        del self.files[self.socket]
        os.close(self.socket)
        if received is not None:
            self.fd, _ = received
            self.files[self.fd] = select.POLLIN, self.answer

    def answer(self):
        """Answer one call."""
        asked = kernel.receive_notification(self.fd)
        if asked is None:
            return
        action = self.watcher.see(asked)
        base, data = action & 0xFFFF0000, action & 0xFFFF
        if base in (bpf.KILL_THREAD, bpf.KILL_PROCESS):
            self.kill(asked)
        elif base == bpf.ERRNO:
            kernel.answer_notification(self.fd, asked.id, min(data, MOST_ERRNO))
        elif base == bpf.USER_NOTIF:  # what it gets without a supervisor of its own
            kernel.answer_notification(self.fd, asked.id, kernel.ENOSYS)
        else:
            kernel.answer_notification(self.fd, asked.id)

    def kill(self, asked):
        """Kill the process that made the call ASKED, which is not answered: so it is not to go on.

        Not by SIGSYS: it could be handled, taken away by a tracer, or mean nothing to PID 1.
        """
        if not kernel.notification_waits(self.fd, asked.id):
            return  # gone meanwhile, and the number perhaps another's
        self.killed = True
        try:
            os.kill(asked.pid, kernel.SIGKILL)  # a thread's number does as well as its process's
        except PermissionError:
            core.say(f"seccomp-exec: kill {asked.pid}: not ours to kill: its call stays without an answer")
        except ProcessLookupError:
            pass

    def drain(self, signal_fd):
        """Answer those whom PROG left behind, until nobody is under the filter any more.

        Return None, or the number of the signal from SIGNAL_FD that ends it before.
        """
        poll = select.poll()
        poll.register(signal_fd, select.POLLIN)
        if self.fd is not None:
            poll.register(self.fd, select.POLLIN)
        while self.fd is not None:
            events = dict(poll.poll())
            if signal_fd in events:
                number = kernel.read_signal(signal_fd)[0]
                if number in supervise.ENDING:
                    return number
            if events.get(self.fd, 0) & select.POLLIN:
                self.answer()
            elif self.fd in events:
                return None
        return None


def status_of(pid):
    """/proc/PID/status as {name: text}; empty if it cannot be read."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    except OSError:
        return {}


class Reporter:
    """Tells which calls the rules POLICY refuse: as JSON lines in the file REPORT, and if EXPLAIN for people."""

    def __init__(self, policy, report, explain):
        self.rules, self.explain = policy, explain
        self.file, self.refused = 2 if report == "-" else None, {}
        if report not in (None, "-"):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self.file = newfile.open_in_place(f"open {show(report)}", report, flags)
            program.needed.append(self.file)

    def policy(self):
        """The rules, with a question in the place of every refusal that the supervisor can carry out."""
        calls = {
            arch: {number: [asking(rule) for rule in found] for number, found in table.items()}
            for arch, table in self.rules.calls.items()
        }
        return bpf.Policy(calls, asking(self.rules.default), bpf.USER_NOTIF)

    def see(self, asked):
        """Write down the refused call ASKED; return the action that the rules have for it."""
        rule = bpf.decide(self.rules, asked.arch, asked.nr, asked.args)
        action = self.rules.foreign if rule is None else rule.action
        arch = next((name for name, number in bpf.AUDIT_ARCH.items() if number == asked.arch), None)
        name = syscalls.name(arch, asked.nr) if arch else f"SYSCALL[{asked.nr}]"
        place = "another architecture" if rule is None else str(rule.place)
        if self.file is not None:
            self.write(asked, name, action, place)
        key = name, bpf.action_name(action), place
        self.refused[key] = self.refused.get(key, 0) + 1
        return action

    def write(self, asked, name, action, place):
        """Write the JSON line of the call ASKED."""
        line = {
            "time": report.timestamp(time.time()),
            "pid": asked.pid,
            "comm": status_of(asked.pid).get("Name"),
            "syscall": name,
            "number": asked.nr,
            "args": asked.args,
            "action": bpf.action_name(action),
            "rule": place,
        }
        core.write(self.file, json.dumps(line).encode() + b"\n")

    def begin(self):
        """There is nothing to begin with."""

    def undo(self):
        """There is nothing to take back."""

    def close(self):
        """Say for people what was refused."""
        if self.explain:
            for (name, action, place), count in self.refused.items():
                times = "once" if count == 1 else f"{count} times"
                core.say(f"seccomp-exec: refused {name}, {times}: {action} by {place}")


def asking(rule):
    """RULE, with a question in the place of a refusal that the supervisor can carry out."""
    if rule.action & 0xFFFF0000 in (bpf.KILL_THREAD, bpf.KILL_PROCESS, bpf.ERRNO, bpf.USER_NOTIF):
        return bpf.Rule(bpf.USER_NOTIF, rule.condition, rule.place)
    return rule


class Learner:
    """Writes down in the policy PATH what is used; what a policy there allows already stays.

    used   {number: set of values of its telling argument, or None for any}
    calls  how many there were
    new    whether there was no such file
    shown  a progress.Progress, from begin() on
    """

    def __init__(self, path):
        self.path, self.used, self.calls, self.shown = path, {}, 0, None
        self.arch = rules.architecture()
        self.file, self.new = self.opened()
        if not stat.S_ISREG(os.fstat(self.file).st_mode):
            raise Failure(f"--learn: not a file: {path!r}")
        program.needed.append(self.file)
        if data := rules.read(path):
            self.take(kafel.parse(rules.text(path, data), self.arch, rules.included_profile, rules.group))
        self.groups = [(name, self.members(name)) for name, _ in rules.listed(os.path.join(rules.PROFILES, "groups"))]
        for name in ALWAYS:
            number = syscalls.number(self.arch, name)
            if number is not None:
                self.allow(number, None)

    def begin(self):
        """Look where to say how far it is: a supervisor has no stdout any more."""
        self.shown = progress.Progress("calls", beside=True)

    def opened(self):
        """A descriptor of the file, and whether it was made."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            return os.open(self.path, flags | os.O_EXCL, 0o644), True
        except OSError:
            return newfile.open_in_place(f"open {show(self.path)}", self.path, flags), False

    def members(self, name):
        """The numbers of the calls in the group NAME."""
        source = kafel.Source("USE", f"USE {name}", lenient=True)
        return set(kafel.parse(source, self.arch, rules.included_profile, rules.group).calls[self.arch])

    def take(self, policy):
        """Take over what POLICY allows, if it is one that we wrote."""
        if policy.default.action != bpf.ERRNO + EPERM:
            raise Failure(f"{policy.default.place}: not a policy that --learn wrote: its DEFAULT is another")
        for number, found in policy.calls[self.arch].items():
            for rule in found:
                if rule.action != bpf.ALLOW:
                    raise Failure(f"{rule.place}: not a policy that --learn wrote: it has other actions than ALLOW")
                self.allow(number, values_of(rule, TELLING.get(syscalls.name(self.arch, number))))

    def allow(self, number, values):
        """Allow the call NUMBER, with VALUES of its telling argument, None for any."""
        if values is None or self.used.get(number, ()) is None:
            self.used[number] = None
            return
        known = self.used.setdefault(number, set())
        known |= values
        if len(known) > MOST_VALUES:
            self.used[number] = None

    def policy(self):
        """A question for every call."""
        asked = bpf.Rule(bpf.USER_NOTIF, None, "learn")
        return bpf.Policy({self.arch: {}}, asked, bpf.KILL_THREAD)

    def see(self, asked):
        """Write down the call ASKED; it goes on."""
        argument = TELLING.get(syscalls.name(self.arch, asked.nr))
        self.calls += 1
        self.shown.tell(self.calls)
        self.allow(asked.nr, None if argument is None else {asked.args[argument] & bpf.LOW32})
        return bpf.ALLOW

    def close(self):
        """Write the policy; if PROG has not run, leave things as they were."""
        if self.calls:
            self.shown.end(self.calls)
            self.write()
        else:
            self.undo()

    def undo(self):
        """Take the file away, if it is ours and still there: as it is, it would refuse everything."""
        try:
            if self.new and os.path.samestat(os.stat(self.path), os.fstat(self.file)):
                os.unlink(self.path)
        except OSError:
            pass  # in a sandbox the name means nothing; there it stays empty

    def write(self):
        """Write the policy: by group, each call once."""
        rest = dict(self.used)
        blocks = []
        for group, members in self.groups:
            found = sorted((self.told(number, rest.pop(number)) for number in members & set(rest)), key=str)
            if found:
                blocks.append(f"  // {group}\n  " + ",\n  ".join(found))
        if rest:
            blocks.append("  // other\n  " + ",\n  ".join(self.told(number, values) for number, values in rest.items()))
        body = "ALLOW {\n" + ",\n".join(blocks) + "\n}\n" if blocks else ""
        data = f"{HEADER}{body}DEFAULT ERRNO(1)\n".encode()
        # In place: inside a sandbox, and as PROG's user, there is no name to rename to.
        with call(f"write {show(self.path)}"):
            if os.pwrite(self.file, data, 0) != len(data):
                raise OSError(ENOSPC, "")
            os.ftruncate(self.file, len(data))

    def told(self, number, values):
        """A rule for the call NUMBER with VALUES of its telling argument, None for any."""
        name = syscalls.name(self.arch, number)
        if values is None:
            return name
        names = ("a", "b", "c", "d", "e", "f")[: TELLING[name] + 1]
        tests = " || ".join(f"({names[-1]} & 0xffffffff) == {value:#x}" for value in sorted(values))
        return f"{name}({', '.join(names)}) {{ {tests} }}"


def values_of(rule, argument):
    """The values that RULE, as --learn writes it, has for ARGUMENT, the telling one; None for any."""
    if rule.condition is None:
        return None
    tests = rule.condition[1:] if rule.condition[0] == "or" else (rule.condition,)
    values = {test[3][1] for test in tests if test[0] == "compare" and test[3][0] == "number"}
    telling = ("&", ("arg", argument), ("number", bpf.LOW32))
    if {test[:3] for test in tests} != {("compare", "==", telling)} or len(values) != len(tests):
        raise Failure(f"{rule.place}: not a rule that --learn wrote")
    return values
