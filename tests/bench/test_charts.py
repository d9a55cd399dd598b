"""Charts are made from rows alone, also where some rows are missing."""

from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from shaderfusion.bench.charts import CHARTS

pytest.importorskip("matplotlib", reason="comes with the plot extra")

WHERE = {"model": "sd14", "width": 512, "height": 512, "batch": 1, "dtype": "f16", "device": "A device"}


def ablation_row(name: str) -> dict[str, Any]:
    seconds = {"text_encoder": 0.01, "denoising": 1.0, "decoder": 0.05}
    return {"name": name, "p50_ms": 47.4, "tensors_bytes": 121e6, "seconds": seconds, "num_steps": 20, **WHERE}


def winograd_row(layer: str, m: int) -> dict[str, Any]:
    return {"layer": layer, "m": m, "loaded_ms": 1.0 / (1 + m), "error_noise": 1e-3, "error_image": 1e-4, **WHERE}


ROWS = {
    "ablation": [ablation_row(name) for name in ("baseline", "+ a", "+ b")],
    "winograd": [winograd_row(*what) for what in (("a", 0), ("a", 2), ("a", 4), ("b", 0), ("b", 4), ("c", 8))],
}


@pytest.mark.parametrize("name", CHARTS)
def test_chart(name: str) -> None:
    for rows in (ROWS[name], ROWS[name][-1:]):
        with Image.open(BytesIO(CHARTS[name](rows))) as image:
            assert image.format == "PNG"
            assert min(image.size) > 300
            assert image.convert("L").getextrema() != (255, 255)
