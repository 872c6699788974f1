"""Whole-path tests: every part in a process of its own, as an operator runs them."""
