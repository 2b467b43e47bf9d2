"""Sampling image tokens from a prior, one position after the other, for a chunk of candidates of one prompt.

Requests of several threads go through the weights together, each at its own position (`Together`): reading the weights
is most of the work for a few rows, so four people wait hardly longer than one.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dalle_core.sampling import guide, sample


@dataclass(frozen=True)
class SamplingSettings:
    """temperature 0 is greedy; top_k 0 and top_p 1 keep every token; guidance_scale 1 is unguided."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance_scale: float = 1.0


@dataclass
class _Ticket:
    """One request's next step, and what came of it."""

    step: tuple  # (image ids, cache, position)
    thread: int
    logits: torch.Tensor | None = None
    error: Exception | None = None
    done: bool = False


class Together:
    """Joins the steps that several threads ask for into one pass through a prior.

    It has no thread of its own: whoever comes first waits a moment for those of the pass before, then runs the pass for
    all. Nothing is kept of a request once its step is answered. Several threads may call.
    """

    PATIENCE = 0.02  # seconds; the others' own work between two steps takes less, unless they make a preview

    def __init__(self, prior):
        self.prior = prior
        self._waiting: list[_Ticket] = []
        self._expected: list[tuple[int, int]] = []  # (cache's id, thread) of the pass before: they should soon be back
        self._running = False
        self._changed = threading.Condition()

    def decode(self, image_ids: torch.Tensor, cache, position: int) -> torch.Tensor:
        """`prior.decode` of one step, perhaps with others' steps."""
        ticket = _Ticket((image_ids, cache, position), threading.get_ident())
        with self._changed:
            self._waiting.append(ticket)
            self._changed.notify_all()
            self._changed.wait_for(lambda: ticket.done or not self._running)
            if not ticket.done:
                self._running = True  # this thread runs the next pass
                self._changed.wait_for(lambda: self._all_back(ticket), timeout=self.PATIENCE)
                tickets, self._waiting = self._waiting, []
                self._expected = [(id(one.step[1]), one.thread) for one in tickets]
        if not ticket.done:
            self._run(tickets)
        if ticket.error is not None:
            raise ticket.error
        return ticket.logits

    def leave(self, cache) -> None:
        """The request of this cache asks for no more steps: nobody waits for it. It may have left before."""
        with self._changed:
            self._expected = [(one, thread) for one, thread in self._expected if one != id(cache)]
            self._changed.notify_all()

    def _all_back(self, ticket: _Ticket) -> bool:
        here = {id(waiting.step[1]) for waiting in self._waiting}
        return all(cache in here or thread == ticket.thread for cache, thread in self._expected)

    def _run(self, tickets: list[_Ticket]) -> None:
        try:
            for ticket, logits in zip(tickets, self.prior.decode([ticket.step for ticket in tickets])):
                ticket.logits = logits
        except Exception as error:  # out of memory, most likely: every request makes itself smaller
            for ticket in tickets:
                ticket.error = error
        finally:
            with self._changed:
                self._running = False
                for ticket in tickets:
                    ticket.done = True
                self._changed.notify_all()


def generate(
    together: Together,
    text_ids: torch.Tensor,
    null_ids: torch.Tensor,
    uniforms: torch.Tensor,
    settings: SamplingSettings,
    forced: torch.Tensor | None = None,
    keep: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """Yields tokens [B, N] after each position; those neither drawn yet nor kept are -1. Closing it stops the work.

    together: around a GPTPrior or BartPrior. text_ids, null_ids [1, text_length]: the prompt, and what guidance leads
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

    # The mode is the thread's: not across a yield, or whoever consumes this would be left in it.
    with torch.inference_mode():
        prompts = torch.cat([text_ids, null_ids]) if guided else text_ids
        cache, logits = together.prior.prefill(prompts, rows, forced[:lead] if lead else None)

    try:
        for position in range(length):
            with torch.inference_mode():
                if lead < position <= last:
                    column = tokens[:, position - 1].repeat(len(prompts))
                    logits = together.decode(column, cache, position - 1)
                if not kept[position]:
                    chosen = logits[:rows]
                    if guided:
                        chosen = guide(chosen, logits[rows:], settings.guidance_scale)
                    tokens[:, position] = sample(
                        chosen, uniforms[:, position], settings.temperature, settings.top_k, settings.top_p
                    )
            yield tokens
    finally:
        together.leave(cache)
