"""History, permalinks and dropped pictures, in a real Chromium on a tiny pipeline."""

import json

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.conftest import visit
from tests.browser.steps import captions, drop, entries, fresh, generate, open_tab, prompt, saved


def test_a_refresh_loses_nothing_and_an_entry_opens_exactly(gate, browser, served):
    page = fresh(browser, served[0])  # not the fixture: Gradio logs the stream that a reload cuts off as an error
    generate(page, gate)
    before, picture = captions(page), saved(page)
    expect(page.locator("#history-count")).to_have_text("1")
    gate.open.clear()
    prompt(page).fill("two apples")
    prompt(page).press("Enter")
    expect(page.locator("#status")).to_contain_text("Drawing")
    page.reload()
    gate.open.set()
    expect(page.locator("#history-count")).to_have_text("1")
    page.locator("#history > summary").click()
    expect(page.locator("#history .open")).to_be_enabled()
    page.locator("#history .open").click()
    expect(page.locator("#gallery .caption-label")).to_have_text(before)
    expect(prompt(page)).to_have_value("a red fox")
    again = saved(page)
    assert Image.open(again).convert("RGB").tobytes() == Image.open(picture).convert("RGB").tobytes()
    ours, theirs = (json.loads(Image.open(path).text["dalle"]) for path in (picture, again))
    assert ours["tokens"] == theirs["tokens"] and ours["seed"] == theirs["seed"]
    other = fresh(browser, served[0])
    expect(other.locator("#history-count")).to_have_text("0")
    assert entries(other) == []
    other.context.close()
    page.once("dialog", lambda dialog: dialog.accept())
    page.locator("#history .delete").click()
    expect(page.locator("#history-count")).to_have_text("0")
    page.context.close()


def test_several_prompts_and_more(page, gate):
    prompt(page).fill("a red fox\ntwo apples")
    prompt(page).press("Enter")
    expect(page.locator("#history-count")).to_have_text("2")
    expect(page.locator("#status")).to_contain_text("ranked by CLIP")
    page.locator("#more").click()
    expect(page.locator("#gallery .caption-label")).to_have_count(8)
    assert len(set(captions(page))) == 8
    expect(page.locator("#history-count")).to_have_text("2")
    assert sorted(len(entry["candidates"]) for entry in entries(page)) == [4, 8]
    expect(page.locator("#best input[type=number]")).to_have_value("8")  # the whole pool
    page.locator("#best input[type=number]").fill("4")
    expect(page.locator("#gallery .caption-label")).to_have_count(4)
    page.get_by_label("Show the rest").check()
    expect(page.locator("#gallery .caption-label").first).to_contain_text("#5")


def test_a_link_restores_prompt_and_settings_elsewhere(page, gate, browser, served):
    page.get_by_label("Seed", exact=True).fill("41")
    generate(page, gate)
    link = page.locator("#permalink").evaluate("link => link.href")
    page.locator("#copy-link").click()
    expect(page.locator("#copied")).not_to_be_empty()
    other = fresh(browser, link)
    expect(prompt(other)).to_have_value("a red fox")
    expect(other.get_by_label("Seed", exact=True)).to_have_value("41")
    prompt(other).press("Enter")
    expect(other.locator("#gallery .caption-label")).to_have_text(captions(page))
    other.context.close()


def test_a_link_is_copied_where_the_browser_has_no_clipboard_for_pages(gate, browser, served):
    with visit(browser, served[0], script="delete Navigator.prototype.clipboard") as page:  # as over plain http
        generate(page, gate)
        page.locator("#copy-link").click()
        expect(page.locator("#copied")).to_have_text("Link copied.")
        prompt(page).fill("")
        prompt(page).press("ControlOrMeta+v")
        expect(prompt(page)).to_have_value(page.locator("#permalink").evaluate("link => link.href"))


def test_a_dropped_picture_restores_all_of_it(page, gate, browser, served, tmp_path):
    page.get_by_label("Seed", exact=True).fill("41")
    generate(page, gate)
    path = saved(page)
    other = fresh(browser, served[0])
    drop(other, path)
    expect(prompt(other)).to_have_value("a red fox")
    expect(other.get_by_label("Seed", exact=True)).to_have_value("41")
    again = saved(other)
    assert json.loads(Image.open(again).text["dalle"])["tokens"] == json.loads(Image.open(path).text["dalle"])["tokens"]
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    drop(other, tmp_path / "plain.png")
    expect(other.get_by_text("carries no recipe")).to_be_visible()
    other.context.close()


def test_a_picture_dropped_on_another_tab_restores_it_and_opens_create(page, gate, browser, served, tmp_path):
    page.get_by_label("Seed", exact=True).fill("41")
    generate(page, gate)
    path = saved(page)
    other = fresh(browser, served[0])
    open_tab(other, "Compare")
    words = other.locator("#prompt textarea, #prompt input").first  # Compare has a prompt too
    expect(words).to_be_hidden()
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    drop(other, tmp_path / "plain.png")
    expect(other.get_by_text("carries no recipe")).to_be_visible()
    expect(words).to_be_hidden()
    drop(other, path)
    expect(words).to_be_visible()
    expect(words).to_have_value("a red fox")
    expect(other.get_by_role("tab", name="Create", exact=True)).to_have_attribute("aria-selected", "true")
    expect(other.locator("#chosen img")).to_be_visible()
    again = saved(other)
    assert json.loads(Image.open(again).text["dalle"])["tokens"] == json.loads(Image.open(path).text["dalle"])["tokens"]
    other.context.close()


def test_a_full_storage_lets_the_oldest_go_and_says_so(page, gate):
    for count in ("1", "2"):
        generate(page, gate)
        expect(page.locator("#history-count")).to_have_text(count)
    page.evaluate("""() => { for (let size = 4e6; size >= 1; size = Math.floor(size / 2)) {
      try { for (let i = 0; ; i++) localStorage.setItem(`filler${size}.${i}`, "x".repeat(size)); } catch { } } }""")
    generate(page, gate, "two apples")
    expect(page.locator("#history-said")).to_contain_text("made room")
    kept = [entry["prompt"] for entry in entries(page)]
    assert "two apples" in kept and len(kept) < 3


def test_a_forged_import_is_refused(page):
    page.locator("#history > summary").click()
    forged = [{"id": "../x", "model": "tiny", "prompt": "<img src=x onerror=alert(1)>", "candidates": []}]
    page.locator("#history-import").set_input_files(
        {"name": "h.json", "mimeType": "application/json", "buffer": json.dumps(forged).encode()}
    )
    expect(page.locator("#history-said")).to_contain_text("nothing was imported")
    expect(page.locator("#history-count")).to_have_text("0")


@pytest.mark.parametrize("page", [{"width": 390, "height": 844}], indirect=True)
def test_a_phone_does_not_scroll_sideways_with_the_history_open(page, gate):
    generate(page, gate)
    page.locator("#history > summary").click()
    expect(page.locator("#history .open")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_blind_vote_counts_in_this_browser(page, gate):
    generate(page, gate)
    page.locator("#vote > button").click()
    expect(page.locator("#vote-a img")).to_be_visible()
    page.locator("#vote-for-a").click()
    expect(page.locator("#vote-tally")).to_contain_text("of 1 votes")
