"""Mirrors the two packages; whole-path tests are in `tests/e2e`."""
