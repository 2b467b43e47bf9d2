"""Data for training: the emoji corpus's held-out rules, folders of captioned images, the order of batches."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dalle_core.training import emoji
from dalle_core.training.data import ImageFolder, as_pixels, batches, in_order, open_dataset
from dalle_core.training.state import learning_rate


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory):
    """A prepared corpus of 40 made-up icons in five styles: plain discs of the icon's own colour."""
    folder = tmp_path_factory.mktemp("corpus")
    styles = ["noto", "blob", "twemoji", "fluent", "flat"]
    icons = [{"concept": f"C{i}", "style": style, "name": f"thing {i}"} for i in range(40) for style in styles]
    sprites = np.zeros((len(icons), 128, 128, 4), np.uint8)
    for n in range(len(icons)):
        sprites[n, 16:112, 16:112] = (n % 256, 6 * (n // 5) % 256, 90, 255)
    np.save(folder / "sprites.npy", sprites)
    concepts = {f"C{i}": {"en": [f"thing{i}", f"object{i}"], "zh": [f"物{i}"]} for i in range(40)}
    (folder / "icons.json").write_text(json.dumps({"icons": icons, "concepts": concepts}), encoding="utf-8")
    return folder


def test_corpus_pictures_depend_on_seed_and_number_alone(corpus_folder):
    one, other = emoji.EmojiCorpus(corpus_folder), emoji.EmojiCorpus(corpus_folder)
    for i in (0, 7, 99_999):
        assert np.array_equal(np.array(one.picture(i)), np.array(other.picture(i)))
        assert one.caption(i, 3) == other.caption(i, 3)
    assert len({one.caption(5, variant) for variant in range(20)}) > 1
    different = emoji.EmojiCorpus(corpus_folder, seed=1)
    assert [one.caption(i) for i in range(20)] != [different.caption(i) for i in range(20)]


def test_training_never_sees_what_is_held_out(corpus_folder):
    corpus = emoji.EmojiCorpus(corpus_folder)
    kept_out = set(corpus.kept_out)
    assert 2 <= len(kept_out) <= 30  # about 5 % of 200
    pairs = 0
    for i in range(3000):
        _, numbers, _ = corpus._parts(i)
        assert not kept_out & set(numbers)
        if len(numbers) == 2:
            pairs += 1
            assert not emoji.held_out_pairing(*(corpus.icons[n]["concept"] for n in numbers))
    assert pairs > 500
    assert len(corpus.held_out("style", 5)) == min(5, len(kept_out))
    for _, text in corpus.held_out("pairing", 5):
        assert " and " in text and "background" in text and "style" in text


def test_held_out_rules_are_fixed_and_of_the_promised_size():
    styles = ["noto", "blob", "twemoji", "fluent"]
    share = np.mean([emoji.held_out_style(f"{i:X}", "noto", styles) for i in range(20_000)])
    assert share == pytest.approx(0.05, abs=0.01)
    assert not any(emoji.held_out_style(f"{i:X}", "noto", styles[:3]) for i in range(500))  # only two other styles
    share = np.mean([emoji.held_out_pairing(f"{i:X}", f"{i + 7:X}") for i in range(20_000)])
    assert share == pytest.approx(0.10, abs=0.01)
    assert emoji.held_out_pairing("A", "B") == emoji.held_out_pairing("B", "A")


def test_captions():
    assert emoji.caption("single", ["apple"], False, "twemoji", None) == "an apple in twemoji style"
    assert emoji.caption("pair", ["fox", "banana"], False, None, "purple") == "a fox and a banana on a purple background"
    assert emoji.caption("pair", ["狐狸", "香蕉"], True, "noto", "purple") == "noto风格的紫色背景上的狐狸和香蕉"
    assert emoji.caption("two", ["fox"], False, None, None) == "two foxes"
    assert emoji.plural("cherry") == "cherries" and emoji.plural("day") == "days"


def test_a_thing_has_the_same_pixels_in_each_place_in_whole_cells(corpus_folder):
    for size, cell in ((96, 8), (192, 12)):
        corpus = emoji.EmojiCorpus(corpus_folder, image_size=size)
        picture = np.array(corpus._draw("two", [corpus.trained[3]], "blue"))
        assert picture.shape == (size, size, 3) and size // 2 % cell == 0
        assert np.array_equal(picture[:, : size // 2], picture[:, size // 2 :])
    assert open_dataset(str(corpus_folder), 192).picture(0).size == (192, 192)


def test_workers_may_be_spawned(corpus_folder):
    loader = batches(emoji.EmojiCorpus(corpus_folder), 4, 0, 2)
    pickle.dumps((loader.dataset.dataset.folder, loader.collate_fn))


def test_batches_resume_in_the_same_order(corpus_folder):
    corpus = emoji.EmojiCorpus(corpus_folder, length=37)
    whole = [text for _, texts in batches(corpus, 5, 0, 12, workers=0) for text in texts]
    rest = [text for _, texts in batches(corpus, 5, 4, 12, workers=0) for text in texts]
    assert whole[20:] == rest
    assert sorted(whole[:37]) == sorted(corpus.caption(i) for i in range(37))  # an epoch is every picture once
    bytes_, texts = next(iter(in_order(corpus, 3, 6, 9, workers=0)))
    assert texts == [corpus.caption(i) for i in (6, 7, 8)]
    assert bytes_.shape == (3, 3, 96, 96) and as_pixels(bytes_).aminmax().max <= 1


def test_image_folder(tmp_path):
    lines = []
    for i in range(40):
        Image.new("RGB", (30, 20), (6 * i, 0, 0)).save(tmp_path / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"red {i}" if i else ["red", "crimson"]}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    folder = open_dataset(str(tmp_path), image_size=16)
    assert isinstance(folder, ImageFolder) and len(folder) == 38
    assert folder.picture(3).size == (16, 16)
    assert [folder.caption(0, variant) for variant in range(3)] == ["red", "crimson", "red"]
    assert [text for _, text in folder.held_out("folder", 9)] == ["red 19", "red 39"]


@pytest.mark.parametrize(
    "line, message",
    [
        ("not json", "line 2"),
        ('{"file_name": "0.png"}', "line 2"),
        ('{"file_name": "gone.png", "text": "x"}', "gone.png"),
        ('{"file_name": "0.png", "text": []}', "list of captions"),
    ],
)
def test_image_folder_names_the_faulty_line(tmp_path, line, message):
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "x"}\n' + line, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        ImageFolder(tmp_path, 4)
    shutil.rmtree(tmp_path)
    with pytest.raises(ValueError, match="metadata.jsonl is missing"):
        ImageFolder(tmp_path, 4)


def test_a_caption_with_a_line_separator_is_one_caption(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "0.png")
    line = json.dumps({"file_name": "0.png", "text": "a fox\u2028and\x85a banana"}, ensure_ascii=False)
    (tmp_path / "metadata.jsonl").write_bytes(f"{line}\r\n\n{line}\n".encode())
    folder = ImageFolder(tmp_path, 4)
    assert [folder.caption(i) for i in range(len(folder))] == ["a fox\u2028and\x85a banana"] * 2


def test_unreadable_picture_is_named(tmp_path):
    (tmp_path / "0.png").write_text("no picture", encoding="utf-8")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "x"}', encoding="utf-8")
    with pytest.raises(ValueError, match="0.png cannot be read"):
        ImageFolder(tmp_path, 4).picture(0)


def test_learning_rate_warms_up_and_decays():
    rates = torch.tensor([learning_rate(step, 1000, 2.0, warmup=10) for step in range(1000)])
    assert rates.argmax() in (9, 10) and rates.max() == 2.0
    assert rates[0] == 0.2 and 0 < rates[-1] < 0.05
