"""The pool: all finished candidates of one prompt, ranked together; as files, as a zip, as an entry of the history."""

import json
import secrets
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from dalle_core.errors import InputError
from dalle_core.lora import lora_of
from dalle_core.pictures import enlarge, file_name, png
from dalle_core.recipe import DAMAGED, Drawn, pack, read_place, unpack
from dalle_core.request import Limits, from_json

MAX_POOL = 256  # candidates
MAX_ENTRY = 2_000_000  # characters of an entry's JSON


@dataclass(frozen=True)
class Picture:
    """A candidate of a pool, and its file on the server: in the model's own size, with its recipe if that is wanted."""

    drawn: Drawn
    path: str
    rank: int = 0  # from 1; 0: not ranked yet
    pool: str = ""  # the same for all of one pool
    several: bool = False  # whether the pool's candidates have several seeds

    def enlarged(self, save_recipe: bool = True) -> bytes:
        """The picture as a PNG for people, in a size that they can use. Raises InputError when its file has gone."""
        return png(enlarge(self.image()), self.drawn.to_json() if save_recipe else None)

    def image(self) -> Image.Image:
        """In the model's own size, RGB. Raises InputError when its file has gone."""
        try:
            with Image.open(self.path) as image:
                return image.convert("RGB")
        except OSError:
            raise InputError(
                "The server no longer has this picture: open it again from the history, or draw it again."
            ) from None

    def file_name(self, number: int | None = None) -> str:
        index = self.drawn.index if number is None else number
        return file_name(self.drawn.request.prompt, self.drawn.seed, index)


def ranked(pictures: list[Picture]) -> list[Picture]:
    """Best first, with their ranks and one pool id; without scores in the order of sampling."""

    def key(picture):
        return (-(picture.drawn.score or 0), picture.drawn.seed, picture.drawn.index)

    several = len({picture.drawn.seed for picture in pictures}) > 1
    name = pictures[0].pool or secrets.token_hex(8)
    return [
        replace(picture, rank=rank, pool=name, several=several) for rank, picture in enumerate(sorted(pictures, key=key), 1)
    ]


def archive(pictures: list[Picture], path: Path, save_recipe: bool = True) -> None:
    """Writes a zip of the pool's pictures, with a manifest, `recipes.json`, if recipes are wanted."""
    lines, names = [], set()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as zip_:  # PNGs are compressed already
        for picture in pictures:
            name = stem = picture.file_name()
            number = 1
            while name in names:  # the same seed and index, drawn with other settings
                number += 1
                name = stem.replace(".png", f"-{number}.png")
            names.add(name)
            zip_.writestr(name, picture.enlarged(save_recipe))
            lines.append({"file": name, "rank": picture.rank} | picture.drawn.to_json())
        if save_recipe:
            zip_.writestr("recipes.json", json.dumps(lines, ensure_ascii=False, indent=1))


def to_entry(pictures: list[Picture]) -> str:
    """A pool as the JSON of an entry of the history, which the visitor's browser keeps.

    Seeds are strings, as JavaScript's numbers stop at 2**53; tokens are base64 of little-endian uint16.
    """
    first = pictures[0]
    candidates = [
        {"seed": str(one.seed), "index": one.index, "score": one.score, "tokens": pack(one.tokens)}
        for one in (picture.drawn for picture in pictures)
    ]
    entry = {"version": 1, "id": first.pool} | first.drawn.request.to_json() | {"varied": first.drawn.varied}
    return json.dumps(entry | {"candidates": candidates}, ensure_ascii=False)


def read_entry(text: str, name: str, revision: str, limits: Limits) -> tuple[str, list[Drawn]]:
    """(id, candidates) of an entry as it came from a browser, checked against the loaded model's name and revision.

    Raises InputError: damaged, forged, or another model's.
    """
    damaged = InputError("This entry of the history is damaged and cannot be opened. Delete it, or import it again.")
    if not isinstance(text, str) or len(text) > MAX_ENTRY:
        raise damaged
    try:
        entry = json.loads(text)
        model, version, entry_id, rows = entry["model"], entry.get("revision", ""), entry["id"], entry["candidates"]
        if not all(isinstance(value, str) for value in (model, entry_id, entry["prompt"])) or not isinstance(rows, list):
            raise ValueError("types")
        if not entry["prompt"].strip() or not 1 <= len(rows) <= MAX_POOL:
            raise ValueError("sizes")
        if not entry_id.isascii() or not entry_id.isalnum() or len(entry_id) > 32:
            raise ValueError("id")
    except DAMAGED:
        raise damaged from None
    if model != name and lora_of(model):
        raise InputError(
            f"This entry was drawn with the LoRA {lora_of(model)[:60]!r}: choose the model {model[:60]!r}, or start the page "
            "with --lora."
        )
    if model != name:
        raise InputError(f"This entry was drawn by the model {model[:60]!r}; choose that model first, or use its prompt.")
    if version != revision:
        raise InputError(f"This entry was drawn by another version of the model {model[:60]!r}: only its prompt can be used.")
    try:
        request, varied = from_json(entry, limits)
        found = [Drawn(request, tokens=unpack(row["tokens"], limits), varied=varied, **read_place(row)) for row in rows]
        if len({(one.seed, one.index) for one in found}) < len(found):
            raise ValueError("twice the same")
    except DAMAGED:
        raise damaged from None
    return entry_id, found
