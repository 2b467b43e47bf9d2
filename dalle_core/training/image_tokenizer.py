"""Training the image tokenizer: a VQ-VAE against a GAN discriminator, together a VQGAN.

A VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937) is an autoencoder whose middle is discrete. The encoder turns a
picture x into a grid of vectors z_e(x); each is replaced by the nearest of K codebook vectors e_k, and its number k
is the token; the decoder restores the picture from the e_k. It maximises a bound of the likelihood of the data,

    log p(x) >= E_q(z|x)[ log p(x|z) ] - KL( q(z|x) || p(z) ),

in which q(z|x) is one-hot (the nearest code), so that under a uniform p(z) the KL is the constant log K for each
token, and what is left to train is the reconstruction. The prior, trained afterwards, replaces the uniform p(z) and
wins that constant back. The nearest-code step has no gradient: the decoder's gradient is copied straight through to
the encoder, and two terms tie codes and encoder to each other:

    L_VQ = |x - x'|                     reconstruction (here: L1 at several sizes and of the edges)
         + d(x, x')                     perceptual distance, see `perceptual`: what looks alike may differ in pixels
         + |sg[z_e] - e|^2              codebook: codes move to the encoder's outputs (here by moving averages)
         + beta |z_e - sg[e]|^2         commitment: the encoder stays near its codes          (sg = stop gradient)
         + |z_e(mix) - sg[mix(e)]|^2    locality, ours: where two pictures are put together, a token depends on its
                                        own place, so that a thing has the same tokens whatever is beside it

A reconstruction term alone averages what it cannot know, and averages are blurred. VQGAN (Esser et al. 2021, arXiv
2012.09841, section 3.1) adds a patch discriminator D that learns to tell real patches from decoded ones, with the
decoder as the generator of the GAN (L_rec: the first two terms of L_VQ; ours sees features, see `Discriminator`):

    L_D   = E[ max(0, 1 - D(x)) ] + E[ max(0, 1 + D(x')) ]                      hinge loss
    L     = L_VQ + lambda * w * ( -E[ D(x') ] ),
    w     = |grad_L(L_rec)| / ( |grad_L(L_GAN)| + 1e-4 )                        grad_L: at the decoder's last layer

All of this is local, so most steps train on crops of whole token cells, four times as many for the same work; the
last ones see whole pictures, over which the group norms take their statistics in use. What is evaluated and kept is an
exponential moving average of the weights (EMA). With `--decoder-only` a trained one learns to draw its tokens better, and a
prior that has learned these tokens stays as good as it was.

The model is in `vq_model.py`, the codebook in `codebook.py`, the terms of the loss in `vqgan_losses.py`.
`python -m dalle_core.training.image_tokenizer --help` trains one; started again with the same `--out`, it goes on. With
fewer `--steps` than before, the rest of the schedule is shorter.
"""

import argparse
import itertools
from functools import partial

import torch
from diffusers import VQModel
from PIL import Image
from torch.nn import functional as F

from dalle_core import image_tokenizer
from dalle_core.errors import InputError
from dalle_core.training import checkpoints, processes
from dalle_core.training.arguments import add_arguments, command
from dalle_core.training.codebook import Codebook, charge_for_rate
from dalle_core.training.data import add_data_arguments, as_pixels, batches, first_pictures, open_from
from dalle_core.training.evaluate_image_tokenizer import figures
from dalle_core.training.loop import Loop
from dalle_core.training.perceptual import CHANNELS, PerceptualNetwork, feature_distance
from dalle_core.training.vq_model import decode, encode, new_image_tokenizer, start_linear, trained_image_tokenizer
from dalle_core.training.vqgan_losses import Discriminator, locality_loss, psnr, reconstruction_loss

GAN_WARMUP = 300  # steps in which the discriminator's weight grows from 0
LOG_EVERY = 50  # steps
NAME = "image_tokenizer"

# What an argument is that was not given.
PRESETS = {
    "tiny": dict(  # seconds, to try that all of it runs
        image_size=48, crop=32, block_size=8, channels=[72], codebook_size=64, steps=30, batch_size=4, warmup_steps=4
    ),
    "emoji": dict(  # 16 x 16 tokens; hours on a CPU
        image_size=192, crop=96, block_size=12, channels=[224], codebook_size=8192, steps=9000, batch_size=16, warmup_steps=64
    ),
    "photo-256": dict(  # f 16, so 16 x 16 tokens; for GPUs
        image_size=256,
        crop=256,
        block_size=4,
        channels=[128, 256, 512],
        codebook_size=8192,
        steps=300_000,
        batch_size=64,
        warmup_steps=1000,
    ),
}


class Trainer:
    """One generator step and one discriminator step at a time; `step(pixels)` returns what is measured.

    `perceptual`, `adversarial` and `locality` are the weights of these terms in L; without the first two, the network
    whose features they take is not loaded. `gan_start` and `warmup` are steps; `warmup=None`: the model is trained already.
    `side`: of the crops, in pixels. `decoder_only`: the encoder and the codes stay as they are, and so does what a prior has
    learned of the tokens.
    """

    def __init__(
        self,
        loop: Loop,
        model: VQModel,
        gan_start: int,
        warmup: int | None,
        side: int,
        peak: float = 1e-3,
        perceptual: float = 0.0,
        adversarial: float = 0.2,
        locality: float = 1.0,
        ema_decay: float = 0.999,
        decoder_only: bool = False,
    ):
        self.loop, self.gan_start, self.seed = loop, gan_start, loop.args.seed
        self.perceptual, self.adversarial, self.locality = perceptual, adversarial, locality
        self.network = PerceptualNetwork().to(memory_format=torch.channels_last) if perceptual or adversarial else None
        self.model = model = model.to(memory_format=torch.channels_last)
        if decoder_only:
            model.requires_grad_(False)
            for part in (model.post_quant_conv, model.decoder):
                part.requires_grad_(True)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=peak, betas=(0.9, 0.95), weight_decay=1e-4)
        self.model = loop.prepare(
            NAME, model, optimizer, ema_decay=ema_decay, max_norm=1.0, wrap=False, compute=partial(self._forward, side)
        )
        if self.network:
            self.network.to(loop.device)
        discriminator = Discriminator(CHANNELS).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(discriminator.parameters(), lr=peak, betas=(0.5, 0.9))
        self.discriminator = loop.prepare("discriminator", discriminator, optimizer, wrap=False)
        self.codebook = None
        if not decoder_only:
            self.codebook = Codebook(self.model.quantize, warmup, settled=0.85 * loop.steps, seed=self.seed).to(loop.device)
            loop.register("codebook", self.codebook)

    def _forward(self, side: int) -> list[torch.Tensor]:
        """What a step computes, as far as memory is concerned, on a batch of black pictures."""
        pixels = torch.zeros(self.loop.part_size, 3, side, side)
        decoded = decode(self.model, encode(self.model, pixels))
        mixed = encode(self.model, pixels[::2])
        return [decoded, mixed, *(self.network(decoded[::2]) if self.network else [])]

    def step(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loop's present step, on this process's part of the batch: pixels [B, 3, H, W] in [-1, 1], on its device."""
        step, of_codes = self.loop.step, {}
        with self.loop.autocast():
            quantized = self._codes(pixels, step, of_codes)
            decoded = decode(self.model, quantized).float()
        reconstruction = reconstruction_loss(decoded, pixels)
        logs = {"reconstruction": reconstruction, "psnr": psnr(pixels, decoded).mean()} | of_codes
        # The way back in two parts: from the losses to the decoded pixels, where they are weighed, and on from there.
        gradient = torch.autograd.grad(reconstruction, decoded, retain_graph=True)[0]
        if self.network:
            gradient = gradient + self._gradient_of_looks(decoded, pixels, gradient, step, logs)
        ends = [(decoded, gradient)]
        if of_codes:
            ends.append((of_codes["commitment"] + self.locality * of_codes["locality"], None))
        torch.autograd.backward(*zip(*ends, strict=True))
        self.loop.update(NAME)
        return {name: value.detach() for name, value in logs.items()}

    def _codes(self, pixels: torch.Tensor, step: int, losses: dict) -> torch.Tensor:
        """pixels [B, 3, H, W] -> their codes [B, C, h, w]; the terms of L that tie codes and encoder go into `losses`."""
        if self.codebook is None:
            with torch.autocast(pixels.device.type, enabled=False):  # the very tokens that a prior has learned
                return image_tokenizer.code_vectors(self.model, image_tokenizer.encode(self.model, pixels))
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        z = encode(self.model, pixels).float()
        with torch.autocast(pixels.device.type, enabled=False):
            quantized, losses["commitment"] = self.codebook(z, step)
        losses["locality"] = locality_loss(self.model, pixels[::2], quantized[::2], generator)
        return quantized

    def _gradient_of_looks(self, decoded, pixels, gradient, step: int, logs: dict) -> torch.Tensor:
        """The gradient of the perceptual and the GAN's term at the decoded pixels [B, 3, H, W]; a step of D besides.

        `gradient` is that of the reconstruction. Of every second picture only: the features cost as much as the rest.
        """
        with self.loop.autocast():
            ours, theirs = self.network(decoded[::2]), self.network(pixels[::2])
        logs["perceptual"] = distance = feature_distance(ours, theirs).mean()
        adversarial = self.adversarial > 0 and step >= self.gan_start
        looks = torch.autograd.grad(self.perceptual * distance, decoded, retain_graph=adversarial)[0]
        if not adversarial:
            return looks
        self.discriminator.requires_grad_(False)
        with self.loop.autocast():
            fooled = -sum(logits.float().mean() for logits in self.discriminator(ours))
        self.discriminator.requires_grad_(True)
        against = torch.autograd.grad(fooled, decoded)[0]
        last = self.model.decoder.conv_out.weight
        at_last = [torch.autograd.grad(decoded, last, g, retain_graph=True)[0] for g in (gradient + looks, against)]
        processes.mean_(at_last)  # the gradients of the whole batch's losses
        norms = [found.norm() for found in at_last]
        logs["discriminator"] = self._discriminator_step([f.detach() for f in theirs], [f.detach() for f in ours])
        # D begins at random: what it says counts the more, the longer it has learned.
        begun = min(1.0, (step - self.gan_start) / GAN_WARMUP)
        return looks + begun * self.adversarial * (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4) * against

    def _discriminator_step(self, real: list[torch.Tensor], decoded: list[torch.Tensor]) -> torch.Tensor:
        """One step of D on the features of real and decoded pictures; returns L_D, 2 at chance."""
        with self.loop.autocast():
            real, decoded = self.discriminator(real), self.discriminator(decoded)
        loss = sum(F.relu(1 - r.float()).mean() + F.relu(1 + d.float()).mean() for r, d in zip(real, decoded)) / len(real)
        loss.backward()
        self.loop.update("discriminator")
        return loss.detach()

    @torch.no_grad()
    def look(self, images: list) -> None:
        """Notes the figures of held-out pictures (PIL), through tokens as in use, and keeps a picture of some."""
        if not self.loop.first or not images:
            return
        with self.loop.averaged(NAME) as model:
            found, decoded = figures(model, self.network, images)
        pixels = image_tokenizer.to_pixels(images[:12])
        self.loop.picture("reconstructions", sheet(pixels, decoded[:12].cpu()))
        self.loop.note(**{f"held_out_{name}": value for name, value in found.items()})
        self.loop.print(f"step {self.loop.step + 1}: held-out PSNR {found['psnr']:.2f} dB")


def sheet(pixels: torch.Tensor, decoded: torch.Tensor) -> Image.Image:
    """n originals above their reconstructions, both [n, 3, H, W] in [-1, 1]."""
    rows = torch.stack([pixels, decoded]).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)  # [3, 2*H, n*W]
    return image_tokenizer.to_images(rows[None])[0]


def random_crops(pixels: torch.Tensor, size: int, cell: int, places: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, H] -> [B, 3, size, size], in whole cells of `cell` pixels; places [B, 2], the first cells' row and column."""
    places = (places * cell).tolist()
    return torch.stack([p[:, y : y + size, x : x + size] for p, (y, x) in zip(pixels, places)])


def training_batches(loop: Loop, dataset, args: argparse.Namespace, cell: int):
    """Yields this process's pixels [B, 3, H, W] on the device for the steps left: crops, then fewer, whole pictures.

    `--whole-from` is the share of the steps after which pictures are whole. A batch holds about as many pixels then.
    Raises InputError when the processes cannot share a batch in pairs, which the perceptual and the locality term take.
    """
    first, steps, shared = loop.step, loop.steps, 2 * loop.part[1]
    whole = int(args.whole_from * steps) if args.crop < args.image_size else 0
    few = max(2, round(args.batch_size * (args.crop / args.image_size) ** 2)) if whole else args.batch_size
    for count in (args.batch_size, few):
        if loop.part[1] > 1 and count % shared:
            raise InputError(
                f"--batch-size {args.batch_size}: {count} pictures at once cannot be shared out in pairs over "
                f"{loop.part[1]} processes. Take a batch, or a crop, of which {shared} are a divisor."
            )
    own = {"workers": args.workers, "part": loop.part}
    loaders = [batches(dataset, args.batch_size, first, whole, seed=args.seed, **own)] if first < whole else []
    loaders += [batches(dataset, few, max(first, whole), steps, seed=args.seed + 1, **own)]
    for step, (bytes_, *_) in enumerate(itertools.chain(*loaders), first):
        pixels = as_pixels(bytes_.to(loop.device))
        if step < whole:
            generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
            places = torch.randint(0, (args.image_size - args.crop) // cell + 1, (args.batch_size, 2), generator=generator)
            pixels = random_crops(pixels, args.crop, cell, loop.own(places))
        yield pixels.contiguous(memory_format=torch.channels_last)


def complete(args: argparse.Namespace) -> VQModel | None:
    """Gives arguments that were not given their values: the preset's, or those of the model to go on from, which is returned.

    Raises InputError when a size was asked for that this model does not have.
    """
    values, model = dict(PRESETS[args.preset]), None
    if args.decoder_only and not args.init:
        raise InputError("--decoder-only goes on with a trained image tokenizer: name it by --init.")
    if args.init:
        model = trained_image_tokenizer(args.init, priced=args.decoder_only)
        sizes = dict(
            block_size=image_tokenizer.block_size(model),
            channels=list(model.config.block_out_channels),
            codebook_size=model.config.num_vq_embeddings,
        )
        for name, size in sizes.items():
            asked = getattr(args, name)
            if asked not in (None, size):
                raise InputError(f"--{name.replace('_', '-')} {asked}: {args.init} has {size}; leave it out.")
        values |= sizes
        values["image_size"] = model.config.sample_size * sizes["block_size"]
    values["crop"] = min(values["crop"], args.image_size or values["image_size"])
    for name, value in values.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    cell = args.block_size * 2 ** (len(args.channels) - 1)
    if args.image_size % cell or args.crop % cell or args.crop > args.image_size:
        raise InputError(f"--image-size {args.image_size}, --crop {args.crop}: take multiples of {cell}, the crop no larger.")
    return model


def train(args: argparse.Namespace) -> None:
    model = complete(args)
    loop = Loop(NAME, args, args.steps)
    if loop.accelerator.mixed_precision == "fp16":
        raise InputError("The image tokenizer's losses do not fit into fp16: use --precision bf16 or no.")
    dataset = open_from(args, args.image_size)
    if model is None:
        model = new_image_tokenizer(args.codebook_size, tuple(args.channels), args.block_size, args.image_size)
        if len(args.channels) == 1 and not loop.going_on:
            start_linear(model, image_tokenizer.to_pixels(first_pictures(dataset, 300)))
    trainer = Trainer(
        loop,
        model,
        int(args.gan_from * args.steps),
        None if args.init else args.warmup_steps,
        args.crop,
        args.learning_rate,
        args.perceptual,
        args.adversarial,
        args.locality,
        args.ema_decay,
        args.decoder_only,
    )
    loop.restore()
    held_out = [image for image, _ in dataset.held_out(dataset.held_out_kinds[0], 64)]
    for step, pixels in loop.run(training_batches(loop, dataset, args, image_tokenizer.downsampling(model))):
        logs = trainer.step(pixels)
        if loop.due(LOG_EVERY):
            if codebook := trainer.codebook:
                logs |= {"codes": (codebook.used > 0.1).sum(), "perplexity": codebook.perplexity()}
            loop.log(**logs)
        if loop.due(args.look_every) and not (trainer.codebook and step <= trainer.codebook.warmup):
            trainer.look(held_out)
    finish(loop, dataset, 0.0 if args.decoder_only else args.rate)


def finish(loop: Loop, dataset, rate: float) -> None:
    """Writes the moving average as the result, with the price of rare codes in it (`charge_for_rate`)."""
    if loop.first:
        with loop.averaged(NAME) as model:
            if rate:
                model = charge_for_rate(model, image_tokenizer.to_pixels(first_pictures(dataset, 1000)), rate)
            checkpoints.write_model(model, loop.out / NAME)
        loop.print(f"saved to {loop.out / NAME}")
    loop.accelerator.wait_for_everyone()


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train an image tokenizer (VQGAN); run again to go on after a stop.")
    add_data_arguments(parser)
    parser.add_argument("--preset", default="emoji", choices=PRESETS, help="what is not given is as in it (%(default)s)")
    parser.add_argument("--init", help="folder of a trained image tokenizer to go on from; sizes are its own")
    parser.add_argument("--decoder-only", action="store_true", help="with --init: tokens stay as they are, pictures get better")
    add_arguments(parser, out="runs/image_tokenizer", batch_size=None, precisions=("no", "bf16"))
    parser.add_argument("--steps", type=int)
    parser.add_argument("--image-size", type=int, help="pixels a side")
    parser.add_argument("--crop", type=int, help="pixels a side of the crops")
    parser.add_argument("--whole-from", type=float, default=0.7, help="share of the run after which pictures are whole")
    parser.add_argument("--block-size", type=int, help="pixels a side taken as channels")
    parser.add_argument("--channels", type=int, nargs="+", help="each further one halves the side")
    parser.add_argument("--codebook-size", type=int)
    parser.add_argument("--warmup-steps", type=int, help="without codes, see Codebook")
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="its peak (%(default)s)")
    parser.add_argument("--perceptual", type=float, default=0.1, help="weight of the perceptual distance (%(default)s)")
    parser.add_argument("--locality", type=float, default=0.5, help="weight of the locality term (%(default)s)")
    parser.add_argument("--adversarial", type=float, default=0.3, help="weight of the GAN's term (%(default)s)")
    parser.add_argument("--gan-from", type=float, default=0.4, help="share of the run after which the GAN starts")
    parser.add_argument("--ema-decay", type=float, default=0.998, help="of the moving average (%(default)s)")
    parser.add_argument("--rate", type=float, default=0.1, help="price of rare codes, see charge_for_rate (%(default)s)")
    parser.add_argument("--look-every", type=int, default=500, help="steps between written reconstructions")
    return parser


def main(arguments: list[str] | None = None) -> None:
    command("image_tokenizer", train, parser().parse_args(arguments))


if __name__ == "__main__":
    main()
