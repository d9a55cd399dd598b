"""Other names of tensors, in the order in which they are tried."""

import pytest

from shaderfusion.weights.names import name_candidates


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("conv_in.weight", []),
        ("text_model.final_layer_norm.bias", ["final_layer_norm.bias"]),
        ("decoder.mid_block.attentions.0.to_k.bias", ["decoder.mid_block.attentions.0.key.bias"]),
        ("decoder.mid_block.attentions.0.to_out.0.bias", ["decoder.mid_block.attentions.0.proj_attn.bias"]),
        ("encoder.mid_block.attentions.0.to_q.weight", ["encoder.mid_block.attentions.0.query.weight"]),
        ("decoder.mid_block.attentions.0.group_norm.bias", []),
        ("decoder.layers.0.weight", ["1.weight"]),
        ("decoder.layers.12.conv.4.bias", ["13.conv.4.bias"]),
        ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight", []),
    ],
)
def test_name_candidates(path: str, names: list[str]) -> None:
    assert list(name_candidates(path)) == [path, *names]
