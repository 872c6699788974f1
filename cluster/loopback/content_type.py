"""The Content-Type header (RFC 9110), as strictly as Go's mime.ParseMediaType."""

import re

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - RFC 9110 calls it so
_MEDIA_TYPE = re.compile(rf"\s*({_TOKEN}/{_TOKEN})\s*((?:;.*)?)")
_PARAMETER = re.compile(rf';\s*({_TOKEN})=(?:({_TOKEN})|"([ !#-\[\]-~]*)")\s*')


class ContentTypeError(Exception):
    """A header that names no media type."""


def parse_content_type(value: str) -> tuple[str, dict[str, str]]:
    """Returns a media type in lower case and its parameters.

    Raises:
        ContentTypeError: for a malformed header.
    """
    match = _MEDIA_TYPE.fullmatch(value)
    if match is None:
        raise ContentTypeError(f"Content-Type {value!r} is not a media type")
    media_type, rest = match[1].lower(), match[2].strip()
    parameters: dict[str, str] = {}
    while rest:
        parameter = _PARAMETER.match(rest)
        if parameter is None or parameter[1].lower() in parameters:
            raise ContentTypeError(f"Content-Type {value!r} has a malformed parameter")
        parameters[parameter[1].lower()] = parameter[2] or parameter[3] or ""
        rest = rest[parameter.end() :]
    return media_type, parameters
