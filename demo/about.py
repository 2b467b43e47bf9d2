"""The Model tab: what is loaded, under which licence, how large, how good."""

import html
import re
from pathlib import Path

import gradio as gr
import torch

from dalle_core.catalogue import EMBEDDED
from demo.models import Models
from demo.models import facts as model_facts


def card(source: str) -> str:
    """The model card in the model's folder, without its front matter; empty when there is none."""
    path = (EMBEDDED if source == "emoji" else Path(source)) / "README.md"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return ""
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)


def sizes(pipe) -> str:
    """The parts of a pipeline as a table of HTML: class, parameters, dtype."""
    rows = ""
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            count = sum(value.numel() for value in part.state_dict().values())
            cells = (name, type(part).__name__, f"{count:,}", str(part.dtype).removeprefix("torch."))
            rows += '<tr translate="no">' + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
    return f"<table><tr><th>part</th><th>class</th><th>numbers</th><th>dtype</th></tr>{rows}</table>"


def build(models: Models, tab: gr.Tab) -> None:
    facts = gr.HTML("", elem_id="model-facts")
    parts = gr.HTML("", elem_id="model-parts", elem_classes="figures")
    text = gr.Markdown("", elem_id="model-card", elem_classes="notranslate")
    drawn = gr.Image(
        label="Prompts that training never saw: real, through the image tokenizer, best of 1, 4, 16, 64 by CLIP", interactive=False,
        format="png", elem_id="model-evaluation", buttons=[],
        alt_text="Pictures of prompts that training never saw",
    )  # fmt: skip

    def show():
        source, pipe = models.source, models.pipe
        folder = EMBEDDED if source == "emoji" else Path(source)
        picture = folder / "evaluation.png"
        return (
            model_facts(source, pipe), sizes(pipe) if pipe else "", card(source),
            str(picture) if picture.is_file() else None,
        )  # fmt: skip

    tab.select(show, None, [facts, parts, text, drawn], api_visibility="private", show_progress="hidden")
