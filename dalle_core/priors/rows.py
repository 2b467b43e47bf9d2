"""Rows of a batch that do not depend on each other: the promise that a candidate is the same alone and among others.

Matrix products choose another kernel, and so another order of summation, for other numbers of rows. With rows in
multiples of ROW_MULTIPLE every row's result is the same whatever stands in the other rows (seen on CPU in float32);
packed and 8-bit layers (`packed.py`, `int8.py`) keep rows apart from FEW_ROWS on.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

ROW_MULTIPLE, FEW_ROWS = 16, 2


def pad_rows(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """[B, ...] -> [B', ...] with zeros up to the next multiple."""
    missing = -len(x) % multiple
    return F.pad(x, (0, 0) * (x.ndim - 1) + (0, missing)) if missing else x


def repeat_rows(cached: torch.Tensor, copies: int, filled: int) -> torch.Tensor:
    """Keys or values [L, B, H, T, D] -> [L, B * copies, H, T, D]: the first `filled` positions of each row `copies`
    times, side by side. The other positions hold anything."""
    layers, rows, *rest = cached.shape
    new = cached.new_empty(layers, rows, copies, *rest)
    new[..., :filled, :] = cached[:, :, None, :, :filled]
    return new.flatten(1, 2)


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None, causal: bool = False
) -> torch.Tensor:
    """softmax(q k / sqrt(D)) v, each [B, H, T, D]; of k and v there may be fewer heads, each for the same number of q's that
    stand side by side. mask, of a shape that broadcasts to [B, H, T, S]: true where q may look; causal: position i of q
    sees the positions up to i of k.

    On a CPU by plain products. The fused kernel's result depends on the thread that a row falls to (seen on AMD), and
    so on what stands beside it; and its backward pass is slower.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])
    return _products(q * q.shape[-1] ** -0.5, k, v, mask, causal)


@dataclass(eq=False)
class Groups:
    """What a layer hands on to attention for each request of a pass. Compiled layers do not look inside: there would be
    another graph for every number of requests, and for each that has a single row."""

    parts: list[tuple]

    @torch.compiler.disable
    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attention of new positions, q, k, v [B, H, T, D], to those before them. parts: (k, v [b, H, S, D], start) for
        groups of rows that stand one after the other; k and v are stored there from position `start` on. Rows that fill
        the batch up get zeros."""
        on_cpu, causal = q.device.type == "cpu", q.shape[2] > 1  # a single query sees all that is cached; several start at 0
        queries = q * q.shape[-1] ** -0.5 if on_cpu else q
        groups, row = [], 0
        for cached_k, cached_v, start in self.parts:
            rows, end = slice(row, row + len(cached_k)), start + q.shape[2]
            cached_k[:, :, start:end] = k[rows]
            cached_v[:, :, start:end] = v[rows]
            attend = _products if on_cpu else attention
            groups.append(attend(queries[rows], cached_k[:, :, :end], cached_v[:, :, :end], None, causal))
            row = rows.stop
        if row < len(q):
            groups.append(q.new_zeros(len(q) - row, *q.shape[1:]))
        return groups[0] if len(groups) == 1 else torch.cat(groups)


def _products(q, k, v, mask, causal):
    if (shared := q.shape[1] // k.shape[1]) > 1:
        if q.shape[2] == 1:  # heads that share keys are as positions of one head: the keys are read once
            return _products(q.unflatten(1, (-1, shared))[:, :, :, 0], k, v, mask, False).flatten(1, 2)[:, :, None]
        k, v = k.repeat_interleave(shared, dim=1), v.repeat_interleave(shared, dim=1)
    # A single query is quicker as a column; not in bfloat16, where oneDNN keeps something for every length.
    column = q.shape[-2] == 1 and q.dtype == torch.float32
    scores = (k @ q.mT).mT if column else q @ k.mT  # [B, H, T, S]
    if causal:
        scores = scores + q.new_full(scores.shape[-2:], -torch.inf).triu(1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.softmax(scores, dim=-1).to(v.dtype) @ v
