"""3x3 convolution of stride 1 by Winograd's F(m x m, 3x3): the tiles' transforms around (m + 2)^2 matrix products."""

from collections.abc import Mapping
from fractions import Fraction
from functools import cache
from typing import NamedTuple

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import Binding, InputRows, KernelCall, ceil_div, read, spread_workgroups, write
from shaderfusion.kernels.common.group_norm_statistics import FoldedGroupNorm
from shaderfusion.kernels.common.matmul import (
    Epilogue,
    image_bias_params,
    product_calls,
    require_multiples_of_4,
    with_epilogue,
)
from shaderfusion.kernels.tiles import AnyTile
from shaderfusion.tensor import TensorSpec, dtype_size_bytes

__all__ = [
    "MAX_FILTERS_BYTES",
    "MAX_TEMPORARY_BYTES",
    "TILE_SIZES",
    "WinogradCosts",
    "WinogradMatrices",
    "winograd_conv",
    "winograd_costs",
    "winograd_filters",
    "winograd_matrices",
]

Matrix = tuple[tuple[Fraction, ...], ...]

_POINTS = {
    2: (Fraction(1),),
    4: (Fraction(5, 8), Fraction(3, 2)),
    6: (Fraction(1, 2), Fraction(1), Fraction(2)),
    8: (Fraction(3, 8), Fraction(7, 8), Fraction(5, 4), Fraction(5, 2)),
}
"""By m, the points +-p at which tile and filter are interpolated, besides 0 and infinity.

Of 14 binary fractions from 1/4 to 4, those that amplify the rounding of U, V and M least on white noise: 1.7, 4.8, 21
and 122 times for m = 2, 4, 6, 8 (Lavin and Gray's +-1, +-2 for m = 4: 10.8 times). Binary fractions make A and B exact
in f32; what divides by other primes is all in G, which the device rounds to f32.
"""

TILE_SIZES = tuple(_POINTS)
"""The values of m."""

_LANES = {2: 32, 4: 16, 6: 16, 8: 8}
"""Vectors of 4 channels a workgroup transforms: at most 16 KiB of workgroup memory, which every device has."""

_FILTERS_LANES = 64
"""Vectors of 4 filters a workgroup transforms."""

MAX_FILTERS_BYTES = 64 << 20
"""Of transformed filters, made in the run, that a convolution holds at a time, where its caller does not say."""
MAX_TEMPORARY_BYTES = 48 << 20
"""Of transformed tiles and their products, likewise."""


class WinogradMatrices(NamedTuple):
    """Y = A^T [(G g) . (B^T d)]: m outputs of a filter g of 3 taps over m + 2 inputs d."""

    AT: Matrix
    """(m, m + 2)"""
    G: Matrix
    """(m + 2, 3)"""
    BT: Matrix
    """(m + 2, m + 2)"""


class WinogradCosts(NamedTuple):
    """What F(m x m, 3x3) saves and costs, in parts of the direct convolution."""

    multiplications_saved: float
    """Multiplications of the direct convolution over those of the products."""
    intermediate_ratio: float
    """Elements of V over those of the input, and of M over those of the output."""
    weight_ratio: float
    """Elements of the transformed filters over those of the filters."""


def winograd_costs(m: int) -> WinogradCosts:
    """9 m^2 / (m + 2)^2, (m + 2)^2 / m^2 and (m + 2)^2 / 9."""
    products = (m + 2) ** 2
    return WinogradCosts(9 * m**2 / products, products / m**2, products / 9)


@cache
def winograd_matrices(m: int) -> WinogradMatrices:
    """The transforms of F(m, 3), exact, by Toom and Cook's interpolation, transposed.

    The product of polynomials of degrees m - 1 and 2 is known by its values at m + 1 points and its leading coefficient
    ("infinity"). With E_k the evaluation of k coefficients: A^T = E_m^T, G = E_3, B^T = E_{m+2}^{-T}, of which row i is
    Lagrange's polynomial of point i; its denominator goes to G. Powers of two, which round nothing, then bring
    the sums of absolute values to (1, 2] in B^T's rows and (1/2, 1] in G's. So |V| <= 4 max |x|, |U| <= max |g| and
    |M| <= 4 C max |x| max |g|, where outputs reach 9 C max |x| max |g|: f16 overflows in the output first.
    """
    if m not in _POINTS:
        raise ShapeError(f"winograd_conv: m (={m}) must be one of {', '.join(map(str, TILE_SIZES))}")
    points = [Fraction(0), *(sign * point for point in _POINTS[m] for sign in (1, -1))]
    columns_a = [[point**k for k in range(m)] for point in points] + [[Fraction(k == m - 1) for k in range(m)]]
    rows_g: list[list[Fraction]] = []
    rows_b: list[list[Fraction]] = []
    for point in points:
        others = [other for other in points if other != point]
        denominator = _evaluate(_monic(others), point)
        rows_g.append([point**k / denominator for k in range(3)])
        rows_b.append([*_monic(others), Fraction(0)])
    rows_g.append([Fraction(0), Fraction(0), Fraction(1)])
    rows_b.append(_monic(points))
    for column_a, row_g, row_b in zip(columns_a, rows_g, rows_b, strict=True):
        scale_g, scale_b = _power_of_2_to(1, row_g), _power_of_2_to(2, row_b)
        row_g[:] = [scale_g * value for value in row_g]
        row_b[:] = [scale_b * value for value in row_b]
        column_a[:] = [value / (scale_g * scale_b) for value in column_a]
    return WinogradMatrices(tuple(zip(*columns_a, strict=True)), tuple(map(tuple, rows_g)), tuple(map(tuple, rows_b)))


def _monic(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients of the product of x - root, that of x^0 first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [a - root * b for a, b in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    return coefficients


def _evaluate(coefficients: list[Fraction], x: Fraction) -> Fraction:
    return sum((c * x**k for k, c in enumerate(coefficients)), start=Fraction(0))


def _power_of_2_to(limit: int, row: list[Fraction]) -> Fraction:
    """The power of two that brings the row's sum of absolute values to (limit / 2, limit]."""
    total = sum(map(abs, row), start=Fraction(0))
    scale = Fraction(1)
    while scale * total > limit:
        scale /= 2
    while 2 * scale * total <= limit:
        scale *= 2
    return scale


def winograd_filters(
    filters: TensorSpec, out: TensorSpec, *, m: int, first_channel: int = 0, out_first_channel: int = 0
) -> KernelCall:
    """out = G g G^T of filters g. filters: (3, 3, C_in, C), out: ((m + 2)^2, C_in, C'), the transformed filters.

    Of as many output channels as both have from their first one on.
    """
    winograd_matrices(m)  # refuses another m
    C_in = filters.shape[-2]
    num_channels = min(filters.shape[-1] - first_channel, out.shape[-1] - out_first_channel)
    if filters.shape[:-1] != (3, 3, C_in) or out.shape[:-1] != ((m + 2) ** 2, C_in):
        raise ShapeError(f"winograd_conv: {filters} must be (3, 3, C_in, C) and {out} ({(m + 2) ** 2}, C_in, C')")
    if filters.dtype != out.dtype or num_channels < 1:
        raise ShapeError(
            f"winograd_conv: {filters} from channel {first_channel} on must give {out} from {out_first_channel} on"
        )
    require_multiples_of_4(
        "winograd_conv", channels=num_channels, first_channel=first_channel, out_first_channel=out_first_channel
    )
    params = {
        "in_channels": C_in,
        "num_channels": num_channels,
        "num_columns": filters.shape[-1],
        "first_channel": first_channel,
        "out_columns": out.shape[-1],
        "out_first_channel": out_first_channel,
    }
    return _transform("filters", m, read(filters) + write(out), params, C_in * num_channels // 4)


def winograd_conv(
    x: TensorSpec,
    weight: TensorSpec,
    out: TensorSpec,
    epilogue: Epilogue | None = None,
    *,
    m: int,
    upsample: int = 1,
    norm: FoldedGroupNorm | None = None,
    rows: InputRows | None = None,
    tile: AnyTile = None,
    max_filters_bytes: int = MAX_FILTERS_BYTES,
    max_temporary_bytes: int = MAX_TEMPORARY_BYTES,
) -> tuple[KernelCall, ...]:
    """x: (B, H, W, C_in), weight: (3, 3, C_in, C_out) or winograd_filters of it, out: (B, H, W, C_out), zero padding.

    With `upsample` x is (B, ceil(H / upsample), ceil(W / upsample), C_in), and pixel (y, x) of what is convolved is x's
    at (y // upsample, x // upsample). With `norm` x is normalized as it is loaded, before it is padded. With `rows` x
    and out are some rows of one image each.

    Plain filters are transformed first: transform_filters to U ((m + 2)^2, C_in, C_out). Per strip of tile rows:
    transform_input to V ((m + 2)^2, P, C_in), the products V U = M ((m + 2)^2, P, C_out) with `tile`, and
    transform_output with the epilogue; P is the number of tiles in the strip. Strips share V and M, which together take
    at most max_temporary_bytes, or one row of tiles where that is more. Where U would take more than max_filters_bytes,
    a slice of the output channels is transformed, multiplied and written at a time, in every strip.
    """
    epilogue = epilogue or Epilogue()
    _require_shapes(x, weight, out, epilogue, m, upsample, rows)
    B, H, W, C_out = out.shape
    C_in = x.shape[-1]
    num_products = (m + 2) ** 2
    element_bytes = dtype_size_bytes(x.dtype)
    plain = len(weight.shape) == 4
    slice_channels = C_out
    if plain:
        unit = 4 if C_out % 8 else 8  # eights, for matrix units, where they can be
        most = max_filters_bytes // (num_products * C_in * unit * element_bytes)
        slice_channels = unit * _part_size(C_out // unit, most)
    tiles_y, tiles_x = ceil_div(H, m), ceil_div(W, m)
    tile_rows = B * tiles_y  # of all images, one below the other
    row_bytes = num_products * tiles_x * (C_in + slice_channels) * element_bytes
    strip_rows = _part_size(tile_rows, max_temporary_bytes // row_bytes)
    max_tiles = strip_rows * tiles_x
    U = TensorSpec(f"{out.name}.U", (num_products, C_in, slice_channels), x.dtype) if plain else weight
    V = TensorSpec(f"{out.name}.V", (num_products, max_tiles, C_in), x.dtype)
    M = TensorSpec(f"{out.name}.M", (num_products, max_tiles, slice_channels), x.dtype)
    geometry = {"height": H, "width": W, "tiles_y": tiles_y, "tiles_x": tiles_x, "max_tiles": max_tiles}
    geometry |= {"in_channels": C_in, "num_columns": C_out}
    geometry |= {"in_height": rows.count if rows else H, "first_input_row": rows.first if rows else 0}
    slices = [
        {"first_channel": first, "slice_channels": min(slice_channels, C_out - first)}
        for first in range(0, C_out, slice_channels)
    ]

    @cache
    def products(num_tiles: int, num_channels: int) -> tuple[KernelCall, ...]:
        """All strips but the last have the same."""
        return _products(V, U, M, num_tiles, num_channels, tile)

    calls: list[KernelCall] = []
    for first_tile_row in range(0, tile_rows, strip_rows):
        num_tiles = min(strip_rows, tile_rows - first_tile_row) * tiles_x
        strip = {**geometry, "num_tiles": num_tiles, "first_tile_row": first_tile_row}
        load = _transform("input", m, read(x) + write(V), strip, num_tiles * C_in // 4, {"UPSAMPLE": upsample})
        calls.append(norm.into(load, x) if norm else load)
        for part in slices:
            num_channels = part["slice_channels"]
            if plain and (first_tile_row == 0 or len(slices) > 1):
                calls.append(winograd_filters(weight, U, m=m, first_channel=part["first_channel"]))
            calls += products(num_tiles, num_channels)
            calls.append(_transform_output(M, out, epilogue, m, strip | part))
    return tuple(calls)


def _part_size(count: int, most: int) -> int:
    """Size of equal parts of `count`, but for the last: the largest up to `most`, and at least 1."""
    return ceil_div(count, ceil_div(count, max(1, most)))


def _transform(
    name: str,
    m: int,
    bindings: tuple[Binding, ...],
    params: Mapping[str, int | float],
    num_vectors: int,
    constants: Mapping[str, int] | None = None,
) -> KernelCall:
    """The pass transform_`name`, for num_vectors vectors of 4 channels, of all filters or tiles."""
    lanes = _FILTERS_LANES if name == "filters" else _LANES[m]
    return KernelCall(
        source="optimized/winograd_conv.wgsl",
        entry_point=f"transform_{name}",
        dtype=bindings[0].tensor.dtype,
        bindings=bindings,
        constants={"M": m, "N": m + 2, f"M_{m}": True, "LANES": lanes, "PASS": name, **(constants or {})},
        params=params,
        workgroups=spread_workgroups(ceil_div(num_vectors, lanes)),
    )


def _products(
    V: TensorSpec, U: TensorSpec, M: TensorSpec, num_tiles: int, num_channels: int, tile: AnyTile
) -> tuple[KernelCall, ...]:
    """M[i] = V[i] U[i], num_tiles x num_channels.

    K is not split, as the parts would be one more temporary tensor. Sums are in f32, as A^T M A amplifies their
    rounding: in f16 pairs they would be faster, but the error twice as large (docs/tuning.md).
    """
    batches, max_tiles, C_in = V.shape
    params = {"a_row": C_in // 4, "a_outer": 0, "a_inner": max_tiles * C_in // 4, "a_first": 0}
    b_row = U.shape[-1] // 4
    params |= {"b_row": b_row, "b_outer": 0, "b_inner": C_in * b_row, "b_first": 0, "b_columns": num_channels}
    params |= {"out_row": num_channels // 4, "out_outer": 0, "out_inner": max_tiles * num_channels // 4}
    sizes = (1, batches, num_tiles, num_channels, C_in)
    options = {"tile": tile, "num_splits": 1, "f16_sums": False}
    in_eights = C_in % 8 == U.shape[-1] % 8 == num_channels % 8 == 0
    return product_calls("common/matmul.wgsl", V, U, M, sizes, params, in_eights=in_eights, **options)


def _transform_output(M: TensorSpec, out: TensorSpec, epilogue: Epilogue, m: int, part: dict[str, int]) -> KernelCall:
    B, H, W, C_out = out.shape
    params = {
        **part,
        "scale": float(epilogue.scale),
        # out as fragments/product_epilogue addresses it: one matrix of pixels x channels.
        "num_inner": 1,
        "out_outer": 0,
        "out_inner": 0,
        "out_first": 0,
        "out_row": C_out // 4,
    }
    params |= image_bias_params(epilogue.image_bias, B * H * W)
    call = _transform("output", m, read(M), params, part["num_tiles"] * part["slice_channels"] // 4)
    return with_epilogue(call, out, epilogue)


def _require_shapes(
    x: TensorSpec,
    weight: TensorSpec,
    out: TensorSpec,
    epilogue: Epilogue,
    m: int,
    upsample: int,
    rows: InputRows | None,
) -> None:
    winograd_matrices(m)  # refuses another m
    C_in, C_out = x.shape[-1], weight.shape[-1]
    if len(x.shape) != 4 or weight.shape not in ((3, 3, C_in, C_out), ((m + 2) ** 2, C_in, C_out)):
        raise ShapeError(
            f"winograd_conv: {x} must be (B, H, W, C_in) and {weight} (3, 3, C_in, C_out), or, transformed for "
            f"m (={m}), ({(m + 2) ** 2}, C_in, C_out)"
        )
    B, H, W = out.shape[:3]
    in_height, centred = (rows.count, B == 1 and H - 1 + rows.first < rows.count) if rows else (H, True)
    size = (B, ceil_div(in_height, upsample), ceil_div(W, upsample))
    if out.shape[3:] != (C_out,) or x.shape[:3] != size or not centred:
        raise ShapeError(f"winograd_conv: {x} with {weight}, upsample (={upsample}) must give {out}")
    require_multiples_of_4("winograd_conv", in_channels=C_in, out_channels=C_out)
    for name, tensor, shape in (("bias", epilogue.bias, (C_out,)), ("residual", epilogue.residual, out.shape)):
        if tensor and tensor.shape != shape:
            raise ShapeError(f"winograd_conv: {name} {tensor} must have shape {shape}")
    image_bias = epilogue.image_bias
    if image_bias and (image_bias.shape[1:] != (C_out,) or x.shape[0] % image_bias.shape[0]):
        raise ShapeError(f"winograd_conv: image_bias {image_bias} must be (images, {C_out}), for the images of {x}")
    for tensor in (weight, out, epilogue.bias, image_bias, epilogue.residual):
        if tensor and tensor.dtype != x.dtype:
            raise ShapeError(f"winograd_conv: {tensor} must have the dtype of {x}")
