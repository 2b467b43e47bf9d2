"""Several people at once: eight who ask for four candidates each, and one who asks for four beside one who asks for 64.

Regime: the embedded model in float32 on the CPU, no previews, ranked, as a server does it: loaded in a thread that
ends, each request in a thread of its own. Before anything is timed, everybody must get the pictures that they get
alone. "throughput": the eight one after the other against all at once; "last_s" is when the last of them has its
pictures. "fairness": how long a request takes, alone and beside the other one (the large one is a token ahead); medians
of `--repeats`. Nothing else should be running. Ends in one JSON line.
"""

import argparse
import json
import os
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import torch

import dalle_core
from benchmarks.embedded import cpu_name

PROMPT, LARGE = "a fox and a banana", 64


def main() -> None:
    parser = argparse.ArgumentParser(description="Several people at once.")
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=4, help="that each of them asks for")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with ThreadPoolExecutor(1) as loader:
        pipe = loader.submit(dalle_core.load, "emoji").result()
    with ThreadPoolExecutor(1) as people:  # not the main thread, which would compute for itself
        people.submit(measure, pipe, args).result()


def measure(pipe: dalle_core.DallePipeline, args: argparse.Namespace) -> None:
    def ask(seed: int, count=args.candidates, drawing: threading.Event | None = None) -> tuple[torch.Tensor, float]:
        """(tokens in the order of sampling, seconds); sets `drawing` after the first token."""
        start = time.perf_counter()
        for step in pipe.stream(PROMPT, num_candidates=count, seed=seed):
            if drawing is not None:
                drawing.set()
        seconds = time.perf_counter() - start
        candidates = sorted(step.generation.candidates, key=lambda candidate: candidate.index)
        return torch.stack([candidate.tokens for candidate in candidates]), seconds

    def at_once() -> tuple[list[torch.Tensor], float]:
        found = [None] * args.people

        def work(seed: int) -> None:
            found[seed] = ask(seed)[0]

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(args.people)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found, time.perf_counter() - start

    def small_beside_large() -> tuple[tuple[torch.Tensor, float], tuple[torch.Tensor, float]]:
        drawing, large = threading.Event(), []
        thread = threading.Thread(target=lambda: large.append(ask(1, LARGE, drawing)))
        thread.start()
        drawing.wait()
        small = ask(0)
        thread.join()
        return small, large[0]

    alone = [ask(seed)[0] for seed in range(args.people)]
    large_alone = ask(1, LARGE)[0]
    small, large = small_beside_large()
    together = [*zip(alone, at_once()[0]), (alone[0], small[0]), (large_alone, large[0])]
    if not all(torch.equal(a, b) for a, b in together):
        raise SystemExit("The pictures are not the same.")

    one_by_one = sum(ask(seed)[1] for seed in range(args.people))
    last = at_once()[1]
    beside = [small_beside_large() for _ in range(args.repeats)]

    def median(seconds) -> float:
        return round(statistics.median(seconds), 2)

    fairness = {
        "small_alone_s": median(ask(0)[1] for _ in range(args.repeats)),
        "small_beside_large_s": median(small[1] for small, _ in beside),
        "large_alone_s": median(ask(1, LARGE)[1] for _ in range(args.repeats)),
        "large_beside_small_s": median(large[1] for _, large in beside),
    }
    print(
        json.dumps(
            {
                "people": args.people,
                "candidates_each": args.candidates,
                "throughput": round(one_by_one / last, 2),
                "one_after_the_other_s": round(one_by_one, 2),
                "last_s": round(last, 2),
                "fairness": {"small": args.candidates, "large": LARGE} | fairness,
                "cores": os.cpu_count(),
                "machine": cpu_name(),
            }
        )
    )


if __name__ == "__main__":
    main()
