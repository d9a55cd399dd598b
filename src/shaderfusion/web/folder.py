"""The folder of an export: empty or an earlier one before, whole or without a manifest after."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

from shaderfusion.errors import InputError, ModelError
from shaderfusion.files import exists, is_file, is_folder, load_json
from shaderfusion.web.manifest import FORMAT, MANIFEST, as_bytes

__all__ = ["ExportFolder", "find_exports"]


class ExportFolder:
    """Writes files, and the manifest that names them last. Leaves nothing where it is left by an error."""

    def __init__(self, path: Path) -> None:
        """InputError unless the folder can be made, or is empty or an export, which nothing is done to yet."""
        self.path = path
        self.files: list[dict[str, Any]] = []
        self._earlier = self._find_earlier()
        self._is_whole = False
        self._had_folder = is_folder(path)

    def _find_earlier(self) -> list[Path]:
        """The files of the export that is there."""
        if not exists(self.path):
            if not is_folder(self.path.parent):
                raise InputError(
                    f"--output (={self.path}) must be in a folder that exists; make {self.path.parent} first"
                )
            return []
        if not is_folder(self.path):
            raise InputError(f"--output (={self.path}) must be a folder; choose another name")
        try:
            is_empty = not any(self.path.iterdir())
        except OSError as error:
            raise InputError(f"--output (={self.path}) cannot be read ({error.strerror}); choose another") from None
        if is_empty:
            return []
        files = _files_of(self.path)
        if files is None:
            raise InputError(
                f"--output (={self.path}) must be empty or an earlier export, and is neither; choose another folder, "
                "or empty it"
            )
        names = [file.get("path") for file in files if isinstance(file, dict)]
        return [self.path / name for name in names if isinstance(name, str) and _is_inside(name)]

    def require_room(self, needed_bytes: int) -> None:
        """InputError where the disk has less."""
        folder = self.path if is_folder(self.path) else self.path.parent
        free = shutil.disk_usage(folder).free + sum(file.stat().st_size for file in self._earlier if is_file(file))
        if free < needed_bytes:
            raise InputError(
                f"--output (={self.path}) needs {needed_bytes / 1e6:,.0f} MB, and its disk has {free / 1e6:,.0f} MB "
                "free; make room, or choose a folder on another disk"
            )

    def __enter__(self) -> Self:
        """From here on the earlier export is gone."""
        try:
            self.path.mkdir(exist_ok=True)
            (self.path / MANIFEST).unlink(missing_ok=True)
            self._remove(self._earlier)
        except OSError as error:
            raise self._refusal(error) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._is_whole:
            self._remove([self.path / file["path"] for file in self.files])
            if not self._had_folder:
                _remove_if_empty(self.path)

    def write(self, name: str, data: bytes) -> dict[str, Any]:
        """A file at that path, with / between folders; returns what the manifest says of it."""
        file = {"path": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self.files.append(file)
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        except OSError as error:
            raise self._refusal(error) from None
        return file

    def finish(self, manifest: dict[str, Any]) -> None:
        """Writes the manifest, with all files: the export is whole."""
        part = self.path / f"{MANIFEST}.part"
        try:
            part.write_bytes(as_bytes({**manifest, "files": self.files}))
            part.replace(self.path / MANIFEST)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise self._refusal(error) from None
        self._is_whole = True

    def _remove(self, files: list[Path]) -> None:
        for file in files:
            file.unlink(missing_ok=True)
        for folder in sorted({parent for file in files for parent in file.parents}, reverse=True):
            if self.path in folder.parents:
                _remove_if_empty(folder)

    def _refusal(self, error: OSError) -> InputError:
        return InputError(f"--output (={self.path}) could not be written: {error.strerror}; choose another folder")


def find_exports(folders: Iterable[Path]) -> dict[str, Path]:
    """Whole exports by their folders' names. InputError for a folder that is none, and for two of one name."""
    found: dict[str, Path] = {}
    for folder in folders:
        path = folder.absolute()
        if _files_of(path) is None:
            raise InputError(f"--export (={folder}) must be a folder that `export web` has written; name such a folder")
        if path.name in found:
            raise InputError(f"--export (={folder}) has the name of {found[path.name]}; rename one of the folders")
        found[path.name] = path
    return found


def _files_of(folder: Path) -> list[Any] | None:
    """What an export's manifest lists; None where there is no whole export."""
    try:
        manifest = load_json(folder / MANIFEST) if is_file(folder / MANIFEST) else {}
    except ModelError:
        return None
    files = manifest.get("files")
    return files if manifest.get("format") == FORMAT and isinstance(files, list) else None


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name


def _remove_if_empty(folder: Path) -> None:
    if is_folder(folder) and not any(folder.iterdir()):
        folder.rmdir()
