"""Data augmentation: many pictures of many prompts, kept where CLIP finds that they fit, as a data set to train on.

The data set is a Hugging Face `imagefolder`: PNG pictures beside a `metadata.jsonl` (`file_name`, `text` and how each was
drawn), which `datasets.load_dataset` and this project's training commands read as it is. A hidden `.augment.json` says how
far the run has come. It goes on after a kill at any moment: pictures are drawn in blocks, each with a seed of its own, and
every file is written whole or not at all, in the order picture, line of metadata, count of finished blocks.
"""

import errno
import hashlib
import json
import os
import secrets
import zipfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from dalle_core.errors import InputError
from dalle_core.int8 import is_quantized
from dalle_core.pictures import png
from dalle_core.pipeline import DallePipeline
from dalle_core.prompts import Row, checked, one_line
from dalle_core.recipe import drawn

BLOCK = 16  # pictures drawn together: what a stop can lose; with `best`, all of a prompt
MOST_BEST = 64  # pictures of a prompt, when only the best are kept
SEEDS_A_ROW = 2**20
LATER = ("revision", "dtype", "clip")  # settings that a state file of before may lack
STATE = ".augment.json"


@dataclass(frozen=True)
class Kept:
    """A picture that went into the data set."""

    path: Path
    text: str
    score: float | None


@dataclass(frozen=True)
class Progress:
    """Pictures drawn and kept so far (of a run before, too), of `total`; `part`: how much of the next ones is done."""

    drawn: int
    kept: int
    total: int
    part: float = 0.0  # in pictures
    new: list[Kept] = field(default_factory=list)  # since the progress before


@dataclass(frozen=True)
class Plan:
    """A run that is checked: plain data, from which any process that has the model draws the same."""

    rows: list[Row]
    sampling: dict  # arguments of `DallePipeline.stream`
    settings: dict  # all that decides the pictures, as it is compared when a run goes on
    card: str  # the data set's README.md


@dataclass(frozen=True)
class Finished:
    """A picture that is kept, as it is written."""

    file_name: str
    png: bytes
    line: dict  # of the metadata, but for the file's name


def augment(
    pipe: DallePipeline,
    rows: list[Row],
    out: str | Path,
    seed: int = 0,
    threshold: float | None = None,
    best: int | None = None,
    negative_prompt: str = "",
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance_scale: float | None = None,
) -> Generator[Progress, None, None]:
    """Draws every row's pictures into the data set at `out`, or goes on with the one that is there; yields a `Progress`
    after every token. Closing the iterator stops the work; what was kept until then is a data set.

    A picture is kept when its CLIP score is at least `threshold` and it is among the `best` of its row. The other arguments
    are those of `DallePipeline.stream`. No two pictures have the same (seed, index); equal prompts get different seeds.

    Raises InputError, before anything is drawn, for prompts and settings that the model cannot take and for a folder that
    holds something else or another run's data; and whenever the disk is full or the folder cannot be written.
    """
    sampling = {
        "negative_prompt": negative_prompt,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "guidance_scale": guidance_scale,
    }
    run = plan(pipe, rows, seed, threshold, best, sampling)

    def draw(blocks):
        for block in blocks:
            yield from draw_block(pipe, run, run.rows[block[0]].prompt, block)

    return write(run, Path(out), draw)


def plan(pipe: DallePipeline, rows: list[Row], seed: int, threshold: float | None, best: int | None, sampling: dict) -> Plan:
    """What `augment` draws with these arguments, `sampling` being those of `DallePipeline.stream`. Raises InputError as it
    does before anything is drawn."""
    rows = [checked(row.prompt, row.count, f"Prompt {number}") for number, row in enumerate(rows, 1)]
    sampling = sampling | {"negative_prompt": one_line(sampling["negative_prompt"])}
    settings = _check(pipe, rows, seed, threshold, best, sampling)
    return Plan(rows, sampling, settings, card(pipe, rows, settings))


def cut_prompts(pipe: DallePipeline, rows: list[Row]) -> int:
    """How many of the prompts are longer than the model reads; one of which it reads nothing is left to `augment` to name."""

    def is_cut(row: Row) -> bool:
        try:
            return bool(pipe.fit_prompt(row.prompt)[1])
        except InputError:
            return False

    return sum(map(is_cut, rows))


def _check(pipe, rows, seed, threshold, best, sampling) -> dict:
    """What decides the pictures, as it is compared when a run goes on. Raises InputError."""
    if not rows:
        raise InputError("There are no prompts: give at least one.")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"The seed is {str(seed)[:40]!r}; it must be a whole number from 0 to {2**63 - 1}.")
    if threshold is not None and not (isinstance(threshold, (int, float)) and -1 <= threshold <= 1):  # NaN fails too
        raise InputError(f"The threshold is {str(threshold)[:40]!r}; CLIP scores are numbers from -1 to 1.")
    if best is not None and (isinstance(best, bool) or not isinstance(best, int) or not 1 <= best <= MOST_BEST):
        raise InputError(f"best is {str(best)[:40]!r}; it must be a whole number from 1 to {MOST_BEST}.")
    if (threshold is not None or best is not None) and pipe.clip is None:
        raise InputError("This model was loaded without CLIP, so its pictures have no scores: leave threshold and best out.")
    for number, row in enumerate(rows, 1):
        if best is not None and row.count > MOST_BEST:
            raise InputError(f"Prompt {number}: the best are chosen among at most {MOST_BEST} pictures, not {row.count:,}.")
        try:
            pipe.fit_prompt(row.prompt)
        except InputError as error:
            raise InputError(f"Prompt {number}: {error}") from None
    pipe.stream(rows[0].prompt, seed=seed, num_candidates=1, **sampling).close()  # checks the numbers, draws nothing
    digest = hashlib.sha256(json.dumps([[row.prompt, row.count] for row in rows]).encode()).hexdigest()
    sampling = {name: pipe.defaults[name] if value is None else value for name, value in sampling.items()}
    weights = {"model": pipe.name, "revision": pipe.revision, "dtype": _dtype(pipe), "clip": _clip(pipe)}
    return weights | {"prompts": digest, "seed": seed, "threshold": threshold, "best": best} | sampling


def _dtype(pipe: DallePipeline) -> str:
    return "int8" if is_quantized(pipe.prior) else str(pipe.prior.dtype).removeprefix("torch.")


@torch.no_grad()
def _clip(pipe: DallePipeline) -> str | None:
    """Which CLIP scores: 12 hex digits, of samples of its weights."""
    if pipe.clip is None:
        return None
    digest = hashlib.sha256()
    for name, value in pipe.clip.named_parameters():
        some = value.flatten()[:: max(1, value.numel() // 16)].float().cpu()
        digest.update(f"{name} {list(value.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:12]


def _blocks(rows: list[Row], settings: dict) -> Iterator[tuple[int, int, int, int]]:
    """(row, first picture of the row, pictures, seed) of every block. The seeds follow each other from a number that the
    base seed decides: never twice the same within a run, and far from those of another base seed."""
    base = int.from_bytes(hashlib.sha256(str(settings["seed"]).encode()).digest()[:8])
    size = BLOCK if settings["best"] is None else MOST_BEST
    for number, row in enumerate(rows):
        for block, first in enumerate(range(0, row.count, size)):
            yield number, first, min(size, row.count - first), (base + number * SEEDS_A_ROW + block) % 2**63


def draw_block(
    pipe: DallePipeline, run: Plan, prompt: str, block: tuple[int, int, int, int]
) -> Iterator[float | list[Finished]]:
    """Draws a block: yields how much of it is done (in pictures) after every token, and last its pictures that are kept, best
    first. block: as of `_blocks`."""
    row, first, count, seed = block
    with closing(pipe.stream(prompt, seed=seed, num_candidates=count, **run.sampling)) as steps:
        for step in steps:
            if step.generation is None:
                yield count * step.index / step.total
    threshold, kept = run.settings["threshold"], []
    found = zip(step.generation.candidates, drawn(step.generation, pipe.name, pipe.revision), strict=True)  # best first
    for candidate, one in list(found)[: run.settings["best"]]:
        if threshold is not None and candidate.score < threshold:
            continue
        facts = one.to_json()
        picture = png(candidate.image, facts)
        del facts["tokens"], facts["varied"]  # in the picture
        kept.append(Finished(f"{row:06}_{first + candidate.index:04}.png", picture, {"text": facts.pop("prompt")} | facts))
    yield kept


def write(
    run: Plan, out: Path, draw: Callable[[Iterator], Iterator[float | list[Finished]]]
) -> Generator[Progress, None, None]:
    """Writes a run into the folder `out`, or goes on with the one that is there. draw(blocks): yields what `draw_block`
    yields of each block (in part or only the last), in their order."""
    total = sum(row.count for row in run.rows)
    try:
        _claim(out)
        with FileLock(out / ".augment.lock", timeout=0, thread_local=False):  # a generator may change threads
            number = _restore(out, run.settings)  # of finished blocks
            if not (out / "README.md").exists():
                _write(out / "README.md", run.card.encode())
            listed = _listed(out)
            counts = (count for _, _, count, _ in _blocks(run.rows, run.settings))
            drawn = sum(islice(counts, number))
            yield Progress(drawn, len(listed), total)
            with closing(draw(islice(_blocks(run.rows, run.settings), number, None))) as steps:
                for step in steps:
                    if isinstance(step, float):
                        yield Progress(drawn, len(listed), total, step)
                        continue
                    new = _save(out, step, listed)
                    number, drawn = number + 1, drawn + next(counts)
                    _write(out / STATE, json.dumps({"settings": run.settings, "blocks": number}).encode())
                    yield Progress(drawn, len(listed), total, new=new)
    except Timeout:
        raise InputError(f"Another run is writing to {out}: wait for its end, or name another folder.") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"The disk is full. The data set in {out} is whole as far as it goes: make room, and the same command goes on."
            ) from error
        raise InputError(f"{out} cannot be written: {error.strerror or error}. Name another folder.") from error


def _claim(out: Path) -> None:
    """Makes the folder. Raises InputError when it holds what no augment run wrote; OSError when it cannot be made."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / STATE).exists() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise InputError(f"{out} is not empty, and holds no data set that could be gone on with: name a new folder.")


def _restore(out: Path, settings: dict) -> int:
    """The number of blocks that are finished. Raises InputError when the folder's data set has other settings."""
    if not (out / STATE).exists():
        _write(out / STATE, json.dumps({"settings": settings, "blocks": 0}).encode())
        return 0
    try:
        state = json.loads((out / STATE).read_text(encoding="utf-8"))
        before, finished = dict(state["settings"]), int(state["blocks"])
        if finished < 0:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{out / STATE} is damaged, so it is not known how far the run came: name a new folder.") from None
    # Runs of earlier versions did not write down all of this, and go on.
    known = {name: value for name, value in settings.items() if name in before or name not in LATER}
    names = [name for name in {**before, **known} if before.get(name) != known.get(name)]
    if names:
        said = {name: f"{name} {before.get(name)!r}, now {settings.get(name)!r}" for name in names}
        said["prompts"] = "other prompts or counts"
        raise InputError(
            f"{out} holds a data set of other settings ({'; '.join(said[name] for name in names)}). Use the same to go on, "
            "or name a new folder."
        )
    return finished


def _listed(out: Path) -> set[str]:
    """The pictures that the metadata names; a line that a kill cut off is removed from the file."""
    path = out / "metadata.jsonl"
    if not path.exists():
        return set()
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    try:
        return {json.loads(line)["file_name"] for line in whole.splitlines() if line.strip()}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged: name a new folder.") from None


def _save(out: Path, finished: list[Finished], listed: set) -> list[Kept]:
    """Writes a block's pictures, then their lines; `listed` grows by their names. What is listed already stays."""
    finished = [one for one in finished if one.file_name not in listed]
    for one in finished:
        _write(out / one.file_name, one.png)
    lines = [json.dumps({"file_name": one.file_name} | one.line, ensure_ascii=False) + "\n" for one in finished]
    _append(out / "metadata.jsonl", "".join(lines).encode())
    listed |= {one.file_name for one in finished}
    return [Kept(out / one.file_name, one.line["text"], one.line["score"]) for one in finished]


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    with open(part, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _append(path: Path, content: bytes) -> None:
    """All of it or, when the disk is full, nothing."""
    size = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        if path.exists():
            os.truncate(path, size)
        raise


# ---------------------------------------------------------------- handing on


def card(pipe: DallePipeline, rows: list[Row], settings: dict) -> str:
    """The data set's README.md, as the Hugging Face Hub reads it."""
    threshold, best = settings["threshold"], settings["best"]
    rules = [f"the CLIP score is at least {threshold}"] * (threshold is not None)
    rules += [f"it is among the best {best} of its prompt by CLIP"] * (best is not None)
    kept = f"A picture was kept when {' and '.join(rules)}." if rules else "All of them were kept."
    shown = "\n".join(f"- {key}: `{value}`" for key, value in settings.items() if key != "prompts")
    return f"""---
task_categories: [text-to-image]
tags: [synthetic]
---

# Pictures drawn by {pipe.name}

{sum(row.count for row in rows):,} pictures of {len(rows):,} prompts were asked for. {kept}

The pictures were drawn by the model **{pipe.name}**. Licence of the model: **{pipe.config.licence}**.

`metadata.jsonl` names each picture's file, its caption (`text`), seed, index, CLIP score and settings; each PNG carries its
recipe. `datasets.load_dataset("imagefolder", data_dir=...)` reads this folder, and so do the training commands of the
project that drew it (`--data`).

{shown}
"""


def _metadata(out: Path) -> bytes:
    """The whole lines of a data set's metadata so far: a run may be writing its next one."""
    path = out / "metadata.jsonl"
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def names_in(out: str | Path) -> list[str]:
    """The pictures of a data set, as far as it has come."""
    return [json.loads(line)["file_name"] for line in _metadata(Path(out)).splitlines()]


def archive(out: str | Path, target: str | Path) -> int:
    """Writes the data set, as far as it has come, as a zip at `target`. Returns the number of pictures."""
    out, target = Path(out), Path(target)
    content = _metadata(out)
    names = [json.loads(line)["file_name"] for line in content.splitlines()]
    part = target.with_name(f".{secrets.token_hex(8)}")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as zip_:  # PNGs are compressed already
            for name in names:
                zip_.write(out / name, name)
            zip_.writestr("metadata.jsonl", content)
            zip_.write(out / "README.md", "README.md")
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
    return len(names)
