"""The pool: all finished candidates of one prompt, ranked together, and how they are listed and plotted."""

import base64
import html
import json
import math
import secrets
import zipfile
from pathlib import Path

import numpy as np

from demo.permalink import query
from demo.pictures import file_name, new_folder

RANKED, SAMPLED = "CLIP's order", "Order of sampling"
MAX_POOL = 256  # candidates; "More" stops there


def ranked(items: list[dict]) -> list[dict]:
    """The candidates best first, with their ranks and one pool id; without scores in the order of sampling."""

    def key(item):
        return (0 if item["score"] is None else -item["score"], item["seed"], item["index"])

    order = sorted(items, key=key)
    several = len({item["seed"] for item in items}) > 1
    name = items[0].get("pool") or secrets.token_hex(8)
    return [item | {"rank": rank, "pool": name, "several": several} for rank, item in enumerate(order, 1)]


def label(item: dict) -> str:
    """The caption of a candidate; in a pool of several seeds it names the seed."""
    seed = f" · seed {item['seed']}" if item.get("several") else ""
    if item["score"] is None:
        return f"{item['index'] + 1}{seed}"
    return f"#{item['rank']} · {item['score']:.3f}{seed}"


def in_order(items: list[dict], order: str, best: int = MAX_POOL, rejected: bool = False) -> list[dict]:
    """The `best` candidates by rank, or with `rejected` the others, in the order that is asked for."""
    shown = [item for item in items if (item["rank"] > best) == bool(rejected)]
    return shown if order == RANKED else sorted(shown, key=lambda item: (item["seed"], item["index"]))


def gallery_items(items: list[dict], order: str, best: int = MAX_POOL, rejected: bool = False) -> list[tuple[str, str]]:
    return [(item["path"], label(item)) for item in in_order(items, order, best, rejected)]


def plot(items: list[dict], chosen: dict) -> str:
    """The pool's CLIP scores as an SVG, each a tick, the chosen one marked; "" without scores."""
    scores = [item["score"] for item in items if item["score"] is not None]
    if len(scores) < 2 or chosen["score"] is None:
        return ""
    low, high = min(scores), max(scores)

    def x(score: float) -> float:
        return 10 + 280 * (score - low) / ((high - low) or 1)

    ticks = "".join(f'<line x1="{x(s):.1f}" x2="{x(s):.1f}" y1="14" y2="30"/>' for s in scores)
    return (
        '<svg class="scores" viewBox="0 0 300 48" role="img" aria-label="CLIP scores of the pool; the chosen one is marked">'
        f'<g stroke="currentColor" stroke-width="2" opacity=".45">{ticks}</g>'
        f'<circle cx="{x(chosen["score"]):.1f}" cy="22" r="6" fill="#e8590c"/>'
        f'<g fill="currentColor" font-size="11"><text x="10" y="45">{low:.3f}</text>'
        f'<text x="290" y="45" text-anchor="end">{high:.3f}</text></g></svg>'
    )


def facts(chosen: dict, items: list[dict]) -> str:
    """What is known of the chosen candidate: a table, the pool's scores, and the link that Copy link copies."""
    score = "–" if chosen["score"] is None else f"{chosen['score']:.3f}"
    rows = {"CLIP score": score, "rank": chosen["rank"], "seed": chosen["seed"], "number": chosen["index"]}
    cells = "".join(f"<tr><td>{name}</td><td>{html.escape(str(value))}</td></tr>" for name, value in rows.items())
    # A variation's kept tokens do not fit a link.
    link = "" if chosen["request"].get("varied") else f'<a id="permalink" href="?{html.escape(query(chosen))}">link to it</a>'
    return f"<table>{cells}</table>{plot(items, chosen)}{link}"


def manifest_line(item: dict) -> dict:
    """A candidate's file and recipe."""
    tokens = np.frombuffer(base64.b64decode(item["tokens"]), "<u2")
    return {"file": Path(item["path"]).name, **{key: value for key, value in item["request"].items() if key != "varied"},
            **{key: item[key] for key in ("rank", "score", "seed", "index")}, "tokens": tokens.reshape(math.isqrt(tokens.size), -1).tolist()}  # fmt: skip


def archive(items: list[dict], cache: str, save_recipe: bool = True) -> Path:
    """A zip of the pool's pictures, in a new folder below `cache`; with a manifest, `recipes.json`, if that is wanted."""
    best = items[0]
    folder = new_folder(cache)
    path = folder / file_name(best["request"]["prompt"], best["seed"], len(items)).replace(".png", ".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as zip_:  # PNGs are compressed already
        for item in items:
            zip_.write(item["path"], Path(item["path"]).name)
        if save_recipe:
            zip_.writestr("recipes.json", json.dumps([manifest_line(item) for item in items], ensure_ascii=False, indent=1))
    return path
