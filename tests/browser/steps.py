"""What a visitor does on the page, and what they see."""

from playwright.sync_api import expect


def prompt(page):
    return page.get_by_label("Prompt", exact=True)


def thumbnails(page):
    return page.locator("#gallery .thumbnail-item")


def captions(page) -> list[str]:
    return page.locator("#gallery .caption-label").all_inner_texts()


def generate(page, gate, text="a red fox"):
    gate.open.clear()  # held half-way, so that the line of the run before is gone for certain
    prompt(page).fill(text)
    prompt(page).press("Enter")
    expect(page.locator("#status")).to_contain_text("Drawing", timeout=30_000)
    gate.open.set()
    expect(page.locator("#status")).to_contain_text("ranked by CLIP", timeout=30_000)
    expect(page.locator("#gallery .caption-label")).to_have_count(4)


def open_tab(page, name):
    expect(page.locator("#tabs .tab-wrapper")).to_contain_text(name)
    tab_ = page.get_by_role("tab", name=name, exact=True)
    if tab_.count():
        tab_.click()
    else:  # a phone has no room for every tab
        page.get_by_label("More tabs").click()
        page.locator(".overflow-dropdown").get_by_text(name, exact=True).click()
