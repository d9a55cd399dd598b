"""What a model says about its noise schedule and scheduler, as `config` has it of its networks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from shaderfusion.config_rules import Config, Count, Fraction, Fractions, Indices, Number, Offset, Positive
from shaderfusion.errors import ModelError

__all__ = ["SchedulerConfig"]


@dataclass(frozen=True)
class SchedulerConfig(Config):
    """The noise schedule and the options of update rules, from scheduler/scheduler_config.json.

    As in diffusers' `from_config`, the rule that the file is used with (not the one named in it) decides which options
    count and what the absent ones mean, so `None` stands for an absent key whose default differs by rule. A rule
    refuses the options below the line that it would read in diffusers and that are not implemented.
    """

    _FILE = "scheduler_config.json"
    _FIELD_OF_KEY: ClassVar[Mapping[str, str]] = {"_class_name": "class_name"}

    class_name: str | None = None  # diffusers' class, which names the rule to use when the caller names none
    num_train_timesteps: Count = 1000
    beta_start: Fraction | None = None
    beta_end: Fraction | None = None
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] | None = None
    trained_betas: Fractions | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    timestep_spacing: Literal["leading", "linspace", "trailing", "ays", "ays_xl"] | None = None  # the last two are ours
    steps_offset: Offset = 0
    set_alpha_to_one: bool | None = None
    clip_sample: bool | None = None
    clip_sample_range: Positive = 1.0
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    use_karras_sigmas: bool | None = None
    use_exponential_sigmas: bool | None = None
    use_beta_sigmas: bool | None = None
    original_inference_steps: Count = 50  # of which LCM takes some
    timestep_scaling: Positive = 10.0  # of LCM's boundary condition
    solver_order: Count = 2  # of DPM-Solver, as the next two
    lower_order_final: bool = True
    euler_at_final: bool = False
    # ---- read only to be refused
    skip_prk_steps: bool = False
    thresholding: bool = False
    predict_x0: bool = True
    disable_corrector: Indices = ()
    solver_p: str | None = None
    use_lu_lambdas: bool | None = None
    use_flow_sigmas: bool | None = None
    use_dynamic_shifting: bool = False
    sigma_min: Number | None = None
    sigma_max: Number | None = None
    lambda_min_clipped: Number = -math.inf
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    variance_type: str | None = None
    interpolation_type: str = "linear"
    timestep_type: str = "discrete"

    def _check_relations(self) -> None:
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise ModelError(
                f"SchedulerConfig: trained_betas has {len(self.trained_betas)} entries, but must have one for each of "
                f"num_train_timesteps (={self.num_train_timesteps})"
            )

    def with_defaults(self, **defaults: Any) -> Self:
        """With these values for the absent keys among them: what a rule has where it differs from others."""
        return replace(self, **{key: value for key, value in defaults.items() if getattr(self, key) is None})
