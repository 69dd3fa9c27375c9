"""landlock-exec - restrict files and TCP ports by Landlock, then become PROG

Usage:
  landlock-exec [options] [--ro=PATH]... [--rw=PATH]... [--rx=PATH]... [--rwx=PATH]...
                [--bind-tcp=PORT]... [--connect-tcp=PORT]... [--scope=NAME]... [--] PROG [ARG...]
  landlock-exec (--help | --version)

Options:
  --ro=PATH            allow reading files and listing directories at and beneath PATH, repeatable
  --rw=PATH            allow that, writing, making, removing and renaming, not executing, repeatable
  --rx=PATH            allow reading, listing and executing, repeatable
  --rwx=PATH           allow all of that, repeatable
  --ldd                allow what PROG needs to start: itself, its interpreter, its shared libraries
  --fs=none            restrict files; what no other option allows fails with EACCES
  --bind-tcp=PORT      allow binding TCP sockets to PORT, repeatable; 0 is a port that the kernel chooses
  --connect-tcp=PORT   allow connecting TCP sockets to PORT, repeatable
  --tcp=none           restrict TCP; what no other option allows fails with EACCES
  --scope=NAME         abstract-unix or signal, repeatable: to such a socket, or process, outside fails with EPERM
  --best-effort        do without what this kernel lacks, and say so on stderr
  --help               print this text
  --version            print the version

Files, and TCP, are restricted if an option names them, each for itself. Then
all that no option allows is denied, to PROG and to all that it starts, for
good. What is open already stays open. What options need and this kernel's
Landlock lacks is an error, unless --best-effort is given. Exit status: 125 if
PROG cannot be restricted, 126 or 127 if it cannot be run, else PROG's.
See landlock(7), hako-chain(7).
"""

import os

from hako import core, kernel, landlock, values
from hako.failure import SEE_CHECK, Failure, show

DEFAULT = []


def prepare(args):
    """Check ARGS and make the ruleset that they mean; return what puts it in force."""
    rules = describe(args)
    abi = kernel.landlock_abi()
    lack = landlock.lacking(rules, abi)
    if lack and not args["--best-effort"]:
        raise Failure(f"{landlock.complaint(lack, abi)} [PROG can run without, with --best-effort; {SEE_CHECK}]")
    domain = landlock.Domain(rules, abi)
    last = args["PROG"] not in core.COMMANDS
    more = needs() if args["--ldd"] else None
    later = core.moved or (more is not None and not last)
    if not later:
        make(domain, more, args["PROG"])
    line = f"landlock-exec: {landlock.complaint(lack, abi)}: PROG runs without" if lack else None
    return lambda: enter(domain, later, more, line, last)


def make(domain, more, prog):
    """Make the ruleset of DOMAIN, with the paths that MORE, if it is not None, returns for PROG."""
    domain.make(more(prog) if more else ())


def describe(args):
    """The landlock.Rules that ARGS mean."""
    none = {name: whether(f"--{name}", args[f"--{name}"]) for name in ("fs", "tcp")}
    paths = [(access, path) for access in landlock.ACCESS for path in args[f"--{access}"]]
    ports = [("bind_tcp", port("--bind-tcp", text)) for text in args["--bind-tcp"]]
    ports += [("connect_tcp", port("--connect-tcp", text)) for text in args["--connect-tcp"]]
    for name in args["--scope"]:
        if name not in landlock.SCOPES:
            raise Failure(f"--scope: not {' or '.join(landlock.SCOPES)}: {name!r}")
    rules = landlock.Rules(
        paths=paths if paths or none["fs"] or args["--ldd"] else None,
        ports=ports if ports or none["tcp"] else None,
        scopes=args["--scope"],
    )
    if not landlock.asked(rules):
        raise Failure("nothing is restricted [say what is allowed, or --fs=none, --tcp=none, --scope]")
    return rules


def whether(option, text):
    """Whether OPTION is given: TEXT is "none" or nothing at all."""
    if text not in (None, "none"):
        raise Failure(f"{option}: not none: {text!r}")
    return text is not None


def port(option, text):
    """TEXT, the value of OPTION, as a TCP port."""
    number = values.whole(option, text, 2**16 - 1)
    if number == 0 and option == "--connect-tcp":
        raise Failure(f"{option}: nothing listens at port 0: {text!r}")
    return number


def needs():
    """A function that returns what the PROG of the chain needs to start, as paths of landlock.Rules.

    Where other links come between, that is known only when the chain is prepared.
    """
    from hako import elf

    moved = core.moved

    def found(name):
        if core.moved and not moved:
            raise Failure(f"--ldd: {show(name)} is in another root than this")
        path = find(name)
        return [(access, place) for place, access in elf.needs(path, os.environ, find).items()] if path else []

    return found


def find(name):
    """The path of the program NAME, as core.become() would execute it; None if that will fail."""
    return next(filter(landlock.executable, core.places(name)), None)


def enter(domain, later, more, line, last):
    """Put DOMAIN in force, which is made only here if LATER says so, with MORE.

    LINE tells what it lacks, if anything. LAST: PROG comes next.
    """
    if later:
        make(domain, more, core.prog[0])
    if line is not None:
        core.say(line)
    domain.enforce()
    if last and domain.rules.paths is not None:
        core.execute = landlock.explained(core.execute, "see --ldd")
