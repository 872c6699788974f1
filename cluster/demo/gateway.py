"""Sends a sample as a gateway's caller does and writes what comes back to a file."""

import base64
import json
import time
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from cluster.bridge.results import EXTENSIONS
from cluster.demo.masks import draw_masks
from cluster.demo.samples import INPUT_FILES, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What became of one sample: a file or an error."""

    sample: Sample
    path: Path | None = None
    text: str = ""
    """What the file says, where it is text."""
    seconds: float = 0.0
    """Until everything was downloaded, as the caller sees it."""
    task_id: str = ""
    error: str = ""

    @property
    def size(self) -> str:
        """The output's size in words, out of the file itself."""
        if self.path is None:
            return ""
        if self.path.suffix == ".png":
            header = self.path.read_bytes()[16:24]
            return f"{int.from_bytes(header[:4])}x{int.from_bytes(header[4:])}"
        if self.path.suffix == ".wav":
            with wave.open(str(self.path)) as sound:
                return f"{sound.getnframes() / sound.getframerate():.1f} s"
        size_bytes = self.path.stat().st_size
        return f"{size_bytes / 1000:.0f} kB" if size_bytes >= 1000 else f"{size_bytes} bytes"


async def send(
    gateway: aiohttp.ClientSession, sample: Sample, directory: Path, *, base: str = ""
) -> Output:
    """Sends a sample and keeps its answer; a failure is an output with its reason.

    Args:
        gateway: a session at the orchestrator's url.
        sample: what to send.
        directory: for the output; holds the inputs under their `INPUT_FILES` names.
        base: the live runner to send it to, a path at the orchestrator; empty to have it chosen.
    """
    began = time.monotonic()
    try:
        url = f"{base}/{sample.pipeline}"
        async with gateway.post(url, **_body(sample, directory)) as response:
            if response.status != 200:
                reason = _reason(await response.text())
                return Output(sample=sample, error=f"{response.status}: {reason}")
            document = await response.json()
            task_id = response.headers.get("Livepeer-Task-Id", "")
        extension, data, text = await _content(gateway, sample, document, directory)
    except (aiohttp.ClientError, TimeoutError) as error:
        return Output(sample=sample, error=f"{type(error).__name__} {error}".rstrip())
    seconds = time.monotonic() - began
    path = directory / f"{sample.name}{extension}"
    path.write_bytes(data)
    return Output(sample=sample, path=path, text=text, seconds=seconds, task_id=task_id)


def _reason(body: str) -> str:
    """What an error says: of a gateway, of a live runner, or of the orchestrator before it."""
    try:
        document = json.loads(body)
    except ValueError:
        return body.strip()
    if "error" in document:
        return str(document["error"]["message"])
    return str(document.get("detail", document))


def _body(sample: Sample, directory: Path) -> dict[str, Any]:
    """The keyword arguments of the POST."""
    if not sample.file:
        return {"json": sample.fields}
    form = aiohttp.FormData()
    name = INPUT_FILES[sample.file]
    form.add_field(sample.file, (directory / name).read_bytes(), filename=name)
    for field, value in sample.fields.items():
        form.add_field(field, value if isinstance(value, str) else json.dumps(value))
    return {"data": form}


async def _content(
    gateway: aiohttp.ClientSession, sample: Sample, document: dict[str, Any], directory: Path
) -> tuple[str, bytes, str]:
    """The extension and the bytes of an answer's file, and its text if it is one."""
    if "masks" in document:
        picture = (directory / INPUT_FILES["image"]).read_bytes()
        box = json.loads(sample.fields["box"])
        return ".png", draw_masks(picture, document["masks"], box=box), ""
    if "frames" in document:
        # The runner's HTTP API knows no videos: the first picture of one.
        document = {"images": document["frames"][0]}
    if "images" in document or "audio" in document:
        entry = document["images"][0] if "images" in document else document["audio"]
        if entry["url"].startswith("data:"):
            head, _, data = entry["url"].partition(",")
            media_type = head.removeprefix("data:").removesuffix(";base64")
            return EXTENSIONS[media_type], base64.b64decode(data), ""
        async with gateway.get(entry["url"]) as response:
            response.raise_for_status()
            return Path(entry["url"]).suffix, await response.read(), ""
    chosen = document["choices"][0]["message"]["content"] if "choices" in document else None
    text: str = document["text"] if chosen is None else chosen
    return ".txt", text.encode(), text
