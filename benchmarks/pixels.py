"""From tokens to pixels: the decoder of DALL·E mini's image tokenizer with random weights, one picture of 256 x 256.

Regime: in turn, several times each, the medians: as diffusers has it ("plain"), as `load` arranges it in float32 ("quick"),
and so in bfloat16, as `--dtype int8` takes it, where this CPU computes in it. Beside the plain decoder's rate stands that of
a 2048 x 2048 x 2048 matrix product, the best of several. Before anything is timed, "quick" must agree with "plain" to a
tenth of a level of 255. "off_by": the largest difference and the mean one, in levels, of a picture with the "spread" (standard
deviation) that it says. Nothing else should be running. Ends in one JSON line.
"""

import argparse
import json
import os
import statistics
import time
from copy import deepcopy

import torch
from diffusers import VQModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.embedded import cpu_name
from benchmarks.limit import best_of
from dalle_core.decoder import narrow, quicken
from dalle_core.image_tokenizer import decode


def mini_tokenizer() -> VQModel:
    torch.manual_seed(0)
    return VQModel(
        block_out_channels=[128, 128, 256, 256, 512],
        down_block_types=["DownEncoderBlock2D"] * 4 + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        latent_channels=256,
        num_vq_embeddings=16384,
    ).eval()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="The time from tokens to pixels.")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    models = {"plain": mini_tokenizer()}
    models["quick"], models["bfloat16"] = deepcopy(models["plain"]), deepcopy(models["plain"])
    narrow(models["bfloat16"])
    for name in ("quick", "bfloat16"):
        quicken(models[name])
    if models["bfloat16"].decoder.conv_in.weight.dtype != torch.bfloat16:
        del models["bfloat16"]

    tokens = torch.randint(16384, (1, 16, 16))
    with FlopCounterMode(display=False) as counter:
        expected = decode(models["plain"], tokens)
    off_by = {}
    for name, model in models.items():
        levels = (decode(model, tokens) - expected).abs() * 127.5
        off_by[name] = [round(levels.max().item(), 4), round(levels.mean().item(), 4)]
    if off_by["quick"][0] > 0.1:
        raise SystemExit(f"The pictures are not the same: {off_by}.")

    seconds = {name: [] for name in models}
    for _ in range(args.repeats):
        for name, model in models.items():
            start = time.perf_counter()
            decode(model, tokens)
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    square = torch.randn(2048, 2048)
    print(
        json.dumps(
            {
                "seconds": {name: round(time, 2) for name, time in median.items()},
                "off_by": off_by,
                "spread": round(expected.std().item() * 127.5, 1),
                "plain_gflop": round(counter.get_total_flops() / 1e9),
                "plain_gflop_s": round(counter.get_total_flops() / 1e9 / median["plain"]),
                "matmul_gflop_s": round(2 * 2048**3 / 1e9 / best_of(lambda: square @ square, 10)),
                "cores": os.cpu_count(),
                "machine": cpu_name(),
            }
        )
    )


if __name__ == "__main__":
    main()
