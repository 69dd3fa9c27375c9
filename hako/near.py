"""What somebody may have meant who named what is not there. Imported only to explain a failure: it costs 10 ms."""

import difflib

LIKENESS = 0.66  # of two words, as difflib reckons it: "src" is "source", "stack" is not "size"
MOST = 64  # characters: nothing here has a longer name, and difflib is slow


def nearest(word, known):
    """The one of KNOWN that WORD is most like, None if it is like none of them."""
    found = difflib.get_close_matches(word, known, 1, LIKENESS) if len(word) <= MOST else []
    return found[0] if found else None


def question(word, known):
    """Whether it is one of KNOWN that WORD means, for the beginning of a hint; "" if it is like none of them."""
    found = nearest(word, known)
    return f"{found}? " if found else ""


def hint(word, known):
    """The same as a whole hint, with a blank in front."""
    found = nearest(word, known)
    return f" [{found}?]" if found else ""


def option(word, own, others):
    """The same for WORD, --NAME, no option of a command that has those OWN; OTHERS is {command: its options}."""
    name = word.lstrip("-")
    if len(name) < 2:
        return ""
    longs = {known.lstrip("-"): known for known in own if known.startswith("--")}
    parts = [known for known in longs if known.startswith(name) or known.endswith(f"-{name}")]
    if len(parts) == 1:
        return f"{longs[parts[0]]}? "
    theirs = [command for command, options in others.items() if f"--{name}" in options]
    if theirs:
        return f"an option of {', '.join(theirs)}; "
    found = nearest(name, longs)
    return f"{longs[found]}? " if found else ""
