"""The sliders of sampling, which Create, Complete and Compare have in common: how freely a model chooses its tokens."""

import json

import gradio as gr

from dalle_core.studio.holder import Loaded
from dalle_core.studio.studio import Studio
from demo.handlers import QUIET, checked_later

USUAL = {"temperature": 2, "guidance_scale": 16}  # where the sliders end, unless a restored value lies beyond
NAMES = ("temperature", "top_k", "top_p", "guidance_scale")


def sliders(loaded: Loaded, tab: str) -> list[gr.Slider]:
    """Those of NAMES, at the model's own values."""
    usual, defaults = USUAL, loaded.defaults
    rows = (
        (0, usual["temperature"], 0.05, "Temperature", "Higher is more varied."),
        (0, loaded.limits.codebook_size, 1, "Top-k", "Only so many of the likeliest tokens; 0 is off."),
        (0.05, 1, 0.01, "Top-p", "Only the likeliest, up to this share; 1 is off."),
        (0, usual["guidance_scale"], 0.25, "Guidance scale", "Higher is closer to the prompt; 1 is off."),
    )
    return [
        checked_later(
            gr.Slider(
                low,
                high,
                defaults[name],
                step=step,
                label=label,
                info=info,
                elem_id=f"{tab}-{name.replace('_', '-')}",
                min_width=240,
            )
        )
        for name, (low, high, step, label, info) in zip(NAMES, rows)
    ]


def fold(loaded: Loaded, tab: str) -> list[gr.Slider]:
    """The same, folded away."""
    with gr.Accordion("Sampling settings", open=False, elem_id=f"{tab}-sampling"), gr.Row():
        return sliders(loaded, tab)


def fitted(loaded: Loaded) -> list[dict]:
    """What the sliders are updated with after another model was loaded."""
    ends = USUAL | {"top_k": loaded.limits.codebook_size, "top_p": 1}
    return [gr.update(value=loaded.defaults[name], maximum=ends[name]) for name in NAMES]


def follow_model(studio: Studio, tab: gr.Tab, outputs: list, fit) -> None:
    """Whenever `tab` is opened and another model is loaded than the one that its `outputs` were made for: they become
    `fit(loaded, *their values)`."""

    def identity(loaded: Loaded) -> str:
        return json.dumps([loaded.source, loaded.name, loaded.revision])

    made_for = gr.State(identity(studio.holder.loaded))

    def opened(before, *values):
        loaded = studio.holder.loaded
        now = identity(loaded)
        return gr.skip() if now == before else [now, *fit(loaded, *values)]

    tab.select(opened, [made_for, *outputs], [made_for, *outputs], **QUIET)
