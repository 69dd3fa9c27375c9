"""A picture of a record.Record: what was used over time, the limits, and the moment at which one struck."""

import io

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, LIMIT, STRUCK = "#1f5a94", "#8a6d00", "#b3261e"
WIDTH, PANEL = 7.5, 1.7  # inches
SIZES = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("bytes", 1))
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#777777",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "svg.hashsalt": "hako",  # the same picture of the same record
    "svg.fonttype": "none",
}


def draw(record, title, form):
    """The picture of RECORD under TITLE, bytes in the FORM svg or png."""
    panels = [panel for panel in (memory, cpu, cpu_time, pids, disk) if panel(record, None)]
    with rc_context(STYLE):
        height = PANEL * len(panels) + 0.9
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, parse_math=False)
        last = record.samples[-1]["time"]
        axes[-1].set_xlabel("seconds since the start")
        axes[-1].set_xlim(0, last * 1.02 or 1)
        for panel, one in zip(panels, axes, strict=True):
            panel(record, one)
            one.set_ylim(bottom=0)
            mark_time(record, one, one is axes[0])
        picture = io.BytesIO()
        metadata = {"Date": None} if form == "svg" else {}
        figure.savefig(picture, format=form, dpi=150, metadata=metadata)
    return picture.getvalue()


def mark_time(record, axes, first):
    """Draw in AXES, the FIRST ones or others, the limit of time and the moment at which a limit struck."""
    limit, last = record.limits["time"], record.samples[-1]["time"]
    if limit is not None and limit <= last * 1.02 and record.struck is None:
        axes.axvline(limit, color=LIMIT, linestyle="--", linewidth=1)
        if first:
            label_above(axes, limit, f"time: {limit:g} s", LIMIT)
    if record.struck is not None:
        axes.axvline(record.struck[0], color=STRUCK, linewidth=1.3)
        if first:
            label_above(axes, record.struck[0], f"{record.struck[1]} at {record.struck[0]:.2f} s", STRUCK)


def label_above(axes, time, text, color):
    """Write TEXT in COLOR above AXES at TIME, to the side where there is room."""
    late = time > axes.get_xlim()[1] / 2
    axes.annotate(
        text,
        (time, 1),
        xycoords=("data", "axes fraction"),
        xytext=(2 if late else -2, 3),
        textcoords="offset points",
        ha="right" if late else "left",
        color=color,
        weight="bold",
        annotation_clip=False,
    )


def mark_limit(axes, value, text):
    """Draw the limit VALUE, called TEXT, in AXES; only say it where it would press all else to the ground."""
    top = axes.get_ylim()[1]
    if value <= 4 * top:
        axes.axhline(value, color=LIMIT, linestyle="--", linewidth=1)
        axes.set_ylim(top=max(top, value * 1.22))
        place = {"xy": (0, value), "xycoords": ("axes fraction", "data"), "va": "bottom"}
    else:
        place = {"xy": (0, 1), "xycoords": "axes fraction", "va": "top"}
    axes.annotate(text, **place, xytext=(4, 2), textcoords="offset points", color=LIMIT)


def memory(record, axes):
    """Whether there is memory to be drawn; draw it in AXES."""
    times, values = record.series("memory")
    if axes is not None:
        limit = record.limits["memory"]
        name, unit = size(max(*values, limit if limit and limit <= 4 * max(values) else 0))
        area(axes, times, [value / unit for value in values])
        axes.set_ylabel(f"memory, {name}")
        if limit is not None:
            mark_limit(axes, limit / unit, f"limit: {told(limit)}")
    return bool(values)


def cpu(record, axes):
    """Whether there is a rate of CPU time to be drawn; draw it in AXES."""
    edges, rates = record.rates("cpu")
    if axes is not None:
        axes.stairs([rate * 100 for rate in rates], edges, color=INK, fill=True, alpha=0.25)
        axes.stairs([rate * 100 for rate in rates], edges, color=INK, linewidth=1.2)
        axes.set_ylabel("CPU, % of a core")
        axes.set_ylim(top=max(max(rates) * 115, 10))
        if record.limits["cpu"] is not None:
            mark_limit(axes, record.limits["cpu"], f"limit: {record.limits['cpu']:g} %")
    return bool(rates)


def cpu_time(record, axes):
    """Whether there is a limit of CPU time; draw in AXES what was used of it."""
    if axes is not None:
        area(axes, *record.series("cpu"))
        axes.set_ylabel("CPU time, s")
        mark_limit(axes, record.limits["cpu_time"], f"limit: {record.limits['cpu_time']:g} s")
    return record.limits["cpu_time"] is not None


def pids(record, axes):
    """Whether there are processes to be drawn; draw them in AXES."""
    times, values = record.series("pids")
    if axes is not None:
        axes.step(times, values, where="post", color=INK, linewidth=1.2)
        axes.fill_between(times, values, step="post", color=INK, alpha=0.25, linewidth=0)
        axes.set_ylabel("processes")
        axes.set_ylim(top=max(max(values) * 1.15, 1.3))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        if record.limits["pids"] is not None:
            mark_limit(axes, record.limits["pids"], f"limit: {record.limits['pids']}")
    return bool(values)


def disk(record, axes):
    """Whether anything was read or written; draw how much, in AXES."""
    figures = {name: record.series(name) for name in ("io_read", "io_write")}
    most = max((max(values, default=0) for _, values in figures.values()), default=0)
    if axes is not None:
        name, unit = size(most)
        for (key, (times, values)), style in zip(figures.items(), ("-", ":"), strict=True):
            axes.plot(times, [value / unit for value in values], style, color=INK, label=key.removeprefix("io_"))
        axes.set_ylabel(f"disk, {name}")
        axes.legend(frameon=False, loc="upper left", ncols=2)
    return most > 0


def area(axes, times, values):
    """Draw VALUES over TIMES in AXES, filled."""
    axes.plot(times, values, color=INK, linewidth=1.2)
    axes.fill_between(times, values, color=INK, alpha=0.25, linewidth=0)
    axes.set_ylim(top=max(values) * 1.15 or 1)


def size(most):
    """The unit for sizes up to MOST bytes: its name, and its bytes."""
    return next((name, unit) for name, unit in SIZES if most >= unit or unit == 1)


def told(count):
    """COUNT, bytes, for people."""
    name, unit = size(count)
    return f"{count / unit:.4g} {name}"
