"""One entry of an aiModels.json: its fields, the rules of each, the `AIModel` that it becomes.

The fields are go-livepeer's (core/ai.go, AIModelConfig), plus our optional `ray` object, which
go-livepeer ignores. Rules that take more than one entry are in `cluster/ai_models.py`.
A token appears in no message, and neither does a url: it may be a token in the wrong place.
"""

import json
import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from cluster.ai_models_source import kind
from cluster.ai_models_types import (
    MAX_CAPACITY,
    AIModel,
    OptimizationFlags,
    RayOptions,
    word,
)
from deployments.model_files import DIFFUSION_PIPELINES
from deployments.registry import PIPELINES
from deployments.special_models import is_distilled

OTHER_PIPELINES = ("live-video-to-video", "byoc")
"""Capabilities of the network that reach their containers in other ways."""

_REPO_NAME = re.compile(r"\w(?:[\w.-]{0,94}\w)?", re.ASCII)
_URL = re.compile(
    r"https?://(?:[\w.-]+|\[[0-9a-f:.]+\])(?::(?P<port>\d{1,5}))?(?:/[\w./~%+:=,-]*)?",
    re.ASCII | re.IGNORECASE,
)
_PRICE = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?(?:[A-Za-z][A-Za-z0-9]*)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class ParsedEntry:
    """What became of one entry."""

    name: str = ""
    """The entry's pipeline and model id, as far as it has them."""
    model: AIModel | None = None
    """None: it has problems, or it is skipped with a warning."""
    problems: list[str] = field(default_factory=list)
    """Each `field: what is wrong`."""
    warnings: list[str] = field(default_factory=list)


def parse_entry(raw: object) -> ParsedEntry:
    """Checks every field of an entry; never raises."""
    if not isinstance(raw, dict):
        return ParsedEntry(problems=[f"must be an object, got {kind(raw)}"])
    # As encoding/json reads it: names match in any case, null leaves a field unset.
    fields = {name.casefold(): value for name, value in raw.items() if value is not None}
    name = _name(fields.get("pipeline"), fields.get("model_id"))
    try:
        entry = _Entry.model_validate(fields)
    except ValidationError as error:
        return ParsedEntry(name=name, problems=[_in_words(finding) for finding in error.errors()])
    if skipped := entry.why_skipped():
        return ParsedEntry(name=name, warnings=[skipped])
    model, warnings = entry.resolve()
    return ParsedEntry(name=name, model=model, warnings=warnings)


def _flag(value: object) -> object:
    """Flags are environment variables, so go-livepeer takes booleans and strings alike."""
    if value is None:
        return False
    words = {"true": True, "1": True, "t": True, "false": False, "0": False, "f": False, "": False}
    return words.get(value.strip().lower(), value) if isinstance(value, str) else value


def _price(value: object) -> object:
    """Takes what go-livepeer or its documentation takes: 4768371, 0.18, "0.5e-2USD"."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number and not (isinstance(value, str) and _PRICE.fullmatch(value)):
        raise ValueError('must be a number, or a string such as "0.5e-2USD"')
    return value


def _base_url(value: str) -> str:
    if not value:
        return value
    match = _URL.fullmatch(value)
    if match is None or not 0 < int(match["port"] or 80) < 2**16:
        raise ValueError(
            "must be http://HOST:PORT or https://HOST:PORT, with a path if need be and "
            'without credentials (those go into "token")'
        )
    return value.rstrip("/")


def _header_word(value: SecretStr) -> SecretStr:
    secret = value.get_secret_value()
    if not (secret.isascii() and secret.isprintable()) or " " in secret:
        raise ValueError("must be ASCII without blanks, to stand in an Authorization header")
    return value


_Price = Annotated[Any, AfterValidator(_price)]
_Flag = Annotated[bool, Field(strict=True), BeforeValidator(_flag)]


class _Flags(BaseModel):
    """`optimization_flags`: in the reference, environment variables of the container."""

    model_config = ConfigDict(extra="allow")

    SFAST: _Flag = False
    DEEPCACHE: _Flag = False

    @model_validator(mode="after")
    def _one_at_most(self) -> "_Flags":
        if self.SFAST and self.DEEPCACHE:
            raise ValueError("SFAST and DEEPCACHE cannot be combined; remove one of them")
        return self


class _Entry(BaseModel):
    """Every field of an entry, under its name in the file."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    pipeline: str
    url: Annotated[str, AfterValidator(_base_url)] = ""  # before model_id, whose rule needs it
    model_id: Annotated[str, AfterValidator(word)]
    token: Annotated[SecretStr, Field(strict=False), AfterValidator(_header_word)] = SecretStr("")
    warm: bool = False
    capacity: int = Field(default=0, ge=0, le=MAX_CAPACITY)
    optimization_flags: _Flags = _Flags()
    ray: RayOptions = RayOptions()

    # For the orchestrator that shares the file; checked so that a typing error shows here too.
    gateway: str = ""
    price_per_unit: _Price = None
    pixels_per_unit: _Price = None
    currency: str = ""

    @field_validator("pipeline")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in (*PIPELINES, *OTHER_PIPELINES):
            raise ValueError(f"must be one of {', '.join(PIPELINES)}")
        return value

    @field_validator("model_id")
    @classmethod
    def _has_directory(cls, value: str, info: ValidationInfo) -> str:
        """Without a url the id names a directory of the Hugging Face cache.

        The rule is huggingface_hub's (utils/_validators.py), whose import takes 0.1 s.
        """
        owner, slash, name = value.rpartition("/")
        names = (owner, name) if slash else (name,)
        valid = all(map(_REPO_NAME.fullmatch, names)) and not re.search(r"--|\.\.|\.git$", value)
        if not valid and info.data.get("url") == "":
            raise ValueError("must be a Hugging Face id, organisation/name")
        return value

    @field_validator("ray")
    @classmethod
    def _can_run(cls, value: RayOptions, info: ValidationInfo) -> RayOptions:
        pipeline = info.data.get("pipeline")
        if value.engine is None or pipeline not in PIPELINES:
            return value
        engines = PIPELINES[pipeline].engines
        if value.engine not in engines:
            having = [name for name, other in PIPELINES.items() if other.engines]
            remedy = (
                f"it has {', '.join(engines)}"
                if engines
                else f'remove "engine", which is for {", ".join(having)}'
            )
            raise ValueError(f'{pipeline} has no engine "{value.engine}"; {remedy}')
        if not value.num_gpus:
            raise ValueError(
                f'engine "{value.engine}" runs on GPUs only; remove it, or "num_gpus": 0'
            )
        return value

    def why_skipped(self) -> str | None:
        """Returns the warning with which a valid entry is left out."""
        if self.pipeline in OTHER_PIPELINES:
            return "pipeline: the network does not send it to remote AI workers, skipped"
        return None

    def resolve(self) -> tuple[AIModel, list[str]]:
        """Returns the model and what was set aside on the way to it."""
        warnings = self._misspelt()
        warnings += [
            f"optimization_flags: {json.dumps(name)} is not known here (SFAST and DEEPCACHE are), "
            "ignored"
            for name in self.optimization_flags.model_extra or ()
        ]
        flags = self._flags(warnings)
        ray, token = self.ray, self.token if self.token.get_secret_value() else None
        of_url = RayOptions(live_runner_price=ray.live_runner_price)
        if self.url and ray != of_url:
            warnings.append("ray: ignored but for live_runner_price, the model runs at its url")
            ray = of_url
        if ray.num_gpus > 1 and ray.engine is None:
            remedy = [f'or set "engine": "{name}"' for name in PIPELINES[self.pipeline].engines]
            warnings.append(
                "ray.num_gpus: this replica computes on one GPU and leaves the others idle; "
                + " ".join(["lower it to 1", *remedy])
            )
        if "max_ongoing_requests" not in ray.model_fields_set and not self.url:
            slots = PIPELINES[self.pipeline].slots
            ray = ray.model_copy(update={"max_ongoing_requests": slots})
        if token and not self.url:
            warnings.append("token: ignored without a url")
            token = None
        model = AIModel(
            pipeline=self.pipeline,
            model_id=self.model_id,
            warm=self.warm,
            capacity=self.capacity or 1,
            url=self.url or None,
            token=token,
            flags=flags,
            ray=ray,
        )
        return model, warnings

    def _misspelt(self) -> list[str]:
        """Warns of fields that look like known ones. Others are ignored, as in go-livepeer."""
        return [
            f"{json.dumps(name)} is ignored; is {json.dumps(meant[0])} meant?"
            for name in self.model_extra or ()
            if (meant := get_close_matches(name, _Entry.model_fields, n=1, cutoff=0.75))
        ]

    def _flags(self, warnings: list[str]) -> OptimizationFlags:
        """Drops the flags that the reference does not apply either (ai/worker/docker.go)."""
        sfast, deepcache = self.optimization_flags.SFAST, self.optimization_flags.DEEPCACHE
        none = OptimizationFlags()
        if not (sfast or deepcache):
            return none
        if self.url:
            warnings.append("optimization_flags: ignored, the model runs at its url")
            return none
        if not self.warm:
            warnings.append("optimization_flags: ignored on a cold model; set warm to true")
            return none
        if self.pipeline not in DIFFUSION_PIPELINES:
            warnings.append("optimization_flags: ignored, they are for diffusion models")
            return none
        if deepcache and is_distilled(self.model_id):
            warnings.append(
                "optimization_flags: DEEPCACHE ignored: it costs a Lightning or Turbo model "
                "quality and gains it no time"
            )
            return none
        return OptimizationFlags(sfast=sfast, deepcache=deepcache)


_WORDS = {
    "missing": "is missing",
    "extra_forbidden": f"is not an option; the options are {', '.join(RayOptions.model_fields)}",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "model_type": "must be an object",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
}
"""pydantic's findings in the file's terms; our own rules bring their words along."""


def _in_words(finding: ErrorDetails) -> str:
    # Names of options may be anything that JSON can hold.
    parts = map(str, finding["loc"])
    where = ".".join(part if part.isprintable() else repr(part) for part in parts)
    if finding["type"] in _WORDS:
        what = _WORDS[finding["type"]].format(**finding.get("ctx", {}))
    else:
        what = finding["msg"].removeprefix("Value error, ")
    return f"{where}: {what}{_got(finding)}"


def _got(finding: ErrorDetails) -> str:
    """Quotes the value, unless it is a secret, or holds others that may be."""
    value = finding["input"]
    unquotable = finding["type"] in ("missing", "extra_forbidden")
    if unquotable or finding["loc"][0] in ("token", "url") or isinstance(value, dict | list):
        return ""
    text = json.dumps(value)
    return f", got {text if len(text) <= 60 else text[:57] + '...'}"


def _name(pipeline: object, model_id: object) -> str:
    names = [part for part in (pipeline, model_id) if isinstance(part, str) and part]
    return " ".join(part for part in names if part.isprintable() and len(part) <= 200)
