"""hako-run - run PROG in new namespaces, with a prepared directory as its root

Usage:
  hako-run [options] [--mount=SPEC]... [--tmpfs=SPEC]... [--env=SPEC]...
           [--cap-add=CAP]... [--keep-fd=N]... TARGET [--] [PROG [ARG...]]
  hako-run (--help | --version)

Options:
  -m, --mount=SPEC     SRC:DST[:FLAGS], repeatable: show the caller's SRC at DST;
                       FLAGS: a comma list of ro rw norec dev noexec optional
  -W, --writable       the root may be written; else it is read-only
  --overlay=UPPER      the root may be written, TARGET is not: changes go to the directory UPPER,
                       or to tmpfs[:SIZE] and are forgotten
  --changes=FILE       with --overlay, write what was added, changed and deleted to FILE at the end, - for stderr
  --tmpfs=SPEC         DST[:SIZE], repeatable: an empty tmpfs at DST
  --proc               a fresh /proc, what tunes the kernel or tells of the host covered
  --dev                a minimal /dev
  --setup=FILE         host program to run before the pivot, the new root its current directory
  -N, --network=NET    none, host, the file of a network namespace, or pasta[:ARGS], what pasta does [default: none]
  -H, --hostname=NAME  host name in the sandbox; else the host's
  --userns=MODE        a user namespace: auto (when the caller lacks CAP_SYS_ADMIN), always or never [default: auto]
  --map=MODE           ids of the user namespace: self, PROG's alone, or subid, the caller's as 0 and behind it
                       those of /etc/subuid and /etc/subgid [default: self]
  -p, --pid-file=FILE  write the host pid of the sandbox's PID 1 there while PROG runs
  --as-pid-1           PROG itself is PID 1, not a small init
  --tty                PROG gets a terminal of its own, with job control, in the place of the caller's
  --report=FILE        write how PROG ended and what it used to FILE, - for stderr
  -e, --env=SPEC       NAME=VALUE, or NAME for the caller's value, repeatable; else the environment is empty
  -u, --user=USER      run PROG as USER, a name or number of the host
  -g, --group=GROUP    run PROG with GROUP, a name or number; else the primary group of USER
  -c, --chdir=DIR      current directory of PROG, inside the sandbox [default: /]
  --cap-add=CAP        capability that PROG keeps, repeatable; all for every one; else it has none
  --keep-fd=N          descriptor that PROG keeps, repeatable; else only 0, 1 and 2
  -v, --verbose        say each step on stderr
  --help               print this text
  --version            print the version

TARGET is a directory that contains the directory .hako. PROG, by default
/sbin/init as PID 1, runs with TARGET as its root in mount, pid, network, ipc,
uts and cgroup namespaces of its own. hako-run waits for it and exits with its
status, 128 and the signal's number if a signal ended it, 125 if the sandbox
could not be made, 126 or 127 if PROG cannot be run.
See namespaces(7), pivot_root(2), hako-chain(7).
"""

import os

from hako import build, core, launch, modes, newfile, program, registry, sandbox
from hako.failure import Failure

DEFAULT = ["/sbin/init"]
MOVES = True


def prepare(args):
    """Check ARGS and what they name; return what runs the rest of the chain in a sandbox."""
    prog = program.from_args(args, DEFAULT, say)
    box = describe(args)
    core.held = prog.identity.held()
    listing = overlaid(box, args["--changes"])
    box.ids = id_maps(args["--map"], box.userns, prog.identity)
    if not core.moved:
        build.check(box)
        program.environment(prog)
        if args["--pid-file"] is not None:
            newfile.PidFile(args["--pid-file"]).close()
        modes.note()
    records = recorder(args["--report"])
    terminal = own_terminal() if args["--tty"] else lambda: None
    files = args["--pid-file"], listing
    enlist = registry.lister("hako-run", core.moved, prog.say)
    return lambda: launch.enter(box, prog, files, records, core.waiting, enlist, terminal=terminal)


def recorder(path):
    """What opens PATH, the value of --report, and returns the Records; None for no file."""
    if path is None:
        return lambda: None
    from hako.records import Records

    if not core.moved:
        Records.check(path)
    return lambda: Records(say, path)


def own_terminal():
    """What opens the terminal that PROG gets, one that is not the caller's."""
    from hako import terminal

    return terminal.prepare()


def say(line):
    """Say LINE on stderr."""
    core.say(f"hako-run: {line}")


def overlaid(box, path):
    """Load what the overlay of BOX needs; refuse early what it cannot do.

    Return what opens the changes.Listing PATH, the value of --changes; None for no list.
    """
    if box.overlay is None:
        if path is not None:
            raise Failure("--changes: only with --overlay is there anything to list")
        return no_list
    from hako import overlay

    if path is not None:
        from hako.changes import Listing
    if not core.moved:
        layers = overlay.Layers(box, False, build.open_target(box.target))
        if path is not None:
            listing = Listing(path)
            listing.refuse_in(layers)
            listing.close()
        layers.close()
    return no_list if path is None else lambda: Listing(path)


def no_list():
    """No changes are listed."""


def id_maps(mode, userns, who):
    """The identity.IdMaps that MODE, the value of --map, means for PROG as WHO; None for the usual ones."""
    if mode == "self":
        return None
    if mode != "subid":
        raise Failure(f"--map: neither self nor subid: {mode!r}")
    if userns == "never":
        raise Failure("--map=subid: needs a user namespace, and --userns=never forbids it")
    if core.moved:
        raise Failure("--map=subid: only outside of every sandbox: what it reads is the host's")
    from hako import subids

    who.clear_groups = True  # which are the caller's: PROG is to have the ids of the map alone
    return subids.id_maps(who)


def describe(args):
    """The Sandbox that ARGS mean."""
    if args["--hostname"] is not None and not 0 < len(os.fsencode(args["--hostname"])) <= 64:
        raise Failure(f"--hostname: not of 1 to 64 bytes: {args['--hostname']!r}")
    if args["--userns"] not in sandbox.USERNS_MODES:
        raise Failure(f"--userns: not auto, always or never: {args['--userns']!r}")
    if args["--setup"] == "":
        raise Failure("--setup: not a file: ''")
    if not args["--network"]:
        raise Failure("--network: neither none, host nor a file: ''")
    network, words = pasta(args["--network"])
    return sandbox.Sandbox(
        target=args["TARGET"],
        mounts=mounts(args),
        writable=args["--writable"],
        overlay=None if args["--overlay"] is None else sandbox.overlay("--overlay", args["--overlay"]),
        setup=args["--setup"],
        network=network,
        pasta=words,
        hostname=args["--hostname"],
        userns=args["--userns"],
        ids=None,
        as_pid_1=args["--as-pid-1"] or args["PROG"] is None,
    )


def pasta(network):
    """NETWORK, the value of --network, without arguments for pasta, and those, as a list."""
    name, _, text = network.partition(":")
    if name != "pasta":
        return network, []
    from hako import outside
    from hako.pasta import PACKAGE, arguments

    outside.find(name, PACKAGE)
    return name, arguments(text)


def mounts(args):
    """The mounts that ARGS mean, parents first; those of --mount win over the rest."""
    own = [sandbox.Proc()] * args["--proc"] + [sandbox.Dev()] * args["--dev"]
    taken = {sandbox.steps(mount.dst) for mount in own}
    fresh = [sandbox.tmpfs("--tmpfs", spec) for spec in args["--tmpfs"]]
    for mount in fresh:
        if sandbox.steps(mount.dst) in taken:
            raise Failure(f"--tmpfs: {mount.dst} is made by --{sandbox.steps(mount.dst)[0]}")
    return sandbox.ordered([*own, *fresh, *(sandbox.bind("--mount", spec) for spec in args["--mount"])])
