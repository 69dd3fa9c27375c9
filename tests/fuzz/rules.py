"""rules.py kafel|oci [libFuzzer options] - feed a parser of rules what atheris makes up

Nothing but a Failure of one line may come of it, or a policy that compiles to
what the rules say. Run by `make fuzz`, which installs atheris.
"""

import sys

import atheris

with atheris.instrument_imports():
    from hako import bpf, kafel, oci, rules
from hako.failure import Failure

CALLS = ((0, [0] * 6), (16, [0, 0x5412, 2**64 - 1, 0, 0, 0]), (0x40000001, [1] * 6))


def parse(language, text):
    """The Policy of TEXT."""
    source = kafel.Source("fuzz", text)
    if language == "oci":
        return oci.parse(source, "x86_64", {"CAP_KILL"}, (6, 1))
    return kafel.parse(source, "x86_64", rules.included_profile, rules.group)


def main(language):
    """Fuzz LANGUAGE."""
    sys.path.insert(0, "tests")
    from bpf_interpreter import run

    def once(data):
        text = atheris.FuzzedDataProvider(data).ConsumeUnicodeNoSurrogates(len(data))
        try:
            policy = parse(language, text)
            program = bpf.compile_policy(policy)
        except Failure as err:
            assert "\n" not in str(err)
            return
        for number, args in CALLS:
            rule = bpf.decide(policy, bpf.AUDIT_ARCH["x86_64"], number, args)
            expected = policy.foreign if rule is None else rule.action
            assert run(program, bpf.AUDIT_ARCH["x86_64"], number, args) == expected

    atheris.Setup([sys.argv[0], *sys.argv[2:]], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1])
