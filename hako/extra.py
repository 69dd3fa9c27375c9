"""Modules that hako does without, but for a command that is an extra."""

from importlib.util import find_spec

from hako.failure import Failure


def need(module):
    """See that MODULE, which an extra has pip bring, is there; a Failure says how to get it if not.

    Commands start without site-packages; for these the system's will do. The
    extra is not named: elsewhere than here a package hako may be somebody else's.
    """
    if find_spec(module) is None:
        import site

        site.main()
        if find_spec(module) is None:
            raise Failure(f"{module} is not installed [pip install {module}, or the system's python3-{module}]")
