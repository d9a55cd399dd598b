"""The autoencoder of a family that has latents of AutoencoderKL: that one, or a small one of the same latents."""

import numpy as np

from shaderfusion.config import TinyVaeConfig, VaeConfig
from shaderfusion.errors import ModelError
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.tiny_autoencoder import tiny_decoder_graph
from shaderfusion.models.vae import decoder_graph
from shaderfusion.models.vae_encoder import encoder_graph
from shaderfusion.weights.model_files import ModelFiles

__all__ = ["AnyVaeConfig", "any_decoder_graph", "any_encoder_graph", "draw_latents", "read_vae_config"]

_LOG_VARIANCE = (-30.0, 20.0)
"""Between them it is clipped, as in diffusers."""

AnyVaeConfig = VaeConfig | TinyVaeConfig


def read_vae_config(files: ModelFiles) -> AnyVaeConfig:
    """Of the class that the model names; ModelError where it is missing or has an option that is not implemented."""
    is_tiny = files.class_name("vae") == "AutoencoderTiny"
    return files.config("vae", TinyVaeConfig) if is_tiny else files.config("vae", VaeConfig)


def any_decoder_graph(config: AnyVaeConfig, kernels: Kernels, *, batch: int, height: int, width: int) -> Graph:
    """From latents (B, H, W, C) to image (B, f H, f W, 3), in -1..1; height and width are in latent cells."""
    size = {"batch": batch, "height": height, "width": width}
    if isinstance(config, TinyVaeConfig):
        return tiny_decoder_graph(config, kernels, **size)
    return decoder_graph(config, kernels, **size)


def any_encoder_graph(config: AnyVaeConfig, kernels: Kernels, *, batch: int, height: int, width: int) -> Graph:
    """From image (B, f H, f W, 3), in -1..1, to moments (B, H, W, 2 C); height and width are in latent cells."""
    if isinstance(config, TinyVaeConfig):
        raise ModelError("vae (=AutoencoderTiny) must be an AutoencoderKL to encode pictures; give another one as vae")
    return encoder_graph(config, kernels, batch=batch, height=height, width=width)


def draw_latents(config: AnyVaeConfig, moments: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Latents (B, H, W, C), scaled, of the distribution that an encoder's moments (B, H, W, 2 C) say; noise as they."""
    mean, log_variance = np.split(moments, 2, axis=3)
    deviation = np.exp(0.5 * np.clip(log_variance, *_LOG_VARIANCE))
    return np.float32(config.scaling_factor) * (mean + deviation * noise)
