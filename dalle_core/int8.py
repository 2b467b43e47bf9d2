"""Linear layers with 8-bit weights, for CPUs: a quarter of the bytes to read, integer products.

Each row of a weight has its own scale; each row of the input is scaled to 8 bits as it comes. Sums of integers are exact
in any order, so a row's result depends on nothing but that row. What it costs is precision: a linear layer's output is
off by about 1 % of its spread (normal weights and inputs), see `tests/test_int8.py`.

CPUs without VNNI add two products of 8 bits in 16, and what is more than 32,767 is cut. A layer finds that out when it is
made, and then multiplies both halves of the input: x = (x - x // 2) + x // 2, so that no sum is cut. The result is the
same, for twice the products.
"""

from functools import cache

import torch
from torch import nn

from dalle_core.errors import ModelError
from dalle_core.memory import give_back
from dalle_core.packed import parents
from dalle_core.priors.rows import FEW_ROWS

LEVELS, MIDDLE = 127, 128


class Int8Linear(nn.Module):
    """A linear layer's 8-bit copy, through oneDNN's kernel (as `torch.compile` uses it for quantized models)."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach().float()
        self.scale = weight.abs().amax(dim=1).clamp(min=1e-12) / LEVELS  # [out]
        self.packed = _pack((weight / self.scale[:, None]).round().to(torch.int8))
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = None if linear.bias is None else linear.bias.detach().float()
        self.in_halves = _sums_are_cut(*weight.shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out], both float32."""
        rows = x.flatten(0, -2)
        scale = rows.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12) / LEVELS
        # Unsigned around 128: the signed kernel is a slow reference. By way of signed numbers: CPUs convert to those quickly.
        quantized = (rows / scale).round_().to(torch.int8).view(torch.uint8).add_(MIDDLE)
        if self.in_halves:
            half = quantized >> 1
            y = self._products(torch.cat([half, quantized.sub_(half)]), MIDDLE // 2)  # the weights are read once
            y = y[: len(rows)].add_(y[len(rows) :])
        else:
            y = self._products(quantized, MIDDLE)
        y = y.mul_(scale).unflatten(0, x.shape[:-1])
        return y if self.bias is None else y.add_(self.bias)

    def _products(self, quantized: torch.Tensor, middle: int) -> torch.Tensor:
        return _linear(quantized, middle, self.packed, self.scale, self.zeros)


def _pack(weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.onednn.qlinear_prepack(weight, [16, weight.shape[1]])


def _linear(x, middle, packed, scale, zeros):
    """x [B, in] uint8, which stands for x - middle; weights [out, in] int8, packed -> [B, out] float32."""
    return torch.ops.onednn.qlinear_pointwise(x, 1.0, middle, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], "")


@cache
def _sums_are_cut(outputs: int, inputs: int) -> bool:
    """Whether this machine's kernel for weights [outputs, inputs] is wrong for the largest numbers there are."""
    packed = _pack(torch.full((outputs, inputs), LEVELS, dtype=torch.int8))
    scale, zeros = torch.ones(outputs), torch.zeros(outputs, dtype=torch.int32)
    exact = float(inputs * LEVELS * LEVELS)
    for rows in (1, FEW_ROWS, 16, 64):  # for which there may be different kernels
        found = _linear(torch.full((rows, inputs), MIDDLE + LEVELS, dtype=torch.uint8), MIDDLE, packed, scale, zeros)
        if ((found - exact).abs() > 1e-4 * exact).any():
            return True
    return False


def quantize(model: nn.Module) -> None:
    """Replaces every linear layer of a prior on the CPU. Raises ModelError where the kernel is missing."""
    try:
        for module in parents(model):  # not the layers, which are to be freed
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    setattr(module, name, Int8Linear(child))
            give_back()
        model.row_multiple = FEW_ROWS
    except (AttributeError, RuntimeError) as error:
        raise ModelError(f"This PyTorch has no 8-bit kernels for this CPU ({str(error)[:100]}): use float32.") from None


def is_quantized(model: nn.Module) -> bool:
    return any(isinstance(module, Int8Linear) for module in model.modules())
