"""The `imagefolder` convention: pictures beside a `metadata.jsonl` or `metadata.csv` whose lines name and caption them.

The metadata is read here, not by `datasets`, which takes names such as `test tubes.jpg` for parts of the data set, and
brackets in a path for a pattern.
"""

import csv
import io
import json
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from dalle_core.errors import InputError
from dalle_core.training.captions import Report, caption_columns, usable

PICTURES = {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
METADATA = ("metadata.jsonl", "metadata.csv")


def read_folder(folder: Path, image: str | None, captions: list[str] | None, report: Report) -> dict[Path, list[str]]:
    """Path -> captions, in the order of the lines, of every picture that a line names; of several lines, all their captions.

    Adds to the report what cannot be used. Raises InputError when no metadata is there or a column is missing.
    """
    image = image or "file_name"
    pictures, metadata = _walk(folder)
    if not metadata:
        raise InputError(
            f'{folder / METADATA[0]} is missing: one line {{"file_name": "1.png", "text": "a fox"}} for each picture.'
        )
    lines = [(file, number, line) for file in metadata for number, line in _lines(file)]
    named = {key for *_, line in lines if isinstance(line, dict) for key in line if key}  # None: more cells than columns
    if image not in named:
        raise InputError(f"{metadata[0]} has no column {image}: name the one with the pictures' files by --image.")
    chosen = caption_columns(metadata[0], named - {image}, captions)
    found, with_a_line = {}, set()
    for file, number, line in lines:
        name = line.get(image) if isinstance(line, dict) else None
        if not isinstance(name, str) or not name:
            report.add("lines that name no picture", f"{file.name}, line {number}")
            continue
        path = file.parent / name
        with_a_line.add(_same(path))
        good, problem = usable([line.get(column) for column in chosen])
        if not os.path.isfile(path):
            report.add("lines without a picture", name)
        elif not good:
            report.add(problem, f"{file.name}, line {number}")
        else:
            found[path] = found.get(path, []) + good
    for path in pictures:
        if _same(path) not in with_a_line:
            report.add("pictures without a line", path.relative_to(folder).as_posix())
    return found


def _walk(folder: Path) -> tuple[list[Path], list[Path]]:
    """The pictures and the metadata files of a folder and the folders in it."""
    pictures, metadata = [], []
    for root, folders, names in os.walk(folder):
        folders.sort()
        metadata += [Path(root, name) for name in METADATA if name in names]
        pictures += [Path(root, name) for name in sorted(names) if Path(name).suffix.lower() in PICTURES]
        if set(METADATA) <= set(names):
            raise InputError(f"{root} has both {' and '.join(METADATA)}: keep the one that counts.")
    return pictures, metadata


def _same(path: Path) -> str:
    """Equal for two spellings of one file: of case and of accents, which some file systems do not tell apart."""
    return unicodedata.normalize("NFC", os.path.normcase(os.path.normpath(path)))


def _lines(file: Path) -> Iterator[tuple[int, object]]:
    """(line number, its JSON value or its CSV row); None for a line that is not JSON."""
    try:
        text = file.read_bytes().decode("utf-8-sig")  # with or without a byte order mark
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not in UTF-8 ({error}): save it in this encoding.") from None
    if file.suffix == ".csv":
        rows = csv.DictReader(io.StringIO(text, newline=""))
        try:
            yield from ((rows.line_num, row) for row in rows)
        except csv.Error as error:
            raise InputError(f"{file}, line {rows.line_num}: {error}.") from None
        return
    # Not splitlines(), which would cut a caption at U+2028 too.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError:
                yield number, None
