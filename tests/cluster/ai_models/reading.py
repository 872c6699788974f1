"""Entries, and what is said about them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.ai_models import AIModels, load_ai_models
from cluster.errors import AIModelsError

TOKEN = "tok-3f9a1c"  # in no other word of these tests, so that a leak can be searched for

Write = Callable[[object], Path]


def entry(**fields: Any) -> dict[str, Any]:
    return {"pipeline": "text-to-image", "model_id": "org/name", **fields}


def problems(source: Path | str) -> list[str]:
    """Returns the problems without the name of the file, which each has to carry."""
    with pytest.raises(AIModelsError) as caught:
        load_ai_models(source)
    prefix = f"{source}: "
    assert all(problem.startswith(prefix) for problem in caught.value.problems)
    return [problem.removeprefix(prefix) for problem in caught.value.problems]


def warnings(models: AIModels) -> list[str]:
    return [warning.removeprefix(f"{models.source}: ") for warning in models.warnings]
