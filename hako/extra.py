"""Modules that hako does without, but for a command that is an extra."""

from importlib.util import find_spec

from hako.failure import Failure


def need(module, extra):
    """See that MODULE is there, for the sake of which there is the extra EXTRA; a Failure says how to get it if not.

    Commands start without site-packages; for these the system's will do.
    """
    if find_spec(module) is None:
        import site

        site.main()
        if find_spec(module) is None:
            raise Failure(f"{module} is not installed [pip install 'hako[{extra}]', or the system's python3-{module}]")
