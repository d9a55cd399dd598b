"""Write embeddings/ and embeddings.npz: textual inversions, and what diffusers makes of them. Needs the `golden` extra.

embeddings/<case> has the files of one case, in every form that people have. embeddings.npz holds for each case
`<case>_<component>_ids`, (prompts, L), and in float32 `<case>_<component>_states`, (prompts, L, C), the text encoder's
last hidden state, and `<case>_<component>_pooled`, (prompts, C); and `facts`: JSON with each case's models by
component (of models/), files in the order in which they are loaded, with their words, and prompts.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import safetensors.torch
import torch
import transformers
from diffusers.loaders import TextualInversionLoaderMixin

FOLDER = Path(__file__).parent
EMBEDDINGS = FOLDER / "embeddings"

# Of each file: its word, and the dtype and the shape, less the width, of each of its tensors. diffusers finds only the
# first vector of a word of several where a letter is not in lower case, so that all are here.
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
CASES: dict[str, dict[str, Any]] = {
    "sd1": {
        "models": {"text_encoder": "sd1"},
        "files": {
            "learned_embeds": ("<cat-toy>", {"<cat-toy>": (F32, ())}),
            "my_style": ("my_style", {"emb_params": (F16, (3,))}),
            "bad-dream": ("bad-dream", {"string_to_param.*": (BF16, (2,))}),
        },
        "prompts": [
            "a <cat-toy>",
            "A <Cat-Toy>'s fox, a<cat-toy>b",
            "(my_style:1.2), a fox",
            "my_style",
            "bad-dream, <cat-toy> <cat-toy>my_style",
            "a fox in the snow by the river my_style",  # its last vectors are dropped
            "a fox in the snow",
            "<|endoftext|> <cat-toy>",
        ],
    },
    "sd2": {
        "models": {"text_encoder": "sd2"},
        "files": {
            "learned_embeds": ("<twelve>", {"<twelve>": (F32, (12,))}),  # <twelve>_1 begins <twelve>_10
            "Ulzzang-6500": ("Ulzzang-6500", {"emb_params": (F32, (1,))}),
            "two words": ("two words", {"emb_params": (F16, (2,))}),
        },
        "prompts": [
            "a <twelve>",
            "<twelve> <twelve>",
            "Ulzzang-6500, a photograph",
            "the two words: two",
            "ULZZANG-6500's two words",
            "",
        ],
    },
    "sdxl": {
        "models": {"text_encoder": "sd1", "text_encoder_2": "sd2"},
        "files": {"web_y2k": ("web_y2k", {"clip_l": (F16, (2,)), "clip_g": (F16, (2,))})},
        "prompts": ["a web_y2k fox", "web_y2k", "a fox, web_y2k web_y2k"],
    },
}
PARTS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


class Encoder(TextualInversionLoaderMixin):
    """What diffusers' pipelines have of textual inversion, around one model's tokenizer and text encoder."""

    hf_device_map = None

    def __init__(self, folder: Path) -> None:
        self.tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.text_encoder = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=F32)
        self.components = {"tokenizer": self.tokenizer, "text_encoder": self.text_encoder}


def write_files(folder: Path, files: dict[str, Any], encoders: dict[str, Any], seed: int) -> None:
    """Random vectors, about as large as those of the vocabulary."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    for stem, (_, tensors) in files.items():
        arrays = {}
        for name, (dtype, rows) in tensors.items():
            component = next((key for key, part in PARTS.items() if part == name), "text_encoder")
            table = encoders[component].get_input_embeddings().weight
            arrays[name] = (torch.randn(*rows, table.shape[1]) * table.std()).detach().to(dtype)
        safetensors.torch.save_file(arrays, folder / f"{stem}.safetensors")


def main() -> None:
    shutil.rmtree(EMBEDDINGS, ignore_errors=True)
    arrays: dict[str, np.ndarray] = {}
    for seed, (case, facts) in enumerate(CASES.items()):
        folder = EMBEDDINGS / case
        pipes = {component: Encoder(FOLDER / "models" / model) for component, model in facts["models"].items()}
        write_files(folder, facts["files"], {key: pipe.text_encoder for key, pipe in pipes.items()}, seed)
        for component, pipe in pipes.items():
            for stem, (word, tensors) in facts["files"].items():
                vectors = safetensors.torch.load_file(folder / f"{stem}.safetensors")
                vectors = {PARTS[component]: vectors[PARTS[component]]} if len(tensors) > 1 else vectors
                pipe.load_textual_inversion(vectors, token=word)
            prompts = pipe.maybe_convert_prompt(facts["prompts"], pipe.tokenizer)
            ids = pipe.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
            with torch.no_grad():
                outputs = pipe.text_encoder(ids)
            arrays[f"{case}_{component}_ids"] = ids.numpy().astype(np.int32)
            arrays[f"{case}_{component}_states"] = outputs.last_hidden_state.numpy()
            arrays[f"{case}_{component}_pooled"] = outputs.pooler_output.numpy()
        facts["files"] = {stem: word for stem, (word, _) in facts["files"].items()}
    np.savez_compressed(FOLDER / "embeddings.npz", facts=np.array(json.dumps(CASES)), **arrays)  # type: ignore[arg-type]
    files = sorted(EMBEDDINGS.rglob("*.safetensors"))
    total = sum(file.stat().st_size for file in (*files, FOLDER / "embeddings.npz"))
    versions = f"diffusers {diffusers.__version__}, transformers {transformers.__version__}"
    print(f"{versions}: {len(files)} files, {total} bytes")


if __name__ == "__main__":
    main()
