"""The commands: `dalle page`, `sample`, `augment`, `caption`, `train`, `push`, `convert`; each has a `--help`.

Without an installed `dalle` they are `python -m dalle_core page` and so on. What takes seconds to import is imported by the
command that needs it, so that `--help` and a wrong argument are answered at once.
"""

from __future__ import annotations

import argparse
import io
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import shtab
from tqdm import tqdm

import dalle_core
from dalle_core import page
from dalle_core.errors import InputError, ModelError

if TYPE_CHECKING:
    from dalle_core.pipeline import DallePipeline

# The catalogue's, which a test compares.
NAMES = "emoji, dalle-mini, dalle-mega, janus-pro-1b, janus-pro-7b, llamagen-256, llamagen-512"


def tell(line: str) -> None:
    print(line, flush=True)


def convert_command(args: argparse.Namespace) -> None:
    import torch

    from dalle_core.convert import convert

    convert(args.source, args.out, getattr(torch, args.dtype), args.clip)
    tell(f"{args.out} is ready: dalle_core.load({str(args.out)!r})")


def sample_command(args: argparse.Namespace) -> None:
    from dalle_core.prompts import read_prompts

    if args.best is not None and args.best < 1:
        raise InputError(f"--best {args.best}: save at least one picture.")
    prompts = [*args.prompt, *(row.prompt for row in (read_prompts(args.prompts, 1) if args.prompts else ()))]
    if not prompts:
        raise InputError("There is no prompt: write one or more, or name a file with --prompts.")
    pipe = open_model(args)
    args.out.mkdir(parents=True, exist_ok=True)
    asked = {"num_candidates": args.candidates, "seed": args.seed, **sampling(args)}
    for prompt in prompts:  # what is known to fail, before the first is drawn
        pipe.stream(prompt, **asked).close()
    for prompt in prompts:
        if len(prompts) > 1:
            tell(f"“{prompt[:120]}”")
        sample(pipe, prompt, asked, args.best, args.out)


def sample(pipe: DallePipeline, prompt: str, asked: dict, best: int | None, out: Path) -> None:
    """Draws one prompt and saves its candidates; asked: the other arguments of `DallePipeline.stream`."""
    from dalle_core.pictures import enlarge, save_png
    from dalle_core.recipe import drawn

    steps = pipe.stream(prompt, **asked)
    with closing(steps), tqdm(unit="token", desc="sample") as bar:
        for step in steps:
            bar.total = step.total
            bar.update(step.index - bar.n)
    generation = step.generation
    assert generation is not None  # the last step has it
    for word, nearest in pipe.unknown_words(prompt):
        tell(f"This model does not know “{word}”" + (f"; nearest: {', '.join(nearest)}." if nearest else "."))
    if generation.dropped_prompt:
        tell(f"The prompt is longer than this model reads; it stops before: {generation.dropped_prompt[:120]}")
    if rest := pipe.fit_for_clip(prompt)[1]:
        tell(f"CLIP, which ranks, reads only the beginning of the prompt; it stops before: {rest[:120]}")
    found = zip(generation.candidates, drawn(generation, pipe.name, pipe.revision), strict=True)
    for rank, (candidate, one) in enumerate(list(found)[:best], 1):
        path = save_png(enlarge(candidate.image), one.to_json(), out)
        score = "not ranked" if candidate.score is None else f"{candidate.score:.3f}"
        tell(f"#{rank:<3} {score}  {path}")


def augment_command(args: argparse.Namespace) -> None:
    from dalle_core.augment import augment, cut_prompts
    from dalle_core.prompts import read_prompts

    rows = read_prompts(args.prompts, args.count)
    run = {"rows": rows, "out": args.out, "seed": args.seed, "threshold": args.threshold, "best": args.best}
    if args.workers is None:
        pipe = open_model(args)
        steps, cut = augment(pipe, **run, **sampling(args)), cut_prompts(pipe, rows)
    else:
        steps, cut = augment_with_workers(args, run)
    if cut:
        tell(f"{cut} of {len(rows)} prompts are longer than this model reads: their ends play no part.")
    with closing(steps), tqdm(unit="picture", desc="augment") as bar:
        for progress in steps:
            if bar.total is None:  # the first: what a run before has drawn is not part of the pace
                bar.total, bar.initial, bar.n = progress.total, progress.drawn, progress.drawn
            bar.set_postfix(kept=progress.kept, refresh=False)
            bar.update(progress.drawn - bar.n)
    tell(f"{args.out}: {progress.kept} pictures kept, {progress.drawn - progress.kept} rejected, with metadata.jsonl.")


def train_command(args: argparse.Namespace) -> None:
    from dalle_core.training.whole import train

    train(args)


def push_command(args: argparse.Namespace) -> None:
    from dalle_core.push import push

    tell(push(args.folder, args.repo, args.private))


def augment_with_workers(args: argparse.Namespace, run: dict) -> tuple:
    if args.workers < 1:
        raise InputError(f"--workers {args.workers}: at least one process draws.")
    from dalle_core.cluster import connect

    connect()  # first: its sentence when Ray is not installed
    from dalle_core import workers

    return workers.augment(loading(args), args.workers, **run, sampling=sampling(args))


def caption_command(args: argparse.Namespace) -> None:
    import torch

    from dalle_core.caption import QUESTION, caption
    from dalle_core.catalogue import load

    pipe = load(args.model, args.device, args.dtype and getattr(torch, args.dtype), "none")
    steps, unread = caption(pipe, args.folder, args.question or QUESTION), 0
    with closing(steps), tqdm(unit="picture", desc="caption") as bar:
        for step in steps:
            bar.total = step.total
            bar.update(step.done - bar.n)
            if not step.text:
                unread += 1
                bar.write(f"{step.file_name} cannot be read, or nothing was said of it: it gets no line.")
    tell(f"{args.folder / 'metadata.jsonl'}: {step.total - unread} pictures with their captions.")


def open_model(args: argparse.Namespace) -> DallePipeline:
    from dalle_core.catalogue import load

    return load(**loading(args))


def loading(args: argparse.Namespace) -> dict:
    """The arguments of `catalogue.load` that `add_model` adds."""
    import torch

    dtype = args.dtype and getattr(torch, args.dtype)
    return {"source": args.model, "device": args.device, "dtype": dtype, "clip": args.clip, "lora": args.lora}


def sampling(args: argparse.Namespace) -> dict:
    """The arguments of `DallePipeline.stream` that `add_model` adds."""
    names = ("negative_prompt", "temperature", "top_k", "top_p", "guidance_scale")
    return {name: getattr(args, name) for name in names}


def add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", default="emoji", help=f"a name ({NAMES}), a folder, or a Hub id (default: %(default)s)")
    command.add_argument("--clip", help='folder or Hub id of the CLIP that ranks, or "none" (default: the model\'s own)')
    command.add_argument("--lora", help="folder or Hub id of a LoRA for this model")
    command.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: the best there is)")
    command.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "int8"],
        help="int8 is for CPUs (default: float32 on a CPU, bfloat16 on a GPU)",
    )
    command.add_argument("--negative-prompt", default="", help="what guidance leads away from")
    for name, kind, note in (
        ("temperature", float, "0 is greedy"),
        ("top-k", int, "0 keeps all"),
        ("top-p", float, "1 keeps all"),
        ("guidance-scale", float, "1 is unguided"),
    ):
        command.add_argument(f"--{name}", type=kind, help=f"{note} (default: the model's own)")


class Parser(argparse.ArgumentParser):
    """What is wrong is one line, without the usage; that of each command as well."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog.split()[-1]}: {message}. Try --help.", file=sys.stderr)
        raise SystemExit(2)


def parser(arguments: list[str] | None = None) -> argparse.ArgumentParser:
    arguments = sys.argv[1:] if arguments is None else arguments
    asked = "train" in arguments[:1] or "--print-completion" in arguments
    installed = Path(sys.argv[0]).stem == "dalle" or "--print-completion" in arguments  # a shell completes the command's name
    parser = Parser(prog="dalle" if installed else "python -m dalle_core")
    parser.add_argument("--version", action="version", version=f"dalle {dalle_core.__version__}")
    shtab.add_argument_to(parser, help="print what completes these commands in a shell, for its start-up file")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("page", help="the page, in a browser", description=page.DESCRIPTION, epilog=page.EPILOG)
    command.set_defaults(run=page.run)
    page.add_arguments(command)

    command = commands.add_parser("convert", help="a published model into a folder of this project's layout")
    command.set_defaults(run=convert_command)
    command.add_argument(
        "source",
        help="a name (dalle-mini, janus-pro-1b, …), a folder of min-dalle, dalle-mini, minDALL·E or Janus, or a Hub id",
    )
    command.add_argument("out", type=Path, help="a new folder")
    command.add_argument(
        "--dtype", choices=["float32", "float16", "bfloat16"], default="float16", help="(default: %(default)s)"
    )
    command.add_argument("--clip", help='folder or Hub id of the CLIP that ranks, or "none" (default: the usual one)')

    command = commands.add_parser("sample", help="candidates of prompts, ranked by CLIP, as PNG files with their recipe")
    command.set_defaults(run=sample_command)
    command.add_argument("prompt", nargs="*", help="one or more, each in quotation marks")
    command.add_argument(
        "--prompts", type=Path, metavar="FILE", help="more of them: a .csv with a column “prompt”, or a .txt, a prompt a line"
    )
    command.add_argument("--candidates", type=int, help="(default: the model's own)")
    command.add_argument("--best", type=int, help="save only so many, the best (default: all)")
    command.add_argument("--seed", type=int, help="(default: a new one)")
    command.add_argument("--out", type=Path, default=Path("."), help="folder (default: this one)")
    add_model(command)

    command = commands.add_parser(
        "augment",
        help="many pictures of many prompts, as a data set to train on",
        description="Draws a data set in the imagefolder layout: pictures and metadata.jsonl. Run again to go on after a stop.",
    )
    command.set_defaults(run=augment_command)
    command.add_argument(
        "prompts", type=Path, help="a .csv with a column “prompt” and perhaps “count”, or a .txt, a prompt a line"
    )
    command.add_argument("out", type=Path, help="a new folder, or that of a run to go on with")
    command.add_argument("--count", type=int, default=16, help="pictures of each prompt (default: %(default)s)")
    command.add_argument("--threshold", type=float, help="keep pictures with at least this CLIP score (default: all)")
    command.add_argument("--best", type=int, help="keep at most so many of each prompt, the best by CLIP (default: all)")
    command.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    command.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="draw in N processes, each with the model, by Ray (the extra “ray”): on this machine, or on the cluster that "
        "RAY_ADDRESS names; on GPUs each takes one (default: in this process)",
    )
    add_model(command)

    command = commands.add_parser(
        "train",
        help="captioned pictures in, a model out",
        add_help=asked,
        description="Trains all parts of a model and puts them together. Run again to go on after a stop.",
    )
    command.set_defaults(run=train_command)
    if asked:
        from dalle_core.training.whole import add_arguments  # takes a second, which the others need not wait for

        add_arguments(command)

    command = commands.add_parser("push", help="a model's or a LoRA's folder, with its card, onto the Hugging Face Hub")
    command.set_defaults(run=push_command)
    command.add_argument("folder", type=Path)
    command.add_argument("repo", help="owner/name; it is made when it is not there")
    command.add_argument("--private", action="store_true")

    command = commands.add_parser(
        "caption",
        help="captions of a folder of pictures, as metadata.jsonl to train on",
        description="Describes each picture of a folder in words. Run again to go on after a stop.",
    )
    command.set_defaults(run=caption_command)
    command.add_argument("folder", type=Path, help="with pictures, also in folders below it")
    command.add_argument(
        "--model", default="janus-pro-1b", help="one that answers: a name, a folder, or a Hub id (default: %(default)s)"
    )
    command.add_argument("--question", help="what is asked of each picture (default: a description in one sentence)")
    command.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: the best there is)")
    command.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "int8"],
        help="int8 is for CPUs (default: float32 on a CPU, bfloat16 on a GPU)",
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a prompt may have letters that the locale's encoding lacks
    args = parser(arguments).parse_args(arguments)
    try:
        args.run(args)
    except (InputError, ModelError, OSError) as error:
        print(f"{args.command}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print(
            f"{args.command}: stopped" + "; run it again to go on." * (args.command in ("augment", "caption", "train")),
            file=sys.stderr,
        )
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
