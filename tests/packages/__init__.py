"""What make check-packages runs; a package, so that its conftest is not in the way of the other."""
