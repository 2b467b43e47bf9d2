"""The memory of a training step, told before it is taken, against what torch then allocates."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from dalle_core.priors.gpt import GPTPrior
from dalle_core.training import memory
from dalle_core.training.average import Average
from dalle_core.training.loop import Together
from dalle_core.training.prior import optimizers, prior_loss


def allocated(run) -> int:
    """The most bytes that `run()` holds at once, beyond what was there, by torch's own account."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


# Most of it activations; most of it weights.
@pytest.mark.parametrize("batch, width", [(16, 128), (1, 256)])
def test_the_memory_of_a_step_is_known_before(batch, width):
    model = GPTPrior(500, 16, 1024, 64, num_layers=2, num_heads=4, hidden_size=width)
    optimizer, average = Together(*optimizers(model, 0.02)), Average(model, 0.9)

    def loss():
        return prior_loss(model, torch.zeros(batch, 16, dtype=torch.long), torch.zeros(batch, 64, dtype=torch.long))

    def step():
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.step(average.own())

    told = memory.of_step(model, optimizer, True, loss)
    assert all(p.grad is None for p in model.parameters()) and not optimizer.state  # nothing was done yet
    step()
    states = sum(value.nbytes for state in optimizer.state.values() for value in state.values() if value.dim())
    assert told["optimizer"] == states
    held = told["weights"] + told["optimizer"] + told["average"]
    assert told["peak"] == pytest.approx(held + allocated(step), rel=0.15)
    assert f"{told['peak'] / 2**20:,.0f} MiB" in memory.sentence(told)
