"""The demo's requests. Small and few steps: its models are noise at any size."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.demo.inputs import HEIGHT, HOUSE, WIDTH

INPUT_FILES = {"image": "input.png", "audio": "input.wav"}
"""What the inputs are called where the demo writes them, by the form's field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request."""

    name: str
    """Of its output, without an extension."""
    pipeline: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of the JSON body or, where a file is sent, of the form."""
    file: str = ""
    """The form's field for the input: `image`, `audio` or none."""


PROMPTS = tuple(
    Sample(
        name=f"text-to-image-{seed}",
        pipeline="text-to-image",
        fields={
            "prompt": prompt,
            "width": width,
            "height": height,
            "seed": seed,
            "num_inference_steps": 8,
            "safety_check": False,
        },
    )
    for prompt, width, height, seed in (
        ("a lighthouse at dawn", 512, 512, 7),
        ("a fox in the snow", 768, 512, 11),
        ("a market street, rain", 512, 768, 42),
    )
)
"""What the plain demo sends, all at once: one model, two replicas."""

EVERY_PIPELINE = (
    Sample(
        name="text-to-image",
        pipeline="text-to-image",
        fields={
            "prompt": "a lighthouse at dawn",
            "width": 512,
            "height": 512,
            "seed": 7,
            "num_inference_steps": 8,
        },
    ),
    Sample(
        name="image-to-image",
        pipeline="image-to-image",
        file="image",
        fields={"prompt": "make it winter", "seed": 7, "num_inference_steps": 8},
    ),
    Sample(
        name="image-to-video",
        pipeline="image-to-video",
        file="image",
        fields={
            "width": WIDTH,
            "height": HEIGHT,
            "fps": 8,
            "seed": 7,
            "num_inference_steps": 4,
        },
    ),
    Sample(
        name="upscale",
        pipeline="upscale",
        file="image",
        fields={"prompt": "a house, sharp", "seed": 7, "num_inference_steps": 4},
    ),
    Sample(name="audio-to-text", pipeline="audio-to-text", file="audio"),
    Sample(
        name="segment-anything-2",
        pipeline="segment-anything-2",
        file="image",
        fields={
            "box": json.dumps(HOUSE),
            "multimask_output": True,
            "return_logits": False,
        },
    ),
    Sample(
        name="llm",
        pipeline="llm",
        fields={
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "max_tokens": 48,
        },
    ),
    Sample(name="image-to-text", pipeline="image-to-text", file="image"),
    Sample(
        name="text-to-speech",
        pipeline="text-to-speech",
        fields={"text": "Nine pipelines, one worker."},
    ),
)
"""What `demo --all` sends, one after the other so that each has the machine for itself."""
