"""make_schedule: which scheduler, and that a schedule is plain data."""

from typing import Any

import pytest

from shaderfusion.config import SchedulerConfig
from shaderfusion.errors import ModelError
from shaderfusion.schedulers import SCHEDULERS, make_schedule


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_model_names_the_scheduler(name: str) -> None:
    options: dict[str, Any] = {"algorithm_type": "sde-dpmsolver++"} if name == "dpmpp_2m_sde" else {}
    config = SchedulerConfig(class_name=SCHEDULERS[name].diffusers_class, skip_prk_steps=True, **options)
    assert make_schedule(config, 4).name == name
    assert make_schedule(config, 4) == make_schedule(config, 4, name)
    assert make_schedule(config, 4, "ddim").name == "ddim"


@pytest.mark.parametrize("class_name", ["DEISMultistepScheduler", None, "two\nlines", "x" * 1000])
def test_the_models_scheduler_is_not_implemented(class_name: str | None) -> None:
    with pytest.raises(ModelError, match=r"^[^\n]{,300}; name one of ddim, ddpm, dpm2, .*, tcd, unipc$"):
        make_schedule(SchedulerConfig(class_name=class_name), 4)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedules_are_pure_data(name: str) -> None:
    config = SchedulerConfig(skip_prk_steps=True)
    schedule = make_schedule(config, 5, name)
    assert schedule == make_schedule(config, 5, name)
    assert hash(schedule) == hash(make_schedule(config, 5, name))
    numbers = [*schedule.timesteps, *schedule.input_scales, schedule.init_noise_sigma, schedule.updates[0].c_m]
    assert all(type(number) is float for number in numbers)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("euler", {"num_train_timesteps": 1_000_000, "beta_schedule": "scaled_linear"}),  # sigma is infinite
        ("euler", {"beta_start": 0.5, "beta_end": 0.99}),
        *((name, {"beta_start": 0.5, "beta_end": 0.99}) for name in ("dpmpp_2m", "euler_a", "lms", "heun", "unipc")),
        ("pndm", {"beta_start": 1e-300, "beta_end": 1e-300}),  # 0 / 0
    ],
)
def test_noise_schedules_beyond_f32(name: str, options: dict[str, Any]) -> None:
    config = SchedulerConfig(skip_prk_steps=True, **options)
    with pytest.raises(ModelError, match=rf"^{name}: the model's noise schedule leads to numbers beyond f32"):
        make_schedule(config, 5, name)


def test_what_is_not_implemented_names_the_other_schedulers() -> None:
    with pytest.raises(ModelError, match=r"^pndm: skip_prk_steps .* scheduler_config.json; or try the scheduler ddim"):
        make_schedule(SchedulerConfig(), 5, "pndm")
