"""Tests of cluster.bridge."""
