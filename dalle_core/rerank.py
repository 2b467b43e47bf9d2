"""CLIP: pictures and texts in one space, where the cosine says how well they fit."""

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import CLIPModel

from dalle_core.text_tokenizer import encode_prompts


@torch.inference_mode()
def image_embeddings(clip: CLIPModel, clip_processor, images: list[Image.Image]) -> torch.Tensor:
    """Pictures -> unit vectors [B, D]."""
    pixels = clip_processor(images=images, return_tensors="pt")["pixel_values"].to(clip.device, clip.dtype)
    vision = clip.vision_model(pixel_values=pixels)
    return F.normalize(clip.visual_projection(vision.pooler_output).float(), dim=-1)


@torch.inference_mode()
def text_embeddings(clip: CLIPModel, tokenizer, texts: list[str]) -> torch.Tensor:
    """Texts -> unit vectors [B, D]."""
    ids = encode_prompts(tokenizer, texts, clip.config.text_config.max_position_embeddings).to(clip.device)
    # No mask: the padding stands after the end mark, which is what is read, and attention is causal.
    text = clip.text_model(input_ids=ids)
    return F.normalize(clip.text_projection(text.pooler_output).float(), dim=-1)


def scores(clip: CLIPModel, clip_processor, tokenizer, prompt: str, images: list[Image.Image]) -> list[float]:
    """The cosine in [-1, 1] of each picture with the prompt, in one batch."""
    text = text_embeddings(clip, tokenizer, [prompt])
    return (image_embeddings(clip, clip_processor, images) @ text[0]).tolist()
