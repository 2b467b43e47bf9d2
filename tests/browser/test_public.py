"""What a visitor sees when public mode refuses, in a real Chromium."""

from dataclasses import replace

import pytest
from playwright.sync_api import expect

from dalle_core.studio.budgets import PUBLIC
from tests.browser.conftest import serve
from tests.browser.steps import captions, fresh, generate, prompt


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("public"), public=True) as page:
        yield page


def test_a_refusal_is_a_sentence_and_nothing_is_lost(gate, browser, served, monkeypatch):
    monkeypatch.setattr(gate.studio.budgets, "budget", replace(PUBLIC, places=2))
    page, first, second = (fresh(browser, served[0]) for _ in range(3))
    generate(page, gate)
    before = captions(page)
    gate.open.clear()
    for other, said in ((first, "Drawing"), (second, "queue: 1/1")):
        prompt(other).fill("two apples")
        prompt(other).press("Enter")
        expect(other.locator("#status")).to_contain_text(said)
    prompt(page).fill("two apples")
    prompt(page).press("Enter")
    expect(page.locator(".toast-body")).to_contain_text(
        "2 of your requests are waiting or running already: let one of them finish"
    )
    expect(page.locator("#stop")).to_be_disabled()
    assert captions(page) == before and prompt(page).input_value() == "two apples"
    gate.open.set()
    for other in (first, second):
        expect(other.locator("#status")).to_contain_text("ranked by CLIP")
        other.context.close()
    generate(page, gate, "two apples")
    expect(page.locator("#history-count")).to_have_text("2")
    page.context.close()
