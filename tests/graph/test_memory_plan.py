"""Lifetimes and shared buffers, against brute force over random programs and on the models' own graphs."""

from collections import defaultdict
from itertools import combinations, pairwise

import numpy as np
import pytest

from shaderfusion.bench.subject import SD14_FOLDER
from shaderfusion.errors import ShapeError
from shaderfusion.families import open_model
from shaderfusion.families.stable_diffusion import ModelConfig
from shaderfusion.graph.memory_plan import MemoryPlan, find_lifetimes, plan_memory
from shaderfusion.kernels.call import Binding, KernelCall, read, write
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.unet import unet_graph
from shaderfusion.tensor import TensorSpec
from shaderfusion.weights.model_files import ModelFolder


def make_call(*bindings: Binding, label: str = "call") -> KernelCall:
    """A call with those bindings and nothing else."""
    return KernelCall("none.wgsl", "none", "f32", bindings, (1, 1, 1), label=label)


def tensor(name: str, size: int = 4) -> TensorSpec:
    """An intermediate of `size` values of f32."""
    return TensorSpec(name, (size,), "f32")


def random_program(seed: int) -> list[KernelCall]:
    """Calls that read and overwrite earlier tensors, some through views, and write new ones."""
    rng = np.random.default_rng(seed)
    known = [TensorSpec("input", (8,), "f32", "input")]
    calls: list[KernelCall] = []
    for index in range(int(rng.integers(1, 40))):
        bindings: list[Binding] = []
        for i in rng.choice(len(known), size=min(len(known), int(rng.integers(1, 4))), replace=False):
            view = known[i].reshape(2, known[i].size // 2) if rng.random() < 0.3 else known[i]
            bindings += [Binding(view, "read_write" if rng.random() < 0.1 else "read")]
        new = [tensor(f"t{index}.{i}", 4 * int(rng.integers(1, 50))) for i in range(int(rng.integers(1, 3)))]
        calls.append(make_call(*bindings, *write(*new)))
        known += new
    return calls


def brute_force_spans(calls: list[KernelCall]) -> dict[TensorSpec, tuple[int, int]]:
    """First and last call that names each intermediate tensor or a view of it."""
    uses: dict[TensorSpec, list[int]] = defaultdict(list)
    for index, call in enumerate(calls):
        for binding in call.bindings:
            root = binding.tensor.base or binding.tensor
            if root.role == "intermediate":
                uses[root].append(index)
    return {root: (min(used), max(used)) for root, used in uses.items()}


def check_plan(calls: list[KernelCall], plan: MemoryPlan) -> None:
    """No two tensors alive at one time share a byte, each fits its buffer, and the totals are what they say."""
    spans = brute_force_spans(calls)
    assert plan.place_of.keys() == spans.keys()
    live_bytes = 0
    for index in range(len(calls)):
        alive = [root for root, (first, last) in spans.items() if first <= index <= last]
        ranges = sorted((*plan.place_of[root], root.size_bytes) for root in alive)
        for (buffer, offset, size), (next_buffer, next_offset, _) in pairwise(ranges):
            assert buffer != next_buffer or offset + size <= next_offset
        live_bytes = max(live_bytes, sum(root.size_bytes for root in alive))
    for root, (buffer, offset) in plan.place_of.items():
        assert offset % 256 == 0
        assert offset + root.size_bytes <= plan.buffer_sizes_bytes[buffer]
    assert plan.live_bytes == live_bytes
    assert plan.total_bytes == sum(plan.buffer_sizes_bytes) >= live_bytes
    for call in calls:  # WebGPU refuses one buffer as read and as written in one dispatch
        storages = [b.tensor.storage for b in call.bindings]
        buffers = [plan.place_of[storage].buffer if storage in plan.place_of else None for storage in storages]
        for i, j in combinations(range(len(storages)), 2):
            if storages[i] is not storages[j] and buffers[i] is not None and buffers[i] == buffers[j]:
                assert call.bindings[i].access == call.bindings[j].access == "read"


def test_random_programs() -> None:
    for seed in range(200):
        calls = random_program(seed)
        check_plan(calls, plan_memory(calls))


def test_chain_needs_two_buffers() -> None:
    tensors = [tensor(f"t{i}", 8) for i in range(6)]
    source = TensorSpec("x", (8,), "f32", "input")
    calls = [make_call(*read(source), *write(tensors[0]))]
    calls += [make_call(*read(a), *write(b)) for a, b in pairwise(tensors)]
    plan = plan_memory(calls)
    assert plan.buffer_sizes_bytes == (32, 32)
    assert [plan.place_of[t] for t in tensors[:2]] == [plan.place_of[t] for t in tensors[2:4]]


def test_a_gap_holds_a_tensor_that_waits() -> None:
    # `kept` is alive while `a` and `b` are made, but no call binds it beside them: it fits the first buffer's rest.
    large, kept, a, b = tensor("large", 256), tensor("kept", 64), tensor("a", 64), tensor("b", 64)
    calls = [make_call(*write(large)), make_call(*write(kept)), make_call(*write(a)), make_call(*read(a), *write(b))]
    calls.append(make_call(*read(b, kept)))
    plan = plan_memory(calls)
    check_plan(calls, plan)
    assert plan.buffer_sizes_bytes == (1024, 256)
    assert plan.place_of == {large: (0, 0), kept: (0, 0), a: (0, 256), b: (1, 0)}


def test_what_a_call_writes_is_apart_from_what_it_binds_beside() -> None:
    large, a, b = tensor("large", 256), tensor("a"), tensor("b")
    calls = [make_call(*write(large)), make_call(*write(a, b)), make_call(*read(a, b))]
    assert plan_memory(calls).buffer_sizes_bytes == (1024, 16)
    calls = [make_call(*write(large)), make_call(*write(a)), make_call(*write(b)), make_call(*read(a, b))]
    assert plan_memory(calls).buffer_sizes_bytes == (1024,)


def test_lifetime_runs_from_first_write_to_last_use() -> None:
    a, b = tensor("a"), tensor("b")
    calls = [make_call(*write(a)), make_call(*write(b)), make_call(*read(a)), make_call(*write(b))]
    assert [(life.tensor, life.first, life.last) for life in find_lifetimes(calls)] == [(a, 0, 2), (b, 1, 3)]


def test_views_share_storage() -> None:
    a = tensor("a", 8)
    calls = [make_call(*write(a.reshape(2, 4))), make_call(*read(a.reshape(4, 2).reshape(8, 1)), *write(tensor("b")))]
    assert [(life.tensor is a, life.last) for life in find_lifetimes(calls)] == [(True, 1), (False, 1)]
    assert len(plan_memory(calls).place_of) == 2


def test_external_tensors_are_not_planned() -> None:
    roles = [TensorSpec(role, (4,), "f32", role) for role in ("input", "weight", "output")]
    plan = plan_memory([make_call(*read(*roles[:2]), *write(roles[2]))])
    assert (plan.place_of, plan.total_bytes, plan.live_bytes) == ({}, 0, 0)
    assert plan_memory([]).total_bytes == 0


@pytest.mark.parametrize("access", ["read", "read_write"])
def test_read_before_write(access) -> None:
    a = tensor("unet.a")
    calls = [make_call(Binding(a.reshape(2, 2), access), label="unet/early"), make_call(*write(a))]
    with pytest.raises(ShapeError, match=r"unet/early: unet.a is read before a call has written it"):
        plan_memory(calls)


def test_sd_unet_is_near_its_lower_bound() -> None:
    config = ModelConfig.read(ModelFolder(SD14_FOLDER)).unet
    for names, bound in (("none", 1.05), ("all", 1.15)):  # measured: 1.01 and 1.13
        kernels = Kernels("f16", optimizations=Optimizations.parse(names))
        calls = unet_graph(config, kernels, batch=2, height=64, width=64, num_tokens=77).calls
        plan = plan_memory(calls)
        check_plan(calls, plan)
        assert plan.total_bytes < bound * plan.live_bytes
    assert plan.total_bytes < 120e6  # with all optimizations; 1116 MB with none


def test_embedded_model_is_near_its_lower_bound() -> None:
    model = open_model("emoji")
    graphs = model.record(Kernels("f32"), model.run_size())
    for graph in graphs.values():
        plan = plan_memory(graph.calls)
        check_plan(graph.calls, plan)
        assert plan.total_bytes < 1.4 * plan.live_bytes  # measured: 1.31, 1.16, 1.25, of 0.4, 6 and 19 MB
