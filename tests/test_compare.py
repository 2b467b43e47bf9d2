"""X/Y grids: planned right, refused in a sentence, drawn as the pipeline draws."""

import json
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from dalle_core import InputError, ModelError
from dalle_core.compare import Axis, best, parse_axis, plan, sheet
from dalle_core.request import DrawingRequest, Limits
from dalle_core.studio.budgets import Budget, Budgets, Busy
from dalle_core.studio.holder import ModelHolder
from dalle_core.studio.store import Store
from dalle_core.studio.studio import Studio
from tests.conftest import make_pipeline

BASE = DrawingRequest("a red fox", seed=5)
LIMITS = Limits(64, 4, 64)


def test_values_are_separated_by_commas():
    assert parse_axis("seed", " 1, 2,3 ", LIMITS).values == [1, 2, 3]
    assert parse_axis("prompt", 'fox, "cat, sleeping" ,狐狸', LIMITS).values == ["fox", "cat, sleeping", "狐狸"]
    assert parse_axis("temperature", "0.5,1", LIMITS).values == [0.5, 1.0] and parse_axis("", "x", LIMITS).values == [None]


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("seed", "1, x", "seed is 'x'; it must be a whole number from 0"),
        ("top_p", "half", "top_p is 'half'"),
        ("seed", " , ", "no values"),
        ("colour", "1", "cannot be varied"),
        ("seed", ",".join(["1"] * 65), "65 values"),
        ("top_k", "2, 9999", "top_k is '9999'; it must be a whole number from 0 to 64"),
        ("top_p", "nan", "top_p is 'nan'"),
        ("guidance_scale", "1e400", "guidance_scale"),
        ("prompt", "a" * 20_001, "20,001 characters"),
        (["seed"], "1", "cannot be varied"),
    ],
)
def test_bad_values_are_named(name, text, said):
    with pytest.raises(InputError, match=said):
        parse_axis(name, text, LIMITS)


def test_a_value_that_blows_the_prompt_up_is_refused_before_it_is_made():
    asked = DrawingRequest("a" * 20_000)
    with pytest.raises(InputError, match="399,980,000 characters"):
        plan(Axis("prompt", ["a", "b" * 19_999]), Axis("", [None]), asked)


def test_a_grid_varies_what_it_says():
    cells = plan(Axis("prompt", ["fox", "cat"]), Axis("top_k", [1, 2, 3]), BASE)
    assert [(cell.column, cell.row) for cell in cells] == [(c, r) for r in range(3) for c in range(2)]
    assert cells[3].request == DrawingRequest("a red cat", seed=5, top_k=2) and cells[3].source is None
    assert len(plan(Axis("", [None]), Axis("", [None]), BASE)) == 1
    with pytest.raises(InputError, match="Both axes vary seed"):
        plan(Axis("seed", [1]), Axis("seed", [2]), BASE)
    with pytest.raises(InputError, match="'dog', is not in the prompt"):
        plan(Axis("prompt", ["dog", "cat"]), Axis("", [None]), BASE)
    with pytest.raises(InputError, match="81 cells"):
        plan(Axis("seed", list(range(9))), Axis("top_k", list(range(9))), BASE)


def test_models_change_as_rarely_as_possible():
    cells = plan(Axis("model", ["a", "b"]), Axis("seed", [1, 2, 3]), BASE)
    assert [cell.source for cell in cells] == ["a"] * 3 + ["b"] * 3


def test_the_best_is_framed_and_missing_cells_are_grey():
    x, y = Axis("seed", [1, 2]), Axis("prompt", ["fox", "狐狸" * 40])
    assert best({(0, 0): 0.1, (1, 0): 0.3, (0, 1): None}) == (1, 0) and best({(0, 0): None}) is None
    white = Image.new("RGB", (96, 96), "white")
    page = np.array(sheet(x, y, {(0, 0): white, (1, 0): white}, {(0, 0): 0.1, (1, 0): 0.3}))
    orange = (page == (217, 72, 15)).all(2)
    assert orange.any() and orange.nonzero()[1].min() > page.shape[1] // 2  # around the second column alone
    assert (page == 238).all(2).sum() >= 2 * 192 * 192


# ---------------------------------------------------------------- drawn


@pytest.fixture
def studio(tiny_pipeline, tmp_path):
    return Studio(ModelHolder(tiny_pipeline, "tiny"), Store(tmp_path / "store"))


def drawn(studio, x, y, request):
    *_, last = studio.compare("1.2.3.4", x, y, request)
    return last


X, Y = Axis("prompt", ["fox", "apple"]), Axis("top_k", [2, 0])


def test_a_grid_holds_what_the_pipeline_draws(studio, tiny_pipeline):
    last = drawn(studio, X, Y, DrawingRequest("a red fox", num_candidates=2, seed=5))
    content = json.loads(studio.download_json("1.2.3.4", last.grid).read_text(encoding="utf-8"))
    assert last.total == len(content["cells"]) == 4 and last.seed == 5 and (content["x"], content["y"]) == ("prompt", "top_k")
    for cell in content["cells"]:
        best_ = tiny_pipeline("a red " + cell["x"], num_candidates=2, seed=5, top_k=cell["y"]).candidates[0]
        assert cell["tokens"] == best_.tokens.tolist() and cell["score"] == pytest.approx(best_.score)
        assert cell["prompt"] == "a red " + cell["x"] and cell["settings"]["top_k"] == cell["y"] and cell["model"] == "tiny"
    scores = [cell["score"] for cell in content["cells"]]
    column, row = content["best"]
    assert scores[row * 2 + column] == max(scores)
    with Image.open(studio.download_sheet("1.2.3.4", last.grid)) as page:
        assert page.format == "PNG" and page.width > 2 * 192


def test_a_grid_takes_one_folder_until_it_is_downloaded(studio):
    finished = [
        step for step in studio.compare("1.2.3.4", X, Y, DrawingRequest("a red fox", num_candidates=4)) if step.finished
    ]
    assert [len(step.grid.pictures) for step in finished] == [1, 2, 3, 4]
    [folder] = studio.store.root.iterdir()
    assert len(list(folder.iterdir())) == 4  # the best of each cell


def test_all_cells_share_a_new_seed_unless_an_axis_names_seeds(studio):
    last = drawn(studio, Axis("top_k", [2, 3]), Axis("", [None]), DrawingRequest("a fox", num_candidates=1))
    assert {picture.drawn.seed for picture in last.grid.pictures.values()} == {last.seed}
    last = drawn(studio, Axis("seed", [3, 4]), Axis("", [None]), DrawingRequest("a fox", num_candidates=1, seed=9))
    assert [picture.drawn.seed for picture in last.grid.pictures.values()] == [3, 4] and last.seed is None


@pytest.mark.parametrize(
    "x, request_, said",
    [
        (X, DrawingRequest("a dog"), "is not in the prompt"),
        (Axis("prompt", ["fox", "Ж"]), DrawingRequest("fox"), "none of the characters"),
        (Y, DrawingRequest(""), "prompt is empty"),
        (Y, DrawingRequest("a fox", num_candidates=[3]), "num_candidates"),
        (Axis("model", ["tiny", "../etc"]), DrawingRequest("a fox"), "not one of this page's models"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_the_first_cell(studio, x, request_, said):
    with pytest.raises((InputError, ModelError), match=said):
        next(studio.compare("1.2.3.4", x, Axis("", [None]), request_))
    assert not studio.store.root.exists()


def test_models_are_compared_and_the_cells_before_stay(tiny_pipeline, tmp_path):
    studio = Studio(ModelHolder(tiny_pipeline, "tiny", lambda source, tell: make_pipeline()), Store(tmp_path))
    studio.holder.choices = ["tiny", "other"]
    steps = list(
        studio.compare("1.2.3.4", Axis("model", ["tiny", "other"]), Axis("", [None]), DrawingRequest("a fox", num_candidates=1))
    )
    assert "Loading other…" in [step.line for step in steps] and len(steps[-1].grid.pictures) == 2
    assert studio.holder.source == "other"


def test_a_grid_that_is_too_much_for_a_visitor_is_refused_as_a_whole(tiny_pipeline, tmp_path):
    studio = Studio(ModelHolder(tiny_pipeline, "tiny"), Store(tmp_path), Budgets(Budget(candidates=7)))
    with pytest.raises(Busy, match="7 candidates"):
        next(studio.compare("1.2.3.4", X, Y, DrawingRequest("a red fox", num_candidates=2)))


def test_closing_a_grid_stops_it_and_lets_the_model_go(studio):
    with closing(studio.compare("1.2.3.4", X, Y, DrawingRequest("a red fox", num_candidates=2))) as steps:
        grid = next(step.grid for step in steps if step.finished)
    assert studio.holder._holders == 0 and len(grid.pictures) == 1
    assert len(json.loads(studio.download_json("1.2.3.4", grid).read_text(encoding="utf-8"))["cells"]) == 1
    for nothing in (None, type(grid)(X, Y, {})):
        with pytest.raises(InputError, match="Draw something first"):
            studio.download_sheet("1.2.3.4", nothing)
