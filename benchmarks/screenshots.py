"""The pictures of the README and of shared links, of the real page with the embedded model: `python -m benchmarks.screenshots`.

`--only drawing.gif` makes the animated one alone.
"""

import argparse
import io
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

import dalle_core
from demo import create_demo, launch_options, open_studio
from demo.link_preview import PICTURE as PREVIEW
from tests.browser.chromium import executable

OUT = Path(__file__).parent.parent / "assets" / "screenshots"
PROMPT = "a fox and a banana on a purple background"
VIEWS = {  # name -> (width, height, colour scheme, the browser's language, prompt)
    "create": (1440, 1000, "light", "en", PROMPT),
    "create-dark": (1440, 1000, "dark", "en", PROMPT),
    "create-phone": (390, 844, "light", "en", PROMPT),
    "create-phone-dark": (390, 844, "dark", "en", PROMPT),
    "create-chinese": (1440, 1000, "light", "zh-CN", "粉色背景上的草莓"),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.screenshots")
    parser.add_argument("--only", choices=["drawing.gif"], help="(default: all of them)")
    only = parser.parse_args().only
    OUT.mkdir(parents=True, exist_ok=True)
    studio = open_studio(dalle_core.load("emoji"), "emoji")
    demo = create_demo(studio)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options(studio))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=["--no-sandbox", "--disable-gpu"])
        animation(browser, url)
        for name, (width, height, scheme, language, prompt) in {} if only else VIEWS.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme, locale=language)
            page.goto(url)
            page.locator("#generate:not([disabled])").wait_for()
            page.locator("#seed textarea, #seed input").first.fill("7")
            page.locator("#keep-seed input").check()
            page.locator("#prompt textarea").fill(prompt)
            page.keyboard.press("Enter")
            if name == "create":
                page.locator("#previews img").first.wait_for(timeout=60_000)
                page.screenshot(path=OUT / "drawing.png")
            page.locator("#gallery .caption-label").first.wait_for(timeout=60_000)
            page.wait_for_timeout(1000)  # pictures fade in
            page.screenshot(path=OUT / f"{name}.png")
            if name == "create":
                link_preview(OUT / "create.png")
            if name == "create":
                other_tabs(page)
            page.close()
        browser.close()
    demo.close()


def animation(browser, url: str) -> None:
    """drawing.gif: the page from the prompt to the ranked grid, as it happens; the last picture stays for two seconds."""
    page = browser.new_page(viewport={"width": 1100, "height": 1240}, color_scheme="light", locale="en")
    page.goto(url)
    page.locator("#generate:not([disabled])").wait_for()
    page.locator("#seed textarea, #seed input").first.fill("7")
    page.locator("#keep-seed input").check()
    frames = [frame(page)]
    for end in range(4, len(PROMPT) + 4, 4):
        page.locator("#prompt textarea").fill(PROMPT[:end])
        frames.append(frame(page))
    page.keyboard.press("Enter")
    drawn, started = page.locator("#gallery .caption-label").first, time.monotonic()
    while not drawn.is_visible() and time.monotonic() - started < 120:
        frames.append(frame(page))
    drawn.wait_for(timeout=1000)
    page.wait_for_timeout(1000)  # pictures fade in
    frames.append(frame(page))
    page.close()
    times = [150] * (len(frames) - 1) + [2000]  # milliseconds
    # One palette for all, of the last: what does not change stays the same, and takes no room.
    palette = frames[-1].quantize(256)
    frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in frames]
    frames[0].save(OUT / "drawing.gif", save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=True)


def frame(page) -> Image.Image:
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return picture.resize((800, round(picture.height * 800 / picture.width)), Image.Resampling.LANCZOS)


def link_preview(create: Path) -> None:
    """The picture of a shared link, as large as messengers want it, from the top of a screenshot."""
    picture = Image.open(create).convert("RGB")
    picture = picture.crop((0, 0, picture.width, picture.width * 630 // 1200)).resize((1200, 630), Image.Resampling.LANCZOS)
    picture.save(PREVIEW, quality=82, optimize=True)


def other_tabs(page) -> None:
    """From the finished grid: its best picture completed, read token by token, and recognised; a data set; the model."""
    with page.expect_download() as download:
        page.locator("#download").click()
    picture = {"name": "picture.png", "mimeType": "image/png", "buffer": Path(download.value.path()).read_bytes()}

    page.locator("#to-complete").click()
    page.locator("#kept-view img").wait_for()
    page.locator("#complete").click()
    page.locator("#complete-status", has_text="candidates").wait_for(timeout=60_000)
    page.wait_for_timeout(1000)
    page.screenshot(path=OUT / "complete.png", full_page=True)

    page.get_by_role("tab", name="Tokens").click()
    page.locator("#tokens-upload input[type=file]").set_input_files(picture)
    page.locator("#tokens-figures", has_text="dB").wait_for()
    page.locator("#tokens-grid img").click(position={"x": 150, "y": 200})
    page.locator("#token input:not([disabled])").wait_for()
    page.wait_for_timeout(1000)
    page.screenshot(path=OUT / "tokens.png", full_page=True)

    page.get_by_role("tab", name="Recognise").click()
    page.locator("#recognise-upload input[type=file]").set_input_files(picture)
    page.locator("#recognise").click()
    page.locator("#recognised table").wait_for(timeout=60_000)
    page.wait_for_timeout(1000)
    page.screenshot(path=OUT / "recognise.png", full_page=True)

    page.get_by_role("tab", name="Compare").click()
    page.locator("#compare-prompt textarea, #compare-prompt input").first.fill("a fox on a green background")
    page.locator("#compare-x-values textarea, #compare-x-values input").first.fill("green, blue, yellow, pink")
    page.locator("#compare-y-values textarea, #compare-y-values input").first.fill("1, 2, 4")
    page.locator("#compare-seed textarea, #compare-seed input").first.fill("7")
    page.locator("#compare").click()
    page.locator("#compare-status", has_text="cells, seed").wait_for(timeout=120_000)
    page.wait_for_timeout(1000)
    page.screenshot(path=OUT / "compare.png", full_page=True)

    page.get_by_role("tab", name="Make a data set").click()
    page.locator("#augment-prompts textarea").fill("a fox\na smiling face on a yellow background\ntwo apples in flat style")
    page.locator("#augment").click()
    page.locator("#augment-download").wait_for(timeout=60_000)
    page.wait_for_timeout(1000)
    page.screenshot(path=OUT / "augment.png", full_page=True)

    page.get_by_role("tab", name="Model").click()
    page.locator("#model-card h1").wait_for()
    page.wait_for_timeout(1000)
    page.screenshot(path=OUT / "model.png")


if __name__ == "__main__":
    main()
