"""Which kernels serve an operation, by shape and device. The only place where that is decided."""

from dataclasses import dataclass

from shaderfusion.kernels.baseline.conv2d_direct import conv2d_direct
from shaderfusion.kernels.baseline.geglu_unfused import geglu_unfused
from shaderfusion.kernels.baseline.group_norm_unfused import group_norm_unfused
from shaderfusion.kernels.baseline.softmax_unfused import softmax_unfused
from shaderfusion.kernels.call import KernelCall, ceil_div
from shaderfusion.kernels.common.elementwise import Activation
from shaderfusion.kernels.common.matmul import Epilogue, Tile, attention_scores, attention_values, matmul
from shaderfusion.tensor import DType, TensorSpec

__all__ = ["Kernels"]

Calls = tuple[KernelCall, ...]


@dataclass(frozen=True)
class Kernels:
    """The operations of the models, as calls for one kind of device."""

    dtype: DType
    is_cpu: bool = False
    """Software Vulkan: a load costs about as much as 20 multiplications, so threads keep larger tiles."""

    def matmul(self, x: TensorSpec, weight: TensorSpec, out: TensorSpec, epilogue: Epilogue) -> Calls:
        """A linear layer: x (..., M, K), weight (K, N)."""
        return matmul(x, weight, out, epilogue, tile=self._tile, num_splits=self._num_splits)

    def conv2d(
        self, x: TensorSpec, weight: TensorSpec, out: TensorSpec, epilogue: Epilogue, *, stride: int = 1
    ) -> Calls:
        """A convolution whose padding keeps the size at stride 1: x (B, H, W, C_in), weight (k, k, C_in, C_out)."""
        padding = weight.shape[0] // 2
        return conv2d_direct(
            x, weight, out, epilogue, stride=stride, padding=padding, tile=self._tile, num_splits=self._num_splits
        )

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
        return group_norm_unfused(x, weight, bias, out, num_groups=num_groups, eps=eps, activation=activation)

    def geglu(self, x: TensorSpec, out: TensorSpec) -> Calls:
        """a GELU(b) of x = [a, b]: x (..., 2C), out (..., C)."""
        return geglu_unfused(x, out)

    def attention(
        self, q: TensorSpec, k: TensorSpec, v: TensorSpec, out: TensorSpec, *, num_heads: int, causal: bool = False
    ) -> Calls:
        """softmax(q k^T / sqrt(D)) v by head: q, out (B, N, heads D), k, v (B, M, heads D)."""
        B, N, C = q.shape
        M = k.shape[1]
        scores = TensorSpec(f"{out.name}.scores", (B, num_heads, N, ceil_div(M, 4) * 4), self.dtype)
        probs = TensorSpec(f"{out.name}.probs", scores.shape, self.dtype)
        scale = (C // num_heads) ** -0.5
        return (
            *attention_scores(q, k, scores, num_heads=num_heads, scale=scale, tile=self._tile),
            softmax_unfused(scores, probs, num_columns=M, causal=causal),
            *attention_values(probs, v, out, num_heads=num_heads, tile=self._tile),
        )

    @property
    def _num_splits(self) -> int | None:
        return 1 if self.is_cpu else None

    @property
    def _tile(self) -> Tile | None:
        """None leaves the choice to the kernel."""
        return Tile(64, 64, k=8, thread_m=16, thread_n4=4) if self.is_cpu else None
