"""Values from command lines, parsed whole: what is not exactly a value is a Failure."""

from hako.failure import Failure

LARGEST = 2**63 - 1
SUFFIXES = {"K": 2**10, "M": 2**20, "G": 2**30}


def whole(option, text, largest=LARGEST):
    """TEXT, the value of OPTION, as an int: ASCII digits only, 0 to LARGEST."""
    if not is_number(text):
        raise Failure(f"{option}: not a whole number: {text!r}")
    if not digits(text) or int(text) > largest:
        raise Failure(f"{option}: more than {largest}: {text!r}")
    return int(text)


def size(option, text):
    """TEXT, the value of OPTION, in bytes: a whole number, perhaps with K, M or G (powers of 1024)."""
    factor = SUFFIXES.get(text[-1:], 1)
    count = text[:-1] if factor > 1 else text
    if not is_number(count):
        raise Failure(f"{option}: not a size, a whole number or one with K, M or G: {text!r}")
    if not digits(count) or int(count) * factor > LARGEST:
        raise Failure(f"{option}: more than {LARGEST} bytes: {text!r}")
    return int(count) * factor


def word(args, option):
    """The value of OPTION in ARGS, None if it is not given; it is not empty."""
    if args.get(option) == "":
        raise Failure(f"{option}: an empty value: ''")
    return args.get(option)


def variable(option, text):
    """TEXT, the value of OPTION, NAME or NAME=VALUE, as a pair; None is the caller's value."""
    name, given, value = text.partition("=")
    if not name:
        raise Failure(f"{option}: not NAME or NAME=VALUE: {text!r}")
    return name, value if given else None


def digits(text):
    """Whether TEXT is nothing but ASCII digits, and few enough to be a 64-bit number."""
    return is_number(text) and len(text) < 21


def is_number(text):
    """Whether TEXT is nothing but ASCII digits."""
    return text.isascii() and text.isdigit()


def seconds(option, text):
    """TEXT, the value of OPTION, in seconds, more than 0: digits, perhaps a point and digits behind it."""
    whole_part, point, fraction = text.partition(".")
    if not digits(whole_part) or (point and not digits(fraction)) or not float(text):
        raise Failure(f"{option}: not seconds, more than 0, like 2 or 0.5: {text!r}")
    return float(text)
