"""Evaluation: how often a picture shows what its prompt said, and what reranking adds.

For held-out prompts (what training never saw) a pipeline draws 64 candidates each. Of the first N = 1, 4, 16, 64 the
one that the pipeline's own CLIP scores highest is the best of N. A second CLIP that never reranks (trained from another
seed, or one of the Hub) then judges it, so that the ranking is not judged by itself:

- R-precision (Park et al. 2021, "Benchmark for compositional text-to-image synthesis"): the share of pictures whose
  own caption scores highest among 100 captions, the other 99 being other held-out prompts of the same kind;
- the share of prompts for which the judge scores the best of N higher than the first candidate.

Without a second CLIP the pipeline's own judges one candidate of each prompt, which nothing has chosen. The same judge on the
real pictures and on their reconstructions says what the figures could reach. PSNR of the reconstructions measures the image
tokenizer alone. `python -m dalle_core.training.evaluate --help`.
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

import dalle_core
from dalle_core import image_tokenizer, rerank
from dalle_core.catalogue import open_clip
from dalle_core.errors import InputError
from dalle_core.pipeline import DallePipeline
from dalle_core.training.arguments import command
from dalle_core.training.data import add_data_arguments, open_from
from dalle_core.training.vqgan_losses import psnr

BEST_OF = (1, 4, 16, 64)
SHOWN = 8  # prompts of each kind in the picture


def r_precision(similarity: torch.Tensor, captions: list[str]) -> float:
    """Share of rows whose own caption wins. similarity [pictures, captions], picture i belongs to caption i; the same caption
    may stand there more than once."""
    return sum(captions[found] == own for found, own in zip(similarity.argmax(1).tolist(), captions)) / len(captions)


@torch.no_grad()
def evaluate_kind(
    pipe: DallePipeline, judge: dict | None, items: list, seed: int, description: str, best_of: tuple[int, ...] = BEST_OF
) -> tuple[dict, list]:
    """Figures for one kind of held-out (picture, caption) pairs, and for each the pictures that show them. judge: what
    `catalogue.open_clip` returns; without one, nothing is judged."""
    originals, captions = [image for image, _ in items], [caption for _, caption in items]
    pixels = image_tokenizer.to_pixels(originals).split(16)
    parts = [image_tokenizer.encode(pipe.image_tokenizer, part.to(pipe.device)) for part in pixels]
    decoded = torch.cat([image_tokenizer.decode(pipe.image_tokenizer, part).float().cpu() for part in parts])
    restored = image_tokenizer.to_images(decoded)
    figures = {"prompts": len(items), "reconstruction_psnr": psnr(torch.cat(pixels), decoded).mean().item()}
    best = {n: [] for n in best_of}
    for caption in tqdm(captions, desc=description, unit="prompt", mininterval=10):
        candidates = pipe(caption, num_candidates=max(best_of), seed=seed, rerank=max(best_of) > 1).candidates  # best first
        for n in best_of:
            best[n].append(next(candidate.image for candidate in candidates if candidate.index < n))
    rows = [list(row) for row in zip(originals, restored, *best.values())]
    if judge is None:
        return figures, rows
    text = rerank.text_embeddings(judge["clip"], judge["clip_tokenizer"] or pipe.text_tokenizer, captions)

    def judged(images) -> torch.Tensor:
        """Cosines [pictures, captions]."""
        embeddings = [
            rerank.image_embeddings(judge["clip"], judge["clip_processor"], images[i : i + 64])
            for i in range(0, len(images), 64)
        ]
        return (torch.cat(embeddings) @ text.T).cpu()

    similarity = {n: judged(images) for n, images in best.items()}
    own = {n: s.diagonal() for n, s in similarity.items()}
    figures |= {
        "r_precision_of_real_pictures": r_precision(judged(originals), captions),
        "r_precision_of_reconstructions": r_precision(judged(restored), captions),
        "r_precision_best_of": {n: r_precision(s, captions) for n, s in similarity.items()},
    }
    if len(best_of) > 1:
        figures["share_improved_by_best_of"] = {n: (own[n] > own[1]).float().mean().item() for n in best_of[1:]}
    return figures, rows


def evaluate(pipe: DallePipeline, dataset, judge: str | Path | None, prompts: int, seed: int) -> tuple[dict, Image.Image]:
    """Figures of every kind of held-out pictures, and a picture of some. judge: as `catalogue.open_clip` takes it; None: the
    pipeline's own CLIP judges single candidates, where it has one.

    Raises InputError when nothing is held out, or candidates shall be ranked and there is no CLIP for it.
    """
    found = open_clip(judge) if judge else None
    if found is None and pipe.clip is not None:
        found = {"clip": pipe.clip, "clip_processor": pipe.clip_processor, "clip_tokenizer": pipe.clip_tokenizer}
    if found:
        found["clip"].to(pipe.device).eval()
    if judge and pipe.clip is None:
        raise InputError("The model has no CLIP that ranks, so there is nothing to judge: leave out --judge, or name a --clip.")
    figures, pictures = {"judge": str(judge) if judge else "its own CLIP" if found else None}, []
    for kind in dataset.held_out_kinds:
        if items := dataset.held_out(kind, prompts):
            figures[kind], rows = evaluate_kind(pipe, found, items, seed, kind, BEST_OF if judge else BEST_OF[:1])
            pictures += rows[:SHOWN]
    if not pictures:
        raise InputError(f"No picture of {dataset.name} is kept out of training, so nothing can be measured: it has too few.")
    return figures, sheet(pictures)


def sheet(rows: list[list[Image.Image]]) -> Image.Image:
    """Rows of equal pictures, side by side: real, reconstructed, best of 1, 4, 16, 64."""
    width, height = rows[0][0].size
    picture = Image.new("RGB", (len(rows[0]) * width, len(rows) * height))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            picture.paste(image, (x * width, y * height))
    return picture


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Evaluate a pipeline on held-out prompts: a JSON and a picture.")
    parser.add_argument("--model", default="emoji", help="a name, folder or Hub id (%(default)s)")
    parser.add_argument("--lora", help="folder or Hub id of a LoRA for this model")
    parser.add_argument("--clip", help='folder or Hub id of the CLIP that ranks, or "none" (the model\'s own)')
    add_data_arguments(parser)
    parser.add_argument("--judge", help="folder or Hub id of a CLIP that never reranks (none: single candidates are judged)")
    parser.add_argument("--out", type=Path, required=True, help="JSON; a .png beside it")
    parser.add_argument("--prompts", type=int, default=100, help="of each kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    return parser


def run(args: argparse.Namespace) -> None:
    pipe = dalle_core.load(args.model, clip=args.clip, lora=args.lora)
    figures, picture = evaluate(pipe, open_from(args, pipe.image_size), args.judge, args.prompts, args.seed)
    write(args.out, {"model": args.model, "seed": args.seed, "sampling": pipe.defaults} | figures, picture)
    print(args.out.read_text(encoding="utf-8"))


def write(out: Path, result: dict, picture: Image.Image) -> None:
    """A JSON file, and the picture beside it."""
    picture.save(out.with_suffix(".png"))
    out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    command("evaluate", run, parser().parse_args(arguments))


if __name__ == "__main__":
    main()
