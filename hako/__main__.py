"""python3 -m hako: list the commands."""

from hako import core

for name in core.COMMANDS:
    print(core.load(name).__doc__.partition("\n")[0])
