"""Channel concatenation against its reference: copies, so equal to the last bit."""

from dataclasses import replace

import numpy as np
import pytest
from kernel_runner import rounded, run_calls, tensor_in, tensor_out

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.kernels import reference
from shaderfusion.kernels.common.concat_channels import concat_channels
from shaderfusion.tensor import DType

CASES = [
    ((1,), 1, 1),  # minimal
    ((3, 5, 7), 9, 2),  # odd: one channel a load
    ((2, 7), 8, 6),  # only one of the two divides by 4
    ((2, 16, 16), 320, 640),  # UNet
]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize(("leading", "CA", "CB"), CASES, ids=str)
def test_concat_channels(any_device: Device, leading: tuple[int, ...], CA: int, CB: int, dtype: DType) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((*leading, CA)), rng.standard_normal((*leading, CB))
    ta, tb, out = tensor_in("a", a, dtype), tensor_in("b", b, dtype), tensor_out("out", *leading, CA + CB, dtype=dtype)
    (actual,) = run_calls(any_device, concat_channels(ta, tb, out), {ta: a, tb: b}, out)
    np.testing.assert_array_equal(actual, reference.concat_channels(rounded(a, dtype), rounded(b, dtype)))


@pytest.mark.parametrize(
    ("CA", "CB", "out_padding"),
    [
        (6, 10, 0),  # what pads a and b is left out
        (5, 3, 0),
        (5, 4, 3),  # b is not padded, but out is
        (1, 5, 2),  # b's padding and more
        (8, 5, 3),  # vectors of 4: b's padding is out's
    ],
)
def test_padding(any_device: Device, CA: int, CB: int, out_padding: int) -> None:
    rng = np.random.default_rng(0)
    a, b = (np.pad(rng.standard_normal((2, 3, C)), [(0, 0), (0, 0), (0, -C % 4)]) for C in (CA, CB))
    ta, tb = (replace(tensor_in(name, x), padding=-C % 4) for name, x, C in (("a", a, CA), ("b", b, CB)))
    out = replace(tensor_out("out", 2, 3, CA + CB + out_padding), padding=out_padding)
    call = concat_channels(ta, tb, out)
    assert call.constants["VEC4"] == (CA % 4 == 0)
    (actual,) = run_calls(any_device, call, {ta: a, tb: b}, out)
    expected = reference.concat_channels(rounded(a[..., :CA], "f32"), rounded(b[..., :CB], "f32"))
    np.testing.assert_array_equal(actual[..., : CA + CB], expected)
    assert not actual[..., CA + CB :].any()


def test_shape_errors() -> None:
    a, b = tensor_out("a", 2, 3, 4), tensor_out("b", 2, 3, 8)
    with pytest.raises(ShapeError, match="must agree in all dimensions but the last"):
        concat_channels(a, tensor_out("b", 2, 4, 4), tensor_out("out", 2, 3, 8))
    with pytest.raises(ShapeError, match=r"must have shape \(2, 3, 12\)"):
        concat_channels(a, b, tensor_out("out", 2, 3, 8))
    with pytest.raises(ShapeError, match=r"out\[2, 3, 12\]:f16 must have the dtype of a"):
        concat_channels(a, b, tensor_out("out", 2, 3, 12, dtype="f16"))
