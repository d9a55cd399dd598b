"""make_schedule: which scheduler, and that a schedule is plain data."""

from typing import Any

import numpy as np
import pytest
from trajectories import golden_cases

from shaderfusion.errors import ModelError
from shaderfusion.schedulers import SCHEDULERS, make_schedule
from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.noise import alphas_cumprod


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_model_names_the_scheduler(name: str) -> None:
    options: dict[str, Any] = {"algorithm_type": "sde-dpmsolver++"} if name == "dpmpp_2m_sde" else {}
    config = SchedulerConfig(class_name=SCHEDULERS[name].diffusers_class, skip_prk_steps=True, **options)
    assert make_schedule(config, 4).name == name
    assert make_schedule(config, 4) == make_schedule(config, 4, name)
    assert make_schedule(config, 4, "ddim").name == "ddim"


def test_few_cases_are_diffusers_in_float64() -> None:
    """Those where float32 costs it more than trajectories may differ by: see make_schedulers.py."""
    cases = [case for name in SCHEDULERS for case in golden_cases(name) if case.float32_error]
    assert [(case.scheduler, case.num_inference_steps) for case in cases] == [
        ("dpm2_a", 2),
        ("dpm2_a", 2),
        ("euler", 5),
        ("euler_a", 5),
    ]
    assert all(1e-5 < case.float32_error < 1.2e-4 for case in cases)


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


@pytest.mark.parametrize("first_step", [0, 1, 2, 5, 6])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_tail_reads_nothing_that_it_has_not_written(name: str, first_step: int) -> None:
    whole = make_schedule(SchedulerConfig(skip_prk_steps=True), 7, name)
    first = first_step * whole.calls_per_step
    tail = whole.tail(first)
    assert tail.timesteps == whole.timesteps[first:]
    assert len(tail.updates) == len(tail.timesteps) == len(tail.alphas) == len(tail.input_scales)
    pushed, is_saved = 0, False
    for update in tail.updates:
        assert not any((update.c_h1, update.c_h2, update.c_h3)[pushed:])
        assert is_saved or not update.c_saved
        pushed += bool(update.h_x or update.h_m)
        is_saved = is_saved or update.save_sample
    assert whole.tail(0) == whole


@pytest.mark.parametrize("name", SCHEDULERS)
def test_noised_latents_are_those_of_the_timestep(name: str) -> None:
    """What the denoiser is given has the share of the picture that its training had, whatever the scheduler's units."""
    config = SchedulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True)
    schedule = make_schedule(config, 7, name)
    trained = alphas_cumprod(config, zero_terminal_snr=False)
    x_0, noise = np.eye(2, dtype=np.float32)
    for call, t in enumerate(schedule.timesteps):
        given = schedule.input_scales[call] * schedule.noised(x_0, noise, call)
        alpha = np.interp(t, np.arange(len(trained)), trained)
        np.testing.assert_allclose(given, np.sqrt([alpha, 1 - alpha]), rtol=2e-3, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_model_that_knows_the_picture_predicts_it(name: str, prediction_type: Any) -> None:
    config = SchedulerConfig(beta_schedule="scaled_linear", prediction_type=prediction_type, skip_prk_steps=True)
    schedule = make_schedule(config, 7, name)
    x_0, noise = np.random.default_rng(0).uniform(-1, 1, (2, 3, 4)).astype(np.float32)  # no scheduler clips it
    for call, alpha in enumerate(schedule.alphas):
        m = noise if prediction_type == "epsilon" else alpha**0.5 * noise - (1 - alpha) ** 0.5 * x_0
        predicted = schedule.predicted(schedule.noised(x_0, noise, call), m, call, prediction_type)
        np.testing.assert_allclose(predicted, x_0, atol=1e-3)
