"""How long the embedded model takes, from the call to the ranked grid, and how much memory.

Regime: `dalle_core.load("emoji")` on the CPU, in float32 unless `--dtype` says otherwise, all its threads, one request
at a time, previews every two rows of tokens as on the page. A first call warms up; then the median of `--repeats`.
"first_preview" is the time from the call to the first preview; "load" includes reading the files, not Python's imports.
Nothing else should be running. Ends in one JSON line. `python -m benchmarks.embedded --help`
"""

import argparse
import json
import os
import platform
import resource
import statistics
import time


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the embedded model.")
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "int8"], default="float32")
    args = parser.parse_args()

    started = time.perf_counter()
    import torch

    import dalle_core

    imported = time.perf_counter()
    pipe = dalle_core.load("emoji", device="cpu", dtype=getattr(torch, args.dtype))
    loaded = time.perf_counter()

    def once(seed: int) -> tuple[float, float]:
        start, first = time.perf_counter(), None
        for step in pipe.stream(
            "a fox and a banana", num_candidates=args.candidates, seed=seed, preview_every=2 * pipe.grid_size
        ):
            if first is None and step.previews is not None:
                first = time.perf_counter() - start
        return time.perf_counter() - start, first

    once(0)
    times = [once(seed) for seed in range(1, args.repeats + 1)]
    ranked, first = (statistics.median(column) for column in zip(*times))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if platform.system() == "Linux" else 2**30)
    print(
        json.dumps(
            {
                "candidates": args.candidates,
                "dtype": args.dtype,
                "ranked_s": round(ranked, 2),
                "first_preview_s": round(first, 2),
                "import_s": round(imported - started, 1),
                "load_s": round(loaded - imported, 2),
                "peak_memory_gib": round(peak, 2),
                "cores": os.cpu_count(),
                "machine": cpu_name(),
            }
        )
    )


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return next(line.split(":")[1].strip() for line in info if line.startswith("model name"))
    except OSError:
        return platform.processor()


if __name__ == "__main__":
    main()
