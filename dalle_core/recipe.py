"""What it takes to see a drawn candidate again: its request, its place among the candidates, its tokens.

A PNG holds one in its text chunk "dalle", an entry of the history many of one request: the same fields, read here.
"""

import base64
import json
import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from dalle_core.errors import InputError
from dalle_core.lora import lora_of
from dalle_core.request import MAX_SEED, DrawingRequest, Limits, from_json, token_grid

MAX_INDEX = 10**6  # of a candidate; wherever it was drawn, more were never drawn in one go
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)  # what forged JSON may raise


@dataclass(frozen=True)
class Drawn:
    """A candidate that was drawn. (request, seed, index) names it; its tokens are the picture."""

    request: DrawingRequest
    seed: int
    index: int  # in the order of sampling
    score: float | None  # CLIP's cosine with the prompt
    tokens: torch.Tensor  # [grid, grid]
    varied: bool = False  # some tokens were given, so that prompt, seed and settings alone make another picture

    def to_json(self) -> dict:
        """As a PNG holds it, and as the endpoints answer."""
        return self.request.to_json() | {
            "varied": self.varied,
            "seed": self.seed,
            "index": self.index,
            "score": self.score,
            "tokens": self.tokens.tolist(),
        }


def drawn(generation, model: str = "", revision: str = "", varied: bool = False) -> list[Drawn]:
    """The candidates of a `Generation`, best first."""
    request = DrawingRequest(
        generation.prompt, generation.negative_prompt, model=model, revision=revision, **generation.settings
    )
    return [Drawn(request, one.seed, one.index, one.score, one.tokens, varied) for one in generation.candidates]


def read_recipe(text: str, pipe_name: str, revision: str, limits: Limits) -> Drawn:
    """The recipe of a PNG, checked against the loaded model.

    Raises InputError when it is cut or forged, or when it is another model's.
    """
    damaged = InputError("The recipe in this picture is damaged.")
    try:
        saved = json.loads(text)
        model, version = saved["model"], saved.get("revision", "")
        if not isinstance(model, str) or not isinstance(saved["prompt"], str):
            raise ValueError("texts")
    except DAMAGED:
        raise damaged from None
    if model != pipe_name and lora_of(model):
        raise InputError(
            f"This picture was drawn with the LoRA {lora_of(model)[:60]!r}: choose the model {model[:60]!r}, or start the page "
            "with --lora."
        )
    if model != pipe_name:
        raise InputError(f"This picture was drawn by the model {model[:60]!r}; choose that model first.")
    if version != revision:
        raise InputError(
            f"This picture was drawn by another version of the model {model[:60]!r}, so it cannot be drawn again exactly. Its "
            f"prompt: “{saved['prompt'][:200]}”"
        )
    try:
        request, varied = from_json(saved, limits)
        place = read_place(saved)
    except DAMAGED:
        raise damaged from None
    try:
        tokens = token_grid(saved["tokens"], limits)
    except DAMAGED:
        raise InputError("The recipe in this picture is damaged: its tokens are not this model's.") from None
    return Drawn(replace(request, seed=place["seed"]), tokens=tokens, varied=varied, **place)


def read_place(saved: dict) -> dict:
    """seed, index and score of a saved candidate. Raises ValueError, KeyError or TypeError for what cannot be."""
    seed, index, score = saved["seed"], saved["index"], saved.get("score")
    if isinstance(seed, str) and seed.isascii() and seed.isdigit() and len(seed) <= 19:
        seed = int(seed)  # JavaScript's numbers stop at 2**53
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise ValueError("seed")
    if type(index) is not int or not 0 <= index < MAX_INDEX:
        raise ValueError("index")
    if score is not None and (type(score) not in (int, float) or not math.isfinite(score) or abs(score) > 1.01):
        raise ValueError("score")
    return {"seed": seed, "index": index, "score": None if score is None else float(score)}


def pack(tokens: torch.Tensor) -> str:
    """Tokens [grid, grid] -> base64 of little-endian uint16, as the history holds them."""
    return base64.b64encode(np.asarray(tokens, "<u2").tobytes()).decode()


def unpack(text: str, limits: Limits) -> torch.Tensor:
    """Tokens [grid, grid] of the loaded model. Raises ValueError (InputError is one) for anything else."""
    flat = np.frombuffer(base64.b64decode(text, validate=True), "<u2")
    if flat.size != limits.grid_size**2:
        raise ValueError("tokens")
    return token_grid(flat.astype(np.int64).reshape(limits.grid_size, limits.grid_size), limits)
