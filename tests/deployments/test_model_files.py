"""Which files of repositories like the network's own are fetched, and which are left."""

from deployments.model_files import (
    Repository,
    companions,
    files_to_load,
    has_weights,
    own_repository,
)

SDXL = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.42.1",
    "force_zeros_for_empty_prompt": True,
    "feature_extractor": [None, None],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}


def test_sixteen_bits_of_a_diffusers_model_and_nothing_twice() -> None:
    files = [
        "README.md",
        "model_index.json",
        "sd_xl_base_1.0.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/model.onnx",
        "unet/openvino_model.bin",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/flax_model.msgpack",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "vae_1_0/config.json",
        "vae_1_0/diffusion_pytorch_model.safetensors",
    ]
    assert files_to_load(files, index=SDXL) == [
        "model_index.json",
        "text_encoder/config.json",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ]


def test_weights_in_parts_named_either_way() -> None:
    index = {"text_encoder": ["transformers", "T5EncoderModel"]}
    for parts in (
        ["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"],
        ["model-00001-of-00002.fp16.safetensors", "model-00002-of-00002.fp16.safetensors"],
    ):
        parts = [f"text_encoder/{part}" for part in parts]
        other = "text_encoder/model-00001-of-00004.safetensors"
        assert files_to_load([*parts, other], index=index) == parts
        assert files_to_load([other], index=index) == [other]


def test_the_parts_that_replicas_leave_out_are_not_fetched() -> None:
    index = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    files = [
        "model_index.json",
        "safety_checker/model.fp16.safetensors",
        "safety_checker/config.json",
        "feature_extractor/preprocessor_config.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    ]
    assert files_to_load(files, index=index) == [
        "model_index.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
    ]


def test_a_transformers_model() -> None:
    whisper = [
        ".gitattributes",
        "added_tokens.json",
        "config.json",
        "flax_model.msgpack",
        "model.fp32-00001-of-00002.safetensors",
        "model.fp32-00002-of-00002.safetensors",
        "model.safetensors",
        "onnx/model.onnx",
        "original/consolidated.safetensors",
        "pytorch_model.bin",
        "pytorch_model.fp32-00001-of-00002.bin",
        "merges.txt",
    ]
    assert files_to_load(whisper, index=None) == [
        "added_tokens.json",
        "config.json",
        "merges.txt",
        "model.safetensors",
    ]
    llama = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert files_to_load([*llama, "consolidated.safetensors"], index=None) == llama
    pickled = ["config.json", "pytorch_model.bin", "spm_char.model", "tf_model.h5"]
    assert files_to_load(pickled, index=None) == pickled[:3]


def test_a_repository_without_weights_for_us() -> None:
    assert not has_weights(files_to_load(["sam2_hiera_large.pt", "a.yaml"], index=None))
    assert has_weights(["model.safetensors"])


CHECKER = Repository(id="CompVis/stable-diffusion-safety-checker")


def test_a_model_of_its_own_files() -> None:
    assert own_repository("org/name") == Repository(id="org/name")
    assert companions("text-to-image", "org/name", {}) == [CHECKER]
    assert companions("text-to-speech", "org/name", {"model_type": "vits"}) == []
    assert companions("llm", "org/name", {"model_type": "qwen3"}) == []


def test_a_model_that_is_one_file_and_the_rest_of_another() -> None:
    model_id = "ByteDance/SDXL-Lightning-4step"
    assert own_repository(model_id) == Repository(id="stabilityai/stable-diffusion-xl-base-1.0")
    assert companions("image-to-image", model_id, {}) == [
        Repository(id="ByteDance/SDXL-Lightning", files=("sdxl_lightning_4step_unet.safetensors",)),
        CHECKER,
    ]


def test_a_model_with_the_vae_of_another() -> None:
    model_id = "SG161222/Realistic_Vision_V6.0_B1_noVAE"
    assert own_repository(model_id) == Repository(id=model_id)
    vae = Repository(id="stabilityai/sd-vae-ft-ema")
    assert companions("text-to-image", model_id, {}) == [vae, CHECKER]
    assert files_to_load(
        ["config.json", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"],
        index=None,
    ) == ["config.json", "diffusion_pytorch_model.safetensors"]


def test_speech_takes_a_vocoder_and_a_voice() -> None:
    assert companions("text-to-speech", "org/name", {"model_type": "speecht5"}) == [
        Repository(id="microsoft/speecht5_hifigan"),
        Repository(
            id="Matthijs/cmu-arctic-xvectors", repo_type="dataset", files=("spkrec-xvect.zip",)
        ),
    ]


def test_parler_tts_may_take_a_second_tokenizer() -> None:
    encoder = {"_name_or_path": "google/flan-t5-large", "vocab_size": 32_128}
    config = {"model_type": "parler_tts", "text_encoder": encoder, "vocab_size": 32_128}
    assert companions("text-to-speech", "parler-tts/a", config) == []
    assert companions("text-to-speech", "parler-tts/a", config | {"vocab_size": 128_256}) == [
        Repository(id="google/flan-t5-large", weights=False)
    ]
