"""Small composable commands that isolate processes on Linux, and the library under them. See hako(3)."""

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hako.library import (
        CAPTURE,
        DEVNULL,
        PIPE,
        STDOUT,
        Chunk,
        Failure,
        Process,
        Result,
        Sandbox,
        Stream,
        TaskFailed,
        WorkerLost,
        run,
    )
    from hako.pool import Pool

__all__ = ["CAPTURE", "DEVNULL", "PIPE", "STDOUT", "Chunk", "Failure", "Pool", "Process", "Result", "Sandbox"]
__all__ += ["Stream", "TaskFailed", "WorkerLost", "run"]


def __getattr__(name: str) -> object:
    """What the library offers under NAME: imported now, for the commands do without."""
    if name not in __all__:
        raise AttributeError(f"module 'hako' has no attribute {name!r}")
    if name == "Pool":
        from hako.pool import Pool

        return Pool
    from hako import library

    return getattr(library, name)
