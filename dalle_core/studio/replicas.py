"""The model behind a page, several times: Ray Serve runs replicas of it, in processes, on GPUs and machines, and hands each
drawing to one that has time. A replica that ends is started again by Serve, and what it was drawing is drawn by another."""

import asyncio
import atexit
import inspect
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import ray
from PIL import Image
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve._private import replica as serve_replica
from torch import Tensor

from dalle_core.catalogue import load
from dalle_core.cluster import everywhere, sentence, share, use_share
from dalle_core.errors import ModelError
from dalle_core.pipeline import DallePipeline, Label, Step

APPLICATION = f"dalle-{secrets.token_hex(4)}"  # this page's: others may use the cluster
TOGETHER = 32  # requests that one replica works on at once: they share its engine
ATTEMPTS = 4  # of a request whose replica was killed; one that kills each would go on for ever
UPDATE_EVERY = 0.1  # seconds between two steps that are sent without a preview


class Replica:
    """In a process of Serve's: a pipeline, and its methods for others."""

    def __init__(self, asked: dict, loading: dict):
        use_share(asked)
        _listen_here_only()
        with ThreadPoolExecutor(1) as loader:  # PyTorch's helpers of this thread end with it: see `dalle_core.engine.Engine`
            self.pipe = loader.submit(load, **loading).result()

    async def compute(self, work: str, *args, **kwargs) -> AsyncIterator:
        """What the pipeline's method `work` yields, or the single value that it returns. Cancelling it stops the work."""
        loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1)
        steps = None
        try:
            result = await loop.run_in_executor(thread, partial(getattr(self.pipe, work), *args, **kwargs))
            if not inspect.isgenerator(result):
                yield result
                return
            steps, sent_at = result, time.monotonic()
            while (step := await loop.run_in_executor(thread, next, steps, None)) is not None:
                if step.generation or step.previews or time.monotonic() - sent_at > UPDATE_EVERY:
                    sent_at = time.monotonic()
                    yield step
        finally:
            if steps is not None:
                thread.submit(steps.close)  # behind the token that is being drawn
            thread.shutdown(wait=False)


def _listen_here_only() -> None:
    """A replica listens for others of Serve's on all interfaces. Where the Ray is this machine's own, 127.0.0.1 is enough. No
    setting of Serve's says so: its function is replaced before it is called, when the replica is ready."""
    if ray.util.get_node_ip_address() == "127.0.0.1":
        listen = serve_replica.add_port_to_grpc_server
        serve_replica.add_port_to_grpc_server = lambda server, _: listen(server, "127.0.0.1:0")


class Replicas:
    """A `DallePipeline` to those who use it. What computes is sent to a replica: requests, tokens and pictures as plain data.
    What is known without computing (names, sizes, limits, what is read of a prompt) is the pipeline's that is here."""

    def __init__(self, pipe: DallePipeline, handle):
        self.pipe = pipe
        self._compute = handle.options(stream=True).compute.remote

    def __getattr__(self, name: str):
        return getattr(self.pipe, name)

    def stream(self, prompt: str, seed: int | None = None, **arguments) -> Iterator[Step]:
        """As of `DallePipeline`. Drawn again after a replica was killed, it goes on from the last step that was seen: the seed
        decides the pictures."""
        self.pipe.stream(prompt, seed=seed, **arguments).close()  # raises here for what cannot be drawn
        seed = secrets.randbelow(2**32) if seed is None else seed
        return self._stream(prompt, seed=seed, **arguments)

    def _stream(self, prompt: str, **arguments) -> Iterator[Step]:
        seen = 0
        for step in self._ask("stream", prompt, **arguments):
            if step.index > seen or step.generation is not None:
                seen = step.index
                yield step

    def encode(self, image: Image.Image) -> Tensor:
        return self._value("encode", image)

    def decode(self, tokens: Tensor) -> Image.Image:
        return self._value("decode", tokens)

    def tile(self, tokens: Tensor) -> Image.Image:
        return self._value("tile", tokens)

    def recognise(self, image: Image.Image, labels: list[str] | None = None, deep: int = 12) -> list[Label]:
        return self._value("recognise", image, labels, deep)

    def _value(self, work: str, *args):
        [value] = self._ask(work, *args)
        return value

    def _ask(self, work: str, *args, **kwargs) -> Iterator:
        """What a replica's `compute` yields; from the start again, by another replica, after one was killed."""
        for _ in range(ATTEMPTS):
            answer = self._compute(work, *args, **kwargs)
            try:
                yield from answer
                return
            except RayActorError as error:
                killed = error
            except RayError as error:
                raise sentence(error) from error
            finally:
                answer.cancel()  # does nothing where it has ended
        raise sentence(killed) from killed


def open_replicas(count: int, loading: dict, load_here: Callable[[], DallePipeline]) -> Replicas:
    """Starts so many replicas of a model in the place of those before, and waits until all are there.

    loading: the arguments of `catalogue.load`. load_here(): the page's own copy. The process is connected to Ray
    (`cluster.connect`). Raises as `load` and `cluster.share` do.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    asked, loading = share(count, loading["device"]), everywhere(loading)
    serve.start(proxy_location="Disabled")  # the page is the only way in
    if APPLICATION in serve.status().applications:
        serve.delete(APPLICATION)  # freed first: there may not be room for two
    else:
        atexit.register(_end)
    pipe = load_here()
    environment = dict(ray.get_runtime_context().runtime_env)  # the controller, which starts them, may be another's
    deployment = serve.deployment(
        Replica,
        name="replica",
        num_replicas=count,
        max_ongoing_requests=TOGETHER,
        ray_actor_options=asked | {"runtime_env": environment},
        health_check_period_s=2,
        graceful_shutdown_timeout_s=5,
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )
    try:
        return Replicas(pipe, serve.run(deployment.bind(asked, loading), name=APPLICATION, route_prefix=None))
    except (RuntimeError, RayError) as error:
        raise ModelError(f"The replicas could not be started: {sentence(error)}") from error


def _end() -> None:
    """With the page its replicas end, too: on a cluster they would outlive it, as they do when it is killed."""
    if ray.is_initialized() and os.environ.get("RAY_ADDRESS"):
        serve.delete(APPLICATION)
