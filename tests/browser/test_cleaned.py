"""The temporary folder is cleaned, as systems do of themselves, while the page is open."""

import os
import shutil

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.conftest import serve
from tests.browser.steps import fresh, generate, open_tab, saved, thumbnails


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("cleaned")) as page:
        yield page


def clean():
    shutil.rmtree(os.environ["GRADIO_TEMP_DIR"])


def dice(page) -> str:
    return page.locator("#dice").evaluate("button => getComputedStyle(button, '::before').backgroundImage")


def test_drawing_downloads_and_uploads_go_on_and_the_icon_is_there(gate, browser, served, tmp_path):
    page = fresh(browser, served[0])  # not the fixture: a picture that is cleaned before it was loaded is logged as an error
    generate(page, gate)
    clean()
    generate(page, gate, "two apples")
    expect(thumbnails(page)).to_have_count(4)
    assert page.locator("#chosen img").evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    with Image.open(saved(page)) as picture:
        assert "two apples" in picture.text["dalle"]
    clean()
    Image.effect_noise((120, 90), 80).convert("RGB").save(tmp_path / "photo.png")
    open_tab(page, "Tokens")
    page.locator("#tokens-upload input[type=file]").set_input_files(tmp_path / "photo.png")
    expect(page.locator("#tokens-figures")).to_contain_text("dB")
    clean()
    other = fresh(browser, served[0])
    assert dice(page) == dice(other) and dice(other).startswith('url("data:image/svg+xml')
    generate(other, gate)
    other.context.close()
    page.context.close()
