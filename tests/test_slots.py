"""Slots: the static step draws what the plain path draws, whoever joins and leaves, and is the same operations for any mix."""

import inspect
import threading
import weakref
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from dalle_core import InputError, memory
from dalle_core.capture import AHEAD, Captured
from dalle_core.engine import Engine, Plan, SamplingSettings, generate
from dalle_core.priors.bart import BartCache
from dalle_core.priors.llama import LlamaPrior
from dalle_core.sampling import sample, sample_rows
from dalle_core.slots import SlotEngine, Slots
from tests.conftest import make_pipeline
from tests.test_engine import (
    FORCED,
    LENGTH,
    NULL,
    TEXT,
    draw,
    in_threads,
    keeps,
    kinds,
    prior_of,
    samplings,
    seeds,
    uniforms_of,
)

GUIDED = SamplingSettings(guidance_scale=2.0)


def prompts_of(prior, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a request: the prompt's ids and the null prompt's [1, T]; of a LlamaPrior of any length."""
    text = torch.tensor([[5, 6, 3, 0], [7, 3, 0, 0], [9, 8, 7, 3]])[number % 3][None]
    length = 2 + number % 3 if isinstance(prior, LlamaPrior) else 4
    return text[:, :length], NULL[:, :length]


def draw_plainly(prior, number, rows, sampling, keep):
    """The plain path's tokens [B, N]."""
    *_, tokens = generate(Engine(prior), *prompts_of(prior, number), uniforms_of(number, range(rows)), sampling, FORCED, keep)
    return tokens


class Stepper:
    """Drives a SlotEngine's drawings by hand, pass by pass, so that a mix of requests is the same in each run."""

    def __init__(self, prior, rows: int, step=None):
        self.engine = SlotEngine(prior, rows)
        self.engine.slots.cache.lengths = [4, 8, 12, 16]  # the sequences are short
        if step:
            self.engine.slots.step = step(self.engine.slots.step)
        self.steps, self.told = {}, {}

    def join(self, number, rows, sampling, keep, every=1):
        self.told[number] = []
        engine = SimpleNamespace(drawing=self.engine.drawing, draw=lambda drawing: drawing(self.told[number].append))
        arguments = *prompts_of(self.engine.prior, number), uniforms_of(number, range(rows)), sampling, FORCED, keep, every
        with torch.inference_mode():
            drawing = generate(engine, *arguments)
            self._go_on(number, drawing)

    def _go_on(self, number, drawing):
        try:
            self.steps[number] = (drawing, drawing.send(None))
        except StopIteration:
            self.steps.pop(number, None)

    def leave(self, number):
        self.steps.pop(number)[0].close()

    def advance(self, numbers):
        """One pass for some of those who draw."""
        with torch.inference_mode():
            self.engine._compute([self.steps[number][1] for number in numbers])
            for number in numbers:
                self._go_on(number, self.steps[number][0])


requests_ = st.lists(
    st.tuples(st.integers(1, 4), samplings, keeps, st.integers(0, 6), st.sampled_from([0, 0, 1, 3])), min_size=1, max_size=4
)


def drawn_in_company(stepper, requests, paused) -> dict[int, torch.Tensor]:
    """Each request: candidates, settings, kept tokens, the pass at which it joins, its passes until it leaves (0: it stays).
    paused: who takes no part in a pass."""
    for tick in range(200):
        for number, (rows, sampling, keep, joins, _) in enumerate(requests):
            if tick == joins:
                stepper.join(number, rows, sampling, keep)
        for number, (*_, joins, leaves) in enumerate(requests):
            if leaves and number in stepper.steps and tick == joins + leaves:
                stepper.leave(number)
        ready = [number for number in stepper.steps if (tick, number) not in paused]
        if ready:
            stepper.advance(ready)
        if tick > 6 and not stepper.steps:
            break
    assert stepper.engine.slots.free == stepper.engine.slots.rows
    return {number: told[-1] for number, told in stepper.told.items() if len(told) == LENGTH}


@kinds
@settings(max_examples=12, deadline=None)
@given(requests=requests_, paused=st.sets(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=8))
def test_the_static_step_draws_what_the_plain_path_does(kind, requests, paused):
    prior = prior_of(kind)
    found = drawn_in_company(Stepper(prior, rows=40), requests, paused)
    assert len(found) >= sum(leaves == 0 for *_, leaves in requests)
    for number, tokens in found.items():
        rows, sampling, keep, *_ = requests[number]
        assert torch.equal(tokens, draw_plainly(prior, number, rows, sampling, keep)), number


@kinds
def test_logits_of_rows_at_different_places_are_those_of_whole_sequences(kind):
    prior = prior_of(kind)
    cache, images = prior.new_slots(5), torch.randint(40, (5, LENGTH), generator=torch.Generator().manual_seed(0))
    places = [0, 3, 7, 5, 3]
    with torch.inference_mode():
        for row, place in enumerate(places):
            prefilled, _ = prior.prefill(prompts_of(prior, row)[0], 1, images[row, :place] if place else None)
            cache.fill(torch.tensor([row]), prefilled, 1, prefilled.start + place)
        ids = images[torch.arange(5), torch.tensor(places)]
        found = prior.decode_slots(ids, torch.tensor(places), cache, cache.lengths[-1])
        exact = [
            prior(prompts_of(prior, row)[0], images[row : row + 1, : place + 1])[0, -1] for row, place in enumerate(places)
        ]
    assert torch.allclose(found, torch.stack(exact), atol=1e-4 * found.std())


def test_an_overflow_of_the_last_owner_ends_with_it():
    """Where a mask hides infinity, a weight of 0 would make NaN of it."""
    prior = prior_of("gpt")
    cache = prior.new_slots(2)
    for part in (cache.k, cache.v):
        part.fill_(torch.inf)
    with torch.inference_mode():
        prefilled, _ = prior.prefill(TEXT, 1)
        cache.fill(torch.tensor([1]), prefilled, 1, prefilled.start)
        logits = prior.decode_slots(torch.tensor([3, 3]), torch.tensor([0, 0]), cache, cache.lengths[-1])
    assert torch.isfinite(logits[1]).all()


mixes = st.lists(samplings, min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(mix=mixes, seed=st.integers(0, 10**6), filtered=st.booleans())
def test_rows_with_settings_of_their_own_draw_what_each_alone_would(mix, seed, filtered):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(mix), 300, generator=generator) * 3
    uniforms = torch.rand(len(mix), generator=generator, dtype=torch.float64)
    if not filtered:
        mix = [SamplingSettings(one.temperature) for one in mix]
    temperature = torch.tensor([one.temperature for one in mix], dtype=torch.float64)
    top_k, top_p = torch.tensor([one.top_k for one in mix]), torch.tensor([one.top_p for one in mix], dtype=torch.float64)
    found = sample_rows(logits, uniforms, temperature, top_k, top_p, filtered)
    expected = [
        sample(logits[i : i + 1], uniforms[i : i + 1], one.temperature, one.top_k, one.top_p) for i, one in enumerate(mix)
    ]
    assert torch.equal(found, torch.cat(expected))


# ---------------------------------------------------------------- the same operations


@pytest.mark.parametrize(("kind", "filters"), [("gpt", (False, True)), ("bart", (True,)), ("llama", (True,))])
def test_no_mix_of_requests_is_compiled_anew(kind, filters):
    """The whole step is one graph, as PyTorch traces it, for each of a few sizes; a hundred mixes after that need no other."""
    graphs, prior = [], prior_of(kind)

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def compiled(step):
        return torch.compile(step, backend=backend, fullgraph=True, dynamic=False)

    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)

    def pick(most: int) -> int:
        return int(torch.randint(most, (), generator=generator))

    try:
        stepper = Stepper(prior, rows=8, step=compiled)
        slots = stepper.engine.slots
        slots.buckets, slots.cache.lengths = [8], slots.cache.lengths[-1:]
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True), torch.inference_mode():
            for filtered in filters:
                slots.step(8, slots.cache.lengths[-1], filtered)
            first = len(graphs)
            for number in range(100):
                rows, scale = 1 + pick(4), [1.0, 3.0][pick(2)]
                top_k = [1, 5, 0][pick(3 if False in filters else 2)]
                sampling = SamplingSettings([0.0, 0.7, 1.0][pick(3)], top_k, [0.4, 1.0][pick(2)], scale)
                keep = torch.rand(LENGTH, generator=generator) < 0.3
                if slots.free >= rows * 2:
                    stepper.join(number, rows, sampling, keep)
                for _ in range(1 + pick(3)):
                    if stepper.steps:
                        stepper.advance([one for one in stepper.steps if pick(5)] or list(stepper.steps))
                if stepper.steps and not pick(6):
                    stepper.leave(next(iter(stepper.steps)))
    finally:
        torch._dynamo.reset()
    assert first == len(graphs) == len(filters)


@kinds
def test_the_step_waits_for_nothing_and_stays_on_its_device(kind):
    """On tensors without numbers, on a device that stands for a GPU: who reads a number there, or mixes devices, is named."""
    sizes = {name: value for name, value in prior_of(kind).config.items() if not name.startswith("_")}
    with FakeTensorMode(), torch.no_grad():
        with torch.device("meta"):
            prior = type(prior_of(kind))(**sizes)
        slots = Slots(prior, 8, threading.RLock())
        for rows, length, filtered in ((4, slots.cache.lengths[0], True), (8, slots.cache.lengths[-1], False)):
            slots.step(rows, length, filtered)
        texts = torch.zeros(2, 4, dtype=torch.long, device="meta")
        if kind == "bart":  # which asks for the longest text first
            prefilled = BartCache(prior, texts[:, None, None] > 0)
        else:
            prefilled, _ = prior.prefill(texts, 1)
        plan = Plan(texts, torch.zeros(3, LENGTH, device="meta"), GUIDED, None, [False] * LENGTH, texts.new_zeros(3, LENGTH), 1)
        seat = slots.take(6)
        slots.fill(seat, plan, prefilled, plan.tokens)
        slots.advance([seat])


@pytest.mark.full  # it takes 10 s
def test_compiled_layers_are_compiled_for_two_mixes_and_for_no_other():
    """As `--compile` does it: a graph for each kind of layer's input, whatever stands in the slots."""
    prior, graphs, counts = prior_of.__wrapped__("gpt"), [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    try:
        prior.compile_repeated_blocks(backend=backend, dynamic=True)
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            for requests in ([2], [1, 3], [5], [1, 1, 2], [7, 2]):
                stepper = Stepper(prior, rows=24)
                for number, rows in enumerate(requests):
                    stepper.join(number, rows, SamplingSettings(guidance_scale=1.0 + number), FORCED < 0)
                while stepper.steps:
                    stepper.advance(list(stepper.steps))
                counts.append(len(graphs))
                for number, rows in enumerate(requests):
                    sampling = SamplingSettings(guidance_scale=1.0 + number)
                    plain = draw_plainly(prior_of("gpt"), number, rows, sampling, FORCED < 0)
                    assert torch.equal(stepper.told[number][-1], plain)
    finally:
        torch._dynamo.reset()
    assert counts[1] == counts[-1], counts


class FakeGraph:
    """What is noted runs when it is replayed, not while it is noted."""

    def replay(self):
        self.noted()


def test_steps_are_captured_once_for_each_size_and_replayed(monkeypatch):
    """Without a GPU: PyTorch's graph, streams and events are stood in for. What is drawn is what the plain path draws."""
    noting, waited, noted, signature = [], [], [], inspect.signature(torch.cuda.graph)

    @contextmanager
    def graph(*args, **kwargs):
        noting.append(signature.bind(*args, **kwargs).arguments["cuda_graph"])
        yield
        noting.pop()

    stands_in = {"Stream": lambda device: MagicMock(), "CUDAGraph": FakeGraph, "graph": graph, "graph_pool_handle": MagicMock()}
    for name in ("current_stream", "stream", "device"):
        stands_in[name] = MagicMock()
    stands_in["Event"] = lambda blocking: SimpleNamespace(record=lambda stream: None, synchronize=lambda: waited.append(1))
    for name, value in stands_in.items():
        monkeypatch.setattr(torch.cuda, name, value)
    prior, found = prior_of("gpt"), {}
    engine = SlotEngine(prior, rows=16)
    slots, real = engine.slots, engine.slots.step
    slots.cache.lengths = [4, 8, 12, 16]

    def step(*key):
        if noting:
            noted.append(key)
            noting[-1].noted = lambda: real(*key)
        else:
            real(*key)

    slots.step, slots.graphs = step, Captured(torch.device("cuda"), engine._alone)

    def work(number):
        found[number] = collected(engine, number, 1 + number)

    in_threads(*(lambda number=number: work(number) for number in range(4)))
    for number, told in found.items():
        plain = draw_plainly(prior, number, 1 + number, GUIDED, torch.zeros(LENGTH, dtype=torch.bool))
        assert torch.equal(told[-1], plain)
        assert [(tokens >= 0).sum().item() for tokens in told] == [len(plain) * i for i in range(1, 10)]
    assert len(noted) == len(set(noted)) == len(slots.graphs.graphs)
    assert len(slots.graphs.launched) == AHEAD and len(waited) >= 8 - AHEAD


# ---------------------------------------------------------------- the engine around it


def collected(engine, number, rows, every=1):
    uniforms = uniforms_of(number, range(rows))
    return list(generate(engine, *prompts_of(engine.prior, number), uniforms, GUIDED, every=every))


def test_several_threads_draw_what_each_draws_alone_and_wait_for_slots():
    """Five requests of 4 to 8 slots, in 8 slots."""
    prior = prior_of("gpt")
    engine, found = SlotEngine(prior, rows=8), {}

    def work(number):
        found[number] = collected(engine, number, 2 + number % 3)

    in_threads(*(lambda number=number: work(number) for number in range(5)))
    for number, told in found.items():
        plain = draw_plainly(prior, number, 2 + number % 3, GUIDED, torch.zeros(LENGTH, dtype=torch.bool))
        assert torch.equal(told[-1], plain)
        assert [(tokens >= 0).sum().item() for tokens in told] == [len(plain) * i for i in range(1, 10)]
    assert engine.slots.free == 8


def test_tokens_are_handed_out_when_they_are_asked_for():
    engine = SlotEngine(prior_of("bart"), rows=4)
    told = collected(engine, 0, 2, every=4)
    assert [None if tokens is None else (tokens >= 0).sum().item() // 2 for tokens in told] == [
        *(None, None, None, 4, None, None, None, 8),
        9,
    ]


def test_whoever_leaves_makes_room_for_who_waits():
    engine = SlotEngine(prior_of("gpt"), rows=4)
    engine.AHEAD = 2  # so that the first one is still there
    first = generate(engine, TEXT, NULL, uniforms_of(0, range(4)), SamplingSettings())
    next(first), next(first)
    second, done = [], threading.Event()

    def wait():
        second.extend(generate(engine, TEXT, NULL, uniforms_of(1, range(4)), SamplingSettings(), every=LENGTH))
        done.set()

    thread = threading.Thread(target=wait)
    engine_slots = engine.slots
    assert engine_slots.free == 0
    thread.start()
    assert not done.wait(0.2)
    first.close()
    engine.AHEAD = LENGTH
    assert done.wait(30)
    thread.join()
    assert torch.equal(second[-1], draw(prior_of("gpt"), uniforms_of(1, range(4)), SamplingSettings()))
    assert engine_slots.free == 4


def test_as_many_slots_as_half_of_the_free_memory_holds(monkeypatch):
    prior, row = prior_of("bart"), prior_of("bart").new_slots(1).nbytes + 6 * 8 * 40
    for rows, found in ((2, 2), (30, 24), (10**6, 128)):
        monkeypatch.setattr(memory, "free_bytes", lambda device, rows=rows: (2 * rows * row + 100) / memory.RESERVE)
        assert SlotEngine(prior).slots.rows == found
    monkeypatch.setattr(memory, "free_bytes", lambda device: row)
    with pytest.raises(InputError, match="not enough memory to draw even one candidate"):
        collected(SlotEngine(prior), 0, 1)


def test_who_does_not_fit_draws_fewer_at_a_time(own_pipeline):
    """An out-of-memory while a size is captured halves the chunk; the pictures are the same."""
    asked = {"num_candidates": 4, "seed": 3, "guidance_scale": 2.0}
    plain = own_pipeline("a red fox", **asked).candidates
    own_pipeline.engine = SlotEngine(own_pipeline.prior, rows=8)
    slots = own_pipeline.engine.slots
    advance = slots.advance

    def fail(seats):
        if sum(len(seat.rows) for seat in seats) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        advance(seats)

    slots.advance = fail
    found = own_pipeline("a red fox", **asked).candidates
    assert [one.index for one in found] == [one.index for one in plain]
    assert all(torch.equal(one.tokens, other.tokens) for one, other in zip(found, plain, strict=True))
    assert slots.free == 8


def test_more_candidates_than_there_are_slots_are_named():
    engine = SlotEngine(prior_of("gpt"), rows=4)
    with pytest.raises(ValueError, match="3 candidates need 6 slots, and there are 4"):
        collected(engine, 0, 3)


def test_what_is_computed_beside_the_tokens_holds_none_up():
    engine, begun, drawn = SlotEngine(prior_of("gpt"), rows=4), threading.Event(), threading.Event()

    def long_work():
        begun.set()
        return drawn.wait(30)

    def draw_meanwhile():
        assert begun.wait(30)
        assert len(collected(engine, 0, 2)) == LENGTH
        drawn.set()

    assert engine.slots.free == 4  # they are there already
    finished = []
    in_threads(lambda: finished.append(engine.run(long_work)), draw_meanwhile)
    assert finished == [True]


def test_its_thread_stays_and_ends_with_it():
    engine = SlotEngine(prior_of("gpt"), rows=4)
    engine.IDLE = 0.05
    collected(engine, 0, 2)
    thread = engine._thread
    thread.join(timeout=0.3)
    assert thread.is_alive()
    reference = weakref.ref(engine)
    del engine
    thread.join(timeout=30)
    assert not thread.is_alive() and reference() is None


@given(seed=seeds)
@settings(max_examples=3, deadline=None)
def test_a_pipeline_with_slots_draws_the_same_pictures(tiny_pipeline, seed):
    """Previews, chunks that fit the slots, ranking."""
    pipe = make_pipeline()
    pipe.engine = SlotEngine(pipe.prior, rows=6)
    asked = {"num_candidates": 5, "seed": seed, "guidance_scale": 2.0, "top_k": 20, "preview_every": 4}
    *steps, last = pipe.stream("a red fox", **asked)
    *plain_steps, plain = tiny_pipeline.stream("a red fox", **asked)
    assert sum(step.previews is not None for step in steps) >= 6
    by_index = {candidate.index: candidate for candidate in last.generation.candidates}
    assert len(by_index) == 5
    for candidate in plain.generation.candidates:
        assert torch.equal(by_index[candidate.index].tokens, candidate.tokens)
        assert abs(by_index[candidate.index].score - candidate.score) < 1e-4
