"""The tab that makes a data set: many pictures of many prompts, as a data set to train on."""

import secrets
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import gradio as gr

from dalle_core import InputError
from dalle_core.augment import Kept, Progress
from dalle_core.prompts import Row, read_prompts, rows_of
from dalle_core.studio.studio import UPDATE_EVERY, Studio, data_set_size
from demo import progress
from demo.downloads import download
from demo.handlers import QUIET, checked_later, parse_seed, stoppable
from demo.public import visitor
from demo.uploads import file_input

MAX_TEXT = 500_000  # characters of the box of prompts
LATEST = 24  # pictures on show


@dataclass(frozen=True)
class DataSet:
    """The data set of the last run."""

    out: Path
    seed: int
    finished: bool = False


def asked_for(text: str | None, file: str | None, count: int) -> list[Row]:
    """The rows of the box and of the file together. Raises InputError for none, and as `data_set_size`."""
    text = text or ""
    if len(text) > MAX_TEXT:
        raise InputError(
            f"The box takes up to {MAX_TEXT:,} characters. For more, use the command: "
            "python -m dalle_core augment prompts.csv pictures"
        )
    rows = rows_of(text.splitlines(), count) + (read_prompts(file, count) if file else [])
    if not rows:
        raise InputError("There are no prompts: write some, one per line, or upload a file.")
    data_set_size(rows)
    return rows


def parse_threshold(text: str | None) -> float | None:
    """The minimum score that is asked for, or None for any. Raises InputError."""
    text = (text or "").strip()
    try:
        return float(text.replace(",", ".")) if text else None
    except ValueError:
        raise InputError(f"The minimum CLIP score {text[:40]!r} is not a number: write one from -1 to 1, or nothing.") from None


def status(drawn: Progress, elapsed: float) -> str:
    """Pictures drawn, kept and rejected, and the time that is left at the pace so far."""
    share = (drawn.drawn + drawn.part) / drawn.total
    left = f"{_time(elapsed / share - elapsed)} left" if share else ""
    number = min(drawn.drawn + 1, drawn.total)
    return progress.line("Drawing", f" picture {number} of {drawn.total}: {_counts(drawn)}", left, share)


def cut_notice(cut: int, count: int) -> str:
    if not cut:
        return ""
    return f'<div class="notice">{cut} of {count} prompts are longer than the model reads: their ends play no part.</div>'


def caption(kept: Kept) -> str:
    return kept.text if kept.score is None else f"{kept.score:.3f} · {kept.text[:60]}"


def _counts(drawn: Progress) -> str:
    return f"{drawn.kept} kept, {drawn.drawn - drawn.kept} rejected"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


class Augment:
    """The tab's components, and what happens on them."""

    def __init__(self, studio: Studio):
        self.studio, self.data_set = studio, gr.State(None)
        gr.Markdown(
            "Many pictures of many prompts in one zip, to train a model on: PNG files and a “metadata.jsonl” with a caption "
            "for each (the “imagefolder” layout). Pictures that fit their prompt badly can be left out. The model is the one "
            "of the Create tab, with its default settings. A CSV file needs a column “prompt” and may have a column “count”; "
            "a TXT file holds one prompt per line."
        )
        with gr.Row():
            with gr.Column():
                self.prompts = gr.Textbox(
                    label="Prompts, one per line",
                    lines=13,
                    max_lines=13,
                    elem_id="augment-prompts",
                    max_length=MAX_TEXT,
                    placeholder="\n".join(studio.holder.loaded.examples[:5]),
                )
            with gr.Column():
                self.file = file_input("More prompts from a CSV or TXT file", "augment-file", [".csv", ".txt"], 165)
                self.count = checked_later(gr.Slider(1, 100, 4, step=1, label="Pictures per prompt", elem_id="augment-count"))
                with gr.Row():
                    self.threshold = gr.Textbox(  # an empty gr.Number sends 0
                        label="Minimum CLIP score",
                        placeholder="keep all",
                        info="How well a picture must fit, from -1 to 1.",
                        max_lines=1,
                        elem_id="augment-threshold",
                        min_width=130,
                    )
                    self.seed = gr.Textbox(
                        label="Seed",
                        placeholder="new each time",
                        info="Of the whole data set.",
                        max_lines=1,
                        elem_id="augment-seed",
                        min_width=130,
                    )
        with gr.Row():
            self.go = gr.Button("Make the data set", variant="primary", elem_id="augment", scale=3, min_width=160)
            self.stop = gr.Button("Stop", elem_id="augment-stop", elem_classes="stop", interactive=False, scale=1, min_width=90)
        self.status = gr.HTML("", elem_id="augment-status", elem_classes="status")
        with gr.Row(elem_classes="unused") as self.exports:
            zipped = gr.Button("Download the data set (zip)", elem_id="augment-download")
        self.latest = gr.Gallery(
            columns=8,
            format="png",
            object_fit="contain",
            show_label=False,
            label="The latest pictures",
            height="auto",
            elem_id="augmented",
            elem_classes=["notranslate", "unused"],
            allow_preview=False,
            buttons=[],
        )
        download(zipped, self.zip, [self.data_set])

    @property
    def outputs(self) -> list:
        return [self.latest, self.status, self.exports, self.data_set]

    def draw(self, request: gr.Request, prompts, file, count, threshold, seed):
        """The rows of the box and of the file, drawn and kept where they fit."""
        started = shown_at = time.monotonic()
        rows = asked_for(prompts, file and self.studio.file(file), count)
        least, asked = parse_threshold(threshold), parse_seed(seed)
        asked = secrets.randbelow(2**32) if asked is None else asked
        notice = cut_notice(self.studio.cut_prompts(rows), len(rows))
        notice += progress.unknown(self.studio.unknown_words(row.prompt for row in rows))
        latest = deque(maxlen=LATEST)
        with closing(self.studio.augment(visitor(request), rows, asked, least)) as steps:
            drawn, out = next(steps)
            data_set = DataSet(out, asked)
            yield {
                self.latest: gr.update(value=[], elem_classes=["notranslate", "unused"]),
                self.status: status(drawn, 0) + notice,
                self.exports: gr.update(elem_classes="unused"),
                self.data_set: data_set,
            }
            for drawn, _ in steps:
                latest.extendleft((str(kept.path), caption(kept)) for kept in reversed(drawn.new))
                now = time.monotonic()
                if drawn.new or now - shown_at > UPDATE_EVERY:
                    shown_at = now
                    pictures = gr.update(value=list(latest), elem_classes="notranslate") if drawn.new else gr.skip()
                    yield {self.latest: pictures, self.status: status(drawn, now - started) + notice}
        hint = "" if drawn.kept else ": no score reached the minimum, so lower it"
        line = progress.line(f"{drawn.drawn} pictures drawn, {_counts(drawn)}, seed {asked}{hint}")
        yield {
            self.status: line + notice,
            self.exports: gr.update(elem_classes=[] if drawn.kept else "unused"),
            self.data_set: replace(data_set, finished=True),
        }

    def end(self, data_set):
        """After a run, whatever ended it: what was kept until then can be downloaded."""
        if data_set is None or data_set.finished:
            return {self.stop: gr.update(interactive=False)}
        kept = self.studio.kept(data_set.out)
        said = f"Stopped. {kept} pictures were kept until then." if kept else "Stopped before a picture was kept."
        return {
            self.status: progress.line(said),
            self.exports: gr.update(elem_classes=[] if kept else "unused"),
            self.data_set: replace(data_set, finished=True),
            self.stop: gr.update(interactive=False),
        }

    def zip(self, visitor: str, data_set) -> Path:
        if data_set is None:
            raise InputError("Draw something first.")
        path, _ = self.studio.zip_data_set(data_set.out, data_set.seed)
        return path


def build(studio: Studio, together: int) -> None:
    """Adds the tab; its runs are among those that draw at once."""
    tab = Augment(studio)
    stoppable([tab.go.click], tab.stop)
    event = tab.go.click(
        tab.draw,
        [tab.prompts, tab.file, tab.count, tab.threshold, tab.seed],
        tab.outputs,
        api_visibility="private",
        show_progress="minimal",
        show_progress_on=tab.status,
        concurrency_id="sampling",
        concurrency_limit=together,
        trigger_mode="once",
    )
    for ended in (event.then, event.failure):  # `then` alone does not come after an error
        ended(tab.end, tab.data_set, [tab.status, tab.exports, tab.data_set, tab.stop], **QUIET)
    tab.stop.click(None, cancels=[event], queue=False, api_visibility="private")
