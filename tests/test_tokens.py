"""The tokens of a data set, encoded once: the same however often it was stopped, and never another tokenizer's."""

import json
import os
import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch
from diffusers import VQModel
from PIL import Image

from dalle_core import image_tokenizer
from dalle_core.errors import InputError
from dalle_core.training import tokens as training_tokens
from dalle_core.training.data import as_pixels, batches, first_captions, open_dataset, picture_of
from dalle_core.training.tokens import TokenStore, encode_tokens

SHARD = 4


@pytest.fixture(autouse=True)
def small_shards(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(training_tokens, "SHARD", SHARD)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def make_vq(codes: int = 64, seed: int = 0) -> VQModel:
    """8 x 8 pixels -> 2 x 2 tokens."""
    torch.manual_seed(seed)
    model = VQModel(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=8,
        num_vq_embeddings=codes,
        norm_num_groups=1,
        mid_block_add_attention=False,
        sample_size=8,
    )
    model.quantize.embedding.weight.data.normal_(std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def vq() -> VQModel:
    return make_vq()


def write_folder(folder: Path, count: int) -> Path:
    """Pictures of noise, 12 x 8, with two captions each."""
    folder.mkdir()
    lines = []
    for i in range(count):
        Image.effect_noise((12, 8), 100 + i).convert("RGB").save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": [f"a {i}", f"b {i}"]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def write_parquet(path: Path, folder: Path, count: int) -> Path:
    import pyarrow
    import pyarrow.parquet

    images = [{"bytes": (folder / f"{i}.png").read_bytes(), "path": f"{i}.png"} for i in range(count)]
    table = pyarrow.table({"image": images, "text": [[f"a {i}", f"b {i}"] for i in range(count)]})
    pyarrow.parquet.write_table(table, path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "pictures", 15)


def encoded(vq, dataset, i, draw=(0, 0)) -> list:
    """The slow, obvious way: one picture."""
    return image_tokenizer.encode(vq, as_pixels(picture_of(dataset, i, draw)[None]))[0].tolist()


def encode(*arguments, **options) -> None:
    encode_tokens(*arguments, **{"workers": 0, "batch_size": 3} | options)


def shards(folder: Path) -> dict:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_tokens_are_those_of_the_pictures_and_captions_are_the_data_sets(vq, folder, tmp_path):
    dataset = open_dataset(folder, 8)
    encode(vq, dataset, tmp_path / "store")
    store = TokenStore(tmp_path / "store", vq, dataset)
    assert len(store) == len(dataset) > 2 * SHARD
    for i in range(len(store)):
        assert store.tokens(i).dtype == torch.int64 and store.tokens(i).tolist() == encoded(vq, dataset, i)
        assert [store.caption(i, variant) for variant in range(3)] == [dataset.caption(i, variant) for variant in range(3)]
    assert len({tuple(store.tokens(i).flatten().tolist()) for i in range(len(store))}) > 8
    with pytest.raises(IndexError):
        store.tokens(len(store))
    fewer = TokenStore(tmp_path / "store", vq, dataset, count=6)
    assert len(fewer) == 6 and fewer.tokens(5).tolist() == store.tokens(5).tolist()
    again = pickle.loads(pickle.dumps(store))
    assert again.tokens(9).tolist() == store.tokens(9).tolist() and again.caption(9) == store.caption(9)


@pytest.mark.parametrize("codes, dtype", [(64, "U16"), (2**16 + 1, "I32")])
def test_as_many_bytes_as_the_codebook_needs(folder, tmp_path, codes, dtype):
    vq, dataset = make_vq(codes), open_dataset(folder, 8)
    with torch.no_grad():
        vq.quantize.embedding.weight[: codes - 4] += 100  # the last codes are the nearest
    encode(vq, dataset, tmp_path, count=1)
    header = (tmp_path / "000000.safetensors").read_bytes()[:300]
    assert f'"dtype":"{dtype}","shape":[1,1,2,2]'.encode() in header
    found = TokenStore(tmp_path, vq, dataset, count=1).tokens(0)
    assert found.min() >= codes - 4 and found.tolist() == encoded(vq, dataset, 0)


def test_batches_of_tokens(vq, folder, tmp_path):
    dataset = open_dataset(folder, 8)
    encode(vq, dataset, tmp_path)
    store = TokenStore(tmp_path, vq, dataset)
    whole = list(batches(store, 4, 0, 8, seed=1, workers=0))
    rest = list(batches(store, 4, 5, 8, seed=1, workers=0))
    pictures = list(batches(dataset, 4, 0, 8, seed=1, workers=0))
    for (tokens, texts, indices), (_, same, numbers) in zip(whole, pictures, strict=True):
        assert tokens.shape == (4, 2, 2) and texts == same and torch.equal(indices, numbers)
        assert tokens.tolist() == [store.tokens(int(i)).tolist() for i in indices]
    assert [indices.tolist() for *_, indices in rest] == [indices.tolist() for *_, indices in whole[5:]]
    halves = [list(batches(store, 4, 0, 8, seed=1, workers=0, part=(rank, 2))) for rank in (0, 1)]
    assert [a[1] + b[1] for a, b in zip(*halves, strict=True)] == [texts for _, texts, _ in whole]


class Killed(BaseException):
    """As if the process ended here."""


@pytest.mark.parametrize("streaming", [False, True])
def test_a_kill_at_any_write_loses_one_shard_at_most(vq, folder, tmp_path, monkeypatch, streaming):
    source = write_parquet(tmp_path / "data.parquet", folder, 15) if streaming else folder
    dataset = open_dataset(source, 8, streaming=streaming)
    encode(vq, dataset, tmp_path / "whole")
    encodings, encode_ = [], image_tokenizer.encode
    counted = lambda model, pixels: encodings.append(len(pixels)) or encode_(model, pixels)  # noqa: E731
    monkeypatch.setattr(image_tokenizer, "encode", counted)
    replace = os.replace
    for after in range(20):
        out, writes = tmp_path / f"killed{after}", 0

        def replacing(*paths, after=after):
            nonlocal writes
            writes += 1
            if writes > after:
                raise Killed
            replace(*paths)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replacing)
            try:
                encode(vq, dataset, out)
            except Killed:
                pass
            else:
                break
        if after:
            with pytest.raises(InputError, match="not complete"):
                TokenStore(out, vq, dataset)
        there = len(shards(out))
        encodings.clear()
        encode(vq, dataset, out)
        total = len(TokenStore(out, vq, dataset))
        full = there * SHARD if there * SHARD <= total else total
        once_more = total % SHARD if streaming and there * SHARD > total else 0  # nobody knew that it was the last
        assert sum(encodings) == total - full + once_more
        assert shards(out) == shards(tmp_path / "whole")
    assert after == len(shards(tmp_path / "whole")) + (2 if streaming else 1)


@pytest.mark.parametrize("streaming", [False, True])
def test_processes_encode_their_own_shards(vq, folder, tmp_path, streaming):
    source = write_parquet(tmp_path / "data.parquet", folder, 15) if streaming else folder
    dataset = open_dataset(source, 8, streaming=streaming)
    encode(vq, dataset, tmp_path / "one")
    encode(vq, dataset, tmp_path / "two", part=(1, 2))
    mine = shards(tmp_path / "two")
    assert sorted(mine) == sorted(shards(tmp_path / "one"))[1::2]
    with pytest.raises(InputError, match="not complete"):
        TokenStore(tmp_path / "two", vq, dataset)
    encode(vq, dataset, tmp_path / "two", part=(0, 2))
    assert shards(tmp_path / "two") == shards(tmp_path / "one") and len(TokenStore(tmp_path / "two", vq, dataset)) > 8


def test_a_stream_keeps_its_captions_and_can_be_cut_short(vq, folder, tmp_path):
    stream = open_dataset(write_parquet(tmp_path / "data.parquet", folder, 15), 8, streaming=True)
    encode(vq, stream, tmp_path / "store", count=6)
    store = TokenStore(tmp_path / "store", vq, stream, count=6)
    texts = first_captions(stream, 1000)
    assert len(store) == 6 and store.caption(0, 0) == texts[0]
    with pytest.raises(InputError, match="the stream's end was not reached"):
        TokenStore(tmp_path / "store", vq, stream)
    encode(vq, stream, tmp_path / "store")
    store = TokenStore(tmp_path / "store", vq, stream)
    said = [store.caption(i, variant) for i in range(len(store)) for variant in range(2)]
    assert set(said) == set(texts) and 12 <= len(store) <= 15
    rows = [row for row, _ in stream.read()]
    assert [store.tokens(i).tolist() for i in range(len(store))] == [encoded(vq, stream, row) for row in rows]
    again = pickle.loads(pickle.dumps(store))
    assert next(iter(batches(again, 4, 0, 1, workers=0)))[0].shape == (4, 2, 2)


def test_tokens_of_anything_else_are_refused(vq, folder, tmp_path):
    dataset = open_dataset(folder, 8)
    encode(vq, dataset, tmp_path / "store")
    other_data = open_dataset(write_folder(tmp_path / "other", 9), 8)
    cases = [
        (make_vq(seed=1), dataset, "another image tokenizer: "),
        (vq, other_data, "another data set: "),
        (vq, open_dataset(folder, 16), "another image size: "),
        (vq, open_dataset(folder, 8, random_crop=True), "another crop: "),
        (make_vq(seed=1), open_dataset(folder, 16), "another image tokenizer and another image size: "),
        (vq, open_dataset(folder, 8, flip=True), "another flip: "),
    ]
    for model, data, words in cases:
        for open_ in (encode, lambda model, data, store: TokenStore(store, model, data)):
            with pytest.raises(InputError, match=f"holds tokens of {words}give another folder, or delete it"):
                open_(model, data, tmp_path / "store")
    (tmp_path / "store" / "store.json").unlink()
    with pytest.raises(InputError, match="no store.json"):
        encode(vq, dataset, tmp_path / "store")
    with pytest.raises(InputError, match="holds no tokens yet"):
        TokenStore(tmp_path / "nothing", vq, dataset)


def test_damaged_files_of_a_store_are_named(vq, folder, tmp_path):
    dataset = open_dataset(folder, 8)
    encode(vq, dataset, tmp_path)
    shard = tmp_path / "000001.safetensors"
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(InputError, match="000001.safetensors is damaged: delete it"):
        encode(vq, dataset, tmp_path)
    shard.unlink()
    encode(vq, dataset, tmp_path)
    assert len(TokenStore(tmp_path, vq, dataset)) == len(dataset)
    (tmp_path / "store.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="store.json is damaged"):
        TokenStore(tmp_path, vq, dataset)


def test_more_pictures_of_the_same_are_added(vq, folder, tmp_path):
    dataset = open_dataset(folder, 8)
    encode(vq, dataset, tmp_path / "store", count=6)
    with pytest.raises(InputError, match="not complete"):
        TokenStore(tmp_path / "store", vq, dataset)
    encode(vq, dataset, tmp_path / "store")
    encode(vq, dataset, tmp_path / "once")
    assert shards(tmp_path / "store") == shards(tmp_path / "once")
    encode(vq, dataset, tmp_path / "store", count=2)  # nothing to do, and nothing is lost
    assert len(TokenStore(tmp_path / "store", vq, dataset)) == len(dataset)


def test_variants_are_other_crops_one_an_epoch(vq, folder, tmp_path):
    dataset = open_dataset(folder, 8, random_crop=True, flip=True)
    encode(vq, dataset, tmp_path / "store", count=9, variants=3)
    store = TokenStore(tmp_path / "store", vq, dataset, count=9)
    for i in range(9):
        assert [store.tokens(i, v).tolist() for v in range(4)] == [encoded(vq, dataset, i, (i, v % 3)) for v in range(4)]
    assert sum(not torch.equal(store.tokens(i, 0), store.tokens(i, 1)) for i in range(9)) > 4
    read = Counter()
    for step, (tokens, _, indices) in enumerate(batches(store, 9, 0, 3, workers=0)):  # an epoch a step
        read += Counter(map(int, indices))
        assert tokens.tolist() == [store.tokens(int(i), step).tolist() for i in indices]
    assert set(read.values()) == {3}
    with pytest.raises(InputError, match="another number of variants"):
        encode(vq, dataset, tmp_path / "store", count=9)
    with pytest.raises(InputError, match="All variants of a picture would be the same"):
        encode(vq, open_dataset(folder, 8), tmp_path / "other", variants=2)


def test_a_damaged_picture_is_left_out_with_its_caption(vq, tmp_path, capsys):
    folder = write_folder(tmp_path / "pictures", 9)
    Image.effect_noise((64, 64), 50).save(folder / "5.png")
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:1000])
    dataset = open_dataset(folder, 8)
    number = [dataset.caption(i).split()[1] for i in range(len(dataset))].index("5")
    encode(vq, dataset, tmp_path / "store")
    store = TokenStore(tmp_path / "store", vq, dataset)
    good = [i for i in range(len(dataset)) if i != number]
    assert [store.caption(i) for i in range(len(store))] == [dataset.caption(i) for i in good]
    assert [store.tokens(i).tolist() for i in range(len(store))] == [encoded(vq, dataset, i) for i in good]
    assert capsys.readouterr().out.count("5.png cannot be read as a picture") == 1


def test_a_model_in_bfloat16_encodes_in_float32(vq, folder, tmp_path, monkeypatch):
    dtypes, encode_ = set(), image_tokenizer.encode
    monkeypatch.setattr(
        image_tokenizer, "encode", lambda model, pixels: dtypes.add(next(model.parameters()).dtype) or encode_(model, pixels)
    )
    model = make_vq().to(torch.bfloat16)
    encode(model, open_dataset(folder, 8), tmp_path, count=2)
    assert dtypes == {torch.float32} and next(model.parameters()).dtype == torch.bfloat16
