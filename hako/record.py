"""What hako-limit --usage has written, read back: samples of use, and the limits. See hako-limit(1)."""

from hako import json
from hako.failure import Failure

FIGURES = ("memory", "cpu", "pids", "io_read", "io_write")
LIMITS = ("memory", "pids", "cpu", "time", "cpu_time", "output")


class Record:
    """A record of use.

    samples  [{"time": seconds, FIGURES: number or None}], at least two
    limits   {LIMITS: number or None}
    struck   (seconds, which of the limits it was, a status of hako-report(5)), or None
    """

    __slots__ = ("limits", "samples", "struck")

    def __init__(self, samples, limits, struck):
        self.samples, self.limits, self.struck = samples, limits, struck

    def series(self, figure):
        """The FIGURE of each sample that has it: times and values; empty if none has."""
        found = [(sample["time"], sample[figure]) for sample in self.samples if sample[figure] is not None]
        return [time for time, _ in found], [value for _, value in found]

    def rates(self, figure):
        """How fast FIGURE grew from each sample to the next, a second: times, one more than rates, and rates.

        Samples that follow each other at once are taken together.
        """
        times, values = self.series(figure)
        least = (times[-1] - times[0]) / 1000 if times else 0
        edges, rates, last = times[:1], [], values[0] if values else 0
        for time, value in zip(times[1:], values[1:], strict=True):
            if time - edges[-1] > least:
                rates.append((value - last) / (time - edges[-1]))
                edges.append(time)
                last = value
        return edges, rates


def read(data, name):
    """The Record of DATA, the bytes of the file NAME. The last line may be half written: PROG still runs."""
    lines = data.split(b"\n")[:-1]
    if len(lines) < 2:
        raise Failure(f"{name}: not two lines of use in it yet [hako-limit --usage writes them]")
    samples, struck = [], None
    for number, line in enumerate(lines, 1):
        try:
            values = json.read(line)
        except ValueError as err:
            raise Failure(f"{name}:{number}: not a line of JSON") from err
        if not isinstance(values, dict) or not is_sample(values):
            raise Failure(f"{name}:{number}: not a line of hako-limit --usage")
        if number == 1:
            limits = values.get("limits")
        if isinstance(values.get("limit"), str):
            struck = values["time"], values["limit"]
        samples.append({key: values[key] for key in ("time", *FIGURES)})
    if not isinstance(limits, dict) or not all(is_number(limits.get(key)) for key in LIMITS):
        raise Failure(f"{name}:1: no limits in the first line")
    return Record(samples, {key: limits[key] for key in LIMITS}, struck)


def is_sample(values):
    """Whether VALUES, an object, has all figures of a sample."""
    time = values.get("time")
    return time is not None and is_number(time) and all(key in values and is_number(values[key]) for key in FIGURES)


def is_number(value):
    """Whether VALUE is a number, not less than 0 and not infinite, or None."""
    if value is None:
        return True
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1e300
