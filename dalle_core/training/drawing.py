"""Many drawings of one model, several of them together through it: for evaluation, and for what a ranker learns from."""

import argparse
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from dalle_core.pipeline import DallePipeline, Generation


def add_drawing_arguments(parser: argparse.ArgumentParser) -> None:
    """`--at-once`: that of `draw_each`."""
    parser.add_argument("--at-once", type=int, default=1, help="prompts that are drawn together; 32 on a GPU (%(default)s)")


def draw_each(pipe: DallePipeline, asked: Iterable[dict], at_once: int) -> Iterator[Generation]:
    """Yields the generations of requests, the arguments of `pipe`, in their order.

    A small model on a GPU takes hardly longer for the next token of 32 requests than for that of one.
    """
    if at_once == 1:
        yield from (pipe(**request) for request in asked)
        return
    asked = iter(asked)
    with ThreadPoolExecutor(at_once) as threads:
        while some := [threads.submit(pipe, **request) for request in islice(asked, at_once)]:
            yield from (drawing.result() for drawing in some)
