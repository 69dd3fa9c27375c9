"""Tests for machines that are not this one; a package, so that its conftest is not in the way of the other."""
