"""Captioned pictures for training: the drawn emoji corpus, a folder, Parquet files, WebDataset tars, or a data set of the Hub.

A data set has `image_size`, `held_out_kinds`, `held_out(kind, count)`, `contrast(block)` with `block` for CLIP, `name`,
`licence` (None where it is not known) and `fingerprint`: of its files and of the settings that change its pixels. All but
streams have `len`, `picture(i)` (a PIL image), `caption(i, variant)` and `dataset[i]` (the two together).

Which pictures come, and everything random about them, depends on (seed, step, position in the batch) alone: a run that was
killed goes on with exactly the batch it would have had, and several processes see together what one would.
"""

import argparse
import importlib.util
import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, get_worker_info
from tqdm import tqdm

from dalle_core.errors import InputError
from dalle_core.training.candidates import RankerPictures
from dalle_core.training.emoji import EmojiCorpus
from dalle_core.training.pictures import Frame, Pictures, PictureStream
from dalle_core.training.sources import find_files, open_files, open_folder, open_from_hub

CORPUS = "data/emoji"  # where dalle_core.training.emoji puts it
ALLOW_BAD = 0.05
REPLACEMENTS = 16  # how many pictures further a damaged one's replacement is looked for


# ---------------------------------------------------------------- opening


def add_data_arguments(parser: argparse.ArgumentParser, positional: bool = False) -> None:
    """The arguments that `open_from` reads; the source has no dashes where it is `positional`."""
    group = parser.add_argument_group("training data")
    add = group.add_argument
    add(
        "data" if positional else "--data",
        default=CORPUS,
        metavar="DATA" if positional else "SOURCE",
        help="the emoji corpus, a folder with metadata.jsonl or metadata.csv, Parquet files, WebDataset tars, or OWNER/NAME of "
        "the Hub" + " (%(default)s)" * (not positional),
    )
    add("--captions", nargs="+", metavar="COLUMN", help="columns with captions, or lists of them (text)")
    add("--image", metavar="COLUMN", help="the column with the pictures, where there are several")
    add("--split", help="of a data set of the Hub (train)")
    add("--subset", help="of a data set of the Hub that has several")
    add("--streaming", action="store_true", help="read as training goes, store nothing; going on means reading it all again")
    add("--random-crop", action="store_true", help="squares from random places, not from the centre")
    add("--flip", action="store_true", help="mirror half of the pictures; not where captions tell left from right")
    add("--allow-bad", type=float, default=ALLOW_BAD, metavar="SHARE", help="of unusable pictures to go on with (%(default)s)")


OPTIONS = ("captions", "image", "split", "subset", "streaming", "random_crop", "flip", "allow_bad")


def open_from(args: argparse.Namespace, image_size: int):
    """The data set of a command's arguments; the first process says what of it is used."""
    options = {name: getattr(args, name) for name in OPTIONS if hasattr(args, name)}
    dataset = open_dataset(args.data, image_size, seed=getattr(args, "seed", 0), **options)
    report = getattr(dataset, "report", None)  # the drawn corpus has nothing to report
    if report is not None and os.environ.get("RANK", "0") == "0":
        counts = "a stream"
        if isinstance(dataset, Pictures):
            counts = f"{len(dataset):,} pictures, {len(dataset.kept_out):,} kept out"
        say(f"{dataset.name}: {counts}" + (f"; left out: {report}" if report.counts else ""))
    return dataset


def say(text: str) -> None:
    """Prints beside progress bars, whatever the output's encoding can hold."""
    encoding = sys.stdout.encoding or "utf-8"
    tqdm.write(text.encode(encoding, "replace").decode(encoding))


def open_dataset(
    source: str | Path,
    image_size: int,
    seed: int = 0,
    captions: list[str] | None = None,
    image: str | None = None,
    split: str | None = None,
    subset: str | None = None,
    streaming: bool = False,
    random_crop: bool = False,
    flip: bool = False,
    allow_bad: float = ALLOW_BAD,
):
    """EmojiCorpus, RankerPictures (a folder of `training.candidates`), Pictures or PictureStream; for the arguments see above.

    Code that comes with a data set never runs. Raises InputError when the source cannot be read as any of these, or when
    more than `allow_bad` of its pictures cannot be used.
    """
    path, frame = Path(source), Frame(image_size, random_crop, flip)
    if path.exists() and (split or subset):
        raise InputError("--split and --subset are for data sets of the Hub: name the files that you want by --data.")
    if (path / "ranker.json").exists():
        return RankerPictures(source, image_size, seed=seed)
    if (path / "sprites.npy").exists():
        if captions or image or streaming or random_crop or flip:
            raise InputError("The emoji corpus draws its pictures: --data is the only argument about data that it takes.")
        return EmojiCorpus(source, seed=seed, image_size=image_size)
    if path == Path(CORPUS) and not path.exists():
        raise InputError(f"{CORPUS} is not there yet: `python -m dalle_core.training.emoji` makes it.")
    if importlib.util.find_spec("datasets") is None:
        raise InputError(
            "Pictures of your own take Hugging Face datasets: pip install -r requirements-train.txt, "
            "or this package with its extra “train”."
        )
    if not path.exists():
        return open_from_hub(str(source), frame, captions, image, split, subset, streaming, allow_bad)
    if files := find_files(path):
        return open_files(path, files, frame, captions, image, streaming, allow_bad)
    if streaming:
        raise InputError(f"{source} is a folder of pictures, which are read one by one anyway: leave out --streaming.")
    return open_folder(path, frame, captions, image, allow_bad)


# ---------------------------------------------------------------- the order of batches


class _Batches:
    """Batches of keys (index, epoch, (seed, step, position)) from `step` to `steps`: of each, the part of one process.

    Epoch e is a permutation seeded by e; batches go on over the ends of epochs. Blocks of a data set that has them are
    permuted as they are.
    """

    def __init__(self, length: int, batch_size: int, seed: int, step: int, steps: int, block: int, part: tuple[int, int]):
        self.length, self.batch_size, self.seed, self.step, self.steps = length, batch_size, seed, step, steps
        self.block, self.positions = block, _positions(batch_size, part)

    def __len__(self) -> int:
        return max(0, self.steps - self.step)

    def __iter__(self) -> Iterator[list]:
        epoch, order, blocks = -1, None, self.length // self.block
        for step in range(self.step, self.steps):
            batch = []
            for position in self.positions:
                number, offset = divmod(step * self.batch_size + position, self.block)
                if number // blocks != epoch:
                    epoch = number // blocks
                    generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                    order = torch.randperm(blocks, generator=generator)
                index = order[number % blocks].item() * self.block + offset
                batch.append((index, epoch, (self.seed, step, position)))
            yield batch


def _positions(batch_size: int, part: tuple[int, int]) -> range:
    """This process's equal slice of a batch. Raises InputError when the batch cannot be divided."""
    rank, processes = part
    if batch_size % processes:
        raise InputError(f"A batch of {batch_size} cannot be shared by {processes} processes: take a multiple of {processes}.")
    return range(rank * batch_size // processes, (rank + 1) * batch_size // processes)


def picture_of(dataset, i, draw: tuple[int, ...]) -> torch.Tensor:
    """Picture i, or of a stream row i, as [3, H, W] uint8, cropped and mirrored as the numbers `draw` say.

    Workers hand over bytes, floats are made on the device: see `as_pixels`.
    """
    if isinstance(dataset, Pictures | PictureStream):
        image = dataset.picture(i, np.random.default_rng(draw))
    else:
        image = dataset.picture(i)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


class _Items(torch.utils.data.Dataset):
    """key -> ((pixels [3, H, W] uint8, caption, index), sentences that name damaged files). A damaged picture is replaced by
    the next; None when several in a row are damaged. A TokenStore has tokens [h, w] in the place of pixels.
    """

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key):
        (index, epoch, draw), damaged = key, []
        if hasattr(self.dataset, "tokens"):
            return (self.dataset.tokens(index, epoch), self.dataset.caption(index, epoch), index), damaged
        for i in (i % len(self) for i in range(index, index + REPLACEMENTS)):
            try:
                return (picture_of(self.dataset, i, draw), self.dataset.caption(i, epoch), i), damaged
            except InputError as error:
                damaged.append(str(error))
        return None, damaged


class _StreamBatches(torch.utils.data.IterableDataset):
    """The same of a stream, batch by batch, through its shuffle buffer. Every process and every worker reads the whole stream
    and decodes its own pictures only; going on at a step means reading all that came before it."""

    def __init__(self, stream: PictureStream, batch_size: int, seed: int, step: int, steps: int, part, collate):
        self.stream, self.batch_size, self.seed, self.step, self.steps = stream, batch_size, seed, step, steps
        self.positions, self.collate = _positions(batch_size, part), collate

    def _rows(self) -> Iterator:
        for epoch in itertools.count():
            rows = 0
            for rows, (row, captions) in enumerate(self.stream.read(self.seed, epoch), 1):
                yield row, captions[epoch % len(captions)]
            if not rows:
                raise InputError(f"{self.stream.name} holds no picture that can be trained on.")

    def __iter__(self) -> Iterator:
        worker = get_worker_info()
        worker, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        rows, ahead = self._rows(), []
        for step in range(self.steps):
            # A damaged picture's replacement may be one of the next batch.
            ahead += itertools.islice(rows, self.batch_size + REPLACEMENTS - len(ahead))
            if step >= self.step and (step - self.step) % workers == worker:
                yield self.collate([self._item(ahead, step, position) for position in self.positions])
            ahead = ahead[self.batch_size :]

    def _item(self, ahead: list, step: int, position: int):
        damaged = []
        for row, caption in ahead[position : position + REPLACEMENTS]:
            try:
                pixels = picture_of(self.stream, row, (self.seed, step, position))
                return (pixels, caption, step * self.batch_size + position), damaged
            except InputError as error:
                damaged.append(str(error))
        return None, damaged


def collate_pictures(items: list[tuple]) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """Items -> (pixels [B, 3, H, W] uint8, captions, indices [B])."""
    pixels, captions, indices = zip(*items)
    return torch.stack(pixels), list(captions), torch.tensor(indices)


class _Collate:
    """Takes the sentences about damaged files off the items, and hands them on beside the batch; None where an item is None."""

    def __init__(self, collate: Callable):
        self.collate = collate

    def __call__(self, found: list[tuple]) -> tuple:
        items, damaged = [item for item, _ in found], [sentence for _, sentences in found for sentence in sentences]
        return None if any(item is None for item in items) else self.collate(items), damaged


class Batches:
    """An iterable of batches; `damaged` counts, by the sentence that names it, each file that could not be decoded."""

    def __init__(self, loader: DataLoader):
        self.loader, self.damaged = loader, Counter()

    def __iter__(self) -> Iterator:
        for batch, damaged in self.loader:
            for sentence in damaged:
                if sentence not in self.damaged:
                    say(f"{sentence} Another picture takes its place.")
                self.damaged[sentence] += 1
            if batch is None:  # said here, not in a worker, whose errors come with a traceback
                raise InputError(f"{REPLACEMENTS} pictures in a row are damaged. Mend them, or take them out of the metadata.")
            yield batch


def batches(
    dataset,
    batch_size: int,
    step: int,
    steps: int,
    seed: int = 0,
    workers: int = 1,
    part: tuple[int, int] = (0, 1),
    collate: Callable | None = None,
) -> Batches:
    """This process's slice, `part = (rank, processes)`, of the global batches from `step` to `steps`.

    Yields what `collate`, picklable, makes of a list of (pixels [3, H, W] uint8, caption, index); by default (pixels
    [B, 3, H, W] uint8, captions, indices [B]), see `as_pixels`. Of several captions, each epoch takes the next. An index is
    the data set's, or the number of the item in a stream. Raises InputError when the processes cannot share the batch.
    """
    collate = _Collate(collate or collate_pictures)
    if isinstance(dataset, PictureStream):
        stream = _StreamBatches(dataset, batch_size, seed, step, steps, part, collate)
        return Batches(DataLoader(stream, batch_size=None, num_workers=workers, collate_fn=_as_it_is))
    order = _Batches(len(dataset), batch_size, seed, step, steps, dataset.block, part)
    return Batches(DataLoader(_Items(dataset), num_workers=workers, collate_fn=collate, batch_sampler=order))


def _as_it_is(batch):
    return batch


def in_order(dataset, batch_size: int, first: int, count: int, workers: int = 1) -> Batches:
    """The same for the pictures from `first` to `count`, once and in their order."""
    keys = [(i, 0, (0, 0, i)) for i in range(first, count)]
    loader = DataLoader(_Items(dataset), batch_size, num_workers=workers, collate_fn=_Collate(collate_pictures), sampler=keys)
    return Batches(loader)


def first_captions(dataset, count: int) -> list[str]:
    """`count` captions: of the pictures in their order, then other captions of them; of a stream, at most what it holds."""
    if isinstance(dataset, PictureStream):
        return list(itertools.islice((caption for _, captions in dataset.read() for caption in captions), count))
    return [dataset.caption(i % len(dataset), i // len(dataset)) for i in range(count)]


def first_pictures(dataset, count: int) -> list[Image.Image]:
    """The first `count` pictures that can be decoded, fewer when there are no more."""
    found = []
    for key in (row for row, _ in dataset.read()) if isinstance(dataset, PictureStream) else range(len(dataset)):
        if len(found) == count:
            break
        try:
            found.append(dataset.picture(key))
        except InputError:
            continue
    return found


def some_held_out(dataset, kind: str, count: int) -> list[tuple[Image.Image, str]]:
    """`dataset.held_out(kind, count)`. Raises InputError when that is none."""
    found = dataset.held_out(kind, count)
    if not found:
        raise InputError(f"Nothing of {dataset.name} is kept out of training: it needs pictures with different captions.")
    return found


def as_pixels(bytes_: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] uint8 -> float in [-1, 1]."""
    return bytes_.float() / 127.5 - 1
