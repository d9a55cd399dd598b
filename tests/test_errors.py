"""The exception tree: every public exception is in it, in its place, and is also what Python calls it."""

import pytest

from shaderfusion import errors


def test_all_are_ours() -> None:
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert defined == set(errors.__all__)
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), errors.ShaderfusionError)
        assert name in (errors.__doc__ or "")


@pytest.mark.parametrize(
    ("error", "bases"),
    [
        (errors.InputError, (ValueError,)),
        (errors.ShapeError, (errors.InputError, ValueError)),
        (errors.WeightsError, (errors.ModelError,)),
        (errors.DeviceLostError, (errors.DeviceError,)),
        (errors.GpuMemoryError, (errors.DeviceError, MemoryError)),
        (errors.DeviceLimitError, (errors.DeviceError,)),
    ],
)
def test_places(error: type[Exception], bases: tuple[type[Exception], ...]) -> None:
    assert all(issubclass(error, base) for base in bases)
    with pytest.raises(errors.ShaderfusionError, match="why"):
        raise error("why")


def test_branches_are_apart() -> None:
    branches = [errors.InputError, errors.ModelError, errors.DeviceError, errors.ShaderError]
    for one in branches:
        assert not any(issubclass(one, other) for other in branches if other is not one)
