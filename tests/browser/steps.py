"""What a visitor does on the page, and what they see."""

import base64

from playwright.sync_api import expect


def prompt(page):
    return page.get_by_label("Prompt", exact=True)


def thumbnails(page):
    return page.locator("#gallery .thumbnail-item")


def previews(page):
    return page.locator("#previews img")


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


def entries(page):
    return page.evaluate(
        "Object.keys(localStorage).filter(k => k.startsWith('dalle.history.')).map(k => JSON.parse(localStorage.getItem(k)))"
    )


def fresh(browser, url):
    page = browser.new_context(accept_downloads=True).new_page()
    page.goto(url)
    expect(page.get_by_role("button", name="Generate")).to_be_enabled()
    return page


def saved(page):
    with page.expect_download() as download:
        page.locator("#download").click()
    return download.value.path()


DROP = """([text, name]) => {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0)), data = new DataTransfer();
  data.items.add(new File([bytes], name, { type: "image/png" }));
  const event = new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: data });
  document.querySelector("#header").dispatchEvent(event);
}"""


def drop(page, path):
    page.evaluate(DROP, [base64.b64encode(path.read_bytes()).decode(), path.with_suffix(".png").name])


def is_held(page, gate) -> bool:
    """Whether the drawing that `gate.let` holds has begun within ten seconds."""
    for _ in range(500):
        if gate.begun > gate.free:
            return True
        page.wait_for_timeout(20)
    return False


def is_closed(page, gate) -> bool:
    """Whether the sampling that the gate holds is stopped within ten seconds."""
    for _ in range(100):  # not gate.closed.wait: the page's requests go through this thread
        if gate.closed.is_set():
            return True
        page.wait_for_timeout(100)
    return False
