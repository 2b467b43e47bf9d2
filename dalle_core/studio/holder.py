"""The one loaded model that all visitors share, and changing it."""

import gc
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from dalle_core.catalogue import CATALOGUE
from dalle_core.errors import InputError, ModelError
from dalle_core.pipeline import DallePipeline
from dalle_core.request import Limits

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """What is known of a loaded model without touching it: the page is built from it, also while another one is loading."""

    source: str  # what it is chosen by: the name, folder or Hub id it came from, and its LoRA
    model: str  # the name, folder or Hub id alone
    name: str
    revision: str
    limits: Limits
    defaults: dict
    examples: list[str]
    labels: list[str]  # what it knows by name
    image_size: int  # pixels a side
    licence: str
    device: str
    dtype: torch.dtype
    prior_config: dict
    parts: tuple[tuple[str, str, int, str], ...]  # (component, class, numbers, dtype) of each that has weights
    preview_every: int  # tokens between previews that are cheap here; 0: none are
    answers: bool  # questions about a picture

    @classmethod
    def of(cls, source: str, pipe: DallePipeline, model: str | None = None) -> "Loaded":
        # Of a large image tokenizer previews take seconds: too long, where the tokens do not take minutes.
        dear = numbers_of(pipe.image_tokenizer) > 20_000_000 and numbers_of(pipe.prior) < 1_000_000_000
        return cls(
            source,
            model or source,
            pipe.name,
            pipe.revision,
            pipe.limits,
            pipe.defaults,
            pipe.examples,
            list(pipe.config.labels),
            pipe.image_size,
            pipe.config.licence,
            str(pipe.prior.device),
            pipe.prior.dtype,
            pipe.prior.config,
            parts_of(pipe),
            0 if dear and pipe.device.type == "cpu" else 2 * pipe.grid_size,
            pipe.answers,
        )

    @property
    def bytes(self) -> int:
        """What its weights take, as far as the catalogue knows it: free when it has gone."""
        known = CATALOGUE.get(self.model)
        return known.parameters * self.dtype.itemsize if known else 0


def numbers_of(part: torch.nn.Module) -> int:
    """How many are saved of it. Packed layers count as what they were, and are not unpacked for that: it would take as much
    memory again."""
    count = 0
    for module in part.modules():
        own = [module.packed, module.bias] if hasattr(module, "packed") else [*module._parameters.values()]
        own += [value for name, value in module._buffers.items() if name not in module._non_persistent_buffers_set]
        count += sum(value.numel() for value in own if value is not None)
    return count


def parts_of(pipe: DallePipeline) -> tuple[tuple[str, str, int, str], ...]:
    return tuple(
        (name, type(part).__name__, numbers_of(part), str(part.dtype).removeprefix("torch."))
        for name, part in pipe.components.items()
        if isinstance(part, torch.nn.Module)
    )


class ModelHolder:
    """Ready, loading, or failed. Who computes with the model holds it (`hold`); a change waits for those who do.

    load(source, tell) -> pipeline; None: this model is the only one. download(source, tell, freed) brings a model's files
    here while the one before is still in use. tell(line) says what is going on. model: what `source` is without its LoRA.
    """

    def __init__(
        self,
        pipe: DallePipeline,
        source: str,
        load: Callable | None = None,
        download: Callable | None = None,
        model: str | None = None,
    ):
        self.source, self.load, self.download = source, load, download
        self.with_lora = {source: model} if model else {}
        self.loaded = Loaded.of(source, pipe, model)  # of the last one that was there
        self.trouble = ""  # why there is no model, as a sentence; "" while one is there or on its way
        self.choices = list(dict.fromkeys([source, *self.with_lora.values(), *CATALOGUE])) if load else [source]
        self._pipe: DallePipeline | None = pipe
        self._holders, self._changing = 0, False
        self._changed = threading.Condition()

    @property
    def state(self) -> str:
        """One of "ready", "loading" and "failed"."""
        return "loading" if self._changing else "failed" if self._pipe is None else "ready"

    @property
    def bytes(self) -> int:
        """What is free when the loaded model has gone, as far as it is known: of its weights and of its engine's slots."""
        pipe = self._pipe
        return self.loaded.bytes + pipe.engine.nbytes if pipe else 0

    def model_of(self, source: str) -> str:
        """One of the choices without its LoRA."""
        return self.with_lora.get(source, source)

    @contextmanager
    def hold(self, source: str | None = None) -> Iterator[DallePipeline]:
        """The pipeline, kept loaded while this is held. A change that waits goes first.

        Raises ModelError when it is not `source` (another visitor has just changed it), or when no model is loaded.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._changing)
            if self._pipe is None:
                raise ModelError(self.trouble)
            if source is not None and source != self.source:
                raise ModelError("Another visitor has just changed the model: try again.")
            self._holders += 1
        try:
            yield self._pipe
        finally:
            with self._changed:
                self._holders -= 1
                self._changed.notify_all()

    def held(self) -> DallePipeline:
        """The pipeline, for who holds it already: holding it twice could wait for a change that waits for the first."""
        assert self._pipe is not None and (self._holders or not self._changing)
        return self._pipe

    def check(self, source: str) -> None:
        """Raises ModelError when a visitor may not choose this model."""
        if source not in self.choices:
            raise ModelError(f"{str(source)[:60]!r} is not one of this page's models: {', '.join(self.choices)}.")

    def offer(self, source: str) -> None:
        """Adds a model to those that may be chosen."""
        if source not in self.choices:
            self.choices.append(source)

    def withdraw(self, source: str) -> None:
        """Takes a model off them, as its folder goes."""
        if source in self.choices and source != self.source:
            self.choices.remove(source)

    def use(self, source: str) -> Iterator[str]:
        """Makes `source` the loaded model; yields lines that say what is going on. The model before is freed first.

        Raises ModelError when it cannot be loaded, with the model before loaded again if that is possible.
        """
        self.check(source)
        lines, failed = queue.SimpleQueue(), []

        def work():
            try:
                self._change(source, lines.put)
            except Exception as error:
                failed.append(error)
            lines.put(None)

        threading.Thread(target=work, daemon=True).start()
        while (line := lines.get()) is not None:
            yield line
        if failed:
            raise failed[0]

    def _change(self, source: str, tell: Callable[[str], None]) -> None:
        if self.download and source != self.source:
            self.download(source, tell, self.bytes)
        with self._changed:
            if self._changing:
                tell("Waiting for the model that is being loaded…")
                self._changed.wait_for(lambda: not self._changing)
            if source == self.source and self._pipe is not None:
                return
            self._changing = True
            try:
                if self._holders:
                    tell("Waiting for the pictures that are being drawn…")
                self._changed.wait_for(lambda: not self._holders)
            except BaseException:
                self._changing = False
                raise
        try:
            self._load(source, tell)
        finally:
            with self._changed:
                self._changing = False
                self._changed.notify_all()

    def _load(self, source: str, tell: Callable[[str], None]) -> None:
        before = self.source
        try:
            self._open(source, tell, f"Loading {source}…")
        except Exception as error:
            if before == source:
                self._fail(source, error)
                raise
            try:
                self._open(before, tell, f"Loading {before} again…")
            except Exception as again:
                self._fail(before, again)
                raise error from again
            raise

    def _open(self, source: str, tell: Callable[[str], None], line: str) -> None:
        tell(line)
        thread = self._pipe.engine.thread if self._pipe else None
        self._pipe = None  # freed before the next one is read: there may not be room for two
        gc.collect()
        if thread:  # it may have the engine for a moment yet
            thread.join(timeout=1)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        pipe = self.load(source, tell)
        self.loaded = Loaded.of(source, pipe, self.model_of(source))
        self._pipe, self.source, self.trouble = pipe, source, ""

    def _fail(self, source: str, error: Exception) -> None:
        log.error("no model is loaded", exc_info=error)
        why = str(error) if isinstance(error, (InputError, ModelError)) else "the server's log says why."
        self.trouble = (
            f"No model is loaded: {source} could not be loaded again ({why.rstrip('.')}). Choose a model to try again."
        )
