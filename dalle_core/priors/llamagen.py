"""LlamaGen's prior (Sun et al. 2024, arXiv 2406.06525): a Llama over image tokens that a text encoder tells what to draw.

T5 (Raffel et al. 2020, arXiv 1910.10683) reads the prompt; a small MLP brings each of its vectors to the width of the prior,
and they stand before the image tokens as the caption. Image tokens have rotary positions in two dimensions: half of a head's
pairs turn by the row of the token, half by its column. Caption positions have none: the published code fills their sines
and cosines with zeros, so that their queries and keys are zero, and each of them gets the same share of everyone's attention.

There the caption is always 120 positions, filled up with masked ones at its left; without those the result is the same, so
here it is as long as the prompt. The null caption is a table of 120 vectors, of which the last are read, as many as the prompt
has: it depends on the prompt's length.
"""

import math

import torch
from diffusers.configuration_utils import register_to_config
from torch import nn
from transformers import T5Config
from transformers.models.t5.modeling_t5 import T5Stack  # what T5EncoderModel holds, without its second name for the table

from dalle_core.priors.llama import Block, LlamaForm, RMSNorm, Rotation

PAD = 0  # T5's


class LlamaGenPrior(LlamaForm):
    """Logits of image tokens given text ids of T5's and the image tokens before them.

    text_length is the most that a prompt may have, its end mark included; all prompts of one call have the same length. Where
    a row has PAD, the null caption is read; a row of nothing but PAD and an end mark is the null prompt. encoder_…: T5's sizes.
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
        hidden_size: int,
        ffn_size: int,
        encoder_layers: int,
        encoder_heads: int,
        encoder_head_size: int,
        encoder_size: int,
        encoder_ffn_size: int,
        norm_eps: float = 1e-5,
        rope_theta: float = 10_000.0,
    ):
        super().__init__()
        self.text_encoder = T5Stack(
            T5Config(
                vocab_size=text_vocab_size,
                d_model=encoder_size,
                d_kv=encoder_head_size,
                d_ff=encoder_ffn_size,
                num_layers=encoder_layers,
                num_heads=encoder_heads,
                feed_forward_proj="gated-gelu",
                pad_token_id=PAD,
                use_cache=False,
                is_encoder_decoder=False,
                attn_implementation="eager",  # by plain products, as `rows.attention` has it
            )
        )
        self.register_buffer("null_caption", torch.zeros(text_length, encoder_size))
        self.caption_mlp = nn.Sequential(
            nn.Linear(encoder_size, hidden_size, bias=False), nn.GELU("tanh"), nn.Linear(hidden_size, hidden_size, bias=False)
        )
        self.image_embedding = nn.Embedding(image_vocab_size, hidden_size)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, num_heads, ffn_size, norm_eps) for _ in range(num_layers))
        self.norm = RMSNorm(hidden_size, norm_eps)
        self.head = nn.Linear(hidden_size, image_vocab_size, bias=False)

    def embed_text(self, text_ids: torch.Tensor) -> torch.Tensor:
        """[B, T] -> the caption [B, T, hidden]."""
        given = text_ids != PAD
        x = self.text_encoder.embed_tokens(text_ids)
        mask = torch.zeros_like(x[:, None, None, :, 0]).masked_fill(
            ~given[:, None, None], torch.finfo(x.dtype).min
        )  # [B, 1, 1, T]
        features = self.text_encoder(inputs_embeds=x, attention_mask=mask).last_hidden_state
        read = given & given[:, :-1].any(dim=1, keepdim=True)  # an end mark alone is no prompt
        null = self.null_caption[-text_ids.shape[1] :]
        return self.caption_mlp(torch.where(read[..., None], features, null))

    def embed_image(self, image_ids: torch.Tensor) -> torch.Tensor:
        """[..., n] -> [..., n, hidden]."""
        return self.image_embedding(image_ids)

    def rotation(self, positions: torch.Tensor, text_length: torch.Tensor, dtype: torch.dtype) -> Rotation:
        """Of positions [B or 1, T], counted from the caption's first, of which there are text_length [B or 1, 1]: of a token's
        D/2 angles the first half is its row times theta^(-2i/(D/2)), the second its column, in float32."""
        half = self.config.hidden_size // self.config.num_heads // 2
        exponents = torch.arange(0, half, 2, device=positions.device, dtype=torch.float32) / half
        place, side = positions - text_length, math.isqrt(self.config.image_length)  # place: below 0 in the caption
        angles = [n[..., None].float() / self.config.rope_theta**exponents for n in (place // side, place % side)]
        angles = torch.cat(angles * 2, dim=-1)[:, :, None]  # [B, T, 1, D]
        turned = (place >= 0)[:, :, None, None]
        return (angles.cos() * turned).to(dtype), (angles.sin() * turned).to(dtype)
