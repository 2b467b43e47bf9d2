"""What a visitor does on the page, and what they see."""

import base64
import time

from playwright.sync_api import expect

TIMEOUT = 120_000  # ms, for whatever is waited for: a busy machine is slow, and no test measures time
expect.set_options(timeout=TIMEOUT)


def new_context(browser, **options):
    context = browser.new_context(accept_downloads=True, **options)
    context.set_default_timeout(TIMEOUT)
    return context


def open_page(page, url):
    """Goes there, and waits until the page's scripts and its first events have run."""
    page.goto(url)
    expect(page.locator("#generate")).to_be_enabled()
    expect(page.locator("#history-list")).to_be_attached()


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
    expect(page.locator("#status")).to_contain_text("Drawing")
    gate.open.set()
    expect(page.locator("#status")).to_contain_text("ranked by CLIP")
    expect(page.locator("#gallery .caption-label")).to_have_count(4)


def open_tab(page, name):
    expect(page.locator("#tabs .tab-wrapper")).to_contain_text(name)
    tab_, more = page.get_by_role("tab", name=name, exact=True), page.get_by_label("More tabs")
    expect(tab_.or_(more).first).to_be_visible()
    if tab_.count():
        tab_.click()
    else:  # a phone has no room for every tab
        more.click()
        page.locator(".overflow-dropdown").get_by_text(name, exact=True).click()


def entries(page):
    return page.evaluate(
        "Object.keys(localStorage).filter(k => k.startsWith('dalle.history.')).map(k => JSON.parse(localStorage.getItem(k)))"
    )


def fresh(browser, url):
    page = new_context(browser).new_page()
    open_page(page, url)
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
    """Whether the drawing that `gate.let` holds has begun."""
    return comes_true(page, lambda: gate.begun > gate.free)


def is_closed(page, gate) -> bool:
    """Whether the sampling that the gate holds is stopped."""
    return comes_true(page, gate.closed.is_set)


def comes_true(page, condition, seconds=TIMEOUT // 1000) -> bool:
    """Waits without holding this thread, which the page's requests go through."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        page.wait_for_timeout(50)
    return condition()


def steady(page, locator, name="src") -> str:
    """An attribute, once it has stayed the same for a second."""
    value, same = None, 0
    while same < 10:
        page.wait_for_timeout(100)
        before, value = value, locator.get_attribute(name)
        same = same + 1 if value == before else 0
    return value
