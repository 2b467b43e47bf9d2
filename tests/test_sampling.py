"""Pure functions from logits to tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle_core.sampling import LIKELY, candidate_uniforms, guide, in_float32, keep_top_p, sample, top_k_ids


def test_uniforms_depend_on_seed_and_index_alone():
    a = candidate_uniforms(7, 3, 50)
    assert torch.equal(a, candidate_uniforms(7, 3, 50)) and torch.equal(a[:20], candidate_uniforms(7, 3, 20))
    others = [candidate_uniforms(7, 4, 50), candidate_uniforms(3, 7, 50), candidate_uniforms(0, 3, 50)]
    assert not any(torch.equal(a, other) for other in others)
    assert a.min() >= 0 and a.max() < 1 and abs(candidate_uniforms(0, 0, 20_000).mean() - 0.5) < 0.01


def test_sampling_follows_the_distribution():
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    logits = probabilities.log().expand(20_000, -1)
    tokens = sample(logits, candidate_uniforms(1, 0, 20_000))
    frequencies = torch.bincount(tokens, minlength=4) / 20_000
    torch.testing.assert_close(frequencies, probabilities, atol=0.02, rtol=0)
    assert frequencies[1] == 0


def test_temperature_zero_and_top_k_one_are_greedy():
    logits = torch.randn(50, 20)
    uniforms = candidate_uniforms(0, 0, 50)
    assert torch.equal(sample(logits, uniforms, temperature=0), logits.argmax(-1))
    assert torch.equal(sample(logits, uniforms, top_k=1), logits.argmax(-1))
    assert not torch.equal(sample(logits, uniforms), logits.argmax(-1))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 25), st.floats(0.01, 1.0), st.floats(0.05, 5.0), st.integers(0, 2**63 - 1))
def test_tokens_come_from_what_was_kept(k, p, temperature, seed):
    logits = torch.randn(8, 20, generator=torch.Generator().manual_seed(seed % 1000))
    tokens = sample(logits, candidate_uniforms(seed, 0, 8), temperature, k, p)
    rank = (logits > logits.gather(1, tokens[:, None])).sum(1)
    assert (rank < (k or 20)).all()
    probabilities = (logits.double() / temperature).softmax(-1)
    before = [row[row > row[token]].sum() for row, token in zip(probabilities, tokens)]
    assert all(mass < p + 1e-6 for mass in before)


def test_top_k_and_top_p_keep_what_they_say():
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0]])
    assert top_k_ids(logits, 2).tolist() == [[0, 2]]
    assert keep_top_p(torch.tensor([[0.5, 0.3, 0.2]]).log(), 0.6).isfinite().tolist() == [[True, True, False]]
    assert keep_top_p(logits, 1e-9).isfinite().sum() == 1


@settings(max_examples=10, deadline=None)
@given(st.floats(0.01, 0.999), st.integers(0, 1000), st.booleans())
def test_top_p_keeps_what_its_definition_says(p, seed, rounded):
    """Over a vocabulary that is not sorted as a whole where few tokens hold the mass; tokens as likely as each other
    stay or go together; a row is the same beside one that needs the whole vocabulary."""
    spread = torch.tensor([0.0, 0.1, 1.0, 3.0, 10.0, 100.0], dtype=torch.float64)[:, None]
    logits = spread * torch.randn(6, 2 * LIKELY, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    logits = logits.round() if rounded else logits
    kept = keep_top_p(logits, p)
    for i, probabilities in enumerate(logits.softmax(dim=-1)):
        more_likely = (probabilities > probabilities[:, None]).double() @ probabilities
        assert torch.equal(kept[i].isfinite(), more_likely < p)
        assert torch.equal(keep_top_p(logits[i : i + 1], p)[0], kept[i])
    assert torch.equal(kept[kept.isfinite()], logits[kept.isfinite()])


def test_top_k_draws_what_the_whole_vocabulary_without_the_others_would():
    logits, uniforms = torch.randn(500, 300), candidate_uniforms(2, 0, 500)
    others = torch.ones_like(logits, dtype=torch.bool).scatter_(1, top_k_ids(logits, 40), False)
    assert torch.equal(sample(logits, uniforms, top_k=40), sample(logits.masked_fill(others, -torch.inf), uniforms))


def test_guidance():
    cond, uncond = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    assert guide(cond, uncond, 3.0).tolist() == [[4.0, -2.0]]
    assert torch.equal(guide(cond, uncond, 0.0), uncond)


@pytest.mark.parametrize("on_mps", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-310, 1e-100, 1e-45, 1e-38, 1e-12])
def test_the_coldest_temperatures_are_greedy(temperature, dtype, on_mps):
    logits = (50 * torch.randn(40, 300, generator=torch.Generator().manual_seed(0))).to(dtype)
    logits[:, 7] = 250  # no two are the largest
    uniforms = candidate_uniforms(0, 0, 40)
    uniforms = in_float32(uniforms) if on_mps else uniforms
    for top_k, top_p in ((0, 1.0), (20, 1.0), (0, 0.5), (0, 1e-320)):
        assert (sample(logits, uniforms, temperature, top_k, top_p) == 7).all()


def test_in_float32_no_token_without_probability_is_drawn():
    """Not even for the largest random number there is, which is 1 when it is rounded."""
    uniforms = in_float32(torch.full((50,), 1 - 2**-53, dtype=torch.float64))
    logits = torch.randn(50, 1000, generator=torch.Generator().manual_seed(0))
    logits[:, 600:] = -torch.inf
    assert (sample(logits, uniforms) < 600).all()


def test_float32_draws_what_float64_does():
    logits, uniforms = torch.randn(4000, 300), candidate_uniforms(2, 0, 4000)
    assert (sample(logits, in_float32(uniforms)) == sample(logits, uniforms)).float().mean() > 0.999


def test_guidance_does_not_overflow():
    cond, uncond = torch.tensor([[900.0, 0.0]]).half(), torch.tensor([[0.0, 900.0]]).half()
    assert guide(cond, uncond, 100.0).tolist() == [[90_000.0, -89_100.0]]
