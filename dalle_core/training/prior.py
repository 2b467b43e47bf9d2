"""Training the prior: p(image tokens | text), one token after the other.

With the image tokenizer fixed, a picture is a sequence of tokens t_1 ... t_N, and the prior is a transformer that
factorises their probability given the caption c, as in the DALL·E paper (Ramesh et al. 2021, arXiv 2102.12092):

    log p(t | c) = sum_i log p(t_i | t_1 ... t_{i-1}, c)

It is trained to make this large: cross-entropy of every token given those before. One caption in ten is replaced by
the null prompt "", so that one model learns p(t | c) and p(t), which is what guidance needs (Ho and Salimans 2022,
arXiv 2207.12598). A few of the tokens it reads are replaced by another picture's (as taming-transformers' `pkeep`
does, Esser et al. 2021): while sampling it reads its own mistakes, and should then trust the caption and the rest.

Pictures are encoded once, into `tokens.pt`; their captions are worded anew every time they come by.
`python -m dalle_core.training.prior --help` trains one; started again with the same `--out`, it goes on.
"""

import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import VQModel
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from dalle_core import image_tokenizer
from dalle_core.gpt_prior import GPTPrior
from dalle_core.text_tokenizer import encode_prompts
from dalle_core.training.data import as_pixels, in_order, open_dataset
from dalle_core.training.muon import Muon, step_at
from dalle_core.training.state import RunState, learning_rate

NULL_SHARE = 0.1  # of captions replaced by the null prompt
WRONG_SHARE = 0.03  # of the tokens read, not of those predicted


@torch.no_grad()
def encode_pool(model: VQModel, dataset, count: int, path: Path, device: str) -> torch.Tensor:
    """Tokens [count, h, w] (int16) of the first `count` pictures, kept in `path`. Goes on where it was stopped."""
    tokens = torch.load(path, weights_only=True) if path.exists() else None
    done = 0 if tokens is None else len(tokens)
    if done >= count:
        return tokens[:count]

    def save(parts):
        torch.save(torch.cat(parts), path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)

    parts, saved = [] if tokens is None else [tokens], time.monotonic()
    bar = tqdm(total=count, initial=done, unit="picture", desc="encoding", mininterval=5)
    for bytes_, *_ in in_order(dataset, 64, done, count):
        parts.append(image_tokenizer.encode(model, as_pixels(bytes_.to(device))).to("cpu", torch.int16))
        bar.update(len(bytes_))
        if time.monotonic() - saved > 60:
            save(parts)
            saved = time.monotonic()
    save(parts)
    return torch.cat(parts)[:count]


def optimizers(prior: GPTPrior, peak: float, dtype=torch.float32) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings, head, norms and biases."""
    matrices = [p for name, p in prior.named_parameters() if name.startswith("blocks.") and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in prior.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, lr=peak, dtype=dtype),
        torch.optim.AdamW(others, lr=peak / 8, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def prior_loss(prior, text_ids: torch.Tensor, tokens: torch.Tensor, read: torch.Tensor | None = None) -> torch.Tensor:
    """Mean cross-entropy in nats a token. text_ids [B, text_length], tokens [B, image_length].

    `read`: what the prior reads in their place, when that differs.
    """
    logits = prior(text_ids, (tokens if read is None else read)[:, :-1])  # [B, image_length, V]
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten())


def with_mistakes(tokens: torch.Tensor, share: float, generator: torch.Generator) -> torch.Tensor:
    """`tokens` [B, N] with that share of them replaced by what stands there in the picture before in the batch."""
    wrong = torch.rand(tokens.shape, generator=generator) < share
    return torch.where(wrong, tokens.roll(1, 0), tokens)


def train_step(prior, optimizers, text_ids, tokens, rate: float, dtype=torch.float32, read=None) -> torch.Tensor:
    """One step at `rate` times the optimizers' peak learning rates; `read` as in `prior_loss`. Returns the loss before it."""
    with torch.autocast(tokens.device.type, dtype, enabled=dtype != torch.float32):
        loss = prior_loss(prior, text_ids, tokens, read)
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
    for optimizer in optimizers:
        step_at(optimizer, rate)
    return loss.detach()


def draw_batch(dataset, tokenizer, pool, text_length: int, batch_size: int, step: int, seed: int):
    """The batch of step `step`, from (seed, step) alone: text ids [B, text_length], tokens [B, image_length], and the
    tokens as they are read, with their mistakes."""
    indices, texts, orders = [], [], {}
    for k in range(batch_size):
        epoch, offset = divmod(step * batch_size + k, len(pool))
        if epoch not in orders:
            orders[epoch] = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        index = orders[epoch][offset].item()
        indices.append(index)
        texts.append(dataset.caption(index, epoch))
    generator = torch.Generator().manual_seed(seed * 7_368_787 + step)
    dropped = torch.rand(batch_size, generator=generator) < NULL_SHARE
    texts = ["" if drop else text for text, drop in zip(texts, dropped.tolist())]
    tokens = pool[indices].flatten(1).long()
    return encode_prompts(tokenizer, texts, text_length), tokens, with_mistakes(tokens, WRONG_SHARE, generator)


@torch.no_grad()
def held_out_loss(prior, tokenizer, model: VQModel, items, device) -> float:
    """Nats a token on held-out (picture, caption) pairs."""
    tokens = image_tokenizer.encode(model, image_tokenizer.to_pixels([image for image, _ in items]).to(device)).flatten(1)
    text_ids = encode_prompts(tokenizer, [text for _, text in items], prior.config.text_length).to(device)
    return prior_loss(prior, text_ids, tokens).item()


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(args.text_tokenizer)
    model = VQModel.from_pretrained(args.image_tokenizer).to(args.device).eval()
    size = args.image_size or model.config.sample_size * image_tokenizer.block_size(model)
    dataset = open_dataset(args.data, size, seed=args.seed)
    pool = encode_pool(model, dataset, min(args.pool, len(dataset)), args.out / "tokens.pt", args.device)

    prior = GPTPrior(
        text_vocab_size=len(tokenizer),
        text_length=args.text_length,
        image_vocab_size=model.config.num_vq_embeddings,
        image_length=pool[0].numel(),
        num_layers=args.layers,
        num_heads=args.heads,
        hidden_size=args.hidden_size,
    ).to(args.device)
    print(f"{sum(p.numel() for p in prior.parameters()):,} parameters")
    muon, adamw = optimizers(prior, args.learning_rate, getattr(torch, args.dtype))
    state = RunState(args.out, prior=prior, muon=muon, adamw=adamw)
    first, steps = state.restore(), args.samples // args.batch_size
    if args.init and first == 0:
        prior.load_state_dict(GPTPrior.from_pretrained(args.init).state_dict())
    forward = torch.compile(prior) if args.compile else prior
    held_out = {kind: dataset.held_out(kind, 64) for kind in dataset.held_out_kinds}

    bar = tqdm(total=steps, initial=first, unit="step", desc="prior", mininterval=10)
    dtype, mean = getattr(torch, args.dtype), None
    with open(args.out / "log.jsonl", "a", encoding="utf-8") as log:
        for step in range(first, steps):
            batch = draw_batch(dataset, tokenizer, pool, args.text_length, args.batch_size, step, args.seed)
            text_ids, tokens, read = (part.to(args.device) for part in batch)
            rate = learning_rate(step, steps, 1.0, warmup=50)
            loss = train_step(forward, (muon, adamw), text_ids, tokens, rate, dtype, read)
            mean = loss if mean is None else mean.lerp(loss, 0.02)
            bar.update()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{mean.item():.3f}", refresh=False)
            if (step + 1) % args.look_every == 0:
                logs = {"step": step + 1, "loss": mean.item(), "time": time.time()}
                for kind, items in held_out.items():
                    logs[f"held_out_{kind}"] = held_out_loss(prior, tokenizer, model, items, args.device)
                log.write(json.dumps(logs) + "\n")
                log.flush()
                prior.save_pretrained(args.out / "prior")
            state.save_if_due(step + 1)
    state.save(steps)
    prior.save_pretrained(args.out / "prior")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a prior; run again to go on after a stop.")
    parser.add_argument("--data", default="data/emoji", help="the emoji corpus, or a folder with metadata.jsonl")
    parser.add_argument("--image-tokenizer", default="runs/image_tokenizer/image_tokenizer", help="folder")
    parser.add_argument("--text-tokenizer", default="runs/text_tokenizer", help="folder")
    parser.add_argument("--out", type=Path, default=Path("runs/prior"), help="state, logs, result")
    parser.add_argument("--pool", type=int, default=48_000, help="pictures to encode (at most the data set's)")
    parser.add_argument("--samples", type=int, default=155_000, help="pictures to train on, over all epochs")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, help="pixels a side (the image tokenizer's own)")
    parser.add_argument("--text-length", type=int, default=20, help="text positions, the end of the text included")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--init", help="folder of a trained prior of these sizes, whose weights to start from")
    parser.add_argument("--learning-rate", type=float, default=0.02, help="Muon's peak; AdamW's is an eighth of it")
    parser.add_argument("--look-every", type=int, default=200, help="steps between held-out losses and saved weights")
    parser.add_argument("--compile", action="store_true", help="torch.compile the training step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the matrix products")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
