"""The tab that makes a data set, in a real Chromium, on a tiny pipeline."""

import errno
import json
import zipfile

import pytest
from playwright.sync_api import expect

from dalle_core import augment
from tests.browser.steps import is_closed, is_held, open_tab


def fill(page, prompts, count, seed="7", threshold=""):
    open_tab(page, "Make a data set")
    page.locator("#augment-prompts textarea").fill(prompts)
    page.locator("#augment-count input[type=number]").fill(str(count))
    page.locator("#augment-seed input, #augment-seed textarea").first.fill(seed)
    page.locator("#augment-threshold input, #augment-threshold textarea").first.fill(threshold)


def unpacked(page) -> tuple[list[dict], list[str]]:
    """(lines of the metadata, names of the files) of the zip that the page hands out."""
    with page.expect_download() as download:
        page.locator("#augment-download").click()
    assert download.value.suggested_filename == "augmented_seed7.zip"
    with zipfile.ZipFile(download.value.path()) as zip_:
        assert zip_.testzip() is None
        return [json.loads(line) for line in zip_.read("metadata.jsonl").splitlines()], zip_.namelist()


def test_prompts_and_a_table_become_a_zip(page, gate, tmp_path):
    (tmp_path / "more.csv").write_text("prompt,count\n<b>a fox</b>,3\n", encoding="utf-8")
    fill(page, "a red fox\ntwo apples", 2)
    page.locator("#augment-file input[type=file]").set_input_files(tmp_path / "more.csv")
    expect(page.locator("#augment-file")).to_contain_text("more")
    page.locator("#augment").click()
    expect(page.locator("#augment-status")).to_contain_text("7 kept, 0 rejected, seed 7")
    expect(page.locator("#augmented .thumbnail-item")).to_have_count(7)
    expect(page.locator("#augmented .caption-label").first).to_contain_text("<b>a fox</b>")
    metadata, names = unpacked(page)
    assert [line["text"] for line in metadata] == ["a red fox"] * 2 + ["two apples"] * 2 + ["<b>a fox</b>"] * 3
    assert {line["file_name"] for line in metadata} | {"metadata.jsonl", "README.md"} == set(names)


def test_stop_half_way_still_gives_the_zip_of_what_was_drawn(page, gate):
    fill(page, "a red fox", 40)
    for name in ("augment-stop", "augment-download"):  # nothing to stop, nothing to download
        expect(page.locator(f"#{name}")).to_be_hidden()
    gate.let(2)  # blocks of sixteen; the last one is held half-way
    page.locator("#augment").click()
    expect(page.locator("#augment-status")).to_contain_text("picture 33 of 40: 32 kept, 0 rejected")
    expect(page.locator("#augmented .thumbnail-item")).to_have_count(24)  # the latest
    assert is_held(page, gate)
    gate.closed.clear()
    page.locator("#augment-stop").click()
    expect(page.locator("#augment-status")).to_contain_text("Stopped. 32 pictures were kept")
    assert is_closed(page, gate), "the sampling went on after Stop"
    metadata, names = unpacked(page)
    assert len(metadata) == 32 and len(set(names)) == 34
    assert {line["text"] for line in metadata} == {"a red fox"}
    gate.open.set()
    fill(page, "two apples", 2)  # the page goes on, and forgets the run before
    page.locator("#augment").click()
    expect(page.locator("#augment-status")).to_contain_text("2 kept, 0 rejected, seed 7")
    assert [line["text"] for line in unpacked(page)[0]] == ["two apples"] * 2


def test_a_failure_half_way_still_gives_the_zip_of_what_was_drawn(page, gate, monkeypatch):
    append, calls = augment._append, []

    def full(path, content):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(path, content)

    monkeypatch.setattr(augment, "_append", full)
    fill(page, "a red fox", 40)
    page.locator("#augment").click()
    expect(page.get_by_text("The server's disk is full")).to_be_visible()
    expect(page.locator("#augment-status")).to_contain_text("16 pictures were kept")
    assert len(unpacked(page)[0]) == 16


def test_too_much_names_the_command_and_what_was_drawn_stays(page, gate):
    fill(page, "a red fox", 2)
    page.locator("#augment").click()
    expect(page.locator("#augment-status")).to_contain_text("2 kept, 0 rejected")
    fill(page, "a red fox\n" * 201, 2)
    page.locator("#augment").click()
    expect(page.get_by_text("python -m dalle_core augment")).to_be_visible()
    expect(page.locator("#augmented .thumbnail-item")).to_have_count(2)
    assert len(unpacked(page)[0]) == 2


@pytest.mark.parametrize("page", [{"width": 390, "height": 844}], indirect=True)
def test_a_phone_does_not_scroll_sideways(page, gate):
    fill(page, "a red fox\n" + "a" * 300 + " fox", 6)
    page.locator("#augment").click()
    expect(page.locator("#augment-status")).to_contain_text("12 kept, 0 rejected")
    expect(page.locator("#augmented .thumbnail-item")).to_have_count(12)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    box = page.locator("#augmented .thumbnail-item").first.bounding_box()
    assert 60 <= box["width"] <= 95  # four a row
