"""The prepared emoji corpus in one file, for a machine without network: the icons as lossless WebP, and the names.

`python -m dalle_core.training.emoji --pack emoji.tar` writes it; `--unpack emoji.tar` makes of it, on the other machine, the
folder that `prepare` would have made there, to the byte.
"""

import io
import itertools
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from dalle_core.errors import InputError
from dalle_core.training.emoji_icons import VERSIONS

EMOJIBASE = f"packages/emojibase-data-{VERSIONS['emojibase-data']}"
TEXTS = ("icons.json", *(f"{EMOJIBASE}/{name}" for name in ("LICENSE", "en/data.json", "zh/data.json")))


def pack(folder: Path, file: Path) -> None:
    """Writes the corpus of `folder` into `file`, a tar."""
    sprites = np.load(folder / "sprites.npy", mmap_mode="r")

    def webp(sprite: np.ndarray) -> bytes:
        out = io.BytesIO()
        Image.fromarray(sprite).save(out, "WEBP", lossless=True, exact=True, method=4)  # exact: colours that nobody sees too
        return out.getvalue()

    with tarfile.open(file, "w") as tar, ThreadPoolExecutor() as threads:
        for name in TEXTS:
            tar.add(folder / name, name)
        for number, data in enumerate(threads.map(webp, sprites)):
            entry = tarfile.TarInfo(f"{number:05}.webp")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def unpack(file: Path, folder: Path) -> None:
    """Makes the folder of the corpus anew. Raises InputError when the file is not what `pack` writes."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(file) as tar:
            for name in TEXTS:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(tar.extractfile(name).read())
            names = sorted(name for name in tar.getnames() if name.endswith(".webp"))
            count = len(json.loads((folder / "icons.json").read_text(encoding="utf-8"))["icons"])
            if len(names) != count:
                raise ValueError(f"it has {len(names)} of {count} icons")
            icons = (np.asarray(Image.open(tar.extractfile(name)).convert("RGBA")) for name in names)
            first = next(icons)
            sprites = np.lib.format.open_memmap(folder / "sprites.part.npy", "w+", np.uint8, (len(names), *first.shape))
            for number, sprite in enumerate(itertools.chain([first], icons)):
                sprites[number] = sprite
    except (tarfile.TarError, KeyError, OSError, ValueError) as error:
        raise InputError(f"{file} is not a packed emoji corpus ({error}): pack it again.") from None
    sprites.flush()
    del sprites
    (folder / "sprites.part.npy").replace(folder / "sprites.npy")
