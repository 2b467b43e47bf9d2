"""The recipe of the embedded model: every command that makes it, one after the other.

    python -m dalle_core.training.embedded                                 # on a CPU: days
    python -m dalle_core.training.embedded --unpack emoji.tar --at-once 32 --precision bf16     # on a GPU, without network

It says each command before it runs it, so that any of them can be run by hand as well. Each goes on where it was stopped, and
what is done is not done again. Everything lies below `--out`; the model is `--out/emoji`, to be moved to `assets/` when it was
looked at.

The order is not free. The judge needs nothing else, and without a good one no figure counts. The image tokenizer gives the
prior its tokens, and its decoder goes on alone once these are fixed. The ranker learns from what the prior draws, so the model
is put together twice: before it without a ranker.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from dalle_core.errors import InputError
from dalle_core.training.arguments import command

LICENCE = "CC-BY-4.0"
EXAMPLES = [
    "a fox and a banana on a purple background in twemoji style",
    "a red apple",
    "a smiling face with sunglasses",
    "two cats and a pizza",
    "粉色背景上的草莓",
    "a rocket in fluent style",
]
# Pictures that each part is trained on.
SAMPLES = {"judge": 48_000, "image_tokenizer": 9000 * 16, "decoder": 9000 * 16, "prior": 480_000, "clip": 120_000}


def steps(args: argparse.Namespace) -> list[tuple[list[str], Path]]:
    """(arguments of `python -m`, what is there once it has run), in order."""
    out, scale = args.out, args.scale
    here = {name: str(out / name) for name in ("judge", "image_tokenizer", "text_tokenizer", "prior", "clip", "candidates")}
    data = ["--data", str(args.data)]
    train = [*data, "--workers", str(args.workers), *(["--precision", args.precision] if args.precision else [])]
    together = ["--at-once", str(args.at_once)]

    def run(module: str, *arguments, makes: Path) -> tuple[list[str], Path]:
        return [f"dalle_core.training.{module}", *map(str, arguments)], makes

    def count(name: str, batch: int) -> int:
        return max(batch, int(SAMPLES[name] * scale))

    fetched = ["--unpack", args.unpack] if args.unpack else []
    tokenizer = args.image_tokenizer or out / "image_tokenizer" / "image_tokenizer"
    found = [run("emoji", "--folder", args.data, *fetched, makes=args.data / "sprites.npy")]
    found += [
        run("judge", *train, "--out", here["judge"], "--pictures", count("judge", 32), makes=out / "judge" / "figures.json")
    ]
    if not args.image_tokenizer:
        trained = ["--out", here["image_tokenizer"], "--steps", count("image_tokenizer", 16) // 16]
        found += [run("image_tokenizer", *train, *trained, makes=tokenizer)]
    found += [run("text_tokenizer", *data, "--out", here["text_tokenizer"], makes=out / "text_tokenizer" / "tokenizer.json")]
    parts = ["--image-tokenizer", tokenizer, "--text-tokenizer", here["text_tokenizer"]]
    shape = ["--layers", 6, "--heads", 5, "--hidden-size", 320]
    trained = ["--samples", count("prior", 32), "--pictures", args.pictures, "--look-every", 500]
    found += [run("prior", *train, "--out", here["prior"], *parts, *shape, *trained, makes=out / "prior" / "prior")]

    better = ["--init", tokenizer, "--decoder-only", "--steps", count("decoder", 16) // 16, "--gan-from", 0]
    decoder = out / "decoder" / "image_tokenizer"
    found += [run("image_tokenizer", *train, "--out", out / "decoder", *better, makes=decoder)]

    made = [*data, "--runs", out, "--licence", LICENCE, *(word for prompt in EXAMPLES for word in ("--example", prompt))]
    made += ["--image-tokenizer", decoder]
    unranked, model = out / "unranked", out / "emoji"
    found += [run("assemble", *made, "--out", unranked, "--name", "unranked", "--clip", "none", makes=unranked)]
    drawn = ["--model", unranked, "--out", here["candidates"], "--blocks", args.blocks, *together]
    found += [run("candidates", *data, *drawn, makes=out / "candidates" / "ranker.json")]
    ranked = ["--text-tokenizer", here["text_tokenizer"], "--image-size", 192, "--samples", count("clip", 128)]
    train[train.index("--data") + 1] = here["candidates"]
    found += [run("clip", *train, "--out", here["clip"], *ranked, makes=out / "clip" / "clip_processor")]
    found += [run("assemble", *made, "--out", model, "--name", "emoji", makes=model)]
    judged = [
        "--judge",
        here["judge"],
        "--out",
        model / "evaluation.json",
        "--sheets",
        out / "sheets",
        "--prompts",
        args.prompts,
    ]
    found += [run("evaluate_emoji", *data, "--model", model, *judged, *together, makes=model / "evaluation.json")]
    found += [
        run(
            "contact_sheet",
            "--model",
            model,
            "--out",
            model / "plain_prompts.png",
            *together,
            makes=model / "plain_prompts.png",
        )
    ]
    return found


def make(args: argparse.Namespace) -> None:
    """Raises InputError when one of the commands fails; it has said why."""
    done = args.out / "done"
    done.mkdir(parents=True, exist_ok=True)
    for number, (words, makes) in enumerate(steps(args)):
        mark = done / f"{number:02}_{words[0].rpartition('.')[2]}"
        if mark.exists() and makes.exists():
            continue
        print(f"\n> python -m {shlex.join(words)}", flush=True)
        if subprocess.run([sys.executable, "-m", *words]).returncode:
            raise InputError("this command failed; when what it says is mended, start this one again, it goes on there.")
        if not makes.exists():
            raise InputError(f"this command ended without {makes}.")
        mark.touch()
    print(f"\n{args.out / 'emoji'} is ready.")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the embedded model; run again to go on after a stop.")
    parser.add_argument("--out", type=Path, default=Path("runs/embedded"), help="(%(default)s)")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"), help="the emoji corpus (%(default)s)")
    parser.add_argument(
        "--unpack", metavar="TAR", help="take the corpus from this file, which dalle_core.training.emoji packed"
    )
    parser.add_argument("--image-tokenizer", type=Path, help="take this one, a folder, in place of training one")
    parser.add_argument("--pictures", type=int, default=48_000, help="to encode for the prior (%(default)s)")
    parser.add_argument("--blocks", type=int, default=16, help="of 128 prompts to draw candidates for (%(default)s)")
    parser.add_argument("--prompts", type=int, default=100, help="of each kind in the evaluation (%(default)s)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of all trainings' lengths: 0.001 tries that it runs (%(default)s)"
    )
    parser.add_argument("--precision", choices=["no", "bf16"], help="of the matrix products")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare pictures (%(default)s)")
    parser.add_argument("--at-once", type=int, default=1, help="prompts that are drawn together (%(default)s)")
    command("embedded", make, parser.parse_args(arguments))


if __name__ == "__main__":
    main()
