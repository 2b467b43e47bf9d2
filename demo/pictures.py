"""Pictures as the page saves them: every candidate of a drawing."""

import tempfile
from pathlib import Path

from dalle_core.pictures import SHOWN, enlarge, file_name, recipe, save_png

__all__ = ["SHOWN", "enlarge", "file_name", "recipe", "save_all", "save_png"]


def save_all(generation, model: str, cache: str, save_recipe: bool = True, revision: str = "", varied: bool = False) -> list[Path]:
    """Every candidate as PNG in a new folder below `cache`, with its recipe if that is wanted; the others as of `recipe`."""
    Path(cache).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=cache))
    return [
        save_png(enlarge(candidate.image), recipe(generation, candidate, model, revision, varied), folder, save_recipe)
        for candidate in generation.candidates
    ]
