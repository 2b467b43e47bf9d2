"""The prior as encoder and decoder: p(image token i | text, image tokens before i), as in DALL·E mini and mega.

A BART in NormFormer's form: text goes through a bidirectional encoder, image tokens through a causal decoder that looks
at the encoder's output (cross-attention). Every block normalises its input and its output, the feed-forward part is
gated (GLU), no linear layer has a bias. The decoder starts from a token of its own, so image token i is predicted at
decoder position i. Shapes and order: the source of min-dalle and dalle-mini.
"""

from copy import copy

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from dalle_core.priors.loss import head_loss
from dalle_core.priors.rows import ROW_MULTIPLE, Groups, attention, pad_rows, repeat_rows
from dalle_core.priors.slots import SlotCache, SlotLayer, SlotText

TEXT_MULTIPLE = 8  # positions of text that are read come in multiples of it


class BartCache:
    """What decoding reuses: for every prompt the encoder's keys and values, for every row those of its image tokens.

    The rows of a prompt stand side by side. All is allocated once; the caller owns it.
    """

    def __init__(self, prior: "BartPrior", mask: torch.Tensor):
        config, weight = prior.config, prior.image_embedding.weight
        heads, size = config.num_heads, config.hidden_size // config.num_heads

        def empty(length):
            shape = (config.decoder_layers, len(mask), heads, length, size)
            return torch.empty(shape, device=weight.device, dtype=weight.dtype)  # [L, B, H, T, D]

        self.k, self.v = empty(config.image_length), empty(config.image_length)
        self.text_k, self.text_v = empty(mask.shape[-1]), empty(mask.shape[-1])
        self.mask = mask  # [P, 1, 1, S], true where there is text
        self.start = 1  # positions before image token 0: the start token's

    def repeat(self, copies: int, filled: int) -> "BartCache":
        """A cache of `copies` rows a prompt, in which the first `filled` positions stand; the text's part is shared."""
        other = copy(self)
        other.k, other.v = repeat_rows(self.k, copies, filled), repeat_rows(self.v, copies, filled)
        return other


def heads_of(x: torch.Tensor, parts: int, num_heads: int) -> torch.Tensor:
    """[B, T, parts * H * D] -> [parts, B, H, T, D]."""
    return x.unflatten(-1, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4)


class SelfAttention(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x, mask=None, causal=False, caches: Groups | SlotLayer | None = None):
        """x [B, T, hidden]: whole sequences from position 0, or, with caches, what stands at each cache's own place.

        caches: (k, v [b, H, S, D], start), this layer's, for groups of rows that stand one after the other in x.
        """
        q, k, v = heads_of(self.qkv(x), 3, self.num_heads)
        y = attention(q, k, v, mask, causal) if caches is None else caches.attend(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(hidden_size, hidden_size, bias=False)
        self.kv = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.out = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x, texts: Groups | SlotText):
        """x [B, T, hidden]; texts: (k, v [P, H, S, D], mask, rows) for groups of rows that stand one after the other in
        x, the rows of each group's P prompts side by side; or each row's own."""
        q = self.q(x)
        if isinstance(texts, SlotText):
            return self.out(texts.attend(heads_of(q, 1, self.num_heads)[0]).transpose(1, 2).flatten(2))
        return self.out(self._attend(q, texts))

    @torch.compiler.disable
    def _attend(self, q, texts):
        """q [B, T, hidden] -> the same shape."""
        groups, row = [], 0
        for k, v, mask, rows in texts.parts:
            # The rows of a prompt become its queries: its keys and values are read once, not once a row.
            queries = q[row : row + rows].reshape(len(k), -1, q.shape[-1])
            queries = heads_of(queries, 1, self.num_heads)[0]  # [P, H, rows/P*T, D]
            count = queries.shape[2]  # filled up like the rows of a batch, see rows.py
            queries = F.pad(queries, (0, 0, 0, -count % ROW_MULTIPLE))
            y = attention(queries, k, v, mask)[:, :, :count]
            groups.append(y.transpose(1, 2).reshape(rows, *q.shape[1:]))
            row += rows
        groups.append(q.new_zeros(len(q) - row, *q.shape[1:]))  # the rows that fill the batch up
        return torch.cat(groups)


class GLU(nn.Module):
    """Gated feed-forward with a norm inside ("GLU variants improve transformer", Shazeer 2020, in NormFormer's form)."""

    def __init__(self, hidden_size: int, ffn_size: int):
        super().__init__()
        self.ln0 = nn.LayerNorm(hidden_size)
        self.gate_and_value = nn.Linear(hidden_size, 2 * ffn_size, bias=False)
        self.ln1 = nn.LayerNorm(ffn_size)
        self.out = nn.Linear(ffn_size, hidden_size, bias=False)

    def forward(self, x):
        gate, value = self.gate_and_value(self.ln0(x)).chunk(2, dim=-1)
        return self.out(self.ln1(F.gelu(gate) * value))


class EncoderLayer(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int, ffn_size: int):
        super().__init__()
        self.pre_self_attn_ln = nn.LayerNorm(hidden_size)
        self.self_attn = SelfAttention(hidden_size, num_heads)
        self.self_attn_ln = nn.LayerNorm(hidden_size)
        self.glu = GLU(hidden_size, ffn_size)

    def forward(self, x, mask):
        x = x + self.self_attn_ln(self.self_attn(self.pre_self_attn_ln(x), mask))
        return x + self.glu(x)


class DecoderLayer(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int, ffn_size: int):
        super().__init__()
        self.pre_self_attn_ln = nn.LayerNorm(hidden_size)
        self.self_attn = SelfAttention(hidden_size, num_heads)
        self.self_attn_ln = nn.LayerNorm(hidden_size)
        self.pre_cross_attn_ln = nn.LayerNorm(hidden_size)
        self.cross_attn = CrossAttention(hidden_size, num_heads)
        self.cross_attn_ln = nn.LayerNorm(hidden_size)
        self.glu = GLU(hidden_size, ffn_size)

    def forward(self, x, texts: Groups | SlotText, caches: Groups | SlotLayer | None = None):
        x = x + self.self_attn_ln(self.self_attn(self.pre_self_attn_ln(x), causal=True, caches=caches))
        x = x + self.cross_attn_ln(self.cross_attn(self.pre_cross_attn_ln(x), texts))
        return x + self.glu(x)


class BartPrior(ModelMixin, ConfigMixin):
    """Logits of image tokens given text and the image tokens before them.

    start_token_id is the row of `image_embedding` that the decoder begins with; the table may hold more rows than there
    are image tokens, as the published ones do.
    """

    row_multiple = ROW_MULTIPLE  # rows of a decoding pass come in multiples of it
    _repeated_blocks = ["EncoderLayer", "DecoderLayer"]  # what diffusers' compile_repeated_blocks compiles

    @register_to_config
    def __init__(
        self,
        text_vocab_size: int,
        text_length: int,
        image_vocab_size: int,
        image_length: int,
        encoder_layers: int,
        decoder_layers: int,
        num_heads: int,
        hidden_size: int,
        ffn_size: int,
        embedded_image_tokens: int,
        start_token_id: int,
        pad_token_id: int = 1,
    ):
        super().__init__()
        sizes = (hidden_size, num_heads, ffn_size)
        self.text_embedding = nn.Embedding(text_vocab_size, hidden_size)
        self.text_position = nn.Embedding(text_length, hidden_size)
        self.text_ln = nn.LayerNorm(hidden_size)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(encoder_layers))
        self.encoder_ln = nn.LayerNorm(hidden_size)
        self.image_embedding = nn.Embedding(embedded_image_tokens, hidden_size)
        self.image_position = nn.Embedding(image_length, hidden_size)
        self.image_ln = nn.LayerNorm(hidden_size)
        self.decoder = nn.ModuleList(DecoderLayer(*sizes) for _ in range(decoder_layers))
        self.decoder_ln = nn.LayerNorm(hidden_size)
        self.head = nn.Linear(hidden_size, image_vocab_size, bias=False)

    def encode_text(self, text_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """text_ids [P, S] -> (states [P, S, hidden], mask [P, 1, 1, S], true at text)."""
        mask = (text_ids != self.config.pad_token_id)[:, None, None]
        x = self.text_ln(self.text_embedding(text_ids) + self.text_position.weight[: text_ids.shape[1]])
        for layer in self.encoder:
            x = layer(x, mask)
        return self.encoder_ln(x), mask

    def forward(self, text_ids: torch.Tensor, image_ids: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """text_ids [B, text_length], image_ids [B, n] -> logits [B, n + 1, V] of the image tokens 0 ... n; with `targets`
        [B, n + 1], the tokens themselves, their mean cross-entropy in nats."""
        text, mask = self.encode_text(text_ids)
        x = self._embed_image(image_ids)
        for layer in self.decoder:
            k, v = heads_of(layer.cross_attn.kv(text), 2, self.config.num_heads)
            x = layer(x, Groups([(k, v, mask, len(x))]))
        x = self.decoder_ln(x)
        return self.head(x) if targets is None else head_loss(x, self.head, targets)

    def prefill(
        self, text_ids: torch.Tensor, copies: int = 1, image_ids: torch.Tensor | None = None
    ) -> tuple[BartCache, torch.Tensor]:
        """Reads P prompts [P, text_length], each once, for `copies` candidates each; image_ids [n]: the image tokens
        that all of them begin with.

        Returns the cache for P * copies rows, the copies of a prompt side by side, and each row's logits
        [P * copies, V] of image token n.
        """
        prompts = len(text_ids)
        filled = int((text_ids != self.config.pad_token_id).any(0).nonzero().max()) + 1  # nothing looks at what follows
        text, mask = self.encode_text(text_ids[:, : -(-filled // TEXT_MULTIPLE) * TEXT_MULTIPLE])
        cache = BartCache(self, mask)
        x = self._embed_image(text_ids.new_empty(prompts, 0) if image_ids is None else image_ids.expand(prompts, -1))
        for i, layer in enumerate(self.decoder):
            cache.text_k[i], cache.text_v[i] = heads_of(layer.cross_attn.kv(text), 2, self.config.num_heads)
            texts = Groups([(cache.text_k[i], cache.text_v[i], cache.mask, prompts)])
            x = layer(x, texts, Groups([(cache.k[i], cache.v[i], 0)]))
        logits = self.head(self.decoder_ln(x[:, -1]))
        return cache.repeat(copies, x.shape[1]), logits.repeat_interleave(copies, dim=0)

    def decode(self, steps: list[tuple[torch.Tensor, BartCache, int]]) -> list[torch.Tensor]:
        """For each (image_ids [B], cache, position), each row's image token `position`: logits [B, V] of the next one.

        Several steps, of requests that know nothing of each other, go through the weights together.
        """
        # The start token stands before image token 0.
        x = [self.image_embedding(ids[:, None]) + self.image_position.weight[position + 1] for ids, _, position in steps]
        caches = [(cache, position + 1) for _, cache, position in steps]
        counts = [len(ids) for ids, _, _ in steps]
        x = self.image_ln(pad_rows(torch.cat(x), self.row_multiple))
        for i, layer in enumerate(self.decoder):
            texts = [(c.text_k[i], c.text_v[i], c.mask, rows) for (c, _), rows in zip(caches, counts)]
            x = layer(x, Groups(texts), Groups([(c.k[i], c.v[i], start) for c, start in caches]))
        return list(self.head(self.decoder_ln(x[:, 0]))[: sum(counts)].split(counts))

    def new_slots(self, rows: int) -> SlotCache:
        """A cache for the steps of `decode_slots`."""
        config, weight = self.config, self.image_embedding.weight
        return SlotCache(config.decoder_layers, rows, config.num_heads, config.image_length, weight, config.text_length)

    def decode_slots(self, image_ids: torch.Tensor, places: torch.Tensor, cache: SlotCache, length: int) -> torch.Tensor:
        """The first B rows of the cache, each at a place of its own: image_ids [B], their places among the image tokens [B] ->
        logits [B, V] of the next ones. length: see `SlotCache.layers`."""
        x = self.image_ln(self.image_embedding(image_ids) + self.image_position(places + 1))[:, None]
        for layer, text, own in zip(self.decoder, cache.texts(len(places)), cache.layers(places, length)):
            x = layer(x, text, own)
        return self.head(self.decoder_ln(x[:, 0]))

    def _embed_image(self, image_ids):
        """[B, n] -> [B, n + 1, hidden]: the start token stands before image token 0."""
        start = image_ids.new_full((len(image_ids), 1), self.config.start_token_id)
        ids = torch.cat([start, image_ids], dim=1)
        return self.image_ln(self.image_embedding(ids) + self.image_position.weight[: ids.shape[1]])
