"""Sampling image tokens from a prior, one position after the other, for a chunk of candidates of one prompt.

Requests of several threads go through the weights together, each at its own position (`Engine`): reading the weights
is most of the work for a few rows, so four people wait hardly longer than one.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial, wraps

import torch

from dalle_core.sampling import guide, sample


@dataclass(frozen=True)
class SamplingSettings:
    """temperature 0 is greedy; top_k 0 and top_p 1 keep every token; guidance_scale 1 is unguided."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance_scale: float = 1.0


@dataclass(eq=False)
class _Step:
    """One request's next step: `then` gets its logits."""

    image_ids: torch.Tensor
    cache: object
    position: int
    then: Callable[[torch.Tensor], None]
    asker: int = field(default_factory=threading.get_ident)
    answer: Future = field(default_factory=Future)
    turns: int = 0  # passes since it was asked for


class Engine:
    """A thread that computes for all others, and joins the steps they ask for into one pass through a prior.

    One thread, because PyTorch's OpenMP keeps a team of helpers for each thread that ever computed. With a second team
    there are more of them than cores, and they go to sleep between any two operations: a drawing takes 1.6 times as long
    (two cores, libgomp). It ends when nobody asks for anything. The main thread computes for itself: a script has no
    company, and its team is there already. Who serves several threads should load the model on a thread that ends.
    """

    PATIENCE = 0.02  # seconds that a pass waits for the requests of the pass before; their own work takes less
    IDLE = 0.1  # seconds until the thread ends
    SHARE = 32  # rows: a request that has several times as many takes part in fewer passes while smaller ones are there

    def __init__(self, prior):
        self.prior = prior
        self._works: deque[tuple[Callable, Future]] = deque()
        self._steps: list[_Step] = []  # those that wait for a pass
        self._expected: list[_Step] = []  # of the pass before: their requests should soon be back
        self._worked = False  # work and passes take turns
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()

    def run(self, work: Callable):
        """work(), on the engine's thread."""
        if self._at_home():
            return work()
        answer = Future()
        self._ask(self._works, (work, answer))
        return answer.result()

    def step(self, image_ids: torch.Tensor, cache, position: int, then: Callable[[torch.Tensor], None]) -> None:
        """then(logits) of one step of `prior.decode`, perhaps in a pass with others' steps."""
        step = _Step(image_ids, cache, position, then)
        if self._at_home():
            self._pass([step])
        else:
            self._ask(self._steps, step)
        step.answer.result()

    def leave(self, cache) -> None:
        """The request of this cache asks for no more steps: nobody waits for it. It may have left before."""
        with self._changed:
            self._expected = [step for step in self._expected if step.cache is not cache]
            self._changed.notify_all()

    def _at_home(self) -> bool:
        return threading.current_thread() in (self._thread, threading.main_thread())

    def _ask(self, where: list | deque, what) -> None:
        with self._changed:
            where.append(what)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="dalle-engine", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _serve(self) -> None:
        while (task := self._next()) is not None:
            task()
            del task  # and the tensors in it

    def _next(self) -> Callable | None:
        """What to compute now; None: nobody asks for anything, and the thread is no longer the engine's."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._works or self._steps, self.IDLE):
                self._thread = None
                return None
            if self._steps and not self._work_is_next():
                self._changed.wait_for(lambda: self._work_is_next() or self._all_back(), self.PATIENCE)
            if self._work_is_next() or not self._steps:
                self._worked = True
                work, answer = self._works.popleft()
                return partial(_answer, answer, work)
            self._worked = False
            self._expected = steps = self._fair_share()
            for step in steps:
                self._steps.remove(step)
            return partial(self._pass, steps)

    def _work_is_next(self) -> bool:
        return bool(self._works) and not self._worked

    def _all_back(self) -> bool:
        here = [step.cache for step in self._steps]
        askers = {step.asker for step in self._steps}  # a thread that waits here cannot bring another request's step
        return all(any(step.cache is cache for cache in here) or step.asker in askers for step in self._expected)

    def _fair_share(self) -> list[_Step]:
        """The steps of the next pass: everybody's, but of a large request only now and then when smaller ones wait."""
        least = max(self.SHARE, min(len(step.image_ids) for step in self._steps))
        for step in self._steps:
            step.turns += 1
        return [step for step in self._steps if step.turns >= len(step.image_ids) // least]

    def _pass(self, steps: list[_Step]) -> None:
        try:
            with torch.inference_mode():
                logits = self.prior.decode([(step.image_ids, step.cache, step.position) for step in steps])
        except Exception as error:  # out of memory, most likely: every request makes itself smaller
            for step in steps:
                step.answer.set_exception(error)
            return
        for step, rows in zip(steps, logits):
            _answer(step.answer, partial(step.then, rows))


def _answer(answer: Future, work: Callable) -> None:
    try:
        result = work()
    except Exception as error:
        answer.set_exception(error)
    else:
        answer.set_result(result)


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
) -> Iterator[torch.Tensor]:
    """Yields tokens [B, N] after each position; those neither drawn yet nor kept are -1. Closing it stops the work.

    engine: around a GPTPrior or BartPrior. text_ids, null_ids [1, text_length]: the prompt, and what guidance leads
    away from (the null or negative prompt). uniforms [B, N]: one random number a token. forced, keep [N]: where keep is true,
    forced is the token. Those at the start are read with the prompt, in one pass for all candidates; those after the
    last drawn one are not read.
    """
    rows, length = uniforms.shape
    device = text_ids.device
    uniforms = uniforms.to(device, torch.float32 if device.type == "mps" else torch.float64)  # MPS has no float64
    guided = settings.guidance_scale != 1
    kept = [False] * length if keep is None else keep.tolist()
    forced = None if forced is None else forced.to(device)
    lead = kept.index(False) if False in kept else 0
    last = max((position for position in range(length) if not kept[position]), default=-1)
    tokens = torch.full((rows, length), -1, device=device)
    if keep is not None:
        tokens[:, keep.to(device)] = forced[keep.to(device)]
    prompts = torch.cat([text_ids, null_ids]) if guided else text_ids

    # The mode is the thread's: never across a yield, or whoever consumes this would be left in it.
    @torch.inference_mode()
    def begin():
        return engine.prior.prefill(prompts, rows, forced[:lead] if lead else None)

    @torch.inference_mode()
    def choose(position, logits):
        chosen = logits[:rows]
        if guided:
            chosen = guide(chosen, logits[rows:], settings.guidance_scale)
        tokens[:, position] = sample(
            chosen, uniforms[:, position], settings.temperature, settings.top_k, settings.top_p
        )

    cache, logits = engine.run(begin)
    try:
        for position in range(length):
            then = partial(choose, position) if not kept[position] else _nothing
            if lead < position <= last:
                engine.step(tokens[:, position - 1].repeat(len(prompts)), cache, position - 1, then)
            elif position == lead:
                engine.run(partial(then, logits))
            yield tokens
    finally:
        engine.leave(cache)


def _nothing(logits: torch.Tensor) -> None:
    """A kept token is not sampled."""
