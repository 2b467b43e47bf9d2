"""The quick decoder: the same pictures up to rounding, each by itself to the last bit, saved as what it was."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from diffusers import VQModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

import dalle_core
from dalle_core import image_tokenizer as images
from dalle_core.decoder import WIDE, UpsampleConv, narrow, quicken
from dalle_core.winograd import PATCHES, WinogradConv

packs_convolutions = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="no packed convolutions for this CPU")


@torch.no_grad()
@pytest.mark.parametrize("channels, out", [(5, 3), (16, 16)])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 8)])
def test_enlarging_and_convolving_in_one_step(channels, out, size):
    torch.manual_seed(0)
    plain, x = Upsample2D(channels, use_conv=True, out_channels=out), torch.randn(2, channels, *size)
    quick = UpsampleConv(plain)
    assert quick(x).shape == (2, out, 2 * size[0], 2 * size[1])
    assert torch.allclose(quick(x), plain(x), atol=1e-5)  # the edges too
    assert quick.state_dict().keys() == plain.state_dict().keys()


@packs_convolutions
@torch.no_grad()
@pytest.mark.parametrize("channels, out", [(96, 128), (128, 97)])
@pytest.mark.parametrize("size", [(32, 32), (36, 44), (100, 40), (8, 4 * PATCHES + 4)])
def test_winograd_equals_the_convolution(channels, out, size):
    torch.manual_seed(0)
    plain, x = nn.Conv2d(channels, out, 3, padding=1), torch.randn(3, channels, *size)
    quick, expected = WinogradConv(plain), deepcopy(plain).double()(x.double())
    y = quick(x)
    assert y.shape == expected.shape and (y - expected).abs().max() < 2e-4 * expected.std()  # the edges too
    assert not torch.equal(y, plain(x))  # it went the quick way
    assert torch.equal(quick(x[1:2])[0], y[1])  # a picture is the same alone and among others
    assert quick.state_dict().keys() == plain.state_dict().keys()


@packs_convolutions
@torch.no_grad()
def test_what_winograd_cannot_do_goes_the_plain_way():
    plain, x = nn.Conv2d(96, 96, 3, padding=1), torch.randn(2, 96, 40, 40)
    quick = WinogradConv(plain)
    for part in (x[..., :38, :], x[..., :38], x[..., :28, :28]):  # no multiples of 4; fewer patches than are worth it
        assert torch.equal(quick(part), plain(part))
    assert torch.equal(quick.to(torch.bfloat16)(x.bfloat16()), plain.to(torch.bfloat16)(x.bfloat16()))


@packs_convolutions
@torch.no_grad()
def test_a_large_decoder_uses_it_and_draws_the_same():
    torch.manual_seed(0)
    sizes = dict(block_out_channels=[WIDE, WIDE, 32], down_block_types=["DownEncoderBlock2D"] * 3)
    model = VQModel(**sizes, up_block_types=["UpDecoderBlock2D"] * 3, latent_channels=8, num_vq_embeddings=64).eval()
    tokens = torch.randint(64, (2, 12, 12))
    expected, keys = images.decode(model, tokens), model.state_dict().keys()
    quicken(model)
    assert sum(isinstance(module, WinogradConv) for module in model.modules()) == 7  # not the one that reads 32 channels
    assert torch.allclose(images.decode(model, tokens), expected, atol=1e-4)
    assert model.state_dict().keys() == keys


def test_pictures_are_those_of_the_plain_decoder(saved):
    quick, plain = (dalle_core.load(saved, packed=packed).image_tokenizer for packed in (True, False))
    assert any(isinstance(module, UpsampleConv) for module in quick.modules())
    tokens = torch.randint(64, (9, 4, 4), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(images.decode(quick, tokens), images.decode(plain, tokens), atol=1e-5)
    state, expected = quick.state_dict(), plain.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.fixture(scope="module")
def embedded():
    """(plain decoder, quick one, quick one in bfloat16) of the embedded model."""

    def load():
        return dalle_core.load("emoji", clip="none", packed=False).image_tokenizer

    plain, quick, small = load(), load(), load()
    narrow(small)
    quicken(quick)
    quicken(small)
    return plain, quick, small


def test_a_picture_is_the_same_alone_and_among_others(embedded):
    tokens = torch.randint(256, (37, 12, 12), generator=torch.Generator().manual_seed(0))
    for model in embedded:
        many = images.decode(model, tokens)
        for i in (0, 17, 36):
            assert torch.equal(images.decode(model, tokens[i : i + 1])[0], many[i])


def test_bfloat16_is_off_by_less_than_a_level(embedded):
    plain, quick, small = embedded
    image = dalle_core.load("emoji", clip="none")("a red apple in twemoji style", num_candidates=4, seed=1)
    tokens = torch.stack([candidate.tokens for candidate in image.candidates])
    levels = [np.asarray(images.decode(model, tokens)) * 127.5 for model in (plain, quick, small)]
    assert np.abs(levels[1] - levels[0]).max() < 0.01
    assert np.abs(levels[2] - levels[0]).mean() < 0.5


@packs_convolutions
@pytest.mark.parametrize("missing", ["_reorder_convolution_weight", "_convolution_pointwise"])
def test_convolutions_stay_plain_where_pytorch_has_no_such_operation(monkeypatch, missing):
    def refuse(*args):
        raise NotImplementedError(f"There were no kernels for mkldnn::{missing}")

    monkeypatch.setattr(torch.ops.mkldnn, missing, refuse)
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    sizes = dict(block_out_channels=[WIDE, WIDE, 32], down_block_types=["DownEncoderBlock2D"] * 3)
    model = VQModel(**sizes, up_block_types=["UpDecoderBlock2D"] * 3, latent_channels=8, num_vq_embeddings=64).eval()
    narrow(deepcopy(model))
    quicken(model)
    assert not any(isinstance(module, WinogradConv) for module in model.modules())
    assert images.decode(model, torch.zeros(1, 8, 8, dtype=torch.long)).isfinite().all()
