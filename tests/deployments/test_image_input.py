"""Images as clients send them: read in every form, bounded, refused with a reason."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deployments.errors import BadRequest
from deployments.image_input import FORMATS, decode_image


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def red(mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> Image.Image:
    return Image.new("RGB", size, (255, 0, 0)).convert(mode)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_common_format(kind: str) -> None:
    image = decode_image(saved(red(), kind))
    assert (image.mode, image.size) == ("RGB", (6, 4))
    assert np.abs(np.asarray(image).astype(int) - (255, 0, 0)).max() <= 3


def test_palettes_and_grey() -> None:
    assert decode_image(saved(red("P"))).getpixel((0, 0)) == (255, 0, 0)
    assert decode_image(saved(Image.new("L", (2, 2), 77))).getpixel((0, 0)) == (77, 77, 77)
    assert decode_image(saved(Image.new("1", (2, 2), 1))).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_of_grey_are_not_clipped() -> None:
    grey = Image.fromarray(np.full((2, 2), 0x8000, dtype=np.uint16))
    assert decode_image(saved(grey)).getpixel((0, 0)) == (128, 128, 128)


def test_transparent_pixels_are_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    decoded = decode_image(saved(image))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]


def test_the_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a phone held upright: turn a quarter
    assert decode_image(saved(red(), "JPEG", exif=exif)).size == (4, 6)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


def icon(png: bytes) -> bytes:
    """A Windows icon, which says of itself that it is small."""
    entry = struct.pack("<BBBBHHII", 64, 64, 0, 0, 1, 32, len(png), 22)
    return struct.pack("<HHH", 0, 1, 1) + entry + png


def noise(size: int) -> Image.Image:
    """The same noise every time."""
    random = np.random.default_rng(0)
    return Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image"),
        (b"hello", "not an image"),
        (b"%PDF-1.4 and so on", "not an image"),
        (saved(red(size=(64, 64)), "JPEG")[:300], "broken"),
        (saved(noise(64))[:500], "broken"),
        (bomb(30_000, 30_000), "too many"),
        (bomb(60_000, 60_000), "too many"),
        (bomb(20_000, 10), "too many"),
        (icon(bomb(30_000, 30_000)), "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadRequest, match=f"^image: .*{reason}"):
        decode_image(data)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow tells what it found broken
@given(st.data())
def test_a_damaged_file_is_an_image_or_refused(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(FORMATS))
    whole = bytearray(saved(noise(16), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] = data.draw(st.integers(0, 255))
    try:
        assert decode_image(bytes(whole)).mode == "RGB"
    except BadRequest:
        return
