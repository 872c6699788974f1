"""Tests of the development orchestrator."""
