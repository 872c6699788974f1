"""The table of pipelines. A pipeline is one replica module, one schema module and one line here.

The replica class stands as an import string, so that reading the table imports no torch.
"""

from dataclasses import dataclass

from pydantic import BaseModel

from deployments.schemas import responses
from deployments.schemas.audio_to_text import MAX_FILE_BYTES as MAX_AUDIO_BYTES
from deployments.schemas.audio_to_text import AudioToTextRequest
from deployments.schemas.base import Request
from deployments.schemas.image_to_image import ImageToImageRequest
from deployments.schemas.image_to_text import ImageToTextRequest
from deployments.schemas.image_to_video import ImageToVideoRequest
from deployments.schemas.images import MAX_FILE_BYTES
from deployments.schemas.llm import LLMRequest
from deployments.schemas.segment_anything_2 import SegmentAnything2Request
from deployments.schemas.text_to_image import TextToImageRequest
from deployments.schemas.text_to_speech import TextToSpeechRequest
from deployments.schemas.upscale import UpscaleRequest


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Models of a pipeline that another replica serves, with packages of its own."""

    prefix: str
    """What their ids begin with."""
    replica: str
    """`module:class`, a `deployments.replica.Replica`."""
    packages: tuple[str, ...]
    """What pip installs over a copy of this environment, exactly these: dependencies are named."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One pipeline of the Livepeer AI network that this project serves."""

    name: str
    """As in aiModels.json and on the wire, `text-to-image`."""
    capability: int
    """The network's number for it (go-livepeer, core/capabilities.go)."""
    request: type[Request]
    response: type[BaseModel]
    """What its result's document looks like over HTTP."""
    replica: str
    """`module:class` of the replica, a `deployments.replica.Replica`."""
    file: str = ""
    """The request's field that holds the input file's bytes; empty for pipelines without one."""
    max_file_bytes: int = MAX_FILE_BYTES
    """Of that file; of a larger one no more is fetched."""
    model_field: str = "model_id"
    """The request's field that names the model; `model` for llm."""
    variants: tuple[Variant, ...] = ()

    def variant(self, model_id: str) -> Variant | None:
        """Returns the variant that this model needs, None for the pipeline's own replica."""
        return next((v for v in self.variants if model_id.startswith(v.prefix)), None)


_ALL = (
    Pipeline(
        name="text-to-image",
        capability=27,
        request=TextToImageRequest,
        response=responses.ImageResponse,
        replica="deployments.text_to_image:TextToImageReplica",
    ),
    Pipeline(
        name="image-to-image",
        capability=28,
        request=ImageToImageRequest,
        response=responses.ImageResponse,
        replica="deployments.image_to_image:ImageToImageReplica",
        file="image",
    ),
    Pipeline(
        name="image-to-video",
        capability=29,
        request=ImageToVideoRequest,
        response=responses.VideoResponse,
        replica="deployments.image_to_video:ImageToVideoReplica",
        file="image",
    ),
    Pipeline(
        name="upscale",
        capability=30,
        request=UpscaleRequest,
        response=responses.ImageResponse,
        replica="deployments.upscale:UpscaleReplica",
        file="image",
    ),
    Pipeline(
        name="audio-to-text",
        capability=31,
        request=AudioToTextRequest,
        response=responses.TextResponse,
        replica="deployments.audio_to_text:AudioToTextReplica",
        file="audio",
        max_file_bytes=MAX_AUDIO_BYTES,
    ),
    Pipeline(
        name="segment-anything-2",
        capability=32,
        request=SegmentAnything2Request,
        response=responses.MasksResponse,
        replica="deployments.segment_anything_2:SegmentAnything2Replica",
        file="image",
    ),
    Pipeline(
        name="llm",
        capability=33,
        request=LLMRequest,
        response=responses.LLMResponse,
        replica="deployments.llm:LLMReplica",
        model_field="model",
    ),
    Pipeline(
        name="image-to-text",
        capability=34,
        request=ImageToTextRequest,
        response=responses.ImageToTextResponse,
        replica="deployments.image_to_text:ImageToTextReplica",
        file="image",
    ),
    Pipeline(
        name="text-to-speech",
        capability=36,
        request=TextToSpeechRequest,
        response=responses.AudioResponse,
        replica="deployments.text_to_speech:TextToSpeechReplica",
        variants=(
            Variant(
                prefix="parler-tts/",
                replica="deployments.parler_tts:ParlerTTSReplica",
                packages=(
                    "parler-tts==0.2.3",
                    "transformers==4.46.1",
                    "tokenizers==0.20.3",
                    "huggingface-hub==0.36.2",
                    "descript-audio-codec-unofficial==1.0.0",
                    "einops==0.8.2",
                ),
            ),
        ),
    ),
)

PIPELINES: dict[str, Pipeline] = {pipeline.name: pipeline for pipeline in _ALL}
"""By name."""
