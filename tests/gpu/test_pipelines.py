"""One compilation for each distinct pipeline."""

from dataclasses import replace
from typing import Any

import pytest

from shaderfusion.errors import ShaderError
from shaderfusion.gpu import pipelines
from shaderfusion.gpu.device import Device
from shaderfusion.gpu.pipelines import PipelineCache
from shaderfusion.kernels.call import Binding, KernelCall
from shaderfusion.kernels.common.elementwise import activate, add
from shaderfusion.tensor import TensorSpec


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The code of each module that is compiled from here on."""
    compiled: list[str] = []
    create = pipelines.create_module

    def record(device: Any, source: Any, *args: Any, **options: Any) -> Any:
        compiled.append(source.code)
        return create(device, source, *args, **options)

    monkeypatch.setattr(pipelines, "create_module", record)
    return compiled


@pytest.fixture
def cache(device: Device) -> PipelineCache:
    """An empty cache on the device."""
    return PipelineCache(device.handle, trusted=True)


def tensors(*shape: int) -> list[TensorSpec]:
    """Three outputs of one shape."""
    return [TensorSpec(name, shape, "f32", "output") for name in "abc"]


def test_compiles_once(cache: PipelineCache, modules: list[str]) -> None:
    first = cache.get(add(*tensors(8)))
    assert cache.get(add(*tensors(3, 400))) is first  # other tensors, sizes and params
    assert cache.get(replace(add(*tensors(8)), label="another")) is first
    call = add(*tensors(8))
    assert cache.get(replace(call, constants={"UNSET": False, **call.constants})) is first
    assert (len(cache), len(modules)) == (1, 1)


def test_differences_make_pipelines(cache: PipelineCache, modules: list[str]) -> None:
    a, b, c = tensors(8)
    call = add(a, b, c)
    calls = [
        call,
        replace(call, dtype="f16"),
        replace(call, constants={**call.constants, "WORKGROUP_SIZE": 32}),
        activate(a, c, activation="silu"),
        activate(a, c, activation="gelu"),
    ]
    assert len({id(cache.get(each)) for each in calls}) == len(calls)
    assert (len(cache), len(modules)) == (len(calls), len(calls))


def test_modules_are_shared_between_layouts(cache: PipelineCache, modules: list[str]) -> None:
    call = add(*tensors(8))
    loose = replace(call, bindings=(*call.bindings, Binding(tensors(8)[0], "read")))  # one that the shader ignores
    assert cache.get(call) is not cache.get(loose)
    assert (len(cache), len(modules)) == (2, 1)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"constants": {"A": 1}}, {"constants": {"A": True}}),
        ({"constants": {"A": 1}}, {"constants": {"A": 1.0}}),
        ({"params": {"n": 1}}, {"params": {"n": 1.0}}),
    ],
    ids=["flag", "constant", "params"],
)
def test_equal_numbers_of_other_types_are_other_pipelines(
    cache: PipelineCache, modules: list[str], first: dict[str, Any], second: dict[str, Any]
) -> None:
    a, b, c = tensors(8)
    call = add(a, b, c)
    for options in (first, second):
        constants = {**call.constants, **options.get("constants", {})}
        cache.get(replace(call, constants=constants, params={**call.params, **options.get("params", {})}))
    assert len(cache) == 2
    assert modules[0] != modules[1]


def test_too_many_bindings(device: Device) -> None:
    call: KernelCall = add(*tensors(8))
    limit = device.capabilities.max_storage_buffers
    bindings = call.bindings[:1] * (limit + 1)
    with pytest.raises(ShaderError, match=r"^common/elementwise.wgsl \(elementwise\): [\s\S]*Too many bindings"):
        device.pipelines.get(replace(call, bindings=bindings))
