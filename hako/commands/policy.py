"""hako-policy - run PROG in a sandbox on an empty root, made of what a policy names

Usage:
  hako-policy [options] [--ro-bind=SPEC]... [--rw-bind=SPEC]... [--tmpfs=SPEC]... [--symlink=SPEC]...
              [--file=SPEC]... [--env=SPEC]... [--cap-add=CAP]... [--keep-fd=N]...
              POLICY [--] [PROG [ARG...]]
  hako-policy (--help | --version)

Options:
  --ro-bind=SPEC         SRC[:DST], repeatable: show the caller's SRC at DST, read-only
  --rw-bind=SPEC         SRC[:DST], repeatable: show it, to be written
  --tmpfs=SPEC           DST[:SIZE], repeatable: an empty tmpfs at DST
  --dev                  a minimal /dev
  --proc                 a fresh /proc, what tunes the kernel or tells of the host covered
  --symlink=SPEC         TARGET:LINK, repeatable: a symbolic link
  --file=SPEC            DST=CONTENTS, repeatable: a file
  --work-dir=DIR         show the caller's DIR at /hako, to be written, and start there
  -e, --env=SPEC         NAME=VALUE, or NAME for the caller's value, repeatable
  -u, --user=USER        run PROG as USER, a name or number of the host
  -g, --group=GROUP      run PROG with GROUP, a name or number; else the primary group of USER
  --uid=N                user id of PROG inside
  --gid=N                group id of PROG inside
  -c, --chdir=DIR        current directory of PROG, inside
  --cap-add=CAP          capability that PROG keeps, repeatable; all for every one; else it has none
  --keep-fd=N            descriptor that PROG keeps, repeatable; else only 0, 1 and 2
  -H, --hostname=NAME    host name inside
  -N, --network=NET      none, host, pasta[:ARGS], or the file of a network namespace
  --limit-as=SIZE        address space of each process; past it, mmap and brk fail with ENOMEM
  --limit-core=SIZE      core file of each process; 0 writes none
  --limit-cpu=SECONDS    CPU time of each process; at the limit, SIGKILL
  --limit-fsize=SIZE     any file written; past it, SIGXFSZ
  --limit-nofile=N       one more than the highest descriptor; past it, open fails with EMFILE
  --limit-walltime=SECONDS  time on the clock, fractions allowed
  --limit-memory=SIZE    memory of all together; past it, they are killed
  --limit-pids=N         processes and threads of all together; past it, fork fails with EAGAIN
  --limit-output=SIZE    bytes on stdout and stderr together; what fits is passed on
  --seccomp=RULES        rules for system calls: a built-in profile, a file, or none
  --tty                  PROG gets a terminal of its own, with job control, in the place of the caller's;
                         so without this option, if PROG has no ARG and stdin, stdout and stderr are that
  --no-tty               PROG gets no terminal of its own
  --changes=FILE         write what was added, changed and deleted in the root and in each tmpfs to FILE at the end,
                         - for stderr
  --report=FILE          write how PROG ended and what it used to FILE, - for stderr
  --print                print the policy, with what it includes and these options, and end
  -v, --verbose          say each step on stderr, and the report unless it goes to a file
  --help                 print this text
  --version              print the version

POLICY is a file, or a name: compile, default, judge, kiss, network, python or
another's. Options add to it and override it. PROG, by default the policy's,
then $SHELL, then /bin/sh, runs in namespaces of its own on a tmpfs that no
path of the host shows. hako-policy waits for it and exits with its status, 128
and the signal's number if a signal ended it, 124 if walltime, memory, pids or
output struck, 125 if the sandbox could not be made, 126 or 127 if PROG cannot
be run. SIZE is in bytes, or ends in K, M or G, powers of 1024.
See hako-policy(5), hako-report(5), namespaces(7).
"""

import os

from hako import build, core, kernel, launch, modes, policy, policy_options, policy_plan, program, registry, sandbox
from hako.failure import SEE_CHECK, Failure, show

DEFAULT = []
MOVES = True


def prepare(args):
    """Read the policy that ARGS name and check what it names; return what runs the rest of the chain as it says."""
    wanted = policy.merge(policy.load(args["POLICY"]), policy_options.from_args(args))
    if args["--print"]:
        print_out(wanted, args)
    if args["PROG"] is None:
        args["PROG"], *args["ARG"] = wanted.cmdline or (os.environ.get("SHELL") or "/bin/sh",)
    terminal = own_terminal(args)
    verbose = say if args["--verbose"] else silent
    verbose(f"policy: {wanted.name}")
    prog = start_of(wanted, args, verbose)
    box = policy_plan.box(wanted)
    core.held = prog.identity.held()
    if not core.moved:
        build.check(box)
        program.environment(prog)
        modes.note()
    records = recorder("-" if args["--report"] is None and args["--verbose"] else args["--report"])
    watcher = watching(args["--changes"], box)
    last = args["PROG"] not in core.COMMANDS
    enlist = registry.lister("hako-policy", core.moved, verbose)
    limited = limiting(wanted, records, enlist)
    confined = confining(wanted, prog.identity.held(), last, verbose)
    watches = []
    steps = [
        lambda: watches.append(watcher(bool(limited))),  # now: behind a limit of output, stderr is not the caller's
        *limited,
        lambda: build_around(wanted, box, prog, watches.pop(), records, bool(limited), terminal, enlist),
        *confined,
        lambda: verbose(f"execute: {show(args['PROG'])}"),
    ]
    return lambda: enter(steps)


def print_out(wanted, args):
    """Print the policy WANTED with what ARGS say that a policy can say, and end."""
    for option in ("--cap-add", "--keep-fd"):
        if args[option]:
            raise Failure(f"{option}: no policy has that to be printed")
    if args["PROG"] is not None:
        wanted.cmdline = [args["PROG"], *args["ARG"]]
    core.print_out(os.fsencode(policy.to_toml(wanted)))


def own_terminal(args):
    """What opens the terminal that PROG gets, one that is not the caller's, or returns None, as ARGS say.

    Without a word of it, a PROG without ARG at a terminal is taken for a shell,
    or the like of it. Any other may be somebody's who ignores ^C, which is to end it.
    """
    if args["--tty"] and args["--no-tty"]:
        raise Failure("--tty and --no-tty: one of them")
    if not args["--tty"] and (args["--no-tty"] or args["ARG"] or core.moved or not os.isatty(0)):
        return lambda: None
    from hako import terminal

    return terminal.prepare() if args["--tty"] else terminal.imply()


def enter(steps):
    """Take the STEPS, functions, one after the other."""
    for step in steps:
        step()


def say(line):
    """Say LINE on stderr."""
    core.say(f"hako-policy: {line}")


def silent(line):
    """Say nothing of LINE."""
    del line


def no_records():
    """No report: somebody else writes it."""


def recorder(path):
    """What opens PATH, the place for the report, and returns the Records; None for no place."""
    if path is None:
        return no_records
    from hako.records import Records

    if not core.moved:
        Records.check(path)
    return lambda: Records(say, path)


def watching(path, box):
    """What makes the fresh.Watch that lists the changes in the Sandbox BOX in PATH, the value of --changes; or None.

    It is told whether a supervisor of limits is to see them.
    """
    if path is None:
        return lambda _: None
    if not box.writable and not any(isinstance(mount, sandbox.Tmpfs) for mount in box.mounts):
        raise Failure("--changes: the root is read-only and there is no tmpfs: nothing is there to be changed")
    from hako import fresh, newfile
    from hako.changes import Listing

    if not core.moved:
        newfile.check("--changes", path)

    def watch(limited):
        made = fresh.Watch(Listing(path), box.mounts)
        if limited:
            made.hand_over()
        return made

    return watch


def start_of(wanted, args, verbose):
    """The program.Program of the policy WANTED and the options ARGS; VERBOSE takes a line of --verbose."""
    return program.Program(
        identity=policy_plan.who(wanted, args["--cap-add"]),
        env=policy.variables(wanted),
        chdir=wanted.cwd or "/",
        keep_fds=[program.descriptor(text) for text in args["--keep-fd"]],
        name=None,
        say=verbose,
    )


def build_around(wanted, box, prog, watch, records, limited, terminal, enlist):
    """Build the Sandbox BOX of the policy WANTED around this process, which is to be PROG.

    WATCH is the fresh.Watch, or None. LIMITED: there is somebody outside who has
    that and the report that RECORDS opens, and sees how this ends. TERMINAL opens
    the terminal.Terminal, or returns None. ENLIST is a registry.lister().
    """
    prog.env = policy.variables(wanted)  # in a chain it is only now the caller's
    records = no_records if limited else records
    if watch and limited:
        watch.take_back()
    launch.enter(box, prog, (None, lambda: watch), records, core.waiting, enlist, repeats=limited, terminal=terminal)


def limiting(wanted, records, enlist):
    """The steps that put PROG under those limits of the policy WANTED that hold for all that it starts.

    RECORDS opens the records.Records; ENLIST is a registry.lister().
    """
    limits = policy_plan.shared_limits(wanted)
    if limits is None:
        return []
    from hako import cgroup

    if not core.moved:
        cgroup.hasten(limits.needed())
    from hako import limit

    output = None
    if limits.output is not None:
        from hako import output
    return [lambda: limit.enter(limits, records(), output, core.waiting, say, enlist)]


def confining(wanted, held, last, verbose):
    """The steps that restrict PROG, inside: resource limits, Landlock, system calls.

    HELD are the numbers of its capabilities. LAST: PROG comes next.
    """
    steps, domain, filtered = [], restricting(wanted), filtering(wanted, held, last)
    if domain is not None:
        steps.append(domain.make)  # before there is a limit of descriptors or memory
    steps += limiting_each(wanted, verbose)
    if domain is not None:
        steps += [domain.enforce, lambda: verbose(f"landlock: {told(domain.rules)}")]
    if filtered is not None:
        rules = wanted.seccomp if isinstance(wanted.seccomp, str) else "the policy's syscalls"
        steps += [filtered, lambda: verbose(f"seccomp: {show(rules)}")]
    if domain is not None and domain.rules.paths is not None and last:
        steps.append(explain)
    return steps


def limiting_each(wanted, verbose):
    """The steps that set those limits of the policy WANTED that hold for each process."""
    limits = policy_plan.own_limits(wanted)
    if not limits:
        return []
    from hako import rlimits

    line = " ".join(f"{name} {soft}" for name, (soft, _) in limits.items())
    return [lambda: verbose(f"limits: {line}"), lambda: rlimits.enter(limits)]


def restricting(wanted):
    """The landlock.Domain of the policy WANTED, None if it has none; its paths mean what they mean inside."""
    restriction = policy_plan.restriction(wanted)
    if restriction is None:
        return None
    from hako import landlock

    rules = landlock.Rules(*restriction)
    abi = kernel.landlock_abi()
    lack = landlock.lacking(rules, abi)
    if lack:
        raise Failure(f"{landlock.complaint(lack, abi)} [{SEE_CHECK}]")
    return landlock.Domain(rules, abi)


def told(rules):
    """The landlock.Rules RULES, for people."""
    words = [f"{access}={show(path)}" for access, path in rules.paths or ()]
    words += ["fs=none"] if rules.paths == [] else []
    words += [f"{right}={port}" for right, port in rules.ports or ()]
    words += ["tcp=none"] if rules.ports == [] else []
    return " ".join((*words, *(f"scope={scope}" for scope in rules.scopes)))


def explain():
    """Have it explained, should the exec of PROG fail by Landlock."""
    from hako import landlock  # imported already, by restricting()

    core.execute = landlock.explained(core.execute, "see landlock in the policy")


def filtering(wanted, held, last):
    """The step that loads the filter of the policy WANTED, None if it has none. HELD, LAST: see above."""
    code = policy.filter_program(wanted, held)
    if code is None:
        return None
    from hako import start

    secret = kernel.Secret()
    code = start.let_through(code, secret)

    def load():
        core.execute = start.enforce(code, secret, last, core.execute)

    return load
