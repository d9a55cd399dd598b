"""Files that lie, wherever weights come from: each is used or refused with a ShaderfusionError, at once."""

import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import pytest
from golden.models import FOLDER, model_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_calls import merging_calls, targets
from weights.hostile_files import (
    HostileFile,
    Tensor,
    file_of,
    lying_files,
    mutated_files,
    read_tensors,
    require_refused_or_used,
    whole_files,
)
from weights.ldm_files import golden

from shaderfusion.families import open_model
from shaderfusion.families.family import Family
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.select import Kernels
from shaderfusion.weights.lora.file import read_adapter
from shaderfusion.weights.lora.names import Targets
from shaderfusion.weights.names import name_candidates
from shaderfusion.weights.single_file import UnknownTensorsWarning

VAE = "first_stage_model."
hostile = partial(settings, derandomize=True, database=None)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lies") / "file.safetensors"


def record(family: Family) -> Mapping[str, Graph]:
    """Graphs of a small size."""
    side = 8 * family.scale_factor
    return family.record(Kernels("f32"), family.run_size(width=side, height=side))


def use_model(path: str | Path, vae: Path | None = None) -> None:
    """Opens it, records its graphs and reads every tensor that they ask for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownTensorsWarning)
        family = open_model(path, vae=vae)
    assert family.scheduler_config
    for name, graph in record(family).items():
        source = family.sources[family.networks[name].source]
        for weight in (*graph.weights.values(), *graph.tables.values()):
            for tensor in weight.paths:
                stored = source.read(tensor, weight.source_shape)
                assert stored.to_f32().size == math.prod(weight.source_shape)
    assert family.tokenize(["a fox"]).shape[-1] == family.embedding_shape[0]


def in_f16(shapes: Mapping[str, list[int]]) -> list[Tensor]:
    return [Tensor(name, "F16", shape) for name, shape in shapes.items()]


# ---- whole models


@pytest.mark.parametrize("name", ["little_sd1", "little_sd2", "little_sdxl"])
def test_single_files(scratch: Path, name: str) -> None:
    tensors = in_f16(golden()[name]["file"])

    @hostile(max_examples=60)
    @given(mutated_files(tensors))
    def check(file: HostileFile) -> None:
        require_refused_or_used(lambda: use_model(file.write(scratch)))

    use_model(file_of(tensors).write(scratch))
    check()


@hostile(max_examples=60)
@given(st.one_of(lying_files(), whole_files()))
def test_files_of_anything_as_a_model(scratch: Path, file: HostileFile) -> None:
    require_refused_or_used(lambda: use_model(file.write(scratch)))


# ---- other VAEs


def vae_files() -> dict[str, list[Tensor]]:
    """In every layout that is known."""
    ldm = {
        name.removeprefix(VAE): shape for name, shape in golden()["little_sd1"]["file"].items() if name.startswith(VAE)
    }
    tiny = read_tensors(FOLDER / "networks" / "tiny_vae" / "diffusion_pytorch_model.safetensors")
    published = [tensor._replace(name=[*name_candidates(tensor.name)][-1]) for tensor in tiny]
    return {
        "ldm": in_f16(ldm),
        "diffusers": in_f16(golden()["little_sd1"]["components"]["vae"]["tensors"]),
        "tiny": [tensor for tensor in tiny if tensor.name.startswith("decoder.")],
        "tiny_published": [tensor for tensor in published if not tensor.name.startswith("encoder.")],
    }


@pytest.mark.parametrize("layout", ["ldm", "diffusers", "tiny", "tiny_published"])
def test_vaes(scratch: Path, layout: str) -> None:
    model = model_folder("thirds" if "tiny" in layout else "sd1")  # of as many latent channels
    tensors = vae_files()[layout]

    @hostile(max_examples=40)
    @given(mutated_files(tensors))
    def check(file: HostileFile) -> None:
        require_refused_or_used(lambda: use_model(model, file.write(scratch)))

    use_model(model, file_of(tensors).write(scratch))
    check()


@hostile(max_examples=40)
@given(st.one_of(lying_files(), whole_files()))
def test_files_of_anything_as_a_vae(scratch: Path, file: HostileFile) -> None:
    require_refused_or_used(lambda: use_model(model_folder("sd1"), file.write(scratch)))


# ---- adapters


@pytest.fixture(scope="module")
def sd1() -> Targets:
    return targets("sd1")


def use_adapter(path: Path, targets: Targets) -> None:
    """Reads the file, and records how its changes are merged."""
    for _ in merging_calls(read_adapter(path, targets), targets, Kernels("f32")):
        pass


@pytest.mark.parametrize(
    ("name", "model"),
    [(name, "sd1") for name in ("kohya", "loha_core", "lokr_core", "dora_by_input", "diff", "ldm")]
    + [("peft", "sd1"), ("xl", "sdxl")],
)
def test_adapters(scratch: Path, name: str, model: str) -> None:
    path = FOLDER / "lora" / f"{name}.safetensors"
    whole = path.read_bytes()
    data = whole[8 + int.from_bytes(whole[:8], "little") :]

    @hostile(max_examples=30)
    @given(mutated_files(read_tensors(path), data))
    def check(file: HostileFile) -> None:
        require_refused_or_used(lambda: use_adapter(file.write(scratch), targets(model)))

    use_adapter(path, targets(model))
    check()


LAYERS = {
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (16, 16),
    "unet.conv_in": (16, 4, 3, 3),
    "lora_unet_conv_norm_out": (16,),
}
SHAPES = {
    "lora_up.weight": ["Mr", "Mr11"],
    "lora_down.weight": ["rN", "rI33", "rI"],
    "lora_mid.weight": ["rr33"],
    "hada_w1_a": ["Mr", "rM"],
    "hada_w1_b": ["rN", "rI"],
    "hada_w2_a": ["Mr", "rM"],
    "hada_w2_b": ["rN", "rI"],
    "hada_t1": ["rr33"],
    "hada_t2": ["rr33"],
    "lokr_w1": ["22", "2"],
    "lokr_w2": ["mn", "mi33"],
    "lokr_w1_a": ["2r"],
    "lokr_w1_b": ["r2"],
    "lokr_w2_a": ["mr"],
    "lokr_w2_b": ["rn", "ri"],
    "lokr_t2": ["rr33"],
    "diff": ["MN", "MI33", "M"],
    "diff_b": ["M"],
    "alpha": ["", "1"],
    "dora_scale": ["M1", "1I", "1M", "1I11"],
    "lora_magnitude_vector": ["M"],
    "lora_B.bias": ["M"],
}
"""Of a weight (M, I, ...), of N values of each output: how adapters' tensors may be stored; m, i and n are halves."""


KINDS = [
    "lora_up.weight lora_down.weight",
    "lora_up.weight lora_down.weight lora_mid.weight",
    "hada_w1_a hada_w1_b hada_w2_a hada_w2_b",
    "hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2",
    "lokr_w1 lokr_w2",
    "lokr_w1_a lokr_w1_b lokr_w2",
    "lokr_w1 lokr_w2_a lokr_w2_b",
    "lokr_w1 lokr_w2_a lokr_w2_b lokr_t2",
    "diff diff_b",
]
MORE = ["", "alpha", "dora_scale", "alpha dora_scale", "alpha lora_magnitude_vector", "lora_B.bias"]


@st.composite
def adapters(draw: st.DrawFn) -> HostileFile:
    """Of one layer, whose tensors may fit each other."""
    layer, shape = draw(st.sampled_from(list(LAYERS.items())))
    whole = {"M": shape[0], "I": shape[min(1, len(shape) - 1)], "N": math.prod(shape[1:])}
    sizes = whole | {key.lower(): max(1, size // 2) for key, size in whole.items()} | {"r": draw(st.integers(1, 2))}
    tensors = []
    for ending in f"{draw(st.sampled_from(KINDS))} {draw(st.sampled_from(MORE))}".split():
        stored = draw(st.sampled_from(SHAPES[ending]))
        shape = [sizes[size] if size in sizes else int(size) for size in stored]
        dtype = draw(st.sampled_from(["F32", "F16", "BF16"] if ending == "alpha" else ["F32", "F16", "F8_E4M3"]))
        tensors.append(Tensor(f"{layer}.{ending}", dtype, shape))
    return draw(mutated_files(tensors, draw(st.sampled_from([b"\0", b"\x3c", b"\x3d\x34"])) * 1000, most_changes=1))


@hostile(max_examples=150)
@given(adapters())
def test_adapters_of_one_layer(scratch: Path, sd1: Targets, file: HostileFile) -> None:
    require_refused_or_used(lambda: use_adapter(file.write(scratch), sd1))


@hostile(max_examples=50)
@given(st.one_of(lying_files(), whole_files()))
def test_files_of_anything_as_an_adapter(scratch: Path, sd1: Targets, file: HostileFile) -> None:
    require_refused_or_used(lambda: use_adapter(file.write(scratch), sd1))


# ---- the largest that are read at all


def use_all(models: Sequence[Path], adapters: Sequence[Path]) -> None:
    """Each, in a process that may have 1 GB of memory."""
    import resource  # of POSIX alone

    resource.setrlimit(resource.RLIMIT_DATA, (10**9, 10**9))
    uses = [partial(use_model, path) for path in models]
    uses += [partial(use_adapter, path, targets("sd1")) for path in adapters]
    for use in uses:
        require_refused_or_used(use, most_s=10)


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not limit what a process maps")
def test_large_claims_take_neither_memory_nor_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = "model.diffusion_model.output_blocks." + "0." * 100
    layer = "lora_unet_conv_in"
    core = [("lora_up.weight", [16, 4096]), ("lora_down.weight", [2**22, 4]), ("lora_mid.weight", [4096, 2**22, 3, 3])]
    model = in_f16(golden()["little_sd1"]["file"])
    models = [
        [Tensor(f"{i}", "F16", [0]) for i in range(220_000)],
        [*model, *(Tensor(f"{numbers}{i}", "F16", [0]) for i in range(19_000))],
        [Tensor(model[0].name, "F16", [2**20, 2**20]), *model[1:]],
        [Tensor(model[0].name, "F16", [1] * 3_000_000), *model[1:]],
    ]
    adapters = [
        [Tensor(f"lora_unet_x{i}.alpha", "F16", []) for i in range(19_000)],
        [Tensor(f"{layer}.diff", "F16", [16, 2**36])],
        [Tensor(f"{layer}.{ending}", "F16", shape) for ending, shape in core],
    ]
    files = map(file_of, [*models, *adapters])
    paths = [file.write(tmp_path / f"{i}.safetensors") for i, file in enumerate(files)]
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # each of its threads has a stack
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        process.submit(use_all, paths[: len(models)], paths[len(models) :]).result()
