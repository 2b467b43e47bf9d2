"""From logits to tokens: small pure functions on logits [B, V]. Randomness enters through `uniforms` alone."""

import numpy as np
import torch

COLDEST = 1e-20  # a temperature at which only the most likely token is left, and logits divided by it are finite
LIKELY = 1024  # the most likely tokens, among which top-p first looks for the mass that it keeps


def candidate_uniforms(seed: int, index: int, length: int) -> torch.Tensor:
    """The random numbers of candidate `index` of `seed`: [length] float64 in [0, 1), one for each token.

    They depend on nothing else, so candidate i of seed s is the same picture whatever is drawn beside it.
    """
    sequence = np.random.SeedSequence(entropy=seed, spawn_key=(index,))
    return torch.from_numpy(np.random.Generator(np.random.PCG64(sequence)).random(length))


def in_float32(uniforms: torch.Tensor) -> torch.Tensor:
    """For devices without float64. Below 1, to which the nearest number may be rounded: there is no token there."""
    return uniforms.float().clamp(max=1 - 2**-23)


def guide(cond: torch.Tensor, uncond: torch.Tensor, scale: float) -> torch.Tensor:
    """Classifier-free guidance on logits (Ho and Salimans 2022; min-dalle's supercondition): away from `uncond`."""
    if cond.dtype == torch.float16:  # whose largest number is 65,504
        cond, uncond = cond.float(), uncond.float()
    return uncond + scale * (cond - uncond)


def top_k_ids(logits: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest of each row [B, k], in the vocabulary's order: a tiny change of the logits moves no token."""
    return logits.topk(k, dim=-1, sorted=False).indices.sort(dim=-1).values


def keep_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Keeps the smallest set of tokens whose probabilities reach p (Holtzman et al. 2020), with those exactly as likely
    as its least likely one. p = 1 keeps all."""
    if p >= 1:
        return logits
    probabilities = logits.softmax(dim=-1)
    ordered = _most_likely(probabilities, p)
    last = (ordered.cumsum(dim=-1) < p).sum(dim=-1, keepdim=True).clamp(max=ordered.shape[-1] - 1)
    return logits.masked_fill(probabilities < ordered.gather(-1, last), -torch.inf)


def _most_likely(probabilities: torch.Tensor, p: float) -> torch.Tensor:
    """The probabilities of each row from the largest on, at least as many as reach p.

    Where the first LIKELY do, the others need no sorting. On a GPU, asking whether they do would wait for it.
    """
    if probabilities.device.type == "cpu" and probabilities.shape[-1] > LIKELY:
        likely = probabilities.topk(LIKELY, dim=-1).values
        if (likely.cumsum(dim=-1)[:, -1] >= p).all():
            return likely
    return probabilities.sort(dim=-1, descending=True).values


def sample(
    logits: torch.Tensor, uniforms: torch.Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> torch.Tensor:
    """Tokens [B], by the inverse of the cumulative distribution at `uniforms` [B], float64, or float32 from `in_float32`.
    Temperature 0 is greedy, and any below COLDEST all but that.

    On a CPU all is computed in their dtype. Elsewhere the probabilities are in float32, which GPUs are quick at; sums of
    thousands of them are not.
    """
    if temperature == 0 or top_k == 1:
        return logits.argmax(dim=-1)
    ids = top_k_ids(logits, top_k) if 0 < top_k < logits.shape[-1] else None
    if ids is not None:  # from here on k numbers a row, not the whole vocabulary
        logits = logits.gather(-1, ids)
    logits = logits.to(uniforms.dtype if logits.device.type == "cpu" else torch.float32) / max(temperature, COLDEST)
    cumulative = keep_top_p(logits, top_p).softmax(dim=-1).cumsum(dim=-1, dtype=uniforms.dtype)  # [B, V or k]
    # Scaled by the last value, which is 1 up to rounding: the result is always a token of some probability.
    target = uniforms[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
    return (chosen if ids is None else ids.gather(-1, chosen))[:, 0]


def sample_rows(
    logits: torch.Tensor,
    uniforms: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    filtered: bool = True,
) -> torch.Tensor:
    """`sample` where each row has settings of its own, [B] each: the same operations whatever they are, as a CUDA graph needs.

    filtered False: no row has a top-k or a top-p, and nothing is sorted. Tokens exactly as likely as the least likely one of
    the top-k are kept with it.
    """
    scaled = logits.to(uniforms.dtype if logits.device.type == "cpu" else torch.float32)
    scaled = scaled / temperature.to(scaled.dtype).clamp(min=COLDEST)[:, None]
    if filtered:
        scaled = scaled.masked_fill(scaled < _least_kept(scaled, top_k, top_p), -torch.inf)
    cumulative = scaled.softmax(dim=-1).cumsum(dim=-1, dtype=uniforms.dtype)  # [B, V]
    target = uniforms[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)[:, 0]
    return torch.where((temperature == 0) | (top_k == 1), logits.argmax(dim=-1), chosen)


def _least_kept(scaled: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The least of each row's logits [B, V] that its top-k, and its top-p among those, keep: [B, 1]."""
    most = scaled.shape[-1]
    k = torch.where((top_k > 0) & (top_k < most), top_k, most)[:, None] - 1  # the place of the last one
    ordered = scaled.sort(dim=-1, descending=True).values
    places = torch.arange(most, device=scaled.device)
    probabilities = ordered.masked_fill(places > k, -torch.inf).softmax(dim=-1)
    reached = (probabilities.cumsum(dim=-1) < top_p[:, None]).sum(dim=-1, keepdim=True)
    last = torch.where(top_p[:, None] < 1, torch.minimum(reached, k), k)
    return ordered.gather(-1, last)
