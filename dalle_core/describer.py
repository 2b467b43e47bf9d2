"""What lets a language model that draws also look at a picture and answer in words, as in Janus (Chen et al. 2025, arXiv
2501.17811).

A vision tower (SigLIP's, Zhai et al. 2023) turns the picture into vectors, two linear layers bring them to the width of the
prior, which reads them in the place of one token of the question; a head of its own writes the answer, token by token. It
is no part of drawing, so it is loaded only when somebody asks.
"""

from collections.abc import Generator
from functools import partial

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from PIL import Image
from torch import nn
from transformers.models.janus.configuration_janus import JanusVisionConfig
from transformers.models.janus.modeling_janus import JanusVisionModel

from dalle_core.engine import Engine
from dalle_core.image_tokenizer import flat, to_pixels
from dalle_core.priors.llama import LlamaCache

GREY = (127, 127, 127)  # beside a picture that is no square
SMALLEST = 14  # pixels of its shorter side


class Describer(ModelMixin, ConfigMixin):
    """image_size: pixels a side, of patches of patch_size. question_template: the words around a question ("{prompt}") and
    "<image_placeholder>" for the picture. Sizes of the tower: num_layers, num_heads, vision_size, mlp_size."""

    @register_to_config
    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        question_template: str,
        num_layers: int,
        num_heads: int,
        vision_size: int,
        mlp_size: int,
        patch_size: int,
        image_size: int,
    ):
        super().__init__()
        self.tower = JanusVisionModel(
            JanusVisionConfig(
                hidden_size=vision_size,
                num_hidden_layers=num_layers,
                num_attention_heads=num_heads,
                image_size=image_size,
                patch_size=patch_size,
                mlp_ratio=mlp_size / vision_size,
            )
        )
        self.aligner = nn.Sequential(nn.Linear(vision_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size))
        self.text_head = nn.Linear(hidden_size, vocab_size, bias=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [B, 3, S, S] in [-1, 1] -> what the prior reads of them [B, patches, hidden]."""
        return self.aligner(self.tower(pixel_values=pixels.to(self.aligner[0].bias.dtype)).last_hidden_state)

    def look(self, image: Image.Image) -> torch.Tensor:
        """A picture as the tower was trained on it [1, 3, S, S]: the whole of it, the longer side S, the rest grey."""
        image, side = flat(image), self.config.image_size
        width, height = (max(int(size / max(image.size) * side), SMALLEST) for size in image.size)
        square = Image.new("RGB", (side, side), GREY)
        square.paste(image.resize((width, height), Image.Resampling.BICUBIC), ((side - width) // 2, (side - height) // 2))
        return to_pixels([square])


def answer(
    engine: Engine, describer: Describer, ids: list[int], place: int, pixels: torch.Tensor, end: int, most: int
) -> Generator[int, None, None]:
    """Yields the ids of an answer, the likeliest each time, until the id `end` or `most` of them. Closing it stops the work.

    ids: the question's; the one at `place` stands for the picture. Each id is computed on the engine's thread, between the
    tokens of those who draw.
    """
    prior = engine.prior
    device = prior.text_embedding.weight.device
    read = 0

    @torch.inference_mode()
    def begin() -> tuple[LlamaCache, int]:
        text = prior.text_embedding(torch.tensor([ids], device=device))
        x = torch.cat([text[:, :place], describer(pixels.to(device)).to(text.dtype), text[:, place + 1 :]], dim=1)
        cache = LlamaCache(prior, 1, x.shape[1] + most, x.shape[1])
        return cache, advance(x, cache, 0)

    @torch.inference_mode()
    def advance(x: torch.Tensor, cache: LlamaCache, start: int) -> int:
        return int(describer.text_head(prior.hidden(x, [(cache, start)])[:, -1]).argmax())

    @torch.inference_mode()
    def go_on(id: int) -> int:
        return advance(prior.text_embedding(torch.tensor([[id]], device=device)), cache, cache.start + read)

    cache, found = engine.run(begin)
    while found != end and read < most:
        yield found
        if read + 1 < most:
            found = engine.run(partial(go_on, found))
        read += 1
