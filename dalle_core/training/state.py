"""What the training commands share: saved state that survives a kill at any moment, and the learning rate."""

import os
import time
from pathlib import Path

import torch

from dalle_core.training.loop import learning_rate  # noqa: F401


class RunState:
    """The state of a run in `folder/last.pt`, written whole or not at all.

    `objects` are things with `state_dict`/`load_state_dict`. All other randomness of the training commands derives
    from (seed, step), so this is everything that a run needs to go on as if it had not been interrupted.
    """

    def __init__(self, folder: Path, every_minutes: float = 3.0, **objects):
        self.path, self.every, self.objects = Path(folder) / "last.pt", every_minutes * 60, objects
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.saved_at = time.monotonic()

    def restore(self) -> int:
        """Loads the last state if there is one. Returns the step to go on with."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, object_ in self.objects.items():
            object_.load_state_dict(state[name])
        return state["step"]

    def save(self, step: int) -> None:
        """Writes the state before step `step`."""
        state = {name: object_.state_dict() for name, object_ in self.objects.items()} | {"step": step}
        part = self.path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, self.path)
        self.saved_at = time.monotonic()

    def save_if_due(self, step: int) -> None:
        if time.monotonic() - self.saved_at > self.every:
            self.save(step)
