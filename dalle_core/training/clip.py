"""Training CLIP: pictures and captions in one space, near each other when they belong together.

For a batch of N pairs, with unit vectors v_i of pictures and u_i of captions and a learned temperature tau (Radford
et al. 2021, arXiv 2103.00020), each picture has to find its caption among the N, and each caption its picture:

    L = - 1/2N sum_i [ log softmax_j(v_i.u_j / tau)_i + log softmax_j(v_j.u_i / tau)_i ]

A batch is easy when colours tell its pictures apart; so the emoji corpus gives batches that share kind, style or
background (`contrast`). `python -m dalle_core.training.clip --help` trains one; started again with the same `--out`, it goes on. Two are
wanted: one that reranks, and one from another `--seed` that judges and never reranks.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from dalle_core.text_tokenizer import encode_prompts
from dalle_core.training.data import as_pixels, batches, open_dataset
from dalle_core.training.muon import Muon, step_at
from dalle_core.training.state import RunState, learning_rate


def new_clip(tokenizer: PreTrainedTokenizerFast, image_size: int, text_length: int, width: int = 192) -> CLIPModel:
    """A small CLIP: 5 layers over 16-pixel patches, 3 layers over text."""
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 3,
            "num_attention_heads": width // 32, "max_position_embeddings": text_length, "projection_dim": width,
            "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None,
        },
        vision_config={
            "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": 5, "projection_dim": width,
            "num_attention_heads": width // 32, "image_size": image_size, "patch_size": 16,
        },
        projection_dim=width,
    )  # fmt: skip
    model = CLIPModel(config)
    # transformers initialises for its own very deep models; unit-variance features train many times as fast here.
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5 * 0.7)
    return model


def new_image_processor(image_size: int) -> CLIPImageProcessorPil:
    """Pictures of any size -> pixels in [-1, 1] at `image_size`."""
    size = {"height": image_size, "width": image_size}
    return CLIPImageProcessorPil(size=size, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Moves and scales each picture a little, changes its colours, and blurs the batch. pixels [B, 3, H, W].

    So that CLIP learns a thing by its shape, not by heart; and pictures that a model draws are softer than drawn ones.
    """
    count, _, _, side = pixels.shape

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(*shape, generator=generator).to(pixels.device)

    affine = torch.zeros(count, 2, 3, device=pixels.device)
    affine[:, 0, 0] = affine[:, 1, 1] = uniform(0.85, 1.15, count)
    affine[:, :, 2] = uniform(-0.1, 0.1, count, 2)
    grid = F.affine_grid(affine, list(pixels.shape), align_corners=False)
    pixels = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    pixels = pixels * uniform(0.8, 1.0, count, 3, 1, 1) + uniform(-0.1, 0.1, count, 3, 1, 1)
    small = side // torch.randint(1, 5, (), generator=generator).item()
    return F.interpolate(F.interpolate(pixels, size=small, mode="area"), size=side, mode="bilinear").clamp(-1, 1)


def optimizers(clip: CLIPModel, peak: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of both towers' layers, AdamW for the rest."""
    matrices = [p for name, p in clip.named_parameters() if ".layers." in name and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in clip.parameters() if id(p) not in chosen]
    return [Muon(matrices, lr=peak), torch.optim.AdamW(others, lr=peak / 10, betas=(0.9, 0.98), weight_decay=0.05)]


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.text_tokenizer)
    dataset = open_dataset(args.data, args.image_size, seed=args.seed).contrast(args.batch_size)
    clip = new_clip(tokenizer, args.image_size, args.text_length).to(args.device)
    print(f"{sum(p.numel() for p in clip.parameters()):,} parameters")
    muon, adamw = optimizers(clip, args.learning_rate)
    state = RunState(args.out, clip=clip, muon=muon, adamw=adamw)
    first, steps = state.restore(), args.samples // args.batch_size
    dtype = getattr(torch, args.dtype)

    bar = tqdm(total=steps, initial=first, unit="step", desc="CLIP", mininterval=10)
    with open(args.out / "log.jsonl", "a", encoding="utf-8") as log:
        for step, (bytes_, texts) in enumerate(batches(dataset, args.batch_size, first, steps, args.seed), first):
            rate = learning_rate(step, steps, 1.0, warmup=50)
            pixels = augment(as_pixels(bytes_.to(args.device)), torch.Generator().manual_seed(step))
            text_ids = encode_prompts(tokenizer, texts, args.text_length).to(args.device)
            with torch.autocast(args.device.split(":")[0], dtype, enabled=dtype != torch.float32):
                out = clip(input_ids=text_ids, pixel_values=pixels, return_loss=True)
            clip.zero_grad(set_to_none=True)
            out.loss.backward()
            nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
            for optimizer in (muon, adamw):
                step_at(optimizer, rate)
            clip.logit_scale.data.clamp_(max=4.6052)  # a temperature of 1/100, as in the paper
            bar.update()
            if step % 20 == 0:
                right = (out.logits_per_image.argmax(1) == torch.arange(len(texts), device=args.device)).float().mean()
                logs = {"step": step, "loss": out.loss.item(), "right": right.item(), "time": time.time()}
                bar.set_postfix(loss=f"{logs['loss']:.3f}", right=f"{logs['right']:.2f}", refresh=False)
                log.write(json.dumps(logs) + "\n")
                log.flush()
            state.save_if_due(step + 1)
    state.save(steps)
    clip.save_pretrained(args.out / "clip")
    new_image_processor(args.image_size).save_pretrained(args.out / "clip_processor")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a CLIP; run again to go on after a stop.")
    parser.add_argument("--data", default="data/emoji", help="the emoji corpus, or a folder with metadata.jsonl")
    parser.add_argument("--text-tokenizer", default="runs/text_tokenizer", help="folder")
    parser.add_argument("--out", type=Path, default=Path("runs/clip"), help="state, logs, result")
    parser.add_argument("--samples", type=int, default=80_000, help="pictures to train on (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--text-length", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=0.02, help="Muon's peak; AdamW's is a tenth of it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the matrix products")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
