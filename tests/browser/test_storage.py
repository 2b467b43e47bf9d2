"""A browser whose storage is full or forbidden: the visitor reads what the history did, and all else goes on working."""

import json

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import DESK, PHONE, visit
from tests.browser.steps import entries, generate, prompt, thumbnails

# As Chromium does for a site whose cookies are blocked.
FORBIDDEN = """Object.defineProperty(window, "localStorage", { get() {
  throw new DOMException("Failed to read the 'localStorage' property: Access is denied.", "SecurityError"); } });"""
NO_ROOM = (
    """Storage.prototype.setItem = () => { throw new DOMException("The quota has been exceeded.", "QuotaExceededError"); };"""
)
# Other keys of the same origin, to the last character.
FULL = """() => { for (let size = 4e6; size >= 1; size = Math.floor(size / 2)) {
  try { for (let i = 0; ; i++) localStorage.setItem(`filler${size}.${i}`, "x".repeat(size)); } catch { } } }"""


def said(page, english, chinese):
    """The sentence is in the window, whatever is scrolled, in both languages; a click takes it away."""
    line = page.locator("#history-said")
    expect(line).to_contain_text(english)
    expect(line).to_be_in_viewport(ratio=1)
    page.locator("#language").click()
    expect(line).to_contain_text(chinese)
    page.locator("#language").click()
    expect(line).to_contain_text(english)
    line.click()
    expect(line).to_be_hidden()


def votes_twice(page):
    page.locator("#vote > button").click()
    for count in (1, 2):
        expect(page.locator("#vote-a img")).to_be_visible()
        page.locator("#vote-for-a").click()
        expect(page.locator("#vote-tally")).to_contain_text(f"of {count} votes")


@pytest.mark.parametrize(
    "script, english, chinese",
    [
        (FORBIDDEN, "This browser does not let the page keep a history", "这个浏览器不允许本页保存历史记录"),
        (NO_ROOM, "Other pages of this address fill this browser's storage", "占满了浏览器的存储空间"),
    ],
    ids=["forbidden", "no room"],
)
@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_without_storage_a_visitor_reads_so_and_everything_else_works(browser, served, gate, script, english, chinese, size):
    with visit(browser, served[0], size, script) as page:
        generate(page, gate)
        said(page, english, chinese)
        expect(page.locator("#history-count")).to_have_text("0")
        votes_twice(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_other_keys_of_the_origin_leave_no_room_and_are_left_alone(page, gate):
    page.evaluate(FULL)
    before = page.evaluate("Object.keys(localStorage).length")
    generate(page, gate)
    said(page, "Other pages of this address fill this browser's storage", "占满了浏览器的存储空间")
    expect(thumbnails(page)).to_have_count(4)
    assert page.evaluate("Object.keys(localStorage).length") == before
    votes_twice(page)


def test_in_a_full_storage_the_oldest_entries_make_room_and_favourites_stay(page, gate):
    for count, text in enumerate(("a red fox", "two apples " * 20), 1):  # the second one's room is enough for the third
        generate(page, gate, text)
        expect(page.locator("#history-count")).to_have_text(str(count))
    page.locator("#history > summary").click()
    page.locator("#history li", has_text="a red fox").locator(".star").click()
    page.evaluate(FULL)
    generate(page, gate, "a fox")
    said(page, "The history was full: the 1 oldest made room", "最旧的 1 条已让出位置")
    assert sorted(entry["prompt"] for entry in entries(page)) == ["a fox", "a red fox"]
    page.locator("#history li", has_text="a fox").locator(".star").click()  # now there is nothing that may go
    expect(page.locator("#history .star[aria-pressed=true]")).to_have_count(2)
    generate(page, gate, "two apples")
    said(page, "The history is full, so this was not kept", "历史记录已满，这次的结果没有保存")
    assert sorted(entry["prompt"] for entry in entries(page)) == ["a fox", "a red fox"]


def test_what_an_import_cannot_keep_is_said(page, gate):
    generate(page, gate)
    expect(page.locator("#history-count")).to_have_text("1")
    [entry] = entries(page)
    page.evaluate("localStorage.clear()")
    page.evaluate(FULL)
    page.locator("#history > summary").click()
    file = {"name": "h.json", "mimeType": "application/json", "buffer": json.dumps([entry]).encode()}
    page.locator("#history-import").set_input_files(file)
    said(page, "Other pages of this address fill this browser's storage", "占满了浏览器的存储空间")
    expect(page.locator("#history-count")).to_have_text("0")
    expect(page.locator("#history-export")).to_be_disabled()
    expect(prompt(page)).to_have_value("a red fox")
