"""hako-ps - list the sandboxes that run here

Usage:
  hako-ps [options]
  hako-ps (--help | --version)

Options:
  --json     print a line of JSON for each, with its limits
  --help     print this text
  --version  print the version

Listed is what hako-run, hako-policy and hako-limit have started for this user
and wait for: the pid that hako-enter takes, - where there is nothing to enter;
the pid of the supervisor, with which all ends; the time since the start, in
hours, minutes and seconds; and the command line. hako-limit and the hako-run
behind it are one. So is listed hako-task, and each worker of a program that
uses hako(3), with how many tasks it runs and has run, and below it each task
that has run for a second. Exit status: 125 if the list cannot be printed, else 0.
See hako-top(1), hako-enter(1), hako-task(1), hako(3).
"""

import os

from hako import core, json, sandboxes

HEAD = f"{'PID':>7}  {'SUPERVISOR':>10}  {'AGE':>8}  COMMAND"


def prepare(args):
    """What prints the list, as ARGS say."""
    return lambda: core.print_out(lines(sandboxes.found()) if args["--json"] else table(sandboxes.found()))


def lines(listed):
    """A line of JSON for each of LISTED."""
    return b"".join(json.line(sandbox.told()) for sandbox in listed)


def table(listed):
    """A line for people for each of LISTED."""
    rows = [
        f"{'-' if one.pid is None else one.pid:>7}  {one.supervisor:>10}  {sandboxes.clock(one.age):>8}  {one.shown()}"
        for one in listed
    ]
    return os.fsencode("\n".join((HEAD, *rows, "")))
