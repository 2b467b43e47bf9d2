"""Pictures of the page that are dragged onto a tab and into a place that takes pictures, in a real Chromium."""

from playwright.sync_api import expect

from tests.browser.steps import entries, generate, steady, thumbnails
from tests.browser.test_edit import complete, tokens_in


def hold(page, picture):
    picture.hover()
    page.mouse.down()


def move(page, target):
    box = target.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)


def drag_to_tab(page, picture, tab, place):
    """Holds the picture over the tab until it opens, and drops it into the place."""
    hold(page, picture)
    move(page, page.get_by_role("tab", name=tab, exact=True))
    expect(page.locator(place)).to_be_visible()
    move(page, page.locator(place))
    page.mouse.up()


def test_a_candidate_is_dragged_to_another_tab_with_its_very_tokens(page, gate):
    generate(page, gate)
    drag_to_tab(page, thumbnails(page).nth(2), "Complete", "#complete-picture")
    expect(page.locator("#kept-view img")).to_be_visible()
    page.locator("#complete-prompt :is(textarea, input)").first.fill("a red fox")
    complete(page)
    drawn, completed = sorted(entries(page), key=lambda entry: entry["varied"])
    assert tokens_in(completed)[:8] == tokens_in(drawn, 2)[:8]  # the upper half is kept
    page.set_viewport_size({"width": 1440, "height": 2400})  # the completions and the place are in sight together
    before = steady(page, page.locator("#complete-picture img"))
    hold(page, page.locator("#completions .thumbnail-item").nth(1))
    move(page, page.locator("#complete-picture"))
    page.mouse.up()
    expect(page.locator("#complete-picture img")).not_to_have_attribute("src", before)  # in the place of the one before
    page.get_by_role("tab", name="Create", exact=True).click()
    drag_to_tab(page, page.locator("#chosen img"), "Recognise", "#recognise-upload")
    expect(page.locator("#recognise-upload img")).to_be_visible()
