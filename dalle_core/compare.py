"""X/Y grids: one prompt drawn with two things varied, so that what each does can be seen. Planned here, drawn by whoever."""

import csv
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw, ImageFont

from dalle_core.errors import InputError
from dalle_core.pictures import enlarge
from dalle_core.request import MAX_PROMPT, DrawingRequest, Limits, number, text

NUMBERS = ("seed", "temperature", "top_k", "top_p", "guidance_scale")
AXES = {  # what can be varied, in words
    "prompt": "Prompt words",
    "seed": "Seed",
    "temperature": "Temperature",
    "top_k": "Top-k",
    "top_p": "Top-p",
    "guidance_scale": "Guidance scale",
    "model": "Model",
}
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
    """One picture of the grid: its column and row, what is drawn there, and the model that draws it (None: the loaded one)."""

    column: int
    row: int
    request: DrawingRequest
    source: str | None = None


def parse_axis(name: str, values: str, limits: Limits) -> Axis:
    """Values separated by commas; a value that holds one stands in quotation marks. Raises InputError."""
    values = text(name or "An axis", values or "").replace("\n", ",").replace("\r", ",")
    return axis(name, next(csv.reader([values], skipinitialspace=True), []), limits)


def axis(name: str, values: list, limits: Limits) -> Axis:
    """Checked, without blank values. Raises InputError."""
    if not name:
        return Axis("", [None])
    if not isinstance(name, str) or name not in AXES:
        raise InputError(f"{str(name)[:40]!r} cannot be varied; choose one of: {', '.join(AXES)}.")
    if not isinstance(values, list) or len(values) > MAX_PROMPT:
        raise InputError(f"The values of {name} must be a list; a grid has up to {MAX_CELLS} cells.")
    values = [value.strip() if isinstance(value, str) else value for value in values]
    values = [value for value in values if value != ""]
    if not values:
        raise InputError(f"{name} has no values: name some, separated by commas.")
    if len(values) > MAX_CELLS:
        raise InputError(f"{name} has {len(values)} values; a grid has up to {MAX_CELLS} cells.")
    return Axis(name, [number(name, value, limits) if name in NUMBERS else text(name, value) for value in values])


def plan(x: Axis, y: Axis, request: DrawingRequest) -> list[Cell]:
    """The cells of a grid, those of one model together. request: what no axis varies. A prompt axis replaces its first value
    in the prompt by each of its values. Raises InputError."""
    if x.name and x.name == y.name:
        raise InputError(f"Both axes vary {x.name}: choose another for one of them.")
    if len(x.values) * len(y.values) > MAX_CELLS:
        raise InputError(f"This grid has {len(x.values) * len(y.values)} cells; up to {MAX_CELLS} are drawn in one go.")
    for axis in (x, y):
        if axis.name == "prompt" and axis.values[0] not in request.prompt:
            raise InputError(f"The first of the prompt's values, {axis.values[0][:60]!r}, is not in the prompt.")
    cells = []
    for row, below in enumerate(y.values):
        for column, across in enumerate(x.values):
            varied, source = request, None
            for axis, value in ((x, across), (y, below)):
                if axis.name == "prompt":
                    varied = replace(varied, prompt=_replaced(request.prompt, axis.values[0], value))
                elif axis.name == "model":
                    source = value
                elif axis.name:
                    varied = replace(varied, **{axis.name: value})
            cells.append(Cell(column, row, varied, source))
    models = [value for axis in (x, y) if axis.name == "model" for value in axis.values]
    return sorted(cells, key=lambda cell: models.index(cell.source)) if models else cells


def _replaced(prompt: str, first: str, value: str) -> str:
    length = len(prompt) + prompt.count(first) * (len(value) - len(first))  # a short first value may stand in it often
    if length > MAX_PROMPT:
        raise InputError(f"prompt has {length:,} characters; {MAX_PROMPT:,} are the most.")
    return prompt.replace(first, value)


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
    """The grid as one labelled picture. pictures (RGB), scores: by (column, row); cells that are not there yet are grey.

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
        write((left, MARGIN - 4), AXES[x.name], size[0] - left, "gray")
        for column, value in enumerate(x.values):
            write((left + column * step[0], MARGIN + LINE - 6), value, SIDE)
    if y.name:
        write((MARGIN, MARGIN - 4), AXES[y.name], 120, "gray")
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
            page.paste(enlarge(pictures[column, row], SIDE).resize((SIDE, SIDE), Image.Resampling.LANCZOS), place)
            score = scores.get((column, row))
            mark = "white" if (column, row) == winner else "black"
            write((place[0], place[1] + SIDE + 2), "" if score is None else f"{score:.3f}", SIDE, mark)
    return page
