"""The rows of the paper's table, on a tiny model."""

from typing import Any

import pytest
from golden.models import model_folder

from shaderfusion.bench import ablation
from shaderfusion.bench.subject import Subject, open_subject
from shaderfusion.errors import GpuMemoryError
from shaderfusion.gpu.device import Device
from shaderfusion.kernels.optimizations import Optimizations


@pytest.fixture(scope="module")
def subject(device: Device) -> Subject:
    """A tiny model at a size with enough tiles for Winograd."""
    return open_subject(str(model_folder("sd1")), device=device, width=64, height=64)


@pytest.fixture(scope="module")
def rows(subject: Subject) -> list[dict[str, Any]]:
    """Measured once."""
    return list(ablation.measure_rows(subject))


def test_rows_are_complete(subject: Subject, rows: list[dict[str, Any]]) -> None:
    assert [row["name"] for row in rows] == list(ablation.ROWS)
    for row in rows:
        assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
        assert set(row["seconds"]) == {"text_encoder", "denoising", "decoder"}
        assert row["total_s"] == pytest.approx(sum(row["seconds"].values()))
        assert row["relative_difference"] < (1e-5 if subject.dtype == "f32" else 5e-2)
    assert rows[0]["relative_difference"] == 0


def test_optimizations_show_in_the_plan(subject: Subject, rows: list[dict[str, Any]]) -> None:
    baseline, fused, softmax, flash, _ = rows
    assert baseline["dispatches"] > fused["dispatches"]
    assert fused["tensors_bytes"] >= softmax["tensors_bytes"] >= flash["tensors_bytes"]
    for row in rows:
        kernels = subject.kernels(Optimizations.parse(row["optimizations"]))
        unet = subject.graphs(kernels)["unet"]
        assert (row["dispatches"], row["weights_bytes"]) == (len(unet.calls), unet.weights_bytes)


def test_tables(rows: list[dict[str, Any]]) -> None:
    for table in ablation.tables(rows):
        assert [cells[0] for cells in table.rows] == list(ablation.ROWS)
        assert table.text().count("\n") == len(rows) + 1
        assert all(len(cells) == len(table.heading) == len(table.align) for cells in table.rows)


def test_a_row_that_does_not_fit_is_left_out(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the baseline on a device that cannot bind its matrix of scores: the others have no difference then."""
    measured = ablation._measure_row

    def measure_row(subject: Subject, optimizations: Optimizations) -> Any:
        if not optimizations.partially_fused_softmax:
            raise GpuMemoryError("too large")
        return measured(subject, optimizations)

    monkeypatch.setattr(ablation, "_measure_row", measure_row)
    monkeypatch.setattr(ablation, "ROWS", dict(list(ablation.ROWS.items())[1:3]))
    (row,) = ablation.measure_rows(subject)
    assert row["name"] == "+ partially fused softmax"
    assert row["relative_difference"] is None
    assert capsys.readouterr().err == "shaderfusion: + group norm, GELU left out: too large\n"
    assert [table.rows[0][0] for table in ablation.tables([row])] == [row["name"]] * 2
