"""The table of the callers' routes: what a request carries and what its answer must hold.

Another pipeline is one more line in `PIPELINES`. Parameter names and types are go-livepeer's
(ai/worker/runner.gen.go), the filled-in defaults are its gateway's (server/ai_process.go). It
is the network's table, not this worker's: it holds pipelines whether or not anybody serves them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.loopback import documents
from cluster.loopback.documents import Document

CAPABILITIES = {
    27: "text-to-image",
    28: "image-to-image",
    29: "image-to-video",
    30: "upscale",
    31: "audio-to-text",
    32: "segment-anything-2",
    33: "llm",
    34: "image-to-text",
    35: "live-video-to-video",
    36: "text-to-speech",
    37: "byoc",
}
"""Every pipeline that a worker can advertise, by number (go-livepeer, core/capabilities.go)."""


class Messages:
    """The type of a parameter that is a chat: a list of `{"role", "content"}`, never empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """A kind of file that answers carry."""

    extension: str
    media_type: str
    signature: re.Pattern[bytes]
    """What such a file starts with."""


PNG = Media(extension=".png", media_type="image/png", signature=re.compile(rb"\x89PNG\r\n\x1a\n"))
MP4 = Media(extension=".mp4", media_type="video/mp4", signature=re.compile(rb"(?s)....ftyp"))
WAV = Media(extension=".wav", media_type="audio/wav", signature=re.compile(rb"(?s)RIFF....WAVE"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """One pipeline as callers see it."""

    name: str
    """The route is `POST /<name>`."""
    parameters: Mapping[str, type]
    """By name: str, int, float, bool or Messages."""
    answer: type[Document]
    """What the document of an answer holds."""
    streams: bool = False
    """Whether the answer to a request that says `stream` is an event stream."""
    media: Media | None = None
    """The files of an answer; None where an answer is a document and nothing else."""
    file: str = ""
    """The field of the upload that a request works on: it comes as multipart/form-data then,
    else as JSON."""
    model_field: str = "model_id"
    required: frozenset[str] = frozenset()
    """What a caller has to give beside the file."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What is sent to workers where the caller says nothing."""
    at_least: Mapping[str, int] = field(default_factory=dict)
    """Numbers that are raised to this where the caller's are lower."""


_ALL = (
    Pipeline(
        name="text-to-image",
        parameters={
            "guidance_scale": float,
            "height": int,
            "loras": str,
            "model_id": str,
            "negative_prompt": str,
            "num_images_per_prompt": int,
            "num_inference_steps": int,
            "prompt": str,
            "safety_check": bool,
            "seed": int,
            "width": int,
        },
        defaults={"prompt": "", "height": 512, "width": 512, "num_images_per_prompt": 1},
        at_least={"num_images_per_prompt": 1},
        media=PNG,
        answer=documents.Images,
    ),
    Pipeline(
        name="image-to-image",
        file="image",
        parameters={
            "guidance_scale": float,
            "image_guidance_scale": float,
            "loras": str,
            "model_id": str,
            "negative_prompt": str,
            "num_images_per_prompt": int,
            "num_inference_steps": int,
            "prompt": str,
            "safety_check": bool,
            "seed": int,
            "strength": float,
        },
        defaults={"prompt": "", "num_images_per_prompt": 1},
        at_least={"num_images_per_prompt": 1},
        media=PNG,
        answer=documents.Images,
    ),
    Pipeline(
        name="image-to-video",
        file="image",
        parameters={
            "fps": int,
            "height": int,
            "model_id": str,
            "motion_bucket_id": int,
            "noise_aug_strength": float,
            "num_inference_steps": int,
            "safety_check": bool,
            "seed": int,
            "width": int,
        },
        media=MP4,
        answer=documents.Video,
    ),
    Pipeline(
        name="upscale",
        file="image",
        parameters={
            "model_id": str,
            "num_inference_steps": int,
            "prompt": str,
            "safety_check": bool,
            "seed": int,
        },
        defaults={"prompt": ""},
        media=PNG,
        answer=documents.Images,
    ),
    Pipeline(
        name="audio-to-text",
        file="audio",
        parameters={"metadata": str, "model_id": str, "return_timestamps": str},
        answer=documents.Transcript,
    ),
    Pipeline(
        name="segment-anything-2",
        file="image",
        parameters={
            "box": str,
            "mask_input": str,
            "model_id": str,
            "multimask_output": bool,
            "normalize_coords": bool,
            "point_coords": str,
            "point_labels": str,
            "return_logits": bool,
        },
        answer=documents.Masks,
    ),
    Pipeline(
        name="llm",
        model_field="model",
        parameters={
            "max_tokens": int,
            "messages": Messages,
            "model": str,
            "stream": bool,
            "temperature": float,
            "top_k": int,
            "top_p": float,
        },
        required=frozenset({"messages"}),
        # The real gateway insists that callers give `stream` (server/ai_mediaserver.go).
        defaults={"max_tokens": 256, "stream": False},
        answer=documents.Completion,
        streams=True,
    ),
    Pipeline(
        name="image-to-text",
        file="image",
        parameters={"model_id": str, "prompt": str},
        answer=documents.Text,
    ),
    Pipeline(
        name="text-to-speech",
        parameters={"description": str, "model_id": str, "text": str},
        required=frozenset({"text"}),
        media=WAV,
        answer=documents.Audio,
    ),
)

PIPELINES: dict[str, Pipeline] = {pipeline.name: pipeline for pipeline in _ALL}
"""By name."""
