"""The words of the corpus, and the words that a model does not know."""

import json
import re
from collections import Counter

import numpy as np
import pytest

import dalle_core
from dalle_core.__main__ import main
from dalle_core.errors import InputError, ModelError
from dalle_core.training import emoji_words as words
from dalle_core.training.assemble import names_of
from dalle_core.training.emoji import EmojiCorpus
from dalle_core.training.emoji_icons import VERSIONS
from dalle_core.vocabulary import MAX_UNKNOWN, Vocabulary, unknown_words
from tests.conftest import make_pipeline
from tests.corpus import CONCEPTS, STYLES, make_corpus

THINGS = words.things({concept: {"en": ["x"], "zh": ["x"]} for concept in CONCEPTS})
FOX, CAT, APPLE, _, PIZZA, ROBOT, *_ = (THINGS[concept] for concept in CONCEPTS)


def captions(kind, things, count=400, style="noto", background="purple", colour=None) -> Counter:
    rng = np.random.default_rng(0)
    return Counter(words.wording(rng, kind, things, style, background, colour) for _ in range(count))


def test_names_belong_to_one_thing_each_and_are_true_words():
    found, bare = words._read()
    assert len(found) == 452
    for names in ([thing.en for thing in found.values()], [thing.zh for thing in found.values()]):
        counts = Counter(name for part in names for name in part)
        assert [name for name, count in counts.items() if count > 1] == []
        assert all(name and name == name.strip() for name in counts)
    assert not {"face", "animal", "food", "plant", "building"} & {name for thing in found.values() for name in thing.en}
    assert all(re.fullmatch("[0-9A-F-]+", code) and thing.group and thing.measure for code, thing in found.items())
    assert bare <= {name for thing in found.values() for name in (*thing.en, *thing.zh)}


def test_things_without_a_line_keep_the_names_that_they_come_with():
    [thing] = words.things({"C0": {"en": ["thing"], "zh": ["物"]}}).values()
    assert thing == words.Thing("", ("thing",), "个", ("物",))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("apple", "an apple"),
        ("unicorn", "a unicorn"),
        ("bus", "a bus"),
        ("glasses", "glasses"),
        ("popcorn", "popcorn"),
        ("mount fuji", "mount fuji"),
        ("octopus", "an octopus"),
        ("suv", "an suv"),
    ],
)
def test_articles(name, expected):
    assert words.article(name) == expected


@pytest.mark.parametrize(
    "name, expected",
    [
        ("fox", "foxes"),
        ("bus", "buses"),
        ("wolf", "wolves"),
        ("mouse", "mice"),
        ("glass of milk", "glasses of milk"),
        ("potato", "potatoes"),
        ("taco", "tacos"),
        ("cherries", "cherries"),
        ("heart with arrow", "hearts with arrow"),
        ("strawberry", "strawberries"),
        ("monkey", "monkeys"),
        ("maple leaf", "maple leaves"),
    ],
)
def test_plurals(name, expected):
    assert words.plural(name) == expected


def test_wordings_are_those_that_people_use_and_the_plainest_is_the_most_frequent():
    found = captions("two and one", [CAT, PIZZA], style=None, background=None)
    assert {"two cats and a pizza", "a pizza and two cats", "两只猫和一块披萨"} <= set(found)
    assert found.most_common(1)[0][0] == "two cats and a pizza"
    found = captions("pair", [FOX, APPLE], 1500, style=None, background=None)
    assert {"a fox next to an apple", "fox and apple", "狐狸和苹果", "a picture of a fox and a red apple"} <= set(found)
    assert captions("single", [FOX], style=None, background=None).most_common(1)[0][0] == "a fox"


def test_what_is_to_be_named_is_named_in_either_language():
    for kind, things in (("single", [ROBOT]), ("above", [FOX, APPLE]), ("three", [CAT]), ("small", [FOX])):
        for text in captions(kind, things):
            assert "noto" in text and ("purple" in text or "紫色" in text)
            names = things[0].en if "purple" in text else things[0].zh
            assert any(name in text or words.plural(name) in text for name in names), text
    assert all("紫色" in text or "purple" in text for text in captions("single", [FOX]))
    assert "a red fox" in captions("single", [FOX], style=None, background=None, colour="red")
    assert not any("red red" in text for text in captions("single", [APPLE], style=None, background=None, colour="red"))


def test_colours_are_those_of_the_icon():
    def square(*colours):
        sprite = np.zeros((64, 64, 4), np.uint8)
        for k, colour in enumerate(colours):
            sprite[16:48, 16 + k * 32 // len(colours) : 48] = (*colour, 255)
        return sprite

    for name, rgb in {
        "red": (221, 46, 68),
        "yellow": (255, 204, 77),
        "green": (119, 178, 85),
        "blue": (85, 172, 238),
        "purple": (146, 102, 204),
        "brown": (138, 75, 56),
        "black": (30, 30, 30),
        "white": (250, 250, 250),
        "orange": (244, 144, 12),
        "pink": (244, 171, 186),
        "grey": (153, 160, 166),
    }.items():
        assert words.colour(square(rgb)) == name
    assert words.colour(square((221, 46, 68), (85, 172, 238))) is None  # half and half
    assert words.colour(np.zeros((64, 64, 4), np.uint8)) is None  # nothing to see


@pytest.fixture(scope="module")
def vocabulary():
    tags = {"1F408": ["kitten", "pet", "animal", "宠物"], "1F98A": ["animal"], "1F34E": ["fruit", "red"]}
    return words.vocabulary(THINGS, tags, STYLES)


def test_tags_come_from_emojibase(tmp_path):
    for language, tags in (("en", ["Kitten", "two words"]), ("zh", ["宠物"])):
        (tmp_path / language).mkdir()
        entry = {"hexcode": "1F408-FE0F", "label": "cat", "tags": tags}
        (tmp_path / language / "data.json").write_text(json.dumps([entry, {"hexcode": "1F98A"}]), encoding="utf-8")
    assert words.emoji_tags(tmp_path) == {"1F408": ["kitten", "宠物"], "1F98A": []}
    folder = make_corpus(tmp_path / "corpus")
    (folder / "packages").mkdir()
    package = folder / "packages" / f"emojibase-data-{VERSIONS['emojibase-data']}"
    package.mkdir()
    for language in ("en", "zh"):
        (tmp_path / language).rename(package / language)
    labels, vocabulary = names_of(EmojiCorpus(folder))
    assert "fox" in labels and len(labels) == 8 and vocabulary["near"]["kitten"] == "cat"


def test_every_caption_is_known(vocabulary, tmp_path):
    known, corpus = Vocabulary.of(vocabulary), EmojiCorpus(make_corpus(tmp_path))
    texts = [corpus.caption(i) for i in range(300)] + list(captions("two and one", [CAT, PIZZA], colour="red"))
    assert {text: found for text in texts if (found := unknown_words(text, known))} == {}


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("a kitten and a robt on a purple background", [("kitten", ["cat"]), ("robt", ["robot"])]),
        ("Two KITTENS, please!", [("kittens", ["cat"])]),
        ("an animal", [("animal", ["fox", "cat"])]),
        ("a picture of an astronaut", [("astronaut", [])]),
        ("a zebra-fox", [("zebra", [])]),
        ("一只恐龙和宠物", [("恐龙", []), ("宠物", ["猫"])]),
        ("一只小猫和苹果", []),
        ("two cats next to the pizza, noto style", []),
        ("🦊 !!", []),
        ("", []),
    ],
)
def test_unknown_words_and_their_nearest(vocabulary, prompt, expected):
    assert unknown_words(prompt, Vocabulary.of(vocabulary)) == expected


def test_a_long_prompt_is_answered_shortly(vocabulary):
    found = unknown_words(" ".join(f"qx{chr(97 + i % 26)}z{i}" for i in range(2000)), Vocabulary.of(vocabulary))
    assert len(found) == MAX_UNKNOWN


@pytest.mark.parametrize(
    "config, said",
    [
        ([], "words and near"),
        ({"words": "a"}, "words and near"),
        ({"words": ["a"], "near": {}}, "must be a text"),
        ({"words": "a", "near": {"b": 1}}, "a text for each"),
        ({"words": "a", "near": [1]}, "near an object"),
        ({"words": "a" * 101, "near": {}}, "are the most"),
        ({"words": "a " * 20_001, "near": {}}, "are the most"),
        ({"words": "a", "near": {}, "code": "b"}, "nothing else"),
    ],
)
def test_a_vocabulary_is_checked(config, said):
    with pytest.raises(InputError, match=said):
        Vocabulary.of(config)


def test_a_vocabulary_is_checked_when_it_is_loaded(saved):
    index = json.loads((saved / "model_index.json").read_text(encoding="utf-8"))
    (saved / "model_index.json").write_text(json.dumps(index | {"vocabulary": {"words": 1}}), encoding="utf-8")
    with pytest.raises(ModelError, match="model_index.json: vocabulary"):
        dalle_core.load(str(saved), device="cpu")


def test_a_model_keeps_its_vocabulary_and_the_command_tells(tmp_path, vocabulary, capsys):
    pipe = make_pipeline()
    assert pipe.unknown_words("a zebra") == []  # it names no vocabulary
    pipe = type(pipe)(**pipe.components, name="tiny", defaults={"num_candidates": 1}, vocabulary=vocabulary)
    pipe.save_pretrained(tmp_path / "model")
    again = dalle_core.load(str(tmp_path / "model"), device="cpu")
    assert again.unknown_words("a zebra") == [("zebra", [])]  # more does not fit what it reads
    main(["sample", "kitten", "--model", str(tmp_path / "model"), "--device", "cpu", "--out", str(tmp_path)])
    assert "does not know “kitten”; nearest: cat." in capsys.readouterr().out
