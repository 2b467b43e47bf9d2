"""One drawing, from the click to saved pictures: what the tabs that draw have in common."""

import html
import inspect
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import wraps
from itertools import compress

import gradio as gr
from PIL import Image

from dalle_core import InputError, ModelError
from demo.models import Models
from demo.pictures import save_all

MAX_PROMPT = 20_000  # characters; what is beyond is far past what any model reads, and would fill every PNG
UPDATE_EVERY = 0.5  # seconds between updates of the progress line; each takes cores from the drawing
log = logging.getLogger(__name__)


@dataclass
class Update:
    """What changed; None: nothing did."""

    line: str  # HTML
    seed: int | None = None  # on the first update after the prompt was read
    cut: str = ""  # HTML: where the prompt was cut
    previews: list[Image.Image] | None = None
    items: list[dict] | None = None  # on the last one: path, rank, score, seed, index, tokens, request; best first


def said(line: str) -> str:
    """A line of progress that has no bar."""
    return f'<div class="line" role="status"><span><b>{html.escape(line)}</b></span></div>'


STARTING, STOPPED = said("Reading the prompt"), said("Stopped.")


def status(index: int, total: int, elapsed: float) -> str:
    """The progress line: tokens drawn, and the time that is left at the pace so far."""
    left = elapsed / index * (total - index)
    return (
        f'<div class="line" role="status"><span><b>Drawing</b> token {index} of {total}</span>'
        f"<span>{left:.0f} s left</span></div>"
        f'<div class="bar"><div style="width:{100 * index / total:.1f}%"></div></div>'
    )


def done(count: int, seed: int, elapsed: float, ranked: bool = True) -> str:
    how = "ranked by CLIP" if ranked else "not ranked"
    return (
        f'<div class="line" role="status"><span><b>{count} candidates</b>, {how}, seed {seed}</span>'
        f"<span>{elapsed:.1f} s</span></div>"
    )


def stopped(line: str):
    """The line after the end of a run, whatever ended it: one that still says "Drawing" was stopped."""
    return STOPPED if line == STARTING or "Drawing" in line else gr.skip()


def ended(line: str):
    """After the end of a run: the line as of `stopped`, and Stop, which has nothing to stop."""
    return stopped(line), gr.update(interactive=False)


def stoppable(triggers: list, stop: gr.Button) -> None:
    """Stop can be used from the click on, not from the first token: a run that waits in the queue can be stopped too. To be
    called before the run's own event is made: a trigger's events start one after the other."""
    js = "() => ({ __type__: 'update', interactive: true })"
    gr.on(triggers, None, None, stop, js=js, api_visibility="private")


def cut_notice(used: str, dropped: str, what: str = "prompt") -> str:
    if not dropped:
        return ""
    tail = dropped if len(dropped) <= 120 else dropped[:120] + "…"
    return (
        f'<div class="notice">The {what} is longer than this model reads. It stops at: '
        f'“…{html.escape(used[-40:])}” <s translate="no">{html.escape(tail)}</s></div>'
    )


def parse_seed(text: str, keep: bool, drawn: str = "") -> int | None:
    """The seed that is asked for, or None for a new one: the box is empty, or still holds the one `drawn` at random
    for the run before and is not kept. Raises InputError."""
    text = (text or "").strip()
    if not text or (text == drawn and not keep):
        return None
    try:
        return int(text)
    except ValueError:
        raise InputError(f"The seed {text[:40]!r} is not a whole number from 0 to {2**63 - 1}.") from None


def preview_every(pipe) -> int:
    """Tokens between previews: two rows, but never where a preview takes seconds."""
    large = sum(p.numel() for p in pipe.image_tokenizer.parameters()) > 20_000_000
    return 0 if large and pipe.device.type == "cpu" else 2 * pipe.grid_size


def sentence(error: Exception) -> gr.Error:
    return gr.Error(str(error), duration=10, print_exception=False)


def bounded(slider: gr.Slider) -> gr.Slider:
    """A slider that is named when a program sends a value beyond its ends; Gradio's own sentence says the value alone."""
    check = slider.preprocess

    def preprocess(value):
        try:
            return check(value)
        except (gr.Error, TypeError, ValueError, OverflowError):
            wrong = f"{slider.label} is {value!r}; it must be a number from {slider.minimum} to {slider.maximum}."
            raise sentence(InputError(wrong)) from None

    slider.preprocess = preprocess
    return slider


def endpoint(handler: Callable, inputs: list, outputs: list, name: str, **event) -> None:
    """Adds a tab's handler as an endpoint for programs. They hold no state, and Gradio's MCP server cannot call what returns
    one: gr.State is left out of the inputs, where the handler gets None, and of the outputs, two or more of which stay."""
    taken, given = ([not isinstance(component, gr.State) for component in side] for side in (inputs, outputs))

    def arguments(values):
        rest = iter(values)
        return [next(rest) if take else None for take in taken]

    if inspect.isgeneratorfunction(handler):

        @wraps(handler)
        def call(*values):
            with closing(handler(*arguments(values))) as steps:
                for step in steps:
                    yield list(compress(step, given))
    else:

        @wraps(handler)
        def call(*values):
            return list(compress(handler(*arguments(values)), given))

    parameters = inspect.signature(handler).parameters.values()
    call.__signature__ = inspect.Signature(list(compress(parameters, taken)))  # the names of the endpoint's arguments
    gr.Button(visible=False).click(
        call, list(compress(inputs, taken)), list(compress(outputs, given)), api_name=name, **event
    )  # fmt: skip


def draw(
    models: Models, model: str, cache: str, prompt: str, seed: int | None, save_recipe: bool = True, **arguments
) -> Iterator[Update]:
    """Streams one drawing with `model`; arguments as of `DallePipeline.stream`. Pictures are saved below `cache`, with
    their recipes if that is wanted.

    seed None: a new one. Raises gr.Error with a sentence for the person; the log has the traceback of what nobody
    expected. Closing it stops the work.
    """
    started = shown_at = time.monotonic()
    with ExitStack() as held:
        try:
            for line in models.use(model):  # another visitor may have changed it
                yield Update(said(line))
            pipe = held.enter_context(models.drawing(model))
            seed = secrets.randbelow(2**32) if seed is None else seed
            # Checked here too: the boxes' own limit holds in the browser only.
            prompt = (prompt or "").strip()[:MAX_PROMPT]
            used, dropped = pipe.fit_prompt(prompt)
            steps = pipe.stream(prompt, seed=seed, **arguments)
            held.callback(steps.close)
            cut = cut_notice(used, dropped)
            if negative := arguments.get("negative_prompt", "").strip():
                cut += cut_notice(*pipe.fit_prompt(negative), "negative prompt")
            yield Update(STARTING, seed=seed, cut=cut)
            for step in steps:
                if step.generation is not None:
                    break
                now = time.monotonic()
                if step.previews is not None or now - shown_at > UPDATE_EVERY:
                    shown_at = now
                    yield Update(status(step.index, step.total, now - started), previews=step.previews)
            varied = arguments.get("keep") is not None
            paths = save_all(step.generation, pipe.name, cache, save_recipe, pipe.revision, varied)
        except (InputError, ModelError) as error:
            raise sentence(error) from None
        except OSError as error:
            log.exception("drawing failed")
            raise gr.Error(f"The pictures could not be saved: {error.strerror or error}.", print_exception=False) from None
        except Exception:  # whatever it is: a sentence for the person, the traceback for the log
            log.exception("drawing failed")
            raise gr.Error("Drawing failed. The server's log says why; try again.", print_exception=False) from None
    request = {
        "model": pipe.name, "revision": pipe.revision, "prompt": prompt,
        "negative_prompt": step.generation.negative_prompt, "settings": step.generation.settings, "varied": varied,
    }  # fmt: skip
    items = [
        {"path": str(path), "rank": rank, "score": candidate.score, "seed": candidate.seed, "index": candidate.index,
         "tokens": candidate.tokens.tolist(), "request": request}
        for rank, (candidate, path) in enumerate(zip(step.generation.candidates, paths), 1)
    ]
    line = done(len(items), seed, time.monotonic() - started, items[0]["score"] is not None)
    yield Update(line, cut=cut, items=items)
