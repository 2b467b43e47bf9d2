"""3 x 3 convolutions of large maps with a quarter of the multiplications, for CPUs.

Winograd's F(4 x 4, 3 x 3) (Lavin and Gray 2015, "Fast algorithms for convolutional neural networks", section 4.3): a
patch of 6 x 6 inputs and a kernel are both transformed to 36 numbers a channel, multiplied one by one, summed over the
channels, and transformed back to 4 x 4 outputs. 36 products take the place of 144; the transforms are small beside them
where there are many channels. `python -m benchmarks.pixels` compares it with the convolutions that PyTorch has.
"""

import torch
import torch.nn.functional as F
from torch import nn

INPUT = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
KERNEL = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
PATCHES = 64  # at a time: what is made of them stays in the cache
IN_36_GROUPS = ([0, 0], [1, 1], [1, 1], 36)  # padding, stride, dilation, groups


def both_ways(matrix: list[list[float]]) -> torch.Tensor:
    """A matrix [n, m] along the columns and along the rows of a flattened square: [n * n, m * m], float32."""
    matrix = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(matrix, matrix).float()


class WinogradConv(nn.Conv2d):
    """Equals a convolution of 3 x 3, stride 1 and padding 1 up to rounding (about 1e-4 of the outputs' spread at most),
    and saves itself as the one that it was. For inference, in float32; small maps, sizes that are no multiples of 4, other
    devices and dtypes go the plain way. Takes four times the kernel's memory, beside it."""

    def __init__(self, conv: nn.Conv2d):
        super().__init__(conv.in_channels, conv.out_channels, 3, padding=1, device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        kernel = torch.einsum("pk,oik->poi", both_ways(KERNEL), conv.weight.detach().flatten(2))  # [36, out, in]
        # 36 matrix products side by side are a convolution in groups, of 1 x 1.
        kernel = kernel.flatten(0, 1)[:, :, None, None].contiguous(memory_format=torch.channels_last)
        size = [1, 36 * conv.in_channels, PATCHES, 1]
        self.packed = torch.ops.mkldnn._reorder_convolution_weight(kernel, *IN_36_GROUPS, size)
        self.register_buffer("to_factors", both_ways(INPUT), persistent=False)  # [36, 36]
        self.register_buffer("to_outputs", both_ways(OUTPUT), persistent=False)  # [16, 36]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, in, H, W] -> [B, out, H, W], channels last."""
        height, width = x.shape[2:]
        plain = height % 4 or width % 4 or height * width < 16 * PATCHES
        if plain or x.dtype != torch.float32 or x.device.type != "cpu":
            return super().forward(x)
        columns = width // 4
        rows = max(1, PATCHES // columns)
        y = x.new_empty(len(x), height // 4, 4, columns, 4, self.out_channels)
        # Memory for some rows of patches, used again and again: fresh memory is slow, the system clears it page by page.
        patches = x.new_empty(rows, columns, 6, 6, self.in_channels)
        # PATCHES of them even where the rows make fewer: the kernel was packed for this number.
        factors = x.new_zeros(max(columns, PATCHES), 36, self.in_channels)
        outputs = x.new_empty(rows * columns, 16, self.out_channels)
        for picture, result in zip(x.permute(0, 2, 3, 1), y):  # each alone: nothing depends on the others
            for first in range(0, len(result), rows):
                self._some_rows(picture, first, result[first : first + rows], patches, factors, outputs)
        return y.view(len(x), height, width, self.out_channels).permute(0, 3, 1, 2)

    def _some_rows(self, x, first, y, patches, factors, outputs):
        """x [H, W, in]; y [r, 4, columns, 4, out]: where to put the outputs of r rows of patches, `first` the first."""
        rows, columns, height = len(y), y.shape[2], len(x)
        count = rows * columns
        top, end = 4 * first - 1, 4 * (first + rows) + 1  # a row of x more on both sides
        part = F.pad(x[max(top, 0) : end], (0, 0, 1, 1, int(top < 0), int(end > height)))
        patches[:rows] = part.unfold(0, 6, 4).unfold(1, 6, 4).permute(0, 1, 3, 4, 2)
        flat = patches.view(-1, 36, self.in_channels)[:count]
        torch.bmm(self.to_factors.expand(count, -1, -1), flat, out=factors[:count])
        products = torch.ops.mkldnn._convolution_pointwise(
            factors.view(1, len(factors), 1, -1).permute(0, 3, 1, 2), self.packed, None, *IN_36_GROUPS, "none", [], ""
        )  # [1, 36 * out, PATCHES, 1]
        products = products.permute(0, 2, 3, 1).reshape(len(factors), 36, -1)[:count]
        torch.bmm(self.to_outputs.expand(count, -1, -1), products, out=outputs[:count])
        torch.add(outputs[:count].view(rows, columns, 4, 4, -1).transpose(1, 2), self.bias, out=y)
