"""hako-check - try what hako needs of Linux, and say what works here

Usage:
  hako-check [--json] [--deadline=SECONDS]
  hako-check --clean [--json] [DIR]
  hako-check (--help | --version)

Options:
  --json              print one line of JSON for programs, not a table
  --deadline=SECONDS  for each feature, fractions allowed [default: 30]
  --clean             remove what killed commands left: cgroups and, in DIR, temporary files and work directories
  --help              print this text
  --version           print the version

Each feature of Linux is tried for real, by a process of its own, as the user
who asks. What does not work is told with the reason, and with what to do about
it. Exit status: 0 if hako-run, hako-policy and hako-limit can do here, for this
user, all that they can do anywhere; 1 if one of them cannot; 125 if hako-check
itself failed. With --clean it is 1 if something could not be removed.
See hako-run(1), hako-policy(1), hako-limit(1).
"""

import os

from hako import core, group, json, newfile, overlay, probe, values
from hako.failure import Failure, call, show

DEFAULT = []
JUDGED = ("hako-run", "hako-policy", "hako-limit")  # by the exit status
WORDS = {True: "yes", False: "no", None: "-"}
HEAD = ("FEATURE", "WORKS", "DETAILS, OR WHY NOT AND WHAT TO DO")


def prepare(args):
    """Check ARGS; return what looks, or cleans, where the chain has led."""
    if args["--clean"]:
        return lambda: clean(args["DIR"], args["--json"])
    seconds = values.seconds("--deadline", args["--deadline"])
    probe.load()
    return lambda: look(seconds, args["--json"])


def begin():
    """Be what the chain ends in: to those that wait, PROG runs."""
    for fd in core.waiting:
        os.close(fd)
    core.waiting.clear()


def finish(text, status):
    """Print TEXT, end with STATUS."""
    core.write_all(1, os.fsencode(text), "stdout")
    os._exit(status)


def look(seconds, for_programs):
    """Tell what each feature does, with so many SECONDS for each: in JSON FOR_PROGRAMS, or in a table."""
    begin()
    findings = list(probe.look(seconds))
    commands = judge(findings)
    text = told(findings, commands) if for_programs else table(findings, commands)
    finish(text, 0 if all(not commands[name] for name in JUDGED) else 1)


def judge(findings):
    """By command, the names of those features among FINDINGS that do not work and that it needs."""
    commands = {name: [] for finding in findings for name in finding.feature.commands}
    for finding in findings:
        for name in finding.feature.commands:
            if not finding.works:
                commands[name].append(finding.feature.name)
    return commands


def table(findings, commands):
    """FINDINGS, and what COMMANDS lack, for people."""
    rows = [HEAD]
    for finding in findings:
        name = finding.feature.name
        rows.append((name, WORDS[finding.works], finding.detail if finding.works else finding.why))
        if finding.works is False:
            rows.append(("", "", f"  {finding.advice}"))
    rows += [("", "", ""), ("COMMAND", "WORKS", "WITHOUT")]
    rows += [(name, WORDS[not lacks], " ".join(lacks)) for name, lacks in sorted(commands.items())]
    width = max(len(row[0]) for row in rows)
    return "".join(f"{name:{width}}  {works:5}  {text}".rstrip() + "\n" for name, works, text in rows)


def told(findings, commands):
    """FINDINGS, and what COMMANDS lack, as a line of JSON."""
    features = {
        finding.feature.name: {
            "works": finding.works,
            "detail": finding.detail,
            "why": finding.why,
            "cause": finding.cause,
            "advice": finding.advice,
            "commands": finding.feature.commands,
        }
        for finding in findings
    }
    verdicts = {name: {"works": not lacks, "lacks": lacks} for name, lacks in commands.items()}
    system = {"release": os.uname().release, "machine": os.uname().machine, "uid": os.geteuid()}
    return json.line({**system, "features": features, "commands": verdicts}).decode()


def clean(directory, for_programs):
    """Remove what was left in cgroups and, unless it is None, in DIRECTORY; tell it, in JSON FOR_PROGRAMS."""
    begin()
    removed, left = clean_cgroups()
    if directory is not None:
        with call(f"open {show(directory)}"):
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for name in (*newfile.clean(fd), *overlay.clean(fd)):
            removed.append(os.path.join(directory, name))
    lines = [f"removed {show(path)}\n" for path in removed] + [f"not removed {show(path)}\n" for path in left]
    text = json.line({"removed": removed, "left": left}).decode() if for_programs else "".join(lines)
    finish(text, 1 if left else 0)


def clean_cgroups():
    """Remove the cgroups that were left anywhere; return the directories that are gone, and those that are not."""
    removed, left = [], []
    for name, where in sorted(group.leftovers().items()):
        try:
            gone = group.remove_left(name, where)
        except Failure:
            gone = False
        if gone is not None:
            paths = [os.path.join(place, name) for place in where.values()]
            (removed if gone else left).extend(paths)
    return removed, left
