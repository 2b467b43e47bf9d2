"""Evaluation: how often a picture shows what its prompt said, and what reranking adds.

For held-out prompts (what training never saw) a pipeline draws 64 candidates each. Of the first N = 1, 4, 16, 64 the
one that the pipeline's own CLIP scores highest is the best of N. A second CLIP, trained from another seed, that never
reranks, then judges it (so that the ranking is not judged by itself):

- R-precision (Park et al. 2021, "Benchmark for compositional text-to-image synthesis"): the share of pictures whose
  own caption scores highest among 100 captions, the other 99 being other held-out prompts of the same kind;
- the share of prompts for which the judge scores the best of N higher than the first candidate.

The same judge on the real pictures and on their reconstructions says what the figures could reach. PSNR of the
reconstructions measures the image tokenizer alone. `python -m dalle_core.training.evaluate --help`.
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm
from transformers import CLIPModel

import dalle_core
from dalle_core import image_tokenizer, rerank
from dalle_core.errors import InputError
from dalle_core.training.data import add_data_arguments, open_from, some_held_out
from dalle_core.training.vqgan_losses import psnr

BEST_OF = (1, 4, 16, 64)


def r_precision(similarity: torch.Tensor) -> float:
    """Share of rows whose own caption wins. similarity [pictures, captions], picture i belongs to caption i."""
    return (similarity.argmax(1) == torch.arange(len(similarity))).float().mean().item()


@torch.no_grad()
def evaluate_kind(pipe, judge: CLIPModel, items: list, seed: int, description: str) -> tuple[dict, list]:
    """Figures for one kind of held-out (picture, caption) pairs, and for each the pictures that show them."""
    captions = [caption for _, caption in items]
    text = rerank.text_embeddings(judge, pipe.text_tokenizer, captions)

    def judged(images) -> torch.Tensor:
        """Cosines [pictures, captions]."""
        return rerank.image_embeddings(judge, pipe.clip_processor, images) @ text.T

    originals = [image for image, _ in items]
    pixels = image_tokenizer.to_pixels(originals).to(pipe.device)
    decoded = image_tokenizer.decode(pipe.image_tokenizer, image_tokenizer.encode(pipe.image_tokenizer, pixels))
    figures = {
        "prompts": len(items),
        "reconstruction_psnr": psnr(pixels, decoded).mean().item(),
        "r_precision_of_real_pictures": r_precision(judged(originals)),
        "r_precision_of_reconstructions": r_precision(judged(image_tokenizer.to_images(decoded))),
    }
    best = {n: [] for n in BEST_OF}
    for caption in tqdm(captions, desc=description, unit="prompt", mininterval=10):
        candidates = pipe(caption, num_candidates=max(BEST_OF), seed=seed).candidates  # best first
        for n in BEST_OF:
            best[n].append(next(candidate.image for candidate in candidates if candidate.index < n))
    similarity = {n: judged(images) for n, images in best.items()}
    own = {n: s.diagonal() for n, s in similarity.items()}
    figures["r_precision_best_of"] = {n: r_precision(s) for n, s in similarity.items()}
    figures["share_improved_by_best_of"] = {n: (own[n] > own[1]).float().mean().item() for n in BEST_OF[1:]}
    return figures, [list(row) for row in zip(originals, image_tokenizer.to_images(decoded), *best.values())]


def sheet(rows: list[list[Image.Image]]) -> Image.Image:
    """Rows of equal pictures, side by side: real, reconstructed, best of 1, 4, 16, 64."""
    width, height = rows[0][0].size
    picture = Image.new("RGB", (len(rows[0]) * width, len(rows) * height))
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            picture.paste(image, (x * width, y * height))
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate a pipeline on held-out prompts: a JSON and a picture.")
    parser.add_argument("--model", default="emoji", help="a name, folder or Hub id (%(default)s)")
    add_data_arguments(parser)
    parser.add_argument("--judge", default="runs/judge/clip", help="folder of a CLIP that never reranks")
    parser.add_argument("--out", type=Path, default=Path("assets/emoji/evaluation.json"), help="JSON; a .png beside it")
    parser.add_argument("--prompts", type=int, default=100, help="of each kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    pipe = dalle_core.load(args.model)
    judge = CLIPModel.from_pretrained(args.judge).to(pipe.device).eval()
    try:
        dataset = open_from(args, pipe.image_size)
        held_out = {kind: some_held_out(dataset, kind, args.prompts) for kind in dataset.held_out_kinds}
    except InputError as error:
        raise SystemExit(str(error)) from None
    result = {"model": args.model, "seed": args.seed, "sampling": pipe.defaults}
    pictures = []
    for kind, items in held_out.items():
        figures, rows = evaluate_kind(pipe, judge, items, args.seed, kind)
        result[kind] = figures
        pictures += rows[:8]
    sheet(pictures).save(args.out.with_suffix(".png"))
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
