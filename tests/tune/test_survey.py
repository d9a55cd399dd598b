"""Which operations a model has, and the ways to do each."""

from collections import Counter

from golden.models import model_folder

from shaderfusion.bench.subject import Subject, open_subject
from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.select import Kernels
from shaderfusion.kernels.tuning import Attention, Convolution, Linear, Scores, Tuning
from shaderfusion.tune.survey import Case, find_cases, same_calls


def cases_of(subject: Subject, kernels: Kernels) -> dict[object, Case]:
    return {case.operation: case for case in find_cases(lambda k: subject.model.record(k, subject.size), kernels)}


def test_cases(device: Device) -> None:
    subject = open_subject(str(model_folder("sd1")), device=device, width=32, height=32)
    kernels = Kernels("f32")
    cases = cases_of(subject, kernels)
    assert {Linear, Convolution, Attention} <= {type(operation) for operation in cases}
    graphs = subject.graphs(kernels)
    for operation, case in cases.items():
        paths = {
            (name, call.label.rpartition("/")[0]) for name, call in calls_of(graphs) if call.operation == operation
        }
        assert case.layers == Counter(name for name, _ in paths)
        assert len(case.ways) > 1
        for choice, calls in case.ways.items():
            tensors = [(binding.tensor, binding.access) for call in calls for binding in call.bindings]
            assert {tensor.storage.role for tensor, _ in tensors} <= {"weight", "intermediate"}
            assert all(tensor.storage.role == "intermediate" for tensor, access in tensors if access == "write")
            # What a tuning with that choice really makes of the layer.
            tuned = Kernels("f32", tuning=Tuning({repr(operation): repr(choice)}))
            network, path = min(paths)
            graph = subject.model.networks[network].record(tuned, subject.size)
            made = [
                call for call in graph.calls if call.label.rpartition("/")[0] == path and call.operation == operation
            ]
            assert made
            if path == first_path(graphs, operation):
                assert same_calls(made, calls)


def calls_of(graphs: dict[str, Graph]):
    return [(name, call) for name, graph in graphs.items() for call in graph.calls]


def first_path(graphs: dict[str, Graph], operation: object) -> str:
    return next(call.label.rpartition("/")[0] for _, call in calls_of(graphs) if call.operation == operation)


def test_no_way_is_there_twice(device: Device) -> None:
    subject = open_subject(str(model_folder("sd1")), device=device, width=32, height=32)
    for case in cases_of(subject, Kernels("f32")).values():
        ways = list(case.ways.values())
        assert not any(same_calls(a, b) for index, a in enumerate(ways) for b in ways[:index])


def test_the_static_choice_is_first(device: Device) -> None:
    subject = open_subject(str(model_folder("sd1")), device=device, width=32, height=32)
    kernels = Kernels("f32")
    static = subject.graphs(kernels)
    for case in cases_of(subject, kernels).values():
        path = first_path(static, case.operation)
        calls = [call for _, call in calls_of(static) if call.label.rpartition("/")[0] == path]
        assert same_calls(next(iter(case.ways.values())), calls)
    lanes = Kernels("f32", device.capabilities)
    if device.capabilities.exchanges_lanes:
        firsts = [next(iter(case.ways)) for case in cases_of(subject, lanes).values()]
        assert Scores() in firsts
