"""Winograd beside direct 3x3 convolutions at SD 1.4's shapes: `python -m benchmarks.kernels.bench_winograd_conv`.

TFLOP/s are those of the direct sum, whatever the algorithm multiplies. The error is against float64 on a corner of
15 x 15 pixels, for white noise, the worst of inputs. The last columns are the passes, timed one by one: their sum is
more than the whole, in which strips overlap.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shapes import CONV2D
from shaderfusion.bench.measure import environment, measure, program_of, relative_error
from shaderfusion.errors import DeviceLimitError
from shaderfusion.gpu.device import Device, open_device
from shaderfusion.kernels import reference
from shaderfusion.kernels.baseline.conv2d_direct import conv2d_direct
from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.common.matmul import LaneTile, Tile
from shaderfusion.kernels.optimized.winograd_conv import TILE_SIZES, winograd_conv, winograd_filters
from shaderfusion.tensor import TensorSpec

__all__ = ["main"]

CORNER = 15  # pixels; a tile of m = 8 and most of the next
CHECKED_CHANNELS = 16


def main() -> None:
    """A table, the environment, and with --output all rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="index or part of the name (`shaderfusion devices`)")
    parser.add_argument("--output", type=Path, help="JSON file of the rows")
    parser.add_argument("--shape", default="", help="only shapes whose name contains this")
    parser.add_argument("--m", type=int, nargs="*", default=TILE_SIZES, help="output tile sizes")
    parser.add_argument("--tile", type=int, nargs=5, help="of the products: m n k thread_m thread_n4")
    parser.add_argument("--max-temporary-mib", type=int, default=64, help="of V and M together")
    args = parser.parse_args()
    device = open_device(args.device)
    on_cpu = device.info.kind == "CPU" and device.has("subgroup")
    tile = LaneTile() if on_cpu else Tile(64, 128)
    products_tile = Tile(*args.tile) if args.tile else tile
    where = environment(device)
    rows = []
    for name, (B, H, W, C_in, C_out) in CONV2D.items():
        if args.shape not in name:
            continue
        dtype = device.info.default_dtype
        x = TensorSpec("x", (B, H, W, C_in), dtype, "input")
        out = TensorSpec("out", (B, H, W, C_out), dtype, "output")
        filters = np.random.default_rng(1).standard_normal((C_out, C_in, 3, 3), np.float32)
        filters = filters.astype(np.float16 if dtype == "f16" else np.float32)
        flop = 2 * B * H * W * 9 * C_in * C_out

        weight = TensorSpec("weight", (3, 3, C_in, C_out), dtype, "input")
        calls = conv2d_direct(x, weight, out, tile=tile)
        rows.append(_row(device, f"direct {name}", calls, filters.transpose(2, 3, 1, 0), filters, flop) | where)
        for m in args.m:
            weight = TensorSpec("weight", ((m + 2) ** 2, C_in, C_out), dtype, "input")
            limit = args.max_temporary_mib * 2**20
            calls = winograd_conv(x, weight, out, m=m, tile=products_tile, max_temporary_bytes=limit)
            try:
                row = _row(device, f"F({m}x{m}) {name}", calls, winograd_filters(filters, m), filters, flop)
            except DeviceLimitError as error:
                print(f"F({m}x{m}) {name}: {error}")
                continue
            rows.append(row | {"m": m, "tile": str(products_tile), **where})
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def _row(
    device: Device, name: str, calls: Sequence[KernelCall], weight: np.ndarray, filters: np.ndarray, flop: float
) -> dict[str, Any]:
    calls = [replace(call, label=call.name) for call in calls]
    program, arrays = program_of(device, calls)
    program.write("weight", weight)
    program.run()
    inputs = arrays["x"][:1, : CORNER + 1, : CORNER + 1].astype(np.float64)
    taps = filters[:CHECKED_CHANNELS].transpose(2, 3, 1, 0).astype(np.float64)
    # The corner's own border is the image's zeros on two sides; on the others it is cut off.
    expected = reference.conv2d_direct(inputs, taps)[0, :CORNER, :CORNER]
    actual = program.read("out")[0, :CORNER, :CORNER, :CHECKED_CHANNELS].astype(np.float64)
    error = relative_error(actual, expected)

    timed = measure(program)
    tflop_per_s = flop / timed.p50_ms / 1e9
    passes: defaultdict[str, float] = defaultdict(float)
    for label, ms in program.profile_ms():
        passes[label] += ms
    detail = ", ".join(f"{label.split('.')[-1]} {ms:.3f}" for label, ms in passes.items())
    print(f"{name:22} {timed.p50_ms:9.4f} ms {tflop_per_s:7.2f} TFLOP/s  error {error:.1e}  {detail}", flush=True)
    more = {
        "flop": flop,
        "tflop_per_s": tflop_per_s,
        "relative_error": error,
        "dispatches": len(calls),
        "temporary_bytes": program.plan.total_bytes,
    }
    return {"name": name, **asdict(timed), **more, "passes_ms": dict(passes)}


if __name__ == "__main__":
    main()
