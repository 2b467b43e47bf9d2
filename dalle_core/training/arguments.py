"""What the training commands have in common on the command line, and `config.json`, which keeps a run to its arguments."""

import argparse
import importlib.metadata
import json
import os
import sys
from pathlib import Path

import torch

from dalle_core.errors import InputError, ModelError

# A run may go on with other values of these. All others define it.
MAY_CHANGE = {
    "out",
    "steps",
    "samples",
    "cpu",
    "precision",
    "workers",
    "accumulation",
    "save_minutes",
    "keep",
    "tensorboard",
    "look_every",
    "compile",
    "preset",
    "allow_bad",
}


def add_arguments(parser: argparse.ArgumentParser, out: str, batch_size: int | None, precisions=("no", "bf16", "fp16")) -> None:
    """The arguments that `Loop` reads. `batch_size` None: something else says what it is when it is not given."""
    parser.add_argument("--out", type=Path, default=Path(out), help="checkpoints, logs, pictures, result (%(default)s)")
    shown = "of all processes together" + " (%(default)s)" * bool(batch_size)
    parser.add_argument("--batch-size", type=int, default=batch_size, help=shown)
    parser.add_argument("--precision", choices=precisions, help="of the matrix products (accelerate's setting, or no: float32)")
    parser.add_argument("--cpu", action="store_true", help="on the CPU, whatever else there is")
    parser.add_argument("--workers", type=int, default=1, help="that prepare pictures, for each process (%(default)s)")
    parser.add_argument("--save-minutes", type=float, default=3.0, help="minutes between checkpoints (%(default)s)")
    parser.add_argument("--keep", type=int, default=2, help="checkpoints kept, the newest (%(default)s)")
    parser.add_argument("--tensorboard", action="store_true", help="write figures for TensorBoard too, under --out")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")


def command(name: str, train, args: argparse.Namespace) -> None:
    """Runs `train(args)`; what goes wrong is told in one sentence, and the exit status says so."""
    try:
        train(args)
    except torch.OutOfMemoryError:
        print(f"{name}: a step does not fit into the device's memory: take a smaller --batch-size.", file=sys.stderr)
        raise SystemExit(2) from None
    except (InputError, ModelError, ValueError, OSError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(f"{name}: stopped; the same command goes on from the last checkpoint.", file=sys.stderr)
        raise SystemExit(130) from None


def as_config(args: argparse.Namespace) -> dict:
    """`{"arguments", "versions"}` of a run, as JSON has them. The versions are for people; nothing reads them."""
    arguments = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    packages = ("torch", "accelerate", "diffusers", "transformers")
    return {
        "arguments": json.loads(json.dumps(arguments)),  # tuples become lists, as they will be when they are read back
        "versions": {"python": sys.version.split()[0]} | {name: importlib.metadata.version(name) for name in packages},
    }


def check_config(path: Path, args: argparse.Namespace) -> None:
    """Raises InputError when the run whose `config.json` is at `path` was started with other arguments."""
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["arguments"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged, so that nobody can say what this run is: take another --out.") from None
    now = as_config(args)["arguments"]
    for name in before.keys() & now.keys() - MAY_CHANGE:
        if before[name] != now[name]:
            raise InputError(
                f"{path.parent} was started with --{name.replace('_', '-')} {before[name]}, and now it is {now[name]}: "
                "go on with the same value, or take another --out for a new run."
            )


def write_config(path: Path, args: argparse.Namespace) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(as_config(args), indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)
