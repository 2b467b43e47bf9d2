"""CLIP: pictures and texts in one space, where the cosine says how well they fit. SigLIP (Zhai et al. 2023, arXiv 2303.15343)
is another way to train the same: what is said of CLIP holds for it.
"""

from typing import TypeAlias

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPModel, SiglipModel

from dalle_core.text_tokenizer import encode_prompts, fit_prompt

Ranker: TypeAlias = CLIPModel | SiglipModel


@torch.inference_mode()
def image_embeddings(clip: Ranker, clip_processor, images: list[Image.Image]) -> torch.Tensor:
    """Pictures -> unit vectors [B, D]."""
    pixels = clip_processor(images=images, return_tensors="pt")["pixel_values"].to(clip.device, clip.dtype)
    vision = clip.vision_model(pixel_values=pixels)
    pooled = vision.pooler_output  # SigLIP's is in the common space already
    return F.normalize((pooled if isinstance(clip, SiglipModel) else clip.visual_projection(pooled)).float(), dim=-1)


@torch.inference_mode()
def text_embeddings(clip: Ranker, tokenizer, texts: list[str]) -> torch.Tensor:
    """Texts -> unit vectors [B, D]."""
    siglip = isinstance(clip, SiglipModel)
    if siglip:  # it was trained on lower case
        texts = [text.lower() for text in texts]
    ids = encode_prompts(tokenizer, texts, clip.config.text_config.max_position_embeddings).to(clip.device)
    # No mask: in CLIP the padding stands after the end mark, which is what is read, and attention is causal. SigLIP was
    # trained without one, on texts that are padded to its full length.
    text = clip.text_model(input_ids=ids)
    return F.normalize((text.pooler_output if siglip else clip.text_projection(text.pooler_output)).float(), dim=-1)


def fit(clip: Ranker, tokenizer, prompt: str) -> tuple[str, str]:
    """(what CLIP reads of a prompt, what does not fit its text length)."""
    return fit_prompt(tokenizer, prompt, clip.config.text_config.max_position_embeddings)


def scores(clip: Ranker, clip_processor, tokenizer, prompt: str, images: list[Image.Image]) -> list[float]:
    """The cosine in [-1, 1] of each picture with the prompt, in one batch."""
    text = text_embeddings(clip, tokenizer, [prompt])
    return (image_embeddings(clip, clip_processor, images) @ text[0]).tolist()
