"""Pictures as the page shows and saves them: every candidate of a drawing."""

import base64
import io
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dalle_core.pictures import SHOWN, enlarge, file_name, recipe, save_png

__all__ = ["SHOWN", "enlarge", "file_name", "new_folder", "preview_grid", "recipe", "save_all", "save_png"]


def new_folder(cache: str) -> Path:
    """A new folder below `cache`. Who knows a file's address can read it, so nobody can guess the folder's name."""
    folder = Path(cache) / secrets.token_urlsafe(16)
    folder.mkdir(mode=0o700, parents=True)
    return folder


def save_all(generation, model: str, cache: str, save_recipe: bool = True, revision: str = "", varied: bool = False) -> list[Path]:
    """Every candidate as PNG in a new folder below `cache`, with its recipe if that is wanted; the others as of `recipe`."""
    folder = new_folder(cache)

    def save(candidate):
        return save_png(enlarge(candidate.image), recipe(generation, candidate, model, revision, varied), folder, save_recipe)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(save, generation.candidates))


def preview_grid(images: list) -> str:
    """Unfinished pictures as HTML that holds them all: a file and a request for each would slow the drawing down."""
    cells = []
    for image in images:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=90)
        cells.append(f'<img alt="" decoding="sync" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">')
    return f'<div class="preview-grid">{"".join(cells)}</div>'
