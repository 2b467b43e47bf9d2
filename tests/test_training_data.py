"""Data for training: what is opened, what is left out and said, what is kept out, and the order of batches."""

import argparse
import functools
import io
import json
import pickle
import random
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dalle_core.errors import InputError
from dalle_core.training import data as training_data
from dalle_core.training import emoji, text_tokenizer
from dalle_core.training.captions import place
from dalle_core.training.data import (
    add_data_arguments,
    as_pixels,
    batches,
    first_captions,
    first_pictures,
    in_order,
    open_dataset,
    open_from,
)
from dalle_core.training.emoji_words import caption
from dalle_core.training.loop import learning_rate
from dalle_core.training.pictures import PictureStream


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """What `datasets` keeps of Parquet files and tars."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # 5 s after each epoch of a stream
    datasets.disable_progress_bars()


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
    contrast = corpus.contrast(32)
    kept_out = set(corpus.kept_out)
    assert 2 <= len(kept_out) <= 30  # about 5 % of 200
    pairs = 0
    for i in range(1500):
        for one in (corpus, contrast):
            _, numbers, _ = one._parts(i)
            assert not kept_out & set(numbers)
            if len(numbers) == 2:
                pairs += 1
                assert not emoji.held_out_pairing(*one.shown(i))
    assert pairs > 700
    for _, text, shown in corpus.evaluated("trained", 9):
        assert shown[0] in {corpus.icons[n]["concept"] for n in set(range(200)) - kept_out} and " in " in text
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


def test_plainest_captions():
    assert caption("single", ["apple"], False, "twemoji", None) == "an apple in twemoji style"
    assert caption("pair", ["fox", "banana"], False, None, "purple") == "a fox and a banana on a purple background"
    assert caption("pair", ["狐狸", "香蕉"], True, "noto", "purple") == "noto风格的紫色背景上的狐狸和香蕉"
    assert caption("two", ["fox"], False, None, None) == "two foxes"
    assert caption("two and one", ["cat", "pizza"], False, None, None) == "two cats and a pizza"


def test_a_thing_has_the_same_pixels_in_each_place_in_whole_cells(corpus_folder):
    for size, cell in ((96, 8), (192, 12)):
        corpus = emoji.EmojiCorpus(corpus_folder, image_size=size)
        picture = np.array(corpus._draw("two", [corpus.trained[3]], "blue"))
        assert picture.shape == (size, size, 3) and size // 2 % cell == 0
        assert np.array_equal(picture[:, : size // 2], picture[:, size // 2 :])
    assert open_dataset(str(corpus_folder), 192).picture(0).size == (192, 192)


def test_two_and_one_stands_where_its_caption_says(corpus_folder):
    corpus = emoji.EmojiCorpus(corpus_folder, image_size=192)
    a, b = corpus.by_style["noto"][:2]
    picture = np.array(corpus._draw("two and one", [a, b], "white")).astype(int)
    centres = [tuple(picture[y, x]) for x, y in ((48, 48), (144, 48), (96, 144))]
    assert centres == [tuple(corpus.sprites[n][64, 64, :3]) for n in (a, a, b)]
    three = np.array(corpus._draw("three", [a], "white"))
    assert all(tuple(three[96, x]) == centres[0] for x in (36, 96, 156))
    assert np.array_equal(three[:, 7:65], three[:, 67:125]) and np.array_equal(three[:, 7:65], three[:, 127:185])


def test_blocks_stand_for_what_is_taken_for_each_other(corpus_folder):
    corpus, block = emoji.EmojiCorpus(corpus_folder), 32
    contrast = corpus.contrast(block)
    for start in (0, 5 * block):
        first = [contrast.shown(start + k)[0] for k in range(block)]
        assert len(set(first[:16])) == 16  # of one group, each once
        pairs = [contrast.shown(start + k) for k in range(16, 20)]
        assert len({a for a, _ in pairs}) == 1 and all(contrast._parts(start + k)[0] == "pair" for k in range(16, 20))
        styles = [corpus.icons[contrast._parts(start + k)[1][0]] for k in range(20, 22)]
        assert styles[0]["concept"] == styles[1]["concept"] == pairs[0][0] and styles[0]["style"] != styles[1]["style"]
        for k, icon in zip(range(20, 22), styles):
            assert all(icon["style"] in contrast.caption(start + k, variant) for variant in range(5))
    pairs = [start + k for start in range(0, 40 * block, block) for k in range(16, 18)]
    straight = [np.array(contrast._draw(*contrast._parts(i))) for i in pairs]
    same = np.mean([np.array_equal(np.array(contrast.picture(i)), picture) for i, picture in zip(pairs, straight)])
    assert 0.3 < same < 0.7  # the others have their sides swapped


def test_batches_resume_in_the_same_order(corpus_folder):
    corpus = emoji.EmojiCorpus(corpus_folder, length=37)
    whole = [text for _, texts, _ in batches(corpus, 5, 0, 16, workers=0) for text in texts]
    rest = [text for _, texts, _ in batches(corpus, 5, 4, 16, workers=0) for text in texts]
    assert whole[20:] == rest
    assert sorted(whole[:37]) == sorted(corpus.caption(i, 0) for i in range(37))  # an epoch is every picture once
    assert sorted(whole[37:74]) == sorted(corpus.caption(i, 1) for i in range(37))  # worded anew
    bytes_, texts, indices = next(iter(in_order(corpus, 3, 6, 9, workers=0)))
    assert texts == [corpus.caption(i) for i in (6, 7, 8)] and indices.tolist() == [6, 7, 8]
    assert bytes_.shape == (3, 3, 96, 96) and as_pixels(bytes_).aminmax().max <= 1


def test_the_corpus_goes_to_a_worker_without_its_icons(corpus_folder):
    corpus = emoji.EmojiCorpus(corpus_folder)
    assert len(pickle.dumps(corpus)) < corpus.sprites.nbytes / 20
    again = pickle.loads(pickle.dumps(corpus))
    assert np.array_equal(np.array(again.picture(7)), np.array(corpus.picture(7))) and again.fingerprint == corpus.fingerprint
    others = [emoji.EmojiCorpus(corpus_folder, seed=1), emoji.EmojiCorpus(corpus_folder, image_size=48)]
    assert corpus.fingerprint not in {other.fingerprint for other in others}
    with pytest.raises(InputError, match="--data is the only argument about data"):
        open_dataset(corpus_folder, 96, flip=True)


# ---------------------------------------------------------------- a folder of pictures


def colour(i: int) -> tuple[int, int, int]:
    return (i * 5 % 256, i * 31 % 256, 200)


def write_folder(folder: Path, captions: dict[str, object], ending: str = "\n", mark: str = "") -> Path:
    """A picture of 12 x 8 pixels in colour(i) for every name, and the metadata."""
    for i, name in enumerate(captions):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8), colour(i)).save(folder / name)
    lines = [json.dumps({"file_name": name, "text": text}, ensure_ascii=False) for name, text in captions.items()]
    (folder / "metadata.jsonl").write_bytes((mark + ending.join(lines) + ending).encode())
    return folder


def colours(dataset) -> list[tuple]:
    return [tuple(map(int, np.asarray(dataset.picture(i))[0, 0])) for i in range(len(dataset))]


def both_parts(dataset) -> list[str]:
    return sorted(
        [caption for i in range(len(dataset)) for caption in [dataset.caption(i)]]
        + [caption for _, caption in dataset.held_out("caption", 1000)]
    )


def test_every_picture_that_is_named_is_used_whatever_its_name(tmp_path):
    names = [
        "test tubes.jpg",
        "validation.png",
        "test/1.png",
        "train/1.png",
        "[a].png",
        "a#b%20c.png",
        "狐狸.png",
        "été 1.webp",
    ]
    names += ["*?.png"] if sys.platform != "win32" else []
    folder = write_folder(tmp_path / "pictures [1] #2 %41 狐", {name: f"caption {i}" for i, name in enumerate(names)})
    dataset = open_dataset(folder, 4)
    assert len(dataset) + len(dataset.kept_out) == len(names)
    assert both_parts(dataset) == sorted(f"caption {i}" for i in range(len(names)))
    for i in range(len(dataset)):
        number = int(dataset.caption(i).split()[1])
        assert np.abs(np.array(dataset.picture(i))[0, 0] - np.array(colour(number))).max() < 12  # JPEG and WebP lose a little
    assert dataset.picture(0).size == (4, 4) and dataset.image_size == 4 and dataset.licence is None


@pytest.mark.parametrize("ending, mark", [("\n", ""), ("\r\n", "\ufeff"), ("\n\n", "")])
def test_metadata_as_editors_save_it(tmp_path, ending, mark):
    captions = {"0.png": "a fox\u2028and\x85a banana", "1.png": ["  狐狸\n", "fox"], "2.png": "x"}
    dataset = open_dataset(write_folder(tmp_path, captions, ending, mark), 4)
    found = {dataset.caption(i) for i in range(len(dataset))} | {text for _, text in dataset.held_out("caption", 9)}
    assert found <= {"a fox\u2028and\x85a banana", "狐狸", "fox", "x"} and len(dataset) + len(dataset.kept_out) == 3


def test_csv_several_columns_and_a_licence(tmp_path):
    for i in range(3):
        Image.new("RGB", (8, 8), colour(i)).save(tmp_path / f"{i}.png")
    rows = ["name,long,short", '0.png,"a fox, ""red""\nand\u2028wild",fox', "1.png,,banana", "2.png,two pears,pears"]
    (tmp_path / "metadata.csv").write_bytes("\ufeff".encode() + "\r\n".join(rows).encode())
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n", encoding="utf-8")
    dataset = open_dataset(tmp_path, 8, captions=["long", "short"], image="name")
    texts = {dataset.caption(i, variant) for i in range(len(dataset)) for variant in range(2)}
    texts |= {text for _, text in dataset.held_out("caption", 9)}
    assert len(dataset) + len(dataset.kept_out) == 3 and len(texts) > 2
    assert texts <= {'a fox, "red"\nand\u2028wild', "fox", "banana", "two pears", "pears"}
    assert dataset.licence == "cc-by-4.0"
    with pytest.raises(InputError, match="no column nothing. Its columns are long, short: name those with captions by"):
        open_dataset(tmp_path, 8, captions=["nothing"], image="name")
    with pytest.raises(InputError, match="no column file_name: name the one with the pictures' files by --image"):
        open_dataset(tmp_path, 8)


def test_what_cannot_be_used_is_counted_and_named(tmp_path, capsys):
    bad = [None, 7, [], {}, " ", "x" * 5000, ["", 7], "\ud800"]
    captions = {f"{i}.png": f"caption {i}" for i in range(89)} | {f"bad {i}.png": "x" for i in range(len(bad))}
    folder = write_folder(tmp_path, captions)
    Image.new("RGB", (4, 4)).save(folder / "alone.png")
    (folder / "7.png").write_bytes(b"no picture")
    (folder / "8.png").write_bytes(b"")
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()[:89] + ["no JSON", '"text"', '{"text": "x"}']
    lines += [json.dumps({"file_name": f"bad {i}.png", "text": text}) for i, text in enumerate(bad)]
    lines += [json.dumps({"file_name": "gone.png", "text": "x"}), '{"file_name": 3, "text": "x"}']
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        open_dataset(folder, 4)
    sentence = str(caught.value)
    assert "14 of 103 cannot be used" in sentence and sentence.endswith("--allow-bad 0.14.")  # before headers are read
    parser = argparse.ArgumentParser()
    add_data_arguments(parser)
    dataset = open_from(parser.parse_args(["--data", str(folder), "--allow-bad", "0.2"]), image_size=4)
    said = capsys.readouterr().out
    for words in (
        "lines without a picture: 1 (gone.png)",
        "pictures without a line: 1 (alone.png)",
        "empty captions: 1 (metadata.jsonl, line 97)",
        "captions over 4,000 characters: 1 (metadata.jsonl, line 98)",
        "captions that are not text: 6 (metadata.jsonl, line 93",
        "lines that name no picture: 4 (metadata.jsonl, line 90, metadata.jsonl, line 91, metadata.jsonl, line 92, …)",
        "damaged pictures: 2",
        "7.png",
    ):
        assert words in said, (words, said)
    assert len(dataset) + len(dataset.kept_out) == 87
    assert f"{len(dataset)} pictures, {len(dataset.kept_out)} kept out" in said


def test_a_command_ends_with_one_sentence(tmp_path, monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["text_tokenizer", "--out", str(tmp_path / "out"), *arguments])
        text_tokenizer.main()

    with pytest.raises(SystemExit, match="metadata.jsonl is missing: one line"):
        run("--data", str(tmp_path))
    with pytest.raises(SystemExit, match="nowhere does not exist"):
        run("--data", "nowhere")
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(SystemExit, match="pip install -r requirements-train.txt"):
            run("--data", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="data/emoji is not there yet: `python -m dalle_core.training.emoji` makes it"):
        run()
    run("--data", str(write_folder(tmp_path / "p", {f"{i}.png": f"a fox {i}" for i in range(4)})), "--vocab-size", "300")
    assert (tmp_path / "out" / "tokenizer.json").is_file()


# ---------------------------------------------------------------- what is kept out


def test_no_caption_is_in_both_parts_and_the_order_of_lines_does_not_matter(tmp_path):
    captions = {f"{i}.png": [f"thing {i // 3}", f"Thing  {i // 2}", f"object {i}"] for i in range(300)}
    one = open_dataset(write_folder(tmp_path / "one", captions), 4)
    kept_out = {" ".join(text.lower().split()) for _, text in one.held_out("caption", 1000)}
    trained = {" ".join(one.caption(i, variant).lower().split()) for i in range(len(one)) for variant in range(3)}
    assert kept_out and not kept_out & trained and all(place(text) < 0.05 for text in kept_out)
    assert len(one) + len(one.kept_out) == 300 and 3 <= len(one.kept_out) <= 35
    order = list(captions.items())
    random.Random(0).shuffle(order)
    other = open_dataset(write_folder(tmp_path / "two", {name: texts[::-1] for name, texts in order}), 4)
    names = [{Path(d.rows[int(row)]["image"]["path"]).name for row in d.kept_out} for d in (one, other)]
    assert names[0] == names[1]


@pytest.mark.parametrize("texts, kept_out", [(["a", "A "], 0), (["a"], 0), (["a", "b"], 1), (["a", "a", "b", "c"], None)])
def test_small_sets_keep_one_caption_out_and_not_all(tmp_path, texts, kept_out):
    dataset = open_dataset(write_folder(tmp_path, {f"{i}.png": text for i, text in enumerate(texts)}), 4)
    found = dataset.held_out("caption", 9)
    assert len({text for _, text in found}) == (1 if kept_out is None else kept_out)
    assert len(dataset) + len(found) == len(texts) and len(dataset) > 0


def test_two_captions_that_the_hash_would_both_keep_out(tmp_path):
    texts = [text for text in (f"fox {i}" for i in range(1000)) if place(text) < 0.05][:2]
    dataset = open_dataset(write_folder(tmp_path, {"0.png": texts[0], "1.png": texts[1]}), 4)
    assert len(dataset) == len(dataset.kept_out) == 1


def test_a_picture_of_several_lines_is_one_picture(tmp_path):
    write_folder(tmp_path, {"0.png": "a", "1.png": "b"})
    with open(tmp_path / "metadata.jsonl", "a", encoding="utf-8") as metadata:
        metadata.write('{"file_name": "./0.png", "text": "c"}\n{"file_name": "1.png", "text": "d"}')
    dataset = open_dataset(tmp_path, 4)
    assert len(dataset) + len(dataset.kept_out) == 2


def test_the_fingerprint_is_of_files_and_of_what_changes_pixels(tmp_path):
    folder = write_folder(tmp_path, {f"{i}.png": f"caption {i}" for i in range(5)})
    same, again = open_dataset(folder, 4).fingerprint, open_dataset(str(folder), 4).fingerprint
    assert same == again
    others = [open_dataset(folder, 4, flip=True), open_dataset(folder, 8), open_dataset(folder, 4, random_crop=True)]
    Image.new("RGB", (50, 50), "red").save(folder / "3.png")
    others.append(open_dataset(folder, 4))
    assert len({same, *(other.fingerprint for other in others)}) == 5


# ---------------------------------------------------------------- Parquet, tars, the Hub


def png(i: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 8), colour(i)).save(file, "PNG")
    return file.getvalue()


def write_parquet(path: Path, numbers, image=None, text=None) -> Path:
    """`image` and `text`: what a row's number makes of it."""
    image, text = image or (lambda i: {"bytes": png(i), "path": f"{i}.png"}), text or (lambda i: f"caption {i}")
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": [image(i) for i in numbers], "text": [text(i) for i in numbers], "other": list(numbers)}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def write_tar(path: Path, numbers, files) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for i in numbers:
            for end, content in files(i).items():
                member = tarfile.TarInfo(f"{i:04}.{end}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def test_parquet(tmp_path):
    folder = tmp_path / "[a] #1 *" if sys.platform != "win32" else tmp_path / "[a] #1"
    write_parquet(folder / "test [0].parquet", range(20))
    write_parquet(folder / "train.parquet", range(20, 40), text=lambda i: None if i == 30 else f"caption {i}")
    dataset = open_dataset(folder, 4)
    assert both_parts(dataset) == sorted(f"caption {i}" for i in range(40) if i != 30)
    assert all(found == colour(int(dataset.caption(i).split()[1])) for i, found in enumerate(colours(dataset)))
    assert str(dataset.report) == "captions that are not text: 1 (30.png)"
    assert dataset.fingerprint == open_dataset(folder, 4).fingerprint
    one = write_parquet(tmp_path / "bytes.parquet", range(3), image=png, text=lambda i: [f"caption {i}", "x"])
    assert open_dataset(one, 4, image="image").picture(0).size == (4, 4)  # bytes alone
    with pytest.raises(InputError, match="holds no pictures"):
        open_dataset(one, 4, image="other")
    (tmp_path / "bad.parquet").write_bytes(b"no Parquet")
    with pytest.raises(InputError, match="bad.parquet cannot be read"):
        open_dataset(tmp_path / "bad.parquet", 4)


def test_damaged_pictures_of_a_table_are_found_by_their_headers(tmp_path):
    file = write_parquet(tmp_path / "x.parquet", range(40), image=lambda i: {"bytes": b"" if i == 3 else png(i), "path": None})
    dataset = open_dataset(file, 4)
    assert str(dataset.report) == "damaged pictures: 1 (picture 4)" and colour(3) not in colours(dataset)


@pytest.mark.parametrize("streaming", [False, True])
def test_webdataset(tmp_path, streaming):
    def files(i):
        text = json.dumps({"caption": f"caption {i}", f"only {i}": i}).encode()
        return {"jpg" if i % 2 else "png": png(i), "json": text, "cls": b"3"} | ({"txt": b"a text"} if i > 30 else {})

    write_tar(tmp_path / "b [1].tar", range(20, 40), files)
    write_tar(tmp_path / "a.tar", range(20), files)
    dataset = open_dataset(tmp_path, 4, streaming=streaming)
    if streaming:
        found = first_captions(dataset, 1000)
        assert [colour(int(text.split()[1])) for text in found] == [p.getpixel((0, 0)) for p in first_pictures(dataset, 1000)]
        found = sorted(found + [text for _, text in dataset.held_out("caption", 1000)])
    else:
        found = both_parts(dataset)
    assert found == sorted(f"caption {i}" for i in range(40))
    assert first_captions(open_dataset(tmp_path, 4, captions=["txt"], allow_bad=1), 1) == ["a text"]


def hub(monkeypatch, rows, **errors):
    """The Hub as `datasets` sees it, with one data set whose builder gives `rows`."""
    import datasets

    asked = []

    def load_dataset_builder(*names):
        asked.append(names)
        if errors:
            raise errors["error"]
        return types.SimpleNamespace(
            download_and_prepare=lambda: asked.append("downloaded"),
            as_dataset=lambda split: asked.append(split) or rows,
            as_streaming_dataset=lambda split: asked.append(split) or rows.to_iterable_dataset(),
            hash="commit",
            info=types.SimpleNamespace(license="mit"),
        )

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    return asked


def test_a_data_set_of_the_hub(tmp_path, monkeypatch):
    import datasets

    images = [Image.new("RGB", (12, 8), colour(i)) for i in range(30)]
    rows = {"photo": images, "words": [[f"caption {i}"] for i in range(30)], "id": range(30)}
    rows = datasets.Dataset.from_dict(rows).cast_column("photo", datasets.Image())
    asked = hub(monkeypatch, rows)
    dataset = open_dataset("owner/name", 4, captions=["words"], split="validation")
    assert asked == [("owner/name", None), "downloaded", "validation"]
    assert both_parts(dataset) == sorted(f"caption {i}" for i in range(30))
    assert (dataset.name, dataset.licence) == ("owner/name", "mit")
    assert all(found == colour(int(dataset.caption(i).split()[1])) for i, found in enumerate(colours(dataset)))
    stream = open_dataset("owner/name", 4, captions=["words"], subset="large", streaming=True)
    assert asked[3:] == [("owner/name", "large"), "train"] and isinstance(stream, PictureStream)
    assert sorted(first_captions(stream, 99)) == sorted(dataset.caption(i) for i in range(len(dataset)))
    with pytest.raises(InputError, match="no column text. Its columns are id, words: name those with captions by --captions"):
        open_dataset("owner/name", 4)
    hub(monkeypatch, rows, error=RuntimeError("Dataset scripts are no longer supported, but found name.py"))
    with pytest.raises(InputError, match="Dataset scripts are no longer supported, but found name.py."):
        open_dataset("owner/name", 4)


# ---------------------------------------------------------------- the order of batches


def read(dataset, *arguments, **options) -> list[tuple]:
    """(first colour, caption, index) of every item, batch by batch."""
    return [
        [(tuple(pixels[:, 0, 0].tolist()), text, int(i)) for pixels, text, i in zip(*batch)]
        for batch in batches(dataset, *arguments, **{"workers": 0} | options)
    ]


@pytest.fixture
def sources(tmp_path):
    """The same wide pictures, each of its own gradient, as a table and as a stream."""

    def wide(i):
        file = io.BytesIO()
        Image.fromarray(np.add.outer(np.zeros(8), np.linspace(0, 200, 40) + i).astype(np.uint8)).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": f"{i}.png"}

    for part in range(3):
        numbers = range(10 * part, 10 * part + 10)
        write_parquet(tmp_path / "data" / f"{part}.parquet", numbers, wide, lambda i: [f"a {i}", f"b {i}"])
    return [open_dataset(tmp_path / "data", 8, streaming=streaming, random_crop=True, flip=True) for streaming in (False, True)]


def test_a_batch_depends_on_seed_step_and_position_alone(sources, monkeypatch):
    for dataset in sources:
        whole = read(dataset, 8, 0, 9, seed=3)
        assert read(dataset, 8, 5, 9, seed=3) == whole[5:]
        halves = [read(dataset, 8, 2, 6, seed=3, part=(rank, 2)) for rank in (0, 1)]
        assert [a + b for a, b in zip(*halves, strict=True)] == whole[2:6]
        assert read(dataset, 8, 0, 9, seed=4) != whole
        items = [item for batch in whole for item in batch]
        epoch = len({text.split()[1] for _, text, _ in items})  # every picture of the trained part
        assert 25 <= epoch < 30
        for start in (0, epoch):
            assert len({text.split()[1] for _, text, _ in items[start : start + epoch]}) == epoch
        assert [text[0] for _, text, _ in items[:epoch]].count("a") > epoch / 2  # captions in turn, but for those held out
        assert [text[0] for _, text, _ in items[epoch : 2 * epoch]].count("b") > epoch / 2
        assert [text.split()[1] for _, text, _ in items[:epoch]] != [text.split()[1] for _, text, _ in items[epoch : 2 * epoch]]
        places = {pixel[0] - int(text.split()[1]) for (pixel, text, _) in items}
        assert len(places) > 20  # crops from everywhere
    with pytest.raises(InputError, match="A batch of 8 cannot be shared by 3 processes"):
        batches(sources[0], 8, 0, 1, part=(0, 3))
    assert len(read(sources[1], 8, 1, 4, workers=2)) == 3
    assert read(sources[1], 8, 1, 6, seed=3, workers=2) == read(sources[1], 8, 1, 6, seed=3)


def test_workers_that_are_spawned_make_the_same_batches(tmp_path, monkeypatch):
    """As on macOS and Windows: all that a worker gets is pickled."""
    dataset = open_dataset(write_folder(tmp_path, {f"{i}.png": f"caption {i}" for i in range(9)}), 8, random_crop=True)
    loader = training_data.DataLoader
    monkeypatch.setattr(training_data, "DataLoader", functools.partial(loader, multiprocessing_context="spawn"))
    spawned = read(dataset, 4, 1, 3, workers=1)
    monkeypatch.setattr(training_data, "DataLoader", loader)
    assert spawned == read(dataset, 4, 1, 3)
    stream = open_dataset(write_parquet(tmp_path / "x" / "x.parquet", range(9)), 8, streaming=True)
    assert read(pickle.loads(pickle.dumps(stream)), 4, 0, 2) == read(stream, 4, 0, 2)


def test_without_random_crops_the_centre_is_seen(tmp_path):
    """As before: ImageOps.fit, which resizes the centred square."""
    array = np.zeros((8, 24, 3), np.uint8)
    array[:, 8:16] = 255
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "x"}', encoding="utf-8")
    Image.fromarray(array).save(tmp_path / "0.png")
    pixels, _, _ = next(iter(batches(open_dataset(tmp_path, 8), 1, 0, 1, workers=0)))
    assert (pixels == 255).all()
    half = array.copy()
    half[:, 12:] = 0
    Image.fromarray(half).save(tmp_path / "0.png")
    flipped = batches(open_dataset(tmp_path, 8, flip=True), 1, 0, 20, workers=0)
    firsts = {tuple(pixels[0, 0, 0, [0, -1]].tolist()) for pixels, *_ in flipped}
    assert firsts == {(255, 0), (0, 255)}  # as it is, and mirrored


@pytest.mark.parametrize("count", [1, 3, 9])
def test_fewer_pictures_than_a_batch(tmp_path, count):
    dataset = open_dataset(write_folder(tmp_path, {f"{i}.png": "the same" for i in range(count)}), 4)
    found = [index for batch in read(dataset, 8, 0, 9) for *_, index in batch]
    assert len(found) == 72 and {found.count(i) for i in range(count)} == {72 // count}
    assert sorted(found[:count]) == list(range(count))


def cut(path: Path) -> None:
    """The header stays."""
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:1000])


def test_a_damaged_picture_is_replaced_counted_and_named(tmp_path, capsys):
    folder = write_folder(tmp_path, {f"{i}.png": "the same" for i in range(6)})
    cut(folder / "2.png")
    dataset = open_dataset(folder, 4)
    with pytest.raises(InputError, match="2.png cannot be read as a picture"):
        dataset.picture(2)
    loader = batches(dataset, 6, 0, 2, workers=0)
    found = [index for *_, indices in loader for index in indices.tolist()]
    assert 2 not in found and found.count(3) == 4
    assert list(loader.damaged.values()) == [2] and "2.png cannot be read" in list(loader.damaged)[0]
    assert capsys.readouterr().out.count("Another picture takes its place.") == 1
    assert len(first_pictures(dataset, 9)) == 5
    for i in range(6):
        cut(folder / f"{i}.png")
    with pytest.raises(InputError, match="pictures in a row are damaged"):
        read(open_dataset(folder, 4), 6, 0, 1)


def test_a_damaged_picture_of_a_stream_is_replaced(tmp_path):
    cut(tmp_path / "cut.png")
    damaged = (tmp_path / "cut.png").read_bytes()
    file = write_parquet(
        tmp_path / "x.parquet", range(130), lambda i: {"bytes": damaged if i in (110, 115) else png(i), "path": f"{i}.png"}
    )
    stream = open_dataset(file, 4, streaming=True)
    loader = batches(stream, 10, 0, 11, workers=0)
    texts = [text for _, texts, _ in loader for text in texts]
    assert len(texts) == 110 and "caption 110" not in texts and "caption 115" not in texts
    assert {sentence.split()[0] for sentence in loader.damaged} == {"110.png", "115.png"}


def test_learning_rate_warms_up_and_decays():
    rates = torch.tensor([learning_rate(step, 1000, 2.0, warmup=10) for step in range(1000)])
    assert rates.argmax() in (9, 10) and rates.max() == 2.0
    assert rates[0] == 0.2 and 0 < rates[-1] < 0.05
