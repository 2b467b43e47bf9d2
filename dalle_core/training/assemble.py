"""Puts trained parts together into one pipeline folder, as `dalle_core.load` reads it and the Hub takes it.

`python -m dalle_core.training.assemble --help`. Weights are stored in float16: half the size, and nothing is lost that
sampling would show; they are computed with in the dtype that `load` is asked for.
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import VQModel
from transformers import CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from dalle_core.gpt_prior import GPTPrior
from dalle_core.pipeline import DallePipeline

EXAMPLES = [
    "a fox",
    "a cat face in twemoji style",
    "a smiling face with sunglasses",
    "a red apple on a light blue background",
    "a fox and a banana on a purple background",
    "mount fuji",
    "a beach with umbrella in noto style",
    "一只猫",
    "粉色背景上的草莓",
    "a pizza in fluent style",
    "two penguins",
]


def emoji_names(folder: Path) -> list[str]:
    """The English name of every emoji of the corpus; nothing when it is not there."""
    file = folder / "icons.json"
    if not file.exists():
        return []
    return sorted(concept["en"][0] for concept in json.loads(file.read_text(encoding="utf-8"))["concepts"].values())


def main() -> None:
    parser = argparse.ArgumentParser(description="Make one pipeline folder of trained parts.")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the training commands wrote")
    parser.add_argument("--out", type=Path, default=Path("assets/emoji"))
    parser.add_argument("--name", default="emoji")
    parser.add_argument("--labels", type=Path, help="names of what it knows, one a line (default: the emoji corpus's)")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"), help="the emoji corpus (%(default)s)")
    parser.add_argument("--licence", default="CC-BY-4.0", help="of the weights (%(default)s)")
    parser.add_argument("--example", action="append", help="a prompt to show on the page; may be repeated")
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-k", type=int, default=100)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--guidance-scale", type=float, default=1.5)
    args = parser.parse_args()
    labels = sorted(args.labels.read_text(encoding="utf-8").splitlines()) if args.labels else emoji_names(args.data)
    pipe = DallePipeline(
        image_tokenizer=VQModel.from_pretrained(args.runs / "image_tokenizer" / "image_tokenizer"),
        text_tokenizer=PreTrainedTokenizerFast.from_pretrained(args.runs / "text_tokenizer"),
        prior=GPTPrior.from_pretrained(args.runs / "prior" / "prior"),
        clip=CLIPModel.from_pretrained(args.runs / "clip" / "clip"),
        clip_processor=CLIPImageProcessorPil.from_pretrained(args.runs / "clip" / "clip_processor"),
        name=args.name,
        defaults={
            "temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p,
            "guidance_scale": args.guidance_scale,
        },
        examples=args.example or EXAMPLES,
        licence=args.licence,
        labels=labels,
    )  # fmt: skip
    pipe.to(torch.float16).save_pretrained(args.out)
    size = sum(path.stat().st_size for path in args.out.rglob("*.safetensors"))
    print(f"{args.out}: {size / 2**20:.1f} MiB of weights")


if __name__ == "__main__":
    main()
