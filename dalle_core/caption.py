"""Captions of a folder of pictures, by a model that answers in words: `metadata.jsonl`, as training reads it (imagefolder).

What is written goes into a file beside it first, a line a picture; a run that was stopped goes on from there.
`metadata.jsonl` appears when all are done: whole, or not at all.
"""

import json
import os
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from dalle_core.errors import InputError
from dalle_core.pipeline import DallePipeline

QUESTION = "Describe this picture in one sentence."
LONGEST = 128  # tokens of a caption
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
FINISHED, PART = "metadata.jsonl", ".captions.jsonl"


@dataclass(frozen=True)
class Captioned:
    """One picture more. text: "" for one that cannot be read, which gets no line."""

    done: int
    total: int
    file_name: str
    text: str


def caption(pipe: DallePipeline, folder: Path, question: str = QUESTION) -> Generator[Captioned, None, None]:
    """Yields what is known of each picture of a folder, and of those below it, as it is written. Closing it stops the work.

    Raises InputError, before anything is computed, when the model does not answer, the folder has no pictures, has captions
    already, or a run with another model or question was begun in it.
    """
    if not pipe.answers:
        raise InputError("This model draws, but it does not answer questions: load Janus-Pro for that (janus-pro-1b).")
    folder = Path(folder)
    pictures = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    names = sorted(path.relative_to(folder).as_posix() for path in pictures)
    if not names:
        raise InputError(f"{folder} has no pictures ({', '.join(sorted(SUFFIXES))}).")
    if (folder / FINISHED).exists():
        raise InputError(f"{folder / FINISHED} is there already: move it away to have the pictures described again.")
    run = {"model": pipe.name, "revision": pipe.revision, "question": question}
    return _captions(pipe, folder, names, question, _begun(folder / PART, run), run)


def _begun(part: Path, run: dict) -> dict[str, str]:
    """The captions of a run that was stopped. Raises InputError when it was another one."""
    if not part.exists():
        return {}
    lines = []
    for line in part.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:  # the last one, of a process that was killed
            break
    if not lines or lines[0] != run:
        raise InputError(f"{part} was begun with another model or question: remove it to begin anew.")
    return {line["file_name"]: line["text"] for line in lines[1:]}


def _captions(
    pipe, folder: Path, names: list[str], question: str, found: dict[str, str], run: dict
) -> Generator[Captioned, None, None]:
    part = folder / PART
    # Written anew: the last line of a process that was killed may be half of one.
    lines = [run] + [{"file_name": name, "text": text} for name, text in found.items()]
    part.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    with part.open("a", encoding="utf-8") as file:
        for done, name in enumerate(names, 1):
            if name not in found:
                found[name] = _answer(pipe, folder / name, question)
                file.write(json.dumps({"file_name": name, "text": found[name]}, ensure_ascii=False) + "\n")
                file.flush()
            yield Captioned(done, len(names), name, found[name])
    rows = [{"file_name": name, "text": found[name]} for name in names if found[name]]
    if not rows:
        raise InputError(f"None of the pictures in {folder} can be read.")
    whole = folder / f"{PART}.whole"
    whole.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(whole, folder / FINISHED)
    part.unlink()


def _answer(pipe: DallePipeline, path: Path, question: str) -> str:
    try:
        with Image.open(path) as image:
            image.load()
            with closing(pipe.describing(image, question, LONGEST)) as answers:
                text = ""
                for text in answers:
                    pass
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        return ""
    return " ".join(text.split())
