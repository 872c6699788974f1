"""What stands in for the models: answers of every pipeline, held for as long as a test wants."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field

from deployments.hardware import GPU
from deployments.ingress.config import ModelKey, ServedModel
from deployments.registry import PIPELINES
from deployments.schemas.audio_to_text import AudioToTextRequest, AudioToTextResult
from deployments.schemas.audio_to_text import Chunk as Sentence
from deployments.schemas.base import Chunk, MediaFile, Request, Result
from deployments.schemas.image_to_text import ImageToTextRequest, ImageToTextResult
from deployments.schemas.image_to_video import FramesRequest, FramesResult
from deployments.schemas.images import Image, ImagesRequest, ImagesResult
from deployments.schemas.llm import Completion, LLMChunk, LLMRequest, LLMResult, Usage
from deployments.schemas.segment_anything_2 import SegmentAnything2Request, SegmentAnything2Result
from deployments.schemas.text_to_speech import TextToSpeechRequest, TextToSpeechResult

PNG = b"\x89PNG " * 200_000
"""More than a piece, and no multiple of three."""

WORDS = ("One", " two", " three.")
COMPLETION = Completion(id="chat-1", model="org/llm", created_s=1_700_000_000)


def picture(number: int = 0) -> MediaFile:
    """A file that is no picture: nobody looks into it."""
    return MediaFile(data=PNG + bytes([number]), media_type="image/png")


def usage(tokens: int) -> Usage:
    """So many tokens."""
    return Usage(prompt_tokens=3, completion_tokens=tokens)


def answer(request: Request) -> Result:
    """A result of the request's pipeline."""
    match request:
        case ImagesRequest():
            images = (Image(file=picture(1), seed=7, nsfw=False),)
            return ImagesResult(images=(*images, Image(file=picture(2), seed=8, nsfw=True)))
        case FramesRequest():
            return FramesResult(frames=(picture(1), picture(2)), seed=7, nsfw=False)
        case AudioToTextRequest():
            sentence = Sentence(text="Hello.", start_s=0.0, end_s=None)
            return AudioToTextResult(text="Hello.", chunks=(sentence,))
        case SegmentAnything2Request():
            return SegmentAnything2Result(masks=b"[[1.0]]", scores=b"[0.5]", logits=b"[[-3.0]]")
        case LLMRequest():
            return LLMResult(
                completion=COMPLETION, text="".join(WORDS), finish_reason="stop", usage=usage(3)
            )
        case ImageToTextRequest():
            return ImageToTextResult(text="A bear.")
        case TextToSpeechRequest():
            return TextToSpeechResult(audio=MediaFile(data=b"RIFF wav", media_type="audio/wav"))
    raise TypeError(request)


def gpu(uuid: str) -> GPU:
    """A card."""
    return GPU(
        id=uuid,
        name="NVIDIA H100",
        major=9,
        minor=0,
        memory_free_bytes=5,
        memory_total_bytes=80,
        compute_percent=60,
        memory_percent=20,
    )


@dataclass(kw_only=True)
class StandIn:
    """A `Runner` that a test holds in its hand."""

    requests: list[tuple[ModelKey, Request]] = field(default_factory=list)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    """Set unless a test clears it: answers wait for it, and so does each further chunk."""
    failure: Exception | None = None
    """Raised in place of an answer."""
    fails_after: int = 0
    """So many chunks of a stream."""
    under_way: int = 0
    closed: int = 0
    """Streams that were closed or ended."""

    def __post_init__(self) -> None:
        self.go_on.set()

    def reset(self) -> None:
        """As new, for the next test."""
        vars(self).update(vars(StandIn()))

    async def run(self, model: ServedModel, request: Request) -> Result:
        """Answers."""
        self.requests.append((model.key, request))
        self.under_way += 1
        try:
            await self.go_on.wait()
        finally:
            self.under_way -= 1
        if self.failure:
            raise self.failure
        return answer(request)

    async def gpus(self, model: ServedModel) -> list[GPU]:
        """Tells a card of the model's own and one that all models share."""
        return [gpu(f"GPU-{model.model_id}"), gpu("GPU-shared")]

    async def stream(self, model: ServedModel, request: Request) -> AsyncGenerator[Chunk, None]:
        """Answers word by word."""
        self.requests.append((model.key, request))
        try:
            for number, word in enumerate(WORDS):
                if number:
                    await self.go_on.wait()
                if self.failure and number >= self.fails_after:
                    raise self.failure
                yield LLMChunk(
                    completion=COMPLETION,
                    text=word,
                    finish_reason="stop" if word is WORDS[-1] else "",
                    usage=usage(number + 1),
                    replica="replica",
                    compute_s=0.0,
                )
        finally:
            self.closed += 1


def served(pipeline: str, model_id: str, *, slots: int = 1, cold: bool = False) -> ServedModel:
    """A model as the configuration has it."""
    app = f"{pipeline}--{model_id}"
    return ServedModel(pipeline=pipeline, model_id=model_id, app=app, slots=slots, cold=cold)


ONE_EACH: Mapping[str, ServedModel] = {
    name: served(name, f"org/{name}", slots=100) for name in PIPELINES
}
"""A model of every pipeline."""
