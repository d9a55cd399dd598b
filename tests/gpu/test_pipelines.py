"""One compilation for each distinct pipeline."""

import gc
from dataclasses import replace
from typing import Any

import pytest

from shaderfusion.errors import ShaderError
from shaderfusion.gpu.backend import RUNTIMES
from shaderfusion.gpu.device import Device
from shaderfusion.gpu.pipelines import PipelineCache
from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.common.elementwise import activate, add
from shaderfusion.tensor import TensorSpec


@pytest.fixture
def modules(device: Device, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The code of each module that is compiled from here on."""
    compiled: list[str] = []
    own = RUNTIMES[device.info.runtime]
    create = own.create_module

    def record(device: Any, code: str, *args: Any, **options: Any) -> Any:
        compiled.append(code)
        return create(device, code, *args, **options)

    monkeypatch.setattr(own, "create_module", record)
    return compiled


@pytest.fixture
def cache(device: Device) -> PipelineCache:
    """An empty cache on the device."""
    return PipelineCache(RUNTIMES[device.info.runtime], device.handle, trusted=True)


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
    found = [cache.get(each) for each in calls]
    assert len(set(found)) == len(calls)
    assert (len(cache), len(modules)) == (len(calls), len(calls))


def test_pipelines_that_nothing_uses_are_forgotten(cache: PipelineCache, modules: list[str]) -> None:
    kept = cache.get(add(*tensors(8)))
    a, _, c = tensors(8)
    cache.get(activate(a, c, activation="silu"))
    gc.collect()
    assert len(cache) == 1
    assert cache.get(add(*tensors(8))) is kept
    assert len(modules) == 2


def test_many_at_once(cache: PipelineCache, modules: list[str]) -> None:
    a, b, c = tensors(8)
    calls = [
        replace(add(a, b, c), constants={**add(a, b, c).constants, "WORKGROUP_SIZE": size}) for size in (8, 16, 32)
    ]
    found = cache.get_all(calls * 2)
    assert found[:3] == found[3:]
    assert (len(cache), len(modules)) == (3, 3)
    with pytest.raises(ShaderError, match="no such WGSL file"):
        cache.get_all([replace(calls[0], source="common/nothing.wgsl"), calls[1], replace(calls[2], dtype="f16")])


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
    kept = []
    for options in (first, second):
        constants = {**call.constants, **options.get("constants", {})}
        kept.append(cache.get(replace(call, constants=constants, params={**call.params, **options.get("params", {})})))
    assert len(cache) == 2
    assert modules[0] != modules[1]


def test_too_many_bindings(device: Device) -> None:
    call: KernelCall = add(*tensors(8))
    limit = device.capabilities.max_storage_buffers
    bindings = call.bindings[:1] * (limit + 1)
    with pytest.raises(ShaderError, match=r"^common/elementwise.wgsl \(elementwise\): [\s\S]*(Too many|the maximum)"):
        device.pipelines.get(replace(call, bindings=bindings))
