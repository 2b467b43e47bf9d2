"""What the page computes, without a browser."""

import json
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, PngImagePlugin

from dalle_core import CATALOGUE, InputError, ModelError
from dalle_core.pictures import png
from demo import Models, complete, create_demo, pictures, recognise, run, tokens, uploads
from demo.models import facts as model_facts


def test_enlarging_is_exact_in_size_and_true_in_colour():
    image = Image.new("RGB", (96, 96), (200, 30, 30))
    image.paste((250, 250, 250), (48, 0, 96, 96))
    large = np.array(pictures.enlarge(image)).astype(int)
    assert large.shape == (384, 384, 3)
    assert abs(large[:, 20] - (200, 30, 30)).max() <= 2 and abs(large[:, -20] - 250).max() <= 2
    edge = (large[200, :, 1] > 60) & (large[200, :, 1] < 220)
    assert edge.sum() <= 6  # an edge stays an edge


@pytest.mark.parametrize(
    "prompt, name",
    [
        ("a Red fox!", "a-red-fox_seed7_3.png"),
        ("狐狸 和 香蕉", "狐狸-和-香蕉_seed7_3.png"),
        ("../../etc/passwd", "etc-passwd_seed7_3.png"),
        ("***", "picture_seed7_3.png"),
    ],
)
def test_file_names(prompt, name):
    assert pictures.file_name(prompt, 7, 3) == name
    assert len(pictures.file_name("word " * 1000, 7, 3)) < 90
    assert len(pictures.file_name("𝕒" * 1000, 2**63 - 1, 63).encode()) < 255  # what file systems allow


def test_saved_pictures_carry_their_recipe(tiny_pipeline, tmp_path):
    generation = tiny_pipeline("a red fox", num_candidates=3, seed=5)
    paths = pictures.save_all(generation, "tiny", str(tmp_path))
    for candidate, path in zip(generation.candidates, paths):
        recipe = json.loads(Image.open(path).text["dalle"])
        assert recipe["tokens"] == candidate.tokens.tolist() and recipe["seed"] == 5
        assert recipe["index"] == candidate.index and recipe["settings"] == generation.settings


def test_time_left_and_notices():
    assert "25.0%" in run.status(256, 1024, 2.0) and "6 s left" in run.status(256, 1024, 2.0)
    assert run.cut_notice("all of it", "") == ""
    assert "&lt;script&gt;" in run.cut_notice("<script>", "<b>rest</b>") and "<b>" not in run.cut_notice("a", "<b>")
    with pytest.raises(InputError, match="'x' is not a whole number"):
        run.parse_seed("x", keep=True)
    assert run.parse_seed("12", keep=True, drawn="12") == 12
    assert run.parse_seed("12", keep=False, drawn="7") == 12  # typed: it is meant
    assert run.parse_seed("12", keep=False, drawn="12") is None and run.parse_seed(" ", keep=True) is None


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_candidates": float("nan")}, "num_candidates is 'nan'"), ({"num_candidates": float("inf")}, "num_candidates is 'inf'"),
        ({"temperature": float("nan")}, "temperature is 'nan'"), ({"top_k": 65}, "from 0 to 64"),
        ({"image_tokens": torch.zeros(3, 3, dtype=torch.long), "keep": torch.ones(3, 3, dtype=torch.bool)}, "shape"),
        ({"image_tokens": torch.full((4, 4), 64), "keep": torch.ones(4, 4, dtype=torch.bool)}, "0 to 63"),
    ],
)  # fmt: skip
def test_what_the_controls_cannot_send_gets_a_sentence_too(tiny_pipeline, tmp_path, changes, message):
    with pytest.raises(gr.Error, match=message):
        list(run.draw(Models(tiny_pipeline, "tiny"), "tiny", str(tmp_path), "a fox", 1, **changes))


def test_a_negative_prompt_that_is_too_long_says_where_it_stops(tiny_pipeline, tmp_path):
    words = {"negative_prompt": "a fox and a banana on a purple background", "num_candidates": 1}
    updates = list(run.draw(Models(tiny_pipeline, "tiny"), "tiny", str(tmp_path), "a fox", 1, **words))
    assert "The negative prompt is longer" in updates[-1].cut and "background</s>" in updates[-1].cut


# ---------------------------------------------------------------- changing the model


def collect(steps):
    lines = []
    try:
        lines.extend(steps)
    except Exception as error:
        return lines, error
    return lines, None


def test_the_model_before_is_freed_first_and_comes_back_after_a_failure():
    alive, models = [], None

    def load(source, tell):
        assert models.pipe is None
        alive.append(source)
        if source == "dalle-mega":
            raise ModelError("it takes 10.5 GB, and 6.0 GB are free")
        tell("Downloading…")
        return SimpleNamespace(name=source)

    models = Models(SimpleNamespace(name="emoji"), "emoji", load)
    lines, error = collect(models.use("dalle-mini"))
    assert lines == ["Loading dalle-mini…", "Downloading…"] and error is None and models.pipe.name == "dalle-mini"
    assert collect(models.use("dalle-mini")) == ([], None)
    lines, error = collect(models.use("dalle-mega"))
    assert "10.5 GB" in str(error) and models.source == models.pipe.name == "dalle-mini"
    assert alive == ["dalle-mini", "dalle-mega", "dalle-mini"]
    assert "not one of this page's models" in str(collect(models.use("../../etc"))[1])


def test_files_are_downloaded_before_the_model_in_use_is_freed():
    def download(source, tell, freed):
        assert models.pipe.name == "emoji" and freed == 4 * CATALOGUE["emoji"].parameters
        tell("Downloading…")
        with models.drawing("emoji"):  # others go on drawing meanwhile
            pass
        if source == "dalle-mega":
            raise ModelError("no network")

    loads = []

    def load(source, tell):
        loads.append(source)
        return SimpleNamespace(name=source, prior=SimpleNamespace(dtype=torch.float32))

    models = Models(load("emoji", None), "emoji", load, download)
    lines, error = collect(models.use("dalle-mega"))
    assert lines == ["Downloading…"] and str(error) == "no network" and loads == ["emoji"] and models.pipe.name == "emoji"
    assert collect(models.use("dalle-mini")) == (["Downloading…", "Loading dalle-mini…"], None)


def test_a_change_waits_for_those_who_draw():
    models = Models(SimpleNamespace(name="emoji"), "emoji", lambda source, tell: SimpleNamespace(name=source))
    with models.drawing("emoji") as pipe:
        change = models.use("dalle-mini")
        assert "Waiting" in next(change) and models.pipe is pipe
    assert list(change) == ["Loading dalle-mini…"] and models.pipe.name == "dalle-mini"
    with pytest.raises(ModelError, match="Another visitor"), models.drawing("emoji"):
        pass


def test_what_is_known_of_a_model_is_shown(tiny_pipeline):
    assert "downloads 1.1 GB" in model_facts("dalle-mini", None) and "MIT" in model_facts("dalle-mini", None)
    tiny_pipeline.register_to_config(licence="CC-BY-NC-SA-4.0 (non-commercial)")
    shown = model_facts("/models/1.3B", tiny_pipeline)
    assert "non-commercial" in shown and "64 candidates at a time" in shown and "float32 on cpu" in shown
    tiny_pipeline.register_to_config(licence="unknown")


@pytest.fixture(scope="module")
def drawn(tiny_pipeline):
    return tiny_pipeline("a red fox", num_candidates=2, seed=5, guidance_scale=2.0)


def test_a_saved_picture_gives_its_recipe_back(drawn, tiny_pipeline, tmp_path):
    paths = pictures.save_all(drawn, "tiny", str(tmp_path))
    recipe = uploads.read_recipe(str(paths[0]), tiny_pipeline)
    best = drawn.candidates[0]
    assert recipe["prompt"] == "a red fox" and recipe["seed"] == 5 and recipe["settings"] == drawn.settings
    assert recipe["index"] == best.index and recipe["score"] == best.score
    assert np.array_equal(np.array(tiny_pipeline.decode(torch.tensor(recipe["tokens"]))), np.array(best.image))


def test_a_picture_without_clip_s_score_gives_its_recipe_back(drawn, tiny_pipeline, tmp_path):
    unranked = pictures.recipe(drawn, drawn.candidates[0], "tiny") | {"score": None}
    (tmp_path / "a.png").write_bytes(png(drawn.candidates[0].image, unranked))
    assert uploads.read_recipe(str(tmp_path / "a.png"), tiny_pipeline)["score"] is None


SETTINGS = [
    ("temperature", 3), ("temperature", float("nan")), ("temperature", [1]), ("top_k", 65), ("top_k", 0.5), ("top_p", 0),
    ("guidance_scale", -1), ("guidance_scale", 10**400), ("num_candidates", 0), ("num_candidates", 65),
    ("num_candidates", True), ("num_candidates", None),
]  # fmt: skip


@pytest.mark.parametrize(
    "changes, message",
    [
        *(({"tokens": value}, "tokens are not") for value in ("x", [[0]], [[99] * 4] * 4, [[-1] * 4] * 4, [[0.5] * 4] * 4)),
        ({"model": "dalle-mini"}, "dalle-mini"), ({"model": 3}, "damaged"),
        ({"revision": "0123456789ab"}, "another version of the model 'tiny'.*a red fox"),
        ({"seed": "x"}, "damaged"), ({"seed": -1}, "damaged"), ({"seed": 2**63}, "damaged"), ({"seed": 1.5}, "damaged"),
        ({"prompt": ["a"]}, "damaged"), ({"negative_prompt": 3}, "damaged"), ({"prompt": "a" * 20_001}, "damaged"),
        ({"index": -1}, "damaged"), ({"index": 64}, "damaged"), ({"index": True}, "damaged"), ({"index": "0"}, "damaged"),
        ({"score": float("nan")}, "damaged"), ({"score": float("inf")}, "damaged"), ({"score": "0.3"}, "damaged"),
        ({"score": True}, "damaged"), ({"score": 10**400}, "damaged"), ({"settings": 3}, "damaged"),
        ({"settings": []}, "damaged"),
        *(({"settings": {name: value}}, "damaged") for name, value in SETTINGS),
    ],
)  # fmt: skip
def test_a_forged_recipe_is_refused(drawn, tiny_pipeline, tmp_path, changes, message):
    recipe = pictures.recipe(drawn, drawn.candidates[0], "tiny")
    if isinstance(changes.get("settings"), dict):
        changes = {"settings": recipe["settings"] | changes["settings"]}
    (tmp_path / "a.png").write_bytes(png(drawn.candidates[0].image, recipe | changes))
    with pytest.raises(InputError, match=message):
        uploads.read_recipe(str(tmp_path / "a.png"), tiny_pipeline)


@pytest.mark.parametrize("text", ['{"model": "tiny", "prom', "[]", "3", "null", "[" * 100_000])
def test_a_recipe_that_was_cut_is_refused(drawn, tiny_pipeline, tmp_path, text):
    info = PngImagePlugin.PngInfo()
    info.add_text("dalle", text)
    drawn.candidates[0].image.save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(InputError, match="recipe in this picture is damaged"):
        uploads.read_recipe(str(tmp_path / "a.png"), tiny_pipeline)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_that_ends_too_early_is_refused(drawn, tiny_pipeline, tmp_path, share):
    paths = pictures.save_all(drawn, "tiny", str(tmp_path))
    whole = paths[0].read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(InputError, match="cut.png is (damaged|not a picture)"):
        uploads.read_recipe(str(tmp_path / "cut.png"), tiny_pipeline)


def test_a_picture_of_another_origin_carries_no_recipe(drawn, tiny_pipeline, tmp_path):
    drawn.candidates[0].image.save(tmp_path / "plain.png")
    with pytest.raises(InputError, match="no recipe"):
        uploads.read_recipe(str(tmp_path / "plain.png"), tiny_pipeline)


def test_nothing_misses_its_first_value(tiny_pipeline):
    """Gradio loses, now and then, a value that is sent together with what makes its row or column exist."""
    demo = create_demo(Models(tiny_pipeline, "tiny"))
    containers = [block for block in demo.blocks.values() if isinstance(block, gr.blocks.BlockContext)]
    assert any(block.visible == "hidden" for block in containers)
    assert [block.elem_id for block in containers if block.visible is False] == []
