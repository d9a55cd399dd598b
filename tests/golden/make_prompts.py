"""Write prompts.npz: chunks of weighted prompts, as transformers' text encoders read them. Needs the `golden` extra.

CASES says by hand what the chunks of each prompt are: pieces of text with their weights. prompts.npz holds for each
model, of all chunks of its prompts one after the other,

* `<model>_ids`, (chunks, encoders, L), and `<model>_weights`, (chunks, L);
* `<model>_embedding`, (chunks, L, C) float32, before weights, and for SDXL `<model>_pooled`, (chunks, P);
* `facts`: JSON with each model's textual inversion, and how many chunks each prompt has;

and `clip_skip`, (1, L, C): of CLIP_SKIP what clip_skip=1 means to diffusers, the state before the last layer after the
final norm. (diffusers' own line for it does not find that norm where transformers 5 has it.)
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import safetensors.torch
import torch

FOLDER = Path(__file__).parent

CLIP_SKIP = ("sd2", "a fox in the snow")

# Each model's textual inversion, and its prompts with their chunks.
CASES: dict[str, tuple[str, dict[str, list[list[tuple[str, float]]]]]] = {
    "sd1": (  # 14 tokens a chunk; my_style has 3 vectors
        "my_style",
        {
            "": [[]],
            "a (fox:1.5) in the [snow]": [[("a", 1), ("fox", 1.5), ("in the", 1), ("snow", 1 / 1.1)]],
            "a fox in the river, (a fox by the river:1.25) and the fox on the river": [
                [("a fox in the river,", 1)],
                [("a fox by the river", 1.25), ("and the fox on the river", 1)],
            ],
            "a fox in the river and a fox by the river and (the fox on the river)": [
                [("a fox in the river and a fox by the river and", 1), ("the fox", 1.1)],
                [("on the river", 1.1)],
            ],
            "a fox BREAK (the river:0.5) BREAK": [[("a fox", 1)], [("the river", 0.5)]],
            "a fox in the river by a fox and a fox on (my_style:1.3)": [
                [("a fox in the river by a fox and a fox on", 1)],
                [("my_style", 1.3)],
            ],
        },
    ),
    "sdxl": (  # 10 tokens a chunk, in the second encoder padded with another id; web_y2k has 2 vectors
        "web_y2k",
        {
            "": [[]],
            "a (fox:1.2) in the river by the web_y2k, (red river:0.75)": [
                [("a", 1), ("fox", 1.2), ("in the river by the web_y2k,", 1)],
                [("red river", 0.75)],
            ],
            "the [river] BREAK a fox": [[("the", 1), ("river", 1 / 1.1)], [("a fox", 1)]],
        },
    ),
}


def load_word(pipe: Any, model: str, word: str) -> None:
    """Has diffusers load the textual inversion of embeddings/."""
    file = FOLDER / "embeddings" / model / f"{word}.safetensors"
    if model == "sdxl":
        arrays = safetensors.torch.load_file(file)
        for name, end in (("clip_l", ""), ("clip_g", "_2")):
            own = {"text_encoder": getattr(pipe, f"text_encoder{end}"), "tokenizer": getattr(pipe, f"tokenizer{end}")}
            pipe.load_textual_inversion({name: arrays[name]}, token=word, **own)
        pipe.text_encoder_2.text_model.eos_token_id = pipe.tokenizer_2.eos_token_id
    else:
        pipe.load_textual_inversion(str(file), token=word)


def read_chunk(pipe: Any, tokenizer: Any, pieces: list[tuple[str, float]]) -> tuple[list[int], list[float]]:
    """Ids and weights of one chunk, with its ends and padding."""
    ids, weights = [tokenizer.bos_token_id], [1.0]
    for text, weight in pieces:
        new = tokenizer(pipe.maybe_convert_prompt(text, tokenizer), add_special_tokens=False)["input_ids"]
        ids += new
        weights += [weight] * len(new)
    missing = tokenizer.model_max_length - len(ids) - 1
    return [*ids, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * missing], [*weights, *[1.0] * (missing + 1)]


def encode(pipe: Any, ids: list[list[list[int]]]) -> dict[str, np.ndarray]:
    """What the text encoders make of the ids of each."""
    if len(ids) == 1:
        return {"embedding": pipe.text_encoder(torch.tensor(ids[0]))[0].numpy()}
    outputs = [
        encoder(torch.tensor(rows), output_hidden_states=True)
        for encoder, rows in zip((pipe.text_encoder, pipe.text_encoder_2), ids, strict=True)
    ]
    states = [output.hidden_states[-2] for output in outputs]
    return {"embedding": torch.cat(states, dim=-1).numpy(), "pooled": outputs[1].text_embeds.numpy()}


def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {}
    for name, (word, prompts) in CASES.items():
        pipe = diffusers.DiffusionPipeline.from_pretrained(FOLDER / "models" / name, torch_dtype=torch.float32)
        load_word(pipe, name, word)
        tokenizers = [pipe.tokenizer, pipe.tokenizer_2] if name == "sdxl" else [pipe.tokenizer]
        chunks = [pieces for each in prompts.values() for pieces in each]
        read = [[read_chunk(pipe, tokenizer, pieces) for pieces in chunks] for tokenizer in tokenizers]
        ids = [[row for row, _ in rows] for rows in read]
        with torch.no_grad():
            made = encode(pipe, ids)
        arrays |= {f"{name}_{key}": array for key, array in made.items()}
        arrays[f"{name}_ids"] = np.array(ids, np.int32).swapaxes(0, 1)
        arrays[f"{name}_weights"] = np.array([weights for _, weights in read[0]], np.float32)
        facts[name] = {"word": word, "prompts": {prompt: len(each) for prompt, each in prompts.items()}}
    model, prompt = CLIP_SKIP
    pipe = diffusers.DiffusionPipeline.from_pretrained(FOLDER / "models" / model, torch_dtype=torch.float32)
    with torch.no_grad():
        ids = pipe.tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids
        states = pipe.text_encoder(ids, output_hidden_states=True).hidden_states
        arrays["clip_skip"] = pipe.text_encoder.final_layer_norm(states[-2]).numpy()
    np.savez_compressed(FOLDER / "prompts.npz", facts=np.array(json.dumps(facts)), **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
