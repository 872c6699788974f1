"""Tests of aiModels.json."""
