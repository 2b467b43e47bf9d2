"""The VQModel that is trained: a new one, one that starts as the best linear autoencoder, or a published one.

`encode` and `decode` are the two halves around the codebook, with gradients; `dalle_core.image_tokenizer` has them as they
are used, through tokens.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import VQModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from dalle_core import image_tokenizer
from dalle_core.catalogue import WEIGHTS, _load_model
from dalle_core.checkpoints import dalle_mini, vqgan
from dalle_core.checkpoints.tensors import read_torch
from dalle_core.errors import InputError


def new_image_tokenizer(
    codebook_size: int = 4096,
    channels: tuple[int, ...] = (192,),
    block_size: int = 12,
    image_size: int = 192,
    vq_embed_dim: int = 32,
) -> VQModel:
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


def trained_image_tokenizer(folder: str | Path, priced: bool = False) -> VQModel:
    """The VQModel of a folder, in float32: diffusers' layout, dalle-mini's VQGAN (flax), minDALL·E's `stage1_last.ckpt`,
    or a pipeline that holds one as `image_tokenizer`. `priced`: with the price of its codes, where it has one.

    Raises ModelError naming file and key when something is damaged, InputError when there is none, or one without encoder.
    """
    folder = Path(folder)
    names = (WEIGHTS, "flax_model.msgpack", "stage1_last.ckpt", "detoker.pt", "image_tokenizer")
    files = {name: folder / name for name in names}
    if files[WEIGHTS].is_file():
        model = _load_model(folder, VQModel, WEIGHTS, torch.float32)
    elif files["image_tokenizer"].is_dir():
        return trained_image_tokenizer(files["image_tokenizer"], priced)
    elif (folder / "vqgan" / "flax_model.msgpack").is_file():
        return trained_image_tokenizer(folder / "vqgan", priced)
    elif files["flax_model.msgpack"].is_file():
        path = files["flax_model.msgpack"]
        model = vqgan.convert(dalle_mini.vqgan_tensors(dalle_mini.read_flax(path), path), pixels_from_zero=True)
    elif files["stage1_last.ckpt"].is_file():
        model = vqgan.convert(read_torch(files["stage1_last.ckpt"], "state_dict"), pixels_from_zero=False)
    elif files["detoker.pt"].is_file():
        model = vqgan.convert(read_torch(files["detoker.pt"]), pixels_from_zero=True, codebook="embedding.weight")
    else:
        raise InputError(f"{folder} holds no image tokenizer: it has none of {', '.join(files)}.")
    if not image_tokenizer.has_encoder(model):
        raise InputError(f"The image tokenizer of {folder} came without its encoder: it cannot be trained further.")
    for module in model.modules():
        if isinstance(module, nn.SiLU):
            module.inplace = False  # gradients need what it would write over
    return (model if priced else without_price(model)).train().requires_grad_(True)


def with_code_size(model: VQModel, size: int) -> VQModel:
    """A new model of the same sizes but for that of the codes."""
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    own = {name: config.pop(name) for name in image_tokenizer.OWN_CONFIG if name in config}
    other = VQModel(**config | {"vq_embed_dim": size})
    other.register_to_config(**own)
    return other


def without_price(model: VQModel) -> VQModel:
    """The same model without the dimension in which `charge_for_rate` keeps the price of codes, where it has one."""
    weight = model.quant_conv.weight
    size = weight.shape[0] - 1
    if weight[size].any() or model.quant_conv.bias[size] or model.post_quant_conv.weight[:, size].any():
        return model
    free, state = with_code_size(model, size), model.state_dict()
    state["quantize.embedding.weight"] = state["quantize.embedding.weight"][:, :size]
    for name, dim in (("quant_conv.weight", 0), ("quant_conv.bias", 0), ("post_quant_conv.weight", 1)):
        state[name] = state[name].narrow(dim, 0, size)
    free.load_state_dict(state)
    return free


def encode(model: VQModel, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels [B, 3, H, W] -> the encoder's vectors before quantization [B, C, h, w], with gradients."""
    if "pixel_range" in model.config:
        low, high = model.config.pixel_range
        pixels = low + (pixels + 1) * ((high - low) / 2)
    return model.encode(F.pixel_unshuffle(pixels, image_tokenizer.block_size(model))).latents


def decode(model: VQModel, z: torch.Tensor) -> torch.Tensor:
    """Quantized vectors [B, C, h, w] -> pixels [B, 3, H, W], not clipped, with gradients."""
    pixels = F.pixel_shuffle(model.decode(z, force_not_quantize=True).sample, image_tokenizer.block_size(model))
    if "pixel_range" in model.config:
        low, high = model.config.pixel_range
        pixels = (pixels - low) * (2 / (high - low)) - 1
    return pixels


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
