"""TOML as tomllib understands it, with places, and the calls in it."""

import math
import time
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hako import toml
from hako.failure import Failure

CALLS = {"value": (True, lambda name: VALUES[name]), "seven": (False, lambda: "7")}
VALUES = {
    "nothing": "",
    "quotes": "\"\"\"'''\"'",
    "lines": "a\nb\r\nc\n",
    "escapes": "\\ \\n \\u0041 \\",
    "controls": "\0\x01\x1f\x7f\ud800".encode("utf-8", "replace").decode(),
    "bytes": "\udcff",
    "call": '{{ value "quotes" }}',
    "table": '"]\n[env]\nEVIL = "1',
}


def read(text, calls=CALLS):
    """What TEXT says."""
    return plain(toml.parse(toml.source("t", text), calls))


def plain(item):
    """ITEM without its places."""
    if isinstance(item.value, list):
        return [plain(inner) for inner in item.value]
    if isinstance(item.value, dict):
        return {key: plain(inner) for key, inner in item.value.items()}
    return item.value


def failure(text, calls=CALLS):
    """What is said about TEXT, which is wrong."""
    with pytest.raises(Failure) as caught:
        read(text, calls)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(ours, theirs):
    """Whether two documents say the same, in the same order; nan is nan here."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, float):
        return ours == theirs or (math.isnan(ours) and math.isnan(theirs))
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in ours)
    return ours == theirs


SCALARS = ["1", "-0", "+7", "1_000", "0xfF", "0o17", "0b1", "0.5", "-1e3", "1E-2", "6.02e+2_3", "inf", "-nan", "true"]
STRINGS = [
    '"x"',
    "'\\'",
    '"\\t\\U0001F600\\u00e9"',
    '""',
    '"""\nz\n"""',
    "'''\n'a'''",
    '"""\\\n  a""b"""',
    '"""a\\""""""',
]
NAMES = ["a", "b", "c", '"a"', "'b'", '"a.b"', "1", "é"]


def keys():
    return st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(".".join)


def values():
    spaces = st.sampled_from(["", " ", "\n", "\n# c\n", "\t"])
    return st.recursive(
        st.sampled_from(SCALARS + STRINGS),
        lambda inner: st.one_of(
            st.lists(st.tuples(spaces, inner, spaces).map("".join), max_size=3).map(
                lambda parts: f"[{','.join(parts)}]"
            ),
            st.lists(st.tuples(keys(), inner).map(" = ".join), max_size=3).map(
                lambda parts: f"{{ {', '.join(parts)}}}"
            ),
            st.lists(inner, min_size=1, max_size=2).map(lambda parts: f"[{','.join(parts)},\r\n]"),
        ),
        max_leaves=6,
    )


def documents():
    statement = st.one_of(
        st.tuples(keys(), st.sampled_from([" = ", "=", "\t="]), values()).map("".join),
        keys().map(lambda key: f"[{key}]"),
        keys().map(lambda key: f"[[ {key} ]] # c"),
        st.just("  # nothing"),
    )
    return st.lists(statement, max_size=7).map("\n".join)


def damaged(document):
    """DOCUMENT with something else somewhere."""
    pieces = st.sampled_from(["", *"\"'\\[]{}=.,#\n\r\t\0\x7f 0_+-eE", '"""', "'''", "[[", "]]"])
    spots = st.tuples(st.integers(0, len(document)), pieces, st.integers(0, 2))
    return spots.map(lambda spot: document[: spot[0]] + spot[1] + document[spot[0] + spot[2] :])


@settings(max_examples=400, deadline=None)
@given(st.one_of(documents(), documents().flatmap(damaged), st.text(max_size=40)))
def test_a_text_means_what_it_means_to_tomllib(text):
    if "{{" in text:
        return
    try:
        theirs = tomllib.loads(text)
    except ValueError:
        assert failure(text).startswith("t:")
        return
    try:
        assert same(read(text), theirs), text
    except Failure as err:
        assert "a date or a time" in str(err) or "64 bits" in str(err)


def spots(item, path=()):
    """The offset of each key and each value in a list below ITEM: {path: offset}."""
    inner = (
        item.value.items()
        if isinstance(item.value, dict)
        else enumerate(item.value)
        if isinstance(item.value, list)
        else ()
    )
    found = {}
    for key, value in inner:
        found[*path, key] = value.offset
        found.update(spots(value, (*path, key)))
    return found


def test_where_things_stand():
    text = 'a.b = 1\n"c\\"" = [\n  2, # x\n  { d = """\n""", e.f = 3 },\n]\n[[g]]\nh = 4\n[[g]]\n[g.i]\nj = 5\n'
    found = {
        path: text[offset:].partition("\n")[0] for path, offset in spots(toml.parse(toml.source("t", text), {})).items()
    }
    assert found == {
        ("a",): "a.b = 1",
        ("a", "b"): "a.b = 1",
        ('c"',): '"c\\"" = [',
        ('c"', 0): "2, # x",
        ('c"', 1): '{ d = """',
        ('c"', 1, "d"): 'd = """',
        ('c"', 1, "e"): "e.f = 3 },",
        ('c"', 1, "e", "f"): "e.f = 3 },",
        ("g",): "[[g]]",
        ("g", 0): "[[g]]",
        ("g", 0, "h"): "h = 4",
        ("g", 1): "[[g]]",
        ("g", 1, "i"): "[g.i]",
        ("g", 1, "i", "j"): "j = 5",
    }


def test_lines_and_columns():
    source = toml.source("dir/x.toml", "ab\r\ncd\n")
    assert [source.at(offset) for offset in (0, 1, 3, 4)] == [
        f"dir/x.toml:{place}" for place in ("1:1", "1:2", "2:1", "2:2")
    ]
    assert source.line(3) == "dir/x.toml:2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "t:1:2: unexpected end of file, expecting '='"),
        ("a = ", "t:1:5: unexpected end of file, expecting a value"),
        ("a =\nb = 1", "t:1:4: unexpected end of line, expecting a value"),
        ("a = 1 b", "t:1:7: unexpected 'b', expecting end of line"),
        ("= 1", "t:1:1: unexpected '=', expecting a key"),
        ("\ufeffa = 1", "t:1:1: unexpected '\\ufeff', expecting a key"),
        ("a = 1\n\n  a = 2", "t:3:3: a is there already"),
        ("[a]\n[b]\n[a]", "t:3:1: a is there already"),
        ("a.b = 1\n[a]", "t:2:1: a is there already"),
        ("a = {}\na.b = 1", "t:2:1: a is there already"),
        ("a = 1\n[a.b]", "t:2:1: a is no table that can be added to"),
        ("[a", "t:1:3: unexpected end of file, expecting ']'"),
        ("[[a]", "t:1:4: unexpected ']', expecting ']]'"),
        ("a = [1 2]", "t:1:8: unexpected '2', expecting ',' or ']'"),
        ("a = {b = 1,}", "t:1:12: unexpected '}', expecting a key"),
        ("a = {b = 1\n}", "t:1:11: unexpected end of line, expecting ',' or '}'"),
        ('a = "x', "t:1:5: a string without an end"),
        ('a = "x\ny"', "t:1:5: a string without an end"),
        ('a = """x\n""', "t:1:5: a string without an end"),
        ('a = "x\0y"', "t:1:7: unexpected '\\x00' in a string"),
        ("a = 'x\ry'", "t:1:7: unexpected '\\r' in a string"),
        ("# \x01", "t:1:3: unexpected '\\x01' in a comment"),
        ('a = "\\q"', "t:1:6: no escape: '\\\\q'"),
        ('a = "\\u12"', "t:1:6: no escape: '\\\\u12\"'"),
        ('a = "\\ud800"', "t:1:6: no character: '\\ud800'"),
        ("a = 01", "t:1:5: a number with a 0 in front"),
        ("a = yes", "t:1:5: neither a string, which has quotes, a number, true nor false"),
        ("a = 1__0", "t:1:5: neither a string, which has quotes, a number, true nor false"),
        ("a = 9223372036854775808", "t:1:5: a number of more than 64 bits"),
        ("a = -9223372036854775809", "t:1:5: a number of more than 64 bits"),
        ("a = 1979-05-27", "t:1:5: a date or a time, which no key takes"),
        ("a = 07:32:00", "t:1:5: a date or a time, which no key takes"),
        ('"""a""" = 1', "t:1:1: a key of several lines"),
        ("a." * 16 + "a = 1", "t:1:33: a key of more than 16 parts"),
        ("a = " + "[" * 33, "t:1:37: nested more than 32 deep"),
        ("a = {{ seven }}x", "t:1:16: unexpected 'x', expecting end of line"),
        ("{{ seven }} = 1", "t:1:1: a call cannot be a key"),
        ('[a."{{ seven }}"]', "t:1:4: a call cannot be in a key"),
        ("a = 1\n'{{ value \"nothing\" }}' = 1", "t:2:1: a call cannot be in a key"),
        ("a = 1{{ seven }}", "t:1:5: neither a string, which has quotes, a number, true nor false"),
    ],
)
def test_mistakes_are_told_with_their_place(text, message):
    assert failure(text) == message


@pytest.mark.parametrize(
    "call",
    [
        *("{{", "{{}}", "{{ nosuch }}", "{{ value }}", '{{ value "x }}', '{{ value "x" "y" }}', '{{ seven "x" }}'),
        *("{{{ seven }}}", '{{ value "a\nb" }}', "{{ seven\n}}", '{{value("x")}}', '{{ value "x\0" }}'),
    ],
)
def test_what_is_no_call_is_an_error(call):
    for text, column in ((f"a = {call}", 5), (f'a = "{call}"', 6), (f"a = '''{call}'''", 8)):
        if "{{" in call:
            told = repr(text[column - 1 :][:60].partition("\n")[0].partition("\0")[0])
            hint = 'calls: value "...", seven; two braces that are none are written {\\u007b'
            assert failure(text) == f"t:1:{column}: not a call: {told} [{hint}]"


def test_calls_in_comments_are_not_made():
    assert read('# {{ nosuch }}\na = 1 # {{ value "x" }}') == {"a": 1}


def test_braces_that_are_no_call():
    assert read('a = "{\\u007b x }}"\nb = "{ { {x} }}"\nc = "\\u007b{"') == {
        "a": "{{ x }}",
        "b": "{ { {x} }}",
        "c": "{{",
    }


def test_a_call_that_fails_is_told_with_its_place():
    def fail(name):
        raise Failure(f"open {name}: No such file or directory")

    calls = {"read": (True, fail)}
    assert failure('\na = "x{{ read "f" }}"', calls) == "t:2:7: read: open f: No such file or directory"


def test_what_calls_bring_in_is_limited():
    calls = {"big": (False, lambda: "x" * 2**18)}
    assert len(read("a = '{{ big }}{{ big }}{{ big }}{{ big }}'", calls)["a"]) == 2**20
    assert failure("a = ['{{ big }}{{ big }}',\n'{{ big }}{{ big }}{{ seven }}']", {**CALLS, **calls}) == (
        "t:2:20: more than 1048576 characters come of the calls"
    )


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(), st.sampled_from(sorted(VALUES.values()))), st.sampled_from(['"', "'", '"""', "'''"]))
def test_a_value_comes_out_unchanged_whatever_string_it_stands_in(text, quote):
    calls = {"it": (True, lambda name: text + name)}
    for call in ('{{ it "" }}', "{{it ''}}", "{{\tit\t'\"'\t}}"):
        name = '"' if "\"'" in call else ""
        assert read(f"a = {quote}{call}{quote}\nb = 1", calls) == {"a": text + name, "b": 1}
        assert read(f"a = [{call}, 1]", calls) == {"a": [text + name, 1]}
        assert read(f"a = {{ b = {quote}<{call}.{call}>{quote} }}", calls) == {
            "a": {"b": f"<{text}{name}.{text}{name}>"}
        }


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text()),
            lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
            max_leaves=8,
        ),
        max_size=4,
    )
)
def test_what_is_written_is_read_back(data):
    text = "".join(f"{toml.key(key)} = {toml.value(value)}\n" for key, value in data.items())
    assert same(read(text), data)
    assert same(tomllib.loads(text), data)
    assert text.isprintable() or text.replace("\n", "").isprintable()


def test_what_is_not_utf_8_is_not_written():
    with pytest.raises(Failure, match=r"^not UTF-8, as TOML must be: '\\udcff'$"):
        toml.string("\udcff")


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 2**17,
        "a." * 2**17,
        "a = '" + "{ " * 2**17 + "'",
        'a = "' + "\\n" * 2**17 + '"',
        "a = " + "9" * 2**18,
        "a = 0x" + "f" * 2**18,
        "a = 0." + "9" * 2**18,
        "[a]\n" * 2**16,
        "[[a]]\n" * 2**15,
        "".join(f"[a{i}.b.c.d]\n" for i in range(2**14)),
        "".join(f"a.b{i}.c=1\n" for i in range(2**14)),
        "a = [" + "{}," * 2**16 + "]",
        "#" * 2**18,
        '"' * 2**18,
        "a = '{{ seven }}" + "{{ seven }}" * 2**14 + "'",
        "a = '''" + "\n" * 2**18 + "x",
        'a = """' + "\\\n" * 2**17 + "x",
        "x" * 2**18,
        " " * 2**18 + "=",
    ],
    ids=lambda text: repr(text[:10]),
)
def test_no_text_takes_long(text):
    began = time.process_time()
    try:
        read(text)
    except Failure as err:
        assert len(str(err)) < 300
    assert time.process_time() - began < 10
