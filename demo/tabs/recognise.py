"""The Recognise tab: the other half of the model. A picture and labels -> how well each fits, twice; a question -> an answer
in words, from a model that writes them."""

import html
from contextlib import closing

import gradio as gr

from dalle_core.pipeline import QUESTION, Label
from dalle_core.request import MAX_PROMPT, text
from dalle_core.studio.studio import Studio
from demo.handlers import QUIET
from demo.public import visitor
from demo.uploads import picture_input

SHOWN = 12
MEANING = "CLIP score: how well label and picture fit, higher is better. CLIP’s share: how sure CLIP is, among these labels."
LIKELIHOOD = (
    "Drawing model: its own order, and how likely it would draw this picture for the label, in nats per token; nearer to 0 is "
    "likelier."
)


def ranking(found: list[Label]) -> str:
    """The labels as a table: CLIP's order, with the prior's opinion beside it; where they disagree is marked."""
    first = found[:SHOWN]
    asked = [label for label in first if label.log_likelihood is not None]
    prior_order = sorted(asked, key=lambda label: -label.log_likelihood)
    rows = []
    for rank, label in enumerate(first, 1):
        prior = "–"
        differs = ""
        if label in prior_order:
            place = prior_order.index(label) + 1
            prior = f"#{place} · {label.log_likelihood:.2f}"
            differs = ' class="differs"' if abs(place - rank) >= 3 else ""
        rows.append(
            f'<tr{differs}><td translate="no">{html.escape(label.text)}</td><td>{label.score:.3f}</td>'
            f"<td>{100 * label.probability:.1f} %</td><td>{prior}</td></tr>"
        )
    head = "<tr><th>label</th><th>CLIP score</th><th>CLIP’s share</th><th>drawing model</th></tr>"
    agree = ""
    if prior_order:
        same = prior_order[0] is first[0]
        agree = "Both agree on the first label." if same else "They disagree on the first label: see the marked rows."
    meaning = f"<p>{MEANING}</p>{f'<p>{LIKELIHOOD}</p>' if prior_order else ''}"
    return f'<table class="ranking">{head}{"".join(rows)}</table><p>{agree}</p>{meaning}'


def build(studio: Studio, together: int, tab: gr.Tab) -> None:
    """Adds the tab; its runs are among those that go on at once."""

    def shown() -> list[str]:
        """The class of what a model that answers has, and others do not."""
        return [] if studio.holder.loaded.answers else ["unused"]

    gr.Markdown(
        "What does a picture show? Two models judge how well each label fits: CLIP, which compares pictures with words, and "
        "the model that draws."
    )
    with gr.Row():
        with gr.Column():
            upload = picture_input("Picture", "recognise-upload", 320)
            labels = gr.Textbox(
                label="Labels, one per line",
                lines=4,
                max_lines=12,
                elem_id="labels",
                max_length=MAX_PROMPT,
                info="Leave it empty to try everything that the model knows by name.",
            )
            run = gr.Button("Recognise", variant="primary", elem_id="recognise")
            with gr.Group(elem_classes=shown()) as asking:
                question = gr.Textbox(label="Question", placeholder=QUESTION, elem_id="question", max_length=MAX_PROMPT)
                ask = gr.Button("Ask", elem_id="ask")
        with gr.Column():
            result = gr.HTML("", elem_id="recognised", elem_classes="figures", min_height=120)
            answer = gr.Textbox(label="Answer", lines=6, interactive=False, elem_classes=shown(), elem_id="answer")

    def recognise(request: gr.Request, path, labels):
        lines = [line for line in text("labels", labels or "").splitlines() if line.strip()]
        return ranking(studio.recognise(visitor(request), path, lines or None))

    run.click(
        recognise, [upload, labels], result, api_visibility="private", concurrency_id="sampling", concurrency_limit=together
    )

    def describe(request: gr.Request, path, asked):
        with closing(studio.describe(visitor(request), path, asked)) as parts:
            yield from parts

    gr.on(
        [ask.click, question.submit],
        describe,
        [upload, question],
        answer,
        api_visibility="private",
        concurrency_id="sampling",
        concurrency_limit=together,
    )
    # Another model may have been loaded, which answers or does not.
    tab.select(lambda: [gr.update(elem_classes=shown())] * 2, None, [asking, answer], **QUIET)
