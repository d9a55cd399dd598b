"""CLIP's text transformer: one prompt's tokens -> its embedding (1, L, C). Radford et al. 2021, arXiv 2103.00020."""

from typing import Literal

import numpy as np

from shaderfusion.config import ClipTextConfig
from shaderfusion.errors import InputError
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.common.elementwise import add
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.blocks import AttentionNames, activation, attention, layer_norm, linear

__all__ = ["TOKEN_TABLE", "find_end_of_text", "text_encoder_graph"]

TOKEN_TABLE = "text_model.embeddings.token_embedding.weight"

_ATTENTION = AttentionNames("q_proj", "k_proj", "v_proj", "out_proj")


def text_encoder_graph(
    config: ClipTextConfig,
    kernels: Kernels,
    *,
    name: str = "text_encoder",
    skip_layers: int = 0,
    final_norm: bool = True,
    pooled: Literal["state", "projection"] | None = None,
) -> Graph:
    """Inputs: TOKEN_TABLE (1, L, C), its row of each token id. Outputs: embedding (1, L, C), and pooled if asked for.

    The embedding is the hidden state before the last `skip_layers` layers, transformers' hidden_states[-1 -
    skip_layers], after the final norm unless that is off. pooled holds for every token its last hidden state after the
    final norm, (1, L, C), or that times text_projection, (1, L, P): a prompt's is the row of `find_end_of_text`.
    """
    if not 0 <= skip_layers < config.num_hidden_layers:
        raise InputError(
            f"skip_layers (={skip_layers}) must be at least 0 and less than num_hidden_layers "
            f"(={config.num_hidden_layers}) of {name}"
        )
    g = Graph(name, kernels)
    L, C = config.max_position_embeddings, config.hidden_size
    eps = config.layer_norm_eps
    num_layers = config.num_hidden_layers - skip_layers
    tokens = g.table_rows(TOKEN_TABLE, config.vocab_size, C, rows=(1, L))
    embedding = g.output("embedding", 1, L, channels=C)
    with g.scope("text_model"):
        positions = g.weight("embeddings.position_embedding.weight", L, C, padded_to=tokens.shape[-1])
        h = g.tensor("embeddings", 1, L, channels=C)
        g.add(add(tokens, positions.reshape(*tokens.shape), h))
        for layer in range(config.num_hidden_layers if pooled else num_layers):
            is_embedding = layer + 1 == num_layers
            with g.scope("encoder.layers", layer):
                n = layer_norm(g, "layer_norm1", h, eps=eps)
                heads = {"num_heads": config.num_attention_heads, "causal": True, "names": _ATTENTION}
                h = attention(g, "self_attn", n, bias=True, residual=h, **heads)
                n = layer_norm(g, "layer_norm2", h, eps=eps)
                n = linear(g, "mlp.fc1", n, config.intermediate_size)
                n = activation(g, n, config.hidden_act)
                h = linear(g, "mlp.fc2", n, C, residual=h, out=embedding if is_embedding and not final_norm else None)
            if is_embedding and final_norm:
                layer_norm(g, "final_layer_norm", h, eps=eps, out=embedding)
        if pooled:
            out = g.output("pooled", 1, L, channels=C) if pooled == "state" else None
            h = layer_norm(g, "final_layer_norm", h, eps=eps, out=out)
    if pooled == "projection":
        P = config.projection_dim
        linear(g, "text_projection", h, P, bias=False, out=g.output("pooled", 1, L, channels=P))
    return g


def find_end_of_text(config: ClipTextConfig, token_ids: np.ndarray) -> np.ndarray:
    """Of token ids (B, L) the place (B,) of each prompt's first end-of-text token; InputError where a row has none.

    Configurations older than transformers' 4.31 name it wrongly, as 2: there the vocabulary's largest id is meant.
    Those of added tokens are larger.
    """
    if config.eos_token_id == 2:
        return np.where(token_ids < config.vocab_size, token_ids, -1).argmax(axis=-1)
    is_end = token_ids == config.eos_token_id
    if not is_end.any(axis=-1).all():
        raise InputError(
            f"token ids of a prompt must have the text encoder's eos_token_id (={config.eos_token_id}) among them; "
            "take the tokenizer and the text encoder of one model"
        )
    return is_end.argmax(axis=-1)
