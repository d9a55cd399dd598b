"""2D convolution as one tiled product over the patches, none of which is stored."""

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.common.matmul import Epilogue, LaneTile, Tile, product_calls, require_multiples_of_4
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
    upsample: int = 1,
    tile: Tile | LaneTile | None = None,
    num_splits: int | None = None,
) -> tuple[KernelCall, ...]:
    """x: (B, H, W, C_in), weight: (k, k, C_in, C_out), out: (B, H', W', C_out); zeros pad the image's border.

    With `upsample` x is (B, H / upsample, W / upsample, C_in), and its nearest pixels are taken.
    """
    if not len(x.shape) == len(weight.shape) == 4:
        raise ShapeError(f"conv2d: {x} must be (B, H, W, C_in) and {weight} (k, k, C_in, C_out)")
    B, H, W, C_in = x.shape
    H, W = upsample * H, upsample * W
    kernel_size, _, _, C_out = weight.shape
    expected = (B, *((size + 2 * padding - kernel_size) // stride + 1 for size in (H, W)), C_out)
    if weight.shape[:3] != (kernel_size, kernel_size, C_in) or out.shape != expected:
        options = f"stride (={stride}), padding (={padding}), upsample (={upsample})"
        raise ShapeError(f"conv2d: {x} with {weight}, {options} must give {out}")
    require_multiples_of_4("conv2d", in_channels=C_in, out_channels=C_out)
    _, H_out, W_out, _ = out.shape
    params = {"in_height": H, "in_width": W, "in_channels": C_in, "out_width": W_out, "out_pixels": H_out * W_out}
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
    )
