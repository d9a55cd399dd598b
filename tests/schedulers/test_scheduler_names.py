"""find_scheduler: both worlds' names, spacings in names, and what is unknown."""

from dataclasses import replace
from typing import Any

import pytest

from shaderfusion.errors import InputError, ModelError
from shaderfusion.schedulers import SCHEDULERS, SPACINGS, find_scheduler, make_schedule, require_scheduler
from shaderfusion.schedulers.config import SchedulerConfig

CONFIG = SchedulerConfig(skip_prk_steps=True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dpmpp_2m_karras", "dpmpp_2m_karras"),
        ("DPM++ 2M Karras", "dpmpp_2m_karras"),
        ("dpm++ 2m sde karras", "dpmpp_2m_sde_karras"),
        ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde_exponential"),
        ("DPM++ SDE Karras", "dpmpp_sde_karras"),
        ("DPM++ 2M SGM Uniform", "dpmpp_2m_trailing"),
        ("DPM++ 2M Align Your Steps", "dpmpp_2m_ays"),
        ("DPM2 a Karras", "dpm2_a_karras"),
        ("Euler a", "euler_a"),
        ("EULER A", "euler_a"),
        ("euler-ancestral", "euler_a"),
        ("  Euler ", "euler"),
        ("Euler Simple", "euler_trailing"),
        ("Heun Beta", "heun_beta"),
        ("LMS Karras", "lms_karras"),
        ("LCM", "lcm"),
        ("PLMS", "pndm"),
        ("DDIM", "ddim"),
        ("uni_pc_bh2_normal", "unipc_linspace"),
        ("dpm_2_ancestral", "dpm2_a"),
        ("kdpm_2_a", "dpm2_a"),
        ("dpm++2m karras", "dpmpp_2m_karras"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
        ("EulerDiscreteScheduler", "euler"),
        ("KDPM2AncestralDiscreteScheduler Karras", "dpm2_a_karras"),
    ],
)
def test_names_of_both_worlds(name: str, expected: str) -> None:
    assert str(find_scheduler(name)) == expected
    num_steps = 10  # of Align Your Steps
    assert make_schedule(CONFIG, num_steps, name) == make_schedule(CONFIG, num_steps, expected)
    assert make_schedule(CONFIG, num_steps, name).name == expected


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_name_of_a_rule_is_found(name: str) -> None:
    rule = SCHEDULERS[name]
    assert str(find_scheduler(name)) == str(find_scheduler(rule.web_ui)) == name
    assert SCHEDULERS[find_scheduler(rule.diffusers_class).rule].diffusers_class == rule.diffusers_class
    for spacing in rule.spacings:
        assert str(find_scheduler(f"{name}_{spacing}")) == str(find_scheduler(f"{rule.web_ui} {spacing}"))


@pytest.mark.parametrize(
    ("name", "spacing"), [(name, spacing) for name, rule in SCHEDULERS.items() for spacing in rule.spacings]
)
def test_a_spacing_is_the_option_of_that_name(name: str, spacing: str) -> None:
    """Whatever the model's own options are."""
    own = replace(CONFIG, timestep_spacing="leading", use_beta_sigmas=True)
    options = {"use_beta_sigmas": False, **SPACINGS[spacing]}
    expected = make_schedule(replace(own, **options), 10, name)
    assert make_schedule(own, 10, f"{name}_{spacing}") == replace(expected, name=f"{name}_{spacing}")
    assert len(set(expected.timesteps)) >= 10


@pytest.mark.parametrize("name", ["dpm++", "best", "", "karras", "euler_", "DPM++ 3M SDE", None, 3, "x" * 10_000])
def test_unknown(name: Any) -> None:
    with pytest.raises(InputError, match=r"^.{,200}must be one of ddim, ddpm, .*, unipc, most of which take a spacing"):
        find_scheduler(name)


@pytest.mark.parametrize("name", ["lcm_karras", "ddim_ays", "Euler a Karras", "PLMS exponential", "TCD SGM Uniform"])
def test_spacings_that_a_rule_lacks(name: str) -> None:
    with pytest.raises(InputError, match=r"is not implemented with \w+; it has (none|leading, linspace, trailing)"):
        make_schedule(CONFIG, 10, name)


@pytest.mark.parametrize("name", ["euler_ays", "dpmpp_2m_ays_xl"])
def test_align_your_steps_has_its_number(name: str) -> None:
    assert make_schedule(CONFIG, 10, name).timesteps[-1] == (24 if name == "euler_ays" else 13)
    with pytest.raises(InputError, match=r"num_inference_steps \(=20\) must be 10 with the timesteps ays"):
        make_schedule(CONFIG, 20, name)
    with pytest.raises(ModelError, match=r"num_train_timesteps \(=900\) must be more than 999"):
        make_schedule(replace(CONFIG, num_train_timesteps=900), 10, name)


@pytest.mark.parametrize("name", ["ddim", "pndm"])
def test_align_your_steps_of_a_file_is_not_for_strides(name: str) -> None:
    with pytest.raises(ModelError, match=rf"^{name}: timestep_spacing \(='ays'\) must be None or 'leading'"):
        make_schedule(replace(CONFIG, timestep_spacing="ays"), 10, name)


def test_require_scheduler_needs_no_number_of_steps() -> None:
    for name in (*SCHEDULERS, "euler_ays", "DPM++ 2M Align Your Steps"):
        require_scheduler(CONFIG, name)
    require_scheduler(replace(CONFIG, class_name="UniPCMultistepScheduler"))
    with pytest.raises(InputError, match="must be one of"):
        require_scheduler(CONFIG, "best")
    with pytest.raises(ModelError, match="heun: clip_sample"):
        require_scheduler(replace(CONFIG, clip_sample=True), "heun")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_eta_is_for_those_that_take_it(name: str) -> None:
    if SCHEDULERS[name].takes_eta:
        assert make_schedule(CONFIG, 4, name, eta=0.5).updates[0].c_noise > 0
    else:
        with pytest.raises(InputError, match=rf"eta \(=0.5\) must be 0 with the scheduler {name}; only ddim and tcd"):
            make_schedule(CONFIG, 4, name, eta=0.5)
