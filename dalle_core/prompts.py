"""Prompts, and how many pictures of each: from lists, lines of text and tables."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dalle_core.errors import InputError
from dalle_core.request import MAX_PROMPT

MAX_COUNT = 1_000_000  # pictures of one prompt
MAX_ROWS = 1_000_000
MAX_BYTES = 200_000_000  # of a file of prompts
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True)
class Row:
    """A prompt, and how many pictures are drawn of it."""

    prompt: str
    count: int


def rows_of(prompts: list[str], count: int) -> list[Row]:
    """Prompts, each with its number of pictures; blank ones are left out. Raises InputError as `read_prompts`."""
    lines = enumerate(prompts, 1)
    return [checked(prompt, count, f"Line {number}") for number, prompt in lines if prompt.strip()]


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
        rows = (checked(line, count, f"{name}, line {number}") for number, line in lines if line.strip())
    found: list[Row] = []
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
    first = next(re.finditer(r"[\r\n]*([^\r\n]*)", text))
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
            yield checked(row.get("prompt", ""), row.get("count", "").strip() or count, where)
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


def checked(prompt: str, count, where: str) -> Row:
    """Checked. Raises InputError."""
    if len(prompt) > MAX_PROMPT:
        raise InputError(f"{where}: the prompt has {len(prompt):,} characters; {MAX_PROMPT:,} are the most.")
    prompt = one_line(prompt)
    if not prompt:
        raise InputError(f"{where} has no prompt.")
    try:
        whole = int(count)
    except (TypeError, ValueError, OverflowError):
        whole = 0
    if not 1 <= whole <= MAX_COUNT:
        raise InputError(f"{where}: the count is {str(count)[:40]!r}; it must be a whole number from 1 to {MAX_COUNT:,}.")
    return Row(prompt, whole)


def one_line(text: str) -> str:
    """Every run of white space and control characters becomes one space: a caption is one line in any reader."""
    return " ".join(_CONTROL.sub(" ", text.encode("utf-8", "ignore").decode()).split())
