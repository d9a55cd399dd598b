"""Write tokenizer/: a small vocabulary in CLIP's layout, and the ids transformers gives. Needs the `golden` extra.

golden.json: "texts", and for each of "folders" the small files that go beside the vocabulary ("files"), which
vocabulary files those are ("vocabulary") and the ids of every text ("ids": (texts, L)).
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

FOLDER = Path(__file__).with_name("tokenizer")
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
WORD = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
NUM_MERGES = 200

CORPUS = [
    "a photograph of an astronaut riding a horse",
    "an oil painting of a fox in the snow, highly detailed, soft light",
    "the old lighthouse on the cliff at sunset, waves, dramatic sky",
    "a watercolor of a small village by the river in the mountains",
    "portrait of a young woman with flowers in her hair, studio lighting",
    "it's a dog's life, isn't it? they're happy and we've won, I'm sure you'll see what he'd say",
    "naïve café, crème brûlée, Ünïcödé, 東京の夜, лес зимой, שלום",
    "1024 x 768 pixels, 35 mm, f/1.8, year 2023!!!",
    "🦊🌋 emoji fox 🦊 and volcano 🌋",
]
TEXTS = [
    "",
    " ",
    "a",
    "a fox",
    "A Photograph of an ASTRONAUT Riding a Horse",
    "  white \t space\n\neverywhere \r\n\u00a0\u2003\u3000 here  ",
    "it's a dog's life, isn't it? they're we've I'm you'll he'd o'clock rock'n'roll 'quoted' it’s",
    "IT'S THE DOG'S",
    "1024x768 35mm f/1.8 ١٢٣ ½ Ⅷ x²",
    "wow!!! great! !",
    "!",
    "naïve café",
    "nai\u0308ve cafe\u0301",  # the same, decomposed
    "Å Å Å ﬁ ﬀ ① Ａ",
    "İstanbul ıI ß ẞ ΑΣ ΟΔΟΣ",
    "東京の夜景 漢字かなカナ 서울 ไทย हिन्दी",
    "Лес зимой, שלום עולם مرحبا",
    "🦊🌋 👩‍🚀 👨‍👩‍👧‍👦 🏳️‍🌈 👍🏽 ❤️ 🇯🇵",
    "zero\u200bwidth \ufeffbom \u200dj soft\u00adhyphen \x00nul \x07bell \x7f",
    "combining z̴̡a̷l̸g̵o̶",
    "𝕬𝖑𝖌𝖊𝖇𝖗𝖆 𐍈 \U0010ffff",
    "(a:1.2), [b], {c}, <lora:x:1> a_b-c--d __e__ #hash @at $5 50% & * + = \\ / | ~ ` ^",
    "<|endoftext|>",
    "<|startoftext|>a fox<|endoftext|>in the snow",
    "<|ENDOFTEXT|> <|StartOfText|> < |endoftext|> <|endoftext|",
    "a <|endoftext|> b <|startoftext|>",
    "</w> a</w> Ġ Ċ",
    "word" * 30,
    " ".join(CORPUS),
    "one, two, three, four, five, six, seven, eight, nine, ten",
]


def old(content: str, kind: bool) -> dict[str, Any]:
    """A special token as transformers 4.x wrote it, `kind` with its type."""
    token = {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return ({"__type": "AddedToken"} if kind else {}) | token


def new(content: str) -> dict[str, Any]:
    """The same in added_tokens_decoder."""
    return old(content, False) | {"normalized": False, "special": True}


def folders(num_tokens: int) -> dict[str, dict[str, Any]]:
    """Each folder's small files, in the forms published models have."""
    sd1 = {
        "tokenizer_config.json": {
            "bos_token": old(BOS, True),
            "eos_token": old(EOS, True),
            "model_max_length": 77,
            "pad_token": EOS,
            "unk_token": old(EOS, True),
        },
        "special_tokens_map.json": {
            "bos_token": old(BOS, False),
            "eos_token": old(EOS, False),
            "pad_token": EOS,
            "unk_token": old(EOS, False),
        },
    }
    sd2 = {
        "tokenizer_config.json": sd1["tokenizer_config.json"] | {"model_max_length": 24},
        "special_tokens_map.json": sd1["special_tokens_map.json"] | {"pad_token": "!"},
    }
    decoder = {"0": new("!"), str(num_tokens - 2): new(BOS), str(num_tokens - 1): new(EOS)}
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": "!", "unk_token": EOS}
    recent = {"tokenizer_config.json": {"added_tokens_decoder": decoder, "model_max_length": 24} | names}
    plain = {"tokenizer_config.json": {"model_max_length": 24}}
    added = {
        "tokenizer_config.json": {"model_max_length": 24},
        "added_tokens.json": {"<cat-toy>": num_tokens, "fox": num_tokens + 1},
    }
    slow = ["vocab.json", "merges.txt"]
    return {
        "sd1": {"vocabulary": slow, "files": sd1},
        "sd2": {"vocabulary": slow, "files": sd2},
        "recent": {"vocabulary": slow, "files": recent},
        "plain": {"vocabulary": slow, "files": plain},
        "added": {"vocabulary": slow, "files": added},
        "fast": {"vocabulary": ["tokenizer.json"], "files": recent},
        "fast_sd1": {"vocabulary": ["tokenizer.json", *slow], "files": sd1},
    }


def train() -> int:
    """Write vocab.json, merges.txt and tokenizer.json; the number of tokens."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    num_tokens = 2 * len(letters) + NUM_MERGES
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens, initial_alphabet=letters, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"][:NUM_MERGES]
    # CLIP's order: letters ("!" is 0), letters that end a word, merges, the two ends.
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), BOS, EOS]
    vocab = {token: i for i, token in enumerate(tokens)}
    (FOLDER / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (FOLDER / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = transformers.CLIPTokenizer(str(FOLDER / "vocab.json"), str(FOLDER / "merges.txt"))
    tokenizer.backend_tokenizer.save(str(FOLDER / "tokenizer.json"), pretty=False)
    return len(tokens)


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    golden: dict[str, Any] = {"texts": TEXTS, "folders": folders(train())}
    for folder in golden["folders"].values():
        with tempfile.TemporaryDirectory() as path:
            for name in folder["vocabulary"]:
                shutil.copy(FOLDER / name, path)
            for name, content in folder["files"].items():
                (Path(path) / name).write_text(json.dumps(content), encoding="utf-8")
            tokenizer = transformers.CLIPTokenizer.from_pretrained(path)
            folder["ids"] = tokenizer(TEXTS, padding="max_length", truncation=True)["input_ids"]
    (FOLDER / "golden.json").write_text(json.dumps(golden) + "\n", encoding="utf-8")
    sizes = {file.name: file.stat().st_size for file in sorted(FOLDER.iterdir())}
    print(f"transformers {transformers.__version__}: {len(TEXTS)} texts, bytes {sizes}")


if __name__ == "__main__":
    main()
