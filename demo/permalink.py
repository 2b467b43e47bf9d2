"""Permalinks: a prompt and its settings as readable query parameters, and back with every value checked."""

import math
from urllib.parse import urlencode

from demo.run import MAX_PROMPT

# The link's names -> those of the pipeline's settings.
NAMES = {
    "candidates": "num_candidates", "temperature": "temperature", "top_k": "top_k", "top_p": "top_p",
    "guidance": "guidance_scale",
}  # fmt: skip
WHOLE = {"num_candidates", "top_k"}


def limits(pipe) -> dict[str, tuple[float, float]]:
    """Setting -> the lowest and highest value that the page's controls allow."""
    return {
        "num_candidates": (1, pipe.max_candidates), "temperature": (0, 2), "top_k": (0, pipe.codebook_size),
        "top_p": (0.05, 1), "guidance_scale": (0, 16),
    }  # fmt: skip


def in_range(name: str, value, pipe) -> int | float:
    """A setting as a number the controls allow. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(name)
    number = float(value)
    low, high = limits(pipe)[name]
    if not math.isfinite(number) or not low <= number <= high or (name in WHOLE and not number.is_integer()):
        raise ValueError(name)
    return int(number) if name in WHOLE else number


def seed_in_range(value) -> int:
    """A seed from 0 to 2**63 - 1, from a string of digits. Raises ValueError."""
    if not isinstance(value, str) or not value.isascii() or not value.isdigit() or len(value) > 19 or int(value) >= 2**63:
        raise ValueError("seed")
    return int(value)


def query(item: dict) -> str:
    """The query string that draws a candidate of the pool again."""
    request = item["request"]
    values = {"prompt": request["prompt"], "seed": item["seed"]}
    if request["negative_prompt"]:
        values["negative"] = request["negative_prompt"]
    values |= {name: request["settings"][key] for name, key in NAMES.items() if key in request["settings"]}
    return urlencode(values | {"model": request["model"]})


def read_query(parameters: dict[str, str], pipe) -> tuple[dict, list[str]]:
    """(what the link sets: prompt, negative, seed and the names of NAMES; the names whose values are not allowed)."""
    found, ignored = {}, []
    for name in ("prompt", "negative"):
        if name in parameters:
            if len(parameters[name]) <= MAX_PROMPT:
                found[name] = parameters[name]
            else:
                ignored.append(name)
    for name in ("seed", *NAMES):
        if name not in parameters:
            continue
        try:
            if name == "seed":
                found["seed"] = str(seed_in_range(parameters["seed"]))
            else:
                found[name] = in_range(NAMES[name], parameters[name], pipe)
        except (ValueError, OverflowError):
            ignored.append(name)
    return found, ignored
