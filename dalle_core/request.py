"""One description of a drawing, one set of limits, one check, and one way to and from JSON.

Everything that names a drawing goes through here: `DallePipeline.stream`, the page's controls, recipes in PNGs, links,
entries of the history, the endpoints, the command line and the rows of a CSV. So what one of them accepts, all accept.
"""

import operator
import re
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from dalle_core.errors import InputError

MAX_PROMPT = 20_000  # characters; what is beyond is far past what any model reads, and would fill every PNG
MAX_SEED = 2**63 - 1
SETTINGS = ("num_candidates", "temperature", "top_k", "top_p", "guidance_scale")
WHOLE = ("num_candidates", "top_k", "seed", "preview_every", "rows", "count")


@dataclass(frozen=True)
class Limits:
    """What a loaded model, and the mode that the page is in, allow."""

    max_candidates: int  # in one go
    grid_size: int  # tokens a side
    codebook_size: int

    def range(self, name: str) -> tuple[float, float]:
        """The lowest and the highest value of a number, both allowed."""
        return {
            "num_candidates": (1, self.max_candidates),
            "seed": (0, MAX_SEED),
            "temperature": (0.0, 100.0),
            "top_k": (0, self.codebook_size),
            "top_p": (0.0, 1.0),
            "guidance_scale": (0.0, 100.0),
            "preview_every": (0, 10**6),
            "rows": (1, self.grid_size - 1),
            "count": (1, 10**6),
            "threshold": (-1.0, 1.0),
        }[name]


@dataclass(frozen=True)
class DrawingRequest:
    """What is to be drawn. None: the model's own default; for the seed, a new one.

    image_tokens and keep go together, both [grid, grid]: where keep is true the token stays, the others are drawn
    (completion and variation). model and revision name the weights, for whoever keeps the request.
    """

    prompt: str
    negative_prompt: str = ""
    num_candidates: int | None = None
    seed: int | None = None
    temperature: float | None = None  # 0 is greedy
    top_k: int | None = None  # 0 keeps every token
    top_p: float | None = None  # 1 keeps every token
    guidance_scale: float | None = None  # 1 is unguided
    image_tokens: torch.Tensor | None = field(default=None, compare=False)
    keep: torch.Tensor | None = field(default=None, compare=False)
    model: str = ""
    revision: str = ""

    @property
    def settings(self) -> dict:
        """The numbers of SETTINGS."""
        return {name: getattr(self, name) for name in SETTINGS}

    @property
    def varied(self) -> bool:
        """Whether some tokens are given, so that prompt, seed and settings alone make another picture."""
        return self.keep is not None

    def checked(self, limits: Limits, defaults: dict) -> "DrawingRequest":
        """The same with every number within the limits, the model's `defaults` where it names none, and tokens as tensors.

        Raises InputError naming the field, its value and what is allowed.
        """
        prompt, negative = (
            text(name, value[:MAX_PROMPT] if isinstance(value, str) else value)
            for name, value in (("prompt", self.prompt), ("negative_prompt", self.negative_prompt))
        )
        numbers = {
            name: number(name, defaults[name] if value is None else value, limits) for name, value in self.settings.items()
        }
        seed = None if self.seed is None else number("seed", self.seed, limits)
        image_tokens, keep = forced(self.image_tokens, self.keep, limits)
        return replace(
            self, prompt=prompt, negative_prompt=negative, seed=seed, image_tokens=image_tokens, keep=keep, **numbers
        )

    def to_json(self) -> dict:
        """As recipes and entries of the history hold it: all but the seed and the tokens, which a candidate has of its own."""
        return {
            "model": self.model,
            "revision": self.revision,
            "varied": self.varied,
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "settings": self.settings,
        }


def from_json(saved: dict, limits: Limits) -> tuple[DrawingRequest, bool]:
    """(the request that `to_json` described, whether tokens were given). More candidates than one go allows here are no
    fault: what was saved is not drawn again, so the number becomes the most that is allowed.

    Raises ValueError (InputError is one), KeyError or TypeError for what `to_json` cannot have written.
    """
    settings = dict(saved["settings"])
    count = number("num_candidates", settings["num_candidates"], replace(limits, max_candidates=10**6))
    numbers = {name: number(name, settings[name], limits) for name in SETTINGS if name != "num_candidates"}
    request = DrawingRequest(
        text("prompt", saved["prompt"]),
        text("negative_prompt", saved.get("negative_prompt", "")),
        num_candidates=min(count, limits.max_candidates),
        model=text("model", saved["model"]),
        revision=text("revision", saved.get("revision", "")),
        **numbers,
    )
    return request, saved.get("varied") is True


def text(name: str, value) -> str:
    """The value, if it is text of a sensible length. Raises InputError."""
    if not isinstance(value, str):
        raise InputError(f"{name} must be text.")
    if len(value) > MAX_PROMPT:
        raise InputError(f"{name} has {len(value):,} characters; {MAX_PROMPT:,} are the most.")
    return value


def number(name: str, value, limits: Limits) -> Any:
    """A number of a request (an int, or for some names a float) within its limits; digits as text, from a link or a box,
    are numbers too.

    Raises InputError naming what is allowed.
    """
    low, high = limits.range(name)
    whole = name in WHOLE
    above = name == "top_p"  # none of the tokens would be left at 0
    bounds = f"above {low:g} up to {high:g}" if above else f"from {low} to {high}" if whole else f"from {low:g} to {high:g}"
    wrong = InputError(f"{name} is {str(value)[:60]!r}; it must be a {'whole ' * whole}number {bounds}.")
    if isinstance(value, bool) or value is None:
        raise wrong
    try:
        found = _whole(value) if whole else float(value)
    except (TypeError, ValueError, OverflowError):
        raise wrong from None
    if not (low < found if above else low <= found) or not found <= high:  # NaN fails too
        raise wrong
    return found


def _whole(value) -> int:
    if isinstance(value, str):
        if not re.fullmatch(r"-?[0-9]{1,40}", value.strip()):
            raise ValueError
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return operator.index(value)


def forced(image_tokens, keep, limits: Limits) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Tokens that are given, and which of them stay, as tensors [grid, grid] (int64, bool), or two None.

    Raises InputError for other shapes, kinds or numbers.
    """
    if image_tokens is None and keep is None:
        return None, None
    if image_tokens is None or keep is None:
        raise InputError("image_tokens and keep go together: the tokens, and which of them stay.")
    keep = _grid("keep", keep, limits)
    if keep.dtype != torch.bool:
        raise InputError(f"keep must be boolean (true where the token stays), not {keep.dtype}.")
    return token_grid(image_tokens, limits), keep


def token_grid(image_tokens, limits: Limits) -> torch.Tensor:
    """Tokens of a whole picture as a tensor [grid, grid], int64. Raises InputError for other shapes, kinds or numbers."""
    image_tokens = _grid("image_tokens", image_tokens, limits)
    if image_tokens.is_floating_point() or image_tokens.is_complex() or image_tokens.dtype == torch.bool:
        raise InputError(f"image_tokens must be whole numbers, not {image_tokens.dtype}.")
    image_tokens = image_tokens.long()
    if image_tokens.min() < 0 or image_tokens.max() >= limits.codebook_size:
        raise InputError(
            f"image_tokens holds {image_tokens.min().item()} to {image_tokens.max().item()}; this model's tokens are "
            f"0 to {limits.codebook_size - 1}."
        )
    return image_tokens


def half_kept(seed: int, grid_size: int) -> torch.Tensor:
    """Which tokens a variation keeps [grid, grid]: every second one, at random."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    keep = torch.zeros(grid_size * grid_size, dtype=torch.bool)
    keep[torch.randperm(grid_size * grid_size, generator=generator)[: grid_size * grid_size // 2]] = True
    return keep.view(grid_size, grid_size)


def _grid(name: str, value, limits: Limits) -> torch.Tensor:
    shape = (limits.grid_size, limits.grid_size)
    try:
        value = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise InputError(f"{name} must be a grid of numbers {shape}, as a tensor or as lists.") from None
    if tuple(value.shape) != shape:
        raise InputError(f"{name} has the shape {tuple(value.shape)}; this model's grid is {shape}.")
    return value
