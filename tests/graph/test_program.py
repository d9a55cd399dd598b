"""Programs on a device: parameters, inputs and outputs, shared memory, timing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shaderfusion.errors import DeviceError, DeviceLimitError, ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.graph.arena import Arena
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.program import Program, divide
from shaderfusion.kernels.capabilities import Capabilities
from shaderfusion.kernels.common.concat_channels import concat_channels
from shaderfusion.kernels.common.elementwise import add, multiply
from shaderfusion.kernels.select import Kernels


def make_graph(size: int) -> Graph:
    """out = (x + x) * x + x, by way of two intermediate tensors."""
    g = Graph(f"test{size}", Kernels("f32", Capabilities(max_binding_bytes=1 << 40)))
    x, out = g.input("x", size), g.output("out", size)
    twice, square = g.tensor("twice", size), g.tensor("square", size)
    with g.scope("first"):
        g.add(add(x, x, twice))
    with g.scope("second"):
        g.add(multiply(twice, x, square))
        g.add(add(square, x, out))
    return g


def run(program: Program, x: np.ndarray) -> np.ndarray:
    """Fills x, runs once, reads out."""
    program.write("x", x)
    program.run()
    return program.read("out")


def formula(x: np.ndarray) -> np.ndarray:
    """What make_graph computes."""
    return 2 * x * x + x


def test_runs_again_with_other_inputs(any_device: Device) -> None:
    program = Program(any_device, make_graph(12), {})
    for start in (0, 5):
        x = np.arange(start, start + 12, dtype=np.float32)
        np.testing.assert_array_equal(run(program, x), formula(x))
    np.testing.assert_array_equal(program.read("x"), np.arange(5, 17))
    program.run()  # nothing changed, so the same again
    np.testing.assert_array_equal(program.read("out"), formula(x))


@pytest.mark.parametrize("sizes", [(8, 4096, 100), (4096, 8, 100)])
def test_programs_share_memory(device: Device, sizes: tuple[int, ...]) -> None:
    arena = Arena(device)
    programs = [Program(device, make_graph(size), {}, arena) for size in sizes]
    assert [buffer.size for buffer in arena.buffers] == [4 * max(sizes)] * 2
    for _ in range(2):  # in turn: no run depends on what another left behind
        for size, program in zip(sizes, programs, strict=True):
            x = np.random.default_rng(size).integers(0, 9, size).astype(np.float32)
            np.testing.assert_array_equal(run(program, x), formula(x))


def test_memory_follows_the_programs(device: Device) -> None:
    arena = Arena(device)
    small, large = (Program(device, make_graph(size), {}, arena) for size in (8, 4096))
    before = arena.buffers
    large.close()
    middle = Program(device, make_graph(100), {}, arena)
    assert arena.size_bytes == 2 * 400
    assert before != arena.buffers
    for size, program in ((8, small), (100, middle)):
        x = np.arange(size, dtype=np.float32)
        np.testing.assert_array_equal(run(program, x), formula(x))
    arena.close()
    assert arena.size_bytes == 0


def test_a_program_that_does_not_fit_leaves_the_others_running(device: Device) -> None:
    arena = Arena(device)
    program = Program(device, make_graph(8), {}, arena)
    size = device.capabilities.max_buffer_bytes // 4 + 4
    with pytest.raises(DeviceLimitError, match=r"twice"):
        Program(device, make_graph(size), {}, arena)
    x = np.arange(8, dtype=np.float32)
    np.testing.assert_array_equal(run(program, x), formula(x))


def test_params_are_packed_in_order_and_shared(device: Device) -> None:
    g = Graph("test", Kernels("f32"))
    arrays = {f"x{i}": np.random.default_rng(i).random((1, H, 3, 4)) for i, H in enumerate((2, 5, 2))}
    for name, array in arrays.items():
        x = g.input(name, *array.shape)
        g.add(concat_channels(x, x, g.output(f"{name}.out", *array.shape[:-1], 2 * array.shape[-1])))
    first, second, third = (call.params for call in g.calls)
    assert first == third != second
    program = Program(device, g, {})
    assert program._params.size == 2 * 256  # two different structs
    for name, array in arrays.items():
        program.write(name, array)
    program.run()
    for name, array in arrays.items():
        expected = np.concatenate([array, array], axis=-1).astype(np.float32)
        np.testing.assert_array_equal(program.read(f"{name}.out"), expected)


def test_unknown_name(device: Device) -> None:
    program = Program(device, make_graph(8), {})
    with pytest.raises(ShapeError, match=r"test8: no input or output 'latents'; it has x, out"):
        program.write("latents", np.zeros(8))
    with pytest.raises(ShapeError, match=r"test8: no input or output 'twice'"):
        program.read("twice")
    with pytest.raises(ShapeError, match=r"test8.x: got an array of shape \(9,\), must be \(8,\)"):
        program.write("x", np.zeros(9))


def test_timing(device: Device) -> None:
    if not device.info.has_timestamps:
        pytest.skip("this device has no timestamp queries")
    program = Program(device, make_graph(8), {})
    x = np.arange(8, dtype=np.float32)
    program.write("x", x)
    rows = program.profile_ms()
    assert [label for label, _ in rows] == [
        "test8.first/elementwise",
        "test8.second/elementwise",
        "test8.second/elementwise",
    ]
    np.testing.assert_array_equal(program.read("out"), formula(x))  # a timed run is a whole run
    times_ms = [ms for _, ms in rows] + [program.time_ms()]
    assert all(0 <= ms < 1e4 for ms in times_ms)
    assert max(times_ms) > 0


def test_timing_without_timestamps(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program(device, make_graph(8), {})
    monkeypatch.setattr(device, "capabilities", replace(device.capabilities, timestamp_period_ns=None))
    with pytest.raises(DeviceError, match=r"device \d+ \(.*\) has no timestamp queries"):
        program.time_ms()
    with pytest.raises(DeviceError, match=r"has no timestamp queries"):
        program.profile_ms()


def test_too_large_for_the_device(device: Device) -> None:
    size = device.capabilities.max_buffer_bytes // 4 + 4
    with pytest.raises(DeviceLimitError, match=rf"^test{size}.twice: .* MB is over what a buffer of "):
        Program(device, make_graph(size), {})


def test_one_buffer_read_and_written(device: Device) -> None:
    g = make_graph(8)
    g.calls.append(add(g.inputs["x"], g.outputs["out"], g.outputs["out"]))
    with pytest.raises(DeviceError, match=r"^running test8: .*Validation Error"):
        Program(device, g, {}).run()


@pytest.mark.parametrize(
    ("times_ms", "pieces"),
    [
        ([], []),
        ([1000.0], [1]),
        ([30.0, 30.0, 1000.0, 1.0, 1.0], [1, 1, 1, 2]),  # at most 50 ms, or one call
        ([0.0] * 40, [16, 16, 8]),  # the first is short, the others have at most as many calls as those before
        ([0.0] * 500, [16, 16, 32, 64, 128, 244]),
        ([10.0] * 12, [5, 5, 2]),
    ],
)
def test_pieces(times_ms: list[float], pieces: list[int]) -> None:
    found = divide(times_ms, first_calls=16, most_ms=50.0)
    assert [len(piece) for piece in found] == pieces
    assert [index for piece in found for index in piece] == list(range(len(times_ms)))


def test_a_run_is_submitted_in_pieces(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    g = make_graph(8)
    for _ in range(40):
        g.add(
            add(g.outputs["out"], g.outputs["out"], twice := g.tensor("twice", 8)), add(twice, twice, g.outputs["out"])
        )
    program = Program(device, g, {})
    x = np.ones(8, np.float32)
    expected = formula(x) * 4.0**40
    lengths: dict[int, int] = {}
    submitted: list[int] = []
    encode, submit = Program._encode, Program._submit

    def record(self: Program, passes: Any, timestamps: Any = None) -> Any:
        commands = encode(self, passes, timestamps)
        lengths[id(commands)] = sum(map(len, passes))
        return commands

    def record_submit(self: Program, commands: Any) -> None:
        submitted.append(lengths[id(commands)])
        submit(self, commands)

    monkeypatch.setattr(Program, "_encode", record)
    monkeypatch.setattr(Program, "_submit", record_submit)
    np.testing.assert_array_equal(run(program, x), expected)
    assert submitted[0] == 1  # the first run measures, call by call at first
    assert sum(submitted) == len(g.calls)
    submitted.clear()
    np.testing.assert_array_equal(run(program, x), expected)
    assert submitted[0] <= 64 < len(g.calls) == sum(submitted)


def test_calls_of_once_are_left_out_of_the_next_runs(device: Device) -> None:
    g = Graph("test", Kernels("f32"))
    a, x, out = g.input("a", 8), g.input("x", 8), g.output("out", 8)
    g.add(add(x, x, twice_x := g.tensor("twice_x", 8)))
    with g.once():
        g.add(add(a, a, twice_a := g.tensor("twice_a", 8)))
    g.add(add(twice_x, twice_a, out))
    assert [call.bindings[0].tensor for call in g.calls] == [a, x, twice_x]  # those of once come first
    assert (g.num_once, g.kept) == (1, [twice_a])
    program = Program(device, g, {})

    def run(a: float, x: float, *, again: bool) -> float:
        program.write("a", np.full(8, a))
        program.write("x", np.full(8, x))
        program.run(again=again)
        (found,) = set(program.read("out").tolist())
        return found

    assert run(1, 10, again=False) == 22  # the first one measures
    assert run(1, 20, again=True) == 42
    assert run(5, 20, again=True) == 42
    assert run(5, 20, again=False) == 50
    assert run(5, 30, again=True) == 70
    if device.info.has_timestamps:
        assert len(program.profile_ms()) == 2
