"""What takes minutes and a network runs for `make check-packages` alone."""

import os

collect_ignore_glob = [] if "HAKO_PACKAGES" in os.environ else ["test_*.py"]
