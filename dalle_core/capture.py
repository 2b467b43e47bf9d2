"""CUDA graphs: a step's kernels noted once and launched as one (https://docs.pytorch.org/docs/stable/notes/cuda.html).

A token of a small prior takes hundreds of kernels of a few microseconds each, and a CPU needs longer to launch them one by
one. Not yet run on a GPU.
"""

import threading
from collections import deque
from collections.abc import Callable

import torch

AHEAD = 4  # steps that are launched before the first of them is done: who joins or looks waits no longer than that


class Captured:
    """A step as a graph for each of its keys. It reads and writes the same memory each time, and waits for nothing."""

    def __init__(self, device: torch.device, alone: threading.RLock):
        """alone: held while a graph is noted, so that nothing else is computed on the device meanwhile."""
        self.device, self.alone = device, alone
        self.graphs: dict[tuple, torch.cuda.CUDAGraph] = {}
        self.pool = torch.cuda.graph_pool_handle()  # they run one after the other and share their memory
        self.stream = torch.cuda.Stream(device)
        self.launched: deque[torch.cuda.Event] = deque()

    def capture(self, step: Callable, key: tuple) -> None:
        """Runs step(*key), to choose kernels and to take memory, and notes it; what it changes must not matter just now."""
        with self.alone, torch.cuda.device(self.device):
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                for _ in range(2):
                    step(*key)
            torch.cuda.current_stream().wait_stream(self.stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                step(*key)
            self.graphs[key] = graph

    def replay(self, key: tuple) -> None:
        """Launches the step; waits where too many are on their way."""
        if len(self.launched) == AHEAD:
            self.launched.popleft().synchronize()
        self.graphs[key].replay()
        event = torch.cuda.Event(blocking=True)
        event.record(torch.cuda.current_stream(self.device))
        self.launched.append(event)
