"""The corpus of the embedded model: captioned pictures drawn from openly licensed emoji sets.

`python -m dalle_core.training.emoji` fetches seven icon sets and the Unicode emoji names (npm packages, through
`npm pack`), renders every icon once and writes `sprites.npy` ([N, 192, 192, 4] uint8, straight alpha) and
`icons.json` into a folder. `EmojiCorpus` then draws picture i from its own random numbers, so a corpus of a million
captioned pictures takes no more room than its icons: single icons, pairs, counts, sizes and positions, in a named
style, on a named background, captioned in English or Chinese.

Kept out of training, by fixed rules: 5 % of the (icon, style) pairs whose icon exists in at least three other styles
(`held_out_style`), and 10 % of the pairings of icons (`held_out_pairing`).

Credits: Noto Emoji (Google, Apache-2.0), Twemoji (Twitter and contributors, CC-BY-4.0), Fluent Emoji (Microsoft, MIT),
EmojiOne 2 (CC-BY-4.0), FxEmojis (Mozilla, Apache-2.0), packaged by Iconify; names from emojibase-data (MIT).
"""

import argparse
import copy
import hashlib
import io
import json
import re
import subprocess
import tarfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

SPRITE_SIZE = 192  # as large as the largest picture that is drawn from them
IMAGE_SIZE = 96  # of a picture, where nothing else is asked for

# Package name -> the name of the style in captions.
STYLES = {
    "noto": "noto",
    "noto-v1": "blob",  # the "blob" emoji of Android up to version 7
    "twemoji": "twemoji",
    "fluent-emoji": "fluent",
    "fluent-emoji-flat": "flat",
    "emojione": "emojione",
    "fxemoji": "firefox",
}
VERSIONS = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/noto-v1": "1.2.5",
    "@iconify-json/twemoji": "1.2.5",
    "@iconify-json/fluent-emoji": "1.2.7",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/emojione": "1.2.3",
    "@iconify-json/fxemoji": "1.2.2",
    "emojibase-data": "17.0.0",
}

BACKGROUNDS = {  # English name -> (Chinese name, RGB)
    "white": ("白色", (255, 255, 255)),
    "black": ("黑色", (24, 24, 27)),
    "grey": ("灰色", (156, 163, 175)),
    "red": ("红色", (220, 50, 47)),
    "orange": ("橙色", (251, 146, 60)),
    "yellow": ("黄色", (250, 214, 80)),
    "green": ("绿色", (74, 170, 90)),
    "light blue": ("浅蓝色", (165, 215, 245)),
    "blue": ("蓝色", (50, 100, 210)),
    "purple": ("紫色", (140, 80, 200)),
    "pink": ("粉色", (248, 175, 205)),
    "brown": ("棕色", (130, 85, 55)),
}


def _hash(text: str) -> float:
    """A number in [0, 1) that depends on the text alone, whatever the machine or the Python."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def held_out_style(concept: str, style: str, styles_of_concept) -> bool:
    """Whether this icon in this style is kept out of all training."""
    return len(set(styles_of_concept) - {style}) >= 3 and _hash(f"style {concept} {style}") < 0.05


def held_out_pairing(a: str, b: str) -> bool:
    """Whether pictures of these two icons together are kept out of all training."""
    return _hash("pairing " + " ".join(sorted((a, b)))) < 0.10


# ---------------------------------------------------------------- preparing the icons


def fetch(folder: Path) -> None:
    """Downloads the packages into `folder`, each once. Raises RuntimeError when npm is missing or fails."""
    folder.mkdir(parents=True, exist_ok=True)
    for package, version in VERSIONS.items():
        target = folder / f"{package.split('/')[-1]}-{version}"
        if target.exists():
            continue
        print(f"fetching {package} {version}")
        try:
            out = subprocess.run(
                ["npm", "pack", "--silent", f"{package}@{version}"], cwd=folder, capture_output=True, encoding="utf-8"
            )
        except FileNotFoundError:
            raise RuntimeError("npm was not found: install Node.js, the icon sets are npm packages") from None
        if out.returncode != 0:
            raise RuntimeError(f"npm could not fetch {package} {version}: {out.stderr.strip()[-300:]}")
        archive = folder / out.stdout.split()[-1]
        with tarfile.open(archive) as tar:
            tar.extractall(folder / f"{target.name}.part", filter="data")
        (folder / f"{target.name}.part" / "package").rename(target)
        (folder / f"{target.name}.part").rmdir()
        archive.unlink()


# What is drawn, as emojibase's subgroups: what people ask pictures of. A small model's compute is better spent on fewer
# things: signs, symbols, office and household goods are left out.
SUBGROUPS = {
    *(0, 2, 5, 8, 9, 10, 11, 14, 23),  # faces, hearts, people
    *range(34, 42),  # animals and plants
    *range(42, 48),  # food and drink
    *(50, 51, 53, 54, 55, 56, 59),  # landscapes, buildings, places, vehicles, sky and weather
    *(60, 62, 65, 68, 71),  # events, sport, clothes, instruments, cameras and lamps
}  # fmt: skip
LEFT_OUT = re.compile(
    r"^((wo)?m[ae]n|person|people)\b.+|:|medium|small"
    # near-copies of others, and what is a scene of many small parts
    r"|oncoming|quarter|crescent|gibbous|new moon|two-hump|with rain|behind|railway|tram|cableway|construction|office"
    r"|department|convenience|dusk|with stars|foggy|motorway|station|pine|tanabata|japanese dolls|barber|love hotel"
    r"|stop sign|oil drum|skull and|arrival|departure|on ground|ticket|medal|ribbon|film frames|trolleybus|light rail"
)
MIN_STYLES = 5  # an icon that few sets have teaches a style more than a thing


def _english(entry: dict) -> str | None:
    """The English name of an emojibase entry, or None when it is left out."""
    name = entry["label"]
    return None if entry.get("subgroup") not in SUBGROUPS or LEFT_OUT.search(name) else name.lower()


def _base(hexcode: str) -> str:
    """A code point sequence without variation selectors, upper case."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def _squash(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("flag-for-", "flag-").replace("flag: ", "flag"))


def prepare(folder: Path) -> None:
    """Renders the icons of `folder/packages` into `folder/sprites.npy` and `folder/icons.json`.

    An icon is kept when its name leads to a Unicode code point of SUBGROUPS and at least MIN_STYLES sets have it. The
    five skin tones are left out: thousands of near-copies.
    """
    import resvg_py  # only needed here, and only once

    packages = folder / "packages"
    fetch(packages)
    path = {package.split("/")[-1]: packages / f"{package.split('/')[-1]}-{v}" for package, v in VERSIONS.items()}

    label = {lang: {} for lang in ("en", "zh")}
    for lang in label:
        for entry in json.loads((path["emojibase-data"] / lang / "data.json").read_text(encoding="utf-8")):
            label[lang][_base(entry["hexcode"])] = entry["label"]
    entries = json.loads((path["emojibase-data"] / "en" / "data.json").read_text(encoding="utf-8"))
    english = {_base(entry["hexcode"]): name for entry in entries if (name := _english(entry))}

    # Three sets say which code point a name stands for; the others share most of these names.
    code_of = {_squash(text): code for code, text in label["en"].items()}
    for package in ("fluent-emoji-flat", "twemoji", "noto"):
        for code, name in json.loads((path[package] / "chars.json").read_text(encoding="utf-8")).items():
            code_of.setdefault(_squash(name), _base(code))

    icons, seen = [], set()
    for package, style in STYLES.items():
        data = json.loads((path[package] / "icons.json").read_text(encoding="utf-8"))
        for name, icon in data["icons"].items():
            code = code_of.get(_squash(name))
            # Fitzpatrick modifiers, and Fluent's short form of them ("judge-medium-dark")
            toned = re.search(r"skin-tone|-(light|medium|dark)$", name)
            if code is None or toned or re.search("1F3F[B-F]", code) or code not in english or (code, style) in seen:
                continue
            seen.add((code, style))
            width = icon.get("width", data.get("width", 16))
            height = icon.get("height", data.get("height", 16))
            left, top = icon.get("left", 0), icon.get("top", 0)
            svg = (
                '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
            )
            icons.append({"concept": code, "style": style, "name": name.replace("-", " "), "svg": svg})
    styles = Counter(icon["concept"] for icon in icons)
    icons = [icon for icon in icons if styles[icon["concept"]] >= MIN_STYLES]

    sprites = np.lib.format.open_memmap(
        folder / "sprites.part.npy", "w+", np.uint8, (len(icons), SPRITE_SIZE, SPRITE_SIZE, 4)
    )
    for i, icon in enumerate(tqdm(icons, desc="rendering", unit="icon")):
        png = bytes(resvg_py.svg_to_bytes(svg_string=icon.pop("svg"), width=SPRITE_SIZE, height=SPRITE_SIZE))
        sprites[i] = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA").resize((SPRITE_SIZE, SPRITE_SIZE)))
    sprites.flush()
    del sprites

    # A concept's English names: its Unicode label and what at least two of the sets call it.
    called = defaultdict(Counter)
    for icon in icons:
        called[icon["concept"]][icon["name"]] += 1
    concepts = {}
    for code, names in called.items():
        others = [
            name
            for name, count in names.items()
            if count >= 2 and " " in english[code] and len(name) <= len(english[code])
        ]
        concepts[code] = {
            "en": [english[code]] + [name for name in others if name != english[code]],
            "zh": [label["zh"][code]] if code in label["zh"] else [],
        }
    (folder / "icons.json").write_text(json.dumps({"icons": icons, "concepts": concepts}, ensure_ascii=False), encoding="utf-8")
    (folder / "sprites.part.npy").rename(folder / "sprites.npy")


# ---------------------------------------------------------------- captions


def article(name: str) -> str:
    """"apple" -> "an apple"; plurals, numbers and flags as they are."""
    if name.endswith("s") and not name.endswith("ss") or re.match(r"^(the|a|an) |^[^a-z]", name):
        return name
    return ("an " if name[0] in "aeiou" else "a ") + name


def plural(name: str) -> str:
    """English plural of a name's last word, by the regular rules; a name that is one already stays."""
    if article(name) == name:
        return name
    if re.search(r"(s|x|z|ch|sh)$", name):
        return name + "es"
    return name[:-1] + "ies" if re.search(r"[^aeiou]y$", name) else name + "s"


def caption(kind: str, names: list[str], chinese: bool, style: str | None, background: str | None) -> str:
    """One caption. `kind` is a key of KINDS; names are in the caption's language."""
    a, b = names[0], names[-1]
    if chinese:
        text = {
            "single": a, "small": f"小{a}", "pair": f"{a}和{b}", "above": f"{b}上面的{a}",
            "two": f"两个{a}",
        }[kind]  # fmt: skip
        if background:
            text = f"{BACKGROUNDS[background][0]}背景上的{text}"
        return f"{style}风格的{text}" if style else text
    text = {
        "single": article(a), "small": f"a small {a}", "pair": f"{article(a)} and {article(b)}",
        "above": f"{article(a)} above {article(b)}", "two": f"two {plural(a)}",
    }[kind]  # fmt: skip
    if background:
        text += f" on {article(background)} background"
    return f"{text} in {style} style" if style else text


# ---------------------------------------------------------------- drawing

# Where icons stand, as (centre x, centre y, size) in shares of the picture. Fixed places: a small model should spend
# its samples on what things look like, not on where they are. Those of one size are quarters of a picture apart, which
# are whole token cells (8 pixels of 96, 12 of 192), so that an icon has the same tokens in each.
PLACES = {
    "single": [(0.5, 0.5, 0.80)],
    "small": [(0.5, 0.5, 0.46)],
    "pair": [(0.25, 0.5, 0.46), (0.75, 0.5, 0.46)],
    "above": [(0.5, 0.25, 0.46), (0.5, 0.75, 0.46)],
    "two": [(0.25, 0.5, 0.46), (0.75, 0.5, 0.46)],
}


def draw(sprites: list[Image.Image], kind: str, background: str, image_size: int = IMAGE_SIZE) -> Image.Image:
    """One or two RGBA sprites -> an RGB picture of image_size x image_size; counts repeat the first."""
    picture = Image.new("RGB", (image_size, image_size), BACKGROUNDS[background][1])
    for i, (x, y, size) in enumerate(PLACES[kind]):
        sprite = sprites[i % len(sprites)]
        pixels = round(size * image_size)
        small = sprite.resize((pixels, pixels), Image.Resampling.LANCZOS)
        picture.paste(small, (round(x * image_size - pixels / 2), round(y * image_size - pixels / 2)), small)
    return picture


KINDS = {"single": 0.58, "pair": 0.33, "above": 0.03, "small": 0.03, "two": 0.03}  # share of each in the corpus


class EmojiCorpus:
    """A million captioned pictures, each drawn when it is asked for: `corpus[i]` is `(PIL RGB image, caption)`.

    Picture i depends on (seed, i) alone. `held_out` draws what training never sees: single icons in a style kept out
    ("style"), or two icons never seen together ("pairing").
    """

    name, licence = "emoji", "Apache-2.0, CC-BY-4.0, MIT"
    held_out_kinds = ("style", "pairing")
    block = 1  # with more, that many pictures in a row may share kind, style and background, see `contrast`

    def __init__(self, folder: str | Path = "data/emoji", seed: int = 0, length: int = 1_000_000,
                 image_size: int = IMAGE_SIZE):  # fmt: skip
        self.folder, self.seed, self.length, self.image_size = Path(folder), seed, length, image_size
        if not (self.folder / "sprites.npy").exists():
            raise FileNotFoundError(
                f"{self.folder} has no sprites.npy: run `python -m dalle_core.training.emoji --folder {self.folder}`"
            )
        index = json.loads((self.folder / "icons.json").read_text(encoding="utf-8"))
        self.icons, self.concepts = index["icons"], index["concepts"]
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
        return self._draw(*self._parts(i))

    def caption(self, i: int, variant: int = 0) -> str:
        """One of the many captions of picture i. A background other than white is always named, a style often."""
        kind, numbers, background = self._parts(i)
        rng = np.random.default_rng((self.seed, i, variant))
        entries = [self.concepts[self.icons[n]["concept"]] for n in numbers]
        chinese = bool(rng.random() < 0.25) and all(entry["zh"] for entry in entries)
        names = [str(rng.choice(entry["zh" if chinese else "en"])) for entry in entries]
        style = self.icons[numbers[0]]["style"] if rng.random() < 0.6 else None
        named = background != "white" or rng.random() < 0.1
        return caption(kind, names, chinese, style, background if named else None)

    def contrast(self, block: int) -> "EmojiCorpus":
        """The same corpus for learning to tell pictures apart: each `block` pictures in a row share their kind, their
        style and their background, each half of the time. What else differs is what they show."""
        other = copy.copy(self)
        other.block = block
        return other

    def _parts(self, i: int) -> tuple[str, list[int], str]:
        """What picture i shows: the kind, the icon numbers, the background."""
        rng = np.random.default_rng((self.seed, i))
        kind, style, background = self._frame(rng)
        if self.block > 1:
            block = np.random.default_rng((self.seed, i // self.block, 1))
            shared = self._frame(block)
            kind, style, background = (
                ours if block.random() < 0.5 else theirs for ours, theirs in zip((kind, style, background), shared)
            )
        numbers = [int(rng.choice(self.by_style[style]))]
        if kind in ("pair", "above"):
            numbers.append(self._partner(numbers[0], rng))
        return kind, numbers, background

    def _frame(self, rng) -> tuple[str, str, str]:
        """Kind, style and background; styles as often as they have icons. Most backgrounds are white: at a thing's rim,
        every other colour takes tokens of its own."""
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        style = self.icons[self._icon(rng)]["style"]
        return kind, style, str(rng.choice(list(BACKGROUNDS))) if rng.random() < 0.25 else "white"

    def held_out(self, kind: str, count: int, seed: int = 1) -> list[tuple[Image.Image, str]]:
        """`count` pictures that training never sees, with their English captions; kind is "style" or "pairing"."""
        rng = np.random.default_rng(seed)
        items = []
        if kind == "style":
            for number in rng.permutation(self.kept_out)[:count]:
                icon = self.icons[number]
                text = caption("single", self.concepts[icon["concept"]]["en"][:1], False, icon["style"], None)
                items.append((self._draw("single", [number], "white"), text))
        elif kind == "pairing":
            for _ in range(count):
                first = self._icon(rng)
                second = self._partner(first, rng, held_out=True)
                background = str(rng.choice(list(BACKGROUNDS)))
                names = [self.concepts[self.icons[n]["concept"]]["en"][0] for n in (first, second)]
                text = caption("pair", names, False, self.icons[first]["style"], background)
                items.append((self._draw("pair", [first, second], background), text))
        else:
            raise ValueError(f'kind is {kind!r}; it is "style" or "pairing"')
        return items

    def _icon(self, rng) -> int:
        return self.trained[rng.integers(len(self.trained))]

    def _partner(self, number: int, rng, held_out: bool = False) -> int:
        concept, style = self.icons[number]["concept"], self.icons[number]["style"]
        while True:
            other = self.by_style[style][rng.integers(len(self.by_style[style]))]
            code = self.icons[other]["concept"]
            if code != concept and held_out_pairing(concept, code) == held_out:
                return other

    def _draw(self, kind: str, numbers: list[int], background: str) -> Image.Image:
        return draw([Image.fromarray(self.sprites[n]) for n in numbers], kind, background, self.image_size)


def main() -> None:
    parser = argparse.ArgumentParser(description="Fetch and render the icons of the embedded model's corpus.")
    parser.add_argument("--folder", type=Path, default=Path("data/emoji"), help="where the corpus goes (%(default)s)")
    parser.add_argument("--look", type=Path, metavar="PNG", help="also write a contact sheet of 48 corpus pictures")
    args = parser.parse_args()
    if not (args.folder / "sprites.npy").exists():
        prepare(args.folder)
    corpus = EmojiCorpus(args.folder)
    print(
        f"{len(corpus.icons)} icons of {len(corpus.concepts)} concepts in {len(corpus.by_style)} styles; "
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
