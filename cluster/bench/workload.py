"""A pipeline's benchmark requests, and what the network divides their seconds by.

Gateways prefer the orchestrator with the smallest latency score, `seconds / work`. What the work
of each pipeline is stands in go-livepeer, server/ai_process.go: the `Calculate…LatencyScore`
functions and the lines that call them.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.demo.inputs import picture, sound
from cluster.errors import ConfigError
from deployments.errors import BadRequest
from deployments.registry import PIPELINES
from deployments.schemas.base import Request
from deployments.special_models import special

IMAGE_SIDE = 512
UPSCALE_SIDE = 128
"""Enlarged to 512x512."""

PROMPT = "a lighthouse on a cliff at dawn, oil on canvas"
QUESTION = "what should somebody know who sees the sea for the first time?"
TEXT = "The lighthouse stands on a cliff, and its light is seen from far away at night."

SAMPLES: Mapping[str, Mapping[str, Any]] = {
    "text-to-image": {"prompt": PROMPT, "width": 1024, "height": 1024},
    "image-to-image": {"prompt": PROMPT},
    "image-to-video": {},
    "upscale": {"prompt": PROMPT},
    "audio-to-text": {},
    "segment-anything-2": {"point_coords": "[[60, 60]]", "point_labels": "[1]"},
    "llm": {"max_tokens": 256, "stream": True},
    "image-to-text": {},
    "text-to-speech": {"text": TEXT},
}
"""What a request has beside the file, a seed, and the pipeline's own defaults."""

VIDEO_FRAMES = 25
"""Gateways count so many in every video, whatever the model makes."""

DIFFUSION = ("text-to-image", "image-to-image", "image-to-video", "upscale")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one request amounts to."""

    units: float
    """Of throughput; 0 where the answer tells, as the tokens of an llm do."""
    unit: str
    """Such as `images`."""
    scored: float
    """What the score divides by; 0 where the answer tells."""
    scored_unit: str
    """Such as `pixel and step`."""


class Workload:
    """The requests to one model."""

    def __init__(
        self,
        *,
        pipeline: str,
        model_id: str,
        parameters: Mapping[str, Any],
        file: bytes | None,
        batch: int,
    ) -> None:
        """Makes the first request, so that what is wrong with them shows at once.

        Args:
            pipeline: of the registry.
            model_id: of the model.
            parameters: in place of the sample's or the pipeline's own.
            file: in place of the sample's image or sound.
            batch: images that each request asks for.

        Raises:
            ConfigError: a parameter that the pipeline has not, or a value out of its bounds.
        """
        self._pipeline = PIPELINES[pipeline]
        self._model_id = model_id
        fields = self._pipeline.request.model_fields
        if unknown := [name for name in parameters if name not in fields]:
            known = ", ".join(name for name in fields if name not in (self._pipeline.file, "model"))
            raise ConfigError(f"--request: {pipeline} has no {unknown[0]!r}; it has {known}")
        if batch > 1 and "num_images_per_prompt" not in fields:
            raise ConfigError(f"--batch: a request to {pipeline} cannot ask for several images")
        if file is not None and not self._pipeline.file:
            raise ConfigError(f"--input: {pipeline} takes no file")
        self._parameters = {**SAMPLES[pipeline], **parameters}
        if "num_images_per_prompt" in fields:
            self._parameters.setdefault("num_images_per_prompt", batch)
        self._file = file
        try:
            self.work = self._work(self.request(0))
        except BadRequest as error:
            raise ConfigError(f"--request, --input: {error}") from None

    @property
    def parameters(self) -> Mapping[str, Any]:
        """What all requests have in common, without the file."""
        request = self.request(0)
        return request.model_dump(mode="json", exclude={self._pipeline.file, "seed", "messages"})

    def request(self, number: int) -> Request:
        """Returns one of the requests; each is different, for replicas keep what they can reuse.

        Raises:
            BadRequest: a value is out of its bounds.
        """
        payload = dict(self._parameters)
        fields = self._pipeline.request.model_fields
        if "seed" in fields:
            payload.setdefault("seed", number)
        if "messages" in fields:
            message = {"role": "user", "content": f"{number}: {QUESTION}"}
            payload.setdefault("messages", [message])
        if self._pipeline.file:
            payload[self._pipeline.file] = self._file or self._sample_file(number)
        return self._pipeline.request.parse(payload)

    def _sample_file(self, number: int) -> bytes:
        if self._pipeline.file == "audio":
            return sound()
        from PIL import Image

        side = UPSCALE_SIDE if self._pipeline.name == "upscale" else IMAGE_SIDE
        image = Image.open(io.BytesIO(picture())).resize((side, side))
        image.putpixel((0, 0), (number % 256, number // 256 % 256, 0))
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()

    def _work(self, request: Any) -> Work:
        name = self._pipeline.name
        if name in DIFFUSION:
            return self._diffusion(request)
        if name == "llm":
            return Work(units=0, unit="tokens", scored=0, scored_unit="token")
        if name == "audio-to-text":
            duration_s = _duration_s(request.audio)
            return Work(
                units=duration_s, unit="s of sound", scored=duration_s, scored_unit="s of sound"
            )
        if name == "text-to-speech":
            characters = len(request.text)
            return Work(
                units=characters, unit="characters", scored=characters, scored_unit="character"
            )
        width, height = _size(request.image)
        return Work(units=1, unit="images", scored=width * height, scored_unit="pixel")

    def _diffusion(self, request: Any) -> Work:
        name = self._pipeline.name
        # Of text-to-image and image-to-video what comes out, of the others what goes in.
        sized = name in ("text-to-image", "image-to-video")
        width, height = (request.width, request.height) if sized else _size(request.image)
        images = getattr(request, "num_images_per_prompt", 1)
        frames = VIDEO_FRAMES if name == "image-to-video" else 1
        steps = special(self._model_id).steps or request.num_inference_steps
        return Work(
            units=images,
            unit="videos" if name == "image-to-video" else "images",
            scored=width * height * images * frames * steps,
            scored_unit="pixel and step",
        )


def _size(image: bytes) -> tuple[int, int]:
    from deployments.image_input import decode_image

    return decode_image(image).size


def _duration_s(audio: bytes) -> float:
    from deployments.audio_input import SAMPLE_RATE_HZ, decode_audio

    return len(decode_audio(audio, lambda: None)) / SAMPLE_RATE_HZ
