"""Painting what stays, going on from a completion, the seamless tile and a picture's own settings, in a real Chromium."""

import base64
import json
import re
from io import BytesIO

import numpy as np
from PIL import Image
from playwright.sync_api import expect

from tests.browser.steps import entries, generate, open_tab, prompt, steady


def tokens_in(entry, place=0) -> list[int]:
    return np.frombuffer(base64.b64decode(entry["candidates"][place]["tokens"]), "<u2").tolist()


def complete(page):
    page.locator("#complete").click()
    expect(page.locator("#complete-stop")).to_be_enabled()
    expect(page.locator("#complete-stop")).to_be_disabled()
    expect(page.locator("#complete-again")).to_be_visible()


def pale_cells(page, view) -> set[int]:
    """Which of the 4 x 4 cells of the shown picture are those that will be drawn anew, which are near white."""
    shown = Image.open(BytesIO(page.request.get(view.get_attribute("src")).body())).convert("RGB")
    shown = np.asarray(shown.resize((16, 16), Image.Resampling.NEAREST))  # 4 x 4 samples a cell
    middles = [shown[4 * row + 1 : 4 * row + 3, 4 * column + 1 : 4 * column + 3] for row in range(4) for column in range(4)]
    return {cell for cell, middle in enumerate(middles) if middle.min() > 185}


def test_a_painted_region_is_drawn_anew_and_the_rest_stays(page, gate):
    generate(page, gate)
    drawn = tokens_in(entries(page)[0])
    page.locator("#to-complete").click()
    view = page.locator("#kept-view img")
    expect(view).to_be_visible()
    before = view.get_attribute("src")
    page.get_by_label("border", exact=True).check()
    page.locator("#rows input[type=number]").fill("2")  # of 4 x 4 cells: all
    page.locator("#rows input[type=number]").press("Tab")
    expect(view).not_to_have_attribute("src", before)
    before, box = steady(page, view), view.bounding_box()
    first, *corners = [(0.5, 2.5), (2.5, 2.5), (2.5, 3.5), (0.5, 3.5)]  # across six cells of two rows, in three leaps
    page.mouse.move(box["x"] + box["width"] * first[0] / 4, box["y"] + box["height"] * first[1] / 4)
    page.mouse.down()
    for column, row in corners:
        page.mouse.move(box["x"] + box["width"] * column / 4, box["y"] + box["height"] * row / 4)
    expect(page.locator("#stroke")).to_be_visible()
    page.mouse.up()
    expect(view).not_to_have_attribute("src", before)
    expect(page.locator("#stroke")).to_have_count(0)
    released = {8, 9, 10, 12, 13, 14}
    assert pale_cells(page, view) == released
    complete(page)
    completions = next(entry for entry in entries(page) if entry["varied"])
    assert len(completions["candidates"]) == 8 and completions["prompt"] == "a red fox"
    for place in range(8):
        found = tokens_in(completions, place)
        assert {cell for cell in range(16) if found[cell] != drawn[cell]} <= released
    assert any(tokens_in(completions, place) != drawn for place in range(8))
    with page.expect_download() as download:
        page.locator("#complete-download").click()
    with Image.open(download.value.path()) as picture:
        recipe = json.loads(picture.text["dalle"])
        assert picture.size == (384, 384) and sum(recipe["tokens"], []) == tokens_in(completions) and recipe["varied"] is True


def test_going_on_from_a_completion_keeps_its_very_tokens(page, gate):
    generate(page, gate)
    page.locator("#to-complete").click()
    view = page.locator("#kept-view img")
    expect(view).to_be_visible()
    complete(page)
    first = next(entry for entry in entries(page) if entry["varied"])
    with page.expect_response("**/gradio_api/run/**"):  # nothing shows that the server knows which one is chosen
        page.locator("#completions .thumbnail-item").nth(2).click()
    before = steady(page, view)
    page.locator("#complete-again").click()
    expect(view).not_to_have_attribute("src", before)
    complete(page)
    expect(page.locator("#history-count")).to_have_text("3")
    second = next(entry for entry in entries(page) if entry["varied"] and entry["id"] != first["id"])
    assert tokens_in(second)[:8] == tokens_in(first, 2)[:8]  # the upper half is kept


def test_a_seamless_tile(page, gate):
    generate(page, gate)
    page.locator("#to-tile").click()
    expect(page.locator("#tiled img")).to_be_visible()
    with page.expect_download() as download:
        page.locator("#tile-download").click()
    assert re.fullmatch(r"a-red-fox_seed\d+_\d+_tile\.png", download.value.suggested_filename)
    with Image.open(download.value.path()) as tile:
        assert tile.size == (384, 384) and "dalle" not in tile.info
    page.locator("#tile-hide").click()
    expect(page.locator("#tiled")).to_be_hidden()


def test_a_picture_s_own_settings_come_back(page, gate):
    page.get_by_label("Seed", exact=True).fill("12")
    generate(page, gate)
    prompt(page).fill("something else")
    page.get_by_label("Seed", exact=True).fill("99")
    page.locator("#use-settings").click()
    expect(prompt(page)).to_have_value("a red fox")
    expect(page.get_by_label("Seed", exact=True)).to_have_value("12")


def test_before_a_picture_is_there_only_the_picture_is_asked_for(page, gate, tmp_path):
    open_tab(page, "Complete")
    expect(page.locator("#complete-picture")).to_be_visible()
    for name in ("kept-view", "side", "rows", "brush", "complete-prompt", "complete", "complete-stop", "complete-again"):
        expect(page.locator(f"#{name}")).to_be_hidden()
    open_tab(page, "Tokens")
    expect(page.locator("#tokens-upload")).to_be_visible()
    for name in ("tokens-grid", "token", "token-change", "tokens-slider", "tokens-error"):
        expect(page.locator(f"#{name}")).to_be_hidden()
    Image.effect_noise((80, 80), 80).convert("RGB").save(tmp_path / "a.png")
    page.locator("#tokens-upload input[type=file]").set_input_files(tmp_path / "a.png")
    expect(page.locator("#tokens-grid img")).to_be_visible()
    expect(page.locator("#token")).to_be_hidden()
    page.locator("#tokens-grid img").click(position={"x": 20, "y": 20})
    expect(page.locator("#token input")).to_be_visible()
