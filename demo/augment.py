"""The Augment tab: many pictures of many prompts, as a data set to train on."""

import logging
import secrets
import time
from collections import deque
from contextlib import closing

import gradio as gr

from dalle_core import InputError, ModelError
from dalle_core.augment import Progress, Row, archive, augment, cut_prompts, read_prompts, rows_of
from demo import run
from demo.gpu import on_gpu
from demo.models import Models
from demo.pictures import new_folder

MAX_PROMPTS, MAX_PICTURES = 200, 1000  # in one go; the command has no such bounds
MAX_TEXT = 500_000  # characters of the box of prompts
LATEST = 24  # pictures on show
COMMAND = "python -m dalle_core augment prompts.csv pictures"
log = logging.getLogger(__name__)


def asked_for(text: str | None, file: str | None, count: int) -> list[Row]:
    """The rows of the box and of the file together. Raises InputError for none, and for more than a page should draw."""
    text = text or ""
    rows = rows_of(text.splitlines(), count) if len(text) <= MAX_TEXT else None
    if rows is not None and file:
        rows += read_prompts(file, count)
    if rows == []:
        raise InputError("There are no prompts: write some, one a line, or hand in a file.")
    if rows is None or len(rows) > MAX_PROMPTS or sum(row.count for row in rows) > MAX_PICTURES:
        found = "" if rows is None else f" These are {len(rows):,} and {sum(row.count for row in rows):,}."
        raise InputError(
            f"The page draws up to {MAX_PROMPTS} prompts and {MAX_PICTURES:,} pictures in one go.{found} For more, use the "
            f"command: {COMMAND}"
        )
    return rows


def parse_threshold(text: str | None) -> float | None:
    """The least score that is asked for, or None for any. Raises InputError."""
    text = (text or "").strip()
    try:
        return float(text.replace(",", ".")) if text else None
    except ValueError:
        raise InputError(f"The least CLIP score {text[:40]!r} is not a number: write one from -1 to 1, or nothing.") from None


def status(progress: Progress, elapsed: float) -> str:
    """The progress line: pictures drawn, kept and rejected, and the time that is left at the pace so far."""
    share = (progress.drawn + progress.part) / progress.total
    left = f"{_time(elapsed / share - elapsed)} left" if share else ""
    return (
        f'<div class="line" role="status"><span><b>Drawing</b> picture {min(progress.drawn + 1, progress.total)} of '
        f"{progress.total}: {_counts(progress)}</span><span>{left}</span></div>"
        f'<div class="bar"><div style="width:{100 * share:.1f}%"></div></div>'
    )


def cut_notice(cut: int, count: int) -> str:
    if not cut:
        return ""
    return f'<div class="notice">{cut} of {count} prompts are longer than the model reads: their ends play no part.</div>'


def _counts(progress: Progress) -> str:
    return f"{progress.kept} kept, {progress.drawn - progress.kept} rejected"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def zip_of(path: str | None):
    """The update of the button that hands out the zip: without one it is not shown."""
    return gr.update(value=path, elem_classes=[] if path else "offstage")


def build(models: Models, together: int) -> None:
    """Adds the tab; its runs are among those that draw at once."""
    unpacked = gr.State(None)  # (data set, zip that is still to be made of it) while a run goes on
    gr.Markdown(
        "Many pictures of many prompts, as a data set to train on: PNG files and a “metadata.jsonl” with a caption for each "
        "(the “imagefolder” convention), in one zip. Pictures that CLIP finds fit badly can be left out. The model is the "
        "one of the Create tab, with its own settings. A CSV needs a column “prompt” and may have a “count”; a TXT holds a "
        "prompt a line."
    )
    with gr.Row():
        with gr.Column():
            prompts = gr.Textbox(
                label="Prompts, one a line", lines=13, max_lines=13, elem_id="augment-prompts", max_length=MAX_TEXT,
                placeholder="\n".join(models.pipe.examples[:5]),
            )  # fmt: skip
        with gr.Column():
            file = gr.File(
                label="And those of a CSV or TXT", file_types=[".csv", ".txt"], type="filepath", height=165,
                elem_id="augment-file",
            )  # fmt: skip
            count = run.bounded(
                gr.Slider(1, 100, 4, step=1, label="Pictures of each prompt", elem_id="augment-count")
            )
            with gr.Row():
                threshold = gr.Textbox(  # an empty gr.Number sends 0
                    label="Least CLIP score", placeholder="keep all", info="from -1 to 1", max_lines=1,
                    elem_id="augment-threshold", min_width=130,
                )  # fmt: skip
                seed = gr.Textbox(
                    label="Seed", placeholder="new each time", info="of the whole set", max_lines=1,
                    elem_id="augment-seed", min_width=130,
                )  # fmt: skip
    with gr.Row():
        go = gr.Button("Draw the data set", variant="primary", elem_id="augment", scale=3, min_width=160)
        stop = gr.Button("Stop", elem_id="augment-stop", scale=1, min_width=90, interactive=False)
    line = gr.HTML("", elem_id="augment-status", elem_classes="status")
    download = gr.DownloadButton("Download the data set (zip)", elem_id="augment-download", elem_classes="offstage")
    latest = gr.Gallery(
        columns=8, format="png", object_fit="contain", show_label=False, label="The latest pictures", height="auto",
        elem_id="augmented", elem_classes="notranslate", allow_preview=False, buttons=[],
    )  # fmt: skip

    @on_gpu(120)
    def draw(prompts, file, count, threshold, seed):
        """Streams a data set: prompts, one a line, and those of a CSV or TXT file; pictures of each; the least CLIP score
        of a picture that is kept (empty: any); the base seed (empty: a new one). Outputs: gallery, status, zip."""
        started = shown_at = time.monotonic()
        try:
            rows = asked_for(prompts, file, count)
            least = parse_threshold(threshold)
            asked = run.parse_seed(seed, keep=True)
            asked = secrets.randbelow(2**32) if asked is None else asked
            folder = new_folder(download.GRADIO_CACHE)
            out, target = folder / "pictures", folder / f"augmented_seed{asked}.zip"
            shown = deque(maxlen=LATEST)
            with models.drawing(models.source) as pipe:
                with closing(augment(pipe, rows, out, asked, least)) as steps:
                    notice, progress = cut_notice(cut_prompts(pipe, rows), len(rows)), next(steps)
                    yield (
                        [], status(progress, 0) + notice, zip_of(None),
                        (str(out), str(target)),
                    )  # fmt: skip
                    for progress in steps:
                        shown.extendleft((str(kept.path), caption(kept)) for kept in reversed(progress.new))
                        now = time.monotonic()
                        if progress.new or now - shown_at > run.UPDATE_EVERY:
                            shown_at = now
                            pictures = list(shown) if progress.new else gr.skip()
                            yield pictures, status(progress, now - started) + notice, gr.skip(), gr.skip()
            zipped = archive(out, target) and str(target)
        except (InputError, ModelError, OSError) as error:
            reason = error.__cause__ or error
            if not isinstance(reason, OSError):
                raise run.sentence(error) from None
            log.exception("augmenting failed")  # not the core's sentence: it names a folder of the server
            said = f"The server could not save the pictures: {reason.strerror or reason}. What was kept until then is in the zip."
            raise gr.Error(said, print_exception=False) from None
        except Exception:  # whatever it is: a sentence for the person, the traceback for the log
            log.exception("augmenting failed")
            raise gr.Error("Drawing failed. The server's log says why; try again.", print_exception=False) from None
        hint = "" if zipped else ": no score reached the threshold, so lower it"
        text = f"{progress.drawn} pictures drawn, {_counts(progress)}, seed {asked}{hint}"
        yield gr.skip(), run.said(text) + notice, zip_of(zipped or None), None

    def caption(kept) -> str:
        return kept.text if kept.score is None else f"{kept.score:.3f} · {kept.text[:60]}"

    def pack(unpacked):
        """After a run that was stopped or that failed: the zip of what was kept until then."""
        if not unpacked:
            return gr.skip(), gr.skip(), gr.skip(), gr.update(interactive=False)
        out, target = unpacked
        try:
            number = archive(out, target)
        except OSError as error:
            raise gr.Error(f"The zip could not be written: {error.strerror or error}.", print_exception=False) from None
        said = f"Stopped. {number} pictures were kept until then." if number else "Stopped before a picture was kept."
        return run.said(said), zip_of(target if number else None), None, gr.update(interactive=False)

    inputs, outputs = [prompts, file, count, threshold, seed], [latest, line, download, unpacked]
    run.stoppable([go.click], stop)
    event = go.click(
        draw, inputs, outputs, api_visibility="private", show_progress="minimal", show_progress_on=line,
        concurrency_id="sampling", concurrency_limit=together, trigger_mode="once",
    )  # fmt: skip
    run.endpoint(draw, inputs, outputs, "augment", concurrency_id="sampling", concurrency_limit=together)
    for ended in (event.then, event.failure):  # `then` alone does not come after an error
        ended(pack, unpacked, [line, download, unpacked, stop], queue=False, show_progress="hidden", api_visibility="private")
    stop.click(None, cancels=[event], queue=False, api_visibility="private")
