"""Charts of rows, as PNG. matplotlib is an extra, imported where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from shaderfusion.arguments import missing_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["CHARTS", "require_matplotlib"]

Rows = Sequence[dict[str, Any]]

_COLORS = ("#8c96a3", "#4c78a8", "#f58518", "#54a24b", "#b279a2")
_PART_COLORS = ("#54a24b", "#4c78a8", "#f58518")
_DPI = 150


def require_matplotlib() -> None:
    """InputError where the extra is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise missing_extra("--plot", "plot") from None


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _to_png(figure: Figure) -> bytes:
    png = BytesIO()
    figure.savefig(png, format="png", dpi=_DPI)
    return png.getvalue()


def _caption(rows: Rows) -> str:
    row = rows[0]
    size = f"{row['width']}x{row['height']}, batch {row['batch']}, {row['dtype']}"
    return f"{row['model']}, {size}, {row['device']} by {row.get('runtime', 'wgpu')}"  # older rows do not say it


def _plain(axes: Axes) -> None:
    """Without the frame's lines on the right and at the top."""
    axes.spines[["right", "top"]].set_visible(False)


def ablation_chart(rows: Rows) -> bytes:
    """Three panels of bars, one bar a row: the iteration's time, its tensors, and the picture's seconds by part."""
    figure = _new_figure(11, 0.55 * len(rows) + 1.8)
    names = [row["name"] for row in rows]
    time_axes, tensors_axes, image_axes = figure.subplots(1, 3, sharey=True)
    panels = (
        (time_axes, "one UNet iteration, ms", [row["p50_ms"] for row in rows], _COLORS[1]),
        (tensors_axes, "its intermediate tensors, MB", [row["tensors_bytes"] / 1e6 for row in rows], _COLORS[1]),
    )
    for axes, title, values, color in panels:
        bars = axes.barh(names, values, color=color)
        axes.bar_label(bars, fmt="{:,.1f}", padding=3)
        axes.set_title(title)
    left = [0.0] * len(rows)
    for part, color in zip(("text_encoder", "denoising", "decoder"), _PART_COLORS, strict=True):
        values = [row["seconds"][part] for row in rows]
        image_axes.barh(names, values, left=left, color=color, label=part.replace("_", " "))
        left = [start + value for start, value in zip(left, values, strict=True)]
    for y, total in enumerate(left):
        image_axes.annotate(f"{total:,.2f}", (total, y), xytext=(3, 0), textcoords="offset points", va="center")
    image_axes.set_title(f"one picture of {rows[0]['num_steps']} steps, s")
    figure.legend(loc="outside lower right", ncols=3, frameon=False)
    time_axes.invert_yaxis()
    for axes in (time_axes, tensors_axes, image_axes):
        axes.margins(x=0.18)
        _plain(axes)
    figure.suptitle(_caption(rows), fontsize="medium")
    return _to_png(figure)


def winograd_chart(rows: Rows) -> bytes:
    """For each layer its speed over the direct convolution, by m, and the errors by m."""
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    sizes = [m for m in sorted({row["m"] for row in rows}) if m]
    figure = _new_figure(12, 0.42 * len(layers) + 2.4)
    speed_axes, error_axes = figure.subplots(1, 2, width_ratios=(3, 1))
    height = 0.8 / len(sizes)
    for index, (m, color) in enumerate(zip(sizes, _COLORS[1:], strict=False)):
        places, speedups = [], []
        for y, layer in enumerate(layers):
            times_ms = {row["m"]: row["loaded_ms"] for row in rows if row["layer"] == layer}
            if m in times_ms and 0 in times_ms:
                places.append(y + (index - (len(sizes) - 1) / 2) * height)
                speedups.append(times_ms[0] / times_ms[m])
        speed_axes.barh(places, speedups, height=height, color=color, label=f"m = {m}")
    speed_axes.axvline(1, color="black", linewidth=1)
    speed_axes.set_yticks(range(len(layers)), layers)
    speed_axes.set_ylim(len(layers) - 0.5, -0.5)
    speed_axes.set_title("times as fast as the direct convolution, filters transformed before")
    figure.legend(loc="outside lower left", ncols=len(sizes), frameon=False)

    labels = ["direct", *(f"m = {m}" for m in sizes)]
    for kind, color, title in (("noise", _COLORS[0], "white noise"), ("image", _COLORS[3], "image-like")):
        errors = [[row[f"error_{kind}"] for row in rows if row["m"] == m] for m in (0, *sizes)]
        middles = [sorted(own)[len(own) // 2] if own else float("nan") for own in errors]
        error_axes.plot(labels, middles, marker="o", color=color, label=title)
    error_axes.set_yscale("log")
    error_axes.set_title("relative error, median layer")
    error_axes.grid(axis="y", alpha=0.3)
    error_axes.legend(loc="upper left", frameon=False)
    for axes in (speed_axes, error_axes):
        _plain(axes)
    figure.suptitle(_caption(rows), fontsize="medium")
    return _to_png(figure)


CHARTS: Mapping[str, Callable[[Rows], bytes]] = {"ablation": ablation_chart, "winograd": winograd_chart}
"""By benchmark; the others have tables only."""
