"""WebGPU's default limits are enough: tiny models run within them, and within far smaller bindings; SD 1.4 fits."""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from golden.models import golden, load, model_folder
from kernel_runner import relative_error, skip_without

from shaderfusion.bench.subject import SD14_FOLDER
from shaderfusion.errors import ShaderError
from shaderfusion.families.stable_diffusion import StableDiffusion
from shaderfusion.gpu.device import Device, open_device
from shaderfusion.gpu.shader import compose
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.memory_plan import plan_memory
from shaderfusion.graph.program import Program
from shaderfusion.kernels import select, tiles
from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.capabilities import DESKTOP_GPU, WEBGPU_DEFAULTS, Capabilities
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import DType, TensorSpec
from shaderfusion.weights.store import WeightStore

BOUND = 1e-4  # relative error in f32

GPU = WEBGPU_DEFAULTS
CPU = replace(WEBGPU_DEFAULTS, is_cpu=True, has_subgroups=True)
KINDS = pytest.mark.parametrize("kind", [GPU, CPU], ids=["gpu", "cpu"])


@pytest.fixture(scope="module")
def small_device(runtime: str) -> Device:
    """The first adapter, opened with the limits of every WebGPU device."""
    return open_device(runtime=runtime, default_limits=True)


def bindings_of(calls: Iterable[KernelCall]) -> list[TensorSpec]:
    """Every tensor or view that a call binds."""
    return [binding.tensor for call in calls for binding in call.bindings]


def is_cut(graph: Graph) -> bool:
    """Whether some call binds a part of a tensor."""
    return any(tensor.offset_bytes for tensor in bindings_of(graph.calls))


@pytest.mark.parametrize("optimizations", ["all", "none"])
@pytest.mark.parametrize("name", ["sd1", "odd"])
@KINDS
def test_whole_run(small_device: Device, kind: Capabilities, name: str, optimizations: str) -> None:
    if kind is CPU and not small_device.capabilities.has_subgroups:
        pytest.skip("this device has no subgroups")
    run = golden(name).runs[0]
    pipe = load.__wrapped__(small_device, name, "f32", Kernels("f32", kind, Optimizations.parse(optimizations)))
    images = pipe(**run.call).images
    assert np.abs(np.stack([np.asarray(image) for image in images]).astype(int) - run.images).max() <= 2


DECODERS = [  # model, largest binding, its largest weight is a little smaller
    ("sd1", 8 << 10),
    ("sd2", 10 << 10),
    ("odd", 20 << 10),
    ("emoji", 640 << 10),
]


@pytest.mark.parametrize("optimizations", ["all", "none"])
@pytest.mark.parametrize(("name", "max_binding_bytes"), DECODERS)
def test_decoder_in_strips(device: Device, name: str, max_binding_bytes: int, optimizations: str) -> None:
    # Convolutions, upsampling ones too, linear layers, group norms and activations; with lanes, whose products of
    # tiny tensors need no partial sums that would be larger than the tensors.
    if not device.capabilities.has_subgroups:
        pytest.skip("this device has no subgroups")
    run = next(run for run in golden(name).runs if run.pixels is not None)
    assert run.pixels is not None
    capabilities = replace(CPU, max_binding_bytes=max_binding_bytes)
    kernels = Kernels("f32", capabilities, Optimizations.parse(optimizations))
    model = StableDiffusion.from_folder(model_folder(name))
    height, width = (side * model.scale_factor for side in run.latents.shape[2:4])
    network = model.networks["vae"]
    graph = network.record(kernels, model.run_size(width=width, height=height))
    assert is_cut(graph)
    assert max(tensor.size_bytes for tensor in bindings_of(graph.calls)) <= max_binding_bytes
    (weights,) = WeightStore(device).load({graph: model.sources[network.source]})
    program = Program(device, graph, weights)
    program.write("latents", run.latents[-1][:1])
    program.run()
    assert relative_error(program.read("image")[..., :3], run.pixels[:1]) < BOUND


@pytest.mark.parametrize("optimizations", ["all", "none", "winograd,gn", "pfs"])
@pytest.mark.parametrize("name", ["sd1", "sd2"])
@KINDS
def test_denoiser_in_strips(
    device: Device, kind: Capabilities, name: str, optimizations: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an image so large that weights are the smaller tensors, against the same network without strips."""
    if kind is CPU and not device.capabilities.has_subgroups:
        pytest.skip("this device has no subgroups")
    monkeypatch.setattr(select, "_FOLDED_GROUP_SIZE", 1 << 10)
    monkeypatch.setattr(tiles, "_ENOUGH_WORKGROUPS", 1)  # no parts of split sums, which take up to 21 MB
    model = StableDiffusion.from_folder(model_folder(name))
    network = model.networks["unet"]
    size = model.run_size(width=24 * model.scale_factor, height=20 * model.scale_factor)
    outputs = []
    for max_binding_bytes in (80 << 10, 1 << 27):
        capabilities = replace(kind, max_binding_bytes=max_binding_bytes)
        graph = network.record(Kernels("f32", capabilities, Optimizations.parse(optimizations)), size)
        assert is_cut(graph) is (max_binding_bytes < 1 << 27)
        assert max(tensor.size_bytes for tensor in bindings_of(graph.calls)) <= max_binding_bytes
        (weights,) = WeightStore(device).load({graph: model.sources[network.source]})
        program = Program(device, graph, weights)
        rng = np.random.default_rng(0)
        for key in ("latents", "embedding"):
            program.write(key, rng.standard_normal(graph.inputs[key].shape))
        program.write("timestep", np.array([500.0]))
        program.run()
        outputs.append(program.read("model_output"))
    assert relative_error(*outputs) < BOUND


_SIZES = {"f32": 4, "f16": 2, "vec2": 2, "vec4": 4}
_workgroup_bytes: dict[str, int] = {}


def workgroup_bytes(call: KernelCall) -> int:
    """Workgroup memory that a call's shader declares, which wgpu does not check: the arrays' types times lengths."""
    code = compose(call).code
    if code not in _workgroup_bytes:
        aliases = dict(re.findall(r"^alias (\w+) = (.+);", code, re.MULTILINE))
        names: dict[str, Any] = {"min": min}
        for name, value in re.findall(r"^const (\w+)(?:: u32)? = ([^;]+);", code, re.MULTILINE):
            with suppress(NameError):  # built from other types
                names[name] = eval(_python(value), names)

        def size_of(kind: str) -> int:
            if kind in aliases:
                return size_of(aliases[kind])
            vector, _, element = kind.rstrip(">").partition("<")
            return _SIZES[vector] * size_of(element) if element else _SIZES[kind]

        arrays = re.findall(r"^var<workgroup> \w+: array<(.+), ([^,;]+|min\(.+)>;", code, re.MULTILINE)
        assert len(arrays) == code.count("var<workgroup>")
        _workgroup_bytes[code] = sum(size_of(kind) * eval(_python(length), names) for kind, length in arrays)
    return _workgroup_bytes[code]


def _python(expression: str) -> str:
    """A WGSL expression of whole numbers."""
    return re.sub(r"\b(\d+)u\b", r"\1", expression).replace("/", "//")


@pytest.mark.parametrize("optimizations", ["all", "none"])
@pytest.mark.parametrize("dtype", ["f16", "f32"])
@KINDS
def test_sd_14_fits(small_device: Device, kind: Capabilities, dtype: DType, optimizations: str) -> None:
    """At 512x512 with guidance: what is bound, what is allocated, and each pipeline, on a device that refuses more."""
    skip_without(small_device, replace(kind, has_f16=dtype == "f16"))
    model = StableDiffusion.from_folder(SD14_FOLDER)
    kernels = Kernels(dtype, kind, Optimizations.parse(optimizations))
    graphs = model.record(kernels, model.run_size(width=512, height=512))
    for graph in graphs.values():
        assert max(tensor.size_bytes for tensor in bindings_of(graph.calls)) <= 128 << 20
        assert max(tensor.storage.size_bytes for tensor in bindings_of(graph.calls)) <= 256 << 20
        assert max(plan_memory(graph.calls).buffer_sizes_bytes) <= 256 << 20
        assert all(len(call.bindings) <= 8 and max(call.workgroups) <= 65535 for call in graph.calls)
        assert max(map(workgroup_bytes, graph.calls)) <= 16384
        assert small_device.pipelines.get_all(graph.calls)
    largest = max(tensor.storage.size_bytes for tensor in bindings_of(graphs["vae"].calls))
    assert (largest > 128 << 20) is (dtype == "f32")  # which is bound in parts then


def test_what_takes_more_is_found(small_device: Device) -> None:
    """The proof above is worth what it checks."""
    kernels = Kernels("f32", DESKTOP_GPU)
    x, channels = TensorSpec("x", (1, 4096, 320), "f32"), TensorSpec("w", (320,), "f32")
    (attention,) = kernels.attention(x, x, x, x, num_heads=8)
    assert workgroup_bytes(attention) == 31168
    (norm,) = kernels.group_norm(x, channels, channels, x, num_groups=32, eps=1e-5)
    with pytest.raises(ShaderError, match=r"exceeds|invocations|workgroup"):
        small_device.pipelines.get(norm)
