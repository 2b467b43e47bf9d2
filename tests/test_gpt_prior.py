"""The prior: the KV cache changes nothing but the time."""

import pytest
import torch

from dalle_core.engine import ROW_MULTIPLE
from dalle_core.gpt_prior import GPTPrior, KVCache


@pytest.fixture(scope="module")
def prior():
    torch.manual_seed(0)
    return GPTPrior(20, 5, 30, 9, num_layers=3, num_heads=2, hidden_size=32).eval()


@torch.no_grad()
def test_cached_logits_equal_the_full_forward_at_every_position(prior):
    text, image = torch.randint(20, (3, 5)), torch.randint(30, (3, 9))
    full = prior(text, image[:, :-1])
    cache = KVCache(prior, 3)
    cached = [prior(text, cache=cache)]
    cached += [prior(image_ids=image[:, i : i + 1], cache=cache, position=i) for i in range(8)]
    assert full.shape == (3, 9, 30)
    for position in range(9):
        torch.testing.assert_close(cached[position][:, 0], full[:, position], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_expanded_cache_equals_one_prefill_a_row(prior):
    text, image = torch.randint(20, (1, 5)), torch.randint(30, (4, 1))
    one, many = KVCache(prior, 1), KVCache(prior, 4)
    prior(text, cache=one)
    prior(text.expand(4, -1), cache=many)
    expanded = prior(image_ids=image, cache=one.expand(4), position=0)
    torch.testing.assert_close(expanded, prior(image_ids=image, cache=many, position=0), atol=1e-6, rtol=1e-5)


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
    one = KVCache(prior, 1)
    prior(torch.randint(100, (1, 16)), cache=one)
    image = torch.randint(2048, (4 * ROW_MULTIPLE, 1))
    alone = prior(image_ids=image[:ROW_MULTIPLE], cache=one.expand(ROW_MULTIPLE), position=0)
    for rows in (2 * ROW_MULTIPLE, 3 * ROW_MULTIPLE, 4 * ROW_MULTIPLE):
        many = prior(image_ids=image[:rows], cache=one.expand(rows), position=0)
        assert torch.equal(many[:ROW_MULTIPLE], alone)
