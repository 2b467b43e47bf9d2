"""The blind vote: which of two candidates fits the prompt better, and how often CLIP says the same."""

import html
import secrets

import gradio as gr

from dalle_core import InputError
from dalle_core.studio.pool import Picture
from demo import static
from demo.handlers import QUIET

HEAD = f"<script>{static.read('vote.js')}</script>"


def draw_pair(pictures: list[Picture]) -> list[Picture] | None:
    """Two candidates of the pool at random, in random order; None when there are no two with different scores."""
    scored = [picture for picture in pictures or [] if picture.drawn.score is not None]
    if len({picture.drawn.score for picture in scored}) < 2:
        return None
    first = secrets.choice(scored)
    second = secrets.choice([picture for picture in scored if picture.drawn.score != first.drawn.score])
    return [first, second]


def verdict(pair: list[Picture], side: int) -> str:
    """What the page's script counts: "agree" or "differ", and a word that is new each time."""
    agrees = pair[side].drawn.score > pair[1 - side].drawn.score
    return f"{'agree' if agrees else 'differ'} {secrets.token_hex(4)}"


def build(kept: gr.State) -> None:
    """The fold below the gallery; votes are counted in the visitor's browser (`vote.js`)."""
    pair = gr.State(None)
    with gr.Accordion("Blind vote: which fits the prompt better?", open=False, elem_id="vote", elem_classes="unused") as fold:
        asked = gr.HTML("", elem_id="vote-asked")
        with gr.Row():
            pictures = [
                gr.Image(
                    label=f"Candidate {name}",
                    elem_id=f"vote-{name.lower()}",
                    format="png",
                    interactive=False,
                    buttons=[],
                    height=240,
                    min_width=120,
                    alt_text=f"Candidate {name}",
                )
                for name in "AB"
            ]
        with gr.Row():
            buttons = [gr.Button(f"{name} fits better", elem_id=f"vote-for-{name.lower()}", min_width=100) for name in "AB"]
            another = gr.Button("Another pair", elem_id="vote-another", min_width=100)
        gr.HTML('<div id="vote-tally" role="status"></div>')
    said = gr.Textbox(elem_id="vote-said", elem_classes="offstage", show_label=False)

    def ask(kept):
        two = draw_pair(kept)
        if two is None:
            return {pair: None, fold: gr.update(elem_classes="unused")}
        prompt = html.escape(two[0].drawn.request.prompt[:200])
        return {
            pair: two,
            fold: gr.update(elem_classes=[]),
            asked: f'<b translate="no">{prompt}</b>',
            pictures[0]: two[0].path,
            pictures[1]: two[1].path,
        }

    def vote_for(side):
        def vote(two, kept):
            if not two:
                raise InputError("Draw two or more candidates first.")
            return {said: verdict(two, side)} | ask(kept)

        return vote

    outputs = [pair, fold, asked, *pictures]
    gr.on([fold.expand, another.click, kept.change], ask, kept, outputs, **QUIET)
    for side, button in enumerate(buttons):
        button.click(vote_for(side), [pair, kept], [said, *outputs], **QUIET)
    said.change(None, said, None, js="(text) => { dalleVotes.count(text); }", api_visibility="private")
    fold.expand(None, None, None, js="() => { dalleVotes.show(); }", api_visibility="private")
