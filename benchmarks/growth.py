"""How a token's time grows with the candidates and with the prompt's length; draws `assets/growth.png`.

Regime: DALL·E mini's decoder with random weights in float32, guided, at position 128 of 256: 1 to 64 candidates with 64
text positions, and 4 to 64 text positions with 9 candidates. Nothing else should be running. Ends in one JSON line.
"""

import argparse
import json
import os
from pathlib import Path

import torch

from benchmarks.embedded import cpu_name
from benchmarks.limit import best_of, decoding, mini_prior
from dalle_core.packed import pack

ASSETS = Path(__file__).parent.parent / "assets"


def plot(by_candidates: dict[int, float], by_text: dict[int, float], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    counts = list(by_candidates)
    left.plot(counts, list(by_candidates.values()), "o-", color="#d9480f", label="measured")
    left.plot(counts, [by_candidates[1] * count for count in counts], ":", color="gray", label="one after the other")
    left.set(xscale="log", yscale="log", xlabel="candidates", ylabel="ms a token", xticks=counts, xticklabels=counts)
    left.legend()
    right.plot(list(by_text), list(by_text.values()), "o-", color="#d9480f")
    right.set(xlabel="text positions (9 candidates)", ylabel="ms a token", ylim=(0, None), xticks=list(by_text))
    figure.savefig(path, dpi=110)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="Growth of a token's time; draws assets/growth.png.")
    parser.add_argument("--out", type=Path, default=ASSETS / "growth.png")
    args = parser.parse_args()

    def measure(text_length: int, counts: list[int]) -> list[float]:
        prior = mini_prior(text_length)
        pack(prior)
        return [round(1000 * best_of(decoding(prior, 2, count), 10), 1) for count in counts]

    counts, lengths = [1, 2, 4, 8, 16, 32, 64], [4, 8, 16, 32, 64]
    by_candidates = dict(zip(counts, measure(64, counts)))
    by_text = {length: measure(length, [9])[0] for length in lengths}
    plot(by_candidates, by_text, args.out)
    print(
        json.dumps(
            {"ms_by_candidates": by_candidates, "ms_by_text_positions": by_text, "cores": os.cpu_count(), "machine": cpu_name()}
        )
    )


if __name__ == "__main__":
    main()
