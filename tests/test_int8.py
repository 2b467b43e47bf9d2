"""8-bit linear layers: nearly the same, and each row by itself to the last bit."""

import pytest
import torch
from torch import nn

import dalle_core
from dalle_core import ModelError
from dalle_core.int8 import Int8Linear

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="no 8-bit kernels for this CPU",
)


@torch.no_grad()
def test_the_error_of_a_layer_is_about_a_hundredth_of_its_spread():
    torch.manual_seed(0)
    linear, x = nn.Linear(256, 512), torch.randn(3, 7, 256)
    exact, ours = linear(x), Int8Linear(linear)(x)
    assert ours.shape == exact.shape and (ours - exact).std() < 0.015 * exact.std()


@torch.no_grad()
def test_a_row_does_not_depend_on_the_others():
    torch.manual_seed(0)
    layer, x = Int8Linear(nn.Linear(320, 960, bias=False)), torch.randn(40, 320) * torch.logspace(-3, 3, 40)[:, None]
    together = layer(x)
    for i in range(40):
        assert torch.equal(layer(x[i : i + 1])[0], together[i])


def test_a_pipeline_in_int8_draws_the_same_alone_and_in_company(saved):
    pipe = dalle_core.load(saved, dtype=torch.int8)
    many = {c.index: c for c in pipe("a red fox", num_candidates=5, seed=3, guidance_scale=2.0).candidates}
    one = pipe("a red fox", num_candidates=1, seed=3, guidance_scale=2.0).candidates[0]
    assert torch.equal(one.tokens, many[0].tokens)
    with pytest.raises(ModelError, match="int8 weights are not saved"):
        pipe.save_pretrained(saved)


@torch.no_grad()
def test_logits_stay_near(saved):
    text, image = torch.randint(60, (2, 8)), torch.randint(64, (2, 15))
    exact = dalle_core.load(saved).prior(text, image)
    near = dalle_core.load(saved, dtype=torch.int8).prior(text, image)
    assert 0 < (near - exact).std() < 0.1 * exact.std()
