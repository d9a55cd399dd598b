"""`--preview-every N FILE`: a file that shows a run's pictures every few steps."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shaderfusion.cli.options import whole_number
from shaderfusion.errors import InputError
from shaderfusion.metadata.image_files import SUFFIXES, encode
from shaderfusion.output import require_writable, write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

    from shaderfusion.run import Progress

__all__ = ["PreviewFile", "add_preview"]

_OPTION = "--preview-every"


def add_preview(parser: argparse.ArgumentParser) -> None:
    meaning = "every N steps write what the picture will be as far as can be told, to a file that ends in "
    meaning += f"{', '.join(SUFFIXES)}; several pictures lie side by side"
    parser.add_argument(_OPTION, nargs=2, action=_Every, metavar=("N", "FILE"), help=meaning)
    meaning = "a TAESD that decodes those previews, which are coarse else; a --vae that is one does it by itself"
    parser.add_argument("--preview-vae", type=Path, metavar="FILE|FOLDER", help=meaning)


class _Every(argparse.Action):
    """Takes the number and the path."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        every, path = values
        try:
            setattr(namespace, self.dest, (whole_number(1, 5)(every), Path(path)))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from None


class PreviewFile:
    """What the options ask for; nothing where they are not given. InputError where it cannot be done."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._every, self._path = args.preview_every or (0, Path())
        if self._every:
            require_writable(_OPTION, self._path, SUFFIXES, "preview.jpg")
        if args.preview_vae is None:
            return
        if not self._every:
            raise InputError(f"--preview-vae (={args.preview_vae}) must come with {_OPTION}, which says where to")
        if args.memory == "low":
            raise InputError(
                f"--preview-vae (={args.preview_vae}) must be left out with --memory low: each preview would load it, "
                "and the denoiser again"
            )

    def show(self, progress: "Progress") -> None:
        """Writes the step's pictures, if it is its turn."""
        if self._every and progress.step % self._every == 0:
            write_whole(_OPTION, self._path, encode(_side_by_side(progress.quick_preview()), self._path.suffix, {}))


def _side_by_side(pictures: "Sequence[Image]") -> "Image":
    """One picture of several of the same size, in about as many rows as columns."""
    from PIL import Image

    columns = math.ceil(len(pictures) ** 0.5)
    rows = math.ceil(len(pictures) / columns)
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        sheet.paste(picture, (column * width, row * height))
    return sheet
