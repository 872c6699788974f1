"""`livepeer-ray live-runner-config`: the file for orchestrators that look after runners themselves.

What `-liveRunnerConfig` takes (go-livepeer, ai/runner/live_runner.go, StaticLiveRunnerConfig).
"""

import json
import sys
from typing import Any

from pydantic import SecretStr

from cluster.ai_models import AIModel, AIModels, ModelKey, load_ai_models
from cluster.bridge.runner_urls import runner_url


def run(source: str, *, url: str, secret: SecretStr) -> int:
    """Prints the JSON to stdout and warnings to stderr.

    Args:
        source: an aiModels.json.
        url: how orchestrators reach the bridge.
        secret: the bridge's -orchSecret, from which the runners' addresses are made.

    Raises:
        ConfigError: the aiModels.json has problems.
    """
    models = load_ai_models(source)
    for warning in models.warnings:
        print(warning, file=sys.stderr)
    print(json.dumps(document(models, url=url, secret=secret), indent=2))
    return 0


def document(models: AIModels, *, url: str, secret: SecretStr) -> dict[str, Any]:
    """Returns what the file says."""
    keys = dict.fromkeys(model.key for model in models.models)
    return {"runners": [_runner(models, key, url, secret) for key in keys]}


def _runner(models: AIModels, key: ModelKey, url: str, secret: SecretStr) -> dict[str, Any]:
    price = models.live_runner_price(key)
    return {
        "label": f"{key.pipeline}/{key.model_id}",
        "app": f"{key.pipeline}/{key.model_id}",
        "mode": "single-shot",
        "runner_url": runner_url(url, secret, key),
        "health_url": "/health",
        "capacity": sum(_slots(model) for model in models.models if model.key == key),
        **({"price_info": price} if price else {}),
    }


def _slots(model: AIModel) -> int:
    """What is configured; what there really is only a runner that registers itself can say."""
    return model.capacity * (1 if model.url else model.ray.max_ongoing_requests)
