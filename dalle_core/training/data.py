"""Captioned pictures for training: the drawn emoji corpus, or any folder of pictures with a `metadata.jsonl`.

A data set is anything with `len`, `image_size`, `picture(i)` (a PIL image), `caption(i, variant)`,
`dataset[i]` (the two together), `held_out(kind, count)`, and `contrast(block)` with `block` for CLIP. The order in which pictures
come depends on (seed, step) alone, so that a run that was killed goes on with exactly the batch it would have had.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from dalle_core.image_tokenizer import flat
from dalle_core.training.emoji import EmojiCorpus


class ImageFolder:
    """The `imagefolder` convention of Hugging Face `datasets`: pictures beside a `metadata.jsonl`.

    Each line holds `file_name` and `text` (a caption, or a list of captions that are used in turn). Pictures
    are cropped to a centred square and resized. Every 20th line (by number) is kept out of training: `held_out()`.

    Raises ValueError naming the file and the line when something is missing or not as described.
    """

    held_out_kinds = ("folder",)
    block = 1

    def contrast(self, block: int) -> "ImageFolder":
        """Nothing is known of its pictures that could be put side by side."""
        return self

    def __init__(self, folder: str | Path, image_size: int, seed: int = 0):
        self.folder, self.image_size, self.seed = Path(folder), image_size, seed
        metadata = self.folder / "metadata.jsonl"
        if not metadata.is_file():
            raise ValueError(f'{metadata} is missing: one line {{"file_name": "1.png", "text": "a fox"}} for each picture')
        entries = []
        # Not splitlines(), which would cut a caption at U+2028 too.
        for number, line in enumerate(metadata.read_text(encoding="utf-8").split("\n"), 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                path, texts = self.folder / entry["file_name"], entry["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{metadata}, line {number}: needs a JSON object with file_name and text ({error})") from None
            texts = [texts] if isinstance(texts, str) else texts
            if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text for text in texts):
                raise ValueError(f"{metadata}, line {number}: text is a caption or a list of captions")
            if not path.is_file():
                raise ValueError(f"{metadata}, line {number}: {path} does not exist")
            entries.append((path, texts))
        self.entries = [entry for i, entry in enumerate(entries) if i % 20 != 19]
        self.kept_out = [entry for i, entry in enumerate(entries) if i % 20 == 19]
        if not self.entries:
            raise ValueError(f"{metadata} names no picture")

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: int) -> tuple[Image.Image, str]:
        return self.picture(i), self.caption(i)

    def picture(self, i: int) -> Image.Image:
        return self._open(self.entries[i][0])

    def caption(self, i: int, variant: int = 0) -> str:
        texts = self.entries[i][1]
        return texts[variant % len(texts)]

    def held_out(self, kind: str, count: int) -> list[tuple[Image.Image, str]]:
        """Pictures training never sees, with their first caption; `kind` is one of `held_out_kinds`."""
        return [(self._open(path), texts[0]) for path, texts in self.kept_out[:count]]

    def _open(self, path: Path) -> Image.Image:
        try:
            with Image.open(path) as image:
                image = flat(image)
        except OSError as error:
            raise ValueError(f"{path} cannot be read as a picture: {error}") from None
        return ImageOps.fit(image, (self.image_size, self.image_size), Image.Resampling.LANCZOS)


def open_dataset(source: str, image_size: int, seed: int = 0):
    """A folder with `metadata.jsonl` -> ImageFolder; a folder prepared by `dalle_core.training.emoji` -> EmojiCorpus."""
    if (Path(source) / "sprites.npy").exists():
        return EmojiCorpus(source, seed=seed, image_size=image_size)
    return ImageFolder(source, image_size, seed=seed)


class _Batches:
    """Index batches from `step` to `steps`, without end-of-epoch remainders: epoch e is a permutation seeded by e.

    Blocks of a data set that has them are permuted as they are.
    """

    def __init__(self, length: int, batch_size: int, seed: int, step: int, steps: int, block: int = 1):
        self.length, self.batch_size, self.seed, self.step, self.steps = length, batch_size, seed, step, steps
        self.block = block

    def __len__(self) -> int:
        return self.steps - self.step

    def __iter__(self):
        epoch, order, blocks = -1, None, self.length // self.block
        for step in range(self.step, self.steps):
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                number, offset = divmod(position, self.block)
                if number // blocks != epoch:
                    epoch = number // blocks
                    generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                    order = torch.randperm(blocks, generator=generator)
                batch.append(order[number % blocks].item() * self.block + offset)
            yield batch


class _Pictures(torch.utils.data.Dataset):
    """`dataset[i]` as ([3, H, W] uint8, caption): workers hand over bytes, floats are made on the device."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int):
        image, text = self.dataset[i]
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), text


def batches(dataset, batch_size: int, step: int, steps: int, seed: int = 0, workers: int = 1) -> DataLoader:
    """Yields (pixels [B, 3, H, W] uint8, captions) for the steps from `step` to `steps`; see `as_pixels`."""
    return _loader(dataset, workers, batch_sampler=_Batches(len(dataset), batch_size, seed, step, steps, dataset.block))


def in_order(dataset, batch_size: int, first: int, count: int, workers: int = 1) -> DataLoader:
    """The same for the pictures from `first` to `count`, once and in their order."""
    return _loader(dataset, workers, batch_size=batch_size, sampler=range(first, count))


def _collate(items):
    return torch.stack([pixels for pixels, _ in items]), [text for _, text in items]


def _loader(dataset, workers: int, **order) -> DataLoader:
    return DataLoader(_Pictures(dataset), num_workers=workers, collate_fn=_collate, **order)


def as_pixels(bytes_: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] uint8 -> float in [-1, 1]."""
    return bytes_.float() / 127.5 - 1
