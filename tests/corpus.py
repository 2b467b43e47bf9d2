"""A made-up emoji corpus, as `dalle_core.training.emoji_icons` prepares the real one."""

import json
from pathlib import Path

import numpy as np

STYLES = ["noto", "blob", "twemoji", "fluent"]
# Real code points, so that they have their real names: fox, cat, apple, banana, pizza, robot, red heart, blue heart.
CONCEPTS = ["1F98A", "1F408", "1F34E", "1F34C", "1F355", "1F916", "2764", "1F499"]


def make_corpus(folder: Path) -> Path:
    """Eight things in four styles: squares of the thing's colour, in each style of another size."""
    icons = [{"concept": concept, "style": style, "name": concept} for concept in CONCEPTS for style in STYLES]
    sprites = np.zeros((len(icons), 64, 64, 4), np.uint8)
    for n in range(len(icons)):
        thing, edge = n // 4, 4 + 3 * (n % 4)
        colour = (255 * (thing % 2), 255 * (thing // 2 % 2), 255 * (thing // 4), 255)
        sprites[n, edge : 64 - edge, edge : 64 - edge] = colour
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "sprites.npy", sprites)
    concepts = {concept: {"en": [concept.lower()], "zh": [concept]} for concept in CONCEPTS}
    (folder / "icons.json").write_text(json.dumps({"icons": icons, "concepts": concepts}), encoding="utf-8")
    return folder
