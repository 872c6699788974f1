"""The picture and the sound that the demo's requests work on, made by arithmetic."""

import io
import wave

WIDTH, HEIGHT = 128, 96
"""Small: upscale's time grows with the square of its pixels."""

HOUSE = (71, 48, 107, 82)
"""Left, top, right, bottom in the picture: what segment-anything-2 is asked to cut out."""

RATE_HZ = 16_000
NOTES_HZ = (523.3, 659.3, 784.0, 1046.5)
NOTE_S = 0.5


def picture() -> bytes:
    """Returns a PNG: a house on a meadow under an evening sky."""
    import numpy as np
    from PIL import Image, ImageDraw

    # Drawn at twice its size, which makes the edges smooth.
    left, top, right, bottom = (2 * side for side in HOUSE)
    down = np.linspace(0, 1, 2 * HEIGHT)[:, np.newaxis]
    sky = (1 - down) * (58, 96, 158) + down * (255, 190, 128)
    pixels = np.broadcast_to(sky[:, np.newaxis], (2 * HEIGHT, 2 * WIDTH, 3))
    image = Image.fromarray(pixels.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    draw.ellipse((30, 84, 78, 132), fill=(255, 236, 180))
    draw.ellipse((-90, 112, 170, 330), fill=(78, 116, 84))
    draw.ellipse((70, 130, 400, 340), fill=(64, 98, 66))
    eaves = top + 26
    draw.rectangle((left + 8, eaves, right - 8, bottom), fill=(232, 220, 200))
    draw.polygon([(left, eaves), ((left + right) // 2, top), (right, eaves)], fill=(158, 66, 52))
    draw.rectangle((left + 31, bottom - 26, left + 45, bottom), fill=(94, 66, 48))
    image = image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def sound() -> bytes:
    """Returns a WAV: four notes, mono, 16 bits, two seconds."""
    import numpy as np

    time_s = np.arange(int(NOTE_S * RATE_HZ)) / RATE_HZ
    fading = np.exp(-4 * time_s)
    notes = [np.sin(2 * np.pi * pitch * time_s) * fading for pitch in NOTES_HZ]
    samples = (np.concatenate(notes) * 12_000).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(2)
        recording.setframerate(RATE_HZ)
        recording.writeframes(samples.tobytes())
    return file.getvalue()
