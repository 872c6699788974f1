"""Tests of what the demo sends and shows."""
