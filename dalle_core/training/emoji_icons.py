"""The icons of the emoji corpus: openly licensed sets, fetched through npm and rendered once.

`prepare(folder)` writes `sprites.npy` ([N, 192, 192, 4] uint8, straight alpha) and `icons.json`, which says what each
shows: a Unicode code point sequence (the concept) and the style.

Credits: Noto Emoji (Google, Apache-2.0), Twemoji (Twitter and contributors, CC-BY-4.0), Fluent Emoji (Microsoft, MIT),
EmojiOne 2 (CC-BY-4.0), FxEmojis (Mozilla, Apache-2.0), packaged by Iconify; names from emojibase-data (MIT).
"""

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
}
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

    sprites = np.lib.format.open_memmap(folder / "sprites.part.npy", "w+", np.uint8, (len(icons), SPRITE_SIZE, SPRITE_SIZE, 4))
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
            name for name, count in names.items() if count >= 2 and " " in english[code] and len(name) <= len(english[code])
        ]
        concepts[code] = {
            "en": [english[code]] + [name for name in others if name != english[code]],
            "zh": [label["zh"][code]] if code in label["zh"] else [],
        }
    (folder / "icons.json").write_text(json.dumps({"icons": icons, "concepts": concepts}, ensure_ascii=False), encoding="utf-8")
    (folder / "sprites.part.npy").rename(folder / "sprites.npy")
