"""policy.py [libFuzzer options] - feed the reader of policies what atheris makes up

Nothing but a Failure of one line may come of it, or a policy that is printed as
one that says the same; and as TOML it means what tomllib says. Run by `make
fuzz`, which installs atheris.
"""

import math
import sys
import tomllib

import atheris

with atheris.instrument_imports():
    from hako import policy, policy_keys, policy_text, toml  # noqa: F401
from hako.failure import Failure

ONLY_OURS = ("a date or a time", "64 bits", "nested more than", "a key of more than")


def plain(item):
    """ITEM of toml without its places; nan, which is equal to nothing, as a word."""
    if isinstance(item, toml.Item):
        return plain(item.value)
    if isinstance(item, list):
        return [plain(inner) for inner in item]
    if isinstance(item, dict):
        return {key: plain(inner) for key, inner in item.items()}
    return "nan" if isinstance(item, float) and math.isnan(item) else (type(item), item)


def compare(text):
    """TEXT means to us what it means to tomllib."""
    try:
        theirs = tomllib.loads(text)
    except (ValueError, RecursionError):
        theirs = None
    try:
        ours = plain(toml.parse(toml.source("fuzz", text), {}))
    except Failure as err:
        assert theirs is None or any(words in str(err) for words in ONLY_OURS), (text, err)
        return
    assert theirs is not None and ours == plain(theirs), text


def once(data):
    """Read DATA as a policy."""
    text = data.decode(errors="replace")
    if "{{" not in text:
        compare(text)
    try:
        made = policy.parse("fuzz", text)
    except Failure as err:
        assert "\n" not in str(err)
        assert len(str(err)) < 500
        return
    printed = policy_text.to_toml(made)
    assert policy_text.to_toml(policy.parse("again", printed)) == printed


if __name__ == "__main__":
    atheris.Setup(sys.argv, once)
    atheris.Fuzz()
