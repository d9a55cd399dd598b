"""Whole networks, static and tuned."""

import pytest
from golden.models import model_folder

from shaderfusion.bench.subject import Subject, open_subject
from shaderfusion.gpu.device import Device
from shaderfusion.kernels.tuning import NO_TUNING, Tuning
from shaderfusion.tune import compare as module
from shaderfusion.tune.compare import Comparison, compare
from shaderfusion.tune.survey import find_cases


@pytest.fixture
def subject(device: Device) -> Subject:
    return open_subject(str(model_folder("sd1")), device=device, width=32, height=32)


def tuning_of(subject: Subject, network: str) -> Tuning:
    """The last way to do each operation that only this network has."""
    cases = find_cases(lambda kernels: subject.model.record(kernels, subject.size), subject.kernels())
    own = [case for case in cases if set(case.layers) == {network}]
    return Tuning({repr(case.operation): repr(list(case.ways)[-1]) for case in own})


def test_only_what_changes_is_compared(subject: Subject) -> None:
    assert list(compare(subject, NO_TUNING)) == []
    (row,) = compare(subject, tuning_of(subject, "vae"))
    assert row.network == "vae"
    assert row.agree
    assert row.static_ms > 0 < row.tuned_ms


def test_results_that_differ_are_seen(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the second program had run wrongly."""
    outputs = module._outputs
    seen = []

    def wrong(program: module.Program) -> list[module.np.ndarray]:
        seen.append(program)
        return [array * (1 + 0.01 * (len(seen) - 1)) for array in outputs(program)]

    monkeypatch.setattr(module, "_outputs", wrong)
    (row,) = compare(subject, tuning_of(subject, "vae"))
    assert not row.agree
    assert not row.is_gain


@pytest.mark.parametrize(
    ("static_ms", "tuned_ms", "agree", "is_gain"),
    [
        (2.0, 1.0, True, True),
        (2.0, 2.0, True, False),
        (2.0, 1.99, True, False),
        (1.0, 2.0, True, False),
        (2.0, 1.0, False, False),
    ],
)
def test_gain(static_ms: float, tuned_ms: float, agree: bool, is_gain: bool) -> None:
    assert Comparison("unet", static_ms, tuned_ms, agree).is_gain is is_gain
