"""Captioned pictures held by `datasets`: a table that is indexed, or a stream that is read in its order.

Both are made by `dalle_core.training.data.open_dataset`. Nothing is decoded before it is asked for.
"""

import hashlib
import io
import json
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from dalle_core.errors import InputError
from dalle_core.image_tokenizer import flat
from dalle_core.training.captions import HELD_OUT, Report, bound, held_out, key_place, trained, usable

SHUFFLE_BUFFER = 2000  # pictures of a stream, as files in memory
LOOKED_AT = 100  # pictures of a stream before the first step


@dataclass(frozen=True)
class Frame:
    """The square of a picture that training sees: `size` pixels a side, of the centre, or of a random place along the longer
    side (as taming-transformers crops), mirrored at random where that is asked for."""

    size: int
    random_crop: bool = False
    flip: bool = False

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> Image.Image:
        """Without random numbers: the centre, as it is."""
        centre = tuple(rng.random(2)) if rng is not None and self.random_crop else (0.5, 0.5)
        image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.LANCZOS, centering=centre)
        return ImageOps.mirror(image) if rng is not None and self.flip and rng.random() < 0.5 else image


@dataclass(frozen=True)
class Columns:
    """Which columns of a row hold pictures (the first that is not empty counts) and captions."""

    images: tuple[str, ...]
    captions: tuple[str, ...]

    def texts(self, row: dict) -> tuple[list[str], str]:
        """The captions that can be used, and what is wrong with another; see `captions.usable`."""
        row = row | row["json"] if isinstance(row.get("json"), dict) else row  # of a WebDataset
        return usable([row.get(column) for column in self.captions])

    def file(self, row: dict) -> dict:
        """{"bytes": ..., "path": ...} of the picture; both may be None."""
        return next((row[column] for column in self.images if row.get(column)), {"bytes": None, "path": None})


def open_picture(file: dict, name: str) -> Image.Image:
    """The picture of an undecoded `datasets.Image`, in RGB. Raises InputError that names it when it cannot be read."""
    try:
        with _stream(file) as stream, Image.open(stream) as image:
            return flat(image)
    except Exception as error:  # Pillow's readers raise errors of any kind for damaged files
        raise InputError(f"{name} cannot be read as a picture: {error}.") from None


def _stream(file: dict):
    if file["bytes"] is not None:
        return io.BytesIO(file["bytes"])
    if str(file["path"]).rpartition("::")[2].startswith("hf://"):  # streamed from the Hub; no other address is opened
        import fsspec

        return fsspec.open(file["path"], "rb").open()
    return open(file["path"] or "", "rb")


def _header_is_good(file) -> bool:
    """`file`: an Arrow scalar. Bytes stay in the mapped table: a header is a page or two of it, not the whole picture."""
    import pyarrow

    stream = pyarrow.BufferReader(file["bytes"].as_buffer()) if file["bytes"].is_valid else file["path"].as_py()
    try:
        with Image.open(stream):
            return True
    except Exception:  # as in open_picture
        return False


def digest(*parts) -> str:
    """SHA-256 of JSON values and bytes."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode())
    return found.hexdigest()


class Pictures:
    """Captioned pictures in a `datasets.Dataset` whose image columns are `datasets.Image(decode=False)`.

    `len`, `picture(i)` (PIL, RGB, image_size x image_size), `caption(i, variant)`, `[i]` (both) are of the trained part,
    `held_out(kind, count)` of the other. Raises InputError when more than `allow_bad` of the rows cannot be used; what
    cannot is in `report`.
    """

    held_out_kinds = ("caption",)
    block = 1

    def __init__(
        self,
        rows,
        columns: Columns,
        frame: Frame,
        name: str,
        source: str,
        licence: str | None = None,
        report: Report | None = None,
        allow_bad: float = 0.0,
    ):
        self.columns, self.frame, self.name, self.licence = columns, frame, name, licence
        self.image_size, self.report = frame.size, report or Report()
        self.rows = rows
        names = [column for column in rows.column_names if column in (*columns.captions, "json")]
        self.texts = rows.select_columns(names)
        good, keys = self._scan()
        self.report.check(name, len(good), allow_bad)
        self.bound = bound(keys)
        self.trained, self.kept_out = good[keys >= self.bound], good[keys < self.bound]
        # The bound and the rows: a changed caption may move a picture to the other part.
        self.fingerprint = digest(source, columns.images, list(vars(frame).values()), self.bound, self.trained.tobytes())

    def _scan(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows that can be used [n] and their keys' places [n]; reads captions and the pictures' headers."""
        good, keys, number = array("q"), array("d"), 0  # millions of them
        images = self.rows.select_columns(list(self.columns.images)).with_format("arrow")
        for texts, table in zip(self.texts.iter(1000), images.iter(1000)):
            for k in range(len(table)):
                captions, problem = self.columns.texts({column: values[k] for column, values in texts.items()})
                file = self._file(table, k)
                name = (file and file["path"].as_py()) or f"picture {number + 1}"
                if not captions:
                    self.report.add(problem, name)
                elif not file or not _header_is_good(file):
                    self.report.add("damaged pictures", name)
                else:
                    good.append(number)
                    keys.append(key_place(captions))
                number += 1
        return np.array(good, np.int64), np.array(keys, np.float64)

    def _file(self, table, k: int):
        """Row k's picture in an Arrow table: a struct scalar of bytes and path, not copied; None when there is none."""
        files = (table.column(column)[k] for column in self.columns.images)
        return next((file for file in files if file.is_valid and (file["bytes"].is_valid or file["path"].is_valid)), None)

    def __len__(self) -> int:
        return len(self.trained)

    def __getitem__(self, i: int) -> tuple[Image.Image, str]:
        return self.picture(i), self.caption(i)

    def picture(self, i: int, rng: np.random.Generator | None = None) -> Image.Image:
        """With random numbers: cropped and mirrored as `frame` says. Raises InputError that names a damaged file."""
        return self.frame(self._open(int(self.trained[i])), rng)

    def caption(self, i: int, variant: int = 0) -> str:
        """The captions of picture i in turn."""
        texts = trained(self.columns.texts(self.texts[int(self.trained[i])])[0], self.bound)
        return texts[variant % len(texts)]

    def held_out(self, kind: str, count: int) -> list[tuple[Image.Image, str]]:
        """At most `count` pictures with captions that training never sees; `kind` is one of `held_out_kinds`."""
        found = []
        for row in map(int, self.kept_out):
            if len(found) == count:
                break
            try:
                found.append((self.frame(self._open(row)), held_out(self.columns.texts(self.texts[row])[0], self.bound)[0]))
            except InputError:
                continue  # damaged behind its header
        return found

    def contrast(self, block: int) -> "Pictures":
        """Nothing is known of these pictures that could be put side by side."""
        return self

    def _open(self, row: int) -> Image.Image:
        file = self.columns.file(self.rows[row])
        return open_picture(file, file["path"] or f"picture {row + 1} of {self.name}")


class PictureStream:
    """Captioned pictures in a `datasets.IterableDataset`: read in its order, without a length and without numbers.

    About one caption in twenty is held out, by the rule of `Pictures` but without its "at least one". Rows without a
    caption are left out as they come; `allow_bad` counts for the first LOOKED_AT rows only.
    """

    held_out_kinds = ("caption",)
    block, bound = 1, HELD_OUT

    def __init__(
        self, rows, columns: Columns, frame: Frame, name: str, source: str, licence: str | None = None, allow_bad: float = 0.0
    ):
        self.rows, self.columns, self.frame, self.name, self.licence = rows, columns, frame, name, licence
        self.image_size, self.report = frame.size, Report()
        self.fingerprint = digest(source, columns.images, columns.captions, list(vars(frame).values()))
        good = 0
        for number, row in enumerate(_each(rows.take(LOOKED_AT)), 1):
            captions, problem = columns.texts(row)
            try:
                if captions:
                    self.picture(row)
                    good += 1
                else:
                    self.report.add(problem, self._name(row) or f"picture {number}")
            except InputError:
                self.report.add("damaged pictures", self._name(row) or f"picture {number}")
        self.report.check(f"The start of {name}", good, allow_bad)

    def read(self, seed: int = 0, epoch: int | None = None) -> Iterator[tuple[dict, list[str]]]:
        """Rows of the trained part with their captions: one epoch through the shuffle buffer, or once in the stream's order."""
        rows = self.rows
        if epoch is not None:
            rows = rows.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
            rows.set_epoch(epoch)
        for row in _each(rows):
            captions = self.columns.texts(row)[0]
            if captions and key_place(captions) >= self.bound:
                yield row, trained(captions, self.bound)

    def picture(self, row: dict, rng: np.random.Generator | None = None) -> Image.Image:
        """The picture of a row, RGB, image_size x image_size. Raises InputError that names a damaged one."""
        return self.frame(open_picture(self.columns.file(row), self._name(row) or f"a picture of {self.name}"), rng)

    def held_out(self, kind: str, count: int) -> list[tuple[Image.Image, str]]:
        """The first `count` pictures with captions that training never sees; fewer when the stream ends before."""
        found = []
        for row in _each(self.rows):
            if len(found) == count:
                break
            captions = self.columns.texts(row)[0]
            if captions and key_place(captions) < self.bound:
                try:
                    found.append((self.picture(row), held_out(captions, self.bound)[0]))
                except InputError:
                    continue
        return found

    def contrast(self, block: int) -> "PictureStream":
        return self

    def _name(self, row: dict) -> str | None:
        return self.columns.file(row)["path"]


def _each(rows) -> Iterator[dict]:
    """The rows of an IterableDataset. In a DataLoader's worker `iter(rows)` would give each worker a part of them; here every
    reader sees them all, and takes those that are its own."""
    for part in rows.iter(batch_size=16):
        for values in zip(*part.values()):
            yield dict(zip(part, values))
