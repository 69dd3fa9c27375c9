"""What the suite has in common: the sites, one for each somebody, and every way as a parameter."""

import pathlib
import shutil
import tempfile

import pytest

from hostile import probes, ways


def pytest_configure(config):
    """Say what the mark means."""
    config.addinivalue_line("markers", "long: takes long; for `make check-hostile` alone")
    config.addinivalue_line("markers", "alone: in ways that are one command, which no shell starts and waits for")


def pytest_generate_tests(metafunc):
    """Tests that take way run in every way of everybody that can be had here."""
    if "way" in metafunc.fixturenames:
        names = [name for name, (whose, _) in ways.WAYS.items() if ways.somebody(whose) is not None]
        # Those are behind a program that asks for them: how the commands themselves take arguments, descriptors and
        # signals has tests of its own in tests/test_task*.py and tests/test_library.py.
        module = metafunc.module.__name__.rpartition(".")[2]
        asked = {"test_d_terminal": ("hako-task",), "test_k_input": ("hako-task", "library")}.get(module, ())
        asked = ("hako-task", "library") if module == "test_i_life" else asked
        names = [name for name in names if not name.startswith(asked or ("-",))]
        if metafunc.definition.get_closest_marker("alone"):
            names = [name for name in names if not name.startswith(("hako-enter", "hako-task", "library"))]
        metafunc.parametrize("way", names, indirect=True)


@pytest.fixture(scope="session")
def probe():
    """The program of the attacks."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="hako-probe-"))
    directory.chmod(0o755)
    yield ways.compile_probe(directory)
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def sites(probe):
    """The Site of a somebody, by name; made when it is asked for."""
    made = {}

    def site(name):
        if name not in made:
            made[name] = ways.Site(ways.somebody(name), probe)
        return made[name]

    yield site
    for each in made.values():
        each.close()


class Way:
    """One way on its SITE; attack() tries attacks in it, before() without it. FREE are attacks that it allows."""

    def __init__(self, name, site, words):
        self.name, self.site, self.words, self.free = name, site, words, ways.FREE.get(name, ())

    def attack(self, names, **options):
        """What came of the attacks NAMES in there, {name: text}, but for those that it allows."""
        return self.site.attack(self.words, [name for name in names if name not in self.free], **options)


@pytest.fixture
def way(request, sites):
    """A Way."""
    whose, words = ways.WAYS[request.param]
    return Way(request.param, sites(whose), words)


@pytest.fixture
def control(sites, who):
    """Try attacks without any sandbox; return what WHO reached of them, and what is to be reached."""
    site = sites(who.name)

    def attempt(names, **options):
        reached = probes.reached(site.attack(None, names, **options))
        return reached, probes.within_reach(names, who.name, site)

    return attempt
