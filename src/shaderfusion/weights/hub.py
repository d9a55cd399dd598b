"""Models of the Hugging Face Hub: of a repository the few files that are needed, in the hub's own cache.

A repository is a folder in diffusers' format, or holds checkpoints of one file each. huggingface_hub does the
transfers; it reads HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE and HF_TOKEN. It is imported where it is used, as that takes
a while.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shaderfusion.errors import ModelError
from shaderfusion.files import exists, load_json, shown
from shaderfusion.output import say
from shaderfusion.tensor import DType
from shaderfusion.weights.checkpoint import VARIANTS, find_weights, read_index
from shaderfusion.weights.other_formats import CONVERT_PICKLE, PICKLE_SUFFIXES

__all__ = ["download", "is_hub_id"]

_ID = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(/(?P<file>.+))?", re.ASCII)
_MODEL_INDEX = "model_index.json"
_NETWORKS = ("text_encoder", "text_encoder_2", "unet", "vae")
_TOKENIZERS = ("tokenizer", "tokenizer_2")
_OPTIONAL_OF_TOKENIZERS = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_ORDER: Mapping[DType, tuple[str, ...]] = {"f16": ("fp16", "", "bf16"), "f32": VARIANTS}
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MOST_CHOICES = 12


def is_hub_id(model: str | Path) -> bool:
    """Whether a model's name is `owner/name` or `owner/name/file.safetensors`, and no path that exists."""
    if not isinstance(model, str) or exists(Path(model)):
        return False
    match = _ID.fullmatch(model)
    names_file = model.endswith((".safetensors", *PICKLE_SUFFIXES))
    return match is not None and names_file == (match["file"] is not None)


def download(
    repo_id: str,
    *,
    revision: str | None = None,
    dtype: DType = "f16",
    check: Callable[[Path], object] | None = None,
    progress: Callable[[str], None] = say,
) -> Path:
    """The folder, or the safetensors file, of a model on the hub, fetched as far as the cache has it not.

    repo_id is `owner/name`, or `owner/name/file.safetensors` for one file of several; revision a branch, a tag or a
    commit, by default main. Of a folder in diffusers' format that has weights in two precisions, those of `dtype` are
    fetched, unless the cache holds f32 already. `check` is given the folder once all but the weights is there, and may
    raise. `progress` is given sentences; huggingface_hub draws its bars on stderr, where that is a terminal.

    Files that are whole stay where a run is cut, and the next one goes on with the rest. Where the hub cannot be
    reached, a model that the cache holds whole is used as it is. ModelError where there is no such model, it may not be
    read, it has only pickles, the disk is full, or the hub cannot be reached.
    """
    match = _ID.fullmatch(repo_id)
    if match is None:
        raise ModelError(f"{repo_id}: must be owner/name, or owner/name/file.safetensors, of a model on the hub")
    from huggingface_hub import constants

    repository = _Repository(match["repository"], match["file"], revision, dtype)
    if constants.HF_HUB_OFFLINE:
        found = repository.cached()
        if found is None:
            raise ModelError(
                f"{repo_id}: not whole in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to fetch it; "
                "unset HF_HUB_OFFLINE once, or name a folder"
            )
        return found
    try:
        return repository.fetch(check, progress)
    except _UnreachableError as error:
        found = repository.cached()
        if found is None:
            raise
        progress(f"{error}; the copy in the cache is used")
        return found


class _UnreachableError(ModelError):
    """The hub did not answer, or not as it should: what the cache holds may do."""


@dataclass(frozen=True)
class _Repository:
    """One repository, and what of it is wanted."""

    id: str
    file: str | None
    """The one that the user names."""
    revision: str | None
    dtype: DType

    def fetch(self, check: Callable[[Path], object] | None, progress: Callable[[str], None]) -> Path:
        """Asks the hub what there is, and fetches what the cache lacks."""
        from huggingface_hub import try_to_load_from_cache

        sizes = self._sizes()
        if self.file is not None or _MODEL_INDEX not in sizes:
            file = self._single_file(sizes)
            if not isinstance(try_to_load_from_cache(self.id, file, revision=self.revision), str):
                self._announce([file], sizes, progress)
            return self._get(file, self.revision)
        folder = self._get(_MODEL_INDEX, self.revision).parent  # by its revision, which the cache notes for offline use
        commit = folder.name
        held = _names(folder)
        components = self._components(folder)
        weights = {name: self._weights(name, sizes, held) for name in components if name in _NETWORKS}
        for file in self._small_files(components, weights, sizes):
            self._get(file, commit)
        if check is not None:
            check(folder)
        missing = [file for file in self._large_files(folder, weights, sizes) if file not in held]
        if missing:
            self._announce(missing, sizes, progress)
        for file in missing:
            self._get(file, commit)
        return folder

    def cached(self) -> Path | None:
        """What `fetch` would return, if the cache holds all of it."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError

        with self._explained():
            try:
                snapshot = snapshot_download(
                    self.id, revision=self.revision, allow_patterns=_MODEL_INDEX, local_files_only=True
                )
            except LocalEntryNotFoundError:
                return None
        folder = Path(snapshot)
        held = _names(folder)
        try:
            if self.file is not None or _MODEL_INDEX not in held:
                return folder / self._single_file(held)
            components = self._components(folder)
            weights = {name: self._weights(name, held, held) for name in components if name in _NETWORKS}
            self._small_files(components, weights, held)
            self._large_files(folder, weights, held)
        except ModelError:  # something is missing
            return None
        return folder

    # ---- what is needed: each raises ModelError where `names`, those of all files, lack something

    def _single_file(self, names: Collection[str]) -> str:
        """The checkpoint that the user names, or the only one."""
        if self.file is not None and self.file.endswith(PICKLE_SUFFIXES):
            raise ModelError(f"{self.id}/{self.file}: {CONVERT_PICKLE}")
        choices = sorted(name for name in names if name.endswith(".safetensors"))
        if self.file in choices:
            return str(self.file)
        if self.file is None and len(choices) == 1:
            return choices[0]
        if not choices:
            pickles = sorted(name for name in names if name.endswith(PICKLE_SUFFIXES))
            raise ModelError(
                f"{self.id}/{pickles[0]}: {CONVERT_PICKLE}"
                if pickles
                else f"{self.id}: the repository has neither {_MODEL_INDEX} nor a .safetensors file; choose another"
            )
        more = f" and {len(choices) - _MOST_CHOICES} more" if len(choices) > _MOST_CHOICES else ""
        listed = ", ".join(choices[:_MOST_CHOICES]) + more
        lacks = "must be named by its file" if self.file is None else f"has no file {self.file}"
        raise ModelError(f"{self.id}: the checkpoint {lacks}; name one as {self.id}/{choices[0]}, of {listed}")

    def _components(self, folder: Path) -> list[str]:
        """Those of model_index.json that this package uses."""
        options = load_json(folder / _MODEL_INDEX)
        used = (*_NETWORKS, *_TOKENIZERS, "scheduler")
        found = [name for name in used if isinstance(options.get(name), list) and None not in options[name]]
        for name in ("unet", "vae"):
            if name not in found:
                raise ModelError(
                    f"{self.id}: its pipeline (={shown(options.get('_class_name'))}) has no {name}, which all models "
                    "have that this package runs; choose another"
                )
        return found

    def _weights(self, component: str, names: Collection[str], held: Collection[str]) -> str:
        """The file of the component's weights, or their index."""
        own = [name.removeprefix(f"{component}/") for name in names if name.startswith(f"{component}/")]
        own = sorted(name for name in own if "/" not in name)
        plain = find_weights(own)
        if plain and f"{component}/{plain}" in held and not plain.endswith(".json"):
            return f"{component}/{plain}"
        found = find_weights(own, _ORDER[self.dtype])
        if found:
            return f"{component}/{found}"
        pickles = [name for name in own if name.endswith(PICKLE_SUFFIXES)]
        single = [f"; or name {self.id}/{name}" for name in names if name.endswith(".safetensors") and "/" not in name]
        if pickles:
            raise ModelError(f"{self.id}/{component}/{pickles[0]}: {CONVERT_PICKLE}{''.join(single[:1])}")
        weights = ", ".join(name for name in own if name.endswith(".safetensors")) or "no .safetensors file"
        raise ModelError(
            f"{self.id}: which weights of {component} to use is unclear (there is {weights}); choose another repository"
        )

    def _small_files(
        self, components: Collection[str], weights: Mapping[str, str], names: Collection[str]
    ) -> list[str]:
        """Configurations, tokenizers, indexes of shards."""
        needed = [_MODEL_INDEX, *(file for file in weights.values() if file.endswith(".json"))]
        for component in components:
            if component in _NETWORKS:
                needed.append(f"{component}/config.json")
            elif component in _TOKENIZERS:
                needed.append(f"{component}/tokenizer_config.json")
                optional = [f"{component}/{name}" for name in _OPTIONAL_OF_TOKENIZERS]
                needed += [file for file in optional if file in names]
            else:
                needed.append(f"{component}/scheduler_config.json")
        return self._require(needed, names)

    def _large_files(self, folder: Path, weights: Mapping[str, str], names: Collection[str]) -> list[str]:
        """The weights, shard by shard; their indexes are in the folder."""
        needed: list[str] = []
        for component, file in weights.items():
            shards = read_index(folder / file) if file.endswith(".json") else None
            needed += [file] if shards is None else [f"{component}/{shard}" for shard in shards]
        return self._require(needed, names)

    def _require(self, needed: list[str], names: Collection[str]) -> list[str]:
        for name in needed:
            if name not in names:
                raise ModelError(f"{self.id}: the repository lacks {name}, which the model needs; choose another")
        return needed

    # ---- the hub

    def _sizes(self) -> dict[str, int]:
        """Names of all files, and how many bytes each has."""
        from huggingface_hub import HfApi, constants

        with self._explained():
            info = HfApi().model_info(
                self.id, revision=self.revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
        return {file.rfilename: file.size or 0 for file in info.siblings or []}

    def _get(self, name: str, revision: str | None) -> Path:
        """The file in the cache, fetched where it is not."""
        from huggingface_hub import hf_hub_download

        with self._explained():
            return Path(hf_hub_download(self.id, name, revision=revision))

    def _announce(self, files: Collection[str], sizes: Mapping[str, int], progress: Callable[[str], None]) -> None:
        """ModelError where the disk has not the room."""
        from huggingface_hub import constants

        cache = Path(constants.HF_HUB_CACHE)
        with self._explained():
            cache.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(cache).free
        needed = sum(sizes[file] for file in files)
        if needed > free:
            raise ModelError(
                f"{self.id}: {_megabytes(needed)} are to be fetched, and the disk of {cache} has {_megabytes(free)} "
                "free; make room, or set HF_HOME to a folder on another disk"
            )
        names = f"{len(files)} file{'' if len(files) == 1 else 's'}"
        progress(f"{self.id}: fetching {names} of weights, {_megabytes(needed)}, to {cache}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What huggingface_hub and its HTTP client raise, which differs by version, as a ModelError."""
        try:
            yield
        except Exception as error:
            raise self._explanation(error) from error

    def _explanation(self, error: Exception) -> ModelError:
        from huggingface_hub import constants, errors

        page = f"{constants.ENDPOINT}/{self.id}"
        log_in = "log in with `hf auth login` or set HF_TOKEN"
        status = getattr(getattr(error, "response", None), "status_code", None)
        is_unreachable = isinstance(error, errors.LocalEntryNotFoundError)  # not in the cache either
        cause = error.__cause__ if is_unreachable and error.__cause__ else error
        reason = f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0]}"
        if isinstance(error, errors.GatedRepoError):
            return ModelError(f"{self.id}: the model is gated: accept its licence at {page}, then {log_in}")
        if isinstance(error, errors.RepositoryNotFoundError):
            return ModelError(
                f"{self.id}: neither a path here nor a public model at {constants.ENDPOINT}; check the name, and where "
                f"the model is private, {log_in}"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return ModelError(f"{self.id}: has no revision {self.revision!r}; {page}/refs lists branches and tags")
        if isinstance(error, errors.EntryNotFoundError) and not is_unreachable:
            return ModelError(f"{self.id}: a file was removed since the repository was listed; try again")
        if isinstance(error, errors.HFValidationError):
            return ModelError(f"{self.id}: the hub has no such names ({str(error).splitlines()[0]})")
        if status in (401, 403):
            return ModelError(f"{self.id}: the hub refuses access ({reason}); check HF_TOKEN and {page}")
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError | TimeoutError):
            rule = "is full" if error.errno in _DISK_FULL else "cannot be written"
            return ModelError(
                f"{self.id}: the disk of {constants.HF_HUB_CACHE} {rule} ({error.strerror}); make room there, or set "
                "HF_HOME to another folder"
            )
        return _UnreachableError(
            f"{self.id}: could not be fetched from {constants.ENDPOINT} ({reason}); check the network and try again: "
            "files that are whole are kept"
        )


def _names(folder: Path) -> set[str]:
    """Of all files below, as the hub names them."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
