"""X/Y grids: planned right, refused in a sentence, drawn as the pipeline draws."""

import json
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from dalle_core import InputError
from dalle_core.compare import Axis, best, parse_axis, plan, sheet
from demo import Models, create_demo, launch_options

BASE = {"prompt": "a red fox", "seed": 5, "model": "tiny"}


def test_values_are_separated_by_commas():
    assert parse_axis("seed", " 1, 2,3 ").values == [1, 2, 3]
    assert parse_axis("prompt", 'fox, "cat, sleeping" ,狐狸').values == ["fox", "cat, sleeping", "狐狸"]
    assert parse_axis("temperature", "0.5,1").values == [0.5, 1.0] and parse_axis("", "x").values == [None]


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("seed", "1, x", "'x' is not a whole number"), ("top_p", "half", "'half' is not a number"), ("seed", " , ", "no values"),
        ("colour", "1", "cannot be varied"), ("seed", ",".join(["1"] * 65), "65 values"),
    ],
)  # fmt: skip
def test_bad_values_are_named(name, text, said):
    with pytest.raises(InputError, match=said):
        parse_axis(name, text)


def test_a_grid_varies_what_it_says():
    cells = plan(Axis("prompt", ["fox", "cat"]), Axis("top_k", [1, 2, 3]), BASE)
    assert [(cell.column, cell.row) for cell in cells] == [(c, r) for r in range(3) for c in range(2)]
    assert cells[3].arguments == {"prompt": "a red cat", "seed": 5, "model": "tiny", "top_k": 2}
    assert len(plan(Axis("", [None]), Axis("", [None]), BASE)) == 1
    with pytest.raises(InputError, match="Both axes vary seed"):
        plan(Axis("seed", [1]), Axis("seed", [2]), BASE)
    with pytest.raises(InputError, match="'dog', is not in the prompt"):
        plan(Axis("prompt", ["dog", "cat"]), Axis("", [None]), BASE)
    with pytest.raises(InputError, match="81 cells"):
        plan(Axis("seed", list(range(9))), Axis("top_k", list(range(9))), BASE)


def test_models_change_as_rarely_as_possible():
    cells = plan(Axis("model", ["a", "b"]), Axis("seed", [1, 2, 3]), BASE)
    assert [cell.arguments["model"] for cell in cells] == ["a"] * 3 + ["b"] * 3


def test_the_best_is_framed_and_missing_cells_are_grey():
    x, y = Axis("seed", [1, 2]), Axis("prompt", ["fox", "狐狸" * 40])
    assert best({(0, 0): 0.1, (1, 0): 0.3, (0, 1): None}) == (1, 0) and best({(0, 0): None}) is None
    white = Image.new("RGB", (96, 96), "white")
    page = np.array(sheet(x, y, {(0, 0): white, (1, 0): white}, {(0, 0): 0.1, (1, 0): 0.3}))
    orange = (page == (217, 72, 15)).all(2)
    assert orange.any() and orange.nonzero()[1].min() > page.shape[1] // 2  # around the second column alone
    assert (page == 238).all(2).sum() >= 2 * 192 * 192


@pytest.fixture(scope="module")
def client(tiny_pipeline, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
    demo = create_demo(Models(tiny_pipeline, "tiny"))
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield Client(url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))
    demo.close()
    patch.undo()


def ask(client, **changes):
    arguments = dict(
        prompt="a red fox", x="prompt", x_values="fox, apple", y="top_k", y_values="2, 0", candidates=2, seed="5",
        negative_prompt="",
    )  # fmt: skip
    return client.predict(**(arguments | changes), api_name="/compare")


def test_the_endpoint_draws_what_the_pipeline_draws(client, tiny_pipeline):
    grid, line, *_, found = ask(client)
    content = json.loads(Path(found if isinstance(found, str) else found["value"]).read_text(encoding="utf-8"))
    assert "4 cells" in line and len(content["cells"]) == 4
    for cell in content["cells"]:
        drawn = tiny_pipeline("a red " + cell["x"], num_candidates=2, seed=5, top_k=cell["y"]).candidates[0]
        assert cell["tokens"] == drawn.tokens.tolist() and cell["score"] == pytest.approx(drawn.score)
    scores = [cell["score"] for cell in content["cells"]]
    column, row = content["best"]
    assert scores[row * 2 + column] == max(scores)
    path = grid["value"] if isinstance(grid, dict) and "value" in grid else grid
    assert Image.open(path if isinstance(path, str) else path["path"]).width > 2 * 192


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"x_values": "dog, cat"}, "is not in the prompt"), ({"y_values": "2, 9999"}, "9999"), ({"prompt": "", "x": "–"}, "prompt is empty"),
        ({"x": "–", "y": "–", "seed": "x"}, "not a whole number"), ({"y": "top_p", "y_values": "nan"}, "top_p"),
    ],
)  # fmt: skip
def test_bad_input_is_a_sentence_before_anything_is_drawn(client, changes, said):
    with pytest.raises(AppError, match=said) as error:
        ask(client, **changes)
    assert "Traceback" not in str(error.value)
