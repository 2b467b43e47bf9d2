"""The Complete tab: keep some cells of a picture and draw the others, ranked."""

import json
from contextlib import closing

import gradio as gr
import numpy as np
import torch
from PIL import Image

from dalle_core import InputError
from demo import history, pool, run, static
from demo.gpu import on_gpu
from demo.models import Models
from demo.pictures import preview_grid
from demo.tokens import tokens_of, with_grid
from demo.uploads import picture_input

BRUSHES = {"one cell": 0, "3 x 3 cells": 1, "5 x 5 cells": 2}  # cells on each side of the one that is painted
EDGES = ["top", "left", "bottom", "right", "border", "middle"]
MAX_POINTS = 5000  # of one stroke
HEAD = f"<script>{static.read('paint.js')}</script>"


def edge(grid: int, side: str, width: int) -> list[list[bool]]:
    """Which cells stay [grid][grid]: `width` rows or columns at one side, all round ("border"), or all but those ("middle")."""
    near = np.arange(grid) < int(width)
    rows, columns = np.meshgrid(near, near, indexing="ij")
    border = rows | columns | rows[::-1] | columns[:, ::-1]
    kept = {"top": rows, "left": columns, "bottom": rows[::-1], "right": columns[:, ::-1], "border": border, "middle": ~border}
    return kept[side].tolist()


def read_stroke(text: str | None) -> list[tuple[float, float]]:
    """The points (x, y) of a stroke, each from 0 to 1, as the page's script writes them; [] for anything else."""
    try:
        points = [(float(x), float(y)) for x, y in json.loads(text)]
    except (ValueError, TypeError, RecursionError):
        return []
    return points if len(points) <= MAX_POINTS and all(0 <= value <= 1 for point in points for value in point) else []


def painted(keep: list[list[bool]], points: list[tuple[float, float]], brush: str) -> list[list[bool]]:
    """`keep` after a stroke: every cell under the brush becomes what the first one was not."""
    grid, reach = len(keep), BRUSHES[brush]
    line = np.array(points)
    # A quick hand leaves gaps between the points: filled by steps of less than a cell.
    steps = np.ceil(np.abs(np.diff(line, axis=0)).max(axis=1, initial=0) * grid * 2).astype(int)
    filled = [line[:1]] + [np.linspace(a, b, n + 1) for a, b, n in zip(line, line[1:], steps)]
    cells = np.minimum((np.concatenate(filled) * grid).astype(int), grid - 1)
    after, (column, row) = np.array(keep), cells[0]
    value = not keep[row][column]
    for column, row in cells:
        after[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1] = value
    return after.tolist()


def shown_kept(pipe, tokens: list[list[int]], keep: list[list[bool]]) -> Image.Image:
    """The picture that the tokens stand for, with its cells; those that will be drawn anew are pale."""
    image = pipe.decode(torch.tensor(tokens))
    mask = Image.fromarray(np.array(keep, dtype=np.uint8) * 255).resize(image.size, Image.Resampling.NEAREST)
    pale = Image.blend(image, Image.new("RGB", image.size, (225, 225, 225)), 0.85)
    return with_grid(pipe, Image.composite(image, pale, mask), None)


def build(models: Models, together: int, save_recipe: gr.Checkbox, tab: gr.Tab):
    """Fills `tab`; save_recipe: the page's switch. Returns (the component that takes a picture, the prompt, the event
    handler that opens a picture and its outputs), for other tabs to fill."""
    pipe = models.pipe
    tokens, keep = gr.State(None), gr.State(None)  # of the picture, [grid][grid]
    gr.Markdown(
        "Keep a part of a picture, and let the model draw the rest for your prompt. Click cells, or paint over them, to release "
        "or keep them. "
        "The model draws row by row from the top and never looks below: what is kept lower down does not guide what is "
        "drawn above it."
    )
    with gr.Row():
        with gr.Column():
            upload = picture_input("Picture", "complete-picture", 220)
            side = gr.Radio(EDGES, value="top", label="Keep", elem_id="side")
            rows = run.bounded(gr.Slider(
                0, pipe.grid_size, pipe.grid_size // 2, step=1, label="Cells from the edge", elem_id="rows",
            ))  # fmt: skip
            brush = gr.Radio(list(BRUSHES), value="one cell", label="The brush", elem_id="brush")
        with gr.Column():
            view = gr.Image(
                label="What is kept: click or paint; pale cells are drawn anew", interactive=False, format="png",
                elem_id="kept-view", buttons=[], alt_text="The picture and its cells; pale ones are drawn anew",
            )  # fmt: skip
    with gr.Row(elem_id="complete-row"):
        prompt = gr.Textbox(label="Prompt", elem_id="complete-prompt", max_lines=1, max_length=run.MAX_PROMPT, scale=4)
        count = run.bounded(gr.Slider(1, pipe.max_candidates, 8, step=1, label="Candidates", scale=2))
        seed = gr.Textbox(
            label="Seed", placeholder="new each time", max_lines=1, elem_id="complete-seed", scale=1, min_width=120
        )
    with gr.Row():
        go = gr.Button("Complete", variant="primary", elem_id="complete")
        stop = gr.Button("Stop", elem_id="complete-stop", interactive=False)
    progress = gr.HTML("", elem_id="complete-status", elem_classes="status")
    previews = gr.HTML("", label="Previews", elem_id="complete-previews")
    gallery = gr.Gallery(
        columns=4, format="png", object_fit="contain", show_label=False, label="Completions", height="auto",
        elem_id="completions", elem_classes="ranked", buttons=["download"],
    )  # fmt: skip
    again = gr.Button("Go on from the chosen one", elem_id="complete-again")
    paths, chosen = gr.State([]), gr.State(None)  # of the completions on show, best first; of the one that was clicked
    entry = gr.Textbox(elem_id="completed", elem_classes="offstage", show_label=False)  # for the history, by the page's script

    @on_gpu(30)
    def take(path, side, rows):
        """A picture -> its tokens, and the cells that are kept at first."""
        pipe = models.pipe
        try:
            grid = tokens_of(pipe, path)
        except InputError as error:
            raise run.sentence(error) from None
        mask = edge(pipe.grid_size, side, rows)
        return grid, mask, shown_kept(pipe, grid, mask)

    opening = dict(fn=take, inputs=[upload, side, rows], outputs=[tokens, keep, view], api_visibility="private")
    upload.input(**opening)

    @on_gpu(30)
    def keep_edge(tokens, side, rows):
        mask = edge(models.pipe.grid_size, side, rows)
        return mask, shown_kept(models.pipe, tokens, mask) if tokens else None

    gr.on(
        [rows.change, side.change], keep_edge, [tokens, side, rows], [keep, view], show_progress="hidden",
        trigger_mode="always_last", api_visibility="private",
    )  # fmt: skip

    @on_gpu(30)
    def paint(stroke, tokens, keep, brush):
        points = read_stroke(stroke)
        if not tokens or not points:
            return gr.skip(), gr.skip()
        mask = painted(keep, points, brush)
        return mask, shown_kept(models.pipe, tokens, mask)

    stroke = gr.Textbox(elem_id="stroke-said", elem_classes="offstage", show_label=False)
    gr.Button(elem_id="painted", elem_classes="offstage").click(
        paint, [stroke, tokens, keep, brush], [keep, view], show_progress="hidden", api_visibility="private",
        js="(stroke, ...values) => [dallePaint.stroke(), ...values]",
    )  # fmt: skip

    @on_gpu(60)
    def complete(tokens, keep, prompt, count, seed, save_recipe=True):
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
            models, models.source, gallery.GRADIO_CACHE, prompt, asked, save_recipe, num_candidates=count,
            image_tokens=torch.tensor(tokens), keep=torch.tensor(keep), preview_every=run.preview_every(pipe),
        )) as steps:  # fmt: skip
            for update in steps:
                unfinished = gr.skip() if update.previews is None else preview_grid(update.previews)
                shown = gr.skip() if update.previews is None else []
                if update.items is None:
                    yield shown, update.line + update.cut, unfinished, gr.skip(), gr.skip(), gr.skip()
        items = pool.ranked([item | {"tokens": history.pack(item["tokens"])} for item in update.items])
        shown = gr.update(value=pool.gallery_items(items, pool.RANKED))
        names = [item["path"] for item in items]
        yield shown, update.line + update.cut, "", names, names[0], history.to_entry(items)

    @on_gpu(60)
    def complete_picture(picture, rows, prompt, count, seed):
        """Keeps the rows of tokens at the top of a picture and draws the rest for a prompt: candidates, best first."""
        grid, mask, _ = take(picture, "top", rows)
        for pictures, line, *_ in complete(grid, mask, prompt, count, seed):
            yield pictures, line

    run.stoppable([go.click, prompt.submit], stop)
    event = gr.on(
        [go.click, prompt.submit], complete, [tokens, keep, prompt, count, seed, save_recipe],
        [gallery, progress, previews, paths, chosen, entry],
        api_name="complete_cells", api_visibility="private", show_progress="minimal", show_progress_on=progress,
        concurrency_id="sampling", concurrency_limit=together, trigger_mode="once",
    )  # fmt: skip
    # For programs, which hold no state: the same from a picture.
    gr.Button(visible=False).click(
        complete_picture, [upload, rows, prompt, count, seed], [gallery, progress], api_name="complete",
        concurrency_id="sampling", concurrency_limit=together,
    )  # fmt: skip
    for ended in (event.then, event.failure):  # `then` alone does not come after an error
        ended(run.ended, progress, [progress, stop], queue=False, show_progress="hidden", api_visibility="private")
    stop.click(None, cancels=[event], queue=False, api_visibility="private")
    entry.change(None, entry, None, js="(text) => { dalleHistory.save(text); }", api_visibility="private")
    built_with = models.source

    def fitted(rows, count):
        """The sliders' ends as the model needs them that was chosen since."""
        if models.source == built_with or models.pipe is None:
            return gr.skip(), gr.skip()
        ends = models.pipe.grid_size, models.pipe.max_candidates
        return [gr.update(maximum=end, value=min(value, end)) for value, end in zip((rows, count), ends)]

    tab.select(
        fitted, [rows, count], [rows, count], queue=False, show_progress="hidden", api_visibility="private"
    )  # fmt: skip

    def choose(paths, event: gr.SelectData):
        return paths[event.index] if event.index < len(paths) else gr.skip()

    gallery.select(choose, paths, chosen, queue=False, show_progress="hidden", api_visibility="private")
    again.click(lambda path: path, chosen, upload, show_progress="hidden", api_visibility="private").then(**opening)
    return upload, prompt, opening
