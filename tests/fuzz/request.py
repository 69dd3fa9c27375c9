"""request.py [libFuzzer options] - feed the reader of JSON, and that of requests, what atheris makes up

Nothing but a ValueError may come of the one and an Invalid of the other; what is
JSON means what it means to the json module. Run by `make fuzz`, which installs atheris.
"""

import json as stdlib
import sys

import atheris

with atheris.instrument_imports():
    from hako import json, request


def refuse(text):
    """Refuse TEXT, which is NaN or Infinity."""
    raise ValueError(text)


def theirs(data):
    """What DATA means to the json module; a ValueError if it is no JSON."""
    return stdlib.loads(data.decode(), parse_constant=refuse, parse_int=json.integer)


def once(data):
    """Read DATA as JSON and as a request."""
    try:
        ours = json.read(data)
    except ValueError:
        ours = ValueError
    try:
        meant = ValueError if data.startswith(b"\xef\xbb\xbf") else theirs(data)
    except (ValueError, RecursionError):
        meant = ValueError
    if b"\\u" not in data and b"[" * 50 not in data:  # escapes are cleaned, and depth has its limit
        assert ours == meant, (data, ours, meant)
    try:
        made = request.parse(data)
    except request.Invalid as err:
        assert err.description is None or len(err.description) < 500, err.description
        return
    assert isinstance(meant, dict)
    assert made.cmd


if __name__ == "__main__":
    atheris.Setup(sys.argv, once)
    atheris.Fuzz()
