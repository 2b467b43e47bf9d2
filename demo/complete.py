"""The Complete tab: keep some cells of a picture and draw the others, ranked."""

from contextlib import closing

import gradio as gr
import numpy as np
import torch
from PIL import Image

from dalle_core import InputError
from demo import run
from demo.models import Models
from demo.pictures import SHOWN, enlarge
from demo.tokens import tokens_of, with_grid
from demo.uploads import picture_input

BRUSHES = {"one cell": 0, "3 x 3 cells": 1, "5 x 5 cells": 2}  # cells on each side of the one that is clicked


def top_rows(grid: int, rows: int) -> list[list[bool]]:
    """Which cells stay [grid][grid]: those of the first rows."""
    return [[row < int(rows)] * grid for row in range(grid)]


def toggled(keep: list[list[bool]], x: int, y: int, side: int, brush: str) -> list[list[bool]]:
    """`keep` after a click at pixel (x, y) of a picture `side` pixels wide: the cells under the brush become what the
    clicked one was not."""
    grid = len(keep)
    row, column = (min(int(value * grid / side), grid - 1) for value in (y, x))
    reach, value = BRUSHES[brush], not keep[row][column]
    return [
        [value if abs(i - row) <= reach and abs(j - column) <= reach else keep[i][j] for j in range(grid)]
        for i in range(grid)
    ]


def shown_kept(pipe, tokens: list[list[int]], keep: list[list[bool]]) -> Image.Image:
    """The picture that the tokens stand for, with its cells; those that will be drawn anew are pale."""
    image = pipe.decode(torch.tensor(tokens))
    mask = Image.fromarray(np.array(keep, dtype=np.uint8) * 255).resize(image.size, Image.Resampling.NEAREST)
    pale = Image.blend(image, Image.new("RGB", image.size, (225, 225, 225)), 0.85)
    return with_grid(pipe, Image.composite(image, pale, mask), None)


def build(models: Models, together: int):
    """Adds the tab; returns (the component that takes a picture, the prompt, the event handler that opens a picture and
    its outputs), for other tabs to fill."""
    pipe = models.pipe
    tokens, keep = gr.State(None), gr.State(None)  # of the picture, [grid][grid]
    gr.Markdown(
        "Keep a part of a picture, and let the model draw the rest for your prompt. Click cells to release or keep them. "
        "The model draws row by row from the top and never looks below: what is kept lower down does not guide what is "
        "drawn above it."
    )
    with gr.Row():
        with gr.Column():
            upload = picture_input("Picture", "complete-picture", 220)
            rows = gr.Slider(0, pipe.grid_size, pipe.grid_size // 2, step=1, label="Keep the rows at the top", elem_id="rows")
            brush = gr.Radio(list(BRUSHES), value="one cell", label="A click changes", elem_id="brush")
        with gr.Column():
            view = gr.Image(
                label="What is kept; pale cells are drawn anew", interactive=False, format="png", elem_id="kept-view",
                buttons=[], alt_text="The picture and its cells; pale ones are drawn anew",
            )  # fmt: skip
    with gr.Row(elem_id="complete-row"):
        prompt = gr.Textbox(label="Prompt", elem_id="complete-prompt", max_lines=1, max_length=run.MAX_PROMPT, scale=4)
        count = gr.Slider(1, pipe.max_candidates, 8, step=1, label="Candidates", scale=2)
        seed = gr.Textbox(
            label="Seed", placeholder="new each time", max_lines=1, elem_id="complete-seed", scale=1, min_width=120
        )
    with gr.Row():
        go = gr.Button("Complete", variant="primary", elem_id="complete")
        stop = gr.Button("Stop", elem_id="complete-stop")
    progress = gr.HTML("", elem_id="complete-status", elem_classes="status")
    gallery = gr.Gallery(
        columns=4, format="png", object_fit="contain", show_label=False, label="Completions", height="auto",
        elem_id="completions", elem_classes="ranked", buttons=["download"], visible=False,
    )  # fmt: skip

    def take(path, rows):
        """A picture -> its tokens, and the cells that are kept at first."""
        pipe = models.pipe
        try:
            grid = tokens_of(pipe, path)
        except InputError as error:
            raise run.sentence(error) from None
        mask = top_rows(pipe.grid_size, rows)
        return grid, mask, shown_kept(pipe, grid, mask)

    opening = dict(fn=take, inputs=[upload, rows], outputs=[tokens, keep, view], api_visibility="private")
    upload.input(**opening)

    def keep_rows(tokens, rows):
        mask = top_rows(models.pipe.grid_size, rows)
        return mask, shown_kept(models.pipe, tokens, mask) if tokens else None

    rows.change(
        keep_rows, [tokens, rows], [keep, view], show_progress="hidden", trigger_mode="always_last", api_visibility="private"
    )

    def click(tokens, keep, brush, event: gr.SelectData):
        if not tokens:
            return gr.skip(), gr.skip()
        pipe = models.pipe
        side = enlarge(Image.new("RGB", (pipe.image_size,) * 2)).width if pipe.image_size < SHOWN else pipe.image_size
        mask = toggled(keep, *event.index, side, brush)
        return mask, shown_kept(pipe, tokens, mask)

    view.select(click, [tokens, keep, brush], [keep, view], show_progress="hidden", api_visibility="private")

    def complete(tokens, keep, prompt, count, seed):
        """Streams completions: tokens [grid][grid] of a picture, keep [grid][grid] which of them stay."""
        pipe = models.pipe
        try:
            if not tokens:
                raise InputError("Choose a picture first.")
            if all(map(all, keep)):
                raise InputError("Every cell is kept, so there is nothing to draw: release some.")
            asked = run.parse_seed(seed, keep=True)
        except InputError as error:
            raise run.sentence(error) from None
        with closing(run.draw(
            models, models.source, gallery.GRADIO_CACHE, prompt, asked, num_candidates=int(count),
            image_tokens=torch.tensor(tokens), keep=torch.tensor(keep), preview_every=2 * pipe.grid_size,
        )) as steps:  # fmt: skip
            for update in steps:
                shown = gr.skip()
                if update.previews is not None:
                    shown = gr.update(value=[(enlarge(image), "") for image in update.previews], visible=True)
                if update.items is not None:
                    shown = gr.update(value=[(item["path"], run.label(item)) for item in update.items], visible=True)
                yield shown, update.line + update.cut

    def complete_picture(picture, rows, prompt, count, seed):
        """Keeps the rows of tokens at the top of a picture and draws the rest for a prompt: candidates, best first."""
        grid, mask, _ = take(picture, rows)
        yield from complete(grid, mask, prompt, count, seed)

    event = gr.on(
        [go.click, prompt.submit], complete, [tokens, keep, prompt, count, seed], [gallery, progress],
        api_name="complete_cells", api_visibility="private", show_progress="minimal", show_progress_on=progress, concurrency_id="sampling", concurrency_limit=together,
        trigger_mode="once",
    )  # fmt: skip
    # For programs, which hold no state: the same from a picture.
    gr.Button(visible=False).click(
        complete_picture, [upload, rows, prompt, count, seed], [gallery, progress], api_name="complete",
        concurrency_id="sampling", concurrency_limit=together,
    )  # fmt: skip
    for ended in (event.then, event.failure):  # `then` alone does not come after an error
        ended(run.stopped, progress, progress, queue=False, show_progress="hidden", api_visibility="private")
    stop.click(None, cancels=[event], queue=False, api_visibility="private")
    return upload, prompt, opening
