"""Fixtures of all tests."""

import os
from pathlib import Path

import pytest

# Before torch starts its threads: the machines are small and several tests may share them.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory with every tiny model, and the aiModels.json that names them."""
    from deployments.loading import quiet_libraries
    from deployments.tiny_models import write_tiny_models

    quiet_libraries()
    directory = tmp_path_factory.mktemp("tiny-models")
    write_tiny_models(directory)
    return directory
