"""A token's time against what the machine allows: DALL·E mini's decoder, random weights, at position 128 of 256.

The limit is the larger of two times: reading every byte that a pass must read (weights once, each row's keys and
values), at the bandwidth of this machine, and its operations, at the rate of this machine. Both rates are measured
first: summing 256 MB, and a 2048 x 2048 x 2048 matrix product in the weights' dtype (int8: through the 8-bit layer,
which rounds its input first), the best of several. "linear_ms" and "attention_ms" are what PyTorch's profiler counts
for linear layers and for products with keys and values, beside the least that each could take. 1 and 9 rows are
unguided candidates of one prompt; 18 and 32 are guided ones, two rows each. Nothing else should be running. Ends in one
JSON line.
"""

import argparse
import json
import os
import time

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.embedded import cpu_name
from dalle_core.int8 import Int8Linear, quantize
from dalle_core.packed import pack
from dalle_core.priors.bart import BartPrior

POSITION = 128
LINEAR = {"_linear_pointwise", "qlinear_pointwise", "mm", "addmm"}


def best_of(work, repeats: int) -> float:
    """Seconds of the fastest run, after one to warm up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def mini_prior(text_length: int = 64) -> BartPrior:
    """DALL·E mini's decoder; the encoder, which reads the prompt once, has two layers instead of twelve."""
    torch.manual_seed(0)
    return BartPrior(50264, text_length, 16384, 256, 2, 12, 16, 1024, 2730, 16385, 16384).eval()


def decoding(prior: BartPrior, prompts: int, copies: int):
    """A function that decodes one token at POSITION for prompts * copies rows."""
    length = prior.config.text_length
    cache, _ = prior.prefill(torch.randint(2, 50000, (prompts, length)), copies)
    for keys_or_values in (cache.k, cache.v):
        keys_or_values.normal_()  # memory that was never written is not read either
    ids = torch.randint(16384, (prompts * copies,))
    return lambda: prior.decode([(ids, cache, POSITION)])


def parts(work, passes: int = 5) -> tuple[float, float]:
    """Milliseconds a pass in linear layers and in attention."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(passes):
            work()
    spent = {event.key: event.self_cpu_time_total / 1000 / passes for event in profiled.key_averages()}
    linear = sum(ms for name, ms in spent.items() if name.split("::")[-1] in LINEAR)
    return linear, spent.get("aten::bmm", 0.0)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="A token's time against the machine's limit.")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "int8"], default="float32")
    args = parser.parse_args()
    big, square = torch.ones(64_000_000), torch.randn(2048, 2048)
    bandwidth = 4 * len(big) / best_of(big.sum, 10)
    if args.dtype == "int8":
        layer = Int8Linear(nn.Linear(2048, 2048, bias=False))
        rate = 2 * 2048**3 / best_of(lambda: layer(square), 10)
    else:
        square = square.to(getattr(torch, args.dtype))
        rate = 2 * 2048**3 / best_of(lambda: square @ square, 10)
    del big

    prior = mini_prior()
    if args.dtype == "bfloat16":
        prior.to(torch.bfloat16)
    config, weights = prior.config, [prior.head, *(layer for layer in prior.decoder)]
    weights = sum(p.numel() for part in weights for p in part.parameters() if p.ndim == 2)
    weights -= sum(layer.cross_attn.kv.weight.numel() for layer in prior.decoder)  # used once a prompt
    quantize(prior) if args.dtype == "int8" else pack(prior)
    weight_size = {"float32": 4, "bfloat16": 2, "int8": 1}[args.dtype]
    cache_size = prior.dtype.itemsize
    found = []
    for rows, prompts, copies in ((1, 1, 1), (9, 1, 9), (18, 2, 9), (32, 2, 16)):
        work = decoding(prior, prompts, copies)
        seconds = best_of(work, 20)
        linear_ms, attention_ms = parts(work)
        positions = rows * (POSITION + 1) + prompts * config.text_length
        caches = 2 * config.decoder_layers * positions * config.hidden_size * cache_size
        reading = (weights * weight_size + caches) / bandwidth
        computing = (
            2 * rows * (weights + 2 * config.decoder_layers * (POSITION + 1 + config.text_length) * config.hidden_size) / rate
        )
        limit = max(reading, computing)
        linear_limit = max(weights * weight_size / bandwidth, 2 * rows * weights / rate)
        found.append(
            {
                "rows": rows,
                "ms": round(seconds * 1000, 1),
                "reading_ms": round(reading * 1000, 1),
                "computing_ms": round(computing * 1000, 1),
                "times_the_limit": round(seconds / limit, 2),
                "linear_ms": round(linear_ms, 1),
                "linear_limit_ms": round(linear_limit * 1000, 1),
                "attention_ms": round(attention_ms, 1),
                "attention_limit_ms": round(caches / bandwidth * 1000, 1),
            }
        )
    print(
        json.dumps(
            {
                "dtype": args.dtype,
                "gb_s": round(bandwidth / 1e9, 1),
                "gflop_s": round(rate / 1e9),
                "tokens": found,
                "cores": os.cpu_count(),
                "machine": cpu_name(),
            }
        )
    )


if __name__ == "__main__":
    main()
