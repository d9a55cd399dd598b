"""`shaderfusion verify`: cases whose values diffusers made of tiny models pass, wrong ones fail, a report says so."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from golden.models import FOLDER, model_folder

from shaderfusion import __version__
from shaderfusion.bench.subject import SD14_FOLDER
from shaderfusion.errors import InputError
from shaderfusion.families import open_model
from shaderfusion.families.family import Family
from shaderfusion.gpu.device import list_devices
from shaderfusion.schedulers import SCHEDULERS
from shaderfusion.verify import command
from shaderfusion.verify.cases import PUBLISHED, Case
from shaderfusion.verify.command import run_verify
from shaderfusion.verify.compare import request_of


def read_golden() -> list[Case]:
    """What tests/golden/make_verify.py wrote."""
    rows: list[dict[str, Any]] = json.loads((FOLDER / "verify.json").read_text("utf-8"))
    for row in rows:
        row |= {"expected": tuple(row["expected"]), "corner": tuple(row["corner"])}
    return [Case(**row) for row in rows]


GOLDEN = read_golden()
SD1 = str(model_folder("sd1"))


@pytest.mark.parametrize(
    ("model", "names"), [("sd1", "pndm ddim lms dpmpp_2m lcm torch"), ("sd2", "v v-euler v-euler_a")]
)
def test_what_diffusers_makes_passes(model: str, names: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(model_folder(model))
    assert run_verify(folder, as_json=True, published=GOLDEN) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    info = list_devices()[0]
    assert report["cases"][0].keys() >= {"expected", "actual", "difference", "tolerance", "source", "prompt", "seconds"}
    assert [row["name"] for row in report["cases"]] == [f"{model}-{name}" for name in names.split()]
    assert all(row["difference"] < 1e-4 for row in report["cases"])
    assert (report["passed"], report["checkpoints_passed"]) == (True, [model])
    assert (report["model"], report["device"], report["dtype"]) == (folder, info.name, "f32")
    assert (report["driver"], report["runtime"], report["version"]) == (info.driver, info.runtime, __version__)
    assert report["weights"]["unet"] == "F16"
    assert f"gives what diffusers publishes for {model}" in err


def test_a_wrong_value_fails(capsys: pytest.CaptureFixture[str]) -> None:
    right = GOLDEN[0]
    values = (*right.expected[:8], right.expected[8] + 2 * right.tolerance)
    wrong = replace(right, name="wrong", expected=values, dtype="f16")
    assert run_verify(SD1, published=[right, wrong]) == 1
    out, err = capsys.readouterr()
    heading, first, second = out.split("\n\n")
    assert "scheduler_config  class_name PNDMScheduler, beta_start 0.00085, " in heading
    assert first.startswith("sd1-pndm: passed\n")
    assert second.startswith("wrong: FAILED\n")
    lines = {line[:18].strip(): line[18:] for line in second.splitlines()[1:]}
    assert lines["difference"] == "0.0002 at most; tolerance 0.0001, of f16, where this run is in f32"
    assert first.splitlines()[-2].endswith("; tolerance 0.0001")
    assert lines["expected"].split()[:8] == [f"{value:.5f}" for value in right.expected[:8]]
    assert lines["actual"] != lines["expected"]
    assert lines["values"] == "image[0, -3:, -3:, -1], in 0..1"
    assert lines["picture"] == "32x32 px, 3 steps, guidance 7.5"
    assert "does not give what diffusers publishes for sd1; that is a fault where it is one of them" in err


def test_one_checkpoint_of_two_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    """Of models that their configuration does not tell apart, as SD 1.1 and 1.4."""
    other = replace(GOLDEN[0], name="other", checkpoint="other", expected=(0.5,) * 9)
    assert run_verify(SD1, published=[other, GOLDEN[0]]) == 0
    out, err = capsys.readouterr()
    assert "\nother: FAILED\n" in out
    assert err.endswith("gives what diffusers publishes for sd1\n")


def test_cases_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verify(SD1, cases="sd1-dpmpp_2m, sd1-pndm", published=GOLDEN) == 0
    out = capsys.readouterr().out
    assert [line.split(":")[0] for line in out.splitlines() if line.startswith("sd1-")] == ["sd1-dpmpp_2m", "sd1-pndm"]
    assert "  scheduler       dpmpp_2m, final_sigmas_type sigma_min\n" in out
    with pytest.raises(InputError, match=r"cases \(='best'\) must be of sd1-pndm, sd1-ddim, .*, with commas between"):
        run_verify(SD1, cases="best", published=GOLDEN)
    with pytest.raises(
        InputError, match=r"case \(=sd2-v\) is for models such as sd2: .* and v_prediction, which .*sd1 is"
    ):
        run_verify(SD1, cases="sd2-v", published=GOLDEN)
    with pytest.raises(
        InputError, match=r"must be one that diffusers publishes values of: CompVis/stable-diffusion-v1-4,"
    ):
        run_verify("emoji")


def test_a_model_of_the_hub(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is fetched in f32, once its configuration is known to have a case."""

    def fetch(repo_id: str, *, dtype: str, check: Callable[[Path], object]) -> Path:
        assert (repo_id, dtype) == ("someone/model", "f32")
        check(Path(SD1))
        return Path(SD1)

    monkeypatch.setattr(command, "download", fetch)
    assert run_verify("someone/model", cases="sd1-ddim", published=GOLDEN) == 0
    assert capsys.readouterr().out.startswith("model             someone/model\n")
    with pytest.raises(InputError, match="must be one that diffusers publishes values of"):
        run_verify("someone/model")


def test_options_of_the_scheduler_count() -> None:
    model = open_model(SD1)
    case = next(case for case in GOLDEN if case.name == "sd1-dpmpp_2m")
    changed, own = (request_of(each, model).schedule for each in (case, replace(case, scheduler_options={})))
    assert changed.updates[-1] != own.updates[-1]
    assert (changed.name, changed.timesteps) == ("dpmpp_2m", own.timesteps)


# ---- the published ones, without their weights


@pytest.fixture(scope="module")
def sd14(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Stable Diffusion 1.4 by its configurations."""
    folder = tmp_path_factory.mktemp("sd14")
    shutil.copytree(SD14_FOLDER, folder, dirs_exist_ok=True)
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(Path(SD1) / name, folder / name)
    shutil.copy(Path(SD1) / "model_index.json", folder)
    config = folder / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {"model_max_length": 77}), encoding="utf-8")
    return open_model(folder)


def test_which_fit(sd14: Family) -> None:
    fitting = [case for case in PUBLISHED if case.fits(sd14)]
    assert {case.name.split("-")[0] for case in fitting} == {"sd14", "sd11"}
    assert len(fitting) == 6


@pytest.mark.parametrize("case", PUBLISHED, ids=lambda case: case.name)
def test_published_case(case: Case, sd14: Family) -> None:
    """Values of a picture, and a recipe that can be followed."""
    assert len(case.expected) == 9
    assert all(0 <= value <= 1 for value in case.expected)
    assert 0 < case.tolerance <= 5e-2
    assert case.source.startswith("diffusers ")
    assert case.scheduler in (None, *SCHEDULERS)
    if not case.fits(sd14):
        return
    request = request_of(case, sd14)
    assert (request.size.width_px, request.size.height_px, request.size.guidance) == (512, 512, True)
    assert request.schedule.name == case.scheduler
    if case.noise == "numpy":  # the first of numpy's, in the order of torch's dimensions
        assert request.latents is not None
        assert request.latents.shape == (1, 64, 64, 4)
        assert request.latents[0, 0, :3, 0] == pytest.approx([1.76405235, 0.40015721, 0.97873798])
    else:
        assert request.latents is None


def test_names_are_distinct() -> None:
    assert len({case.name for case in PUBLISHED}) == len(PUBLISHED)
