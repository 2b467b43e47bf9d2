"""Pictures as they are saved: PNG files that carry their recipe, enlarged where people look at them."""

import io
import json
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, PngImagePlugin

SHOWN = 384  # pixels a side, at least


def enlarge(image: Image.Image, side: int = SHOWN) -> Image.Image:
    """At least `side` pixels a side: Lanczos to a whole multiple of the size, then a little unsharp masking, which is crisp on
    flat colours and edges."""
    factor = -(-side // image.width)
    if factor <= 1:
        return image
    large = image.resize((image.width * factor, image.height * factor), Image.Resampling.LANCZOS)
    return large.filter(ImageFilter.UnsharpMask(radius=factor * 0.75, percent=60, threshold=2))


def psnr(a: Image.Image, b: Image.Image) -> float:
    """Peak signal-to-noise ratio of two pictures of one size in dB, 10·log10(255² / MSE); 108 for the same picture twice."""
    squares = (np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2
    return float(10 * np.log10(255**2 / max(squares.mean(), 1e-6)))


def file_name(prompt: str, seed: int, index: int) -> str:
    """Such as a-red-fox_seed7_3.png for "a red fox", 7, 3; other characters than letters and digits become dashes."""
    words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-_")[:60]
    words = words.encode()[:180].decode(errors="ignore").strip("-") or "picture"  # file systems allow 255 bytes
    return f"{words}_seed{seed}_{index}.png"


def png(image: Image.Image, recipe: dict | None) -> bytes:
    """The picture as a PNG file with its recipe, if there is one, in the text chunk "dalle" (JSON)."""
    info = PngImagePlugin.PngInfo()
    if recipe:
        info.add_text("dalle", json.dumps(recipe), zip=False)
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=info, compress_level=4)  # several times as fast as the usual 6, hardly larger
    return file.getvalue()


def save_png(image: Image.Image, recipe: dict, folder: Path, save_recipe: bool = True) -> Path:
    """Writes the picture, with its recipe if that is wanted, into the folder under its `file_name`; another picture that
    has this name already stays, and the new one gets a number."""
    first = path = folder / file_name(recipe["prompt"], recipe["seed"], recipe["index"])
    content, number = png(image, recipe if save_recipe else None), 1
    while path.exists() and path.read_bytes() != content:
        number += 1
        path = first.with_stem(f"{first.stem}-{number}")
    path.write_bytes(content)
    return path
