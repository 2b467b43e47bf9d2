"""ZeroGPU Spaces: a GPU is lent to a function for as long as it runs. Elsewhere nothing of this happens.

Written after the source of `spaces` 0.51; not yet run on a GPU.
"""

import os


def on_gpu(seconds: int):
    """Decorates what computes with the model; it is lent a GPU for about `seconds`, and asks anew at each call.

    What `spaces.GPU` makes of it: the function runs in a process that was forked when it was first needed, so that what it
    changes there is not seen here. Its arguments, and what it returns or yields, are pickled. A generator that is closed stops
    at its next `yield`. There is one process for each decorated function, so the studio has a single one (`Studio._compute`).
    app.py imports `spaces` first, as it replaces parts of torch.
    """
    if os.environ.get("SPACES_ZERO_GPU", "").lower() not in ("1", "t", "true"):  # as `spaces` reads it
        return lambda function: function
    import spaces

    return spaces.GPU(duration=seconds)
