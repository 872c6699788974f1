"""Where the entries of an aiModels.json come from: a file, or the short form on the command line.

Knows syntax only. What an entry may say is the business of `cluster/ai_models_entry.py`.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cluster.errors import AIModelsError

SHORT_FORM = "pipeline:model_id:warm,pipeline:model_id:warm"
"""go-livepeer's way to name models without a file (core/ai.go, ParseAIModelConfigs)."""

_GO_BOOLS = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
"""What Go's strconv.ParseBool takes."""

_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a string", type(None): "null"}


@dataclass(frozen=True, kw_only=True)
class RawEntries:
    """The entries in file order, each any JSON value."""

    entries: Sequence[object]
    source: str
    """The file, `~` expanded, or the short form itself."""
    label: str
    """What messages call the source."""


def read_entries(source: str | os.PathLike[str]) -> RawEntries:
    """Reads a file or takes the short form apart.

    Raises:
        AIModelsError: there is no such file, or it is not a JSON list with at least one entry.
    """
    text = os.fspath(source)
    if not text.strip():
        raise AIModelsError([f"no AI models given: name a file, or models as {SHORT_FORM}"])
    if isinstance(source, str) and is_short_form(text):
        entries = [_short_entry(item.strip()) for item in text.split(",")]
        return RawEntries(
            entries=entries, source=text, label="short form (pipeline:model_id:warm,...)"
        )
    path = _expanded(text)
    return RawEntries(entries=_entries(_read(path), path), source=path, label=path)


def kind(value: object) -> str:
    """Names the JSON type of a value whose content is no business of a message's."""
    return _KINDS.get(type(value), "a number or boolean")


def is_short_form(text: str) -> bool:
    """Whether this names models rather than a file.

    Model ids have slashes too, so the colon tells; as in Go, a file that exists wins.
    """
    if ":" not in text or text.endswith(".json") or text.startswith(("~", "/", ".")):
        return False
    try:
        return not Path(text).is_file()
    except OSError:  # longer than a file name can be
        return True


def _short_entry(item: str) -> dict[str, object]:
    """A missing or surplus part ends up in a field whose rule then names it."""
    pipeline, _, rest = item.partition(":")
    model_id, _, warm = rest.partition(":")
    return {"pipeline": pipeline, "model_id": model_id, "warm": _GO_BOOLS.get(warm, warm)}


def _expanded(text: str) -> str:
    try:
        return str(Path(text).expanduser())
    except (RuntimeError, ValueError):  # ValueError: a NUL in the name
        raise AIModelsError([f"{text}: there is no such home directory"]) from None


def _read(path: str) -> str:
    """Reads UTF-8, with or without the byte order mark that Windows editors write."""
    try:
        data = Path(path).read_bytes()
    except IsADirectoryError:
        _fail(path, "is a directory; name the file in it, such as aiModels.json")
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        _fail(path, f"no such file; name one that exists, or models as {SHORT_FORM}")
    except OSError as error:
        _fail(path, f"cannot be read: {error.strerror}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        _fail(path, f"line {line}: not UTF-8 text; save the file as UTF-8")


def _entries(text: str, path: str) -> Sequence[object]:
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        before = text[: error.pos].rstrip()
        trailing_comma = before.endswith(",") and text[error.pos : error.pos + 1] in ("}", "]")
        hint = " (remove the comma before it)" if trailing_comma else ""
        _fail(path, f"line {error.lineno}, column {error.colno}: not JSON: {error.msg}{hint}")
    except RecursionError:
        _fail(path, "not an aiModels.json: nested too deeply")
    except ValueError as error:
        # Not the error's own words for a number of thousands of digits: they advise changing
        # the interpreter.
        constant = error.args[0] if isinstance(error, _NotJSON) else "a number without end"
        _fail(path, f"not JSON: {constant}")
    if not isinstance(document, list):
        _fail(path, f"must be a list of entries, [{{...}}, {{...}}], got {kind(document)}")
    if not document:
        _fail(path, "the list is empty: add an entry with a pipeline and a model_id")
    return document


class _NotJSON(ValueError):
    """NaN or Infinity, which Python reads and go-livepeer refuses."""


def _refuse_constant(name: str) -> NoReturn:
    raise _NotJSON(f"{name} is not a JSON value")


def _fail(path: str, problem: str) -> NoReturn:
    # From None: a decoder's error holds the whole file, tokens included.
    raise AIModelsError([f"{path}: {problem}"]) from None
