"""The blind vote: which of two candidates fits the prompt better, and how often CLIP says the same."""

import html
import secrets

import gradio as gr

from demo import static

HEAD = f"<script>{static.read('vote.js')}</script>"


def draw_pair(items: list[dict]) -> list[dict] | None:
    """Two candidates of the pool at random, in random order; None when there are no two with different scores."""
    scored = [item for item in items or [] if item["score"] is not None]
    if len({item["score"] for item in scored}) < 2:
        return None
    first = secrets.choice(scored)
    second = secrets.choice([item for item in scored if item["score"] != first["score"]])
    return [first, second]


def verdict(pair: list[dict], side: int) -> str:
    """What the page's script counts: "agree" or "differ", and a word that is new each time."""
    agrees = pair[side]["score"] > pair[1 - side]["score"]
    return f"{'agree' if agrees else 'differ'} {secrets.token_hex(4)}"


def build(kept: gr.State) -> None:
    """The fold below the gallery; votes are counted in the visitor's browser (`vote.js`)."""
    pair = gr.State(None)
    with gr.Accordion("Blind vote: which fits the prompt better?", open=False, elem_id="vote") as fold:
        asked = gr.HTML("Draw two or more candidates first.", elem_id="vote-asked")
        with gr.Row(elem_id="vote-pair"):
            pictures = [
                gr.Image(
                    label=f"Candidate {name}", elem_id=f"vote-{name.lower()}", format="png",
                    interactive=False, buttons=[], height=240, min_width=120, alt_text=f"Candidate {name}",
                )
                for name in "AB"
            ]  # fmt: skip
        with gr.Row(elem_id="vote-buttons"):
            buttons = [
                gr.Button(f"{name} fits better", elem_id=f"vote-for-{name.lower()}", min_width=100) for name in "AB"
            ]
            another = gr.Button("Another pair", elem_id="vote-another", min_width=100)
        gr.HTML('<div id="vote-tally" role="status"></div>')
    said = gr.Textbox(elem_id="vote-said", elem_classes="offstage", show_label=False)
    outputs = [pair, asked, *pictures]

    def ask(items):
        two = draw_pair(items)
        if two is None:
            return [None, "Draw two or more candidates that CLIP ranks first.", None, None]
        return [two, f'<b translate="no">{html.escape(two[0]["request"]["prompt"][:200])}</b>', two[0]["path"], two[1]["path"]]

    def vote_for(side):
        def vote(two, items):
            if not two:
                raise gr.Error("Draw two or more candidates first.", print_exception=False)
            return [verdict(two, side), *ask(items)]

        return vote

    quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    gr.on([fold.expand, another.click, kept.change], ask, kept, outputs, **quick)
    for side, button in enumerate(buttons):
        button.click(vote_for(side), [pair, kept], [said, *outputs], **quick)
    said.change(None, said, None, js="(text) => { dalleVotes.count(text); }", api_visibility="private")
    fold.expand(None, None, None, js="() => { dalleVotes.show(); }", api_visibility="private")
