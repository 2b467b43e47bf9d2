"""Drawing on a GPU: one decoding step for everybody that is always the same operations on the same memory.

Each candidate has a slot, or two when it is guided: a row of the cache (`priors/slots.py`) and of the tables below, which
hold its settings, random numbers and tokens. A step reads each row's last token, computes the next one's logits, guides them,
samples, and writes the token into the table. Whoever draws takes slots, fills them, and leaves them. What differs from step to
step is where rows stand, which of them go on, and how much of the memory is looked at: the first so many rows, the first so
many positions, a few sizes of each. For each of these the step is captured as a CUDA graph (`capture.py`).

The random numbers are those of `sampling.candidate_uniforms`, laid into the table when a request begins: they are the same on
every device and in any company. Logits may differ in the last digits with the number of rows, for other matrix kernels are
chosen: on a GPU a candidate is nearly always, but not by promise, the same in any company.
"""

import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from dalle_core import memory
from dalle_core.capture import Captured
from dalle_core.engine import Engine, Plan
from dalle_core.sampling import sample_rows

ROWS = (2, 4, 8, 16, 24, 32, 48, 64, 96, 128)  # the first so many are computed


@dataclass(eq=False)
class Seat:
    """The slots of one request."""

    rows: list[int]  # its candidates', then when it is guided those of the null prompt
    index: torch.Tensor  # the same, on the device
    place: int = 0  # of the last image token that is known
    end: int = 0  # positions of the cache that the next step looks at
    filtered: bool = False  # whether it has a top-k or a top-p


class Slots:
    """The memory of all that is drawn, and the step. One thread calls it; only `leave` may be called from another."""

    def __init__(self, prior, rows: int, alone: threading.RLock):
        length, self.rows = prior.config.image_length, rows
        self.prior, self.cache = prior, prior.new_slots(rows)
        device = self.cache.k.device
        self.tokens = torch.zeros(rows, length, dtype=torch.long, device=device)  # -1: not drawn yet
        self.kept = torch.zeros(rows, length, dtype=torch.bool, device=device)
        self.uniforms = torch.zeros(rows, length, dtype=torch.float64, device=device)
        self.places = torch.zeros(rows, dtype=torch.long, device=device)  # of the last token that is known
        self.active = torch.zeros(rows, dtype=torch.bool, device=device)  # the others stay as they are
        self.leaders = torch.arange(rows, device=device)  # the row whose token this one takes: when guided, the candidate's
        self.others = torch.arange(rows, device=device)  # the row that guidance leads away from
        self.temperature, self.top_p, self.scale = torch.ones(3, rows, dtype=torch.float64, device=device)
        self.top_k = torch.zeros(rows, dtype=torch.long, device=device)
        self.buckets = [count for count in ROWS if count < rows] + [rows]
        self.graphs = Captured(device, alone) if device.type == "cuda" else None
        self._free, self._lock, self._active = set(range(rows)), threading.Lock(), []

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> Seat | None:
        """So many free slots, the first ones; None when there are fewer."""
        with self._lock:
            if count > len(self._free):
                return None
            rows = sorted(self._free)[:count]
            self._free.difference_update(rows)
        return Seat(rows, self._sent(torch.tensor(rows)))

    def leave(self, seat: Seat) -> None:
        with self._lock:
            self._free.update(seat.rows)

    def fill(self, seat: Seat, plan: Plan, prefilled, tokens: torch.Tensor) -> None:
        """Begins to draw: prefilled, what the prior made of the plan's prompts; tokens [B, N], the first one of them drawn."""
        index, settings, prompts = seat.index, plan.settings, len(plan.prompts)
        lead, copies = plan.lead, len(tokens)
        self.cache.fill(index, prefilled, copies, prefilled.start + lead)
        self.tokens[index], self.uniforms[index] = tokens.repeat(prompts, 1), plan.uniforms.repeat(prompts, 1)
        self.kept[index] = self._sent(torch.tensor(plan.kept))
        own, null = index[:copies], index[-copies:]
        self.leaders[index], self.others[index] = own.repeat(prompts), null.repeat(prompts)
        for table, value in (
            (self.places, lead),
            (self.temperature, settings.temperature),
            (self.top_k, settings.top_k),
            (self.top_p, settings.top_p),
            (self.scale, settings.guidance_scale),
        ):
            table.index_fill_(0, index, value)
        seat.place, seat.end = lead, prefilled.start + lead + 1
        seat.filtered = settings.top_k > 0 or settings.top_p < 1

    def drawn(self, seat: Seat, copies: int) -> torch.Tensor:
        """The tokens [B, N] of a seat's candidates so far."""
        return self.tokens[seat.index[:copies]]

    def advance(self, seats: list[Seat]) -> None:
        """The next token of each seat; the other rows stay as they are."""
        rows = sorted(row for seat in seats for row in seat.rows)
        key = (
            next(count for count in self.buckets if count > rows[-1]),
            next(length for length in self.cache.lengths if length >= max(seat.end for seat in seats)),
            any(seat.filtered for seat in seats),
        )
        if self.graphs is not None and key not in self.graphs.graphs:
            self._activate([])
            self.graphs.capture(self.step, key)
        self._activate(rows)
        if self.graphs is None:
            self.step(*key)
        else:
            self.graphs.replay(key)
        for seat in seats:
            seat.place, seat.end = seat.place + 1, seat.end + 1

    def step(self, rows: int, length: int, filtered: bool) -> None:
        """The next token of the first `rows` rows where they are active. length: how many positions of the cache are looked
        at; filtered: whether top-k and top-p are. What it writes for rows that are not active, the keys and values of their
        last token, is written anew when they go on."""
        places, tokens = self.places[:rows], self.tokens[:rows]
        ids = tokens.gather(1, places[:, None])[:, 0].clamp(min=0)
        logits = self.prior.decode_slots(ids, places, self.cache, length)  # [B, V]
        logits = logits.float()
        others = logits[self.others[:rows].clamp(max=rows - 1)]
        logits = others + self.scale[:rows, None].float() * (logits - others)
        at = (places + 1)[:, None]  # [B, 1]
        uniforms = self.uniforms[:rows].gather(1, at)[:, 0]
        drawn = sample_rows(
            logits, uniforms, self.temperature[:rows], self.top_k[:rows], self.top_p[:rows], filtered
        )  # [B], those of rows that follow a leader unused
        drawn = drawn[self.leaders[:rows].clamp(max=rows - 1)]
        active = self.active[:rows]
        free = active & ~self.kept[:rows].gather(1, at)[:, 0]
        tokens.scatter_(1, at, torch.where(free, drawn, tokens.gather(1, at)[:, 0])[:, None])
        # The last token is drawn and never read.
        places.copy_((places + active).clamp(max=tokens.shape[1] - 2))

    def _activate(self, rows: list[int]) -> None:
        if rows != self._active:
            active = torch.zeros(self.rows, dtype=torch.bool)
            active[rows] = True
            self.active.copy_(self._sent(active))
            self._active = rows

    def _sent(self, values: torch.Tensor) -> torch.Tensor:
        """On the device, without waiting for the steps on their way."""
        device = self.tokens.device
        return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


class SlotEngine(Engine):
    """An `Engine` whose requests share slots. What else is asked for (previews, CLIP) is computed beside the tokens, by whoever
    asks, one at a time, on a stream of its own."""

    AHEAD = 2**31  # nobody's slots wait for a slow reader
    STAYS = True

    def __init__(self, prior, rows: int | None = None):
        """rows: slots; None: what the free memory holds, at most 128, when the first one is asked for."""
        super().__init__(prior)
        self._rows, self._slots, self._stream = rows, None, None
        self._alone = threading.RLock()

    @property
    def slots(self) -> Slots:
        """Raises InputError with the numbers when there is no room for them."""
        if self._slots is None:  # later no token waits for what is computed beside it
            with self._alone:
                if self._slots is None:
                    self._slots = Slots(self.prior, self._rows or rows_that_fit(self.prior), self._alone)
        return self._slots

    @property
    def nbytes(self) -> int:
        return self._slots.cache.nbytes if self._slots else 0

    def run(self, work: Callable):
        """work(), on this thread."""
        with self._alone, self._beside():
            return work()

    def _beside(self) -> AbstractContextManager:
        device = self.prior.device
        if device.type != "cuda":
            return nullcontext()
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))  # what it reads was computed there
        return torch.cuda.stream(self._stream)

    def drawing(self, plan: Plan, tell: Callable) -> Generator:
        """Yields how many slots it waits for, then its seat at each step."""
        tokens, copies, lead, seat = plan.tokens, len(plan.tokens), plan.lead, None
        rows = copies * len(plan.prompts)
        if rows > self.slots.rows:
            raise ValueError(f"{copies} candidates need {rows} slots, and there are {self.slots.rows}: draw fewer at a time.")
        while plan.last > lead and (seat := self.slots.take(rows)) is None:
            yield rows
        try:
            for position in range(len(plan.kept)):
                if position == lead <= plan.last:
                    prefilled, logits = self.prior.prefill(plan.prompts, 1, plan.forced[:lead] if lead else None)
                    tokens[:, lead] = plan.choose(logits.repeat_interleave(copies, dim=0), lead)
                    if seat:
                        self.slots.fill(seat, plan, prefilled, tokens)
                    del prefilled, logits
                elif lead < position <= plan.last:
                    yield seat
                shown = plan.shows(position)
                tell((self.slots.drawn(seat, copies) if seat and position > lead else tokens) if shown else None)
        finally:
            if seat:
                self.slots.leave(seat)

    def _at_home(self) -> bool:
        return False

    def _ready(self) -> list:
        """Of those who wait for slots only the first one, when there are enough."""
        ready = super()._ready()
        waiting = [request for request in ready if isinstance(request.step, int)]
        first = [request for request in waiting[:1] if request.step <= self.slots.free]
        return first + [request for request in ready if isinstance(request.step, Seat)]

    def _fair_share(self, ready: list) -> list:
        return ready  # a step takes about as long for many rows as for few

    def _compute(self, steps: list) -> list:
        seats = [step for step in steps if isinstance(step, Seat)]
        if seats:
            self.slots.advance(seats)
        return [None] * len(steps)


def rows_that_fit(prior) -> int:
    """How many slots the free memory of the prior's device holds, beside pictures and CLIP: one of ROWS.

    Raises InputError with the numbers when there is no room for the least of them.
    """
    row = prior.new_slots(1).nbytes + 6 * 8 * prior.config.image_vocab_size  # what sampling makes of the logits
    fitting = [rows for rows in ROWS if rows * row <= memory.free_bytes(prior.device) * memory.RESERVE / 2]
    if not fitting:
        raise memory.too_little(prior.device)
    return fitting[-1]
