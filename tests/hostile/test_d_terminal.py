"""D: the caller's terminal, at PROG's stdin."""

from hostile import probes

# Whose controlling terminal it is matters to the kernel: to type on it is free for a session that has it, to take it
# over for one that has none.
NAMES = {
    "controlling": [name for name in probes.TERMINAL if name != "take-over"],
    "strange": [name for name in probes.TERMINAL if name != "controlling"],
}


def test_without_a_sandbox_they_succeed(who, control):
    found = {terminal: control(names, terminal=terminal) for terminal, names in NAMES.items()}
    reached = set.union(*map(probes.reached, found.values()))
    assert reached == probes.within_reach(probes.TERMINAL, who.name, found)


def test_they_reach_nothing(way):
    for terminal, names in NAMES.items():
        found = way.attack(names, terminal=terminal)
        assert probes.reached(found) == set()
        if "hako-policy" not in way.name:  # without arguments it would give PROG a terminal of its own
            assert found["type"] == "Operation not permitted"
