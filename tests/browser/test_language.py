"""The page in Chinese, in a real Chromium on a tiny pipeline."""

import re

import pytest
from PIL import Image
from playwright.sync_api import expect

from tests.browser.conftest import DESK, PHONE, visit
from tests.browser.steps import captions, comes_true, new_context, open_page, open_tab

# Words that stay: the field's own, formats, units, the model's name, Gradio.
KEPT = (
    "DALL CLIP Top PNG JPEG WebP GIF BMP JSON CSV TXT UTF zip PSNR API MCP float32 cpu Shift Enter tiny HF_HOME Gradio".split()
)
# Visible texts, what boxes show and what is read out; not what visitors wrote.
TEXTS = """() => {
  const found = [], skipped = (e) => e.closest("[translate=no], .notranslate, script, style") || !e.checkVisibility();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) if (!skipped(node.parentElement)) found.push(node.data.trim());
  for (const e of document.querySelectorAll("[placeholder], [aria-label], [title], input[readonly]")) {
    if (skipped(e)) continue;
    if (!e.closest("#augment-prompts")) found.push(e.placeholder ?? "");  // those are example prompts
    found.push(e.ariaLabel ?? "", e.title ?? "", e.readOnly ? e.value : "");
  }
  return [...new Set(found.filter(Boolean))];
}"""
TABS = ["补全", "识别", "对比", "制作数据集", "词元", "模型"]


def left_over(page) -> list[str]:
    """What is still English: a word of three or more Latin letters, outside quotation marks."""
    comes_true(page, lambda: not english_in(page), seconds=20)
    return english_in(page)


def english_in(page) -> list[str]:
    texts_ = [(text, re.sub(r"“[^”]*”", "", text)) for text in texts(page)]
    return [text for text, bare in texts_ if set(re.findall("[A-Za-z][A-Za-z0-9_]{2,}", bare)) - set(KEPT)]


def texts(page) -> list[str]:
    """Without the seconds that Gradio counts while an event runs."""
    return [text for text in page.evaluate(TEXTS) if not re.fullmatch(r"(\S+ \| )?[\d.]+(/[\d.]+)?s", text)]


@pytest.fixture
def chinese(browser, served, request):
    with visit(browser, served[0], getattr(request, "param", DESK), locale="zh-CN") as page:
        yield page


def draw(page, text="a red fox"):
    page.get_by_label("提示词", exact=True).first.fill(text)
    page.locator("#generate").click()
    expect(page.locator("#status")).to_contain_text("已按 CLIP 排名")
    expect(page.locator("#gallery .caption-label")).to_have_count(4)


def pictures(page) -> list[str]:
    return page.locator("#gallery img").evaluate_all("images => images.map(image => image.src)")


def test_a_chinese_browser_gets_a_chinese_page(chinese, gate):
    page = chinese
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    expect(page.locator("#generate")).to_have_text("生成")
    expect(page.get_by_placeholder("每次随机").first).to_be_visible()
    assert left_over(page) == []
    gate.open.clear()
    page.get_by_label("提示词", exact=True).first.fill("a fox and a banana on a purple background")
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("正在绘制")
    expect(page.locator("#status")).to_contain_text(" %")
    gate.open.set()
    expect(page.locator("#status")).to_contain_text("4 个候选，已按 CLIP 排名，种子")
    expect(page.locator("#notice")).to_contain_text("提示词超出了")
    expect(page.locator("#facts")).to_contain_text("CLIP 分数")
    for fold in ("#advanced > button", "#vote > button", "#history > summary"):
        page.locator(fold).click()
    expect(page.locator("#vote-asked b")).to_have_text("a fox and a banana on a purple background")
    page.locator("#vote-for-a").click()
    expect(page.locator("#vote-tally")).to_contain_text("1 次投票中")
    page.locator("#copy-link").click()
    expect(page.locator("#copied")).to_contain_text(re.compile("链接已复制|请从这里复制"))
    page.evaluate("document.querySelector('#copied').replaceChildren()")  # it may hold the link
    page.locator("#model input").click()
    expect(page.get_by_role("option", name="dalle-mini · 需下载 1.1 GB · MIT")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("option")).to_have_count(0)
    assert left_over(page) == []


def test_errors_are_chinese_sentences(chinese, gate):
    seed = chinese.get_by_label("种子", exact=True).first
    seed.fill("seven")
    chinese.get_by_label("提示词", exact=True).first.fill("a fox")
    chinese.keyboard.press("Enter")
    expect(chinese.get_by_text("种子 'seven' 不是 0 到 9223372036854775807 之间的整数。")).to_be_visible()
    seed.fill("-3")
    chinese.locator("#generate").click()
    expect(chinese.get_by_text("种子 '-3' 不是 0 到")).to_be_visible()
    seed.fill("")
    draw(chinese)  # the page goes on


def test_what_visitors_wrote_stays(chinese, gate):
    asked = []
    draw(chinese, "prompt")  # also a word of the page
    chinese.locator("#history > summary").click()
    expect(chinese.locator("#history .what b")).to_have_text("prompt")
    expect(chinese.locator("#history .what small")).to_contain_text("4 个候选 · 最佳")
    chinese.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    chinese.locator("#history .delete").click()
    assert asked == ["要从历史记录中删除“prompt”吗？"]
    expect(chinese.locator("#examples")).to_contain_text("two apples")


def test_every_tab_is_chinese(chinese, tmp_path):
    Image.effect_noise((120, 90), 80).convert("RGB").save(tmp_path / "photo.png")
    for name in TABS:
        chinese.get_by_role("tab", name=name, exact=True).click()
        if name == "词元":
            chinese.locator("#tokens-upload input[type=file]").set_input_files(tmp_path / "photo.png")
            expect(chinese.locator("#tokens-figures")).to_contain_text("码本")
        if name == "识别":
            chinese.locator("#recognise-upload input[type=file]").set_input_files(tmp_path / "photo.png")
            chinese.locator("#labels textarea").fill("a fox\ntwo apples")
            chinese.locator("#recognise").click()
            expect(chinese.locator("#recognised")).to_contain_text("two apples")
        if name == "对比":
            expect(chinese.locator("#compare-y input")).to_have_value("引导强度")
            chinese.locator("#compare-y input").click()
            chinese.get_by_role("option", name="温度").click()
            expect(chinese.locator("#compare-y input")).to_have_value("温度")
        if name == "制作数据集":
            chinese.locator("#augment").click()
            expect(chinese.get_by_text("没有提示词：请写一些")).to_be_visible()
        assert left_over(chinese) == [], name


def test_switching_is_live_keeps_everything_and_is_remembered(chinese, gate):
    draw(chinese)
    before, ranks = pictures(chinese), captions(chinese)
    switch = chinese.locator("#language")
    expect(switch).to_have_text(re.compile("English"))
    switch.focus()
    chinese.keyboard.press("Enter")
    assert chinese.evaluate("document.documentElement.lang") == "en"
    expect(chinese.locator("#generate")).to_have_text("Generate")
    expect(chinese.locator("#status")).to_contain_text("4 candidates, ranked by CLIP, seed")
    expect(chinese.get_by_label("Prompt", exact=True).first).to_have_value("a red fox")
    expect(chinese.get_by_placeholder("new each time").first).to_be_visible()
    assert pictures(chinese) == before and captions(chinese) == ranks
    open_tab(chinese, "Complete")
    expect(chinese.locator("#complete-picture")).to_contain_text("Drop Image Here")  # Gradio's own, Chinese in this browser
    chinese.reload()
    expect(chinese.locator("#generate")).to_have_text("Generate")
    chinese.locator("#language").click()
    expect(chinese.locator("#generate")).to_have_text("生成")
    chinese.reload()
    expect(chinese.locator("#generate")).to_have_text("生成")


@pytest.mark.parametrize("chinese", [PHONE], indirect=True)
def test_a_phone_does_not_scroll_sideways(chinese, gate):
    wide = "document.documentElement.scrollWidth"
    draw(chinese, "a fox and a banana on a purple background")
    for fold in ("#history > summary", "#vote > button", "#advanced > button"):
        chinese.locator(fold).click()
        assert comes_true(chinese, lambda: chinese.evaluate(wide) == 390, seconds=20), fold
    for name in TABS:
        shown = chinese.get_by_role("tab", name=name, exact=True)
        if not shown.count():
            chinese.get_by_label("更多标签页").click()
            shown = chinese.locator(".overflow-dropdown").get_by_text(name, exact=True)
        shown.click()
        expect(chinese.locator(".tabitem:visible")).to_have_count(1)
        assert comes_true(chinese, lambda: chinese.evaluate(wide) == 390, seconds=20), name


def test_an_english_browser_gets_english_and_can_choose_chinese(browser, served):
    with visit(browser, served[0], locale="en-US") as page:
        assert page.evaluate("document.documentElement.lang") == "en"
        expect(page.locator("#generate")).to_have_text("Generate")
        english = texts(page)
        page.locator("#language").click()
        expect(page.locator("#generate")).to_have_text("生成")
        assert left_over(page) == []
        open_tab(page, "补全")
        expect(page.locator("#complete-picture")).to_contain_text("将图像拖放到此处")
        open_tab(page, "创作")
        page.locator("#language").click()
        expect(page.locator("#generate")).to_have_text("Generate")
        comes_true(page, lambda: texts(page) == english, seconds=20)
        assert texts(page) == english


def test_a_browser_that_forbids_storage_can_switch_too(browser, served):
    context = new_context(browser, locale="zh-CN")
    context.add_init_script(
        "for (const name of ['getItem', 'setItem']) { const real = Storage.prototype[name]; "
        "Storage.prototype[name] = function (key, ...rest) { "
        "if (key === 'dalle.language') throw new Error('forbidden'); return real.call(this, key, ...rest); } }"
    )
    page = context.new_page()
    open_page(page, served[0])
    expect(page.locator("#generate")).to_have_text("生成")
    page.locator("#language").click()
    expect(page.locator("#generate")).to_have_text("Generate")
    context.close()
