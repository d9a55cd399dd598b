"""Files of jobs, and their variations."""

import json
from pathlib import Path

import pytest

from shaderfusion.batch.jobs import Job, read_jobs, read_variation, vary
from shaderfusion.errors import InputError, ModelError

KNOWN = ("prompt", "negative_prompt", "guidance_scale", "seed")


def settings_of(path: Path) -> list[dict[str, str]]:
    return [dict(job.settings) for job in read_jobs(path, KNOWN)]


def test_three_kinds_of_files_say_the_same(tmp_path: Path) -> None:
    text, table, objects = (tmp_path / f"jobs{suffix}" for suffix in (".txt", ".csv", ".jsonl"))
    text.write_text("\ufeffa fox, red\n\n  é 狐 \n", "utf-8")
    table.write_text('prompt,Negative,guidance,seed\n"a fox, red",,,\n"é 狐",bad,7.5,5\n', "utf-8")
    objects.write_text(
        json.dumps({"prompt": "a fox, red", "seed": None})
        + "\n\n"
        + json.dumps({"prompt": "é 狐", "negative-prompt": "bad", "guidance scale": 7.5, "seed": 5}),
        "utf-8",
    )
    assert settings_of(text) == [{"prompt": "a fox, red"}, {"prompt": "é 狐"}]
    full = [
        {"prompt": "a fox, red"},
        {"prompt": "é 狐", "negative_prompt": "bad", "guidance_scale": "7.5", "seed": "5"},
    ]
    assert settings_of(table) == settings_of(objects) == full
    assert [job.place for job in read_jobs(objects, KNOWN)] == [f"{objects}, line 1", f"{objects}, line 3"]


def test_semicolons_between_cells(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt;seed;\n"a; fox, red";5;\n', "utf-8")
    assert settings_of(tmp_path / "a.csv") == [{"prompt": "a; fox, red", "seed": "5"}]
    (tmp_path / "b.csv").write_text('prompt,"seed"\na;b,5\n', "utf-8")
    assert settings_of(tmp_path / "b.csv") == [{"prompt": "a;b", "seed": "5"}]


def test_lines_end_where_editors_end_them(tmp_path: Path) -> None:
    text = "a fox\u2028in snow\r\na dog\x85\ra cat"
    (tmp_path / "a.txt").write_text(text, "utf-8", newline="")
    (tmp_path / "a.csv").write_text(f"prompt\r\n{text}\n", "utf-8", newline="")
    expected = ["a fox\u2028in snow", "a dog", "a cat"]
    for name in ("a.txt", "a.csv"):
        assert [each["prompt"].strip() for each in settings_of(tmp_path / name)] == expected


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.yaml", "", "must be a file that ends in .txt, .csv, .jsonl"),
        ("a.txt", "\n \n", "must have at least one job"),
        ("a.txt", "x\n" * 100_001, "must make at most 100,000 jobs"),
        ("a.csv", "prompt\n", "must have at least one job"),
        ("a.csv", "prompt,colour\nx,red\n", "line 2: 'colour' must be one of prompt, negative_prompt"),
        ("a.csv", "prompt,seed\nx\n", "line 2: must have as many cells"),
        ("a.csv", "prompt\nx,5\n", "line 2: must have as many cells"),
        ("a.csv", "prompt,seed,seed\nx,5,6\n", "line 1: must have each column once, not prompt, seed, seed"),
        ("a.csv", "prompt,guidance,guidance_scale\nx,5,6\n", "line 2: must have guidance_scale once, also by another"),
        ("a.jsonl", '{"prompt": "x", "seed": 5, "Seed": 6}', "line 1: must have seed once"),
        ("a.csv", "prompt,seed\n,5\n", "line 2: must have a prompt"),
        ("a.csv", 'prompt\n"x\n', "is not CSV"),
        ("a.jsonl", '{"prompt": "x"}\n{', "line 2: is not valid JSON"),
        ("a.jsonl", "[]", "line 1: must hold a JSON object"),
        ("a.jsonl", '{"prompt": ["x"]}', r"'prompt' \(=\['x'\]\) must be a text or a number"),
        ("a.jsonl", '{"prompt": true}', "must be a text or a number"),
        ("a.jsonl", '{"seed": 5}', "line 1: must have a prompt"),
    ],
)
def test_what_is_no_job(name: str, text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_jobs(tmp_path / name, KNOWN)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no such file; check its name$"):
        read_jobs(tmp_path / "none.txt", KNOWN)
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(ModelError, match="must be UTF-8"):
        read_jobs(tmp_path / "a.txt", KNOWN)


def test_variations() -> None:
    assert read_variation("seed=1..4", KNOWN) == ("seed", ["1", "2", "3", "4"])
    assert read_variation("guidance=5,7.5", KNOWN) == ("guidance_scale", ["5", "7.5"])
    assert read_variation("prompt=x", KNOWN) == ("prompt", ["x"])
    for text, sentence in [
        ("seed", "must be NAME=VALUE"),
        ("seed=", "must be NAME=VALUE"),
        ("colour=red", "'colour' must be one of prompt"),
        ("seed=4..1", "must have its smaller number first"),
        (f"seed=0..{'9' * 20}", "must make at most 100,000 jobs"),
    ]:
        with pytest.raises(InputError, match=sentence):
            read_variation(text, KNOWN)


def test_every_combination() -> None:
    jobs = [Job({"prompt": "x"}, "1"), Job({"prompt": "y", "seed": "9"}, "2")]
    varied = vary(jobs, [("seed", ["1", "2"]), ("guidance_scale", ["5", "7"])])
    assert [tuple(job.settings.values()) for job in varied] == [
        *(("x", seed, scale) for seed in "12" for scale in "57"),
        *(("y", seed, scale) for seed in "12" for scale in "57"),
    ]
    with pytest.raises(InputError, match="--vary must make at most 100,000 jobs, not 200,000"):
        vary(jobs, [("seed", ["1"] * 100_000)])
