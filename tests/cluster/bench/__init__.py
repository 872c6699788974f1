"""Tests of `livepeer-ray bench`."""
