"""What diffusers publishes of real checkpoints: for each a recipe, and nine values of the picture that it makes.

The values and tolerances are those of diffusers' own tests, by file and commit. The nine are of blue, in 0..1, of three
rows and columns: mostly the last ones, `image[0, -3:, -3:, -1]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from shaderfusion.families.family import Family
from shaderfusion.tensor import DType

__all__ = ["PUBLISHED", "Case"]


@dataclass(frozen=True)
class Case:
    """One recipe, and what it made."""

    name: str
    checkpoint: str
    """The one that was run, by its id on the hub."""
    source: str
    """Where the values are from."""

    # ---- what a model must be, as far as its configuration tells
    pipeline: str
    """diffusers' class, as model_index.json names it."""
    context: int
    """Channels of a prompt's embedding."""
    prediction: Literal["epsilon", "v_prediction"]
    size_px: int
    """Width and height that the model was trained on, and of the picture."""

    # ---- the recipe
    prompt: str
    steps: int
    expected: tuple[float, ...]
    """Nine values, row by row."""
    tolerance: float
    """The largest difference of a value that diffusers allows itself."""
    guidance_scale: float = 7.5
    scheduler: str | None = None
    """By our name; the model's own where it is None."""
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)
    """Of scheduler_config.json, where the recipe changes the model's own."""
    noise: Literal["numpy", "torch"] = "numpy"
    """Of the first latents: numpy's RandomState(seed).standard_normal, or torch's generator on the CPU. Noise of later
    steps, where a scheduler needs any, is torch's."""
    seed: int = 0
    corner: tuple[int, int] = (-3, -3)
    """Row and column of the first value; negative ones count from the end."""
    dtype: DType = "f32"
    """Of diffusers' run."""

    def fits(self, model: Family) -> bool:
        """Whether the model's configuration could be the checkpoint's; others may have the same."""
        return (
            model.files.options.get("_class_name") == self.pipeline
            and model.embedding_shape[1] == self.context
            and model.scheduler_config.prediction_type == self.prediction
            and set(model.default_size_px.values()) == {self.size_px}
        )

    def latents(self, channels: int, side: int) -> np.ndarray | None:
        """The first noise (1, channels, side, side), or None for torch's, which the pipeline makes of the seed."""
        if self.noise == "torch":
            return None
        return np.random.RandomState(self.seed).standard_normal((1, channels, side, side))

    def slice_of(self, image: np.ndarray) -> np.ndarray:
        """The nine values of an image (height, width, 3)."""
        height, width, _ = image.shape
        row, column = self.corner[0] % height, self.corner[1] % width
        return image[row : row + 3, column : column + 3, -1].reshape(-1)


_TESTS = "diffusers 58eb52c, tests/pipelines"
_SD1_TESTS = f"{_TESTS}/stable_diffusion/test_stable_diffusion.py: TestStableDiffusionPipelineIntegration"
_SD2_V_TESTS = (
    f"{_TESTS}/stable_diffusion_2/test_stable_diffusion_v_pred.py: StableDiffusion2VPredictionPipelineIntegrationTests"
)
_LCM_TESTS = (
    f"{_TESTS}/latent_consistency_models/test_latent_consistency_models.py: LatentConsistencyModelPipelineSlowTests"
)
_ASTRONAUT = "a photograph of an astronaut riding a horse"
_SQUIRREL = "A painting of a squirrel eating a burger"
_SD1: dict[str, Any] = {
    "pipeline": "StableDiffusionPipeline",
    "context": 768,
    "prediction": "epsilon",
    "size_px": 512,
}
_SD14_ASTRONAUT: dict[str, Any] = {
    **_SD1,
    "checkpoint": "CompVis/stable-diffusion-v1-4",
    "prompt": _ASTRONAUT,
    "steps": 3,
}
_SD2_SQUIRREL: dict[str, Any] = {
    "pipeline": "StableDiffusionPipeline",
    "context": 1024,
    "prediction": "v_prediction",
    "size_px": 768,
    "prompt": _SQUIRREL,
    "noise": "torch",
    "corner": (253, 253),
}
# What these rules take where scheduler_config.json says nothing, as it did; one that was saved again may say more.
_LINSPACE = {"timestep_spacing": "linspace"}
_LCM: dict[str, Any] = {
    **_SD1,
    "pipeline": "LatentConsistencyModelPipeline",
    "checkpoint": "SimianLuo/LCM_Dreamshaper_v7",
    "prompt": _ASTRONAUT,
    "scheduler": "lcm",
    "tolerance": 1e-3,
}

PUBLISHED = (
    Case(
        name="sd14-pndm",
        source=f"{_SD1_TESTS}.test_stable_diffusion_1_4_pndm",
        scheduler="pndm",
        expected=(0.5740, 0.4784, 0.3162, 0.6358, 0.5831, 0.5505, 0.5082, 0.5631, 0.5575),
        tolerance=3e-3,
        **_SD14_ASTRONAUT,
    ),
    Case(
        name="sd14-ddim",
        source=f"{_SD1_TESTS}.test_stable_diffusion_ddim",
        scheduler="ddim",
        expected=(0.38019, 0.28647, 0.27321, 0.40377, 0.38290, 0.35446, 0.39218, 0.38165, 0.42239),
        tolerance=1e-4,
        **_SD14_ASTRONAUT,
    ),
    Case(
        name="sd14-lms",
        source=f"{_SD1_TESTS}.test_stable_diffusion_lms",
        scheduler="lms",
        scheduler_options=_LINSPACE,
        expected=(0.10542, 0.09620, 0.07332, 0.09015, 0.09382, 0.07597, 0.08496, 0.07806, 0.06455),
        tolerance=3e-3,
        **_SD14_ASTRONAUT,
    ),
    Case(
        name="sd14-dpmpp_2m",
        source=f"{_SD1_TESTS}.test_stable_diffusion_dpm",
        scheduler="dpmpp_2m",
        scheduler_options={**_LINSPACE, "final_sigmas_type": "sigma_min"},
        expected=(0.03503, 0.03494, 0.01087, 0.03128, 0.02552, 0.00803, 0.00742, 0.00372, 0.00000),
        tolerance=3e-3,
        **_SD14_ASTRONAUT,
    ),
    Case(  # by k-diffusion's sampler, whose steps are those of diffusers' Euler
        name="sd14-euler",
        source="diffusers be23f7d, tests/pipelines/stable_diffusion_k_diffusion/test_stable_diffusion_k_diffusion.py: "
        "StableDiffusionPipelineIntegrationTests.test_stable_diffusion_1",
        checkpoint="CompVis/stable-diffusion-v1-4",
        prompt=_SQUIRREL,
        scheduler="euler",
        scheduler_options=_LINSPACE,
        steps=20,
        guidance_scale=9.0,
        noise="torch",
        expected=(0.0447, 0.0492, 0.0468, 0.0408, 0.0383, 0.0408, 0.0354, 0.0380, 0.0339),
        tolerance=1e-2,
        **_SD1,
    ),
    Case(
        name="sd11-pndm",
        source=f"{_SD1_TESTS}.test_stable_diffusion_1_1_pndm",
        checkpoint="CompVis/stable-diffusion-v1-1",
        prompt=_ASTRONAUT,
        scheduler="pndm",
        steps=3,
        expected=(0.4363, 0.4355, 0.3667, 0.4066, 0.3970, 0.3866, 0.4394, 0.4356, 0.4059),
        tolerance=3e-3,
        **_SD1,
    ),
    Case(
        name="sd2-base",
        source=f"{_TESTS}/stable_diffusion_2/test_stable_diffusion.py: "
        "StableDiffusion2PipelineSlowTests.test_stable_diffusion_default_ddim",
        checkpoint="stabilityai/stable-diffusion-2-base",
        pipeline="StableDiffusionPipeline",
        context=1024,
        prediction="epsilon",
        size_px=512,
        prompt=_ASTRONAUT,
        steps=3,
        expected=(0.49493, 0.47896, 0.40798, 0.54214, 0.53212, 0.48202, 0.47656, 0.46329, 0.48506),
        tolerance=7e-3,
    ),
    Case(
        name="sd2-v",
        source=f"{_SD2_V_TESTS}.test_stable_diffusion_v_pred_default",
        checkpoint="stabilityai/stable-diffusion-2",
        steps=20,
        expected=(0.1868, 0.1922, 0.1527, 0.1921, 0.1908, 0.1624, 0.1779, 0.1652, 0.1734),
        tolerance=1e-2,
        **_SD2_SQUIRREL,
    ),
    Case(
        name="sd2-v-euler",
        source=f"{_SD2_V_TESTS}.test_stable_diffusion_v_pred_euler",
        checkpoint="stabilityai/stable-diffusion-2",
        scheduler="euler",
        scheduler_options=_LINSPACE,
        steps=5,
        expected=(0.1781, 0.1695, 0.1661, 0.1705, 0.1588, 0.1699, 0.2005, 0.1589, 0.1677),
        tolerance=1e-2,
        **_SD2_SQUIRREL,
    ),
    Case(
        name="sd21-v",
        source=f"{_SD2_V_TESTS}.test_stable_diffusion_v_pred_upcast_attention",
        checkpoint="stabilityai/stable-diffusion-2-1",
        steps=20,
        expected=(0.4209, 0.4087, 0.4097, 0.4209, 0.3860, 0.4329, 0.4280, 0.4324, 0.4187),
        tolerance=5e-2,
        dtype="f16",
        **_SD2_SQUIRREL,
    ),
    Case(
        name="lcm-1",
        source=f"{_LCM_TESTS}.test_lcm_onestep",
        steps=1,
        expected=(0.1025, 0.0911, 0.0984, 0.0981, 0.0901, 0.0918, 0.1055, 0.0940, 0.0730),
        **_LCM,
    ),
    Case(
        name="lcm-3",
        source=f"{_LCM_TESTS}.test_lcm_multistep",
        steps=3,
        expected=(0.01855, 0.01855, 0.01489, 0.01392, 0.01782, 0.01465, 0.01831, 0.02539, 0.0),
        **_LCM,
    ),
    Case(
        name="sdxl-turbo",
        source=f"{_TESTS}/stable_diffusion_xl/test_stable_diffusion_xl.py: "
        "StableDiffusionXLTurboPipelineIntegrationTests.test_sdxl_turbo_512",
        checkpoint="stabilityai/sdxl-turbo",
        pipeline="StableDiffusionXLPipeline",
        context=2048,
        prediction="epsilon",
        size_px=512,
        prompt="A small cactus with a happy face in the Sahara desert.",
        steps=1,
        guidance_scale=0.0,
        noise="torch",
        expected=(0.3524, 0.3160, 0.3652, 0.3316, 0.3376, 0.3315, 0.3042, 0.3102, 0.3449),
        tolerance=5e-2,
        dtype="f16",
    ),
)
