"""Textual inversion: files with vectors for a word that the text encoders did not know, and a model's words of them.

Gal et al. 2022, "An Image is Worth One Word", arXiv 2208.01618. A word of n vectors takes n places of a prompt. Files:

* one tensor, (C,) or (n, C): `emb_params` (kohya, AUTOMATIC1111) or `string_to_param.*` (AUTOMATIC1111's, converted),
  for a word of the file's name; or a tensor that has the word for its name, `<cat-toy>`, as diffusers writes it;
* two, `clip_l` and `clip_g`, each (n, C) of its own C: SDXL's, for its two text encoders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError, deserialize

from shaderfusion.config import ClipTextConfig
from shaderfusion.errors import InputError, ModelError, WeightsError
from shaderfusion.files import load_bytes, shown
from shaderfusion.kernels.common.prepare_weight import STORED_SIZE_BYTES, StoredDType
from shaderfusion.text.tokenizer import Tokenizer
from shaderfusion.text.words import AddedWords, same_word
from shaderfusion.weights.checkpoint import StoredTensor, TensorSource
from shaderfusion.weights.other_formats import PICKLE_SUFFIXES, other_format

__all__ = ["AddedTokens", "Embedding", "read_embedding"]

_LARGEST_BYTES = 4_000_000
"""Of a file. SDXL's, of 75 vectors in f32, has 0.6 MB."""

_LONGEST_WORD = 200
"""Characters, all of which errors can show."""

_UNNAMED = ("emb_params", "string_to_param.*", "*")
"""Tensors that are named after what they are, and not after their word."""

_SDXL = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}

_REMEDY = "give the .safetensors file of a textual inversion"

_CONVERT = (
    "pickle files can run code when opened, so shaderfusion never does; convert it where you trust it: in Python with "
    "torch, `data = torch.load(FILE, weights_only=True)`, then `safetensors.torch.save_file({'emb_params': "
    "data['string_to_param']['*'].detach()}, 'WORD.safetensors')`, or `save_file(data, ...)` for a learned_embeds.bin"
)


@dataclass(frozen=True)
class Embedding:
    """What a file holds."""

    word: str
    vectors: Mapping[str, np.ndarray] = field(repr=False)
    """(n, C) f32 for each text encoder, by component."""


def read_embedding(path: Path, encoders: Mapping[str, ClipTextConfig]) -> Embedding:
    """The file's vectors for a model with those text encoders, by component, checked.

    WeightsError for a file that is none, or of another kind of model; ModelError for one that cannot be read.
    """
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise WeightsError(f"{path}: {_CONVERT}")
    data = load_bytes(path, _REMEDY, largest_bytes=_LARGEST_BYTES, missing=_REMEDY)
    try:
        tensors = dict(deserialize(data))
    except SafetensorError as error:
        damaged = f"not a whole safetensors file ({shown(str(error))}); {_REMEDY}"
        raise WeightsError(f"{path}: {other_format(data) or damaged}") from None
    names = _tensor_names(path, sorted(tensors), encoders)
    vectors = {
        component: _vectors(path, name, tensors[name], component, encoders[component])
        for component, name in names.items()
    }
    lengths = {len(array) for array in vectors.values()}
    if len(lengths) > 1:
        raise WeightsError(
            f"{path}: clip_l and clip_g must have equally many vectors, not {sorted(lengths)}; {_REMEDY}"
        )
    (name, *others) = tensors
    return Embedding(path.stem if others or name in _UNNAMED else name, vectors)


def _tensor_names(path: Path, names: Sequence[str], encoders: Mapping[str, ClipTextConfig]) -> Mapping[str, str]:
    """Which tensor has the vectors of each encoder; WeightsError where they are not this kind of model's."""
    is_sdxl = set(names) == set(_SDXL.values())
    if not is_sdxl and (len(names) != 1 or names[0] in _SDXL.values()):
        raise WeightsError(
            f"{path}: its tensors (={shown(names)}) must be one, as of SD 1.x and 2.x, or clip_l and clip_g, as of "
            f"SDXL; {_REMEDY}"
        )
    if is_sdxl != (len(encoders) > 1):
        kinds = ("SD 1.x or 2.x (one tensor)", "SDXL (clip_l and clip_g)")
        raise WeightsError(
            f"{path}: a textual inversion of {kinds[is_sdxl]}, and must be of {kinds[not is_sdxl]}, as the model is; "
            "use one that was trained for this kind of model"
        )
    return _SDXL if is_sdxl else dict.fromkeys(encoders, names[0])


def _vectors(path: Path, name: str, tensor: Mapping[str, Any], component: str, encoder: ClipTextConfig) -> np.ndarray:
    """(n, C) f32; WeightsError for another shape or dtype, and for values that are not finite."""
    label = f"{path}: {shown(name)}"
    shape, dtype = tensor["shape"], tensor["dtype"]
    C, longest = encoder.hidden_size, encoder.max_position_embeddings - 2
    if len(shape) not in (1, 2) or 0 in shape:
        raise WeightsError(f"{label} has shape {shown(tuple(shape))}, must be (n, {C}); {_REMEDY}")
    *rows, width = shape
    if width != C:
        raise WeightsError(
            f"{label} has vectors of {width} numbers, must have {C} as the model's {component} (768: SD 1.x, 1024: "
            "SD 2.x); use one that was trained for this kind of model"
        )
    if rows and rows[0] > longest:
        raise WeightsError(f"{label} has {rows[0]} vectors, must have at most {longest}, the tokens of a prompt")
    if dtype not in STORED_SIZE_BYTES:
        raise WeightsError(f"{label} has dtype {dtype}, must be of {', '.join(STORED_SIZE_BYTES)}; convert the file")
    stored = StoredTensor(cast(StoredDType, dtype), np.frombuffer(tensor["data"], np.uint8))
    vectors = stored.to_f32().reshape(-1, C)
    if not np.isfinite(vectors).all():
        raise WeightsError(f"{label} has NaN or infinite values; the file is damaged, download it again")
    return vectors


@dataclass(frozen=True)
class _Added:
    """A loaded embedding; `first` counts the rows that its ids come after, beyond each encoder's table."""

    embedding: Embedding
    first: int

    def ids(self, component: str, encoder: ClipTextConfig) -> range:
        begin = encoder.vocab_size + self.first
        return range(begin, begin + len(self.embedding.vectors[component]))


class AddedTokens:
    """The words that files gave to a model's text encoders. The ids of a word's vectors are beyond the vocabulary.

    Ids are not given twice, so that a prompt that was tokenized before a word was unloaded is refused, and never read
    as another.
    """

    def __init__(self, encoders: Mapping[str, ClipTextConfig]) -> None:
        self._encoders = encoders
        self._added: dict[str, _Added] = {}
        self._num_rows = 0
        self._keep({})

    def load(self, path: str | Path, word: str | None, tokenizers: Mapping[str, Tokenizer]) -> str:
        """Adds the word of a file, or another for its vectors; returns it. `tokenizers` are the text encoders' own.

        InputError for a word that the model has already or that is none; ModelError or WeightsError for the file.
        """
        if not isinstance(path, (str, Path)):
            raise InputError(f"path (={shown(path)}) must be the path of a .safetensors file")
        embedding = read_embedding(Path(path), self._encoders)
        word = embedding.word if word is None else word
        if not isinstance(word, str) or not word.strip() or len(word) > _LONGEST_WORD or not _is_unicode(word):
            raise InputError(
                f"{path}: token (={shown(word)}) must be a word of 1 to {_LONGEST_WORD} characters; give one by token="
            )
        if (known := self._added.get(same_word(word))) is not None:
            raise InputError(
                f"{path}: token (={word!r}) is loaded already, as {known.embedding.word!r}; unload that, or give "
                "another word by token="
            )
        if any(tokenizer.is_token(word) for tokenizer in tokenizers.values()):
            raise InputError(
                f"{path}: token (={word!r}) is in the model's vocabulary already; give another word by token=, or give "
                "the file another name"
            )
        added = _Added(Embedding(word, embedding.vectors), self._num_rows)
        self._num_rows += len(next(iter(embedding.vectors.values())))
        self._keep(self._added | {same_word(word): added})
        return word

    def unload(self, word: str | None = None) -> None:
        """Forgets a word, by default all; InputError for one that is not loaded."""
        if word is None:
            self._keep({})
            return
        key = same_word(word) if isinstance(word, str) else None
        if key not in self._added:
            loaded = ", ".join(repr(added.embedding.word) for added in self._added.values()) or "none"
            raise InputError(f"token (={shown(word)}) must be a loaded one ({loaded})")
        self._keep({other: added for other, added in self._added.items() if other != key})

    def _keep(self, added: dict[str, _Added]) -> None:
        self._added = added
        self._vectors = {
            component: {
                token: vector
                for each in added.values()
                for token, vector in zip(each.ids(component, encoder), each.embedding.vectors[component], strict=True)
            }
            for component, encoder in self._encoders.items()
        }
        self._words = {
            component: AddedWords({each.embedding.word: each.ids(component, encoder) for each in added.values()})
            for component, encoder in self._encoders.items()
        }

    def teach(self, component: str, tokenizer: Tokenizer) -> Tokenizer:
        """A text encoder's tokenizer, with the words."""
        return replace(tokenizer, words=self._words[component])

    def vectors_of(self, component: str, tokens: np.ndarray) -> dict[int, np.ndarray]:
        """By id, those of the token ids that are no row of the encoder's table; ModelError for an id of nothing."""
        size, vectors = self._encoders[component].vocab_size, self._vectors[component]
        beyond = np.unique(tokens[(tokens < 0) | (tokens >= size)]).tolist()
        for token in beyond:
            if token not in vectors:
                raise ModelError(
                    f"token id (={token}) must be from 0 to {component}'s vocab_size (={size}) less 1, or of a loaded "
                    "embedding; take the tokenizer and the text encoder of one model, and make a request anew whose "
                    "embedding was unloaded since"
                )
        return {token: vectors[token] for token in beyond}

    def extend(self, component: str, source: TensorSource) -> TensorSource:
        """A component's source, whose table of tokens goes on with the vectors; others as they are."""
        return _ExtendedTable(self, component, source) if component in self._encoders else source


@dataclass(frozen=True, eq=False)
class _ExtendedTable:
    """A text encoder's tensors: rows beyond its table are those of embeddings."""

    tokens: AddedTokens
    component: str
    source: TensorSource

    def find(self, path: str, shape: tuple[int, ...]) -> str:
        return self.source.find(path, shape)

    def read(self, path: str, shape: tuple[int, ...]) -> StoredTensor:
        return self.source.read(path, shape)

    def read_rows(self, path: str, shape: tuple[int, ...], rows: np.ndarray) -> StoredTensor:
        """f32 where one of them is beyond the table, and as the table is stored else."""
        added = self.tokens.vectors_of(self.component, rows)
        stored = self.source.read_rows(path, shape, np.where(rows < shape[0], rows, 0))
        if not added:
            return stored
        values = stored.to_f32().reshape(*rows.shape, *shape[1:])
        for token, vector in added.items():
            values[rows == token] = vector
        return StoredTensor("F32", values.reshape(-1).view(np.uint8))


def _is_unicode(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, as of a file's name that is not UTF-8
        return False
    return True
