"""Where captioned pictures come from: folders, Parquet files, WebDataset tars, the Hub. All become `Pictures` or a stream.

`datasets` is imported where it is used: that takes seconds, and the emoji corpus does without.
"""

import glob
import os
import re
from pathlib import Path

from dalle_core.errors import InputError
from dalle_core.training.captions import Report, caption_columns
from dalle_core.training.image_folder import METADATA, read_folder
from dalle_core.training.pictures import Columns, Frame, Pictures, PictureStream, digest

WEBDATASET = ("jpg", "jpeg", "png", "webp", "JPG", "JPEG", "PNG", "WEBP")  # a tar's pictures, by the ends of their names


def find_files(path: Path) -> list[Path]:
    """The Parquet files or the tars that a path stands for, unless a folder has metadata of its own."""
    if path.is_file():
        if path.suffix not in (".parquet", ".tar"):
            raise InputError(f"{path} is neither a Parquet file nor a .tar.")
        return [path]
    if any((path / name).exists() for name in METADATA):
        return []
    return sorted(path.rglob("*.parquet")) or sorted(path.rglob("*.tar"))


def open_folder(folder: Path, frame: Frame, captions, image, allow_bad: float) -> Pictures:
    import datasets

    report = Report()
    found = read_folder(folder, image, captions, report)
    report.check(folder, len(found), allow_bad)
    rows = datasets.Dataset.from_dict({"image": [str(path) for path in found], "text": list(found.values())})
    rows = rows.cast_column("image", datasets.Image(decode=False))
    columns = Columns(("image",), ("text",))
    source = digest(_names_sizes_times(folder, found))
    return Pictures(rows, columns, frame, str(folder), source, _licence(folder / "README.md"), report, allow_bad)


def _names_sizes_times(folder: Path, files) -> list:
    stats = ((path, path.stat()) for path in files)
    return [[os.path.relpath(path, folder).replace(os.sep, "/"), stat.st_size, stat.st_mtime_ns] for path, stat in stats]


def open_files(path: Path, files: list[Path], frame: Frame, captions, image, streaming: bool, allow_bad: float):
    """Parquet files or tars, through the Arrow cache of `datasets`, or as a stream."""
    import datasets

    kind = "parquet" if files[0].suffix == ".parquet" else "webdataset"
    features = None
    if kind == "webdataset":  # told, not guessed from the first files: not every picture has both a text and a JSON
        text = {name: datasets.Value("string") for name in ("txt", "__key__", "__url__")}
        features = datasets.Features({name: datasets.Image() for name in WEBDATASET} | text | {"json": datasets.Json()})
    names = {"train": [glob.escape(file.as_posix()) for file in files]}  # or brackets in a name would be a pattern's
    try:
        rows = datasets.load_dataset(kind, data_files=names, split="train", streaming=streaming, features=features)
    except Exception as error:  # of many kinds
        raise InputError(f"{path} cannot be read: {_cause(error)}.") from None
    folder = path if path.is_dir() else path.parent
    source = digest(_names_sizes_times(folder, files))
    return _open_rows(rows, frame, str(path), source, _licence(folder / "README.md"), captions, image, allow_bad)


def open_from_hub(name: str, frame: Frame, captions, image, split, subset, streaming: bool, allow_bad: float):
    import datasets

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(f"{name} does not exist: --data is a folder, a .parquet, a .tar, or OWNER/NAME of the Hub.")
    try:
        builder = datasets.load_dataset_builder(name, subset)
        if not streaming:
            builder.download_and_prepare()
        split = split or "train"
        rows = builder.as_streaming_dataset(split) if streaming else builder.as_dataset(split)
    except Exception as error:  # of many kinds; a network's among them
        raise InputError(
            f"There is no folder {name} here, and as a data set of the Hub it cannot be opened: {_cause(error)}."
        ) from None
    source = digest([name, subset, split, builder.hash])  # the hash is the commit's
    return _open_rows(rows, frame, name, source, builder.info.license or None, captions, image, allow_bad)


def _cause(error: BaseException) -> str:
    """The first line of what went wrong first."""
    while error.__cause__:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _open_rows(rows, frame: Frame, name: str, source: str, licence: str | None, captions, image, allow_bad: float):
    """Chooses the columns of a `datasets.Dataset` or IterableDataset; nothing else of it is read."""
    import datasets

    if rows.features is None:
        raise InputError(f"{name} does not say what its columns are: leave out --streaming.")
    images = [column for column, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    images = [image] if image else images or [column for column in ("image",) if column in rows.features]
    several = [column for column in images if column not in WEBDATASET]  # of a tar's, each picture has one
    if not images or image and image not in rows.features or len(several) > 1:
        found = ", ".join(rows.features)
        raise InputError(f"{name}: which column holds the pictures? Its columns are {found}: name it by --image.")
    fields = [column for column in rows.features if column not in images]
    if captions and "json" in fields:
        chosen = captions  # fields of the JSON, which not every picture need have
    else:
        chosen = caption_columns(name, _filled(rows, fields) if "json" in fields else fields, captions)
    needed = [column for column in rows.features if column in (*images, *chosen, "json")]
    if not all(_may_hold_pictures(rows.features[column]) for column in images):
        raise InputError(f"{name}: the column {images[0]} holds no pictures. Name the one that does by --image.")
    rows = rows.select_columns(needed)
    for column in images:
        rows = rows.cast_column(column, datasets.Image(decode=False))
    columns = Columns(tuple(images), tuple(chosen))
    if isinstance(rows, datasets.Dataset):
        return Pictures(rows, columns, frame, name, source, licence, allow_bad=allow_bad)
    try:
        return PictureStream(rows, columns, frame, name, source, licence, allow_bad)
    except InputError:
        raise
    except Exception as error:  # of many kinds; this is where a stream is first read
        raise InputError(f"{name} cannot be read: {_cause(error)}.") from None


def _filled(rows, fields: list[str]) -> list[str]:
    """What there is of a WebDataset's first picture: its files, and the fields of its JSON."""
    first = next(iter(rows.select_columns(fields)), {})
    return [name for name in fields if first.get(name) is not None] + list(first.get("json") or {})


def _may_hold_pictures(feature) -> bool:
    """Pictures, their files' bytes, or these with a path."""
    import datasets

    is_binary = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
    return is_binary or isinstance(feature, datasets.Image) or isinstance(feature, dict) and "bytes" in feature


def _licence(card: Path) -> str | None:
    """The licence that a data set's card names."""
    from huggingface_hub import DatasetCard

    try:
        return DatasetCard.load(card).data.license if card.is_file() else None
    except (OSError, ValueError):
        return None
