"""History, permalinks and pools, without a browser."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from dalle_core import InputError
from demo import history, permalink, pictures, pool


@pytest.fixture
def items(tiny_pipeline):
    generation = tiny_pipeline("a red fox", num_candidates=4, seed=2**62 + 1)
    request = {"model": "tiny", "revision": "", "prompt": "a red fox", "negative_prompt": "", "settings": generation.settings,
               "varied": False}  # fmt: skip
    return generation, pool.ranked([
        {"path": "", "score": one.score, "seed": one.seed, "index": one.index, "tokens": history.pack(one.tokens.tolist()),
         "request": request}
        for one in generation.candidates
    ])  # fmt: skip


def test_an_entry_gives_the_same_tokens_and_pixels(items, tiny_pipeline, tmp_path):
    generation, kept = items
    text = history.to_entry(kept)
    *_, again = history.draw_again(history.read_entry(text, tiny_pipeline), tiny_pipeline, str(tmp_path))
    assert [item["score"] for item in again] == [one.score for one in generation.candidates]
    for item, one in zip(again, generation.candidates):
        assert item["seed"] == 2**62 + 1 and item["index"] == one.index
        assert history.unpack(item["tokens"], tiny_pipeline).equal(one.tokens)
        assert np.array_equal(np.array(Image.open(item["path"])), np.array(pictures.enlarge(one.image)))
    assert history.to_entry(again) == text


def test_the_archive_has_the_pictures_and_a_manifest(items, tiny_pipeline, tmp_path):
    generation, kept = items
    *_, again = history.draw_again(history.read_entry(history.to_entry(kept), tiny_pipeline), tiny_pipeline, str(tmp_path))
    with zipfile.ZipFile(pool.archive(again, str(tmp_path))) as zip_:
        lines, names = json.loads(zip_.read("recipes.json")), set(zip_.namelist())
    assert names == {line["file"] for line in lines} | {"recipes.json"} and len(names) == 5
    assert [line["tokens"] for line in lines] == [one.tokens.tolist() for one in generation.candidates]
    assert [line["rank"] for line in lines] == [1, 2, 3, 4] and lines[0]["prompt"] == "a red fox"
    with zipfile.ZipFile(pool.archive(again, str(tmp_path), save_recipe=False)) as zip_:
        assert len(zip_.namelist()) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"candidates": []}, {"candidates": 3}, {"candidates": [{}]}, {"candidates": [None]}, {"prompt": ""}, {"prompt": 3},
        {"prompt": "a" * 20_001}, {"settings": {}}, {"settings": []}, {"id": "../x"}, {"id": "<b>"}, {"model": None},
    ],
)  # fmt: skip
def test_forged_entries_are_refused(items, tiny_pipeline, changes):
    entry = json.loads(history.to_entry(items[1])) | changes
    with pytest.raises(InputError, match="damaged"):
        history.read_entry(json.dumps(entry), tiny_pipeline)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": "!"}, {"tokens": ""}, {"tokens": 3}, {"tokens": history.pack([[64] * 4] * 4)}, {"tokens": history.pack([[0]])},
        {"seed": 5}, {"seed": "-1"}, {"seed": str(2**63)}, {"seed": "9" * 5000}, {"index": -1}, {"index": True}, {"index": 64},
        {"score": "0.3"}, {"score": float("nan")}, {"score": 7}, {"score": True},
    ],
)  # fmt: skip
def test_forged_candidates_are_refused(items, tiny_pipeline, changes):
    entry = json.loads(history.to_entry(items[1]))
    entry["candidates"][1] |= changes
    with pytest.raises(InputError, match="damaged"):
        history.read_entry(json.dumps(entry), tiny_pipeline)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, None, 3, "x" * 3_000_000])
def test_what_is_no_entry_is_refused(tiny_pipeline, text):
    with pytest.raises(InputError, match="damaged"):
        history.read_entry(text, tiny_pipeline)


@pytest.mark.parametrize("name, value", [("temperature", 3), ("top_k", 0.5), ("top_p", float("nan")), ("num_candidates", "x")])
def test_settings_out_of_range_are_refused(items, tiny_pipeline, name, value):
    entry = json.loads(history.to_entry(items[1]))
    entry["settings"][name] = value
    with pytest.raises(InputError, match="damaged"):
        history.read_entry(json.dumps(entry), tiny_pipeline)


def test_another_models_entry_says_so(items, tiny_pipeline):
    entry = json.loads(history.to_entry(items[1])) | {"model": "dalle-mini"}
    with pytest.raises(InputError, match="'dalle-mini'; choose that model first"):
        history.read_entry(json.dumps(entry), tiny_pipeline)


def test_another_version_s_entry_says_so(items, tiny_pipeline):
    entry = json.loads(history.to_entry(items[1])) | {"revision": "0123456789ab"}
    with pytest.raises(InputError, match="another version of the model 'tiny'"):
        history.read_entry(json.dumps(entry), tiny_pipeline)


def test_a_link_there_and_back(items, tiny_pipeline):
    from urllib.parse import parse_qsl

    found, ignored = permalink.read_query(dict(parse_qsl(permalink.query(items[1][0]))), tiny_pipeline)
    settings = items[0].settings
    assert ignored == [] and found["prompt"] == "a red fox" and found["seed"] == str(2**62 + 1)
    assert {permalink.NAMES[name]: found[name] for name in permalink.NAMES} == settings
    wrong = {"seed": "-1", "candidates": "1e9", "temperature": "nan", "top_k": "1.5", "top_p": "", "guidance": "<b>", "other": "x"}
    assert permalink.read_query(wrong, tiny_pipeline) == ({}, ["seed", *permalink.NAMES])


def test_pools_merge_and_show_the_best_or_the_rejected(items):
    kept = items[1]
    merged = pool.ranked([*kept, *({**item, "seed": 7, "score": item["score"] - 0.01} for item in kept)])
    assert [item["rank"] for item in merged] == list(range(1, 9)) and {item["pool"] for item in merged} == {kept[0]["pool"]}
    assert len({pool.label(item) for item in merged}) == 8 and "seed 7" in "".join(map(pool.label, merged))
    assert "seed" not in pool.label(kept[0])
    shown, others = pool.in_order(merged, pool.RANKED, 4), pool.in_order(merged, pool.RANKED, 4, True)
    assert shown == merged[:4] and others == merged[4:] and pool.in_order(merged, pool.RANKED, 8, True) == []
    assert pool.plot(merged, merged[0]).count("<line") == 8 and pool.plot(merged[:1], merged[0]) == ""


def test_a_picture_without_its_recipe(tiny_pipeline, tmp_path):
    paths = pictures.save_all(tiny_pipeline("a red fox", num_candidates=1, seed=5), "tiny", str(tmp_path), save_recipe=False)
    assert "dalle" not in Image.open(paths[0]).info
