"""Whole models in one file: against what diffusers' loader of such files makes of the same names, shapes and bytes."""

import hashlib
import time
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weights.ldm_files import golden, write_header, write_model

from shaderfusion.config import ClipTextConfig, Config, UNetConfig, VaeConfig
from shaderfusion.errors import ModelError, ShaderfusionError, WeightsError
from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.weights.model_files import ModelFiles
from shaderfusion.weights.single_file import SingleFile, UnknownTensorsWarning

KINDS: dict[str, type[Config]] = {
    "unet": UNetConfig,
    "vae": VaeConfig,
    "text_encoder": ClipTextConfig,
    "text_encoder_2": ClipTextConfig,
}
PIPELINES = {
    "sd15": "StableDiffusionPipeline",
    "inpainting": "StableDiffusionInpaintPipeline",
    "tiny_sd": "StableDiffusionPipeline",
    "sd21": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "ssd_1b": "StableDiffusionXLPipeline",
    "vega": "StableDiffusionXLPipeline",
    "little_sd1": "StableDiffusionPipeline",
    "little_sd2": "StableDiffusionPipeline",
    "little_sdxl": "StableDiffusionXLPipeline",
    "little_lcm": "LatentConsistencyModelPipeline",
    "little_inpainting": "StableDiffusionInpaintPipeline",
    "little_tiny_sd": "StableDiffusionPipeline",
    "little_sd2_inpainting": "StableDiffusionInpaintPipeline",
    "little_sd_turbo": "StableDiffusionPipeline",
    "little_sdxl_inpainting": "StableDiffusionXLInpaintPipeline",
    "little_vega": "StableDiffusionXLPipeline",
    "little_ssd_1b": "StableDiffusionXLPipeline",
}
LITTLE = [name for name in PIPELINES if name.startswith("little")]


def said(config: Config) -> dict[str, Any]:
    """What a configuration means, however it is written."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    if isinstance(config, UNetConfig):
        for name in ("transformer_layers_per_block", "reverse_transformer_layers_per_block"):
            del values[name]  # the blocks have them
        heads = config.num_heads_per_block
        layers = config.num_layers_per_block
        values |= {"attention_head_dim": heads, "layers_per_block": layers, "sample_size": None}
        values |= {"time_embedding_dim": config.time_embed_dim, "up": config.up_blocks, "down": config.down_blocks}
        values["mid"] = config.mid_block
    if isinstance(config, VaeConfig):
        values["force_upcast"] = bool(config.force_upcast)
    if isinstance(config, ClipTextConfig):
        del values["projection_dim"]  # has a meaning only where there is a projection, and is tested there
    return values


@pytest.mark.parametrize("name", PIPELINES)
def test_configurations(tmp_path: Path, name: str) -> None:
    model = golden()[name]
    file = SingleFile(write_header(tmp_path / "model.safetensors", model["file"]))
    assert file.options == {"_class_name": PIPELINES[name]}
    for component, expected in model["components"].items():
        kind = KINDS[component]
        assert said(file.config(component, kind)) == said(kind.from_options(expected["config"], "diffusers"))
    if "text_encoder_2" in model["components"]:
        expected = model["components"]["text_encoder_2"]["config"]["projection_dim"]
        assert file.config("text_encoder_2", ClipTextConfig).projection_dim == expected


@pytest.mark.parametrize("name", PIPELINES)
def test_every_tensor_of_diffusers_is_found(tmp_path: Path, name: str) -> None:
    model = golden()[name]
    file = SingleFile(write_header(tmp_path / "model.safetensors", model["file"]))
    for component, expected in model["components"].items():
        source = file.tensors(component)
        for path, shape in expected["tensors"].items():
            assert source.find(path, tuple(shape)) in model["file"]
        path, shape = next(iter(expected["tensors"].items()))
        wrong = (7, *shape)
        with pytest.raises(WeightsError, match=r"has shape .*, must be"):
            source.find(path, wrong)


@pytest.mark.parametrize("name", LITTLE)
def test_tensors_are_those_that_diffusers_converts(tmp_path: Path, name: str) -> None:
    model = golden()[name]
    file = SingleFile(write_model(tmp_path / "model.safetensors", model["file"]))
    for component, digests in model["digests"].items():
        source, shapes = file.tensors(component), model["components"][component]["tensors"]
        for path, digest in digests.items():
            shape = tuple(shapes[path])
            stored = source.read(path, shape)
            assert stored.dtype == "F16"
            assert hashlib.sha256(stored.data.tobytes()).hexdigest()[:16] == digest, path
            rows = np.array([[shape[0] - 1], [0]])
            expected = stored.data.reshape(shape[0], -1)[rows].reshape(-1)
            np.testing.assert_array_equal(source.read_rows(path, shape, rows).data, expected)


def test_a_converters_numbers(tmp_path: Path) -> None:
    # diffusers' script numbers the layers of any UNet as SD 1.x's, and leaves transformers that SD 1.x lacks.
    model = golden()["tiny_sd"]
    renamed = {}
    for name, shape in model["file"].items():
        prefix, dot, inner = name.partition("_blocks.")
        if dot and name.startswith("model.diffusion_model."):
            number, layer, rest = inner.split(".", 2)
            up = prefix.endswith("output")
            block, index = divmod(int(number) - (not up), 2)
            if up and rest.startswith("conv."):
                name = f"{prefix}_blocks.{3 * block + 2}.{min(int(layer), 1 + (block > 0))}.{rest}"
            elif up and block == 0 and layer == "1":
                name = f"model.diffusion_model.up_blocks.0.attentions.{index}.{rest}"
            elif number != "0" or up:
                index = 2 if rest.startswith("op.") else index
                name = f"{prefix}_blocks.{3 * block + index + (not up)}.{layer}.{rest}"
        renamed[name] = shape
    assert "model.diffusion_model.input_blocks.6.0.op.weight" in renamed
    assert "model.diffusion_model.output_blocks.2.1.conv.bias" in renamed
    assert len(renamed) == len(model["file"])
    file = SingleFile(write_header(tmp_path / "model.safetensors", renamed))
    expected = UNetConfig.from_options(model["components"]["unet"]["config"], "diffusers")
    assert said(file.config("unet", UNetConfig)) == said(expected)
    for path, shape in model["components"]["unet"]["tensors"].items():
        file.tensors("unet").find(path, tuple(shape))


def test_a_large_file_is_opened_at_once(tmp_path: Path) -> None:
    path = write_header(tmp_path / "model.safetensors", golden()["sdxl"]["file"])
    assert path.stat().st_size > 6.9e9
    start = time.process_time()
    file = SingleFile(path)
    file.config("unet", UNetConfig)
    file.tensors("unet")
    assert time.process_time() - start < 2


# ---- what tensors do not say


def scheduler(path: Path, name: str, *, extra: tuple[str, ...] = (), **options: Any) -> SchedulerConfig:
    shapes = golden()[name]["file"] | {key: [1] for key in extra}
    metadata = options.pop("metadata", None)
    return SingleFile(write_header(path / "model.safetensors", shapes, metadata=metadata), **options).scheduler_config()


def test_scheduler(tmp_path: Path) -> None:
    sd1 = scheduler(tmp_path, "sd15")
    assert (sd1.beta_schedule, sd1.beta_start, sd1.beta_end) == ("scaled_linear", 0.00085, 0.012)
    assert (sd1.class_name, sd1.prediction_type, sd1.steps_offset) == ("PNDMScheduler", "epsilon", 1)
    assert (sd1.clip_sample, sd1.set_alpha_to_one) == (False, False)
    assert scheduler(tmp_path, "sd21") == replace(sd1, class_name="DDIMScheduler")
    xl = replace(sd1, class_name="EulerDiscreteScheduler", timestep_spacing="leading")
    assert scheduler(tmp_path, "sdxl") == xl


@pytest.mark.parametrize(
    ("name", "extra", "metadata", "expected"),
    [
        ("sd21", (), {}, "epsilon"),
        ("sd21", (), {"modelspec.prediction_type": "v"}, "v_prediction"),
        ("sd21", (), {"modelspec.predict_key": "epsilon"}, "epsilon"),
        ("sd21", (), {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v_prediction"),
        ("sdxl", ("v_pred", "ztsnr"), {}, "v_prediction"),
    ],
)
def test_prediction_type(
    tmp_path: Path, name: str, extra: tuple[str, ...], metadata: dict[str, str], expected: str
) -> None:
    found = scheduler(tmp_path, name, extra=extra, metadata=metadata)
    assert found.prediction_type == expected
    assert found.rescale_betas_zero_snr == ("ztsnr" in extra)
    for said in ("epsilon", "v_prediction"):
        assert scheduler(tmp_path, name, extra=extra, metadata=metadata, prediction_type=said).prediction_type == said


def test_a_prediction_type_that_is_not_implemented(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"\(scheduler\): SchedulerConfig: prediction_type \(='sample'\) must be one"):
        scheduler(tmp_path, "sd21", metadata={"modelspec.prediction_type": "sample"})


@pytest.mark.parametrize(
    ("name", "prediction_type", "cells"),
    [("sd15", None, 64), ("sd21", None, 64), ("sd21", "v_prediction", 96), ("sdxl", "v_prediction", 128)],
)
def test_size(tmp_path: Path, name: str, prediction_type: str | None, cells: int) -> None:
    path = write_header(tmp_path / "model.safetensors", golden()[name]["file"])
    config = SingleFile(path, prediction_type=prediction_type).config("unet", UNetConfig)
    assert config.sample_sides == (cells, cells)


@pytest.mark.parametrize(
    ("name", "pipeline"), [("sd15", "LatentConsistencyModelPipeline"), ("sdxl", "StableDiffusionXLPipeline")]
)
def test_consistency_models(tmp_path: Path, name: str, pipeline: str) -> None:
    shapes = golden()[name]["file"] | {"model.diffusion_model.time_embedding.cond_proj.weight": [320, 256]}
    file = SingleFile(write_header(tmp_path / "model.safetensors", shapes))
    assert file.options == {"_class_name": pipeline}
    assert file.config("unet", UNetConfig).time_cond_proj_dim == 256
    assert file.scheduler_config().class_name == "LCMScheduler"
    assert file.tensors("unet").find("time_embedding.cond_proj.weight", (320, 256)).endswith("cond_proj.weight")


def test_tokenizers(tmp_path: Path) -> None:
    pads = {}
    for name in ("sd15", "sd21", "sdxl"):
        file = SingleFile(write_header(tmp_path / "model.safetensors", golden()[name]["file"]))
        components = ("tokenizer", "tokenizer_2") if name == "sdxl" else ("tokenizer",)
        pads[name] = [int(file.tokenizer(component)(["a"])[0, -1]) for component in components]
        assert file.tokenizer("tokenizer").max_length == 77
    assert pads == {"sd15": [49407], "sd21": [0], "sdxl": [49407, 0]}


@pytest.mark.parametrize("length", [2, 4097])
def test_prompts_of_no_tokenizer(tmp_path: Path, length: int) -> None:
    name = "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight"
    file = SingleFile(write_header(tmp_path / "model.safetensors", golden()["sd15"]["file"] | {name: [length, 768]}))
    with pytest.raises(ModelError, match=rf"prompts of its text_encoder have {length} tokens, must have from 3 to"):
        file.tokenizer("tokenizer")


# ---- forms of files


def text_tensors(file: ModelFiles, model: dict[str, Any]) -> None:
    for component in ("text_encoder", "text_encoder_2"):
        for path, shape in model["components"].get(component, {"tensors": {}})["tensors"].items():
            file.tensors(component).find(path, tuple(shape))


def test_clip_without_its_outer_name(tmp_path: Path) -> None:
    model = golden()["sd15"]
    shapes = {name.replace("transformer.text_model.", "transformer."): shape for name, shape in model["file"].items()}
    file = SingleFile(write_header(tmp_path / "model.safetensors", shapes))
    assert file.config("text_encoder", ClipTextConfig).num_hidden_layers == 12
    text_tensors(file, model)


def test_sd2_without_the_layer_that_is_not_read(tmp_path: Path) -> None:
    model = golden()["sd21"]
    shapes = {name: shape for name, shape in model["file"].items() if ".resblocks.23." not in name}
    file = SingleFile(write_header(tmp_path / "model.safetensors", shapes))
    assert file.config("text_encoder", ClipTextConfig).num_hidden_layers == 23
    text_tensors(file, model)


def test_sd2_with_the_prefix_of_newer_releases(tmp_path: Path) -> None:
    # SD-Turbo has it, and of SDXL's models the refiner, whose UNet reads the sizes of pictures too.
    model = golden()["sd21"]
    prefix = "conditioner.embedders.0.model."
    shapes = {name.replace("cond_stage_model.model.", prefix): shape for name, shape in model["file"].items()}
    file = SingleFile(write_header(tmp_path / "model.safetensors", shapes))
    assert file.options == {"_class_name": "StableDiffusionPipeline"}
    assert file.config("text_encoder", ClipTextConfig).num_hidden_layers == 23
    assert int(file.tokenizer("tokenizer")(["a"])[0, -1]) == 0
    text_tensors(file, model)
    shapes["model.diffusion_model.label_emb.0.0.weight"] = [1280, 2560]
    with pytest.raises(ModelError, match=r"model.safetensors: is the refiner of Stable Diffusion XL; give its base"):
        SingleFile(write_header(tmp_path / "model.safetensors", shapes))


def test_a_projection_that_is_not_transposed(tmp_path: Path) -> None:
    model = golden()["sdxl"]
    shapes = {name.replace("text_projection", "text_projection.weight"): s for name, s in model["file"].items()}
    file = SingleFile(write_header(tmp_path / "model.safetensors", shapes))
    assert file.tensors("text_encoder_2").find("text_projection.weight", (1280, 1280)).endswith("projection.weight")


def test_what_is_not_needed(tmp_path: Path) -> None:
    needless = (
        "model_ema.decay",
        "model_ema.diffusion_modelinput_blocks00weight",
        "betas",
        "sqrt_recipm1_alphas_cumprod",
    )
    needless += ("posterior_mean_coef1", "first_stage_model.loss.logvar", "alphas_cumprod_prev", "global_step")
    shapes = golden()["sd15"]["file"] | {key: [1] for key in needless}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SingleFile(write_header(tmp_path / "model.safetensors", shapes))


@pytest.mark.parametrize(
    "name",
    ["model.diffusion_model.input_blocks.1.0.extra.weight", "embedding_manager.x", "first_stage_model.decoder.up"],
)
def test_tensors_that_no_part_has_are_named(tmp_path: Path, name: str) -> None:
    path = write_header(tmp_path / "model.safetensors", golden()["sd15"]["file"] | {name: [1]})
    with pytest.warns(UnknownTensorsWarning, match=rf"model.safetensors: 1 tensors are not used.*'{name}'"):
        SingleFile(path)


# ---- files that are something else, or damaged


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (("lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight",), "is a LoRA, not a model"),
        (("unet.down_blocks.0.attentions.0.proj_in.lora_A.weight",), "is a LoRA, not a model"),
        (("unet.mid_block.attentions.0.proj_in.lora_linear_layer.up.weight",), "is a LoRA, not a model"),
        (
            ("mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight",),
            "is a LoRA, not a model",
        ),
        (("lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a",), "is a LoRA, not a model"),
        (("control_model.input_blocks.0.0.weight", "model.diffusion_model.input_blocks.0.0.weight"), "is a ControlNet"),
        (("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"), "is an IP-Adapter"),
        (("emb_params",), "is an embedding of textual inversion"),
        (("clip_g", "clip_l"), "is an embedding of textual inversion"),
        (("model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight",), "is of Stable Diffusion 3"),
        (("double_blocks.0.img_attn.norm.key_norm.scale",), "is of Flux"),
        (("model.diffusion_model.cap_embedder.0.weight",), "is of a diffusion transformer"),
        (("edm_mean", "model.diffusion_model.input_blocks.0.0.weight"), "is trained with the noise levels of EDM"),
        (("scaled_fp8", "model.diffusion_model.input_blocks.0.0.weight"), "has weights with scales of their own"),
        (("first_stage_model.decoder.conv_in.weight",), "is a VAE alone; give it as vae"),
        (("decoder.conv_in.weight", "encoder.conv_in.weight"), "is a VAE alone; give it as vae"),
        (("decoder.layers.0.weight",), "is a VAE alone; give it as vae"),
        (("down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"), "is a UNet alone in diffusers' layout"),
        (("input_blocks.0.0.weight",), "is a UNet alone, without a text encoder"),
        (("text_model.final_layer_norm.bias",), "is a text encoder alone"),
        (("model.layers.0.mlp.gate_proj.weight",), r"holds no UNet of Stable Diffusion .*model\.layers\.0"),
        ((), "holds no UNet of Stable Diffusion"),
    ],
)
def test_other_kinds_of_files(tmp_path: Path, names: tuple[str, ...], what: str) -> None:
    path = write_header(tmp_path / "model.safetensors", {key: [1] for key in names})
    with pytest.raises(ModelError, match=rf"^{path}: {what}"):
        SingleFile(path)


@pytest.mark.parametrize(
    ("prefix", "component", "message"),
    [
        ("first_stage_model.", "vae", r"holds no VAE \(tensors first_stage_model\.\*\); give one as vae"),
        ("cond_stage_model.", "text_encoder", r"holds no text_encoder .*; take a file of the whole model"),
    ],
)
def test_a_missing_part(tmp_path: Path, prefix: str, component: str, message: str) -> None:
    shapes = {name: shape for name, shape in golden()["sd15"]["file"].items() if not name.startswith(prefix)}
    file = SingleFile(write_header(tmp_path / "model.safetensors", shapes))
    with pytest.raises(ModelError, match=message):
        file.config(component, KINDS[component])


def test_a_component_that_such_models_have_not(tmp_path: Path) -> None:
    file = SingleFile(write_header(tmp_path / "model.safetensors", golden()["sd15"]["file"]))
    for ask in (lambda name: file.config(name, ClipTextConfig), file.tensors):
        with pytest.raises(
            ModelError, match=r"component \(='text_encoder_2'\) must be one of unet, vae, text_encoder$"
        ):
            ask("text_encoder_2")


def use(path: Path, model: dict[str, Any]) -> None:
    """Opens a file and looks for every tensor."""
    file = SingleFile(path)
    for component, expected in model["components"].items():
        file.config(component, KINDS[component])
        for tensor, shape in expected["tensors"].items():
            file.tensors(component).find(tensor, tuple(shape))


@pytest.mark.parametrize("component", KINDS)
def test_a_missing_tensor_and_one_without_dimensions(tmp_path: Path, component: str) -> None:
    model = golden()["little_sdxl"]
    path = write_header(tmp_path / "model.safetensors", model["file"])
    use(path, model)
    source = SingleFile(path).tensors(component)
    tensors = model["components"][component]["tensors"]
    needed = {source.find(tensor, tuple(shape)) for tensor, shape in tensors.items()}
    for name in sorted(needed)[::23]:
        without = {other: shape for other, shape in model["file"].items() if other != name}
        for shapes in (without, model["file"] | {name: []}, model["file"] | {name: [0]}):
            write_header(path, shapes)
            with pytest.raises(ShaderfusionError, match=str(path)):
                use(path, model)


def test_layers_that_are_no_unet_of_diffusers(tmp_path: Path) -> None:
    shapes = golden()["sd15"]["file"]
    without = {name: shape for name, shape in shapes.items() if "diffusion_model.input_blocks.2." not in name}
    with pytest.raises(ModelError, match=r"the blocks of its UNet are not those of diffusers' UNet2DConditionModel"):
        SingleFile(write_header(tmp_path / "model.safetensors", without))


def test_a_name_of_many_numbers(tmp_path: Path) -> None:
    name = "model.diffusion_model." + "0." * 200_000
    path = write_header(tmp_path / "model.safetensors", golden()["little_sd1"]["file"] | {name: [1]})
    start = time.process_time()
    with pytest.raises(WeightsError, match=r"must hold at most 20,000 tensors, with names of at most 256 characters"):
        SingleFile(path)
    assert time.process_time() - start < 5


def test_a_cut_file(tmp_path: Path) -> None:
    path = write_header(tmp_path / "model.safetensors", golden()["sd15"]["file"])
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(WeightsError, match=r"model.safetensors: not a whole safetensors file"):
        SingleFile(path)


def test_a_name_that_is_there_twice(tmp_path: Path) -> None:
    path = write_header(tmp_path / "model.safetensors", golden()["little_sd1"]["file"])
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    first, second = b"input_blocks.1.0.in_layers.2.bias", b"input_blocks.1.0.in_layers.0.bias"
    path.write_bytes(whole[:8] + whole[8 : 8 + size].replace(first, second) + whole[8 + size :])
    with pytest.raises(WeightsError, match=r"model.safetensors"):
        use(path, golden()["little_sd1"])
