"""elf.py [libFuzzer options] - feed the reader of programs, and of the loader's cache, what atheris makes up

Nothing but a Failure of one line may come of it, or names of files that can be ones.
Run by `make fuzz`, which installs atheris.
"""

import os
import sys

import atheris

with atheris.instrument_imports():
    from hako import elf
from hako.failure import Failure

FILE = os.memfd_create("program")
PATH = f"/proc/self/fd/{FILE}"


def once(data):
    """Read DATA as a program, as the beginning of a script and as a cache."""
    os.ftruncate(FILE, 0)
    os.pwrite(FILE, data, 0)
    try:
        found = elf.needs(PATH, {}, {}.get)
        assert all(path and "\0" not in path and len(os.fsencode(path)) <= elf.PATH_MAX for path in found), found
    except Failure as err:
        assert "\n" not in str(err)
    assert len(elf.script_words(data)) <= 2
    cache = elf.Cache(data)
    for name in list(cache.places)[:20]:
        assert all(path.startswith("/") for path in cache.paths(os.fsdecode(name)))


if __name__ == "__main__":
    atheris.Setup(sys.argv, once)
    atheris.Fuzz()
