"""The runner API's responses as pydantic models, for its OpenAPI document.

Results write themselves (`Result.document`); these say what that looks like. Names and fields are
ai-runner's (runner/src/runner/routes/utils.py).
"""

from typing import Any

from pydantic import BaseModel, Field


class MediaURL(BaseModel):
    """A file."""

    url: str = Field(description="Where the file is: a data URL.")


class Media(MediaURL):
    """A generated picture."""

    seed: int = Field(description="The seed that it was generated with.")
    nsfw: bool = Field(description="Whether the safety check takes it for offensive.")


class ImageResponse(BaseModel):
    """Images."""

    images: list[Media] = Field(description="In the order of their seeds.")


class VideoResponse(BaseModel):
    """A video, frame by frame."""

    frames: list[list[Media]] = Field(description="Of each video, the frames as PNG.")


class AudioResponse(BaseModel):
    """Speech."""

    audio: MediaURL = Field(description="A WAV file.")


class MasksResponse(BaseModel):
    """Masks, best first, each as the text of nested lists."""

    masks: str = Field(description="One of the image's size for each object.")
    scores: str = Field(description="What the model thinks of each.")
    logits: str = Field(description="Low-resolution masks, for `mask_input`.")


class TextChunk(BaseModel):
    """A sentence or a word."""

    timestamp: list[Any] = Field(description="When it begins and ends, in seconds.")
    text: str = Field(description="What was said.")


class TextResponse(BaseModel):
    """A transcription."""

    text: str = Field(description="All of it.")
    chunks: list[TextChunk] = Field(description="Its parts and their times.")


class ImageToTextResponse(BaseModel):
    """What a model says about an image."""

    text: str = Field(description="The model's words.")


class LLMMessage(BaseModel):
    """One message of a chat."""

    role: str
    content: str


class LLMChoice(BaseModel):
    """An answer, or a piece of a streamed one."""

    index: int
    finish_reason: str = ""
    delta: LLMMessage = Field(default=None)  # type: ignore[assignment] # as the reference: absent
    message: LLMMessage = Field(default=None)  # type: ignore[assignment] # as above


class LLMTokenUsage(BaseModel):
    """Tokens, as the model counted them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class LLMResponse(BaseModel):
    """A chat's next message."""

    id: str
    model: str
    created: int
    usage: LLMTokenUsage
    choices: list[LLMChoice]
