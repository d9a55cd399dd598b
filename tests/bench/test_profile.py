"""Where the time goes, on a tiny model."""

import dataclasses

import pytest
from golden.models import model_folder

from shaderfusion.bench import profile
from shaderfusion.bench.subject import open_subject
from shaderfusion.errors import DeviceError
from shaderfusion.gpu.device import Device


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_rows(device: Device, name: str) -> None:
    if not device.info.has_timestamps:
        pytest.skip("a profile needs timestamps")
    subject = open_subject(str(model_folder(name)), device=device, width=32, height=32)
    rows = list(profile.measure_rows(subject))
    for network, graph in subject.graphs(subject.kernels()).items():
        own = [row for row in rows if row["network"] == network]
        assert sum(row["dispatches"] for row in own) == len(graph.calls) - graph.num_once
        assert sum(row["share"] for row in own) == pytest.approx(1)
        assert [row["p50_ms"] for row in own] == sorted((row["p50_ms"] for row in own), reverse=True)
        assert {row["name"] for row in own} == {call.name for call in graph.calls}
    for table in profile.tables(rows):
        assert table.rows[-1][0] == "all"


def test_needs_timestamps(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "info", dataclasses.replace(device.info, has_timestamps=False))
    with pytest.raises(DeviceError, match="has no timestamps, which a profile needs"):
        next(iter(profile.measure_rows(open_subject("emoji", device=device))))
