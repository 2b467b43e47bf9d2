"""minDALL·E's folder (Kakao Brain's 1.3B: config.yaml, two checkpoints, a text vocabulary) -> our components.

`stage2_last.ckpt` is the GPT that GPTPrior has the form of; queries, keys and values are separate there, and it carries
a head for text that is not needed. `stage1_last.ckpt` is a VQGAN in taming's names, with pixels in [-1, 1].
"""

from pathlib import Path

import torch
import yaml
from tokenizers.implementations import CharBPETokenizer
from transformers import PreTrainedTokenizerFast

from dalle_core.checkpoints import vqgan
from dalle_core.checkpoints.tensors import Tensors, need, read_torch
from dalle_core.errors import ModelError
from dalle_core.priors.gpt import GPTPrior

HEAD_SIZE = 64
CONFIG_BYTES, NESTING = 2**16, 32  # config.yaml is a page of text, three levels deep
LICENCE = "CC-BY-NC-SA-4.0 (non-commercial)"
DEFAULTS = {"num_candidates": 16, "temperature": 1.0, "top_k": 256, "top_p": 1.0, "guidance_scale": 1.0}


def find(folder: Path) -> dict[str, Path] | None:
    """The model's files when this is minDALL·E's folder, else None."""
    if not (folder / "stage2_last.ckpt").is_file():
        return None
    return {
        "stage1": folder / "stage1_last.ckpt",
        "stage2": folder / "stage2_last.ckpt",
        "config": folder / "config.yaml",
        "vocab": folder / "tokenizer" / "bpe-16k-vocab.json",
        "merges": folder / "tokenizer" / "bpe-16k-merges.txt",
    }


def convert(files: dict[str, Path]) -> dict:
    """The arguments of a DallePipeline, without CLIP."""
    prior = convert_prior(read_torch(files["stage2"], "state_dict"), files["config"])
    return {
        "image_tokenizer": vqgan.convert(read_torch(files["stage1"], "state_dict"), pixels_from_zero=False),
        "text_tokenizer": text_tokenizer(files["vocab"], files["merges"]),
        "prior": prior,
        "text_normalizer": None,
        "defaults": DEFAULTS | {"top_k": min(DEFAULTS["top_k"], prior.config.image_vocab_size)},
    }


def convert_prior(file: Tensors, config: Path) -> GPTPrior:
    """Sizes follow from the tensors, the number of heads from config.yaml where it says it."""
    texts, width = file.shape("tok_emb_txt.weight", 2)
    text_length, image_length = (file.shape(f"pos_emb_{part}.weight", 2)[0] for part in ("txt", "img"))
    images, layers = file.shape("tok_emb_img.weight", 2)[0], file.count("blocks.")
    said = {
        "n_heads": width // HEAD_SIZE,
        "embed_dim": width,
        "n_layers": layers,
        "ctx_len_txt": text_length,
        "ctx_len_img": image_length,
        "gelu_use_approx": False,
    } | _hparams(config)
    heads = said["n_heads"]
    for key in ("n_heads", "embed_dim", "n_layers", "ctx_len_txt", "ctx_len_img"):
        if type(said[key]) is not int or not 0 < said[key] < 10**12:  # not printed: it may be long
            raise ModelError(f"{config}: {key} must be a whole number, and one that a model can have.")
    for key, found in (("embed_dim", width), ("n_layers", layers), ("ctx_len_txt", text_length), ("ctx_len_img", image_length)):
        if said[key] != found:
            raise ModelError(f"{config}: {key} is {said[key]}, but {file.path} has {found}.")
    if said["gelu_use_approx"]:
        raise ModelError(f"{config}: gelu_use_approx is not supported; no published model has it.")
    if width % heads:
        raise ModelError(f"{config}: n_heads is {heads}, which does not divide the width {width}.")

    with torch.device("meta"):
        prior = GPTPrior(texts, text_length, images, image_length, layers, heads, width).eval()
    state = {}
    for ours, theirs, *shape in (
        ("text_embedding.weight", "tok_emb_txt.weight", texts, width),
        ("image_embedding.weight", "tok_emb_img.weight", images, width),
        ("text_position.weight", "pos_emb_txt.weight", text_length, width),
        ("image_position.weight", "pos_emb_img.weight", image_length, width),
        ("head.weight", "head_img.weight", images, width),
        ("ln_f.weight", "ln_f.weight", width),
        ("ln_f.bias", "ln_f.bias", width),
    ):
        state[ours] = file.take(theirs, *shape)
    file.take("head_txt.weight", texts, width)
    for i in range(layers):
        block = f"blocks.{i}"
        for leaf, *shape in (("weight", width, width), ("bias", width)):
            parts = [file.take(f"{block}.attn.{part}.{leaf}", *shape) for part in ("query", "key", "value")]
            state[f"{block}.attn.qkv.{leaf}"] = torch.cat(parts)
            state[f"{block}.attn.proj.{leaf}"] = file.take(f"{block}.attn.proj.{leaf}", *shape)
            for norm in ("ln1", "ln2"):
                state[f"{block}.{norm}.{leaf}"] = file.take(f"{block}.{norm}.{leaf}", width)
        for name, *shape in (
            ("0.weight", 4 * width, width),
            ("0.bias", 4 * width),
            ("2.weight", width, 4 * width),
            ("2.bias", width),
        ):
            state[f"{block}.mlp.{name}"] = file.take(f"{block}.mlp.{name}", *shape)
    file.finish()
    prior.load_state_dict(state, strict=True, assign=True)
    return prior


def _hparams(config: Path) -> dict:
    """stage2.hparams of config.yaml."""
    try:
        if need(config).stat().st_size > CONFIG_BYTES:
            raise ValueError(f"it is longer than {CONFIG_BYTES // 2**10} kB")
        text, depth = config.read_text(encoding="utf-8"), 0
        for event in yaml.parse(text, yaml.SafeLoader):
            # A few lines of aliases can stand for more than any memory holds; brackets take time with their depth squared.
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it has aliases, which no published one has")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > NESTING:
                raise ValueError("it is nested without end")
        content = yaml.safe_load(text) or {}
        hparams = (content.get("stage2") or {}).get("hparams") or {}
        return dict(hparams)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise ModelError(f"{config} cannot be read ({str(error)[:200]}).") from None


def text_tokenizer(vocab: Path, merges: Path) -> PreTrainedTokenizerFast:
    """Lower case, byte-pair merges that end words with </w>; no marks at the ends, [PAD] after the text."""
    need(vocab), need(merges)
    try:
        tokenizer = CharBPETokenizer.from_file(str(vocab), str(merges), unk_token="[UNK]", lowercase=True)
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelError(f"{vocab} and {merges} are not a text vocabulary ({error}).") from None
    if tokenizer.token_to_id("[PAD]") is None:
        raise ModelError(f"{vocab}: the token [PAD] is missing.")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, pad_token="[PAD]", unk_token="[UNK]")
