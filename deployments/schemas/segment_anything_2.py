"""segment-anything-2: an image and where on it to look in, masks out.

Names and defaults are ai-runner's (runner/src/runner/routes/segment_anything_2.py). Prompts
come as JSON in strings, an empty one means absent; here each is checked against the shape that
the model takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import (
    Field,
    FiniteFloat,
    JsonValue,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from deployments.schemas.base import Request, Result
from deployments.schemas.images import InputFile

MAX_POINTS = 1_000
"""People click tens of points. Every one is a token that attends to the whole image."""

MAX_COORDINATE = 32_768
"""Pixels, in either direction: twice the largest side of an image. Farther away the sines that
encode a position lose all precision."""

MASK_SIDE = 256
"""Of `mask_input`, and of the low-resolution logits that it is made of."""

MAX_MASK_LOGIT = 1_000
"""Either sign. The model's own logits are cut at 32."""

MAX_PROMPT_CHARS = 100_000
"""Enough for `MAX_POINTS` points with all the digits of a float64."""

MAX_MASK_CHARS = 4_000_000
"""Enough for 256x256 numbers with all the digits of a float64, on indented lines."""

ABSENT: dict[str, JsonValue] = {"default": None}
"""For the runner API's document, in which an absent prompt is no empty one."""

Coordinate = Annotated[FiniteFloat, Field(ge=-MAX_COORDINATE, le=MAX_COORDINATE)]
Logit = Annotated[FiniteFloat, Field(ge=-MAX_MASK_LOGIT, le=MAX_MASK_LOGIT)]
Label = Annotated[FiniteFloat, Field(ge=-1, le=3, multiple_of=1)]

Points = Annotated[list[tuple[Coordinate, Coordinate]], Field(min_length=1, max_length=MAX_POINTS)]
Labels = Annotated[list[Label], Field(min_length=1, max_length=MAX_POINTS)]
Box = tuple[Coordinate, Coordinate, Coordinate, Coordinate]
MaskRow = Annotated[list[Logit], Field(min_length=MASK_SIDE, max_length=MASK_SIDE)]
Mask = Annotated[list[MaskRow], Field(min_length=MASK_SIDE, max_length=MASK_SIDE)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prompt:
    """A prompt's shape."""

    plain: TypeAdapter[Any]
    batch: TypeAdapter[Any]
    """The same in one more pair of brackets, the form in which `logits` hold a mask."""
    wanted: str


_PROMPTS = {
    "point_coords": _Prompt(
        plain=TypeAdapter(Points),
        batch=TypeAdapter(tuple[Points]),
        wanted=f"want a JSON array of 1 to {MAX_POINTS} points [x, y] such as [[120, 80]], "
        f"coordinates at most {MAX_COORDINATE}",
    ),
    "point_labels": _Prompt(
        plain=TypeAdapter(Labels),
        batch=TypeAdapter(tuple[Labels]),
        wanted="want a JSON array with a label for each point such as [1, 0]: 1 on the object, "
        "0 off it, 2 and 3 for the corners of a box, -1 for none",
    ),
    "box": _Prompt(
        plain=TypeAdapter(Box),
        batch=TypeAdapter(tuple[Box]),
        wanted="want a JSON array [x1, y1, x2, y2] of one box, coordinates at most "
        f"{MAX_COORDINATE}",
    ),
    "mask_input": _Prompt(
        plain=TypeAdapter(Mask),
        batch=TypeAdapter(tuple[Mask]),
        wanted=f"want a JSON array of 1x{MASK_SIDE}x{MASK_SIDE} numbers, at most "
        f"{MAX_MASK_LOGIT}: one mask of an earlier answer's logits",
    ),
}


class SegmentAnything2Request(Request):
    """Cut objects out of an image."""

    image: InputFile
    point_coords: str = Field(default="", max_length=MAX_PROMPT_CHARS, json_schema_extra=ABSENT)
    point_labels: str = Field(default="", max_length=MAX_PROMPT_CHARS, json_schema_extra=ABSENT)
    box: str = Field(default="", max_length=MAX_PROMPT_CHARS, json_schema_extra=ABSENT)
    mask_input: str = Field(
        default="", max_length=MAX_MASK_CHARS, repr=False, json_schema_extra=ABSENT
    )
    multimask_output: bool = True
    return_logits: bool = True
    normalize_coords: bool = True
    """True: coordinates are pixels of the image. False: they are 0 to 1 already."""

    @field_validator("point_coords", "point_labels", "box", "mask_input")
    @classmethod
    def _has_its_shape(cls, text: str, info: ValidationInfo) -> str:
        _parse(str(info.field_name), text)
        return text

    @model_validator(mode="after")
    def _a_label_for_each_point(self) -> Self:
        points, labels = self.points(), self.labels()
        if points and len(labels) != len(points):
            raise ValueError(
                f"point_labels: want a label for each of the {len(points)} point_coords, "
                f"got {len(labels)}"
            )
        return self

    def points(self) -> Points:
        """Returns x and y of each point, empty without any."""
        return _parse("point_coords", self.point_coords) or []

    def labels(self) -> Labels:
        """Returns the label of each point. Those without points mean nothing."""
        return _parse("point_labels", self.point_labels) or []

    def corners(self) -> Box | None:
        """Returns x1, y1, x2, y2 of the box."""
        box: Box | None = _parse("box", self.box)
        return box

    def mask(self) -> Mask | None:
        """Returns `MASK_SIDE` x `MASK_SIDE` logits."""
        mask: Mask | None = _parse("mask_input", self.mask_input)
        return mask


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentAnything2Result(Result):
    """Masks, best first, as the text of nested lists, in ASCII.

    Bytes, which go into the answer as they are: turning 130 MB of text into JSON takes a second
    or two, in which a Python process does nothing else.
    """

    masks: bytes
    """C x H x W of the image: logits, or 1.0 and 0.0."""
    scores: bytes
    """C, what the model thinks of its masks."""
    logits: bytes
    """C x `MASK_SIDE` x `MASK_SIDE`, from -32 to 32."""

    def document(self, urls: Sequence[str]) -> dict[str, Any]:  # noqa: ARG002 (has no files)
        """Returns ai-runner's MasksResponse."""
        parts = {"masks": self.masks, "scores": self.scores, "logits": self.logits}
        return {name: text.decode("ascii") for name, text in parts.items()}

    def document_json(self, urls: Sequence[str]) -> Sequence[bytes]:  # noqa: ARG002 (has no files)
        """Returns the document around the bytes, in which there is nothing to escape."""
        return [
            *(b'{"masks":"', self.masks),
            *(b'","scores":"', self.scores),
            *(b'","logits":"', self.logits),
            b'"}',
        ]


def _parse(name: str, text: str) -> Any:
    """Returns a prompt's value, None when it is absent.

    Raises:
        ValueError: it is not JSON or has another shape; the message says which is wanted.
    """
    if not text:
        return None
    prompt = _PROMPTS[name]
    try:
        return prompt.plain.validate_json(text, strict=True)
    except ValidationError:
        pass
    try:
        (value,) = prompt.batch.validate_json(text, strict=True)
    except ValidationError:
        raise ValueError(prompt.wanted) from None
    return value
