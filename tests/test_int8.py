"""8-bit linear layers: nearly the same, and each row by itself to the last bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import dalle_core
from dalle_core import ModelError
from dalle_core.int8 import Int8Linear
from dalle_core.text_tokenizer import encode_prompts

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


@torch.no_grad()
def test_large_sums_are_whole():
    """Weights and inputs all of one sign, as large as they can be: what CPUs without VNNI add in 16 bits."""
    linear = nn.Linear(256, 96, bias=False)
    linear.weight.data.fill_(0.5)
    x = torch.full((5, 256), 3.0)
    assert torch.allclose(Int8Linear(linear)(x), linear(x), rtol=1e-4)


@torch.no_grad()
def test_the_embedded_prior_draws_nearly_the_same():
    plain = dalle_core.load("emoji", clip="none", packed=False)
    near = dalle_core.load("emoji", clip="none", dtype=torch.int8).prior
    prompts, length = plain.examples[:6], plain.prior.config.text_length
    tokens = torch.cat([plain(text, num_candidates=1, seed=1).candidates[0].tokens.view(1, -1) for text in prompts])
    text_ids = encode_prompts(plain.text_tokenizer, prompts, length)
    exact, found = (prior(text_ids, tokens[:, :-1]) for prior in (plain.prior, near))
    assert (found - exact).std() < 0.02 * exact.std()
    assert (found.argmax(-1) == exact.argmax(-1)).float().mean() > 0.97


OLDER = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


@pytest.mark.skipif(all(os.environ.get(name) == value for name, value in OLDER.items()), reason="this is that CPU")
def test_all_of_this_holds_on_a_cpu_without_vnni():
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/test_int8.py",
        "tests/test_engine.py",
        "-k",
        "int8",
    ]
    run = subprocess.run(
        command, env=os.environ | OLDER, cwd=Path(__file__).parent.parent, capture_output=True, encoding="utf-8"
    )
    assert run.returncode == 0, run.stdout[-3000:]
