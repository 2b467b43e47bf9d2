"""Before anything is drawn nothing is in sight that cannot be used; what comes into view afterwards has its value."""

import json
import zipfile

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.conftest import DESK, PHONE
from tests.browser.steps import generate, open_tab, prompt, saved, thumbnails

UPLOAD = ["Drop an image file here to upload", "Upload file", "Capture from camera", "Paste from clipboard"]
RESET = "Reset to default value"
# What can be pressed on the first visit: it starts something, fills something, or says in a sentence what is missing.
PRESSED = {
    "Create": ["generate", "a red fox", "two apples", RESET, "dice", "Advanced", "open-saved"],
    "Complete": UPLOAD,
    "Tokens": UPLOAD,
    "Recognise": [*UPLOAD, "recognise"],
    "Compare": [RESET, "Sampling settings", "compare"],
    "Make a data set": ["Click to upload or drop files", RESET, "augment"],
    "Model": [],
}
# Places of pictures that a visitor fills: those for results are not in sight.
PICTURES = {"Complete": ["complete-picture"], "Tokens": ["tokens-upload"], "Recognise": ["recognise-upload"]}
SEEN = """() => {
  const seen = (element) => element.checkVisibility({ visibilityProperty: true, opacityProperty: true }) &&
    element.getBoundingClientRect().width > 0 && element.getBoundingClientRect().height > 0;
  const tab = [...document.querySelectorAll(".tabitem")].find(seen);
  const buttons = [...tab.querySelectorAll("button")].filter((button) => seen(button) && !button.disabled);
  const places = tab.querySelectorAll("[data-testid=image], .image-container, .grid-wrap, .slider-wrap, img");
  const pictures = [...places].filter(seen);
  return { buttons: buttons.map((one) => one.id || one.getAttribute("aria-label") || one.innerText.split("\\n")[0].trim()),
    pictures: [...new Set(pictures.map((picture) => picture.closest("[id]").id))] };
}"""


def in_sight(page, expected: dict) -> dict:
    """What the open tab shows: `expected` when it comes to that within some seconds."""
    for _ in range(200):
        seen = page.evaluate(SEEN)
        if seen == expected:
            break
        page.wait_for_timeout(100)
    return seen


@pytest.mark.parametrize("page", [DESK, PHONE], indirect=True, ids=["desk", "phone"])
def test_nothing_in_sight_is_dead(page):
    for name, buttons in PRESSED.items():
        open_tab(page, name)
        expect(page.locator(".tabitem:visible")).to_have_count(1)
        if name == "Model":
            expect(page.locator("#model-parts")).to_contain_text("GPTPrior")
        expected = {"buttons": buttons, "pictures": PICTURES.get(name, [])}
        assert in_sight(page, expected) == expected, name
    open_tab(page, "Create")
    expect(page.get_by_text("Your pictures appear here")).to_be_visible()
    expect(page.locator("#vote")).to_be_hidden()
    page.locator("#history > summary").click()
    expect(page.get_by_text("What you draw is listed here")).to_be_visible()
    expected = {"buttons": [*PRESSED["Create"], "Import"], "pictures": []}
    assert in_sight(page, expected) == expected
    expect(page.get_by_label("Search the history")).to_be_disabled()


@pytest.mark.parametrize("page", [DESK, PHONE], indirect=True, ids=["desk", "phone"])
def test_all_that_the_first_drawing_brings_into_view_works(page, gate):
    generate(page, gate)
    expect(page.get_by_text("Your pictures appear here")).to_be_hidden()
    assert json.loads(Image.open(saved(page)).text["dalle"])["prompt"] == "a red fox"
    with page.expect_download() as download:
        page.locator("#download-all").click()
    assert len(zipfile.ZipFile(download.value.path()).namelist()) == 5  # four pictures and their recipes
    expect(page.locator("#tile-shown")).to_be_hidden()
    page.locator("#to-tile").click()
    expect(page.locator("#tiled img")).to_be_visible()
    with page.expect_download() as download:
        page.locator("#tile-download").click()
    assert download.value.suggested_filename.endswith("_tile.png") and Image.open(download.value.path()).width > 0
    page.locator("#tile-hide").click()
    expect(page.locator("#tile-shown")).to_be_hidden()
    page.locator("#copy-link").click()
    expect(page.locator("#copied")).not_to_be_empty()
    page.get_by_label("Show the rest").check()
    expect(thumbnails(page)).to_have_count(0)  # none is: the way back stays
    page.get_by_label("Show the rest").uncheck()
    expect(thumbnails(page)).to_have_count(4)
    prompt(page).fill("two apples")
    page.locator("#use-settings").click()
    expect(prompt(page)).to_have_value("a red fox")
    page.locator("#more").click()
    expect(thumbnails(page)).to_have_count(8)
    thumbnails(page).nth(2).click()
    expect(page.locator("#facts")).to_contain_text("rank3")
    gate.open.clear()
    page.locator("#vary").click()
    expect(page.locator("#previews img")).to_have_count(4)
    expect(page.locator("#detail")).to_be_hidden()  # what was drawn before is gone
    gate.open.set()
    expect(page.locator("#status")).to_contain_text("ranked by CLIP")
    expect(thumbnails(page)).to_have_count(4)
    thumbnails(page).nth(2).click()
    expect(page.locator("#facts")).to_contain_text("rank3")
    assert json.loads(Image.open(saved(page)).text["dalle"])["varied"] is True


def test_stop_can_be_pressed_while_there_is_something_to_stop(page, gate):
    for tab, field, text, start, stop, status in (
        ("Compare", "compare-prompt", "a red fox", "compare", "compare-stop", "compare-status"),
        ("Make a data set", "augment-prompts", "a red fox", "augment", "augment-stop", "augment-status"),
    ):
        open_tab(page, tab)
        expect(page.locator(f"#{stop}")).to_be_disabled()
        page.locator(f"#{start}").click()  # without what it needs: a sentence
        expect(page.locator(".toast-body").last).to_be_visible()
        expect(page.locator(f"#{stop}")).to_be_disabled()
        page.locator(f"#{field} :is(textarea, input)").first.fill(text)
        if tab == "Compare":
            page.locator("#compare-x-values :is(textarea, input)").first.fill("fox, apple")
        gate.let(0)
        page.locator(f"#{start}").click()
        expect(page.locator(f"#{status}")).to_contain_text("Drawing")
        expect(page.locator(f"#{stop}")).to_be_enabled()
        page.locator(f"#{stop}").click()
        expect(page.locator(f"#{status}")).to_contain_text("Stopped")
        expect(page.locator(f"#{stop}")).to_be_disabled()
        gate.open.set()
