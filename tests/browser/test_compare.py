"""The Compare and Model tabs in a real Chromium, on a tiny pipeline."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.steps import open_tab

# What the browser shows of a picture, as a data URL.
PAINTED = """image => {
  const canvas = Object.assign(document.createElement("canvas"), { width: image.naturalWidth, height: image.naturalHeight });
  canvas.getContext("2d").drawImage(image, 0, 0);
  return canvas.toDataURL("image/png");
}"""


def fill(page, x_values, y_values):
    open_tab(page, "Compare")
    page.locator("#compare-prompt textarea, #compare-prompt input").first.fill("a red fox")
    page.locator("#compare-x-values textarea, #compare-x-values input").first.fill(x_values)
    page.locator("#compare-y-values textarea, #compare-y-values input").first.fill(y_values)
    page.locator("#compare-seed textarea, #compare-seed input").first.fill("7")


def test_a_grid_is_drawn_scored_and_saved(page, gate):
    fill(page, "fox, apple", "1, 3")
    page.locator("#compare").click()
    expect(page.locator("#compare-status")).to_contain_text("4 cells, seed 7")
    expect(page.locator("#compare-grid img")).to_be_visible()
    with page.expect_download() as download:
        page.locator("#compare-json").click()
    content = json.loads(download.value.path().read_text(encoding="utf-8"))
    assert [(cell["x"], cell["y"]) for cell in content["cells"]] == [("fox", 1.0), ("apple", 1.0), ("fox", 3.0), ("apple", 3.0)]
    assert {cell["seed"] for cell in content["cells"]} == {7}
    with page.expect_download() as download:
        page.locator("#compare-png").click()
    saved = Image.open(download.value.path()).convert("RGB")
    assert saved.width > 400
    shown = page.locator("#compare-grid img").evaluate(PAINTED).partition(",")[2]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown))).convert("RGB"), np.int16)
    assert np.abs(shown - np.asarray(saved)).mean() < 15  # a JPEG of the whole grid, not the one of the first cell


def test_stop_half_way_keeps_the_cells_that_are_finished(page, gate):
    fill(page, "fox, apple", ", ".join(str(1 + i / 4) for i in range(30)))  # long enough to be stopped
    page.locator("#compare").click()
    expect(page.locator("#compare-grid img")).to_be_visible()
    gate.open.clear()
    gate.closed.clear()
    page.locator("#compare-stop").click()
    expect(page.locator("#compare-status")).to_contain_text("Stopped")
    expect(page.locator("#compare-grid img")).to_be_visible()
    with page.expect_download() as download:
        page.locator("#compare-json").click()
    assert 1 <= len(json.loads(download.value.path().read_text(encoding="utf-8"))["cells"]) < 60


def test_before_a_grid_is_drawn_nothing_offers_to_save_or_stop_it(page, gate):
    open_tab(page, "Compare")
    expect(page.locator("#compare")).to_be_visible()
    for name in ("compare-stop", "compare-grid", "compare-png", "compare-json"):
        expect(page.locator(f"#{name}")).to_be_hidden()
    gate.open.clear()
    fill(page, "fox, apple", "1, 3")
    page.locator("#compare").click()
    expect(page.locator("#compare-stop")).to_be_visible()
    expect(page.locator("#compare-status")).to_contain_text("cell 1 of 4")
    page.locator("#compare-stop").click()
    expect(page.locator("#compare-status")).to_contain_text("Stopped")
    expect(page.locator("#compare-stop")).to_be_hidden()
    expect(page.locator("#compare-png")).to_be_hidden()


def test_a_wrong_value_is_a_sentence(page, gate):
    fill(page, "dog, cat", "1")
    page.locator("#compare").click()
    expect(page.locator(".toast-body")).to_contain_text("is not in the prompt")


@pytest.mark.parametrize("page", [{"width": 390, "height": 844}], indirect=True)
def test_a_phone_does_not_scroll_sideways(page, gate):
    fill(page, "fox, apple", "1, 3")
    page.locator("#compare").click()
    expect(page.locator("#compare-status")).to_contain_text("4 cells")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_model_tab_says_what_is_loaded(page):
    open_tab(page, "Model")
    expect(page.locator("#model-parts")).to_contain_text("GPTPrior")
    expect(page.locator("#model-facts")).to_contain_text("licence")


def test_the_page_can_be_installed(page, served):
    answer = page.request.get(f"{served[0]}manifest.json")
    assert answer.ok and answer.json()["start_url"]
