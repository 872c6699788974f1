"""LoRAs from the models directory, on the tiny model."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoPipelineForText2Image, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from deployments import loras as loras_module
from deployments.assembly import ModelFiles, find_files, load_pipeline
from deployments.errors import BadRequest, ReplicaError
from deployments.loras import USUAL_FILE, parse_loras
from deployments.text_to_image import TextToImageReplica
from deployments.tiny_models.repository import write_repository
from tests.deployments.conftest import TINY_SD, ObservedReplica, args, request
from tests.deployments.families import save_flux


def save_lora(files: ModelFiles, directory: Path, *, with_text: bool = False) -> None:
    """Saves one for this Stable Diffusion's UNet, and for its text encoder if wanted."""
    pipe = load_pipeline(AutoPipelineForText2Image, files)
    pipe.unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    if with_text:
        pipe.text_encoder.add_adapter(
            LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"])
        )
    StableDiffusionPipeline.save_lora_weights(
        directory,
        unet_lora_layers=get_peft_model_state_dict(pipe.unet),
        text_encoder_lora_layers=(
            get_peft_model_state_dict(pipe.text_encoder) if with_text else None
        ),
    )


@pytest.fixture(scope="module", autouse=True)
def _tiny_loras(tiny_models_dir: Path) -> None:
    """Writes two that fit, one for the UNet and one for the text encoder too, and bad ones."""
    files = find_files(TINY_SD, tiny_models_dir)

    def save_another_kind(directory: Path) -> None:
        layers = {"somewhere.lora_A.weight": torch.ones(2, 4), "x.lora_B.weight": torch.ones(4, 2)}
        save_file(layers, directory / "other.safetensors")

    def save_wrong_shape(directory: Path) -> None:
        layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
        layers = {
            f"{layer}.lora_A.weight": torch.ones(2, 3),
            f"{layer}.lora_B.weight": torch.ones(3, 2),
        }
        save_file(layers, directory / USUAL_FILE)

    write_repository(tiny_models_dir, "test/unet-1.5", lambda at: save_lora(files, at))
    write_repository(tiny_models_dir, "test/both", lambda at: save_lora(files, at, with_text=True))
    write_repository(tiny_models_dir, "test/another-kind", save_another_kind)
    write_repository(tiny_models_dir, "test/wrong-shape", save_wrong_shape)
    write_repository(
        tiny_models_dir, "test/cut-short", lambda at: _write(at / USUAL_FILE, b"\x10\x00\x00")
    )
    write_repository(tiny_models_dir, "test/empty", lambda at: _write(at / "README.md", b"-"))


def _write(file: Path, content: bytes) -> None:
    file.write_bytes(content)


async def image(replica: ObservedReplica, loras: str = "") -> bytes:
    return (await replica.run(request(loras=loras))).result.files[0].data


async def test_a_lora_acts_on_its_request_only(replica: ObservedReplica) -> None:
    plain = await image(replica)
    with_lora = await image(replica, '{"test/unet-1.5": 1}')
    assert with_lora != plain
    assert await image(replica) == plain
    assert await image(replica, '{"test/unet-1.5": 1}') == with_lora
    assert await image(replica, '{"test/both": 1}') not in (plain, with_lora)
    assert await image(replica, "{}") == plain


async def test_weights_count(replica: ObservedReplica) -> None:
    plain = await image(replica)
    assert await image(replica, '{"test/unet-1.5": 0}') == plain
    weak = await image(replica, '{"test/unet-1.5": 0.3}')
    assert weak != await image(replica, '{"test/unet-1.5": "1.0"}')
    assert weak != await image(replica, '{"test/unet-1.5": 0.3, "test/both": 0.9}')


async def test_only_so_many_stay_loaded(
    replica: ObservedReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await image(replica, '{"test/unet-1.5": 1}')
    monkeypatch.setattr(loras_module, "MAX_LOADED", 1)
    await image(replica, '{"test/both": 1}')
    assert list(replica._loras._names) == ["test/both"]
    assert replica._pipe.get_list_adapters()["unet"] == [replica._loras._names["test/both"]]
    assert await image(replica, '{"test/unet-1.5": 1}') == first


async def test_when_memory_runs_out_the_idle_ones_go(replica: ObservedReplica) -> None:
    await image(replica, '{"test/unet-1.5": 1}')
    both = await image(replica, '{"test/both": 1}')
    assert {"test/unet-1.5", "test/both"} <= replica._loras._names.keys()
    replica.failure = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
    with pytest.raises(ReplicaError, match="out of GPU memory"):
        await image(replica, '{"test/both": 1}')
    assert list(replica._loras._names) == ["test/both"]
    with pytest.raises(ReplicaError, match="out of GPU memory"):
        await image(replica)
    assert not replica._loras._names
    assert not any(replica._pipe.get_list_adapters().values())
    replica.reset()
    assert await image(replica, '{"test/both": 1}') == both


async def test_one_that_changes_flux_itself_is_refused_and_leaves_no_trace(
    tmp_path: Path,
) -> None:
    """As FLUX.1-Depth-dev-lora does: its transformer reads a second image beside the first."""

    def save_control(directory: Path) -> None:
        layers = {
            "transformer.x_embedder.lora_A.weight": torch.ones(2, 128),
            "transformer.x_embedder.lora_B.weight": torch.ones(32, 2),
            "transformer.transformer_blocks.0.attn.norm_q.weight": torch.zeros(16),
        }
        save_file(layers, directory / USUAL_FILE)

    write_repository(tmp_path, "test/flux", save_flux)
    write_repository(tmp_path, "test/control", save_control)
    replica = TextToImageReplica(args=args(tmp_path, "test/flux"))
    plain = (await replica.run(request())).result.files[0].data
    with pytest.raises(BadRequest, match="test/control is made for another kind of model"):
        await replica.run(request(loras='{"test/control": 1}'))
    assert (await replica.run(request())).result.files[0].data == plain
    replica.close()


@pytest.mark.parametrize(
    ("lora", "why"),
    [
        ("test/unknown", "is not available here"),
        ("../etc", "is not available here"),
        ("test/cut-short", "does not load"),
        ("test/empty", "has no .safetensors file"),
        ("test/another-kind", "does not load|another kind of model"),
        ("test/wrong-shape", "does not load"),
    ],
)
async def test_a_bad_lora_is_named_and_does_no_harm(
    replica: ObservedReplica, tiny_models_dir: Path, lora: str, why: str
) -> None:
    plain = await image(replica)
    mixed = await image(replica, '{"test/both": 1}')
    for loras in (f'{{"{lora}": 1}}', f'{{"test/both": 1, "{lora}": 1}}'):
        with pytest.raises(BadRequest, match=why) as error:
            await image(replica, loras)
        assert str(error.value).startswith(f"loras: {lora} ")
        assert str(tiny_models_dir) not in str(error.value)
        assert await image(replica) == plain
    assert await image(replica, '{"test/both": 1}') == mixed


@pytest.mark.parametrize(
    ("loras", "named"),
    [
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
        ('"a/b"', "must be a JSON object"),
        ('{"a/b": "heavy"}', "weight of a/b"),
        ('{"a/b": -0.1}', "weight of a/b"),
        ('{"a/b": NaN}', "weight of a/b"),
        ('{"a/b": Infinity}', "weight of a/b"),
        ('{"a/b": null}', "weight of a/b"),
        ('{"a/b": true}', "weight of a/b"),
        ('{"a/b": 1' + "0" * 400 + "}", "weight of a/b"),
        ("[" * 100_000, "not JSON"),
        ('{"\\ud800": -1}', r"weight of \?"),
        ('{"a":1,"b":1,"c":1,"d":1,"e":1}', "at most 4, not 5"),
    ],
)
def test_malformed_loras_are_named(loras: str, named: str) -> None:
    with pytest.raises(BadRequest, match=named):
        parse_loras(loras)


def test_weights_are_parsed() -> None:
    assert parse_loras('{"a/b": 1, "c/d": "0.5"}') == {"a/b": 1.0, "c/d": 0.5}
    assert parse_loras(" ") == parse_loras("{}") == {}
