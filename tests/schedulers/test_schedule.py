"""make_schedule: which scheduler, and that a schedule is plain data."""

from typing import Any

import pytest

from shaderfusion.config import SchedulerConfig
from shaderfusion.errors import InputError, ModelError
from shaderfusion.schedulers import SCHEDULERS, make_schedule


@pytest.mark.parametrize(
    ("class_name", "name"),
    [("DDIMScheduler", "ddim"), ("EulerDiscreteScheduler", "euler"), ("PNDMScheduler", "pndm")],
)
def test_the_model_names_the_scheduler(class_name: str, name: str) -> None:
    config = SchedulerConfig(class_name=class_name, skip_prk_steps=True)
    assert make_schedule(config, 4).name == name
    assert make_schedule(config, 4, "ddim").name == "ddim"


@pytest.mark.parametrize("class_name", ["LCMScheduler", None])
def test_the_models_scheduler_is_not_implemented(class_name: str | None) -> None:
    with pytest.raises(ModelError, match="name one of ddim, euler, pndm"):
        make_schedule(SchedulerConfig(class_name=class_name), 4)


@pytest.mark.parametrize("name", ["dpm++", "", "DDIM", "DDIMScheduler"])
def test_unknown_name(name: Any) -> None:
    with pytest.raises(InputError, match="must be one of ddim, euler, pndm"):
        make_schedule(SchedulerConfig(), 4, name)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedules_are_pure_data(name: str) -> None:
    config = SchedulerConfig(skip_prk_steps=True)
    schedule = make_schedule(config, 5, name)
    assert schedule == make_schedule(config, 5, name)
    assert hash(schedule) == hash(make_schedule(config, 5, name))
    numbers = [*schedule.timesteps, *schedule.input_scales, schedule.init_noise_sigma, schedule.updates[0].c_m]
    assert all(type(number) is float for number in numbers)
