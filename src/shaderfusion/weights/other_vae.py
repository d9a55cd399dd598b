"""A model with another VAE than its own: from a file in either layout, or from a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from shaderfusion.config import CONVERT_PICKLE, PICKLE_SUFFIXES, Config
from shaderfusion.errors import ModelError
from shaderfusion.files import exists, is_folder
from shaderfusion.text.tokenizer import Tokenizer
from shaderfusion.weights.checkpoint import Checkpoint, TensorSource
from shaderfusion.weights.ldm_config import Shapes, read_vae
from shaderfusion.weights.ldm_names import VAE_PREFIX, StoredAs, vae_name
from shaderfusion.weights.model_files import ModelFiles
from shaderfusion.weights.renamed import RenamedTensors

__all__ = ["WithOtherVae"]

C = TypeVar("C", bound=Config)


class WithOtherVae(ModelFiles):
    """The parts of `model`, but for its VAE.

    A folder, a VAE's own or a model's, says itself how its latents are scaled; of a file that is as in the model's own
    VAE. ModelError where there is none at `vae`; the family checks that its latents fit.
    """

    def __init__(self, model: ModelFiles, vae: Path) -> None:
        super().__init__(model.path)
        self._model = model
        if is_folder(vae):
            self._folder = vae / "vae" if is_folder(vae / "vae") else vae
            self._options: Mapping[str, Any] | None = None
        else:
            self._folder = vae
            self._options, self._source = _open_file(vae)

    @property
    def options(self) -> dict[str, Any]:
        """The model's."""
        return self._model.options

    def config(self, component: str, kind: type[C]) -> C:
        """The model's, or the VAE's."""
        if component != "vae":
            return self._model.config(component, kind)
        if self._options is None:
            return kind.from_json(self._folder)
        return kind.from_options({**self._options, **self._model.vae_defaults()}, str(self._folder))

    def vae_defaults(self) -> Mapping[str, Any]:
        """The model's."""
        return self._model.vae_defaults()

    def tensors(self, component: str) -> TensorSource:
        """The model's, or the VAE's."""
        if component != "vae":
            return self._model.tensors(component)
        return Checkpoint(self._folder) if self._options is None else self._source

    def tokenizer(self, component: str) -> Tokenizer:
        """The model's."""
        return self._model.tokenizer(component)


def _open_file(path: Path) -> tuple[dict[str, Any], TensorSource]:
    """A VAE's options, and its tensors: in LDM's layout, alone or in a whole model, or in diffusers'."""
    if path.suffix in PICKLE_SUFFIXES and exists(path):
        raise ModelError(f"{path}: {CONVERT_PICKLE}")
    if not exists(path):
        raise ModelError(f"vae (={str(path)!r}) must be a .safetensors file or a folder in diffusers' format")
    checkpoint = Checkpoint(path)
    shapes = checkpoint.shapes
    if "decoder.mid_block.resnets.0.conv1.weight" in shapes:
        num_blocks = len(Shapes(path, shapes).children("decoder.up_blocks"))
        return read_vae(Shapes(path, {vae_name(name, num_blocks): shape for name, shape in shapes.items()})), checkpoint
    prefix = VAE_PREFIX if f"{VAE_PREFIX}decoder.conv_in.weight" in shapes else ""
    if f"{prefix}decoder.mid.block_1.conv1.weight" not in shapes:
        raise ModelError(f"{path}: holds no AutoencoderKL, the VAE of Stable Diffusion; give another file as vae")
    options = read_vae(Shapes(path, shapes, prefix))
    num_blocks = len(options["block_out_channels"])
    return options, RenamedTensors(checkpoint, lambda name: [StoredAs(prefix + vae_name(name, num_blocks))])
