"""segment-anything-2: SAM 2 of transformers, prompted with points, a box or an earlier mask.

Shapes, order and the text of the answer follow ai-runner (routes/segment_anything_2.py,
pipelines/segment_anything_2.py) and the predictor it calls (facebookresearch/sam2,
sam2_image_predictor.py). Without any prompt the model segments what it finds.

Coordinates and masks refer to the upright image, as viewers show it; one with an EXIF
orientation comes out turned.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from deployments.embedding_cache import EmbeddingCache
from deployments.errors import BadRequest, ModelBroken
from deployments.image_input import decode_image
from deployments.loading import choose_device
from deployments.media import encode_png
from deployments.replica import Replica
from deployments.schemas.segment_anything_2 import (
    SegmentAnything2Request,
    SegmentAnything2Result,
)

if TYPE_CHECKING:
    import torch

MAX_ANSWER_CHARS = 128 * 1024 * 1024
"""Of `masks`. Every pixel of every mask is written out in decimal: three masks of logits for
1920x1080 are 130 MB and take seconds to write; photos of a phone would be 800 MB."""

CHARS_PER_LOGIT, CHARS_PER_BIT = 21, 5
"""`-3.4521212577819824, ` and `1.0, `."""

MAX_LOGIT = 32.0
"""The low-resolution logits are cut at this, either sign, as the reference does."""

KEPT_IMAGES = 8
KEPT_BYTES = 256 * 1024 * 1024
"""Of device memory. An image's embedding is 17 MB for every size of SAM 2."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, of the 0 to 1 that every SAM 2 was trained on (sam2/utils/transforms.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """An image as the mask decoder reads it."""

    features: "list[torch.Tensor]"
    height: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmented:
    """What the model returned, best first: C x H x W, C, and C x 256 x 256."""

    masks: NDArray[np.float32]
    scores: NDArray[np.float32]
    logits: NDArray[np.float32]


class SegmentAnything2Replica(Replica[SegmentAnything2Request, Segmented, SegmentAnything2Result]):
    """Masks of an image."""

    def load(self, snapshot: Path) -> None:
        """Loads the model, in float32: 16 bits would misplace points by pixels.

        Only the image encoder, nearly all of the work, computes in bfloat16 on a GPU.
        """
        from transformers import Sam2Model

        if not (snapshot / "config.json").is_file():
            raise ModelBroken(
                f"{self.args.model_id} in {snapshot} has no config.json; Meta's own checkpoint "
                f"(.pt) is not read. Download the rest: hf download {self.args.model_id} "
                f"--cache-dir {self.args.models_dir}"
            )
        self.imported()
        self._device = choose_device()
        model = Sam2Model.from_pretrained(snapshot, local_files_only=True, dtype="float32")
        self.start_up.mark("weights")
        self._model: Any = model.to(self._device).eval()
        self._input_side: int = self._model.prompt_encoder.input_image_size
        self._embeddings: EmbeddingCache[Embedded] = EmbeddingCache(
            max_entries=KEPT_IMAGES, max_bytes=KEPT_BYTES
        )

    def warm_up_request(self) -> SegmentAnything2Request:
        """Returns a point on a small grey image: every image is embedded at the same size."""
        grey = np.full((64, 64, 3), 128, dtype=np.uint8)
        return SegmentAnything2Request(
            image=encode_png(grey).data, point_coords="[[32, 32]]", point_labels="[1]"
        )

    def describe(self, request: SegmentAnything2Request) -> str:
        """Returns `an image of 5120 bytes, 2 points, a box`."""
        points = request.points()
        parts = (
            f"an image of {len(request.image)} bytes",
            f"{len(points)} points" if points else "",
            "a box" if request.box else "",
            "a mask" if request.mask_input else "",
        )
        return ", ".join(filter(None, parts))

    def infer(
        self, request: SegmentAnything2Request, raise_if_cancelled: Callable[[], None]
    ) -> Segmented:
        """Embeds the image, unless it was one of the last, and decodes masks from it."""
        import torch

        with torch.inference_mode():
            image = self._embed(request, raise_if_cancelled)
            raise_if_cancelled()
            output = self._model(
                image_embeddings=image.features,
                multimask_output=request.multimask_output,
                **self._prompts(request, image),
            )
            scores, low = output.iou_scores[0, 0], output.pred_masks[0, 0]
            order = scores.argsort(descending=True)
            scores, low = scores[order].float(), low[order].float()
            masks = torch.nn.functional.interpolate(
                low[None], (image.height, image.width), mode="bilinear", align_corners=False
            )[0]
            if not request.return_logits:
                masks = (masks > 0).float()
            return Segmented(
                masks=masks.cpu().numpy(),
                scores=scores.cpu().numpy(),
                logits=low.clamp(-MAX_LOGIT, MAX_LOGIT).cpu().numpy(),
            )

    def encode(self, request: SegmentAnything2Request, raw: Segmented) -> SegmentAnything2Result:  # noqa: ARG002 (the contract of all replicas)
        """Writes the numbers out."""
        return SegmentAnything2Result(
            masks=_text(raw.masks), scores=_text(raw.scores), logits=_text(raw.logits)
        )

    def _embed(
        self, request: SegmentAnything2Request, raise_if_cancelled: Callable[[], None]
    ) -> Embedded:
        """Returns the image's embedding.

        Raises:
            BadRequest: no image, or one whose masks would be too large an answer.
        """
        import torch

        key = hashlib.sha256(request.image).digest()
        known = self._embeddings.get(key)
        if known is not None:
            _refuse_too_large(request, width=known.width, height=known.height)
            return known
        image = decode_image(request.image)
        _refuse_too_large(request, width=image.width, height=image.height)
        raise_if_cancelled()
        pixels = self._pixels(image)
        with torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda"):
            features = self._model.get_image_embeddings(pixels)
        features = [feature.float() for feature in features]
        embedded = Embedded(features=features, height=image.height, width=image.width)
        self._embeddings.put(key, embedded, size_bytes=sum(f.nbytes for f in features))
        return embedded

    def _pixels(self, image: Image) -> "torch.Tensor":
        """Returns 1 x 3 x S x S, as Meta's own transform does it.

        transformers' processor for SAM 2 needs torchvision, which this does without.
        """
        import torch

        pixels = torch.from_numpy(np.array(image)).to(self._device)
        pixels = pixels.permute(2, 0, 1)[None].float() / 255
        pixels = torch.nn.functional.interpolate(
            pixels, (self._input_side, self._input_side), mode="bilinear", antialias=True
        )
        mean, std = (torch.tensor(values, device=self._device) for values in (MEAN, STD))
        return (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)

    def _prompts(
        self, request: SegmentAnything2Request, image: Embedded
    ) -> "dict[str, torch.Tensor]":
        """Returns the model's arguments for the request's prompts, of one image and object."""
        import torch

        def tensor(values: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype, device=self._device)

        # From pixels of the image, or from fractions of it, to pixels of the model's input.
        scale = tensor([self._input_side, self._input_side])
        if request.normalize_coords:
            scale = scale / tensor([image.width, image.height])
        prompts = {}
        if points := request.points():
            prompts["input_points"] = (tensor(points) * scale)[None, None]
            prompts["input_labels"] = tensor(request.labels(), torch.int64)[None, None]
        if corners := request.corners():
            prompts["input_boxes"] = (tensor(corners).view(2, 2) * scale).view(1, 1, 4)
        if mask := request.mask():
            prompts["input_masks"] = tensor(mask)[None, None]
        return prompts


def _refuse_too_large(request: SegmentAnything2Request, *, width: int, height: int) -> None:
    """Raises if the masks of an image of this size would be too large an answer."""
    masks = 3 if request.multimask_output else 1
    per_pixel = masks * (CHARS_PER_LOGIT if request.return_logits else CHARS_PER_BIT)
    if width * height * per_pixel > MAX_ANSWER_CHARS:
        raise BadRequest(
            f"image: {width}x{height} pixels are too many for {masks} mask(s) with "
            f"return_logits={str(request.return_logits).lower()}, at most "
            f"{MAX_ANSWER_CHARS // per_pixel} are taken; a smaller image, return_logits=false or "
            "multimask_output=false would do"
        )


def _text(numbers: NDArray[np.float32]) -> bytes:
    """Returns `str(numbers.tolist())` in ASCII, a row at a time.

    A million numbers as one list would take 32 MB, and its `str` would keep the process's
    other threads from running for as long as it takes.
    """
    if numbers.ndim == 1:
        return str(numbers.tolist()).encode("ascii")
    return b"[" + b", ".join(map(_text, numbers)) + b"]"
