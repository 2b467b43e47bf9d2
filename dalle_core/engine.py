"""Sampling image tokens from a prior, one position after the other, for a chunk of candidates of one prompt."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dalle_core.sampling import guide, sample


@dataclass(frozen=True)
class SamplingSettings:
    """temperature 0 is greedy; top_k 0 and top_p 1 keep every token; guidance_scale 1 is unguided."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance_scale: float = 1.0


def generate(
    prior,
    text_ids: torch.Tensor,
    null_ids: torch.Tensor,
    uniforms: torch.Tensor,
    settings: SamplingSettings,
    forced: torch.Tensor | None = None,
    keep: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """Yields tokens [B, N] after each position; those not yet drawn are -1. Closing it stops the work.

    prior: a GPTPrior or BartPrior. text_ids, null_ids [1, text_length]: the prompt, and what guidance leads away from
    (the null or negative prompt). uniforms [B, N]: one random number a token. forced, keep [N]: where keep is true,
    forced is the token.
    """
    rows, length = uniforms.shape
    device = text_ids.device
    uniforms = uniforms.to(device)
    guided = settings.guidance_scale != 1
    kept = [False] * length if keep is None else keep.tolist()
    forced = None if forced is None else forced.to(device)
    tokens = torch.full((rows, length), -1, device=device)
    if keep is not None:
        tokens[:, keep.to(device)] = forced[keep.to(device)]

    # Not across a yield: the mode is the thread's, and whoever consumes this would be left in it.
    with torch.inference_mode():
        prompts = torch.cat([text_ids, null_ids]) if guided else text_ids
        cache, logits = prior.prefill(prompts, rows)

    for position in range(length):
        with torch.inference_mode():
            if position > 0:
                logits = prior.decode(tokens[:, position - 1].repeat(len(prompts)), cache, position - 1)
            if not kept[position]:
                chosen = logits[:rows]
                if guided:
                    chosen = guide(chosen, logits[rows:], settings.guidance_scale)
                tokens[:, position] = sample(
                    chosen, uniforms[:, position], settings.temperature, settings.top_k, settings.top_p
                )
        yield tokens
