"""The Tokens tab: the image tokenizer under a microscope."""

import html

import gradio as gr
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps

from dalle_core import InputError, image_tokenizer
from demo import run
from demo.gpu import on_gpu
from demo.models import Models
from demo.pictures import enlarge
from demo.uploads import open_picture, picture_input, read_recipe


def square(pipe, image: Image.Image) -> Image.Image:
    """What the image tokenizer sees of a picture: a centred square in the model's size."""
    return ImageOps.fit(image_tokenizer.flat(image), (pipe.image_size,) * 2, Image.Resampling.LANCZOS)


def tokens_of(pipe, path: str | None) -> list[list[int]]:
    """A picture's tokens: those it was drawn from, when its recipe names them and nobody has changed it since; else what
    the image tokenizer makes of it, which comes close. Raises InputError as `open_picture`."""
    image = open_picture(path)
    try:
        tokens = read_recipe(path, pipe)["tokens"]
        drawn, given = enlarge(pipe.decode(torch.tensor(tokens))), enlarge(image_tokenizer.flat(image))
        # Another machine's decoder rounds a little differently.
        if drawn.size == given.size and abs(np.asarray(drawn, np.int16) - np.asarray(given, np.int16)).max() <= 8:
            return tokens
    except InputError:
        pass
    return pipe.encode(square(pipe, image)).tolist()


def with_grid(pipe, image: Image.Image, cell: tuple[int, int] | None) -> Image.Image:
    """The picture, enlarged, with the cells of its tokens; `cell` (row, column) is marked."""
    large = enlarge(image).convert("RGB")
    side = large.width / pipe.grid_size
    draw = ImageDraw.Draw(large, "RGBA")
    for i in range(1, pipe.grid_size):
        draw.line([(i * side, 0), (i * side, large.height)], fill=(0, 0, 0, 50))
        draw.line([(0, i * side), (large.width, i * side)], fill=(0, 0, 0, 50))
    if cell is not None:
        row, column = cell
        box = [column * side, row * side, (column + 1) * side, (row + 1) * side]
        draw.rectangle(box, outline=(217, 72, 15, 255), width=max(2, round(side / 12)))
    return large


def error_map(original: Image.Image, decoded: Image.Image) -> tuple[Image.Image, float]:
    """(where the reconstruction is off: white is right, dark is wrong; PSNR in dB)."""
    a, b = (np.asarray(image, dtype=np.float64) for image in (original, decoded))
    mse = ((a - b) ** 2).mean()
    psnr = 10 * np.log10(255**2 / max(mse, 1e-6))
    off = np.abs(a - b).mean(axis=2)
    return Image.fromarray((255 - np.minimum(off * 3, 255)).astype(np.uint8)), psnr


def figures(pipe, tokens: list[list[int]], psnr: float | None) -> str:
    used = len(set(sum(tokens, [])))
    rows = {
        "grid": f"{pipe.grid_size} x {pipe.grid_size} tokens of {pipe.codebook_size:,} codes",
        "different codes in this picture": f"{used} ({100 * used / pipe.codebook_size:.1f} % of the codebook)",
        "PSNR of the reconstruction": "–" if psnr is None else f"{psnr:.1f} dB",
    }
    cells = "".join(f"<tr><td>{name}</td><td>{html.escape(value)}</td></tr>" for name, value in rows.items())
    return f"<table>{cells}</table>"


def build(models: Models) -> None:
    tokens = gr.State(None)  # of the picture on show, [grid][grid]
    cell = gr.State(None)  # (row, column) that was clicked
    picture = gr.State(None)  # the picture that was handed in, as the image tokenizer sees it
    gr.Markdown(
        "Every picture the model draws is a grid of tokens, numbers of a codebook. Hand in a picture to see what becomes of "
        "it; click a cell to read its token, change the number and watch the pixels change."
    )
    with gr.Row():
        with gr.Column():
            upload = picture_input("Your picture", "tokens-upload", 320)
            table = gr.HTML("", elem_id="tokens-figures", elem_classes="figures")
        with gr.Column():
            shown = gr.Image(
                label="Reconstruction, cell by cell", interactive=False, elem_id="tokens-grid", format="png", buttons=[],
                alt_text="Reconstruction, cell by cell",
            )  # fmt: skip
            with gr.Row(elem_id="tokens-cell"):
                number = gr.Number(label="Token of the clicked cell", precision=0, elem_id="token", interactive=False)
                change = gr.Button("Change it", elem_id="token-change", interactive=False)
    with gr.Row():
        slider = gr.ImageSlider(label="Original and reconstruction", elem_id="tokens-slider", interactive=False, format="png")
        wrong = gr.Image(
            label="Where it is off (dark)", interactive=False, elem_id="tokens-error", format="png", buttons=[],
            alt_text="Where the reconstruction is off (dark)",
        )  # fmt: skip

    def compared(original, grid, cell):
        """What is shown of a picture and of the tokens that are to stand for it: the values of `comparison`."""
        pipe = models.pipe
        decoded = pipe.decode(torch.tensor(grid))
        off, psnr = error_map(original, decoded)
        return [
            grid, with_grid(pipe, decoded, cell), (enlarge(original), enlarge(decoded)), enlarge(off),
            figures(pipe, grid, psnr),
        ]  # fmt: skip

    comparison = [tokens, shown, slider, wrong, table]

    @on_gpu(30)
    def reconstruct(path):
        """A picture -> its tokens and its reconstruction."""
        pipe = models.pipe
        try:
            original = square(pipe, open_picture(path))
            values = compared(original, pipe.encode(original).tolist(), None)
        except InputError as error:
            raise run.sentence(error) from None
        return [*values, None, original, gr.update(value=None, interactive=False), gr.update(interactive=False)]

    outputs = [*comparison, cell, picture, number, change]
    upload.input(reconstruct, upload, outputs, api_name="reconstruct_upload", api_visibility="private")
    run.endpoint(reconstruct, [upload], outputs, "reconstruct")

    @on_gpu(30)
    def at(grid, x, y):
        """The cell at a point of the shown picture, and its token."""
        pipe = models.pipe
        side = enlarge(Image.new("RGB", (pipe.image_size,) * 2)).width / pipe.grid_size
        row, column = (min(int(value / side), pipe.grid_size - 1) for value in (y, x))
        decoded = pipe.decode(torch.tensor(grid))
        return [
            (row, column), with_grid(pipe, decoded, (row, column)),
            gr.update(value=grid[row][column], interactive=True), gr.update(interactive=True),
        ]  # fmt: skip

    def click(grid, event: gr.SelectData):
        return at(grid, *event.index) if grid else [gr.skip()] * 4

    shown.select(click, tokens, [cell, shown, number, change], show_progress="hidden", api_visibility="private")

    @on_gpu(30)
    def replace(original, grid, cell, value):
        """Another token in the clicked cell."""
        pipe = models.pipe
        if not grid or not cell:
            return [gr.skip()] * len(comparison)
        row, column = cell
        try:
            if value is None or not 0 <= value < pipe.codebook_size:
                raise InputError(f"A token of this model is a whole number from 0 to {pipe.codebook_size - 1}.")
            changed = [list(line) for line in grid]
            changed[row][column] = int(value)
            return compared(original, changed, cell)
        except InputError as error:
            raise run.sentence(error) from None

    gr.on(
        [change.click, number.submit], replace, [picture, tokens, cell, number], comparison, show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip
