"""The prior as one stream of text and image tokens: p(image token i | text, image tokens before i).

A decoder-only transformer over `text_length` text positions followed by `image_length` image positions: the DALL·E
paper's design, in minDALL·E's form (pre-LN GPT, learned positions, no BOS: the hidden state of the last text position
predicts image token 0; padding is seen like any token). It knows ids, not text or pictures.
"""

from copy import copy

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from dalle_core.priors.loss import head_loss
from dalle_core.priors.rows import ROW_MULTIPLE, Groups, attention, pad_rows, repeat_rows
from dalle_core.priors.slots import SlotCache, SlotLayer


class KVCache:
    """Keys and values of every layer for `rows` sequences, allocated once. The caller owns it."""

    def __init__(self, prior: "GPTPrior", rows: int):
        config, weight = prior.config, prior.image_embedding.weight
        length = config.text_length + config.image_length
        shape = (config.num_layers, rows, config.num_heads, length, config.hidden_size // config.num_heads)
        self.k = torch.empty(shape, device=weight.device, dtype=weight.dtype)  # [L, B, H, T, D]
        self.v = torch.empty_like(self.k)
        self.start = config.text_length  # positions before image token 0

    def repeat(self, copies: int, filled: int) -> "KVCache":
        """A cache in which the first `filled` positions of each sequence stand `copies` times, one after the other."""
        other = copy(self)
        other.k, other.v = repeat_rows(self.k, copies, filled), repeat_rows(self.v, copies, filled)
        return other


class Attention(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)

    def forward(self, x, caches: Groups | SlotLayer | None = None):
        """x [B, T, hidden]: whole sequences from position 0, or, with caches, what stands at each cache's own place.

        caches: (k, v [b, H, S, D], start), this layer's, for groups of rows that stand one after the other in x.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, H, T, D]
        y = attention(q, k, v, causal=True) if caches is None else caches.attend(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.ln1 = nn.LayerNorm(hidden_size)
        self.attn = Attention(hidden_size, num_heads)
        self.ln2 = nn.LayerNorm(hidden_size)
        self.mlp = nn.Sequential(nn.Linear(hidden_size, 4 * hidden_size), nn.GELU(), nn.Linear(4 * hidden_size, hidden_size))

    def forward(self, x, caches: Groups | SlotLayer | None = None):
        x = x + self.attn(self.ln1(x), caches)
        return x + self.mlp(self.ln2(x))


class GPTPrior(ModelMixin, ConfigMixin):
    """Logits of image tokens given text and the image tokens before them."""

    row_multiple = ROW_MULTIPLE  # rows of a decoding pass come in multiples of it
    _repeated_blocks = ["Block"]  # what diffusers' compile_repeated_blocks compiles

    @register_to_config
    def __init__(
        self,
        text_vocab_size: int,
        text_length: int,
        image_vocab_size: int,
        image_length: int,
        num_layers: int,
        num_heads: int,
        hidden_size: int,
    ):
        super().__init__()
        self.text_embedding = nn.Embedding(text_vocab_size, hidden_size)
        self.text_position = nn.Embedding(text_length, hidden_size)
        self.image_embedding = nn.Embedding(image_vocab_size, hidden_size)
        self.image_position = nn.Embedding(image_length, hidden_size)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads) for _ in range(num_layers))
        self.ln_f = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, image_vocab_size, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for block in self.blocks:  # GPT-2: residual branches add up over 2 * num_layers
            for projection in (block.attn.proj, block.mlp[2]):
                nn.init.normal_(projection.weight, std=0.02 / (2 * num_layers) ** 0.5)

    def forward(self, text_ids: torch.Tensor, image_ids: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """text_ids [B, text_length], image_ids [B, n] -> logits [B, n + 1, V] of the image tokens 0 ... n; with `targets`
        [B, n + 1], the tokens themselves, their mean cross-entropy in nats."""
        x = torch.cat([self._embed_text(text_ids), self._embed_image(image_ids)], dim=1)
        x = self._blocks(x)[:, self.config.text_length - 1 :]
        return self._logits(x) if targets is None else head_loss(self.ln_f(x), self.head, targets)

    def prefill(
        self, text_ids: torch.Tensor, copies: int = 1, image_ids: torch.Tensor | None = None
    ) -> tuple[KVCache, torch.Tensor]:
        """Reads P prompts [P, text_length], each once, for `copies` candidates each; image_ids [n]: the image tokens
        that all of them begin with.

        Returns the cache for P * copies rows, the copies of a prompt side by side, and each row's logits
        [P * copies, V] of image token n.
        """
        cache, x = KVCache(self, len(text_ids)), self._embed_text(text_ids)
        if image_ids is not None:
            x = torch.cat([x, self._embed_image(image_ids).expand(len(x), -1, -1)], dim=1)
        x = self._blocks(x, self._grouped([(cache, 0)]))
        return cache.repeat(copies, x.shape[1]), self._logits(x[:, -1]).repeat_interleave(copies, dim=0)

    def decode(self, steps: list[tuple[torch.Tensor, KVCache, int]]) -> list[torch.Tensor]:
        """For each (image_ids [B], cache, position), each row's image token `position`: logits [B, V] of the next one.

        Several steps, of requests that know nothing of each other, go through the weights together.
        """
        x = [self.image_embedding(ids[:, None]) + self.image_position.weight[position] for ids, _, position in steps]
        caches = [(cache, self.config.text_length + position) for _, cache, position in steps]
        counts = [len(ids) for ids, _, _ in steps]
        x = self._blocks(pad_rows(torch.cat(x), self.row_multiple), self._grouped(caches))
        logits = self._logits(x[:, 0])
        return list(logits[: sum(counts)].split(counts))

    def new_slots(self, rows: int) -> SlotCache:
        """A cache for the steps of `decode_slots`."""
        length, weight = self.config.text_length + self.config.image_length, self.image_embedding.weight
        return SlotCache(self.config.num_layers, rows, self.config.num_heads, length, weight)

    def decode_slots(self, image_ids: torch.Tensor, places: torch.Tensor, cache: SlotCache, length: int) -> torch.Tensor:
        """The first B rows of the cache, each at a place of its own: image_ids [B], their places among the image tokens [B] ->
        logits [B, V] of the next ones. length: see `SlotCache.layers`."""
        x = self.image_embedding(image_ids) + self.image_position(places)
        return self._logits(self._blocks(x[:, None], cache.layers(places, length))[:, 0])

    def _embed_text(self, text_ids):
        return self.text_embedding(text_ids) + self.text_position.weight

    def _embed_image(self, image_ids):
        return self.image_embedding(image_ids) + self.image_position.weight[: image_ids.shape[-1]]

    def _grouped(self, caches: list[tuple[KVCache, int]]) -> list[Groups]:
        """(cache, the position at which it goes on) of each request -> each layer's part."""
        return [Groups([(cache.k[i], cache.v[i], start) for cache, start in caches]) for i in range(len(self.blocks))]

    def _blocks(self, x, caches: list[Groups] | list[SlotLayer] | None = None):
        for block, own in zip(self.blocks, caches or [None] * len(self.blocks)):
            x = block(x, own)
        return x

    def _logits(self, x):
        return self.head(self.ln_f(x))
