"""The body of an HTTP answer, from somebody who may send anything."""

import aiohttp


async def bounded_read(response: aiohttp.ClientResponse, max_bytes: int) -> bytearray | None:
    """Returns the body; None where it is larger.

    Of one that is too large no more is read than shows that it is.
    """
    data = bytearray()
    # Servers usually say the size first; those that do not are read up to the bound.
    known_bytes = response.content_length or 0
    while known_bytes <= max_bytes:
        chunk = await response.content.readany()
        if not chunk:
            return data
        data += chunk
        known_bytes = max(known_bytes, len(data))
    return None
