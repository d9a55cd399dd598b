"""The parts of a model, wherever they are stored: a family asks for them by diffusers' names of components."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from shaderfusion.config import Config, VaeConfig
from shaderfusion.files import load_json
from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.text.tokenizer import Tokenizer
from shaderfusion.weights.checkpoint import Checkpoint, TensorSource

__all__ = ["ModelFiles", "ModelFolder"]

C = TypeVar("C", bound=Config)


class ModelFiles(ABC):
    """A model's configurations, tokenizers and tensors by component: `unet`, `vae`, `text_encoder` and so on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        """What errors name."""

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Of the pipeline as a whole, those of model_index.json: `_class_name` is diffusers' pipeline."""

    @abstractmethod
    def config(self, component: str, kind: type[C]) -> C:
        """A component's configuration; ModelError where there is none, or it has an option that is not implemented."""

    def class_name(self, component: str) -> object:
        """diffusers' class of a component, as the model says it, unchecked; None is the usual one."""
        return None

    @abstractmethod
    def tensors(self, component: str) -> TensorSource:
        """A component's weights. ModelError or WeightsError where there are none."""

    @abstractmethod
    def tokenizer(self, component: str) -> Tokenizer:
        """ModelError where it is missing or damaged."""

    def vae_defaults(self) -> Mapping[str, Any]:
        """What the tensors of a VAE do not say of it, in diffusers' words: those of a VAE for this model."""
        own = self.config("vae", VaeConfig)
        return {"scaling_factor": own.scaling_factor, "force_upcast": own.force_upcast}

    def scheduler_config(self) -> SchedulerConfig:
        """The model's own noise schedule."""
        return self.config("scheduler", SchedulerConfig)


class ModelFolder(ModelFiles):
    """A folder in diffusers' format: a folder for each component."""

    @property
    def options(self) -> dict[str, Any]:
        """From model_index.json."""
        return load_json(self.path / "model_index.json")

    def config(self, component: str, kind: type[C]) -> C:
        """From its JSON."""
        return kind.from_json(self.path / component)

    def class_name(self, component: str) -> object:
        """From its JSON."""
        return load_json(self.path / component / "config.json").get("_class_name")

    def tensors(self, component: str) -> TensorSource:
        """From its safetensors files."""
        return Checkpoint(self.path / component)

    def tokenizer(self, component: str) -> Tokenizer:
        """From its vocabulary."""
        return Tokenizer.from_folder(self.path / component)
