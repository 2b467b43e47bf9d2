"""The engine equals a slow and obvious sampler; it stops when it is closed."""

import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_core.engine import SamplingSettings, Together, generate
from dalle_core.gpt_prior import GPTPrior
from dalle_core.rows import ROW_MULTIPLE
from dalle_core.sampling import candidate_uniforms, guide, sample


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
                token = sample(logits, row[position : position + 1], settings.temperature, settings.top_k, settings.top_p)
            tokens = torch.cat([tokens, token[:, None]], dim=1)
        results.append(tokens[0])
    return torch.stack(results)


@pytest.fixture(scope="module")
def prior():
    torch.manual_seed(1)
    prior = GPTPrior(20, 4, 40, 9, num_layers=2, num_heads=2, hidden_size=32).eval()
    prior.head.weight.data.mul_(40)
    return prior


TEXT, NULL = torch.tensor([[5, 6, 3, 0]]), torch.tensor([[3, 0, 0, 0]])


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 5),
    seed=st.integers(0, 2**63 - 1),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 5]),
    top_p=st.sampled_from([0.3, 1.0]),
    scale=st.sampled_from([0.0, 1.0, 3.0]),
    kept=st.lists(st.booleans(), min_size=9, max_size=9),
)
def test_engine_equals_the_slow_sampler(prior, rows, seed, temperature, top_k, top_p, scale, kept):
    sampling = SamplingSettings(temperature, top_k, top_p, scale)
    uniforms = torch.stack([candidate_uniforms(seed, i, 9) for i in range(rows)])
    forced, keep = torch.arange(9) * 4, torch.tensor(kept)
    arguments = (TEXT, NULL, uniforms, sampling, forced, keep)
    for tokens in generate(Together(prior), *arguments):
        pass
    assert torch.equal(tokens, slow_generate(prior, *arguments))
    assert torch.equal(tokens[:, keep], forced[keep].expand(rows, -1))


def test_tokens_appear_one_position_at_a_time(prior):
    uniforms = torch.stack([candidate_uniforms(0, i, 9) for i in range(2)])
    seen = [(tokens >= 0).sum(1).tolist() for tokens in generate(Together(prior), TEXT, NULL, uniforms, SamplingSettings())]
    assert seen == [[i, i] for i in range(1, 10)]


def test_closing_stops_the_work_and_leaves_the_mode_alone(prior):
    with counted_rows(prior) as rows:
        steps = generate(Together(prior), TEXT, NULL, torch.rand(2, 9), SamplingSettings(guidance_scale=2.0))
        next(steps), next(steps), next(steps)
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
        steps.close()
        assert rows == [2, ROW_MULTIPLE, ROW_MULTIPLE]  # the prompt and the null prompt, and two tokens
        assert list(steps) == []


def test_unguided_does_not_run_the_null_prompt(prior):
    with counted_rows(prior) as rows:
        list(generate(Together(prior), TEXT, NULL, torch.rand(1, 9), SamplingSettings(guidance_scale=1.0)))
    assert rows == [1] + 8 * [ROW_MULTIPLE]


@contextmanager
def counted_rows(prior):
    """The rows of every pass through the prior."""
    rows = []
    handle = prior.head.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    try:
        yield rows
    finally:
        handle.remove()


# ---------------------------------------------------------------- several requests in one pass


@settings(max_examples=15, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(1, 20), st.sampled_from([1.0, 3.0]), st.integers(0, 9), st.integers(0, 30)),
        min_size=2, max_size=4,
    )
)  # fmt: skip
def test_requests_that_join_and_leave_change_nothing_for_the_others(prior, requests):
    """Each request: candidates, guidance scale, the token after which it is cancelled (0: never), when it begins."""
    together, results, failures = Together(prior), {}, []

    def uniforms(number, rows):
        return torch.stack([candidate_uniforms(number, i, 9) for i in range(rows)])

    def draw(number, rows, scale, cancel_after, delay):
        try:
            time.sleep(delay / 1000)
            steps = generate(together, TEXT, NULL, uniforms(number, rows), SamplingSettings(guidance_scale=scale))
            for count, tokens in enumerate(steps, 1):
                if count == cancel_after:
                    steps.close()
                    return
            results[number] = tokens
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=draw, args=(number, *request)) for number, request in enumerate(requests)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert failures == [] and len(results) == sum(cancel == 0 for _, _, cancel, _ in requests)
    for number, tokens in results.items():
        rows, scale, _, _ = requests[number]
        alone = generate(Together(prior), TEXT, NULL, uniforms(number, rows), SamplingSettings(guidance_scale=scale))
        assert torch.equal(tokens, list(alone)[-1])


def test_steps_of_several_threads_share_passes(prior):
    together, passes = Together(prior), []
    decode = prior.decode
    together.prior = SimpleNamespace(prefill=prior.prefill, decode=lambda steps: passes.append(len(steps)) or decode(steps))
    together.PATIENCE = 5.0
    barrier = threading.Barrier(3)

    def draw():
        steps = generate(together, TEXT, NULL, torch.rand(2, 9), SamplingSettings())
        next(steps)
        barrier.wait()
        for _ in range(7):  # to the last but one: whoever is expected comes
            next(steps)
        barrier.wait()
        steps.close()

    threads = [threading.Thread(target=draw) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sum(passes) == 3 * 7 and passes.count(3) >= 5


def test_a_request_that_does_not_come_back_holds_nobody_up(prior):
    together = Together(prior)
    idle, busy = (generate(together, TEXT, NULL, torch.rand(2, 9), SamplingSettings()) for _ in range(2))
    next(idle), next(idle)
    done = threading.Thread(target=lambda: list(busy))
    done.start()
    done.join(timeout=10)
    assert not done.is_alive()
    assert len(list(idle)) == 7


def test_an_error_in_a_shared_pass_reaches_every_request(prior):
    together = Together(SimpleNamespace(prefill=prior.prefill, decode=lambda steps: 1 / 0))
    steps = generate(together, TEXT, NULL, torch.rand(2, 9), SamplingSettings())
    next(steps)
    with pytest.raises(ZeroDivisionError):
        next(steps)
