"""The Model tab: what is loaded, under which licence, how large, how good."""

import html
import re
from pathlib import Path

import gradio as gr

from dalle_core.catalogue import EMBEDDED
from dalle_core.studio.holder import Loaded
from dalle_core.studio.studio import Studio
from demo.models import facts


def folder(model: str) -> Path:
    return EMBEDDED if model == "emoji" else Path(model)


def card(model: str) -> str:
    """The model card in the model's folder, without its front matter; empty when there is none."""
    try:
        text = (folder(model) / "README.md").read_text(encoding="utf-8")
    except OSError:
        return ""
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)


def sizes(loaded: Loaded) -> str:
    """The parts of a model as a table of HTML: class, parameters, dtype."""
    rows = ""
    for name, kind, count, dtype in loaded.parts:
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in (name, kind, f"{count:,}", dtype))
        rows += f'<tr translate="no">{cells}</tr>'
    return f"<table><tr><th>part</th><th>class</th><th>parameters</th><th>dtype</th></tr>{rows}</table>"


def build(studio: Studio, tab: gr.Tab) -> None:
    about = gr.HTML("", elem_id="model-facts")
    parts = gr.HTML("", elem_id="model-parts", elem_classes="figures")
    text = gr.Markdown("", elem_id="model-card", elem_classes="notranslate")
    drawn = gr.Image(
        label="Prompts that training never saw: real, through the image tokenizer, best of 1, 4, 16, 64 by CLIP",
        interactive=False,
        format="png",
        elem_id="model-evaluation",
        elem_classes="unused",
        buttons=[],
        alt_text="Pictures of prompts that training never saw",
    )

    def show():
        loaded = studio.holder.loaded
        picture = folder(loaded.model) / "evaluation.png"
        found = picture.is_file()
        return {
            about: facts(loaded),
            parts: sizes(loaded),
            text: card(loaded.model),
            drawn: gr.update(value=str(picture) if found else None, elem_classes=[] if found else "unused"),
        }

    tab.select(show, None, [about, parts, text, drawn], api_visibility="private", show_progress="hidden")
