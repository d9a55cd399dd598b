"""Learns the byte-pair vocabulary from the captions and writes it in CLIP's tokenizer layout."""

import argparse
import json
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

VOCAB_SIZE = 3000
MAX_LENGTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"
TEMPLATES = ["a {}", "an {}", "the {}", "{} emoji", "a picture of {}", "a picture of a {}", "an emoji of a {}", "3d {}"]


def learn_merges(texts: list[str], count: int) -> list[tuple[str, str]]:
    """The `count` first byte-pair merges of the texts, split into words the way CLIP does."""
    clip = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[]).backend_tokenizer
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=2 * len(alphabet) + count,
        min_frequency=1,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    clip.train_from_iterator(texts, trainer)
    return [tuple(pair) for pair in json.loads(clip.to_str())["model"]["merges"]][:count]


def build_vocabulary(texts: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's order: bytes, bytes that end a word, merges, the two special tokens."""
    alphabet = sorted(ByteLevel.alphabet())
    symbols = alphabet + [char + "</w>" for char in alphabet]
    merges = learn_merges(texts, VOCAB_SIZE - len(symbols) - 2)
    symbols = [*dict.fromkeys(symbols + ["".join(pair) for pair in merges]), START, END]
    return {symbol: index for index, symbol in enumerate(symbols)}, merges


def save(folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
    """Write vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json."""
    folder.mkdir(parents=True, exist_ok=True)
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    config = {
        **special,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "do_lower_case": True,
        "model_max_length": MAX_LENGTH,
        "tokenizer_class": "CLIPTokenizer",
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


def main(data: Path) -> None:
    """Learn from every wording in `captions.json` and write `tokenizer/` beside it."""
    captions = json.loads((data / "captions.json").read_text())
    texts = [text for entry in captions for text in 4 * entry["names"] + entry["alternatives"]]
    texts += 100 * [template.format("") for template in TEMPLATES]
    save(data / "tokenizer", *build_vocabulary(texts))
    tokenizer = CLIPTokenizer.from_pretrained(data / "tokenizer")
    lengths = [len(tokenizer(text).input_ids) for text in texts]
    print(f"{len(tokenizer)} tokens; a caption takes {sum(lengths) / len(lengths):.1f}, at most {max(lengths)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    main(parser.parse_args().data)
