"""The corpus of the embedded model: captioned pictures drawn from openly licensed emoji sets.

`python -m dalle_core.training.emoji` prepares the icons (see `emoji_icons`). `EmojiCorpus` then draws picture i from its
own random numbers, so a corpus of a million captioned pictures takes no more room than its icons: single icons, pairs,
counts, sizes and positions, in a named style, on a named background, captioned in English or Chinese (`emoji_words`).

Kept out of training, by fixed rules: 5 % of the (icon, style) pairs whose icon exists in at least three other styles
(`held_out_style`), and 10 % of the pairings of icons (`held_out_pairing`).
"""

import argparse
import copy
import hashlib
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from dalle_core.errors import InputError
from dalle_core.training import emoji_words as words
from dalle_core.training.emoji_icons import prepare
from dalle_core.training.emoji_pack import pack, unpack
from dalle_core.training.emoji_words import BACKGROUNDS

IMAGE_SIZE = 96  # of a picture, where nothing else is asked for

# Where icons stand, as (centre x, centre y, size) in shares of the picture, and which of the things stands there. Fixed
# places: a small model should spend its samples on what things look like, not on where they are. Those of one size are
# whole token cells apart (12 pixels of 192; those of size 0.46 also 8 of 96), so that an icon has the same tokens in each.
PLACES = {
    "single": [(0.5, 0.5, 0.80, 0)],
    "small": [(0.5, 0.5, 0.46, 0)],
    "pair": [(0.25, 0.5, 0.46, 0), (0.75, 0.5, 0.46, 1)],
    "above": [(0.5, 0.25, 0.46, 0), (0.5, 0.75, 0.46, 1)],
    "two": [(0.25, 0.5, 0.46, 0), (0.75, 0.5, 0.46, 0)],
    "three": [(0.1875, 0.5, 0.30, 0), (0.5, 0.5, 0.30, 0), (0.8125, 0.5, 0.30, 0)],
    "two and one": [(0.25, 0.25, 0.46, 0), (0.75, 0.25, 0.46, 0), (0.5, 0.75, 0.46, 1)],
}
KINDS = {  # share of each in the corpus
    "single": 0.55,
    "pair": 0.27,
    "above": 0.05,
    "small": 0.03,
    "two": 0.04,
    "three": 0.03,
    "two and one": 0.03,
}
OF_TWO = {kind for kind, places in PLACES.items() if any(which for *_, which in places)}  # kinds that show two things


def _hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, whatever the machine or the Python."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def held_out_style(concept: str, style: str, styles_of_concept) -> bool:
    """Whether this icon in this style is kept out of all training."""
    return len(set(styles_of_concept) - {style}) >= 3 and _hash(f"style {concept} {style}") < 0.05


def held_out_pairing(a: str, b: str) -> bool:
    """Whether pictures of these two icons together are kept out of all training."""
    return _hash("pairing " + " ".join(sorted((a, b)))) < 0.10


def draw(sprites: list[Image.Image], kind: str, background: str, image_size: int = IMAGE_SIZE) -> Image.Image:
    """One or two RGBA sprites -> an RGB picture of image_size x image_size; `kind` is a key of PLACES."""
    picture = Image.new("RGB", (image_size, image_size), BACKGROUNDS[background][1])
    for x, y, size, which in PLACES[kind]:
        pixels = round(size * image_size)
        small = sprites[which].resize((pixels, pixels), Image.Resampling.LANCZOS)
        picture.paste(small, (round(x * image_size - pixels / 2), round(y * image_size - pixels / 2)), small)
    return picture


class EmojiCorpus:
    """A million captioned pictures, each drawn when it is asked for: `corpus[i]` is `(PIL RGB image, caption)`.

    Picture i depends on (seed, i) alone. `held_out` draws what evaluation asks for.
    """

    name, licence = "emoji", "Apache-2.0, CC-BY-4.0, MIT"
    held_out_kinds = ("style", "pairing")
    evaluated_kinds = ("trained", *held_out_kinds)
    block = 1  # with more, that many pictures in a row are alike, see `contrast`

    def __init__(self, folder: str | Path = "data/emoji", seed: int = 0, length: int = 1_000_000, image_size: int = IMAGE_SIZE):
        self.folder, self.seed, self.length, self.image_size = Path(folder), seed, length, image_size
        if not (self.folder / "sprites.npy").exists():
            raise FileNotFoundError(
                f"{self.folder} has no sprites.npy: run `python -m dalle_core.training.emoji --folder {self.folder}`"
            )
        index = json.loads((self.folder / "icons.json").read_text(encoding="utf-8"))
        self.icons = index["icons"]
        self.things = words.things(index["concepts"])  # concept -> how it is called
        self.sprites = np.load(self.folder / "sprites.npy", mmap_mode="r")
        self.by_concept = defaultdict(dict)  # concept -> style -> icon number
        for number, icon in enumerate(self.icons):
            self.by_concept[icon["concept"]][icon["style"]] = number
        self.kept_out = [
            number
            for number, icon in enumerate(self.icons)
            if held_out_style(icon["concept"], icon["style"], self.by_concept[icon["concept"]])
        ]
        self.by_style = defaultdict(list)  # style -> the icon numbers that may be trained on
        for number in sorted(set(range(len(self.icons))) - set(self.kept_out)):
            self.by_style[self.icons[number]["style"]].append(number)
        self.trained = [number for numbers in self.by_style.values() for number in numbers]

    def __getstate__(self) -> dict:
        """For a worker process: the icons are mapped anew there, not copied."""
        return vars(self) | {"sprites": None}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, sprites=np.load(state["folder"] / "sprites.npy", mmap_mode="r"))

    @property
    def fingerprint(self) -> str:
        """Of the icons' index, the settings, and some pictures as they are drawn."""
        found = hashlib.sha256((self.folder / "icons.json").read_bytes())
        found.update(json.dumps([self.seed, self.image_size, self.block, self.sprites.shape]).encode())
        for i in range(min(16, len(self))):
            found.update(self.picture(i).tobytes())
        return found.hexdigest()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> tuple[Image.Image, str]:
        return self.picture(i), self.caption(i)

    def picture(self, i: int) -> Image.Image:
        kind, numbers, background = self._parts(i)
        if self.block > 1 and kind == "pair" and np.random.default_rng((self.seed, i, 2)).random() < 0.5:
            numbers = numbers[::-1]  # what stands at the left is no part of "a fox and a banana"
        return self._draw(kind, numbers, background)

    def shown(self, i: int) -> list[str]:
        """The concepts that picture i shows: one or two."""
        return [self.icons[number]["concept"] for number in self._parts(i)[1]]

    def caption(self, i: int, variant: int = 0) -> str:
        """One of the many captions of picture i. A background other than white is always named, a style often."""
        kind, numbers, background = self._parts(i)
        rng = np.random.default_rng((self.seed, i, variant))
        things = [self.things[self.icons[number]["concept"]] for number in numbers]
        colour = words.colour(self.sprites[numbers[0]]) if rng.random() < 0.15 else None
        style = self.icons[numbers[0]]["style"]
        style = style if self._differs_in_style(i) or rng.random() < 0.6 else None
        named = background != "white" or rng.random() < 0.1
        return words.wording(rng, kind, things, style, background if named else None, colour)

    # ------------------------------------------------------------ what picture i shows

    def _parts(self, i: int) -> tuple[str, list[int], str]:
        """What picture i shows: the kind, the icon numbers, the background."""
        rng = np.random.default_rng((self.seed, i))
        if self.block > 1:
            return self._alike(i, rng)
        kind, style, background = self._frame(rng)
        return kind, self._icons(kind, int(rng.choice(self.by_style[style])), rng), background

    def _frame(self, rng) -> tuple[str, str, str]:
        """Kind, style and background; styles as often as they have icons. Most backgrounds are white: at a thing's rim,
        every other colour takes tokens of its own."""
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        style = self.icons[self._icon(rng)]["style"]
        return kind, style, str(rng.choice(list(BACKGROUNDS))) if rng.random() < 0.25 else "white"

    def _icons(self, kind: str, first: int, rng) -> list[int]:
        return [first, self._partner(first, rng)] if kind in OF_TWO else [first]

    def _icon(self, rng) -> int:
        return self.trained[rng.integers(len(self.trained))]

    def _partner(self, number: int, rng) -> int:
        """Another icon of the same style that may be trained on beside this one."""
        numbers = self.by_style[self.icons[number]["style"]]
        while True:
            other = numbers[rng.integers(len(numbers))]
            a, b = (self.icons[n]["concept"] for n in (number, other))
            if a != b and not held_out_pairing(a, b):
                return other

    def _draw(self, kind: str, numbers: list[int], background: str) -> Image.Image:
        return draw([Image.fromarray(self.sprites[n]) for n in numbers], kind, background, self.image_size)

    # ------------------------------------------------------------ learning to tell pictures apart

    def contrast(self, block: int) -> "EmojiCorpus":
        """The same corpus for learning to tell pictures apart. Of each `block` pictures in a row

        - the first half show things of one group, each once (faces, hearts, fruit: what is taken for each other);
        - the next eighth are pairs of one thing with different others ("A and B", "A and C"), on either side;
        - the next sixteenth, at most its styles, show that thing alone in each of its styles, which captions then name;
        - all share their kind, their style and their background, each half of the time.
        """
        other = copy.copy(self)
        other.block = block
        return other

    def _differs_in_style(self, i: int) -> bool:
        """Whether picture i of `contrast` stands among pictures of the same thing in other styles."""
        if self.block == 1:
            return False
        start = self.block // 2 + self.block // 8
        return start <= i % self.block < start + self.block // 16

    def _alike(self, i: int, rng) -> tuple[str, list[int], str]:
        """`_parts` of `contrast`."""
        block, offset = np.random.default_rng((self.seed, i // self.block, 1)), i % self.block
        shared, thing = self._frame(block), self._icon(block)
        kind, style, background = (ours if rng.random() < 0.5 else theirs for ours, theirs in zip(self._frame(rng), shared))
        concept, half = self.icons[thing]["concept"], self.block // 2
        group = self.things[concept].group
        alike = [number for number in self.by_style[shared[1]] if self.things[self.icons[number]["concept"]].group == group]
        alike = block.permutation(alike)[:half]
        if offset < len(alike):
            return kind, self._icons(kind, int(alike[offset]), rng), background
        if half <= offset < half + self.block // 8:
            return "pair", [thing, self._partner(thing, rng)], background
        if self._differs_in_style(i):
            styles = [number for number in self.by_concept[concept].values() if number not in self.kept_out]
            place = offset - half - self.block // 8
            if place < len(styles):
                return "single", [styles[place]], background
        return kind, self._icons(kind, int(rng.choice(self.by_style[style])), rng), background

    # ------------------------------------------------------------ for evaluation

    def held_out(self, kind: str, count: int, seed: int = 1) -> list[tuple[Image.Image, str]]:
        """`count` pictures with their plainest English captions. "style": single icons in a style they were kept out of;
        "pairing": two icons never seen together; "trained", for comparison: single icons that training has seen."""
        return [(image, text) for image, text, _ in self.evaluated(kind, count, seed)]

    def evaluated(self, kind: str, count: int, seed: int = 1) -> list[tuple[Image.Image, str, list[str]]]:
        """`held_out` with the concepts that each picture shows. Raises ValueError for other kinds."""
        rng = np.random.default_rng(seed)
        if kind == "pairing":
            return [self._held_out_pair(rng) for _ in range(count)]
        if kind not in ("style", "trained"):
            raise ValueError(f"kind is {kind!r}; it is one of {', '.join(self.evaluated_kinds)}")
        items = []
        for number in rng.permutation(self.kept_out if kind == "style" else self.trained)[:count]:
            icon = self.icons[number]
            text = words.caption("single", [self.things[icon["concept"]].en[0]], False, icon["style"], None)
            items.append((self._draw("single", [number], "white"), text, [icon["concept"]]))
        return items

    def _held_out_pair(self, rng) -> tuple[Image.Image, str, list[str]]:
        while True:
            numbers = [self._icon(rng)]
            numbers.append(int(rng.choice(self.by_style[self.icons[numbers[0]]["style"]])))
            concepts = [self.icons[number]["concept"] for number in numbers]
            if concepts[0] != concepts[1] and held_out_pairing(*concepts):
                break
        background = str(rng.choice(list(BACKGROUNDS)))
        names = [self.things[concept].en[0] for concept in concepts]
        text = words.caption("pair", names, False, self.icons[numbers[0]]["style"], background)
        return self._draw("pair", numbers, background), text, concepts


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch and render the icons of the embedded model's corpus.")
    parser.add_argument("--folder", type=Path, default=Path("data/emoji"), help="where the corpus goes (%(default)s)")
    parser.add_argument("--pack", type=Path, metavar="TAR", help="also write the corpus into one file")
    parser.add_argument("--unpack", type=Path, metavar="TAR", help="take it from such a file: nothing is fetched")
    parser.add_argument("--look", type=Path, metavar="PNG", help="also write a contact sheet of 48 corpus pictures")
    args = parser.parse_args()
    if args.unpack:
        try:
            unpack(args.unpack, args.folder)
        except InputError as error:
            raise SystemExit(str(error)) from None
    elif not (args.folder / "sprites.npy").exists():
        prepare(args.folder)
    if args.pack:
        pack(args.folder, args.pack)
    corpus = EmojiCorpus(args.folder)
    print(
        f"{len(corpus.icons)} icons of {len(corpus.things)} concepts in {len(corpus.by_style)} styles; "
        f"{len(corpus.kept_out)} (icon, style) pairs kept out of training"
    )
    if args.look:
        sheet = Image.new("RGB", (8 * IMAGE_SIZE, 6 * IMAGE_SIZE))
        for i in range(48):
            picture, text = corpus[i]
            sheet.paste(picture, (i % 8 * IMAGE_SIZE, i // 8 * IMAGE_SIZE))
            print(i, text)
        sheet.save(args.look)


if __name__ == "__main__":
    main()
