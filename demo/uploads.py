"""Pictures that people hand in: opened with care, or refused in a sentence."""

import json
import math

import gradio as gr
import numpy as np

from dalle_core import InputError
from dalle_core.studio.uploads import REFUSED, checked, open_picture
from demo.permalink import in_range, seed_in_range
from demo.run import MAX_PROMPT


def gated(component: gr.Image | gr.File | gr.UploadButton):
    """The component, which now hands on the path of the file as it came, when that is a visitor's upload or a picture made
    here, and refuses all others. Gradio itself would believe what a program says of a path, and open it."""

    def preprocess(payload):
        return None if payload is None else str(checked(payload.path or REFUSED, component.GRADIO_CACHE))

    component.preprocess = preprocess
    return component


def picture_input(label: str, name: str, height: int) -> gr.Image:
    """A component that takes a picture and hands on its file: gr.Image itself would open it, and fail in its own words."""
    return gated(gr.Image(
        label=label, type="filepath", sources=["upload", "webcam", "clipboard"], elem_id=name, height=height, buttons=[],
        alt_text=label,
    ))  # fmt: skip


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
