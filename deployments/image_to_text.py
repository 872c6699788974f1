"""image-to-text: BLIP and whatever else transformers' AutoModelForImageTextToText loads.

Two kinds of models. A captioner continues the prompt, and its text begins with it, as ai-runner
answers (runner/src/runner/pipelines/image_to_text.py). A chat model, one whose processor has a
chat template, is asked the prompt and its text is the answer alone.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from deployments.errors import BadRequest
from deployments.image_input import decode_image
from deployments.loading import choose_device, choose_dtype
from deployments.media import encode_png
from deployments.replica import Replica
from deployments.schemas.image_to_text import ImageToTextRequest, ImageToTextResult

MAX_CAPTION_TOKENS = 64
"""Captions end themselves after some ten tokens; one that does not repeats itself for ever."""

MAX_ANSWER_TOKENS = 512
"""About a page. The request has no parameter for it, and a request must end."""

MAX_SIDE = 2048
"""Pixels; larger images are shrunk. Some chat models read a token for every 28x28 pixels: these
are some 5,000, and a 64-megapixel image would be 80,000."""

MAX_ASPECT = 100
"""The longer side over the shorter. Processors that cut an image into tiles refuse 200."""

QUESTION = "Describe this image."
"""What a chat model is asked when the request has no prompt."""


class ImageToTextReplica(Replica[ImageToTextRequest, str, ImageToTextResult]):
    """Text from an image."""

    def load(self, snapshot: Path) -> None:
        """Loads the model and its processor."""
        import torch
        from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

        self.imported()
        config = AutoConfig.from_pretrained(snapshot, local_files_only=True)
        device = choose_device()
        dtype = choose_dtype("", device)
        # Chat models are published in bfloat16, and some of them overflow float16.
        if device.type == "cuda" and config.dtype is torch.bfloat16:
            dtype = torch.bfloat16
        model = AutoModelForImageTextToText.from_pretrained(
            snapshot, dtype=dtype, local_files_only=True
        )
        self.start_up.mark("weights")
        self._model: Any = model.to(device).eval()
        self._processor: Any = AutoProcessor.from_pretrained(snapshot, local_files_only=True)
        self._chats = bool(getattr(self._processor, "chat_template", None))
        text_config = config.get_text_config(decoder=True)
        self._max_positions: int | None = getattr(text_config, "max_position_embeddings", None)

    def warm_up_request(self) -> ImageToTextRequest:
        """Returns a grey image of the size that BLIP reads."""
        grey = np.full((384, 384, 3), 128, dtype=np.uint8)
        return ImageToTextRequest(image=encode_png(grey).data)

    def describe(self, request: ImageToTextRequest) -> str:
        """Returns `an image of 5120 bytes, a prompt of 12 characters`."""
        return (
            f"an image of {len(request.image)} bytes, a prompt of {len(request.prompt)} characters"
        )

    def infer(self, request: ImageToTextRequest, raise_if_cancelled: Callable[[], None]) -> str:
        """Generates until the model ends its text or the bound is reached."""
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList

        class StopIfCancelled(StoppingCriteria):  # type: ignore[misc] # transformers is untyped
            """Raises out of the generation between two tokens; by itself it never ends one."""

            def __call__(
                self,
                input_ids: torch.Tensor,
                scores: Any,  # noqa: ARG002 (the contract)
                **_: Any,
            ) -> torch.Tensor:
                raise_if_cancelled()
                return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

        image = _bounded(decode_image(request.image))
        raise_if_cancelled()
        inputs = self._inputs(image, request.prompt)
        ids = inputs.get("input_ids")
        prompt_tokens = 0 if ids is None else ids.shape[1]
        output = self._model.generate(
            **{name: self._on_device(tensor) for name, tensor in inputs.items()},
            max_new_tokens=self._room(prompt_tokens),
            stopping_criteria=StoppingCriteriaList([StopIfCancelled()]),
        )[0]
        if self._chats:
            output = output[prompt_tokens:]
        return str(self._processor.decode(output, skip_special_tokens=True)).strip()

    def encode(self, request: ImageToTextRequest, raw: str) -> ImageToTextResult:  # noqa: ARG002 (the contract of all replicas)
        """Returns the text as the result."""
        return ImageToTextResult(text=raw)

    def _inputs(self, image: Image, prompt: str) -> Mapping[str, Any]:
        """Returns what the model takes."""
        inputs: Mapping[str, Any]
        if not self._chats:
            text = {"text": prompt} if prompt else {}
            inputs = self._processor(images=image, **text, return_tensors="pt")
            return inputs
        content = [{"type": "image", "image": image}, {"type": "text", "text": prompt or QUESTION}]
        inputs = self._processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            # A prompt that writes the model's own marks must neither change who speaks nor
            # announce images that are not there.
            sanitize_control_tokens=True,
        )
        return inputs

    def _room(self, prompt_tokens: int) -> int:
        """Returns how many tokens to generate.

        Beyond its positions a model would read past a table, which on CUDA ends the process.
        """
        wanted = MAX_ANSWER_TOKENS if self._chats else MAX_CAPTION_TOKENS
        if self._max_positions is None:
            return wanted
        room = self._max_positions - prompt_tokens
        if room < 1:
            raise BadRequest(
                f"prompt: {prompt_tokens} tokens with the image are too many for this model, "
                f"at most {self._max_positions - 1} are taken"
            )
        return min(wanted, room)

    def _on_device(self, tensor: Any) -> Any:
        """Returns a tensor where the model is, pixels in the model's type."""
        dtype = self._model.dtype if tensor.is_floating_point() else None
        return tensor.to(self._model.device, dtype)


def _bounded(image: Image) -> Image:
    """Returns an image of at most `MAX_SIDE`, its proportions kept."""
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise BadRequest(
            f"image: {image.width}x{image.height} is too thin, one side may be at most "
            f"{MAX_ASPECT} times the other"
        )
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return image
