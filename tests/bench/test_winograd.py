"""Winograd's table at a tiny model's layers: which there are, which m each takes, times and errors."""

from typing import Any

import pytest
from golden.models import model_folder

from shaderfusion.bench import winograd
from shaderfusion.bench.subject import Subject, open_subject
from shaderfusion.gpu.device import Device
from shaderfusion.kernels.optimized.winograd_conv import TILE_SIZES


@pytest.fixture(scope="module")
def subject(device: Device) -> Subject:
    """A tiny model in f32, at a size with enough tiles for Winograd."""
    return open_subject(str(model_folder("sd1")), device=device, dtype="f32", width=64, height=64)


@pytest.fixture(scope="module")
def rows(subject: Subject) -> list[dict[str, Any]]:
    """Measured once."""
    return list(winograd.measure_rows(subject))


def test_layers_are_those_of_the_graphs(subject: Subject) -> None:
    layers = winograd.find_layers(subject)
    convolutions = [
        weight
        for name, graph in subject.graphs(subject.kernels()).items()
        for weight in graph.weights.values()
        if len(weight.source_shape) == 4 and weight.source_shape[2:] == (3, 3) and "downsamplers" not in weight.paths[0]
    ]
    assert sum(len(used) for used in layers.values()) == len(convolutions)
    assert {m for used in layers.values() for m in used} <= {0, *TILE_SIZES}
    transformed = sum("winograd" in weight.layout for weight in convolutions)
    assert sum(m != 0 for used in layers.values() for m in used) >= transformed


def test_upsampled_layers_have_their_full_size(device: Device) -> None:
    assert winograd.Layer("unet", (2, 16, 16, 128), 128) in winograd.find_layers(open_subject("emoji", device=device))


def test_rows(subject: Subject, rows: list[dict[str, Any]]) -> None:
    layers = winograd.find_layers(subject)
    assert len(rows) == len(layers) * (1 + len(TILE_SIZES))
    limits = {0: 1e-5, 2: 1e-5, 4: 2e-5, 6: 1e-4, 8: 1e-3}
    for row in rows:
        assert row["p50_ms"] > 0
        assert row["loaded_ms"] > 0
        assert 0 < row["error_noise"] < limits[row["m"]]
        assert 0 < row["error_image"] < limits[row["m"]]
        assert row["used"] <= row["count"]


def test_tables(rows: list[dict[str, Any]]) -> None:
    costs, loaded, plain = winograd.tables(rows)
    assert [cells[:4] for cells in costs.rows] == [
        ("direct", "1.00x", "1.00x", "1.00x"),
        ("2", "2.25x", "4.00x", "1.78x"),
        ("4", "4.00x", "2.25x", "4.00x"),
        ("6", "5.06x", "1.78x", "7.11x"),
        ("8", "5.76x", "1.56x", "11.11x"),
    ]
    assert [cells[0] for cells in loaded.rows] == [cells[0] for cells in plain.rows]
    assert len(loaded.rows) == len({row["layer"] for row in rows})
    without_m8 = [row for row in rows if row["m"] != 8]  # as where its filters do not fit
    assert winograd.tables(without_m8)[1].rows[0][6] == ""
