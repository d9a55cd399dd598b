"""Products that adapters add, against the reference."""

import numpy as np
import pytest
from kernel_runner import relative_error, rounded, run_calls

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.kernels import reference
from shaderfusion.kernels.common.add_product import add_product
from shaderfusion.tensor import DType, TensorSpec

Shape = tuple[int, int, int]

CASES: dict[str, tuple[tuple[int, int], Shape, Shape | None]] = {  # out, b, a
    "one value": ((1, 1), (1, 1, 1), None),
    "a difference, of two workgroups each way": ((7, 33), (7, 1, 33), None),
    "filters by taps": ((5, 54), (5, 9, 6), None),
    "element by element": ((5, 7), (5, 1, 7), (5, 1, 7)),
    "one of them by taps": ((5, 18), (5, 1, 18), (5, 9, 2)),
    "a scale for each row": ((6, 10), (6, 1, 10), (6, 1, 1)),
    "a scale for each 9 columns": ((6, 45), (6, 1, 45), (1, 1, 5)),
    "Kronecker's": ((15, 28), (5, 1, 7), (3, 1, 4)),
    "Kronecker's, of filters by taps": ((15, 108), (5, 9, 3), (3, 1, 4)),
    "Kronecker's, of taps on the left": ((6, 40), (3, 1, 5), (2, 4, 2)),
    "Kronecker's with one number": ((4, 6), (4, 1, 6), (1, 1, 1)),
}


def run(
    device: Device,
    size: tuple[int, int],
    b: Shape,
    a: Shape | None,
    dtype: DType = "f32",
    padding: int = 0,
    **rows: int,
) -> float:
    """The relative error; with `padding`, columns of a and b end with NaN, which must not be read."""
    rng = np.random.default_rng(0)
    out = rng.standard_normal(size)
    arrays = {name: rng.standard_normal(shape) for name, shape in (("b", b), ("a", a)) if shape}
    expected = reference.add_product(
        rounded(out, dtype), *(rounded(array, dtype) for array in arrays.values()), scale=-0.7, **rows
    )
    spec = TensorSpec("out", size, dtype, "output")
    inputs: dict[TensorSpec, np.ndarray] = {}
    for name, array in arrays.items():
        wide = np.pad(array, [(0, 0), (0, 0), (0, padding)], constant_values=np.nan)
        inputs[TensorSpec(name, wide.shape, dtype, "input", padding=padding)] = wide
    call = add_product(spec, *inputs, scale=-0.7, **rows)
    (actual,) = run_calls(device, call, {**inputs, spec: out}, spec)
    return relative_error(actual, expected)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("case", CASES)
def test_add_product(any_device: Device, case: str, dtype: DType) -> None:
    bounds: dict[DType, float] = {"f32": 1e-6, "f16": 5e-4}
    assert run(any_device, *CASES[case], dtype) < bounds[dtype]


def test_some_rows_of_kroneckers_product(any_device: Device) -> None:
    assert run(any_device, (4, 28), (5, 1, 7), (3, 1, 4), first_row=9, num_rows=15) < 1e-6  # of two blocks


def test_padding_columns(any_device: Device) -> None:
    for case in ("filters by taps", "Kronecker's, of filters by taps"):
        assert run(any_device, *CASES[case], padding=2) < 1e-6


def test_sizes_must_agree() -> None:
    out, four, six = (TensorSpec("x", shape, "f32") for shape in ((12, 10), (4, 1, 5), (6, 1, 2)))
    for b, a in ((four, None), (TensorSpec("b", (5, 1, 5), "f32"), None), (four, TensorSpec("a", (1, 1, 3), "f32"))):
        with pytest.raises(ShapeError, match=r"add_product: .* must fill 12 rows of x\[12, 10\]"):
            add_product(out, b, a, scale=1.0)
    with pytest.raises(ShapeError, match="from 1 on must be some of 12"):
        add_product(out, four, six, scale=1.0, first_row=1)
