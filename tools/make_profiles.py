"""make_profiles.py DIRECTORY - compile the built-in profiles for every architecture into DIRECTORY

Reading a profile takes 15 ms; it is done here once, not at every start. A test holds the results to the rules.
"""

import pathlib
import sys

from hako import bpf, kafel, rules


def programs():
    """The compiled profiles: {file name: program}."""
    made = {}
    for name, _ in rules.listed(rules.PROFILES):
        for arch in bpf.MACHINE_ARCH.values():
            policy = kafel.parse(rules.profile(name), arch, rules.included_profile, rules.group)
            made[f"{name}.{arch}"] = bpf.compile_policy(policy)
    return made


if __name__ == "__main__":
    directory = pathlib.Path(sys.argv[1])
    directory.mkdir(exist_ok=True)
    for old in directory.iterdir():
        old.unlink()
    for file_name, program in programs().items():
        (directory / file_name).write_bytes(program)
