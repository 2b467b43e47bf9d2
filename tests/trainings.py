"""Folders as trainings write them, without a training."""

import json
import time
from pathlib import Path

from PIL import Image

from tests.conftest import make_pipeline


def line(step: int, at: float, **figures) -> str:
    return json.dumps({"step": step, "time": at} | figures) + "\n"


def write_training(run: Path, steps: int, arguments: dict, pictures: dict[str, list[int]] | None = None, **figures) -> Path:
    """A log with a row every 10 steps, one a second, values that halve every 100 steps, and pictures of one colour."""
    (run / "pictures").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"arguments": arguments, "versions": {}}), encoding="utf-8")
    start = time.time() - steps
    rows = [
        line(s, start + s, **{name: value * 0.5 ** (s / 100) for name, value in figures.items()})
        for s in range(10, steps + 1, 10)
    ]
    (run / "log.jsonl").write_text("".join(rows), encoding="utf-8")
    for kind, found in (pictures or {}).items():
        for step in found:
            Image.new("RGB", (64, 32), (step % 256, 0, 0)).save(run / "pictures" / f"{kind}_{step:06}.png")
    return run


def write_whole(root: Path) -> Path:
    """The folder of a training of all parts, at work on its prior: what was written last. Returns the prior's folder."""
    pipe = make_pipeline()
    tokenizer = write_training(
        root / "image_tokenizer", 200, {"steps": 200, "seed": 0}, {"reconstructions": [100, 200]}, reconstruction=1.0, psnr=20.0
    )
    pipe.image_tokenizer.save_pretrained(tokenizer / "image_tokenizer")
    pipe.text_tokenizer.save_pretrained(root / "text_tokenizer")
    pipe.clip.save_pretrained(root / "clip" / "clip")
    pipe.clip_processor.save_pretrained(root / "clip" / "clip_processor")
    arguments = {"samples": 1600, "batch_size": 4, "image_tokenizer": "elsewhere", "data": "<b>pictures</b>"}
    prior = write_training(root / "prior", 300, arguments, {"samples": [100, 200, 300]}, loss=4.0, held_out_pictures=5.0)
    pipe.prior.save_pretrained(prior / "prior")
    return prior
