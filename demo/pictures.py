"""Pictures as the page saves them: every candidate of a drawing, and all in one zip."""

import json
import tempfile
import zipfile
from pathlib import Path

from dalle_core.pictures import SHOWN, enlarge, file_name, recipe, save_png

__all__ = ["SHOWN", "enlarge", "file_name", "recipe", "save_all", "save_png"]


def save_all(generation, model: str, cache: str, save_recipe: bool = True) -> tuple[list[Path], Path]:
    """Every candidate as PNG, and a zip of them, in a new folder below `cache`; the recipes in the PNGs and in the zip's
    `recipes.json`, if that is wanted."""
    Path(cache).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=cache))
    recipes = [recipe(generation, candidate, model) for candidate in generation.candidates]
    paths = [
        save_png(enlarge(candidate.image), recipe_, folder, save_recipe)
        for candidate, recipe_ in zip(generation.candidates, recipes)
    ]
    archive = folder / file_name(generation.prompt, generation.seed, len(paths)).replace(".png", ".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as zip_:  # PNGs are compressed already
        for path in paths:
            zip_.write(path, path.name)
        if save_recipe:
            zip_.writestr("recipes.json", json.dumps(recipes, ensure_ascii=False, indent=1))
    return paths, archive
