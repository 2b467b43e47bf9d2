"""Training the prior: p(image tokens | text), one token after the other.

With the image tokenizer fixed, a picture is a sequence of tokens t_1 ... t_N, and the prior is a transformer that
factorises their probability given the caption c, as in the DALL·E paper (Ramesh et al. 2021, arXiv 2102.12092):

    log p(t | c) = sum_i log p(t_i | t_1 ... t_{i-1}, c)

It is trained to make this large: cross-entropy of every token given those before. One caption in ten is replaced by
the null prompt "", so that one model learns p(t | c) and p(t), which is what guidance needs (Ho and Salimans 2022,
arXiv 2207.12598). A few of the tokens it reads are replaced by another picture's (as taming-transformers' `pkeep`
does, Esser et al. 2021): while sampling it reads its own mistakes, and should then trust the caption and the rest.

Pictures are encoded once, below `out/tokens`; their captions are worded anew every time they come by.

    python -m dalle_core.training.prior --data pictures                         # a new one, of parts trained before
    python -m dalle_core.training.prior --data pictures --init emoji            # a trained model learns new pictures
    python -m dalle_core.training.prior --data pictures --init mini --lora 16   # the same, as a LoRA beside its weights

Started again with the same `--out`, it goes on. `loop.py` says what lies there, and how several processes share a batch.
"""

import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from diffusers import VQModel
from torch import nn
from transformers import PreTrainedTokenizerFast

from dalle_core import image_tokenizer
from dalle_core.catalogue import load, open_clip, open_image_tokenizer
from dalle_core.errors import InputError
from dalle_core.pipeline import DallePipeline
from dalle_core.priors.bart import BartPrior
from dalle_core.priors.gpt import GPTPrior
from dalle_core.text_tokenizer import encode_prompts
from dalle_core.training.adapter import Adapter, add_lora
from dalle_core.training.arguments import add_arguments, command
from dalle_core.training.checkpoints import write_model
from dalle_core.training.data import add_data_arguments, batches, open_from
from dalle_core.training.look import Look
from dalle_core.training.loop import Loop
from dalle_core.training.muon import Muon
from dalle_core.training.tokens import TokenStore, add_token_arguments, encode_tokens

NULL_SHARE = 0.1  # of captions replaced by the null prompt
WRONG_SHARE = 0.03  # of the tokens read, not of those predicted
# Peaks of the learning rate: Muon's of a new prior and of a trained one (AdamW's is an eighth of it), AdamW's of a LoRA.
NEW_RATE, TRAINED_RATE, LORA_RATE = 0.02, 0.002, 2e-3


# ---------------------------------------------------------------- the model


def new_prior(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast, model: VQModel, image_length: int):
    """A prior with random weights for these tokenizers."""
    codes = model.config.num_vq_embeddings
    sizes = dict(
        text_vocab_size=len(tokenizer),
        text_length=args.text_length,
        image_vocab_size=codes,
        image_length=image_length,
        num_heads=args.heads,
        hidden_size=args.hidden_size,
    )
    if args.architecture == "gpt":
        prior = GPTPrior(num_layers=args.layers, **sizes)
    else:
        prior = BartPrior(
            encoder_layers=args.layers,
            decoder_layers=args.layers,
            ffn_size=4 * args.hidden_size,
            start_token_id=codes,
            embedded_image_tokens=codes + 1,
            pad_token_id=tokenizer.pad_token_id,
            **sizes,
        )
        for module in prior.modules():  # as dalle-mini starts; the norms of every block keep the rest in bounds
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
    start_from_codebook(prior, model)
    return prior


@torch.no_grad()
def start_from_codebook(prior, model: VQModel) -> None:
    """Codes that look alike start alike: half of what an image token's embedding and its row of the head start with is its
    codebook vector, through a random projection."""
    vectors = model.quantize.embedding.weight.detach().float().cpu()  # [K, D]
    vectors = (vectors - vectors.mean(0)) / vectors.std()
    for weight in (prior.image_embedding.weight[: len(vectors)], prior.head.weight):
        alike = vectors @ torch.randn(vectors.shape[1], weight.shape[1])
        weight.copy_((weight + alike * (weight.std() / alike.std())) / 2**0.5)


def add_dropout(prior, share: float) -> None:
    """Dropout of embeddings and of what each residual branch adds (Vaswani et al. 2017, section 5.4), in training only.

    Hooks, so that drawing knows nothing of it. The random numbers are each process's own.
    """
    for name, module in prior.named_modules():
        if name.endswith(("attn", "mlp", "glu", "_embedding")):
            module.register_forward_hook(lambda module, _, output: F.dropout(output, share, module.training))


def optimizers(prior, peak: float, dtype=torch.float32) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings, head, norms and biases."""
    blocks = ("blocks.", "encoder.", "decoder.")
    matrices = [p for name, p in prior.named_parameters() if name.startswith(blocks) and p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in prior.parameters() if id(p) not in chosen]
    return [Muon(matrices, lr=peak, dtype=dtype), torch.optim.AdamW(others, lr=peak / 8, betas=(0.9, 0.95), weight_decay=0.0)]


def prior_loss(prior, text_ids: torch.Tensor, tokens: torch.Tensor, read: torch.Tensor | None = None) -> torch.Tensor:
    """Mean cross-entropy in nats a token. text_ids [B, text_length], tokens [B, image_length].

    `read`: what the prior reads in their place, when that differs.
    """
    return prior(text_ids, (tokens if read is None else read)[:, :-1], tokens)


# ---------------------------------------------------------------- the batch


@dataclass
class Reader:
    """(tokens [h, w], caption, index) of each picture -> text ids [B, text_length], tokens [B, h * w]: in the workers."""

    tokenizer: PreTrainedTokenizerFast
    text_length: int
    normalizer: str | None

    def ids(self, captions: list[str]) -> torch.Tensor:
        return encode_prompts(self.tokenizer, captions, self.text_length, self.normalizer)

    def __call__(self, items: list[tuple]) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, captions, _ = zip(*items)
        return self.ids(list(captions)), torch.stack(tokens).flatten(1).long()


class Noise:
    """Drops captions, and puts mistakes into what is read. All of it derives from (seed, step, position in the batch)."""

    def __init__(self, store, null_ids: torch.Tensor, batch_size: int, seed: int):
        self.store, self.null_ids, self.batch_size, self.seed = store, null_ids, batch_size, seed

    def __call__(self, step: int, own, text_ids: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(text ids, the tokens to read), for the part of the batch that `own` takes of what is drawn for all of it."""
        generator = torch.Generator().manual_seed(self.seed * 7_368_787 + step)
        dropped = own(torch.rand(self.batch_size, 1, generator=generator) < NULL_SHARE)
        others = own(torch.randint(len(self.store), (self.batch_size,), generator=generator)).tolist()
        wrong = own(torch.rand(self.batch_size, tokens.shape[1], generator=generator) < WRONG_SHARE)
        others = torch.stack([self.store.tokens(i) for i in others]).flatten(1).to(tokens.dtype)
        return torch.where(dropped, self.null_ids, text_ids), torch.where(wrong, others, tokens)


# ---------------------------------------------------------------- training


def open_pipeline(args: argparse.Namespace, loop: Loop) -> DallePipeline:
    """The pipeline whose prior is trained: a trained one (`--init`), or parts trained before around a new prior."""
    if args.init:
        pipe = load(args.init, device="cpu", dtype=torch.float32, clip=args.clip, tell=loop.print, packed=False)
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.text_tokenizer)
        model = open_image_tokenizer(Path(args.image_tokenizer))
        size = args.image_size or model.config.sample_size * image_tokenizer.block_size(model)
        prior = new_prior(args, tokenizer, model, (size // image_tokenizer.downsampling(model)) ** 2)
        clip = open_clip(args.clip) if args.clip not in (None, "none") else {}
        pipe = DallePipeline(model, tokenizer, prior, **clip, name=args.out.resolve().name)
    if pipe.config.prompt_template:  # their prompts have no padding, and their null prompt is not the empty one
        raise InputError(
            f"{args.init} cannot be trained here: of published models the DALL·E ones can, Janus and LlamaGen not."
        )
    if not image_tokenizer.has_encoder(pipe.image_tokenizer):
        raise InputError(
            f"{args.init} came without its image tokenizer's encoder, so it cannot read pictures. Of DALL·E mini and mega take "
            "the flax files, which have it: the README's table of published models says how."
        )
    for part in (pipe.image_tokenizer, pipe.clip):
        if part is not None:
            part.to(loop.device).requires_grad_(False)
    return pipe


def encoded(args: argparse.Namespace, loop: Loop, model: VQModel, dataset) -> TokenStore:
    """The tokens of the data set; each process encodes its share of them, once."""
    folder = args.out / "tokens"
    encode_tokens(model, dataset, folder, args.pictures, loop.part, args.variants, workers=args.workers)
    loop.accelerator.wait_for_everyone()
    return TokenStore(folder, model, dataset, args.pictures)


def trained_by(args: argparse.Namespace, prior, precision: str) -> list[torch.optim.Optimizer]:
    """Prepares a prior for what `args` ask for. Returns its optimizers."""
    if args.dropout:
        add_dropout(prior, args.dropout)
    if args.lora is not None:
        added = add_lora(prior, args.lora)
        return [torch.optim.AdamW(added, lr=args.learning_rate or LORA_RATE, betas=(0.9, 0.95), weight_decay=0.0)]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return optimizers(prior, args.learning_rate or (TRAINED_RATE if args.init else NEW_RATE), dtype)


def train(args: argparse.Namespace) -> None:
    if args.lora is not None and not args.init:
        raise InputError("--lora changes a trained model: name it by --init.")
    steps = args.samples // args.batch_size
    loop = Loop("prior", args, steps, warmup=min(50, steps // 10))
    if loop.sharded and args.init:
        raise InputError("--init does not train under FSDP: launch it without, as plain data-parallel processes.")
    pipe = open_pipeline(args, loop)
    revision, config = pipe.revision, pipe.prior.config
    trained = trained_by(args, pipe.prior, loop.accelerator.mixed_precision)

    def compute():
        text_ids, tokens = (torch.zeros(loop.part_size, n, dtype=torch.long) for n in (config.text_length, config.image_length))
        return prior_loss(pipe.prior, text_ids, tokens)

    pipe.prior.train()
    prior = loop.prepare("prior", pipe.prior, trained, ema_decay=args.ema_decay, max_norm=1.0, compute=compute)
    dataset = open_from(args, pipe.image_size)
    store = encoded(args, loop, pipe.image_tokenizer, dataset)
    loop.print(f"{sum(p.numel() for p in prior.parameters() if p.requires_grad):,} numbers are trained")
    first, forward = loop.restore(), torch.compile(prior) if args.compile else prior

    reader = Reader(pipe.text_tokenizer, config.text_length, pipe.config.text_normalizer)
    noise = Noise(store, reader.ids([""]), loop.batch_size, args.seed)
    look = Look(loop, pipe, dataset, reader, args.seed)
    if args.init and first == 0:
        look.start(prior_loss)
    todo = batches(store, loop.batch_size, first, loop.steps, args.seed, args.workers, loop.part, reader)
    losses = []
    prior.train()
    for step, (text_ids, tokens) in loop.run(todo):
        text_ids, read = noise(step, loop.own, text_ids, tokens)
        if args.dropout:
            torch.manual_seed((args.seed * 7_368_787 + step) * loop.part[1] + loop.part[0])
        batch = (part.to(loop.device) for part in (text_ids, tokens, read))
        for text_ids, tokens, read in loop.parts(*batch):
            with loop.autocast():
                loss = prior_loss(forward, text_ids, tokens, read)
            loop.backward(loss)
            losses.append(loss.detach())
        loop.update("prior")
        if loop.due(20):
            loop.log(loss=torch.stack(losses).mean())
            losses.clear()
        if loop.due(args.look_every):
            look(prior_loss)
            write(args, loop, pipe, revision)
    if first == loop.steps:
        write(args, loop, pipe, revision)


def write(args: argparse.Namespace, loop: Loop, pipe: DallePipeline, revision: str) -> None:
    """The result: a LoRA; the whole pipeline of a trained model; or a new prior."""
    if not args.init:
        loop.save_pretrained("prior", args.out / "prior")
        return
    if args.lora is None:
        pipe.register_to_config(name=args.out.resolve().name)
    with loop.averaged("prior") as prior:
        if loop.first and args.lora is not None:
            write_model(Adapter(prior, pipe.name, revision), args.out / "lora")
        elif loop.first:
            in_one_file = partial(pipe.save_pretrained, max_shard_size="1TB")
            write_model(SimpleNamespace(save_pretrained=in_one_file), args.out / "model")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    trained = parser.add_argument_group("a trained model learns new pictures")
    trained.add_argument("--init", metavar="MODEL", help="its name, folder or Hub id, as dalle_core.load takes it")
    trained.add_argument("--lora", type=int, metavar="RANK", help="train a LoRA of this rank (16 is usual), not all weights")
    new = parser.add_argument_group("a new prior")
    new.add_argument("--image-tokenizer", default="runs/image_tokenizer/image_tokenizer", help="folder (%(default)s)")
    new.add_argument("--text-tokenizer", default="runs/text_tokenizer", help="folder (%(default)s)")
    new.add_argument("--architecture", choices=["gpt", "bart"], default="gpt", help="bart: encoder and decoder, as DALL·E mini")
    new.add_argument("--image-size", type=int, help="pixels a side (the image tokenizer's own)")
    new.add_argument("--text-length", type=int, default=20, help="text positions, the end of the text included (%(default)s)")
    new.add_argument("--layers", type=int, default=6, help="(%(default)s; of bart, in each half)")
    new.add_argument("--heads", type=int, default=4, help="(%(default)s)")
    new.add_argument("--hidden-size", type=int, default=256, help="(%(default)s)")


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train a prior; run again to go on after a stop.")
    add_data_arguments(parser)
    add_arguments(parser, "runs/prior", batch_size=32)
    add_model_arguments(parser)
    add_token_arguments(parser)
    parser.add_argument("--samples", type=int, default=155_000, help="pictures to train on, over all epochs (%(default)s)")
    parser.add_argument("--accumulation", type=int, default=1, help="parts of a batch that go through one by one (%(default)s)")
    parser.add_argument(
        "--learning-rate",
        type=float,
        help=f"Muon's peak ({NEW_RATE}; with --init {TRAINED_RATE}); AdamW's is an eighth of it. "
        f"Of a LoRA, AdamW's ({LORA_RATE})",
    )
    parser.add_argument("--dropout", type=float, default=0.0, help="of embeddings and residual branches (%(default)s)")
    parser.add_argument(
        "--ema-decay", type=float, default=0.999, help="of the weights' average that is kept; 0: none (%(default)s)"
    )
    parser.add_argument("--clip", help='that ranks the samples, a folder or "none"; with --init as of dalle_core.load (none)')
    parser.add_argument(
        "--look-every", type=int, default=200, help="steps between held-out losses, samples, weights (%(default)s)"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile the training step")
    return parser


def main(arguments: list[str] | None = None) -> None:
    command("prior", train, parser().parse_args(arguments))


if __name__ == "__main__":
    main()
