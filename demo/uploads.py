"""Components that take a file and hand on its path as it came: Gradio's own would open it, and fail in their own words. What
may be read, `Studio.file` says."""

import gradio as gr

from demo import static

HEAD = f"<script>{static.read('drag.js')}</script>"


def picture_input(label: str, name: str, height: int) -> gr.Image:
    component = gr.Image(
        label=label,
        type="filepath",
        sources=["upload", "webcam", "clipboard"],
        elem_id=name,
        height=height,
        buttons=[],
        alt_text=label,
    )
    component.preprocess = path_of
    return component


def file_input(label: str, name: str, types: list[str], height: int) -> gr.File:
    component = gr.File(label=label, file_types=types, type="filepath", height=height, elem_id=name)
    component.preprocess = path_of
    return component


def path_of(payload) -> str | None:
    return getattr(payload, "path", None)
