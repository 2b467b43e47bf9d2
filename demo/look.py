"""How the page looks: a light table for pictures. System fonts only, nothing is fetched from anywhere."""

from urllib.parse import quote

import gradio as gr

from demo import static

SANS = ["system-ui", "-apple-system", "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "sans-serif"]
MONO = ["ui-monospace", "SF Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]


def theme() -> gr.themes.Base:
    return gr.themes.Base(
        primary_hue=gr.themes.colors.orange,
        neutral_hue=gr.themes.colors.stone,
        font=SANS,
        font_mono=MONO,
        radius_size=gr.themes.sizes.radius_lg,
    ).set(
        body_background_fill="#faf8f5",
        body_background_fill_dark="#161413",
        block_background_fill="#ffffff",
        block_background_fill_dark="#201d1b",
        body_text_color_subdued="#6b635c",  # 5.5 : 1 on the page; the palette's own grey is under 3 : 1
        body_text_color_subdued_dark="#b3aaa2",
        block_border_width="0px",
        block_shadow="none",
        block_label_background_fill="#ffffff",  # it lies on pictures
        block_label_background_fill_dark="#201d1b",
        input_border_width="1px",
        input_border_color="#e3ded8",
        input_border_color_dark="#3a3531",
        input_background_fill="#ffffff",
        input_background_fill_dark="#2a2623",
        button_primary_background_fill="#c2410c",  # 5.2 : 1 under white; the brighter orange of the rest is under 4.5
        button_primary_background_fill_hover="#9a3412",
        button_primary_background_fill_dark="#c2410c",
        button_primary_background_fill_hover_dark="#9a3412",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
    )


def header() -> str:
    return (
        '<div class="brand"><button id="language" type="button" translate="no"><span lang="zh-CN">中文</span>'
        '<span lang="en">English</span></button><h1>DALL·E, ranked</h1>'
        "<p>Describe a picture and watch several being drawn: those that fit your words best come first.</p></div>"
    )


HEAD = f"""<meta name="viewport" content="width=device-width, initial-scale=1">
<script>{static.read("clipboard.js")}</script>"""

CSS = """
.gradio-container { width: 100%; max-width: 1320px !important; margin: 0 auto !important; }
/* A long choice ends before the arrow. */
.wrap-inner .secondary-wrap input { padding-right: 1.6rem !important; text-overflow: ellipsis; }
.brand h1 { font-size: 1.7rem; letter-spacing: -0.02em; font-weight: 750; margin: .3rem 0 .1rem; }
.brand p { color: var(--body-text-color-subdued); margin: 0; font-size: .98rem; }
#language { float: right; margin: .35rem 0 .3rem 1rem; padding: .3rem .8rem; font-size: .9rem; cursor: pointer;
  border: 1px solid var(--border-color-primary); border-radius: 99px; background: var(--input-background-fill);
  color: var(--body-text-color); }
#language:hover, #language:focus-visible { border-color: #e8590c; }
:root:lang(zh) #language > :lang(zh), :root:lang(en) #language > :lang(en) { display: none; }
.model-facts { font-size: .85rem; color: var(--body-text-color-subdued); line-height: 1.45; }
#tabs .tabitem { padding: .6rem 0 0 !important; border: 0 !important; }
#tabs [role=tab][aria-selected=true] { color: #c2410c; }
.dark #tabs [role=tab][aria-selected=true] { color: #fb923c; }
#prompt-row { align-items: stretch; }
#prompt textarea, #prompt input { font-size: 1.15rem; padding: .85rem 1rem; }
#prompt { border: 1px solid var(--border-color-primary); }
#generate, #stop { min-height: 3.2rem; font-size: 1.02rem; }
#examples button, #examples .gallery-item { border-radius: 99px; }
#examples .label { display: none; }
#status { min-height: 3.2rem; }  /* with the bar, so that nothing moves when it goes */
:has(> .row #empty:not(.unused)) > #status:not(:has(.line, .wrap:not(.hide))) { min-height: 0; }  /* before the first drawing */
.row:has(#empty:not(.unused)) > .column:has(> #detail) { display: none; }
#status .wrap { height: auto; overflow: visible !important; }
#status .progress-text { top: .6rem !important; }
.bar { height: 6px; border-radius: 99px; background: var(--border-color-primary); overflow: hidden; }
.bar div { height: 100%; background: #e8590c; transition: width .2s linear; }
.line { display: flex; justify-content: space-between; gap: 1rem; font-size: .88rem; margin-bottom: .35rem;
  color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
.line b { color: var(--body-text-color); font-weight: 600; }
.notice { border-left: 3px solid #e8590c; padding: .4rem .8rem; font-size: .92rem; margin-top: .5rem; }
#notice:not(:has(.notice)), :is(#previews, #complete-previews):not(:has(img)) { display: none; }
/* Until there is something to use it on. It is part of the page all the while: Gradio may lose a value that arrives together
   with its component, and does not hide "hidden" rows and columns. */
.unused { display: none !important; }
.notice s { opacity: .65; }
.notice.quiet { border-color: var(--border-color-primary); }
:is(#gallery, #completions) { background: transparent; }
:is(#gallery, #completions) .grid-wrap { max-height: none; }
:is(#gallery, #completions) .thumbnail-item { border-radius: 14px; border: 1px solid var(--border-color-primary);
  background: #fff; overflow: hidden; }
:is(#gallery, #completions) .thumbnail-item:is(:hover, :focus-visible) { outline: 3px solid #e8590c; }
:is(#gallery, #completions) .caption-label { left: 8px; right: auto; bottom: 8px; max-width: none; border-radius: 99px;
  border: 0; padding: .1rem .55rem; font-family: var(--font-mono); font-size: .75rem; background: rgba(28, 25, 23, .78);
  color: #fff; }
:is(#previews, #complete-previews) .html-container { padding: 0; }
/* As Gradio's gallery. */
.preview-grid { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 8px; padding: 8px; }
.preview-grid img { width: 100%; aspect-ratio: 1; border-radius: 14px; border: 1px solid var(--border-color-primary);
  background: #fff; }
:is(#gallery, #completions).ranked .grid-container > :first-child .caption-label { background: #c2410c; }
#order-row { align-items: center; gap: .5rem 1.5rem; }
#order, #best, #rejected, #order-row .form { background: transparent; padding: 0; }
#order { flex: 0 1 auto !important; width: auto; }
#order-row .form { flex: 1 1 320px; flex-wrap: nowrap; align-items: center; gap: 1rem; }
#best { flex: 1 1 160px; min-width: 0 !important; }
#rejected { flex: 0 0 auto; width: auto; margin: 0; }
footer .divider { display: none; }  /* Gradio's, after the last link */
#augmented { background: transparent; }
#augmented .grid-container { grid-template-rows: none !important; grid-auto-rows: auto !important; }
#augmented .thumbnail-item { border-radius: 10px; background: #fff; overflow: hidden; aspect-ratio: 1; height: auto; }
#augmented .caption-label { left: 0; right: 0; max-width: none; border: 0; border-radius: 0; padding: .1rem .4rem;
  font-size: .7rem; background: rgba(28, 25, 23, .78); color: #fff; }
#kept-view img { cursor: crosshair; touch-action: none; user-select: none; }
#stroke { position: absolute; pointer-events: none; z-index: 50; }
#stroke polyline { fill: none; stroke: #e8590c; stroke-width: 2.5; stroke-linecap: round; opacity: .8; }
#chosen { background: transparent; }
#chosen img { border-radius: 14px; background: #fff; }
#chosen :is(button:has(img), .image-frame, img) { width: 100%; object-fit: contain; }
.stop:disabled { display: none; }
.figures, #model-card { contain: inline-size; overflow-x: auto; }  /* a wide table does not widen a phone's page */
/* Chinese lines break between any two signs: short words of the interface should not. */
:root:lang(zh) :is(button, th, .head) { word-break: keep-all; }
.line span + span { white-space: nowrap; }
#model-parts td { overflow-wrap: anywhere; }
.figures :is(table, tr), #facts :is(table, tr) { border: 0; }
.figures .ranking td { overflow-wrap: anywhere; }
.figures .ranking td + td { white-space: nowrap; }
.figures table { width: 100%; border-collapse: collapse; font-size: .9rem; }
.figures td, .figures th { border: 0; border-bottom: 1px solid var(--border-color-primary); padding: .35rem .4rem;
  text-align: left; font-variant-numeric: tabular-nums; }
.figures .differs td { background: rgba(217, 72, 15, .12); }
#facts table { width: 100%; border: 0; border-collapse: collapse; font-size: .9rem; }
#facts td { border: 0; border-bottom: 1px solid var(--border-color-primary); padding: .35rem .2rem; }
#facts td:first-child { color: var(--body-text-color-subdued); width: 40%; }
#facts p, .figures p { margin: .5rem .2rem 0; font-size: .82rem; line-height: 1.4; color: var(--body-text-color-subdued); }
#facts td:last-child { font-family: var(--font-mono); text-align: right; }
#dice { flex-direction: row; gap: .4rem; font-size: .95rem; }
#seed-row { align-items: stretch; }
#open-row > button { flex: 0 1 auto; padding-inline: 1rem; }
#train-run input { padding-right: 2rem; text-overflow: ellipsis; }  /* beside the arrow */
.empty { padding: 3.2rem 1rem; text-align: center; color: var(--body-text-color-subdued); border-radius: 14px;
  border: 1px dashed var(--border-color-primary); }
@media (max-width: 640px) {
  .gradio-container { padding: 10px !important; }
  .gradio-container main { padding: 6px !important; }
  #tabs button[role=tab] { padding: .4rem .5rem; font-size: .88rem; }
  #tabs, #tabs .tab-wrapper, #tabs .tab-container { min-width: 0; max-width: 100%; }
  .brand h1 { font-size: 1.35rem; }
  .brand p { font-size: .9rem; clear: both; }
  #prompt-row { display: grid; grid-template-columns: 1fr 1fr; }
  #prompt, #prompt-row:has(.stop:disabled) #generate { grid-column: 1 / -1; }
  /* The result comes before what it can be varied with. */
  #settings-row, #advanced { order: 1; }
  #open-row, #history-fold { order: 2; }
  #examples .gallery { flex-wrap: nowrap; overflow-x: auto; padding-bottom: .3rem; }
  #examples .gallery-item { flex: none; }
  .empty { padding: 1.6rem 1rem; }
  .figures .ranking { font-size: .8rem; }
  .figures .ranking :is(td, th) { padding: .35rem .2rem; }
  #seed-row { display: grid; grid-template-columns: 2fr 1fr; }
  #seed { grid-column: 1 / -1; }
  #open-row { display: block; }
  #model-row, #complete-row, #train-row { flex-direction: column; }
  #train-row > * { width: 100%; }
  #model-parts table { font-size: .75rem; }
  #augmented .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)) !important; }
  .preview-grid, :is(#gallery, #completions) .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; }
}
"""
# Inside the style: a file that Gradio serves lies in its temporary folder, which may be cleaned.
CSS += f"""#dice::before {{ content: ""; width: 1.25rem; height: 1.25rem;
  background: url("data:image/svg+xml,{quote(static.read("dice.svg"))}"); }}
"""

# Enter in a line of text starts what the open tab draws, Ctrl+Enter does so in any field; Escape stops it anywhere.
JS = """
() => document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.repeat) return;  // an input method has its own Enter and Escape
  const press = (buttons) =>
    [...document.querySelectorAll(buttons)].find((button) => !button.disabled && button.checkVisibility())?.click();
  if (event.key === "Escape") press("#stop, #complete-stop, #compare-stop, #augment-stop");
  const field = event.target.closest?.(".tabitem :is(input, textarea)");
  if (event.key !== "Enter" || event.shiftKey || !field) return;
  if (field.closest("#prompt, #complete-prompt, #compare-prompt")) return;  // Gradio submits these
  if (field.matches("[type=text]") || event.ctrlKey || event.metaKey)
    press("#generate, #complete, #compare, #augment, #recognise");
})
"""
