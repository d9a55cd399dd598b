"""`shaderfusion batch --ray` on a real cluster of this machine: what it makes, and that no worker loses a job."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from golden.models import model_folder

from shaderfusion.batch import ray_pool
from shaderfusion.cli import main
from shaderfusion.errors import InputError
from shaderfusion.gpu.device import list_devices

SOURCE = Path(__file__).parents[2] / "src"
SMALL = ["--output-dir", "out", "--steps", "2", "--width", "32", "--height", "32"]
TWO = ["--ray", "--workers", "2"]

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason='needs Ray: pip install -e ".[ray]"')
has_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes by /proc")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current one, with eight jobs."""
    monkeypatch.chdir(tmp_path)
    Path("jobs.txt").write_text("".join(f"a heart of {number}\n" for number in range(8)))
    return tmp_path


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path("out").glob("a-*.png")}


def start(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "shaderfusion", "batch", "jobs.txt", *SMALL, *options],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def descendants(parent: int) -> dict[int, str]:
    """Titles of the processes that a process started, and that those did."""
    titles, children = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            title, stat = (path / "cmdline").read_text(), (path / "stat").read_text()
        except OSError:  # it has ended
            continue
        titles[int(path.name)] = title.strip("\0 ")
        children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(path.name))
    found, new = {}, [parent]
    while new:
        new = [child for each in new for child in children.get(each, ())]
        found |= {child: titles[child] for child in new}
    return found


def working(parent: int) -> list[int]:
    """Workers that make a picture."""
    return [child for child, title in descendants(parent).items() if title == "ray::_Worker.make"]


def wait_for(process: subprocess.Popen[str], condition: Callable[[], Any]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


@needs_ray
@has_proc
def test_a_killed_worker_loses_no_job() -> None:
    assert main(["batch", "jobs.txt", *SMALL]) == 0
    alone = files()
    shutil.rmtree("out")
    process = start(*TWO)
    wait_for(process, lambda: len(files()) >= 2 and len(working(process.pid)) == 2)
    started = descendants(process.pid)
    killed = working(process.pid)[0]
    os.kill(killed, signal.SIGKILL)
    there = len(files())
    wait_for(process, lambda: set(working(process.pid)) - set(started))  # Ray has started another one
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert there < 7
    assert files() == alone
    assert sorted(out.split()) == sorted(f"out/{name}" for name in alone)
    assert Path("out/report.jsonl").read_text().count('"status": "made"') == 8
    assert Path("out/contact.png").exists()
    assert not [child for child in started if Path(f"/proc/{child}").exists()]  # its cluster ends with it


@needs_ray
@has_proc
def test_an_interrupt_waits_for_the_pictures_that_have_begun() -> None:
    process = start(*TWO)
    wait_for(process, lambda: len(files()) >= 1 and len(working(process.pid)) == 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert 1 < len(files()) < 8
    assert len(out.split()) == len(files())
    assert f"interrupted; {len(files())} of 8 pictures are there" in err


@needs_ray
def test_a_cluster_given_by_its_address() -> None:
    """Its GPUs are the devices of the same numbers, and paths are those of the command, wherever Ray was started."""
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    there = len(list_devices("wgpu"))
    with chdir("/"):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": there + 1})
    try:
        shutil.copytree(model_folder("sd1"), "model")
        options = ["--model", "model", "--ray", cluster.address, "--runtime", "wgpu", "--workers"]
        process = start(*options, str(there + 1))
        out, err = process.communicate()
        assert process.returncode == 2, err
        assert f"a worker of Ray on {socket.gethostname()} cannot be used: device (='{there}') must be an index" in err
        process = start(*options, str(there))
        out, err = process.communicate()
        assert process.returncode == 0, err
        assert len(files()) == 8
        assert set(out.split()) <= {f"out/{name}" for name in files()}
    finally:
        cluster.shutdown()


@needs_ray
def test_what_cannot_be_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    for address, sentence in ((f"127.0.0.1:{closed}", "refused"), ("nowhere", "Invalid address format: nowhere")):
        began = time.monotonic()
        assert main(["batch", "jobs.txt", *SMALL, "--ray", address]) == 2
        assert time.monotonic() - began < 20
        err = capsys.readouterr().err
        assert f"--ray (={address}) must be a cluster that can be reached" in err
        assert sentence in err


def test_options_that_belong_together(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["batch", "jobs.txt", *SMALL, "--workers", "2"]) == 2
    assert "--workers (=2) must come with --ray" in capsys.readouterr().err
    assert main(["batch", "jobs.txt", *SMALL, "--ray", "--device", "0"]) == 2
    assert "--device (=0) must not come with --ray" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["batch", "jobs.txt", *SMALL, "--ray"]) == 2
    assert (
        '--ray needs the extra ray, which is not installed; run `pip install -e ".[ray]"` in' in capsys.readouterr().err
    )


def node(*, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


def test_workers_of_a_cluster() -> None:
    """A GPU each, or without any a machine each."""
    mixed = [node(CPU=8, GPU=4), node(CPU=64), node(CPU=8, GPU=1.0), node(CPU=8, GPU=9, alive=False)]
    number, options = ray_pool._workers(mixed, None)
    assert number == 5
    assert options["num_gpus"] == 1
    assert ray_pool._workers(mixed, 3)[0] == 3
    with pytest.raises(InputError, match=r"--workers \(=6\) must be at most 5, the GPUs"):
        ray_pool._workers(mixed, 6)
    number, options = ray_pool._workers([node(CPU=8), node(CPU=2), node()], None)
    assert number == 2
    assert options["num_cpus"] == 1
    assert ray_pool._workers([node(CPU=8), node(CPU=2)], 10)[0] == 10
    with pytest.raises(InputError, match="at most 0, the CPUs"):
        ray_pool._workers([node()], None)
