"""An export replayed from its files alone, as the player in the browser does it: no graph, no kernel, no checkpoint."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

DTYPES = {"f16": np.float16, "f32": np.float32}
TABLE_DTYPES = {"f16": "<f2", "f32": "<f4"}
PARAMS_BYTES = 256
SUBGROUPS = "enable subgroups;\n"
"""wgpu-native does without, and does not know it."""


class Replay:
    """One variant of an export on a device of a WebGPU implementation."""

    def __init__(self, device: Any, folder: Path, variant: str) -> None:
        self.device = device
        self.folder = folder
        self.manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
        self.variant = next(each for each in self.manifest["variants"] if each["name"] == variant)
        self.networks: dict[str, Any] = {}
        self.pipelines: list[tuple[Any, Any]] = []
        self.buffers: list[Any] = []
        self._shaders: list[Any] = []
        self.rows: list[dict[str, Any]] = []
        self._add(self.variant["program"])

    def add_ablation(self) -> None:
        """The rows' networks too."""
        self._add(self.variant["ablation"]["program"])

    def _add(self, file: dict[str, Any]) -> None:
        program = json.loads((self.folder / file["path"]).read_text("utf-8"))
        codes = [code.replace(SUBGROUPS, "") for code in program["shaders"]]
        self._shaders += [self.device.create_shader_module(code=code) for code in codes]
        self.pipelines += map(self._make_pipeline, program["pipelines"])
        usage = "STORAGE|UNIFORM|COPY_SRC|COPY_DST"
        self.buffers += [self.device.create_buffer(size=size, usage=usage) for size in program["buffers"]]
        params = program["params"]
        for index, words in enumerate(params["values"]):
            data = np.array(words, np.uint32)
            self.device.queue.write_buffer(self.buffers[params["buffer"]], index * PARAMS_BYTES, data)
        self.networks |= program["networks"]
        self.rows = program.get("rows", self.rows)
        self._prepare(program["prepare"])

    def _make_pipeline(self, pipeline: dict[str, Any]) -> tuple[Any, Any]:
        layout = self.device.create_bind_group_layout(entries=pipeline["entries"])
        handle = self.device.create_compute_pipeline(
            layout=self.device.create_pipeline_layout(bind_group_layouts=[layout]),
            compute={"module": self._shaders[pipeline["shader"]], "entry_point": pipeline["entry_point"]},
        )
        return handle, layout

    def _prepare(self, prepare: dict[str, Any]) -> None:
        for batch in prepare["batches"]:
            shard = (self.folder / self.manifest["shards"][batch["shard"]]["path"]).read_bytes()
            for offset, size, at in batch["uploads"]:
                self.device.queue.write_buffer(self.buffers[prepare["words"]], at, shard[offset : offset + size])
            self.submit(batch["calls"])

    def submit(self, calls: Sequence[Any]) -> None:
        """Dispatches in order, in one pass."""
        encoder = self.device.create_command_encoder()
        compute_pass = encoder.begin_compute_pass()
        for call in calls:
            handle, layout = self.pipelines[call["pipeline"]]
            entries = [
                {"binding": index, "resource": {"buffer": self.buffers[bound[0]], "offset": bound[1], "size": bound[2]}}
                for index, bound in enumerate(call["bindings"])
                if bound is not None
            ]
            compute_pass.set_pipeline(handle)
            compute_pass.set_bind_group(0, self.device.create_bind_group(layout=layout, entries=entries))
            compute_pass.dispatch_workgroups(*call["workgroups"])
        compute_pass.end()
        self.device.queue.submit([encoder.finish()])

    def run(self, network: str, *, again: bool = False) -> None:
        """All its dispatches, or those after its first ones, which are done `once`."""
        own = self.networks[network]
        self.submit(own["calls"][own["once"] if again else 0 :])

    def write(self, network: str, name: str, values: np.ndarray) -> None:
        """An input, (..., channels)."""
        tensor = self.networks[network]["tensors"][name]
        padded = np.zeros((tensor["rows"], tensor["width"]), DTYPES[tensor["dtype"]])
        padded[:, : tensor["channels"]] = np.asarray(values).reshape(tensor["rows"], tensor["channels"])
        self.device.queue.write_buffer(self.buffers[tensor["buffer"]], 0, padded)

    def read(self, network: str, name: str) -> np.ndarray:
        """An input or output, (rows, channels)."""
        tensor = self.networks[network]["tensors"][name]
        dtype = np.dtype(DTYPES[tensor["dtype"]])
        shape = tensor["rows"], tensor["width"]
        data = self.device.queue.read_buffer(self.buffers[tensor["buffer"]], 0, math.prod(shape) * dtype.itemsize)
        return np.frombuffer(data, dtype).reshape(shape)[:, : tensor["channels"]]

    def encode(self, ids: np.ndarray) -> np.ndarray:
        """The embedding (L, C) of a prompt's token ids (L,)."""
        for name, table in self.networks["text_encoder"]["tables"].items():
            self.write("text_encoder", name, np.stack([self._row(table, int(index)) for index in ids]))
        self.run("text_encoder")
        return self.read("text_encoder", "embedding")

    def _row(self, name: str, row: int) -> np.ndarray:
        table = self.manifest["tables"][name]
        dtype = np.dtype(TABLE_DTYPES[table["dtype"]])
        part = next(each for each in table["parts"] if each["first_row"] <= row < each["first_row"] + each["rows"])
        offset = part["offset"] + (row - part["first_row"]) * table["row_bytes"]
        path = self.folder / self.manifest["shards"][part["shard"]]["path"]
        return np.fromfile(path, dtype, table["row_bytes"] // dtype.itemsize, offset=offset)
