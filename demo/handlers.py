"""What the handlers of all tabs share. They raise what they like: `Page` makes a sentence of it."""

import logging

import gradio as gr

from dalle_core import InputError
from dalle_core.request import MAX_SEED

log = logging.getLogger(__name__)
QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}  # of events that only rearrange the page


def checked_later(slider: gr.Slider) -> gr.Slider:
    """A slider whose ends are what people usually want. `DrawingRequest.checked` knows what is allowed and says it."""
    slider.preprocess = lambda value: value
    return slider


def stoppable(starts: list, stop: gr.Button) -> None:
    """Stop is there from the click on, not from the first token: a run that waits in the queue can be stopped too. To be called
    before the run's own event is made, as a trigger's events start one after the other."""
    enabled = "() => ({ __type__: 'update', interactive: true })"
    gr.on(starts, None, None, stop, js=enabled, api_visibility="private")


def parse_seed(text: str | None, keep: bool = True, drawn: str = "") -> int | None:
    """The seed that is asked for, or None for a new one: the box is empty, or still holds the one `drawn` at random
    for the run before and is not kept. Raises InputError."""
    text = str(text or "").strip()
    if not text or (text == drawn and not keep):
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 19 or int(text) > MAX_SEED:
        raise InputError(f"The seed {text[:40]!r} is not a whole number from 0 to {MAX_SEED}.")
    return int(text)
