"""Text to image: text -> tokens -> embeddings -> latents -> image."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from shaderfusion.callbacks import TENSOR_INPUTS, StepCallback, make_change
from shaderfusion.engine import Engine
from shaderfusion.errors import InputError
from shaderfusion.families import open_model
from shaderfusion.families.family import Family
from shaderfusion.families.run_size import MEMORIES, Memory, RunSize
from shaderfusion.files import shown
from shaderfusion.gpu.backend import runtimes
from shaderfusion.gpu.device import Device, open_device
from shaderfusion.images import AnyPicture
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.select import Kernels
from shaderfusion.request import Request, make_request
from shaderfusion.run import Change, Progress, Run
from shaderfusion.schedulers import require_scheduler
from shaderfusion.seeds import Rng, Seeds
from shaderfusion.tensor import DType
from shaderfusion.tuning_file import find_tuning
from shaderfusion.weights.lora.adapters import Adapters, Strength, name_files
from shaderfusion.weights.lora.file import find_file, read_adapter

__all__ = ["PipelineOutput", "Progress", "StableDiffusionPipeline", "choose_dtype"]


@dataclass(frozen=True)
class PipelineOutput:
    """The images of one call, and the seed that makes them again."""

    images: list[Image.Image]
    seed: int


class StableDiffusionPipeline:
    """A model on a device. `from_pretrained` makes one; calling it makes images.

    As a context manager it closes itself. It may be called from several threads: runs are served a step at a time, in
    the order in which they ask.
    """

    def __init__(
        self,
        device: Device,
        model: Family,
        kernels: Kernels,
        scheduler: str | None = None,
        memory: Memory | None = None,
    ) -> None:
        self.device = device
        self.model = model
        self.scheduler = scheduler
        self.dtype: DType = kernels.dtype
        self.tuning = kernels.tuning.source
        self._engine = Engine(device, model, kernels, memory)
        self.memory: Memory = self._engine.memory
        self._adapters = self._used = Adapters({}, {})
        """The adapters, with those active that the user set, and as the weights have them now."""
        self._interrupt = False
        """As in diffusers: a callback sets it, for its own call."""

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | Family,
        *,
        vae: str | Path | None = None,
        preview_vae: str | Path | None = None,
        prediction_type: str | None = None,
        revision: str | None = None,
        device: Device | int | str | None = None,
        runtime: str = "auto",
        dtype: DType | None = None,
        scheduler: str | None = None,
        optimizations: Optimizations | None = None,
        size: RunSize | None = None,
        tuning: str | Path = "auto",
        embeddings: Sequence[str | Path] = (),
        loras: Sequence[tuple[str | Path, Strength]] = (),
        memory: Memory | None = None,
    ) -> Self:
        """Opens the embedded model "emoji", a folder in diffusers' format, a .safetensors file or a model of the hub.

        vae, preview_vae, prediction_type and revision are those of `families.open_model`; devices those of
        `shaderfusion devices`. runtime is the WebGPU implementation, as of `gpu.device.open_device`, where the device
        is not an opened one.
        dtype is f16 where the GPU has it and f32 else; scheduler, a name of schedulers.find_scheduler, is the model's
        own by default; optimizations are all by default. What a run of `size` needs is made ready, by default one
        picture of the model's own size with guidance. tuning is a file of `shaderfusion tune`, "auto", which takes the
        device's own file if there is one, or "off". embeddings are files for `load_textual_inversion`. loras are paths
        as of `load_lora_weights`, each with its strength: they are merged as the weights load, and all active, by the
        names of their files or folders without the suffix. Raises ModelError, DeviceError or InputError.

        memory="low" is for devices that cannot hold all networks: each is loaded when it is its turn, and those before
        it are freed; pictures of several prompts and both halves of guidance go through the denoiser one by one. The
        pictures are the same but for rounding. Weights are then read from their files for every call, and again for a
        preview in the middle of it; what the text encoders made of the last prompts is kept, on the host. memory="high"
        keeps the transformed filters of the denoiser's Winograd convolutions on the device, which is faster. It is the
        default where the driver says that the device has 20 GiB of its own or more, which Dawn passes on; else normal.
        """
        if memory not in (None, *MEMORIES):
            raise InputError(f"memory (={shown(memory)}) must be {', '.join(MEMORIES[:-1])} or {MEMORIES[-1]}")
        if preview_vae is not None and memory == "low":
            raise InputError(
                "preview_vae must be left out with memory='low': each preview would load it, and the denoiser again"
            )
        if dtype not in (None, "f16", "f32"):
            raise InputError(f"dtype (={dtype!r}) must be f16 or f32")
        adapters = name_files(loras)
        if not isinstance(device, Device):
            runtimes(runtime)[0].load()  # alone: beside other work of Python's the driver would begin later
        with ThreadPoolExecutor(1) as beside:  # opening a device takes a while, most of it in the driver
            opening = beside.submit(
                lambda: device if isinstance(device, Device) else open_device(device, runtime=runtime)
            )
            found = _open(model, vae=vae, preview_vae=preview_vae, prediction_type=prediction_type, revision=revision)
            require_scheduler(found.scheduler_config, scheduler)  # before weights load
            found.tokenize([""])
            for path in embeddings:
                found.added_tokens.load(path, None, found.tokenizers)
            opened = opening.result()
        chosen = choose_dtype(opened, dtype)
        choices = find_tuning(tuning, opened.info, chosen)
        kernels = Kernels(chosen, opened.capabilities, optimizations or Optimizations(), choices)
        pipeline = cls(opened, found, kernels, scheduler, memory)
        for name, (path, strength) in adapters.items():
            pipeline._add_adapter(path, None, name, strength, keeps=True)
        pipeline.load(found.run_size() if size is None else size)
        return pipeline

    @classmethod
    def from_single_file(cls, path: str | Path, **options: Any) -> Self:
        """`from_pretrained` of a .safetensors file with a whole model, by diffusers' name for it."""
        return cls.from_pretrained(path, **options)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = TENSOR_INPUTS,
        **options: Any,
    ) -> PipelineOutput:
        """Images of a prompt, by all steps of `generate`, which has the other options.

        callback_on_step_end(pipe, step, timestep, tensors) is called after each call of the denoiser, as by diffusers:
        tensors has the latents, (B, C, height / 8, width / 8) f32 on the host, and so may the dict that it returns,
        which are then those of the next step. What it raises ends the call; where it sets the pipeline's _interrupt,
        the latents are decoded as they are. No other run goes on before it returns.
        """
        run = self.generate(prompt, **options)
        if callback_on_step_end is not None:
            change = make_change(self, callback_on_step_end, callback_on_step_end_tensor_inputs, run.request)
            run.change = self._interruptible(run, change)
        *_, last = run
        return PipelineOutput(last.images or [], last.seed)

    def _interruptible(self, run: Run, change: Change) -> Change:
        """`change`, after which the run may be at its end."""
        self._interrupt = False

        def change_or_end(step: int, latents: np.ndarray) -> np.ndarray | None:
            changed = change(step, latents)
            if self._interrupt:
                run.finish()
            return changed

        return change_or_end

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        width: int | None = None,
        height: int | None = None,
        num_images_per_prompt: int = 1,
        seed: int | None = None,
        latents: Any = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        pooled_prompt_embeds: Any = None,
        negative_pooled_prompt_embeds: Any = None,
        image: AnyPicture | Sequence[AnyPicture] | None = None,
        mask_image: AnyPicture | None = None,
        strength: float | None = None,
        eta: float = 0.0,
        rng: Rng = "cpu",
        seeds: Seeds = "joint",
        prompt_syntax: str = "plain",
        clip_skip: int | None = None,
        emphasis: str | None = None,
    ) -> Run:
        """A run, which yields after each denoising step; stop iterating, or close it, to cancel.

        The options are diffusers', and so are num_inference_steps and guidance_scale by default: 50 and 7.5 for SD 1.x
        and 2.x, 50 and 5 for SDXL, 4 and 8.5 for latent consistency models (`Family.defaults`). prompt is a text or a
        list of them, of which each gets num_images_per_prompt images; width and height are in pixels, the model's own
        by default; a guidance_scale of at most 1 turns guidance off, and the negative prompt with it. The same seed
        gives the same noise as torch's CPU generator, to begin with and then in the steps of schedulers that need it;
        latents, (B, C, height / 8, width / 8), take the place of the first. prompt_embeds and negative_prompt_embeds,
        (prompts, L, C), take the place of texts, with SDXL together with pooled_prompt_embeds and
        negative_pooled_prompt_embeds, (prompts, C). eta, from 0 to 1, is how much noise the steps of DDIM and TCD add.
        rng="philox" gives the noise of torch's CUDA generator instead, and seeds="each" draws picture i's by itself
        with seed + i, as the web UIs do. clip_skip layers of the text encoders are left out, as diffusers counts them:
        1 is what web UIs call 2.

        With image, a picture of any mode and size, or one for each to be made, the run begins with it: it is resized to
        width and height, and noise is added for the last int(num_inference_steps * strength) steps, which alone are
        run; strength is 0.8 by default. mask_image is white where to paint and black where the picture is kept, but
        for what encoding it changes; inpainting models read it, and others are held to the picture after each step.

        With prompt_syntax="webui" texts are read as web UIs read them: of any length, with weights (prompts.emphasis),
        changes from step to step (prompts.schedule), parts that AND joins (prompts.combined), each a row more of the
        denoiser, and adapters (prompts.adapters), which must be loaded and are active at the strength that the prompt
        says, until another run begins whose prompt does not name them. emphasis is "original", by which weights leave
        an embedding's mean as it was, or "no_norm", SDXL's default.

        InputError at once for an argument outside its rule, and DeviceLimitError for a size that the device cannot
        hold.
        """
        request = make_request(
            self.model,
            prompt,
            negative_prompt=negative_prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            width=width,
            height=height,
            num_images_per_prompt=num_images_per_prompt,
            seed=seed,
            latents=latents,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
            image=image,
            mask_image=mask_image,
            strength=strength,
            prompt_syntax=prompt_syntax,
            clip_skip=clip_skip,
            emphasis=emphasis,
            scheduler=self.scheduler,
            eta=eta,
            rng=rng,
            seeds=seeds,
        )
        return self.run(request)

    def run(self, request: Request) -> Run:
        """A run of a request that `make_request` has checked against this pipeline's model."""
        self._engine.require_fits(request.size)
        with self.device.turn:
            adapters = self._adapters.with_strengths(request.adapters)
            if adapters != self._used:
                self._use(adapters)
        return Run(self._engine, request)

    def load_lora_weights(
        self, path: str | Path, *, adapter_name: str | None = None, weight_name: str | None = None
    ) -> None:
        """Reads a LoRA's .safetensors file, or `weight_name` in a folder, and merges it into the weights at strength 1.

        It is then the only active one, as in diffusers: `set_adapters` has several. LoRA, LoCon, LoHa, LoKr, DoRA and
        whole differences are read, as kohya's scripts, LyCORIS, diffusers and PEFT name them. WeightsError where a
        tensor is not for this model, or of another kind; all is then as it was.
        """
        self._add_adapter(path, weight_name, adapter_name, 1.0, keeps=False)

    def set_adapters(
        self, adapter_names: str | Sequence[str], adapter_weights: Strength | Sequence[Strength] | None = None
    ) -> None:
        """Has these adapters alone active, at a strength for all or one for each, by default 1.

        A strength may be a dict by component, such as {"unet": 1, "text_encoder": 0.5}. Weights that change are made
        anew from the model's and the adapters in memory; a run that has begun goes on with them.
        """
        self._adapt(self._adapters.set(adapter_names, adapter_weights))

    def get_active_adapters(self) -> list[str]:
        """Names of the adapters that are active."""
        return self._adapters.active

    def unload_lora_weights(self) -> None:
        """Forgets all adapters: the weights are the model's own again."""
        self._adapt(Adapters({}, {}))

    def _add_adapter(
        self, path: str | Path, weight_name: str | None, adapter_name: str | None, strength: Strength, *, keeps: bool
    ) -> None:
        """One more adapter at that strength, and with `keeps` those that are active."""
        with self.device.turn:
            name = self._adapters.new_name(adapter_name)
            changes = read_adapter(find_file(path, weight_name), self._engine.adapter_targets)
            self._adapt(self._adapters.add(name, changes, strength, keeps=keeps))

    def _adapt(self, adapters: Adapters) -> None:
        with self.device.turn:
            self._use(adapters)
            self._adapters = adapters

    def _use(self, adapters: Adapters) -> None:
        """Merges them into the weights, in place of those before."""
        self._engine.adapt(adapters.patches())
        self._used = adapters

    @property
    def used_bytes(self) -> int:
        """Of the device's memory, that the model takes now."""
        return self._engine.used_bytes

    def load(self, size: RunSize) -> None:
        """Makes ready what a run of that size needs: weights, and compiled programs; in low memory only what a program
        is made of."""
        self._engine.load(size)

    def load_textual_inversion(self, path: str | Path, token: str | None = None) -> str:
        """Teaches the model a word from a .safetensors file (weights/embeddings.py); returns it.

        The word is token, by default the one that a file of diffusers names, or the file's name without its suffix. In
        prompts it is then found as `text.words.AddedWords` says. The model is taught: all pipelines of it know the
        word. InputError for a word that the model has already, WeightsError for a file of another kind of model.
        """
        with self.device.turn:
            return self.model.added_tokens.load(path, token, self.model.tokenizers)

    def unload_textual_inversion(self, token: str | None = None) -> None:
        """Forgets a loaded word, by default all; runs whose prompts have it must have begun. InputError for another."""
        with self.device.turn:
            self.model.added_tokens.unload(token)

    def close(self) -> None:
        """Frees all memory of the device that the model takes; its runs end with a DeviceError."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _open(model: str | Path | Family, **options: Any) -> Family:
    """With options of `open_model`; InputError where one is given for a model that is open."""
    if not isinstance(model, Family):
        return open_model(model, **options)
    for name, value in options.items():
        if value is not None:
            raise InputError(
                f"{name} (={shown(value)}) must be left out for a model that is open already; give it to open_model"
            )
    return model


def choose_dtype(device: Device, dtype: DType | None) -> DType:
    """The dtype asked for, or the device's own; InputError where the device lacks it."""
    if dtype == "f16" and not device.info.has_f16:
        raise InputError(f"dtype (='f16') is not supported by device {device.info.name}; use f32")
    return dtype or device.info.default_dtype
