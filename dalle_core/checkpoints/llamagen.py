"""LlamaGen's text-to-image files (FoundationVision; t2i_XL_stage1_256.pt, t2i_XL_stage2_512.pt) -> our components.

`t2i_….pt` is the prior, whose name ends in the pixels a side that it draws: nothing else in it says so. `vq_ds16_t2i.pt` is
VQ-16. What reads the prompt is the encoder of flan-t5-xl, in a folder of its own as its repository has it (google/flan-t5-xl);
its decoder is left out.
"""

import re
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from dalle_core.checkpoints import vq16
from dalle_core.checkpoints.tensors import Tensors, read_files, read_json, read_torch, weight_files
from dalle_core.errors import ModelError
from dalle_core.image_tokenizer import downsampling
from dalle_core.priors.llamagen import PAD, LlamaGenPrior

LICENCE = "MIT (flan-t5-xl: Apache-2.0)"
DEFAULTS = {"num_candidates": 4, "temperature": 1.0, "top_k": 1000, "top_p": 1.0, "guidance_scale": 7.5}
CPU_TOKENS = 4096  # of all candidates that a CPU draws in one go
HEAD_SIZE = 64  # of every published text-to-image model
INSIDE = ("model", "module", "state_dict")  # the published code reads the first of them that a file has
IMAGE_TOKENIZER = "vq_ds16_t2i.pt"
TEXT_ENCODERS = ("flan-t5-xl", "t5-ckpt/flan-t5-xl")  # where the README of LlamaGen has it put
END = "</s>"
# What config.json of T5 must say where it says it; its sizes follow from the weights.
TEXT_ENCODER = {
    "model_type": "t5",
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-6,
    "relative_attention_max_distance": 128,
}
UNUSED = ("decoder.", "lm_head.")


def find(folder: Path) -> dict[str, Path] | None:
    """The model's files when this is a folder of LlamaGen's, else None. Raises ModelError when it holds two models, or no
    text encoder."""
    priors = sorted(folder.glob("t2i_*.pt"))
    if not priors:
        return None
    if len(priors) > 1:
        names = ", ".join(path.name for path in priors)
        raise ModelError(
            f"{folder} holds more than one model ({names}): give a folder with one of them, or links to its files."
        )
    for name in TEXT_ENCODERS:
        if (folder / name).is_dir():
            return files_of(priors[0], folder / IMAGE_TOKENIZER, folder / name)
    raise ModelError(
        f"{folder} has no text encoder: put flan-t5-xl there (hf download google/flan-t5-xl "
        f'--include "*.json" "model*.safetensors" --local-dir {folder / TEXT_ENCODERS[0]}).'
    )


def files_of(prior: Path, image_tokenizer: Path, text_encoder: Path) -> dict[str, Path]:
    """The files of a model; text_encoder is a folder. Raises ModelError when some of its weights are missing."""
    files = {"prior": prior, "image_tokenizer": image_tokenizer}
    files |= {"config": text_encoder / "config.json", "tokenizer": text_encoder / "tokenizer.json"}
    return files | {f"weights {i}": path for i, path in enumerate(weight_files(text_encoder))}


def convert(files: dict[str, Path]) -> dict:
    """The arguments of a DallePipeline, without CLIP."""
    codes = read_torch(files["image_tokenizer"], *INSIDE)
    codes.tensors.pop("quantize.codebook_used", None)  # nothing reads it
    image_tokenizer = vq16.convert(codes)
    encoder = read_files([path for name, path in files.items() if name.startswith("weights")])
    _check_text_encoder(files["config"])
    tokenizer = text_tokenizer(files["tokenizer"])
    side = _pixels(files["prior"]) // downsampling(image_tokenizer)
    prior = convert_prior(read_torch(files["prior"], *INSIDE), encoder, side * side)
    if max(tokenizer.get_vocab().values()) >= prior.config.text_vocab_size:
        raise ModelError(f"{files['tokenizer']} has more ids than {encoder.path} has rows. The two do not belong together.")
    return {
        "image_tokenizer": image_tokenizer,
        "text_tokenizer": tokenizer,
        "prior": prior,
        "text_normalizer": "llamagen",
        "prompt_template": "{prompt}" + END,
        "defaults": DEFAULTS | {"top_k": min(DEFAULTS["top_k"], prior.config.image_vocab_size)},
        "cpu_candidates": max(CPU_TOKENS // prior.config.image_length, 1),
    }


def _pixels(path: Path) -> int:
    """Pixels a side, which the name of a prior's file says."""
    found = re.fullmatch(r"t2i_.*_(\d{2,4})\.pt", path.name)
    if found is None:
        raise ModelError(f"{path}: its name must end in the pixels a side that it draws, such as t2i_XL_stage1_256.pt.")
    return int(found[1])


def _check_text_encoder(path: Path) -> None:
    config = read_json(path)
    for key, expected in TEXT_ENCODER.items():
        if config.get(key, expected) != expected:
            raise ModelError(f"{path}: {key} is {str(config[key])[:40]!r}; flan-t5-xl has {expected!r}.")


def convert_prior(file: Tensors, encoder: Tensors, image_length: int) -> LlamaGenPrior:
    """Sizes follow from the tensors; encoder: T5's, in transformers' names. Raises ModelError naming file and key."""
    codes, width = file.shape("tok_embeddings.weight", 2)
    text_length, encoder_size = file.shape("cls_embedding.uncond_embedding", 2)
    layers = file.count("layers.")
    ffn = file.shape("layers.0.feed_forward.w1.weight", 2)[0]
    if width % HEAD_SIZE:
        raise ModelError(
            f"{file.path}: the width {width} is no multiple of {HEAD_SIZE}, the size of a head. It is another model."
        )
    table = next((key for key in ("shared.weight", "encoder.embed_tokens.weight") if key in encoder), "shared.weight")
    block = "encoder.block.0.layer"
    encoder_heads = encoder.shape(f"{block}.0.SelfAttention.relative_attention_bias.weight", 2)[1]
    encoder_width = encoder.shape(f"{block}.0.SelfAttention.q.weight", 2)[0]
    with torch.device("meta"):
        prior = LlamaGenPrior(
            text_vocab_size=encoder.shape(table, 2)[0],
            text_length=text_length,
            image_vocab_size=codes,
            image_length=image_length,
            num_layers=layers,
            num_heads=width // HEAD_SIZE,
            hidden_size=width,
            ffn_size=ffn,
            encoder_layers=encoder.count("encoder.block."),
            encoder_heads=encoder_heads,
            encoder_head_size=encoder_width // encoder_heads,
            encoder_size=encoder_size,
            encoder_ffn_size=encoder.shape(f"{block}.1.DenseReluDense.wi_0.weight", 2)[0],
        ).eval()
    state = _prior_state(file, layers, codes, width, ffn, text_length, encoder_size)
    file.finish()
    for key, value in prior.text_encoder.state_dict().items():
        state[f"text_encoder.{key}"] = encoder.take(table if key == "embed_tokens.weight" else f"encoder.{key}", *value.shape)
    for key in list(encoder.tensors):  # the table has more than one name in some files
        if key.startswith(UNUSED) or key in ("shared.weight", "encoder.embed_tokens.weight"):
            del encoder.tensors[key]
    encoder.finish()
    prior.load_state_dict(state, strict=True, assign=True)
    return prior


def _prior_state(file: Tensors, layers, codes, width, ffn, text_length, encoder_size) -> dict[str, torch.Tensor]:
    """LlamaGenPrior's tensors but for the text encoder's, in the file's dtype."""
    state = {
        "null_caption": file.take("cls_embedding.uncond_embedding", text_length, encoder_size),
        "caption_mlp.0.weight": file.take("cls_embedding.cap_proj.fc1.weight", width, encoder_size),
        "caption_mlp.2.weight": file.take("cls_embedding.cap_proj.fc2.weight", width, width),
        "image_embedding.weight": file.take("tok_embeddings.weight", codes, width),
        "norm.weight": file.take("norm.weight", width),
        "head.weight": file.take("output.weight", codes, width),
    }
    for i in range(layers):
        ours, theirs = f"blocks.{i}", f"layers.{i}"
        state[f"{ours}.norm1.weight"] = file.take(f"{theirs}.attention_norm.weight", width)
        state[f"{ours}.norm2.weight"] = file.take(f"{theirs}.ffn_norm.weight", width)
        q, k, v = file.take(f"{theirs}.attention.wqkv.weight", 3 * width, width).chunk(3)
        state[f"{ours}.attn.qkv.weight"] = torch.cat([_halves(q), _halves(k), v])
        state[f"{ours}.attn.out.weight"] = file.take(f"{theirs}.attention.wo.weight", width, width)
        parts = [file.take(f"{theirs}.feed_forward.{part}.weight", ffn, width) for part in ("w1", "w3")]
        state[f"{ours}.mlp.gate_and_value.weight"] = torch.cat(parts)
        state[f"{ours}.mlp.out.weight"] = file.take(f"{theirs}.feed_forward.w2.weight", width, ffn)
    return state


def _halves(weight: torch.Tensor) -> torch.Tensor:
    """Rows of queries or keys, of which 2p and 2p + 1 of a head turn together -> those where p and p + D/2 do, as in Llama's
    other weights. The products of queries and keys stay the same."""
    return weight.unflatten(0, (-1, HEAD_SIZE // 2, 2)).transpose(1, 2).flatten(0, 2)


def text_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """T5's, as tokenizer.json has it."""
    read_json(path)  # its errors name the file
    try:
        tokens = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelError(f"{path} is not a text tokenizer ({str(error)[:200]}).") from None
    if tokens.token_to_id("<pad>") != PAD or tokens.token_to_id(END) is None:
        raise ModelError(f"{path}: the token {END} is missing, or the id of <pad> is not {PAD}. It is another model's.")
    return PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token=END, unk_token="<unk>")
