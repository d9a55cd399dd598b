"""Write embeddings/ and embeddings.npz: textual inversions, and what diffusers makes of them. Needs the `golden` extra.

embeddings/<model> has files for one of the models, in every form that people have. embeddings.npz holds for each model

* `<model>_ids`: of its prompts, (prompts, L), or (prompts, 2, L) of two text encoders;
* `<model>_embedding`, (prompts, L, C) float32, and for SDXL `<model>_pooled`, (prompts, P);
* `facts`: JSON with each model's files in the order in which they are loaded, with their words, and the prompts.
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

FOLDER = Path(__file__).parent
EMBEDDINGS = FOLDER / "embeddings"
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
PARTS = {"clip_l": "", "clip_g": "_2"}
"""Of an SDXL file, with the end of the name of its text encoder and tokenizer."""

# Of each file: its word, and the dtype and the shape, less the width, of each of its tensors. diffusers finds only the
# first vector of a word of several where a letter is not in lower case, so that all are here.
CASES: dict[str, dict[str, Any]] = {
    "sd1": {
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
        "files": {
            "web_y2k": ("web_y2k", {"clip_l": (F16, (2,)), "clip_g": (F16, (2,))}),
            "one_vector": ("one_vector", {"clip_l": (F32, (1,)), "clip_g": (F32, (1,))}),
        },
        "prompts": [
            "a web_y2k fox",
            "one_vector",
            "a fox, web_y2k one_vector web_y2k",
            "a fox",
            "<|endoftext|> one_vector",
        ],
    },
}


def load_files(pipe: Any, folder: Path, files: dict[str, Any]) -> None:
    """Writes random vectors, about as large as those of the vocabulary, and has diffusers load them."""
    folder.mkdir(parents=True)
    for stem, (word, tensors) in files.items():
        arrays = {}
        for name, (dtype, rows) in tensors.items():
            table = getattr(pipe, f"text_encoder{PARTS.get(name, '')}").get_input_embeddings().weight
            arrays[name] = (torch.randn(*rows, table.shape[1]) * table.std()).detach().to(dtype)
        file = folder / f"{stem}.safetensors"
        safetensors.torch.save_file(arrays, file)
        if len(tensors) == 1:
            pipe.load_textual_inversion(str(file), token=word)
            continue
        for name, end in PARTS.items():
            own = {"text_encoder": getattr(pipe, f"text_encoder{end}"), "tokenizer": getattr(pipe, f"tokenizer{end}")}
            pipe.load_textual_inversion({name: arrays[name]}, token=word, **own)


def main() -> None:
    shutil.rmtree(EMBEDDINGS, ignore_errors=True)
    arrays: dict[str, np.ndarray] = {}
    for seed, (name, facts) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        pipe = diffusers.DiffusionPipeline.from_pretrained(FOLDER / "models" / name, torch_dtype=F32)
        load_files(pipe, EMBEDDINGS / name, facts["files"])
        prompts, call = facts["prompts"], {"device": "cpu", "num_images_per_prompt": 1}
        tokenizers = [pipe.tokenizer]
        if name == "sdxl":
            # Its configuration is as published, where an id of 2 means the largest: no longer the end of text.
            pipe.text_encoder_2.text_model.eos_token_id = pipe.tokenizer_2.eos_token_id
            tokenizers.append(pipe.tokenizer_2)
        with torch.no_grad():
            outputs = pipe.encode_prompt(prompts, do_classifier_free_guidance=False, **call)
        arrays[f"{name}_embedding"] = outputs[0].numpy()
        if name == "sdxl":
            arrays[f"{name}_pooled"] = outputs[2].numpy()
        ids = [
            tokenizer(pipe.maybe_convert_prompt(prompts, tokenizer), padding="max_length", truncation=True)["input_ids"]
            for tokenizer in tokenizers
        ]
        arrays[f"{name}_ids"] = np.array(ids[0] if len(ids) == 1 else list(zip(*ids, strict=True)), np.int32)
        facts["files"] = {stem: word for stem, (word, _) in facts["files"].items()}
    np.savez_compressed(FOLDER / "embeddings.npz", facts=np.array(json.dumps(CASES)), **arrays)  # type: ignore[arg-type]
    files = sorted(EMBEDDINGS.rglob("*.safetensors"))
    total = sum(file.stat().st_size for file in (*files, FOLDER / "embeddings.npz"))
    versions = f"diffusers {diffusers.__version__}, transformers {transformers.__version__}"
    print(f"{versions}: {len(files)} files, {total} bytes")


if __name__ == "__main__":
    main()
