"""The engine equals a slow and obvious sampler; company changes nothing; it stops when it is closed."""

import functools
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_core.engine import Engine, SamplingSettings, generate
from dalle_core.int8 import quantize
from dalle_core.packed import pack
from dalle_core.priors.bart import BartPrior
from dalle_core.priors.gpt import GPTPrior
from dalle_core.priors.llama import LlamaPrior
from dalle_core.priors.rows import ROW_MULTIPLE
from dalle_core.sampling import candidate_uniforms, guide, sample

VOCAB, LENGTH = 40, 9
TEXT, NULL = torch.tensor([[5, 6, 3, 0]]), torch.tensor([[3, 0, 0, 0]])

# The error of logits, as a share of their spread, that each way of holding the weights may have.
TOLERANCE = {"float32": 1e-5, "packed": 1e-5, "bfloat16": 0.05, "int8": 0.1}


@functools.cache
def prior_of(kind: str, dtype: str = "float32", width=32, heads=2, length=LENGTH) -> GPTPrior | BartPrior | LlamaPrior:
    """A small prior, always of the same weights, held as `dalle_core.load` holds them ("packed": float32 packed)."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if kind == "gpt":
            prior = GPTPrior(20, 4, VOCAB, length, num_layers=2, num_heads=heads, hidden_size=width).eval()
            prior.head.weight.data.mul_(40)  # far from uniform
        elif kind == "llama":  # heads share keys and values where there are several
            prior = LlamaPrior(
                20,
                4,
                VOCAB,
                length,
                num_layers=2,
                num_heads=heads,
                num_kv_heads=1,
                hidden_size=width,
                ffn_size=width * 3 // 2,
                code_size=8,
            ).eval()
            prior.head[2].weight.data.mul_(20)
        else:
            prior = BartPrior(
                20,
                4,
                VOCAB,
                length,
                encoder_layers=1,
                decoder_layers=2,
                num_heads=heads,
                hidden_size=width,
                ffn_size=width * 3 // 2,
                embedded_image_tokens=VOCAB + 1,
                start_token_id=VOCAB,
                pad_token_id=0,
            ).eval()
            prior.head.weight.data.mul_(6)
    if dtype == "int8":
        quantize(prior)
    elif dtype != "float32":
        prior.to(torch.bfloat16 if dtype == "bfloat16" else torch.float32)
        pack(prior)
    return prior


NO_INT8 = not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() == "DEFAULT"
kinds = pytest.mark.parametrize("kind", ["gpt", "bart", "llama"])
dtypes = pytest.mark.parametrize(
    "dtype", ["float32", "packed", "bfloat16", pytest.param("int8", marks=pytest.mark.skipif(NO_INT8, reason="no kernels"))]
)


@torch.no_grad()
def slow_generate(prior, text_ids, null_ids, uniforms, settings, forced=None, keep=None):
    """The oracle: one candidate at a time, the whole sequence again for every token, no cache."""
    results = []
    for row in uniforms:
        tokens = torch.empty(1, 0, dtype=torch.long)
        for position in range(len(row)):
            if keep is not None and keep[position]:
                token = forced[position : position + 1]
            else:
                logits = prior(text_ids, tokens)[:, -1]
                if settings.guidance_scale != 1:
                    logits = guide(logits, prior(null_ids, tokens)[:, -1], settings.guidance_scale)
                uniform = row[position : position + 1]
                token = sample(logits, uniform, settings.temperature, settings.top_k, settings.top_p)
            tokens = torch.cat([tokens, token[:, None]], dim=1)
        results.append(tokens[0])
    return torch.stack(results)


def uniforms_of(seed: int, indices) -> torch.Tensor:
    return torch.stack([candidate_uniforms(seed, i, LENGTH) for i in indices])


def draw(prior, uniforms, *arguments) -> torch.Tensor:
    """The engine's tokens [B, N]."""
    for tokens in generate(Engine(prior), TEXT, NULL, uniforms, *arguments):
        pass
    return tokens


FORCED = torch.arange(LENGTH) * 4
samplings = st.builds(
    SamplingSettings,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 5]),
    top_p=st.sampled_from([0.3, 1.0]),
    guidance_scale=st.sampled_from([0.0, 1.0, 3.0]),
)
# Anything, or an upper part as on the page: a run of kept tokens, then none.
keeps = st.one_of(
    st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH),
    st.integers(0, LENGTH).map(lambda lead: [True] * lead + [False] * (LENGTH - lead)),
).map(torch.tensor)
seeds = st.integers(0, 2**63 - 1)


# ---------------------------------------------------------------- against the plain path


@kinds
@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 5), chunk=st.integers(1, 5), seed=seeds, sampling=samplings, keep=keeps)
def test_engine_equals_the_slow_sampler(kind, rows, chunk, seed, sampling, keep):
    """In chunks of any size, with tokens forced anywhere."""
    prior, uniforms = prior_of(kind), uniforms_of(seed, range(rows))
    tokens = torch.cat([draw(prior, part, sampling, FORCED, keep) for part in uniforms.split(chunk)])
    assert torch.equal(tokens, slow_generate(prior, TEXT, NULL, uniforms, sampling, FORCED, keep))
    assert torch.equal(tokens[:, keep], FORCED[keep].expand(rows, -1))


@kinds
@dtypes
@settings(max_examples=5, deadline=None)
@given(copies=st.integers(1, 5), guided=st.booleans(), lead=st.integers(0, LENGTH - 1), seed=st.integers(0, 1000))
@torch.no_grad()
def test_logits_are_those_of_the_plain_path(kind, dtype, copies, guided, lead, seed):
    """Prefill and decode in each dtype, against whole sequences in float32, at every position."""
    prompts = torch.cat([TEXT, NULL]) if guided else TEXT
    images = torch.randint(VOCAB, (len(prompts) * copies, LENGTH - 1), generator=torch.Generator().manual_seed(seed))
    images[:, :lead] = images[0, :lead].clone()
    exact = prior_of(kind)(prompts.repeat_interleave(copies, dim=0), images)  # [P * copies, N, V]
    prior = prior_of(kind, dtype)
    cache, logits = prior.prefill(prompts, copies, images[0, :lead] if lead else None)
    found = [logits]
    for position in range(lead, LENGTH - 1):
        found += prior.decode([(images[:, position], cache, position)])
    error = torch.stack(found, dim=1).float() - exact[:, lead:]
    assert error.std() < TOLERANCE[dtype] * exact.std()


def test_tokens_appear_one_position_at_a_time():
    steps = generate(Engine(prior_of("gpt")), TEXT, NULL, uniforms_of(0, range(2)), SamplingSettings())
    assert [(tokens >= 0).sum(1).tolist() for tokens in steps] == [[i, i] for i in range(1, 10)]


@contextmanager
def counted_rows(prior):
    """The rows of every pass through the prior."""
    rows = []
    handle = prior.head.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    try:
        yield rows
    finally:
        handle.remove()


def test_closing_stops_the_work_and_leaves_the_mode_alone():
    with counted_rows(prior_of("gpt")) as rows:
        steps = generate(Engine(prior_of("gpt")), TEXT, NULL, torch.rand(2, 9), SamplingSettings(guidance_scale=2.0))
        next(steps), next(steps), next(steps)
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
        steps.close()
        assert rows == [2, ROW_MULTIPLE, ROW_MULTIPLE]  # the prompt and the null prompt, and two tokens
        assert list(steps) == []


@kinds
def test_unguided_does_not_run_the_null_prompt(kind):
    with counted_rows(prior_of(kind)) as rows:
        draw(prior_of(kind), torch.rand(1, 9), SamplingSettings(guidance_scale=1.0))
    assert rows == [1] + 8 * [ROW_MULTIPLE]


@kinds
def test_kept_tokens_at_either_end_cost_no_pass(kind):
    keep = torch.tensor([True] * 4 + [False, True, False] + [True] * 2)
    with counted_rows(prior_of(kind)) as rows:
        draw(prior_of(kind), torch.rand(3, 9), SamplingSettings(guidance_scale=2.0), FORCED, keep)
    assert rows == [2] + 2 * [ROW_MULTIPLE]  # prompts with four tokens; tokens 4 and 5; 6 is the last one drawn


MIXES = [  # (candidates, guided, position) of each request of a pass
    [(copies + number, (number + copies) % 2 == 0, (3 * number + copies) % (LENGTH - 1)) for number in range(requests)]
    for requests in (1, 2, 3, 4)
    for copies in (1, 2, 5, 16)
]


def mixed_pass(prior, mix) -> list[torch.Tensor]:
    """The logits of one pass for several requests."""
    steps = []
    for copies, guided, position in mix:
        prompts = torch.cat([TEXT, NULL]) if guided else TEXT
        images = torch.arange(position) * 3
        cache, _ = prior.prefill(prompts, copies, images if position else None)
        steps.append((torch.arange(len(prompts) * copies) % VOCAB, cache, position))
    return prior.decode(steps)


@pytest.mark.parametrize("kind", ["gpt", "bart", pytest.param("llama", marks=pytest.mark.full)])  # it takes 25 s
@torch.inference_mode()
def test_layers_are_compiled_a_few_times_in_all(kind):
    """As `--compile` does it, without a GPU's kernels: the layers' graphs as PyTorch traces them, once for prompts and a few
    times for tokens, not once a layer, a position or a number of requests."""
    prior, graphs = prior_of.__wrapped__(kind), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    try:
        prior.compile_repeated_blocks(backend=backend, dynamic=True)
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            for rows, scale in ((3, 2.0), (5, 2.0), (2, 1.0), (1, 1.0)):
                arguments = uniforms_of(rows, range(rows)), SamplingSettings(guidance_scale=scale), FORCED
                assert torch.equal(draw(prior, *arguments), draw(prior_of(kind), *arguments))
            first = len(graphs)
            counts = []
            for mix in MIXES:
                assert all(torch.equal(a, b) for a, b in zip(mixed_pass(prior, mix), mixed_pass(prior_of(kind), mix)))
                counts.append(len(graphs))
    finally:
        torch._dynamo.reset()
    assert 2 <= first <= 24 and counts[-1] <= 40, counts
    assert counts[3] == counts[-1], counts  # nothing new for two requests or more


# ---------------------------------------------------------------- in company


@kinds
@dtypes
@settings(max_examples=4, deadline=None)
@given(sizes=st.lists(st.integers(1, 7), min_size=2, max_size=4), seed=seeds, sampling=samplings, keep=keeps)
def test_chunks_change_nothing(kind, dtype, sizes, seed, sampling, keep):
    prior, uniforms = prior_of(kind, dtype), uniforms_of(seed, range(sum(sizes)))
    parts = [draw(prior, part, sampling, FORCED, keep) for part in uniforms.split(sizes)]
    assert torch.equal(torch.cat(parts), draw(prior, uniforms, sampling, FORCED, keep))


@kinds
@dtypes
@settings(max_examples=5, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(1, 20), st.booleans(), st.integers(0, 7), st.integers(0, 6), st.integers(1, 8)),
        min_size=2,
        max_size=4,
    )
)
@torch.no_grad()
def test_a_row_s_logits_are_the_same_in_any_company(kind, dtype, requests):
    """Each request: candidates, guided or not, kept tokens at its start, the pass at which it joins, its passes until
    it is cancelled. To the last bit."""
    prior = prior_of(kind, dtype)

    def begun(number, copies, guided, lead):
        prompts = torch.cat([TEXT, NULL]) if guided else TEXT
        generator = torch.Generator().manual_seed(number)
        images = torch.randint(VOCAB, (len(prompts) * copies, LENGTH), generator=generator)
        images[:, :lead] = images[0, :lead].clone()
        return images, *prior.prefill(prompts, copies, images[0, :lead] if lead else None)

    alone = []
    for number, (copies, guided, lead, _, passes) in enumerate(requests):
        images, cache, logits = begun(number, copies, guided, lead)
        alone.append([logits])
        for position in range(lead, min(lead + passes, LENGTH - 1)):
            alone[-1] += prior.decode([(images[:, position], cache, position)])

    drawn = {}
    for tick in range(15):  # the last one that joins has left by then
        steps, numbers = [], []
        for number, (copies, guided, lead, joins, _) in enumerate(requests):
            if tick == joins:
                images, cache, logits = begun(number, copies, guided, lead)
                drawn[number] = (images, cache, [logits])
            if tick >= joins and len(drawn[number][2]) < len(alone[number]):
                images, cache, logits = drawn[number]
                position = lead + len(logits) - 1
                steps.append((images[:, position], cache, position))
                numbers.append(number)
        if steps:
            for number, logits in zip(numbers, prior.decode(steps)):
                drawn[number][2].append(logits)
    for number, expected in enumerate(alone):
        found = drawn[number][2]
        assert len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected))


@kinds
@dtypes
@torch.no_grad()
def test_every_row_of_a_pass_computes_the_same(kind, dtype):
    """The same candidate in every slot, alone and among many, at the embedded model's width: bit for bit."""
    prior, prompts = prior_of(kind, dtype, width=320, heads=5, length=64), torch.cat([TEXT, NULL])
    images = torch.randint(VOCAB, (41,), generator=torch.Generator().manual_seed(0))

    def logits(copies):  # [P, copies, V] of image token 41
        cache, _ = prior.prefill(prompts, copies, images[:40])
        return prior.decode([(images[40].repeat(2 * copies), cache, 40)])[0].unflatten(0, (2, copies))

    alone = logits(1)
    for copies in (2, 3, 8, 17, 40):
        assert torch.equal(logits(copies), alone.expand(-1, copies, -1)), copies


@kinds
@settings(max_examples=8, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from([1.0, 3.0]), st.integers(0, 9), st.integers(0, 10), keeps),
        min_size=2,
        max_size=4,
    )
)
def test_requests_that_join_and_leave_change_nothing_for_the_others(kind, requests):
    """Each request: candidates, guidance scale, the token after which it is cancelled (0: never), the milliseconds
    after which it begins, what it keeps."""
    prior = prior_of(kind)
    engine, results, failures = Engine(prior), {}, []

    def arguments(number, rows, scale, keep):
        return uniforms_of(number, range(rows)), SamplingSettings(guidance_scale=scale), FORCED, keep

    def work(number, rows, scale, cancel_after, delay, keep):
        try:
            time.sleep(delay / 1000)
            steps = generate(engine, TEXT, NULL, *arguments(number, rows, scale, keep))
            for count, tokens in enumerate(steps, 1):
                if count == cancel_after:
                    steps.close()
                    return
            results[number] = tokens
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number, *request)) for number, request in enumerate(requests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failures == [] and len(results) == sum(cancel == 0 for _, _, cancel, _, _ in requests)
    for number, tokens in results.items():
        rows, scale, _, _, keep = requests[number]
        assert torch.equal(tokens, draw(prior, *arguments(number, rows, scale, keep)))


def counting(prior, passes: list, before=None) -> Engine:
    """An engine that notes the rows of each request of each pass; before: called with them."""

    def decode(steps):
        passes.append([len(ids) for ids, _, _ in steps])
        if before:
            before(passes[-1])
        return prior.decode(steps)

    return Engine(SimpleNamespace(prefill=prior.prefill, decode=decode))


def in_threads(*works) -> None:
    """Runs them at the same time, to the end; raises what one of them raised."""
    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(work) for work in works]:
            done.result(timeout=60)


def all_begun(engine: Engine, count: int) -> threading.Barrier:
    """No pass before `count` threads, each with the first token of its request, have met here."""

    def release():
        engine.AHEAD = LENGTH
        with engine._changed:
            engine._wake()

    engine.AHEAD = 0
    return threading.Barrier(count, release, timeout=30)


def test_requests_of_several_threads_share_passes():
    passes = []
    engine = counting(prior_of("gpt"), passes)
    begun = all_begun(engine, 3)

    def work():
        steps = generate(engine, TEXT, NULL, torch.rand(2, 9), SamplingSettings())
        next(steps)
        begun.wait()
        assert len(list(steps)) == 8

    in_threads(work, work, work)
    assert passes == 8 * [[2, 2, 2]]


@pytest.mark.parametrize("cancelled", [True, False])
def test_whoever_ends_leaves_the_passes(cancelled):
    """One of two requests ends after its third token; the other goes on."""
    passes, ended = [], threading.Event()

    def hold(requests):
        if cancelled and len(passes) == 3:  # while it is in this pass, its reader leaves
            assert ended.wait(timeout=30)

    engine = counting(prior_of("gpt"), passes, hold)
    begun = all_begun(engine, 2)

    def stay():
        steps = generate(engine, TEXT, NULL, torch.rand(2, 9), SamplingSettings())
        next(steps)
        begun.wait()
        assert len(list(steps)) == 8

    def end():
        keep = torch.arange(LENGTH) >= 3  # the last drawn token is 2: two passes
        steps = generate(engine, TEXT, NULL, torch.rand(3, 9), SamplingSettings(), *(() if cancelled else (FORCED, keep)))
        next(steps)
        begun.wait()
        if cancelled:
            next(steps), next(steps)
            steps.close()
            ended.set()
        else:
            assert len(list(steps)) == 8

    in_threads(stay, end)
    together = sum(3 in requests for requests in passes)
    assert together == 2 or (cancelled and together == 3)  # it may have been in the third pass already
    assert [sorted(requests) for requests in passes] == together * [[2, 3]] + (8 - together) * [[2]]


def test_a_request_that_is_not_read_holds_nobody_up_and_is_not_drawn_far_ahead():
    passes, left, done = [], [], threading.Event()
    engine = counting(prior_of("gpt"), passes)
    engine.AHEAD = 4

    def idle():
        steps = generate(engine, TEXT, NULL, torch.rand(3, 9), SamplingSettings())
        next(steps), next(steps)
        assert done.wait(timeout=30)
        left.append(sum(3 in requests for requests in passes))
        left.extend(steps)

    def busy():
        list(generate(engine, TEXT, NULL, torch.rand(2, 9), SamplingSettings()))
        done.set()

    in_threads(idle, busy)
    assert left[0] <= 5 and len(left[1:]) == 7  # six tokens are told of, the first without a pass


def test_a_large_request_does_not_starve_a_small_one():
    """160 rows beside 2: the large one takes part in every fifth pass until the small one has ended."""
    passes = []
    engine = counting(prior_of("gpt"), passes)
    begun = all_begun(engine, 2)

    def work(rows):
        steps = generate(engine, TEXT, NULL, torch.rand(rows, 9), SamplingSettings())
        next(steps)
        begun.wait()
        assert len(list(steps)) == 8

    in_threads(lambda: work(2), lambda: work(160))
    assert [sorted(requests) for requests in passes] == 4 * [[2]] + [[2, 160]] + 3 * [[2]] + 7 * [[160]]


def test_an_error_in_a_shared_pass_reaches_every_request():
    passes = []

    def fail(steps):
        passes.append(len(steps))
        raise ZeroDivisionError(len(steps))

    engine = Engine(SimpleNamespace(prefill=prior_of("gpt").prefill, decode=fail))
    begun = all_begun(engine, 2)

    def work():
        steps = generate(engine, TEXT, NULL, torch.rand(2, 9), SamplingSettings())
        next(steps)
        begun.wait()
        with pytest.raises(ZeroDivisionError):
            next(steps)
        assert list(steps) == []

    in_threads(work, work)
    assert passes == [2]


def test_what_a_reader_holds_is_not_drawn_on():
    engine, found = Engine(prior_of("gpt")), []
    in_threads(lambda: found.extend(generate(engine, TEXT, NULL, torch.rand(2, 9), SamplingSettings())))
    assert [(tokens >= 0).sum(1).tolist() for tokens in found] == [[i, i] for i in range(1, 10)]


def test_one_thread_computes_for_all_and_ends_when_nobody_asks():
    passes, where = [], set()
    engine = counting(prior_of("gpt"), passes, lambda requests: where.add(threading.current_thread()))
    engine.IDLE = 1.0  # longer than a busy machine may keep a thread waiting

    def work():
        list(generate(engine, TEXT, NULL, torch.rand(2, 9), SamplingSettings()))
        where.add(engine.run(threading.current_thread))
        assert engine.run(lambda: engine.run(threading.current_thread)) in where  # from the thread itself

    in_threads(work, work, work)
    [thread] = where
    assert thread not in (threading.main_thread(), threading.current_thread())
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert engine.run(threading.current_thread) is threading.main_thread()


@pytest.mark.parametrize("read", [1, 3, LENGTH])
def test_what_a_request_held_is_freed_when_its_reader_has_left(read):
    """Without the garbage collector: a large model's keys and values are gigabytes."""
    prior, caches = prior_of("gpt"), []

    def prefill(*arguments):
        cache, logits = prior.prefill(*arguments)
        caches.append(weakref.ref(cache))
        return cache, logits

    engine = Engine(SimpleNamespace(prefill=prefill, decode=prior.decode))
    engine.IDLE = 1.0  # its thread is still there when the reader leaves

    def work():
        steps = generate(engine, TEXT, NULL, torch.rand(2, 9), SamplingSettings())
        for _ in range(read):
            next(steps)
        thread = engine._thread
        steps.close()
        thread.join(timeout=30)  # it may be in a pass
        assert caches[0]() is None

    gc.collect()
    gc.disable()
    try:
        in_threads(work)
    finally:
        gc.enable()


def test_an_error_of_a_work_reaches_who_asked_for_it():
    engine = Engine(prior_of("gpt"))

    def work():
        with pytest.raises(ZeroDivisionError):
            engine.run(lambda: 1 / 0)
        assert engine.run(lambda: 2) == 2

    in_threads(work)


class Stop(BaseException):
    """As SystemExit is: no Exception."""


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, Stop])
@pytest.mark.parametrize("where", ["prefill", "decode", "work"])
def test_whatever_ends_a_work_ends_nothing_else(error, where):
    """Those who wait get an error, and the engine works for the next ones."""
    prior, failing = prior_of("gpt"), []

    def breaking(name):
        def call(*args):
            if failing == [name]:
                raise error
            return getattr(prior, name)(*args)

        return call

    engine = Engine(SimpleNamespace(prefill=breaking("prefill"), decode=breaking("decode")))

    def fail():
        raise error

    def work():
        failing[:] = [where]
        with pytest.raises(RuntimeError, match=error.__name__):
            engine.run(fail) if where == "work" else list(generate(engine, TEXT, NULL, torch.rand(2, 9), SamplingSettings()))
        failing.clear()
        assert engine.run(lambda: 2) == 2
        assert len(list(generate(engine, TEXT, NULL, torch.rand(2, 9), SamplingSettings()))) == LENGTH

    in_threads(work)


def test_out_of_memory_together_restarts_nobody_who_fits_alone():
    prior, passes, prefills = prior_of("gpt"), [], []

    def decode(steps):
        passes.append([len(ids) for ids, _, _ in steps])
        if sum(passes[-1]) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return prior.decode(steps)

    def prefill(*args):
        prefills.append(args[1])
        return prior.prefill(*args)

    engine = Engine(SimpleNamespace(prefill=prefill, decode=decode))
    begun, drawn = all_begun(engine, 3), {}

    def work(rows):
        uniforms = uniforms_of(rows, range(rows))
        steps = generate(engine, TEXT, NULL, uniforms, SamplingSettings())
        next(steps)
        begun.wait()
        if rows == 7:  # too many alone, too
            with pytest.raises(torch.OutOfMemoryError):
                next(steps)
        else:
            *_, drawn[rows] = steps

    in_threads(*(functools.partial(work, rows) for rows in (3, 4, 7)))
    assert sorted(prefills) == [3, 4, 7]
    assert all(
        torch.equal(tokens, draw(prior, uniforms_of(rows, range(rows)), SamplingSettings())) for rows, tokens in drawn.items()
    )
