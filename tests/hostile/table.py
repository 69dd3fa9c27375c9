"""Prints, in Markdown, how the attacks go in hako and in other tools, all in one run. Called by `make hostile-table`.

To be run as root, which attacks as itself and as an ordinary user; "reached" means
that both got what they were after.
"""

import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from conftest import Cgroups
from hako import __version__
from hostile import probes, ways

COLUMNS = {  # title: (the program that has to be there, the way; None for none)
    "nothing": ("true", None),
    "hako-run": ("hako-run", ways.run()),
    "hako-policy": ("hako-policy", ways.policy()),
    **{name: (name, way) for name, way in ways.OTHERS.items()},
}
WHOSE = ("root", "user")
SIGNS = {frozenset(): "-", frozenset(("root",)): "root", frozenset(("user",)): "user", frozenset(WHOSE): "reached"}


def attempts(site, way):
    """The names of all attacks that reach anything on SITE in WAY."""
    names = [name for name in probes.ATTACKS if name not in probes.SPECIAL]
    found = probes.reached(site.attack(way, [*names, "surroundings"]))
    if "surroundings" not in found:
        sys.exit(f"table: what is attacked is not there: {way}")
    found |= probes.reached(site.attack(way, probes.TERMINAL, terminal="controlling"))
    return found | probes.reached(site.attack(way, ["take-over"], terminal="strange")) | limits(site, way)


def limits(site, way):
    """Whether a limit can be raised from inside: that of hako-limit, or for other tools of the cgroup around them."""
    site.who.cgroups = cgroups = Cgroups()
    try:
        if way in (COLUMNS["hako-run"][1], COLUMNS["hako-policy"][1]):
            return probes.reached(
                site.attack(lambda site, argv: ["hako-limit", "--pids=64", *way(site, argv)], ["limits"])
            )
        site.who.cgroups = None
        return probes.reached(in_limited_cgroup(site, way, cgroups))
    finally:
        site.who.cgroups = None
        cgroups.remove()


def in_limited_cgroup(site, way, cgroups):
    """What comes of the attack in WAY, in a cgroup of the user's that has a limit."""
    top = next(top for top in cgroups.tops if (top / "pids.max").exists())
    place = top / "leaf-limited"
    place.mkdir()
    (place / "pids.max").write_text("64")
    for path in (place, place / "cgroup.procs", place / "pids.max"):
        os.chown(path, site.who.uid, -1)
    before = site.who.prefix
    site.who.prefix = ["sh", "-c", 'echo $$ > "$0/cgroup.procs"; exec "$@"', str(place), *before]
    try:
        return site.attack(way, ["limits"])
    finally:
        site.who.prefix = before


def version(program):
    """What PROGRAM says of its version."""
    if program == "true":
        return None
    if program.startswith("hako"):
        return f"hako {__version__}"
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    words = (done.stdout or done.stderr).splitlines()[0].split()
    return f"{program} {words[-1]}"


def main():
    """Attack, and print what came of it."""
    if os.getuid() != 0:
        sys.exit("table: root is needed, to prepare what is attacked")
    directory = pathlib.Path(tempfile.mkdtemp(prefix="hako-probe-"))
    directory.chmod(0o755)
    there = {
        title: column for title, column in COLUMNS.items() if shutil.which(column[0], path=ways.Who("root").env["PATH"])
    }
    try:
        probe = ways.compile_probe(directory)
        reached = {}
        for whose in WHOSE:
            site = ways.Site(ways.somebody(whose), probe)
            try:
                for title, (_, way) in there.items():
                    reached[title, whose] = attempts(site, way)
            finally:
                site.close()
    finally:
        shutil.rmtree(directory)
    print_table(there, reached)


def print_table(there, reached):
    """Print the table: a line an attack, a column for each of THERE."""
    print("| what PROG tries | " + " | ".join(there) + " |")
    print("|---|" + "---|" * len(there))
    lacking = []
    for name, (letter, words, _) in probes.ATTACKS.items():
        cells = [SIGNS[frozenset(whose for whose in WHOSE if name in reached[title, whose])] for title in there]
        if cells[0] == "-":
            lacking.append(words)
            continue
        print(f"| {letter}: {words} | " + " | ".join(cells) + " |")
    versions = dict.fromkeys(filter(None, (version(program) for program, _ in there.values())))
    print(f"\nLinux {platform.release()}, {', '.join(versions)}.")
    if lacking:
        print(f"Not to be had on this kernel, in a sandbox or not: {'; '.join(lacking)}.")


main()
