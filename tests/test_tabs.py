"""The tabs beside Create: what they compute, and what their private events say to forged values."""

import errno
import json
from dataclasses import replace
from pathlib import Path

import gradio as gr
import httpx
import numpy as np
import pytest
from PIL import Image

from dalle_core import InputError, augment
from dalle_core.augment import Progress
from demo import create_demo, launch_options, open_studio
from demo.page import in_words
from demo.tabs import compare, complete, dataset, model, recognise, sampling, tokens
from tests.conftest import make_pipeline


@pytest.fixture
def studio(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    return open_studio(tiny_pipeline, "tiny")


def built(tab, studio):
    with gr.Blocks():
        return tab(studio)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "gradio" / "photo.png"
    path.parent.mkdir(exist_ok=True)
    Image.effect_noise((120, 90), 80).convert("RGB").save(path)
    return str(path)


# ---------------------------------------------------------------- Complete


def test_edges_that_are_kept():
    def count(side, width):
        return sum(map(sum, complete.edge(4, side, width)))

    assert complete.edge(4, "top", 3) == [[True] * 4] * 3 + [[False] * 4]
    assert complete.edge(4, "left", 1) == [[True, False, False, False]] * 4
    assert complete.edge(4, "bottom", 1) == [[False] * 4] * 3 + [[True] * 4]
    assert complete.edge(4, "right", 3) == [[False, True, True, True]] * 4
    assert count("border", 1) == 12 and count("middle", 1) == 4 and count("border", 2) == 16 and count("border", 0) == 0
    assert count("top", 99) == 16  # the slider still has the ends of a larger model's grid


@pytest.mark.parametrize(
    "side, width",
    [
        ("top", -1),
        ("top", float("nan")),
        ("top", "2"),
        ("top", None),
        ("top", [1]),
        ("top", True),
        (None, 2),
        ("edge", 2),
        (["top"], 2),
    ],
)
def test_edges_that_cannot_be_are_a_sentence(side, width):
    with pytest.raises(InputError, match="it must be"):
        complete.edge(4, side, width)


def test_painting_turns_every_cell_that_the_stroke_crosses():
    keep = complete.edge(4, "top", 2)
    once = complete.painted(keep, [(0.9, 0.1), (0.9, 0.1)], "one cell")
    assert not once[0][3] and sum(map(sum, once)) == 7 and complete.painted(once, [(0.99, 0.0)], "one cell") == keep
    # A stroke from corner to corner, two points far apart: the first cell was kept, so all under it are released.
    across = complete.painted(keep, [(0.0, 0.0), (1.0, 1.0)], "one cell")
    assert [across[i][i] for i in range(4)] == [False] * 4 and sum(map(sum, across)) == 6
    wide = complete.painted(keep, [(0.0, 1.0)], "3 x 3 cells")
    assert wide[3] == wide[2] == [True, True, False, False] and sum(map(sum, wide)) == 12


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "x",
        "3",
        "[]",
        "[1, 2]",
        "[[1, 2]]",
        "[[0.5, NaN]]",
        '[["a", "b"]]',
        "[[0, 0, 0]]",
        f"[{'[0, 0],' * 6000}[0, 0]]",
    ],
)
def test_a_forged_stroke_paints_nothing(text):
    assert complete.read_stroke(text) == []
    assert complete.read_stroke("[[0.25, 1]]") == [(0.25, 1.0)]


def completed(tab, opened, keep, **changes):
    values = {"prompt": "two apples", "count": 3, "seed": "5", "save_recipe": True} | changes
    *_, last = tab.draw(None, opened, keep, *values.values())
    return last


def test_what_is_kept_stays_and_the_rest_is_drawn(studio, tiny_pipeline, photo):
    tab = built(complete.Complete, studio)
    taken = tab.take(None, photo, "top", 2)
    opened, keep = taken[tab.opened], taken[tab.keep]
    assert opened.tokens == tiny_pipeline.encode(Image.open(photo)).tolist()
    drawn = completed(tab, opened, keep)
    assert len(drawn[tab.pictures]) == 3 and "seed 5" in drawn[tab.status]
    assert all(picture.drawn.tokens[:2].tolist() == opened.tokens[:2] for picture in drawn[tab.pictures])
    entry = json.loads(drawn[tab.entry])
    assert entry["varied"] and entry["prompt"] == "two apples" and len(entry["candidates"]) == 3
    # A completion is taken as the next picture, with its very tokens.
    chosen = drawn[tab.pictures][2]
    assert tab.take(None, chosen.path, "top", 2)[tab.opened].tokens == chosen.drawn.tokens.tolist()


def test_what_cannot_be_completed_is_a_sentence(studio, photo):
    tab = built(complete.Complete, studio)
    taken = tab.take(None, photo, "top", 2)
    opened, keep = taken[tab.opened], taken[tab.keep]
    all_kept = complete.edge(4, "top", 4)
    for arguments, changes, said in [
        ((None, keep), {}, "Choose a picture first"),
        ((opened, all_kept), {}, "Every cell is kept"),
        ((replace(opened, source="other"), keep), {}, "Another model has been chosen"),
        ((opened, keep), {"prompt": None}, "prompt is empty"),
        ((opened, keep), {"seed": "x"}, "not a whole number"),
        ((opened, keep), {"count": 0}, "num_candidates is '0'"),
        ((opened, keep), {"count": [1]}, "num_candidates"),
    ]:
        with pytest.raises(InputError, match=said):
            completed(tab, *arguments, **changes)


def test_completing_takes_the_sampling_settings(studio, photo):
    tab = built(complete.Complete, studio)
    taken = tab.take(None, photo, "top", 2)
    values = (None, taken[tab.opened], taken[tab.keep], "two apples", 3, "5", True)
    *_, greedy = tab.draw(*values, 0, 0, 1, 1)
    *_, free = tab.draw(*values, 2, 0, 1, 1)
    assert len({str(picture.drawn.tokens.tolist()) for picture in greedy[tab.pictures]}) == 1
    assert len({str(picture.drawn.tokens.tolist()) for picture in free[tab.pictures]}) > 1
    with pytest.raises(InputError, match="top_p is '0'"):
        next(tab.draw(*values, 1, 0, 0, 1))


# ---------------------------------------------------------------- Compare


def compared(tab, settings, prompt="a red fox", x=("seed", "1, 2")):
    return list(tab.compare(None, prompt, *x, compare.NOTHING, "", 1, "", "", *settings))


def test_a_grid_is_drawn_with_the_sampling_settings(studio):
    tab = built(compare.Compare, studio)
    defaults = [slider.value for slider in tab.sampling]
    grid = compared(tab, [0, *defaults[1:]])[-1][tab.grid]
    requests = [picture.drawn.request for picture in grid.pictures.values()]
    assert [request.temperature for request in requests] == [0, 0]
    assert {request.top_k for request in requests} == {studio.holder.loaded.defaults["top_k"]}
    with pytest.raises(InputError, match="guidance_scale is '200'"):
        compared(tab, [*defaults[:3], 200])


def test_the_sliders_start_at_the_model_s_own_values_and_follow_another_model(studio):
    loaded = studio.holder.loaded
    for tab in (built(complete.Complete, studio), built(compare.Compare, studio)):
        assert [slider.value for slider in tab.sampling] == [loaded.defaults[name] for name in sampling.NAMES]
    other = replace(
        loaded, defaults=loaded.defaults | {"top_k": 9, "guidance_scale": 5}, limits=replace(loaded.limits, codebook_size=99)
    )
    shown = dict(zip(sampling.NAMES, sampling.fitted(other), strict=True))
    assert (shown["top_k"]["value"], shown["top_k"]["maximum"], shown["guidance_scale"]["value"]) == (9, 99, 5)


def test_words_that_the_model_does_not_know_are_said_on_every_tab(tmp_path, monkeypatch, photo):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    pipe = make_pipeline()
    vocabulary = {"words": "a red fox two apples", "near": {"kitten": "cat"}}
    studio = open_studio(type(pipe)(**pipe.components, name="tiny", vocabulary=vocabulary), "tiny")
    said = "kitten → cat"
    tab = built(complete.Complete, studio)
    taken = tab.take(None, photo, "top", 2)
    steps = list(tab.draw(None, taken[tab.opened], taken[tab.keep], "a kitten", 1, "5", True))
    assert all(said in step[tab.status] for step in steps[1:]) and len(steps) > 1
    tab, settings = built(compare.Compare, studio), []
    assert all(said in step[tab.status] for step in compared(tab, settings, "a kitten"))
    assert said in compared(tab, settings, x=("prompt", "fox, kitten"))[-1][tab.status]
    assert "kitten" not in compared(tab, settings)[-1][tab.status]
    tab = built(dataset.Augment, studio)
    steps = list(tab.draw(None, "a red fox\na kitten", None, 1, "", "7"))
    assert all(said in step[tab.status] for step in steps)


def test_a_sentence_for_visitors_has_the_page_s_own_labels():
    said = "guidance_scale is '200'; it must be a number from 0 to 100."
    assert in_words(said) == "Guidance scale is '200'; it must be a number from 0 to 100."
    assert in_words("top_k: 'top_p' is not a number.") == "Top-k: 'top_p' is not a number."  # what was typed stays


# ---------------------------------------------------------------- Tokens, Recognise, Model


def test_the_error_of_a_reconstruction():
    image = Image.effect_noise((64, 64), 50).convert("RGB")
    assert np.asarray(tokens.error_map(image, image)).min() == 255
    off = np.asarray(tokens.error_map(Image.new("RGB", (2, 1), "white"), Image.new("RGB", (2, 1), (235, 255, 255))))
    assert off.tolist() == [[235, 235]]  # 20 of 255 in one of three channels, times three


def test_a_token_is_read_and_changed(studio, tiny_pipeline, photo):
    tab = built(tokens.Tokens, studio)
    shown = tab.reconstruct(None, photo)
    read = shown[tab.read]
    expected = tiny_pipeline.decode(tiny_pipeline.encode(Image.open(photo)))
    assert read.decoded.tobytes() == expected.tobytes() and "4 x 4 tokens, of 64 different ones" in shown[tab.table]
    assert shown[tab.shown].size == shown[tab.slider][0].size == (384, 384)
    chosen = tab.choose(gr.SelectData(None, {"index": [383, 100], "value": None}), read)
    assert chosen[tab.read].cell == (1, 3) and chosen[tab.number] == read.tokens[1][3]
    value = (read.tokens[1][3] + 7) % 64
    changed = tab.put(None, chosen[tab.read], float(value))[tab.read]
    assert changed.tokens[1][3] == value and changed.decoded.tobytes() != read.decoded.tobytes()
    for wrong in (64, -1, 0.5, None, "3", [3], True, float("nan"), float("inf")):
        with pytest.raises(InputError, match="a whole number from 0 to 63"):
            tab.put(None, chosen[tab.read], wrong)
    with pytest.raises(InputError, match="Another model has been chosen"):
        tab.put(None, replace(chosen[tab.read], source="other"), 3)


@pytest.mark.parametrize("point, cell", [([0, 0], (0, 0)), ([383, 100.5], (1, 3)), ([-5, 10**9], (3, 0))])
def test_the_cell_at_a_point(point, cell):
    assert tokens.cell_at(point, 384, 4) == cell


@pytest.mark.parametrize("point", [None, 3, "ab", [1], [1, 2, 3], ["a", "b"], [float("nan"), 1], [True, 1], {"x": 1}])
def test_what_is_no_point_is_a_sentence(point):
    with pytest.raises(InputError, match="Click a cell"):
        tokens.cell_at(point, 384, 4)


def test_recognising_gives_both_opinions(tiny_pipeline):
    image = tiny_pipeline("a red fox", num_candidates=1, seed=1).candidates[0].image
    found = tiny_pipeline.recognise(image, ["a fox", "two <b>apples", "a banana"], deep=2)
    table = recognise.ranking(found)
    assert "two &lt;b&gt;apples" in table and "#1" in table and "nats" in table


def test_the_card_comes_without_its_front_matter(tmp_path):
    assert model.card(str(tmp_path)) == ""
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n# A model\n", encoding="utf-8")
    assert model.card(str(tmp_path)).strip() == "# A model"
    assert "kept out" in model.card("emoji").lower()


def test_the_table_of_parts_counts_what_is_saved(studio, tiny_pipeline):
    table = model.sizes(studio.holder.loaded)
    saved = sum(value.numel() for value in tiny_pipeline.prior.state_dict().values())
    assert "VQModel" in table and "CLIPModel" in table and f"<td>GPTPrior</td><td>{saved:,}</td><td>float32</td>" in table


# ---------------------------------------------------------------- Augment


def test_the_line_of_a_data_set():
    shown = dataset.status(Progress(2, 1, 8, part=2.0), 30.0)
    assert "picture 3 of 8: 1 kept, 1 rejected" in shown and "30 s left" in shown and "50.0%" in shown
    assert "5 min left" in dataset.status(Progress(4, 4, 8), 300.0) and "left" not in dataset.status(Progress(0, 0, 8), 0)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"prompts": " \n "}, "There are no prompts"),
        ({"prompts": None}, "There are no prompts"),
        ({"prompts": "a fox\nЖ"}, "Prompt 2: .*none of the"),
        ({"seed": "x"}, "'x'"),
        ({"prompts": "a fox\n" * 201, "count": 1}, "python -m dalle_core augment"),
        ({"count": 0}, "count is '0'"),
        ({"prompts": "a fox\n" * 11, "count": 100}, "1,100"),
        ({"prompts": "a" * 30_000}, "30,000"),
        ({"count": float("inf")}, "count is 'inf'"),
        ({"count": [1]}, "count is"),
        ({"threshold": "3"}, "from -1 to 1"),
        ({"threshold": "x"}, "'x'"),
        ({"threshold": "nan"}, "nan"),
        ({"file": "/etc/passwd"}, "cannot be read here"),
        ({"file": "gone.csv"}, "cannot be read here"),
    ],
)
def test_a_data_set_that_cannot_be_is_a_sentence(studio, changes, said):
    tab = built(dataset.Augment, studio)
    values = {"prompts": "a red fox\ntwo apples", "file": None, "count": 3, "threshold": "", "seed": "7"} | changes
    with pytest.raises(InputError, match=said):
        list(tab.draw(None, *values.values()))


def test_a_data_set_is_zipped_at_the_click_also_after_a_stop(studio, tmp_path):
    tab = built(dataset.Augment, studio)
    table = tmp_path / "gradio" / "more.csv"
    table.parent.mkdir(exist_ok=True)
    table.write_text("prompt,count\n=1+1 fox <b>,2\n", encoding="utf-8")
    *_, last = tab.draw(None, "a red fox", str(table), 3, "", "7")
    assert "5 pictures drawn, 5 kept, 0 rejected, seed 7" in last[tab.status] and last[tab.data_set].finished
    assert not list(Path(studio.store.root).rglob("*.zip"))
    assert tab.zip("", last[tab.data_set]).name == "augmented_seed7.zip"
    steps = tab.draw(None, "a red fox", None, 40, "", "8")
    data_set = next(steps)[tab.data_set]
    while not next(steps)[tab.latest].get("value"):
        pass
    steps.close()
    ended = tab.end(data_set)
    assert "16 pictures were kept until then" in ended[tab.status] and ended[tab.exports]["elem_classes"] == []
    assert tab.zip("", data_set).stat().st_size > 0


def test_none_that_fits_is_said(studio):
    tab = built(dataset.Augment, studio)
    *_, last = tab.draw(None, "a red fox", None, 3, "1", "7")
    assert "0 kept, 3 rejected" in last[tab.status] and "lower it" in last[tab.status]
    assert last[tab.exports]["elem_classes"] == "unused"


def test_a_full_disk_is_said_without_the_server_s_folders(studio, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(augment, "_append", full)
    with pytest.raises(InputError, match="disk is full") as error:
        list(built(dataset.Augment, studio).draw(None, "a red fox", None, 3, "", "7"))
    assert "/" not in str(error.value)


# ---------------------------------------------------------------- anybody can call a private event


@pytest.fixture(scope="module")
def served(tiny_pipeline, tmp_path_factory):
    """The URL and the configuration of a page."""
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
    studio = open_studio(tiny_pipeline, "tiny")
    demo = create_demo(studio)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options(studio))
    yield f"{url}gradio_api/", demo.config
    demo.close()
    patch.undo()


def forged(served, name, trigger, index=None, **values):
    """What the page answers to an event with values by the elem_id of its inputs, its own for the others."""
    url, config = served
    components = {component["id"]: component["props"] for component in config["components"]}
    event = next(
        event
        for event in config["dependencies"]
        if event["backend_fn"]
        and any(components.get(target, {}).get("elem_id") == name and what == trigger for target, what in event["targets"])
    )
    data = [values.get(props.get("elem_id"), props.get("value")) for props in map(components.get, event["inputs"])]
    body = {"data": data, "fn_index": event["id"], "session_hash": "forger", "event_data": {"index": index, "value": None}}
    httpx.post(f"{url}queue/join", json=body).raise_for_status()
    with httpx.stream("GET", f"{url}queue/data", params={"session_hash": "forger"}, timeout=60) as stream:
        messages = [json.loads(line[5:]) for line in stream.iter_lines() if line.startswith("data:")]
    return [message for message in messages if message["msg"] == "process_completed"][-1]


PLAIN, FILE = {}, {"meta": {"_type": "gradio.FileData"}}  # Gradio itself looks only at what says that it is a file


@pytest.mark.parametrize(
    "name, trigger, field, meta",
    [
        ("complete-picture", "input", "complete-picture", PLAIN),
        ("complete-picture", "input", "complete-picture", FILE),
        ("tokens-upload", "input", "tokens-upload", PLAIN),
        ("tokens-upload", "input", "tokens-upload", FILE),
        ("recognise", "click", "recognise-upload", PLAIN),
        ("recognise", "click", "recognise-upload", FILE),
        ("augment", "click", "augment-file", FILE),
    ],
)
def test_a_file_of_the_server_stays_its_own(served, tmp_path, name, trigger, field, meta):
    Image.new("RGB", (64, 64)).save(tmp_path / "secret.png")
    said = set()
    for path in (tmp_path / "secret.png", tmp_path / "missing.png", "/etc/passwd", "app.py"):
        answer = forged(served, name, trigger, **{field: {"path": str(path)} | meta})
        assert not answer["success"]
        said.add(answer["output"]["error"])
    assert len(said) == 1  # whether a file exists is nobody's business
    assert meta or said == {"This file cannot be read here. Upload it again."}


@pytest.mark.parametrize(
    "name, trigger, values",
    [
        ("complete", "click", {"complete-prompt": 7}),
        ("complete-again", "click", {}),
        ("complete-picture", "input", {"rows": "x"}),
        ("recognise", "click", {"labels": "a" * 20_001}),
        ("tokens-upload", "input", {}),
        ("compare", "click", {"compare-seed": "x"}),
        ("compare", "click", {"compare-count": {"a": 1}, "compare-prompt": "a fox", "compare-x": "–"}),
        ("compare", "click", {"compare-x-values": None}),
        ("compare", "click", {"compare-y-values": "1e999", "compare-x": "–"}),
        ("compare-png", "click", {}),
        ("compare-json", "click", {}),
        ("augment-download", "click", {}),
        ("augment", "click", {"augment-count": "x", "augment-prompts": "a fox"}),
        ("augment", "click", {"augment-threshold": 3, "augment-prompts": "a fox"}),
    ],
)
def test_forged_values_end_in_a_sentence(served, name, trigger, values):
    answer = forged(served, name, trigger, **values)
    error = answer["output"]["error"]
    assert not answer["success"] and error and "Traceback" not in error and "log" not in error


@pytest.mark.parametrize(
    "name, trigger, index",
    [
        ("completions", "select", "x"),
        ("completions", "select", -1),
        ("completions", "select", 10**9),
        ("tokens-grid", "select", "x"),
        ("painted", "click", None),
        ("rows", "change", None),
    ],
)
def test_before_a_picture_is_there_forged_clicks_do_nothing(served, name, trigger, index):
    assert forged(served, name, trigger, index, **{"stroke-said": "[[0.5, 0.5]]", "rows": "x", "brush": "one cell"})["success"]


def test_the_tabs_have_no_endpoint_of_their_own(studio):
    events = [
        event for event in create_demo(studio).fns.values() if getattr(event.fn, "__module__", "").startswith("demo.tabs")
    ]
    assert len(events) > 20 and [event.name for event in events if event.api_visibility != "private"] == []
