"""Tensor names that changed between releases of diffusers and transformers, oldest last."""

from collections.abc import Iterator

__all__ = ["name_candidates"]

_VAE_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def name_candidates(path: str) -> Iterator[str]:
    """Our path of a tensor, then its other names in checkpoints."""
    yield path
    # transformers leaves the outer module's name out of a text encoder's tensors, or not, by release.
    if path.startswith("text_model."):
        yield path.removeprefix("text_model.")
    # diffusers before 0.17 named the autoencoder's attention layers by what they make.
    for new, old in _VAE_ATTENTION.items():
        if path.startswith(("decoder.mid_block.attentions.", "encoder.mid_block.attentions.")) and f".{new}." in path:
            yield path.replace(f".{new}.", f".{old}.")
    # TAESD's own files hold the decoder alone, whose first layer, the clamp, diffusers does not count.
    if path.startswith("decoder.layers."):
        index, rest = path.removeprefix("decoder.layers.").split(".", 1)
        yield f"{int(index) + 1}.{rest}"
