"""Builds the training set: Fluent Emoji pictures on white, and the phrases that may name each of them.

Writes `images.npz` (`images`: (P, 128, 128, 3) u8) and `captions.json`, a list of P entries `names` and `alternatives`:
the picture's Unicode CLDR names (several where names share one picture) and other wordings.
"""

import argparse
import io
import json
import re
import subprocess
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
from emoji import EMOJI_DATA
from PIL import Image

NPM_PACKAGE = "@lobehub/fluent-emoji-3d@1.1.0"
SIZE_PX = 128
SAME_PICTURE = 1e-4  # cosine distance of pooled pixels below which two pictures are one
VARIATION_SELECTOR = "\ufe0f"

# Everyday words that neither the CLDR name nor an alias offers, by CLDR name.
SYNONYMS = {
    "airplane": ["plane", "aeroplane"],
    "automobile": ["car", "red car"],
    "bicycle": ["bike"],
    "cat": ["orange cat", "tabby cat"],
    "cat face": ["cat head", "face of a cat", "smiling cat"],
    "cow face": ["cow head", "face of a cow"],
    "croissant": ["french croissant"],
    "dog": ["brown dog", "standing dog"],
    "dog face": ["dog head", "face of a dog", "puppy", "puppy face"],
    "doughnut": ["donut"],
    "french fries": ["fries", "chips"],
    "fried shrimp": ["prawn"],
    "green apple": ["apple that is green"],
    "grinning face": ["happy face", "smiley"],
    "guitar": ["electric guitar", "red guitar"],
    "hamburger": ["burger"],
    "helicopter": ["chopper"],
    "hot beverage": ["coffee", "cup of coffee", "cup of tea"],
    "house": ["home", "small house"],
    "locomotive": ["steam train"],
    "motorcycle": ["motorbike"],
    "pizza": ["slice of pizza", "pizza slice"],
    "rainbow": ["colorful rainbow"],
    "red apple": ["apple"],
    "red heart": ["heart", "love heart", "heart that is red"],
    "robot": ["robot head", "white robot"],
    "rocket": ["space rocket", "rocket ship"],
    "rose": ["red rose"],
    "sailboat": ["sailing boat"],
    "snowman": ["snow man", "snowman in the snow"],
    "soccer ball": ["football ball"],
    "sport utility vehicle": ["blue car", "suv"],
    "sun": ["sunshine"],
    "taxi": ["yellow car", "yellow taxi", "yellow cab"],
    "wine glass": ["glass of wine", "red wine"],
}


def fetch(folder: Path) -> Path:
    """Download the npm package once; return the path of its archive."""
    archive = folder / "lobehub-fluent-emoji-3d-1.1.0.tgz"
    if not archive.exists():
        subprocess.run(["npm", "pack", "--silent", NPM_PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return archive


def emoji_of(stem: str) -> str | None:
    """The emoji that a file name of code points such as `1f3f3-fe0f-200d-1f308` stands for, if the table knows it."""
    char = "".join(chr(int(point, 16)) for point in re.split("[-_]", stem))
    return next((c for c in (char, char.replace(VARIATION_SELECTOR, "")) if c in EMOJI_DATA), None)


def words(code: str) -> str:
    """`:red_heart:` -> `red heart`."""
    return code.strip(":").replace("_", " ").lower()


def on_white(data: bytes) -> np.ndarray:
    """Decode one picture, put it on white and shrink it: (128, 128, 3) u8."""
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture)
    return np.asarray(canvas.convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS))


def pooled(images: np.ndarray) -> np.ndarray:
    """Features for the nearest picture: 4x4-pooled pixels in 0..1, L2-normalised, (P, 3072) f32."""
    size = SIZE_PX // 4
    features = images.reshape(-1, size, 4, size, 4, 3).mean((2, 4), dtype=np.float32).reshape(len(images), -1)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def read_pictures(archive: Path) -> dict[str, tuple[str, np.ndarray]]:
    """CLDR name -> (emoji, picture), without skin tones and without a second picture of the same name."""
    pictures = {}
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            char = emoji_of(Path(member.name).stem) if member.name.endswith(".webp") else None
            if char is None:
                continue
            name = words(EMOJI_DATA[char]["en"])
            if "skin tone" not in name and name not in pictures:
                pictures[name] = char, on_white(tar.extractfile(member).read())
    return pictures


def aliases(char: str, name: str) -> list[str]:
    """Wordings of one emoji besides its name: the table's aliases and our synonyms."""
    found = [words(a) for c in (char, char + VARIATION_SELECTOR) for a in EMOJI_DATA.get(c, {}).get("alias") or []]
    is_flag = any(alias.startswith("flag for") for alias in found)
    flags = [f"flag of {name}", f"{name} flag", f"flag {name}"] if is_flag else []
    return sorted({*found, *flags, *SYNONYMS.get(name, []), name.replace("’", "'")} - {name})


def build(folder: Path) -> None:
    """Fetch, decode, merge equal pictures and write `images.npz` and `captions.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = read_pictures(fetch(folder))
    names = list(pictures)
    images = np.stack([image for _, image in pictures.values()])

    wordings = {name: aliases(char, name) for name, (char, _) in pictures.items()}
    uses = Counter(alias for found in wordings.values() for alias in found)
    usable = re.compile(r"[^\d]{3,}")  # leaves out country codes and such aliases as "clock630"
    for name, found in wordings.items():
        wordings[name] = [a for a in found if uses[a] == 1 and a not in pictures and usable.fullmatch(a)]

    similarity = np.tril(pooled(images) @ pooled(images).T)
    first = [int(np.argmax(row > 1 - SAME_PICTURE)) for row in similarity]  # the first picture like this one, or itself
    kept = sorted(set(first))
    captions = []
    for index in kept:
        same = [names[j] for j, f in enumerate(first) if f == index]
        captions.append({"names": same, "alternatives": [a for name in same for a in wordings[name]]})

    np.savez_compressed(folder / "images.npz", images=images[kept])
    (folder / "captions.json").write_text(json.dumps(captions, ensure_ascii=False, indent=0))
    print(f"{len(kept)} pictures, {len(names)} names, {sum(len(c['alternatives']) for c in captions)} alternatives")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    build(parser.parse_args().data)
