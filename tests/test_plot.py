"""Pictures of use: what is in them, and what is refused."""

import json
import re
import struct
from xml.etree import ElementTree

import pytest

from conftest import BIN
from hako import record
from hako.failure import Failure

NONE = dict.fromkeys(record.LIMITS)
SVG = "{http://www.w3.org/2000/svg}"


def lines(samples, limits=(), struck=None):
    """A record: SAMPLES of (time, memory, cpu, pids), with LIMITS; the limit STRUCK is found in the last but one."""
    made = []
    for time, memory, cpu, pids in samples:
        made.append({"time": time, "memory": memory, "cpu": cpu, "pids": pids, "io_read": 0, "io_write": None})
    made[0]["limits"] = {**NONE, **dict(limits)}
    if struck:
        made[-2]["limit"] = struck
    return "".join(json.dumps(line) + "\n" for line in made)


RISING = [(step / 10, step << 20, step / 20, 1 + step // 5) for step in range(21)]


def draw(who, place, text, *options, name="picture.svg"):
    """The picture of TEXT that WHO draws with OPTIONS: its bytes."""
    (place / "use").write_text(text)
    done = who.run("hako-plot", place / "use", "-o", name, *options, cwd=place)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return (place / name).read_bytes()


def texts(picture):
    """The words in PICTURE, an SVG."""
    return ["".join(text.itertext()) for text in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def vertical(picture, color):
    """Where in PICTURE, an SVG, vertical lines of COLOR are, between 0, the left of the axes, and 1."""
    tree = ElementTree.fromstring(picture)
    axes = next(group for group in tree.iter(f"{SVG}g") if group.get("id") == "axes_1")
    numbers = [
        [float(n) for n in re.findall(r"[\d.]+", path.get("d"))] for path in axes.find(f"{SVG}g").iter(f"{SVG}path")
    ]
    left, right = min(numbers[0][::2]), max(numbers[0][::2])
    found = []
    for path in axes.iter(f"{SVG}path"):
        x = [float(n) for n in re.findall(r"[\d.]+", path.get("d"))][::2]
        if f"stroke: {color}" in path.get("style", "") and len(x) == 2 and x[0] == x[1]:
            found.append((x[0] - left) / (right - left))
    return found


def test_what_was_used_its_limits_and_the_end(who, place):
    limits = {"memory": 21 << 20, "pids": 5, "cpu": 150, "time": 30}
    picture = draw(who, place, lines(RISING, limits, "memoryLimit"), "--title=The <title> & $x$")
    found = texts(picture)
    for wanted in ("The <title> & $x$", "memory, MiB", "CPU, % of a core", "processes", "seconds since the start"):
        assert wanted in found
    assert {"limit: 21 MiB", "limit: 5", "limit: 150 %", "memoryLimit at 1.90 s"} <= set(found)
    assert vertical(picture, "#b3261e") == [pytest.approx(1.9 / (2 * 1.02), abs=0.01)]


def test_without_limits_there_are_no_words_of_them(who, place):
    picture = draw(who, place, lines(RISING))
    assert not [text for text in texts(picture) if "limit" in text.lower()]
    assert vertical(picture, "#b3261e") == []
    assert "use" in texts(picture)


def test_what_was_not_measured_is_not_drawn(who, place):
    unmeasured = [(time, None, cpu, pids) for time, _, cpu, pids in RISING]
    assert "memory, MiB" in texts(draw(who, place, lines(RISING)))
    assert not [text for text in texts(draw(who, place, lines(unmeasured))) if text.startswith("memory")]


def test_the_time_and_the_cpu_time(who, place):
    picture = draw(who, place, lines(RISING, {"time": 2, "cpu_time": 1.5}))
    assert {"time: 2 s", "CPU time, s", "limit: 1.5 s"} <= set(texts(picture))
    assert vertical(picture, "#8a6d00") == [pytest.approx(2 / (2 * 1.02), abs=0.01)]


def test_a_png(who, place):
    picture = draw(who, place, lines(RISING), name="picture.png")
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", picture[16:24])
    assert width > 1000
    assert height > 500


def test_the_same_record_is_the_same_picture(who, place):
    text = lines(RISING, {"memory": 30 << 20})
    who.env.update(TMPDIR=str(place), HOME="/nonexistent")
    assert draw(who, place, text) == draw(who, place, text, name="other.svg")
    assert sorted(path.name for path in place.iterdir()) == ["box", "other.svg", "picture.svg", "use"]  # no cache left


def test_what_hako_limit_writes(who, place):
    """The real thing, of a limit that struck, while another one writes, and of a program that ends at once."""
    code = "hako-limit --output=100 --interval=0.02 --usage=u sh -c 'sleep 0.3; yes'; hako-limit --usage=v true"
    done = who.run("sh", "-c", f"{code}; hako-plot u -o u.svg && hako-plot v -o v.svg", cwd=place)
    assert done.stderr == "hako-limit: outputLimit: more than 100 bytes of output\n"
    struck = [json.loads(line).get("limit") for line in (place / "u").read_text().splitlines()]
    assert set(struck) == {None, "outputLimit"}
    assert [text for text in texts((place / "u.svg").read_bytes()) if text.startswith("outputLimit at 0.")]
    assert "processes" in texts((place / "v.svg").read_bytes())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "use: not two lines of use in it yet [hako-limit --usage writes them]"),
        (lines(RISING[:1]), "use: not two lines of use in it yet [hako-limit --usage writes them]"),
        (
            lines(RISING)[:700].partition("\n")[0],
            "use: not two lines of use in it yet [hako-limit --usage writes them]",
        ),
        (lines(RISING) + "{}\n", "use:22: not a line of hako-limit --usage"),
        (lines(RISING) + "[]\n", "use:22: not a line of hako-limit --usage"),
        (lines(RISING) + "x\n", "use:22: not a line of JSON"),
        (lines(RISING) + "\xff\n", "use:22: not a line of JSON"),
        (lines(RISING).replace('"limits"', '"other"'), "use:1: no limits in the first line"),
        (lines(RISING, {"memory": "x"}), "use:1: no limits in the first line"),
        (lines([(1, -1, 0, 0), (2, 0, 0, 0)]), "use:1: not a line of hako-limit --usage"),
        (
            lines([(1, 0, 1e999, 0), (2, 0, 0, 0)]).replace("Infinity", "1e999"),
            "use:1: not a line of hako-limit --usage",
        ),
        (lines([(1, True, 0, 0), (2, 0, 0, 0)]), "use:1: not a line of hako-limit --usage"),
    ],
)
def test_what_is_no_record_makes_no_picture(who, place, text, message):
    (place / "use").write_bytes(text.encode("latin-1"))
    done = who.run("hako-plot", "use", cwd=place)
    assert (done.returncode, done.stderr) == (125, f"hako-plot: {message}\n")
    assert [path.name for path in place.iterdir() if path.name.startswith("usage")] == []


def test_half_a_line_at_the_end_is_of_one_who_still_writes(who, place):
    assert draw(who, place, lines(RISING) + '{"time": 3.0, "mem')


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["use", "-o", "x.jpg"], "--output: ends neither in .svg nor in .png: 'x.jpg'"),
        (["use", "-o", "no/x.svg"], "--output: open no: No such file or directory"),
        (["nothing"], "open nothing: No such file or directory"),
        (["."], "read .: Is a directory"),
        (["use", "more"], "too many operands: 'more' [hako-plot [options] FILE]"),
        ([], "FILE is missing [hako-plot [options] FILE]"),
        (["use", "--bogus"], "unknown option: '--bogus' [see hako-plot --help]"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(who, place, argv, message):
    (place / "use").write_text(lines(RISING))
    done = who.run("hako-plot", *argv, cwd=place)
    assert (done.returncode, done.stdout, done.stderr) == (125, "", f"hako-plot: {message}\n")


def test_options_before_and_behind_and_a_file_with_a_dash(who, place):
    (place / "-use").write_text(lines(RISING))
    assert who.run("hako-plot", "--title", "x", "-o", "a.svg", "--", "-use", cwd=place).returncode == 0
    assert "x" in texts((place / "a.svg").read_bytes())
    with (place / "-use").open() as file:
        assert who.run("hako-plot", "-", "--output=b.svg", cwd=place, stdin=file).returncode == 0
    assert "-" in texts((place / "b.svg").read_bytes())


def test_without_matplotlib_one_line_says_so(who, place):
    """As where it is not installed: whoever imports it fails."""
    (place / "use").write_text(lines(RISING))
    head, path = (BIN / "hako-plot").read_text().splitlines()[:2]
    code = f"{path}; sys.modules['matplotlib'] = None; from hako import core; core.main(['hako-plot', 'use'])"
    argv = [*head.removeprefix("#!").split(), "-c", code]
    done = who.run(*argv, cwd=place)
    hint = "pip install matplotlib, or the system's python3-matplotlib"
    assert (done.returncode, done.stderr) == (125, f"hako-plot: matplotlib is not installed [{hint}]\n")


def test_behind_a_command_that_goes_inside_it_is_refused(who, place):
    del place
    done = who.inside("hako-plot", "use")
    reason = "draws what is outside, and is behind a command that goes inside [run it by its path there]"
    assert (done.returncode, done.stderr) == (125, f"hako-plot: {reason}\n")


def test_rates_are_from_sample_to_sample():
    found = record.read(lines([(0, 0, 1, 1), (1, 0, 1.5, 1), (3, 0, 2.5, 1), (3, 0, 2.5, 1)]).encode(), "use")
    assert found.rates("cpu") == ([0, 1, 3], [0.5, 0.5])
    assert found.series("io_write") == ([], [])
    with pytest.raises(Failure):
        record.read(b"\n\n", "use")
