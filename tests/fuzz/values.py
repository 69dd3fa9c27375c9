"""values.py [libFuzzer options] - feed the readers of values and command lines what atheris makes up

The first byte says which reader gets the rest. Nothing but a Failure of one line may
come of it, or a value that says what the text did. Run by `make fuzz`, which installs atheris.
"""

import os
import sys

import atheris

with atheris.instrument_imports():
    from hako import core, identity, limits, newfile, sandbox, subids, values
from hako.failure import Failure

FILE = f"/proc/self/fd/{os.memfd_create('subid')}"
PLACE = f"/tmp/hako-fuzz-{os.getpid()}"


def whole(text):
    """Read a whole number."""
    assert str(values.whole("-x", text)) == text.lstrip("0") or int(text) == 0


def size(text):
    """Read a size."""
    assert 0 <= values.size("-x", text) < 2**63 and text[0] in "0123456789"


def seconds(text):
    """Read seconds."""
    assert values.seconds("-x", text) > 0


def identifier(text):
    """Look up a user and a group."""
    uid, _ = identity.find_user(text, False)
    assert text[0] not in "+- " and (not text.isdigit() or uid == int(text))


def group(text):
    """Look up a group."""
    gid = identity.find_group(text)
    assert text[0] not in "+- " and (not text.isdigit() or gid == int(text))


def mount(text):
    """Read what is to be mounted."""
    made = sandbox.bind("-m", text)
    assert made.src and sandbox.steps(made.dst) and made.flags <= sandbox.MOUNT_FLAGS


def tmpfs(text):
    """Read where a tmpfs is to be."""
    made = sandbox.tmpfs("--tmpfs", text)
    assert sandbox.steps(made.dst) and (made.size is None or made.size > 0)


def overlay(text):
    """Read where changes are to go."""
    made = sandbox.overlay("--overlay", text)
    assert made.upper or made.size is None or made.size > 0


def ranges(text):
    """Read ranges of ids."""
    with open(FILE, "wb") as file:
        file.write(text.encode(errors="surrogateescape"))
    found = subids.delegated(FILE, ["me"])
    assert all(count > 0 and first + count - 1 <= identity.LARGEST_ID for first, count in found)


def pid_file(text):
    """Replace a pid file."""
    data = text.encode(errors="surrogateescape")
    with open(PLACE, "wb") as file:
        file.write(data)
    made = newfile.PidFile(PLACE)
    assert not data[:32].strip(b"0123456789\n")
    made.show_pid(7)
    made.remove()
    made.close()
    assert not os.path.exists(PLACE)


def command_line(text):
    """Read a command line."""
    name, *words = text.split("\n")
    name = list(core.COMMANDS)[len(name) % len(core.COMMANDS)]
    if any(word.startswith("--") and word.partition("=")[0] in ("--help", "--version") for word in words):
        return
    module = core.load(name)
    args = core.read(name, module, words)
    assert ("PROG" in args) == ("PROG [ARG...]" in module.__doc__)
    assert args.get("PROG") is None or args["PROG"] in words
    if name == "hako-limit":
        limits.from_args(args)
    elif name == "hako-run":
        module.describe(args)


READERS = (whole, size, seconds, identifier, group, mount, tmpfs, overlay, ranges, pid_file, command_line)


def once(data):
    """Have the rest of DATA read by the one that its first byte says."""
    if not data:
        return
    text = data[1:].decode(errors="surrogateescape").replace("\0", "")
    try:
        READERS[data[0] % len(READERS)](text)
    except Failure as err:
        assert "\n" not in str(err), err


if __name__ == "__main__":
    atheris.Setup(sys.argv, once)
    atheris.Fuzz()
