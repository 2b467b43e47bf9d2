"""The seamless tile of a chosen picture: copies of it side by side show no edges."""

import gradio as gr
from PIL import Image

from dalle_core import InputError, ModelError
from dalle_core.pictures import enlarge, file_name, png
from demo import history, run
from demo.gpu import on_gpu
from demo.models import Models
from demo.pictures import new_folder

COPIES = 3  # a side, in the preview


def tiled(tile: Image.Image) -> Image.Image:
    """COPIES x COPIES copies of a picture."""
    sheet = Image.new("RGB", (COPIES * tile.width, COPIES * tile.height))
    for row in range(COPIES):
        for column in range(COPIES):
            sheet.paste(tile, (column * tile.width, row * tile.height))
    return sheet


def build(models: Models, button: gr.Button, kept: gr.State, path: gr.State) -> None:
    """Adds what `button` shows of the chosen picture, the one of `kept` that is at `path`."""
    with gr.Column(elem_id="tile-shown"):
        preview = gr.Image(
            show_label=False, label="The seamless tile, nine times", interactive=False, format="png", elem_id="tiled",
            buttons=["fullscreen"], alt_text="The seamless tile, nine times",
        )  # fmt: skip
        with gr.Row():
            download = gr.DownloadButton("Download the tile", elem_id="tile-download", min_width=120)
            close = gr.Button("Hide", elem_id="tile-hide", min_width=80)

    @on_gpu(30)
    def make(items, path):
        try:
            item = next((item for item in items if item["path"] == path), None)
            if item is None:
                raise InputError("Choose a picture first.")
            with models.drawing(models.source) as pipe:
                if item["request"]["model"] != pipe.name:
                    name = item["request"]["model"]
                    raise InputError(f"This picture was drawn by the model {name!r}; choose that model first.")
                tile = enlarge(pipe.tile(history.unpack(item["tokens"], pipe)))
            folder = new_folder(preview.GRADIO_CACHE)
            name = file_name(item["request"]["prompt"], item["seed"], item["index"]).replace(".png", "_tile.png")
            # Without a recipe: dropped on the page, it would come back as the picture and not as the tile.
            (folder / name).write_bytes(png(tile, None))
        except (InputError, ModelError) as error:
            raise run.sentence(error) from None
        except OSError as error:
            raise gr.Error(f"The pictures could not be saved: {error.strerror or error}.", print_exception=False) from None
        return tiled(tile), str(folder / name)

    button.click(make, [kept, path], [preview, download], api_visibility="private", concurrency_limit=2)
    close.click(lambda: None, None, preview, queue=False, api_visibility="private")
    path.change(lambda: None, None, preview, queue=False, show_progress="hidden", api_visibility="private")
