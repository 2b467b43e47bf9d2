"""The card of a trained model, README.md of its folder: what it is, what it learned from, how long, what it is worth."""

import json
import os
import platform
from pathlib import Path

import torch

from dalle_core.convert import licence_tag

PAUSE = 600  # seconds between two lines of a log that are no training
CARD = """---
license: {tag}
pipeline_tag: text-to-image
tags: [dall-e, autoregressive, vqgan{tags}]
---

# {name}

{what} `dalle_core.load({load})` opens it once it is on the Hub under that name.

Licence of the weights: {licence}.

## Data

{data}
{parts}
## Training

On {machine}.

| part | steps | time |
| --- | --- | --- |
{times}

## How well

{figures}
"""


def machine() -> str:
    """The processor or the GPU that this process computes on, as the system names it."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    name = platform.processor() or platform.machine()
    try:  # what Linux calls the processor is only here
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"


def time_of(log: Path) -> tuple[int, float]:
    """(steps, seconds) of a training by its log, pauses left out."""
    step, seconds, before = 0, 0.0, None
    try:
        with open(log, encoding="utf-8") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                    step, now = int(row["step"]), float(row["time"])
                except (ValueError, KeyError, TypeError):
                    continue
                seconds += now - before if before is not None and 0 < now - before < PAUSE else 0
                before = now
    except OSError:
        pass
    return step, seconds


def duration(seconds: float) -> str:
    if seconds < 60:
        return "less than a minute"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def named(source: str) -> str:
    """A data set's name; of a folder of one's own not where it lies."""
    return Path(source).resolve().name if Path(source).exists() else source


def described(dataset, source: str) -> str:
    """The data in a sentence."""
    count = f"{len(dataset):,} pictures" if hasattr(dataset, "__len__") else "a stream of pictures"
    licence = getattr(dataset, "licence", None)
    return f"{named(source)}: {count} with captions. Licence of the data: {licence or 'not stated by it'}."


def figures_as_text(result: dict | None, command: str) -> str:
    """The figures of `evaluate` as a table, with the command that measures them again."""
    if result is None:
        return "Not measured: no picture was kept out of training."
    kinds = {name: kind for name, kind in result.items() if isinstance(kind, dict) and "prompts" in kind}
    rows = []
    for name, kind in kinds.items():
        best = {f"best of {n}": share for n, share in kind.get("r_precision_best_of", {}).items()}
        shares = best | {"real pictures": kind["r_precision_of_real_pictures"]} if best else {}
        cells = ", ".join(f"{what} {share:.0%}" for what, share in shares.items()) or "not judged"
        rows.append(f"| {name} | {kind['prompts']} | {kind['reconstruction_psnr']:.1f} dB | {cells} |")
    judge = result.get("judge")
    who = f"The judge is {judge}." if judge else "No CLIP judged."
    return "\n".join(
        [
            f"`{command}` measures, on pictures that training never saw:",
            "",
            "| held-out pictures | prompts | reconstruction, PSNR | own caption found among all of them |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
            f"{who} The columns are explained in `dalle_core/training/evaluate.py`. "
            "`evaluation.png` shows some of the prompts:",
            "",
            "![Real pictures, their reconstructions, and what is drawn](evaluation.png)",
        ]
    )


def parts_of(pipe) -> str:
    rows = []
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            numbers = sum(value.numel() for value in part.state_dict().values() if torch.is_tensor(value))
            rows.append(f"| `{name}` | {type(part).__name__} | {numbers:,} |")
    return "\n".join(["\n## Parts\n", "| part | class | numbers |", "| --- | --- | --- |", *rows, ""])


def card(
    name: str, licence: str, what: str, data: str, logs: dict[str, Path], figures: str, parts: str = "", base: str = ""
) -> str:
    """logs: the log.jsonl of each step by the step's name; parts: as `parts_of`; base: the model that a LoRA is for."""
    times = [(step, *time_of(log)) for step, log in logs.items()]
    return CARD.format(
        tag=licence_tag(licence),
        tags=", lora" if base else "",
        name=name,
        what=what,
        licence=licence,
        data=data,
        parts=parts,
        load=f'"{base}", lora="owner/name"' if base else '"owner/name"',
        machine=machine(),
        figures=figures,
        times="\n".join(f"| {step} | {count:,} | {duration(seconds)} |" for step, count, seconds in times),
    )
