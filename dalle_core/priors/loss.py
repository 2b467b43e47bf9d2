"""The cross-entropy of a prior's image tokens, without the logits of a whole batch in memory.

A batch has some thousand positions, and each has a logit for every code: hundreds of megabytes, written and read several
times in the usual form. Here some positions at a time go through head, softmax and back while they are in the processor's
cache, as Liger Kernel's fused linear cross-entropy does on GPUs (Hsu et al. 2024, arXiv 2410.10989, section 3.2).
"""

import torch
from torch import nn

POSITIONS = 256  # at a time


class _HeadLoss(torch.autograd.Function):
    """Makes the gradients on the way forward: nothing comes after a loss, so that its own gradient only scales them."""

    @staticmethod
    def forward(ctx, features, weight, bias, targets, learns: bool):
        kind, dtype = features.device.type, features.dtype
        if torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
        x, w = features.to(dtype), weight.to(dtype)
        for_features, for_weight, for_bias = (learns and wanted for wanted in ctx.needs_input_grad[:3])
        of_features = torch.empty_like(x) if for_features else None
        of_weight = torch.zeros_like(weight, dtype=torch.float32) if for_weight else None
        of_bias = torch.zeros_like(bias, dtype=torch.float32) if for_bias else None
        total = features.new_zeros((), dtype=torch.float32)
        with torch.autocast(kind, enabled=False):
            for start in range(0, len(x), POSITIONS):
                some, right = x[start : start + POSITIONS], targets[start : start + POSITIONS, None]
                logits = (some @ w.T).float()
                logs = (logits if bias is None else logits + bias).log_softmax(1)
                total -= logs.gather(1, right).sum()
                if not (for_features or for_weight or for_bias):
                    continue
                # d(-log p_t) / d(logits) = p - onehot(t)
                error = logs.exp_().scatter_add_(1, right, logs.new_full((1, 1), -1).expand_as(right))
                if for_bias:
                    of_bias += error.sum(0)
                error = error.to(dtype)
                if for_features:
                    torch.mm(error, w, out=of_features[start : start + POSITIONS])
                if for_weight:
                    of_weight += error.T @ some
        ctx.save_for_backward(of_features, of_weight, of_bias)
        ctx.dtypes, ctx.count = [None if part is None else part.dtype for part in (features, weight, bias)], len(x)
        return total / len(x)

    @staticmethod
    def backward(ctx, gradient):
        found = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        scale = gradient / ctx.count
        return *(None if part is None else (part.float() * scale).to(dtype) for part, dtype in found), None, None


def head_loss(features: torch.Tensor, head: nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats a token (float32), of features [B, n, D] through the linear layer `head`; targets [B, n]."""
    flat = features.flatten(0, 1)
    return _HeadLoss.apply(flat, head.weight, head.bias, targets.flatten(), torch.is_grad_enabled())
