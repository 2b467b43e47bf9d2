"""Pictures as the page shows and saves them: enlarged, and as PNG files that carry their recipe."""

import json
import re
import tempfile
import zipfile
from pathlib import Path

from PIL import Image, ImageFilter, PngImagePlugin

SHOWN = 384  # pixels a side, at least


def enlarge(image: Image.Image) -> Image.Image:
    """Lanczos to a whole multiple of the size, then a little unsharp masking: crisp on flat colours and edges."""
    factor = -(-SHOWN // image.width)
    if factor <= 1:
        return image
    large = image.resize((image.width * factor, image.height * factor), Image.Resampling.LANCZOS)
    return large.filter(ImageFilter.UnsharpMask(radius=factor * 0.75, percent=60, threshold=2))


def recipe(generation, candidate, model: str) -> dict:
    """All that it takes to draw a candidate again, and its image tokens."""
    return {
        "model": model,
        "prompt": generation.prompt,
        "negative_prompt": generation.negative_prompt,
        "seed": candidate.seed,
        "index": candidate.index,
        "score": candidate.score,
        "settings": generation.settings,
        "tokens": candidate.tokens.tolist(),
    }


def file_name(prompt: str, seed: int, index: int) -> str:
    """"a red fox", 7, 3 -> "a-red-fox_seed7_3.png"; other characters than letters and digits become dashes."""
    words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-_")[:60]
    words = words.encode()[:180].decode(errors="ignore").strip("-") or "picture"  # file systems allow 255 bytes
    return f"{words}_seed{seed}_{index}.png"


def save_png(image: Image.Image, recipe: dict, folder: Path, save_recipe: bool = True) -> Path:
    """Writes the picture, with its recipe in the PNG text chunk "dalle" (JSON) if that is wanted."""
    info = PngImagePlugin.PngInfo()
    if save_recipe:
        info.add_text("dalle", json.dumps(recipe), zip=False)
    path = folder / file_name(recipe["prompt"], recipe["seed"], recipe["index"])
    image.save(path, pnginfo=info)
    return path


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
