"""What one visitor may use up, in any window and at one time."""

import threading
import time

import pytest

from dalle_core import InputError
from dalle_core.studio import budgets as module
from dalle_core.studio.budgets import OWN, PUBLIC, Budget, Budgets, Busy


@pytest.fixture
def clock(monkeypatch):
    """Time that passes when it is told to."""

    class Time:
        now = 1_000_000.0

        def sleep(self, seconds):
            self.now += seconds

    clock = Time()
    monkeypatch.setattr(time, "time", lambda: clock.now)
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    return clock


def test_a_visitor_who_used_it_up_is_told_when_to_come_back_and_others_are_not_affected(clock):
    budgets = Budgets(Budget(window=600, candidates=32))
    budgets.spend("ann", candidates=16)
    clock.sleep(100)
    budgets.spend("ann", candidates=16)
    with pytest.raises(
        Busy, match="32 candidates within 10 minutes, and yours are used up. Try again in [0-9]+ seconds."
    ) as busy:
        budgets.spend("ann", candidates=16)
    budgets.spend("ben", candidates=32)
    clock.sleep(busy.value.seconds - 30)
    with pytest.raises(Busy):
        budgets.spend("ann", candidates=16)
    clock.sleep(30)
    budgets.spend("ann", candidates=16)
    assert isinstance(busy.value, InputError)


@pytest.mark.parametrize("used", [(3,), (1, 2), (0, 4), (4, 0, 0), (2, 1, 1)])
def test_the_time_to_come_back_at_is_right_wherever_the_window_stands(clock, used):
    for amount in (1, 2, 4):
        for start in (0, 30, 59):
            budgets = Budgets(Budget(window=60, labels=4))
            clock.now = 6_000_000.0 + start
            for count in used:
                budgets.spend("ann", labels=count)
                clock.sleep(25)
            try:
                budgets.spend("ann", labels=amount)
            except Busy as busy:
                assert 1 <= busy.seconds <= 120
                clock.sleep(busy.seconds)
                budgets.spend("ann", labels=amount)


def test_more_than_is_ever_allowed_is_said_so(clock):
    with pytest.raises(Busy, match="A visitor may ask for 10 labels within 90 seconds: ask for less.") as busy:
        Budgets(Budget(window=90, labels=10)).spend("ann", labels=11)
    assert busy.value.seconds is None


def test_of_several_things_all_are_spent_or_none(clock):
    budgets = Budgets(Budget(candidates=10, previews=10))
    with pytest.raises(Busy, match="previews"):
        budgets.spend("ann", candidates=10, previews=11)
    budgets.spend("ann", candidates=10, previews=10)


def test_uploads_are_counted_in_megabytes(clock):
    with pytest.raises(Busy, match="100 MB of uploads within 10 minutes"):
        Budgets(PUBLIC).spend("ann", upload_bytes=101 * 2**20)


def test_for_oneself_there_is_no_bound(clock):
    budgets = Budgets(OWN)
    budgets.spend("ann", candidates=10**9, previews=10**9, labels=10**9, upload_bytes=10**15)
    with budgets.running("ann"), budgets.running("ann"), budgets.running("ann") as third:
        clock.sleep(10**6)
        third.check()


def test_one_visitor_runs_two_works_and_a_third_is_refused_until_one_ends(clock):
    budgets = Budgets(PUBLIC)
    assert (PUBLIC.running, PUBLIC.places) == (2, 5)
    with budgets.running("ann"):
        refused = pytest.raises(Busy, match="2 of your requests are running already")
        with budgets.running("ann"), budgets.running("ben"), refused, budgets.running("ann"):
            pass
        with pytest.raises(ZeroDivisionError), budgets.running("ann"):
            raise ZeroDivisionError
        with budgets.running("ann"):
            pass


def work(clock, timer, seconds, step=0.1):
    """Computes that long in steps; returns after how many seconds it was stopped."""
    for _ in range(round(seconds / step)):
        clock.sleep(step)
        timer.check()


def test_seconds_of_the_engine_end_a_work_and_come_back(clock):
    budgets = Budgets(Budget(window=600, seconds=60))
    start = clock.now = 600_000.0  # where a window begins
    with pytest.raises(Busy, match="60 seconds of drawing within 10 minutes") as busy, budgets.running("ann") as timer:
        work(clock, timer, 100)
    assert 59 <= clock.now - start <= 61
    with pytest.raises(Busy), budgets.running("ann"):
        pass
    with budgets.running("ben") as timer:
        work(clock, timer, 50)
    clock.sleep(busy.value.seconds)
    with budgets.running("ann") as timer:
        work(clock, timer, 4)  # it is let in when some seconds are there, not to be stopped at once


def test_a_reader_who_is_slow_to_ask_does_not_pay_for_waiting(clock):
    budgets = Budgets(Budget(window=600, seconds=60))
    with budgets.running("ann") as timer:
        for _ in range(10):
            clock.sleep(0.1)
            timer.check()
        clock.sleep(500)
        timer.check()
        work(clock, timer, 50)


def test_time_is_shared_out_among_those_who_run(clock):
    budgets = Budgets(Budget(window=600, seconds=60))
    clock.now = 600_000.0  # where a window begins
    with budgets.running("ann") as timer, budgets.running("ben"), budgets.running("eve"), budgets.running("kim"):
        work(clock, timer, 230)
        with pytest.raises(Busy):
            work(clock, timer, 20)


def test_a_work_without_steps_is_charged_when_it_ends(clock):
    budgets = Budgets(Budget(window=600, seconds=10))
    for _ in range(2):
        with budgets.running("ann"):
            clock.sleep(4.9)
    with pytest.raises(Busy, match="seconds of drawing"), budgets.running("ann"):
        pass


def test_visitors_who_left_are_forgotten(clock):
    budgets = Budgets(PUBLIC)
    for number in range(500):
        budgets.spend(f"visitor {number}", candidates=1, labels=1)
        with budgets.running(f"visitor {number}") as timer:
            clock.sleep(0.3)
            timer.check()
    storage = budgets._limiter.storage
    assert len(storage.storage) > 500
    clock.sleep(3 * PUBLIC.window)
    budgets.spend("the next one", candidates=1)
    for _ in range(500):
        if len(storage.storage) > 1:
            threading.Event().wait(0.02)  # it is done by a thread
    assert len(storage.storage) == len(storage.expirations) == 1 and len(storage.locks) <= 1 and not budgets._running


def test_threads_share_budgets():
    budgets, taken = Budgets(Budget(window=600, candidates=100)), []

    def ask():
        for _ in range(30):
            try:
                budgets.spend("ann", candidates=1)
                taken.append(1)
            except Busy:
                pass

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 100 and module.START > 1
