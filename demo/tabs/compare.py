"""The Compare tab: an X/Y grid, one picture per cell, scored by CLIP."""

from contextlib import closing
from dataclasses import replace

import gradio as gr

from dalle_core.compare import AXES, parse_axis
from dalle_core.request import MAX_PROMPT, DrawingRequest
from dalle_core.studio.studio import ANY_TOP_K, GridUpdate, Studio
from demo import progress
from demo.downloads import download
from demo.handlers import QUIET, checked_later, parse_seed, stoppable
from demo.public import visitor
from demo.tabs import sampling

NOTHING = "nothing"


def line(update: GridUpdate) -> str:
    """How far the grid is: cells drawn, and the time that is left at the pace so far."""
    done = len(update.grid.pictures)
    if done == update.total:
        return progress.line(f"{update.total} cells, seed {'varied' if update.seed is None else update.seed}")
    left = f"{update.elapsed / done * (update.total - done):.0f} s left" if done else ""
    loading = progress.line(update.line) if update.line else ""
    return progress.line("Drawing", f" cell {done + 1} of {update.total}", left, done / update.total) + loading


class Compare:
    """The tab's components, and what happens on them."""

    def __init__(self, studio: Studio):
        self.studio, self.grid = studio, gr.State(None)  # the grid on show
        gr.Markdown(
            "Draw one prompt several times with one or two things changed, side by side. Write the values with commas between "
            "them. For prompt words, the first value stands in the prompt, and the others take its place: “fox, cat, lion”. "
            "Each cell shows its best candidate and its CLIP score: how well the picture fits the prompt, higher is "
            "better. The best cell is framed."
        )
        self.prompt = gr.Textbox(label="Prompt", elem_id="compare-prompt", max_lines=1, max_length=MAX_PROMPT)
        with gr.Row():
            self.x, self.x_values = self._axis("x", "Across", "prompt", "")
            self.y, self.y_values = self._axis("y", "Down", "guidance_scale", "1, 2, 4")
        loaded = studio.holder.loaded
        most = min(16, loaded.limits.max_candidates)
        with gr.Row():
            self.count = checked_later(
                gr.Slider(1, most, min(4, most), step=1, label="Candidates per cell", elem_id="compare-count")
            )
            self.seed = gr.Textbox(
                label="Seed", placeholder="new each time", elem_id="compare-seed", max_lines=1, min_width=120
            )
            self.negative = gr.Textbox(label="Negative prompt", elem_id="compare-negative", max_lines=1, max_length=MAX_PROMPT)
        self.sampling = sampling.fold(loaded, "compare")
        with gr.Row():
            self.go = gr.Button("Compare", variant="primary", elem_id="compare")
            self.stop = gr.Button("Stop", elem_id="compare-stop", elem_classes="stop", interactive=False)
        self.status = gr.HTML("", elem_id="compare-status", elem_classes="status")
        with gr.Column(elem_classes="unused") as self.drawn:
            self.sheet = gr.Image(
                label="X/Y grid",
                show_label=False,
                interactive=False,
                format="jpeg",
                elem_id="compare-grid",
                buttons=["fullscreen"],
                alt_text="X/Y grid",
            )
            with gr.Row():
                as_picture = gr.Button("Download the grid", elem_id="compare-png")
                as_json = gr.Button("Download as JSON", elem_id="compare-json")
        download(as_picture, studio.download_sheet, [self.grid])
        download(as_json, studio.download_json, [self.grid])

    def _axis(self, side: str, label: str, first: str, values: str) -> tuple[gr.Dropdown, gr.Textbox]:
        several = len(self.studio.holder.choices) > 1
        choices = [(words, name) for name, words in AXES.items() if name != "model" or several]
        name = f"compare-{side}"
        with gr.Column(), gr.Row():
            return (
                gr.Dropdown(
                    [("Nothing", NOTHING), *choices],
                    value=first,
                    label=label,
                    elem_id=name,
                    scale=2,
                    min_width=170,
                    filterable=False,
                ),
                gr.Textbox(
                    values,
                    label=f"Values {label.lower()}",
                    elem_id=f"{name}-values",
                    max_lines=1,
                    scale=3,
                    min_width=150,
                    max_length=MAX_PROMPT,
                ),
            )

    def compare(self, request: gr.Request, prompt, x, x_values, y, y_values, count, seed, negative, *settings):
        limits, defaults = self.studio.holder.loaded.limits, self.studio.holder.loaded.defaults
        if "model" in (x, y):
            limits = replace(limits, codebook_size=ANY_TOP_K)
        across, below = (
            parse_axis("" if name == NOTHING else name, values or "", limits) for name, values in ((x, x_values), (y, y_values))
        )
        # A slider that was not moved means the default of whichever model draws the cell.
        moved = {name: value for name, value in zip(sampling.NAMES, settings) if value != defaults[name]}
        asked = DrawingRequest(
            (prompt or "").strip(), (negative or "").strip(), num_candidates=count, seed=parse_seed(seed), **moved
        )
        words = [value for axis in (across, below) if axis.name == "prompt" for value in axis.values]
        unknown = progress.unknown(self.studio.unknown_words([asked.prompt, *words]))
        with closing(self.studio.compare(visitor(request), across, below, asked)) as steps:
            for step in steps:
                shown = {self.status: line(step) + unknown}
                if step.finished:
                    shown |= {self.grid: step.grid, self.sheet: step.grid.sheet(), self.drawn: gr.update(elem_classes=[])}
                yield shown


def build(studio: Studio, together: int, place: gr.Tab) -> None:
    """Fills the tab `place`; a grid is one of the drawings that go on at once."""
    tab = Compare(studio)
    sampling.follow_model(studio, place, tab.sampling, lambda loaded, *values: sampling.fitted(loaded))
    starts = [tab.go.click, tab.prompt.submit]
    stoppable(starts, tab.stop)
    event = gr.on(
        starts,
        tab.compare,
        [tab.prompt, tab.x, tab.x_values, tab.y, tab.y_values, tab.count, tab.seed, tab.negative, *tab.sampling],
        [tab.status, tab.grid, tab.sheet, tab.drawn],
        api_visibility="private",
        show_progress="minimal",
        show_progress_on=tab.status,
        concurrency_id="sampling",
        concurrency_limit=together,
        trigger_mode="once",
    )
    for ended in (event.then, event.failure):  # `then` alone does not come after an error
        ended(progress.ended, tab.status, [tab.status, tab.stop], **QUIET)
    tab.stop.click(None, cancels=[event], queue=False, api_visibility="private")
