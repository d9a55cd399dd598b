"""Every dispatch of a tiny model: counted, its work, timed."""

from collections import Counter

import pytest
from golden.models import model_folder

from shaderfusion.bench import kernels
from shaderfusion.bench.subject import open_subject
from shaderfusion.bench.work import work_of
from shaderfusion.gpu.device import Device
from shaderfusion.kernels.common.matmul import Epilogue
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import TensorSpec


def spec(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, shape, "f16")


def test_counts_are_those_of_the_graphs(device: Device) -> None:
    subject = open_subject("emoji", device=device)
    counted = Counter(network for network, _, count in kernels.find_calls(subject) for _ in range(count))
    assert counted == {name: len(graph.calls) for name, graph in subject.graphs(subject.kernels()).items()}


def test_work_of_products() -> None:
    (product,) = Kernels("f16").matmul(spec("a", 8192, 320), spec("b", 320, 1280), spec("c", 8192, 1280), Epilogue())
    work = work_of(product)
    assert work.shape == "8192 x 1280 x 320"
    assert work.flop == 2 * 8192 * 1280 * 320
    assert work.size_bytes == 2 * (8192 * 320 + 320 * 1280 + 8192 * 1280)

    x, weight, bias, out = spec("x", 8192, 320), spec("w", 320, 2560), spec("bias", 2560), spec("out", 8192, 1280)
    (gated,) = Kernels("f16").geglu_linear(x, weight, bias, out)
    work = work_of(gated)
    assert work.shape == "8192 x 2560 x 320 + bias + geglu"
    assert work.flop == 2 * 8192 * 2560 * 320
    assert work.size_bytes == 2 * (8192 * 320 + 320 * 2560 + 2560 + 8192 * 1280)

    direct = Kernels("f16", optimizations=Optimizations.parse("none"))
    x, weight, out = spec("x", 2, 64, 64, 320), spec("w", 3, 3, 320, 640), spec("out", 2, 64, 64, 640)
    work = work_of(direct.conv2d(x, weight, out, Epilogue(bias=spec("bias", 640)))[0])
    assert work.shape == "2x64x64x320 by 3x3 to 640 + bias"
    assert work.flop == 2 * 2 * 64 * 64 * 640 * 9 * 320


def test_work_of_attention() -> None:
    q, k = spec("q", 2, 4096, 320), spec("k", 2, 77, 320)
    work = work_of(Kernels("f16").attention(q, k, k, spec("out", 2, 4096, 320), num_heads=8)[0])
    assert work.shape == "16 of 4096 x 77, D = 40"
    assert work.flop == 4 * 16 * 4096 * 77 * 40


def test_work_of_winograd_adds_up() -> None:
    """Strips and slices share x and out, whatever tensors they bind; the products make 9 m^2 / (m + 2)^2 less."""
    B, side, C = 1, 256, 64
    x, weight, out = spec("x", B, side, side, C), spec("w", 3, 3, C, C), spec("out", B, side, side, C)
    calls = Kernels("f16").winograd_conv(x, weight, out, Epilogue(residual=spec("r", *out.shape)), m=4)
    works = [(call.name, work_of(call)) for call in calls]
    flop = sum(work.flop for _, work in works)
    assert flop == 2 * B * side**2 * C * C * 36 // 16
    values = B * side**2 * C * 36 // 16  # of V, and of M
    moved = Counter()
    for name, work in works:
        moved[name] += work.size_bytes // 2
    assert moved["winograd_conv.transform_input"] == x.size + values
    assert moved["winograd_conv.transform_output"] == values + 2 * out.size
    assert moved["winograd_conv.transform_filters"] == (9 + 36) * C * C


def test_rows(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_REPEATED_MS", 0.1)
    subject = open_subject(str(model_folder("sd1")), device=device, width=32, height=32)
    rows = list(kernels.measure_rows(subject))
    assert [row["name"] for row in rows[:2]] == ["large product", "large copy"]
    assert len(rows) == 2 + len(list(kernels.find_calls(subject)))
    for row in rows:
        assert row["p50_ms"] > 0
        assert row["share_of_ceiling"] > 0
        assert (row["gflop_per_s"] > 0) == (row["flop"] > 0)
    titles = [table.title for table in kernels.tables(rows)]
    assert titles == ["Ceilings", "One iteration of the UNet", "Decoder", "Text encoder"]
    assert sum(len(table.rows) for table in kernels.tables(rows)) == len(rows)
