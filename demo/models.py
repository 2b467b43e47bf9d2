"""The one loaded model that all visitors share, and changing it."""

import gc
import html
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from dalle_core import CATALOGUE, DallePipeline, ModelError
from dalle_core.memory import RESERVE, free_bytes, gigabytes

log = logging.getLogger(__name__)


class Models:
    """`pipe` is the loaded pipeline, `source` the name, folder or Hub id it came from.

    load(source, tell) -> pipeline; None: this model is the only one. download(source, tell, freed) brings a model's files
    here while the one before is still in use. Several visitors draw at once; a change of model waits until nobody draws.
    """

    def __init__(self, pipe: DallePipeline, source: str, load: Callable | None = None, download: Callable | None = None):
        self.pipe, self.source, self.load, self.download = pipe, source, load, download
        self.choices = list(dict.fromkeys([source, *CATALOGUE])) if load else [source]
        self._drawing, self._switching = 0, False
        self._changed = threading.Condition()

    @contextmanager
    def drawing(self, source: str) -> Iterator[DallePipeline]:
        """The pipeline, kept loaded while this is held. Raises ModelError when another visitor has just changed it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._switching)
            if source != self.source:
                raise ModelError("Another visitor has just changed the model: try again.")
            self._drawing += 1
        try:
            yield self.pipe
        finally:
            with self._changed:
                self._drawing -= 1
                self._changed.notify_all()

    def use(self, source: str) -> Iterator[str]:
        """Makes `source` the loaded model; yields lines that say what is going on. The model before is freed first.

        Raises ModelError when it cannot be loaded, with the model before loaded again.
        """
        if source not in self.choices:
            raise ModelError(f"{str(source)[:60]!r} is not one of this page's models: {', '.join(self.choices)}.")
        lines, failed = queue.SimpleQueue(), []

        def work():
            try:
                self._switch(source, lines.put)
            except Exception as error:
                failed.append(error)
            lines.put(None)

        threading.Thread(target=work, daemon=True).start()
        while (line := lines.get()) is not None:
            yield line
        if failed:
            raise failed[0]

    def _switch(self, source: str, tell: Callable[[str], None]) -> None:
        if self.download and source != self.source:
            self.download(source, tell, taken(self.source, self.pipe))  # no name for it here: it is to be freed
        with self._changed:
            if self._drawing and source != self.source:
                tell("Waiting for the pictures that are being drawn…")
            self._changed.wait_for(lambda: not self._switching and (source == self.source or not self._drawing))
            if source == self.source:
                return
            self._switching = True
        try:
            tell(f"Loading {source}…")
            self.pipe = None
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            try:
                self.pipe = self.load(source, tell)
                self.source = source
            except Exception:
                tell(f"Loading {self.source} again…")
                self.pipe = self.load(self.source, tell)
                raise
        finally:
            with self._changed:
                self._switching = False
                self._changed.notify_all()


def taken(source: str, pipe: DallePipeline | None) -> int:
    """Bytes that the loaded model's weights take, as far as the catalogue knows it: free when it has gone."""
    known = CATALOGUE.get(source)
    return known.parameters * pipe.prior.dtype.itemsize if known and pipe else 0


def labelled(choices: list[str], source: str, pipe: DallePipeline | None) -> list[tuple[str, str]]:
    """The picker's choices as (label, value): size, licence, whether the model is already here, and whether it is too
    large for the device and dtype of the loaded one (`source`, `pipe`)."""
    rows, room = [], None
    if pipe is not None:
        room = (free_bytes(pipe.prior.device) + taken(source, pipe)) * RESERVE
    for name in choices:
        known = CATALOGUE.get(name)
        if known is None:
            rows.append((name, name))
            continue
        here = "here" if known.is_here() else f"{gigabytes(known.download)} to download"
        label, needed = f"{name} · {here} · {known.licence}", known.parameters * pipe.prior.dtype.itemsize if pipe else 0
        if room is not None and needed > room and name != source:
            label += f" · too large: needs {gigabytes(needed)} of memory"
        rows.append((label, name))
    return rows


def facts(source: str, pipe: DallePipeline | None) -> str:
    """What is known of a model, as a line of HTML: licence, size, whether it is here, what it is good at."""
    known = CATALOGUE.get(source)
    licence = known.licence if known else pipe.config.licence if pipe else "unknown"
    parts, note = [f"licence: {licence}"], known.note if known else ""
    if known and known.repo:
        here = known.is_here()
        parts.append("already here" if here else f"downloads {gigabytes(known.download)} from {known.repo}")
        sizes = ", ".join(f"{gigabytes(size)} in {dtype}" for dtype, size in known.memory().items())
        parts.append(f"memory: {sizes}")
    if pipe:
        parts.append(f"{str(pipe.prior.dtype).removeprefix('torch.')} on {pipe.device.type}")
        free, together = free_bytes(pipe.prior.device), pipe.candidates_that_fit()
        parts.append(f"{gigabytes(free)} free: {together} candidates at a time")
    line = " · ".join(f"<span>{html.escape(part)}</span>" for part in parts)  # a text each: they are translated
    return f'<div class="model-facts">{line}<br>{html.escape(note)}</div>'
