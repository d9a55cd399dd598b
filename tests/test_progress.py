"""How far a job is, and what a terminal shows of it."""

import sys

import pytest

from shaderfusion.output import progress_line, say, show
from shaderfusion.progress import JobProgress, Stage


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def do_steps(job: JobProgress, clock: Clock, *seconds: float) -> list[float | None]:
    """What is left after each of some steps."""
    left = []
    for each in seconds:
        clock.now += each
        job.advance()
        left.append(job.seconds_left)
    return left


def test_the_first_step_says_nothing() -> None:
    clock = Clock()
    job = JobProgress([Stage(5)], clock=clock)
    assert (job.part, job.step, job.num_steps, job.seconds_left) == ("loading", 0, 5, None)
    assert do_steps(job, clock, 60, 2, 4, 3, 3) == [None, 6, 6, 3, 0]
    assert job.step == 5


def test_a_later_stage_is_guessed_from_its_work_and_then_measured() -> None:
    clock = Clock()
    job = JobProgress([Stage(3, work=10), Stage(2, "hires", work=40), Stage(2, "hires", work=40)], clock=clock)
    assert do_steps(job, clock, 9, 1, 1) == [None, 1 + 4 * 4, 4 * 4]
    clock.now += 50  # decoding
    job.start(1)
    assert job.step == 3
    assert do_steps(job, clock, 30, 6) == [3 * 4, 2 * 6]
    job.start(2)
    assert do_steps(job, clock, 7, 7) == [6, 0]


def test_a_stage_that_begins_again() -> None:
    clock = Clock()
    job = JobProgress([Stage(2), Stage(2)], clock=clock)
    do_steps(job, clock, 1, 1)
    job.restart()
    assert job.step == 0
    do_steps(job, clock, 1, 1)
    assert job.step == 2
    job.start(1)
    assert job.step == 2


def test_parts_by_the_stage_that_runs() -> None:
    changes: list[str] = []
    job = JobProgress([Stage(2), Stage(1, "hires")], clock=Clock())
    job.watch = lambda: changes.append(str(job))
    for part in ("text", "denoise"):
        job.begin(part)
    job.advance()
    job.advance()
    job.begin("decode")
    job.start(1)
    job.begin("encode")
    job.begin("denoise")
    job.advance()
    assert changes == [
        "text",
        "denoising 0/3",
        "denoising 1/3",
        "denoising 2/3, 0 s left",
        "decoding",
        "decoding",
        "encoding",
        "second pass 2/3, 0 s left",
        "second pass 3/3, 0 s left",
    ]


def lines_of(err: str) -> list[str]:
    """Each that was drawn, without the bar and without spaces after it."""
    return [line.rpartition("]")[2].strip() for line in err.split("\r")[1:]]


def test_line_of_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    clock = Clock()
    job = JobProgress([Stage(4)], clock=clock)
    with progress_line(job):
        job.begin("text")
        job.begin("denoise")
        do_steps(job, clock, 3, 2, 2)
        err = capsys.readouterr().err
        assert lines_of(err) == [
            "loading",
            "text",
            "denoising 0/4",
            "denoising 1/4",
            "denoising 2/4, 4 s left",
            "denoising 3/4, 2 s left",
        ]
        drawn = err.split("\r")[1:]
        assert len({len(line) for line in drawn}) == 1  # each covers the one before
        assert drawn[-2].startswith(f"[{'#' * 15}{' ' * 15}] ")
        assert "\n" not in err
        for write in (say, show):  # what is written meanwhile has the line for itself
            write("news")
            out, err = capsys.readouterr()
            assert err.startswith(f"\r{' ' * len(drawn[0])}\r")
            assert (out + err.split("\r")[2]).endswith("news\n")
            job.advance()
            assert capsys.readouterr().err.startswith("\r[")
    assert capsys.readouterr().err == "\n"
    job.advance()  # nobody looks any more
    assert capsys.readouterr().err == ""


def test_no_line_without_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    job = JobProgress([Stage(1)])
    with progress_line(job):
        job.begin("denoise")
        job.advance()
        say("news")
    assert capsys.readouterr().err == "shaderfusion: news\n"
