"""Tensor specs: sizes, views, identity."""

import pytest

from shaderfusion.errors import ShapeError
from shaderfusion.tensor import DType, TensorSpec, dtype_size_bytes


@pytest.mark.parametrize(
    ("shape", "dtype", "size", "size_bytes"),
    [
        ((1,), "f16", 1, 16),  # rounded up to the widest load
        ((3, 5), "f16", 15, 32),
        ((2, 2), "f32", 4, 16),
        ((5,), "f32", 5, 32),
        ((2, 64, 64, 4), "f16", 32768, 65536),
    ],
)
def test_sizes(shape: tuple[int, ...], dtype: DType, size: int, size_bytes: int) -> None:
    spec = TensorSpec("x", shape, dtype)
    assert (spec.size, spec.size_bytes) == (size, size_bytes)


def test_dtype_sizes() -> None:
    assert [dtype_size_bytes(dtype) for dtype in ("f16", "f32")] == [2, 4]


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (-1, 4)])
def test_bad_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"unet.x: shape \(.*\) must have at least one dimension, each at least 1"):
        TensorSpec("unet.x", shape, "f32")


def test_views_have_one_storage() -> None:
    x = TensorSpec("x", (2, 6), "f16", "output")
    view = x.reshape(3, 4)
    assert (view.shape, view.dtype, view.name, view.role) == ((3, 4), "f16", "x", "output")
    assert x.storage is x
    assert view.storage is x
    assert view.reshape(12).storage is x
    with pytest.raises(ShapeError, match=r"x: cannot view shape \(3, 4\) as \(5, 2\): the sizes differ"):
        view.reshape(5, 2)


def test_identity() -> None:
    first, second = TensorSpec("x", (4,), "f32"), TensorSpec("x", (4,), "f32")
    assert first != second
    assert len({first: 1, second: 2}) == 2


def test_repr() -> None:
    assert repr(TensorSpec("unet.x", (2, 3), "f16")) == "unet.x[2, 3]:f16"
