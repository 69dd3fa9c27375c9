"""Requests of hako-task: every key, every message, and JSON as strict as it is."""

import json as stdlib
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hako import json, kernel, landlock, request, rlimits

TOP = Path(__file__).parent.parent
LONG_MAX = 2**63 - 1
CMD = {"cmd": ["true"]}


def parsed(**keys):
    """The Request of KEYS and a command."""
    return request.parse(stdlib.dumps({**CMD, **keys}).encode())


def description(text):
    """What is said about TEXT, bytes, which is no request."""
    with pytest.raises(request.Invalid) as caught:
        request.parse(text)
    return caught.value.description


def plain(value):
    """VALUE with dictionaries of their fields for our classes."""
    if isinstance(value, (tuple, list)):
        return type(value)(plain(inner) for inner in value)
    if hasattr(value, "__slots__") and type(value).__module__ == "hako.request":
        return {name: plain(getattr(value, name)) for name in value.__slots__}
    return value


# The keys.


def test_what_holds_where_nothing_is_said():
    assert plain(parsed()) == {
        **{"cmd": ("true",), "host_name": "sandals", "domain_name": "sandals", "uid": 0, "gid": 0, "chroot": None},
        **{"mounts": (), "cgroup_config": None, "cgroup": None, "cgroup_root": None, "seccomp_policy": None},
        **{"va_randomize": True, "env": (), "work_dir": "/", "time_limit": None, "pipes": (), "copy_files": ()},
        **{"std_streams": None, "stdin": None, "rootfs": None, "limits": {}, "landlock": None, "overlay": None},
        **{"outputs": None, "id": None, "report": False, "capabilities": (), "network": "none"},
    }


MOUNT = {"type": "proc", "dest": "/proc", "src": None, "options": (), "ro": False}
CHANNEL = {"dest": "d", "src": None, "stdout": False, "stderr": False, "limit": LONG_MAX}
GIVEN = [
    ("cmd", ["a", "", "b\n"], ("a", "", "b\n")),
    ("hostName", "x" * 65, "x" * 65),
    ("domainName", "", ""),
    ("uid", 1.5, 1),
    ("uid", 1e3, 1000),
    ("gid", 2147483647, 2147483647),
    ("gid", -0.0, 0),
    ("chroot", "/srv", "/srv"),
    ("cgroup", "/c", "/c"),
    ("cgroupRoot", "/c/", "/c/"),
    ("seccompPolicy", "ALLOW {}", "ALLOW {}"),
    ("vaRandomize", False, False),
    ("env", ["A=1", "A=1", "B", ""], ("A=1", "A=1", "B", "")),
    ("workDir", "", ""),
    ("timeLimit", 0, 0.0),
    ("timeLimit", 0.25, 0.25),
    ("timeLimit", 1e300, 1e9),
    ("cgroupConfig", {}, ()),
    ("cgroupConfig", {"pids.max": "1", "/memory.max": "2"}, (("pids.max", "1"), ("memory.max", "2"))),
    ("pipes", [], ()),
    ("pipes", [{"dest": "d", "stdout": True}], ({**CHANNEL, "stdout": True},)),
    ("pipes", [{"dest": "d", "stderr": True, "limit": 1.9}], ({**CHANNEL, "stderr": True, "limit": 1},)),
    ("pipes", [{"dest": "d", "src": "", "limit": 1e30}], ({**CHANNEL, "src": ""},)),
    ("copyFiles", [{"dest": "d", "src": "s", "stdout": True}], ({**CHANNEL, "src": "s", "stdout": True},)),
    ("stdStreams", {"dest": "d", "limit": 0}, {**CHANNEL, "limit": 0}),
    ("mounts", [{"type": "proc", "dest": "/proc", "options": ""}], (MOUNT,)),
    ("mounts", [{"type": "proc", "dest": "/proc", "src": "x", "ro": True}], ({**MOUNT, "src": "x", "ro": True},)),
    ("mounts", [{"type": "bind", "dest": "b", "src": "a"}], ({**MOUNT, "type": "bind", "dest": "b", "src": "a"},)),
    ("mounts", [{"type": "dev", "dest": "/dev"}], ({**MOUNT, "type": "dev", "dest": "/dev"},)),
    (
        "mounts",
        [{"type": "tmpfs", "dest": "/t", "options": "size=5%,mode=1777,,nr_inodes=2k,nr_blocks=10,size=1m"}],
        (
            {
                **{**MOUNT, "type": "tmpfs", "dest": "/t"},
                "options": (
                    *(("size", "5%"), ("mode", "1777"), ("nr_inodes", "2k"), ("nr_blocks", "10"), ("size", "1m")),
                ),
            },
        ),
    ),
    ("stdin", "h\u00e9", "h\u00e9".encode()),
    ("stdin", {"path": "in"}, "in"),
    ("rootfs", ["/usr", "/etc/alternatives"], ("/usr", "/etc/alternatives")),
    ("rootfs", [], ()),
    (
        "limits",
        {"as": "1M", "nofile": 9, "core": "0:1K", "cpu": "unlimited"},
        {"as": (2**20, 2**20), "nofile": (9, 9), "core": (0, 1024), "cpu": (-1, -1)},
    ),
    ("landlock", {}, {"paths": None, "ports": None, "scopes": ()}),
    (
        "landlock",
        {"rx": ["/bin"], "ro": ["/a", "/b"], "connect_tcp": [80], "scope": ["signal", "abstract-unix"]},
        {
            "paths": [("ro", "/a"), ("ro", "/b"), ("rx", "/bin")],
            "ports": [("connect_tcp", 80)],
            "scopes": ("signal", "abstract-unix"),
        },
    ),
    ("landlock", {"rw": [], "bind_tcp": []}, {"paths": [], "ports": [], "scopes": ()}),
    ("outputs", {}, {"stdout": True, "stderr": True, "limit": 2**20, "encoding": "text"}),
    (
        "outputs",
        {"stdout": False, "stderr": True, "limit": 5, "encoding": "base64"},
        {"stdout": False, "stderr": True, "limit": 5, "encoding": "base64"},
    ),
    ("id", "", ""),
    ("id", 10**299, 10**299),
    ("id", -1.5e-7, -1.5e-7),
    ("report", True, True),
    ("capabilities", ["CAP_NET_RAW", "kill"], (5, 13)),
    ("capabilities", ["all"], None),
    ("network", "host", "host"),
]


@pytest.mark.parametrize("key, value, expected", GIVEN, ids=lambda value: str(value)[:30])
def test_a_key_and_what_it_means(key, value, expected):
    assert plain(getattr(parsed(**{key: value}), request.SLOTS[key])) == expected


def test_every_key_is_in_the_table():
    assert {key for key, _, _ in GIVEN} | {"overlay"} == set(request.FIRST)
    assert set(request.SLOTS.values()) == set(request.Request.__slots__)


@pytest.mark.parametrize(
    "value, expected",
    [
        ("tmpfs", {"upper": None, "size": None, "changes": False}),
        ({}, {"upper": None, "size": None, "changes": False}),
        ({"upper": "tmpfs", "size": "2K", "changes": True}, {"upper": None, "size": 2048, "changes": True}),
        ({"size": 5}, {"upper": None, "size": 5, "changes": False}),
        ({"upper": "/u"}, {"upper": "/u", "size": None, "changes": False}),
    ],
)
def test_an_overlay(value, expected):
    assert plain(parsed(chroot="/", overlay=value).overlay) == expected


@pytest.mark.parametrize(
    "other, stdout, stderr",
    [
        ({"stdStreams": {"dest": "d"}}, False, False),
        ({"pipes": [{"dest": "d", "stdout": True}]}, False, True),
        ({"pipes": [{"dest": "d", "src": "/s"}]}, True, True),
        ({"copyFiles": [{"dest": "d", "src": "s", "stderr": True}]}, True, False),
    ],
)
def test_what_goes_elsewhere_is_not_in_the_response(other, stdout, stderr):
    found = parsed(outputs={}, **other).outputs
    assert (found.stdout, found.stderr) == (stdout, stderr)
    for name, there in (("stdout", stdout), ("stderr", stderr)):
        wanted = stdlib.dumps({**CMD, **other, "outputs": {name: True}}).encode()
        if there:
            assert getattr(request.parse(wanted).outputs, name)
        else:
            assert description(wanted) == f"outputs.{name}: Goes to '{next(iter(other))}'"


def test_the_names_are_those_of_the_modules_that_put_them_in_force():
    assert set(request.SCOPES) == set(landlock.SCOPES)
    assert set(request.ACCESS) == set(landlock.ACCESS)
    assert set(request.TCP) == set(landlock.TCP)
    for name in rlimits.LIMITS:
        assert parsed(limits={name: 3}).limits == {name: (3, 3)}
    for number, name in enumerate(kernel.CAPABILITIES):
        assert parsed(capabilities=[f"CAP_{name.upper()}"]).capabilities == (number,)


# What is wrong.


PIPE_NEEDS = "'stdout' or 'stderr' or 'src' is required"
WRONG = [
    *[({key: None}, f"{key}: Expecting a string") for key in ("hostName", "domainName", "chroot", "cgroup")],
    *[({key: []}, f"{key}: Expecting a string") for key in ("cgroupRoot", "seccompPolicy", "workDir", "network")],
    *[({key: "x"}, f"{key}: Expecting an array") for key in ("cmd", "env", "mounts", "pipes", "copyFiles")],
    *[({key: {}}, f"{key}: Expecting an array") for key in ("rootfs", "capabilities")],
    *[({key: []}, f"{key}: Expecting an object") for key in ("cgroupConfig", "stdStreams", "limits", "landlock")],
    ({"outputs": True}, "outputs: Expecting an object"),
    *[({key: 1}, f"{key}: Expecting a boolean") for key in ("vaRandomize", "report")],
    *[({"uid": value}, "uid: Expecting non-negative number") for value in (-1, -0.5, "1", True, None, [])],
    ({"gid": -1}, "gid: Expecting non-negative number"),
    ({"gid": 2147483648}, "gid: Value too big"),
    ({"uid": 2147483647.5}, "uid: Value too big"),
    ({"timeLimit": "1"}, "timeLimit: Expecting non-negative number"),
    ({"nothing": 1}, "nothing: Unknown key"),
    ({"": 1}, "Unknown key"),
    ({"cmd": []}, "'cmd' missing or empty"),
    ({"cmd": ["a", 1]}, "cmd[1]: Expecting a string"),
    ({"env": [None]}, "env[0]: Expecting a string"),
    ({"cgroupConfig": {"memory.max": 5}}, "cgroupConfig.memory.max: Expecting a string"),
    *[
        ({"cgroupConfig": {key: "5"}}, f"cgroupConfig.{key}: Not a file of a cgroup")
        for key in ("", "/", "..", "../x", "a/b")
    ],
    ({"stdStreams": {}}, "stdStreams: 'dest' missing"),
    ({"stdStreams": {"dest": 1}}, "stdStreams.dest: Expecting a string"),
    ({"stdStreams": {"dest": "d", "limit": -1}}, "stdStreams.limit: Expecting non-negative number"),
    ({"stdStreams": {"dest": "d", "src": "s"}}, "stdStreams.src: Unknown key"),
    ({"pipes": [1]}, "pipes[0]: Expecting an object"),
    ({"pipes": [{}]}, "pipes[0]: 'dest' missing"),
    ({"pipes": [{"dest": "d"}]}, f"pipes[0]: {PIPE_NEEDS}"),
    ({"pipes": [{"dest": "d", "stdout": False}]}, f"pipes[0]: {PIPE_NEEDS}"),
    ({"pipes": [{"dest": "d", "src": "s"}, {"dest": "d", "stdout": 1}]}, "pipes[1].stdout: Expecting a boolean"),
    ({"pipes": [{"dest": "d", "stderr": "x"}]}, "pipes[0].stderr: Expecting a boolean"),
    ({"pipes": [{"dest": "d", "limit": None}]}, "pipes[0].limit: Expecting non-negative number"),
    ({"pipes": [{"file": "d"}]}, "pipes[0].file: Unknown key"),
    ({"copyFiles": [{"src": "s"}]}, "copyFiles[0]: 'dest' missing"),
    ({"copyFiles": [{"dest": "d", "stdout": True}]}, "copyFiles[0]: 'src' missing"),
    ({"mounts": [1]}, "mounts[0]: Expecting an object"),
    ({"mounts": [{}]}, "mounts[0]: 'type' missing"),
    ({"mounts": [{"type": "proc"}]}, "mounts[0]: 'dest' missing"),
    ({"mounts": [{"type": "bind", "dest": "d"}]}, "mounts[0]: 'src' missing"),
    ({"mounts": [{"type": "proc", "dest": "/p"}, {"zzz": 1}]}, "mounts[1].zzz: Unknown key"),
    ({"mounts": [{"type": "proc", "dest": "/p", "ro": 0}]}, "mounts[0].ro: Expecting a boolean"),
    *[
        ({"mounts": [{"type": name, "dest": "d"}]}, f"mounts[0].type: '{name}' is not supported")
        for name in ("overlay", "devpts", "sysfs", "ext4", "")
    ],
    *[
        ({"mounts": [{"type": "tmpfs", "dest": "d", "options": text}]}, f"mounts[0].options: '{text}' {why}")
        for why, texts in {
            "is not supported": ("uid=0", "ro", "huge=always", " size=1", "Size=1", "noexec"),
            "has no valid value": ("size=", "size=k", "size=-1", "size=1x", "size", "size=1kk", "nr_inodes=5%"),
        }.items()
        for text in texts
    ],
    *[
        (
            {"mounts": [{"type": "tmpfs", "dest": "d", "options": f"mode={text}"}]},
            f"mounts[0].options: 'mode={text}' {why}",
        )
        for why in ("has no valid value",)
        for text in ("", "8", "17777", "077777", "0o7", "-1")
    ],
    (
        {"mounts": [{"type": "bind", "src": "s", "dest": "d", "options": "size=1"}]},
        "mounts[0].options: 'size=1' is not supported",
    ),
    ({"mounts": [{"type": "dev", "dest": "d", "options": "x,y"}]}, "mounts[0].options: 'x' is not supported"),
    ({"stdin": 1}, "stdin: Expecting a string or an object"),
    ({"stdin": None}, "stdin: Expecting a string or an object"),
    ({"stdin": {}}, "stdin: 'path' missing"),
    ({"stdin": {"path": 1}}, "stdin.path: Expecting a string"),
    ({"stdin": {"file": ""}}, "stdin.file: Unknown key"),
    ({"rootfs": [1]}, "rootfs[0]: Expecting a string"),
    ({"rootfs": ["/usr", "usr"]}, "rootfs[1]: Expecting an absolute path"),
    *[({"rootfs": [text]}, "rootfs[0]: Expecting a path below / without '..'") for text in ("/", "//.", "/usr/../etc")],
    ({"rootfs": [], "chroot": "/"}, "rootfs: Not with 'chroot'"),
    ({"limits": {"files": 1}}, "limits.files: Unknown key"),
    ({"limits": {"as": None}}, "limits.as: Expecting a string or a number"),
    ({"limits": {"as": -1}}, "limits.as: Expecting non-negative number"),
    ({"limits": {"as": 1.5}}, "limits.as: Expecting a whole number"),
    ({"limits": {"as": 2**63}}, "limits.as: Value too big"),
    ({"limits": {"as": "1x"}}, "limits.as: Not a size, a whole number or one with K, M or G: '1x'"),
    ({"limits": {"nofile": "1K"}}, "limits.nofile: Not a whole number: '1K'"),
    ({"limits": {"as": "2:1"}}, "limits.as: The soft limit is above the hard limit: '2:1'"),
    ({"landlock": {"x": []}}, "landlock.x: Unknown key"),
    ({"landlock": {"ro": "/"}}, "landlock.ro: Expecting an array"),
    ({"landlock": {"ro": ["/", "x"]}}, "landlock.ro[1]: Expecting an absolute path"),
    ({"landlock": {"bind_tcp": [65536]}}, "landlock.bind_tcp[0]: Value too big"),
    ({"landlock": {"bind_tcp": [1.5]}}, "landlock.bind_tcp[0]: Expecting a whole number"),
    ({"landlock": {"connect_tcp": ["80"]}}, "landlock.connect_tcp[0]: Expecting non-negative number"),
    ({"landlock": {"scope": ["x"]}}, "landlock.scope[0]: Expecting 'abstract-unix' or 'signal'"),
    ({"overlay": "tmpfs"}, "overlay: 'chroot' is required"),
    ({"overlay": "tmpfs", "rootfs": []}, "overlay: 'chroot' is required"),
    ({"chroot": "/", "overlay": "/u"}, "overlay: Expecting 'tmpfs' or an object"),
    ({"chroot": "/", "overlay": None}, "overlay: Expecting 'tmpfs' or an object"),
    ({"chroot": "/", "overlay": {"upper": "u"}}, "overlay.upper: Expecting 'tmpfs' or an absolute path"),
    ({"chroot": "/", "overlay": {"upper": "/u", "size": 1}}, "overlay.size: Only with a tmpfs"),
    ({"chroot": "/", "overlay": {"upper": "tmpfs", "size": 0}}, "overlay.size: 0 would mean no limit"),
    ({"chroot": "/", "overlay": {"size": "0K"}}, "overlay.size: 0 would mean no limit"),
    ({"chroot": "/", "overlay": {"size": "x"}}, "overlay.size: Not a size, a whole number or one with K, M or G: 'x'"),
    ({"chroot": "/", "overlay": {"size": True}}, "overlay.size: Expecting a string or a number"),
    ({"chroot": "/", "overlay": {"changes": 1}}, "overlay.changes: Expecting a boolean"),
    ({"chroot": "/", "overlay": {"lower": "/"}}, "overlay.lower: Unknown key"),
    ({"outputs": {"stdout": 1}}, "outputs.stdout: Expecting a boolean"),
    ({"outputs": {"limit": -1}}, "outputs.limit: Expecting non-negative number"),
    ({"outputs": {"encoding": "hex"}}, "outputs.encoding: Expecting 'text' or 'base64'"),
    *[({"id": value}, "id: Expecting a string or a number") for value in (True, None, [], {})],
    ({"capabilities": ["kill", "CAP_NONE"]}, "capabilities[1]: No such capability: 'CAP_NONE'"),
    ({"capabilities": [1]}, "capabilities[0]: Expecting a string"),
    ({"network": "pasta"}, "network: Expecting 'none' or 'host'"),
]


@pytest.mark.parametrize("keys, expected", WRONG, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_told(keys, expected):
    assert description(stdlib.dumps({**CMD, **keys}).encode()) == expected


def test_no_command_and_no_object():
    assert description(b"{}") == "'cmd' missing or empty"
    for text in (b"[]", b"1", b"null", b'"x"', b"true"):
        assert description(text) == "Expecting an object"
    assert description(b'{"cmd": ["x"], "id": 1e999}') == "id: Value too big"


@pytest.mark.parametrize(
    "text, expected",
    [
        (b'{"uid": "x", "hostName": 1}', "uid: Expecting non-negative number"),
        (b'{"hostName": 1, "uid": "x"}', "hostName: Expecting a string"),
        (b'{"pipes": [1], "stdStreams": {}, "zzz": 1}', "zzz: Unknown key"),
        (b'{"pipes": [1], "stdStreams": {}}', "stdStreams: 'dest' missing"),
        (b'{"pipes": [1], "cgroupConfig": {"a": 1}}', "'cmd' missing or empty"),
        (b'{"cmd": ["a"], "pipes": [1], "cgroupConfig": {"a": 1}}', "cgroupConfig.a: Expecting a string"),
        (b'{"cmd": ["a"], "mounts": [1], "copyFiles": [1], "pipes": [1]}', "pipes[0]: Expecting an object"),
        (b'{"cmd": ["a"], "mounts": [1], "copyFiles": [1]}', "copyFiles[0]: Expecting an object"),
        (b'{"cmd": ["a"], "stdin": 1, "mounts": [1]}', "mounts[0]: Expecting an object"),
        (b'{"cmd": ["a"], "mounts": [{"dest": 1, "type": 1}]}', "mounts[0].dest: Expecting a string"),
    ],
)
def test_of_several_the_sandals_tool_would_have_told_this_one(text, expected):
    assert description(text) == expected


@pytest.mark.parametrize(
    "text, expected",
    [
        (b'{"id": 7, "zzz": 1}', 7),
        (b'{"zzz": 1, "id": "a"}', "a"),
        (b'{"id": [], "cmd": ["x"]}', None),
        (b'{"zzz": 1}', None),
        (b"[1]", None),
        (b'{"id": 7', None),
    ],
)
def test_an_invalid_request_keeps_its_id(text, expected):
    with pytest.raises(request.Invalid) as caught:
        request.parse(text)
    assert caught.value.id == expected


# JSON.


REFUSED = [
    *(b"", b" ", b"{", b"{}x", b"{} {}", b"[1,]", b'{"a":1,}', b"{,}", b'{"a" 1}', b'{"a":}', b"{a:1}", b"{'a':1}"),
    *(b"01", b"-01", b"1.", b".5", b"1e", b"1e+", b"+1", b"-", b"0x1", b"1_0", b"NaN", b"Infinity", b"-Infinity"),
    *(b"// x\n1", b"/**/1", b"1 // x", b"True", b"nul", b'"', b'"\\x"', b'"\\u12"', b'"\\u 123"', b'"a\nb"', b'"\x00"'),
    *(b'"\xff"', b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\xf5\x80\x80\x80"', b"\xef\xbb\xbf{}", b"\xa0{}", b"\x0b1"),
    *("\u0661".encode(), "\u2028{}".encode(), b'"\x1f"', b"{}\x00", b"1\x00"),
]


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_no_json_is_refused_without_a_word(text):
    assert description(text) is None
    with pytest.raises(ValueError, match=r"."):
        json.read(text)


@pytest.mark.parametrize(
    "text, expected",
    [
        (b'"\\u0000"', "\ufffd"),
        (b'"a\\ud800b"', "a\ufffdb"),
        (b'"\\udc00\\ud800"', "\ufffd\ufffd"),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'"\\ud800\\ud83d\\ude00"', "\ufffd\U0001f600"),
        (b'{"\\u0000": ["\\udfff"]}', {"\ufffd": ["\ufffd"]}),
        (b'"\\\\u0000\x7f"', "\\u0000\x7f"),
        (b'\r\n\t {"a": 1, "a": 2} \r\n\t', {"a": 2}),
        (b"9" * 300, int("9" * 300)),
        (b"9" * 5000, math.inf),
        (b"-" + b"9" * 5000, -math.inf),
        (b"1e999", math.inf),
        (b"1e-999", 0.0),
        (b"-0", 0),
        (b"1E+2", 100.0),
    ],
)
def test_what_is_json(text, expected):
    found = json.read(text)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize("text", [b"[" * 10**5, b'{"a":' * 10**5, b"[" * 10**6 + b"]" * 10**6])
def test_what_is_nested_too_deep_is_refused(text):
    assert description(text) == "Nested too deep"


def test_huge_numbers_are_clamped_or_refused():
    big = b"9" * 10000
    assert request.parse(b'{"cmd":["x"],"timeLimit":' + big + b"}").time_limit == request.MOST_SECONDS
    assert request.parse(b'{"cmd":["x"],"stdStreams":{"dest":"d","limit":1e999}}').std_streams.limit == LONG_MAX
    for key in ("uid", "id"):
        assert description(b'{"cmd":["x"],"' + key.encode() + b'":' + big + b"}") == f"{key}: Value too big"
    assert description(b'{"cmd":["x"],"limits":{"as":' + big + b"}}") == "limits.as: Value too big"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def without_nul(value):
    """VALUE as json.read() has it, where something in it was escaped."""
    return stdlib.loads(stdlib.dumps(value).replace("\\u0000", "\\ufffd"))


@given(VALUES, st.sampled_from([None, 1]), st.booleans())
@settings(deadline=None)
def test_a_document_means_what_it_means_to_the_json_module(value, indent, ascii_only):
    text = stdlib.dumps(value, indent=indent, ensure_ascii=ascii_only)
    if "\\\\u0000" not in text:  # a backslash and letters, which is no escape
        assert json.read(text.encode()) == without_nul(value)


@given(VALUES)
@settings(deadline=None)
def test_what_is_written_is_read_again(value):
    line = json.line(value)
    assert line.isascii()
    assert stdlib.loads(line) == value
    compact = stdlib.dumps(value, separators=(",", ":"))
    assert line.decode() == f"{compact}\n"


def test_text_that_was_no_utf_8_is_written_all_the_same():
    assert json.line({"a": ["\udcff", 1.5, (None,)]}) == b'{"a":["\\ufffd",1.5,[null]]}\n'


@given(st.binary())
@settings(deadline=None)
def test_no_bytes_do_anything_but_be_refused(data):
    refused(data)


@given(st.text(alphabet='{}[]",:0123456789-+.eE \\untrfalsdcm/'))
@settings(deadline=None)
def test_nothing_that_looks_like_json_does_anything_but_be_refused(text):
    refused(text.encode())


def refused(data):
    """See that DATA is no request, and that no exception but the one for that comes of it, or is a request."""
    try:
        request.parse(data)
    except request.Invalid as err:
        assert err.description is None or "\n" not in err.description or b"\n" in data or b"\\" in data
    try:
        stdlib.loads(data.decode(), parse_constant=nothing)
        valid = not data.startswith(b"\xef\xbb\xbf")
    except (ValueError, RecursionError):
        valid = False
    if not valid:
        assert description(data) is None


def nothing(text):
    """Refuse TEXT."""
    raise ValueError(text)


RIGHT = {key: [given for name, given, _ in GIVEN if name == key] for key in request.FIRST} | {"overlay": ["tmpfs"]}
SHAPES = st.fixed_dictionaries({}, optional={key: VALUES | st.sampled_from(RIGHT[key]) for key in RIGHT})


@given(SHAPES)
@settings(deadline=None, max_examples=200)
def test_no_object_does_anything_but_be_refused(document):
    refused_or_read(document)


INNER = {
    "mounts": ("type", "src", "dest", "options", "ro"),
    "pipes": ("dest", "src", "stdout", "stderr", "limit"),
    "copyFiles": ("dest", "src", "stdout", "stderr", "limit"),
    "stdStreams": ("dest", "limit"),
    "outputs": ("stdout", "stderr", "limit", "encoding"),
    "overlay": ("upper", "size", "changes"),
    "landlock": (*request.ACCESS, *request.TCP, "scope"),
    "limits": rlimits.LIMITS,
    "stdin": ("path",),
}
LISTS = ("mounts", "pipes", "copyFiles")


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_nothing_in_an_object_does_anything_but_be_refused(data):
    key = data.draw(st.sampled_from(sorted(INNER)))
    words = st.sampled_from(["bind", "tmpfs", "proc", "size=1", "/x", "1K", "1:2", "text", "signal", "unlimited", ""])
    item = st.dictionaries(st.sampled_from(INNER[key]), words | st.booleans() | st.lists(words) | VALUES)
    refused_or_read({**CMD, "chroot": "/", key: data.draw(st.lists(item) if key in LISTS else item)})


def refused_or_read(document):
    """See that DOCUMENT is refused, or a request."""
    try:
        found = request.parse(stdlib.dumps(document).encode())
    except request.Invalid as err:
        assert err.description
    else:
        assert found.cmd


WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)))
SIZES = st.integers(0, LONG_MAX)
CHANNELS = {"dest": WORDS, "limit": SIZES}
STREAMS = {"stdout": st.booleans(), "stderr": st.booleans()}
VALID = st.fixed_dictionaries(
    {"cmd": st.lists(WORDS, min_size=1)},
    optional={
        **dict.fromkeys(
            ("hostName", "domainName", "cgroup", "cgroupRoot", "seccompPolicy", "workDir", "chroot"), WORDS
        ),
        **dict.fromkeys(("vaRandomize", "report"), st.booleans()),
        **dict.fromkeys(("uid", "gid"), st.integers(0, 2**31 - 1)),
        "env": st.lists(WORDS),
        "timeLimit": st.floats(0, 1e9),
        "pipes": st.lists(st.fixed_dictionaries({"dest": WORDS, "src": WORDS, "limit": SIZES, **STREAMS})),
        "copyFiles": st.lists(st.fixed_dictionaries({"dest": WORDS, "src": WORDS, "limit": SIZES, **STREAMS})),
        "stdStreams": st.fixed_dictionaries(CHANNELS),
        "mounts": st.lists(
            st.fixed_dictionaries({"type": st.just("bind"), "dest": WORDS, "src": WORDS, "ro": st.booleans()})
        ),
        "id": WORDS | st.integers(-(10**100), 10**100),
        "network": st.sampled_from(request.NETWORKS),
    },
)


@given(VALID)
@settings(deadline=None)
def test_a_request_comes_out_as_it_went_in(document):
    found = request.parse(stdlib.dumps(document, ensure_ascii=False).encode())
    for key, value in document.items():
        assert again(getattr(found, request.SLOTS[key]), value) == value


def again(found, value):
    """FOUND in the shape of VALUE, from which it came."""
    if isinstance(value, dict):
        return {key: getattr(found, key) for key in value}
    if isinstance(value, list):
        return [again(inner, given) for inner, given in zip(found, value, strict=True)]
    return found


def test_little_is_imported_to_read_a_request():
    """Start-up is a feature."""
    code = 'import sys; sys.path[:0] = sys.argv[1:]; from hako import request, sinks; request.parse(b\'{"cmd":["x"]}\')'
    places = [str(TOP), *(place for place in sys.path if "-packages" in place or "hako-site" in place)]
    done = subprocess.run(
        [sys.executable, "-IS", "-c", f"{code}; print(*sys.modules)", *places],
        capture_output=True,
        text=True,
        check=True,
    )
    slow = {"re", "enum", "signal", "functools", "collections", "contextlib", "socket", "subprocess", "json", "typing"}
    assert slow & set(done.stdout.split()) == set()
