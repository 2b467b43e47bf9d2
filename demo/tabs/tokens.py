"""The Tokens tab: the image tokenizer under a microscope."""

import html
import math
from dataclasses import dataclass, replace

import gradio as gr
import numpy as np
from PIL import Image, ImageDraw

from dalle_core import InputError
from dalle_core.pictures import enlarge, psnr
from dalle_core.studio.studio import Studio
from demo.public import visitor
from demo.uploads import picture_input


@dataclass(frozen=True)
class Read:
    """A picture that was handed in, as tokens that can be changed."""

    original: Image.Image  # as the image tokenizer sees it
    tokens: list[list[int]]  # [grid][grid]
    decoded: Image.Image  # what they stand for
    source: str  # of the model whose tokens they are
    codebook_size: int
    cell: tuple[int, int] | None = None  # (row, column) that was clicked


def with_grid(image: Image.Image, grid: int, cell: tuple[int, int] | None) -> Image.Image:
    """The picture, enlarged, with the grid x grid cells of its tokens; `cell` (row, column) is marked."""
    large = enlarge(image).convert("RGB")
    side = large.width / grid
    draw = ImageDraw.Draw(large, "RGBA")
    for i in range(1, grid):
        draw.line([(i * side, 0), (i * side, large.height)], fill=(0, 0, 0, 50))
        draw.line([(0, i * side), (large.width, i * side)], fill=(0, 0, 0, 50))
    if cell is not None:
        row, column = cell
        box = [column * side, row * side, (column + 1) * side, (row + 1) * side]
        draw.rectangle(box, outline=(217, 72, 15, 255), width=max(2, round(side / 12)))
    return large


def error_map(original: Image.Image, decoded: Image.Image) -> Image.Image:
    """Where the reconstruction is off: white is right, dark is wrong."""
    a, b = (np.asarray(image, dtype=np.float64) for image in (original, decoded))
    off = np.abs(a - b).mean(axis=2)
    return Image.fromarray((255 - np.minimum(off * 3, 255)).astype(np.uint8))


def figures(tokens: list[list[int]], codebook_size: int, decibels: float) -> str:
    used = len(set(sum(tokens, [])))
    rows = {
        "grid": f"{len(tokens)} x {len(tokens)} tokens, of {codebook_size:,} different ones",
        "different tokens in this picture": f"{used} ({100 * used / codebook_size:.1f} % of the codebook)",
        "likeness to the original (PSNR)": f"{decibels:.1f} dB",
    }
    cells = "".join(f"<tr><td>{name}</td><td>{html.escape(value)}</td></tr>" for name, value in rows.items())
    return f"<table>{cells}</table>"


def cell_at(point, side: float, grid: int) -> tuple[int, int]:
    """(row, column) at a point (x, y) of a picture with `side` pixels a side. Raises InputError for what is no point."""
    x, y = point if isinstance(point, (list, tuple)) and len(point) == 2 else (None, None)
    if not all(type(value) in (int, float) and math.isfinite(value) for value in (x, y)):
        raise InputError("Click a cell of the picture.")
    row, column = (min(max(int(value / side * grid), 0), grid - 1) for value in (y, x))
    return row, column


class Tokens:
    """The tab's components, and what happens on them."""

    def __init__(self, studio: Studio):
        self.studio, self.read = studio, gr.State(None)  # a `Read`
        gr.Markdown(
            "The model does not draw pixels but tokens: a grid of numbers, each of which stands for a small patch in a list of "
            "patches, the codebook. Upload a picture to see what becomes of it; click a cell to read its token, change the "
            "number and watch the pixels change."
        )
        with gr.Row():
            with gr.Column():
                self.upload = picture_input("Your picture", "tokens-upload", 320)
                self.table = gr.HTML("", elem_id="tokens-figures", elem_classes="figures")
            with gr.Column(elem_classes="unused") as self.seen:
                self.shown = gr.Image(
                    label="Reconstruction, cell by cell",
                    interactive=False,
                    elem_id="tokens-grid",
                    format="png",
                    buttons=[],
                    alt_text="Reconstruction, cell by cell",
                )
                with gr.Row(elem_classes="unused") as self.token:
                    self.number = gr.Number(label="Token of the clicked cell", precision=0, elem_id="token", interactive=True)
                    self.number.preprocess = lambda value: value  # `put` says what is allowed
                    self.change = gr.Button("Change the token", elem_id="token-change")
        with gr.Row(elem_classes="unused") as self.compared:
            self.slider = gr.ImageSlider(
                label="Original and reconstruction", elem_id="tokens-slider", interactive=False, format="png"
            )
            self.wrong = gr.Image(
                label="Where they differ (dark)",
                interactive=False,
                elem_id="tokens-error",
                format="png",
                buttons=[],
                alt_text="Where they differ (dark)",
            )

    def show(self, read: Read) -> dict:
        """All that is shown of a picture and of the tokens that are to stand for it."""
        return {
            self.read: read,
            self.shown: with_grid(read.decoded, len(read.tokens), read.cell),
            self.slider: (enlarge(read.original), enlarge(read.decoded)),
            self.wrong: enlarge(error_map(read.original, read.decoded)),
            self.table: figures(read.tokens, read.codebook_size, psnr(read.original, read.decoded)),
        }

    def reconstruct(self, request: gr.Request, path):
        """A picture -> its tokens and its reconstruction."""
        loaded = self.studio.holder.loaded
        original = self.studio.square(path)
        tokens = self.studio.encode(visitor(request), original)
        decoded = self.studio.decode(visitor(request), tokens)
        used = gr.update(elem_classes=[])
        return self.show(Read(original, tokens, decoded, loaded.source, loaded.limits.codebook_size)) | {
            self.number: None,
            self.token: gr.update(elem_classes="unused"),
            self.seen: used,
            self.compared: used,
        }

    def choose(self, event: gr.SelectData, read):
        """The cell at a point of the shown picture, and its token."""
        if read is None:
            return gr.skip()
        grid = len(read.tokens)
        row, column = cell_at(event.index, enlarge(read.decoded).width, grid)
        return {
            self.read: replace(read, cell=(row, column)),
            self.shown: with_grid(read.decoded, grid, (row, column)),
            self.number: read.tokens[row][column],
            self.token: gr.update(elem_classes=[]),
        }

    def put(self, request: gr.Request, read, value):
        """Another token in the clicked cell."""
        if read is None or read.cell is None:
            return gr.skip()
        if read.source != self.studio.holder.source:
            raise InputError("Another model has been chosen since, which has other tokens: upload the picture again.")
        most = read.codebook_size - 1
        if type(value) not in (int, float) or not 0 <= value <= most or value != int(value):
            raise InputError(f"A token of this model is a whole number from 0 to {most}.")
        tokens = [list(line) for line in read.tokens]
        row, column = read.cell
        tokens[row][column] = int(value)
        return self.show(replace(read, tokens=tokens, decoded=self.studio.decode(visitor(request), tokens)))


def build(studio: Studio) -> None:
    tab = Tokens(studio)
    outputs = [tab.read, tab.shown, tab.slider, tab.wrong, tab.table]
    tab.upload.input(
        tab.reconstruct, tab.upload, [*outputs, tab.number, tab.token, tab.seen, tab.compared], api_visibility="private"
    )
    tab.shown.select(
        tab.choose, tab.read, [tab.read, tab.shown, tab.number, tab.token], show_progress="hidden", api_visibility="private"
    )
    gr.on(
        [tab.change.click, tab.number.submit],
        tab.put,
        [tab.read, tab.number],
        outputs,
        show_progress="hidden",
        api_visibility="private",
    )
