"""Data augmentation by many processes: Ray Data's pool of workers, each with a model of its own, draws the blocks; this
process writes them in their order. So the data set is, file by file, what one process makes, and goes on as it does."""

import json
import logging
import warnings
from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pyarrow
import ray
from ray.data import ActorPoolStrategy, DataContext, from_items
from ray.util.annotations import RayDeprecationWarning

from dalle_core.augment import Finished, Plan, Progress, cut_prompts, draw_block, plan, write
from dalle_core.catalogue import load
from dalle_core.cluster import everywhere, sentence, share, use_share
from dalle_core.prompts import Row

RETRIES = 3  # of a block whose worker was killed; one that is killed each time would go on for ever
# "line" is JSON: Arrow would want one type for every value of a setting.
BLOCK = pyarrow.schema(
    [
        (
            "kept",
            pyarrow.list_(
                pyarrow.struct([("file_name", pyarrow.string()), ("png", pyarrow.binary()), ("line", pyarrow.string())])
            ),
        )
    ]
)


class Worker:
    """A process of the pool. The model is loaded with the first block, where an error is the block's and has its sentence."""

    def __init__(self, asked: dict, loading: dict, run: Plan):
        use_share(asked)
        self.loading, self.run = loading, run

    @cached_property
    def pipe(self):
        return load(**self.loading)

    def __call__(self, batch: dict) -> pyarrow.Table:
        """A batch is one block."""
        block = tuple(int(batch[name][0]) for name in ("row", "first", "count", "seed"))
        *_, kept = draw_block(self.pipe, self.run, str(batch["prompt"][0]), block)
        rows = [{"file_name": one.file_name, "png": one.png, "line": json.dumps(one.line)} for one in kept]
        return pyarrow.Table.from_pylist([{"kept": rows}], BLOCK)


def augment(
    loading: dict,
    workers: int,
    rows: list[Row],
    out: Path,
    seed: int,
    threshold: float | None,
    best: int | None,
    sampling: dict,
) -> tuple[Generator[Progress, None, None], int]:
    """(what `dalle_core.augment.augment` yields, but after every block only; how many prompts are too long for the model).

    loading: the arguments of `catalogue.load`. sampling: those of `DallePipeline.stream`. This process is connected to Ray
    (`cluster.connect`). A worker that is killed starts again, and its block is drawn again; after RETRIES the run ends with a
    ModelError, and the same call goes on. Raises as `augment`, `load` and `cluster.share` do.
    """
    asked, loading = share(workers, loading["device"]), everywhere(loading)
    try:
        run, cut = ray.get(ray.remote(_prepare).options(**asked).remote(asked, loading, rows, seed, threshold, best, sampling))
    except ray.exceptions.RayError as error:
        raise sentence(error) from error
    return write(run, out, lambda blocks: _draw(asked, loading, workers, run, blocks)), cut


def _prepare(asked, loading, rows, seed, threshold, best, sampling) -> tuple[Plan, int]:
    """In a process with a worker's share: this one may be on a machine that could not load the model, or not in that dtype."""
    use_share(asked)
    pipe = load(**loading)
    return plan(pipe, rows, seed, threshold, best, sampling), cut_prompts(pipe, rows)


def _draw(asked: dict, loading: dict, workers: int, run: Plan, blocks) -> Iterator[list[Finished]]:
    names = ("row", "first", "count", "seed")
    items = [{"prompt": run.rows[block[0]].prompt, **dict(zip(names, block))} for block in blocks]
    if not items:
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars, context.execution_options.preserve_order = False, True
    with warnings.catch_warnings(category=RayDeprecationWarning, action="ignore"):  # of an argument that nothing replaces yet
        drawn = from_items(items, override_num_blocks=len(items)).map_batches(
            Worker,
            fn_constructor_args=(asked, loading, replace(run, rows=[])),
            batch_size=1,
            max_task_retries=RETRIES,
            compute=ActorPoolStrategy(size=min(workers, len(items)), max_tasks_in_flight_per_actor=2),
            **asked,
        )
    try:
        for block in drawn.iter_rows():
            yield [Finished(one["file_name"], one["png"], json.loads(one["line"])) for one in block["kept"]]
    except Exception as error:
        raise sentence(error) from error
