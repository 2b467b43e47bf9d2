"""Pictures that people hand in: opened with care, or refused in a sentence."""

import json
import math
import warnings
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image, UnidentifiedImageError

from dalle_core import InputError
from demo.permalink import in_range, seed_in_range
from demo.run import MAX_PROMPT

MAX_PIXELS = 40_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # decoders in wide use; a picture is never handed to any other


def picture_input(label: str, name: str, height: int) -> gr.Image:
    """A component that takes a picture and hands on the file's path as it came: gr.Image itself would open the file, and
    fail in its own words."""
    component = gr.Image(
        label=label, type="filepath", sources=["upload", "webcam", "clipboard"], elem_id=name, height=height, buttons=[],
        alt_text=label,
    )
    component.preprocess = lambda payload: payload.path if payload is not None else None
    return component


def open_picture(path: str | None) -> Image.Image:
    """The picture in a file, its first frame if it moves. Raises InputError: no file, no picture, too large, damaged."""
    if not path:
        raise InputError("Choose a picture first.")
    name = Path(path).name[:60]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # judged below, from the header alone
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                image.load()
                return image.copy()
    except Image.DecompressionBombError:
        most = MAX_PIXELS // 10**6
        raise InputError(f"{name} is too large: up to {most} million pixels are read. Make it smaller first.") from None
    except UnidentifiedImageError:
        raise InputError(f"{name} is not a picture this page can read: use PNG, JPEG, WebP, GIF or BMP.") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{name} is damaged and cannot be read ({str(error)[:80]}).") from None


def read_recipe(path: str | None, pipe) -> dict:
    """The recipe in a PNG that this page saved, checked against the loaded model.

    Raises InputError when there is none, when it is cut or forged, or when it is another model's.
    """
    image = open_picture(path)
    text = image.info.get("dalle")
    if not isinstance(text, str):
        raise InputError("This picture carries no recipe: only PNG files saved by this page do.")
    damaged = InputError("The recipe in this picture is damaged.")
    try:
        recipe = json.loads(text)
        tokens = np.asarray(recipe["tokens"])
        model, prompt, negative = recipe["model"], recipe["prompt"], recipe.get("negative_prompt", "")
        index, score, settings = recipe["index"], recipe.get("score"), recipe["settings"]
        seed = seed_in_range(str(recipe["seed"]))
        if not all(isinstance(words, str) and len(words) <= MAX_PROMPT for words in (model, prompt, negative)):
            raise ValueError("texts")
        if score is not None and (type(score) not in (int, float) or not math.isfinite(score)):
            raise ValueError("score")
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise damaged from None
    if model != pipe.name:
        raise InputError(f"This picture was drawn by the model {model[:60]!r}; choose that model first.")
    if recipe.get("revision", "") != pipe.revision:
        raise InputError(
            f"This picture was drawn by another version of the model {model[:60]!r}, so it cannot be drawn again exactly. Its "
            f"prompt: “{prompt[:200]}”"
        )
    try:  # only now: another model's limits are others
        if type(index) is not int or not 0 <= index < pipe.max_candidates:
            raise ValueError("index")
        settings = {key: in_range(key, settings[key], pipe) for key in pipe.defaults}
    except (ValueError, KeyError, TypeError, OverflowError):
        raise damaged from None
    grid = (pipe.grid_size, pipe.grid_size)
    if tokens.shape != grid or tokens.dtype.kind != "i" or tokens.min() < 0 or tokens.max() >= pipe.codebook_size:
        raise InputError("The recipe in this picture is damaged: its tokens are not this model's.")
    return {
        "prompt": prompt, "negative_prompt": negative, "seed": seed, "index": index, "settings": settings,
        "tokens": tokens.tolist(), "score": score, "varied": recipe.get("varied") is True,
    }  # fmt: skip
