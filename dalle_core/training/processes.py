"""Sums, means and gathered batches over the processes of a run; in a run of one process, what was given."""

import torch
import torch.distributed as dist


def count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def gather(tensor: torch.Tensor) -> torch.Tensor:
    """[B, ...] of each process -> [processes * B, ...], the same in all, without gradients."""
    if count() == 1:
        return tensor.detach()
    parts = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(count())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


def gather_with_gradients(tensor: torch.Tensor) -> torch.Tensor:
    """The same with gradients: a process's part receives the sum of those that all processes have for it."""
    return tensor if count() == 1 else _Gathered.apply(tensor)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor) -> torch.Tensor:
        ctx.own = slice(rank() * len(tensor), (rank() + 1) * len(tensor))
        return gather(tensor)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return sum_(gradient.clone(memory_format=torch.contiguous_format))[ctx.own]


def roll(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of `gather(tensor).roll(1, 0)`: each entry's neighbour in the global batch, without gradients."""
    if count() == 1:
        return tensor.detach().roll(1, 0)
    before = gather(tensor[-1:])[rank() - 1]
    return torch.cat([before[None], tensor.detach()[:-1]])


def sum_(tensor: torch.Tensor) -> torch.Tensor:
    """In place: the sum over the processes."""
    if count() > 1:
        dist.all_reduce(tensor)
    return tensor


def from_first_(*tensors: torch.Tensor) -> None:
    """In place: what the first process has. So that tensors stay equal which each process has computed for itself."""
    if count() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


@torch.no_grad()
def mean_(tensors: list[torch.Tensor]) -> None:
    """In place: the means over the processes, in one message."""
    if count() == 1 or not tensors:
        return
    flat = sum_(torch.cat([tensor.reshape(-1) for tensor in tensors])) / count()
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(mean.view(tensor.shape))
