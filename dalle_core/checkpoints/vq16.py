"""VQ-16, the image tokenizer of LlamaGen (Sun et al. 2024, arXiv 2406.06525) and Janus -> VQModel.

A VQGAN whose codes are compared, and decoded, as unit vectors (`l2_normalize`; Yu et al. 2021, arXiv 2110.04627). The names
differ from taming's: the levels of the decoder are counted in running order, and parts of a list of their own.
"""

import re

import torch.nn.functional as F
from diffusers import VQModel

from dalle_core.checkpoints import vqgan
from dalle_core.checkpoints.tensors import Tensors

_DECODER_LEVEL = re.compile(r"^decoder\.(?:up|conv_blocks)\.(\d{1,3})\.")


def convert(file: Tensors) -> VQModel:
    """A file in LlamaGen's and DeepSeek's names, or in transformers' -> VQModel, with its codes stored as the unit vectors that
    they stand for. Raises ModelError naming file and key."""
    levels = 1 + max((int(found[1]) for name in file.tensors if (found := _DECODER_LEVEL.match(name))), default=-1)
    names = {name: _taming_name(name, levels) for name in file.tensors}
    tensors = {names[name]: value for name, value in file.tensors.items()}
    model = vqgan.convert(Tensors(file.path, tensors, {names[name]: file.name(name) for name in names}), pixels_from_zero=False)
    codes = model.quantize.embedding.weight
    codes.data = F.normalize(codes.data, dim=-1)
    return model


def _taming_name(name: str, levels: int) -> str:
    """Both count the decoder's levels in running order; taming counts from full resolution."""
    name = re.sub(r"\.mid\.([012])\.", lambda found: f".mid.{('block_1', 'attn_1', 'block_2')[int(found[1])]}.", name)
    name = re.sub(r"^encoder\.conv_blocks\.", "encoder.down.", name)
    name = _DECODER_LEVEL.sub(lambda found: f"decoder.up.{levels - 1 - int(found[1])}.", name)
    return re.sub(r"\.(?:down|up)\.\d{1,3}\.res\.", lambda found: found[0].replace(".res.", ".block."), name)
