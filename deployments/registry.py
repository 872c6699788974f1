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

LLM_SLOTS = 16
"""Each leaves the others their speed, while the engine's cache has room for all: with 16 on a card
of 24 GB, of which a model of 8 billion parameters takes 16, each has some 3,000 tokens; on a CPU
1,000. What more there are wait in the engine, where nobody can take them to another replica."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Another replica that serves models of a pipeline, with packages of its own."""

    prefix: str = ""
    """What the ids of these models begin with."""
    engine: str | None = None
    """The `engine` by which an entry of aiModels.json asks for it, for a replica that spreads a
    model over all its GPUs; None: nobody has to ask."""
    replica: str
    """`module:class`, a `deployments.replica.Replica`."""
    packages: tuple[str, ...]
    """What pip installs over a copy of this environment."""
    dependencies: bool = False
    """Whether pip also installs what these need. Otherwise what they need is named, as pip would
    change what Ray itself runs on."""


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
    slots: int = 1
    """Requests that a replica works on at a time, where aiModels.json does not say."""
    variants: tuple[Variant, ...] = ()

    def variant(self, model_id: str, engine: str | None = None) -> Variant | None:
        """Returns the variant that this model needs, None for the pipeline's own replica.

        Args:
            model_id: the Hugging Face id.
            engine: one of `engines` that was asked for.
        """
        return next(
            (v for v in self.variants if v.engine == engine and model_id.startswith(v.prefix)), None
        )

    @property
    def engines(self) -> tuple[str, ...]:
        """What may be asked for."""
        return tuple(variant.engine for variant in self.variants if variant.engine)


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
        slots=LLM_SLOTS,
        variants=(
            Variant(
                engine="vllm",
                replica="deployments.vllm_engine:VLLMReplica",
                # The newest that wants our torch, which pip then leaves in place.
                packages=("vllm==0.32.0",),
                dependencies=True,
            ),
        ),
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
