"""CLIP's text transformer: one prompt's tokens -> its embedding (1, L, C). Radford et al. 2021, arXiv 2103.00020."""

from shaderfusion.config import ClipTextConfig
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.common.elementwise import add
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.blocks import AttentionNames, activation, attention, layer_norm, linear

__all__ = ["TOKEN_TABLE", "text_encoder_graph"]

TOKEN_TABLE = "text_model.embeddings.token_embedding.weight"

_ATTENTION = AttentionNames("q_proj", "k_proj", "v_proj", "out_proj")


def text_encoder_graph(config: ClipTextConfig, kernels: Kernels) -> Graph:
    """Inputs: TOKEN_TABLE (1, L, C), its row of each token id. Outputs: embedding (1, L, C), after the final norm."""
    g = Graph("text_encoder", kernels)
    L, C = config.max_position_embeddings, config.hidden_size
    eps = config.layer_norm_eps
    tokens = g.table_rows(TOKEN_TABLE, config.vocab_size, C, rows=(1, L))
    with g.scope("text_model"):
        positions = g.weight("embeddings.position_embedding.weight", L, C, padded_to=tokens.shape[-1])
        h = g.tensor("embeddings", 1, L, channels=C)
        g.add(add(tokens, positions.reshape(*tokens.shape), h))
        for layer in range(config.num_hidden_layers):
            with g.scope("encoder.layers", layer):
                n = layer_norm(g, "layer_norm1", h, eps=eps)
                heads = {"num_heads": config.num_attention_heads, "causal": True, "names": _ATTENTION}
                h = attention(g, "self_attn", n, n, bias=True, residual=h, **heads)
                n = layer_norm(g, "layer_norm2", h, eps=eps)
                n = linear(g, "mlp.fc1", n, config.intermediate_size)
                n = activation(g, n, config.hidden_act)
                h = linear(g, "mlp.fc2", n, C, residual=h)
        out = g.output("embedding", 1, L, channels=C)
        layer_norm(g, "final_layer_norm", h, eps=eps, out=out)
    return g

