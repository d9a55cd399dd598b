"""What a tuning changes, and that it brings in nothing that is no candidate."""

from dataclasses import replace

import pytest
from kernel_runner import tensor_out

from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.capabilities import WEBGPU_DEFAULTS
from shaderfusion.kernels.common.matmul import Epilogue
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.optimized.flash_attention import FlashTile, choose_flash_tile
from shaderfusion.kernels.select import Kernels
from shaderfusion.kernels.tiles import Tile, tile_of
from shaderfusion.kernels.tuning import (
    NO_TUNING,
    Attention,
    Choice,
    Convolution,
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

GPU = Kernels("f16")
LINEAR = Linear("f16", 64, 320, 640)
CONVOLUTION = Convolution("f16", (1, 64, 64, 128), (1, 64, 64, 128), 1)
ATTENTION = Attention("f16", 2, 3, 64, 77, 40, False)
SMALL = tile_of(32, 32, pairs=True, thread_n4=1)


def tuned(operation: Operation, choice: Choice, kernels: Kernels = GPU) -> Kernels:
    """Kernels with that choice alone."""
    return replace(kernels, tuning=Tuning({repr(operation): repr(choice)}, "a file"))


def linear(kernels: Kernels) -> tuple[KernelCall, ...]:
    """LINEAR."""
    x, weight, out = (tensor_out("x", *shape, dtype="f16") for shape in ((64, 640), (640, 320), (64, 320)))
    return kernels.matmul(x, weight, out, Epilogue())


def test_names_are_distinct_and_say_all() -> None:
    assert repr(LINEAR) == "Linear(dtype='f16', rows=64, columns=320, depth=640)"
    named = [LINEAR, GatedLinear(*vars(LINEAR).values()), CONVOLUTION, replace(CONVOLUTION, stride=2), ATTENTION]
    named += [
        Tiling(),
        Tiling(SMALL),
        Tiling(SMALL, 2),
        GatedEpilogue(SMALL),
        Winograd(2),
        Winograd(2, SMALL),
        Scores(),
    ]
    assert len(set(map(repr, named))) == len(named)


def test_a_choice_replaces_the_static_one() -> None:
    static = linear(GPU)
    product, sums = linear(tuned(LINEAR, Tiling(SMALL, 2)))
    assert (product.constants["TILE_M"], product.constants["TILE_N"], product.params["num_splits"]) == (32, 32, 2)
    assert sums.entry_point == "sum_splits"
    assert static[0].constants["TILE_N"] != 32
    assert {call.operation for call in (*static, product, sums)} == {LINEAR}


@pytest.mark.parametrize(
    "choice",
    [
        Winograd(2),  # of another operation
        Tiling(Tile(4096, 4096), 1),  # no device could run it
        Tiling(SMALL, 1_000_000),
        Tiling(replace(SMALL, pairs=False), 1),  # the sums' precision is no choice
        FlashTile(),
    ],
    ids=repr,
)
def test_what_is_no_candidate_is_not_used(choice: Choice) -> None:
    kernels = tuned(LINEAR, choice)
    assert kernels.tuning.choose(LINEAR, Tiling(), lambda: [Tiling(SMALL, 1)]) == Tiling()
    assert [call.constants for call in linear(kernels)] == [call.constants for call in linear(GPU)]


def test_other_sizes_and_dtypes_stay() -> None:
    for other in (replace(LINEAR, rows=65), replace(LINEAR, dtype="f32")):
        assert [call.constants for call in linear(tuned(other, Tiling(SMALL, 1)))] == [
            call.constants for call in linear(GPU)
        ]


def test_the_filters_follow_the_choice() -> None:
    x = tensor_out("x", *CONVOLUTION.x_shape, dtype="f16")
    assert GPU.conv2d_layout(x, x) == "winograd_4"
    for choice, layout in ((Tiling(SMALL, 1), "conv2d"), (Winograd(2), "winograd_2")):
        kernels = tuned(CONVOLUTION, choice)
        assert kernels.conv2d_layout(x, x) == layout
    shapes = {"conv2d": (3, 3, 128, 128), "winograd_2": (16, 128, 128)}
    for choice in (Tiling(SMALL, 1), Winograd(2)):
        kernels = tuned(CONVOLUTION, choice)
        weight = tensor_out("w", *shapes[kernels.conv2d_layout(x, x)], dtype="f16")
        calls = kernels.conv2d(x, weight, x, Epilogue())
        assert (calls[0].name == "conv2d_direct.product") is isinstance(choice, Tiling)
        assert {call.operation for call in calls} == {CONVOLUTION}


def test_kept_filters_are_another_operation() -> None:
    """What is fast where filters are transformed in the run is not what is fast where they are kept."""
    x = tensor_out("x", 1, 64, 64, 128, dtype="f16")
    kernels = replace(tuned(CONVOLUTION, Tiling(SMALL, 1)), keeps_filters=True)
    assert kernels.conv2d_layout(x, x) == "winograd_4"
    assert tuned(replace(CONVOLUTION, keeps_filters=True), Tiling(SMALL, 1), kernels).conv2d_layout(x, x) == "conv2d"


def test_a_direct_convolution_folds_no_norm() -> None:
    x = tensor_out("x", 1, 512, 512, 128, dtype="f16")
    operation = Convolution("f16", x.shape, x.shape, 1)
    assert GPU.folds_group_norm(x, x, num_groups=32)
    direct = Tiling(tile_of(64, 64, pairs=True), 1)
    assert not tuned(operation, direct).folds_group_norm(x, x, num_groups=32)


def test_attention() -> None:
    q, k = tensor_out("q", 2, 64, 120, dtype="f16"), tensor_out("k", 2, 77, 120, dtype="f16")
    kernels = tuned(ATTENTION, Scores())
    names = [call.name for call in kernels.attention(q, k, k, q, num_heads=3)]
    assert names == ["matmul.product", "partially_fused_softmax.reduce_rows", "matmul.product"]
    assert kernels.padded_head_dim(40) == GPU.padded_head_dim(40) == 40  # whatever kernel takes them

    large = replace(ATTENTION, head_dim=160)
    q, k = tensor_out("q", 2, 64, 480, dtype="f16"), tensor_out("k", 2, 77, 480, dtype="f16")
    flash = Flash(choose_flash_tile(160, "f16", WEBGPU_DEFAULTS))
    for kernels, num_calls in ((GPU, 3), (tuned(large, flash), 1)):
        assert len(kernels.attention(q, k, k, q, num_heads=3)) == num_calls


@pytest.mark.parametrize(
    ("operation", "choice"),
    [(CONVOLUTION, Winograd(2)), (ATTENTION, Flash(choose_flash_tile(40, "f16", WEBGPU_DEFAULTS)))],
)
def test_an_optimization_that_is_off_stays_off(operation: Operation, choice: Choice) -> None:
    kernels = tuned(operation, choice, replace(GPU, optimizations=Optimizations.parse("none")))
    x, q = tensor_out("x", *CONVOLUTION.x_shape, dtype="f16"), tensor_out("q", 2, 64, 120, dtype="f16")
    k = tensor_out("k", 2, 77, 120, dtype="f16")
    assert kernels.conv2d_layout(x, x) == "conv2d"
    assert len(kernels.attention(q, k, k, q, num_heads=3)) > 1


def test_gate() -> None:
    x, bias, out = (
        tensor_out("x", 64, 320, dtype="f16"),
        tensor_out("b", 640, dtype="f16"),
        tensor_out("out", 64, 320, dtype="f16"),
    )
    weight = tensor_out("w", 320, 640, dtype="f16")
    operation = GatedLinear("f16", 64, 640, 320)
    assert len(GPU.geglu_linear(x, weight, bias, out)) > 1
    tile = tile_of(64, 64, pairs=True)
    (call,) = tuned(operation, GatedEpilogue(tile)).geglu_linear(x, weight, bias, out)
    assert (call.constants["GEGLU"], call.constants["TILE_N"]) == (True, 64)


def test_kernels_with_a_tuning_are_hashable() -> None:
    assert len({GPU, tuned(LINEAR, Tiling(SMALL, 1)), replace(GPU, tuning=NO_TUNING)}) == 2
