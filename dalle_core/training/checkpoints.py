"""Folders `step_000123` that are whole or not there: what a run that was killed goes on from.

A checkpoint is written into `step_000123.part` and renamed when all is in it. A list of its files with their sizes is
written last, so that a file that was cut or emptied later (by a power cut, say) is noticed.
"""

import json
import os
import shutil
from pathlib import Path

LIST = "files.json"


def found(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of all checkpoints in `folder`, the oldest first. Half-written ones are none."""
    numbers = {path: path.name.removeprefix("step_") for path in folder.glob("step_*") if path.is_dir()}
    return sorted((int(number), path) for path, number in numbers.items() if number.isdecimal())


def part_of(folder: Path, step: int) -> Path:
    """Where the checkpoint of `step` is written, before `seal`."""
    return folder / f"step_{step:06}.part"


def seal(part: Path, keep: int) -> Path:
    """Gives a written checkpoint its name, and removes all but the `keep` newest. Returns its path."""
    sizes = {str(path.relative_to(part).as_posix()): path.stat().st_size for path in sorted(part.rglob("*")) if path.is_file()}
    (part / LIST).write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")
    path = part.with_suffix("")
    shutil.rmtree(path, ignore_errors=True)
    os.replace(part, path)
    steps = found(path.parent)
    own = int(path.name.removeprefix("step_"))
    older = [other for step, other in steps if step < own]
    newer = [other for step, other in steps if step > own]  # they were damaged, or this one would not have been written
    for other in newer + older[: max(0, len(older) + 1 - keep)]:
        shutil.rmtree(other, ignore_errors=True)
    return path


def check(path: Path) -> None:
    """Raises ValueError naming the first file that is missing or has not the size it was written with."""
    try:
        sizes = json.loads((path / LIST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(f"its {LIST} is missing or damaged") from None
    for name, size in sizes.items():
        file = path / name
        if not file.is_file():
            raise ValueError(f"{name} is missing")
        if file.stat().st_size != size:
            raise ValueError(f"{name} has {file.stat().st_size:,} bytes of {size:,}")


def write_model(model, folder: Path) -> None:
    """`model.save_pretrained(folder)`, in place of what is there: a folder that is half written has another name."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
