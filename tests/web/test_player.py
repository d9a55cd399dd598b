"""The player by itself, in a browser: the goldens of tokenizer and noise, the adapters that it can run on, and its
files, with a sentence for whatever can go wrong."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from text.test_tokenizer import CLIP, GOLDEN, model_folder
from web.browser import error_of, run
from web.file_server import FileServer

from shaderfusion.text.tokenizer import Tokenizer
from shaderfusion.web.export import PLAYER_FOLDER
from shaderfusion.web.manifest import describe_tokenizer

PAGE = ("ablation.js", "page.js", "png.js", "preview.js", "sw.js")
"""The other modules are the player."""

MOST_PLAYER_BYTES = 30 * 1024
"""As it is written, comments included."""

NOISE = Path(__file__).parents[1] / "golden" / "randn.npz"
SHARD = "weights/00001.safetensors"


def test_the_player_is_small() -> None:
    sizes = {file.name: file.stat().st_size for file in PLAYER_FOLDER.glob("*.js") if file.name not in PAGE}
    assert sum(sizes.values()) <= MOST_PLAYER_BYTES, sizes


# ------------------------------------------------------------------------------------------------ goldens


def test_tokenizer(page: Any, tmp_path: Path) -> None:
    """transformers' ids, for every form of model folder and for CLIP's own vocabulary."""
    cases = []
    for name, case in GOLDEN["folders"].items():
        (tmp_path / name).mkdir()
        tokenizer = Tokenizer.from_folder(model_folder(tmp_path / name, case["files"], case["vocabulary"]))
        cases.append((tokenizer, GOLDEN["texts"], case["ids"]))
    cases += [(Tokenizer.clip(pad_token=pad), CLIP["texts"], ids) for pad, ids in CLIP["ids"].items()]
    for tokenizer, texts, expected in cases:
        code = """
            const { Tokenizer } = await import("/tokenizer.js"), tokenizer = new Tokenizer(argument.tokenizer);
            return argument.texts.map((text) => tokenizer.tokenize(text).ids);"""
        made = run(page, code, {"tokenizer": describe_tokenizer(tokenizer), "texts": texts})
        for text, ours, golden in zip(texts, made, expected, strict=True):
            assert ours == golden, text


def test_noise(page: Any) -> None:
    """torch's, to the last digits, as far as a picture's latents can have it: 16 values or more in each draw."""
    with np.load(NOISE) as arrays:
        torch = {name: arrays[name].astype(np.float64).tolist() for name in arrays.files}
    cases = []
    for name, values in torch.items():
        seed, shapes = name.split(":")
        sizes = [math.prod(int(length) for length in shape.split("x") if length) for shape in shapes.split(",")]
        if min(sizes) >= 16:
            cases.append({"seed": seed, "sizes": sizes, "values": values})
    assert len(cases) > 60
    code = """
        const { NormalGenerator } = await import("/random.js");
        const draw = ({ seed, sizes }) => {
          const generator = new NormalGenerator(seed);
          return sizes.flatMap((size) => [...generator.randn(size)]);
        };
        const ends = (values) => [...values.slice(0, 64), ...values.slice(-64)]; // of large arrays the golden has those
        return argument.map((each) => (each.sizes[0] > 128 ? ends(draw(each)) : draw(each)));"""
    for case, made in zip(cases, run(page, code, cases), strict=True):
        np.testing.assert_allclose(made, case["values"], rtol=2.4e-7, atol=0, err_msg=str(case["seed"]))  # 2 ulp


@pytest.mark.parametrize("seed", ["", "1.5", "x", 2**64, 1.5, None])
def test_seeds_that_are_none(page: Any, seed: Any) -> None:
    given = str(seed) if isinstance(seed, int) else seed
    code = "const { NormalGenerator } = await import('/random.js'); new NormalGenerator(argument);"
    assert error_of(page, code, given).startswith("InputError: seed (=")


# ------------------------------------------------------------------------------------------------ adapters

FAKE = """
    const requestDevice = async () => ({ queue: {}, lost: new Promise(() => {}) });
    const adapter = { limits: {}, info: {}, ...argument, features: new Set(argument.features), requestDevice };
    navigator.gpu.requestAdapter = async () => adapter;
    const { Pipeline } = await import("/pipeline.js");
    const pipeline = await Pipeline.open("/", { dtype: argument.dtype });
    return pipeline.device.variant.name;
"""


@pytest.mark.parametrize(
    ("adapter", "variant"),
    [
        ({"features": ["shader-f16"]}, "f16"),
        ({"features": ["shader-f16"], "dtype": "f32"}, "f32"),
        ({"features": ["subgroups"]}, "f32"),
        (
            {
                "features": ["subgroups"],
                "info": {"isFallbackAdapter": True, "subgroupMinSize": 4, "subgroupMaxSize": 4},
            },
            "cpu",
        ),
        (
            {
                "features": ["subgroups"],
                "info": {"isFallbackAdapter": True, "subgroupMinSize": 8, "subgroupMaxSize": 8},
            },
            "f32",
        ),
    ],
)
def test_the_variant_that_an_adapter_can_run(page: Any, adapter: dict[str, Any], variant: str) -> None:
    assert run(page, FAKE, adapter) == variant


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"dtype": "f16"}, "DeviceError: this device cannot run the model: f16 needs the feature shader-f16"),
        ({"limits": {"maxComputeWorkgroupStorageSize": 4096}}, "f32 needs maxComputeWorkgroupStorageSize"),
        ({"dtype": "q4"}, "DeviceError: dtype (=q4) is not in this export"),
    ],
)
def test_an_adapter_that_lacks_something(page: Any, server: FileServer, adapter: dict[str, Any], message: str) -> None:
    """Said before the download."""
    assert message in error_of(page, FAKE, adapter)
    assert not [path for path, _ in server.requests if path.startswith(("weights/", "programs/"))]


def test_too_little_memory_for_the_model(page: Any) -> None:
    code = """
        Object.defineProperty(navigator, "deviceMemory", { value: 2 });
        const { Device } = await import("/device.js"), memory = { weights: 3e9, tensors: 1e9, loading: 0 };
        await Device.open([{ name: "f32", features: [], limits: {}, memory }]);"""
    assert "f32 needs 3.7 GiB of memory, and this device has about 2; try another device" in error_of(page, code)


def test_numbers_of_a_tensor(page: Any) -> None:
    """Written with padding and read without, in f16 and f32."""
    code = """
        const { Device } = await import("/device.js"), { Programs } = await import("/program.js");
        const memory = { weights: 0, tensors: 0, loading: 0 };
        const device = await Device.open([{ name: "any", features: [], limits: {}, memory }]);
        const programs = new Programs(device);
        const tensor = (buffer, dtype) => ({ buffer, dtype, rows: 3, width: 4, channels: 3 });
        const odd = { ...tensor(2, "f16"), rows: 1, width: 3 };
        const tensors = { half: tensor(0, "f16"), single: tensor(1, "f32"), odd };
        const networks = { any: { tensors, tables: {}, once: 0, calls: [] } };
        const params = { buffer: 3, values: [[1]] }, buffers = [24, 48, 6, 256];
        await programs.add({ shaders: [], pipelines: [], buffers, params, networks });
        const { any } = programs.networks, read = [];
        for (const name of ["half", "single"]) {
          any.write(name, argument);
          read.push([...(await any.read(name))]);
        }
        any.write("odd", [1, 2, 3]);
        return [...read, [...(await any.read("odd"))]];"""
    numbers = [0, -1, 0.1, 1 + 2**-11, 1 + 3 * 2**-11, 2**-24, 65519, -2048.5, 3]
    half, single, odd = run(page, code, numbers)
    assert odd == [1, 2, 3]
    assert half == np.array(numbers, np.float16).tolist()
    assert single == np.array(numbers, np.float32).tolist()


def test_a_browser_without_webgpu(page: Any) -> None:
    code = """
        const { Device } = await import("/device.js");
        Object.defineProperty(navigator, "gpu", { value: undefined });
        await Device.open([]);"""
    assert error_of(page, code).startswith(
        "DeviceError: this browser has no WebGPU, or is too old; use Chrome or Edge from"
    )


def test_a_lost_device_and_too_little_memory(page: Any) -> None:
    code = """
        const { Device } = await import("/device.js");
        const memory = { weights: 0, tensors: 0, loading: 0 };
        const device = await Device.open([{ name: "any", features: [], limits: {}, memory }]);
        device.handle.popErrorScope = async () => ({ message: "no memory" });
        try { await device.allocate([5e6], GPUBufferUsage.STORAGE); } catch (error) { argument.push(error.message); }
        device.handle.destroy();
        for (const action of ["fail", "wait"])
          try { await device[action](); } catch (error) { argument.push(error.message); }
        return argument;"""
    memory, lost, still_lost = run(page, code, [])
    assert memory == "the GPU has no 5 MB of memory left; close other pages, or use a smaller model"
    assert lost == still_lost
    assert lost.startswith("the GPU was lost (")


def test_a_shader_that_does_not_compile(page: Any) -> None:
    code = """
        const { Device } = await import("/device.js"), { Programs } = await import("/program.js");
        const memory = { weights: 0, tensors: 0, loading: 0 };
        const device = await Device.open([{ name: "any", features: [], limits: {}, memory }]);
        const entries = [{ binding: 1, visibility: 4, buffer: { type: "storage" } }];
        const pipelines = [{ shader: 0, entry_point: "main", label: "broken.main", entries }];
        const file = { shaders: ["fn main() {"], pipelines, buffers: [], params: { values: [] }, networks: {} };
        await new Programs(device).add(file);"""
    assert error_of(page, code).startswith("DeviceError: broken.main: the GPU's compiler refused it (")


# ------------------------------------------------------------------------------------------------ files

GET = """
    const { Files } = await import("/weights.js");
    const blob = await new Files(location.origin + "/").get(argument);
    return blob.size;
"""


@pytest.fixture
def shard(server: FileServer) -> dict[str, Any]:
    manifest = json.loads((server.folder / "manifest.json").read_text("utf-8"))
    return next(each for each in manifest["shards"] if each["path"] == SHARD)


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_shard_that_is_cut(page: Any, server: FileServer, shard: dict[str, Any], knows_ranges: bool) -> None:
    server.knows_ranges = knows_ranges
    server.cut_after[SHARD] = shard["bytes"] // 10
    message = error_of(page, GET, shard)
    match = re.fullmatch(rf"ModelError: {SHARD}: the download broke off after (\d+) of (\d+) bytes; reload .*", message)
    assert match, message
    had = int(match[1])
    assert 0 < had <= 3 * server.cut_after[SHARD]
    assert int(match[2]) == shard["bytes"]
    assert len(server.ranges_of(SHARD)) == 3  # tries
    server.cut_after.clear()
    server.requests.clear()
    page.reload()
    assert run(page, GET, shard) == shard["bytes"]
    assert server.ranges_of(SHARD) == [f"bytes={had}-"]
    server.requests.clear()
    page.reload()
    assert run(page, GET, shard) == shard["bytes"]
    assert server.ranges_of(SHARD) == []  # kept


def test_a_kept_part_of_another_file(page: Any, server: FileServer, shard: dict[str, Any]) -> None:
    """Seen by the hash of the whole, which is then fetched from its beginning."""
    server.replaced[SHARD] = bytes(shard["bytes"])
    server.cut_after[SHARD] = 1000
    assert "broke off" in error_of(page, GET, shard)
    del server.replaced[SHARD], server.cut_after[SHARD]
    server.requests.clear()
    assert run(page, GET, shard) == shard["bytes"]
    ranges = server.ranges_of(SHARD)
    assert str(ranges[0]).startswith("bytes=")
    assert ranges[1:] == [None]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_shorter_file(page: Any, server: FileServer, shard: dict[str, Any], knows_ranges: bool) -> None:
    """As of another export, whose manifest the page has not read."""
    server.knows_ranges = knows_ranges
    server.replaced[SHARD] = b"another"
    assert error_of(page, GET, shard).startswith(f"ModelError: {SHARD} (of 7 bytes, ")
    del server.replaced[SHARD]
    assert run(page, GET, shard) == shard["bytes"]


@pytest.mark.parametrize("change", ["other", "longer"])
def test_a_hash_that_does_not_fit(page: Any, server: FileServer, shard: dict[str, Any], change: str) -> None:
    content = (server.folder / SHARD).read_bytes()
    server.replaced[SHARD] = b"\1" + content[1:] if change == "other" else content + b"\0"
    message = error_of(page, GET, shard)
    assert message.startswith(f"ModelError: {SHARD} (of ")
    assert message.endswith("is not the manifest's; reload, or export the model again")
    del server.replaced[SHARD]
    assert run(page, GET, shard) == shard["bytes"]


def test_a_browser_that_keeps_nothing(page: Any, server: FileServer, shard: dict[str, Any]) -> None:
    code = """
        caches.open = async () => { throw new Error("not in private windows"); };
        const { Files } = await import("/weights.js"), files = new Files(location.origin + "/");
        await files.forgetOthers([argument]);
        const sizes = [(await files.get(argument)).size, (await files.get(argument)).size];
        return [...sizes, Boolean(await files.kept(argument))];"""
    assert run(page, code, shard) == [shard["bytes"], shard["bytes"], True]
    assert server.ranges_of(SHARD) == [None]  # once


def test_a_missing_file(page: Any, shard: dict[str, Any]) -> None:
    message = error_of(page, GET, shard | {"path": "weights/00009.safetensors"})
    assert message == "ModelError: weights/00009.safetensors: the server answers 404; export it again"


def test_what_an_earlier_export_left_is_dropped(page: Any, shard: dict[str, Any]) -> None:
    code = """
        const { Files } = await import("/weights.js");
        const files = new Files(location.origin + "/");
        await files.get(argument);
        await files.forgetOthers([argument]);
        const before = Boolean(await files.kept(argument));
        await files.forgetOthers([{ ...argument, sha256: "another" }]);
        return [before, Boolean(await files.kept(argument))];"""
    assert run(page, code, shard) == [True, False]


def test_a_download_that_is_cancelled(page: Any, server: FileServer, shard: dict[str, Any]) -> None:
    server.cut_after[SHARD] = 1000
    code = """
        const { Files } = await import("/weights.js");
        const controller = new AbortController();
        const onBytes = () => controller.abort();
        await new Files(location.origin + "/").get(argument, { onBytes, signal: controller.signal });"""
    assert error_of(page, code, shard).startswith("AbortError")
    assert len(server.ranges_of(SHARD)) == 1
    server.forget()
    assert run(page, GET, shard) == shard["bytes"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"format": "shaderfusion-web", "version": 2}',
            "manifest.json has version 2, and this player reads 1; export",
        ),
        (b'{"format": "else"}', "has no export of shaderfusion, or is out of reach; check it"),
        (b"<!doctype html>", "has no export of shaderfusion, or is out of reach; check it"),
    ],
)
def test_another_manifest(page: Any, server: FileServer, content: bytes, message: str) -> None:
    server.replaced["manifest.json"] = content
    code = "await (await import('/pipeline.js')).Pipeline.load('/');"
    assert message in error_of(page, code)
