"""Puts trained parts together into one model folder, as `dalle_core.load` reads it and the Hub takes it.

`python -m dalle_core.training.assemble --help`. Weights are stored in float16: half the size, and nothing is lost that
sampling would show; they are computed with in the dtype that `load` is asked for.
"""

import argparse
import json
import shutil
from itertools import zip_longest
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

from dalle_core.catalogue import load, open_clip, open_image_tokenizer, open_prior, save
from dalle_core.checkpoints.tensors import read_json
from dalle_core.errors import InputError, ModelError
from dalle_core.pipeline import DallePipeline
from dalle_core.training import emoji_words as words
from dalle_core.training.arguments import command
from dalle_core.training.data import add_data_arguments, first_captions, open_from
from dalle_core.training.emoji import EmojiCorpus
from dalle_core.training.emoji_icons import VERSIONS

SAMPLING = {"temperature": 0.8, "top_k": 100, "top_p": 1.0, "guidance_scale": 1.5}
EXAMPLES = 12  # prompts on the page
FEW_LABELS = 500  # captions that differ; more are no names of things
READ_CAPTIONS = 20_000  # to find that out


def names_of(dataset) -> tuple[list[str], dict | None]:
    """What the data set shows: labels, its captions where these are few; and the vocabulary of the emoji corpus's captions."""
    if isinstance(dataset, EmojiCorpus):
        return named_by_the_corpus(dataset.folder)
    found = sorted(set(first_captions(dataset, READ_CAPTIONS)))
    return found if len(found) <= FEW_LABELS else [], None


def named_by_the_corpus(folder: Path) -> tuple[list[str], dict]:
    """The English name of every emoji of the corpus, and the vocabulary of its captions."""
    index = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
    things = words.things(index["concepts"])
    tags = words.emoji_tags(folder / "packages" / f"emojibase-data-{VERSIONS['emojibase-data']}")
    styles = sorted({icon["style"] for icon in index["icons"]})
    return sorted(thing.en[0] for thing in things.values()), words.vocabulary(things, tags, styles)


def examples_of(dataset, count: int = EXAMPLES) -> list[str]:
    """Captions of held-out pictures, each once, from every kind of them in turn; the first captions where none are held out."""
    kinds = [[caption for _, caption in dataset.held_out(kind, 4 * count)] for kind in dataset.held_out_kinds]
    in_turn = [caption for some in zip_longest(*kinds) for caption in some if caption]
    return list(dict.fromkeys(in_turn or first_captions(dataset, 4 * count)))[:count]


def assemble(
    out: Path,
    name: str,
    licence: str,
    image_tokenizer: Path,
    text_tokenizer: Path,
    prior: Path,
    clip: str | Path | None = None,
    examples: list[str] = (),
    labels: list[str] = (),
    vocabulary: dict | None = None,
    sampling: dict | None = None,
    text_normalizer: str | None = None,
    card: str | None = None,
) -> Path:
    """Writes the model `out` of its parts' folders. clip: as `catalogue.open_clip` takes it, None for none; card: its
    README.md; sampling: the defaults of `DallePipeline`. Raises InputError without a name or a licence."""
    for option, value in (("name", name), ("licence", licence)):
        if not value or not value.strip():
            raise InputError(f"--{option} is empty: a model that others shall use needs one.")
    vq = open_image_tokenizer(Path(image_tokenizer))
    defaults = SAMPLING | (sampling or {})
    defaults["top_k"] = min(defaults["top_k"], vq.config.num_vq_embeddings)
    pipe = DallePipeline(
        image_tokenizer=vq,
        text_tokenizer=PreTrainedTokenizerFast.from_pretrained(text_tokenizer),
        prior=open_prior(Path(prior)),
        name=name,
        licence=licence,
        examples=list(examples),
        labels=list(labels),
        defaults=defaults,
        vocabulary=vocabulary,
        text_normalizer=text_normalizer,
        **(open_clip(clip) if clip else {}),
    )
    return save_half(pipe, out, card)


def save_half(pipe: DallePipeline, out: Path, card: str | None = None) -> Path:
    """Writes a pipeline with all its weights in float16, in place of what an assembly before left at `out`."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.half()
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out, ignore_errors=True)
    save(pipe, out, card)
    return out


def of_run(run: Path, target: Path) -> Path:
    """Writes the newest weights of a prior's training as a model into the new folder `target`: with the image tokenizer and the
    text tokenizer that it trains with and the CLIP beside it, where there is one; a fine-tuning's with all of its model.

    Raises ModelError when there are none, or something of it is missing or damaged.
    """
    arguments = read_json(run / "config.json").get("arguments", {})
    if target.is_dir():
        return target
    if (run / "lora" / "adapter_config.json").is_file():
        lora = str(run / "lora")
        save(load(arguments.get("init"), "cpu", torch.float16, arguments.get("clip"), packed=False, lora=lora), target)
        return target
    if (run / "model" / "model_index.json").is_file():
        shutil.copytree(run / "model", target)
        return target
    if not (run / "prior" / "config.json").is_file():
        raise ModelError(f"{run} holds no weights of a prior yet.")
    parts = {}
    here = {
        "image_tokenizer": run.parent / "image_tokenizer" / "image_tokenizer",
        "text_tokenizer": run.parent / "text_tokenizer",
    }
    for name, beside in here.items():
        folders = [Path(arguments[name])] if isinstance(arguments.get(name), str) else []
        found = [folder for folder in (*folders, beside) if folder.is_dir()]
        if not found:
            raise ModelError(
                f"The {name.replace('_', ' ')} that {run} trains with is not at {folders[0] if folders else beside}."
            )
        parts[name] = found[0]
    clip = run.parent / "clip"
    clip = clip if (clip / "clip_processor").is_dir() else None
    return assemble(target, target.name, "unknown", prior=run / "prior", clip=clip, **parts)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Make one model folder of trained parts.")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the training commands wrote (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--name", required=True)
    parser.add_argument("--licence", required=True, help="of the weights, as CC-BY-4.0")
    add_data_arguments(parser)
    parser.add_argument("--image-tokenizer", type=Path, help="folder (the trained one)")
    parser.add_argument("--clip", help='folder or Hub id of the CLIP that ranks, or "none" (the trained one)')
    parser.add_argument(
        "--labels", type=Path, help="names of what it knows, one a line (the data's captions when they are few)"
    )
    parser.add_argument("--example", action="append", help="a prompt to show on the page; may be repeated (held-out captions)")
    for option, value in SAMPLING.items():
        parser.add_argument(f"--{option.replace('_', '-')}", type=type(value), default=value, help="(%(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = parser().parse_args(arguments)

    def run(args) -> None:
        if args.out.exists() and any(args.out.iterdir()):
            raise InputError(f"{args.out} is not empty: name a new folder.")
        dataset = open_from(args, image_size=96)  # for its captions
        labels, vocabulary = names_of(dataset)
        if args.labels:
            labels, vocabulary = sorted(args.labels.read_text(encoding="utf-8").splitlines()), None
        assemble(
            args.out,
            args.name,
            args.licence,
            args.image_tokenizer or args.runs / "image_tokenizer" / "image_tokenizer",
            args.runs / "text_tokenizer",
            args.runs / "prior" / "prior",
            None if args.clip == "none" else args.clip or args.runs / "clip",
            args.example or examples_of(dataset),
            labels,
            vocabulary,
            {name: getattr(args, name) for name in SAMPLING},
        )
        size = sum(path.stat().st_size for path in args.out.rglob("*.safetensors"))
        print(f"{args.out}: {size / 2**20:.1f} MiB of weights")

    command("assemble", run, args)


if __name__ == "__main__":
    main()
