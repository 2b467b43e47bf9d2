"""dalle-mini's own files (dalle-mini/dalle-mini, dalle-mini/dalle-mega and their VQGAN, in flax) -> our components.

`flax_model.msgpack` is one msgpack map of maps that ends in arrays: extension type 1, itself a msgpack of (shape, dtype,
bytes). Layers are stacked along a first axis, or, unstacked, stand one by one. Kernels are [in, out], convolutions
[height, width, in, out]. The names lead to min-dalle's and taming's, so that one reader serves both.
"""

import json
import mmap
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from dalle_core.checkpoints import min_dalle, vqgan
from dalle_core.checkpoints.tensors import LAYERS, Tensors, need, read_json
from dalle_core.errors import ModelError, published

GOLDEN = {"Donald Trump in Animal Crossing": [0, 7083, 3252, 91, 2203, 7807, 2]}
LICENCE = "Apache-2.0"
DEFAULTS = {"num_candidates": 9, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "guidance_scale": 10.0}
# What the prior's config.json must say; other variants of the architecture were never published.
REQUIRED = {
    "ln_positions": "normformer",
    "use_glu": True,
    "use_bias": False,
    "ln_type": "layernorm",
    "scale_embedding": False,
    "use_head_scale": False,
    "use_cosine_attention": False,
}


def find(folder: Path) -> dict[str, Path] | None:
    """The model's files when this is a folder of dalle-mini (the VQGAN's two in its sub-folder `vqgan`), else None."""
    if not (folder / "flax_model.msgpack").is_file():
        return None
    return {
        "weights": folder / "flax_model.msgpack",
        "config": folder / "config.json",
        "tokenizer": folder / "tokenizer.json",
        "vqgan": folder / "vqgan" / "flax_model.msgpack",
    }


def convert(files: dict[str, Path]) -> dict:
    """The arguments of a DallePipeline, without CLIP."""
    config = read_json(files["config"])
    for key, value in REQUIRED.items():
        if config.get(key, value) != value:
            raise ModelError(f"{files['config']}: {key} is {config[key]!r}; only {value!r} is supported.")
    encoder, decoder = prior_tensors(read_flax(files["weights"]), files["weights"])
    prior = min_dalle.convert_prior(encoder, decoder, config, files["config"])
    return {
        "image_tokenizer": vqgan.convert(vqgan_tensors(read_flax(files["vqgan"]), files["vqgan"]), pixels_from_zero=True),
        "text_tokenizer": text_tokenizer(files["tokenizer"]),
        "prior": prior,
        "text_normalizer": "dalle-mini" if config.get("normalize_text") else None,
        "defaults": DEFAULTS,
    }


def text_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    content = read_json(path)
    try:
        # BART's <mask>, which no prompt contains, may have an id beyond the prior's.
        content["model"]["vocab"].pop("<mask>", None)
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<mask>"]
        tokenizer = Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelError(f"{path} is not a tokenizer ({error}). Download it again.") from None
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    min_dalle.check_golden(tokenizer, "dalle-mini", GOLDEN, path)
    return tokenizer


# ---------------------------------------------------------------- msgpack

NESTING = 32  # published files are 8 deep
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


def read_flax(path: Path) -> dict[str, torch.Tensor]:
    """A file of flax.serialization.to_bytes -> {"a/b/c": tensor}. Raises ModelError; takes hardly more memory than the
    arrays, as the file is mapped."""
    msgpack, size = published("msgpack"), need(path).stat().st_size

    def extension(code, content):
        if code != 1:
            raise ValueError(f"holds an extension of type {code}, not an array")
        shape, dtype, raw = msgpack.unpackb(content, raw=False, max_bin_len=size, max_array_len=32, max_map_len=0)
        if dtype not in DTYPES or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(f"holds an array of type {dtype!r} and shape {shape}")
        array = np.frombuffer(raw, DTYPES[dtype])  # raises ValueError when the bytes are no whole number of items
        tensor = torch.from_numpy(array.reshape(shape).copy())
        return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor

    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            # A length is never more than the file's: what a damaged file declares is not allocated.
            tree = msgpack.unpackb(
                data,
                raw=False,
                strict_map_key=False,
                ext_hook=extension,
                max_ext_len=size,
                max_bin_len=size,
                max_str_len=1000,
                max_map_len=100_000,
                max_array_len=0,
            )
        return dict(_flatten(tree, "", 0))
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ModelError(f"{path} cannot be read as flax weights ({str(error)[:200]}). Download it again.") from None


def _flatten(tree, prefix: str, depth: int):
    if not isinstance(tree, dict) or depth > NESTING:
        raise ValueError(f"{prefix[:-1] or 'the file'} is not a map of arrays")
    for key, value in tree.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value
        else:
            yield from _flatten(value, f"{prefix}{key}/", depth + 1)


# ---------------------------------------------------------------- names

ATTENTION = {f"{part}_proj/kernel": f"{part}_proj.weight" for part in ("q", "k", "v", "out")}
GLU = {
    "LayerNorm_0/bias": "ln0.bias",
    "LayerNorm_1/bias": "ln1.bias",
    "Dense_0/kernel": "fc0.weight",
    "Dense_1/kernel": "fc1.weight",
    "Dense_2/kernel": "fc2.weight",
}
LAYER = {
    "LayerNorm_0/bias": "pre_self_attn_layer_norm.bias",
    "LayerNorm_1/scale": "self_attn_layer_norm.weight",
    "LayerNorm_1/bias": "self_attn_layer_norm.bias",
    "LayerNorm_2/bias": "pre_encoder_attn_layer_norm.bias",
    "LayerNorm_3/scale": "encoder_attn_layer_norm.weight",
    "LayerNorm_3/bias": "encoder_attn_layer_norm.bias",
    **{f"FlaxBartAttention_0/{theirs}": f"self_attn.{ours}" for theirs, ours in ATTENTION.items()},
    **{f"FlaxBartAttention_1/{theirs}": f"encoder_attn.{ours}" for theirs, ours in ATTENTION.items()},
    **{f"GLU_0/{theirs}": f"glu.{ours}" for theirs, ours in GLU.items()},
}
OUTSIDE = {
    "embed_tokens/embedding": "embed_tokens.weight",
    "embed_positions/embedding": "embed_positions.weight",
    "layernorm_embedding/scale": "layernorm_embedding.weight",
    "layernorm_embedding/bias": "layernorm_embedding.bias",
    "final_ln/bias": "final_ln.bias",
}


def prior_tensors(flat: dict[str, torch.Tensor], path: Path) -> tuple[Tensors, Tensors]:
    """The encoder's and the decoder's tensors in min-dalle's names; what has no such name keeps its own."""
    sides = {"Encoder": {}, "Decoder": {}}
    for key, value in flat.items():
        if key == "lm_head/kernel":
            sides["Decoder"]["lm_head.weight"] = value.T
            continue
        side = "Encoder" if key.startswith("model/encoder/") else "Decoder"
        name = key.removeprefix(f"model/{side.lower()}/")
        stacked, single = f"layers/FlaxBart{side}Layers/", f"layers/FlaxBart{side}Layer_"
        several = value.ndim > 1 and len(value) <= LAYERS
        if name.startswith(stacked) and (ours := LAYER.get(name[len(stacked) :])) and several:
            for i, part in enumerate(value):
                sides[side][f"layers.{i}.{ours}"] = part.T if part.ndim == 2 else part
        elif name.startswith(single) and (ours := LAYER.get(name[len(single) :].partition("/")[2])):
            number = name[len(single) :].partition("/")[0]
            sides[side][f"layers.{number}.{ours}"] = value.T if value.ndim == 2 else value
        else:
            sides[side][OUTSIDE.get(name, key)] = value
    return Tensors(path, sides["Encoder"]), Tensors(path, sides["Decoder"])


def vqgan_tensors(flat: dict[str, torch.Tensor], path: Path) -> Tensors:
    """The VQGAN's tensors in taming's names."""
    result = {}
    for key, value in flat.items():
        *parts, leaf = key.split("/")
        below_mid = "mid" in parts
        # down_0/block_1 -> down.0.block.1; mid/block_1 stays, there the number is part of the name.
        names = [
            part if below_mid else part.replace("_", ".") if part.rpartition("_")[2].isdecimal() else part for part in parts
        ]
        leaf = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(leaf, leaf)
        result[".".join([*names, leaf])] = value.permute(3, 2, 0, 1) if value.ndim == 4 else value
    return Tensors(path, result)
