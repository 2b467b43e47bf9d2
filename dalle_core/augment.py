"""Data augmentation: many pictures of many prompts, kept where CLIP finds that they fit, as a data set to train on.

The data set is a Hugging Face `imagefolder`: PNG pictures beside a `metadata.jsonl` (`file_name`, `text` and how each was
drawn), which `datasets.load_dataset` and this project's training commands read as it is. A hidden `.augment.json` says how
far the run has come. It goes on after a kill at any moment: pictures are drawn in blocks, each with a seed of its own, and
every file is written whole or not at all, in the order picture, line of metadata, count of finished blocks.
"""

import csv
import errno
import hashlib
import io
import json
import os
import re
import secrets
import zipfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from dalle_core.errors import InputError
from dalle_core.int8 import is_quantized
from dalle_core.pictures import png
from dalle_core.pipeline import DallePipeline, Generation
from dalle_core.recipe import drawn
from dalle_core.request import MAX_PROMPT

MAX_COUNT = 1_000_000  # pictures of one prompt
MAX_ROWS = 1_000_000
MAX_BYTES = 200_000_000  # of a file of prompts
BLOCK = 16  # pictures drawn together: what a stop can lose; with `best`, all of a prompt
MOST_BEST = 64  # pictures of a prompt, when only the best are kept
SEEDS_A_ROW = 2**20
LATER = ("revision", "dtype", "clip")  # settings that a state file of before may lack
STATE = ".augment.json"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True)
class Row:
    """A prompt, and how many pictures are drawn of it."""

    prompt: str
    count: int


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


# ---------------------------------------------------------------- prompts


def rows_of(prompts: list[str], count: int) -> list[Row]:
    """Prompts, each with its number of pictures; blank ones are left out. Raises InputError as `read_prompts`."""
    lines = enumerate(prompts, 1)
    return [_row(prompt, count, f"Line {number}") for number, prompt in lines if prompt.strip()]


def read_prompts(path: str | Path, count: int) -> list[Row]:
    """The prompts in a file: a .csv with a column `prompt` and perhaps `count`, anything else one prompt a line.

    count: pictures of a prompt where the file says nothing. Cells are text and nothing else: what a spreadsheet would take
    for a formula is drawn as the words it is made of. Raises InputError, with the line, for what is not as described.
    """
    path = Path(path)
    text, name = _read_text(path), path.name[:60]
    if path.suffix.lower() == ".csv":
        rows = _csv_rows(text, count, name)
    else:
        lines = enumerate(text.splitlines(), 1)
        rows = (_row(line, count, f"{name}, line {number}") for number, line in lines if line.strip())
    found = []
    for row in rows:
        if len(found) == MAX_ROWS:
            raise InputError(f"{name} has more than {MAX_ROWS:,} prompts: use a part of it.")
        found.append(row)
    return found


def _read_text(path: Path) -> str:
    """UTF-8, or UTF-16 with its mark. Other encodings are not guessed: a wrong guess would be wrong captions."""
    name = path.name[:60]
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{name} is larger than {MAX_BYTES // 10**6} MB: use a part of it.")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}.") from None
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{name} is not UTF-8 text (line {line}): save it as “CSV UTF-8” or as UTF-8 text.") from None
    if "\x00" in text:
        line = text[: text.index("\x00")].count("\n") + 1
        raise InputError(f"{name} is not text: line {line} holds a zero byte. Save it as UTF-8 text.")
    return text


def _csv_rows(text: str, count: int, name: str) -> Iterator[Row]:
    first = re.match(r"[\r\n]*([^\r\n]*)", text)
    if said := re.fullmatch(r'"?sep=([^\s"]|\t)"?', first[1], re.IGNORECASE):  # spreadsheets', of the lines that follow
        separator, text = said[1], text[: first.start(1)] + text[first.end(1) :]
    else:
        separator = max(",;\t", key=first[1][:10_000].count)  # spreadsheets write what their language has
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header, before = None, 0  # before: lines that are read
    try:
        for cells in lines:
            before = lines.line_num
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{name}, line {before}"
            if header is None:
                header = _header(cells, name)
                continue
            if any(cell.strip() for cell in cells[len(header) :]):
                raise InputError(
                    f"{where} has {len(cells)} cells, the header {len(header)}: put a prompt that holds a “{separator}” in "
                    "quotation marks."
                )
            row = dict(zip(header, cells))
            yield _row(row.get("prompt", ""), row.get("count", "").strip() or count, where)
    except csv.Error as error:
        line = _open_quote(text, before, lines.line_num, str(error))
        reason = error if line is None else "a quotation mark is opened there and not closed"
        raise InputError(f"{name}, line {line or lines.line_num} cannot be read as CSV: {reason}.") from None
    if header is None:
        raise InputError(f"{name} is empty: it needs a column “prompt”.")


def _open_quote(text: str, before: int, last: int, error: str) -> int | None:
    """The line of the quotation mark in which the row that ends with line `last`, and begins after line `before`, is still
    open; None when it is not the mark of an earlier line."""
    ended = "unexpected end" in error  # else the last line closes it, at its own first mark
    lines, opened = io.StringIO(text, newline="").readlines(), None
    for number in range(before, last if ended else last - 1):
        for _ in range(lines[number].replace('""', "").count('"')):
            opened = number + 1 if opened is None else None
    return opened


def _header(cells: list[str], name: str) -> list[str]:
    header = [cell.strip().lower() for cell in cells]
    for column in ("prompt", "count"):
        if header.count(column) > 1:
            raise InputError(f"{name} has {header.count(column)} columns “{column}”: leave one.")
    if "prompt" not in header:
        columns = ", ".join(cell[:20] for cell in header[:6])
        raise InputError(f"{name} has no column “prompt”; its first line says: {columns}.")
    return header


def _row(prompt: str, count, where: str) -> Row:
    """Checked. Raises InputError."""
    if len(prompt) > MAX_PROMPT:
        raise InputError(f"{where}: the prompt has {len(prompt):,} characters; {MAX_PROMPT:,} are the most.")
    prompt = _one_line(prompt)
    if not prompt:
        raise InputError(f"{where} has no prompt.")
    try:
        whole = int(count)
    except (TypeError, ValueError, OverflowError):
        whole = 0
    if not 1 <= whole <= MAX_COUNT:
        raise InputError(f"{where}: the count is {str(count)[:40]!r}; it must be a whole number from 1 to {MAX_COUNT:,}.")
    return Row(prompt, whole)


def _one_line(text: str) -> str:
    """Every run of white space and control characters becomes one space: a caption is one line in any reader."""
    return " ".join(_CONTROL.sub(" ", text.encode("utf-8", "ignore").decode()).split())


# ---------------------------------------------------------------- drawing


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
) -> Iterator[Progress]:
    """Draws every row's pictures into the data set at `out`, or goes on with the one that is there; yields a `Progress`
    after every token. Closing the iterator stops the work; what was kept until then is a data set.

    A picture is kept when its CLIP score is at least `threshold` and it is among the `best` of its row. The other arguments
    are those of `DallePipeline.stream`. No two pictures have the same (seed, index); equal prompts get different seeds.

    Raises InputError, before anything is drawn, for prompts and settings that the model cannot take and for a folder that
    holds something else or another run's data; and whenever the disk is full or the folder cannot be written.
    """
    rows = [_row(row.prompt, row.count, f"Prompt {number}") for number, row in enumerate(rows, 1)]
    sampling = {
        "negative_prompt": _one_line(negative_prompt), "temperature": temperature, "top_k": top_k, "top_p": top_p,
        "guidance_scale": guidance_scale,
    }  # fmt: skip
    settings = _check(pipe, rows, seed, threshold, best, sampling)
    return _augment(pipe, rows, Path(out), settings, sampling)


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


def _augment(pipe, rows, out, settings, sampling) -> Iterator[Progress]:
    total = sum(row.count for row in rows)
    try:
        _claim(out)
        with FileLock(out / ".augment.lock", timeout=0, thread_local=False):  # a generator may change threads
            finished = _restore(out, settings)
            if not (out / "README.md").exists():
                _write(out / "README.md", card(pipe, rows, settings).encode())
            listed = _listed(out)
            blocks = enumerate(_blocks(rows, settings), 1)
            drawn = sum(count for _, (_, _, count, _) in islice(blocks, finished))
            yield Progress(drawn, len(listed), total)
            for number, (row, first, count, seed) in blocks:
                with closing(pipe.stream(rows[row].prompt, seed=seed, num_candidates=count, **sampling)) as steps:
                    for step in steps:
                        if step.generation is None:
                            yield Progress(drawn, len(listed), total, count * step.index / step.total)
                names = {i: f"{row:06}_{first + i:04}.png" for i in range(count)}
                new = _save(out, step.generation, names, listed, pipe, settings)
                _write(out / STATE, json.dumps({"settings": settings, "blocks": number}).encode())
                drawn += count
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


def _save(out: Path, generation: Generation, names: dict, listed: set, pipe: DallePipeline, settings: dict) -> list[Kept]:
    """Writes the block's pictures that are kept, then their lines; `listed` grows by their names."""
    threshold, best = settings["threshold"], settings["best"]
    lines, kept = [], []
    found = zip(generation.candidates, drawn(generation, pipe.name, pipe.revision))  # best first
    for candidate, one in list(found)[:best]:
        name = names[candidate.index]
        if (threshold is not None and candidate.score < threshold) or name in listed:
            continue
        facts = one.to_json()
        _write(out / name, png(candidate.image, facts))
        del facts["tokens"], facts["varied"]  # in the picture
        lines.append({"file_name": name, "text": facts.pop("prompt")} | facts)
        kept.append(Kept(out / name, generation.prompt, candidate.score))
    _append(out / "metadata.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    listed |= {line["file_name"] for line in lines}
    return kept


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
