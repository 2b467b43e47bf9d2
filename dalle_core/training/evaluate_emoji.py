"""Evaluation on the emoji corpus: how often a picture shows what its prompt said, and what reranking adds.

A pipeline draws 16 candidates for each of some prompts, and ranks them by its own CLIP. The judge (`judge`), a classifier
that never ranks, then says what each shows. A picture is named right when the one thing, or both things, of its prompt are
what the judge finds likeliest among everything of the corpus. Three kinds of prompts: single icons in a style that training
has seen ("trained") or was kept from ("style"), and pairs of icons that it never saw together ("pairing"). Reported are

- the share named right of the best candidates, of the first ones, and of all (what an unranked one can expect);
- best minus all, in points: what ranking adds;
- the same share of the real pictures and of their reconstructions: what the judge, and the image tokenizer, allow.

`python -m dalle_core.training.evaluate_emoji --help`. Everything that was looked at is on the sheets that it writes.
"""

import argparse
import json
from pathlib import Path

import torch
from tqdm import tqdm

import dalle_core
from dalle_core import image_tokenizer
from dalle_core.training.contact_sheet import captioned
from dalle_core.training.drawing import add_drawing_arguments, draw_each
from dalle_core.training.emoji import EmojiCorpus
from dalle_core.training.judge import Judge, load_judge
from dalle_core.training.vqgan_losses import psnr

CANDIDATES = 16
SAMPLE = 8  # prompts of each kind on the small sheet


@torch.no_grad()
def reconstructions(pipe, images: list) -> tuple[list, float]:
    """Pictures through the image tokenizer, and their mean PSNR in dB."""
    found, values = [], []
    for start in range(0, len(images), 16):
        pixels = image_tokenizer.to_pixels(images[start : start + 16]).to(pipe.device)
        decoded = image_tokenizer.decode(pipe.image_tokenizer, image_tokenizer.encode(pipe.image_tokenizer, pixels))
        found += image_tokenizer.to_images(decoded)
        values += psnr(pixels, decoded).tolist()
    return found, sum(values) / len(values)


def evaluate_kind(pipe, judge: Judge, items: list, seed: int, description: str, at_once: int = 1) -> tuple[dict, list]:
    """Figures for (picture, caption, concepts) of one kind; and for each a strip, (real, reconstructed, first, best) with its
    caption, before which stands what the judge finds of the best."""
    originals, captions, shown = zip(*items)
    restored, quality = reconstructions(pipe, list(originals))
    first, best, share = [], [], []
    asked = ({"prompt": caption, "num_candidates": CANDIDATES, "seed": seed} for caption in captions)
    drawn = draw_each(pipe, asked, at_once)
    for concepts in tqdm(shown, desc=description, unit="prompt", mininterval=10):
        candidates = next(drawn).candidates  # best first
        right = judge.named_right([candidate.image for candidate in candidates], [concepts] * CANDIDATES).float()
        first.append(next((c.image, right[k].item()) for k, c in enumerate(candidates) if c.index == 0))
        best.append((candidates[0].image, right[0].item()))
        share.append(right.mean().item())

    def mean(values) -> float:
        return sum(values) / len(values)

    of_best, of_all = mean([right for _, right in best]), mean(share)
    figures = {
        "prompts": len(items),
        "candidates": CANDIDATES,
        "reconstruction_psnr": quality,
        "named_right": {
            "best": of_best,
            "first": mean([right for _, right in first]),
            "all": of_all,
            "real": judge.named_right(list(originals), list(shown)).float().mean().item(),
            "reconstructed": judge.named_right(restored, list(shown)).float().mean().item(),
        },
        "points_by_ranking": 100 * (of_best - of_all),
    }
    strips = [
        ([real, again, one, chosen], f"{'right' if right else 'wrong'}: {caption}")
        for real, again, (one, _), (chosen, right), caption in zip(originals, restored, first, best, captions)
    ]
    return figures, strips


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluate a pipeline of the emoji corpus: a JSON and sheets of pictures.")
    parser.add_argument("--model", default="emoji", help="a name, folder or Hub id (%(default)s)")
    parser.add_argument("--data", default="data/emoji", help="the emoji corpus (%(default)s)")
    parser.add_argument("--judge", default="runs/judge", help="folder of the judge (%(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="JSON; a .png beside it")
    parser.add_argument("--sheets", type=Path, default=Path("runs/evaluation"), help="folder of all pictures (%(default)s)")
    parser.add_argument("--prompts", type=int, default=100, help="of each kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    add_drawing_arguments(parser)
    args = parser.parse_args()

    pipe, judge = dalle_core.load(args.model), load_judge(args.judge)
    corpus = EmojiCorpus(args.data, image_size=pipe.image_size)
    args.sheets.mkdir(parents=True, exist_ok=True)
    result = {"model": args.model, "revision": pipe.revision, "seed": args.seed, "sampling": pipe.defaults}
    some = []
    for kind in corpus.evaluated_kinds:
        result[kind], strips = evaluate_kind(pipe, judge, corpus.evaluated(kind, args.prompts), args.seed, kind, args.at_once)
        captioned(strips, 4).save(args.sheets / f"{kind}.png")
        some += strips[:SAMPLE]
    captioned(some, 2).save(args.out.with_suffix(".png"))
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
