"""Tiny models with random weights: every path of the real ones, in milliseconds and without a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: no test may ask the Hub

import pytest
import torch
from diffusers import VQModel

from dalle_core.pipeline import DallePipeline
from dalle_core.priors.gpt import GPTPrior
from dalle_core.text_tokenizer import train_text_tokenizer
from dalle_core.training.clip import new_clip, new_image_processor

CAPTIONS = ["a red fox", "a fox and a banana on a purple background in noto style", "狐狸和香蕉", "two apples"] * 5


def make_pipeline() -> DallePipeline:
    """4 x 4 tokens of 64 codes, 64 x 64 pixels, 8 text positions."""
    torch.manual_seed(0)
    tokenizer = train_text_tokenizer(CAPTIONS, 120)
    vq = VQModel(
        in_channels=48,
        out_channels=48,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 16, 16),
        layers_per_block=1,
        latent_channels=32,
        vq_embed_dim=16,
        num_vq_embeddings=64,
        norm_num_groups=1,
        mid_block_add_attention=False,
        sample_size=24,
    )
    vq.quantize.embedding.weight.data.normal_()  # codes that look different
    prior = GPTPrior(len(tokenizer), 8, 64, 16, num_layers=2, num_heads=2, hidden_size=32)
    prior.head.weight.data.mul_(40)  # far from uniform, so that temperature, top-k and guidance matter
    clip = new_clip(tokenizer, 64, 8, width=32)
    for part in (vq, prior, clip):
        part.eval()
    return DallePipeline(
        vq,
        tokenizer,
        prior,
        clip,
        new_image_processor(64),
        name="tiny",
        defaults={"num_candidates": 4},
        examples=["a red fox", "two apples"],
    )


@pytest.fixture(scope="session")
def tiny_pipeline() -> DallePipeline:
    """Shared: a pipeline holds no request's state. Tests that change a model make their own."""
    return make_pipeline()


@pytest.fixture
def own_pipeline() -> DallePipeline:
    return make_pipeline()


@pytest.fixture
def saved(tmp_path, tiny_pipeline):
    """A folder that `save_pretrained` wrote; each test may damage its own."""
    tiny_pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"
