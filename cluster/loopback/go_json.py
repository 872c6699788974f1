"""JSON as go-livepeer reads and writes it: Go's encoding/json on structs with `omitempty`.

Struct fields stand in the order of their names, `<`, `>` and `&` are escaped, floats are
float32 and lose their `.0`.
"""

import json
from typing import Any, Never

import numpy as np

INT64 = range(-(2**63), 2**63)
MAX_FLOAT32 = float(np.finfo(np.float32).max)

_ESCAPES = str.maketrans(
    {character: f"\\u{ord(character):04x}" for character in ("<", ">", "&", "\u2028", "\u2029")}
)


def loads(text: bytes | bytearray | memoryview) -> Any:
    """Decodes JSON as strictly as Go: no NaN, no Infinity.

    Raises:
        ValueError: for anything else than one JSON value in UTF-8.
    """
    try:
        return json.loads(str(text, "utf-8"), parse_constant=_reject)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _reject(constant: str) -> Never:
    raise ValueError(f"{constant} is not JSON")


def marshal(value: Any) -> bytes:
    """Returns `value` as Go marshals it."""
    text = json.dumps(_numbers(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    # Outside strings none of these characters exists in JSON, so the whole text may be escaped.
    return (
        text.translate(_ESCAPES)
        .encode("utf-16", "surrogatepass")
        .decode("utf-16", "replace")
        .encode()
    )


def _numbers(value: Any) -> Any:
    """Returns `value` with its floats as Go prints a float32."""
    if isinstance(value, dict):
        return {name: _numbers(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    if isinstance(value, float):
        shortest = float(str(np.float32(value)))
        return int(shortest) if shortest.is_integer() else shortest
    return value
