"""Linear layers with 8-bit weights, for CPUs: a quarter of the bytes to read, integer products.

Each row of a weight has its own scale; each row of the input is scaled to 8 bits as it comes. Sums of integers are exact
in any order, so a row's result depends on nothing but that row. What it costs is precision: a linear layer's output is
off by about 1 % of its spread (normal weights and inputs), see `tests/test_int8.py`.
"""

import torch
from torch import nn

from dalle_core.errors import ModelError
from dalle_core.memory import give_back
from dalle_core.rows import FEW_ROWS

LEVELS, MIDDLE = 127, 128


class Int8Linear(nn.Module):
    """A linear layer's 8-bit copy, through oneDNN's kernel (as `torch.compile` uses it for quantized models)."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.detach().float()
        self.scale = weight.abs().amax(dim=1).clamp(min=1e-12) / LEVELS  # [out]
        quantized = (weight / self.scale[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(quantized, [16, weight.shape[1]])
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = None if linear.bias is None else linear.bias.detach().float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out], both float32."""
        rows = x.flatten(0, -2)
        scale = rows.abs().amax(dim=1, keepdim=True).clamp_(min=1e-12) / LEVELS
        # Unsigned around 128, as the signed kernel is a slow reference; by way of signed numbers, which CPUs convert to quickly.
        quantized = (rows / scale).round_().to(torch.int8).view(torch.uint8).add_(MIDDLE)
        y = torch.ops.onednn.qlinear_pointwise(
            quantized, 1.0, MIDDLE, self.packed, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        y = y.mul_(scale).unflatten(0, x.shape[:-1])
        return y if self.bias is None else y.add_(self.bias)


def quantize(model: nn.Module) -> None:
    """Replaces every linear layer of a prior on the CPU. Raises ModelError where the kernel is missing."""
    try:
        for module in [module for module in model.modules() if not isinstance(module, nn.Linear)]:  # which are to be freed
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    setattr(module, name, Int8Linear(child))
            give_back()
        model.row_multiple = FEW_ROWS
    except (AttributeError, RuntimeError) as error:
        raise ModelError(f"This PyTorch has no 8-bit kernels for this CPU ({str(error)[:100]}): use float32.") from None


def is_quantized(model: nn.Module) -> bool:
    return any(isinstance(module, Int8Linear) for module in model.modules())
