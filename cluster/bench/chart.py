"""A benchmark's chart: throughput and latency over concurrency, as a PNG.

Drawn with Pillow, which is installed for the models' images: two panels of lines are not worth
a plotting library and its dependencies on every GPU machine.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 1200, 520
PANELS = ((90, 600), (690, 1170))
"""Left and right of both panels' axes."""
TOP, BOTTOM = 110, 430
TICKS = 5
DOT = 5

INK, GRID = (40, 40, 40), (222, 222, 222)
COLOURS = ((31, 104, 180), (214, 96, 20), (44, 140, 60), (150, 60, 160))

Series = Sequence[tuple[str, Sequence[float]]]
"""A name and a value for each concurrency, for each line."""


def write_chart(report: Mapping[str, Any], path: Path) -> None:
    """Draws a report of `cluster.bench.report`.

    Raises:
        OSError: the file cannot be written.
    """
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    large, small = ImageFont.load_default(20), ImageFont.load_default(14)
    variants = report["variants"]
    levels = [level["concurrency"] for level in variants[0]["levels"]]
    title = f"{report['pipeline']}  {report['model_id']}  on {variants[0]['device']}"
    draw.text((PANELS[0][0], 20), title, INK, large)
    for index, variant in enumerate(variants):
        x = PANELS[0][0] + 220 * index
        draw.line((x, 65, x + 26, 65), COLOURS[index % len(COLOURS)], 3)
        draw.text((x + 34, 57), variant["flags"], INK, small)
    throughput = [("p50", _values(variant, "units_per_s")) for variant in variants]
    latency = [
        (name, [times[name] for times in _values(variant, "job_s")])
        for variant in variants
        for name in ("p50", "p95")
    ]
    words = "seconds per request: median, and 95 % below the thin line"
    _panel(draw, small, PANELS[0], f"{report['unit']} per second", levels, throughput)
    _panel(draw, small, PANELS[1], words, levels, latency)
    image.save(path, "PNG")


def _values(variant: Mapping[str, Any], name: str) -> list[Any]:
    return [level[name] for level in variant["levels"]]


def _panel(
    draw: ImageDraw.ImageDraw,
    font: Any,
    bounds: tuple[int, int],
    name: str,
    levels: Sequence[int],
    series: Series,
) -> None:
    """Draws axes and lines; concurrencies are evenly spaced, whatever their values."""
    left, right = bounds
    step = _step(max(value for _, values in series for value in values))
    top = step * TICKS
    draw.text((left, TOP - 28), name, INK, font)
    for tick in range(TICKS + 1):
        y = BOTTOM - (BOTTOM - TOP) * tick / TICKS
        draw.line((left, y, right, y), GRID)
        draw.text((left - 10, y), f"{tick * step:g}", INK, font, anchor="rm")
    spacing = (right - left) / len(levels)
    xs = [left + spacing * (index + 0.5) for index in range(len(levels))]
    for x, level in zip(xs, levels, strict=True):
        draw.text((x, BOTTOM + 12), str(level), INK, font, anchor="mt")
    draw.text(((left + right) / 2, BOTTOM + 40), "requests at a time", INK, font, anchor="mt")
    kinds = len(dict.fromkeys(kind for kind, _ in series))
    for index, (kind, values) in enumerate(series):
        colour = COLOURS[index // kinds % len(COLOURS)]
        points = [
            (x, BOTTOM - (BOTTOM - TOP) * value / top) for x, value in zip(xs, values, strict=True)
        ]
        draw.line(points, colour, 3 if kind == "p50" else 1)
        if kind == "p50":
            for x, y in points:
                draw.ellipse((x - DOT, y - DOT, x + DOT, y + DOT), colour)


def _step(highest: float) -> float:
    """Returns a round number of which `TICKS` reach the highest value."""
    least = (highest or 1.0) / TICKS
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least)
