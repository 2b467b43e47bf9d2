"""The seamless tile of a chosen picture: copies of it side by side show no edges."""

import gradio as gr
from PIL import Image

from dalle_core import InputError
from dalle_core.studio.studio import Studio
from demo.handlers import QUIET
from demo.public import visitor

COPIES = 3  # a side, in the preview


def tiled(tile: Image.Image) -> Image.Image:
    """COPIES x COPIES copies of a picture."""
    sheet = Image.new("RGB", (COPIES * tile.width, COPIES * tile.height))
    for row in range(COPIES):
        for column in range(COPIES):
            sheet.paste(tile, (column * tile.width, row * tile.height))
    return sheet


def build(studio: Studio, button: gr.Button, chosen: gr.State) -> None:
    """Adds what `button` shows of the chosen picture."""
    with gr.Column(elem_id="tile-shown", elem_classes="unused") as column:
        preview = gr.Image(
            show_label=False,
            label="The seamless tile, nine times",
            interactive=False,
            format="png",
            elem_id="tiled",
            buttons=["fullscreen"],
            alt_text="The seamless tile, nine times",
        )
        with gr.Row():
            download = gr.DownloadButton("Download the tile", elem_id="tile-download", min_width=120)
            close = gr.Button("Hide", elem_id="tile-hide", min_width=80)

    def make(request: gr.Request, picture):
        if picture is None:
            raise InputError("Choose a picture first.")
        tile, path = studio.tile(visitor(request), picture)
        return {column: gr.update(elem_classes=[]), preview: tiled(tile), download: str(path)}

    def hide():
        return gr.update(elem_classes="unused")

    button.click(make, chosen, [column, preview, download], api_visibility="private", concurrency_limit=2)
    close.click(hide, None, column, **QUIET)
    chosen.change(hide, None, column, **QUIET)
