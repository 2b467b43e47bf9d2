"""Linear layers whose weights lie as the CPU's kernels read them: arranged once, not at every product.

Drawing a token is one pass through all weights for a few rows. oneDNN's blocked layout makes that about twice as fast as
`F.linear` in float32, and a row's result does not depend on how many rows there are. The packed copy takes the place
of the plain one; it takes no more memory.
"""

import torch
from torch import nn

from dalle_core.errors import ModelError
from dalle_core.memory import give_back, is_out_of_memory
from dalle_core.priors.rows import FEW_ROWS

TYPICAL_ROWS = 32  # what the layout is chosen for; any number of rows is right


class PackedLinear(nn.Module):
    """A linear layer's packed copy. It is for inference, on the CPU, and saves itself as the layer that it was."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), TYPICAL_ROWS)
        self.bias = None if linear.bias is None else linear.bias.detach().clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out]."""
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[prefix + "weight"] = self.packed.to_dense()
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias

    def _apply(self, fn, recurse=True):
        here = torch.empty(0, dtype=self.packed.dtype)
        there = fn(here)
        if (there.dtype, there.device) != (here.dtype, here.device):
            raise ModelError("This model is packed for the CPU: load it again with the device and dtype that you want.")
        return self


def parents(model: nn.Module) -> list[nn.Module]:
    """The modules whose linear layers draw: all but those of a prior's text encoder, which runs once a drawing, and is a
    library's, whose code looks at its layers' weights."""
    left = set(model.text_encoder.modules()) if hasattr(model, "text_encoder") else set()
    return [module for module in model.modules() if module not in left and not isinstance(module, nn.Linear)]


@torch.inference_mode()
def pack(model: nn.Module) -> None:
    """Replaces the linear layers of a model on the CPU, where oneDNN can and keeps rows apart; leaves it as it is where
    not. Sets `model.row_multiple`."""
    shapes = {
        layer.weight.shape: layer for parent in parents(model) for layer in parent.children() if isinstance(layer, nn.Linear)
    }
    dtype = next(iter(shapes.values())).weight.dtype
    if not torch.backends.mkldnn.is_available() or dtype not in (torch.float32, torch.bfloat16):
        return
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return
        if not all(_rows_are_apart(PackedLinear(linear)) for linear in shapes.values()):
            return
    except (AttributeError, RuntimeError) as error:  # PyTorch's own operations, which not every build has
        if isinstance(error, RuntimeError) and is_out_of_memory(error):
            raise
        return
    del shapes  # from here on each plain copy is freed when its packed one is there, and leaves its place to the next
    for module in parents(model):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child))
        give_back()
    model.row_multiple = FEW_ROWS


def _rows_are_apart(layer: PackedLinear) -> bool:
    """Whether this machine's kernels give a row the same result, to the last bit, among few and among many."""
    x = torch.randn(67, layer.packed.shape[1], generator=torch.Generator().manual_seed(0)).to(layer.packed.dtype)
    many = layer(x)
    return all(torch.equal(layer(x[:rows]), many[:rows]) for rows in range(FEW_ROWS, 34, FEW_ROWS))
