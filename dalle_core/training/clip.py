"""Training CLIP: pictures and captions in one space, near each other when they belong together.

For a batch of N pairs, with unit vectors v_i of pictures and u_i of captions and a learned temperature tau (Radford
et al. 2021, arXiv 2103.00020), each picture has to find its caption among the N, and each caption its picture:

    L = - 1/2N sum_i [ log softmax_j(v_i.u_j / tau)_i + log softmax_j(v_j.u_i / tau)_i ]

A batch is easy when colours tell its pictures apart; so the emoji corpus gives batches that share kind, style or
background (`contrast`). The N pairs are those of all processes together.

`python -m dalle_core.training.clip --help` trains one; started again with the same `--out`, it goes on. Two are wanted: one
that reranks, and one from another `--seed` that judges and never reranks.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from dalle_core.catalogue import _load_model, load_clip
from dalle_core.errors import InputError
from dalle_core.text_tokenizer import encode_prompts
from dalle_core.training import processes
from dalle_core.training.arguments import add_arguments, command
from dalle_core.training.data import add_data_arguments, as_pixels, batches, open_from
from dalle_core.training.loop import Loop
from dalle_core.training.muon import Muon


def new_clip(tokenizer: PreTrainedTokenizerFast, image_size: int, text_length: int, width: int = 192) -> CLIPModel:
    """A small CLIP: 5 layers over 16-pixel patches, 3 layers over text."""
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": 3,
            "num_attention_heads": width // 32,
            "max_position_embeddings": text_length,
            "projection_dim": width,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
        },
        vision_config={
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": 5,
            "projection_dim": width,
            "num_attention_heads": width // 32,
            "image_size": image_size,
            "patch_size": 16,
        },
        projection_dim=width,
    )
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


def augment(pixels: torch.Tensor, generator: torch.Generator, part: tuple[int, int] = (0, 1)) -> torch.Tensor:
    """Moves and scales each picture a little, changes its colours, and blurs the batch. pixels [B, 3, H, W].

    So that CLIP learns a thing by its shape, not by heart; and pictures that a model draws are softer than drawn ones.
    `part` (rank, processes): which part of the whole batch these are.
    """
    count, _, _, side = pixels.shape
    rank, processes = part

    def uniform(low, high, *shape):
        whole = torch.rand(processes * shape[0], *shape[1:], generator=generator)
        return low + (high - low) * whole[rank * count : (rank + 1) * count].to(pixels.device)

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


def contrastive_loss(images: torch.Tensor, texts: torch.Tensor, logit_scale: torch.Tensor):
    """L above, and the share of pictures that find their caption. images, texts: unit vectors [B, D] of each process."""
    images, texts = processes.gather_with_gradients(images), processes.gather_with_gradients(texts)
    logits = logit_scale.exp() * images @ texts.T  # [N, N]
    own = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    return loss, (logits.detach().argmax(1) == own).float().mean()


def trained_clip(folder: Path) -> dict:
    """`clip` and, where the folder has them, `clip_processor` and `clip_tokenizer`. Raises ModelError."""
    if (folder / "preprocessor_config.json").is_file():
        return load_clip(folder)
    return {"clip": _load_model(folder, CLIPModel, "model.safetensors", torch.float32)}


def normalise(pixels: torch.Tensor, processor: CLIPImageProcessorPil) -> torch.Tensor:
    """Pixels in [-1, 1] -> as the processor hands them over. The processors of new CLIPs change nothing."""
    means = torch.tensor([processor.image_mean, processor.image_std], device=pixels.device)
    mean, std = means.view(2, 3, 1, 1)
    return (pixels - (2 * mean - 1)) / (2 * std)


def complete(args: argparse.Namespace) -> dict:
    """Gives the sizes that were not asked for their values. Returns the parts of `--init`.

    Raises InputError when other sizes were asked for than it has.
    """
    parts = trained_clip(Path(args.init)) if args.init else {}
    sizes = {"image_size": 96, "text_length": 20}
    if parts:
        config = parts["clip"].config
        sizes = {"image_size": config.vision_config.image_size, "text_length": config.text_config.max_position_embeddings}
    for name, size in sizes.items():
        asked = getattr(args, name)
        if parts and asked not in (None, size):
            raise InputError(f"--{name.replace('_', '-')} {asked}: {args.init} has {size}; leave it out.")
        setattr(args, name, asked or size)
    return parts


def train(args: argparse.Namespace) -> None:
    parts, steps = complete(args), args.samples // args.batch_size
    loop = Loop("clip", args, steps, warmup=50)
    if loop.sharded:
        raise InputError("CLIP does not train under FSDP: launch it as plain data-parallel processes.")
    tokenizer = parts.get("clip_tokenizer") or PreTrainedTokenizerFast.from_pretrained(args.text_tokenizer)
    processor = parts.get("clip_processor") or new_image_processor(args.image_size)
    dataset = open_from(args, args.image_size).contrast(args.batch_size)
    clip = parts.get("clip") or new_clip(tokenizer, args.image_size, args.text_length)
    if len(tokenizer) > clip.config.text_config.vocab_size:
        raise InputError(f"{args.text_tokenizer} has {len(tokenizer):,} tokens, {args.init} knows fewer: it is another's.")
    loop.print(f"{sum(p.numel() for p in clip.parameters()):,} parameters")
    clip.train().requires_grad_(True)

    def compute():
        pixels = torch.zeros(loop.part_size, 3, args.image_size, args.image_size)
        text_ids = torch.zeros(loop.part_size, args.text_length, dtype=torch.long)
        return clip(input_ids=text_ids, pixel_values=pixels).logits_per_text

    forward = loop.prepare("clip", clip, optimizers(clip, args.learning_rate), max_norm=1.0, compute=compute)
    first = loop.restore()
    loader = batches(dataset, args.batch_size, first, steps, args.seed, args.workers, part=loop.part)
    for step, (bytes_, texts, _) in loop.run(loader):
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        pixels = normalise(augment(as_pixels(bytes_.to(loop.device)), generator, loop.part), processor)
        text_ids = encode_prompts(tokenizer, texts, args.text_length).to(loop.device)
        out = forward(input_ids=text_ids, pixel_values=pixels)
        loss, right = contrastive_loss(out.image_embeds, out.text_embeds, clip.logit_scale)
        loop.backward(loss)
        loop.update("clip")
        clip.logit_scale.data.clamp_(max=4.6052)  # a temperature of 1/100, as in the paper
        if loop.due(20):
            loop.log(loss=loss, right=right)
    loop.save_pretrained("clip", args.out / "clip")
    if loop.first:
        processor.save_pretrained(args.out / "clip_processor")
        if "clip_tokenizer" in parts:  # all in one folder, as `--clip` takes it
            processor.save_pretrained(args.out / "clip")
            tokenizer.save_pretrained(args.out / "clip")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train a CLIP; run again to go on after a stop.")
    add_data_arguments(parser)
    parser.add_argument("--text-tokenizer", default="runs/text_tokenizer", help="folder; the one of --init comes first")
    parser.add_argument("--init", help="folder of a trained CLIP to go on from; sizes are its own")
    add_arguments(parser, out="runs/clip", batch_size=128)
    parser.add_argument("--samples", type=int, default=80_000, help="pictures to train on (%(default)s)")
    parser.add_argument("--image-size", type=int, help="pixels a side (96)")
    parser.add_argument("--text-length", type=int, help="text positions, the end of the text included (20)")
    parser.add_argument("--learning-rate", type=float, default=0.02, help="Muon's peak; AdamW's is a tenth of it")
    return parser


def main(arguments: list[str] | None = None) -> None:
    command("clip", train, parser().parse_args(arguments))


if __name__ == "__main__":
    main()
