"""What the page and its endpoints ask of the studio, without either."""

import json
import zipfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from dalle_core import InputError
from dalle_core.pictures import enlarge
from dalle_core.prompts import rows_of
from dalle_core.request import DrawingRequest
from dalle_core.studio.budgets import Budget, Budgets, Busy
from dalle_core.studio.holder import ModelHolder
from dalle_core.studio.pool import to_entry
from dalle_core.studio.store import Store
from dalle_core.studio.studio import Studio


@pytest.fixture
def studio(tiny_pipeline, tmp_path):
    return Studio(ModelHolder(tiny_pipeline, "tiny"), Store(tmp_path / "store", also=[tmp_path]))


def pictures_of(studio, request, visitor="1.2.3.4", **arguments):
    *_, last = studio.draw(visitor, request, **arguments)
    return last.pictures


def pixels(path):
    return np.array(Image.open(path).convert("RGB"))


def test_a_drawing_is_the_pipeline_s_and_every_picture_carries_its_recipe(studio, tiny_pipeline):
    request = DrawingRequest("a red fox", num_candidates=3, seed=5, guidance_scale=2.0)
    updates = list(studio.draw("1.2.3.4", request, preview_every=4))
    expected = tiny_pipeline("a red fox", num_candidates=3, seed=5, guidance_scale=2.0)
    assert updates[0].seed == 5 and [len(update.previews) for update in updates if update.previews] == [3, 3, 3]
    for rank, (picture, candidate) in enumerate(zip(updates[-1].pictures, expected.candidates, strict=True), 1):
        assert (picture.rank, picture.drawn.index, picture.drawn.score) == (rank, candidate.index, candidate.score)
        assert picture.drawn.tokens.equal(candidate.tokens) and np.array_equal(pixels(picture.path), np.array(candidate.image))
        recipe = json.loads(Image.open(picture.path).text["dalle"])
        assert recipe["tokens"] == candidate.tokens.tolist() and recipe["settings"]["guidance_scale"] == 2.0
    [plain] = pictures_of(studio, DrawingRequest("a fox", num_candidates=1), save_recipe=False)
    assert "dalle" not in Image.open(plain.path).info


def test_a_seed_is_new_each_time_and_named(studio):
    first, second = (list(studio.draw("1.2.3.4", DrawingRequest("a fox", num_candidates=1))) for _ in range(2))
    assert first[0].seed != second[0].seed and first[-1].pictures[0].drawn.seed == first[0].seed == first[-1].seed


@pytest.mark.parametrize(
    "request_, said",
    [
        (DrawingRequest(""), "prompt is empty"),
        (DrawingRequest("Ж"), "none of the characters"),
        (DrawingRequest("a fox", num_candidates=0), "num_candidates is '0'"),
        (DrawingRequest("a fox", temperature=float("nan")), "temperature"),
        (DrawingRequest("a fox", top_k=[1]), "top_k"),
        (DrawingRequest(7), "prompt must be text"),
        (DrawingRequest("a fox", "Ж"), "negative prompt"),
        (DrawingRequest("a fox", seed=2**63), "seed"),
        (DrawingRequest("a fox", image_tokens=[[1]], keep=[[True]]), "shape"),
    ],
)
def test_what_cannot_be_drawn_is_a_sentence(studio, request_, said):
    with pytest.raises(InputError, match=said):
        list(studio.draw("1.2.3.4", request_))
    assert len(pictures_of(studio, DrawingRequest("a fox", num_candidates=1))) == 1


def test_what_nobody_expected_is_a_sentence_and_the_log_has_the_traceback(studio, tiny_pipeline, monkeypatch, caplog):
    def broken(*args, **kwargs):
        yield from ()
        raise TypeError("a secret of the server")

    with monkeypatch.context() as patch, pytest.raises(InputError, match="Drawing failed") as error:
        patch.setattr(tiny_pipeline, "stream", broken)
        list(studio.draw("1.2.3.4", DrawingRequest("a fox")))
    assert "secret" not in str(error.value) and "a secret of the server" in caplog.text


def test_closing_a_drawing_stops_the_work_and_lets_the_model_go(own_pipeline, tmp_path):
    calls = []
    own_pipeline.prior.head.register_forward_hook(lambda *_: calls.append(1))
    studio = Studio(ModelHolder(own_pipeline, "tiny", lambda source, tell: own_pipeline), Store(tmp_path / "store"))
    studio.holder.choices.append("other")
    with closing(studio.draw("1.2.3.4", DrawingRequest("a fox", num_candidates=2), preview_every=1)) as steps:
        next(steps), next(steps)
    seen = len(calls)
    assert seen < 16 and list(studio.holder.use("other"))[-1] == "Loading other…"  # would wait for somebody who holds it
    assert len(calls) == seen


def test_a_prompt_that_is_too_long_says_where_it_stops(studio):
    request = DrawingRequest("a fox and a banana " * 50_000, "a fox and a banana on a purple background", num_candidates=1)
    *_, last = studio.draw("1.2.3.4", request)
    assert [what for what, _, _ in last.cut] == ["prompt", "negative prompt"] and "background" in last.cut[1][2]
    assert len(last.pictures[0].drawn.request.prompt) <= 20_000


def test_an_entry_of_the_history_is_drawn_again_exactly(studio):
    first = pictures_of(studio, DrawingRequest("a red fox", num_candidates=4, seed=2**62 + 1))
    entry = to_entry(first)
    *_, (total, again) = studio.draw_again("1.2.3.4", entry)
    assert total == 4 and to_entry(again) == entry
    for one, other in zip(first, again, strict=True):
        assert one.path != other.path and np.array_equal(pixels(one.path), pixels(other.path))
    with pytest.raises(InputError, match="damaged"):
        list(studio.draw_again("1.2.3.4", entry.replace("tiny", "")[:-5]))


def test_a_saved_picture_opens_and_another_does_not(studio, tmp_path):
    picture = pictures_of(studio, DrawingRequest("a red fox", num_candidates=2, seed=5))[1]
    path = studio.download("1.2.3.4", picture)
    again = studio.open_saved("1.2.3.4", path)
    assert again.drawn.tokens.equal(picture.drawn.tokens) and (again.drawn.seed, again.drawn.index) == (5, picture.drawn.index)
    assert np.array_equal(pixels(again.path), pixels(picture.path))
    Image.new("RGB", (64, 64)).save(tmp_path / "plain.png")
    with pytest.raises(InputError, match="carries no recipe"):
        studio.open_saved("1.2.3.4", tmp_path / "plain.png")


def test_downloads_are_made_when_they_are_asked_for(studio):
    pictures = pictures_of(studio, DrawingRequest("a red fox", num_candidates=3, seed=5))
    before = {path for path in studio.store.root.rglob("*") if path.is_file()}
    assert len(before) == 3 and all(path.suffix == ".png" for path in before)
    one = studio.download("1.2.3.4", pictures[0])
    assert one.name == f"a-red-fox_seed5_{pictures[0].drawn.index}.png"
    assert np.array_equal(pixels(one), np.array(enlarge(Image.open(pictures[0].path))))
    with zipfile.ZipFile(studio.download_all("1.2.3.4", pictures)) as zip_:
        lines = json.loads(zip_.read("recipes.json"))
        assert set(zip_.namelist()) == {line["file"] for line in lines} | {"recipes.json"} and len(lines) == 3
    assert [line["rank"] for line in lines] == [1, 2, 3] and lines[0]["tokens"] == pictures[0].drawn.tokens.tolist()
    with zipfile.ZipFile(studio.download_all("1.2.3.4", pictures, save_recipe=False)) as zip_:
        assert len(zip_.namelist()) == 3


def test_what_the_store_has_removed_is_a_sentence(studio):
    pictures = pictures_of(studio, DrawingRequest("a fox", num_candidates=2))
    for picture in pictures:
        Path(picture.path).unlink()
    for made in (lambda: studio.download("1.2.3.4", pictures[0]), lambda: studio.download_all("1.2.3.4", pictures)):
        with pytest.raises(InputError, match="no longer has this picture"):
            made()


def test_a_picture_s_own_tokens_until_it_is_changed(studio):
    picture = pictures_of(studio, DrawingRequest("a red fox", num_candidates=1, seed=5))[0]
    for path in (picture.path, studio.download("1.2.3.4", picture)):
        assert studio.tokens_of("1.2.3.4", str(path)) == picture.drawn.tokens.tolist()
    image = Image.open(picture.path)
    recipe = image.text["dalle"]
    changed = image.copy()
    changed.paste("black", (0, 0, 32, 32))
    info = PngImagePlugin.PngInfo()
    info.add_text("dalle", recipe)
    path = Path(picture.path).with_name("changed.png")
    changed.save(path, pnginfo=info)
    assert studio.tokens_of("1.2.3.4", str(path)) == studio.encode("1.2.3.4", changed)


def test_an_address_that_asks_for_too_much_is_told_so_and_another_draws(tiny_pipeline, tmp_path):
    studio = Studio(
        ModelHolder(tiny_pipeline, "tiny"), Store(tmp_path), Budgets(Budget(candidates=4, previews=8, labels=10, running=1))
    )
    pictures_of(studio, DrawingRequest("a fox", num_candidates=3))
    with pytest.raises(Busy, match="candidates"):
        pictures_of(studio, DrawingRequest("a fox", num_candidates=2))
    with pytest.raises(Busy, match="previews"):
        pictures_of(studio, DrawingRequest("a fox", num_candidates=1), preview_every=1)
    with pytest.raises(Busy, match="labels"):
        studio.recognise("1.2.3.4", str(next(tmp_path.rglob("*.png"))), [f"label {i}" for i in range(11)])
    assert len(pictures_of(studio, DrawingRequest("a fox", num_candidates=3), "5.6.7.8")) == 3
    with closing(studio.draw("9.9.9.9", DrawingRequest("a fox", num_candidates=1))) as steps:
        next(steps)
        with pytest.raises(Busy, match="running"):
            pictures_of(studio, DrawingRequest("a fox", num_candidates=1), "9.9.9.9")
    assert len(pictures_of(studio, DrawingRequest("a fox", num_candidates=1), "9.9.9.9")) == 1


def test_a_data_set_is_drawn_into_the_store_and_zipped(studio):
    progress = list(studio.augment("1.2.3.4", rows_of(["a fox", "two apples"], 2), seed=3))
    last, out = progress[-1]
    assert last.drawn == last.kept == 4 and studio.store.root in out.parents
    path, count = studio.zip_data_set(out, 3)
    with zipfile.ZipFile(path) as zip_:
        assert count == 4 and len([name for name in zip_.namelist() if name.endswith(".png")]) == 4


def test_variations_keep_what_is_kept(studio):
    tokens = torch.arange(16).view(4, 4)
    keep = torch.eye(4, dtype=torch.bool)
    pictures = pictures_of(studio, DrawingRequest("a fox", num_candidates=2, image_tokens=tokens, keep=keep))
    assert all(picture.drawn.varied and picture.drawn.tokens[keep].equal(tokens[keep]) for picture in pictures)
    assert json.loads(to_entry(pictures))["varied"] is True
