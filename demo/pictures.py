"""Pictures as the page saves them: every candidate of a drawing."""

import secrets
from pathlib import Path

from dalle_core.pictures import SHOWN, enlarge, file_name, recipe, save_png

__all__ = ["SHOWN", "enlarge", "file_name", "new_folder", "recipe", "save_all", "save_png"]


def new_folder(cache: str) -> Path:
    """A new folder below `cache`. Who knows a file's address can read it, so nobody can guess the folder's name."""
    folder = Path(cache) / secrets.token_urlsafe(16)
    folder.mkdir(mode=0o700, parents=True)
    return folder


def save_all(generation, model: str, cache: str, save_recipe: bool = True, revision: str = "", varied: bool = False) -> list[Path]:
    """Every candidate as PNG in a new folder below `cache`, with its recipe if that is wanted; the others as of `recipe`."""
    folder = new_folder(cache)
    return [
        save_png(enlarge(candidate.image), recipe(generation, candidate, model, revision, varied), folder, save_recipe)
        for candidate in generation.candidates
    ]
