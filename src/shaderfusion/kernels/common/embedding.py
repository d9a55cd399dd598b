"""Token and position embeddings, looked up and added."""

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import KernelCall, ceil_div, read, spread_workgroups, write
from shaderfusion.tensor import TensorSpec

__all__ = ["embedding"]

_WORKGROUP_SIZE = 64


def embedding(
    token_ids: TensorSpec, token_table: TensorSpec, position_table: TensorSpec, out: TensorSpec
) -> KernelCall:
    """out[b, l] = token_table[token_ids[b, l]] + position_table[l].

    token_ids: (B, L) u32, token_table: (V, C), position_table: (at least L, C), out: (B, L, C). Ids are below V:
    the shader takes the table's last row for others, so check them where they come from.
    """
    if token_ids.dtype != "u32" or len(token_ids.shape) != 2:
        raise ShapeError(f"embedding: {token_ids} must be (B, L) u32")
    B, L = token_ids.shape
    if len(token_table.shape) != 2 or len(position_table.shape) != 2:
        raise ShapeError(f"embedding: {token_table} and {position_table} must be (rows, C)")
    V, C = token_table.shape
    if position_table.shape[1] != C:
        raise ShapeError(f"embedding: {position_table} must have {C} channels, as {token_table}")
    if position_table.shape[0] < L:
        raise ShapeError(f"embedding: {position_table} must have a row for each of the {L} tokens of {token_ids}")
    if out.shape != (B, L, C):
        raise ShapeError(f"embedding: {out} must have shape {(B, L, C)}")
    for tensor in (position_table, out):
        if tensor.dtype != token_table.dtype:
            raise ShapeError(f"embedding: {tensor} must have the dtype of {token_table}")
    chunks = C // 4 if C % 4 == 0 else C
    return KernelCall(
        source="common/embedding.wgsl",
        entry_point="embedding",
        dtype=out.dtype,
        bindings=read(token_ids, token_table, position_table) + write(out),
        constants={"WORKGROUP_SIZE": _WORKGROUP_SIZE, "VEC4": C % 4 == 0},
        params={"tokens": B * L, "prompt_tokens": L, "channels": C, "vocabulary": V},
        workgroups=spread_workgroups(ceil_div(B * L * chunks, _WORKGROUP_SIZE)),
    )
