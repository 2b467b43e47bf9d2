"""The Complete tab: keep some cells of a picture and draw the others, ranked."""

import json
from contextlib import closing
from dataclasses import dataclass

import gradio as gr
import numpy as np
from PIL import Image

from dalle_core import InputError
from dalle_core.request import MAX_PROMPT, DrawingRequest
from dalle_core.studio.pool import to_entry
from dalle_core.studio.studio import Studio
from demo import progress, static
from demo.downloads import download
from demo.handlers import QUIET, checked_later, parse_seed, stoppable
from demo.pictures import gallery_items, preview_grid
from demo.public import visitor
from demo.tabs import sampling
from demo.tabs.tokens import with_grid
from demo.uploads import picture_input

BRUSHES = {"one cell": 0, "3 x 3 cells": 1, "5 x 5 cells": 2}  # cells on each side of the one that is painted
EDGES = ["top", "left", "bottom", "right", "border", "middle"]
MAX_POINTS = 5000  # of one stroke
HEAD = f"<script>{static.read('paint.js')}</script>"


@dataclass(frozen=True)
class Opened:
    """The picture that is being completed."""

    tokens: list[list[int]]  # [grid][grid]
    image: Image.Image  # what they stand for
    source: str  # of the model whose tokens they are


def edge(grid: int, side: str, width) -> list[list[bool]]:
    """Which cells stay [grid][grid]: `width` rows or columns at one side, all round ("border"), or all but those ("middle").

    Raises InputError when `width` or `side` cannot be.
    """
    if side not in EDGES:
        raise InputError(f"Keep is {str(side)[:40]!r}; it must be one of: {', '.join(EDGES)}.")
    if type(width) not in (int, float) or not width >= 0:
        raise InputError(f"Width in cells is {str(width)[:40]!r}; it must be a number from 0 to {grid}.")
    near = np.arange(grid) < width
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
    grid, reach = len(keep), BRUSHES.get(brush, 0)
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


def shown_kept(opened: Opened, keep: list[list[bool]]) -> Image.Image:
    """The picture with its cells; those that will be drawn anew are pale."""
    image = opened.image
    mask = Image.fromarray(np.array(keep, dtype=np.uint8) * 255).resize(image.size, Image.Resampling.NEAREST)
    pale = Image.blend(image, Image.new("RGB", image.size, (225, 225, 225)), 0.85)
    return with_grid(Image.composite(image, pale, mask), len(keep), None)


def build(studio: Studio, together: int, save_recipe: gr.Checkbox, tab: gr.Tab):
    """Fills `tab`; save_recipe: the page's switch. Returns (the component that takes a picture, the prompt, the event that
    opens a picture), for other tabs to fill."""
    complete = Complete(studio)
    opening = complete.edit_events(tab, together)
    complete.draw_events(together, save_recipe)
    complete.go_on_events(opening)
    return complete.upload, complete.prompt, opening


class Complete:
    """The tab's components, and what happens on them."""

    def __init__(self, studio: Studio):
        self.studio = studio
        loaded = studio.holder.loaded
        self.opened, self.keep = gr.State(None), gr.State(None)  # an `Opened`; which of its cells stay [grid][grid]
        self.pictures, self.chosen = gr.State([]), gr.State(None)  # the completions, best first; the one that was clicked
        gr.Markdown(
            "Keep a part of a picture, and let the model draw the rest from your description. Click cells of the picture, or "
            "paint over them, to choose which are drawn anew. The model draws row by row from the top and never looks below: "
            "what is kept lower down does not guide what is drawn above it."
        )
        with gr.Row():
            with gr.Column():
                self.upload = picture_input("Picture", "complete-picture", 220)
                with gr.Column(elem_classes="unused") as self.tools:
                    self.side = gr.Radio(EDGES, value="top", label="Keep", elem_id="side")
                    self.rows = checked_later(
                        gr.Slider(
                            0,
                            loaded.limits.grid_size,
                            loaded.limits.grid_size // 2,
                            step=1,
                            label="Width in cells",
                            elem_id="rows",
                        )
                    )
                    self.brush = gr.Radio(list(BRUSHES), value="one cell", label="Brush", elem_id="brush")
            with gr.Column(elem_classes="unused") as self.viewed:
                self.view = gr.Image(
                    label="Click or paint: pale cells are drawn anew",
                    interactive=False,
                    format="png",
                    elem_id="kept-view",
                    buttons=[],
                    alt_text="The picture and its cells; pale ones are drawn anew",
                )
        with gr.Row(elem_id="complete-row", elem_classes="unused") as self.asked:
            self.prompt = gr.Textbox(label="Prompt", elem_id="complete-prompt", max_lines=1, max_length=MAX_PROMPT, scale=4)
            self.count = checked_later(
                gr.Slider(
                    1, loaded.limits.max_candidates, min(8, loaded.limits.max_candidates), step=1, label="Candidates", scale=2
                )
            )
            self.seed = gr.Textbox(
                label="Seed", placeholder="new each time", max_lines=1, elem_id="complete-seed", scale=1, min_width=120
            )
        with gr.Column(elem_classes="unused") as self.settings:
            self.sampling = sampling.fold(loaded, "complete")
        with gr.Row(elem_classes="unused") as self.buttons:
            self.go = gr.Button("Complete", variant="primary", elem_id="complete")
            self.stop = gr.Button("Stop", elem_id="complete-stop", elem_classes="stop", interactive=False)
        self.status = gr.HTML("", elem_id="complete-status", elem_classes="status")
        self.previews = gr.HTML("", label="Previews", elem_id="complete-previews")
        self.gallery = gr.Gallery(
            columns=4,
            format="png",
            object_fit="contain",
            show_label=False,
            label="Completions",
            height="auto",
            elem_id="completions",
            elem_classes="unused",
            buttons=[],
        )
        with gr.Row(elem_classes="unused") as self.more:
            self.download = gr.Button("Download PNG", elem_id="complete-download")
            self.again = gr.Button("Continue from this one", elem_id="complete-again")
        self.entry = gr.Textbox(elem_id="completed", elem_classes="offstage", show_label=False)  # for the history
        self.stroke = gr.Textbox(elem_id="stroke-said", elem_classes="offstage", show_label=False)
        self.painted = gr.Button(elem_id="painted", elem_classes="offstage")

    # ------------------------------------------------------------ what is kept

    def take(self, request: gr.Request, path, side, rows):
        """A picture -> its tokens, and the cells that are kept at first."""
        source = self.studio.holder.source
        tokens = self.studio.tokens_of(visitor(request), path)
        opened = Opened(tokens, self.studio.decode(visitor(request), tokens), source)
        keep = edge(len(tokens), side, rows)
        shown = {part: gr.update(elem_classes=[]) for part in self.unused}
        return {self.opened: opened, self.keep: keep, self.view: shown_kept(opened, keep)} | shown

    def keep_edge(self, opened, side, rows):
        if opened is None:
            return gr.skip()
        keep = edge(len(opened.tokens), side, rows)
        return {self.keep: keep, self.view: shown_kept(opened, keep)}

    def paint(self, stroke, opened, keep, brush):
        points = read_stroke(stroke)
        if opened is None or not points:
            return gr.skip()
        keep = painted(keep, points, brush)
        return {self.keep: keep, self.view: shown_kept(opened, keep)}

    @property
    def unused(self) -> list:
        """What waits for a picture."""
        return [self.tools, self.viewed, self.asked, self.settings, self.buttons]

    def edit_events(self, tab: gr.Tab, together: int) -> dict:
        """Returns the event that opens a picture."""
        opening = dict(
            fn=self.take,
            inputs=[self.upload, self.side, self.rows],
            outputs=[self.opened, self.keep, self.view, *self.unused],
            api_visibility="private",
            concurrency_limit=together,
        )
        self.upload.input(**opening)
        gr.on(
            [self.rows.change, self.side.change],
            self.keep_edge,
            [self.opened, self.side, self.rows],
            [self.keep, self.view],
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
        )
        self.painted.click(
            self.paint,
            [self.stroke, self.opened, self.keep, self.brush],
            [self.keep, self.view],
            show_progress="hidden",
            api_visibility="private",
            js="(stroke, ...values) => [dallePaint.stroke(), ...values]",
        )

        def fitted(loaded, *values):
            ends = loaded.limits.grid_size, loaded.limits.max_candidates
            sizes = [gr.update(maximum=end, value=min(value, end)) for value, end in zip(values, ends)]
            return [*sizes, *sampling.fitted(loaded)]

        sampling.follow_model(self.studio, tab, [self.rows, self.count, *self.sampling], fitted)
        return opening

    # ------------------------------------------------------------ drawing

    def draw(self, request: gr.Request, opened, keep, prompt, count, seed, save_recipe, *settings):
        if opened is None:
            raise InputError("Choose a picture first.")
        if opened.source != self.studio.holder.source:
            raise InputError("Another model has been chosen since, which has other tokens: upload the picture again.")
        if all(map(all, keep)):
            raise InputError("Every cell is kept, so there is nothing to draw: click some first.")
        asked = DrawingRequest(
            (prompt or "").strip(),
            num_candidates=count,
            seed=parse_seed(seed),
            image_tokens=opened.tokens,
            keep=keep,
            **dict(zip(sampling.NAMES, settings)),
        )
        steps = self.studio.draw(
            visitor(request), asked, preview_every=self.studio.holder.loaded.preview_every, save_recipe=bool(save_recipe)
        )
        with closing(steps):
            for step in steps:
                shown = {self.status: progress.of(step) + progress.notices(step)}
                if step.previews is not None:
                    shown |= {
                        self.previews: preview_grid(step.previews),
                        self.gallery: gr.update(elem_classes="unused"),
                        self.more: gr.update(elem_classes="unused"),
                    }
                if step.pictures is None:
                    yield shown
        yield shown | {
            self.gallery: gr.update(value=gallery_items(step.pictures), elem_classes="ranked"),
            self.previews: "",
            self.pictures: step.pictures,
            self.chosen: step.pictures[0],
            self.more: gr.update(elem_classes=[]),
            self.entry: to_entry(step.pictures),
        }

    def draw_events(self, together: int, save_recipe: gr.Checkbox) -> None:
        starts = [self.go.click, self.prompt.submit]
        stoppable(starts, self.stop)
        event = gr.on(
            starts,
            self.draw,
            [self.opened, self.keep, self.prompt, self.count, self.seed, save_recipe, *self.sampling],
            [self.gallery, self.status, self.previews, self.pictures, self.chosen, self.more, self.entry],
            api_visibility="private",
            show_progress="minimal",
            show_progress_on=self.status,
            concurrency_id="sampling",
            concurrency_limit=together,
            trigger_mode="once",
        )
        for ended in (event.then, event.failure):  # `then` alone does not come after an error
            ended(progress.ended, self.status, [self.status, self.stop], **QUIET)
        self.stop.click(None, cancels=[event], queue=False, api_visibility="private")
        self.entry.change(None, self.entry, None, js="(text) => { dalleHistory.save(text); }", api_visibility="private")
        download(self.download, self.studio.download, [self.chosen, save_recipe])

    def go_on_events(self, opening: dict) -> None:
        """A completion is taken as the next picture."""

        def choose(event: gr.SelectData, pictures):
            if type(event.index) is not int or not 0 <= event.index < len(pictures):
                return gr.skip()
            return pictures[event.index]

        def hand_on(chosen):
            if chosen is None:
                raise InputError("Choose a picture first.")
            return chosen.path

        self.gallery.select(choose, self.pictures, self.chosen, **QUIET)
        self.again.click(hand_on, self.chosen, self.upload, show_progress="hidden", api_visibility="private").then(**opening)
