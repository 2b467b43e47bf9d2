"""Pictures <-> grids of tokens, through a `diffusers.VQModel`.

Pixels are float NCHW in [-1, 1], whatever the model. A model may work on r x r blocks of pixels as channels
(space-to-depth, in_channels = 3 * r^2): full resolution at the decoder's end for almost no cost. Published VQGANs
have r = 1; some work on pixels in [0, 1] (`pixel_range` in the config), and some come without their encoder
(`has_encoder`): such a model draws, but cannot read pictures.
"""

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import VQModel
from PIL import Image, ImageCms, ImageOps

from dalle_core.errors import InputError

LARGE = 2**14  # pixels of a picture
OWN_CONFIG = ("pixel_range", "has_encoder")  # entries of config.json that diffusers does not know


def set_pixel_range(model: VQModel, low: float, high: float) -> None:
    """What the weights take for black and for white."""
    model.register_to_config(pixel_range=[low, high])


def drop_encoder(model: VQModel) -> None:
    """Takes the encoder away, for weights that have none."""
    model.register_to_config(has_encoder=False)
    model.encoder = model.quant_conv = None


def has_encoder(model: VQModel) -> bool:
    return model.config.get("has_encoder", True)


def decoder_dtype(dtype: torch.dtype) -> torch.dtype:
    """The decoder's in a model of this dtype: maps of a deep one may leave float16's range."""
    return torch.float32 if dtype == torch.float16 else dtype


def block_size(model: VQModel) -> int:
    """r: the side in pixels of the blocks that the model sees as channels."""
    return math.isqrt(model.config.in_channels // 3)


def downsampling(model: VQModel) -> int:
    """Pixels a side that one token stands for (the f of VQGAN)."""
    return block_size(model) * 2 ** (len(model.config.block_out_channels) - 1)


@torch.no_grad()
def encode(model: VQModel, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels [B, 3, H, W] in [-1, 1] -> tokens [B, h, w] (int64): the nearest code of each vector.

    Raises InputError when the model has no encoder.
    """
    if not has_encoder(model):
        raise InputError("This model's image tokenizer came without its encoder: it draws, but it cannot read pictures.")
    if "pixel_range" in model.config:
        low, high = model.config.pixel_range
        pixels = low + (pixels + 1) * ((high - low) / 2)
    dtype = next(model.encoder.parameters()).dtype  # the decoder's may be smaller
    z = model.encode(F.pixel_unshuffle(pixels.to(dtype), block_size(model))).latents  # [B, C, h, w]
    _, _, (_, _, tokens) = model.quantize(z)
    return tokens.view(z.shape[0], *z.shape[2:])


def at_a_time(model: VQModel, grid_size: int) -> int:
    """How many pictures to decode together: as many as a GPU likes, few that stay in a CPU's cache."""
    pixels = (grid_size * downsampling(model)) ** 2
    if model.device.type != "cpu":
        return max(1, 2**21 // pixels)
    # Group norms of large maps on a CPU share the pixels of all pictures out to the threads, and sum them in an order that
    # depends on how many there are. Alone is no slower.
    return 2**18 // pixels if pixels < LARGE else 1


@torch.no_grad()
def decode(model: VQModel, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens [B, h, h] -> pixels [B, 3, H, H] in [-1, 1]; a picture's are the same alone and among others."""
    most = at_a_time(model, max(tokens.shape[1:]))
    # Convolutions of a single small picture take another kernel, which rounds otherwise: it is decoded twice.
    return torch.cat([_decode(model, part, twice=len(part) == 1 < most) for part in tokens.split(most)])


def code_vectors(model: VQModel, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens [B, h, w] -> the codes that they stand for, [B, C, h, w]."""
    return model.quantize.embedding(tokens).permute(0, 3, 1, 2)


def _decode(model: VQModel, tokens: torch.Tensor, twice: bool) -> torch.Tensor:
    z = code_vectors(model, tokens.repeat(2, 1, 1) if twice else tokens)
    z = z.to(model.post_quant_conv.weight.dtype)  # the decoder's, which may be smaller than the rest's
    blocks = model.decode(z, force_not_quantize=True).sample[: len(tokens)]
    pixels = F.pixel_shuffle(blocks, block_size(model)).float()
    if "pixel_range" in model.config:
        low, high = model.config.pixel_range
        pixels = (pixels - low) * (2 / (high - low)) - 1
    return pixels.clamp(-1, 1)


def flat(image: Image.Image) -> Image.Image:
    """Any PIL image as RGB: upright (EXIF), in sRGB, transparency on white, the first frame.

    Raises OSError when the picture's data is damaged or cut off.
    """
    image.load()
    profile = image.info.get("icc_profile")
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # of any kind, when the EXIF data is damaged; the picture itself is not
        pass
    if image.mode.startswith(("I", "F")):  # more than 8 bits a channel: Pillow would clip, not scale
        array = np.asarray(image, dtype=np.float64)
        white = 65535 if image.mode.startswith("I;16") else max(array.max(), 1)
        image = Image.fromarray((array / white * 255).astype(np.uint8))
    if profile:
        image = _in_srgb(image, profile)
    if image.mode == "RGB":
        return image
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return white.convert("RGB")


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """The picture's colours as its embedded profile means them, in RGB or RGBA. A profile that is damaged, or another kind of
    picture's, is left out of account."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[source.profile.xcolor_space.strip()]
        kind = {"1": "L", "L": "L", "LA": "L", "La": "L", "CMYK": "CMYK"}.get(image.mode, "RGB")
        if (kind, mode) not in (("L", "L"), ("L", "RGB"), ("RGB", "RGB"), ("CMYK", "CMYK")):
            return image
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        colours = image.convert("RGBA").convert(mode) if alpha else image.convert(mode)
        result = ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, ImportError, KeyError, OSError, TypeError, ValueError):
        return image
    del result.info["icc_profile"]  # or the next one who asks would convert it again
    if alpha:
        result.putalpha(alpha)
    return result


def to_pixels(images: list[Image.Image]) -> torch.Tensor:
    """PIL images of one size -> pixels [B, 3, H, W] in [-1, 1]."""
    arrays = np.stack([np.asarray(flat(image)) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """Pixels [B, 3, H, W] in [-1, 1] -> PIL images."""
    arrays = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]
