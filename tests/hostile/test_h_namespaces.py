"""H: what of the host is shared with nobody."""

import signal

from test_run_life import alive, gone, mark, up  # noqa: F401  mark is a fixture

from conftest import DEADLINE
from hostile import probes, ways

NAMES = probes.of("H")


def test_without_a_sandbox_they_succeed(control):
    reached, within = control(NAMES)
    assert reached >= within


def test_they_reach_nothing(way):
    assert probes.reached(way.attack(NAMES)) == set()


def test_three_deep_they_die_together(who, sites, mark):  # noqa: F811
    """Whichever of the supervisors is killed."""
    site = sites(who.name)
    inner = ["hako-run", "-m/bin/busybox:/bin/busybox", "-m/proc:/proc", "--tmpfs=/tmp", "/rw/nest"]
    nest = site.rw
    for _ in range(2):
        nest /= "nest"
        for name in (".hako", "bin", "proc", "tmp", "rw/nest", "nest"):
            (nest / name).mkdir(parents=True, exist_ok=True)
        (nest / "bin/busybox").touch()
    second = [*inner[:-1], "-m/rw/nest:/rw", "/rw/nest"]
    prog = ["/bin/busybox", "sh", "-c", "echo up; while :; do /bin/busybox sleep 1; done", mark]
    argv = ways.run("--user=65534")(site, [*second, *inner, *prog])
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = who.start(*argv)
        assert up(process) == "up\n", process.stderr.read()
        assert alive(mark)
        process.send_signal(number)
        process.communicate(timeout=DEADLINE)
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
        assert gone(mark)
