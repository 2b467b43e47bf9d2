"""ZeroGPU Spaces: a GPU is lent to a function for as long as it runs. Elsewhere nothing of this happens.

Written after the source of `spaces` 0.51; not yet run on a GPU.
"""

import math
import os
from collections.abc import Callable

# Guesses on the safe side, until a GPU has been measured: work that outlasts its time is cut off, and a visitor who asks for
# less time waits less for it.
MOST = 120  # seconds that anybody may ask for
AT_ONCE = 15  # for what computes no tokens, and for a worker to begin
A_TOKEN = 0.05  # of TOGETHER candidates
TOGETHER = 16


def seconds(holder, work: str | Callable, *args, **arguments) -> int:
    """How long a work of the studio (the arguments of `Studio._compute`) takes a GPU at most, with the holder's model."""
    if work == "describing":
        return MOST  # it first loads what looks at pictures
    if work == "recognise":
        return min(MOST, AT_ONCE + math.ceil(len(args[1]) * A_TOKEN))  # the likelihood of each label
    candidates = 0
    if work == "stream":
        candidates = arguments["num_candidates"]
    elif callable(work):  # a data set
        candidates = sum(row.count for row in args[0])
    tokens = math.ceil(candidates / TOGETHER) * holder.loaded.limits.grid_size**2
    return min(MOST, AT_ONCE + math.ceil(tokens * A_TOKEN))


def on_gpu(duration: int | Callable[..., int]):
    """Decorates what computes with the model; it is lent a GPU for about `duration` seconds (a function of the same
    arguments says how many), and asks anew at each call.

    What `spaces.GPU` makes of it: the function runs in a process that was forked when it was first needed, so that what it
    changes there is not seen here. Its arguments, and what it returns or yields, are pickled. A generator that is closed stops
    at its next `yield`. There is one process for each decorated function, so the studio has a single one (`Studio._compute`).
    `dalle_core.page` imports `spaces` first, as it replaces parts of torch.
    """
    if os.environ.get("SPACES_ZERO_GPU", "").lower() not in ("1", "t", "true"):  # as `spaces` reads it
        return lambda function: function
    import spaces

    return spaces.GPU(duration=duration)
