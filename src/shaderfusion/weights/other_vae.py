"""A model with another VAE than its own: from a file in either layout, or from a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from shaderfusion.config import Config
from shaderfusion.errors import ModelError
from shaderfusion.files import exists, is_folder
from shaderfusion.text.tokenizer import Tokenizer
from shaderfusion.weights.checkpoint import Checkpoint, TensorSource
from shaderfusion.weights.ldm_config import Shapes, read_vae
from shaderfusion.weights.ldm_names import VAE_PREFIX, StoredAs, vae_name
from shaderfusion.weights.model_files import ModelFiles, ModelFolder
from shaderfusion.weights.other_formats import CONVERT_PICKLE, PICKLE_SUFFIXES
from shaderfusion.weights.renamed import RenamedTensors
from shaderfusion.weights.tiny_vae import tiny_vae_options

__all__ = ["WithOtherVae"]

C = TypeVar("C", bound=Config)


class WithOtherVae(ModelFiles):
    """The parts of `model`, but for its VAE.

    A folder, a VAE's own or a model's, says itself how its latents are scaled; of a file that is as in the model's own
    VAE. ModelError where there is none at `vae`; the family checks that its latents fit.
    """

    def __init__(self, model: ModelFiles, vae: Path, *, option: str = "vae") -> None:
        """`option` is what errors call the path."""
        super().__init__(model.path)
        self._model = model
        if is_folder(vae):
            folder = vae / "vae" if is_folder(vae / "vae") else vae
            self._vae: ModelFolder | _VaeFile = ModelFolder(folder.parent)
            self._component = folder.name
        else:
            self._vae = _VaeFile(vae, model, option)
            self._component = "vae"

    @property
    def options(self) -> dict[str, Any]:
        """The model's."""
        return self._model.options

    def config(self, component: str, kind: type[C]) -> C:
        """The model's, or the VAE's."""
        return self._vae.config(self._component, kind) if component == "vae" else self._model.config(component, kind)

    def class_name(self, component: str) -> object:
        """The model's, or the VAE's."""
        return self._vae.class_name(self._component) if component == "vae" else self._model.class_name(component)

    def vae_defaults(self) -> Mapping[str, Any]:
        """The model's."""
        return self._model.vae_defaults()

    def tensors(self, component: str) -> TensorSource:
        """The model's, or the VAE's."""
        return self._vae.tensors(self._component) if component == "vae" else self._model.tensors(component)

    def tokenizer(self, component: str) -> Tokenizer:
        """The model's."""
        return self._model.tokenizer(component)


class _VaeFile:
    """The VAE of a file: in LDM's layout, alone or in a whole model, in diffusers', or a TAESD in either."""

    def __init__(self, path: Path, model: ModelFiles, option: str) -> None:
        if path.suffix.lower() in PICKLE_SUFFIXES and exists(path):
            raise ModelError(f"{path}: {CONVERT_PICKLE}")
        if not exists(path):
            raise ModelError(f"{option} (={str(path)!r}) must be a .safetensors file or a folder in diffusers' format")
        self._path = path
        self._model = model
        checkpoint = Checkpoint(path)
        shapes = checkpoint.shapes
        self._source: TensorSource = checkpoint
        self._is_tiny = False
        if tiny_options := tiny_vae_options(shapes):
            self._options = tiny_options
            self._is_tiny = True
        elif "decoder.mid_block.resnets.0.conv1.weight" in shapes:
            num_blocks = len(Shapes(path, shapes).children("decoder.up_blocks"))
            renamed = {vae_name(name, num_blocks): shape for name, shape in shapes.items()}
            self._options = read_vae(Shapes(path, renamed))
        else:
            prefix = VAE_PREFIX if f"{VAE_PREFIX}decoder.conv_in.weight" in shapes else ""
            if f"{prefix}decoder.mid.block_1.conv1.weight" not in shapes:
                raise ModelError(f"{path}: holds neither an AutoencoderKL nor a TAESD; give another file as {option}")
            self._options = read_vae(Shapes(path, shapes, prefix))
            num_blocks = len(self._options["block_out_channels"])
            self._source = RenamedTensors(checkpoint, lambda name: [StoredAs(prefix + vae_name(name, num_blocks))])

    def config(self, _: str, kind: type[C]) -> C:
        """From names and shapes. TAESD scales no latents."""
        defaults = {} if self._is_tiny else self._model.vae_defaults()
        return kind.from_options({**self._options, **defaults}, str(self._path))

    def class_name(self, _: str) -> str:
        """AutoencoderKL or AutoencoderTiny."""
        return self._options["_class_name"]

    def tensors(self, _: str) -> TensorSource:
        """By diffusers' paths."""
        return self._source
