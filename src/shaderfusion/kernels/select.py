"""Which kernels serve an operation, by shape and device. The only place where that is decided."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, TypeVar

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.baseline.conv2d_direct import conv2d_direct
from shaderfusion.kernels.baseline.geglu_unfused import geglu_unfused
from shaderfusion.kernels.baseline.group_norm_unfused import group_norm_unfused, normalize
from shaderfusion.kernels.baseline.softmax_unfused import softmax_unfused
from shaderfusion.kernels.call import InputRows, KernelCall, ceil_div
from shaderfusion.kernels.candidates import (
    attention_candidates,
    convolution_candidates,
    flash_fits,
    gated_linear_candidates,
    linear_candidates,
    winograd_fits,
)
from shaderfusion.kernels.capabilities import WEBGPU_DEFAULTS, Capabilities
from shaderfusion.kernels.common.concat_channels import concat_channels
from shaderfusion.kernels.common.elementwise import Activation, activate, affine
from shaderfusion.kernels.common.group_norm_statistics import (
    FoldedGroupNorm,
    group_norm_statistics,
    merge_statistics,
)
from shaderfusion.kernels.common.layer_norm import layer_norm
from shaderfusion.kernels.common.matmul import Epilogue, attention_scores, attention_values, matmul
from shaderfusion.kernels.optimizations import ALL_OPTIMIZATIONS, Optimizations
from shaderfusion.kernels.optimized.flash_attention import (
    FlashTile,
    MatrixFlashTile,
    choose_flash_tile,
    choose_matrix_flash_tile,
    flash_attention,
)
from shaderfusion.kernels.optimized.geglu import geglu, geglu_linear
from shaderfusion.kernels.optimized.group_norm import group_norm
from shaderfusion.kernels.optimized.partially_fused_softmax import partially_fused_softmax
from shaderfusion.kernels.optimized.winograd_conv import MAX_FILTERS_BYTES, MAX_TEMPORARY_BYTES, winograd_conv
from shaderfusion.kernels.strips import convolution_strips, linear_strips, query_strips, row_strips
from shaderfusion.kernels.tiles import AnyTile, Lanes, MatrixUnits
from shaderfusion.kernels.tuning import (
    NO_TUNING,
    Attention,
    Choice,
    Convolution,
    ConvolutionRows,
    Flash,
    GatedEpilogue,
    GatedLinear,
    Linear,
    Operation,
    Scores,
    Tiling,
    Tuning,
    Winograd,
)
from shaderfusion.tensor import DType, TensorSpec, dtype_size_bytes

__all__ = ["Kernels"]

Calls = tuple[KernelCall, ...]
C = TypeVar("C", bound=Choice)
FilterLayout = Literal["conv2d", "winograd_2", "winograd_4"]

_WINOGRAD_LAYOUTS: dict[int, FilterLayout] = {2: "winograd_2", 4: "winograd_4"}

_WINOGRAD_M = 4
_FEW_TILES_WINOGRAD_M = 2
"""m of F(m x m, 3x3) on 32 to 127 tiles of 4x4, where the filters, larger with m = 4, weigh as much as the tiles."""
_MAX_LOADED_FILTERS_BYTES = 4 << 20
"""Transformed filters that take no more are made when weights are loaded, larger ones in the run, in shared memory."""
_FOLDED_GROUP_SIZE = 1 << 18
"""A group norm of larger groups, in values, is folded into the Winograd convolution that follows: SD 1.4's are all in
the decoder. 0 folds it wherever Winograd is used."""
_MAX_SCORES_BYTES = 128 << 20
"""Of attention without FlashAttention, at a time: enough queries to fill a GPU, in no more memory than layers take."""
_FUSED_GEGLU_SIZE = 1 << 21
"""A GEGLU of at least so many values, 512 tiles that fill a GPU without splits, is the epilogue of its projection."""
_FUSED_GROUP_SIZE = 1 << 16
"""Groups of more values occupy a GPU better by many workgroups, in three dispatches."""


@dataclass(frozen=True)
class Kernels:
    """The operations of the models, as calls for one kind of device."""

    dtype: DType
    capabilities: Capabilities = WEBGPU_DEFAULTS
    optimizations: Optimizations = ALL_OPTIMIZATIONS
    tuning: Tuning = NO_TUNING
    """What was found to be faster on the device than the rules here."""
    keeps_filters: bool = False
    """Transformed filters of Winograd's are made when weights are loaded, whatever memory they take."""

    def matmul(self, x: TensorSpec, weight: TensorSpec, out: TensorSpec, epilogue: Epilogue) -> Calls:
        """A linear layer: x (..., M, K), weight (K, N)."""
        operation = Linear.of(x, out.shape[-1])
        tiling = self._choose(operation, Tiling(), linear_candidates)
        return _of(operation, self._product(x, weight, out, epilogue, tiling))

    def _product(self, x: TensorSpec, weight: TensorSpec, out: TensorSpec, epilogue: Epilogue, tiling: Tiling) -> Calls:
        options = {"tile": tiling.tile or self._tile, "num_splits": tiling.num_splits}
        strips = linear_strips(self._max_bytes, x, out, epilogue)
        return _join(matmul(rows, weight, part, added, **options) for rows, part, added in strips)

    def joins(self, x: TensorSpec, channels: int) -> bool:
        """Whether linear layers of x (..., K) to so many channels in all can be one product, of which all is bound."""
        K = x.shape[-1]
        return channels * max(x.size // K, K) * dtype_size_bytes(self.dtype) <= self._max_bytes

    def conv2d(
        self,
        x: TensorSpec,
        weight: TensorSpec,
        out: TensorSpec,
        epilogue: Epilogue,
        *,
        stride: int = 1,
        upsample: int = 1,
        padding: int = 1,
        norm: FoldedGroupNorm | None = None,
        part: ConvolutionRows | None = None,
    ) -> Calls:
        """A 3x3 convolution of x (B, H, W, C_in), upsampled, with padding 1; weight as `conv2d_layout` says.

        With a stride `padding` may be 0: then it is 1 after the last row and column alone.
        It takes a `norm` of x only where `folds_group_norm` says so. With `part` x and out are some rows of an image.
        """
        if padding != 1 and stride == 1:
            raise ShapeError(f"conv2d: padding (={padding}) of {x} must be 1 where stride is")
        operation = part.whole if part else self.convolution(x, out, stride)
        rows = part and part.rows
        choice = self._choose_convolution(operation)
        if isinstance(choice, Winograd):
            options = {"upsample": upsample, "norm": norm, "rows": rows}
            return _of(operation, self.winograd_conv(x, weight, out, epilogue, **vars(choice), **options))
        if norm:
            raise ShapeError(f"conv2d: the direct convolution of {x} takes no norm; normalize {x} before")
        sampling = {"stride": stride, "upsample": upsample, "padding": padding}
        options = {**sampling, "end_padding": 1, "tile": choice.tile or self._tile, "num_splits": choice.num_splits}
        strips = convolution_strips(self._max_bytes, x, out, epilogue, **sampling, rows=rows)
        calls = (conv2d_direct(part.x, weight, part.out, part.epilogue, rows=part.rows, **options) for part in strips)
        return _of(operation, _join(calls))

    def winograd_conv(
        self,
        x: TensorSpec,
        weight: TensorSpec,
        out: TensorSpec,
        epilogue: Epilogue,
        *,
        m: int,
        tile: AnyTile = None,
        upsample: int = 1,
        norm: FoldedGroupNorm | None = None,
        rows: InputRows | None = None,
    ) -> Calls:
        """The 3x3 convolution by F(m x m, 3x3), with that tile of its products, or this device's kind of them."""
        return _join(
            winograd_conv(
                strip.x,
                weight,
                strip.out,
                strip.epilogue,
                m=m,
                upsample=upsample,
                norm=norm and replace(norm, first_image=strip.first_image),
                rows=strip.rows,
                tile=tile or self._tile,
                max_filters_bytes=min(MAX_FILTERS_BYTES, self._max_bytes),
                max_temporary_bytes=min(MAX_TEMPORARY_BYTES, self._max_bytes),
            )
            for strip in convolution_strips(self._max_bytes, x, out, epilogue, stride=1, upsample=upsample, rows=rows)
        )

    def folds_group_norm(self, x: TensorSpec, out: TensorSpec, *, num_groups: int) -> bool:
        """Whether the convolution from x to out had better normalize x as it loads it: then no tensor of it is made."""
        is_winograd = isinstance(self._choose_convolution(self.convolution(x, out, stride=1)), Winograd)
        return is_winograd and self.optimizations.group_norm and _group_size(x, num_groups) > _FOLDED_GROUP_SIZE

    def conv2d_layout(
        self, x: TensorSpec, out: TensorSpec, *, stride: int = 1, part: ConvolutionRows | None = None
    ) -> FilterLayout:
        """How `conv2d` wants the 3x3 filters from x (B, H, W, C_in) to out (B, H', W', C_out).

        Transformed filters are larger, so that only small ones are kept so on a GPU; others are transformed in the run,
        but with `keeps_filters`.
        """
        choice = self._choose_convolution(part.whole if part else self.convolution(x, out, stride))
        if not isinstance(choice, Winograd):
            return "conv2d"
        filters_bytes = (choice.m + 2) ** 2 * x.shape[-1] * out.shape[-1] * dtype_size_bytes(self.dtype)
        kept = self.keeps_filters or self._lanes or filters_bytes <= _MAX_LOADED_FILTERS_BYTES
        return _WINOGRAD_LAYOUTS[choice.m] if kept and filters_bytes <= self._max_bytes else "conv2d"

    def convolution(self, x: TensorSpec, out: TensorSpec, stride: int) -> Convolution:
        """The operation from x to out."""
        return Convolution(x.dtype, x.shape, out.shape, stride, self.keeps_filters)

    def _choose_convolution(self, operation: Convolution) -> Tiling | Winograd:
        m = self._winograd_m(operation)
        static = Tiling() if m is None else Winograd(m)
        return self._choose(operation, static, convolution_candidates, winograd=self.optimizations.winograd_conv)

    def _winograd_m(self, operation: Convolution) -> int | None:
        """The m of F(m x m, 3x3) where it pays and can be bound, else None: it takes enough channels and tiles.

        Of few tiles the transforms and the filters' traffic take the gain; with those in between F(2x2) is as fast as
        F(4x4), and exacter, and on matrix units the direct convolution, unless filters are kept. SwiftShader transforms
        lane by lane, which takes more than is gained. docs/tuning.md has the times.
        """
        channels = (operation.x_shape[-1], operation.out_shape[-1])
        if not self.optimizations.winograd_conv or operation.stride != 1 or min(channels) < 32:
            return None
        if self.capabilities.has_four_lanes or (self.matrix_units and max(channels) < 256):
            return None
        tiles = operation.num_tiles(4)
        if tiles < (128 if self.matrix_units and not operation.keeps_filters else 32):
            return None
        m = _WINOGRAD_M if tiles >= 128 or self._lanes else _FEW_TILES_WINOGRAD_M
        return m if winograd_fits(operation, m, self.capabilities) else None

    def group_norm(
        self,
        x: TensorSpec,
        weight: TensorSpec,
        bias: TensorSpec,
        out: TensorSpec,
        *,
        num_groups: int,
        eps: float,
        activation: Activation | None = None,
    ) -> Calls:
        """Group normalization and the activation that follows it: x (B, ..., C)."""
        workgroups = self.group_norm_workgroups(x, num_groups)
        fits = x.shape[-1] // num_groups <= workgroups["workgroup_size"]  # a lane or more for each channel of a group
        fits = fits and max(x.size_bytes, out.size_bytes) <= self._max_bytes and not x.padding
        if self.optimizations.group_norm and fits and _group_size(x, num_groups) <= _FUSED_GROUP_SIZE:
            fused = group_norm(
                x, weight, bias, out, num_groups=num_groups, eps=eps, activation=activation, **workgroups
            )
            return (fused,)
        return group_norm_unfused(
            x,
            weight,
            bias,
            out,
            num_groups=num_groups,
            eps=eps,
            activation=activation,
            fold_activation=self.optimizations.group_norm,
            max_binding_bytes=self._max_bytes,
        )

    def group_norm_workgroups(self, x: TensorSpec, num_groups: int) -> dict[str, int]:
        """workgroup_size and shares of the one dispatch."""
        if self._lanes:  # on a CPU every lane of a workgroup passes each barrier
            return {"workgroup_size": 64, "shares": 1}
        if _group_size(x, num_groups) < 1 << 14:
            return {"workgroup_size": 256, "shares": 1}
        # Groups of that many values read twice, by two workgroups, are faster than read once by one.
        return {"workgroup_size": min(1024, self.capabilities.max_workgroup_size), "shares": 2}

    def group_norm_statistics(self, x: TensorSpec, means: TensorSpec, variances: TensorSpec) -> Calls:
        """Mean and variance of each group of x (B, ..., C), (B, G)."""
        return group_norm_statistics(x, means, variances, max_binding_bytes=self._max_bytes)

    def merge_statistics(
        self, part: tuple[TensorSpec, TensorSpec], means: TensorSpec, variances: TensorSpec, *, before: int, count: int
    ) -> Calls:
        """Means and variances of `before` rows, (B, G), become those of `count` more as well, which have `part`."""
        return (merge_statistics(*part, means, variances, before=before, count=count),)

    def normalize(self, x: TensorSpec, norm: FoldedGroupNorm, out: TensorSpec) -> Calls:
        """The group normalization of x (B, ..., C) by statistics that are known, and its activation."""
        return normalize(x, norm, out, fold_activation=self.optimizations.group_norm)

    def layer_norm(self, x: TensorSpec, weight: TensorSpec, bias: TensorSpec, out: TensorSpec, *, eps: float) -> Calls:
        """Layer normalization over the channels of x (..., C)."""
        strips = row_strips(self._max_bytes, x, out)
        row_lanes = self._row_lanes or 32
        options = {"row_lanes": row_lanes, "subgroup_rows": self.capabilities.has_subgroups_of(row_lanes)}
        return tuple(layer_norm(rows, weight, bias, part, eps=eps, **options) for rows, part in strips)

    def activate(self, x: TensorSpec, out: TensorSpec, *, activation: Activation | None) -> Calls:
        """out = activation(x), of any shape."""
        return tuple(activate(*parts, activation=activation) for parts in row_strips(self._max_bytes, x, out))

    def affine(self, x: TensorSpec, out: TensorSpec, *, scale: float, shift: float = 0.0) -> Calls:
        """out = scale x + shift, of any shape."""
        return tuple(affine(*parts, scale=scale, shift=shift) for parts in row_strips(self._max_bytes, x, out))

    def concat_channels(self, a: TensorSpec, b: TensorSpec, out: TensorSpec) -> Calls:
        """out = [a, b] along the last dimension."""
        return tuple(concat_channels(*parts) for parts in row_strips(self._max_bytes, a, b, out))

    def geglu_linear(self, x: TensorSpec, weight: TensorSpec, bias: TensorSpec, out: TensorSpec) -> Calls:
        """a GELU(b) with [a, b] = x weight + bias: x (..., K), weight (K, 2 C), out (..., C)."""
        operation = GatedLinear.of(x, weight.shape[-1])
        allowed = self.optimizations.geglu
        fuses = allowed and not self._lanes and out.size >= _FUSED_GEGLU_SIZE
        choice = self._choose(operation, GatedEpilogue() if fuses else Tiling(), gated_linear_candidates, fused=allowed)
        if isinstance(choice, GatedEpilogue):
            strips = row_strips(self._max_bytes, x, out)
            calls = (
                geglu_linear(rows, weight, bias, part, tile=choice.tile or self.matrix_units) for rows, part in strips
            )
            return _of(operation, calls)
        wide = TensorSpec(f"{out.name}.wide", (*out.shape[:-1], weight.shape[-1]), self.dtype)
        gates = (
            (geglu(rows, part),) if allowed else geglu_unfused(rows, part)
            for rows, part in row_strips(self._max_bytes, wide, out)
        )
        product = self._product(x, weight, wide, Epilogue(bias=bias), choice)
        return _of(operation, (*product, *_join(gates)))

    def padded_head_dim(self, head_dim: int) -> int:
        """Channels of each head in the tensors of `attention`: head_dim, and zeros up to what its kernels take.

        They do not depend on the dtype, so that networks of different ones can hand on such tensors.
        """
        flash_dim = ceil_div(head_dim, 8) * 8
        dtypes: tuple[DType, ...] = ("f16", "f32")
        takes_flash = any(replace(self, dtype=dtype)._flash_tile(flash_dim) for dtype in dtypes)
        return flash_dim if takes_flash else ceil_div(head_dim, 4) * 4

    def _flash_tile(self, D: int) -> FlashTile | MatrixFlashTile | None:
        """FlashAttention's for heads of that size; None where unfused kernels had better serve."""
        if not self.optimizations.flash_attention or not flash_fits(D, self.capabilities):
            return None
        tile = None
        if self.matrix_units:
            tile = choose_matrix_flash_tile(D, self.matrix_units, self.capabilities)
        if tile is None and D <= 80:  # a thread cannot hold enough rows of more channels
            tile = choose_flash_tile(D, self.dtype, self.capabilities)
        return tile

    def attention(
        self,
        q: TensorSpec,
        k: TensorSpec,
        v: TensorSpec,
        out: TensorSpec,
        *,
        num_heads: int,
        head_dim: int | None = None,
        causal: bool = False,
    ) -> Calls:
        """softmax(q k^T / sqrt(D)) v by head: q, out (B, N, heads D), k, v (B, M, heads D).

        Where heads are padded, `head_dim` is the number of their channels that are not zeros, and of which the root is
        taken. Without FlashAttention in strips of queries, where the scores of all are too large.
        """
        B, N, C = q.shape
        M = k.shape[1]
        D = C // num_heads
        head_dim = D if head_dim is None else head_dim
        operation = Attention(q.dtype, B, num_heads, N, M, D, causal)
        tile = self._flash_tile(D)
        static = Flash(tile) if tile else Scores()
        choice = self._choose(operation, static, attention_candidates, flash=self.optimizations.flash_attention)
        if isinstance(choice, Flash):
            options = {"num_heads": num_heads, "head_dim": head_dim, "causal": causal}
            return _of(operation, [flash_attention(q, k, v, out, tile=choice.tile, **options)])
        score_tile, value_tile = choice.scores or self._tile, choice.values or self._tile
        row_lanes = self._row_lanes
        columns = ceil_div(M, 4) * 4
        query_bytes = B * num_heads * columns * dtype_size_bytes(self.dtype)
        calls: list[KernelCall] = []
        for queries in query_strips(min(self._max_bytes, _MAX_SCORES_BYTES), N, query_bytes, out.name):
            scores = TensorSpec(f"{out.name}.scores", (B, num_heads, len(queries), columns), self.dtype)
            strip: dict[str, Any] = {"num_heads": num_heads, "first_query": queries.start}
            calls += attention_scores(q, k, scores, scale=head_dim**-0.5, tile=score_tile, **strip)
            if self.optimizations.partially_fused_softmax:
                strip |= {"causal": causal, "tile": value_tile, "row_lanes": row_lanes}
                calls += partially_fused_softmax(scores, v, out, **strip)
                continue
            probs = TensorSpec(f"{out.name}.probs", scores.shape, self.dtype)
            rows = {"num_columns": M, "causal": causal, "first_query": queries.start, "row_lanes": row_lanes}
            calls.append(softmax_unfused(scores, probs, **rows))
            calls += attention_values(probs, v, out, tile=value_tile, **strip)
        return _of(operation, calls)

    def _choose(self, operation: Operation, static: C, candidates: Callable[..., Sequence[C]], **allowed: bool) -> C:
        """What the tuning has for the operation, else `static`."""
        return self.tuning.choose(operation, static, lambda: candidates(operation, self.capabilities, **allowed))

    @property
    def _max_bytes(self) -> int:
        """The largest tensor, or view of one, that a call binds."""
        return self.capabilities.max_binding_bytes

    @property
    def _lanes(self) -> bool:
        return self.capabilities.exchanges_lanes

    @property
    def matrix_units(self) -> MatrixUnits | None:
        """Those that products of this dtype use; None in f32 and on devices without."""
        return self.capabilities.matrix_units_of(self.dtype)

    @property
    def _tile(self) -> Lanes | MatrixUnits | None:
        """This device's kind of products."""
        return self.capabilities.products_of(self.dtype)

    @property
    def _row_lanes(self) -> int | None:
        """Lanes that share a row of a softmax or a layer norm: None on a GPU, by the row's length.

        On a CPU, where every lane of a workgroup passes each barrier, one subgroup of llvmpipe.
        """
        return 8 if self._lanes else None


def _join(calls: Iterable[Calls]) -> Calls:
    """Those of each part, one after the other."""
    return tuple(chain.from_iterable(calls))


def _of(operation: Operation, calls: Iterable[KernelCall]) -> Calls:
    """The calls, as those of the operation."""
    return tuple(replace(call, operation=operation) for call in calls)


def _group_size(x: TensorSpec, num_groups: int) -> int:
    """Values of x (B, ..., C) that a group normalization takes the mean of."""
    return x.size // (x.shape[0] * num_groups)
