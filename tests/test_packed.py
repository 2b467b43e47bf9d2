"""Packed linear layers: the same function, each row by itself to the last bit, saved as what they were."""

import pytest
import torch
from torch import nn

import dalle_core
from dalle_core import ModelError
from dalle_core.packed import PackedLinear, pack

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no oneDNN for this CPU")


@torch.no_grad()
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_is_the_layer(bias):
    torch.manual_seed(0)
    linear, x = nn.Linear(320, 960, bias=bias), torch.randn(3, 7, 320)
    assert torch.allclose(PackedLinear(linear)(x), linear(x), atol=1e-5)
    saved = PackedLinear(linear).state_dict()
    assert saved.keys() == linear.state_dict().keys()
    assert all(torch.equal(saved[key], value) for key, value in linear.state_dict().items())


def test_a_packed_prior_draws_the_same_alone_and_in_company_and_saves_what_it_was(saved, tmp_path):
    pipe, plain = dalle_core.load(saved), dalle_core.load(saved, packed=False)
    assert any(isinstance(module, PackedLinear) for module in pipe.prior.modules())
    many = {c.index: c for c in pipe("a red fox", num_candidates=5, seed=3, guidance_scale=2.0).candidates}
    for count in (1, 2, 3):
        for one in pipe("a red fox", num_candidates=count, seed=3, guidance_scale=2.0).candidates:
            assert torch.equal(one.tokens, many[one.index].tokens)
    pipe.save_pretrained(tmp_path / "again")
    again = dalle_core.load(tmp_path / "again", packed=False).prior.state_dict()
    assert again.keys() == plain.prior.state_dict().keys()
    assert all(torch.equal(again[key], value) for key, value in plain.prior.state_dict().items())
    with pytest.raises(ModelError, match="packed for the CPU"):
        pipe.to(torch.float64)


@torch.no_grad()
def test_logits_are_those_of_the_plain_prior(saved):
    text, image = torch.randint(60, (2, 8)), torch.randint(64, (2, 15))
    plain, packed = (dalle_core.load(saved, packed=packed).prior for packed in (False, True))
    assert torch.allclose(packed(text, image), plain(text, image), atol=1e-4)
    cache, logits = packed.prefill(text, copies=1)
    for position in range(15):
        assert torch.allclose(logits, plain(text, image[:, :position])[:, -1], atol=1e-4)
        logits = packed.decode([(image[:, position], cache, position)])[0]


def test_it_stays_plain_where_rows_would_depend_on_each_other(monkeypatch, own_pipeline):
    monkeypatch.setattr("dalle_core.packed._rows_are_apart", lambda layer: False)
    pack(own_pipeline.prior)
    assert any(isinstance(module, nn.Linear) for module in own_pipeline.prior.modules())


@pytest.mark.parametrize("missing", ["_reorder_linear_weight", "_linear_pointwise"])
def test_it_stays_plain_where_pytorch_has_no_such_operation(monkeypatch, own_pipeline, missing):
    def refuse(*args):
        raise NotImplementedError(f"There were no kernels for mkldnn::{missing}")

    monkeypatch.setattr(torch.ops.mkldnn, missing, refuse)
    pack(own_pipeline.prior)
    assert any(isinstance(module, nn.Linear) for module in own_pipeline.prior.modules())
    assert own_pipeline("a fox", num_candidates=1).candidates
