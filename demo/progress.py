"""Lines of progress, as HTML."""

import html

import gradio as gr

from dalle_core.studio.studio import Update


def line(what: str, more: str = "", right: str = "", share: float | None = None) -> str:
    """A line of progress: `what` in bold, more beside it, something at the right, a bar that is `share` full."""
    bar = "" if share is None else f'<div class="bar"><div style="width:{100 * share:.1f}%"></div></div>'
    right = f"<span>{html.escape(right)}</span>" if right else ""
    return f'<div class="line" role="status"><span><b>{html.escape(what)}</b>{html.escape(more)}</span>{right}</div>{bar}'


STARTING, STOPPED = line("Reading the prompt"), line("Stopped.")


def of(update: Update) -> str:
    """The line of a drawing."""
    if update.pictures is not None:
        first = update.pictures[0].drawn
        how = "ranked by CLIP" if first.score is not None else "not ranked"
        return line(f"{len(update.pictures)} candidates", f", {how}, seed {update.seed}", f"{update.elapsed:.1f} s")
    if not update.index:
        return line(update.line) if update.line else STARTING
    left = update.elapsed / update.index * (update.total - update.index)
    share = update.index / update.total
    return line("Drawing", f" {100 * share:.0f} %", f"{left:.0f} s left", share)


def stopped(shown: str):
    """The line after the end of a run, whatever ended it: one that still says that it goes on was stopped."""
    shown = str(shown)
    return STOPPED if shown.startswith(STARTING) or "Drawing" in shown else gr.skip()


def ended(shown: str) -> tuple:
    """`stopped`, and Stop goes."""
    return stopped(shown), gr.update(interactive=False)


def cut(update: Update) -> str:
    """Where the prompts are longer than the model reads."""
    notices = []
    for what, used, dropped in update.cut:
        tail = dropped if len(dropped) <= 120 else dropped[:120] + "…"
        long = f"The {what} is longer than this model reads. It stops at: "
        if what == "prompt, for CLIP":
            long = "CLIP, which ranks, reads only the beginning of the prompt. It stops at: "
        notices.append(
            f'<div class="notice">{long}“…{html.escape(used[-40:])}” <s translate="no">{html.escape(tail)}</s></div>'
        )
    return "".join(notices)


def unknown(words: tuple) -> str:
    """Which words of the prompt the model does not know, and the nearest that it does: pairs as of `Update.unknown`."""
    if not words:
        return ""
    words = "; ".join(f"{word} → {', '.join(nearest)}" if nearest else word for word, nearest in words)
    said = "Words that this model does not know, and the nearest that it does:"
    return f'<div class="notice quiet">{said} <span translate="no">{html.escape(words)}</span></div>'


def notices(update: Update) -> str:
    """What is to be said of the prompts."""
    return cut(update) + unknown(update.unknown)
