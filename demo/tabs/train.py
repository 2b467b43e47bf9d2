"""The Train tab: how a training on this machine fares, read from its folder while it is written. Only for one's own page:
it opens the folders that are typed into it."""

import html
import json
import math
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import pandas as pd
from PIL import Image

from dalle_core import InputError
from dalle_core.studio import runs as trainings
from dalle_core.studio.runs import KINDS, Run
from dalle_core.studio.studio import Studio
from dalle_core.studio.uploads import open_picture
from demo import progress
from demo.handlers import QUIET, checked_later
from demo.tabs.controls import Controls

EVERY = 5  # seconds between two looks at a folder
COMMAND = "python -m dalle_core train PICTURES --out runs/mine --name mine --licence CC-BY-4.0"
LINEAR, LOGARITHMIC = "linear", "logarithmic"
FIRST = 3  # figures in the plot before somebody chooses
TITLES = {
    "reconstructions": "Originals above their reconstructions, step {}",
    "samples": "Drawn for held-out captions, step {}",
}
LONGEST = 2000  # characters of a setting


@dataclass(frozen=True)
class Seen:
    """What a page shows: of the same there is nothing to send again."""

    folder: Path
    token: tuple = ()
    pictures: tuple = ()
    newest: int = 0  # step of the newest pictures


def choices(root: Path) -> list[str]:
    """Trainings below `root`, the last changed first. One of several parts comes before them, and shows the part at work."""
    found: dict[str, None] = {}
    for folder in trainings.find_runs(root):
        if folder.parent != root and folder != root:
            found[str(folder.parent)] = None
        found[str(folder)] = None
    return list(found)


def status(run: Run) -> str:
    of = f" of {run.steps:,}" if run.steps else ""
    left = f"{duration(run.seconds_left)} left" if run.writing and run.seconds_left is not None else ""
    share = min(1.0, run.step / run.steps) if run.steps else None
    return progress.line(f"Step {run.step:,}{of}", "" if run.writing else ", not at work now", left, share)


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def first_figures(run: Run) -> list[str]:
    losses = [name for name in run.curves if "loss" in name]
    return (losses or list(run.curves))[:FIRST]


def points(run: Run, chosen: list[str], scale: str) -> pd.DataFrame:
    """A row for each point of the chosen curves. On the logarithmic scale, for which LinePlot has no axis, powers of ten."""
    logarithmic = scale == LOGARITHMIC
    rows = [(step, value, name) for name in chosen for step, value in run.curves.get(name, ()) if value > 0 or not logarithmic]
    frame = pd.DataFrame(rows, columns=["step", "value", "figure"]).astype({"step": float, "value": float, "figure": str})
    if logarithmic:
        frame["value"] = frame["value"].map(math.log10)
    return frame


def settings(config: dict) -> str:
    """The configuration as a table of HTML."""
    rows = ""
    for name, value in list(config.items())[:200]:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        rows += f"<tr><td>{html.escape(str(name)[:100])}</td><td>{html.escape(text[:LONGEST])}</td></tr>"
    return f'<table translate="no">{rows}</table>' if rows else ""


def newest_picture(run: Run) -> int:
    return max((number for pictures in run.pictures.values() for number, _ in pictures), default=0)


def picture_at(pictures: list[tuple[int, Path]], step: int) -> tuple[int, Path, Image.Image] | None:
    """The last picture until `step`, or the first; one that cannot be read, as it is just being written, gives way to that
    before it."""
    until = [picture for picture in pictures if picture[0] <= step] or pictures[:1]
    for number, path in reversed(until[-3:]):
        try:
            return number, path, open_picture(path)
        except InputError:
            continue
    return None


class Train:
    """The tab's components, and what happens on them. root: where trainings are looked for."""

    def __init__(self, studio: Studio, root: Path):
        self.studio, self.root = studio, root
        self.made: Path | None = None  # the model that was made last
        self.folder: tempfile.TemporaryDirectory | None = None  # where
        self.seen, self.timer = gr.State(None), gr.Timer(EVERY, active=False)
        with gr.Row(elem_id="train-row"):
            self.run = gr.Dropdown(
                [],
                value=None,
                label="Training",
                info="Choose one, or type the path of its folder.",
                allow_custom_value=True,
                elem_id="train-run",
                scale=4,
                min_width=200,
            )
            self.refresh = gr.Button("Refresh", elem_id="train-refresh", scale=1, min_width=110)
        self.status = gr.HTML("", elem_id="train-status", elem_classes="status")
        with gr.Column(elem_classes="unused", elem_id="train-empty") as self.empty:
            gr.HTML('<div class="empty">Nothing is being trained here yet. This command starts a training:</div>')
            gr.Textbox(COMMAND, label="Command", lines=2, interactive=False, buttons=["copy"], elem_id="train-command")
        with gr.Column(elem_classes="unused", elem_id="train-body") as self.body:
            with gr.Row(elem_classes="unused") as self.usable:
                self.use = gr.Button("Draw with its newest weights", variant="primary", elem_id="train-use")
            with gr.Row():
                self.figures = gr.Dropdown(
                    [], multiselect=True, label="Curves", elem_id="train-figures", scale=3, min_width=200
                )
                self.scale = gr.Radio(
                    [LINEAR, LOGARITHMIC], value=LINEAR, label="Scale", elem_id="train-scale", scale=2, min_width=200
                )
            self.plot = gr.LinePlot(
                x="step",
                y="value",
                color="figure",
                x_title="step",
                y_title=" ",
                color_title=" ",
                height=320,
                show_label=False,
                label="Curves over steps",
                elem_id="train-plot",
                buttons=[],
            )
            self.pictures = {
                kind: gr.Image(
                    label=TITLES[kind].format(0),
                    interactive=False,
                    format="png",
                    elem_id=f"train-{kind}",
                    elem_classes="unused",
                    buttons=["fullscreen"],
                    alt_text=TITLES[kind].partition(",")[0],
                )
                for kind in KINDS
            }
            self.older = checked_later(
                gr.Slider(0, 1, 0, step=1, label="Pictures of step", elem_id="train-older", elem_classes="unused", buttons=[])
            )
            with gr.Accordion("Configuration", open=False, elem_id="train-config", elem_classes="unused") as self.fold:
                self.config = gr.HTML("", elem_classes="figures")

    @property
    def inputs(self) -> list:
        return [self.run, self.figures, self.scale, self.older, self.seen]

    @property
    def outputs(self) -> list:
        return [
            self.seen,
            self.status,
            self.empty,
            self.body,
            self.usable,
            self.figures,
            self.plot,
            *self.pictures.values(),
            self.older,
            self.config,
            self.fold,
        ]

    # ------------------------------------------------------------ looking

    def open(self, text, figures, scale, step, seen):
        """The list of trainings anew, and what is chosen; without a choice the first."""
        found = choices(self.root)
        text = text or (found[0] if found else None)
        return {self.run: gr.update(choices=found, value=text)} | self.show(text, figures, scale, step, None)

    def look(self, text, figures, scale, step, seen):
        """What is new since the last look."""
        return self.show(text, figures, scale, step, seen)

    def again(self, text, figures, scale, step, seen):
        """After a choice of figures, of the scale or of older pictures."""
        return self.show(text, figures, scale, step, seen and Seen(seen.folder, newest=seen.newest), chosen=True)

    def show(self, text, figures, scale, step, seen: Seen | None, chosen: bool = False):
        if not (text or "").strip():
            return self._nothing()
        folder = trainings.choose_run(text)
        run_token = (*trainings.token(folder), trainings.is_fresh(folder))
        if seen is not None and seen.folder == folder and seen.token == run_token:
            return {self.seen: gr.skip()}
        run = trainings.read_run(folder)
        same = seen is not None and seen.folder == folder
        names = [name for name in figures or [] if name in run.curves]
        if not names and not (same and chosen):
            names = first_figures(run)
        before = seen if same else Seen(folder)
        pictures, shown = self._pictures(run, step, before)
        return pictures | {
            self.seen: Seen(folder, run_token, shown, newest_picture(run)),
            self.status: status(run),
            self.empty: gr.update(elem_classes="unused"),
            self.body: gr.update(elem_classes=[]),
            self.usable: gr.update(elem_classes=[] if trainings.can_draw(folder) else "unused"),
            self.figures: gr.update(choices=list(run.curves), value=names),
            self.plot: gr.LinePlot(points(run, names, scale), y_title="log10" if scale == LOGARITHMIC else " "),
            self.config: settings(run.config),
            self.fold: gr.update(elem_classes=[] if run.config else "unused"),
        }

    def _nothing(self) -> dict:
        """No training is there, or chosen."""
        hidden = gr.update(elem_classes="unused")
        return {
            self.seen: None,
            self.status: "",
            self.empty: gr.update(elem_classes=[]),
            self.body: hidden,
            self.usable: hidden,
        }

    def _pictures(self, run: Run, step, seen: Seen) -> tuple[dict, tuple]:
        """(what is new of the pictures and their slider, which pictures are shown then)."""
        steps = sorted({number for pictures in run.pictures.values() for number, _ in pictures})
        if not steps:
            return {self.older: gr.update(elem_classes="unused")} | {
                image: gr.update(value=None, elem_classes="unused") for image in self.pictures.values()
            }, ()
        follows = not seen.newest or not isinstance(step, (int, float)) or step >= seen.newest
        step = steps[-1] if follows else max(steps[0], int(step))
        shown, updates = [], {}
        for kind, image in self.pictures.items():
            found = picture_at(run.pictures[kind], step)
            shown.append(found and (str(found[1]), trainings.stamp(found[1])))
            if len(seen.pictures) == len(KINDS) and seen.pictures[len(shown) - 1] == shown[-1]:
                continue
            updates[image] = (
                gr.update(value=found[2], label=TITLES[kind].format(f"{found[0]:,}"), elem_classes=[])
                if found
                else gr.update(value=None, elem_classes="unused")
            )
        updates[self.older] = gr.update(
            minimum=steps[0], maximum=max(steps[-1], steps[0] + 1), value=step, elem_classes=[] if len(steps) > 1 else "unused"
        )
        return updates, tuple(shown)

    # ------------------------------------------------------------ drawing with it

    def load(self, text):
        """Makes a model of the newest weights and loads it, as one that is chosen on Create."""
        from dalle_core.training.assemble import of_run  # a page that trains nothing does without

        yield {self.status: progress.line("Making a model of its newest weights…")}
        if self.folder is None:  # it goes with the page
            self.folder = tempfile.TemporaryDirectory(prefix="dalle-training-", ignore_cleanup_errors=True)
        before, holder = self.made, self.studio.holder
        run = trainings.read_run(trainings.choose_run(text))
        self.made = of_run(run.folder, Path(self.folder.name) / f"{run.folder.resolve().parent.name}-step-{run.step}")
        holder.offer(str(self.made))
        for line in holder.use(str(self.made)):
            yield {self.status: progress.line(line)}
        if before not in (None, self.made):
            holder.withdraw(str(before))
            shutil.rmtree(before, ignore_errors=True)
        yield {self.status: progress.line("The weights are loaded: draw with them on the Create tab.")}


def build(studio: Studio, root: Path, tab: gr.Tab, controls: Controls) -> gr.events.Dependency:
    """Adds the tab, and its events. Returns that after which the newest weights are the loaded model."""
    train = Train(studio, root)
    every = [train.run, *train.outputs]
    gr.on([tab.select, train.refresh.click], train.open, train.inputs, every, **QUIET).then(
        lambda: gr.Timer(active=True), None, train.timer, **QUIET
    )
    train.run.input(train.open, train.inputs, every, **QUIET)
    train.timer.tick(train.look, train.inputs, train.outputs, trigger_mode="once", **QUIET)
    gr.on(
        [train.figures.input, train.scale.input, train.older.input],
        train.again,
        train.inputs,
        train.outputs,
        trigger_mode="always_last",
        **QUIET,
    )
    used = train.use.click(
        train.load,
        train.run,
        train.status,
        trigger_mode="once",
        show_progress="minimal",
        show_progress_on=train.status,
        api_visibility="private",
    )
    used.failure(train.again, train.inputs, train.outputs, **QUIET)
    return used.success(lambda: controls.fitted(studio), None, controls.of_model, **QUIET)
