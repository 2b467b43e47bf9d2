"""A training's folder, read while it is being written: how far it is, how it fares, what it draws.

    config.json                           {"arguments": what it was started with}
    log.jsonl                             a JSON object a line: step, time (seconds since the epoch), figures by name
    pictures/reconstructions_000200.png   originals above what the image tokenizer makes of them; also samples_000200.png

Nothing in the folder is trusted: a line that is cut in half, a NaN, a file that is no picture or far too large are left out.
"""

import json
import math
import os
import re
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

from dalle_core.errors import InputError

TAIL = 4 * 2**20  # bytes of a log that are read: its end
CONFIG = 2**18  # bytes of a configuration; more is none
POINTS = 300  # of a curve
FIGURES = 40  # names of figures
FOLDERS = 2000  # looked at in search of runs
RUNS = 100  # found
FRESH = 180  # seconds since the last line of a log in which its training counts as at work
PICTURE = re.compile(r"(?:\d{1,9}_)?(reconstructions|samples)(?:_\d{1,9})?\.png")  # the step stands before or behind
KINDS = ("reconstructions", "samples")


@dataclass(frozen=True)
class Run:
    """A training as far as it has come."""

    folder: Path
    step: int = 0
    steps: int | None = None  # of the whole training, where its configuration says so
    seconds_left: float | None = None
    writing: bool = False  # its log has just grown
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # name -> (step, mean value)
    pictures: dict[str, list[tuple[int, Path]]] = field(default_factory=dict)  # a name of KINDS -> by step
    config: dict = field(default_factory=dict)


def find_runs(root: Path) -> list[Path]:
    """The folders with a log at `root` and below it, the last changed first."""
    found, left, seen = [], [Path(root)], 0
    while left and seen < FOLDERS and len(found) < RUNS:
        folder, seen = left.pop(), seen + 1
        try:
            with os.scandir(folder) as entries:
                names = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        except OSError:
            continue
        if names.get("log.jsonl") is False:
            found.append(folder)
        left += [folder / name for name, is_folder in names.items() if is_folder and name not in ("checkpoints", "pictures")]
    return sorted(found, key=lambda folder: stamp(folder / "log.jsonl"), reverse=True)


def choose_run(text: str | None) -> Path:
    """The run that a path means: the folder itself, or the one below it that was written last. Raises InputError."""
    folder = Path(os.path.expanduser((text or "").strip()))
    try:
        if (text or "").strip() and folder.is_dir():
            runs = [folder] if (folder / "log.jsonl").is_file() else find_runs(folder)
            if runs:
                return runs[0]
    except (OSError, ValueError):  # too long a name, a zero byte
        pass
    raise InputError(
        f"{str(text or '').strip()[:200]!r} is no folder of a training: it holds no log.jsonl, nor does a folder below it."
    )


def stamp(path: Path) -> tuple[int, int]:
    """(time of change in ns, bytes) of a file, so that one which did not change need not be read again."""
    try:
        found = path.stat()
        return found.st_mtime_ns, found.st_size
    except OSError:
        return 0, 0


def token(folder: Path) -> tuple:
    """Equal as long as there is nothing new in a run's folder."""
    return tuple(stamp(folder / name) for name in ("log.jsonl", "config.json", "pictures", "prior", "model", "lora"))


def read_run(folder: Path) -> Run:
    rows, config = read_log(folder / "log.jsonl"), read_config(folder / "config.json")
    steps, step = total_steps(config), rows[-1]["step"] if rows else 0
    pictures = {kind: [] for kind in KINDS}
    for number, kind, path in found_pictures(folder / "pictures"):
        pictures[kind].append((number, path))
    return Run(folder, step, steps, seconds_left(rows, steps), is_fresh(folder), curves(rows), pictures, config)


def is_fresh(folder: Path) -> bool:
    """Whether a run's log has just grown: it is at work."""
    return time.time() - stamp(folder / "log.jsonl")[0] / 1e9 < FRESH


def can_draw(folder: Path) -> bool:
    """Whether a training has written weights of a prior yet."""
    return any(
        (folder / file).is_file() for file in ("prior/config.json", "model/model_index.json", "lora/adapter_config.json")
    )


def found_pictures(folder: Path) -> list[tuple[int, str, Path]]:
    """(step, one of KINDS, path) of the pictures in a folder, by step."""
    try:
        matches = [match for name in os.listdir(folder) if (match := PICTURE.fullmatch(name))]
    except OSError:
        return []
    steps = ((re.search(r"\d+", match.string), match) for match in matches)
    return sorted((int(step[0]), match[1], folder / match.string) for step, match in steps if step)


def read_log(path: Path) -> list[dict]:
    """The last rows of a log, by step. A run that goes on from a checkpoint writes some steps again: the last time counts."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            lines = file.read(TAIL).split(b"\n")
    except OSError:
        return []
    rows: list[dict] = []
    for line in lines:
        row = numbers(line)
        if row is None:
            continue
        while rows and rows[-1]["step"] >= row["step"]:
            rows.pop()
        rows.append(row)
    return rows


def numbers(line: bytes) -> dict | None:
    """The numbers in a line of a log by their names, those that are finite; None without a step."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int or not 0 <= row["step"] < 10**9:
        return None
    return {
        str(name)[:60]: value
        for name, value in row.items()
        if type(value) in (int, float) and abs(value) < 1e30  # NaN is not less
    }


def curves(rows: list[dict]) -> dict[str, list[tuple[int, float]]]:
    """The figures of a log over its steps: of a long one, means of neighbours."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "time") and (name in found or len(found) < FIGURES):
                found.setdefault(name, []).append((row["step"], float(value)))
    return {name: thinned(points) for name, points in found.items()}


def thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    size = math.ceil(len(points) / POINTS)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return [(part[-1][0], statistics.fmean(value for _, value in part)) for part in parts]


def seconds_left(rows: list[dict], steps: int | None) -> float | None:
    """At the pace of the last rows; a pause between two of them does not count."""
    last = [row for row in rows[-50:] if "time" in row]
    paces = [(b["time"] - a["time"]) / (b["step"] - a["step"]) for a, b in zip(last, last[1:])]
    if not steps or not paces:
        return None
    return max(0, steps - last[-1]["step"]) * max(0.0, statistics.median(paces))


def read_config(path: Path) -> dict:
    """The arguments of the training."""
    try:
        if path.stat().st_size > CONFIG:
            return {}
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config["arguments"] if isinstance(config, dict) and isinstance(config.get("arguments"), dict) else {}


def total_steps(config: dict) -> int | None:
    """How many steps a run makes in all, by its arguments."""
    steps, samples, batch = (config.get(name) for name in ("steps", "samples", "batch_size"))
    if type(steps) is not int and type(samples) is int and type(batch) is int and batch > 0:
        steps = samples // batch
    return steps if type(steps) is int and 0 < steps < 10**9 else None
