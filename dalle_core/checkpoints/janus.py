"""Janus and Janus-Pro (DeepSeek: 1.3B, Pro-1B, Pro-7B, fine-tunes), in their own layout and in transformers' -> our components.

A Llama that reads text and pictures and writes both: its image tokens are LlamaPrior, its VQ-16 (LlamaGen's) a VQModel, and
what reads pictures and answers in words a Describer. config.json says which layout it is by its `model_type`:
`multi_modality` is DeepSeek's own (one .bin or several with an index, or safetensors), `janus` transformers'. Names of the
first are brought to those of the second, so that one reader serves both.
"""

import logging
import math
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from dalle_core.checkpoints import vq16
from dalle_core.checkpoints.tensors import Tensors, read_files, read_json, weight_files
from dalle_core.describer import Describer
from dalle_core.errors import ModelError
from dalle_core.priors.llama import LlamaPrior

log = logging.getLogger(__name__)

LICENCE = "DeepSeek Model License (weights; the code of Janus is MIT)"
DEFAULTS = {"num_candidates": 4, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance_scale": 5.0}
CPU_CANDIDATES = 4  # a token of the smallest takes a CPU about half a second
TEXT_LENGTH = 256  # ids of a prompt and its template; the weights have no limit below 16,384
VISION_HEAD_SIZE = 64
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<|User|>", "<|Assistant|>"
IMAGE, IMAGE_END, PLACEHOLDER = "<begin_of_image>", "<end_of_image>", "<image_placeholder>"
GOLDEN = "Hello, how are you?", [17464, 11, 946, 418, 340, 30]
SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)  # what the published demos begin with

# What config.json says of the language model's sizes, and LlamaPrior's names. The 7B's leaves out what transformers'
# LlamaConfig has as its default: of what does not follow from the weights, 32 heads.
LANGUAGE = {
    "vocab_size": "text_vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
}
HEADS = 32


def find(folder: Path) -> dict[str, Path] | None:
    """The model's files when this is a folder of Janus, else None. Raises ModelError when some of the weights are missing."""
    config = folder / "config.json"
    if not config.is_file() or read_json(config).get("model_type") not in ("multi_modality", "janus"):
        return None
    files = {"config": config, "tokenizer": folder / "tokenizer.json", "marks": folder / "special_tokens_map.json"}
    return files | {f"weights {i}": path for i, path in enumerate(weight_files(folder))}


def convert(files: dict[str, Path]) -> dict:
    """The arguments of a DallePipeline, without CLIP."""
    config = read_json(files["config"])
    original = config.get("model_type") == "multi_modality"
    weights = [path for name, path in files.items() if name.startswith("weights")]
    main, vq = read_weights(weights, original)
    tokenizer, template, question = text_tokenizer(files["tokenizer"], files["marks"], original)
    language = config.get("language_config" if original else "text_config")
    prior = convert_prior(main, language if isinstance(language, dict) else {}, files["config"])
    if max(tokenizer.get_vocab().values()) >= prior.config.text_vocab_size:
        raise ModelError(f"{files['tokenizer']} has more ids than {main.path} has rows. The two do not belong together.")
    describer = convert_describer(main, prior, config, files["config"], question)
    main.finish()
    return {
        "image_tokenizer": vq16.convert(vq),
        "text_tokenizer": tokenizer,
        "prior": prior,
        "describer": describer,
        "defaults": DEFAULTS,
        "prompt_template": template,
        "cpu_candidates": CPU_CANDIDATES,
    }


# ---------------------------------------------------------------- names


def read_weights(paths: list[Path], original: bool) -> tuple[Tensors, Tensors]:
    """(language model and picture reader in transformers' names without "model.", VQ-16 without "vqmodel.")."""
    file = read_files(paths)
    main, vq, said = {}, {}, {}
    for key, value in file.tensors.items():
        for name, part in _originals(key, value) if original else [(key.removeprefix("model."), value)]:
            said[name] = file.name(key)
            (vq if name.startswith("vqmodel.") else main)[name] = part
    short = {name: name.removeprefix("vqmodel.") for name in vq}
    codes = Tensors(paths[0], {short[name]: part for name, part in vq.items()}, {short[name]: said[name] for name in vq})
    return Tensors(paths[0], main, said), codes


# In DeepSeek's names -> in transformers', by their beginnings.
BEGINNINGS = {
    "language_model.model.": "language_model.",
    "language_model.lm_head.": "lm_head.",
    "gen_vision_model.": "vqmodel.",
    "gen_embed.": "generation_embeddings.",
    "gen_aligner.layers.0.": "generation_aligner.fc1.",
    "gen_aligner.layers.2.": "generation_aligner.hidden_layers.0.",
    "gen_head.output_mlp_projector.": "generation_head.proj_out.",
    "gen_head.vision_head.": "generation_head.vision_head.",
    "aligner.layers.0.": "aligner.fc1.",
    "aligner.layers.2.": "aligner.hidden_layers.0.",
    "vision_model.vision_tower.patch_embed.proj.": "vision_model.embeddings.patch_embedding.",
    "vision_model.vision_tower.pos_embed": "vision_model.embeddings.position_embedding.weight",
    "vision_model.vision_tower.norm.": "vision_model.post_layernorm.",
    "vision_model.vision_tower.blocks.": "vision_model.encoder.layers.",
}
UNUSED = ("vision_model.vision_tower.attn_pool.", "gen_vision_model.quantize.codebook_used")


def _originals(key: str, value: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """A tensor of DeepSeek's layout under its names in transformers': none for what is not used, three for a qkv."""
    if key.startswith(UNUSED):
        return []
    for theirs, ours in BEGINNINGS.items():
        if key.startswith(theirs):
            name = ours + key[len(theirs) :]
            break
    else:
        return [(key, value)]
    if theirs.endswith("pos_embed") and value.ndim == 3 and len(value) == 1:
        return [(name, value[0])]
    if theirs.endswith("blocks."):
        name = name.replace(".norm1.", ".layer_norm1.").replace(".norm2.", ".layer_norm2.")
        name = name.replace(".attn.proj.", ".self_attn.projection_layer.")
        if ".attn.qkv." in name and value.ndim and len(value) % 3 == 0:
            names = [name.replace(".attn.qkv.", f".self_attn.{part}_proj.") for part in "qkv"]
            return list(zip(names, value.chunk(3), strict=True))
    return [(name, value)]


# ---------------------------------------------------------------- components


def convert_prior(file: Tensors, said: dict, config: Path) -> LlamaPrior:
    """Sizes follow from the tensors, and must be what config.json says (`said`) where it says it; the heads follow from
    it."""
    vocabulary, width = file.shape("language_model.embed_tokens.weight", 2)
    codes, code_size = file.shape("generation_embeddings.weight", 2)
    ffn = file.shape("language_model.layers.0.mlp.gate_proj.weight", 2)[0]
    keys = file.shape("language_model.layers.0.self_attn.k_proj.weight", 2)[0]
    patches = file.shape("vision_model.embeddings.position_embedding.weight", 2)[0]
    heads = said.get("num_attention_heads", HEADS)
    if type(heads) is not int or heads < 1 or width % heads or (width // heads) % 2 or keys % (width // heads):
        raise ModelError(f"{config}: num_attention_heads is {str(heads)[:20]}, into which the width {width} does not go.")
    kv_heads = keys // (width // heads)
    sizes = dict(
        text_vocab_size=vocabulary,
        text_length=TEXT_LENGTH,
        image_vocab_size=codes,
        image_length=patches,
        num_layers=file.count("language_model.layers."),
        num_heads=heads,
        num_kv_heads=kv_heads,
        hidden_size=width,
        ffn_size=ffn,
        code_size=code_size,
        norm_eps=_norm_eps(said, config),
        rope_theta=_rope_theta(said, config),
    )
    if heads % kv_heads or math.isqrt(patches) ** 2 != patches:
        raise ModelError(f"{file.path}: {heads} heads of queries, {kv_heads} of keys, {patches} image tokens are no Janus.")
    for key, ours in LANGUAGE.items():
        if said.get(key) not in (None, sizes[ours]):
            raise ModelError(
                f"{config}: {key} is {str(said[key])[:20]}, but the weights have {sizes[ours]}. "
                "The two files do not belong together."
            )
    with torch.device("meta"):
        prior = LlamaPrior(**sizes).eval()
    prior.load_state_dict(_prior_state(file, prior.config, keys), strict=True, assign=True)
    return prior


def _norm_eps(said: dict, config: Path) -> float:
    eps = said.get("rms_norm_eps", 1e-6)
    if type(eps) is not float or not 0 < eps < 1:
        raise ModelError(f"{config}: rms_norm_eps is {str(eps)[:20]}; it must be a number between 0 and 1.")
    return eps


def _rope_theta(said: dict, config: Path) -> float:
    """The base of the rotary positions. Raises ModelError for another kind of them, or another activation."""
    rope = said.get("rope_parameters") if isinstance(said.get("rope_parameters"), dict) else {}
    theta = rope.get("rope_theta", said.get("rope_theta", 10_000.0))
    if type(theta) not in (int, float) or not 1 < theta < 1e12:
        raise ModelError(f"{config}: rope_theta is {str(theta)[:20]}; it must be a number above 1.")
    others = {"rope_scaling": None, "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    for key, expected in others.items():
        if said.get(key, expected) != expected:
            raise ModelError(f"{config}: {key} is {str(said[key])[:40]!r}; no published Janus has it.")
    if rope.get("rope_type", "default") != "default":
        raise ModelError(f"{config}: rope_type is {str(rope['rope_type'])[:40]!r}; no published Janus has it.")
    return float(theta)


def _prior_state(file: Tensors, config, keys: int) -> dict[str, torch.Tensor]:
    """LlamaPrior's tensors, in the file's dtype. keys: rows of each layer's keys, and of its values."""
    width, ffn, codes = config.hidden_size, config.ffn_size, config.image_vocab_size
    state = {
        "text_embedding.weight": file.take("language_model.embed_tokens.weight", config.text_vocab_size, width),
        "image_embedding.weight": file.take("generation_embeddings.weight", codes, config.code_size),
        "norm.weight": file.take("language_model.norm.weight", width),
    }
    for ours, theirs, rows, columns in (
        ("image_aligner.0", "generation_aligner.fc1", width, config.code_size),
        ("image_aligner.2", "generation_aligner.hidden_layers.0", width, width),
        ("head.0", "generation_head.proj_out", width, width),
        ("head.2", "generation_head.vision_head", codes, width),
    ):
        state[f"{ours}.weight"] = file.take(f"{theirs}.weight", rows, columns)
        state[f"{ours}.bias"] = file.take(f"{theirs}.bias", rows)
    for i in range(config.num_layers):
        ours, theirs = f"blocks.{i}", f"language_model.layers.{i}"
        state[f"{ours}.norm1.weight"] = file.take(f"{theirs}.input_layernorm.weight", width)
        state[f"{ours}.norm2.weight"] = file.take(f"{theirs}.post_attention_layernorm.weight", width)
        rows = {"q": width, "k": keys, "v": keys}
        parts = [file.take(f"{theirs}.self_attn.{part}_proj.weight", count, width) for part, count in rows.items()]
        state[f"{ours}.attn.qkv.weight"] = torch.cat(parts)
        state[f"{ours}.attn.out.weight"] = file.take(f"{theirs}.self_attn.o_proj.weight", width, width)
        parts = [file.take(f"{theirs}.mlp.{part}_proj.weight", ffn, width) for part in ("gate", "up")]
        state[f"{ours}.mlp.gate_and_value.weight"] = torch.cat(parts)
        state[f"{ours}.mlp.out.weight"] = file.take(f"{theirs}.mlp.down_proj.weight", width, ffn)
    return state


def convert_describer(file: Tensors, prior: LlamaPrior, config: dict, path: Path, question: str) -> Describer:
    """SigLIP, what brings its vectors to the language model's width, and the head that writes text."""
    patches, width = file.shape("vision_model.embeddings.position_embedding.weight", 2)
    _, channels, patch, _ = file.shape("vision_model.embeddings.patch_embedding.weight", 4)
    mlp = file.shape("vision_model.encoder.layers.0.mlp.fc1.weight", 2)[0]
    vision = config.get("vision_config") if isinstance(config.get("vision_config"), dict) else {}
    heads = vision.get("num_attention_heads", max(width // VISION_HEAD_SIZE, 1))
    if type(heads) is not int or heads < 1 or width % heads or channels != 3:
        raise ModelError(f"{path}: num_attention_heads of vision_config is {str(heads)[:20]}; the width is {width}.")
    vocabulary, hidden = prior.config.text_vocab_size, prior.config.hidden_size
    with torch.device("meta"):
        describer = Describer(
            vocab_size=vocabulary,
            hidden_size=hidden,
            question_template=question,
            num_layers=file.count("vision_model.encoder.layers."),
            num_heads=heads,
            vision_size=width,
            mlp_size=mlp,
            patch_size=patch,
            image_size=patch * math.isqrt(patches),
        ).eval()
    said_tied = config.get("model_type") == "janus" and config.get("tie_word_embeddings", True) is True
    tied = "lm_head.weight" not in file and said_tied
    names = {
        "aligner.0": "aligner.fc1",
        "aligner.2": "aligner.hidden_layers.0",
        "text_head": "lm_head",
        "tower": "vision_model",
    }
    state = {}
    for key, value in describer.state_dict().items():
        ours = next(name for name in names if key.startswith(name + "."))
        if ours == "text_head" and tied:
            state[key] = prior.text_embedding.weight.detach()
        else:
            state[key] = file.take(names[ours] + key.removeprefix(ours), *value.shape)
    describer.load_state_dict(state, strict=True, assign=True)
    return describer


# ---------------------------------------------------------------- text


def text_tokenizer(path: Path, marks: Path, original: bool) -> tuple[PreTrainedTokenizerFast, str, str]:
    """(byte-level merges, as tokenizer.json has them whatever tokenizer_config.json calls them; the template of a prompt; that
    of a question). Marks are looked up by their names: their ids differ between the sizes."""
    read_json(path)  # its errors name the file
    try:
        tokens = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelError(f"{path} is not a text tokenizer ({str(error)[:200]}).") from None
    vocabulary = tokens.get_vocab()
    for mark in (BOS, EOS, PAD, IMAGE, IMAGE_END):
        if mark not in vocabulary:
            raise ModelError(f"{path}: the token {mark} is missing. It is another model's, or damaged.")
    said = read_json(marks) if marks.is_file() else {}
    more = said.get("additional_special_tokens") or []
    more = [mark.get("content") if isinstance(mark, dict) else mark for mark in more] if isinstance(more, list) else []
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token=BOS, eos_token=EOS, pad_token=PAD)
    missing = [mark for mark in [*more, PLACEHOLDER] if mark and isinstance(mark, str) and mark not in vocabulary]
    tokenizer.add_tokens(list(dict.fromkeys(missing)), special_tokens=True)  # transformers gives them the next ids, too
    _check_golden(tokenizer, path)
    # Janus-1.3B was trained with the roles in plain words; its own special_tokens_map.json does not name them as marks.
    plain = USER not in tokenizer.get_vocab() or (original and marks.is_file() and USER not in more)
    user, assistant = ("User", "Assistant") if plain else (USER, ASSISTANT)
    return (
        tokenizer,
        f"{BOS}{user}: {{prompt}}\n\n{assistant}:{IMAGE}",
        f"{BOS}{SYSTEM}\n\n{user}: {IMAGE}{PLACEHOLDER}{IMAGE_END}\n{{prompt}}\n\n{assistant}:",
    )


def _check_golden(tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Warns when a vocabulary of the published size gives other ids than were published: prompts would be misread."""
    text, ids = GOLDEN
    if len(tokenizer) >= 100_000 and (found := tokenizer(text, add_special_tokens=False)["input_ids"]) != ids:
        log.warning("%s: %r gives the ids %s, where %s were published.", path, text, found, ids)
