"""VQGAN in taming-transformers' names (minDALL·E; dalle-mini's after renaming; min-dalle's decoder half) -> VQModel.

Esser et al. 2021, arXiv 2012.09841, and its source: `encoder.down.i`, `decoder.up.i` count from full resolution, so the
decoder runs from the highest i down; diffusers counts its up blocks in running order. Attention is by 1 x 1
convolutions there and by linear layers here.
"""

import torch
from diffusers import VQModel

from dalle_core.checkpoints.tensors import LAYERS, Tensors
from dalle_core.errors import ModelError
from dalle_core.image_tokenizer import drop_encoder, set_pixel_range


def convert(file: Tensors, pixels_from_zero: bool, codebook: str = "quantize.embedding.weight") -> VQModel:
    """The VQModel of a file; without an encoder when the file has none. `pixels_from_zero`: the file's pixels are 0 to 1.

    Sizes follow from the tensors. Raises ModelError naming file and key.
    """
    with_encoder = "encoder.conv_in.weight" in file
    codes, code_size = file.shape(codebook, 2)
    levels = file.count("decoder.up.")
    channels = [file.shape(f"decoder.up.{i}.block.0.conv1.weight", 4)[0] for i in range(levels)]
    latent = file.shape("decoder.conv_in.weight", 4)[1]
    attention = [f"decoder.up.{i}.attn.0.norm.weight" in file for i in range(levels)]
    resnets = file.count("decoder.up.0.block.") - 1
    if levels * resnets > LAYERS:
        raise ModelError(f"{file.path}: decoder.up has {levels} levels of {resnets + 1} blocks; no model has so many.")
    try:
        with torch.device("meta"):  # the structure alone: what a damaged file's shapes ask for is not allocated
            model = VQModel(
                down_block_types=tuple("AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attention),
                up_block_types=tuple("AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attention)),
                block_out_channels=tuple(channels),
                layers_per_block=resnets,
                latent_channels=latent,
                vq_embed_dim=code_size,
                num_vq_embeddings=codes,
                sample_size=16 * 2 ** (levels - 1),
            )
    except Exception as error:  # of many kinds
        raise ModelError(f"{file.path}: there is no VQGAN of its sizes ({error}). It is another model, or damaged.") from None
    if not with_encoder:
        drop_encoder(model)
    if pixels_from_zero:
        set_pixel_range(model, 0.0, 1.0)
    state = {}
    for key, value in model.state_dict().items():
        name = codebook if key == "quantize.embedding.weight" else _taming_name(key, levels)
        shape = tuple(value.shape)
        if ".attn" in name and name.endswith((".q.weight", ".k.weight", ".v.weight", ".proj_out.weight")):
            state[key] = file.take(name, *shape, 1, 1)[:, :, 0, 0]
        else:
            state[key] = file.take(name, *shape)
    file.finish()
    model.load_state_dict({key: value.float() for key, value in state.items()}, strict=True, assign=True)
    return model.eval()


RENAMED = {
    "conv_shortcut": "nin_shortcut",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out": "proj_out",
    "conv_norm_out": "norm_out",
    "downsamplers": "downsample",
    "upsamplers": "upsample",
}


def _taming_name(key: str, levels: int) -> str:
    """A key of VQModel -> the key in a taming file."""
    parts = [RENAMED.get(part, part) for part in key.split(".")]
    if parts[1] in ("down_blocks", "up_blocks"):
        side = parts[1][: -len("_blocks")]
        level = int(parts[2]) if side == "down" else levels - 1 - int(parts[2])
        rest = parts[3:]
        if rest[0] in ("downsample", "upsample"):
            rest = [rest[0], *rest[2:]]  # there is one of them
        else:
            rest = [{"resnets": "block", "attentions": "attn"}[rest[0]], *rest[1:]]
        parts = [parts[0], side, str(level), *rest]
    elif parts[1] == "mid_block":
        which = "attn_1" if parts[2] == "attentions" else f"block_{int(parts[3]) + 1}"
        parts = [parts[0], "mid", which, *parts[4:]]
    if "proj_out" in parts:  # to_out.0: a Sequential's first
        del parts[-2]
    return ".".join(parts)
