"""The sinusoidal embedding of timesteps, or of other numbers."""

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import KernelCall, ceil_div, read, spread_workgroups, write
from shaderfusion.tensor import TensorSpec

__all__ = ["timestep_embedding"]

_WORKGROUP_SIZE = 64


def timestep_embedding(
    timestep: TensorSpec, out: TensorSpec, *, flip_sin_to_cos: bool, freq_shift: float, max_period: float = 10000.0
) -> KernelCall:
    """Rows [sin(t f_i), cos(t f_i)], the cosines first if flipped; f_i = max_period^(-i / (C//2 - freq_shift)).

    timestep: (N,) f32, a t of at least 0 for each row; out: (N, C). The last of an odd number of channels is 0, and so
    is out's padding.
    """
    if len(timestep.shape) != 1 or timestep.dtype != "f32":
        raise ShapeError(f"timestep_embedding: {timestep} must be (N,) f32")
    N = timestep.size
    if len(out.shape) != 2 or out.shape[0] != N or out.channels < 2:
        raise ShapeError(f"timestep_embedding: {out} must be ({N}, C), with C at least 2")
    C = out.channels
    if freq_shift >= C // 2:
        raise ShapeError(
            f"timestep_embedding: freq_shift (={freq_shift}) must be less than half of the channels (={C}) of {out}"
        )
    if max_period <= 1:
        raise ShapeError(f"timestep_embedding: max_period (={max_period}) must be more than 1")
    ratio = max_period ** (-1 / (C // 2 - freq_shift))  # of one frequency to the one before
    per_row = out.shape[1] - C // 2  # invocations: one a pair, and one for each channel after them
    return KernelCall(
        source="common/timestep_embedding.wgsl",
        entry_point="timestep_embedding",
        dtype=out.dtype,
        bindings=read(timestep) + write(out),
        constants={"WORKGROUP_SIZE": _WORKGROUP_SIZE, "FLIP_SIN_TO_COS": flip_sin_to_cos},
        params={
            "num_rows": N,
            "channels": C,
            "row_stride": out.shape[1],
            "ratio": min(round(ratio * 2**32), 2**32 - 1),
        },
        workgroups=spread_workgroups(ceil_div(N * per_row, _WORKGROUP_SIZE)),
    )
