"""The prior as a language model that also writes image tokens: p(image token i | text, image tokens before i).

A decoder-only transformer in Llama's form (Touvron et al. 2023, arXiv 2302.13971): RMSNorm before every part, rotary
positions (Su et al. 2021, arXiv 2104.09864), a gated feed-forward part (SwiGLU, Shazeer 2020), no bias; several heads of
queries may share one of keys and values (Ainslie et al. 2023, arXiv 2305.13245). A prompt has any length up to
`text_length`, without padding. The hidden state of the last text position predicts image token 0.

Of LlamaPrior, which is Janus' (Chen et al. 2025, arXiv 2501.17811), text and image tokens have tables of their own; an image
token's row is short, and two linear layers bring it to the model's width. Positions run on from the text into the image.
"""

from copy import copy

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from dalle_core.priors.loss import head_loss
from dalle_core.priors.rows import ROW_MULTIPLE, Groups, attention, pad_rows, repeat_rows
from dalle_core.priors.slots import SlotCache, SlotLayer

Rotation = tuple[torch.Tensor, torch.Tensor]  # cosines and sines [B or 1, T, 1, D]


class LlamaCache:
    """Keys and values of every layer for `rows` sequences of up to `length` positions, allocated once. The caller owns it."""

    def __init__(self, prior: "LlamaForm", rows: int, length: int, start: int):
        attn, weight = prior.blocks[0].attn, prior.image_embedding.weight
        shape = (prior.config.num_layers, rows, attn.heads[1], length, attn.head_size)
        self.k = torch.empty(shape, device=weight.device, dtype=weight.dtype)  # [L, B, H, T, D]
        self.v = torch.empty_like(self.k)
        self.start = start  # positions before image token 0

    def repeat(self, copies: int, filled: int) -> "LlamaCache":
        """A cache in which the first `filled` positions of each sequence stand `copies` times, one after the other."""
        other = copy(self)
        other.k, other.v = repeat_rows(self.k, copies, filled), repeat_rows(self.v, copies, filled)
        return other


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, the quotient in float32 whatever x is."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x):
        exact = x.float()
        return (exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight


def rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """x [B, T, H, D]: the pair (i, i + D/2) turned by its position's i-th angle, as Llama's published weights have it."""
    cosines, sines = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat([-second, first], dim=-1) * sines


class Attention(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int, num_kv_heads: int):
        super().__init__()
        self.heads, self.head_size = (num_heads, num_kv_heads, num_kv_heads), hidden_size // num_heads
        self.qkv = nn.Linear(hidden_size, sum(self.heads) * self.head_size, bias=False)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x, rotation: Rotation, caches: Groups | SlotLayer | None = None):
        """x [B, T, hidden]: whole sequences from position 0, or, with caches, what stands at each cache's own place.

        caches: (k, v [b, H, S, D], start), this layer's, for groups of rows that stand one after the other in x.
        """
        q, k, v = self.qkv(x).unflatten(-1, (-1, self.head_size)).split(self.heads, dim=2)  # each [B, T, H, D]
        q, k, v = (part.transpose(1, 2) for part in (rotate(q, rotation), rotate(k, rotation), v))  # [B, H, T, D]
        y = attention(q, k, v, causal=True) if caches is None else caches.attend(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    def __init__(self, hidden_size: int, ffn_size: int):
        super().__init__()
        self.gate_and_value = nn.Linear(hidden_size, 2 * ffn_size, bias=False)
        self.out = nn.Linear(ffn_size, hidden_size, bias=False)

    def forward(self, x):
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class Block(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int, num_kv_heads: int, ffn_size: int, eps: float):
        super().__init__()
        self.norm1 = RMSNorm(hidden_size, eps)
        self.attn = Attention(hidden_size, num_heads, num_kv_heads)
        self.norm2 = RMSNorm(hidden_size, eps)
        self.mlp = SwiGLU(hidden_size, ffn_size)

    def forward(self, x, rotation: Rotation, caches: Groups | SlotLayer | None = None):
        x = x + self.attn(self.norm1(x), rotation, caches)
        return x + self.mlp(self.norm2(x))


class LlamaForm(ModelMixin, ConfigMixin):
    """What priors in this form have in common. Each has its own `embed_text`, `embed_image`, `rotation` and `head`."""

    row_multiple = ROW_MULTIPLE  # rows of a decoding pass come in multiples of it
    _repeated_blocks = ["Block"]  # what diffusers' compile_repeated_blocks compiles

    def forward(self, text_ids: torch.Tensor, image_ids: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """text_ids [B, T], image_ids [B, n] -> logits [B, n + 1, V] of the image tokens 0 ... n; with `targets` [B, n + 1],
        the tokens themselves, their mean cross-entropy in nats."""
        x = torch.cat([self.embed_text(text_ids), self.embed_image(image_ids)], dim=1)
        x = self.hidden(x, text_length=text_ids.shape[1])[:, text_ids.shape[1] - 1 :]
        if targets is None:
            return self.head(x)
        *layers, last = self.head if isinstance(self.head, nn.Sequential) else [self.head]
        for layer in layers:
            x = layer(x)
        return head_loss(x, last, targets)

    def prefill(
        self, text_ids: torch.Tensor, copies: int = 1, image_ids: torch.Tensor | None = None
    ) -> tuple[LlamaCache, torch.Tensor]:
        """Reads P prompts [P, T], each once, for `copies` candidates each; image_ids [n]: the image tokens that all of
        them begin with.

        Returns the cache for P * copies rows, the copies of a prompt side by side, and each row's logits
        [P * copies, V] of image token n.
        """
        text_length = text_ids.shape[1]
        cache = LlamaCache(self, len(text_ids), text_length + self.config.image_length, text_length)
        x = self.embed_text(text_ids)
        if image_ids is not None:
            x = torch.cat([x, self.embed_image(image_ids).expand(len(x), -1, -1)], dim=1)
        last = self.hidden(x, [(cache, 0)])[:, -1]
        return cache.repeat(copies, x.shape[1]), self.head(last).repeat_interleave(copies, dim=0)

    def decode(self, steps: list[tuple[torch.Tensor, LlamaCache, int]]) -> list[torch.Tensor]:
        """For each (image_ids [B], cache, position), each row's image token `position`: logits [B, V] of the next one.

        Several steps, of requests that know nothing of each other, go through the weights together.
        """
        caches = [(cache, cache.start + position) for _, cache, position in steps]
        counts = [len(ids) for ids, _, _ in steps]
        ids = pad_rows(torch.cat([ids[:, None] for ids, _, _ in steps]), self.row_multiple)
        logits = self.head(self.hidden(self.embed_image(ids), caches)[:, 0])
        return list(logits[: sum(counts)].split(counts))

    def new_slots(self, rows: int) -> SlotCache:
        """A cache for the steps of `decode_slots`."""
        config, attn = self.config, self.blocks[0].attn
        length = config.text_length + config.image_length
        weight = self.image_embedding.weight
        return SlotCache(config.num_layers, rows, attn.heads[1], length, weight, head_size=attn.head_size)

    def decode_slots(self, image_ids: torch.Tensor, places: torch.Tensor, cache: SlotCache, length: int) -> torch.Tensor:
        """The first B rows of the cache, each at a place of its own: image_ids [B], their places among the image tokens [B] ->
        logits [B, V] of the next ones. length: see `SlotCache.layers`."""
        x, starts = self.embed_image(image_ids)[:, None], cache.starts[: len(places), None]
        rotation = self.rotation(starts + places[:, None], starts, x.dtype)
        return self.head(self._blocks(x, rotation, cache.layers(places, length))[:, 0])

    def hidden(self, x: torch.Tensor, caches: list[tuple[LlamaCache, int]] | None = None, text_length: int = 0) -> torch.Tensor:
        """Embedded tokens [B, T, hidden] -> what the last layer makes of each, normalised, of the same shape. caches: as
        in `Groups`, for groups of rows that stand one after the other; each begins at its own position, and knows its
        text's length. Without them: text_length, the positions of x before image token 0."""
        begins = [(start, cache.start) for cache, start in caches or () for _ in range(cache.k.shape[1])]
        begins = pad_rows(torch.tensor(begins), len(x)) if begins else torch.tensor([(0, text_length)])
        starts, texts = begins.to(x.device)[:, :, None].unbind(1)  # each [B or 1, 1]
        rotation = self.rotation(starts + torch.arange(x.shape[1], device=x.device), texts, x.dtype)
        layers = range(len(self.blocks))
        own = [Groups([(cache.k[i], cache.v[i], start) for cache, start in caches]) for i in layers] if caches else None
        return self._blocks(x, rotation, own)

    def _blocks(self, x, rotation: Rotation, caches: list[Groups] | list[SlotLayer] | None = None):
        for block, own in zip(self.blocks, caches or [None] * len(self.blocks), strict=True):
            x = block(x, rotation, own)
        return self.norm(x)


class LlamaPrior(LlamaForm):
    """Logits of image tokens given text and the image tokens before them.

    text_length is the most that a prompt may have; all prompts of one call have the same length. code_size: numbers in an
    image token's row of `image_embedding`.
    """

    @register_to_config
    def __init__(
        self,
        text_vocab_size: int,
        text_length: int,
        image_vocab_size: int,
        image_length: int,
        num_layers: int,
        num_heads: int,
        num_kv_heads: int,
        hidden_size: int,
        ffn_size: int,
        code_size: int,
        norm_eps: float = 1e-6,
        rope_theta: float = 10_000.0,
    ):
        super().__init__()
        self.text_embedding = nn.Embedding(text_vocab_size, hidden_size)
        self.image_embedding = nn.Embedding(image_vocab_size, code_size)
        self.image_aligner = nn.Sequential(nn.Linear(code_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, num_kv_heads, ffn_size, norm_eps) for _ in range(num_layers))
        self.norm = RMSNorm(hidden_size, norm_eps)
        self.head = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, image_vocab_size))

    def embed_text(self, text_ids: torch.Tensor) -> torch.Tensor:
        """[B, T] -> [B, T, hidden]."""
        return self.text_embedding(text_ids)

    def embed_image(self, image_ids: torch.Tensor) -> torch.Tensor:
        """[..., n] -> [..., n, hidden]."""
        return self.image_aligner(self.image_embedding(image_ids))

    def rotation(self, positions: torch.Tensor, text_length: torch.Tensor, dtype: torch.dtype) -> Rotation:
        """Of positions [B or 1, T], counted from the text's first: angles of position times theta^(-2i/D), in float32."""
        size = self.config.hidden_size // self.config.num_heads
        exponents = torch.arange(0, size, 2, device=positions.device, dtype=torch.float32) / size
        angles = (positions[..., None].float() / self.config.rope_theta**exponents).repeat(1, 1, 2)[:, :, None]  # [B, T, 1, D]
        return angles.cos().to(dtype), angles.sin().to(dtype)
