"""What makes the decoder of an image tokenizer quick on a CPU.

Enlarging and convolving in one step: a decoder doubles a map by repeating each cell 2 x 2 times and convolves the
result with a 3 x 3 kernel. Of the nine products a cell, some are with the same number: summing their weights first
leaves four. That is a transposed convolution with stride 2, whose 4 x 4 kernel is the 3 x 3 one convolved with a box of
ones.

Fewer multiplications in the 3 x 3 convolutions of large maps: see `winograd.py`.

Maps lie in the order of channels, as diffusers' attention leaves them. oneDNN's kernels for it sum up otherwise than those for
PyTorch's usual order: of VQ-16 a pixel in [-1, 1] is off by up to 1.5e-5 from the exact one, there by 5e-6 (random weights).
"""

import torch
import torch.nn.functional as F
from diffusers import VQModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

from dalle_core.winograd import WinogradConv

WIDE = 96  # channels from which the transforms of `winograd.py` are worth their time


class UpsampleConv(nn.Module):
    """Equals diffusers' Upsample2D up to rounding, and saves itself as the one that it was. For inference."""

    def __init__(self, upsample: Upsample2D):
        super().__init__()
        self.conv = upsample.conv
        weight = self.conv.weight.detach()  # [out, in, 3, 3]
        box = weight.new_ones(1, 1, 2, 2)
        kernel = F.conv2d(weight.flatten(0, 1)[:, None].flip(2, 3), box, padding=1)
        kernel = kernel.view(*weight.shape[:2], 4, 4).transpose(0, 1)  # [in, out, 4, 4]
        self.register_buffer("kernel", kernel.contiguous(memory_format=torch.channels_last), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, h, w] -> [B, C', 2h, 2w]."""
        return F.conv_transpose2d(x, self.kernel, self.conv.bias, stride=2, padding=1)


@torch.inference_mode()
def quicken(model: VQModel) -> None:
    """Replaces layers of a decoder, and lays its weights out as convolutions on a CPU read them best."""
    decoder = model.decoder
    for block in decoder.up_blocks:
        for i, upsample in enumerate(block.upsamplers or []):
            block.upsamplers[i] = UpsampleConv(upsample)
    decoder.to(memory_format=torch.channels_last)
    if torch.backends.mkldnn.is_available() and decoder.conv_in.weight.dtype == torch.float32:
        for block in decoder.up_blocks[1:]:  # the first one's maps are small
            for resnet in block.resnets:
                resnet.conv1, resnet.conv2 = _winograd(resnet.conv1), _winograd(resnet.conv2)


def _winograd(conv: nn.Conv2d) -> nn.Conv2d:
    if min(conv.in_channels, conv.out_channels) < WIDE:
        return conv
    try:
        quick = WinogradConv(conv)
        quick(conv.weight.new_zeros(1, conv.in_channels, 32, 32))
    except (AttributeError, RuntimeError):  # PyTorch's own operations, which not every build has
        return conv
    return quick


def _computes_in_bfloat16() -> bool:
    try:  # PyTorch's own questions; the first one asks oneDNN, which may be told to leave out what the CPU has
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    except (AttributeError, RuntimeError):
        return False


def narrow(model: VQModel) -> None:
    """The decoder in bfloat16, if this CPU computes in it: about half the time. The embedded model's pixels are off by half a
    level of 255 or less on average; see `benchmarks.pixels` for a deeper decoder."""
    if _computes_in_bfloat16():
        model.post_quant_conv.to(torch.bfloat16)
        model.decoder.to(torch.bfloat16)
