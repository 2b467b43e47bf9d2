"""Permalinks: a prompt and its settings as readable query parameters, and back with every value checked."""

from urllib.parse import urlencode

from dalle_core.errors import InputError
from dalle_core.recipe import Drawn
from dalle_core.request import Limits, number, text

# The link's names -> those of a request.
NUMBERS = {
    "seed": "seed",
    "candidates": "num_candidates",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "guidance": "guidance_scale",
}
NAMES = ("prompt", "negative", *NUMBERS)


def query(drawn: Drawn) -> str:
    """The query string that draws a candidate again; a variation's tokens do not fit a link."""
    request = drawn.request
    values = {"prompt": request.prompt, "seed": drawn.seed}
    if request.negative_prompt:
        values["negative"] = request.negative_prompt
    values |= {name: request.settings[key] for name, key in NUMBERS.items() if name != "seed"}
    return urlencode(values | {"model": request.model})


def read_query(parameters: dict[str, str], limits: Limits) -> tuple[dict, list[str]]:
    """(what the link sets, by the names of NAMES; the names whose values are not allowed). More candidates than this page
    draws in one go become the most that it does."""
    found, ignored = {}, []
    for name in NAMES:
        if name not in parameters:
            continue
        try:
            if name not in NUMBERS:
                found[name] = text(name, parameters[name])
            elif name == "candidates":
                asked = number("num_candidates", parameters[name], Limits(10**6, limits.grid_size, limits.codebook_size))
                found[name] = min(asked, limits.max_candidates)
            else:
                found[name] = number(NUMBERS[name], parameters[name], limits)
        except InputError:
            ignored.append(name)
    if "seed" in found:
        found["seed"] = str(found["seed"])  # JavaScript's numbers stop at 2**53
    return found, ignored
