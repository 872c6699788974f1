"""A file for each test."""

import json
from pathlib import Path

import pytest

from tests.cluster.ai_models.reading import Write


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes an aiModels.json: text as it is, anything else as JSON."""

    def write_file(document: object) -> Path:
        path = tmp_path / "aiModels.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return write_file
