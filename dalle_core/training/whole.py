"""One command for the whole way: captioned pictures in, a model that `dalle_core.load` opens out.

    python -m dalle_core train pictures --out runs/mine --name mine --licence CC-BY-4.0
    python -m dalle_core train pictures --out runs/mine --name mine --licence CC-BY-4.0 --from emoji --lora 16

Each step has a folder of its own below `--out`, as its own command would write it, and goes on where it was stopped:

    image_tokenizer/  text_tokenizer/  prior/  clip/
                            what `--image-tokenizer`, `--clip` and `--from` name is taken, not trained
    model/                  the result, with its card and its evaluation; of a LoRA, prior/lora/
    finished.json           the steps that are done and are not done again
    config.json             the arguments: a training does not go on with others

Under `accelerate launch -m dalle_core train ...` several processes train together; what is not training the first does alone.
"""

import argparse
import gc
import json
import os
from pathlib import Path

import torch
from accelerate import PartialState

from dalle_core import image_tokenizer, memory
from dalle_core.catalogue import CLIP_ON_GPU, WEIGHTS, load, model_folder, open_image_tokenizer
from dalle_core.checkpoints.tensors import read_json
from dalle_core.errors import InputError
from dalle_core.text_tokenizer import train_text_tokenizer
from dalle_core.training import checkpoints, clip, evaluate, prior
from dalle_core.training import image_tokenizer as tokenizer_training
from dalle_core.training.arguments import check_config, write_config
from dalle_core.training.assemble import assemble, examples_of, names_of, save_half
from dalle_core.training.card import card, described, figures_as_text, named, parts_of
from dalle_core.training.data import OPTIONS, add_data_arguments, first_captions, open_from
from dalle_core.training.vq_model import trained_image_tokenizer

# Of each preset: the arguments of the prior's and CLIP's commands, and what the text tokenizer and the evaluation do. The image
# tokenizer's command has the same presets itself.
PRESETS = {
    "tiny": dict(  # seconds, to try that all of it runs
        prior="--layers 2 --heads 2 --hidden-size 64 --samples 320 --batch-size 8 --look-every 20",
        clip="--samples 320 --batch-size 8 --image-size 48",
        vocab_size=400,
        captions=2000,
        prompts=4,
    ),
    "emoji": dict(  # hours on a CPU
        prior="", clip="", vocab_size=4096, captions=60_000, prompts=100
    ),
    "photo-256": dict(  # for GPUs; photographs take a CLIP of the Hub
        prior="--layers 24 --heads 16 --hidden-size 1024 --text-length 64 --samples 40000000 --batch-size 256 "
        "--look-every 1000 --dropout 0.1 --learning-rate 0.01",
        clip=None,
        vocab_size=16_384,
        captions=1_000_000,
        prompts=100,
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser, positional=True)
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="a new folder, or a training's to go on with")
    parser.add_argument("--name", help="of the model (needed)")
    parser.add_argument("--licence", help="of the model, as CC-BY-4.0 (needed)")
    parser.add_argument("--preset", default="emoji", choices=PRESETS, help="how large, and for how long (%(default)s)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="times the preset's steps: 0.1 is a tenth of them (%(default)s)"
    )
    parser.add_argument("--image-tokenizer", metavar="MODEL", help="take this one: a folder, or the model that has it")
    parser.add_argument("--clip", metavar="MODEL", help=f'take this one: a folder, a Hub id such as {CLIP_ON_GPU}, or "none"')
    parser.add_argument("--from", dest="start", metavar="MODEL", help="fine-tune the prior of this model; its other parts stay")
    parser.add_argument("--lora", type=int, metavar="RANK", help="with --from: train a LoRA of this rank, not all weights")
    parser.add_argument("--judge", metavar="MODEL", help="a CLIP that never ranks, to evaluate with: a folder or a Hub id")
    parser.add_argument("--precision", choices=("no", "bf16"), help="of the matrix products (accelerate's setting, or no)")
    parser.add_argument("--cpu", action="store_true", help="on the CPU, whatever else there is")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare pictures (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")


def check(args: argparse.Namespace) -> None:
    """Raises InputError for what would fail hours later."""
    for option, what in (("name", "what the model is called"), ("licence", "under which licence others may use it")):
        if not (getattr(args, option) or "").strip():
            raise InputError(f"--{option} is missing: say {what}.")
    if args.lora and not args.start:
        raise InputError("--lora changes a trained model: name it by --from.")
    if args.start and args.image_tokenizer:
        raise InputError("--from takes the image tokenizer of its model: leave out --image-tokenizer.")
    if args.scale <= 0:
        raise InputError(f"--scale {args.scale}: it must be above 0.")
    if args.judge and args.clip == "none":
        raise InputError("--judge judges what a CLIP ranked: leave it out, or name a --clip.")


def train(args: argparse.Namespace) -> None:
    """Raises InputError or ModelError with what to do; run again, it goes on."""
    check(args)
    state, run = PartialState(cpu=args.cpu), args.out
    others = ("run", "command", "name", "licence", "judge")
    defining = argparse.Namespace(**{name: value for name, value in vars(args).items() if name not in others})
    check_config(run / "config.json", defining)
    done = finished(run)
    state.wait_for_everyone()  # before the first process writes what the others read
    if state.is_main_process:
        run.mkdir(parents=True, exist_ok=True)
        write_config(run / "config.json", defining)
    for name, step in steps_of(args).items():
        if name in done:
            tell(state, f"{name}: done before.")
            continue
        if step in (make_text_tokenizer, take_image_tokenizer):
            if state.is_main_process:
                step(args)
        else:
            tell(state, f"{name}: training.")
            step(args)
        free()
        if state.is_main_process:
            done.append(name)
            write_finished(run, done)
        state.wait_for_everyone()
    if state.is_main_process:
        result = finish(args)
        tell(state, f"{result} is ready, with its card.")


def tell(state: PartialState, line: str) -> None:
    if state.is_main_process:
        print(line, flush=True)


def steps_of(args: argparse.Namespace) -> dict:
    """What is trained, by the name of its folder, in this order."""
    if args.start:
        return {"prior": train_prior}
    steps = {
        "image_tokenizer": take_image_tokenizer if args.image_tokenizer else train_image_tokenizer,
        "text_tokenizer": make_text_tokenizer,
        "prior": train_prior,
    }
    return steps | ({"clip": train_clip} if clip_of(args) is None else {})


def clip_of(args: argparse.Namespace) -> str | None:
    """The CLIP that is taken, "none" where nothing shall be ranked; None: one is trained."""
    return args.clip or (CLIP_ON_GPU if PRESETS[args.preset]["clip"] is None and not args.start else None)


def finished(run: Path) -> list[str]:
    try:
        found = json.loads((run / "finished.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def write_finished(run: Path, names: list[str]) -> None:
    part = run / "finished.part"
    part.write_text(json.dumps(names) + "\n", encoding="utf-8")
    os.replace(part, run / "finished.json")


def free() -> None:
    """Gives the memory of one step back before the next."""
    gc.collect()
    memory.give_back()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---------------------------------------------------------------- the steps


def namespace(args: argparse.Namespace, parser: argparse.ArgumentParser, name: str, values: list[str]) -> argparse.Namespace:
    """The arguments of a step's own command: its defaults, `values`, and what all steps share."""
    shared = ["--out", str(args.out / name), "--workers", str(args.workers), "--seed", str(args.seed)]
    shared += ["--precision", args.precision] if args.precision else []
    found = parser.parse_args(shared + ["--cpu"] * args.cpu + values)
    for option in ("data", *OPTIONS):
        setattr(found, option, getattr(args, option))
    return found


def scaled(args: argparse.Namespace, found: argparse.Namespace) -> argparse.Namespace:
    found.samples = max(found.batch_size, int(found.samples * args.scale))
    return found


def train_image_tokenizer(args: argparse.Namespace) -> None:
    steps = max(1, int(tokenizer_training.PRESETS[args.preset]["steps"] * args.scale))
    values = ["--preset", args.preset, "--steps", str(steps)]
    tokenizer_training.train(namespace(args, tokenizer_training.parser(), "image_tokenizer", values))


def take_image_tokenizer(args: argparse.Namespace) -> None:
    """Copies the image tokenizer of a folder or a model. Raises InputError when it cannot read pictures."""
    folder = Path(args.image_tokenizer)
    if not folder.is_dir():
        folder = model_folder(args.image_tokenizer, print)
    if (folder / "image_tokenizer").is_dir():
        folder = folder / "image_tokenizer"
    # As it is, with the price of its codes; or converted from a published format.
    model = open_image_tokenizer(folder) if (folder / WEIGHTS).is_file() else trained_image_tokenizer(folder)
    if not image_tokenizer.has_encoder(model):
        raise InputError(f"The image tokenizer of {args.image_tokenizer} came without its encoder, so it cannot read pictures.")
    checkpoints.write_model(model, args.out / "image_tokenizer" / "image_tokenizer")


def make_text_tokenizer(args: argparse.Namespace) -> None:
    preset = PRESETS[args.preset]
    dataset = open_from(args, image_size=96)  # for its captions
    tokenizer = train_text_tokenizer(first_captions(dataset, preset["captions"]), preset["vocab_size"])
    tokenizer.save_pretrained(args.out / "text_tokenizer")


def train_prior(args: argparse.Namespace) -> None:
    values = PRESETS[args.preset]["prior"].split()
    if args.start:
        values += ["--init", args.start] + (["--lora", str(args.lora)] if args.lora else [])
        values += ["--clip", args.clip] if args.clip else []
    else:
        values += ["--image-tokenizer", str(args.out / "image_tokenizer" / "image_tokenizer")]
        values += ["--text-tokenizer", str(args.out / "text_tokenizer"), "--clip", "none"]
    prior.train(scaled(args, namespace(args, prior.parser(), "prior", values)))


def train_clip(args: argparse.Namespace) -> None:
    values = (PRESETS[args.preset]["clip"] or "").split() + ["--text-tokenizer", str(args.out / "text_tokenizer")]
    clip.train(scaled(args, namespace(args, clip.parser(), "clip", values)))


# ---------------------------------------------------------------- the result


def finish(args: argparse.Namespace) -> Path:
    """Assembles, evaluates and describes the model, what of it is not done yet. Returns its folder."""
    result = args.out / "prior" / "lora" if args.lora else args.out / "model"
    if not args.lora and not is_made(args, result):
        make_model(args, result)
        free()
    if not (result / "README.md").is_file():
        describe(args, result)
    return result


def is_made(args: argparse.Namespace, out: Path) -> bool:
    """Whether the model is there, with this name and licence."""
    if not (out / "model_index.json").is_file():
        return False
    index = read_json(out / "model_index.json")
    return (index.get("name"), index.get("licence")) == (args.name, args.licence)


def make_model(args: argparse.Namespace, out: Path) -> None:
    """Writes RUN/model, with weights in float16."""
    dataset = open_from(args, image_size=96)  # for its captions
    examples, (labels, vocabulary) = examples_of(dataset), names_of(dataset)
    if not args.start:
        taken = clip_of(args)
        ranks = None if taken == "none" else taken or args.out / "clip"
        assemble(
            out,
            args.name,
            args.licence,
            args.out / "image_tokenizer" / "image_tokenizer",
            args.out / "text_tokenizer",
            args.out / "prior" / "prior",
            ranks,
            examples,
            labels,
            vocabulary,
        )
        return
    tuned = args.out / "prior" / "model"
    pipe = load(str(tuned), "cpu", torch.float32, None if (tuned / "clip").is_dir() else "none", packed=False)
    pipe.register_to_config(name=args.name, licence=args.licence, examples=examples, labels=labels, vocabulary=vocabulary)
    save_half(pipe, out)


def describe(args: argparse.Namespace, out: Path) -> None:
    """Measures the model on what was kept out of its training, and writes its card, the last of its files."""
    # The CLIP that it has, or none: another would have to be fetched.
    model, lora = (args.start, str(out)) if args.lora else (str(out), None)
    ranks = args.clip if args.lora else None if (out / "clip").is_dir() else "none"
    pipe = load(model, "cpu" if args.cpu else None, clip=ranks, lora=lora)
    dataset = open_from(args, pipe.image_size)
    command = "python -m dalle_core.training.evaluate --model " + (f"{args.start} --lora owner/name" if lora else "owner/name")
    command += f" --data {named(args.data)} --prompts {PRESETS[args.preset]['prompts']} --out evaluation.json"
    command += f" --judge {args.judge}" if args.judge else ""
    result = None
    if any(dataset.held_out(kind, 1) for kind in dataset.held_out_kinds):
        figures, picture = evaluate.evaluate(pipe, dataset, args.judge, PRESETS[args.preset]["prompts"], args.seed)
        result = {"model": args.name, "seed": args.seed, "sampling": pipe.defaults} | figures
        evaluate.write(out / "evaluation.json", result, picture)
    logs = {name: args.out / name / "log.jsonl" for name in steps_of(args) if (args.out / name / "log.jsonl").is_file()}
    what = "A text-to-image model, trained with *DALL·E, ranked*."
    if args.start:
        what = f"{args.start}, fine-tuned on other pictures" + (f" as a LoRA of rank {args.lora}." if args.lora else ".")
    text = card(
        args.name,
        args.licence,
        what,
        described(dataset, args.data),
        logs,
        figures_as_text(result, command),
        parts="" if args.lora else parts_of(pipe),
        base=args.start if args.lora else "",
    )
    (out / "README.md").write_text(text, encoding="utf-8")
