"""The search: what wins, what it leaves out, and when it ends."""

from dataclasses import replace

import pytest

from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.program import Program
from shaderfusion.kernels.capabilities import WEBGPU_DEFAULTS
from shaderfusion.kernels.common.matmul import Epilogue, matmul
from shaderfusion.kernels.select import Kernels
from shaderfusion.kernels.tiles import tile_of
from shaderfusion.kernels.tuning import Linear, Tiling
from shaderfusion.tensor import TensorSpec
from shaderfusion.tune import search as module
from shaderfusion.tune.search import Search
from shaderfusion.tune.survey import Case, find_cases

RUNS = {"unet": 20, "vae": 1}


def cases(**rows: tuple[str, int]) -> list[Case]:
    """Linear layers of so many rows in a network."""

    def record(kernels: Kernels) -> dict[str, Graph]:
        graphs = {network: Graph(network, kernels) for network in RUNS}
        for name, (network, num_rows) in rows.items():
            g = graphs[network]
            with g.scope(name):
                x, weight = g.tensor("x", num_rows, 64), g.weight("weight", 64, 64, layout="linear")
                g.add(*g.kernels.matmul(x, weight, g.tensor("out", num_rows, 64), Epilogue()))
        return graphs

    return find_cases(record, Kernels("f32", WEBGPU_DEFAULTS))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Milliseconds of a run: `other`, but of programs of 32 x 32 tiles `small`."""
    times = {"small": 1.0, "other": 1.0}

    def time_once_ms(program: Program) -> float:
        first = program.graph.calls[0].constants
        return times["small" if (first["TILE_M"], first["TILE_N"]) == (32, 32) else "other"]

    monkeypatch.setattr(module, "time_once_ms", time_once_ms)
    return times


def run(device: Device, found: list[Case], budget_s: float = 60.0) -> dict[int, str | None]:
    """By the operation's rows, in the order in which they were tried, the choice."""
    search = Search(device, found, RUNS, budget_s)
    tried = {case.operation.rows: row and row.choice for case, row in search if isinstance(case.operation, Linear)}
    search.close()
    return tried


SMALL = repr(Tiling(tile_of(32, 32, pairs=False, thread_n4=1), 1))


@pytest.mark.parametrize(("small_ms", "choice"), [(0.5, SMALL), (0.96, SMALL), (0.98, None), (1.5, None)])
def test_a_winner_must_win_by_a_margin(
    device: Device, clock: dict[str, float], small_ms: float, choice: str | None
) -> None:
    clock["small"] = small_ms
    assert run(device, cases(layer=("unet", 96))) == {96: choice}


def test_times_are_those_of_one_run(device: Device, clock: dict[str, float]) -> None:
    clock["other"] = 0.25  # so that it is repeated 4 times, and 4 of the others take 0.1 ms
    clock["small"] = 0.1
    search = Search(device, cases(layer=("unet", 96)), RUNS, 60.0)
    ((case, row),) = search
    search.close()
    assert row is not None
    assert row.operation == repr(case.operation) == "Linear(dtype='f32', rows=96, columns=64, depth=64)"
    assert (row.static_ms, row.tuned_ms) == (0.25 / 4, 0.1 / 4)


def test_the_most_work_comes_first(device: Device, clock: dict[str, float]) -> None:
    found = cases(a=("vae", 96), b=("vae", 300), c=("unet", 40))  # 20 times 40 rows
    assert list(run(device, found)) == [40, 300, 96]


def test_little_work_is_not_searched(device: Device, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    clock["small"] = 0.5
    timed: list[Program] = []
    fake = module.time_once_ms

    def time_once_ms(program: Program) -> float:
        timed.append(program)
        return fake(program) * (10_000 if program.graph.calls[0].params["num_rows"] == 96 else 1)

    monkeypatch.setattr(module, "time_once_ms", time_once_ms)
    tried = run(device, cases(a=("unet", 96), b=("vae", 40)))
    assert tried == {96: SMALL, 40: None}
    assert sum(program.graph.calls[0].params["num_rows"] == 40 for program in timed) == 1


def test_the_budget_ends_the_search(device: Device, clock: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    found = cases(a=("unet", 96), b=("unet", 40))
    assert run(device, found, 0.0) == {}
    now = iter(range(100))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(now)))
    assert list(run(device, found, 2.5)) == [96]


def test_what_does_not_fit_is_left_out(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def allocate(*_: object) -> None:
        raise module.DOES_NOT_FIT[0]("too large")

    monkeypatch.setattr(module, "allocate", allocate)
    assert run(device, cases(a=("unet", 96))) == {96: None}


def test_what_is_added_to_is_read_by_no_other_layer(device: Device) -> None:
    """It grows from run to run, beyond what f16 holds."""
    search = Search(device, [], RUNS, 60.0)
    x, weight = TensorSpec("x", (96, 64), "f32", "weight"), TensorSpec("w", (64, 64), "f32", "weight")
    out, total = TensorSpec("out", (96, 64), "f32"), TensorSpec("total", (96, 64), "f32", "weight")
    plain, added = matmul(x, weight, out), matmul(x, weight, total, Epilogue(residual=total))
    buffers = [search._buffers(calls) for calls in (plain, added, plain)]
    assert buffers[0] == buffers[2] == {tensor: buffers[1][tensor] for tensor in (x, weight)}
    assert buffers[1][total] not in buffers[0].values()
    third = TensorSpec("bias", (64,), "f32", "weight")
    assert search._buffers(matmul(x, weight, out, Epilogue(bias=third)))[third] is not buffers[1][total]
    search.close()


def test_what_does_not_compile_is_left_out(device: Device, clock: dict[str, float]) -> None:
    clock["small"] = 0.5
    (case,) = cases(layer=("unet", 96))
    case.ways[Tiling(num_splits=99)] = [replace(call, entry_point="none") for call in case.ways[Tiling()]]
    assert run(device, [case]) == {96: SMALL}


def test_real_times(device: Device) -> None:
    search = Search(device, cases(a=("unet", 96), b=("vae", 40)), RUNS, 60.0)
    tried = list(search)
    search.close()
    assert len(tried) == 2
    for _, row in tried:
        assert row is None or 0 < row.tuned_ms < 0.97 * row.static_ms
