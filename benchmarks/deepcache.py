"""What DEEPCACHE saves on a model in the shape of SDXL: blocks that are not computed, and seconds.

    python -m benchmarks.deepcache [--json FILE]

The model has SDXL's levels, layers and attention at a quarter of its width, and **random
weights**: its images are noise, and nothing here says how a real model's look with the flag.
The replica is the real one. Runs with and without alternate in the same process, so that
whatever else the machine does hits both; each is as fast as its fastest. The blocks are counted
by what was computed in them. Exit status: 1 when the ratio is under what we promise.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Before torch is imported: one thread, so that other load on a small machine counts for less.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks import machine
from deployments.loading import quiet_libraries
from deployments.model_args import ModelArgs
from deployments.schemas.text_to_image import TextToImageRequest
from deployments.text_to_image import TextToImageReplica
from deployments.tiny_models.repository import write_repository
from deployments.tiny_models.stable_diffusion import clip_text_encoder, clip_tokenizer, vae

MODEL_ID = "livepeer-ray/slim-xl"
STEPS = 20
SIDE = 256
ROUNDS = 3

WANTED_RATIO = 1.8

COUNTED = ("ResnetBlock2D", "BasicTransformerBlock")

EXIT_TOO_SLOW = 1


def save_slim_xl(directory: Path) -> None:
    """Saves SDXL at a quarter of its width; text encoders and decoder are tiny ones."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection

    tokenizer = clip_tokenizer()
    encoder = clip_text_encoder(tokenizer)
    width = encoder.config.hidden_size
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(80, 160, 320),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(2, 4, 8),
        norm_num_groups=16,
        use_linear_projection=True,
        cross_attention_dim=2 * width,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + width,
    ).eval()
    StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=encoder,
        text_encoder_2=CLIPTextModelWithProjection(encoder.config).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        add_watermarker=False,
    ).save_pretrained(directory)


def main() -> int:
    """Measures, prints, and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.deepcache", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    arguments = parser.parse_args()
    where = machine.describe()
    quiet_libraries()
    with tempfile.TemporaryDirectory(prefix="livepeer-ray-bench-") as directory:
        write_repository(Path(directory), MODEL_ID, save_slim_xl)
        report = {"machine": where, **_measure(Path(directory))}
    print(_table(report))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")
    if report["ratio"] < WANTED_RATIO:
        print(f"TOO SLOW: {report['ratio']:.2f} times, wanted {WANTED_RATIO:g}")
        return EXIT_TOO_SLOW
    return 0


def _measure(models_dir: Path) -> dict[str, Any]:
    replicas = {
        flag: TextToImageReplica(
            args=ModelArgs(
                pipeline="text-to-image", model_id=MODEL_ID, models_dir=models_dir, deepcache=flag
            )
        )
        for flag in (False, True)
    }
    request = TextToImageRequest(
        prompt="a lighthouse", width=SIDE, height=SIDE, num_inference_steps=STEPS, seed=1
    )
    seconds: dict[bool, list[float]] = {flag: [] for flag in replicas}
    blocks: dict[bool, int] = {}
    for number in range(ROUNDS):
        print(f"round {number + 1} of {ROUNDS}", flush=True)
        for flag, replica in replicas.items():
            with _counting(replica) as computed:
                began = time.perf_counter()
                replica.infer(request, lambda: None)
                seconds[flag].append(time.perf_counter() - began)
            blocks[flag] = len(computed)
    for replica in replicas.values():
        replica.close()
    return {
        "steps": STEPS,
        "side": SIDE,
        "seconds": {"without": seconds[False], "with": seconds[True]},
        "blocks": {"without": blocks[False], "with": blocks[True]},
        "ratio": min(seconds[False]) / min(seconds[True]),
    }


@contextmanager
def _counting(replica: TextToImageReplica) -> Iterator[list[None]]:
    """Yields a list that grows by one for each block of the UNet that is computed."""
    computed: list[None] = []
    hooks = [
        # In a block, as what skips one stands before it.
        next(block.children()).register_forward_pre_hook(lambda *_: computed.append(None))
        for block in replica._pipe.unet.modules()
        if type(block).__name__ in COUNTED
    ]
    yield computed
    for hook in hooks:
        hook.remove()


def _table(report: dict[str, Any]) -> str:
    """The report for people."""
    where, seconds, blocks = report["machine"], report["seconds"], report["blocks"]
    lines = [
        "",
        f"One image of {SIDE}x{SIDE} in {STEPS} steps with guidance, SDXL's shape at a quarter",
        "of its width, random weights:",
        "",
        *(
            f"  {name:8} DEEPCACHE  {min(seconds[name]):6.2f} s  {blocks[name]:5} blocks computed"
            for name in ("without", "with")
        ),
        f"  ratio              {report['ratio']:6.2f}    {blocks['without'] / blocks['with']:5.2f}",
        "",
        f"machine: {where['cores']} cores of {where['cpu']}, {where['memory_gib']} GiB, "
        f"{where['system']}, load {where['load_1min_before']} before the run",
        f"Python {where['python']}, torch {where['torch']}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
