"""Group statistics against their reference; with what is made of them: test_group_norm_unfused, test_winograd_conv."""

from dataclasses import replace

import numpy as np
import pytest
from kernel_runner import relative_error, rounded, run_calls, tensor_in, tensor_out

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.program import Program
from shaderfusion.kernels import reference
from shaderfusion.kernels.common.group_norm_statistics import group_norm_statistics, merge_statistics
from shaderfusion.kernels.select import Kernels

BOUND = 2e-6


@pytest.mark.parametrize("in_strips", [False, True], ids=["whole", "strips"])
@pytest.mark.parametrize(
    ("shape", "num_groups", "padding", "strip_bytes"),  # the least of which strips begin at multiples of 256 bytes
    [
        ((3, 64, 9), 3, 0, 2304),  # one channel a load; an image a strip
        ((2, 9, 16, 12), 6, 0, 768),  # a load of 4 channels straddles groups of 2
        ((2, 8, 9, 8), 3, 2, 1024),  # and padding; ragged strips of 24 pixels
    ],
    ids=str,
)
def test_statistics(
    any_device: Device, shape: tuple[int, ...], num_groups: int, padding: int, strip_bytes: int, in_strips: bool
) -> None:
    max_binding_bytes = strip_bytes if in_strips else None
    x = np.random.default_rng(5).standard_normal(shape) + 2
    tx = replace(tensor_in("x", x), padding=padding)
    means, variances = tensor_out("mean", shape[0], num_groups), tensor_out("variance", shape[0], num_groups)
    calls = group_norm_statistics(tx, means, variances, max_binding_bytes=max_binding_bytes)
    assert (len(calls) > 2) is in_strips
    actual = run_calls(any_device, calls, {tx: x}, means, variances)
    channels = x[..., : shape[-1] - padding]
    expected = reference.group_norm_statistics(channels, num_groups=num_groups)
    for values, expected_values in zip(actual, expected, strict=True):
        assert relative_error(values, expected_values) < BOUND


def test_values_far_from_zero(device: Device) -> None:
    """The mean of their squares less the square of their mean would lose the variance."""
    x = np.random.default_rng(7).standard_normal((2, 16, 16, 32)) + 1000
    tx, means, variances = tensor_in("x", x), tensor_out("mean", 2, 8), tensor_out("variance", 2, 8)
    _, actual = run_calls(device, group_norm_statistics(tx, means, variances), {tx: x}, means, variances)
    _, expected = reference.group_norm_statistics(rounded(x, "f32"), num_groups=8)
    assert relative_error(actual, expected) < 2e-5


@pytest.mark.parametrize("parts", [(1, 1), (7, 130), (130, 7)], ids=str)
def test_merged_statistics(any_device: Device, parts: tuple[int, int]) -> None:
    """Those of the rows of two parts in one, whose means are far from each other and from zero."""
    x = np.random.default_rng(6).standard_normal((2, sum(parts), 5, 300)) + 100
    x[:, : parts[0]] += 3
    groups = {"num_groups": 150}
    arrays = {}
    for name, rows in (("all", x[:, : parts[0]]), ("part", x[:, parts[0] :])):
        for kind, values in zip(("means", "variances"), reference.group_norm_statistics(rows, **groups), strict=True):
            arrays[tensor_out(f"{name} {kind}", *values.shape)] = values
    means, variances, part_means, part_variances = arrays
    graph = Graph("test", Kernels("f32"))
    graph.calls = [merge_statistics(part_means, part_variances, means, variances, before=parts[0], count=parts[1])]
    graph.outputs = {tensor.name: tensor for tensor in arrays}
    program = Program(any_device, graph, {})
    program.write_all({tensor.name: values for tensor, values in arrays.items()})
    program.run()
    counts = {"before": parts[0], "count": parts[1]}
    tensors = (part_means, part_variances, means, variances)
    merged = reference.merge_statistics(*(arrays[tensor] for tensor in tensors), **counts)
    for tensor, expected, of_all in zip(
        (means, variances), merged, reference.group_norm_statistics(x, **groups), strict=True
    ):
        assert relative_error(program.read(tensor.name), expected) < BOUND
        assert relative_error(expected, of_all) < BOUND


def test_large_groups_are_cut_into_slices() -> None:
    means, variances = tensor_out("mean", 1, 32), tensor_out("variance", 1, 32)
    sums, *_ = group_norm_statistics(tensor_out("x", 1, 512, 512, 128), means, variances)
    assert sums.workgroups == (512, 1, 1)


def test_shape_errors() -> None:
    x, means = tensor_out("x", 2, 9, 320), tensor_out("mean", 2, 32)
    for wrong in (tensor_out("v", 1, 32), tensor_out("v", 2, 16), tensor_out("v", 2, 32, dtype="f16")):
        for pair in ((means, wrong), (wrong, means)):
            with pytest.raises(ShapeError, match=r"group_norm: .* and .* must be \(B, G\) f32 for x\[2, 9, 320\]:f32"):
                group_norm_statistics(x, *pair)
    for part, before in ((tensor_out("v", 1, 32), 1), (means, 0)):
        with pytest.raises(ShapeError, match=r"merge_statistics: .* must be f32 of one shape, before and count"):
            merge_statistics(part, means, means, means, before=before, count=1)
    with pytest.raises(ShapeError, match=r"with C a multiple of G"):
        group_norm_statistics(x, tensor_out("mean", 2, 33), tensor_out("variance", 2, 33))
