"""The history: what a person drew, as settings and tokens, in their own browser. The server keeps nothing of it.

An entry is JSON: id, model, revision, prompt, negative_prompt, settings, varied, and candidates of {seed, index, score, tokens}. Seeds
are strings, as JavaScript's numbers stop at 2**53; tokens are base64 of little-endian uint16. `history.js` stores the entries,
one localStorage key each.
"""

import base64
import json
import math
from collections.abc import Iterator

import numpy as np
import torch

from dalle_core import InputError
from demo import pool, static
from demo.permalink import in_range, seed_in_range
from demo.pictures import enlarge, new_folder, save_png
from demo.run import MAX_PROMPT

MAX_ENTRY = 2_000_000  # characters of JSON
HEAD = f"<style>{static.read('history.css')}</style><script>{static.read('history.js')}</script>"

FOLD = (
    '<details id="history"><summary>History (<span id="history-count">0</span>)</summary><div id="history-body"></div></details>'
)


def pack(tokens: list[list[int]]) -> str:
    """Tokens [grid, grid] -> base64 of little-endian uint16."""
    return base64.b64encode(np.asarray(tokens, "<u2").tobytes()).decode()


def unpack(text: str, pipe) -> torch.Tensor:
    """Tokens [grid, grid] of the loaded model. Raises ValueError."""
    flat = np.frombuffer(base64.b64decode(text, validate=True), "<u2")
    if flat.size != pipe.grid_size**2 or flat.max() >= pipe.codebook_size:
        raise ValueError("tokens")
    return torch.from_numpy(flat.astype(np.int64)).view(pipe.grid_size, pipe.grid_size)


def to_entry(items: list[dict]) -> str:
    """A pool as the JSON of an entry."""
    request = items[0]["request"]
    candidates = [
        {"seed": str(item["seed"]), "index": item["index"], "score": item["score"], "tokens": item["tokens"]} for item in items
    ]
    return json.dumps({"version": 1, "id": items[0]["pool"], **request, "candidates": candidates}, ensure_ascii=False)


def read_entry(text: str, pipe) -> dict:
    """An entry as it came from a browser, checked against the loaded model; tokens are tensors, seeds numbers.

    Raises InputError: damaged, forged, or another model's.
    """
    damaged = InputError("This entry of the history is damaged and cannot be opened. Delete it, or import it again.")
    if not isinstance(text, str) or len(text) > MAX_ENTRY:
        raise damaged
    try:
        entry = json.loads(text)
        model, prompt, negative = entry["model"], entry["prompt"], entry["negative_prompt"]
        rows, name = entry["candidates"], entry["id"]
        if not all(isinstance(value, str) for value in (model, prompt, negative, name)) or not isinstance(rows, list):
            raise ValueError("types")
        if not prompt.strip() or max(len(prompt), len(negative)) > MAX_PROMPT or not 1 <= len(rows) <= pool.MAX_POOL:
            raise ValueError("sizes")
        if not name.isascii() or not name.isalnum() or len(name) > 32:
            raise ValueError("id")
        if model != pipe.name:
            raise InputError(f"This entry was drawn by the model {model[:60]!r}; choose that model first, or use its prompt.")
        if entry.get("revision", "") != pipe.revision:
            raise InputError(f"This entry was drawn by another version of the model {model[:60]!r}: only its prompt can be used.")
        settings = {key: in_range(key, entry["settings"][key], pipe) for key in pipe.defaults}
        candidates = [_candidate(row, pipe) for row in rows]
        if len({(row["seed"], row["index"]) for row in candidates}) < len(candidates):
            raise ValueError("twice the same")
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise damaged from None
    request = {"model": model, "revision": pipe.revision, "prompt": prompt, "negative_prompt": negative, "settings": settings,
               "varied": entry.get("varied") is True}  # fmt: skip
    return {"id": name, "request": request, "candidates": candidates}


def _candidate(row: dict, pipe) -> dict:
    index, score = row["index"], row["score"]
    if type(index) is not int or not 0 <= index < pipe.max_candidates:
        raise ValueError("index")
    if score is not None and (type(score) not in (int, float) or not math.isfinite(score) or abs(score) > 1.01):
        raise ValueError("score")
    return {"seed": seed_in_range(row["seed"]), "index": index, "score": score, "tokens": unpack(row["tokens"], pipe)}


def draw_again(entry: dict, pipe, cache: str, save_recipe: bool = True) -> Iterator[list[dict]]:
    """Decodes an entry's tokens; yields the pictures' items so far, the whole ranked pool last."""
    folder, request, items = new_folder(cache), entry["request"], []
    for row in entry["candidates"]:
        tokens = row["tokens"].tolist()
        recipe = {key: request[key] for key in ("model", "revision", "varied", "prompt", "negative_prompt", "settings")}
        recipe |= {key: row[key] for key in ("seed", "index", "score")} | {"tokens": tokens}
        path = save_png(enlarge(pipe.decode(row["tokens"])), recipe, folder, save_recipe)
        items.append({"path": str(path), "score": row["score"], "seed": row["seed"], "index": row["index"],
                      "tokens": pack(tokens), "request": request, "pool": entry["id"]})  # fmt: skip
        if len(items) < len(entry["candidates"]):
            yield items
    yield pool.ranked(items)
