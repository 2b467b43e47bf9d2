"""Training runs in processes of their own, which can be killed, or be several that train together.

They are forked from a server that has imported everything, where the system can do that: importing takes seconds.
"""

import argparse
import json
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from PIL import Image
from torch import nn
from torch.distributed.tensor import DTensor

from dalle_core.priors.gpt import GPTPrior
from dalle_core.text_tokenizer import train_text_tokenizer
from dalle_core.training import clip, image_tokenizer, prior  # noqa: F401  clip is imported once, by the server
from dalle_core.training.loop import Loop
from dalle_core.training.muon import Muon

CONTEXT = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
if sys.platform != "win32":
    CONTEXT.set_forkserver_preload(["tests.runs"])


def options(out: Path, **changed) -> argparse.Namespace:
    """The arguments that `Loop` reads."""
    standard = dict(
        out=Path(out), batch_size=8, precision="no", cpu=True, workers=0, save_minutes=1e9, keep=2, tensorboard=False, seed=0
    )
    return argparse.Namespace(**standard | changed)


def toy(out: Path, steps: int = 12, until: int | None = None, pause: float = 0.0, **changed) -> None:
    """A trainer that has all that the real ones have, of a model with 21 weights. Writes out/result/model.pt.

    `until`: stops after so many steps, with a checkpoint of them.
    """
    loop = Loop("toy", options(out, **changed), steps, warmup=3)
    model = Toy()
    optimizers = [Muon([model.first.weight], lr=0.05), torch.optim.AdamW(model.second.parameters(), lr=0.01)]
    forward = loop.prepare("toy", model, optimizers, ema_decay=0.8, max_norm=1.0)
    seen = Seen()
    loop.register("seen", seen)
    first = loop.restore()
    for _, pixels in loop.run(loop.own(batch(step)) for step in range(first, until or steps)):
        total = 0.0
        for part in loop.parts(pixels):
            with loop.autocast():
                loss = (forward(part) - part.sin().sum(1, keepdim=True)).square().mean()
            loop.backward(loss)
            total += loss.detach() / loop.accumulation
        loop.update("toy")
        seen.count += len(pixels) * loop.part[1]
        loop.log(loss=total, seen=seen.count)
        time.sleep(pause)
    loop.save_pretrained("toy", Path(out) / "result")


def transformer(out: Path, sharded: bool, until: int | None = None) -> None:
    """A small prior on random tokens, with Muon and AdamW; `sharded`: under FSDP2.

    accelerate offers FSDP to GPUs only. Told that these processes have some, it does on CPUs what it does there.
    """
    if sharded:
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        os.environ.update(
            ACCELERATE_USE_FSDP="true",
            FSDP_VERSION="2",
            FSDP_AUTO_WRAP_POLICY="TRANSFORMER_BASED_WRAP",
            FSDP_TRANSFORMER_CLS_TO_WRAP="Block",
            FSDP_CPU_RAM_EFFICIENT_LOADING="false",
        )
    loop = Loop("prior", options(out), 4, warmup=2)
    model = GPTPrior(20, 4, 16, 9, num_layers=1, num_heads=2, hidden_size=16)
    model = loop.prepare("prior", model, prior.optimizers(model, 0.02), ema_decay=0.8, max_norm=1.0)
    assert loop.sharded == sharded == isinstance(model.head.weight, DTensor)
    for step, _ in loop.run(range(loop.restore(), until or 4)):
        generator = torch.Generator().manual_seed(step)
        texts, tokens = (loop.own(torch.randint(count, (8, n), generator=generator)) for count, n in ((20, 4), (16, 9)))
        loss = prior.prior_loss(model, texts, tokens)
        loop.backward(loss)
        loop.update("prior")
        loop.log(loss=loss)
    loop.save_pretrained("prior", Path(out) / "prior")


class Seen:
    def __init__(self):
        self.count = 0

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 1)

    def forward(self, x):
        return self.second(self.first(x).tanh())

    def save_pretrained(self, folder):
        folder.mkdir()
        torch.save(self.state_dict(), folder / "model.pt")


COLOURS = ["red", "green", "blue", "white", "black", "grey", "yellow", "purple"]


def pictures(folder: Path, count: int = 40, side: int = 24) -> Path:
    """Captioned pictures of side x side pixels, a square of one colour on another, and a text tokenizer in `text_tokenizer`."""
    lines = []
    for i in range(count):
        a, b = COLOURS[i % 8], COLOURS[(i // 8 + 1 + i) % 8]
        image = Image.new("RGB", (side, side), b)
        image.paste(a, (side // 4, side // 4, side * 3 // 4, side * 3 // 4))
        image.save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"a {a} square on {b}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    train_text_tokenizer([json.loads(line)["text"] for line in lines], 100).save_pretrained(folder / "text_tokenizer")
    return folder


def batch(step: int) -> torch.Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(step))


def image_tokenizer_noting_every_step(arguments: list[str]) -> None:
    image_tokenizer.LOG_EVERY = 1
    image_tokenizer.main(arguments)


def _one(rank: int, count: int, port: int, function, arguments) -> None:
    torch.set_num_threads(1)
    if count > 1:  # what accelerate launch and torchrun set
        os.environ.update(
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(count),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            ACCELERATE_USE_CPU="true",
            OMP_NUM_THREADS="1",
        )
    function(*arguments)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """For the tests that import this: sums are rounded as in the processes below, which have one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def start(function, *arguments, processes: int = 1) -> list:
    """Starts `function(*arguments)` in so many processes, which train together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [CONTEXT.Process(target=_one, args=(rank, processes, port, function, arguments)) for rank in range(processes)]
    for process in started:
        process.start()
    return started


def finish(started: list, seconds: float = 120) -> None:
    """Waits for the processes. Fails when one of them did."""
    for process in started:
        process.join(seconds)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    assert codes == [0] * len(codes), codes


def toy_in_processes(processes: int, out: Path, **changed) -> None:
    finish(start(_toy, out, changed, processes=processes))


def _toy(out, changed):
    toy(out, **changed)
