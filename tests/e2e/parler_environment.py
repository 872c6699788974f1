"""Works in Parler-TTS's runtime environment: `python -m tests.e2e.parler_environment ADDRESS DIR`.

Writes the tiny model, which only its library can, and prints as one JSON line what a replica
says there when nobody but this test asks it.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from cluster.ai_models import load_ai_models
from cluster.serve_config import serve_config

MODEL_ID = "parler-tts/tiny"
TEXT = "Hello world, this is a test."


def runtime_environment(models_dir: Path) -> dict[str, Any]:
    """Returns the environment as the Serve config has it."""
    (model,) = load_ai_models(f"text-to-speech:{MODEL_ID}:true").models
    (application,) = serve_config([model], models_dir=models_dir, gpus=False)["applications"]
    (deployment,) = application["deployments"]
    environment: dict[str, Any] = deployment["ray_actor_options"]["runtime_env"]
    return environment


def try_out(models_dir: Path) -> dict[str, Any]:
    """Writes the model and speaks with it, in the environment."""
    import torch
    import transformers

    from deployments.model_args import ModelArgs
    from deployments.parler_tts import ParlerTTSReplica
    from deployments.schemas.text_to_speech import TextToSpeechRequest
    from deployments.tiny_models.repository import write_repository
    from tests.deployments.speech_models import save_parler_tts

    write_repository(models_dir, MODEL_ID, save_parler_tts)
    args = ModelArgs(pipeline="text-to-speech", model_id=MODEL_ID, models_dir=models_dir)
    replica = ParlerTTSReplica(args=args)
    asked = 0

    def ask() -> None:
        nonlocal asked
        asked += 1

    def spoken() -> Iterator[str]:
        for description in ("A calm voice.", "A calm voice.", "A loud voice.", ""):
            torch.manual_seed(0)
            request = TextToSpeechRequest(text=TEXT, description=description)
            yield hashlib.sha256(replica.infer(request, ask).samples.tobytes()).hexdigest()

    report = {"transformers": transformers.__version__, "spoken": list(spoken()), "asked": asked}
    replica.close()
    return report


def main() -> None:
    """Runs `try_out` as a task of the cluster."""
    address, models_dir = sys.argv[1], Path(sys.argv[2])
    ray.init(address=address, log_to_driver=False)
    task = ray.remote(num_cpus=1, runtime_env=runtime_environment(models_dir))(try_out)
    sys.stdout.write(json.dumps(ray.get(task.remote(models_dir))) + "\n")


if __name__ == "__main__":
    main()
