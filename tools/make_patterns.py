"""Write hako/patterns.py: the docstring of every command, as docopt understands it.

Reading a docstring takes docopt and re 15 ms; it is done here once, not at every start.
"""

import sys

import docopt

from hako import core

HEAD = '''"""The commands' docstrings as docopt reads them. Made by `make patterns`; a test holds it to them.

Each function takes the module docopt and returns its pattern of one command.
"""

'''
CLASSES = ("AnyOptions", "Argument", "Command", "Either", "OneOrMore", "Option", "Optional", "Required")


def pattern(doc):
    """The fixed pattern of DOC, made as docopt.docopt() makes it."""
    options = docopt.parse_defaults(doc)
    tree = docopt.parse_pattern(docopt.formal_usage(docopt.printable_usage(doc)), options)
    used = set(tree.flat(docopt.Option))
    for shortcut in tree.flat(docopt.AnyOptions):
        shortcut.children = sorted(set(options) - used, key=lambda option: option.name)
    return tree.fix()


def source():
    """The text of hako/patterns.py."""
    text = HEAD
    for name, module in core.COMMANDS.items():
        written = repr(pattern(core.load(name).__doc__))
        for known in CLASSES:
            written = written.replace(f"{known}(", f"docopt.{known}(")
        text += f"\n\ndef {module}(docopt):\n    return {written}\n"
    return text


if __name__ == "__main__":
    sys.stdout.write(source())
