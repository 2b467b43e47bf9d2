"""What memory a training step will take, before it is taken.

At the end of the way forward a step holds the weights, the optimizer's states, the moving average and what autograd keeps
for the way back; on that way back this shrinks as gradients grow. Then the optimizer works on weights and gradients. So

    peak = weights + optimizer + average + max(activations + twice the largest of them, gradients + the optimizer's workspace)

where the largest stands for the gradients before and behind what is being gone back through.
"""

from collections import defaultdict

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks


def activations(model: nn.Module, compute) -> tuple[int, int]:
    """Bytes that autograd keeps when `compute()` runs the model forward, and of the largest of these tensors.

    It runs on tensors without numbers, in no memory; `compute` makes its inputs itself, on the CPU.
    """
    kept, own = {}, {p.untyped_storage()._cdata for p in model.parameters()}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = {mode.from_tensor(p).untyped_storage()._cdata for p in model.parameters()}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in own | fake:
                kept[storage._cdata] = (storage.nbytes(), tensor)  # with the tensor, or another could get its address
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            outcome = compute()
        del outcome
    sizes = [size for size, _ in kept.values()]
    return sum(sizes), max(sizes, default=0)


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Bytes of the states that the optimizer will hold, and of its workspace: AdamW's two moments, Muon's momentum.

    Muon stacks all matrices of one shape and iterates on them, which takes six times their size.
    """
    states, workspace = 0, 0
    for group in optimizer.param_groups:
        by_shape = defaultdict(int)
        for p in group["params"]:
            by_shape[p.shape] += p.nbytes
        size, largest = sum(by_shape.values()), max((p.nbytes for p in group["params"]), default=0)
        muon = "betas" not in group
        states += size * (1 if muon else 2)
        workspace = max(workspace, 6 * max(by_shape.values(), default=0) if muon else 2 * largest)
    return states, workspace


def peak(weights: int, gradients: int, optimizer: int, average: int, activations: int, largest: int, workspace: int) -> int:
    """Bytes at the fullest moment of a step, by the formula above."""
    return weights + optimizer + average + max(activations + 2 * largest, gradients + workspace)


def of_step(model: nn.Module, optimizer: torch.optim.Optimizer, average: bool, compute, processes: int = 1) -> dict[str, int]:
    """The parts of `peak`, and it, in bytes. `processes`: how many hold the weights together (FSDP)."""
    weights = sum(p.nbytes for p in model.parameters())
    states, workspace = optimizer_bytes(optimizer)
    kept, largest = activations(model, compute)
    parts = dict(
        weights=weights // processes,
        gradients=sum(p.nbytes for p in model.parameters() if p.requires_grad) // processes,
        optimizer=states // processes,
        average=weights * average // processes,
        activations=kept,
        largest=largest,
        workspace=workspace // processes,
    )
    return parts | {"peak": peak(**parts)}


def sentence(parts: dict[str, int]) -> str:
    names = ("weights", "gradients", "optimizer", "average", "activations")
    said = ", ".join(f"{name} {parts[name] / 2**20:,.0f}" for name in names)
    return f"A step takes about {parts['peak'] / 2**20:,.0f} MiB ({said})."
