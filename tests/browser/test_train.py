"""The Train tab in a real Chromium: a training of all parts, its curves and pictures, and drawing with its newest weights."""

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import serve
from tests.browser.steps import open_tab
from tests.trainings import write_whole


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    write_whole(folder / "runs" / "mine")
    with serve(folder / "gradio", runs=folder / "runs") as page:
        yield page


@pytest.mark.parametrize("page", [{"width": 1440, "height": 900}, {"width": 390, "height": 844}], indirect=True)
def test_a_training_is_watched(page):
    open_tab(page, "Train")
    expect(page.locator("#train-status")).to_contain_text("Step 300 of 400")
    expect(page.locator("#train-plot canvas, #train-plot svg.marks").first).to_be_visible()
    expect(page.locator("#train-samples img")).to_be_visible()
    expect(page.locator("#train-samples")).to_contain_text("step 300")
    page.locator("#train-older input[type=number]").fill("150")
    page.locator("#train-older input[type=number]").press("Enter")
    expect(page.locator("#train-samples")).to_contain_text("step 100")
    page.get_by_text("logarithmic").click()
    expect(page.locator("#train-scale input:checked")).to_have_value("logarithmic")
    expect(page.locator("#train-plot")).to_contain_text("loss")
    expect(page.locator("#train-empty, #train-reconstructions").first).to_be_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


def test_its_newest_weights_draw_on_the_first_tab(page, gate):
    open_tab(page, "Train")
    page.locator("#train-use").click()
    expect(page.get_by_role("tab", name="Create", exact=True)).to_have_attribute("aria-selected", "true")
    page.locator("#prompt textarea").fill("a red fox")
    page.keyboard.press("Enter")
    expect(page.locator("#gallery .caption-label").first).to_be_visible()
    open_tab(page, "Model")
    expect(page.locator("#model-parts")).to_contain_text("GPTPrior")
