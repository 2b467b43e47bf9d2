"""The Create, Complete, Tokens and Recognise tabs in a real Chromium, on a tiny pipeline."""

import io
import json

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.conftest import PHONE
from tests.browser.steps import captions, generate, is_closed, new_context, open_page, open_tab, previews, prompt, thumbnails


def test_previews_then_ranks_then_a_download(page, gate, tmp_path):
    gate.open.clear()
    prompt(page).fill("a red fox")
    prompt(page).press("Enter")
    expect(previews(page)).to_have_count(4)  # while the gate is shut
    expect(page.locator("#status")).to_contain_text("Drawing")
    assert thumbnails(page).count() == 0 and previews(page).first.evaluate("image => image.naturalWidth") > 0
    gate.open.set()

    expect(page.locator("#status")).to_contain_text("ranked by CLIP")
    expect(page.locator("#gallery .caption-label")).to_have_count(4)
    expect(previews(page)).to_have_count(0)
    ranks, scores = zip(*(text.strip().split(" · ") for text in captions(page)))
    assert ranks == ("#1", "#2", "#3", "#4")
    assert sorted(map(float, scores), reverse=True) == [float(score) for score in scores]

    thumbnails(page).nth(2).click()
    expect(page.locator("#facts")).to_contain_text("rank3")
    with page.expect_download() as download:
        page.locator("#download").click()
    assert download.value.suggested_filename.startswith("a-red-fox_seed")
    image = Image.open(io.BytesIO(download.value.path().read_bytes()))
    recipe = json.loads(image.text["dalle"])
    assert image.format == "PNG" and image.width >= 384
    assert recipe["prompt"] == "a red fox" and f"{recipe['score']:.3f}" == scores[2]
    assert len(recipe["tokens"]) == 4 and str(recipe["seed"]) in download.value.suggested_filename


def test_order_of_sampling_and_back(page, gate):
    generate(page, gate)
    ranked = captions(page)
    sources = page.locator("#gallery img").evaluate_all("images => images.map(image => image.src)")
    page.get_by_label("Generation order").check()
    expect(page.locator("#gallery .caption-label").first).not_to_have_text("")
    page.wait_for_function(
        "first => document.querySelector('#gallery img').src !== first || "
        "document.querySelectorAll('#gallery .caption-label')[0].innerText.startsWith('#1')",
        arg=sources[0],
    )
    assert sorted(captions(page)) == sorted(ranked)
    page.get_by_label("Best first").check()
    expect(page.locator("#gallery .caption-label")).to_have_text(ranked)


@pytest.mark.parametrize("how", ["button", "Escape"])
def test_stop_half_way_stops_the_work_and_keeps_what_was_drawn(page, gate, how):
    gate.open.clear()
    prompt(page).fill("a red fox")
    page.get_by_role("button", name="Generate").click()
    expect(previews(page)).to_have_count(4)
    if how == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    assert is_closed(page, gate), "the sampling went on after Stop"
    expect(page.locator("#status")).to_contain_text("Stopped")
    expect(previews(page)).to_have_count(4)
    expect(page.locator("#stop")).to_be_disabled()
    gate.open.set()
    generate(page, gate)


def test_a_finished_grid_stays_until_the_next_has_something_to_show(page, gate):
    generate(page, gate)
    before = captions(page)
    prompt(page).fill("   ")
    prompt(page).press("Enter")
    expect(page.get_by_text("The prompt is empty")).to_be_visible()
    assert captions(page) == before
    expect(page.locator("#stop")).to_be_disabled()
    generate(page, gate, "two apples")  # the page goes on


def test_examples_fill_the_prompt_and_draw(page, gate):
    page.locator("#examples").get_by_text("two apples").click()
    expect(prompt(page)).to_have_value("two apples")
    expect(page.locator("#status")).to_contain_text("ranked by CLIP")


def test_a_kept_seed_draws_the_same_again(page, gate):
    seed = page.get_by_label("Seed", exact=True)
    seed.fill("7")
    page.get_by_label("Lock seed").check()
    generate(page, gate)
    first = captions(page)
    generate(page, gate)
    assert captions(page) == first and seed.input_value() == "7"
    page.get_by_role("button", name="New seed").click()
    expect(seed).not_to_have_value("7")
    seed.fill("seven")
    prompt(page).press("Enter")
    expect(page.get_by_text("'seven' is not a whole number")).to_be_visible()


def test_a_pasted_seed_is_used_and_one_drawn_at_random_is_not_used_again(page, gate):
    seed = page.get_by_label("Seed", exact=True)
    generate(page, gate)
    first = seed.input_value()
    generate(page, gate)
    assert seed.input_value() != first
    seed.fill("7")
    generate(page, gate)
    assert seed.input_value() == "7" and not page.get_by_label("Lock seed").is_checked()


def test_the_place_in_the_queue_is_seen_and_can_be_given_up(page, gate, served):
    gate.open.clear()
    prompt(page).fill("a red fox")
    prompt(page).press("Enter")
    expect(previews(page)).to_have_count(4)
    second = page.context.new_page()
    open_page(second, served[0])
    prompt(second).fill("two apples")
    prompt(second).press("Enter")
    place = second.locator("#status .progress-text")
    expect(place).to_contain_text("queue: 1/1")
    clipped = (
        "e => { for (let p = e; p = p.parentElement;) if (getComputedStyle(p).overflowY !== 'visible' && "
        "p.getBoundingClientRect().bottom < e.getBoundingClientRect().bottom) return p.className; }"
    )
    assert place.evaluate(clipped) is None
    second.keyboard.press("Escape")
    expect(place).to_have_count(0)
    expect(second.locator("#stop")).to_be_disabled()
    gate.open.set()
    expect(page.locator("#status")).to_contain_text("ranked by CLIP")
    second.wait_for_timeout(1000)  # long enough for its four tiny pictures, had it kept its place
    assert thumbnails(second).count() == 0
    generate(second, gate)


def test_a_prompt_that_is_too_long_says_where_it_stops(page, gate):
    generate(page, gate, "a fox and a banana on a purple background")
    expect(page.locator("#notice")).to_contain_text("It stops at")
    expect(page.locator("#notice s")).to_contain_text("background")
    generate(page, gate, "a fox")
    expect(page.locator("#notice")).to_be_hidden()


# What of a tab scrolls sideways inside its box.
SCROLLED = """() => [...document.querySelectorAll(".tabitem *")].filter((one) => one.checkVisibility() &&
  one.scrollWidth > one.clientWidth + 1 && ["auto", "scroll"].includes(getComputedStyle(one).overflowX))
  .map((one) => one.closest("[id]:not([id=''])").id)"""


@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_a_phone_shows_the_result_first_and_does_not_scroll_sideways(page, gate, photo):
    generate(page, gate)
    tops = [
        page.locator(f"#{name}").bounding_box()["y"]
        for name in ("prompt", "generate", "examples", "status", "gallery", "candidates", "advanced", "open-saved")
    ]
    assert tops == sorted(tops)
    wide = """() => [...document.querySelectorAll('*')]
        .filter(e => e.children.length === 0 && e.getBoundingClientRect().right > 391).map(e => e.outerHTML.slice(0, 150))"""
    assert page.evaluate("document.documentElement.scrollWidth") == 390, page.evaluate(wide)
    box = thumbnails(page).first.bounding_box()
    assert 130 <= box["width"] <= 195  # two a row
    page.evaluate("document.querySelector('#examples button').style.width = '500px'")
    assert page.evaluate(SCROLLED) == ["examples"]
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    open_tab(page, "Recognise")
    page.locator("#recognise-upload input[type=file]").set_input_files(photo)
    page.locator("#labels textarea").fill("a fox with a rather long description\ntwo apples")
    page.locator("#recognise").click()
    expect(page.locator("#recognised")).to_contain_text("two apples")
    assert page.evaluate(SCROLLED) == []


def pick(page, name):
    page.locator("#advanced > button").click()
    page.locator("#model input").click()
    page.get_by_role("option", name=name).click()


def test_changing_the_model_changes_the_controls_and_a_failure_keeps_the_one_before(page, gate):
    assert page.locator("#candidates input[type=number]").input_value() == "4"
    pick(page, "dalle-mini")
    expect(page.locator("#about-model")).to_contain_text("licence: MIT")
    expect(page.locator("#candidates input[type=number]")).to_have_value("2")
    expect(page.locator("#examples")).to_contain_text("a banana")
    page.locator("#model input").click()
    page.get_by_role("option", name="dalle-mega · 5.4 GB to download · MIT").click()
    expect(page.get_by_text("takes 10.5 GB")).to_be_visible()
    expect(page.locator("#model input")).to_have_value("dalle-mini · 1.1 GB to download · MIT")
    page.locator("#model input").click()
    page.get_by_role("option", name="tiny").click()
    expect(page.locator("#candidates input[type=number]")).to_have_value("4")
    generate(page, gate)
    page.locator("#model input").click()
    page.get_by_role("option", name="dalle-mini").click()
    expect(page.locator("#candidates input[type=number]")).to_have_value("2")
    open_tab(page, "Compare")
    page.locator("#compare-sampling > button").click()
    expect(page.locator("#compare-top-k input[type=number]")).to_have_value("7")
    open_tab(page, "Create")
    page.locator("#model input").click()
    page.get_by_role("option", name="tiny").click()  # all browser tests share it
    expect(page.locator("#candidates input[type=number]")).to_have_value("4")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.effect_noise((120, 90), 80).convert("RGB").save(path)
    return path


def test_only_the_best_are_shown_when_that_is_asked_for(page, gate):
    generate(page, gate)
    page.locator("#best input[type=number]").fill("1")
    expect(page.locator("#gallery .caption-label")).to_have_count(1)
    assert [text.split(" ")[0] for text in captions(page)] == ["#1"]


def test_variations_keep_half_of_the_tokens(page, gate, tmp_path):
    def tokens(name):
        with page.expect_download() as download:
            page.locator("#download").click()
        return json.loads(Image.open(download.value.path()).text["dalle"])["tokens"]

    generate(page, gate)
    before = sum(tokens("before"), [])
    gate.open.clear()
    page.locator("#vary").click()
    expect(page.locator("#status")).to_contain_text("Drawing")
    gate.open.set()
    expect(page.locator("#status")).to_contain_text("ranked by CLIP")
    after = sum(tokens("after"), [])
    assert sum(a == b for a, b in zip(before, after)) >= 8


def test_a_saved_picture_restores_everything(page, gate, browser, served):
    page.locator("#advanced > button").click()
    page.get_by_label("Seed", exact=True).fill("41")
    generate(page, gate, "two apples")
    with page.expect_download() as download:
        page.locator("#download").click()
    path = download.value.path()
    context = new_context(browser)
    fresh = context.new_page()
    open_page(fresh, served[0])
    with fresh.expect_file_chooser() as chooser:
        fresh.get_by_role("button", name="Open a saved picture").click()
    chooser.value.set_files({"name": "a.png", "mimeType": "image/png", "buffer": path.read_bytes()})
    expect(prompt(fresh)).to_have_value("two apples")
    expect(fresh.get_by_label("Seed", exact=True)).to_have_value("41")
    with fresh.expect_download() as again:
        fresh.locator("#download").click()
    ours, theirs = (Image.open(file).convert("RGB").tobytes() for file in (path, again.value.path()))
    assert ours == theirs
    context.close()


def test_completing_a_picture(page, gate, photo):
    open_tab(page, "Complete")
    page.locator("#complete-picture input[type=file]").first.set_input_files(photo)
    view = page.locator("#kept-view img")
    expect(view).to_be_visible()
    before = view.get_attribute("src")
    view.click(position={"x": 20, "y": 20})
    expect(view).not_to_have_attribute("src", before)
    page.locator("#complete-prompt textarea, #complete-prompt input").first.fill("a red fox")
    page.locator("#complete").click()
    expect(page.locator("#complete-status")).to_contain_text("8 candidates")
    expect(page.locator("#completions .thumbnail-item")).to_have_count(8)


def test_a_chosen_picture_goes_to_the_complete_tab(page, gate):
    generate(page, gate)
    page.locator("#to-complete").click()
    expect(page.locator("#kept-view img")).to_be_visible()
    expect(page.locator("#complete-prompt textarea, #complete-prompt input").first).to_have_value("a red fox")


def test_tokens_can_be_read_and_changed(page, photo):
    open_tab(page, "Tokens")
    page.locator("#tokens-upload input[type=file]").set_input_files(photo)
    expect(page.locator("#tokens-figures")).to_contain_text("dB")
    pictures = [page.locator(f"{where} img").last for where in ("#tokens-grid", "#tokens-slider", "#tokens-error")]
    picture, before = pictures[0], [picture.get_attribute("src") for picture in pictures]
    picture.click(position={"x": 20, "y": 20})
    number = page.locator("#token input")
    expect(number).not_to_have_value("")
    number.fill(str((int(number.input_value()) + 7) % 64))
    page.locator("#token-change").click()
    for picture, source in zip(pictures, before):  # the reconstruction and where it is off, too
        expect(picture).not_to_have_attribute("src", source)
    expect(page.locator("#tokens-figures")).to_contain_text("dB")


def test_recognising(page, photo):
    open_tab(page, "Recognise")
    page.locator("#recognise-upload input[type=file]").set_input_files(photo)
    page.locator("#labels textarea").fill("a fox\ntwo apples")
    page.locator("#recognise").click()
    expect(page.locator("#recognised")).to_contain_text("two apples")
    expect(page.locator("#recognised")).to_contain_text("nats")


def test_a_file_that_is_no_picture_is_refused_in_a_sentence(page, tmp_path):
    open_tab(page, "Recognise")
    (tmp_path / "text.png").write_text("not a picture", encoding="utf-8")
    page.locator("#recognise-upload input[type=file]").set_input_files(tmp_path / "text.png")
    page.locator("#labels textarea").fill("a fox")
    page.locator("#recognise").click()
    expect(page.get_by_text("is not a picture this page can read")).to_be_visible()
