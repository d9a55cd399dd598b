"""Names in the layout of the original releases: single ones here, whole models in test_ldm_models.py."""

import pytest

from shaderfusion.errors import ModelError
from shaderfusion.weights.ldm_names import StoredAs, UNetBlocks, open_clip_name, unet_name, vae_name

SD1 = UNetBlocks((2, 2, 2, 2), (False, True, True, True))
UNEVEN = UNetBlocks((1, 3), (True, False))
CONVERTED = UNetBlocks((1, 1, 1), (False, True, True), places=3)  # a converter that counts three layers in any block


@pytest.mark.parametrize(
    ("blocks", "path", "name"),
    [
        (SD1, "time_embedding.linear_2.bias", "time_embed.2.bias"),
        (SD1, "add_embedding.linear_1.weight", "label_emb.0.0.weight"),
        (SD1, "time_embedding.cond_proj.weight", "time_embedding.cond_proj.weight"),
        (SD1, "down_blocks.1.resnets.0.conv_shortcut.weight", "input_blocks.4.0.skip_connection.weight"),
        (SD1, "down_blocks.2.downsamplers.0.conv.bias", "input_blocks.9.0.op.bias"),
        (SD1, "down_blocks.3.resnets.1.norm2.bias", "input_blocks.11.0.out_layers.0.bias"),
        (SD1, "mid_block.resnets.1.time_emb_proj.weight", "middle_block.2.emb_layers.1.weight"),
        (SD1, "mid_block.attentions.0.norm.weight", "middle_block.1.norm.weight"),
        (SD1, "up_blocks.0.upsamplers.0.conv.weight", "output_blocks.2.1.conv.weight"),
        (SD1, "up_blocks.1.upsamplers.0.conv.weight", "output_blocks.5.2.conv.weight"),
        (SD1, "up_blocks.3.attentions.2.proj_out.bias", "output_blocks.11.1.proj_out.bias"),
        (UNEVEN, "down_blocks.1.resnets.2.conv1.bias", "input_blocks.5.0.in_layers.2.bias"),
        (UNEVEN, "up_blocks.0.upsamplers.0.conv.bias", "output_blocks.3.2.conv.bias"),
        (UNEVEN, "up_blocks.1.resnets.1.conv2.bias", "output_blocks.5.0.out_layers.3.bias"),
        (CONVERTED, "down_blocks.1.attentions.0.norm.bias", "input_blocks.4.1.norm.bias"),
        (CONVERTED, "down_blocks.1.downsamplers.0.conv.bias", "input_blocks.6.0.op.bias"),
        (CONVERTED, "up_blocks.0.upsamplers.0.conv.bias", "output_blocks.2.1.conv.bias"),
        (CONVERTED, "up_blocks.0.attentions.1.norm.bias", "up_blocks.0.attentions.1.norm.bias"),
        (CONVERTED, "up_blocks.2.resnets.1.conv1.bias", "output_blocks.7.0.in_layers.2.bias"),
    ],
)
def test_unet_name(blocks: UNetBlocks, path: str, name: str) -> None:
    assert unet_name(path, blocks) == name


@pytest.mark.parametrize("path", ["down_blocks.4.resnets.0.conv1.bias", "up_blocks.0.resnets.3.conv1.bias"])
def test_a_layer_that_the_unet_has_not(path: str) -> None:
    with pytest.raises(ModelError, match=rf"^{path}: must be one of 4 blocks of the UNet"):
        unet_name(path, SD1)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("post_quant_conv.weight", "post_quant_conv.weight"),
        ("decoder.conv_norm_out.bias", "decoder.norm_out.bias"),
        ("decoder.mid_block.resnets.1.conv2.bias", "decoder.mid.block_2.conv2.bias"),
        ("decoder.mid_block.attentions.0.to_out.0.weight", "decoder.mid.attn_1.proj_out.weight"),
        ("decoder.mid_block.attentions.0.group_norm.bias", "decoder.mid.attn_1.norm.bias"),
        ("decoder.up_blocks.1.resnets.2.conv_shortcut.bias", "decoder.up.2.block.2.nin_shortcut.bias"),
        ("decoder.up_blocks.0.upsamplers.0.conv.weight", "decoder.up.3.upsample.conv.weight"),
        ("encoder.down_blocks.1.downsamplers.0.conv.weight", "encoder.down.1.downsample.conv.weight"),
    ],
)
def test_vae_name(path: str, name: str) -> None:
    assert vae_name(path, 4) == name


@pytest.mark.parametrize(
    ("path", "stored"),
    [
        ("text_model.embeddings.token_embedding.weight", StoredAs("token_embedding.weight")),
        ("text_model.embeddings.position_embedding.weight", StoredAs("positional_embedding")),
        ("final_layer_norm.bias", StoredAs("ln_final.bias")),
        ("text_projection.weight", StoredAs("text_projection", transposed=True)),
        (
            "text_model.encoder.layers.3.self_attn.v_proj.bias",
            StoredAs("transformer.resblocks.3.attn.in_proj_bias", part=2),
        ),
        (
            "text_model.encoder.layers.11.self_attn.out_proj.weight",
            StoredAs("transformer.resblocks.11.attn.out_proj.weight"),
        ),
        ("text_model.encoder.layers.0.mlp.fc2.bias", StoredAs("transformer.resblocks.0.mlp.c_proj.bias")),
    ],
)
def test_open_clip_name(path: str, stored: StoredAs) -> None:
    assert open_clip_name(path) == stored
