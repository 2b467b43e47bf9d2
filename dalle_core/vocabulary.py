"""Which words of a prompt a model does not know, and the nearest that it does: for models that name their vocabulary."""

import re
import unicodedata
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property

from dalle_core.errors import InputError

MAX_WORDS, MAX_LENGTH = 20_000, 100  # of a vocabulary that is loaded: each unknown word is compared with all of it
MAX_UNKNOWN, MAX_NEAREST = 8, 3  # that are told of
SPELLED_ALIKE = 0.82  # difflib's ratio: "robt" and "robot" are, "five" and "fire" are not
STOP_WORDS = set(
    "a an the of in on at by to for from with without and or is are be it its this that these those there some any my "
    "your his her their our me you i he she they we please draw show make paint create generate want have has who which "
    "what as into very really just also "
    "的 了 和 与 在 是 有 着 一 个 我 你 他 她 它 请 画 想 要 这 那 很 把 被 给 上 下 里 中 面 边 旁 呢 吗 吧".split()
)
_HAN = r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_HAN}]+|[^\W_{_HAN}]+(?:['’-][^\W_{_HAN}]+)*")


@dataclass(frozen=True)
class Vocabulary:
    """words: what the model knows, in lower case; Chinese ones are words of any length. near: of words that it does not
    know, such as "kitten", what it does know instead, such as ["cat"]."""

    words: frozenset[str]
    near: dict[str, list[str]]

    @classmethod
    def of(cls, config) -> "Vocabulary | None":
        """From a model's configuration: None, or {"words": "words with spaces between", "near": {word: "name, name"}}.

        Raises InputError saying what in it cannot be.
        """
        if config is None:
            return None
        if not isinstance(config, dict) or set(config) != {"words", "near"}:
            raise InputError("vocabulary must be null or have words and near, and nothing else.")
        words, near = config["words"], config["near"]
        if not isinstance(words, str) or not isinstance(near, dict):
            raise InputError("vocabulary: words must be a text, near an object.")
        if not all(isinstance(text, str) for pair in near.items() for text in pair):
            raise InputError("vocabulary: near must have a text for each word.")
        words = words.split()
        if max(len(words), len(near)) > MAX_WORDS or max(map(len, [*words, *near, *near.values(), ""])) > MAX_LENGTH:
            raise InputError(f"vocabulary: {MAX_WORDS:,} words of {MAX_LENGTH} characters are the most.")
        return cls(frozenset(words), {word: names.split(", ") for word, names in near.items()})

    @cached_property
    def chinese(self) -> re.Pattern:
        """Any known Chinese word, the longest first."""
        known = sorted((word for word in self.words | STOP_WORDS if re.match(f"[{_HAN}]", word)), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, known)))

    def knows(self, word: str) -> bool:
        return any(form in self.words or form in STOP_WORDS for form in _forms(word))

    def nearest(self, word: str) -> list[str]:
        """Names of what is meant by the word, else words that are spelled like it; none, where nothing is near."""
        for form in _forms(word):
            if form in self.near:
                return self.near[form][:MAX_NEAREST]
        alike = [known for known in self.words if abs(len(known) - len(word)) <= 2 and len(known) > 2]
        return get_close_matches(word, sorted(alike), MAX_NEAREST, SPELLED_ALIKE)


def _forms(word: str) -> list[str]:
    """A word, and what it may be the plural of."""
    return [word, *(word.removesuffix(end) + stem for end, stem in (("s", ""), ("es", ""), ("ies", "y")) if word.endswith(end))]


def unknown_words(prompt: str, vocabulary: Vocabulary) -> list[tuple[str, list[str]]]:
    """The words of a prompt that are not in the vocabulary, each once, with up to three that are and are nearest: by meaning
    where the vocabulary says so, else by spelling. Stop words are left out. At most MAX_UNKNOWN."""
    found = {}
    for word in _WORD.findall(unicodedata.normalize("NFKC", prompt).lower()):
        if re.match(f"[{_HAN}]", word):
            parts = vocabulary.chinese.split(word)  # what no known word covers
        else:
            parts = [] if vocabulary.knows(word) else [part for part in re.split("[-’]", word) if not vocabulary.knows(part)]
        for part in parts:
            if part and part not in found and len(found) < MAX_UNKNOWN:
                found[part] = vocabulary.nearest(part)
    return list(found.items())
