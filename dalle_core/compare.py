"""X/Y grids: one prompt drawn with two things varied, so that what each does can be seen. Planned here, drawn by whoever."""

import csv
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from dalle_core.errors import InputError

NUMBERS = {"seed": int, "temperature": float, "top_k": int, "top_p": float, "guidance_scale": float}
AXES = ("prompt", *NUMBERS, "model")
MAX_CELLS = 64
SIDE, MARGIN, LINE = 192, 10, 22  # pixels of the sheet: a picture, the space between, a line of text
# Fonts that know more than Latin letters, by the names systems give them; the last resort is Pillow's own.
FONTS = ("NotoSansCJK-Regular.ttc", "PingFang.ttc", "wqy-zenhei.ttc", "msyh.ttc", "NotoSans-Regular.ttf", "DejaVuSans.ttf")


@dataclass(frozen=True)
class Axis:
    """What is varied, and how. name "": nothing is, the grid has one row or column."""

    name: str
    values: list


@dataclass(frozen=True)
class Cell:
    """One picture of the grid: its column and row, and the arguments it is drawn with, `prompt` and `model` among them."""

    column: int
    row: int
    arguments: dict


def parse_axis(name: str, text: str) -> Axis:
    """Values separated by commas; a value that holds one stands in quotation marks. Raises InputError."""
    if not name:
        return Axis("", [None])
    if name not in AXES:
        raise InputError(f"{name[:40]!r} cannot be varied; choose one of: {', '.join(AXES)}.")
    cells = next(csv.reader([(text or "").replace("\n", ",").replace("\r", ",")], skipinitialspace=True), [])
    cells = [cell.strip() for cell in cells if cell.strip()]
    if not cells:
        raise InputError(f"{name} has no values: write some, separated by commas.")
    if len(cells) > MAX_CELLS:
        raise InputError(f"{name} has {len(cells)} values; a grid has up to {MAX_CELLS} cells.")
    kind = NUMBERS.get(name, str)
    values = []
    for cell in cells:
        try:
            values.append(kind(cell))
        except ValueError:
            raise InputError(f"{name}: {cell[:40]!r} is not a {'whole ' * (kind is int)}number.") from None
    return Axis(name, values)


def plan(x: Axis, y: Axis, arguments: dict) -> list[Cell]:
    """The cells of a grid, those of one model together. arguments: those that no axis varies, `prompt`, `seed` and `model`
    among them. A prompt axis replaces its first value in the prompt by each of its values. Raises InputError."""
    if x.name and x.name == y.name:
        raise InputError(f"Both axes vary {x.name}: choose another for one of them.")
    if len(x.values) * len(y.values) > MAX_CELLS:
        raise InputError(f"This grid has {len(x.values) * len(y.values)} cells; up to {MAX_CELLS} are drawn in one go.")
    for axis in (x, y):
        if axis.name == "prompt" and axis.values[0] not in arguments["prompt"]:
            raise InputError(f"The first of the prompt's values, {axis.values[0][:60]!r}, is not in the prompt.")
    cells = []
    for row, below in enumerate(y.values):
        for column, across in enumerate(x.values):
            varied = dict(arguments)
            for axis, value in ((x, across), (y, below)):
                if axis.name == "prompt":
                    varied["prompt"] = varied["prompt"].replace(axis.values[0], value)
                elif axis.name:
                    varied[axis.name] = value
            cells.append(Cell(column, row, varied))
    models = [value for axis in (x, y) if axis.name == "model" for value in axis.values]
    return sorted(cells, key=lambda cell: models.index(cell.arguments["model"])) if models else cells


def best(scores: dict) -> tuple[int, int] | None:
    """The (column, row) with the highest of `scores`, None when there are none."""
    known = {place: score for place, score in scores.items() if score is not None}
    return max(known, key=known.get) if known else None


def font(size: int) -> ImageFont.FreeTypeFont:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            pass
    return ImageFont.load_default(size)


def sheet(x: Axis, y: Axis, pictures: dict, scores: dict) -> Image.Image:
    """The grid as one labelled picture. pictures, scores: by (column, row); cells that are not there yet are grey.

    Scores stand below their pictures; the best is framed. Letters that no font of the system has are drawn as boxes.
    """
    text, left = font(15), MARGIN + (130 if y.name else 0)
    top = MARGIN + (2 * LINE if x.name else 0)
    step = (SIDE + MARGIN, SIDE + LINE + MARGIN)
    size = (left + len(x.values) * step[0], top + len(y.values) * step[1])
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)

    def write(place, words, width, colour="black"):
        words = str(words)
        while words and pen.textlength(words, text) > width:
            words = words[:-2] + "…" if len(words) > 2 else ""
        pen.text(place, words, fill=colour, font=text)

    if x.name:
        write((left, MARGIN), x.name, size[0] - left, "gray")
        for column, value in enumerate(x.values):
            write((left + column * step[0], MARGIN + LINE), value, SIDE)
    if y.name:
        write((MARGIN, MARGIN), y.name, 120, "gray")
        for row, value in enumerate(y.values):
            write((MARGIN, top + row * step[1]), value, 120)
    winner = best(scores)
    for row in range(len(y.values)):
        for column in range(len(x.values)):
            place = (left + column * step[0], top + row * step[1])
            if (column, row) not in pictures:
                pen.rectangle([*place, place[0] + SIDE, place[1] + SIDE], fill="#eeeeee")
                continue
            if (column, row) == winner:
                pen.rectangle([place[0] - 4, place[1] - 4, place[0] + SIDE + 4, place[1] + SIDE + LINE], fill="#d9480f")
            page.paste(pictures[column, row].convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS), place)
            score = scores.get((column, row))
            mark = "white" if (column, row) == winner else "black"
            write((place[0], place[1] + SIDE + 2), "" if score is None else f"{score:.3f}", SIDE, mark)
    return page
