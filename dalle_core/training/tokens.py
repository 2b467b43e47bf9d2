"""The tokens of a data set, encoded once: safetensors shards in a folder, and a `store.json` that says of what.

A shard holds the tokens [n, variants, h, w] of up to SHARD pictures in the data set's order, each one's index in it, and, of a
stream, its captions. It is written whole or not at all: encoding that was killed goes on with the shards that are missing.
Several processes encode shards in turn, each its own. A damaged picture is left out and named.

Where pictures are cropped or mirrored at random, `variants` of each are encoded, and each epoch takes the next.
"""

import argparse
import copy
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import VQModel
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch.utils.data import DataLoader
from tqdm import tqdm

from dalle_core import image_tokenizer
from dalle_core.errors import InputError
from dalle_core.training.data import as_pixels, picture_of, say
from dalle_core.training.emoji import EmojiCorpus
from dalle_core.training.pictures import Frame, PictureStream, digest

SHARD = 2048  # pictures
DRAWN = 48_000  # pictures of the drawn corpus, which has no end, where nothing else is asked for
NAMES = {
    "image_tokenizer": "image tokenizer",
    "image_size": "image size",
    "random_crop": "crop",
    "flip": "flip",
    "variants": "number of variants",
    "data": "data set",
}


def add_token_arguments(parser: argparse.ArgumentParser) -> None:
    """`--pictures` and `--variants`: the `count` and `variants` of `encode_tokens`."""
    parser.add_argument("--pictures", type=int, help=f"how many to encode (all; of the emoji corpus {DRAWN:,})")
    parser.add_argument("--variants", type=int, default=1, help="random crops and flips to encode of a picture (%(default)s)")


def weights_fingerprint(model: VQModel) -> str:
    """SHA-256 of an image tokenizer's config and weights, whatever its device."""
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    state = sorted(model.state_dict().items())
    tensors = ((name, tensor.detach().cpu().float().contiguous().numpy().tobytes()) for name, tensor in state)
    return digest(config, *itertools.chain.from_iterable(tensors))


def _description(model: VQModel, dataset, variants: int | None) -> dict:
    """What tokens depend on, by the names of NAMES; without variants where that is None."""
    frame = getattr(dataset, "frame", None) or Frame(dataset.image_size)  # the drawn corpus has none
    found = {"image_tokenizer": weights_fingerprint(model), "image_size": frame.size, "random_crop": frame.random_crop}
    found |= {"flip": frame.flip, "data": dataset.fingerprint}
    return found if variants is None else found | {"variants": variants}


def _read_store(folder: Path, expected: dict) -> dict | None:
    """What `store.json` says, None where there is none. Raises InputError when the tokens are of something else."""
    file = folder / "store.json"
    if not file.is_file():
        if any(folder.glob("*.safetensors")):
            raise InputError(f"{folder} holds tokens, but no store.json that says of what: delete it, or give another folder.")
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        different = [name for name in NAMES if name in expected and found[name] != expected[name]]
        int(found["pictures"]), bool(found["all"]), int(found["variants"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{file} is damaged: delete {folder}, and its tokens are encoded anew.") from None
    if {"image_size", "random_crop", "flip"} & set(different):  # from which the data set's fingerprint follows
        different = [name for name in different if name != "data"]
    if different:
        names = " and another ".join(NAMES[name] for name in different)
        raise InputError(f"{folder} holds tokens of another {names}: give another folder, or delete it to encode anew.")
    return found


def _write_store(folder: Path, rank: int, found: dict) -> None:
    part = folder / f"store.json.part{rank}"
    part.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    try:
        os.replace(part, folder / "store.json")
    except PermissionError:  # on Windows, while another process of the run writes or reads the same
        part.unlink()


def _shard(folder: Path, number: int) -> Path:
    return folder / f"{number:06}.safetensors"


def _covered(path: Path) -> int:
    """How many of the data set's pictures a shard stands for, damaged ones included; 0 when it is not there."""
    if not path.is_file():
        return 0
    try:
        with safe_open(path, "np") as shard:
            return int(shard.metadata()["pictures"])
    except (SafetensorError, KeyError, ValueError, TypeError):
        raise InputError(f"{path} is damaged: delete it, and it is encoded anew.") from None


def _limit(dataset, found: dict, count: int | None) -> tuple[int | float, bool]:
    """How many pictures are asked for (infinity: as many as a stream holds), and whether there are so many."""
    if not isinstance(dataset, PictureStream):
        return min(count or (DRAWN if isinstance(dataset, EmojiCorpus) else len(dataset)), len(dataset)), True
    if found["all"]:
        return min(count or math.inf, found["pictures"]), True
    return count or math.inf, bool(count) and count <= found["pictures"]


def _missing(folder: Path, limit: int | float, numbers: Iterable[int]) -> list[int]:
    """Of these shards, those that are not there or stand for fewer pictures than they should."""
    return [number for number in numbers if _covered(_shard(folder, number)) < min(SHARD, limit - number * SHARD)]


# ---------------------------------------------------------------- encoding


def encode_tokens(
    model: VQModel,
    dataset,
    folder: str | Path,
    count: int | None = None,
    part: tuple[int, int] = (0, 1),
    variants: int = 1,
    batch_size: int = 64,
    workers: int = 1,
) -> None:
    """Encodes the first `count` pictures (all; of the emoji corpus DRAWN) into `folder`, in float32.

    `part` is (rank, processes). What is there already stays. `TokenStore` opens the result, when every process is done.
    Raises InputError when the folder holds tokens of something else, or variants would all be the same.
    """
    folder, (rank, processes) = Path(folder), part
    folder.mkdir(parents=True, exist_ok=True)
    frame = getattr(dataset, "frame", Frame(dataset.image_size))
    if variants > 1 and not (frame.random_crop or frame.flip):
        raise InputError("All variants of a picture would be the same: leave out --variants, or add --random-crop or --flip.")
    if next(model.parameters()).dtype != torch.float32:
        model = copy.deepcopy(model).float()
    expected = _description(model, dataset, variants)
    before = _read_store(folder, expected)
    found = before or expected | {"pictures": 0, "all": False}
    limit, known = _limit(dataset, found, count)
    stream = isinstance(dataset, PictureStream)
    if not stream:
        found = found | {"pictures": max(found["pictures"], limit)}
    if found != before:
        _write_store(folder, rank, found)

    if known:
        jobs = _missing(folder, limit, range(rank, math.ceil(limit / SHARD), processes))
        if not jobs:
            return
    if stream:
        there = sorted(int(path.stem) for path in folder.glob("*.safetensors"))
        done = set(there) - set(_missing(folder, limit, there))
        source = _StreamJobs(dataset, variants, batch_size, limit, part, done)
        loader = DataLoader(source, batch_size=None, num_workers=min(workers, 1), collate_fn=_as_it_is)
    else:
        spans = [
            (start, min(start + batch_size, (number + 1) * SHARD, limit))
            for number in jobs
            for start in range(number * SHARD, min((number + 1) * SHARD, limit), batch_size)
        ]
        loader = DataLoader(_Jobs(dataset, variants), None, sampler=spans, num_workers=workers, collate_fn=_as_it_is)
    read = _encode(model, loader, folder, rank, batch_size)
    if stream and rank == 0:
        _write_store(folder, rank, found | {"pictures": max(found["pictures"], read), "all": found["all"] or read < limit})


def _as_it_is(items):
    return items


class _Jobs(torch.utils.data.Dataset):
    """(start, stop) -> those pictures: [(index, pixels [variants, 3, H, W] uint8 or a sentence that names damage, None)]."""

    def __init__(self, dataset, variants: int):
        self.dataset, self.variants = dataset, variants

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, span: tuple[int, int]) -> list[tuple]:
        return [(i, _variants(partial(picture_of, self.dataset, i), i, self.variants), None) for i in range(*span)]


class _StreamJobs(torch.utils.data.IterableDataset):
    """The same of a stream, with captions, of this process's shards that are not done; then how many pictures were read."""

    def __init__(self, stream: PictureStream, variants: int, batch_size: int, limit, part: tuple[int, int], done: set[int]):
        self.stream, self.variants, self.batch_size, self.part, self.done = stream, variants, batch_size, part, done
        self.limit = None if limit == math.inf else limit

    def __iter__(self) -> Iterator[list[tuple] | int]:
        (rank, processes), items, read = self.part, [], 0
        for i, (row, captions) in enumerate(itertools.islice(self.stream.read(), self.limit)):
            read = i + 1
            if i // SHARD % processes == rank and i // SHARD not in self.done:
                items.append((i, _variants(partial(picture_of, self.stream, row), i, self.variants), captions))
            if items and (len(items) == self.batch_size or read % SHARD == 0):
                yield items
                items = []
        if items:
            yield items
        yield read


def _variants(picture: Callable, i: int, variants: int) -> torch.Tensor | str:
    try:
        return torch.stack([picture((i, variant)) for variant in range(variants)])
    except InputError as error:
        return str(error)


def _encode(model: VQModel, loader: DataLoader, folder: Path, rank: int, batch_size: int) -> int:
    """Writes a shard whenever its pictures have come. Returns how many pictures of a stream were read."""
    number, rows, covered, read = None, [], 0, 0
    for items in tqdm(loader, unit="batch", desc="encoding", mininterval=5, disable=rank > 0):
        if isinstance(items, int):
            read = items
            break
        if number is not None and items[0][0] // SHARD != number:
            _write_shard(model, folder, number, rows, covered)
            rows = []
        number = items[0][0] // SHARD
        covered = items[-1][0] + 1 - number * SHARD
        rows += _with_tokens(model, items, batch_size)
    if number is not None:
        _write_shard(model, folder, number, rows, covered)
    return read


def _with_tokens(model: VQModel, items: list[tuple], batch_size: int) -> list[tuple]:
    """(index, tokens [variants, h, w] int32, captions) of the pictures that are not damaged."""
    for _, sentence, _ in items:
        if isinstance(sentence, str):
            say(f"{sentence} It is left out.")
    items = [item for item in items if not isinstance(item[1], str)]
    if not items:
        return []
    pixels = torch.cat([pixels for _, pixels, _ in items]).split(batch_size)
    tokens = torch.cat([image_tokenizer.encode(model, as_pixels(part.to(model.device))).int().cpu() for part in pixels])
    tokens = tokens.unflatten(0, (len(items), -1)).numpy()  # [n, variants, h, w]
    return [(index, found, captions) for (index, _, captions), found in zip(items, tokens, strict=True)]


def _write_shard(model: VQModel, folder: Path, number: int, rows: list[tuple], covered: int) -> None:
    dtype = np.uint16 if model.config.num_vq_embeddings <= 2**16 else np.int32
    tokens = np.stack([tokens for _, tokens, _ in rows]) if rows else np.zeros((0, 1, 1, 1))
    arrays = {"tokens": tokens.astype(dtype), "index": np.array([index for index, *_ in rows], np.int64)}
    if rows and rows[0][2] is not None:  # each picture's captions as JSON, one after the other
        texts = [json.dumps(captions, ensure_ascii=False).encode() for *_, captions in rows]
        arrays["captions"] = np.frombuffer(b"".join(texts), np.uint8)
        arrays["caption_offsets"] = np.cumsum([0, *map(len, texts)])
    path = _shard(folder, number)
    part = path.with_suffix(".part")
    save_file(arrays, part, metadata={"pictures": str(covered)})
    os.replace(part, path)


# ---------------------------------------------------------------- reading


class TokenStore(torch.utils.data.Dataset):
    """What `encode_tokens` made of the first `count` pictures: `len`, `tokens(i, variant)`, `caption(i, variant)`.

    Its shards are mapped, not read, and each process maps them for itself. `batches` takes it in the place of a data
    set. Raises InputError when it was encoded from something else, or not to the end.
    """

    block = 1  # see `data.batches`

    def __init__(self, folder: str | Path, model: VQModel, dataset, count: int | None = None):
        self.folder, self.dataset, self.name = Path(folder), dataset, f"{folder}"
        found = _read_store(self.folder, _description(model, dataset, None))
        if found is None:
            raise InputError(f"{folder} holds no tokens yet: encode the data set into it.")
        limit, known = _limit(dataset, found, count)
        numbers = range(math.ceil(limit / SHARD)) if known else ()
        missing = _missing(self.folder, limit, numbers)
        if missing or not known:
            what = f"{len(missing):,} of {len(numbers):,} shards are missing" if known else "the stream's end was not reached"
            raise InputError(f"{folder} is not complete ({what}): start encoding again, it goes on where it was stopped.")
        self.variants, self._mapped = found["variants"], {}
        lengths = [self._open(number).get_slice("index").get_shape()[0] for number in numbers]
        if lengths:  # the last shard may hold more than was asked for
            lengths[-1] = int(np.searchsorted(self._open(numbers[-1]).get_tensor("index"), limit))
        self.ends = np.cumsum(lengths)
        if not sum(lengths):
            raise InputError(f"{folder} holds no tokens: no picture of the data set could be read.")

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, i: int) -> tuple[torch.Tensor, str]:
        return self.tokens(i), self.caption(i)

    def __getstate__(self) -> dict:
        return vars(self) | {"_mapped": {}}

    def tokens(self, i: int, variant: int = 0) -> torch.Tensor:
        """Tokens [h, w] (int64) of picture i: of its random crops and flips, where there are several, one after the other."""
        shard, row = self._find(i)
        return torch.from_numpy(shard.get_slice("tokens")[row][variant % self.variants].astype(np.int64))

    def caption(self, i: int, variant: int = 0) -> str:
        """One of picture i's captions: as the data set words it, or as the stream had them."""
        shard, row = self._find(i)
        if not isinstance(self.dataset, PictureStream):
            return self.dataset.caption(int(shard.get_slice("index")[row : row + 1][0]), variant)
        start, end = shard.get_slice("caption_offsets")[row : row + 2]
        captions = json.loads(shard.get_slice("captions")[int(start) : int(end)].tobytes())
        return captions[variant % len(captions)]

    def _find(self, i: int):
        """The shard of picture i, and its row there."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        number = int(np.searchsorted(self.ends, i, side="right"))
        return self._open(number), i - int(self.ends[number - 1] if number else 0)

    def _open(self, number: int):
        if number not in self._mapped:
            self._mapped[number] = safe_open(_shard(self.folder, number), "np")
        return self._mapped[number]
