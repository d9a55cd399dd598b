"""Names of adapters' tensors, of all that write them, to the model's."""

import numpy as np
import pytest
from array_source import ArraySource
from golden.models import FOLDER
from weights.hostile_files import read_tensors

from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.select import Kernels
from shaderfusion.weights.lora.names import Layer, Targets, find_family, find_other_kind, split_key

TRANSFORMER = "attentions.0.transformer_blocks.0"


def graph(name: str, *paths: str, width: int = 4) -> Graph:
    """That reads linear layers of those paths."""
    g = Graph(name, Kernels("f32"))
    for path in paths:
        g.weight(f"{path}.weight", 4, width, layout="linear")
        g.weight(f"{path}.bias", 4)
    return g


@pytest.fixture(scope="module")
def targets() -> Targets:
    """Of a model whose UNet has two blocks of two layers, the lower one with attention, and of two text encoders."""
    unet = [
        f"{side}_blocks.{block}.resnets.{i}.conv1"
        for side, n in (("down", 2), ("up", 3))
        for block in (0, 1)
        for i in range(n)
    ]
    unet += [f"down_blocks.1.{TRANSFORMER}.attn2.to_k", f"down_blocks.1.{TRANSFORMER}.attn1.to_out.0"]
    unet += [f"up_blocks.0.{TRANSFORMER}.ff.net.0.proj", "up_blocks.0.upsamplers.0.conv", "mid_block.resnets.1.conv2"]
    unet += [
        "down_blocks.0.downsamplers.0.conv",
        "conv_in",
        "time_embedding.linear_1",
        "down_blocks.1.resnets.0.time_emb_proj",
    ]
    layers = [f"text_model.encoder.layers.{i}.self_attn.{n}" for i in range(2) for n in ("q_proj", "out_proj")]
    stored = [*layers, "text_model.encoder.layers.2.self_attn.q_proj", "text_model.encoder.layers.2.self_attn.out_proj"]
    source = ArraySource(
        {f"{path}.{kind}": np.zeros(shape) for path in stored for kind, shape in (("weight", (4, 4)), ("bias", (4,)))}
    )
    graphs = {
        "unet": [graph("unet", *unet)],
        "text_encoder": [graph("text_encoder", *layers)],
        "text_encoder_2": [graph("text_encoder_2", *layers, "text_projection")],
    }
    return Targets(graphs, {"unet": source, "text_encoder": source, "text_encoder_2": source})


Q = "text_model.encoder.layers.1.self_attn.q_proj"
UNREAD = "text_model.encoder.layers.2.self_attn.q_proj"


@pytest.mark.parametrize(
    ("key", "component", "path", "parameter"),
    [
        ("lora_unet_down_blocks_1_resnets_0_conv1.lora_down.weight", "unet", "down_blocks.1.resnets.0.conv1", "down"),
        ("lora_unet_input_blocks_4_0_in_layers_2.lora_up.weight", "unet", "down_blocks.1.resnets.0.conv1", "up"),
        ("lora_unet_input_blocks_4_0_emb_layers_1.alpha", "unet", "down_blocks.1.resnets.0.time_emb_proj", "alpha"),
        ("lora_unet_input_blocks_3_0_op.lora_mid.weight", "unet", "down_blocks.0.downsamplers.0.conv", "mid"),
        ("lora_unet_input_blocks_0_0.diff_b", "unet", "conv_in", "diff_b"),
        ("lora_unet_time_embed_0.diff", "unet", "time_embedding.linear_1", "diff"),
        ("lora_unet_middle_block_2_out_layers_3.hada_t1", "unet", "mid_block.resnets.1.conv2", "hada_t1"),
        ("lora_unet_output_blocks_2_2_conv.lokr_t2", "unet", "up_blocks.0.upsamplers.0.conv", "lokr_t2"),
        ("lora_unet_output_blocks_3_0_in_layers_2.lokr_w1_a", "unet", "up_blocks.1.resnets.0.conv1", "lokr_w1_a"),
        (
            "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.lora_A.weight",
            "unet",
            f"down_blocks.1.{TRANSFORMER}.attn2.to_k",
            "down",
        ),
        (
            "model.diffusion_model.output_blocks.0.1.transformer_blocks.0.ff.net.0.proj.lora_up.weight",
            "unet",
            f"up_blocks.0.{TRANSFORMER}.ff.net.0.proj",
            "up",
        ),
        (
            f"lycoris_down_blocks_1_{TRANSFORMER.replace('.', '_')}_attn1_to_out_0.dora_scale",
            "unet",
            f"down_blocks.1.{TRANSFORMER}.attn1.to_out.0",
            "dora_scale",
        ),
        (
            f"unet.down_blocks.1.{TRANSFORMER}.attn1.processor.to_out_lora.up.weight",
            "unet",
            f"down_blocks.1.{TRANSFORMER}.attn1.to_out.0",
            "up",
        ),
        (
            f"down_blocks.1.{TRANSFORMER}.attn2.processor.to_k_lora.down.weight",
            "unet",
            f"down_blocks.1.{TRANSFORMER}.attn2.to_k",
            "down",
        ),
        (
            f"unet.down_blocks.1.{TRANSFORMER}.attn2.to_k.lora.down.weight",
            "unet",
            f"down_blocks.1.{TRANSFORMER}.attn2.to_k",
            "down",
        ),
        (
            f"unet.down_blocks.1.{TRANSFORMER}.attn2.to_k.lora_magnitude_vector",
            "unet",
            f"down_blocks.1.{TRANSFORMER}.attn2.to_k",
            "magnitude",
        ),
        ("unet.conv_in.lora_B.default.weight", "unet", "conv_in", "up"),
        (f"lora_te_{Q.replace('.', '_')}.lora_up.weight", "text_encoder", Q, "up"),
        (f"lora_te1_{Q.replace('.', '_')}.lora_down.weight", "text_encoder", Q, "down"),
        (f"lora_te2_{Q.replace('.', '_')}.alpha", "text_encoder_2", Q, "alpha"),
        (f"text_encoder.{Q}.lora_linear_layer.down.weight", "text_encoder", Q, "down"),
        (f"text_encoder_2.{Q}.lora_linear_layer.up.weight", "text_encoder_2", Q, "up"),
        (f"text_encoder.{Q.removeprefix('text_model.')}.lora_A.weight", "text_encoder", Q, "down"),
        (f"text_encoder.{Q.replace('q_proj', 'to_q_lora')}.up.weight", "text_encoder", Q, "up"),
        ("lora_te2_text_projection.lora_up.weight", "text_encoder_2", "text_projection", "up"),
        # A layer after those that are read, since the embedding is the state before it.
        (f"lora_te1_{UNREAD.replace('.', '_')}.alpha", "text_encoder", UNREAD, "alpha"),
    ],
)  # fmt: skip
def test_names(targets: Targets, key: str, component: str, path: str, parameter: str) -> None:
    split = split_key(key)
    assert split is not None
    assert (targets.find(split[0]), split[1]) == (Layer(component, path), parameter)


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_down_blocks_2_resnets_0_conv1",
        "lora_te_text_model_encoder_layers_3_self_attn_q_proj",
        "lora_unet_text_model_encoder_layers_1_self_attn_q_proj",
        "lora_te2_conv_in",
        "",
    ],
)
def test_names_of_no_layer(targets: Targets, name: str) -> None:
    assert targets.find(name) is None


@pytest.mark.parametrize("key", ["", "lora_up.weight", "a.weight", "lora_unet_conv_in.oft_blocks", "a.lora_E.weight"])
def test_keys_of_no_kind(key: str) -> None:
    split = split_key(key)
    assert split is None or not split[0]


@pytest.mark.parametrize(
    ("name", "size", "family"),
    [
        ("lora_unet_double_blocks_0_img_attn_qkv", None, "Flux"),
        ("transformer_single_transformer_blocks_0_attn_to_q", None, "Flux"),
        ("lora_unet_joint_blocks_0_x_block_attn_qkv", None, "Stable Diffusion 3 or Flux"),
        ("transformer_transformer_blocks_0_attn_to_q", None, "a diffusion transformer, such as Flux"),
        ("lora_unet_input_blocks_7_1_transformer_blocks_9_attn2_to_k", (4, 2048), "SDXL"),
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v", (4, 768), "Stable Diffusion 1.x"),
        ("unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", (4, 1024), "Stable Diffusion 2.x"),
        ("unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", (4, 5), "a model whose prompts have 5"),
    ],
)
def test_other_families(targets: Targets, name: str, size: tuple[int, int] | None, family: str) -> None:
    assert targets.context_width == 4
    found = find_family({name: size}, targets)
    assert found is not None
    assert found.startswith(family)


def test_sdxl_by_its_second_text_encoder() -> None:
    sources = {"unet": ArraySource({})}
    name = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    assert find_family({name: (4, 4)}, Targets({"unet": [graph("unet", "conv_in")]}, sources)) == "SDXL"


def test_its_own_family(targets: Targets) -> None:
    names = {"lora_te2_" + Q.replace(".", "_"): (4, 4), "lora_unet_input_blocks_4_1_attn2_to_k": (4, 4)}
    assert find_family(names, targets) is None


@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("lora_unet_conv_in.oft_blocks", "has OFT or BOFT, which is not read"),
        ("unet.conv_in.oft_R.default.weight", "has OFT or BOFT, which is not read"),
        ("unet.conv_in.boft_R", "has OFT or BOFT, which is not read"),
        ("lora_unet_conv_in.on_input", "has IA3, which is not read"),
        ("unet.mid_block.ff.net.2.ia3_l", "has IA3, which is not read"),
        ("lora_unet_conv_in.b2.weight", "has GLoRA, which is not read"),
        ("unet.conv_in.vera_lambda_b", "has VeRA, which is not read"),
        ("base_model.model.conv_in.lora_A.weight", "is of PEFT's own folder"),
        ("model.diffusion_model.input_blocks.0.0.weight", "is a model or a part of one"),
        ("first_stage_model.decoder.conv_in.weight", "is a model or a part of one"),
        ("decoder.conv_in.weight", "is a model or a part of one"),
        ("conv_in.weight", "is a model or a part of one"),
        ("clip_g", "is a textual inversion; give it as an embedding"),
        ("emb_params", "is a textual inversion; give it as an embedding"),
        ("controlnet_cond_embedding.conv_in.weight", "is a ControlNet or an IP-Adapter"),
        ("image_proj.norm.weight", "is a ControlNet or an IP-Adapter"),
    ],
)
def test_other_kinds(key: str, what: str) -> None:
    found = find_other_kind(["lora_unet_mid_block_resnets_0_conv1.alpha", key])
    assert found is not None
    assert found.startswith(what)
    assert "; " in found


def test_kinds_that_are_read_are_no_others() -> None:
    keys = [key for file in (FOLDER / "lora").glob("*.safetensors") for key, *_ in read_tensors(file)]
    assert len(keys) > 100
    assert find_other_kind([*keys, "model.diffusion_model.input_blocks.0.0.lora_up.weight"]) is None
