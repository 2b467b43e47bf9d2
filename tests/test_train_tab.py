"""The Train tab: what it reads of a training's folder while that is written, whatever is in there, and who has the tab."""

import argparse
import json
import os
import time

import gradio as gr
import pytest

from dalle_core import InputError, page
from dalle_core.studio import runs
from demo import create_demo, open_studio
from demo.tabs import train
from tests.trainings import line, write_training, write_whole


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The runs of a machine: one training of all parts."""
    root = tmp_path_factory.mktemp("runs")
    write_whole(root / "mine")
    return root


@pytest.fixture
def tab(whole, tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    with gr.Blocks():
        return train.Train(open_studio(tiny_pipeline, "tiny", lambda source, tell: pytest.fail("not asked for")), whole)


def shown(tab, updates) -> dict:
    """elem_id -> value, of what is visible afterwards."""
    values = {}
    for block, update in updates.items():
        update = (
            update
            if isinstance(update, dict)
            else update.constructor_args
            if isinstance(update, gr.LinePlot)
            else {"value": update}
        )
        if update.get("elem_classes") != "unused":
            values[block.elem_id or type(block).__name__] = update.get("value")
    return values


def test_of_a_training_of_several_parts_the_part_at_work_is_shown(tab, whole):
    found = shown(tab, tab.open(None, None, train.LINEAR, None, None))
    assert found["train-run"] == str(whole / "mine")  # the first of the list
    assert (
        "Step 300 of 400" in found["train-status"]
        and "100 s left" not in found["train-status"]
        and "min left" in found["train-status"]
    )
    assert found["train-figures"] == ["loss"] and len(found["train-plot"]) == 30
    assert found["train-samples"].getpixel((0, 0)) == (300 % 256, 0, 0) and found["train-older"] == 300
    assert "train-reconstructions" not in found and "train-empty" not in found
    assert "&lt;b&gt;pictures" in tab.open(None, None, train.LINEAR, None, None)[tab.config]


def test_every_training_and_its_parts_are_in_the_list(whole):
    names = [path.replace(str(whole), "").replace(os.sep, "/") for path in train.choices(whole)]
    assert names[:2] == ["/mine", "/mine/prior"] and set(names) == {"/mine", "/mine/prior", "/mine/image_tokenizer"}


def test_older_pictures_are_a_slider_away_and_newer_ones_do_not_push_them_aside(tab, whole):
    folder = str(whole / "mine" / "prior")
    first = tab.open(folder, None, train.LINEAR, None, None)
    older = tab.again(folder, ["loss"], train.LINEAR, 250, first[tab.seen])
    assert shown(tab, older)["train-samples"].getpixel((0, 0)) == (200, 0, 0)
    assert older[tab.pictures["samples"]]["label"].endswith("step 200")
    again = tab.again(folder, ["loss"], train.LINEAR, 250, older[tab.seen])
    assert shown(tab, again)["train-older"] == 250


def test_the_logarithmic_scale_and_the_chosen_figures(tab, whole):
    folder = str(whole / "mine" / "image_tokenizer")
    seen = tab.open(folder, None, train.LINEAR, None, None)[tab.seen]
    plot = shown(tab, tab.again(folder, ["reconstruction", "psnr"], train.LOGARITHMIC, 0, seen))["train-plot"]
    assert set(plot["figure"]) == {"reconstruction", "psnr"}
    last = plot[plot["figure"] == "reconstruction"]["value"].iloc[-1]
    assert last == pytest.approx(-0.602, abs=1e-3)  # 1 halved twice, as a power of ten
    none = shown(tab, tab.again(folder, [], train.LINEAR, 0, seen))
    assert none["train-figures"] == [] and len(none["train-plot"]) == 0


def test_what_has_not_changed_is_not_read_again(tab, tmp_path):
    run = write_training(tmp_path / "runs" / "a", 50, {"steps": 100}, loss=1.0)
    seen = tab.open(str(run), None, train.LINEAR, None, None)[tab.seen]
    assert list(tab.look(str(run), ["loss"], train.LINEAR, 0, seen)) == [tab.seen]
    with open(run / "log.jsonl", "a", encoding="utf-8") as log:
        log.write(line(60, time.time(), loss=0.1) + '{"step": 70, "lo')
    assert "Step 60 of 100" in shown(tab, tab.look(str(run), ["loss"], train.LINEAR, 0, seen))["train-status"]


def test_without_a_training_there_is_the_command_to_start_one(tiny_pipeline, tmp_path):
    with gr.Blocks() as demo:
        tab = train.Train(open_studio(tiny_pipeline, "tiny"), tmp_path / "none")
    found = shown(tab, tab.open(None, None, train.LINEAR, None, None))
    assert "train-empty" in found and "train-body" not in found
    commands = [block.value for block in demo.blocks.values() if getattr(block, "elem_id", "") == "train-command"]
    assert commands == [train.COMMAND] and "python -m dalle_core train" in train.COMMAND
    for text in ("/nowhere", "x" * 5000, "a\0b", str(tmp_path)):
        with pytest.raises(InputError, match="is no folder of a training"):
            tab.open(text, None, train.LINEAR, None, None)


def test_a_log_that_is_damaged_hostile_or_endless_is_read_as_far_as_it_goes(tmp_path, monkeypatch):
    run = write_training(tmp_path / "run", 30, {"steps": "many"}, loss=1.0)
    (run / "log.jsonl").write_bytes(
        b'not json\n[1]\n{"step": "x"}\n{"step": -1}\n{"step": 99999999999999}\n'
        + b"[" * 100_000
        + b"\n\xff\xfe\n"
        + line(10, 1.0, loss=1.0).encode()
        + line(20, 2.0, loss=2.0).encode()
        + line(30, 3.0, loss=3.0).encode()
        + b'{"step": 20, "time": NaN, "loss": NaN, "psnr": Infinity, "text": "x", "flag": true, "big": 1e999}\n'
        + line(40, 900.0, loss=4.0, **{f"figure{i}": i for i in range(200)}).encode()
        + b'{"step": 50, "lo'
    )
    found = runs.read_run(run)
    assert (found.step, found.steps) == (40, None) and found.curves["loss"] == [(10, 1.0), (40, 4.0)]  # it went on from 10
    assert len(found.curves) == runs.FIGURES and "psnr" not in found.curves and "flag" not in found.curves
    (run / "config.json").write_text("{" * 10_000, encoding="utf-8")
    assert runs.read_run(run).config == {}
    monkeypatch.setattr(runs, "TAIL", 20_000)
    with open(run / "log.jsonl", "w", encoding="utf-8") as log:
        log.writelines(line(step, step, loss=1.0) for step in range(5000))
    points = runs.read_run(run).curves["loss"]
    assert points[0][0] > 4000 and points[-1][0] == 4999 and len(points) <= runs.POINTS


def test_the_time_left_knows_no_pauses(tmp_path):
    rows = [line(step, step + (3600 if step > 50 else 0), loss=1.0) for step in range(10, 101, 10)]  # an hour's pause
    run = write_training(tmp_path / "run", 10, {"steps": 400}, loss=1.0)
    (run / "log.jsonl").write_text("".join(rows), encoding="utf-8")
    found = runs.read_run(run)
    assert found.seconds_left == pytest.approx(300) and found.writing
    os.utime(run / "log.jsonl", (0, 0))
    assert "not at work now" in train.status(runs.read_run(run)) and "left" not in train.status(runs.read_run(run))


def test_a_picture_that_is_just_being_written_gives_way_to_the_one_before(tmp_path):
    run = write_training(tmp_path / "run", 10, {}, {"samples": [10, 20]}, loss=1.0)
    newest = run / "pictures" / "samples_000020.png"
    newest.write_bytes(newest.read_bytes()[:60])
    (run / "pictures" / "samples_000030.png").write_text("no picture", encoding="utf-8")
    (run / "pictures" / "samples_x.png").write_text("not of a step", encoding="utf-8")
    step, path, image = train.picture_at(runs.read_run(run).pictures["samples"], 30)
    assert step == 10 and image.size == (64, 32)
    assert train.picture_at([], 30) is None


def test_the_newest_weights_are_loaded_as_any_model(whole, own_pipeline, tmp_path, monkeypatch):
    import dalle_core

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    studio = open_studio(own_pipeline, "tiny", lambda source, tell: dalle_core.load(source))
    with gr.Blocks():
        tab = train.Train(studio, whole)
    lines = [update[tab.status] for update in tab.load(str(whole / "mine"))]
    assert "weights are loaded" in lines[-1]
    assert studio.holder.loaded.name == "mine-step-300" and studio.holder.source in studio.holder.choices
    with studio.holder.hold() as pipe:
        assert pipe.clip is not None
        [best] = pipe("a red fox", num_candidates=1, seed=1).candidates
    expected = own_pipeline("a red fox", num_candidates=1, seed=1, temperature=0.8, guidance_scale=1.5, top_k=64, top_p=1.0)
    assert (best.tokens == expected.candidates[0].tokens).all()  # what the training wrote, in float16
    before = tab.made
    os.utime(whole / "mine" / "prior" / "log.jsonl")
    with open(whole / "mine" / "prior" / "log.jsonl", "a", encoding="utf-8") as log:
        log.write(line(310, time.time(), loss=1.0))
    list(tab.load(str(whole / "mine")))
    assert not before.exists() and str(before) not in studio.holder.choices and tab.made.is_dir()  # one at a time


def test_strangers_have_no_train_tab_and_none_of_its_endpoints(tiny_pipeline, tmp_path):
    def of_train(public, runs):
        studio = open_studio(tiny_pipeline, "tiny", None if public else lambda source, tell: None, public=public)
        config = json.dumps(create_demo(studio, runs=runs).get_config_file(), default=str)
        return config.count("train-") + config.count('"id": "train"')

    assert of_train(False, tmp_path) > 5
    assert of_train(True, tmp_path) == 0


@pytest.mark.parametrize(
    "host, public, share, login, own",
    [
        ("127.0.0.1", False, False, False, True),
        ("localhost", False, False, False, True),
        ("0.0.0.0", False, False, False, False),
        ("127.0.0.1", False, True, False, False),
        ("127.0.0.1", True, False, True, False),
        ("0.0.0.0", False, True, True, True),
    ],
)
def test_whose_page_it_is(host, public, share, login, own):
    assert page.is_own(argparse.Namespace(host=host, public=public, share=share), login) is own
