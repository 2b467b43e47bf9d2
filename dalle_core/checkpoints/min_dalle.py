"""min-dalle's files (kuprel/min-dalle: DALL·E mini and mega in PyTorch) -> our components.

`encoder.pt`, `decoder.pt` and `detoker.pt` are dicts of tensors, `vocab.json` and `merges.txt` the text vocabulary. The
Hub's repository holds both models in one folder, mini's files with `_mini` in their names; the package keeps each in
`dalle_bart_mini` or `dalle_bart_mega`, with the image tokenizer in `vqgan` beside them. There is no encoder of images.
"""

import logging
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dalle_core.checkpoints import vqgan
from dalle_core.checkpoints.tensors import Tensors, need, read_json, read_torch
from dalle_core.errors import ModelError
from dalle_core.priors.bart import BartPrior
from dalle_core.text_normalizer import NORMALIZERS

log = logging.getLogger(__name__)

# What min-dalle's own tokenizer gives with the published vocabulary.
GOLDEN = {
    "alien life": [0, 8925, 742, 2],
    "artificial intelligence": [0, 6316, 7815, 2],
    "a comfy chair that looks like an avocado": [0, 58, 29872, 2408, 766, 4126, 1572, 101, 16632, 2],
    "court sketch of godzilla on trial": [0, 2634, 4189, 111, 14450, 133, 5167, 2],
    "Dali painting of WALL·E": [0, 21853, 1545, 111, 563, 92, 2],
}
HEAD_SIZE = 64
IMAGE_TOKENS = 16384  # what is sampled; the tables hold more rows
LICENCE = "MIT"
DEFAULTS = {"num_candidates": 9, "temperature": 1.0, "top_k": 256, "top_p": 1.0, "guidance_scale": 16.0}


def find(folder: Path) -> dict[str, Path] | None:
    """The model's files when this is a folder of min-dalle, else None. Raises ModelError when it holds two models."""
    found = []
    for suffix in ("", "_mini"):
        if (folder / f"decoder{suffix}.pt").is_file():
            parts = {name: folder / f"{name}{suffix}.pt" for name in ("encoder", "decoder")}
            parts |= {"vocab": folder / f"vocab{suffix}.json", "merges": folder / f"merges{suffix}.txt"}
            parts |= {"config": folder / f"config{suffix}.json"}  # the package's folders have none
            detoker = folder / "detoker.pt"
            found.append(parts | {"detoker": detoker if detoker.exists() else folder.parent / "vqgan" / "detoker.pt"})
    for name in ("dalle_bart_mini", "dalle_bart_mega"):
        if (folder / name / "decoder.pt").is_file():
            found.append(find(folder / name))
    if len(found) > 1:
        raise ModelError(f"{folder} holds both DALL·E mini and mega: give a folder with the files of one of them.")
    return found[0] if found else None


def convert(files: dict[str, Path]) -> dict:
    """The arguments of a DallePipeline, without CLIP."""
    config = read_json(files["config"]) if files["config"].exists() else {}
    prior = convert_prior(read_torch(files["encoder"]), read_torch(files["decoder"]), config, files["config"])
    return {
        "image_tokenizer": vqgan.convert(read_torch(files["detoker"]), pixels_from_zero=True, codebook="embedding.weight"),
        "text_tokenizer": text_tokenizer(files["vocab"], files["merges"]),
        "prior": prior,
        "text_normalizer": "min-dalle",
        "defaults": DEFAULTS,
    }


# What a config.json says of the sizes, and what a BartPrior's config calls it.
SAID = {
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "d_model": "hidden_size",
    "encoder_vocab_size": "text_vocab_size",
    "max_text_length": "text_length",
    "image_length": "image_length",
    "encoder_ffn_dim": "ffn_size",
    "decoder_ffn_dim": "ffn_size",
    "encoder_attention_heads": "num_heads",
}


def convert_prior(encoder: Tensors, decoder: Tensors, said: dict | None = None, config: Path | None = None) -> BartPrior:
    """Sizes follow from the tensors, and must be what the file `config` says (`said`) where it says it. The number of heads
    and the first token are what it says, else heads of 64 and 16384; min-dalle itself took the last row for the first
    token up to version 0.4.10, and 16383 in 0.4.11.
    """
    said = said or {}
    text_vocabulary, hidden = encoder.shape("embed_tokens.weight", 2)
    ffn, _ = encoder.shape("layers.0.glu.fc0.weight", 2)
    text_length, _ = encoder.shape("embed_positions.weight", 2)
    image_length, _ = decoder.shape("embed_positions.weight", 2)
    embedded, _ = decoder.shape("embed_tokens.weight", 2)
    heads = said.get("decoder_attention_heads", hidden // HEAD_SIZE)
    if type(heads) is not int or heads < 1 or hidden % heads:
        raise ModelError(
            f"{config or encoder.path}: the width {hidden} does not go into {str(heads)[:20]} heads (decoder_attention_heads)."
        )
    start_token_id = said.get("decoder_start_token_id", IMAGE_TOKENS)
    if type(start_token_id) is not int or start_token_id < 0:
        raise ModelError(f"{config}: decoder_start_token_id is {str(start_token_id)[:20]}, which is no token.")
    if embedded <= start_token_id:
        raise ModelError(
            f"{decoder.path}: embed_tokens.weight has {embedded} rows, none for the token {str(start_token_id)[:20]} "
            "(decoder_start_token_id)."
        )
    sizes = dict(
        text_vocab_size=text_vocabulary,
        text_length=text_length,
        image_vocab_size=min(IMAGE_TOKENS, embedded - 1),
        image_length=image_length,
        encoder_layers=encoder.count("layers."),
        decoder_layers=decoder.count("layers."),
        num_heads=heads,
        hidden_size=hidden,
        ffn_size=ffn,
        embedded_image_tokens=embedded,
        start_token_id=start_token_id,
    )
    for theirs, ours in SAID.items():
        if theirs in said and said[theirs] != sizes[ours]:
            raise ModelError(
                f"{config}: {theirs} is {str(said[theirs])[:20]}, but the weights have {sizes[ours]}. The two files do "
                "not belong together."
            )
    prior = empty_prior(**sizes)
    fill(prior, encoder, decoder)
    return prior


def empty_prior(**config) -> BartPrior:
    """The structure alone: no memory, no random numbers."""
    with torch.device("meta"):
        return BartPrior(**config).eval()


def fill(prior: BartPrior, encoder: Tensors, decoder: Tensors) -> None:
    """Gives the prior the tensors of both files, in the files' dtype."""
    config, state = prior.config, {}
    width, ffn = config.hidden_size, config.ffn_size

    def norm(ours, file, theirs, size=width, scale=True):
        """A norm before a linear layer has no scale in these files (flax: use_scale=False): ones."""
        state[f"{ours}.bias"] = file.take(f"{theirs}.bias", size)
        state[f"{ours}.weight"] = file.take(f"{theirs}.weight", size) if scale else torch.ones_like(state[f"{ours}.bias"])

    def attention(ours, file, theirs):
        q, k, v, state[f"{ours}.out.weight"] = (
            file.take(f"{theirs}.{part}_proj.weight", width, width) for part in ("q", "k", "v", "out")
        )
        if ours.endswith("cross_attn"):
            state[f"{ours}.q.weight"], state[f"{ours}.kv.weight"] = q, torch.cat([k, v])
        else:
            state[f"{ours}.qkv.weight"] = torch.cat([q, k, v])

    for file, layers, side, cross in (
        (encoder, config.encoder_layers, "encoder", False),
        (decoder, config.decoder_layers, "decoder", True),
    ):
        for i in range(layers):
            ours, theirs = f"{side}.{i}", f"layers.{i}"
            norm(f"{ours}.pre_self_attn_ln", file, f"{theirs}.pre_self_attn_layer_norm", scale=False)
            attention(f"{ours}.self_attn", file, f"{theirs}.self_attn")
            norm(f"{ours}.self_attn_ln", file, f"{theirs}.self_attn_layer_norm")
            if cross:
                norm(f"{ours}.pre_cross_attn_ln", file, f"{theirs}.pre_encoder_attn_layer_norm", scale=False)
                attention(f"{ours}.cross_attn", file, f"{theirs}.encoder_attn")
                norm(f"{ours}.cross_attn_ln", file, f"{theirs}.encoder_attn_layer_norm")
            norm(f"{ours}.glu.ln0", file, f"{theirs}.glu.ln0", scale=False)
            norm(f"{ours}.glu.ln1", file, f"{theirs}.glu.ln1", ffn, scale=False)
            gate, value = (file.take(f"{theirs}.glu.{part}.weight", ffn, width) for part in ("fc0", "fc1"))
            state[f"{ours}.glu.gate_and_value.weight"] = torch.cat([gate, value])
            state[f"{ours}.glu.out.weight"] = file.take(f"{theirs}.glu.fc2.weight", width, ffn)
        norm(f"{side}_ln", file, "final_ln", scale=False)

    for file, ours, rows, positions in (
        (encoder, "text", config.text_vocab_size, config.text_length),
        (decoder, "image", config.embedded_image_tokens, config.image_length),
    ):
        state[f"{ours}_embedding.weight"] = file.take("embed_tokens.weight", rows, width)
        state[f"{ours}_position.weight"] = file.take("embed_positions.weight", positions, width)
        norm(f"{ours}_ln", file, "layernorm_embedding")
    head = decoder.take("lm_head.weight", config.embedded_image_tokens, width)
    state["head.weight"] = head[: config.image_vocab_size].clone()  # the rest is never sampled
    encoder.finish()
    decoder.finish()
    prior.load_state_dict(state, strict=True, assign=True)


def text_tokenizer(vocab: Path, merges: Path) -> PreTrainedTokenizerFast:
    """Byte-pair merges of words that begin with "Ġ"; the text must have gone through `text_normalizer.min_dalle`."""
    vocabulary = read_json(vocab)
    vocabulary.pop("<mask>", None)  # BART's, which no text contains; its id may lie beyond the prior's
    lines = need(merges).read_text(encoding="utf-8").split("\n")[1:-1]
    pairs = [tuple(line.split()) for line in lines]
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ModelError(f"{merges} is not a list of merges, two parts a line. Download it again.")
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, unk_token="<unk>"))
        # min-dalle cuts at spaces only, and drops what is empty between two.
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Replace(Regex(" +"), " "), normalizers.Replace(Regex("^ | $"), "")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="Ġ", prepend_scheme="always", split=True)
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[(mark, vocabulary[mark]) for mark in ("<s>", "</s>")]
        )
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelError(f"{vocab} and {merges} do not fit each other ({error}). Download them again.") from None
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    check_golden(tokenizer, "min-dalle", GOLDEN, vocab)
    return tokenizer


def check_golden(tokenizer, normalizer: str, golden: dict[str, list[int]], path: Path) -> None:
    """Warns when a vocabulary of the published size gives other ids than were published: prompts would be misread."""
    if len(tokenizer) < 50_000:
        return
    for prompt, ids in golden.items():
        ours = tokenizer(NORMALIZERS[normalizer](prompt))["input_ids"]
        if ours != ids:
            log.warning("%s: %r gives the ids %s, where %s were published.", path, prompt, ours, ids)
