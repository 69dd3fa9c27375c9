"""dask_grader.py - grade many submissions on a Dask cluster, each in a sandbox of its own, and count the verdicts

Usage: dask_grader.py [--count=10000] [--scheduler=tcp://scheduler:8786]

It needs distributed: pip install distributed

Each worker of the cluster has hako installed, and starts its sandboxes through
a process that it started once. Should a worker of the cluster be lost, Dask
gives what it was at to another.
"""

import argparse
import collections
import itertools
import sys

import hako

# Programs for the one exercise: print the sum of the numbers that stand on stdin.
SUBMISSIONS = {
    "accepted": "s=0; while read n; do s=$((s + n)); done; echo $s",
    "wrong answer": "read n; echo $n",
    "runtime error": "kill -SEGV $$",
    "time limit": "while :; do :; done",
    "output limit": "while echo 0123456789; do :; done",
}
QUESTION, ANSWER = b"1\n20\n300\n", b"321\n"
VERDICTS = {"timeLimit": "time limit", "cpuTimeLimit": "time limit", "outputLimit": "output limit"}
BOX = hako.Sandbox(time=2, cpu_time=0.5, output="64K", rlimits={"fsize": "1M", "nofile": 64})


def grade(source):
    """The verdict on SOURCE, a program for sh. It runs on a worker of the cluster."""
    result = BOX.run(["sh", "-c", source], input=QUESTION)
    if result.status == "internalError":
        raise hako.Failure(result.reason)  # the grader's fault, not the program's: Dask tries again
    if result.ok:
        return "accepted" if result.stdout == ANSWER else "wrong answer"
    return VERDICTS.get(result.status, "runtime error")


def submissions(count):
    """COUNT programs, most of them right."""
    kinds = [*["accepted"] * 16, *SUBMISSIONS]
    for kind in itertools.islice(itertools.cycle(kinds), count):
        yield SUBMISSIONS[kind]


def grade_all(client, programs):
    """The Counter of the verdicts on PROGRAMS, of which no more are with the cluster of CLIENT than keep it busy."""
    from distributed import as_completed

    room = 4 * sum(client.nthreads().values())
    programs = iter(programs)

    def some(count):
        return client.map(grade, list(itertools.islice(programs, count)), pure=False, retries=3)

    verdicts = collections.Counter()
    running = as_completed(some(room), with_results=True)
    for batch in running.batches():
        verdicts.update(verdict for _, verdict in batch)
        running.update(some(len(batch)))
    return verdicts


def main():
    """Grade, and print the verdicts."""
    from distributed import Client, LocalCluster

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=10000, help="how many submissions")
    parser.add_argument("--scheduler", help="address of a Dask scheduler; else a cluster on this machine")
    args = parser.parse_args()
    where = args.scheduler or LocalCluster(dashboard_address=":0")
    with Client(where) as client:
        verdicts = grade_all(client, submissions(args.count))
    for verdict, count in sorted(verdicts.items()):
        print(f"{verdict}: {count}")
    if args.scheduler is None:
        where.close()
    return 0 if sum(verdicts.values()) == args.count else 1


if __name__ == "__main__":
    sys.exit(main())
