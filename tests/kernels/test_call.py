"""Kernel calls as data."""

import pytest

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import (
    MAX_WORKGROUPS_PER_DIMENSION,
    KernelCall,
    ceil_div,
    read,
    read_columns,
    spread_workgroups,
    write,
)
from shaderfusion.tensor import TensorSpec


@pytest.mark.parametrize(
    ("source", "entry_point", "name"),
    [
        ("common/layer_norm.wgsl", "layer_norm", "layer_norm"),
        ("common/matmul.wgsl", "product", "matmul.product"),
    ],
)
def test_name(source: str, entry_point: str, name: str) -> None:
    assert KernelCall(source, entry_point, "f32", (), (1, 1, 1)).name == name


def test_bindings() -> None:
    a, b = TensorSpec("a", (4,), "f32"), TensorSpec("b", (4,), "f32")
    assert [(x.tensor, x.access) for x in (*read(a, b), *write(b))] == [(a, "read"), (b, "read"), (b, "write")]


def test_views_of_columns_are_for_kernels_that_say_so() -> None:
    view = TensorSpec("x", (3, 8), "f32").columns(4, 4)
    assert [(x.tensor, x.access) for x in read_columns(view)] == [(view, "read")]
    for bind in (read, write):
        with pytest.raises(
            ShapeError, match=r"x\[3, 4\]:f32: a view of columns is only for kernels that go by strides"
        ):
            bind(view)


@pytest.mark.parametrize(
    ("numerator", "denominator", "quotient"), [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2), (2**60 + 1, 2, 2**59 + 1)]
)
def test_ceil_div(numerator: int, denominator: int, quotient: int) -> None:
    assert ceil_div(numerator, denominator) == quotient


@pytest.mark.parametrize(
    ("count", "grid"),
    [(1, (1, 1, 1)), (65535, (65535, 1, 1)), (65536, (32768, 2, 1)), (65535 * 2 + 1, (43691, 3, 1))],
)
def test_spread_workgroups(count: int, grid: tuple[int, int, int]) -> None:
    assert spread_workgroups(count) == grid


def test_spread_workgroups_covers_with_few_to_spare() -> None:
    for count in (65537, 10**6 + 3, 65535**2):
        x, y, z = spread_workgroups(count)
        assert max(x, y) <= MAX_WORKGROUPS_PER_DIMENSION
        assert z == 1
        assert 0 <= x * y - count < y


@pytest.mark.parametrize("count", [0, -1])
def test_no_workgroups(count: int) -> None:
    with pytest.raises(ShapeError, match=rf"workgroups \(={count}\) must be at least 1"):
        spread_workgroups(count)
