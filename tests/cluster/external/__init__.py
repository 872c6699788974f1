"""Tests of the backends for external containers."""
