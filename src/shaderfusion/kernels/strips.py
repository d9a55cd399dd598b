"""Operations on tensors that are too large to bind, as the same operations on views of some of their rows.

This is the only place where tensors are cut up. Each function gives the tensors themselves where all of them can be
bound, else views: strips of rows that begin at multiples of 256 bytes, all but the last of one height.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from shaderfusion.errors import DeviceLimitError
from shaderfusion.kernels.call import InputRows, ceil_div
from shaderfusion.kernels.common.matmul import Epilogue
from shaderfusion.tensor import VIEW_ALIGNMENT_BYTES, TensorSpec, dtype_size_bytes

__all__ = [
    "ConvolutionStrip",
    "PixelStrip",
    "convolution_strips",
    "linear_strips",
    "pixel_strips",
    "query_strips",
    "row_strips",
]

_WINOGRAD_ROWS = 4
"""Strips of convolutions are multiples of it, so that tiles of 2x2 and 4x4 outputs are whole."""

_QUERIES = 64
"""Strips of queries are multiples of it where they can be, the rows of a product's tile."""


@dataclass(frozen=True)
class PixelStrip:
    """Some pixels of one image, or all of all images."""

    tensors: tuple[TensorSpec, ...]
    """(B, ..., C) or (1, pixels, C)"""
    first_image: int


@dataclass(frozen=True)
class ConvolutionStrip:
    """Some rows of one image that a convolution makes, or all of all images."""

    x: TensorSpec
    out: TensorSpec
    epilogue: Epilogue
    rows: InputRows | None
    """None where x is whole."""
    first_image: int


def row_strips(max_binding_bytes: int, *tensors: TensorSpec) -> list[tuple[TensorSpec, ...]]:
    """Tensors (..., C), each of its own C but of as many rows, as views (rows, C) of the same rows of each."""
    if _fit(max_binding_bytes, tensors):
        return [tensors]
    num_rows = tensors[0].size // tensors[0].shape[-1]
    matrices = [tensor.reshape(num_rows, tensor.shape[-1]) for tensor in tensors]
    height = _strip_height(max_binding_bytes, num_rows, matrices)
    return [
        tuple(matrix.rows(first, min(height, num_rows - first)) for matrix in matrices)
        for first in range(0, num_rows, height)
    ]


def linear_strips(
    max_binding_bytes: int, x: TensorSpec, out: TensorSpec, epilogue: Epilogue
) -> Iterator[tuple[TensorSpec, TensorSpec, Epilogue]]:
    """A linear layer of x (..., K) to out (..., N): by rows."""
    _require_one_image_bias(max_binding_bytes, x, out, epilogue)
    residual = () if epilogue.residual is None else (epilogue.residual,)
    for part_x, part_out, *added in row_strips(max_binding_bytes, x, out, *residual):
        yield part_x, part_out, replace(epilogue, residual=added[0] if added else None)


def pixel_strips(max_binding_bytes: int, *tensors: TensorSpec) -> list[PixelStrip]:
    """Tensors (B, ..., C) of one shape, image by image where they are cut."""
    if _fit(max_binding_bytes, tensors):
        return [PixelStrip(tensors, 0)]
    B, *sides, C = tensors[0].shape
    pixels = math.prod(sides)
    matrices = [tensor.reshape(B * pixels, C) for tensor in tensors]
    height = _strip_height(max_binding_bytes, pixels, matrices)
    _require_aligned_images(B, pixels, matrices)
    strips = []
    for image in range(B):
        for first in range(0, pixels, height):
            count = min(height, pixels - first)
            views = (matrix.rows(image * pixels + first, count).reshape(1, count, C) for matrix in matrices)
            strips.append(PixelStrip(tuple(views), image))
    return strips


def convolution_strips(
    max_binding_bytes: int, x: TensorSpec, out: TensorSpec, epilogue: Epilogue, *, stride: int, upsample: int
) -> list[ConvolutionStrip]:
    """A 3x3 convolution with padding 1 of x (B, H, W, C_in), upsampled, to out (B, H', W', C_out): by rows of out."""
    written = [out] if epilogue.residual is None else [out, epilogue.residual]
    if _fit(max_binding_bytes, (x, *written)):
        return [ConvolutionStrip(x, out, epilogue, None, 0)]
    _require_one_image_bias(max_binding_bytes, x, out, epilogue)
    B, H_in, *_ = x.shape
    H = out.shape[1]
    x_rows = x.reshape(B * H_in, *x.shape[2:])
    out_rows = [tensor.reshape(B * H, *tensor.shape[2:]) for tensor in written]
    _require_aligned_images(B, H_in, [x_rows])
    _require_aligned_images(B, H, out_rows)
    in_step = _row_step([x_rows])
    upsampled = min(upsample * H_in, stride * H)
    step = math.lcm(_row_step(out_rows), _WINOGRAD_ROWS)

    def input_rows(first: int, count: int) -> tuple[int, int]:
        """Of x, for some rows of out: the first row, moved up to where a view may begin, and the one after the last."""
        top = max(0, stride * first - 1) // upsample
        end = min(upsampled, stride * (first + count - 1) + 2)
        return top // in_step * in_step, ceil_div(end, upsample)

    for num_strips in range(1, ceil_div(H, step) + 1):
        height = ceil_div(ceil_div(H, num_strips), step) * step
        parts = [(first, min(height, H - first)) for first in range(0, H, height)]
        most_in = max(end - top for top, end in (input_rows(*part) for part in parts))
        if _row_bytes(x_rows) * most_in <= max_binding_bytes and all(
            _row_bytes(tensor) * min(height, H) <= max_binding_bytes for tensor in out_rows
        ):
            break
    else:
        raise _too_large(max_binding_bytes, max(x, *written, key=lambda tensor: tensor.size_bytes))

    strips = []
    for image in range(B):
        for first, count in parts:
            top, end = input_rows(first, count)
            part_x = x_rows.rows(image * H_in + top, end - top).reshape(1, end - top, *x.shape[2:])
            part_out, *added = (
                tensor.rows(image * H + first, count).reshape(1, count, *out.shape[2:]) for tensor in out_rows
            )
            rows = InputRows(stride * first - upsample * top, min(upsample * end, upsampled) - upsample * top)
            part_epilogue = replace(epilogue, residual=added[0] if added else None)
            strips.append(ConvolutionStrip(part_x, part_out, part_epilogue, rows, image))
    return strips


def query_strips(max_binding_bytes: int, num_queries: int, query_bytes: int, name: str) -> list[tuple[int, int]]:
    """First query and number of queries of each part of an attention whose scores take query_bytes for each query."""
    most = max_binding_bytes // query_bytes
    if most < 1:
        raise DeviceLimitError(
            f"{name}: the scores of one query, {query_bytes / 1e6:.1f} MB, are over what the device can bind "
            f"({max_binding_bytes / 1e6:.1f} MB); use a smaller size or batch"
        )
    height = _part(num_queries, most, _QUERIES if most >= _QUERIES else 1)
    return [(first, min(height, num_queries - first)) for first in range(0, num_queries, height)]


def _fit(max_binding_bytes: int, tensors: Sequence[TensorSpec]) -> bool:
    return all(tensor.size_bytes <= max_binding_bytes for tensor in tensors)


def _row_bytes(tensor: TensorSpec) -> int:
    """Of one of the outermost rows."""
    return tensor.size // tensor.shape[0] * dtype_size_bytes(tensor.dtype)


def _row_step(tensors: Sequence[TensorSpec]) -> int:
    """Views of all these tensors may begin at multiples of so many rows."""
    return math.lcm(*(VIEW_ALIGNMENT_BYTES // math.gcd(VIEW_ALIGNMENT_BYTES, _row_bytes(t)) for t in tensors))


def _part(count: int, most: int, step: int) -> int:
    """Size of equal parts of `count`, but for the last: a multiple of `step` up to `most`, at least a step."""
    num_parts = ceil_div(count, most // step * step)
    return ceil_div(ceil_div(count, num_parts), step) * step


def _strip_height(max_binding_bytes: int, num_rows: int, tensors: Sequence[TensorSpec]) -> int:
    step = _row_step(tensors)
    largest = max(tensors, key=_row_bytes)
    most = max_binding_bytes // _row_bytes(largest)
    if most < step:
        raise _too_large(max_binding_bytes, largest)
    return _part(num_rows, most, step)


def _require_aligned_images(batch: int, rows_per_image: int, tensors: Sequence[TensorSpec]) -> None:
    if batch > 1 and rows_per_image % _row_step(tensors):
        raise DeviceLimitError(
            f"{tensors[0].name}: {batch} images are too large to bind together, and each cannot be bound by itself, as "
            "it does not begin at a multiple of 256 bytes; use a smaller batch"
        )


def _require_one_image_bias(max_binding_bytes: int, x: TensorSpec, out: TensorSpec, epilogue: Epilogue) -> None:
    bias = epilogue.image_bias
    if bias and bias.shape[0] > 1 and not _fit(max_binding_bytes, (x, out)):
        raise DeviceLimitError(
            f"{out.name}: an image_bias for each of {bias.shape[0]} images needs tensors that can be bound whole; "
            "use a smaller batch"
        )


def _too_large(max_binding_bytes: int, tensor: TensorSpec) -> DeviceLimitError:
    return DeviceLimitError(
        f"{tensor.name}: {tensor.size_bytes / 1e6:.1f} MB is over what the device can bind "
        f"({max_binding_bytes / 1e6:.1f} MB), even by a few rows at a time; use a smaller size or batch"
    )
