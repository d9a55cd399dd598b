"""2D convolution as one tiled product over the patches, none of which is stored."""

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import InputRows, KernelCall, ceil_div
from shaderfusion.kernels.common.matmul import Epilogue, product_calls, require_multiples_of_4
from shaderfusion.kernels.tiles import AnyTile
from shaderfusion.tensor import TensorSpec

__all__ = ["conv2d_direct"]


def conv2d_direct(
    x: TensorSpec,
    weight: TensorSpec,
    out: TensorSpec,
    epilogue: Epilogue | None = None,
    *,
    stride: int = 1,
    padding: int = 1,
    end_padding: int | None = None,
    upsample: int = 1,
    rows: InputRows | None = None,
    tile: AnyTile = None,
    num_splits: int | None = None,
) -> tuple[KernelCall, ...]:
    """x: (B, H, W, C_in), weight: (k, k, C_in, C_out), out: (B, H', W', C_out); zeros pad the image's border.

    `padding` counts them before the first row and column, `end_padding` those after the last, by default as many.
    With `upsample` pixel (y, x) of what is convolved, (B, H, W, C_in), is that at (y // upsample, x // upsample) of
    x (B, ceil(H / upsample), ceil(W / upsample), C_in): out's size says whether x's last row and column count in full.
    With `rows` x and out are some rows of one image each.
    """
    if not len(x.shape) == len(weight.shape) == len(out.shape) == 4:
        raise ShapeError(f"conv2d: {x} must be (B, H, W, C_in), {weight} (k, k, C_in, C_out), {out} (B, H', W', C_out)")
    kernel_size, _, _, C_out = weight.shape
    end_padding = padding if end_padding is None else end_padding
    reach = kernel_size - padding - end_padding
    B, H_in, W_in, C_in = x.shape
    _, H_out, W_out, _ = out.shape

    def size(in_size: int, out_size: int) -> int | None:
        """Of a side of what is convolved: the largest that gives out_size; None where there is none."""
        largest = min(upsample * in_size, stride * out_size + reach - 1)
        fits = (largest - reach) // stride + 1 == out_size
        return largest if fits and ceil_div(largest, upsample) == in_size else None

    H, W = size(H_in, H_out), size(W_in, W_out)
    if rows:
        centred = stride * (H_out - 1) + rows.first < rows.count and B == 1
        H = rows.count if centred and ceil_div(rows.count, upsample) == H_in else None
    if weight.shape[:3] != (kernel_size, kernel_size, C_in) or out.shape[::3] != (B, C_out) or H is None or W is None:
        options = f"stride (={stride}), padding (={padding}, {end_padding}), upsample (={upsample})"
        raise ShapeError(f"conv2d: {x} with {weight}, {options} must give {out}")
    require_multiples_of_4("conv2d", in_channels=C_in, out_channels=C_out)
    params = {"in_height": H, "in_width": W, "in_channels": C_in, "out_width": W_out, "out_pixels": H_out * W_out}
    params |= {"first_input_row": rows.first if rows else 0}
    params |= {"out_row": C_out // 4, "out_outer": 0, "out_inner": 0}
    return product_calls(
        "baseline/conv2d_direct.wgsl",
        x,
        weight,
        out,
        (1, 1, B * H_out * W_out, C_out, kernel_size**2 * C_in),
        params,
        epilogue,
        {"KERNEL_SIZE": kernel_size, "STRIDE": stride, "PADDING": padding, "UPSAMPLE": upsample},
        tile=tile,
        num_splits=num_splits,
        in_eights=C_in % 8 == C_out % 8 == 0,
    )
