"""The prior: the KV cache changes nothing but the time."""

import pytest
import torch

from dalle_core.priors.gpt import GPTPrior
from dalle_core.priors.rows import ROW_MULTIPLE


@pytest.fixture(scope="module")
def prior():
    torch.manual_seed(0)
    return GPTPrior(20, 5, 30, 9, num_layers=3, num_heads=2, hidden_size=32).eval()


@torch.no_grad()
def test_cached_logits_equal_the_full_forward_at_every_position(prior):
    text, image = torch.randint(20, (3, 5)), torch.randint(30, (3, 9))
    full = prior(text, image[:, :-1])
    cache, logits = prior.prefill(text)
    cached = [logits] + [prior.decode([(image[:, i], cache, i)])[0] for i in range(8)]
    assert full.shape == (3, 9, 30)
    for position in range(9):
        torch.testing.assert_close(cached[position], full[:, position], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_copies_of_a_prompt_equal_one_prefill_a_row(prior):
    text, image = torch.randint(20, (2, 5)), torch.randint(30, (6,))
    shared, logits = prior.prefill(text, copies=3)
    single, each = prior.prefill(text.repeat_interleave(3, dim=0))
    torch.testing.assert_close(logits, each, atol=1e-6, rtol=1e-5)
    ours, theirs = prior.decode([(image, shared, 0)])[0], prior.decode([(image, single, 0)])[0]
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_no_position_sees_a_later_one(prior):
    text, image = torch.randint(20, (1, 5)), torch.randint(30, (1, 8))
    before = prior(text, image)
    image[0, 5] = (image[0, 5] + 1) % 30
    after = prior(text, image)
    assert torch.equal(before[:, :6], after[:, :6]) and not torch.allclose(before[:, 6:], after[:, 6:])


@torch.no_grad()
def test_a_row_does_not_depend_on_the_number_of_rows():
    """The promise behind per-candidate seeds, at the embedded model's width: bit for bit."""
    torch.manual_seed(0)
    prior = GPTPrior(100, 16, 2048, 64, num_layers=2, num_heads=5, hidden_size=320).eval()
    text, image = torch.randint(100, (1, 16)), torch.randint(2048, (8 * ROW_MULTIPLE,))
    alone = prior.decode([(image[:ROW_MULTIPLE], prior.prefill(text, ROW_MULTIPLE)[0], 0)])[0]
    for rows in range(2 * ROW_MULTIPLE, 9 * ROW_MULTIPLE, ROW_MULTIPLE):
        many = prior.decode([(image[:rows], prior.prefill(text, rows)[0], 0)])[0]
        assert torch.equal(many[:ROW_MULTIPLE], alone)
        # and in a pass with others, behind them
        behind = prior.decode(
            [(image[:rows], prior.prefill(text, rows)[0], 0), (image[:ROW_MULTIPLE], prior.prefill(text, ROW_MULTIPLE)[0], 0)]
        )[1]
        assert torch.equal(behind, alone)
