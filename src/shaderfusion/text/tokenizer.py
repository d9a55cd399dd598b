"""Prompts to token ids, as CLIP was trained to read them: byte-level byte-pair encoding of lower-cased text.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", section 2.4. The result
equals transformers' CLIPTokenizer with padding="max_length" and truncation=True.
"""

import gzip
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shaderfusion.errors import InputError, ModelError
from shaderfusion.files import exists, load_json, load_text, shown
from shaderfusion.text.words import AddedWords

if TYPE_CHECKING:
    import tokenizers  # imported where used: it takes longer than all of shaderfusion

__all__ = ["PROMPT_LENGTHS", "PromptTruncatedWarning", "Tokenizer"]

# One word: a contraction's end, letters, one digit, or a run of anything else that is not white space.
WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
END_OF_WORD = "</w>"

CLIP_TOKENS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
CLIP_MERGES = Path(__file__).with_name("clip_merges.txt.gz")
"""Of CLIP's own vocabulary, by script/make_vocabulary."""

PROMPT_LENGTHS = range(3, 4097)
"""Tokens of a prompt with its ends. transformers writes 1e30 into model_max_length for "unknown"."""
SHOWN_CHARACTERS = 60


class PromptTruncatedWarning(UserWarning):
    """A prompt has more tokens than the model reads; its end was dropped."""


@dataclass(frozen=True)
class Tokenizer:
    """A byte-pair encoder and the ids around it; `max_length` is L, the tokens of every prompt with its ends."""

    bpe: "tokenizers.Tokenizer"
    bos_id: int
    eos_id: int
    pad_id: int
    max_length: int
    words: AddedWords = field(default_factory=AddedWords)
    """Looked for in a text before anything else."""

    @classmethod
    def from_folder(cls, folder: Path | str) -> "Tokenizer":
        """Read a model's tokenizer folder: tokenizer.json, or vocab.json with merges.txt; and tokenizer_config.json.

        Raises ModelError naming the file that is missing, damaged, or of another kind than CLIP's.
        """
        folder = Path(folder)
        config_file = folder / "tokenizer_config.json"
        config = load_json(config_file)
        max_length = config.get("model_max_length")
        if not isinstance(max_length, int) or max_length not in PROMPT_LENGTHS:
            raise ModelError(
                f"{config_file}: model_max_length (={shown(max_length)}) must be a whole number from "
                f"{PROMPT_LENGTHS[0]} to {PROMPT_LENGTHS[-1]}; set it to the text encoder's max_position_embeddings "
                "(77 for Stable Diffusion)"
            )
        fast_file = folder / "tokenizer.json"
        fast = load_json(fast_file) if exists(fast_file) else None
        try:
            named, added = _special_tokens(folder, config, fast)
            vocab, merges = _vocabulary(folder) if fast is None else _fast_vocabulary(fast)
            bpe = _byte_pair_encoder(vocab, merges, named["unk_token"], added)
        except ModelError:
            raise
        except Exception as error:  # tokenizers raises nothing narrower
            raise ModelError(
                f"{folder}: damaged, or not CLIP's tokenizer ({shown(error)}); fetch the folder again"
            ) from error
        ids = {}
        for name in ("bos_token", "eos_token", "pad_token"):
            ids[name] = bpe.token_to_id(named[name])
            if ids[name] is None or ids[name] >= bpe.get_vocab_size(with_added_tokens=False):
                raise ModelError(
                    f"{folder}: {name} (={shown(named[name])}) is not in the vocabulary; fetch the folder again"
                )
        return cls(bpe, ids["bos_token"], ids["eos_token"], ids["pad_token"], max_length)

    @classmethod
    def clip(cls, max_length: int = 77, *, pad_token: str = CLIP_TOKENS["pad_token"]) -> "Tokenizer":
        """CLIP's own tokenizer, which comes with the package. SD 2.x, and SDXL's second encoder, pad with "!"."""
        vocab, merges = _clip_vocabulary()
        roles = CLIP_TOKENS | {"pad_token": pad_token}
        bpe = _byte_pair_encoder(
            vocab, merges, roles["unk_token"], [{"content": token, "special": True} for token in roles.values()]
        )
        return cls(bpe, vocab[roles["bos_token"]], vocab[roles["eos_token"]], vocab[pad_token], max_length)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids of each prompt, begun, ended and padded: (B, L) int32.

        Warns PromptTruncatedWarning for a prompt of more than L - 2 tokens. Raises InputError unless `texts` is a list
        of at least one string.
        """
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(f"texts (={texts!r}) must be a list of at least one string")
        ids = np.full((len(texts), self.max_length), self.pad_id, dtype=np.int32)
        limit = self.max_length - 2
        for row, text in zip(ids, texts, strict=True):
            tokens = self._encode(text)
            kept = [token for token, _ in tokens[:limit]]
            row[: len(kept) + 2] = [self.bos_id, *kept, self.eos_id]
            if len(tokens) > limit:
                _, begin = tokens[limit]
                dropped = text[begin:]
                shown = dropped if len(dropped) <= SHOWN_CHARACTERS else dropped[: SHOWN_CHARACTERS - 3] + "..."
                warnings.warn(
                    f"the prompt has {len(tokens)} tokens and the model reads {limit}, so its end is dropped: "
                    f"{shown!r}",
                    PromptTruncatedWarning,
                    stacklevel=2,
                )
        return ids

    def split(self, text: str) -> list[tuple[int, ...]]:
        """The ids of a text, without ends: one each, but those of one of `words` together."""
        return [ids for _, ids in self._split(text)]

    def _encode(self, text: str) -> list[tuple[int, int]]:
        """The ids of a text, without ends, and where in it each begins; InputError for what is not Unicode."""
        return [(token, begin) for begin, ids in self._split(text) for token in ids]

    def _split(self, text: str) -> Iterator[tuple[int, tuple[int, ...]]]:
        """`split`, and where in the text each begins."""
        for begin, piece, ids in self.words.split(text):
            if ids:
                yield begin, tuple(ids)
                continue
            try:
                encoding = self.bpe.encode(piece, add_special_tokens=False)
            except (TypeError, UnicodeEncodeError):  # half of a surrogate pair
                raise InputError(f"text (={text!r}) is not valid Unicode; remove its surrogate characters") from None
            for token, (at, _) in zip(encoding.ids, encoding.offsets, strict=True):
                yield begin + at, (token,)

    @cached_property
    def comma_id(self) -> int | None:
        """Of a comma that ends a word, as they all do; None where the vocabulary has none."""
        return self.bpe.token_to_id("," + END_OF_WORD)

    def is_token(self, word: str) -> bool:
        """Whether a text, in its own case or in lower case, is a single token; `words` are not looked at."""
        return any(len(self.bpe.encode(form, add_special_tokens=False).ids) == 1 for form in (word, word.lower()))


def _byte_pair_encoder(
    vocab: dict[str, int], merges: list[tuple[str, str]], unk_token: str, added: list[dict[str, Any]]
) -> "tokenizers.Tokenizer":
    """CLIP's pipeline around a vocabulary; `added` are arguments of AddedToken."""
    from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    bpe = Tokenizer(BPE(vocab, merges, unk_token=unk_token, end_of_word_suffix=END_OF_WORD))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.add_tokens([AddedToken(**token) for token in added])
    return bpe


def _clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Its tokens: each byte as a letter, each that ends a word, what merges make, the begin and the end."""
    from tokenizers.pre_tokenizers import ByteLevel

    merges = [_pair(line) for line in gzip.decompress(CLIP_MERGES.read_bytes()).decode("utf-8").split("\n")]
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + END_OF_WORD for letter in letters), *map("".join, merges)]
    tokens += [CLIP_TOKENS["bos_token"], CLIP_TOKENS["eos_token"]]
    return {token: i for i, token in enumerate(tokens)}, merges


def _vocabulary(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """vocab.json and merges.txt: a header line, then one pair a line."""
    vocab = load_json(folder / "vocab.json")
    lines = load_text(folder / "merges.txt").split("\n")
    return vocab, [_pair(line) for line in lines if line and not line.startswith("#version")]


def _fast_vocabulary(fast: Mapping[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The same from tokenizer.json. Nothing else in it is used: CLIP's pipeline is always the one built here."""
    model = fast["model"]
    return model["vocab"], [_pair(merge) for merge in model["merges"]]


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """One merge, written "a b", or in new files ["a", "b"]."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _special_tokens(
    folder: Path, config: Mapping[str, Any], fast: Mapping[str, Any] | None
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Which token has which role, and every token that is looked for in the text before it is split into words.

    A token is a plain string, or a dict with the flags of tokenizers.AddedToken. New folders list the dicts in
    tokenizer_config.json's added_tokens_decoder; older ones keep them in special_tokens_map.json, added_tokens.json
    and tokenizer.json.
    """
    roles = CLIP_TOKENS | {key: value for key, value in config.items() if key in CLIP_TOKENS}
    if "added_tokens_decoder" in config:
        listed = [token for _, token in sorted(config["added_tokens_decoder"].items(), key=lambda item: int(item[0]))]
    else:
        roles |= {key: value for key, value in _optional(folder / "special_tokens_map.json") if key in CLIP_TOKENS}
        plain = sorted(_optional(folder / "added_tokens.json"), key=lambda item: item[1])
        listed = [{"content": content, "special": False} for content, _ in plain]
        listed += [] if fast is None else fast.get("added_tokens", [])
    added = [_flags(folder, token) for token in listed]
    contents = {token["content"] for token in added}
    named = {role: _flags(folder, value) for role, value in roles.items()}
    # A token with two roles may be written in two forms; like transformers, the form of the last role counts.
    added += [token for token in named.values() if token["content"] not in contents]
    return {role: token["content"] for role, token in named.items()}, added


def _optional(file: Path) -> list[tuple[str, Any]]:
    """The items of a JSON object, or none if there is no such file."""
    return list(load_json(file).items()) if exists(file) else []


def _flags(folder: Path, token: object) -> dict[str, Any]:
    """Arguments of tokenizers.AddedToken; a plain string is matched as it stands, before lower-casing."""
    if isinstance(token, str):
        return {"content": token, "special": True}
    if not isinstance(token, dict) or not isinstance(token.get("content"), str):
        raise ModelError(f"{folder}: a special token (={shown(token)}) must be a string or hold one as its content")
    keys = ("content", "single_word", "lstrip", "rstrip", "normalized")
    return {"special": True} | {key: token[key] for key in (*keys, "special") if key in token}
