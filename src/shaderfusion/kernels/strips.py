"""Operations on tensors that are too large to bind, as the same operations on views of some of their rows.

This is the only place where tensors are cut up. Each function gives the tensors themselves where all of them can be
bound, else views: strips of rows that begin at multiples of 256 bytes, all but the last of one height.
"""

import math
from collections.abc import Sequence
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
    spans = _bindable_spans(max_binding_bytes, num_rows, matrices)
    return [tuple(matrix.rows(span.start, len(span)) for matrix in matrices) for span in spans]


def linear_strips(
    max_binding_bytes: int, x: TensorSpec, out: TensorSpec, epilogue: Epilogue
) -> list[tuple[TensorSpec, TensorSpec, Epilogue]]:
    """A linear layer of x (..., K) to out (..., N): by rows."""
    added = [epilogue.residual] if epilogue.residual else []
    if _fit(max_binding_bytes, [x, out, *added]):
        return [(x, out, epilogue)]
    _require_one_image_bias(out, epilogue)
    return [
        (part_x, part_out, replace(epilogue, residual=part_added[0] if part_added else None))
        for part_x, part_out, *part_added in row_strips(max_binding_bytes, x, out, *added)
    ]


def pixel_strips(max_binding_bytes: int, *tensors: TensorSpec) -> list[PixelStrip]:
    """Tensors (B, ..., C) of one shape, image by image where they are cut."""
    if _fit(max_binding_bytes, tensors):
        return [PixelStrip(tensors, 0)]
    B, *sides, C = tensors[0].shape
    pixels = math.prod(sides)
    matrices = [tensor.reshape(B * pixels, C) for tensor in tensors]
    spans = _bindable_spans(max_binding_bytes, pixels, matrices)
    _require_aligned_images(B, pixels, matrices)

    def strip(image: int, span: range) -> PixelStrip:
        views = (matrix.rows(image * pixels + span.start, len(span)) for matrix in matrices)
        return PixelStrip(tuple(view.reshape(1, *view.shape) for view in views), image)

    return [strip(image, span) for image in range(B) for span in spans]


def convolution_strips(
    max_binding_bytes: int,
    x: TensorSpec,
    out: TensorSpec,
    epilogue: Epilogue,
    *,
    stride: int,
    upsample: int,
    padding: int = 1,
) -> list[ConvolutionStrip]:
    """A 3x3 convolution of x (B, H, W, C_in), upsampled, to out (B, H', W', C_out): by rows of out.

    `padding`, 1 or 0, is that before the first row.
    """
    added = [epilogue.residual] if epilogue.residual else []
    if _fit(max_binding_bytes, [x, out, *added]):
        return [ConvolutionStrip(x, out, epilogue, None, 0)]
    B, H_in, H_out = x.shape[0], x.shape[1], out.shape[1]
    inputs = x.reshape(B * H_in, *x.shape[2:])
    outputs = [tensor.reshape(B * H_out, *tensor.shape[2:]) for tensor in (out, *added)]
    _require_aligned_images(B, H_in, [inputs])
    _require_aligned_images(B, H_out, outputs)
    in_step, out_step = _row_step([inputs]), math.lcm(_row_step(outputs), _WINOGRAD_ROWS)
    upsampled = min(upsample * H_in, stride * H_out)

    def input_span(span: range) -> range:
        """Rows of x for some of out, and above them as many as it takes to begin where a view may."""
        top = max(0, stride * span.start - padding) // upsample
        end = min(upsampled, stride * (span.stop - 1) + 3 - padding)
        return range(top // in_step * in_step, ceil_div(end, upsample))

    def fits(spans: list[range]) -> bool:
        most_in = max(len(input_span(span)) for span in spans)
        needed = [_row_bytes(inputs) * most_in, *(_row_bytes(tensor) * len(spans[0]) for tensor in outputs)]
        return max(needed) <= max_binding_bytes

    def strip(image: int, span: range) -> ConvolutionStrip:
        read = input_span(span)
        part_x = inputs.rows(image * H_in + read.start, len(read))
        views = [tensor.rows(image * H_out + span.start, len(span)) for tensor in outputs]
        part_out, *part_added = (view.reshape(1, *view.shape) for view in views)
        first = upsample * read.start
        rows = InputRows(stride * span.start - first, min(upsample * read.stop, upsampled) - first)
        image_bias = epilogue.image_bias and _row(epilogue.image_bias, image)
        part_epilogue = replace(epilogue, image_bias=image_bias, residual=part_added[0] if part_added else None)
        return ConvolutionStrip(part_x.reshape(1, *part_x.shape), part_out, part_epilogue, rows, image)

    divisions = (_spans(H_out, num_strips, out_step) for num_strips in range(1, ceil_div(H_out, out_step) + 1))
    spans = next(filter(fits, divisions), None)
    if spans is None:
        raise _too_large(max_binding_bytes, max(x, out, key=lambda tensor: tensor.size_bytes))
    return [strip(image, span) for image in range(B) for span in spans]


def query_strips(max_binding_bytes: int, num_queries: int, query_bytes: int, name: str) -> list[range]:
    """The queries of each part of an attention whose scores take query_bytes for each query."""
    most = max_binding_bytes // query_bytes
    if most < 1:
        raise DeviceLimitError(
            f"{name}: the scores of one query, {query_bytes / 1e6:.1f} MB, are over what the device can bind "
            f"({max_binding_bytes / 1e6:.1f} MB); use a smaller size or batch"
        )
    step = _QUERIES if most >= _QUERIES else 1
    return _spans(num_queries, ceil_div(num_queries, most // step * step), step)


def _spans(count: int, num_parts: int, step: int) -> list[range]:
    """0 to count in at most so many equal parts, but for the last, which begin at multiples of step."""
    size = ceil_div(ceil_div(count, num_parts), step) * step
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def _bindable_spans(max_binding_bytes: int, num_rows: int, tensors: Sequence[TensorSpec]) -> list[range]:
    """Rows of parts of these tensors, each of which can be bound."""
    step = _row_step(tensors)
    largest = max(tensors, key=_row_bytes)
    most = max_binding_bytes // _row_bytes(largest) // step * step
    if most == 0:
        raise _too_large(max_binding_bytes, largest)
    return _spans(num_rows, ceil_div(num_rows, most), step)


def _fit(max_binding_bytes: int, tensors: Sequence[TensorSpec]) -> bool:
    return all(tensor.size_bytes <= max_binding_bytes for tensor in tensors)


def _row_bytes(tensor: TensorSpec) -> int:
    """Of one of the outermost rows."""
    return tensor.size // tensor.shape[0] * dtype_size_bytes(tensor.dtype)


def _row_step(tensors: Sequence[TensorSpec]) -> int:
    """Views of all these tensors may begin at multiples of so many rows."""
    return math.lcm(*(VIEW_ALIGNMENT_BYTES // math.gcd(VIEW_ALIGNMENT_BYTES, _row_bytes(t)) for t in tensors))


def _require_aligned_images(batch: int, rows_per_image: int, tensors: Sequence[TensorSpec]) -> None:
    if batch > 1 and rows_per_image % _row_step(tensors):
        raise DeviceLimitError(
            f"{tensors[0].name}: {batch} images are too large to bind together, and each cannot be bound by itself, as "
            "it does not begin at a multiple of 256 bytes; use a smaller batch"
        )


def _require_one_image_bias(out: TensorSpec, epilogue: Epilogue) -> None:
    bias = epilogue.image_bias
    if bias and bias.shape[0] > 1:
        raise DeviceLimitError(
            f"{out.name}: an image_bias for each of {bias.shape[0]} images needs tensors that can be bound whole; "
            "use a smaller batch"
        )


def _row(tensor: TensorSpec, index: int) -> TensorSpec:
    """A row (1, C) of (N, C), or the only one. It may begin anywhere: it is columns of one row that holds them all."""
    if tensor.shape[0] == 1:
        return tensor
    first, columns_of = tensor.first_column + index * tensor.row_stride, tensor.shape[0] * tensor.row_stride
    shape = (1, tensor.shape[-1])
    return replace(tensor, shape=shape, base=tensor.storage, first_column=first, columns_of=columns_of)


def _too_large(max_binding_bytes: int, tensor: TensorSpec) -> DeviceLimitError:
    return DeviceLimitError(
        f"{tensor.name}: {tensor.size_bytes / 1e6:.1f} MB is over what the device can bind "
        f"({max_binding_bytes / 1e6:.1f} MB), even by a few rows at a time; use a smaller size or batch"
    )
