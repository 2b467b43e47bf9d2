"""The terms of the image tokenizer's loss; `image_tokenizer.py` says how they come together."""

import torch
import torch.nn.functional as F
from diffusers import VQModel
from torch import nn

from dalle_core.training import processes
from dalle_core.training.vq_model import encode


def reconstruction_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """L1 of a pyramid of sizes, and of the differences between neighbours (edges). x, y [B, 3, H, W] in [-1, 1].

    The small sizes are there for colours: a cell that is a shade off is a visible square.
    """
    loss = F.l1_loss(x, y) + sum(F.l1_loss(F.avg_pool2d(x, side), F.avg_pool2d(y, side)) for side in (2, 4, 8, 16))
    for dim in (2, 3):
        loss = loss + F.l1_loss(x.diff(dim=dim), y.diff(dim=dim))
    return loss


class Discriminator(nn.Module):
    """A projected discriminator (Sauer et al. 2021, arXiv 2111.01007): small heads on features of a trained network.

    A PatchGAN on pixels first has to learn what edges and textures are; in a run of hours on a CPU it never got ahead of
    the decoder. These features know, and the perceptual distance has computed them already.
    """

    def __init__(self, channels: list[int], width: int = 32):
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(count, width, 3, 1, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 3, 1, 1))
            for count in channels
        )

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Features [B, C, h, w] of each layer, channels of length 1 -> logits [B, 1, h, w] of each layer."""
        return [head(feature * feature.shape[1] ** 0.5) for head, feature in zip(self.heads, features, strict=True)]


def locality_loss(model: VQModel, pixels: torch.Tensor, codes: torch.Tensor, generator: torch.Generator):
    """How much the encoder's vectors depend on what stands elsewhere: the last term of L_VQ, written above.

    A random rectangle of cells of each picture is replaced by that of its neighbour in the batch; away from the seam
    the vectors should be near the codes of the picture each part came from. pixels [B, 3, H, W], codes [B, C, h, w].
    """
    height, width = codes.shape[2:]

    def span(length):  # a third to three quarters of the side
        size = int(torch.randint(length // 3, length - length // 4, (), generator=generator))
        start = int(torch.randint(0, length - size + 1, (), generator=generator))
        return start, start + size

    (top, bottom), (left, right) = span(height), span(width)
    inside = torch.zeros(1, 1, height, width, device=codes.device)
    inside[:, :, top:bottom, left:right] = 1
    cell = pixels.shape[2] // height
    mixed = torch.lerp(pixels, processes.roll(pixels), F.interpolate(inside, scale_factor=cell))
    # A cell beside the seam may tell what it borders on.
    seam = F.max_pool2d(inside, 3, 1, 1) + F.max_pool2d(-inside, 3, 1, 1)
    target = torch.lerp(codes, processes.roll(codes), inside).detach()
    error = (encode(model, mixed).float() - target).square() * (1 - seam)
    return error.mean() / processes.gather(codes).var()  # a share of the variance, else small vectors would do


def psnr(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each picture [B]; pixels in [-1, 1], so the peak is 2."""
    return 10 * torch.log10(4 / (x - y.clamp(-1, 1)).square().mean(dim=(1, 2, 3)).clamp(min=1e-10))


def ssim(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Structural similarity (Wang et al. 2004) of x and y [B, 3, H, W] in [-1, 1] -> [B], 1 for equal pictures.

        SSIM = (2 mx my + c1) (2 sxy + c2) / ((mx^2 + my^2 + c1) (sx^2 + sy^2 + c2))

    with means, variances and covariance under a Gaussian window of 11 pixels (sigma 1.5), mean over places and channels.
    """
    offsets = torch.arange(-5.0, 6.0, device=x.device)
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = (window / window.sum()).expand(3, 1, 1, 11)

    def mean(z):
        return F.conv2d(F.conv2d(z, window, groups=3), window.transpose(2, 3), groups=3)

    mx, my = mean(x), mean(y)
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # the range of the pixels is 2
    covariance = mean(x * y) - mx * my
    variances = mean(x * x) - mx * mx + mean(y * y) - my * my
    similarity = (2 * mx * my + c1) * (2 * covariance + c2) / ((mx * mx + my * my + c1) * (variances + c2))
    return similarity.mean((1, 2, 3))
