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


def test_views_of_columns() -> None:
    x = TensorSpec("x", (2, 5, 24), "f16")
    left, right = x.split_columns(2)
    assert (left.shape, left.first_column, left.row_stride) == ((2, 5, 12), 0, 24)
    assert (right.shape, right.first_column, right.row_stride) == ((2, 5, 12), 12, 24)
    assert right.storage is x
    assert (right.size, right.size_bytes, right.offset_bytes) == (120, x.size_bytes, 0)  # whole rows are bound
    within = right.columns(8, 4)
    assert (within.shape, within.first_column, within.row_stride) == ((2, 5, 4), 20, 24)
    assert right.reshape(10, 12).row_stride == 24
    assert x.row_stride == 24
    assert x.reshape(4, 60).row_stride == 60


def test_rows_of_columns() -> None:
    x = TensorSpec("x", (4, 2, 64), "f32")
    view = x.columns(16, 32).rows(1, 2)
    assert (view.shape, view.offset_bytes, view.size_bytes) == ((2, 2, 32), 2 * 64 * 4, 2 * 2 * 64 * 4)
    assert (view.first_column, view.row_stride) == (16, 64)


@pytest.mark.parametrize(
    ("first", "count", "message"),
    [
        (20, 8, r"x: columns 20 to 28 must be some of rows \(3, 24\)"),
        (-4, 8, r"x: columns -4 to 4 must be some"),
        (0, 0, r"x: columns 0 to 0 must be some"),
        (2, 8, r"x: columns 2 to 10 of \(3, 24\) must be vectors of 4"),
        (0, 6, r"x: columns 0 to 6 of \(3, 24\) must be vectors"),
    ],
)
def test_bad_columns(first: int, count: int, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        TensorSpec("x", (3, 24), "f32").columns(first, count)


def test_columns_keep_their_rows() -> None:
    x = TensorSpec("x", (3, 24), "f32")
    with pytest.raises(ShapeError, match=r"x: a view of columns must keep the 8 of each row"):
        x.columns(0, 8).reshape(2, 12)
    with pytest.raises(ShapeError, match=r"x: 24 columns must be a multiple of 5 to be so many views"):
        x.split_columns(5)
    with pytest.raises(ShapeError, match=r"x: columns of rows that end with 2 padding channels are unknown"):
        TensorSpec("x", (3, 24), "f32", padding=2).columns(0, 8)
    with pytest.raises(ShapeError, match=r"x: columns 0 to 8 must be some of rows \(24,\)"):
        TensorSpec("x", (24,), "f32").columns(0, 8)


def test_identity() -> None:
    first, second = TensorSpec("x", (4,), "f32"), TensorSpec("x", (4,), "f32")
    assert first != second
    assert len({first: 1, second: 2}) == 2


def test_repr() -> None:
    assert repr(TensorSpec("unet.x", (2, 3), "f16")) == "unet.x[2, 3]:f16"
