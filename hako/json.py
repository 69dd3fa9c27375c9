"""JSON, read strictly and written on one line. See RFC 8259.

Not the json module: its import costs 8 ms at every start. This is the half of it that is in C.
"""

from _json import encode_basestring_ascii as quote
from _json import make_scanner

SPACE = " \t\n\r"
INFINITY = float("inf")
MOST_DIGITS = 300  # of a number that is read exactly: int() of text is slow, and refuses 4301


class TooDeep(ValueError):
    """Arrays and objects in each other, deeper than this interpreter follows them."""


def read(data):
    """The value of DATA, the bytes of one JSON text; of equal keys the last counts. ValueError: it is none.

    What cannot be part of UTF-8, or of a name of the kernel's, escaped lone
    surrogates and NUL, becomes U+FFFD. A number that is too large is infinite.
    """
    text = data.decode().strip(SPACE)
    try:
        value, end = scan(text, 0)
        if end != len(text):
            raise ValueError("text behind the value")
        return cleaned(value) if "\\u" in text else value
    except RecursionError:
        raise TooDeep from None
    # The scanner finds nothing, or no json.decoder with its exception, which shows in one of two ways.
    except (StopIteration, ImportError, SystemError) as err:
        raise ValueError("no JSON") from err


def integer(text):
    """TEXT, the digits of a whole number, as a number."""
    return int(text) if len(text) <= MOST_DIGITS else float(text)


def refused(text):
    """Refuse TEXT, which is NaN, Infinity or -Infinity: Python knows them, JSON does not."""
    raise ValueError(text)


class Manner:
    """How the scanner reads: nothing but JSON."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int, parse_constant = float, integer, refused


scan = make_scanner(Manner)


def cleaned(value):
    """VALUE without the characters that no UTF-8 or no name has."""
    if isinstance(value, str):
        return value if value.isascii() and "\0" not in value else "".join(map(character, value))
    if isinstance(value, list):
        return [cleaned(inner) for inner in value]
    if isinstance(value, dict):
        return {cleaned(key): cleaned(inner) for key, inner in value.items()}
    return value


def character(char):
    """CHAR, or U+FFFD for a NUL or a lone surrogate."""
    return "\ufffd" if char == "\0" or "\ud800" <= char <= "\udfff" else char


def dumped(value, comma=",", colon=":", number=repr):
    """VALUE as JSON: a text, number, bool, None, or a list or dictionary of such; NUMBER writes the floats."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict):
        inner = (f"{quote(key)}{colon}{dumped(value[key], comma, colon, number)}" for key in value)
        return "{" + comma.join(inner) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + comma.join(dumped(inner, comma, colon, number) for inner in value) + "]"
    if isinstance(value, str):
        # What was no UTF-8 has no place in JSON: a lone surrogate is refused by many who read it.
        return quote(value.encode(errors="surrogateescape").decode(errors="replace"))
    if isinstance(value, float):
        return number(value)
    return str(value)


def line(value):
    """VALUE as dumped() has it, a line of bytes without a blank."""
    return dumped(value).encode() + b"\n"
