"""The builder that Serve imports, and the registry's lines."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from deployments.app import build, replica_class
from deployments.llm import LLMReplica
from deployments.model_args import ModelArgs
from deployments.parler_tts import ParlerTTSReplica
from deployments.registry import PIPELINES
from deployments.replica import Replica
from deployments.schemas.base import Request
from deployments.text_to_speech import TextToSpeechReplica
from deployments.vllm_engine import VLLMReplica


@pytest.mark.parametrize("pipeline", sorted(PIPELINES))
def test_every_line_of_the_registry_leads_to_a_replica(pipeline: str) -> None:
    assert issubclass(replica_class(pipeline), Replica)
    assert issubclass(PIPELINES[pipeline].request, Request)


def test_a_model_that_needs_its_own_packages_has_its_own_replica() -> None:
    speech = "text-to-speech"
    assert replica_class(speech, "parler-tts/parler-tts-mini-v1") is ParlerTTSReplica
    assert replica_class(speech, "suno/bark") is TextToSpeechReplica


def test_an_engine_that_is_asked_for_has_its_own_replica() -> None:
    assert replica_class("llm", "org/a", "vllm") is VLLMReplica
    assert replica_class("llm", "org/a") is LLMReplica


def test_an_unknown_pipeline_is_named() -> None:
    args = ModelArgs(pipeline="text-to-smell", model_id="a/b", models_dir=Path("models"))
    with pytest.raises(ValueError, match=r"'text-to-smell'; there are: text-to-image"):
        build(args)


def test_building_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from deployments.app import build\n"
        "from deployments.model_args import ModelArgs\n"
        "from deployments.registry import PIPELINES\n"
        "for name in PIPELINES:\n"
        "    for engine in (None, *PIPELINES[name].engines):\n"
        "        args = {'pipeline': name, 'model_id': 'a/b', 'engine': engine}\n"
        "        build(ModelArgs(models_dir='/nowhere', **args))\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'peft', 'vllm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_reading_the_registry_imports_neither_ray_nor_torch() -> None:
    code = (
        "import sys\n"
        "import deployments.registry, deployments.model_args\n"
        "heavy = {'ray', 'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_misspelt_arguments_are_refused() -> None:
    with pytest.raises(ValidationError, match="deepcash"):
        ModelArgs.model_validate(
            {"pipeline": "p", "model_id": "a/b", "models_dir": "m", "deepcash": True}
        )
