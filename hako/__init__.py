"""Small composable commands that isolate processes on Linux, and the library under them."""

__version__ = "0.1.0"
