"""Several visitors, several tabs, tabs that go away: nobody sees another's work, and work nobody waits for stops."""

import http.client
import json
import os
import re
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.conftest import serve
from tests.browser.steps import (
    captions,
    drop,
    entries,
    fresh,
    generate,
    is_closed,
    open_page,
    previews,
    prompt,
    saved,
    thumbnails,
)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("two"), together=2) as page:
        yield page


def start(page, gate, text):
    """A drawing that the gate holds half-way."""
    gate.open.clear()
    prompt(page).fill(text)
    prompt(page).press("Enter")
    expect(page.locator("#status")).to_contain_text("Drawing")


def test_visitors_do_not_see_each_other(page, gate, browser, served):
    other = fresh(browser, served[0])
    start(page, gate, "a red fox")
    other.wait_for_timeout(500)
    expect(other.locator("#status")).to_be_empty()
    gate.open.set()
    expect(page.locator("#history-count")).to_have_text("1")
    expect(page.locator("#gallery .caption-label")).to_have_count(4)
    before = captions(page)
    other.reload()
    expect(other.locator("#history-count")).to_have_text("0")
    expect(other.locator("#status")).to_be_empty()
    assert thumbnails(other).count() == 0 and entries(other) == [] and prompt(other).input_value() == ""
    generate(other, gate, "two apples")
    assert captions(page) == before and prompt(page).input_value() == "a red fox"
    page.locator("#more").click()  # its own pool grows, by its own prompt
    expect(page.locator("#gallery .caption-label")).to_have_count(8)
    assert [entry["prompt"] for entry in entries(page)] == ["a red fox"]
    assert [entry["prompt"] for entry in entries(other)] == ["two apples"]
    other.context.close()


def ask(url, path) -> tuple[int, bytes]:
    """(status, body) of a GET whose path is sent as it stands: a browser would tidy it up first."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def files(page) -> list[Path]:
    """Where the server keeps the pictures of the gallery."""
    addresses = page.locator("#gallery img").evaluate_all("images => images.map(image => image.src)")
    return [Path(unquote(urlsplit(address).path.partition("file=")[2])) for address in addresses]


OPEN_TO_ALL = [
    "",
    "config",
    "manifest.json",
    "gradio_api/info",
    "gradio_api/info?all_endpoints=true",
    "gradio_api/openapi.json",
    "gradio_api/startup-events",
    "gradio_api/app_id",
    "gradio_api/runs",
    "gradio_api/run-history/records",
    "gradio_api/deep_link?session_hash=another",
    "monitoring",
    "monitoring/summary",
]


def test_nothing_that_all_may_ask_for_tells_of_a_visitor_s_pictures(page, gate, served):
    start(page, gate, "a purple banana")
    expect(previews(page)).to_have_count(4)
    asked = [ask(served[0], f"/{path}") for path in OPEN_TO_ALL]
    gate.open.set()
    expect(page.locator("#status")).to_contain_text("ranked by CLIP")
    expect(page.locator("#gallery .caption-label")).to_have_count(4)
    asked += [ask(served[0], f"/{path}") for path in OPEN_TO_ALL]
    statuses = dict(zip(OPEN_TO_ALL, (status for status, _ in asked)))
    assert statuses["config"] == statuses["gradio_api/info"] == 200
    assert statuses["monitoring"] == statuses["monitoring/summary"] == 403
    assert statuses["gradio_api/runs"] == 404 and statuses["gradio_api/run-history/records"] != 200
    told = b"".join(body for _, body in asked).decode(errors="replace")
    for secret in ("purple banana", *(file.parent.name for file in files(page))):
        assert len(secret) > 12 and secret not in told


def test_a_picture_is_read_by_its_address_only_and_nobody_can_guess_that(page, gate, served, tmp_path):
    generate(page, gate)
    [folder] = {file.parent for file in files(page)}
    file, url = files(page)[0], served[0]
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", folder.name)  # 128 bits of chance
    status, body = ask(url, f"/gradio_api/file={quote(str(file))}")
    assert status == 200 and body.startswith(b"\x89PNG")
    for listed in (folder, f"{folder}/", folder.parent, f"{folder}/.", f"{folder}/*", folder.parent / "another" / file.name):
        assert ask(url, f"/gradio_api/file={quote(str(listed))}")[0] == 403, listed

    secret = tmp_path / "secret.png"
    Image.new("RGB", (8, 8)).save(secret)
    up = os.path.relpath(secret, folder)
    outside = [
        f"file={secret}",
        "file=/etc/passwd",
        "file=app.py",
        "file=./demo/create.py",
        "file=file:///etc/passwd",
        f"file=/{secret}",
        f"file={url}config",
        f"file={folder}/{up}",
        f"file/{folder}/{up}",
        f"file={folder}/{up.replace('..', '%2e%2e')}",
        f"file={folder}/{quote(up, safe='')}",
        f"file={folder}/{up.replace('..', '%2e%2e').replace('/', '%2f')}",
        f"file={folder}/{up.replace('..', '%252e%252e')}",
        f"file={folder}/{up.replace('/', '%5c')}",
        f"file={secret}%00.png",
        f"file={folder}/%00/{up}",
    ]
    for path in outside:
        assert ask(url, f"/gradio_api/{path}")[0] in (403, 404), path
    for path in ("static", "assets", "svelte"):
        status, body = ask(url, f"/{path}/{'..%2f' * 20}etc/passwd")
        assert status != 200 and b"root:" not in body, path


def test_two_tabs_that_draw_at_once_both_enter_the_history(page, gate, served):
    second = page.context.new_page()
    open_page(second, served[0])
    start(page, gate, "a red fox")
    start(second, gate, "two apples")
    gate.open.set()
    for tab, text in ((page, "a red fox"), (second, "two apples")):
        expect(tab.locator("#status")).to_contain_text("ranked by CLIP")
        expect(tab.locator("#history-count")).to_have_text("2")
        expect(tab.locator("#gallery .caption-label")).to_have_count(4)
        assert prompt(tab).input_value() == text
    assert sorted(entry["prompt"] for entry in entries(page)) == ["a red fox", "two apples"]
    assert len({row["tokens"] for entry in entries(page) for row in entry["candidates"]}) == 8


def test_a_refresh_stops_the_work_and_the_page_comes_back_usable(gate, browser, served):
    page = fresh(browser, served[0])  # not the fixture: Gradio logs the stream that a reload cuts off as an error
    generate(page, gate)
    before = entries(page)
    gate.closed.clear()
    start(page, gate, "two apples")
    page.reload()
    assert is_closed(page, gate), "the sampling went on after the page was gone"
    expect(page.locator("#history-count")).to_have_text("1")
    assert entries(page) == before and thumbnails(page).count() == 0
    generate(page, gate, "two apples")
    expect(page.locator("#history-count")).to_have_text("2")
    page.context.close()


def test_a_closed_tab_stops_the_work(page, gate, browser, served):
    other = fresh(browser, served[0])
    start(other, gate, "two apples")
    other.context.close()
    assert is_closed(page, gate), "the sampling went on after the tab was closed"
    generate(page, gate)


def test_a_dropped_picture_is_completed_exactly(page, gate, browser, served):
    page.get_by_label("Seed", exact=True).fill("41")
    generate(page, gate)
    path = saved(page)
    kept = json.loads(Image.open(path).text["dalle"])["tokens"]
    other = fresh(browser, served[0])
    drop(other, path)
    expect(prompt(other)).to_have_value("a red fox")
    other.locator("#to-complete").click()
    expect(other.locator("#kept-view img")).to_be_visible()
    other.locator("#complete").click()
    expect(other.locator("#complete-status")).to_contain_text("8 candidates")
    pictures = other.locator("#completions .thumbnail-item img")
    expect(pictures).to_have_count(8)
    found = []
    for address in pictures.evaluate_all("images => images.map(image => image.src)"):
        answer = other.request.get(address)
        (path.parent / "completed.png").write_bytes(answer.body())
        found.append(json.loads(Image.open(path.parent / "completed.png").text["dalle"])["tokens"])
    assert all(tokens[:2] == kept[:2] for tokens in found)  # the rows that were kept
    assert any(tokens[2:] != kept[2:] for tokens in found)
    other.context.close()
