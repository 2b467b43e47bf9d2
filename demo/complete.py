"""The Complete tab: keep a part of a picture and draw the rest, ranked."""

from contextlib import closing

import gradio as gr
import numpy as np
import torch
from PIL import Image

from dalle_core import InputError
from demo import run
from demo.models import Models
from demo.pictures import enlarge
from demo.tokens import square, with_grid

TOP, PAINTED = "the rows at the top", "all but what I paint over"


def kept_cells(pipe, how: str, rows: int, layer: Image.Image | None) -> torch.Tensor:
    """Which tokens stay [grid, grid]. layer: the painted layer (RGBA, the size of the picture or a multiple).

    Raises InputError when nothing would be drawn, or nothing kept.
    """
    grid = pipe.grid_size
    keep = torch.zeros(grid, grid, dtype=torch.bool)
    if how == TOP:
        keep[: int(rows)] = True
    else:
        if layer is None:
            raise InputError("Paint over what shall be drawn anew.")
        # A cell that is touched anywhere is drawn anew.
        alpha = np.asarray(layer.convert("RGBA").resize((grid * 8, grid * 8), Image.Resampling.BOX))[..., 3]
        touched = alpha.reshape(grid, 8, grid, 8).max(axis=(1, 3)) > 16
        keep = torch.from_numpy(~touched)
    if keep.all():
        raise InputError("Everything is kept, so there is nothing to draw: " + (
            "keep fewer rows." if how == TOP else "paint over what shall be drawn anew."))  # fmt: skip
    return keep


def shown_kept(pipe, image: Image.Image, keep: torch.Tensor) -> Image.Image:
    """The picture with its cells; those that will be drawn anew are pale."""
    mask = Image.fromarray((keep.numpy() * 255).astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    pale = Image.blend(image, Image.new("RGB", image.size, (220, 220, 220)), 0.8)
    return with_grid(pipe, Image.composite(image, pale, mask), None)


def build(models: Models, together: int):
    """Adds the tab; returns the component that takes a picture, for other tabs to fill."""
    pipe = models.pipe
    gr.Markdown(
        "Keep a part of a picture, and let the model draw the rest for your prompt. The model draws row by row from the top "
        "and never looks below, so keeping the top works best; what is kept lower down does not guide what is above it."
    )
    with gr.Row():
        with gr.Column():
            editor = gr.ImageEditor(
                label="Picture: paint over what shall be drawn anew", type="pil", layers=False, elem_id="complete-picture",
                sources=["upload", "webcam", "clipboard"], brush=gr.Brush(default_size=24, colors=["#d9480f"], color_mode="fixed"),
                transforms=(), height=420, canvas_size=(384, 384), fixed_canvas=True, image_mode="RGBA",
            )  # fmt: skip
            how = gr.Radio([TOP, PAINTED], value=TOP, label="Keep", elem_id="keep-how")
            rows = gr.Slider(1, pipe.grid_size - 1, pipe.grid_size // 2, step=1, label="Rows kept", elem_id="rows")
        with gr.Column():
            kept_view = gr.Image(
                label="What is kept", interactive=False, format="png", elem_id="kept-view", buttons=[], height=300
            )
            prompt = gr.Textbox(label="Prompt", elem_id="complete-prompt", max_lines=1, max_length=run.MAX_PROMPT)
            with gr.Row():
                count = gr.Slider(1, pipe.max_candidates, 8, step=1, label="Candidates")
                seed = gr.Textbox(label="Seed", placeholder="new each time", max_lines=1, elem_id="complete-seed")
            with gr.Row():
                go = gr.Button("Complete", variant="primary", elem_id="complete")
                stop = gr.Button("Stop", elem_id="complete-stop")
    progress = gr.HTML("", elem_id="complete-status", elem_classes="status")
    gallery = gr.Gallery(
        columns=4, format="png", object_fit="contain", show_label=False, label="Completions", height="auto",
        elem_id="completions", elem_classes="ranked", buttons=["download"], visible=False, allow_preview=True,
    )  # fmt: skip

    def opened(value):
        """The picture and the painted layer of the editor. Raises InputError."""
        background = value and value.get("background")
        if background is None:
            raise InputError("Choose a picture first.")
        layers = value.get("layers") or []
        return square(models.pipe, background), square_layer(layers[0]) if layers else None

    def square_layer(layer):
        side = min(layer.size)
        left, top = (layer.width - side) // 2, (layer.height - side) // 2
        return layer.crop((left, top, left + side, top + side))

    def look(value, how, rows):
        """What would be kept, as a picture."""
        if not value or value.get("background") is None:
            return None
        pipe = models.pipe
        try:
            image, layer = opened(value)
            keep = kept_cells(pipe, how, rows, layer)
            return shown_kept(pipe, pipe.decode(pipe.encode(image)), keep)
        except InputError:
            return None

    def complete(value, how, rows, prompt, count, seed):
        """Streams the completions of a picture."""
        pipe = models.pipe
        try:
            image, layer = opened(value)
            keep = kept_cells(pipe, how, rows, layer)
            tokens = pipe.encode(image)
            asked = run.parse_seed(seed, keep=True)
        except InputError as error:
            raise run.sentence(error) from None
        with closing(run.draw(
            models, models.source, gallery.GRADIO_CACHE, prompt, asked, num_candidates=int(count), image_tokens=tokens,
            keep=keep, preview_every=2 * pipe.grid_size,
        )) as steps:  # fmt: skip
            for update in steps:
                shown = gr.skip()
                if update.previews is not None:
                    shown = gr.update(value=[(enlarge(image), "") for image in update.previews], visible=True)
                if update.items is not None:
                    shown = gr.update(value=[(item["path"], run.label(item)) for item in update.items], visible=True)
                yield shown, update.line + update.cut

    for component in (editor, how, rows):
        component.change(
            look, [editor, how, rows], kept_view, show_progress="hidden", trigger_mode="always_last", api_visibility="private"
        )
    event = go.click(
        complete, [editor, how, rows, prompt, count, seed], [gallery, progress], api_name="complete",
        show_progress="minimal", show_progress_on=progress, concurrency_id="sampling", concurrency_limit=together,
    )  # fmt: skip
    event.then(run.stopped, progress, progress, queue=False, show_progress="hidden", api_visibility="private")
    stop.click(None, cancels=[event], queue=False, api_visibility="private")
    return editor, prompt
