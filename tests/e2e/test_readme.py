"""The README's commands, executed as they stand there."""

import contextlib
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from PIL import Image

from tests.e2e.conftest import SECOND, SECRET, TINY, Deployed, Gateway, Orchestrator
from tests.e2e.programs import BIN, Program, program

ROOT = Path(__file__).parents[2]
BLOCKS: list[str] = re.findall(
    r"^```bash\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S
)


def block(command: str) -> str:
    """The README's code block with this command in it."""
    (found,) = (text for text in BLOCKS if re.search(rf"^{re.escape(command)}\b", text, re.M))
    return found


@asynccontextmanager
async def operator(
    script: str, deployed: Deployed, orchestrator: Orchestrator | None = None
) -> AsyncIterator[Program]:
    """Runs a block in an operator's home, on the tests' cluster and for their orchestrator."""
    (deployed.home / ".lpData/orchSecret").write_text(f"{SECRET}\n")
    with contextlib.suppress(FileExistsError):
        (deployed.home / ".venv").symlink_to(BIN.parent)
    if orchestrator:
        script = script.replace("orchestrator.example:8935", orchestrator.address)
    environment = {
        "HOME": str(deployed.home),
        "LIVEPEER_RAY_RAY_ADDRESS": deployed.ray.address,
        "LIVEPEER_RAY_DEVICE": "cpu",
        "RAY_ADDRESS": deployed.ray.address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(Path.home() / ".ray/auth_token"),
    }
    # The last command replaces the shell, so that a signal to it reaches the program.
    *before, last = script.strip().splitlines()
    activate = block(". .venv/bin/activate").splitlines()[0]
    line = "\n".join(["set -e", activate, *before, f"exec {last}"])
    async with program(
        "/bin/bash", "-c", line, environment=environment, cwd=deployed.home
    ) as running:
        yield running


def test_every_block_is_executed_by_a_test_here() -> None:
    ours = [
        "make demo",
        ". .venv/bin/activate",
        "livepeer-ray start",
        "serve run",
        "livepeer-ray bridge",
    ]
    assert sorted(map(block, ours)) == sorted(BLOCKS)


async def test_make_demo() -> None:
    # `make test`, the other command of this block, is what runs this.
    assert block("make demo").splitlines() == ["make demo", "make test"]
    output = ROOT / "demo-output"
    shutil.rmtree(output, ignore_errors=True)
    async with program(shutil.which("make") or "make", "demo", cwd=ROOT) as demo:
        await demo.says("^done in .* everything is shut down again")
        assert await demo.ends() == 0
    pictures = sorted(output.glob("*.png"))
    assert len(pictures) == 3
    for picture in pictures:
        with Image.open(picture) as image:
            size = f"{image.width}x{image.height}"
            assert image.getextrema() != ((0, 0),) * 3
        await demo.says(rf"^text-to-image +[\d.]+ +[\d.]+ \w+ .*{picture.name}, {size}$")
    page = (output / "index.html").read_text()
    assert all(f'src="{picture.name}"' in page for picture in pictures)


async def test_validate(deployed: Deployed) -> None:
    async with operator(block(". .venv/bin/activate"), deployed) as validate:
        assert await validate.ends() == 0
        await validate.says(rf"text-to-image +{TINY} +yes +2")


async def test_start(deployed: Deployed, orchestrator: Orchestrator, gateway: Gateway) -> None:
    async with operator(block("livepeer-ray start"), deployed, orchestrator) as start:
        await orchestrator.advertises({TINY: 2, SECOND: 1})
        assert (await gateway.text_to_image())[0] == 200
        assert SECRET not in start.output


async def test_serve_run_and_bridge(
    deployed: Deployed, orchestrator: Orchestrator, gateway: Gateway
) -> None:
    async with operator(block("serve run"), deployed) as serve_run:
        await serve_run.says("Submitted deploy config successfully")
        async with operator(block("livepeer-ray bridge"), deployed, orchestrator):
            await orchestrator.advertises({TINY: 2, SECOND: 1})
            assert (await gateway.text_to_image())[0] == 200
        # At SIGTERM or SIGINT it would take down what the other tests use.
        serve_run.process.kill()
        await serve_run.ends()
