"""How fast a prior trains: samples a second, and which share of this machine's rate of matrix products that is. And how much
of an image tokenizer's training step its convolutions take.

Regime: `GPTPrior` of 6 layers, 320 wide, 20 positions of text and 256 of 8,192 image tokens, batches of 32, whole training
steps (forward, backward, clipping, Muon and AdamW) through `torch.autocast` in float32 and in bfloat16, on the CPU with all its
threads. Beside each the rate of large matrix products in the same dtype, measured in the same minute; "share" is of the best
of these rates. Operations are those of the products in forward and backward, counted by PyTorch; the optimizers' are not
among them, their time is. Nothing else should be running. Where DALLE-pytorch is installed (`pip install
dalle-pytorch==1.6.6`), its transformer of the same shape is measured in turn with ours, with AdamW; it also predicts the text.
It imports youtokentome, taming and pkg_resources, which its transformer does not use: where they cannot be installed, modules
of these names with what it imports of them are enough, as in the README's figures.
The image tokenizer is that of `--preset emoji` with all its losses, in bfloat16; PyTorch's profiler says which part of a step
passes in convolutions, forward and backward, those of the perceptual network and the discriminator among them.
Ends in one JSON line. `python -m benchmarks.training --help`
"""

import argparse
import json
import os
import statistics
import tempfile
import time

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.embedded import cpu_name
from dalle_core.priors.gpt import GPTPrior
from dalle_core.training import image_tokenizer
from dalle_core.training.loop import Loop
from dalle_core.training.prior import optimizers, prior_loss
from dalle_core.training.vq_model import new_image_tokenizer

TEXT, IMAGE, WIDTH, LAYERS, HEADS, TEXTS, CODES = 20, 256, 320, 6, 5, 4096, 8192
CONVOLUTIONS = ("aten::convolution", "aten::convolution_backward")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def matmul_rate(dtype: torch.dtype, side: int) -> float:
    """The best rate of a few products of square matrices, in operations a second."""
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    times = []
    for _ in range(6):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * side**3 / min(times)


class Ours:
    def __init__(self, dtype: torch.dtype, compiled: bool):
        torch.manual_seed(0)
        self.prior, self.dtype = GPTPrior(TEXTS, TEXT, CODES, IMAGE, LAYERS, HEADS, WIDTH), dtype
        self.forward = torch.compile(self.prior) if compiled else self.prior
        self.optimizers = optimizers(self.prior, 1e-3, dtype)

    def loss(self, text, tokens):
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            return prior_loss(self.forward, text, tokens)

    def step(self, text, tokens) -> None:
        self.loss(text, tokens).backward()
        torch.nn.utils.clip_grad_norm_(self.prior.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


class Theirs(Ours):
    """DALLE-pytorch 1.6.6 with full attention: its own loss, of image tokens and text."""

    def __init__(self, dtype: torch.dtype):
        from dalle_pytorch import DALLE, DiscreteVAE

        torch.manual_seed(0)
        side = int(IMAGE**0.5)
        vae = DiscreteVAE(image_size=8 * side, num_layers=3, num_tokens=CODES, codebook_dim=16, hidden_dim=16)
        sizes = {"dim": WIDTH, "depth": LAYERS, "heads": HEADS, "dim_head": WIDTH // HEADS}
        self.prior = DALLE(vae=vae, num_text_tokens=TEXTS, text_seq_len=TEXT, **sizes)
        self.dtype = dtype
        self.optimizers = [torch.optim.AdamW([p for p in self.prior.parameters() if p.requires_grad], lr=1e-3)]

    def loss(self, text, tokens):
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            return self.prior(text, tokens, return_loss=True)


def operations(trainer, text, tokens) -> int:
    """Of the matrix products of one forward and one backward pass."""
    with FlopCounterMode(display=False) as counter:
        trainer.loss(text, tokens).backward()
    return counter.get_total_flops()


def seconds(trainer, text, tokens) -> float:
    start = time.perf_counter()
    trainer.step(text, tokens)
    return time.perf_counter() - start


def image_tokenizer_step(repeats: int) -> dict:
    """Median seconds of a step after the discriminator has begun, and of the convolutions in it."""
    with tempfile.TemporaryDirectory() as out:
        args = image_tokenizer.parser().parse_args(["--out", out, "--precision", "bf16", "--cpu"])
        image_tokenizer.complete(args)
        loop = Loop(image_tokenizer.NAME, args, steps=100)
        model = new_image_tokenizer(args.codebook_size, tuple(args.channels), args.block_size, args.image_size)
        losses = (args.perceptual, args.adversarial, args.locality)
        trainer = image_tokenizer.Trainer(loop, model, 0, args.warmup_steps, args.crop, args.learning_rate, *losses)
        pixels = torch.rand(args.batch_size, 3, args.crop, args.crop).contiguous(memory_format=torch.channels_last) * 2 - 1
        whole, convolutions = [], []
        for loop.step in range(repeats + 2):
            with profile(activities=[ProfilerActivity.CPU]) as profiled:
                start = time.perf_counter()
                trainer.step(pixels)
                whole.append(time.perf_counter() - start)
            mine = (event for event in profiled.key_averages() if event.key in CONVOLUTIONS)
            convolutions.append(sum(event.cpu_time_total for event in mine) / 1e6)
    took, of_convolutions = (statistics.median(each[2:]) for each in (whole, convolutions))  # two to warm up
    return {"step_s": round(took, 3), "convolutions_s": round(of_convolutions, 3), "times": round(took / of_convolutions, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the training of a prior.")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=10, help="steps that are timed, of each (%(default)s)")
    parser.add_argument("--side", type=int, default=2048, help="of the matrices whose products are the measure (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="torch.compile our training step")
    args = parser.parse_args()
    text = torch.randint(1, TEXTS, (args.batch_size, TEXT))
    tokens = torch.randint(CODES, (args.batch_size, IMAGE))
    counted = operations(Ours(torch.float32, False), text, tokens)  # before anything is compiled
    result = {"batch_size": args.batch_size, "compiled": args.compile}
    result["gflop_a_sample"] = round(counted / args.batch_size / 1e9, 2)
    rates, ours = {}, {}
    for name, dtype in DTYPES.items():
        trainers = {"ours": Ours(dtype, args.compile)}
        try:
            trainers["dalle_pytorch"] = Theirs(dtype)
        except ImportError:
            pass
        for trainer in trainers.values():
            seconds(trainer, text, tokens)  # warms up
        times = {who: [] for who in trainers}
        for _ in range(args.repeats):  # in turn: a busier minute is everybody's
            for who, trainer in trainers.items():
                times[who].append(seconds(trainer, text, tokens))
        rates[name] = matmul_rate(dtype, args.side)
        took = {who: statistics.median(each) for who, each in times.items()}
        ours[name] = counted / took["ours"]
        result[name] = {f"{who}_samples_a_s": round(args.batch_size / each, 2) for who, each in took.items()} | {
            "ours_gflops": round(ours[name] / 1e9, 1),
            "matmul_gflops": round(rates[name] / 1e9, 1),
        }
    best = max(rates, key=rates.get)
    result["image_tokenizer"] = image_tokenizer_step(args.repeats)
    result |= {"best_dtype": best, "share": round(ours[best] / rates[best], 2), "cores": os.cpu_count(), "machine": cpu_name()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
