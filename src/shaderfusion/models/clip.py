"""CLIP's text transformer: one prompt's tokens -> its embedding (1, L, C). Radford et al. 2021, arXiv 2103.00020."""

from shaderfusion.config import ClipTextConfig
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.common.elementwise import add
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.blocks import activation, layer_norm, linear
from shaderfusion.tensor import TensorSpec

__all__ = ["TOKEN_TABLE", "text_encoder_graph"]

TOKEN_TABLE = "text_model.embeddings.token_embedding.weight"


def text_encoder_graph(config: ClipTextConfig, kernels: Kernels) -> Graph:
    """Inputs: TOKEN_TABLE (1, L, C), its row of each token id. Outputs: embedding (1, L, C), after the final norm."""
    g = Graph("text_encoder", kernels)
    L, C = config.max_position_embeddings, config.hidden_size
    eps = config.layer_norm_eps
    tokens = g.table_rows(TOKEN_TABLE, config.vocab_size, C, rows=(1, L))
    with g.scope("text_model"):
        positions = g.weight("embeddings.position_embedding.weight", L, C)
        h = g.tensor("embeddings", *tokens.shape)
        g.add(add(tokens, positions.reshape(*tokens.shape), h))
        for layer in range(config.num_hidden_layers):
            with g.scope("encoder.layers", layer):
                n = layer_norm(g, "layer_norm1", h, eps=eps)
                h = _causal_attention(g, n, num_heads=config.num_attention_heads, residual=h)
                n = layer_norm(g, "layer_norm2", h, eps=eps)
                n = linear(g, "mlp.fc1", n, config.intermediate_size)
                n = activation(g, n, config.hidden_act)
                h = linear(g, "mlp.fc2", n, C, residual=h)
        out = g.output("embedding", *tokens.shape)
        layer_norm(g, "final_layer_norm", h, eps=eps, out=out)
    return g


def _causal_attention(g: Graph, x: TensorSpec, *, num_heads: int, residual: TensorSpec) -> TensorSpec:
    """residual + attention in which a token sees itself and those before it, in transformers' names."""
    C = x.shape[-1]
    with g.scope("self_attn"):
        q, k, v = (linear(g, name, x, C) for name in ("q_proj", "k_proj", "v_proj"))
        h = g.tensor("heads", *x.shape)
        g.add(*g.kernels.attention(q, k, v, h, num_heads=num_heads, causal=True))
        return linear(g, "out_proj", h, C, residual=residual)
