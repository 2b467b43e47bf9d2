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
exponential moving average of the weights (EMA).

`python -m dalle_core.training.image_tokenizer --help` trains one; started again with the same `--out`, it goes on. With
fewer `--steps` than before, the rest of the schedule is shorter.
"""

import argparse
import itertools
import json
import math
import time
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import VQModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.training_utils import EMAModel
from torch import nn
from tqdm import tqdm

from dalle_core import image_tokenizer
from dalle_core.training.data import as_pixels, batches, open_dataset
from dalle_core.training.perceptual import CHANNELS, PerceptualNetwork, feature_distance
from dalle_core.training.state import RunState, learning_rate

GAN_WARMUP = 300  # steps in which the discriminator's weight grows from 0

def new_image_tokenizer(codebook_size: int = 4096, channels: tuple[int, ...] = (192,), block_size: int = 12,
                        image_size: int = 192, vq_embed_dim: int = 32) -> VQModel:  # fmt: skip
    """The embedded model's VQModel: it works on 12 x 12 blocks of pixels (432 channels), each of which becomes a token.

    Convolutions at full resolution would take most of the compute, and a CPU is slow at them. There is no attention
    over the picture: a token should say what is at its place, and nothing of what stands elsewhere. Each further number
    of `channels` halves the side once more.
    """
    return VQModel(
        in_channels=3 * block_size**2,
        out_channels=3 * block_size**2,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=32,
        vq_embed_dim=vq_embed_dim,
        num_vq_embeddings=codebook_size,
        norm_num_groups=1,  # its statistics are of the whole picture: the fewer, the steadier
        mid_block_add_attention=False,
        sample_size=image_size // block_size,
    )


class Discriminator(nn.Module):
    """A projected discriminator (Sauer et al. 2021, arXiv 2111.01007): small heads on features of a trained network.

    A PatchGAN on pixels first has to learn what edges and textures are; in a run of hours on a CPU it never got ahead of
    the decoder. These features know, and the perceptual distance has computed them already.
    """

    def __init__(self, channels: list[int], width: int = 32):
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(count, width, 3, 1, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 1, 3, 1, 1)) for count in channels
        )

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Features [B, C, h, w] of each layer, channels of length 1 -> logits [B, 1, h, w] of each layer."""
        return [head(feature * feature.shape[1] ** 0.5) for head, feature in zip(self.heads, features, strict=True)]


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
    """Quantizes, and moves the codes: each follows the mean of the vectors that chose it, unused ones are drawn anew.

    The codebook term of L_VQ is minimal where each code is the mean of its vectors. So it is not left to gradients,
    under which 4,096 rarely chosen codes move slowly, but done by moving averages (van den Oord et al., appendix A.1):

        N_k <- d N_k + (1 - d) n_k,    m_k <- d m_k + (1 - d) sum of its z_e,    e_k = m_k / N_k

    A codebook initialised at random collapses: a few codes take everything, the others are never chosen. So it is
    drawn from the encoder's own outputs after a while of plain autoencoding (k-means), and dead codes are drawn again.
    """

    def __init__(self, quantizer, warmup: int, commitment: float = 0.25, restart_every: int = 50, settled: float = math.inf):
        super().__init__()
        self.quantizer, self.warmup, self.commitment, self.restart_every = quantizer, warmup, commitment, restart_every
        self.settled = settled  # the step from which codes are not drawn anew: the model's average should end near them
        self.register_buffer("used", torch.zeros(quantizer.n_e))  # N_k; 1: as often as if all codes were used alike
        self.register_buffer("sums", torch.zeros(quantizer.n_e, quantizer.vq_embed_dim))  # m_k
        self.register_buffer("recent", torch.zeros(0, quantizer.vq_embed_dim), persistent=False)

    def state_dict(self, *args, **kwargs):  # the quantizer belongs to the model's own state
        return {"used": self.used, "sums": self.sums, "recent": self.recent}

    def load_state_dict(self, state):
        for name, value in state.items():
            setattr(self, name, value.to(self.used.device))

    def __call__(self, z: torch.Tensor, step: int):
        """z [B, C, h, w] -> (quantized z, commitment loss). Before `warmup`, z goes through as it is."""
        vectors = z.detach().permute(0, 2, 3, 1).reshape(-1, z.shape[1])  # [B*h*w, C]
        self.recent = torch.cat([vectors, self.recent])[: 8 * len(self.used)]
        if step < self.warmup:
            return z, z.new_zeros(())
        weight = self.quantizer.embedding.weight.data
        self._renew(weight, step)
        tokens = torch.cdist(vectors, weight).argmin(1)
        codes = weight[tokens].view(z.shape[0], *z.shape[2:], -1).permute(0, 3, 1, 2)
        loss = self.commitment * F.mse_loss(z, codes)
        self._follow(weight, vectors, tokens)
        return z + (codes - z).detach(), loss

    def _follow(self, weight, vectors, tokens, share: float = 0.01) -> None:
        """One step of the moving averages; `share` is 1 - d above."""
        fair = len(weight) / len(tokens)
        self.used.lerp_(torch.bincount(tokens, minlength=len(weight)) * fair, share)
        self.sums.lerp_(torch.zeros_like(weight).index_add_(0, tokens, vectors) * fair, share)
        alive = self.used > 1e-3
        weight[alive] = self.sums[alive] / self.used[alive, None]

    def _renew(self, weight, step: int) -> None:
        """Draws the first codebook, and later codes for dead ones."""
        generator = torch.Generator().manual_seed(step)
        if step == self.warmup:
            first = self.recent[:1].to(weight)
            weight.copy_(torch.cat([first, self._draw(first, len(weight) - 1, generator)]))
            self.used.fill_(1.0)
            for _ in range(10):  # Lloyd's k-means, with half a step
                self.sums.copy_(weight * self.used[:, None])
                tokens = torch.cat([torch.cdist(part, weight).argmin(1) for part in self.recent.split(2**13)])
                self._follow(weight, self.recent, tokens, 0.5)
            self.used.clamp_(min=0.1)
        elif (step - self.warmup) % self.restart_every == 0 and step < self.settled:
            dead = self.used < 0.03
            weight[dead] = self._draw(weight[~dead], int(dead.sum()), generator)
            self.used[dead] = 1.0
        else:
            return
        self.sums.copy_(weight * self.used[:, None])

    def perplexity(self) -> float:
        """exp of the entropy of the codes' frequencies: how many codes, used alike, would hold as much."""
        return torch.special.entr(self.used / self.used.sum().clamp(min=1e-9)).sum().exp().item()

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


@torch.no_grad()
def start_linear(model: VQModel, pixels: torch.Tensor) -> None:
    """Makes a new model of one resolution what is best among linear ones: principal components of the cells, and back.

    A network that starts at random takes thousands of steps to become as good. The way through the layers: residual
    branches start at 0; each component goes through two channels as x and -x, since silu(x) - silu(-x) = x; and two
    constant channels, which nothing reads, dominate the group norms' statistics, so that these are nearly the same for
    all pictures. The other channels start small and unread. pixels [N, 3, H, W] in [-1, 1] are what components are taken of.
    """
    count, constant = model.config.latent_channels, 7.0
    blocks = F.pixel_unshuffle(pixels, image_tokenizer.block_size(model))
    cells = blocks.permute(0, 2, 3, 1).flatten(0, 2)  # [N * h * w, 3 r^2]
    mean = cells.mean(0)
    _, _, directions = torch.pca_lowrank(cells, count, niter=4)  # [3 r^2, C]
    length = ((cells - mean) @ directions).square().sum(1).mean().sqrt()
    for module in model.modules():
        if isinstance(module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
            module.norm1.weight[-2:] = 0

    def enter(conv, weight, bias):
        """weight [C, inputs], bias [C]: into two channels each, at the middle of the kernel."""
        conv.weight.mul_(0.3)
        for channels, sign in ((slice(0, count), 1), (slice(count, 2 * count), -1)):
            conv.weight[channels] = 0
            conv.weight[channels, :, 1, 1] = sign * weight
            conv.bias[channels] = sign * bias
        conv.weight[-2:] = 0
        conv.bias[-2:] = torch.tensor([constant, -constant])

    def leave(norm, conv, weight, bias, features):
        """weight [outputs, C], bias [outputs]: from two channels each, which the norm has divided by their deviation."""
        deviation = features.std((1, 2, 3)).mean()
        norm.weight[-2:] = 0
        conv.weight.zero_()
        for channels, sign in ((slice(0, count), 1), (slice(count, 2 * count), -1)):
            conv.weight[:, channels, 1, 1] = sign * deviation * weight
        conv.bias.copy_(bias)

    identity, none = torch.eye(count), torch.zeros(count)
    encoder, decoder, scale = model.encoder, model.decoder, count**0.5  # so that latents have a variance of 1 on average
    enter(encoder.conv_in, directions.T / length, -(mean @ directions) / length)
    leave(encoder.conv_norm_out, encoder.conv_out, scale * identity, none, encoder.conv_in(blocks))
    for conv in (model.quant_conv, model.post_quant_conv):
        conv.weight.copy_(identity[:, :, None, None])
        conv.bias.zero_()
    enter(decoder.conv_in, identity / scale, none)
    leave(decoder.conv_norm_out, decoder.conv_out, length * directions, mean, decoder.conv_in(model.encode(blocks).latents))


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
    """One generator step and one discriminator step at a time; `step(pixels)` returns the losses as floats.

    `perceptual`, `adversarial` and `locality` are the weights of these terms in L; without the first two, the network
    whose features they take is not loaded.
    """

    def __init__(self, model: VQModel, steps: int, gan_start: int, warmup: int, peak: float = 1e-3,
                 perceptual: float = 0.0, adversarial: float = 0.2, locality: float = 1.0, ema_decay: float = 0.999,
                 dtype=torch.float32):  # fmt: skip
        self.model, self.steps, self.gan_start, self.peak, self.dtype = model, steps, gan_start, peak, dtype
        self.perceptual, self.adversarial, self.locality = perceptual, adversarial, locality
        device = next(model.parameters()).device
        self.network = None
        if perceptual or adversarial:
            self.network = PerceptualNetwork().to(device, memory_format=torch.channels_last)
        self.discriminator = Discriminator(CHANNELS).to(device, memory_format=torch.channels_last)
        self.codebook = Codebook(model.quantize, warmup, settled=0.85 * steps).to(device)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.95), weight_decay=1e-4)
        self.d_optimizer = torch.optim.AdamW(self.discriminator.parameters(), lr=peak, betas=(0.5, 0.9))
        self.ema = EMAModel(model.parameters(), decay=ema_decay, foreach=True)

    def objects(self) -> dict:
        return {
            "model": self.model, "discriminator": self.discriminator, "codebook": self.codebook, "ema": self.ema,
            "optimizer": self.optimizer, "d_optimizer": self.d_optimizer,
        }  # fmt: skip

    @contextmanager
    def averaged(self):
        """The model with the moving average of its weights, while this lasts."""
        self.ema.store(self.model.parameters())
        self.ema.copy_to(self.model.parameters())
        try:
            yield self.model
        finally:
            self.ema.restore(self.model.parameters())

    def autocast(self):
        return torch.autocast(self.model.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def step(self, pixels: torch.Tensor, step: int) -> dict[str, float]:
        """pixels [B, 3, H, W] in [-1, 1]."""
        for optimizer in (self.optimizer, self.d_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, self.steps, self.peak)
        with self.autocast():
            z = encode(self.model, pixels).float()
            with torch.autocast(pixels.device.type, enabled=False):
                quantized, commitment = self.codebook(z, step)
            decoded = decode(self.model, quantized).float()
            locality = locality_loss(self.model, pixels[::2], quantized[::2], torch.Generator().manual_seed(step))
        reconstruction = reconstruction_loss(decoded, pixels)
        logs = {"reconstruction": reconstruction, "psnr": psnr(pixels, decoded).mean()}
        logs |= {"commitment": commitment, "locality": locality}
        # The way back in two parts: from the losses to the decoded pixels, where they are weighed, and on from there.
        gradient = torch.autograd.grad(reconstruction, decoded, retain_graph=True)[0]
        if self.network:
            gradient = gradient + self._gradient_of_looks(decoded, pixels, gradient, step, logs)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward([decoded, commitment + self.locality * locality], [gradient, None])
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.ema.step(self.model.parameters())
        return {name: value.item() for name, value in logs.items()}

    def _gradient_of_looks(self, decoded, pixels, gradient, step: int, logs: dict) -> torch.Tensor:
        """The gradient of the perceptual and the GAN's term at the decoded pixels [B, 3, H, W]; a step of D besides.

        `gradient` is that of the reconstruction. Of every second picture only: the features cost as much as the rest.
        """
        with self.autocast():
            ours, theirs = self.network(decoded[::2]), self.network(pixels[::2])
        logs["perceptual"] = distance = feature_distance(ours, theirs).mean()
        adversarial = self.adversarial and step >= self.gan_start
        looks = torch.autograd.grad(self.perceptual * distance, decoded, retain_graph=adversarial)[0]
        if not adversarial:
            return looks
        self.discriminator.requires_grad_(False)
        with self.autocast():
            fooled = -sum(logits.float().mean() for logits in self.discriminator(ours))
        self.discriminator.requires_grad_(True)
        against = torch.autograd.grad(fooled, decoded)[0]
        last = self.model.decoder.conv_out.weight
        norms = [torch.autograd.grad(decoded, last, g, retain_graph=True)[0].norm() for g in (gradient + looks, against)]
        logs["discriminator"] = self._discriminator_step([f.detach() for f in theirs], [f.detach() for f in ours])
        # D begins at random: what it says counts the more, the longer it has learned.
        begun = min(1.0, (step - self.gan_start) / GAN_WARMUP)
        return looks + begun * self.adversarial * (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4) * against

    def _discriminator_step(self, real: list[torch.Tensor], decoded: list[torch.Tensor]) -> torch.Tensor:
        """One step of D on the features of real and decoded pictures; returns L_D, 2 at chance."""
        with self.autocast():
            real, decoded = self.discriminator(real), self.discriminator(decoded)
        loss = sum(F.relu(1 - r.float()).mean() + F.relu(1 + d.float()).mean() for r, d in zip(real, decoded)) / len(real)
        self.d_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.d_optimizer.step()
        return loss.detach()


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
    vectors = torch.cat([encode(model, part.to(weight.device)).float() for part in pixels.split(16)])
    vectors = vectors.permute(0, 2, 3, 1).flatten(0, 2).split(2**13)  # of [N*h*w, C], for distances [2**13, K]
    square = sum(torch.cdist(part, weight.float()).amin(1).square().sum() for part in vectors)
    strength = rate * square / sum(map(len, vectors))
    price = torch.zeros(size, device=weight.device)
    for _ in range(8):  # which codes are taken depends on their price, and the price on how often they are taken
        taken = torch.cat([(torch.cdist(part, weight.float()).square() + price).argmin(1) for part in vectors])
        counts = torch.bincount(taken, minlength=size)
        price = -strength * ((counts + 1) / (counts.sum() + size)).log()

    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    priced = VQModel(**config | {"vq_embed_dim": weight.shape[1] + 1}).to(weight.device, weight.dtype)
    state = model.state_dict()
    state["quantize.embedding.weight"] = torch.cat([weight, price.to(weight.dtype).sqrt()[:, None]], dim=1)
    for name, dim in (("quant_conv.weight", 0), ("quant_conv.bias", 0), ("post_quant_conv.weight", 1)):
        state[name] = torch.cat([state[name], torch.zeros_like(state[name].narrow(dim, 0, 1))], dim=dim)
    priced.load_state_dict(state)
    return priced.eval()


def save_sheet(pixels: torch.Tensor, decoded: torch.Tensor, path: Path) -> None:
    """Writes n originals above their reconstructions, both [n, 3, H, W] in [-1, 1]."""
    sheet = torch.stack([pixels, decoded]).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)  # [3, 2*H, n*W]
    image_tokenizer.to_images(sheet[None])[0].save(path)


@torch.no_grad()
def evaluate(model: VQModel, images: list, folder: Path, step: int) -> float:
    """Mean PSNR of `images` (PIL), through tokens as in use; writes originals above reconstructions to a picture."""
    pixels = image_tokenizer.to_pixels(images).to(model.device)
    decoded = torch.cat([image_tokenizer.decode(model, image_tokenizer.encode(model, part)) for part in pixels.split(16)])
    save_sheet(pixels[:12], decoded[:12], folder / f"reconstructions_{step:06}.png")
    return psnr(pixels, decoded).mean().item()


def random_crops(pixels: torch.Tensor, size: int, cell: int, generator: torch.Generator) -> torch.Tensor:
    """[B, 3, H, H] -> [B, 3, size, size]: of each picture another part, in whole cells of `cell` pixels."""
    places = torch.randint(0, (pixels.shape[-1] - size) // cell + 1, (len(pixels), 2), generator=generator) * cell
    return torch.stack([p[:, y : y + size, x : x + size] for p, (y, x) in zip(pixels, places.tolist())])


def training_batches(dataset, args: argparse.Namespace, cell: int, first: int, steps: int):
    """Yields pixels [B, 3, H, W] on the device for the steps from `first`: crops, then fewer, whole pictures.

    `--whole-from` is the share of the steps after which pictures are whole. A batch holds about as many pixels then.
    """
    whole = int(args.whole_from * steps) if args.crop < args.image_size else 0
    few = max(2, round(args.batch_size * (args.crop / args.image_size) ** 2)) if whole else args.batch_size
    loaders = [batches(dataset, args.batch_size, first, whole, seed=args.seed)] if first < whole else []
    loaders += [batches(dataset, few, max(first, whole), steps, seed=args.seed + 1)]
    for step, (bytes_, _) in enumerate(itertools.chain(*loaders), first):
        pixels = as_pixels(bytes_.to(args.device))
        if step < whole:
            pixels = random_crops(pixels, args.crop, cell, torch.Generator().manual_seed(step))
        yield pixels.contiguous(memory_format=torch.channels_last)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    dataset = open_dataset(args.data, args.image_size, seed=args.seed)
    model = new_image_tokenizer(args.codebook_size, tuple(args.channels), args.block_size, args.image_size)
    if len(args.channels) == 1 and not (args.out / "last.pt").exists():
        start_linear(model, image_tokenizer.to_pixels([dataset.picture(i) for i in range(min(300, len(dataset)))]))
    model = model.to(args.device, memory_format=torch.channels_last)
    cell = image_tokenizer.downsampling(model)
    if args.image_size % cell or args.crop % cell:
        raise SystemExit(f"--image-size {args.image_size}, --crop {args.crop}: take multiples of {cell}.")
    steps = args.steps
    trainer = Trainer(
        model, steps, int(args.gan_from * steps), args.warmup_steps, args.learning_rate, args.perceptual, args.adversarial,
        args.locality, args.ema_decay, getattr(torch, args.dtype),
    )  # fmt: skip
    state = RunState(args.out, **trainer.objects())
    first = state.restore()
    trainer.ema.to(args.device)
    held_out = [image for image, _ in dataset.held_out(dataset.held_out_kinds[0], 64)]

    bar = tqdm(total=steps, initial=first, unit="step", desc="image tokenizer", mininterval=5)
    with open(args.out / "log.jsonl", "a", encoding="utf-8") as log:
        for step, pixels in enumerate(training_batches(dataset, args, cell, first, steps), first):
            logs = trainer.step(pixels, step)
            bar.update()
            if step % 50 == 0:
                bar.set_postfix({name: f"{value:.3f}" for name, value in logs.items()}, refresh=False)
                codes = {"codes": (trainer.codebook.used > 0.1).sum().item(), "perplexity": trainer.codebook.perplexity()}
                log.write(json.dumps(logs | codes | {"step": step, "time": time.time()}) + "\n")
                log.flush()
            if (step + 1) % args.look_every == 0 and step > trainer.codebook.warmup:
                with trainer.averaged():
                    dB = evaluate(model, held_out, args.out, step + 1)
                print(f"\nstep {step + 1}: held-out PSNR {dB:.2f} dB", flush=True)
            state.save_if_due(step + 1)
    state.save(steps)
    with trainer.averaged():
        if args.rate:
            pictures = [dataset.picture(i) for i in range(min(1000, len(dataset)))]
            model = charge_for_rate(model, image_tokenizer.to_pixels(pictures), args.rate)
        model.save_pretrained(args.out / "image_tokenizer")
        dB = evaluate(model, held_out, args.out, steps)
    print(f"held-out PSNR {dB:.2f} dB; saved to {args.out / 'image_tokenizer'}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train an image tokenizer (VQGAN); run again to go on after a stop.")
    parser.add_argument("--data", default="data/emoji", help="the emoji corpus, or a folder with metadata.jsonl")
    parser.add_argument("--out", type=Path, default=Path("runs/image_tokenizer"), help="state, logs, result")
    parser.add_argument("--steps", type=int, default=6000, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="crops in a step (%(default)s)")
    parser.add_argument("--image-size", type=int, default=192, help="pixels a side (%(default)s)")
    parser.add_argument("--crop", type=int, default=96, help="pixels a side of the crops (%(default)s)")
    parser.add_argument("--whole-from", type=float, default=0.7, help="share of the run after which pictures are whole")
    parser.add_argument("--block-size", type=int, default=12, help="pixels a side taken as channels (%(default)s)")
    parser.add_argument("--channels", type=int, nargs="+", default=[192], help="each further one halves the side (192)")
    parser.add_argument("--codebook-size", type=int, default=4096, help="(%(default)s)")
    parser.add_argument("--warmup-steps", type=int, default=64, help="without codes, see Codebook (%(default)s)")
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="its peak (%(default)s)")
    parser.add_argument("--perceptual", type=float, default=0.1, help="weight of the perceptual distance (%(default)s)")
    parser.add_argument("--locality", type=float, default=0.5, help="weight of the locality term (%(default)s)")
    parser.add_argument("--adversarial", type=float, default=0.3, help="weight of the GAN's term (%(default)s)")
    parser.add_argument("--gan-from", type=float, default=0.5, help="share of the run after which the GAN starts")
    parser.add_argument("--ema-decay", type=float, default=0.998, help="of the moving average (%(default)s)")
    parser.add_argument("--rate", type=float, default=0.25, help="price of rare codes, see charge_for_rate (%(default)s)")
    parser.add_argument("--look-every", type=int, default=500, help="steps between written reconstructions")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of the matrix products")
    parser.add_argument("--seed", type=int, default=0)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
