"""The engine equals a slow and obvious sampler; it stops when it is closed."""

from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_core.engine import SamplingSettings, generate
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
    arguments = (prior, TEXT, NULL, uniforms, sampling, forced, keep)
    for tokens in generate(*arguments):
        pass
    assert torch.equal(tokens, slow_generate(*arguments))
    assert torch.equal(tokens[:, keep], forced[keep].expand(rows, -1))


def test_tokens_appear_one_position_at_a_time(prior):
    uniforms = torch.stack([candidate_uniforms(0, i, 9) for i in range(2)])
    seen = [(tokens >= 0).sum(1).tolist() for tokens in generate(prior, TEXT, NULL, uniforms, SamplingSettings())]
    assert seen == [[i, i] for i in range(1, 10)]


def test_closing_stops_the_work_and_leaves_the_mode_alone(prior):
    with counted_rows(prior) as rows:
        steps = generate(prior, TEXT, NULL, torch.rand(2, 9), SamplingSettings(guidance_scale=2.0))
        next(steps), next(steps), next(steps)
        assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()
        steps.close()
        assert rows == [2, ROW_MULTIPLE, ROW_MULTIPLE]  # the prompt and the null prompt, and two tokens
        assert list(steps) == []


def test_unguided_does_not_run_the_null_prompt(prior):
    with counted_rows(prior) as rows:
        list(generate(prior, TEXT, NULL, torch.rand(1, 9), SamplingSettings(guidance_scale=1.0)))
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
