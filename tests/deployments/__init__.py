"""Tests of what runs in a replica."""
