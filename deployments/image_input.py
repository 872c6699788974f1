"""Input files to pixels: whatever image a client sends, within bounds, or a clear refusal."""

import io

from PIL import Image, ImageOps, UnidentifiedImageError

from deployments.errors import BadRequest

MAX_INPUT_PIXELS = 64 * 1024 * 1024
"""64 megapixels, more than any camera phone takes. Decoded, that is 192 MB of memory; a file of
a few kilobytes can claim far more."""

MAX_INPUT_SIDE = 16_384
"""Pixels. Resampling a thinner and longer image takes time without end in sight."""

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")
"""What cameras, browsers and editors write. Of Pillow's others, EPS hands the file to a program of
this machine, and ICO and ICNS are decoded as they are opened, whatever size they hold."""

# Opening these reads the header only; the bounds above decide before a pixel is decoded.
Image.MAX_IMAGE_PIXELS = None


def decode_image(data: bytes) -> Image.Image:
    """Returns an image as RGB, turned the way its EXIF orientation says.

    Transparent pixels are put on white; palettes, greyscale and CMYK are converted.

    Raises:
        BadRequest: not an image, a truncated one, or one that is too large.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(*image.size)
        image.load()
        return _rgb(ImageOps.exif_transpose(image))
    except (BadRequest, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadRequest(
            f"image: the file is not an image that can be read, such as {', '.join(FORMATS)}"
        ) from None
    except Exception as error:  # noqa: BLE001 (decoders raise whatever a broken file leads them to)
        raise BadRequest(f"image: the file is broken: {error}") from None


def header_size(data: bytes) -> tuple[int, int] | None:
    """Returns width and height as the file's header has them; None if it cannot be read."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS).size
    except Exception:  # noqa: BLE001 (decoders raise whatever a broken file leads them to)
        return None


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_INPUT_PIXELS or max(width, height) > MAX_INPUT_SIDE:
        raise BadRequest(
            f"image: {width}x{height} pixels are too many, at most {MAX_INPUT_PIXELS} "
            f"and {MAX_INPUT_SIDE} a side are taken"
        )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if "A" in image.getbands() or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    if image.mode.startswith("I;16") or image.mode == "I":
        # 16 bits of grey: `convert` would clip them to white.
        return image.point(lambda value: value / 256).convert("L").convert("RGB")
    return image.convert("RGB")
