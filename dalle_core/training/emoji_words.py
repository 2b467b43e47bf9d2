"""The words of the emoji corpus: what things are called (`emoji_names.txt`), and how captions are made of that.

`caption` is the plainest wording. `wording` is one of those that people use: synonyms, articles or none, "two cats and a
pizza", "a picture of", "next to", "in the style of", other words for the background, colours that the icon has; the
plainest stays the most frequent. English and Chinese.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

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
CHINESE_SHARE = 0.25  # of captions
PLAINEST_NAME = 0.5  # how often the first name is used; the others share the rest with it
PLAIN = {"person", "landscape"}  # groups whose dominant colour says nothing of the thing


@dataclass(frozen=True)
class Thing:
    """What one concept is called, the usual name first."""

    group: str
    en: tuple[str, ...]
    measure: str  # the Chinese measure word: 一只猫
    zh: tuple[str, ...]


@cache
def _read() -> tuple[dict[str, Thing], frozenset[str]]:
    """The things of `emoji_names.txt` by code point, and the names that take no article and no number."""
    found, bare = {}, set()
    for line in Path(__file__).with_name("emoji_names.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        code, group, en, measure, zh = (part.strip() for part in line.split("|"))
        names = [[name.strip() for name in part.split(",")] for part in (en, zh)]
        bare |= {name[1:] for part in names for name in part if name.startswith("~")}
        en, zh = (tuple(name.removeprefix("~") for name in part) for part in names)
        found[code] = Thing(group, en, measure, zh)
    return found, frozenset(bare)


def things(concepts: dict) -> dict[str, Thing]:
    """concept -> Thing, for the concepts of `icons.json`; one that `emoji_names.txt` lacks keeps the names it has there."""
    known, _ = _read()
    return {
        code: known.get(code) or Thing("", tuple(names["en"]), "个", tuple(names["zh"])) for code, names in concepts.items()
    }


# ---------------------------------------------------------------- English nouns

IRREGULAR = {
    "mouse": "mice",
    "wolf": "wolves",
    "leaf": "leaves",
    "loaf": "loaves",
    "sheep": "sheep",
    "deer": "deer",
    "fish": "fish",
    "pufferfish": "pufferfish",
    "blowfish": "blowfish",
    "shrimp": "shrimp",
    "squid": "squid",
    "man": "men",
    "woman": "women",
    "snowman": "snowmen",
    "ox": "oxen",
    "potato": "potatoes",
    "tomato": "tomatoes",
    "volcano": "volcanoes",
    "tornado": "tornadoes",
    "buffalo": "buffaloes",
    "fish cake": "fish cakes",
    "sashimi": "sashimi",
    "onigiri": "onigiri",
}
_HEAD = re.compile(r" (?=(?:of|with|in|on|over|from|without|spouting|fluttering|tilted|at|asleep|screaming|savoring)\b)")


def bare(name: str) -> bool:
    """Whether a name takes no article, number or measure word: plurals, what cannot be counted, names of places."""
    return name in _read()[1] or bool(re.match(r"(the|a|an) |[^a-z]", name)) and name.isascii()


def article(name: str) -> str:
    """As in "apple" -> "an apple"; plurals, what cannot be counted and names of places as they are."""
    if bare(name):
        return name
    vowel = name[0] in "aeiou" and not re.match(r"uni|eu|ufo|one", name) or name == "suv"
    return ("an " if vowel else "a ") + name


def plural(name: str) -> str:
    """English plural of a name's head: "glass of milk" -> "glasses of milk"; a name that takes no number stays."""
    if bare(name):
        return name
    head, *rest = _HEAD.split(name, maxsplit=1)
    *before, last = head.split(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif re.search(r"(s|x|z|ch|sh)$", last):
        last += "es"
    else:
        last = last[:-1] + "ies" if re.search(r"[^aeiou]y$", last) else last + "s"
    return " ".join([*before, last, *rest])


# ---------------------------------------------------------------- the plainest wording


def caption(kind: str, names: list[str], chinese: bool, style: str | None, background: str | None) -> str:
    """One caption. `kind` is a key of `emoji.KINDS`; names are in the caption's language."""
    a, b = names[0], names[-1]
    if chinese:
        text = {
            "single": a,
            "small": f"小{a}",
            "pair": f"{a}和{b}",
            "above": f"{b}上面的{a}",
            "two": f"两个{a}",
            "three": f"三个{a}",
            "two and one": f"两个{a}和一个{b}",
        }[kind]
        if background:
            text = f"{BACKGROUNDS[background][0]}背景上的{text}"
        return f"{style}风格的{text}" if style else text
    text = {
        "single": article(a),
        "small": article(f"small {a}") if not bare(a) else f"small {a}",
        "pair": f"{article(a)} and {article(b)}",
        "above": f"{article(a)} above {article(b)}",
        "two": f"two {plural(a)}",
        "three": f"three {plural(a)}",
        "two and one": f"two {plural(a)} and {article(b)}",
    }[kind]
    if background:
        text += f" on {article(background)} background"
    return f"{text} in {style} style" if style else text


# ---------------------------------------------------------------- the wordings that people use

# (share, template). {a}, {b}: the things with their article; {as_}: the first one's plural; {name}: it without an article;
# {one}: "a ", where it may be counted;
# {plain}: the text without its first article.
ENGLISH = {
    "single": [(0.88, "{a}"), (0.08, "{name} emoji"), (0.04, "{name} icon")],
    "small": [(0.70, "{one}small {name}"), (0.15, "{one}little {name}"), (0.15, "{one}tiny {name}")],
    "two": [(0.80, "two {as_}"), (0.10, "2 {as_}"), (0.10, "a pair of {as_}")],
    "three": [(0.75, "three {as_}"), (0.10, "3 {as_}"), (0.15, "three {as_} in a row")],
    "pair": [
        (0.62, "{a} and {b}"),
        (0.16, "{a} next to {b}"),
        (0.12, "{a} beside {b}"),
        (0.06, "{a} and {b} side by side"),
        (0.04, "{a} with {b}"),
    ],
    "above": [
        (0.45, "{a} above {b}"),
        (0.10, "{a} over {b}"),
        (0.10, "{a} on top of {b}"),
        (0.20, "{b} under {a}"),
        (0.15, "{b} below {a}"),
    ],
    "two and one": [(0.75, "two {as_} and {b}"), (0.15, "{b} and two {as_}"), (0.10, "two {as_} above {b}")],
}
ENGLISH_FRAMES = [
    (0.86, "{text}"),
    (0.04, "an emoji of {text}"),
    (0.04, "a picture of {text}"),
    (0.03, "a drawing of {text}"),
    (0.03, "an icon of {text}"),
]
ENGLISH_BACKGROUNDS = [
    (0.60, "{text} on {a_colour} background"),
    (0.14, "{text} on {colour}"),
    (0.10, "{text} with {a_colour} background"),
    (0.10, "{text}, {colour} background"),
    (0.06, "{text} against {a_colour} background"),
]
ENGLISH_STYLES = [
    (0.60, "{text} in {style} style"),
    (0.14, "{text} in the style of {style}"),
    (0.14, "{text}, {style} style"),
    (0.12, "{style} style {plain}"),
]
# {a}, {b} with a measure word and the number one, or without.
CHINESE = {
    "single": [(0.90, "{a}"), (0.06, "{name}表情"), (0.04, "{name}图标")],
    "small": [(0.70, "小{name}"), (0.30, "一{m}小{name}")],
    "two": [(1.0, "两{m}{name}")],
    "three": [(1.0, "三{m}{name}")],
    "pair": [(0.75, "{a}和{b}"), (0.15, "{b}旁边的{a}"), (0.10, "{a}与{b}")],
    "above": [(0.40, "{b}上面的{a}"), (0.25, "{a}在{b}上面"), (0.20, "{a}下面的{b}"), (0.15, "{b}在{a}下面")],
    "two and one": [(1.0, "两{m}{name}和{one_b}")],
}
CHINESE_FRAMES = [(0.91, "{text}"), (0.06, "{text}的图片"), (0.03, "{text}的图画")]
CHINESE_BACKGROUNDS = [(0.65, "{colour}背景上的{text}"), (0.20, "{text}，{colour}背景"), (0.15, "{colour}背景的{text}")]
CHINESE_STYLES = [(0.75, "{style}风格的{text}"), (0.25, "{text}，{style}风格")]


def _pick(rng, choices: list[tuple[float, str]]) -> str:
    return choices[rng.choice(len(choices), p=[share for share, _ in choices])][1]


def _name(rng, names: tuple[str, ...], counted: bool) -> str:
    """One of a thing's names; where it is counted, one that takes a number, if there is any."""
    names = counted and tuple(name for name in names if not bare(name)) or names
    return names[0] if rng.random() < PLAINEST_NAME else str(rng.choice(names))


def wording(rng, kind: str, things: list[Thing], style: str | None, background: str | None, colour: str | None):
    """One of the many captions of a picture, a text. `kind` is a key of `emoji.KINDS`; style, background: to be named; colour:
    that of the first thing, as `colour` finds it. Random numbers come from the numpy generator `rng`."""
    colour = None if things[0].group in PLAIN else colour
    if rng.random() < CHINESE_SHARE and all(thing.zh for thing in things):
        return _chinese(rng, kind, things, style, background, colour)
    return _english(rng, kind, things, style, background, colour)


def _english(rng, kind, things, style, background, colour) -> str:
    names = [_name(rng, thing.en, kind not in ("single", "pair", "above")) for thing in things]
    a, b = names[0], names[-1]
    if colour and not set(a.split()) & set(COLOURS):
        a = f"{colour} {a}" if not bare(names[0]) else a
    mode = rng.random()  # articles, mostly; none; or "the"

    def noun(name: str) -> str:
        return article(name) if mode < 0.72 or bare(name) else name if mode < 0.95 else f"the {name}"

    template = _pick(rng, ENGLISH[kind])
    text = template.format(a=noun(a), b=noun(b), as_=plural(a), name=a, one="" if bare(a) else "a ")
    text = _pick(rng, ENGLISH_FRAMES).format(text=text) if not text.endswith((" emoji", " icon")) else text
    parts = []
    if background:
        parts.append((ENGLISH_BACKGROUNDS, {"colour": background, "a_colour": article(background)}))
    if style:
        parts.append((ENGLISH_STYLES, {"style": style}))
    for templates, words in parts if rng.random() < 0.85 else parts[::-1]:
        text = _pick(rng, templates).format(text=text, plain=re.sub(r"^(a|an|the) ", "", text), **words)
    return text


def _chinese(rng, kind, things, style, background, colour) -> str:
    names = [_name(rng, thing.zh, kind not in ("single", "pair", "above")) for thing in things]
    a, b = names[0], names[-1]
    if colour and not bare(a) and not any(word[0] in a for word in COLOURS.values()):
        a = f"{COLOURS[colour]}的{a}"
    measured = rng.random() < 0.4

    def noun(name: str, thing: Thing, one: bool) -> str:
        return f"一{thing.measure}{name}" if one and not bare(name.split("的")[-1]) else name

    text = _pick(rng, CHINESE[kind]).format(
        a=noun(a, things[0], measured),
        b=noun(b, things[-1], measured),
        one_b=noun(b, things[-1], True),
        name=a,
        m=things[0].measure,
    )
    text = _pick(rng, CHINESE_FRAMES).format(text=text) if not text.endswith(("表情", "图标")) else text
    if background:
        text = _pick(rng, CHINESE_BACKGROUNDS).format(text=text, colour=BACKGROUNDS[background][0])
    if style:
        text = _pick(rng, CHINESE_STYLES).format(text=text, style=style)
    return f"画{text}" if rng.random() < 0.03 and not (style or background) else text


# ---------------------------------------------------------------- colours

COLOURS = {
    "brown": "棕色",
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "pink": "粉色",
    "white": "白色",
    "grey": "灰色",
    "black": "黑色",
}
DOMINANT = 0.6  # of the pixels that are not transparent


def colour(sprite: np.ndarray) -> str | None:
    """The colour of most of a sprite [H, W, 4] uint8 RGBA: a key of COLOURS, or None where no colour has DOMINANT of it."""
    small = np.ascontiguousarray(sprite[::4, ::4])
    opaque = small[..., 3] > 128
    if not opaque.any():
        return None
    hsv = np.asarray(Image.fromarray(small[..., :3]).convert("HSV")) / 255
    hue, saturation, value = hsv[..., 0] * 360, hsv[..., 1], hsv[..., 2]
    # The first that is true of a pixel; hues in degrees.
    rules = {
        "black": value < 0.25,
        "white": (saturation < 0.12) & (value > 0.85),
        "grey": saturation < 0.18,
        "pink": ((hue > 300) & (hue <= 338)) | (((hue > 338) | (hue < 12)) & (saturation < 0.55) & (value > 0.75)),
        "brown": (hue > 8) & (hue < 45) & (value < 0.75),
        "red": (hue > 338) | (hue < 15),
        "orange": hue < 36,
        "yellow": hue < 68,
        "green": hue < 165,
        "blue": hue < 252,
        "purple": hue <= 300,
    }
    name = np.select([rule[opaque] for rule in rules.values()], list(rules), default="")
    found, counts = np.unique(name, return_counts=True)
    return str(found[counts.argmax()]) if counts.max() >= DOMINANT * opaque.sum() else None


# ---------------------------------------------------------------- what a model that learned these captions knows


def vocabulary(things: dict[str, Thing], tags: dict[str, list[str]], styles: list[str]) -> dict:
    """`vocabulary` of a pipeline: every word of the captions, and what stands nearest to the words that only tags have.

    tags: concept -> other words for it, as `emoji_tags` reads them. Of many things that share a tag the ones with the
    fewest tags are named: those that it says most about.
    """
    names = {name for thing in things.values() for name in thing.en}
    templates = [ENGLISH_FRAMES, ENGLISH_BACKGROUNDS, ENGLISH_STYLES, *ENGLISH.values()]
    texts = [re.sub(r"\{\w+\}", " ", text) for part in templates for _, text in part]
    texts += [*names, *map(plural, names), *BACKGROUNDS, *COLOURS, *styles]
    words = {word for text in texts for word in re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower())}
    chinese = {name for thing in things.values() for name in (*thing.zh, thing.measure)} | set("一两三小色")
    chinese |= {name for name, _ in BACKGROUNDS.values()} | set(COLOURS.values()) | {name[:-1] for name in COLOURS.values()}
    chinese |= {"背景", "风格", "表情", "图标", "图片", "图画", "旁边", "上面", "下面"}
    chinese = {name.lower() for name in chinese}
    near = {}
    for code in sorted(things, key=lambda code: len(tags.get(code, ()))):
        thing = things[code]
        for tag in {*tags.get(code, ()), thing.group}:
            han = not tag.isascii()
            if tag and tag not in words and tag not in chinese and (han or re.fullmatch("[a-z][a-z-]{2,}", tag)):
                near.setdefault(tag, []).append((thing.zh if han else thing.en)[0])
    return {
        "words": " ".join(sorted(words | chinese)),
        "near": {tag: ", ".join(names[:3]) for tag, names in sorted(near.items())},
    }


def emoji_tags(emojibase: Path) -> dict[str, list[str]]:
    """concept -> its tags in lower case, English and Chinese, from the folder of the package emojibase-data."""
    tags: dict[str, list[str]] = {}
    for language in ("en", "zh"):
        for entry in json.loads((emojibase / language / "data.json").read_text(encoding="utf-8")):
            code = "-".join(part for part in entry["hexcode"].upper().split("-") if part != "FE0F")
            tags.setdefault(code, []).extend(tag.lower() for tag in entry.get("tags", ()) if " " not in tag)
    return tags
