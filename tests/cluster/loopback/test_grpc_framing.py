"""gRPC's framing of one message."""

import pytest

from cluster.loopback.grpc_framing import FramingError, decode_message


@pytest.mark.parametrize("message", [b"", b"x", b"\x00" * 300])
def test_a_message_is_decoded(message: bytes) -> None:
    assert decode_message(b"\x00" + len(message).to_bytes(4, "big") + message) == message


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "no message"),
        (b"\x00\x00\x00\x00", "no message"),
        (b"\x01\x00\x00\x00\x01x", "compressed"),
        (b"\x00\x00\x00\x00\x02x", "2 bytes in a body of 6"),
        (b"\x00\x00\x00\x00\x01xx", "1 bytes in a body of 7"),
    ],
)
def test_anything_else_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(FramingError, match=why):
        decode_message(body)
