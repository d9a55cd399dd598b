"""Names and shapes of tensors as the original code builds its modules, for make_single_files.py.

CompVis latent-diffusion's openaimodel.py and model.py, transformers' CLIP, OpenCLIP's transformer.py, taesd's taesd.py.
"""

from collections.abc import Iterator

__all__ = ["LENGTH", "VOCAB_SIZE", "clip", "open_clip", "taesd", "unet", "vae"]

Shapes = Iterator[tuple[str, tuple[int, ...]]]
VOCAB_SIZE, LENGTH = 49408, 77


def layer(name: str, *shape: int, bias: bool = True) -> Shapes:
    """A linear layer or convolution."""
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:1]


def norm(name: str, channels: int) -> Shapes:
    yield from layer(name, channels)


def res_block(name: str, channels: int, out: int, time: int) -> Shapes:
    yield from norm(f"{name}.in_layers.0", channels)
    yield from layer(f"{name}.in_layers.2", out, channels, 3, 3)
    yield from layer(f"{name}.emb_layers.1", out, time)
    yield from norm(f"{name}.out_layers.0", out)
    yield from layer(f"{name}.out_layers.3", out, out, 3, 3)
    if channels != out:
        yield from layer(f"{name}.skip_connection", out, channels, 1, 1)


def spatial_transformer(name: str, channels: int, depth: int, context: int, linear: bool) -> Shapes:
    yield from norm(f"{name}.norm", channels)
    kernel = () if linear else (1, 1)
    for end in ("proj_in", "proj_out"):
        yield from layer(f"{name}.{end}", channels, channels, *kernel)
    for index in range(depth):
        block = f"{name}.transformer_blocks.{index}"
        for attention, width in (("attn1", channels), ("attn2", context)):
            yield from layer(f"{block}.{attention}.to_q", channels, channels, bias=False)
            yield from layer(f"{block}.{attention}.to_k", channels, width, bias=False)
            yield from layer(f"{block}.{attention}.to_v", channels, width, bias=False)
            yield from layer(f"{block}.{attention}.to_out.0", channels, channels)
        yield from layer(f"{block}.ff.net.0.proj", 8 * channels, channels)
        yield from layer(f"{block}.ff.net.2", channels, 4 * channels)
        for number in (1, 2, 3):
            yield from norm(f"{block}.norm{number}", channels)


def unet(
    *,
    channels: int,
    mults: tuple[int, ...],
    num_res_blocks: int,
    depths: list[list[int]],
    depths_out: list[list[int]],
    middle: int | None,
    context: int,
    linear: bool = False,
    adm: int = 0,
    in_channels: int = 4,
    scales: int = 0,
) -> Shapes:
    """Depths of transformers by level, 0 for none; `middle` -1 for one residual block alone, None for none.

    `scales` are the channels of a guidance scale's embedding, for which files have diffusers' own name.
    """
    time = 4 * channels
    yield from layer("time_embed.0", time, channels)
    yield from layer("time_embed.2", time, time)
    if scales:
        yield from layer("time_embedding.cond_proj", channels, scales, bias=False)
    if adm:
        yield from layer("label_emb.0.0", time, adm)
        yield from layer("label_emb.0.2", time, time)
    yield from layer("input_blocks.0.0", channels, in_channels, 3, 3)
    ch, skips, number = channels, [channels], 0
    for level, mult in enumerate(mults):
        for index in range(num_res_blocks):
            number += 1
            yield from res_block(f"input_blocks.{number}.0", ch, mult * channels, time)
            ch = mult * channels
            if depths[level][index]:
                yield from spatial_transformer(f"input_blocks.{number}.1", ch, depths[level][index], context, linear)
            skips.append(ch)
        if level != len(mults) - 1:
            number += 1
            yield from layer(f"input_blocks.{number}.0.op", ch, ch, 3, 3)
            skips.append(ch)
    if middle is not None:
        yield from res_block("middle_block.0", ch, ch, time)
        if middle > 0:
            yield from spatial_transformer("middle_block.1", ch, middle, context, linear)
            yield from res_block("middle_block.2", ch, ch, time)
    number = -1
    for level in reversed(range(len(mults))):
        for index in range(num_res_blocks + 1):
            number += 1
            out, place = mults[level] * channels, 1
            yield from res_block(f"output_blocks.{number}.0", ch + skips.pop(), out, time)
            ch, depth = out, depths_out[len(mults) - 1 - level][index]
            if depth:
                yield from spatial_transformer(f"output_blocks.{number}.1", ch, depth, context, linear)
                place = 2
            if level and index == num_res_blocks:
                yield from layer(f"output_blocks.{number}.{place}.conv", ch, ch, 3, 3)
    yield from norm("out.0", ch)
    yield from layer("out.2", 4, channels, 3, 3)


def vae_block(name: str, channels: int, out: int) -> Shapes:
    yield from norm(f"{name}.norm1", channels)
    yield from layer(f"{name}.conv1", out, channels, 3, 3)
    yield from norm(f"{name}.norm2", out)
    yield from layer(f"{name}.conv2", out, out, 3, 3)
    if channels != out:
        yield from layer(f"{name}.nin_shortcut", out, channels, 1, 1)


def vae_mid(name: str, channels: int) -> Shapes:
    yield from vae_block(f"{name}.block_1", channels, channels)
    yield from norm(f"{name}.attn_1.norm", channels)
    for projection in ("q", "k", "v", "proj_out"):
        yield from layer(f"{name}.attn_1.{projection}", channels, channels, 1, 1)
    yield from vae_block(f"{name}.block_2", channels, channels)


def vae(*, widths: tuple[int, ...], num_res_blocks: int, z: int = 4) -> Shapes:
    yield from layer("encoder.conv_in", widths[0], 3, 3, 3)
    ch = widths[0]
    for level, width in enumerate(widths):
        for index in range(num_res_blocks):
            yield from vae_block(f"encoder.down.{level}.block.{index}", ch, width)
            ch = width
        if level != len(widths) - 1:
            yield from layer(f"encoder.down.{level}.downsample.conv", ch, ch, 3, 3)
    yield from vae_mid("encoder.mid", ch)
    yield from norm("encoder.norm_out", ch)
    yield from layer("encoder.conv_out", 2 * z, ch, 3, 3)
    yield from layer("quant_conv", 2 * z, 2 * z, 1, 1)
    yield from layer("post_quant_conv", z, z, 1, 1)
    yield from layer("decoder.conv_in", ch, z, 3, 3)
    yield from vae_mid("decoder.mid", ch)
    for level in reversed(range(len(widths))):
        for index in range(num_res_blocks + 1):
            yield from vae_block(f"decoder.up.{level}.block.{index}", ch, widths[level])
            ch = widths[level]
        if level:
            yield from layer(f"decoder.up.{level}.upsample.conv", ch, ch, 3, 3)
    yield from norm("decoder.norm_out", ch)
    yield from layer("decoder.conv_out", 3, ch, 3, 3)


def taesd(*, width: int, num_blocks: tuple[int, ...], z: int = 4) -> Shapes:
    """The decoder alone; what has no tensors counts too: the clamp, activations and upsampling."""
    yield from layer("1", width, z, 3, 3)
    number = 2
    for level, blocks in enumerate(num_blocks):
        if level:
            number += 2
            yield from layer(str(number), width, width, 3, 3, bias=False)
        for _ in range(blocks):
            number += 1
            for conv in (0, 2, 4):
                yield from layer(f"{number}.conv.{conv}", width, width, 3, 3)
    yield from layer(str(number + 1), 3, width, 3, 3)


def clip(*, width: int, layers: int, vocab_size: int = VOCAB_SIZE) -> Shapes:
    yield "text_model.embeddings.position_ids", (1, LENGTH)
    yield "text_model.embeddings.token_embedding.weight", (vocab_size, width)
    yield "text_model.embeddings.position_embedding.weight", (LENGTH, width)
    for index in range(layers):
        block = f"text_model.encoder.layers.{index}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from layer(f"{block}.self_attn.{projection}", width, width)
        yield from norm(f"{block}.layer_norm1", width)
        yield from norm(f"{block}.layer_norm2", width)
        yield from layer(f"{block}.mlp.fc1", 4 * width, width)
        yield from layer(f"{block}.mlp.fc2", width, 4 * width)
    yield from norm("text_model.final_layer_norm", width)


def open_clip(*, width: int, layers: int, vocab_size: int = VOCAB_SIZE) -> Shapes:
    yield "positional_embedding", (LENGTH, width)
    yield "text_projection", (width, width)
    yield "logit_scale", ()
    yield "token_embedding.weight", (vocab_size, width)
    for index in range(layers):
        block = f"transformer.resblocks.{index}"
        yield from norm(f"{block}.ln_1", width)
        yield f"{block}.attn.in_proj_weight", (3 * width, width)
        yield f"{block}.attn.in_proj_bias", (3 * width,)
        yield from layer(f"{block}.attn.out_proj", width, width)
        yield from norm(f"{block}.ln_2", width)
        yield from layer(f"{block}.mlp.c_fc", 4 * width, width)
        yield from layer(f"{block}.mlp.c_proj", width, 4 * width)
    yield from norm("ln_final", width)
