"""Captions as data sets hold them: which can be trained on, and which are kept out of training.

About one caption in twenty is held out, whatever pictures it belongs to: by a hash of its words, so that the split is the same
on every machine and for every order of the lines. A picture is held out with the one caption that stands for it, its key, and
keeps its held-out captions only; a picture of the trained part keeps its other captions only. So no caption is in both parts.
"""

import hashlib
import unicodedata
from collections import Counter, defaultdict

import numpy as np

from dalle_core.errors import InputError

HELD_OUT = 0.05  # share of the captions
LONGEST = 4000  # characters of a caption
COLUMNS = ("text", "txt", "caption")  # where captions are, where nothing else is said


class Report:
    """What of a data set cannot be used: how many of each kind, and the first names."""

    def __init__(self):
        self.counts, self.names = Counter(), defaultdict(list)

    def add(self, kind: str, name) -> None:
        self.counts[kind] += 1
        if len(self.names[kind]) < 3:
            self.names[kind].append(str(name).encode(errors="replace").decode())  # a file's name need not be Unicode

    def __str__(self) -> str:
        parts = []
        for kind, count in self.counts.items():
            names = ", ".join(self.names[kind]) + (", …" if count > len(self.names[kind]) else "")
            parts.append(f"{kind}: {count:,} ({names})")
        return "; ".join(parts)

    def check(self, source, good: int, allow_bad: float) -> None:
        """Raises InputError when nothing can be used, or when more than the share `allow_bad` cannot."""
        bad = self.counts.total()
        if not good:
            raise InputError(f"{source} holds no picture that can be trained on" + (f"; {self}." if bad else "."))
        share = bad / (bad + good)
        if share > allow_bad:
            raise InputError(
                f"{source}: {bad:,} of {bad + good:,} cannot be used; {self}. Mend them, or train on the others "
                f"with --allow-bad {np.ceil(share * 100) / 100:g}."
            )


def caption_columns(source, available, asked: list[str] | None) -> list[str]:
    """The columns with captions: those asked for, or the first of COLUMNS. Raises InputError when there is none."""
    chosen = asked or [name for name in COLUMNS if name in available][:1]
    missing = [name for name in chosen if name not in available]
    if missing or not chosen:
        raise InputError(
            f"{source} has no column {' or '.join(missing) or 'text'}. Its columns are "
            f"{', '.join(sorted(available)) or 'none'}: name those with captions by --captions."
        )
    return chosen


def usable(values: list) -> tuple[list[str], str]:
    """Values of caption columns, each a caption or a list of them -> (the captions that can be used, what is wrong with the
    last of the others)."""
    captions, problem = [], "captions that are not text"
    for value in values:
        for text in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(text, str) or not _is_unicode(text):
                problem = "captions that are not text"
            elif not (text := text.strip("\ufeff \t\r\n")).strip():
                problem = "empty captions"
            elif len(text) > LONGEST:
                problem = f"captions over {LONGEST:,} characters"
            else:
                captions.append(text)
    return captions, problem


def _is_unicode(text: str) -> bool:
    """False of half a surrogate pair, which JSON can hold and no file can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def place(caption: str, of: str = "") -> float:
    """A number in [0, 1) from the words of a caption alone, whatever its capitals and its spaces."""
    words = " ".join(unicodedata.normalize("NFKC", caption).casefold().split())
    return int.from_bytes(hashlib.sha256((of + words).encode()).digest()[:8], "big") / 2**64


def key_place(captions: list[str]) -> float:
    """The place of a picture's key: which of its captions that is does not depend on their order."""
    return place(min(captions, key=lambda caption: (place(caption, "key "), caption)))


def bound(keys: np.ndarray) -> float:
    """Captions whose place is under the bound are held out. HELD_OUT, but at least one key and not all; none where there is one
    key only. keys: `key_place` of every picture."""
    places = np.unique(keys)
    if len(places) < 2:
        return 0.0
    return float(min(max(HELD_OUT, np.nextafter(places[0], 1)), places[-1]))


def trained(captions: list[str], bound: float) -> list[str]:
    """Of a trained picture's captions, those that are not held out."""
    return [caption for caption in captions if place(caption) >= bound]


def held_out(captions: list[str], bound: float) -> list[str]:
    return [caption for caption in captions if place(caption) < bound]
