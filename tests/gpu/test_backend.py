"""Two implementations of WebGPU: which one runs, and Dawn's own ways, on its null adapter, which needs no GPU."""

import gc
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from golden.models import model_folder

from shaderfusion.engine import Engine
from shaderfusion.errors import DeviceError, DeviceLostError, GpuMemoryError, InputError, ShaderError
from shaderfusion.families.stable_diffusion import StableDiffusion
from shaderfusion.gpu import backend, shader
from shaderfusion.gpu import device as device_module
from shaderfusion.gpu.backend import RUNTIMES, Feature, runtimes
from shaderfusion.gpu.buffers import allocate, upload
from shaderfusion.gpu.device import Device, DeviceInfo, list_devices, open_device, refusals
from shaderfusion.kernels.call import KernelCall, write
from shaderfusion.kernels.capabilities import MatrixShape
from shaderfusion.kernels.common.elementwise import add
from shaderfusion.kernels.common.matmul import matmul
from shaderfusion.kernels.select import Kernels
from shaderfusion.kernels.tiles import MatrixTile, MatrixUnits
from shaderfusion.tensor import TensorSpec
from shaderfusion.weights import prepare

DAWN = RUNTIMES["dawn"]
X = TensorSpec("x", (8,), "f32", "output")
MATRICES = [
    {"m": 16, "n": 8, "k": 32, "component_type": operand, "result_component_type": result}
    for operand, result in (("f16", "f16"), ("f16", "f32"), ("f16", "f32"), ("i8", "i32"), ("f32", "f32"))
]


@pytest.fixture
def null_device(null_dawn: None) -> Device:
    """Dawn's null adapter, opened."""
    return open_device(runtime="dawn")


# ---- the choice


def test_a_runtime_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^runtime \(='cuda'\) must be auto or one of wgpu, dawn$"):
        open_device(runtime="cuda")
    monkeypatch.setattr(DAWN, "package", "no_such_package")
    assert [runtime.name for runtime in runtimes()] == ["wgpu"]
    with pytest.raises(
        InputError, match=r"""^runtime \(='dawn'\) needs the extra dawn, .*; run `pip install -e "\.\[dawn\]"`"""
    ):
        list_devices("dawn")


def test_a_library_that_does_not_load(null_dawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(DAWN.__dict__, "_api")
    monkeypatch.setitem(sys.modules, "wgpudawn.backends.dawn", None)
    assert list_devices("dawn") == []
    with pytest.raises(DeviceError, match=r"^Dawn finds no GPU adapter .*\(.*wgpudawn.*\); use the runtime wgpu$"):
        open_device(runtime="dawn")
    (refusal,) = refusals()
    assert refusal.startswith("Dawn finds no GPU adapter that it can use (")


@pytest.mark.parametrize(
    ("changed", "taken"),
    [
        ({}, "dawn"),
        ({"shapes": [(16, 16, 16, "f16", "f16")]}, "wgpu"),
        ({"shapes": [(64, 64, 16, "f16", "f32")]}, "wgpu"),
        ({"sizes": (128, 128)}, "wgpu"),
        ({"kind": "CPU"}, "wgpu"),
        ({"workgroup_bytes": 16384}, "wgpu"),
    ],
    ids=["matrix units", "other sums", "other sides", "other subgroups", "a CPU", "too little workgroup memory"],
)
def test_auto_takes_dawn_for_its_matrix_units(
    null_dawn: None, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], taken: str
) -> None:
    if not list_devices("wgpu"):
        pytest.skip("no adapter of wgpu on this machine")
    adapter = adapter_that_reports(monkeypatch, **changed)
    monkeypatch.setattr(DAWN, "_enumerate", lambda: [adapter])
    opened: list[DeviceInfo] = []
    monkeypatch.setattr(device_module, "Device", lambda _, info, **__: opened.append(info))
    for runtime in ("auto", "wgpu", "dawn"):
        open_device(runtime=runtime)
    assert [info.runtime for info in opened] == [taken, "wgpu", "dawn"]
    assert opened[0] == list_devices(taken)[0]
    assert {info.runtime for info in list_devices()} == {"dawn", "wgpu"}


F16 = (16, 16, 16, "f16", "f32")
REPORTS: dict[str, tuple[dict[str, Any], MatrixUnits | None]] = {
    "NVIDIA": ({}, MatrixUnits(16, 16, 16, 32)),
    "Intel": ({"shapes": [(8, 16, 16, "f16", "f32")], "sizes": (8, 32)}, MatrixUnits(8, 16, 16, 32, sized=True)),
    "Intel, new": ({"shapes": [(8, 16, 16, "f16", "f32")], "sizes": (16, 32)}, MatrixUnits(8, 16, 16, 32, sized=True)),
    "Apple": (
        {"shapes": [(8, 8, 8, "f16", "f16"), (8, 8, 8, "f16", "f32"), (8, 8, 8, "f32", "f32")]},
        MatrixUnits(8, 8, 8, 32),
    ),
    "AMD": ({"sizes": (32, 64)}, MatrixUnits(16, 16, 16, 32, sized=True)),
    "AMD, by 64": ({"sizes": (64, 64)}, MatrixUnits(16, 16, 16, 64)),
    "by 8": ({"sizes": (8, 8)}, MatrixUnits(16, 16, 16, 8)),
    "from 8 to 64": ({"sizes": (8, 64)}, MatrixUnits(16, 16, 16, 32, sized=True)),
    "from 64 to 128": ({"sizes": (64, 128)}, MatrixUnits(16, 16, 16, 64, sized=True)),
    "several shapes": (
        {"shapes": [(8, 8, 8, "f16", "f32"), F16, (16, 8, 16, "f16", "f32"), (32, 32, 16, "f16", "f32"), F16]},
        MatrixUnits(16, 16, 16, 32),
    ),
    "f32 and integers alone": ({"shapes": [(8, 8, 8, "f32", "f32"), (16, 16, 32, "i8", "i32")]}, None),
    "sums in f16 alone": ({"shapes": [(16, 16, 16, "f16", "f16")]}, None),
    "sides that no tile has": ({"shapes": [(64, 64, 16, "f16", "f32"), (1, 64, 16, "f16", "f32")]}, None),
    "no f16": ({"lacks": "f16"}, None),
    "no subgroups": ({"lacks": "subgroups"}, None),
    "no matrices": ({"lacks": "matrix_units"}, None),
    "several sizes without a choice": ({"sizes": (8, 32), "lacks": "subgroup_size_control"}, None),
    "sizes not said": ({"sizes": None}, None),
    "subgroups of 4": ({"sizes": (4, 4)}, None),
    "empty": ({"shapes": []}, None),
}


@pytest.mark.parametrize("name", REPORTS)
def test_matrix_units_of_what_adapters_report(null_dawn: None, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    changed, units = REPORTS[name]
    adapter = adapter_that_reports(monkeypatch, **changed)
    assert device_module._capabilities(DAWN, adapter).matrix_units == units
    assert device_module._describe(DAWN, 0, adapter).has_matrix_units is (units is not None)


def adapter_that_reports(
    monkeypatch: pytest.MonkeyPatch,
    *,
    shapes: Sequence[tuple[int, int, int, str, str]] = (F16, (16, 16, 16, "f16", "f16"), (16, 16, 32, "i8", "i32")),
    sizes: tuple[int, int] | None = (32, 32),
    kind: str = "DiscreteGPU",
    workgroup_bytes: int = 32768,
    lacks: Feature | None = None,
) -> Any:
    """An adapter of Dawn that says this of itself; nothing can be opened by it."""
    names = ("m", "n", "k", "component_type", "result_component_type")
    configs = [dict(zip(names, shape, strict=True)) for shape in shapes]
    monkeypatch.setattr(
        "wgpudawn.backends.dawn.extras.get_adapter_properties", lambda _: {"subgroup_matrix_configs": configs}
    )
    monkeypatch.setattr(DAWN, "subgroup_sizes", lambda _: sizes)
    return SimpleNamespace(
        info={"device": "Some GPU", "description": "1.2", "backend_type": "Vulkan", "adapter_type": kind},
        features={name for feature, name in DAWN.features.items() if feature != lacks},
        limits=dict.fromkeys(device_module._LIMITS.values(), 1 << 27)
        | {"max-compute-workgroup-storage-size": workgroup_bytes},
    )


def test_where_only_dawn_has_the_adapter(null_dawn: None) -> None:
    assert open_device("null back").info.runtime == "dawn"


ONE_RUNTIME = """
import sys
from shaderfusion.errors import ShaderfusionError
from shaderfusion.gpu.device import open_device
try:
    open_device(runtime=sys.argv[1])
except ShaderfusionError as error:
    print(error, file=sys.stderr)
print(*sys.modules)
"""


@pytest.mark.parametrize(("taken", "other"), [("wgpu", "wgpudawn"), ("dawn", "wgpu")])
def test_only_the_one_that_runs_is_imported(taken: str, other: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", ONE_RUNTIME, taken]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert other not in result.stdout.split()
    assert result.stderr.count("\n") <= 1  # one sentence, where there is no adapter


def test_warnings_are_taken_out_of_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with backend._caught_from_stderr() as warnings:
        os.write(2, b"one\nWarning: A B required.\n - While C (D)\n    at E (F)\n\ntwo\n")
    assert warnings == ["A B required"]
    assert capfd.readouterr().err == "one\ntwo\n"


def test_where_no_file_can_be_made(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(backend.tempfile, "TemporaryFile", refuse)
    with backend._caught_from_stderr() as warnings:
        os.write(2, b"Warning: A.\n")
    assert warnings == []
    assert capfd.readouterr().err == "Warning: A.\n"


# ---- Dawn


def test_a_device_is_opened_again_and_again(null_dawn: None) -> None:
    devices = [open_device(runtime="dawn", trusted=trusted) for trusted in (True, False, True)]
    for device in devices:
        device.wait()
        assert device.pipelines.get(add(X, X, X))


def test_checks_are_left_out_by_device(null_dawn: None) -> None:
    from wgpudawn.backends.dawn.extras import get_toggles

    trusted, checked = (open_device(runtime="dawn", trusted=trusted) for trusted in (True, False))
    left_out = {"disable_robustness", "disable_workgroup_init"}
    assert left_out <= set(get_toggles(trusted.handle))
    assert not left_out & set(get_toggles(checked.handle))
    for device in (trusted, checked):
        assert "skip_validation" not in get_toggles(device.handle)
        assert "timestamp_quantization" not in get_toggles(device.handle)


def test_capabilities(null_device: Device) -> None:
    capabilities = null_device.capabilities
    assert (capabilities.has_f16, capabilities.has_subgroups, capabilities.has_int64) == (True, True, False)
    assert capabilities.timestamp_period_ns == 1.0
    assert capabilities.subgroup_sizes == (4, 128)
    assert capabilities.matrix_shapes == ()


def test_matrix_shapes_of_an_opened_device(null_dawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "wgpudawn.backends.dawn.extras.get_adapter_properties", lambda _: {"subgroup_matrix_configs": MATRICES}
    )
    assert open_device(runtime="dawn").capabilities.matrix_shapes == (MatrixShape(16, 8, 32, "f16", "f32"),)


@pytest.mark.parametrize("trusted", [True, False], ids=["trusted", "checked"])
def test_errors_name_file_and_line(
    null_dawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    monkeypatch.setattr(shader, "KERNELS_FOLDER", tmp_path)
    monkeypatch.setattr(shader, "_read_lines", shader._read_lines.__wrapped__)
    (tmp_path / "kernel.wgsl").write_text("// one\n\nfn f() -> f32 { return 1u; }\n")
    device = open_device(runtime="dawn", trusted=trusted)
    call = KernelCall("kernel.wgsl", "main", "f16", write(X), (1, 1, 1))
    with pytest.raises(ShaderError, match=r"^kernel.wgsl: [^\n]*kernel.wgsl:3:17 error: return statement type"):
        device.pipelines.get(call)
    (tmp_path / "kernel.wgsl").write_text("@compute @workgroup_size(1) fn main() {}")
    with pytest.raises(ShaderError, match=r"^kernel.wgsl \(other\): [\s\S]*Entry point .*other"):
        device.pipelines.get(replace(call, entry_point="other"))


def test_a_workgroup_need_hold_no_more_than_the_subgroups_that_it_asks_for(null_device: Device) -> None:
    """Without asking, its threads are a multiple of the largest subgroup, or Dawn refuses matrices."""
    x, weight, out = (TensorSpec(name, (32, 32), "f16", "output") for name in "xwo")
    for sized in (True, False):
        tile = MatrixTile(16, 32, 16, 1, 1, MatrixUnits(16, 16, 16, 32, sized=sized))
        (call,) = matmul(x, weight, out, tile=tile, num_splits=1)
        refused = pytest.raises(ShaderError, match=r"must be a multiple of the device maxSubgroupSize \(128\)")
        with nullcontext() if sized else refused:
            null_device.pipelines.get(call)


def test_errors_are_those_of_their_own_shader(null_device: Device) -> None:
    """Whichever thread Dawn tells of it, when many compile at once."""
    call = add(X, X, X)
    bad = replace(call, source="common/concat_channels.wgsl", entry_point="concat_channels")  # lacks its constants
    for first in range(1, 31):
        calls = [
            replace(call, constants={**call.constants, "WORKGROUP_SIZE": size}) for size in range(first, first + 12)
        ]
        with pytest.raises(ShaderError, match=r"^common/concat_channels.wgsl: .* common/concat_channels.wgsl:\d+:\d+ "):
            null_device.pipelines.get_all([*calls[:5], bad, *calls[5:]])
        null_device.pipelines.clear()


def test_a_model_is_loaded_and_submitted(null_device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads beside compilation, bind groups, passes and timestamps are what Dawn allows, though nothing runs."""
    monkeypatch.setattr(prepare, "_require_numbers", lambda *_, **__: None)  # weights are as the memory was
    model = StableDiffusion.from_folder(model_folder("sd1"))
    size = model.run_size()
    with Engine(null_device, model, Kernels("f16", null_device.capabilities)) as engine:
        engine.load(size)
        for name in model.networks:
            program = engine.program(name, size)
            program.run()
            assert len(program.profile_ms()) == len(program.graph.calls) - program.graph.num_once


def test_out_of_memory(null_device: Device) -> None:
    with pytest.raises(GpuMemoryError, match=r"^allocating 251.7 MB for unet.x: the device is out of memory; use a"):
        _ = [allocate(null_device, 240 << 20, "unet.x") for _ in range(3)]  # the null adapter has 512 MB


def test_a_lost_device(null_device: Device) -> None:
    buffer = allocate(null_device, 64, "x")
    null_device.handle.destroy()
    with pytest.raises(DeviceLostError, match=r"^allocating 0.0 MB for unet.x: the driver dropped the device; open it"):
        allocate(null_device, 64, "unet.x")
    with pytest.raises(DeviceLostError, match=r"^common/elementwise.wgsl: the driver dropped the device"):
        null_device.pipelines.get(add(X, X, X))
    with pytest.raises(DeviceLostError, match=r"^writing x: the driver dropped the device"):
        upload(null_device, buffer, X, np.zeros(8))
    gc.collect()  # what the package kept of a failed call is not left to this, which would end the process
    with pytest.raises(DeviceLostError, match=r"^waiting for Null backend: the driver dropped the device"):
        null_device.wait()
