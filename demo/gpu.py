"""ZeroGPU Spaces: a GPU is lent to a handler for as long as it runs. Elsewhere nothing of this happens.

Written after the source of `spaces` 0.51; not yet run on a GPU.
"""

import os


def on_gpu(seconds: int):
    """Decorates a handler that computes with the model; it is lent a GPU for about `seconds`, and asks anew at each call.

    What `spaces.GPU` makes of it: the handler runs in a process that was forked when it was first needed, so that what it
    changes there is not seen here. Its arguments, what it returns or yields, and a gr.Error are pickled: plain values,
    paths and PIL pictures, no gr.SelectData (it holds a component). A generator that is closed stops at its next `yield`.
    One decorated handler may call another. app.py imports `spaces` first, as it replaces parts of torch.
    """
    if os.environ.get("SPACES_ZERO_GPU", "").lower() not in ("1", "t", "true"):  # as `spaces` reads it
        return lambda handler: handler
    import spaces

    return spaces.GPU(duration=seconds)
