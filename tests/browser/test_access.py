"""Every tab, at a desk and on a phone; without a mouse; with a name for all that can be used."""

from importlib.resources import files

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import DESK, PHONE
from tests.browser.steps import comes_true, generate, is_closed, is_held, open_tab, prompt, thumbnails

TABS = ["Create", "Complete", "Recognise", "Compare", "Make a data set", "Tokens", "Model"]
USED = {
    "button",
    "checkbox",
    "combobox",
    "link",
    "listbox",
    "radio",
    "searchbox",
    "slider",
    "spinbutton",
    "switch",
    "tab",
    "textbox",
}


@pytest.mark.parametrize("page", [DESK, PHONE], indirect=True)
def test_every_tab_opens_without_an_error_and_none_scrolls_sideways(page, gate):
    generate(page, gate)
    for name in [*TABS, "Create"]:
        open_tab(page, name)
        expect(page.locator(".tabitem:visible")).to_have_count(1)
        page.wait_for_timeout(500)  # what the tab loads, and what it logs
        assert comes_true(page, lambda: page.evaluate("document.documentElement.scrollWidth <= innerWidth"), seconds=20), name
    expect(thumbnails(page)).to_have_count(4)  # what was drawn is still there
    # The fixture looks for errors in the console, and for requests to other hosts.


AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
# What WCAG 2.1 asks for at its levels A and AA, of what is in sight.
RUN_AXE = """async () => (await axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"], resultTypes: ["violations"] }))
  .violations.flatMap((found) => found.nodes.map((node) => `${found.id}: ${node.html.slice(0, 200)}`))"""


@pytest.mark.parametrize("page", [DESK, PHONE], indirect=True, ids=["desk", "phone"])
def test_axe_finds_no_fault_on_any_tab(page, gate):
    generate(page, gate)
    page.evaluate(AXE)
    found = {}
    for name in TABS:
        open_tab(page, name)
        expect(page.locator(".tabitem:visible")).to_have_count(1)
        found |= dict.fromkeys(page.evaluate(RUN_AXE), name)
    assert found == {}, "\n".join(f"{name}: {fault}" for fault, name in found.items())


def tab_to(page, selector):
    """Presses Tab until an element that fits has the focus."""
    for _ in range(120):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    pytest.fail(f"{selector} cannot be reached with the Tab key")


def test_the_page_is_used_without_a_mouse(page, gate):
    page.locator("body").focus()
    tab_to(page, "#prompt textarea, #prompt input")
    page.keyboard.type("a red fox")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("ranked by CLIP")
    for _ in range(3):
        tab_to(page, "#gallery .thumbnail-item")
    page.keyboard.press("Enter")
    expect(page.locator("#facts")).to_contain_text("rank3")
    tab_to(page, "#download, #download *")
    with page.expect_download():
        page.keyboard.press("Enter")
    page.locator("body").focus()
    tab_to(page, "[role=tab]")
    for _ in range(10):
        if page.evaluate("document.activeElement.innerText") == "Complete":
            break
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#complete-picture")).to_be_visible()


def box(page, name):
    return page.locator(f"#{name} textarea, #{name} input").first


def ready_to_draw(page, gate, tab):
    """Fills what the tab needs."""
    if tab == "Complete":
        generate(page, gate)
        page.locator("#to-complete").click()
        expect(page.locator("#kept-view img")).to_be_visible()
        expect(box(page, "complete-prompt")).to_have_value("a red fox")
        return
    open_tab(page, tab)
    if tab == "Create":
        prompt(page).fill("a red fox")
    elif tab == "Compare":
        box(page, "compare-prompt").fill("a red fox")
        box(page, "compare-x-values").fill("fox, apple")
        box(page, "compare-y-values").fill("1, 3")
    else:
        box(page, "augment-prompts").fill("a red fox")


@pytest.mark.parametrize(
    "tab, focus, status, finished",
    [
        ("Create", "seed", "status", "ranked by CLIP"),
        ("Complete", "complete-prompt", "complete-status", "8 candidates"),
        ("Complete", "complete-seed", "complete-status", "8 candidates"),
        ("Compare", "compare-prompt", "compare-status", "4 cells"),
        ("Compare", "compare-x-values", "compare-status", "4 cells"),
        ("Make a data set", "augment-seed", "augment-status", "4 kept"),
    ],
)
def test_enter_starts_a_run_and_escape_stops_it(page, gate, tab, focus, status, finished):
    ready_to_draw(page, gate, tab)
    gate.let(0)
    box(page, focus).press("Enter")
    expect(page.locator(f"#{status}")).to_contain_text("Drawing")
    assert is_held(page, gate)
    gate.closed.clear()
    page.keyboard.press("Escape")  # with the focus still in the box
    assert is_closed(page, gate), "the sampling went on after Escape"
    expect(page.locator(f"#{status}")).to_contain_text("Stopped")
    gate.open.set()
    box(page, focus).press("Enter")
    expect(page.locator(f"#{status}")).to_contain_text(finished)


def test_enter_in_the_box_of_many_prompts_is_a_new_line_and_control_enter_draws(page, gate):
    open_tab(page, "Make a data set")
    prompts = box(page, "augment-prompts")
    prompts.fill("a red fox")
    prompts.press("Enter")
    page.keyboard.type("two apples")
    expect(prompts).to_have_value("a red fox\ntwo apples")
    page.wait_for_timeout(500)
    expect(page.locator("#augment-status")).to_be_empty()
    prompts.press("Control+Enter")
    expect(page.locator("#augment-status")).to_contain_text("8 kept")


def nameless(page) -> list[str]:
    """The HTML of what can be used and has no name, by Chromium's own accessibility tree."""
    cdp = page.context.new_cdp_session(page)
    found = []
    for node in cdp.send("Accessibility.getFullAXTree")["nodes"]:
        if node["ignored"] or node["role"]["value"] not in USED or node.get("name", {}).get("value", "").strip():
            continue
        html = cdp.send("DOM.getOuterHTML", {"backendNodeId": node["backendDOMNodeId"]})["outerHTML"]
        found.append(html[:200])
    cdp.detach()
    return found


def test_all_that_can_be_used_has_a_name(page, gate, tmp_path):
    generate(page, gate)
    page.locator("#advanced > button").click()
    page.locator("#vote > button").click()
    expect(page.locator("#vote-a img")).to_be_visible()
    page.locator("#history > summary").click()
    expect(page.locator("#history .open")).to_be_visible()
    page.locator("#to-complete").click()
    expect(page.locator("#kept-view img")).to_be_visible()
    page.locator("#complete").click()
    expect(page.locator("#complete-status")).to_contain_text("8 candidates")
    found = {}
    for name in TABS:
        open_tab(page, name)
        expect(page.locator(".tabitem:visible")).to_have_count(1)
        found |= dict.fromkeys(nameless(page), name)
    assert found == {}, "\n".join(found)
