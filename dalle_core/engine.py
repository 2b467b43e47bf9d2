"""Sampling image tokens from a prior, one position after the other, for a chunk of candidates of one prompt.

Requests of several threads go through the weights together, each at its own position (`Engine`): reading the weights
is most of the work for a few rows, so four people wait hardly longer than one. On CUDA they do so in slots: `slots.py`.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial, wraps
from queue import SimpleQueue

import torch

from dalle_core.memory import is_out_of_memory
from dalle_core.sampling import guide, in_float32, sample


@dataclass(frozen=True)
class SamplingSettings:
    """temperature 0 is greedy; top_k 0 and top_p 1 keep every token; guidance_scale 1 is unguided."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance_scale: float = 1.0


@dataclass(frozen=True)
class Plan:
    """What a chunk of B candidates is drawn from, of N image tokens each."""

    prompts: torch.Tensor  # [P, T]: the prompt and, when guided, what guidance leads away from
    uniforms: torch.Tensor  # [B, N]
    settings: SamplingSettings
    forced: torch.Tensor | None  # [N]
    kept: list[bool]  # N
    tokens: torch.Tensor  # [B, N]: -1 where nothing is drawn yet
    every: int

    @property
    def lead(self) -> int:
        """The first position that is drawn; those before it are read with the prompt."""
        return self.kept.index(False) if False in self.kept else 0

    @property
    def last(self) -> int:
        """The last position that is drawn; -1: none is."""
        return max((position for position, kept in enumerate(self.kept) if not kept), default=-1)

    def shows(self, position: int) -> bool:
        """Whether the tokens are handed out after this position."""
        return (position + 1) % self.every == 0 or position + 1 == len(self.kept)

    def choose(self, logits: torch.Tensor, position: int) -> torch.Tensor:
        """logits [P * B, V], the candidates of a prompt side by side -> their tokens `position` [B]."""
        rows, settings = len(self.uniforms), self.settings
        chosen = logits[:rows]
        if len(self.prompts) > 1:
            chosen = guide(chosen, logits[rows:], settings.guidance_scale)
        return sample(chosen, self.uniforms[:, position], settings.temperature, settings.top_k, settings.top_p)


class _Request:
    """A drawing on its way in the engine's thread."""

    def __init__(self, drawing: Callable[[Callable], Generator]):
        self.steps: Generator | None = drawing(self._tell)
        self.step: tuple | None = None  # (image ids, cache, position) whose logits it needs; None: it has ended
        self.said: SimpleQueue[tuple | Exception | None] = SimpleQueue()  # (tokens or None,) each; None at the end
        self.told = self.read = 0  # one counted by the engine's thread, one by the reader's
        self.turns = 0  # passes since it took part in one

    def _tell(self, tokens: torch.Tensor | None) -> None:
        self.told += 1
        self.said.put((None if tokens is None else tokens.clone(),))  # it is drawn on while this one is looked at

    def advance(self, logits: torch.Tensor | None) -> None:
        if (steps := self.steps) is None:  # its reader has left
            return
        try:
            with torch.inference_mode():
                self.step = steps.send(logits)
            if self.steps is None:  # meanwhile
                self.step = None
        except StopIteration:
            self.fail(None)
        except BaseException as error:
            self.fail(_for_others(error))

    def leave(self) -> None:
        """Nobody reads it any more. The steps refer to it: their memory would wait for the garbage collector."""
        self.steps = None
        self.step = None

    def fail(self, error: Exception | None) -> None:
        self.step = None
        self.said.put(error)


class Engine:
    """A thread that computes for all others: it draws their requests, all in one pass through a prior a token, and does
    what else they ask for in between.

    One thread, because PyTorch's OpenMP keeps a team of helpers for each thread that ever computed. With a second team
    there are more of them than cores, and they go to sleep between any two operations: every drawing is much slower
    (seen with libgomp on two cores). It ends when nobody asks for anything. The main thread computes for itself: a
    script has no company, and its team is there already. Who serves several threads should load the model on a thread
    that ends, and compute nothing large on others: what has more than 32,768 elements is shared out to a team.
    """

    AHEAD = 16  # tokens that it draws before the first of them is read: a reader that shows a preview holds nothing up
    IDLE = 0.1  # seconds until the thread ends
    STAYS = False  # whether the thread stays as long as somebody has the engine
    SHARE = 32  # rows: a request that has several times as many takes part in fewer passes while smaller ones are there

    def __init__(self, prior):
        self.prior = prior
        self._works: deque[tuple[Callable, Future]] = deque()
        self._requests: list[_Request] = []
        self._worked = False  # works and passes take turns
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()

    @property
    def nbytes(self) -> int:
        """Bytes that it keeps between requests, beside the prior."""
        return 0

    @property
    def thread(self) -> threading.Thread | None:
        """The one that computes just now, if there is one. It ends within a moment when nobody has the engine any more."""
        return self._thread

    def run(self, work: Callable):
        """work(), on the engine's thread."""
        return work() if self._at_home() else self._ask(work).result()

    def draw(self, drawing: Callable[[Callable], Generator]) -> Iterator[torch.Tensor | None]:
        """Yields what a drawing tells of. Closing it ends the drawing.

        drawing(tell): a generator that yields the next step it needs, as `prior.decode` takes it, is sent its logits, and
        calls tell(tokens or None).
        """
        return self._draw_here(drawing) if self._at_home() else self._draw_there(drawing)

    def drawing(self, plan: Plan, tell: Callable) -> Generator:
        """Of a plan, as `draw` takes it; tells of each position."""
        lead, last, tokens = plan.lead, plan.last, plan.tokens
        cache, logits = self.prior.prefill(plan.prompts, len(tokens), plan.forced[:lead] if lead else None)
        for position, kept in enumerate(plan.kept):
            if lead < position <= last:
                logits = yield tokens[:, position - 1].repeat(len(plan.prompts)), cache, position - 1
            if not kept:
                tokens[:, position] = plan.choose(logits, position)
            tell(tokens if plan.shows(position) else None)

    def _draw_here(self, drawing) -> Iterator[torch.Tensor | None]:
        told, logits = deque(), None
        steps = drawing(told.append)
        while True:
            # The mode is the thread's: never across a yield, or whoever consumes this would be left in it.
            with torch.inference_mode():
                try:
                    step = steps.send(logits)
                except StopIteration:
                    step = None
            while told:
                yield told.popleft()
            if step is None:
                return
            with torch.inference_mode():
                [logits] = self._compute([step])

    def _draw_there(self, drawing) -> Iterator[torch.Tensor | None]:
        request = _Request(drawing)
        self._ask(lambda: self._begin(request))
        try:
            while (said := request.said.get()) is not None:
                if isinstance(said, Exception):
                    raise said
                request.read += 1
                if request.told - request.read == self.AHEAD - 1:  # it may have been waiting for this
                    with self._changed:
                        self._wake()
                yield said[0]
        finally:
            with self._changed:
                self._requests = [one for one in self._requests if one is not request]
                request.leave()
                self._changed.notify_all()

    def _begin(self, request: _Request) -> None:
        request.advance(None)
        with self._changed:
            self._requests.append(request)

    def _at_home(self) -> bool:
        return threading.current_thread() in (self._thread, threading.main_thread())

    def _ask(self, work: Callable) -> Future:
        answer = Future()
        with self._changed:
            self._works.append((work, answer))
            self._wake()
        return answer

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=_serve, args=(weakref.ref(self),), name="dalle-engine", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _next(self) -> Callable | None:
        """What to compute now; None: nobody asks for anything, and the thread is no longer the engine's."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._works or self._ready(), self.IDLE):
                if self.STAYS:
                    return lambda: None
                self._thread = None
                return None
            ready = self._ready()
            self._worked = bool(self._works) and not (self._worked and ready)
            if self._worked:
                work, answer = self._works.popleft()
                return partial(_answer, answer, work)
            requests = self._fair_share(ready)
            return partial(self._pass, requests, [request.step for request in requests])

    def _ready(self) -> list[_Request]:
        self._requests = [request for request in self._requests if request.step is not None]
        return [request for request in self._requests if request.told - request.read < self.AHEAD]

    def _fair_share(self, ready: list[_Request]) -> list[_Request]:
        """Who takes part in the next pass: everybody, but a large request only now and then when there are smaller ones."""
        rows = [len(request.step[0]) for request in ready]
        least = max(self.SHARE, min(rows))
        for request in ready:
            request.turns += 1
        return [request for request, count in zip(ready, rows) if request.turns >= count // least]

    def _compute(self, steps: list) -> list:
        """What each drawing is sent for the step that it yielded."""
        return self.prior.decode(steps)

    def _pass(self, requests: list[_Request], steps: list) -> None:
        try:
            with torch.inference_mode():
                logits = self._compute(steps)
        except BaseException as error:
            if len(requests) == 1 or not is_out_of_memory(error):
                for request in requests:
                    request.fail(_for_others(error))
                return
            logits = None
        if logits is None:  # outside: the traceback would keep the memory
            for request, step in zip(requests, steps):  # who is too large alone makes itself smaller, the others go on
                self._pass([request], [step])
            return
        for request, rows in zip(requests, logits):
            request.turns = 0
            request.advance(rows)


def _serve(reference: weakref.ref) -> None:
    """Does what is to be done, until nobody asks for anything or, of an engine that stays, nobody has it any more."""
    while (engine := reference()) is not None and (task := engine._next()) is not None:
        task()
        del task, engine  # and the tensors in them


def _answer(answer: Future, work: Callable) -> None:
    try:
        result = work()
    except BaseException as error:
        answer.set_exception(_for_others(error))
    else:
        answer.set_result(result)


def _for_others(error: BaseException) -> Exception:
    """The error as another thread may raise it: SystemExit and its like would end more than what was asked for."""
    if isinstance(error, Exception):
        return error
    stopped = RuntimeError(f"The work was stopped ({type(error).__name__}).")
    stopped.__cause__ = error
    return stopped


def on_engine(method):
    """The method of an object with an `engine`, on that engine's thread."""

    @wraps(method)
    def call(self, *args, **kwargs):
        return self.engine.run(partial(method, self, *args, **kwargs))

    return call


def generate(
    engine: Engine,
    text_ids: torch.Tensor,
    null_ids: torch.Tensor,
    uniforms: torch.Tensor,
    settings: SamplingSettings,
    forced: torch.Tensor | None = None,
    keep: torch.Tensor | None = None,
    every: int = 1,
) -> Iterator[torch.Tensor | None]:
    """Yields tokens [B, N] after each position; those neither drawn yet nor kept are -1. Closing it stops the work.

    engine: around a prior. text_ids, null_ids [1, text_length]: the prompt, and what guidance leads
    away from (the null or negative prompt). uniforms [B, N]: one random number a token. forced, keep [N]: where keep is true,
    forced is the token. Those at the start are read with the prompt, in one pass for all candidates; those after the
    last drawn one are not read. every: of how many positions the tokens are handed out after one, and after the last; None
    after the others.
    """
    rows, length = uniforms.shape
    device = text_ids.device
    uniforms = in_float32(uniforms).to(device) if device.type == "mps" else uniforms.to(device, torch.float64)
    forced = None if forced is None else forced.to(device)
    tokens = torch.full((rows, length), -1, device=device)
    if keep is not None:
        tokens[:, keep.to(device)] = forced[keep.to(device)]
    prompts = text_ids if settings.guidance_scale == 1 else torch.cat([text_ids, null_ids])
    kept = [False] * length if keep is None else keep.tolist()
    return engine.draw(partial(engine.drawing, Plan(prompts, uniforms, settings, forced, kept, tokens, every)))
