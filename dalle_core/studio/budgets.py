"""One budget a visitor, so that a public page stays responsive whatever one address asks for."""

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from dalle_core.errors import InputError

LONGEST = 5.0  # seconds of one step that are charged at most: a reader who is slow to ask for the next one does not pay for it
CHARGED = 0.25  # seconds between two charges
START = 10  # a work begins when a tenth of the seconds is there: less would end it at once


@dataclass(frozen=True)
class Budget:
    """What one visitor may use up within any `window` seconds, and at one time; None: no bound."""

    window: int = 600
    candidates: int | None = None
    previews: int | None = None  # pictures that are decoded before they are finished
    labels: int | None = None  # that pictures are compared with
    upload_bytes: int | None = None
    seconds: int | None = None  # of the engine
    running: int | None = None  # works at one time
    places: int | None = None  # works that run or wait, at one time


OWN = Budget()  # for oneself and for friends
PUBLIC = Budget(
    candidates=960, previews=8_000, labels=20_000, upload_bytes=100 * 2**20, seconds=300, running=2, places=5
)  # for strangers; 960 candidates are 60 grids of 16
# How a sentence names them, and units of the budget in one such.
WORDS = {
    "candidates": ("candidates", 1),
    "previews": ("previews of pictures", 1),
    "labels": ("labels", 1),
    "upload_bytes": ("MB of uploads", 2**20),
    "seconds": ("seconds of drawing", 1),
}
MILLI = 1000  # seconds are charged in thousandths


class Busy(InputError):
    """The visitor has used up a part of the budget. seconds: until the same can be asked for again; None: it never can."""

    def __init__(self, sentence: str, seconds: int | None = None):
        super().__init__(sentence)
        self.seconds = seconds


class Budgets:
    """What each visitor has used. Threads may share it; a visitor who has been away for two windows is forgotten."""

    def __init__(self, budget: Budget = OWN):
        self.budget = budget
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._running: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._items = {
            kind: RateLimitItemPerSecond(most * MILLI if kind == "seconds" else most, budget.window, namespace=kind)
            for kind in WORDS
            if (most := getattr(budget, kind)) is not None
        }

    def spend(self, visitor: str, **amounts: int) -> None:
        """Takes candidates, previews, labels, upload_bytes: all of them, or none. Raises Busy."""
        with self._lock:
            for kind, amount in amounts.items():
                self._check(visitor, kind, amount)
            for kind, amount in amounts.items():
                self._take(visitor, kind, amount)

    @contextmanager
    def running(self, visitor: str) -> Iterator["Clock"]:
        """Counts a work while it runs. Raises Busy: too many of the visitor's are running, or the seconds are used up."""
        with self._lock:
            most = self.budget.running
            if most is not None and self._running[visitor] >= most:
                raise Busy(f"{most} of your requests are running already: let one of them finish, or stop it, then try again.")
            if item := self._items.get("seconds"):
                self._check(visitor, "seconds", item.amount // START)
            self._running[visitor] += 1
        clock = Clock(self, visitor)
        try:
            yield clock
        finally:
            with self._lock:
                self._take(visitor, "seconds", clock._owed())
                self._running[visitor] -= 1
                self._running += Counter()  # drops the zeros

    def _check(self, visitor: str, kind: str, amount: int) -> None:
        if (item := self._items.get(kind)) is None or amount < 1:
            return
        if amount > item.amount:
            raise Busy(f"A visitor may ask for {self._most(kind)}: ask for less.")
        if seconds := self._wait(item, visitor, amount):
            unit = "second" if seconds == 1 else "seconds"
            said = f"A visitor may ask for {self._most(kind)}, and yours are used up. Try again in {seconds} {unit}."
            raise Busy(said, seconds)

    def _take(self, visitor: str, kind: str, amount: int) -> bool:
        return amount < 1 or kind not in self._items or self._limiter.hit(self._items[kind], visitor, cost=amount)

    def _most(self, kind: str) -> str:
        window, (word, unit) = self.budget.window, WORDS[kind]
        span = f"{window // 60} minutes" if window % 60 == 0 and window > 60 else f"{window} seconds"
        return f"{getattr(self.budget, kind) // unit:,} {word} within {span}"

    def _wait(self, item, visitor: str, amount: int) -> int:
        """Seconds until there is room for `amount`, rounded up; 0: there is.

        What was used counts by the window before, weighted by the share of it that the moving window still covers, and by
        the present one: before · left / window + present ("sliding window counter").
        """
        window = item.get_expiry()
        before, left, present, left_of_both = self._limiter.storage.get_sliding_window(item.key_for(visitor), window)
        if math.floor(before * left / window + present) + amount <= item.amount:
            return 0
        room = item.amount - amount
        if present <= room and before:  # what the window before still weighs is too much
            return max(1, math.ceil(left - (room - present) * window / before))
        return max(1, math.ceil(left_of_both - window + window * (1 - room / present)))


class Clock:
    """Charges a visitor for the time in which a work computes; that time is shared out among all works that run."""

    def __init__(self, budgets: Budgets, visitor: str):
        self._budgets, self._visitor = budgets, visitor
        self._last, self._unpaid = time.monotonic(), 0.0

    def check(self) -> None:
        """To be called after each step. Raises Busy when the visitor's seconds are used up."""
        budgets = self._budgets
        with budgets._lock:
            owed = self._owed()
            if owed < CHARGED * MILLI:
                return
            self._unpaid = 0.0
            if not budgets._take(self._visitor, "seconds", owed):
                all_ = budgets._items["seconds"].amount
                budgets._check(self._visitor, "seconds", min(max(all_ // START, owed), all_))

    def _owed(self) -> int:
        """Thousandths of seconds that are not charged yet."""
        now = time.monotonic()
        self._unpaid += min(now - self._last, LONGEST) / max(self._budgets._running.total(), 1)
        self._last = now
        return round(self._unpaid * MILLI)
