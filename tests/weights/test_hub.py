"""Models of the hub, from a server on this machine: what is fetched, what is kept, what is refused in which words."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from golden.models import model_folder
from weights.hub_server import COMMIT, TOKEN, Hub, Repository, serve

from shaderfusion.families import open_model
from shaderfusion.weights.hub import is_hub_id

TESTS = Path(__file__).parents[1]
NOWHERE = "http://127.0.0.1:9"
"""Where no server listens."""


class Client:
    """`download` in a process with an environment of its own."""

    def __init__(self, home: Path, endpoint: str, **environment: str) -> None:
        own = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "PYTHONPATH": f"{TESTS.parent / 'src'}"}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        self.process = subprocess.Popen(
            [sys.executable, str(TESTS / "weights" / "hub_worker.py")],
            env=inherited | own | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []

    def ask(self, repo_id: str, **options: Any) -> None:
        """Sends what `answer` waits for."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"repo_id": repo_id} | options) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        while not (answer := json.loads(self.process.stdout.readline())):
            pass  # it says {} once it is there
        self.said = answer["said"]
        return answer

    def download(self, repo_id: str, **options: Any) -> Path:
        self.ask(repo_id, **options)
        return Path(self.answer()["path"])

    def refuse(self, repo_id: str, **options: Any) -> str:
        self.ask(repo_id, **options)
        return self.answer()["error"]

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serve() as hub:
        yield hub


@pytest.fixture(autouse=True)
def empty_log(hub: Hub) -> None:
    hub.log.clear()


@pytest.fixture(scope="module")
def clients(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Client]]:
    """Of one cache: online, with HF_HUB_OFFLINE, and without a network. They start at the same time."""
    home = tmp_path_factory.mktemp("hub")
    made = {
        "online": Client(home, hub.url, HF_TOKEN=TOKEN),
        "offline": Client(home, hub.url, HF_HUB_OFFLINE="1"),
        "cut off": Client(home, NOWHERE),
    }
    yield made
    for client in made.values():
        client.close()


@pytest.fixture
def online(clients: dict[str, Client]) -> Client:
    return clients["online"]


def model(**more: bytes | None) -> dict[str, bytes]:
    """A golden model's files beside what repositories have as well; `more` replaces files, and None removes one."""
    root = model_folder("sd1")
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    for component, stem in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")):
        files[f"{component}/{stem}.fp16.safetensors"] = files[f"{component}/{stem}.safetensors"]
        files[f"{component}/{stem}.non_ema.safetensors"] = b"not wanted"
    for name in (
        ".gitattributes",
        "README.md",
        "v1-5-pruned.ckpt",
        "v1-5-pruned.safetensors",
        "feature_extractor/preprocessor_config.json",
        "safety_checker/config.json",
        "safety_checker/model.safetensors",
        "text_encoder/pytorch_model.bin",
        "text_encoder/flax_model.msgpack",
        "unet/diffusion_pytorch_model.bin",
        "unet/model.onnx",
        "unet/openvino_model.xml",
        "images/grid.png",
    ):
        files[name] = b"not wanted"
    for name, data in more.items():
        files.pop(name)
        files |= {name: data} if data is not None else {}
    return files


SMALL = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "vae/config.json",
]
F16 = ["text_encoder/model.safetensors"]
F16 += [f"{name}/diffusion_pytorch_model.fp16.safetensors" for name in ("unet", "vae")]


def under(name: str, paths: list[str]) -> list[str]:
    return sorted(f"{name}/{path}" for path in paths)


def test_a_folder(hub: Hub, clients: dict[str, Client]) -> None:
    """Only what is needed, f16 where there is; then nothing more, also without the hub; the family can open it."""
    name = "someone/model"
    online = clients["online"]
    for client, reason in ((clients["offline"], "HF_HUB_OFFLINE"), (clients["cut off"], "check the network")):
        assert reason in client.refuse(name)
    hub.repositories[name] = Repository(model())
    folder = online.download(name)
    assert hub.fetched() == under(name, SMALL + F16)
    assert online.said == [f"{name}: fetching 3 files of weights, 1 MB, to {folder.parents[2]}"]
    assert (folder.name, folder.parents[2].name) == (COMMIT, "hub")
    opened = open_model(folder)
    assert opened.tokenize(["a"]).shape == (1, 16)
    assert set(opened.sources) == {"text_encoder", "unet", "vae"}

    assert online.download(name) == folder
    assert hub.fetched() == []
    assert online.said == []
    assert clients["offline"].download(name) == folder
    assert hub.log == []
    cut_off = clients["cut off"]
    assert cut_off.download(name) == folder
    assert cut_off.said[0].startswith(f"{name}: could not be fetched from {NOWHERE} (Connect")
    assert cut_off.said[0].endswith("; the copy in the cache is used")
    assert online.download(name, revision=COMMIT) == folder


def test_f32_where_it_is_asked_for_or_held(hub: Hub, online: Client) -> None:
    name = "someone/both"
    hub.repositories[name] = Repository(model())
    f32 = [path.replace(".fp16", "") for path in F16]
    folder = online.download(name, dtype="f32")
    assert hub.fetched() == under(name, SMALL + f32)
    assert online.download(name) == folder
    assert hub.fetched() == []


def test_shards_of_a_variant(hub: Hub, online: Client) -> None:
    name = "someone/shards"
    stem = "unet/diffusion_pytorch_model"
    shards = [f"{stem}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = f"{stem}.safetensors.index.fp16.json"
    text = json.dumps({"weight_map": {f"w{i}": Path(path).name for i, path in enumerate(shards)}})
    other = {f"{stem}-0000{i}-of-00003.safetensors": b"f32" for i in (1, 2, 3)}
    files = model(**{f"{stem}.fp16.safetensors": None, f"{stem}.safetensors": None})
    files |= other | {index: text.encode(), shards[0]: b"a", shards[1]: b"b"}
    hub.repositories[name] = Repository(files)
    online.download(name)
    assert hub.fetched() == under(name, [*SMALL, index, F16[0], *shards, F16[2]])
    hub.repositories["someone/lacks"] = Repository({key: files[key] for key in files if key != shards[1]})
    assert online.refuse("someone/lacks") == (
        f"someone/lacks: the repository lacks {shards[1]}, which the model needs; choose another"
    )


def test_one_file(hub: Hub, clients: dict[str, Client]) -> None:
    online = clients["online"]
    hub.repositories["someone/one"] = Repository({"README.md": b"", "a b.safetensors": b"one", "a.ckpt": b""})
    hub.repositories["someone/two"] = Repository({"a.safetensors": b"a", "sub/b.safetensors": b"b"})
    path = online.download("someone/one")
    assert path.read_bytes() == b"one"
    assert path.name == "a b.safetensors"
    assert online.download("someone/two/sub/b.safetensors").read_bytes() == b"b"
    assert hub.fetched() == ["someone/one/a b.safetensors", "someone/two/sub/b.safetensors"]
    for client in clients.values():
        assert client.download("someone/one") == path
    assert clients["offline"].download("someone/two/sub/b.safetensors").read_bytes() == b"b"
    assert hub.fetched() == []
    choices = "name one as someone/two/a.safetensors, of a.safetensors, sub/b.safetensors"
    assert online.refuse("someone/two") == f"someone/two: the checkpoint must be named by its file; {choices}"
    refused = online.refuse("someone/two/c.safetensors")
    assert refused == f"someone/two: the checkpoint has no file c.safetensors; {choices}"


def test_a_cut_is_resumed_where_it_was(hub: Hub, online: Client) -> None:
    """By huggingface_hub, which writes 10 MiB at once, after a second; of older ones the next run does it."""
    data = bytes(range(256)) * (12 << 12)
    hub.repositories["someone/large"] = Repository({"a.safetensors": data})
    hub.cut_after["someone/large/a.safetensors"] = 11 << 20
    online.ask("someone/large")
    answer = online.answer()
    if "error" in answer:
        assert "check the network and try again" in answer["error"]
        online.ask("someone/large")
        answer = online.answer()
    assert Path(answer["path"]).read_bytes() == data
    gets = [method for method, path in hub.log if path.endswith("a.safetensors") and method != "HEAD"]
    assert gets in (["GET", f"bytes={10 << 20}-"], ["GET", f"bytes={11 << 20}-"])


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_interrupted(hub: Hub, clients: dict[str, Client]) -> None:
    """What is whole stays, what is not is no file of the cache, and the next run fetches the rest alone."""
    name, online = "someone/slow", clients["online"]
    hub.repositories[name] = Repository(model())
    begun = hub.stall[f"{name}/{F16[1]}"] = threading.Event()
    online.ask(name)
    assert begun.wait(20)
    online.process.send_signal(signal.SIGINT)
    assert online.answer()["error"] == "interrupted"
    assert hub.fetched() == under(name, SMALL + F16[:2])
    assert "not whole in the cache" in clients["offline"].refuse(name)
    folder = online.download(name)
    assert hub.fetched() == under(name, F16[1:])
    assert (folder / F16[1]).read_bytes() == hub.repositories[name].files[F16[1]]


def test_access(hub: Hub, clients: dict[str, Client]) -> None:
    hub.repositories["someone/gated"] = Repository(model(), access="gated")
    hub.repositories["someone/private"] = Repository({"a.safetensors": b"a"}, access="private")
    online = clients["online"]
    assert online.refuse("someone/gated") == (
        f"someone/gated: the model is gated: accept its licence at {hub.url}/someone/gated, then log in with "
        "`hf auth login` or set HF_TOKEN"
    )
    assert online.download("someone/private").read_bytes() == b"a"  # by the token
    assert online.refuse("someone/absent") == (
        f"someone/absent: neither a path here nor a public model at {hub.url}; check the name, and where the model is "
        "private, log in with `hf auth login` or set HF_TOKEN"
    )
    assert online.refuse("someone/private", revision="dev") == (
        f"someone/private: has no revision 'dev'; {hub.url}/someone/private/refs lists branches and tags"
    )
    assert online.refuse("some--one/x").startswith("some--one/x: the hub has no such names (")
    assert "must be owner/name" in online.refuse("model")


@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json", "vae/config.json"])
def test_a_missing_file(name: str, hub: Hub, online: Client) -> None:
    hub.repositories["someone/partial"] = Repository(model(**{name: None}))
    assert online.refuse("someone/partial") == (
        f"someone/partial: the repository lacks {name}, which the model needs; choose another"
    )


def test_pickles_only(hub: Hub, online: Client) -> None:
    stem = "unet/diffusion_pytorch_model"
    names = (f"{stem}{variant}.safetensors" for variant in ("", ".fp16", ".non_ema"))
    hub.repositories["someone/pickles"] = Repository(model(**dict.fromkeys(names)))
    hub.repositories["someone/pickle"] = Repository({"a.ckpt": b"", "b.txt": b""})
    refused = online.refuse("someone/pickles")
    assert refused.startswith(f"someone/pickles/{stem}.bin: pickle files can run code when opened")
    assert refused.endswith("for a .ckpt; or name someone/pickles/v1-5-pruned.safetensors")
    assert online.refuse("someone/pickle").startswith("someone/pickle/a.ckpt: pickle files can run code when opened")
    assert online.refuse("someone/pickle/a.ckpt").startswith("someone/pickle/a.ckpt: pickle files can run code")
    assert hub.fetched() == ["someone/pickles/model_index.json"]


def test_other_pipelines_are_refused_before_they_are_fetched(hub: Hub, online: Client) -> None:
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "x"], "vae": ["diffusers", "x"]}
    files = model(**{"model_index.json": json.dumps(index).encode()})
    hub.repositories["someone/flux"] = Repository(files)
    assert "its pipeline (='FluxPipeline') has no unet" in online.refuse("someone/flux")
    hub.repositories["someone/nothing"] = Repository({"README.md": b""})
    assert "neither model_index.json nor a .safetensors file" in online.refuse("someone/nothing")
    assert hub.fetched() == ["someone/flux/model_index.json"]


def test_what_cannot_be_opened_is_refused_before_its_weights_are_fetched(hub: Hub, online: Client) -> None:
    config = json.loads(model()["unet/config.json"]) | {"class_embed_type": "timestep"}
    hub.repositories["someone/classes"] = Repository(model(**{"unet/config.json": json.dumps(config).encode()}))
    refused = online.refuse("someone/classes", check=True)
    assert "unet/config.json: class_embed_type (='timestep') is not supported" in refused
    assert hub.fetched() == under("someone/classes", SMALL)


def test_disk_full(hub: Hub, online: Client) -> None:
    """Before the transfer by the sizes that the hub tells, and within it."""
    hub.repositories["someone/huge"] = Repository({"a.safetensors": b"a"}, sizes={"a.safetensors": 10**18})
    refused = online.refuse("someone/huge")
    assert "someone/huge: 1,000,000,000,000 MB are to be fetched, and the disk of " in refused
    assert "set HF_HOME to a folder on another disk" in refused
    hub.repositories["someone/mid"] = Repository({"a.safetensors": bytes(1 << 20)})
    if os.name != "nt":
        refused = online.refuse("someone/mid", largest_file=1 << 16)
        assert "is full (File too large); make room there, or set HF_HOME to another folder" in refused


def test_a_hub_that_fails(hub: Hub, online: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "failing", True)
    refused = online.refuse("someone/other")
    assert refused.startswith(f"someone/other: could not be fetched from {hub.url} (HfHubHTTPError: ")
    assert "503" in refused


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CompVis/stable-diffusion-v1-4", True),
        ("someone/some.thing_2/sub/a file.safetensors", True),
        ("someone/a.ckpt/x.ckpt", True),
        ("emoji", False),
        ("./model", False),
        ("../models/sd", False),
        ("/models/sd", False),
        ("~/models", False),
        ("C:\\models\\sd", False),
        ("models/sd.safetensors", False),
        ("models/sd.ckpt", False),
        ("models/sd/unet", False),
        ("owner/", False),
        ("owner/name/", False),
        ("owner//name", False),
        ("ówner/name", False),
        ("a" * 5000, False),
        ("", False),
    ],
)
def test_ids(name: str, expected: bool) -> None:
    assert is_hub_id(name) is expected


def test_a_path_that_exists_is_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("some/folder")
    (tmp_path / "some" / "folder").mkdir(parents=True)
    assert not is_hub_id("some/folder")
    assert not is_hub_id(Path("other/folder"))
