"""The Compare tab: an X/Y grid, one picture a cell, scored by CLIP."""

import json
import time
from contextlib import closing

import gradio as gr
from PIL import Image

from dalle_core import InputError
from dalle_core.compare import AXES, best, parse_axis, plan, sheet
from demo import run
from demo.gpu import on_gpu
from demo.models import Models
from demo.pictures import new_folder

NOTHING = "–"


def status(done: int, total: int, elapsed: float) -> str:
    """The progress line: cells drawn, and the time that is left at the pace so far."""
    left = f"{elapsed / done * (total - done):.0f} s left" if done else ""
    return (
        f'<div class="line" role="status"><span><b>Drawing</b> cell {min(done + 1, total)} of {total}</span><span>{left}</span>'
        f'</div><div class="bar"><div style="width:{100 * done / total:.1f}%"></div></div>'
    )


def build(models: Models, together: int) -> None:
    """Adds the tab; a grid is one of the drawings that go on at once."""
    names = [name for name in AXES if name != "model" or len(models.choices) > 1]
    gr.Markdown(
        "One prompt, two things varied: each cell is the best of its candidates by CLIP, the best cell is framed. Values are "
        "separated by commas. A prompt axis replaces its first value in the prompt by each of the others: “fox, cat, lion”. "
        "Candidates keep their seeds across the grid."
    )
    prompt = gr.Textbox(label="Prompt", elem_id="compare-prompt", max_lines=1, max_length=run.MAX_PROMPT)
    axes = []
    with gr.Row():
        for side, first, values in (("X", "prompt", ""), ("Y", "guidance_scale", "1, 2, 4")):
            with gr.Column(), gr.Row():
                axes.append(
                    gr.Dropdown(
                        [NOTHING, *names], value=first, label=side, elem_id=f"compare-{side.lower()}", scale=1, min_width=130,
                        filterable=False,
                    )
                )  # fmt: skip
                axes.append(
                    gr.Textbox(
                        values, label=f"{side} values", elem_id=f"compare-{side.lower()}-values", max_lines=1, scale=2,
                        min_width=150, max_length=run.MAX_PROMPT,
                    )
                )  # fmt: skip
    with gr.Row():
        count = gr.Slider(1, min(16, models.pipe.max_candidates), 4, step=1, label="Candidates a cell", elem_id="compare-count")
        seed = gr.Textbox(label="Seed", placeholder="new each time", elem_id="compare-seed", max_lines=1, min_width=120)
        negative = gr.Textbox(label="Negative prompt", elem_id="compare-negative", max_lines=1, max_length=run.MAX_PROMPT)
    with gr.Row():
        go = gr.Button("Compare", variant="primary", elem_id="compare")
        stop = gr.Button("Stop", elem_id="compare-stop", interactive=False)
    line = gr.HTML("", elem_id="compare-status", elem_classes="status")
    picture = gr.Image(
        label="X/Y grid", show_label=False, interactive=False, format="png", elem_id="compare-grid",
        buttons=["fullscreen"], alt_text="X/Y grid",
    )  # fmt: skip
    with gr.Row(elem_id="compare-exports"):
        as_picture = gr.DownloadButton("Download the grid", elem_id="compare-png")
        as_json = gr.DownloadButton("Download as JSON", elem_id="compare-json")

    @on_gpu(120)
    def compare(prompt, x, x_values, y, y_values, candidates, seed, negative_prompt):
        """Streams an X/Y grid of a prompt. x, y: what varies (prompt, seed, temperature, top_k, top_p, guidance_scale, or –);
        x_values, y_values: its values, separated by commas. Each cell is the best of `candidates` by CLIP."""
        try:
            across, below = (
                parse_axis("" if name == NOTHING else name, text[: run.MAX_PROMPT]) for name, text in ((x, x_values), (y, y_values))
            )
            asked = run.parse_seed(seed, keep=True)
            arguments = {"prompt": (prompt or "").strip()[: run.MAX_PROMPT], "seed": asked, "model": models.source}
            cells = plan(across, below, arguments)
            settings = {"num_candidates": candidates, "negative_prompt": (negative_prompt or "").strip()[: run.MAX_PROMPT]}
            for cell in cells:  # every cell's values, before the first is drawn
                if cell.arguments["model"] == models.source:
                    numbers = {key: value for key, value in cell.arguments.items() if key != "model"}
                    models.pipe.stream(**numbers, **settings).close()
        except InputError as error:
            raise run.sentence(error) from None
        folder = new_folder(picture.GRADIO_CACHE)
        pictures, scores, found, started = {}, {}, {}, time.monotonic()
        for done, cell in enumerate(cells):
            yield gr.skip(), status(done, len(cells), time.monotonic() - started), gr.skip(), gr.skip()
            numbers = settings | cell.arguments | {"seed": cell.arguments["seed"] if "seed" in (x, y) else asked}
            with closing(run.draw(
                models, numbers.pop("model"), picture.GRADIO_CACHE, numbers.pop("prompt"), numbers.pop("seed"), **numbers
            )) as steps:  # fmt: skip
                for step in steps:
                    if step.seed is not None and asked is None and "seed" not in (x, y):
                        asked = step.seed  # drawn for the first cell, the same for all others
                    if step.items is None:
                        yield gr.skip(), gr.skip(), gr.skip(), gr.skip()  # a place to stop
            place, first = (cell.column, cell.row), step.items[0]
            with Image.open(first["path"]) as image:
                pictures[place] = image.copy()
            scores[place] = first["score"]
            found[place] = {"x": across.values[cell.column], "y": below.values[cell.row], "score": first["score"],
                            "seed": first["seed"], "index": first["index"], "tokens": first["tokens"],
                            **first["request"]}  # fmt: skip
            # A folder each: a browser would not load the same address again.
            (folder / str(done)).mkdir()
            as_png, as_text = folder / str(done) / "grid.png", folder / str(done) / "grid.json"
            sheet(across, below, pictures, scores).save(as_png)
            winner = best(scores)
            as_text.write_text(json.dumps(
                {"x": across.name, "y": below.name, "best": winner and list(winner), "cells": list(found.values())},
                ensure_ascii=False, indent=1,
            ), encoding="utf-8")  # fmt: skip
            said = status(done + 1, len(cells), time.monotonic() - started)
            if done + 1 == len(cells):
                said = run.said(f"{len(cells)} cells, seed {first['seed'] if 'seed' not in (x, y) else 'varied'}")
            yield gr.update(value=str(as_png)), said, str(as_png), str(as_text)

    run.stoppable([go.click, prompt.submit], stop)
    event = gr.on(
        [go.click, prompt.submit], compare, [prompt, *axes, count, seed, negative], [picture, line, as_picture, as_json],
        api_name="compare", show_progress="minimal", show_progress_on=line, concurrency_id="sampling",
        concurrency_limit=together, trigger_mode="once",
    )  # fmt: skip
    for ended in (event.then, event.failure):  # `then` alone does not come after an error
        ended(run.ended, line, [line, stop], queue=False, show_progress="hidden", api_visibility="private")
    stop.click(None, cancels=[event], queue=False, api_visibility="private")
