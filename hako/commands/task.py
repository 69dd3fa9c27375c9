"""hako-task - run what JSON requests ask for in sandboxes, and answer in JSON

Usage:
  hako-task [options]
  hako-task (--help | --version)

Options:
  --stream          many requests, one a line, answered one a line, as they end
  --ordered         with --stream: answered in the order of the requests
  --jobs=N          with --stream or --listen: how many run at once; else as many as there are CPUs
  --listen=SOCKET   as --stream, for everybody of the caller's uid who connects to the Unix socket SOCKET, which is
                    made, mode 0600; systemd for the socket that it passes on
  --dask=ADDRESS    with --stream: have the workers of a Dask cluster run them; needs distributed
  --progress        with --stream: say on a terminal how far it is
  --help            print this text
  --version         print the version

Without an option one request is read from stdin, to its end, and its response
written to stdout, one line. What they are says hako-task(5): the language is
that of the sandals tool. Exit status: 0 if there was a task, however it ended,
1 if there was none, because its request is invalid, or something outside of its
sandbox failed; with --stream and --listen 0; 125 if hako-task itself failed, 128
and the signal's number if INT, TERM, HUP or QUIT ended it, and all its tasks.
See hako-task(5), hako-limit(1), hako-policy(1), namespaces(7).
"""

import os

from hako import values
from hako.failure import Failure

DEFAULT = []
MOST_JOBS = 1000


def prepare(args):
    """Return what answers the requests that ARGS mean."""
    stream, listen = args["--stream"], args["--listen"]
    if stream and listen is not None:
        raise Failure("--stream and --listen: one of them")
    for option in ("--ordered", "--dask", "--progress"):
        if args[option] and not stream:
            raise Failure(f"{option}: needs --stream")
    if args["--jobs"] is not None and not (stream or listen is not None):
        raise Failure("--jobs: needs --stream or --listen")
    jobs = number_of_jobs(args["--jobs"])
    if args["--dask"] is not None:
        from hako import grid

        return grid.prepare(args["--dask"], args["--ordered"], args["--progress"], args["--jobs"] and jobs)
    from hako import server

    if stream:
        return server.stream(jobs, args["--ordered"], args["--progress"])
    return server.single() if listen is None else server.listen(listen, jobs)


def number_of_jobs(text):
    """How many tasks run at once, by TEXT, the value of --jobs."""
    if text is None:
        return len(os.sched_getaffinity(0))
    count = values.whole("--jobs", text)
    if not 1 <= count <= MOST_JOBS:
        raise Failure(f"--jobs: not from 1 to {MOST_JOBS}: {text!r}")
    return count
