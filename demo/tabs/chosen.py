"""The chosen picture of Create, beside the grid: what is known of it, and what can be done with it."""

import html
from dataclasses import dataclass

import gradio as gr

from dalle_core.studio.links import query
from dalle_core.studio.pool import Picture
from dalle_core.studio.studio import Studio
from demo.downloads import download
from demo.pictures import CLIP_SCORE
from demo.tabs import tile


@dataclass
class Chosen:
    column: gr.Column
    picture: gr.State  # the chosen `Picture`, or None
    image: gr.Image
    facts: gr.HTML
    vary: gr.Button
    complete: gr.Button
    more: gr.Button
    use_settings: gr.Button

    @property
    def outputs(self) -> list:
        return [self.column, self.picture, self.image, self.facts]

    def show(self, picture: Picture, pool: list[Picture]) -> dict:
        return {
            self.column: gr.update(elem_classes=[]),
            self.picture: picture,
            self.image: picture.path,
            self.facts: facts(picture, pool),
        }

    def hide(self) -> dict:
        return {self.column: gr.update(elem_classes="unused"), self.picture: None}


def build(studio: Studio, kept: gr.State, save_recipe: gr.Checkbox) -> Chosen:
    """Adds the column; `kept` is the pool on show."""
    picture = gr.State(None)
    with gr.Column(elem_id="detail", elem_classes="unused") as column:
        image = gr.Image(
            show_label=False,
            label="Chosen picture",
            elem_id="chosen",
            format="png",
            interactive=False,
            buttons=["fullscreen"],
            height="auto",
            alt_text="Chosen picture",
        )
        table = gr.HTML("", elem_id="facts")
        with gr.Row():
            one = gr.Button("Download PNG", variant="primary", elem_id="download")
            all_ = gr.Button("Download all", elem_id="download-all")
        with gr.Row():
            vary = gr.Button("Variations", elem_id="vary")
            complete = gr.Button("Redraw parts", elem_id="to-complete")
        with gr.Row():
            more = gr.Button("Draw more", elem_id="more")
            use_settings = gr.Button("Reuse its settings", elem_id="use-settings")
        with gr.Row():
            copy_link = gr.Button("Copy link", elem_id="copy-link")
            to_tile = gr.Button("Seamless tile", elem_id="to-tile")
        gr.HTML('<div id="copied" role="status"></div>')
        tile.build(studio, to_tile, picture)
    download(one, studio.download, [picture, save_recipe])
    download(all_, studio.download_all, [kept, save_recipe])
    copy_link.click(None, None, None, js="() => { dalleHistory.copyLink(); }", api_visibility="private")
    return Chosen(column, picture, image, table, vary, complete, more, use_settings)


def facts(chosen: Picture, pool: list[Picture]) -> str:
    """What is known of the chosen candidate: a table, the pool's scores, and the link that Copy link copies."""
    one = chosen.drawn
    score = "–" if one.score is None else f"{one.score:.3f}"
    rank = f"{chosen.rank} / {len(pool)}"
    rows = {"CLIP score": score, "rank": rank, "seed": one.seed, "candidate": one.index + 1}
    cells = "".join(f"<tr><td>{name}</td><td>{html.escape(str(value))}</td></tr>" for name, value in rows.items())
    # A variation's kept tokens do not fit a link.
    link = "" if one.varied else f'<a id="permalink" href="?{html.escape(query(one))}">Link to this picture</a>'
    meaning = "" if one.score is None else f"<p>{CLIP_SCORE}</p>"
    return f"<table>{cells}</table>{plot(pool, chosen)}{meaning}{link}"


def plot(pool: list[Picture], chosen: Picture) -> str:
    """The pool's CLIP scores as an SVG, each a tick, the chosen one marked; "" without scores."""
    scores = [picture.drawn.score for picture in pool if picture.drawn.score is not None]
    if len(scores) < 2 or chosen.drawn.score is None:
        return ""
    low, high = min(scores), max(scores)

    def x(score: float) -> float:
        return 10 + 280 * (score - low) / ((high - low) or 1)

    ticks = "".join(f'<line x1="{x(s):.1f}" x2="{x(s):.1f}" y1="14" y2="30"/>' for s in scores)
    return (
        '<svg class="scores" viewBox="0 0 300 48" role="img" aria-label="CLIP scores of all; the chosen one is marked">'
        f'<g stroke="currentColor" stroke-width="2" opacity=".45">{ticks}</g>'
        f'<circle cx="{x(chosen.drawn.score):.1f}" cy="22" r="6" fill="#e8590c"/>'
        f'<g fill="currentColor" font-size="11"><text x="10" y="45">{low:.3f}</text>'
        f'<text x="290" y="45" text-anchor="end">{high:.3f}</text></g></svg>'
    )
