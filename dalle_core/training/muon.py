"""Muon for the matrices of a transformer: momentum, orthogonalised (Jordan et al. 2024, "Muon").

`torch.optim.Muon` orthogonalises matrix by matrix. Here all matrices of one shape go through the Newton-Schulz
iteration together, which on a CPU is several times as fast.
"""

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, from Muon's reference


def orthogonalise(matrices: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """[N, m, n] -> matrices with the same singular vectors and singular values near 1."""
    a, b, c = COEFFICIENTS
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    transposed = x.shape[1] > x.shape[2]
    if transposed:
        x = x.mT
    for _ in range(iterations):
        gram = x @ x.mT  # [N, m, m]
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if transposed else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; `lr` is the size of an update's entries in RMS, as in AdamW, times 5.

    The scale sqrt(max(1, rows / columns)) is the reference's; weight decay is decoupled. The iteration runs in `dtype`:
    it is rough by design, and bfloat16 is enough where the machine is fast at it.
    """

    def __init__(self, params, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.01, dtype=torch.float32):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    if "momentum" not in (state := self.state[parameter]):
                        state["momentum"] = torch.zeros_like(parameter)
                    buffer = state["momentum"]
                    buffer.lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(parameter.grad.lerp(buffer, group["momentum"]))
                scale = max(1, shape[0] / shape[1]) ** 0.5
                for parameter, update in zip(parameters, orthogonalise(torch.stack(updates).to(self.dtype))):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * scale)
