"""`shaderfusion export web`: what is written, and that the pictures replayed from it are the pipeline's."""

import hashlib
import json
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from golden.models import model_folder
from safetensors.numpy import load_file
from web.json_schema import violations
from web.replay import Replay

from shaderfusion.bench.ablation import ROWS
from shaderfusion.cli import main
from shaderfusion.errors import DeviceLimitError, InputError, ModelError, WeightsError
from shaderfusion.families import open_model
from shaderfusion.gpu.backend import RUNTIMES
from shaderfusion.gpu.device import Device, open_device
from shaderfusion.kernels.common.prepare_weight import STORED_SIZE_BYTES, StoredDType
from shaderfusion.pipeline import StableDiffusionPipeline
from shaderfusion.random import NormalGenerator
from shaderfusion.schedulers import SCHEDULERS, Update, make_schedule
from shaderfusion.seeds import PictureNoise
from shaderfusion.web import export, shards
from shaderfusion.web import folder as folder_module
from shaderfusion.web.export import export_web
from shaderfusion.web.manifest import as_bytes
from shaderfusion.web.schedules import MOST_STEPS, describe_scheduler, make_schedules
from shaderfusion.web.shards import Shards, Wanted
from shaderfusion.weights import footprint
from shaderfusion.weights.checkpoint import StoredTensor

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "browser.schema.json").read_text("utf-8"))
PROMPTS = ("", "a red heart")
SMALL_SHARD_BYTES = 20_000
SEED, STEPS, GUIDANCE_SCALE = 7, 2, 7.5

DEFAULT_LIMITS = {  # WebGPU, section 3.6.2
    "maxBufferSize": 1 << 28,
    "maxStorageBufferBindingSize": 1 << 27,
    "maxStorageBuffersPerShaderStage": 8,
    "maxComputeWorkgroupsPerDimension": 65535,
    "maxComputeWorkgroupStorageSize": 16384,
    "maxComputeInvocationsPerWorkgroup": 256,
    "maxComputeWorkgroupSizeX": 256,
}


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with everything that there is."""
    folder = tmp_path_factory.mktemp("web") / "sd1"
    export_web(model_folder("sd1"), folder, ablation=True)
    return folder


def load(folder: Path, name: str = "manifest.json") -> Any:
    return json.loads((folder / name).read_text("utf-8"))


def programs(manifest: Any) -> list[str]:
    own = [variant["program"]["path"] for variant in manifest["variants"]]
    return own + [variant["ablation"]["program"]["path"] for variant in manifest["variants"] if "ablation" in variant]


def test_follows_its_schema(exported: Path) -> None:
    manifest = load(exported)
    assert list(violations(manifest, SCHEMA, SCHEMA)) == []
    assert [variant["name"] for variant in manifest["variants"]] == ["cpu", "f16", "f32"]
    assert len(programs(manifest)) == 6
    for path in programs(manifest):
        assert list(violations(load(exported, path), SCHEMA["$defs"]["program"], SCHEMA)) == []
    for path in ("schedules", "tokenizer"):
        assert list(violations(load(exported, f"{path}.json"), SCHEMA["$defs"][path], SCHEMA)) == []


@pytest.mark.parametrize(
    ("change", "violation"),
    [
        ({"version": 2}, "$.version: 2 is not 1"),
        ({"shards": [{"path": "a", "bytes": 1}]}, "$.shards[0]: lacks sha256"),
        ({"more": 1}, "$: has more"),
        ({"defaults": {"steps": 0, "guidance_scale": "7"}}, "$.defaults.steps: 0 is below 1"),
    ],
)
def test_the_schema_can_be_broken(exported: Path, change: dict[str, Any], violation: str) -> None:
    assert violation in list(violations(load(exported) | change, SCHEMA, SCHEMA))


def test_files(exported: Path) -> None:
    manifest = load(exported)
    there = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert there == {file["path"] for file in manifest["files"]} | {"manifest.json"}
    for file in manifest["files"]:
        data = (exported / file["path"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file["bytes"], file["sha256"])
    named = [manifest["tokenizers"]["text_encoder"], manifest["scheduler"]["file"], *manifest["shards"]]
    assert all(file in manifest["files"] for file in named)


def test_needs_no_more_than_every_adapter_has(exported: Path) -> None:
    for variant in load(exported)["variants"]:
        for part in (variant, variant["ablation"]):
            assert set(part["limits"]) == set(DEFAULT_LIMITS)
            assert all(value <= DEFAULT_LIMITS[name] for name, value in part["limits"].items())
            program = load(exported, part["program"]["path"])
            assert sum(part["memory"].values()) == sum(program["buffers"])
            if program["buffers"]:
                assert max(program["buffers"]) == part["limits"]["maxBufferSize"]


def test_twice_is_equal(exported: Path, tmp_path: Path) -> None:
    export_web(model_folder("sd1"), tmp_path / "again", ablation=True)
    assert load(tmp_path / "again") == load(exported)  # with the hashes of all files


# ---- weights


def stored_tensors(folder: Path) -> dict[str, np.ndarray]:
    return {
        name: values for shard in load(folder)["shards"] for name, values in load_file(folder / shard["path"]).items()
    }


def test_weights_are_stored_once(exported: Path) -> None:
    tensors = stored_tensors(exported)
    source = open_model(model_folder("sd1")).sources["unet"]
    name, values = next((name, v) for name, v in tensors.items() if name.startswith("unet/mid_block.attentions"))
    wanted = source.read(name.removeprefix("unet/"), values.shape).to_f32()
    assert np.array_equal(values.reshape(-1), wanted.astype(np.float16))
    assert not any("encoder" in name for name in tensors if name.startswith("vae/encoder"))
    assert {str(values.dtype) for values in tensors.values()} == {"float16", "float32"}
    assert all(values.size % 2 for values in tensors.values() if values.dtype == np.float32)  # 4 bytes at least


@pytest.mark.parametrize(("dtype", "names"), [("f16", ["f16"]), ("f32", ["cpu", "f32"])])
def test_one_dtype(tmp_path: Path, dtype: Any, names: list[str]) -> None:
    manifest = export_web(model_folder("sd1"), tmp_path / "sd1", dtype=dtype)
    assert [variant["name"] for variant in manifest["variants"]] == names
    assert not any("ablation" in variant for variant in manifest["variants"])


def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if tiny models were large ones."""
    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", SMALL_SHARD_BYTES)
    monkeypatch.setattr(footprint, "_BATCH_BYTES", 4096)
    monkeypatch.setattr(footprint, "_SMALL_BYTES", 64)


def test_large_tensors_are_cut(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_files(monkeypatch)
    manifest = export_web(model_folder("sd1"), tmp_path / "cut")
    assert all(shard["bytes"] <= SMALL_SHARD_BYTES for shard in manifest["shards"])
    whole, cut = stored_tensors(exported), stored_tensors(tmp_path / "cut")
    parts = sorted((name for name in cut if ".rows." in name), key=lambda name: int(name.rpartition(".")[2]))
    names = {name.partition(".rows.")[0] for name in parts}
    assert names
    for name in names:
        own = [cut[part] for part in parts if part.startswith(f"{name}.rows.")]
        assert len(own) > 1
        assert np.array_equal(np.concatenate(own), whole[name])
    ((name, table),) = manifest["tables"].items()
    ends = [(part["first_row"], part["first_row"] + part["rows"]) for part in table["parts"]]
    assert ends[0][0] == 0
    assert ends[-1][1] * table["row_bytes"] == whole[name].nbytes
    assert all(end == first for (_, end), (first, _) in pairwise(ends))


class Bytes:
    """A source of one tensor, as a file of that dtype has it."""

    def __init__(self, dtype: StoredDType, values: bytes) -> None:
        self.stored = StoredTensor(dtype, np.frombuffer(values, np.uint8))

    def find(self, path: str, shape: tuple[int, ...]) -> str:
        return path

    def read(self, path: str, shape: tuple[int, ...]) -> StoredTensor:
        return self.stored

    def read_rows(self, path: str, shape: tuple[int, ...], rows: np.ndarray) -> StoredTensor:
        return self.stored.rows(shape[0], rows)


F16_ONES = np.ones(4, "<f2").tobytes()
F32_ONES = np.ones(4, "<f4").tobytes()


@pytest.mark.parametrize(
    ("dtype", "values", "narrow", "is_table", "stored"),
    [
        ("F32", F32_ONES, True, False, "F16"),
        ("F32", F32_ONES, False, False, "F32"),
        ("F16", F16_ONES, False, False, "F16"),
        ("BF16", b"\x80\x3f" * 4, True, False, "F16"),
        ("BF16", b"\x80\x3f" * 4, False, False, "BF16"),
        ("BF16", b"\x80\x3f" * 4, False, True, "F32"),  # the player knows no bfloat16
        ("F8_E4M3", b"\x38" * 4, True, False, "F8_E4M3"),
        ("F8_E4M3", b"\x38" * 4, True, True, "F32"),
        ("F16", F16_ONES[:6], True, False, "F32"),  # 6 bytes are no multiple of 4
    ],
)
def test_stored_dtypes(dtype: StoredDType, values: bytes, narrow: bool, is_table: bool, stored: StoredDType) -> None:
    source = Bytes(dtype, values)
    shape = (len(values) // STORED_SIZE_BYTES[dtype],)
    written = Shards({"a": Wanted(source, "a", shape, is_table)}, narrow=narrow, batch_bytes=4096)
    (data,) = written.files()
    header_bytes = 8 + int.from_bytes(data[:8], "little")
    assert json.loads(data[8:header_bytes])["a"]["dtype"] == stored == written.stored["a"].dtype
    assert StoredTensor(stored, np.frombuffer(data[header_bytes:], np.uint8)).to_f32().tolist() == [1.0] * shape[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, np.nan], "a: has NaN or infinite values; the file is damaged, download it again"),
        ([1, 1e5], "a: has values over the range of f16; use dtype f32"),
    ],
)
def test_weights_that_are_no_numbers(values: list[float], message: str) -> None:
    source = Bytes("F32", np.array(values, "<f4").tobytes())
    written = Shards({"a": Wanted(source, "a", (2,))}, narrow=True, batch_bytes=4096)
    with pytest.raises(WeightsError, match=f"^{message}$"):
        list(written.files())


# ---- programs


def test_tint_compiles_all_without_extras(exported: Path, null_dawn: None) -> None:
    device = open_device(runtime="dawn")
    codes = {code for path in programs(load(exported)) for code in load(exported, path)["shaders"]}
    for code in codes:
        RUNTIMES["dawn"].create_module(device.handle, code, "exported", trusted=False)
    enabled = {line for code in codes for line in code.splitlines() if line.startswith(("enable", "requires"))}
    assert enabled == {"enable f16;", "enable subgroups;"}
    assert not any("diagnostic" in code for code in codes)


def test_rows_share_what_the_networks_have(exported: Path) -> None:
    for variant in load(exported)["variants"]:
        own, rows = load(exported, variant["program"]["path"]), load(exported, variant["ablation"]["program"]["path"])
        assert [row["name"] for row in rows["rows"]] == [*ROWS]
        assert rows["rows"][-1]["network"] == "unet"
        unet = own["networks"]["unet"]
        for network in rows["networks"].values():
            assert {name: tensor["buffer"] for name, tensor in network["tensors"].items()} == {
                name: tensor["buffer"] for name, tensor in unet["tensors"].items()
            }
        used = [call["pipeline"] for network in rows["networks"].values() for call in network["calls"]]
        assert min(used) < len(own["pipelines"]) <= max(used)
        assert not set(own["shaders"]) & set(rows["shaders"])
        assert variant["ablation"]["memory"]["weights"] < variant["memory"]["weights"]


@pytest.mark.parametrize(
    ("model", "variant", "is_cut", "scheduler"),
    [
        ("sd1", "f32", False, None),
        ("ragged", "f32", True, None),
        ("sd1", "cpu", False, None),
        ("sd1", "f32", False, "dpmpp_sde_karras"),
    ],
)
def test_pictures_are_the_pipelines(
    device: Device,
    checked_device: Device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    variant: str,
    is_cut: bool,
    scheduler: str | None,
) -> None:
    if variant == "cpu" and not checked_device.capabilities.has_subgroups:
        pytest.skip("this device has no subgroups")
    has_rows = (model, variant, scheduler) == ("sd1", "f32", None)
    if is_cut:
        small_files(monkeypatch)
    # The player's noise is new in each step.
    monkeypatch.setattr(PictureNoise, "draw_along", lambda self, times, call, shape: self.draw(shape))
    export_web(model_folder(model), tmp_path / model, dtype="f32", ablation=has_rows, scheduler=scheduler)
    replay = Replay(checked_device.handle, tmp_path / model, variant)
    options: dict[str, Any] = {"device": device, "dtype": "f32", "scheduler": scheduler}
    with StableDiffusionPipeline.from_pretrained(model_folder(model), **options) as pipeline:
        made = pipeline(PROMPTS[1], num_inference_steps=STEPS, guidance_scale=GUIDANCE_SCALE, seed=SEED)
        wanted = np.asarray(made.images[0]).astype(int)
    assert np.ptp(wanted) > 50  # a picture
    assert np.abs(picture(replay, "unet") - wanted).max() <= 2
    if has_rows:
        replay.add_ablation()
        networks = {row["network"] for row in replay.rows}
        assert len(networks) == len(ROWS)
        for network in networks - {"unet"}:
            assert np.abs(picture(replay, network) - wanted).max() <= 2


def picture(replay: Replay, unet: str) -> np.ndarray:
    """(height, width, 3), 0 to 255."""
    model = open_model(model_folder(replay.manifest["model"]["name"]))
    schedule = load(replay.folder, "schedules.json")[str(STEPS)]
    _, H, W, C = replay.manifest["latents"]["shape"]
    generator = NormalGenerator(SEED)
    x_t = np.float32(schedule["init_noise_sigma"]) * generator.randn((1, C, H, W)).transpose(0, 2, 3, 1)
    replay.write(unet, "embedding", np.stack([replay.encode(ids) for ids in model.tokenize(PROMPTS)]))
    replay.write(unet, "x_t", x_t)
    replay.write(unet, "latents", np.tile(schedule["first_input_scale"] * x_t, (2, 1, 1, 1)))
    for index, timestep in enumerate(schedule["timesteps"]):
        values = {name: numbers[index] for name, numbers in schedule["coefficients"].items()}
        values["guidance_scale"] = GUIDANCE_SCALE
        replay.write(unet, "coefficients", np.array([values.get(name, 0) for name in replay.manifest["coefficients"]]))
        replay.write(unet, "timestep", np.array([timestep]))
        if values.get("c_noise"):
            replay.write(unet, "noise", generator.randn((1, C, H, W)).transpose(0, 2, 3, 1))
        replay.run(unet, again=index > 0)
    replay.write("vae", "latents", replay.read(unet, "x_t"))
    replay.run("vae")
    size = replay.manifest["size"]
    image = replay.read("vae", "image").reshape(size["height"], size["width"], 3)
    return np.rint(np.clip(image / 2 + 0.5, 0, 1) * 255).astype(int)


# ---- what the page is told


@pytest.mark.parametrize(
    ("model", "name"), [("emoji", "emoji"), ("a/v1.5", "v1.5"), ("a/v1.5.safetensors", "v1.5"), ("owner/name", "name")]
)
def test_name(model: str, name: str) -> None:
    assert export._name_of(model) == name


def test_tokenizer(exported: Path) -> None:
    tokenizer = load(exported)["tokenizers"]["text_encoder"]
    vocabulary = load(exported, tokenizer["path"])
    own = open_model(model_folder("sd1")).tokenizers["text_encoder"]
    assert vocabulary["vocab"] == [own.bpe.id_to_token(i) for i in range(own.bpe.get_vocab_size())]
    assert vocabulary["vocab"][vocabulary["eos_id"]] == "<|endoftext|>"
    assert all(len(merge.split(" ")) == 2 for merge in vocabulary["merges"])
    assert {*vocabulary["exact"]["ids"], *vocabulary["normalized"]["ids"]} >= {"<|startoftext|>", "<|endoftext|>"}


@pytest.mark.parametrize("name", [*SCHEDULERS, "dpmpp_2m_karras", "ddim_trailing", "euler_a_ays"])
def test_schedules_are_pythons(name: str) -> None:
    """To the float32 that the GPU takes, of the coefficients in each step as of all else."""
    config = open_model(model_folder("sd1")).scheduler_config
    about, made = describe_scheduler(config, make_schedules(config, name), 20)
    read = json.loads(as_bytes(made))
    assert about["name"] == name
    least, most = about["steps"]
    assert [*map(int, read)] == [*range(least, most + 1)]
    assert least <= about["default_steps"] <= most <= MOST_STEPS
    for steps in {1, 2, 7, 50, least, most} & {*map(int, read)}:
        own, schedule = read[str(steps)], make_schedule(config, steps, name)
        same_f32(own["init_noise_sigma"], schedule.init_noise_sigma)
        same_f32(own["first_input_scale"], schedule.input_scales[0])
        same_f32(own["timesteps"], schedule.timesteps)
        zeros = [0] * len(schedule.updates)
        for field in fields(Update):
            values = [getattr(update, field.name) for update in schedule.updates]
            same_f32(own["coefficients"].pop(field.name, zeros), values)
        same_f32(own["coefficients"].pop("next_input_scale"), [*schedule.input_scales[1:], 1])
        assert not own["coefficients"]


def same_f32(ours: Any, wanted: Any) -> None:
    assert np.array_equal(np.array(ours, np.float32), np.array(wanted, np.float32))


def test_scheduler(exported: Path, tmp_path: Path) -> None:
    """The model's own, or a named one; the steps that the page begins with are some that it takes."""
    assert (load(exported)["scheduler"]["name"], load(exported)["scheduler"]["sampler"]) == ("pndm", "PLMS")
    manifest = export_web(model_folder("sd1"), tmp_path / "web", dtype="f32", scheduler="euler_ays")
    own = manifest["scheduler"]
    assert (own["name"], own["sampler"], own["schedule_type"]) == ("euler_ays", "Euler", "Align Your Steps")
    assert (own["steps"], manifest["defaults"]["steps"]) == ([10, 10], 10)


def test_schedulers_that_are_none(tmp_path: Path) -> None:
    assert "scheduler (='best') must be one of ddim, " in refused(tmp_path / "web", scheduler="best")
    config = replace(open_model(model_folder("sd1")).scheduler_config, class_name="BestScheduler")
    with pytest.raises(ModelError, match=r"the model's scheduler .* is not implemented; name one of"):
        make_schedules(config)
    betas = (1e-300,) * config.num_train_timesteps
    with pytest.raises(ModelError, match="noise schedule leads to numbers beyond f32"):
        make_schedules(replace(config, trained_betas=betas), "ddim")
    assert not (tmp_path / "web").exists()


# ---- folders and errors


def test_an_earlier_export_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "web"
    export_web(model_folder("sd1"), folder, ablation=True)
    (folder / "notes.txt").write_text("mine")
    manifest = export_web(model_folder("ragged"), folder, dtype="f32")
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == {file["path"] for file in manifest["files"]} | {"manifest.json", "notes.txt"}


def refused(output: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        export_web(model_folder("sd1"), output, **options)
    return str(caught.value)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "picture.png").write_bytes(b"")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("[")
    assert refused(tmp_path / "none" / "web") == (
        f"--output (={tmp_path}/none/web) must be in a folder that exists; make {tmp_path}/none first"
    )
    assert "must be a folder" in refused(tmp_path / "file")
    for name in ("other", "broken"):
        assert "must be empty or an earlier export, and is neither" in refused(tmp_path / name)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["picture.png"]


def test_a_manifest_cannot_have_files_elsewhere_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    folder = tmp_path / "web"
    folder.mkdir()
    names = ["../mine", str(tmp_path / "mine"), "a/../../mine", 5]
    manifest = {"format": "shaderfusion-web", "files": [{"path": name} for name in names]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    export_web(model_folder("sd1"), folder, dtype="f32")
    assert (tmp_path / "mine").exists()


def test_a_full_disk_is_seen_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert "MB free; make room, or choose a folder on another disk" in refused(tmp_path / "web")
    assert not (tmp_path / "web").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_export_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(self: Path, data: bytes) -> int:
        if self.suffix == ".safetensors":
            raise error
        return write_bytes(self, data)

    write_bytes = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", fail)
    kind = InputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(kind) as caught:
        export_web(model_folder("sd1"), tmp_path / "web")
    assert kind is KeyboardInterrupt or "could not be written: No space left on device" in str(caught.value)
    assert not (tmp_path / "web").exists()


def test_sizes_and_models_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceLimitError, match="use a smaller size or batch"):
        export_web(model_folder("sd1"), tmp_path / "web", width=16384, height=16384)
    for model in ("sdxl", "inpaint"):
        with pytest.raises(InputError, match=r"runs Stable Diffusion 1.x and 2.x alone"):
            export_web(model_folder(model), tmp_path / "web")
    assert not (tmp_path / "web").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "web")
    options = ["--output", folder, "--dtype", "f32", "--scheduler", "DPM++ 2M Karras"]
    assert main(["export", "web", str(model_folder("sd1")), *options]) == 0
    assert capsys.readouterr().out.startswith(f"{folder}: ")
    assert load(tmp_path / "web")["scheduler"]["name"] == "dpmpp_2m_karras"
    assert main(["export", "web", str(model_folder("sdxl")), "--output", folder]) == 2
    assert "choose such a model" in capsys.readouterr().err
    assert (tmp_path / "web" / "manifest.json").exists()  # the earlier one stays


def test_emojis_size(tmp_path: Path) -> None:
    # The only large one: its weights in f16 are most of it.
    manifest = export_web("emoji", tmp_path / "web", dtype="auto", ablation=True)
    assert sum(file["bytes"] for file in manifest["files"]) <= 42_000_000
    assert max(shard["bytes"] for shard in manifest["shards"]) <= 32_000_000
