"""Keys and values in slots: a cache that is allocated once, whose rows belong to whoever draws just now.

Each row stands at a position of its own, and what it does not see is masked. So a decoding step is the same operations on
the same memory whoever is there, which is what a CUDA graph needs: see `dalle_core/slots.py`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

MULTIPLE = 16  # masks of such lengths are what PyTorch's attention kernels read without a copy
QUARTERS = 4  # a step reads one, two, three or all quarters of the positions


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """A single query a row, q [B, H, 1, D], on k, v [B, H', S, D], of which there may be fewer heads; mask [B, 1, 1, S] is
    added to the scores. -> [B, H, 1, D]."""
    queries = q.unflatten(1, (k.shape[1], -1))[:, :, :, 0]  # heads that share keys are as positions of one head
    return F.scaled_dot_product_attention(queries, k, v, mask).flatten(1, 2)[:, :, None]


@dataclass(eq=False)
class SlotLayer:
    """A layer's keys and values [B, H, T, D] in one step, and where each row stands."""

    k: torch.Tensor
    v: torch.Tensor
    rows: torch.Tensor  # [B]: 0, 1, ...
    positions: torch.Tensor  # [B]
    mask: torch.Tensor  # [B, 1, 1, S]: of the first S positions

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Stores the new position's k and v and attends to all up to it; each [B, H, 1, D]."""
        self.k[self.rows, :, self.positions] = k[:, :, 0]
        self.v[self.rows, :, self.positions] = v[:, :, 0]
        length = self.mask.shape[-1]
        return attend(q, self.k[:, :, :length], self.v[:, :, :length], self.mask)


@dataclass(eq=False)
class SlotText:
    """A layer's keys and values of each row's text [B, H, S, D]."""

    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor  # [B, 1, 1, S]

    def attend(self, q: torch.Tensor) -> torch.Tensor:
        """q [B, H, 1, D] -> the same shape."""
        return attend(q, self.k, self.v, self.mask)


class SlotCache:
    """Keys and values of every layer for `rows` rows, as long and in the dtype and on the device of `weight` [., hidden].

    text_length: positions of a text that has keys and values of its own, as an encoder's; 0: there is none.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        heads: int,
        length: int,
        weight: torch.Tensor,
        text_length: int = 0,
        head_size: int | None = None,
    ):
        size = head_size or weight.shape[1] // heads
        length = -(-length // MULTIPLE) * MULTIPLE
        # Zeros: what is masked has the weight 0, but 0 times NaN is not 0.
        self.k = torch.zeros(layers, rows, heads, length, size, device=weight.device, dtype=weight.dtype)  # [L, R, H, T, D]
        self.v = torch.zeros_like(self.k)
        self.starts = torch.zeros(rows, dtype=torch.long, device=weight.device)  # [R]: positions before image token 0
        quarter = -(-length // (QUARTERS * MULTIPLE)) * MULTIPLE
        self.lengths = sorted({min(quarter * (i + 1), length) for i in range(QUARTERS)})  # that a step may read
        self.text_k = self.text_v = self.text_mask = None
        if text_length:
            text_length = -(-text_length // MULTIPLE) * MULTIPLE
            self.text_k = self.k.new_zeros(layers, rows, heads, text_length, size)
            self.text_v = torch.zeros_like(self.text_k)
            self.text_mask = self.k.new_zeros(rows, 1, 1, text_length)  # added to scores: 0, or minus infinity

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, torch.Tensor))

    def fill(self, rows: torch.Tensor, prefilled, copies: int, filled: int) -> None:
        """Puts what `prefill` made of P prompts, its cache's first `filled` positions, into rows [P * copies]."""
        source = torch.arange(len(rows) // copies, device=rows.device).repeat_interleave(copies)

        def put(own, other, count):
            own.index_fill_(1, rows, 0)  # an overflow of the row's last owner would outlive its mask
            own[:, rows, :, :count] = other[:, source, :, :count]

        put(self.k, prefilled.k, filled), put(self.v, prefilled.v, filled)
        self.starts.index_fill_(0, rows, prefilled.start)
        if self.text_mask is not None:
            count = prefilled.mask.shape[-1]
            put(self.text_k, prefilled.text_k, count), put(self.text_v, prefilled.text_v, count)
            seen = F.pad(prefilled.mask, (0, self.text_mask.shape[-1] - count))[source]
            self.text_mask[rows] = torch.zeros_like(seen, dtype=self.k.dtype).masked_fill(~seen, -torch.inf)

    def layers(self, places: torch.Tensor, length: int) -> list[SlotLayer]:
        """Each layer's part of a step of the first B rows, which read image tokens `places` [B]. length: how many positions
        are looked at, one of `lengths`: enough for those whose result counts."""
        count, device = len(places), self.k.device
        positions = self.starts[:count] + places
        hidden = torch.arange(length, device=device) > positions[:, None]
        mask = torch.zeros(count, length, device=device, dtype=self.k.dtype).masked_fill(hidden, -torch.inf)[:, None, None]
        rows = torch.arange(count, device=device)
        return [SlotLayer(k[:count], v[:count], rows, positions, mask) for k, v in zip(self.k, self.v)]

    def texts(self, count: int) -> list[SlotText]:
        """Each layer's texts of the first `count` rows."""
        return [SlotText(k[:count], v[:count], self.text_mask[:count]) for k, v in zip(self.text_k, self.text_v)]
