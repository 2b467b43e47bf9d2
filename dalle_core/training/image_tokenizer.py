"""Training the image tokenizer: a VQ-VAE against a GAN discriminator, together a VQGAN.

A VQ-VAE (van den Oord et al. 2017, arXiv 1711.00937) is an autoencoder whose middle is discrete. The encoder turns a
picture x into a grid of vectors z_e(x); each is replaced by the nearest of K codebook vectors e_k, and its number k
is the token; the decoder restores the picture from the e_k. It maximises a bound of the likelihood of the data,

    log p(x) >= E_q(z|x)[ log p(x|z) ] - KL( q(z|x) || p(z) ),

in which q(z|x) is one-hot (the nearest code), so that under a uniform p(z) the KL is the constant log K for each
token, and what is left to train is the reconstruction. The prior, trained afterwards, replaces the uniform p(z) and
wins that constant back. The nearest-code step has no gradient: the decoder's gradient is copied straight through to
the encoder, and two terms tie codes and encoder to each other:

    L_VQ = |x - x'|                     reconstruction (here: L1 at two scales and of the edges)
         + |sg[z_e] - e|^2              codebook: codes move to the encoder's outputs
         + beta |z_e - sg[e]|^2         commitment: the encoder stays near its codes          (sg = stop gradient)
         + |z_e(mix) - sg[mix(e)]|^2    locality, ours: where two pictures are put together, a token depends on its
                                        own place, so that a thing has the same tokens whatever is beside it

A reconstruction term alone averages what it cannot know, and averages are blurred. VQGAN (Esser et al. 2021, arXiv
2012.09841, section 3.1) adds a patch discriminator D that learns to tell real patches from decoded ones, with the
decoder as the generator of the GAN:

    L_D   = E[ max(0, 1 - D(x)) ] + E[ max(0, 1 + D(x')) ]                      hinge loss
    L     = L_VQ + lambda * w * ( -E[ D(x') ] ),
    w     = |grad_L(L_rec)| / ( |grad_L(L_GAN)| + 1e-4 )                        grad_L: at the decoder's last layer

`python -m dalle_core.training.image_tokenizer --help` trains one; started again with the same `--out`, it goes on.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import VQModel
from torch import nn
from tqdm import tqdm

from dalle_core import image_tokenizer
from dalle_core.training.data import as_pixels, batches, open_dataset
from dalle_core.training.state import RunState, learning_rate

WARMUP_STEPS = 150  # of plain autoencoding, before the codebook is drawn from the encoder's outputs


def new_image_tokenizer(codebook_size: int = 1024, channels: tuple[int, ...] = (64, 128)) -> VQModel:
    """The embedded model's VQModel: it works on 4 x 4 blocks of pixels (48 channels) and halves the side once: f = 8.

    Convolutions at full resolution would take most of the compute, and a CPU is slow at them. There is no attention
    over the picture: a token should say what is at its place, and nothing of what stands elsewhere.
    """
    return VQModel(
        in_channels=48,
        out_channels=48,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=32,
        vq_embed_dim=16,
        num_vq_embeddings=codebook_size,
        norm_num_groups=1,  # its statistics are of the whole picture: the fewer, the steadier
        mid_block_add_attention=False,
        sample_size=24,
    )


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017): pixels [B, 3, H, W] -> one logit for each overlapping patch [B, 1, h, w]."""

    def __init__(self, width: int = 32):
        super().__init__()

        def block(inputs, outputs, stride):
            return [nn.Conv2d(inputs, outputs, 4, stride, 1), nn.GroupNorm(8, outputs), nn.LeakyReLU(0.2)]

        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1),
            nn.LeakyReLU(0.2),
            *block(width, 2 * width, 2),
            *block(2 * width, 4 * width, 2),
            *block(4 * width, 4 * width, 1),
            nn.Conv2d(4 * width, 1, 4, 1, 1),
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.layers(pixels)


def reconstruction_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """L1 at full and half size, and of the differences between neighbours (edges). x, y [B, 3, H, W] in [-1, 1]."""
    loss = F.l1_loss(x, y) + F.l1_loss(F.avg_pool2d(x, 2), F.avg_pool2d(y, 2))
    for dim in (2, 3):
        loss = loss + F.l1_loss(x.diff(dim=dim), y.diff(dim=dim))
    return loss


def psnr(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each picture [B]; pixels in [-1, 1], so the peak is 2."""
    return 10 * torch.log10(4 / (x - y.clamp(-1, 1)).square().mean(dim=(1, 2, 3)).clamp(min=1e-10))


class Codebook(nn.Module):
    """Keeps every code in use: counts how often each was chosen, and moves unused ones to outputs of the encoder.

    A codebook initialised at random collapses: a few codes take everything, the others get no gradient. So it is
    drawn from the encoder's own outputs after a while of plain autoencoding, and dead codes are drawn again.
    """

    def __init__(self, quantizer, warmup: int, restart_every: int = 50):
        super().__init__()
        self.quantizer, self.warmup, self.restart_every = quantizer, warmup, restart_every
        self.register_buffer("used", torch.zeros(quantizer.n_e))
        self.register_buffer("recent", torch.zeros(0, quantizer.vq_embed_dim), persistent=False)

    def state_dict(self, *args, **kwargs):  # the quantizer belongs to the model's own state
        return {"used": self.used, "recent": self.recent}

    def load_state_dict(self, state):
        self.used, self.recent = state["used"], state["recent"]

    def __call__(self, z: torch.Tensor, step: int):
        """z [B, C, h, w] -> (quantized z, codebook and commitment loss). Before `warmup`, z goes through as it is."""
        vectors = z.detach().permute(0, 2, 3, 1).reshape(-1, z.shape[1])  # [B*h*w, C]
        self.recent = torch.cat([vectors, self.recent])[: 2 * len(self.used)]
        if step < self.warmup:
            return z, z.new_zeros(())
        generator = torch.Generator().manual_seed(step)
        weight = self.quantizer.embedding.weight
        if step == self.warmup:
            first = self.recent[:1].to(weight)
            weight.data.copy_(torch.cat([first, self._draw(first, len(weight) - 1, generator)]))
        elif (step - self.warmup) % self.restart_every == 0:
            dead = self.used < 0.02
            weight.data[dead] = self._draw(weight.data[~dead], int(dead.sum()), generator)
            self.used[dead] = 1.0
        quantized, loss, (_, _, tokens) = self.quantizer(z)
        self.used.mul_(0.99).add_(torch.bincount(tokens.flatten(), minlength=len(self.used)), alpha=0.01)
        return quantized, loss

    def _draw(self, codes: torch.Tensor, count: int, generator) -> torch.Tensor:
        """`count` of the recent outputs, each likelier the farther it is from `codes` (k-means++, Arthur and
        Vassilvitskii 2007). By their density alone, most codes would fall on what is most common, the empty background,
        and tell shades of it apart that nobody sees and every prior would have to learn."""
        recent = self.recent.to("cpu", torch.float32)
        nearest = torch.cdist(recent, codes.to(recent)).amin(1).square()
        chosen = []
        for _ in range(count):
            chosen.append(recent[torch.multinomial(nearest + 1e-9, 1, generator=generator)])
            nearest = torch.minimum(nearest, (recent - chosen[-1]).square().sum(1))
        return torch.cat(chosen).to(codes) if chosen else codes[:0]


def decode(model: VQModel, z: torch.Tensor) -> torch.Tensor:
    """Quantized vectors [B, C, h, w] -> pixels [B, 3, H, W], not clipped, with gradients."""
    return F.pixel_shuffle(model.decode(z, force_not_quantize=True).sample, image_tokenizer.block_size(model))


def encode(model: VQModel, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels [B, 3, H, W] -> the encoder's vectors before quantization [B, C, h, w], with gradients."""
    return model.encode(F.pixel_unshuffle(pixels, image_tokenizer.block_size(model))).latents


def locality_loss(model: VQModel, pixels: torch.Tensor, codes: torch.Tensor, generator: torch.Generator):
    """How much the encoder's vectors depend on what stands elsewhere: the last term of L_VQ, written above.

    A random rectangle of cells of each picture is replaced by that of its neighbour in the batch; away from the seam
    the vectors should be near the codes of the picture each part came from. pixels [B, 3, H, W], codes [B, C, h, w].
    """
    height, width = codes.shape[2:]

    def span(length):  # a third to three quarters of the side
        size = int(torch.randint(length // 3, length - length // 4, (), generator=generator))
        start = int(torch.randint(0, length - size + 1, (), generator=generator))
        return start, start + size

    (top, bottom), (left, right) = span(height), span(width)
    inside = torch.zeros(1, 1, height, width, device=codes.device)
    inside[:, :, top:bottom, left:right] = 1
    cell = pixels.shape[2] // height
    mixed = torch.lerp(pixels, pixels.roll(1, 0), F.interpolate(inside, scale_factor=cell))
    # A cell beside the seam may tell what it borders on.
    seam = F.max_pool2d(inside, 3, 1, 1) + F.max_pool2d(-inside, 3, 1, 1)
    target = torch.lerp(codes, codes.roll(1, 0), inside).detach()
    error = (encode(model, mixed).float() - target).square() * (1 - seam)
    return error.mean() / codes.detach().var()  # a share of the variance, else small vectors would do


class Trainer:
    """One generator step and one discriminator step at a time; `step(pixels)` returns the losses as floats."""

    def __init__(self, model: VQModel, steps: int, gan_start: int, warmup: int, peak: float = 1e-3,
                 adversarial: float = 0.2, dtype=torch.float32):  # fmt: skip
        self.model, self.steps, self.gan_start, self.peak = model, steps, gan_start, peak
        self.adversarial, self.dtype = adversarial, dtype
        device = next(model.parameters()).device
        self.discriminator = PatchDiscriminator().to(device, memory_format=torch.channels_last)
        self.codebook = Codebook(model.quantize, warmup).to(device)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=1e-4)
        self.d_optimizer = torch.optim.AdamW(self.discriminator.parameters(), lr=peak, betas=(0.5, 0.9))

    def objects(self) -> dict:
        return {
            "model": self.model, "discriminator": self.discriminator, "codebook": self.codebook,
            "optimizer": self.optimizer, "d_optimizer": self.d_optimizer,
        }  # fmt: skip

    def step(self, pixels: torch.Tensor, step: int) -> dict[str, float]:
        """pixels [B, 3, H, W] in [-1, 1]."""
        for optimizer, share in ((self.optimizer, 1.0), (self.d_optimizer, 0.5)):
            for group in optimizer.param_groups:
                group["lr"] = share * learning_rate(step, self.steps, self.peak)
        device = pixels.device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            z = encode(self.model, pixels).float()
            with torch.autocast(device, enabled=False):
                quantized, codebook_loss = self.codebook(z, step)
            decoded = decode(self.model, quantized).float()
            locality = locality_loss(self.model, pixels[::2], quantized[::2], torch.Generator().manual_seed(step))
        reconstruction = reconstruction_loss(decoded, pixels)
        loss = reconstruction + codebook_loss + locality
        logs = {"reconstruction": reconstruction, "codebook": codebook_loss, "locality": locality}
        logs["psnr"] = psnr(pixels, decoded).mean()

        gan = step >= self.gan_start
        if gan:
            self.discriminator.requires_grad_(False)
            with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
                fooled = -self.discriminator(decoded).float().mean()
            last = self.model.decoder.conv_out.weight
            grad_rec = torch.autograd.grad(reconstruction, last, retain_graph=True)[0].norm()
            grad_gan = torch.autograd.grad(fooled, last, retain_graph=True)[0].norm()
            weight = (grad_rec / (grad_gan + 1e-4)).clamp(max=1e4).detach()
            loss = loss + self.adversarial * weight * fooled
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()

        if gan:
            self.discriminator.requires_grad_(True)
            with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
                real, fake = self.discriminator(torch.cat([pixels, decoded.detach()])).float().chunk(2)
            d_loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
            self.d_optimizer.zero_grad(set_to_none=True)
            d_loss.backward()
            self.d_optimizer.step()
            logs["discriminator"] = d_loss
        return {name: value.item() for name, value in logs.items()}


@torch.no_grad()
def charge_for_rate(model: VQModel, pixels: torch.Tensor, rate: float) -> VQModel:
    """The same model with entropy-constrained quantization (Chou, Lookabaugh and Gray 1989): rare codes cost more.

        k = argmin_k |z_e - e_k|^2 - lambda log p(k),        lambda = rate * mean |z_e - e|^2

    Of codes that decode to nearly the same, the common one is taken, so that things look alike in tokens too, and a
    prior has less to learn. `pixels` [N, 3, H, W] show how often codes are used.

    The price is one more dimension of the codebook, in which the encoder's vectors are 0 and code k is
    sqrt(-lambda log p(k)), so that the nearest code in the plain sense is the cheapest: any VQModel code reads it.
    """
    weight, size = model.quantize.embedding.weight, model.config.num_vq_embeddings
    vectors = torch.cat([encode(model, part).float() for part in pixels.split(64)])
    vectors = vectors.permute(0, 2, 3, 1).flatten(0, 2)  # [N*h*w, C]
    distances = torch.cdist(vectors, weight.float()).square()  # [N*h*w, K]
    strength = rate * distances.amin(1).mean()
    price = torch.zeros(size, device=weight.device)
    for _ in range(8):  # which codes are taken depends on their price, and the price on how often they are taken
        counts = torch.bincount((distances + price).argmin(1), minlength=size)
        price = -strength * ((counts + 1) / (counts.sum() + size)).log()

    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    priced = VQModel(**config | {"vq_embed_dim": weight.shape[1] + 1}).to(weight.device, weight.dtype)
    state = model.state_dict()
    state["quantize.embedding.weight"] = torch.cat([weight, price.to(weight.dtype).sqrt()[:, None]], dim=1)
    for name, dim in (("quant_conv.weight", 0), ("quant_conv.bias", 0), ("post_quant_conv.weight", 1)):
        state[name] = torch.cat([state[name], torch.zeros_like(state[name].narrow(dim, 0, 1))], dim=dim)
    priced.load_state_dict(state)
    return priced.eval()


@torch.no_grad()
def evaluate(model: VQModel, images: list, folder: Path, step: int) -> float:
    """Mean PSNR of `images` (PIL), through tokens as in use; writes originals above reconstructions to a picture."""
    pixels = image_tokenizer.to_pixels(images)
    decoded = torch.cat([image_tokenizer.decode(model, image_tokenizer.encode(model, part)) for part in pixels.split(16)])
    rows = torch.cat([pixels[:12], decoded[:12]]).clamp(-1, 1)  # [24, 3, H, W]
    sheet = rows.unflatten(0, (2, -1)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)  # [3, 2*H, 12*W]
    image_tokenizer.to_images(sheet[None])[0].save(folder / f"reconstructions_{step:06}.png")
    return psnr(pixels, decoded).mean().item()


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    dataset = open_dataset(args.data, args.image_size, seed=args.seed)
    model = new_image_tokenizer(args.codebook_size).to(args.device, memory_format=torch.channels_last)
    if args.image_size % image_tokenizer.downsampling(model):
        raise SystemExit(f"--image-size {args.image_size}: take a multiple of {image_tokenizer.downsampling(model)}.")
    steps = args.images // args.batch_size
    trainer = Trainer(model, steps, int(args.gan_from * steps), WARMUP_STEPS, dtype=getattr(torch, args.dtype))
    state = RunState(args.out, **trainer.objects())
    first = state.restore()
    held_out = [image for image, _ in dataset.held_out(dataset.held_out_kinds[0], 64)]

    bar = tqdm(total=steps, initial=first, unit="step", desc="image tokenizer", mininterval=5)
    with open(args.out / "log.jsonl", "a") as log:
        loader = batches(dataset, args.batch_size, first, steps, seed=args.seed)
        for step, (bytes_, _) in enumerate(loader, first):
            pixels = as_pixels(bytes_.to(args.device)).contiguous(memory_format=torch.channels_last)
            logs = trainer.step(pixels, step)
            bar.update()
            if step % 50 == 0:
                bar.set_postfix({name: f"{value:.3f}" for name, value in logs.items()}, refresh=False)
                logs |= {"step": step, "time": time.time(), "codes": (trainer.codebook.used > 0.05).sum().item()}
                log.write(json.dumps(logs) + "\n")
                log.flush()
            if (step + 1) % args.look_every == 0 and step > trainer.codebook.warmup:
                print(f"\nstep {step + 1}: held-out PSNR {evaluate(model, held_out, args.out, step + 1):.2f} dB")
            state.save_if_due(step + 1)
    state.save(steps)
    if args.rate:
        pictures = [dataset.picture(i) for i in range(min(1000, len(dataset)))]
        model = charge_for_rate(model, image_tokenizer.to_pixels(pictures).to(args.device), args.rate)
    model.save_pretrained(args.out / "image_tokenizer")
    print(f"held-out PSNR {evaluate(model, held_out, args.out, steps):.2f} dB; saved to {args.out / 'image_tokenizer'}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train an image tokenizer (VQGAN); run again to go on after a stop.")
    parser.add_argument("--data", default="data/emoji", help="the emoji corpus, or a folder with metadata.jsonl")
    parser.add_argument("--out", type=Path, default=Path("runs/image_tokenizer"), help="state, logs, result")
    parser.add_argument("--images", type=int, default=48_000, help="how many pictures to train on (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=96, help="pixels a side, a multiple of 8 (%(default)s)")
    parser.add_argument("--codebook-size", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=1.3, help="price of rare codes, see charge_for_rate (%(default)s)")
    parser.add_argument("--gan-from", type=float, default=0.75, help="share of the run after which the GAN starts")
    parser.add_argument("--look-every", type=int, default=1000, help="steps between written reconstructions")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the matrix products")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
