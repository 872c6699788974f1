"""Fixtures of all tests."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before torch starts its threads: the machines are small and several tests may share them.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Other work on the machine is no failure.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


LOGGERS = (None, "cluster", "ray.serve", "ray._private.authentication")


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Undoes `cluster.logs.configure`, which commands call: for the process that they are."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if type(handler) is logging.StreamHandler:  # pytest's own are of other classes
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def tiny_models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models directory with every tiny model, and the aiModels.json that names them."""
    from deployments.loading import quiet_libraries
    from deployments.tiny_models import write_tiny_models

    quiet_libraries()
    directory = tmp_path_factory.mktemp("tiny-models")
    write_tiny_models(directory)
    return directory
