"""Eight people who ask for four candidates each at once, against the same requests one after the other.

Regime: the embedded model in float32 on the CPU, no previews, ranked, each request in a thread of its own. The pictures
must be the same both ways. "last_s" is when the last of the eight has its pictures. Nothing else should be running.
Ends in one JSON line.
"""

import argparse
import json
import os
import threading
import time

import torch

import dalle_core
from benchmarks.embedded import cpu_name


def main() -> None:
    parser = argparse.ArgumentParser(description="Several people at once.")
    parser.add_argument("--people", type=int, default=8)
    parser.add_argument("--candidates", type=int, default=4)
    args = parser.parse_args()
    pipe = dalle_core.load("emoji")

    def ask(seed: int) -> torch.Tensor:
        drawn = pipe("a fox and a banana", num_candidates=args.candidates, seed=seed).candidates
        return torch.stack([candidate.tokens for candidate in sorted(drawn, key=lambda c: c.index)])

    ask(99)
    start = time.perf_counter()
    alone = [ask(seed) for seed in range(args.people)]
    one_by_one = time.perf_counter() - start

    together = [None] * args.people

    def work(seed: int) -> None:
        together[seed] = ask(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(args.people)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    at_once = time.perf_counter() - start
    if not all(torch.equal(a, b) for a, b in zip(alone, together)):
        raise SystemExit("The pictures are not the same.")
    print(
        json.dumps(
            {
                "people": args.people, "candidates_each": args.candidates, "throughput": round(one_by_one / at_once, 2),
                "one_after_the_other_s": round(one_by_one, 2), "last_s": round(at_once, 2), "cores": os.cpu_count(),
                "machine": cpu_name(),
            }
        )  # fmt: skip
    )


if __name__ == "__main__":
    main()
