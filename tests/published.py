"""Files of published models, written by the peers' own code with random weights, and what the peers compute from them."""

import json
import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import JanusConfig, JanusForConditionalGeneration

import dalle_core
from dalle_core import DallePipeline
from dalle_core.checkpoints import janus

ABSENT = (
    "pre_self_attn_layer_norm.weight",
    "pre_encoder_attn_layer_norm.weight",
    "ln0.weight",
    "ln1.weight",
    "final_ln.weight",
)


def load_published(folder: Path, tmp_path_factory) -> DallePipeline:
    """`load` of a published folder, without CLIP, with a cache of its own for the converted copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HOME", str(tmp_path_factory.mktemp("home")))
        return dalle_core.load(folder, device="cpu", clip="none")


def import_min_dalle():
    """min-dalle's modules. Importing the package turns gradients off and sets the threads; both are set back."""
    grad, threads = torch.is_grad_enabled(), torch.get_num_threads()
    import min_dalle.models
    import min_dalle.text_tokenizer

    torch.set_grad_enabled(grad)
    torch.set_num_threads(threads)
    return min_dalle


def randomise(module: nn.Module, keys_of_ones=()) -> None:
    """Random weights of a size at which everything matters, rounded to float16 as the published files are."""
    for key, value in module.state_dict().items():
        norm = key.endswith(("norm.weight", "_ln.weight", "layernorm_embedding.weight")) or ".norm" in key
        scale = 0.3 if norm else value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
        if key.endswith(keys_of_ones):
            value.fill_(1.0)
        else:
            value.normal_(std=scale)
            if norm and key.endswith("weight"):
                value.add_(1.0)
        value.copy_(value.half().float())


def vocabulary(folder: Path, suffix: str = "") -> None:
    """A byte-pair vocabulary in the published form: the marks, every printable ASCII character, some merges."""
    merges = ["Ġ a", "c a", "ca t", "Ġ ca", "f o", "fo x", "Ġ fox", "t h", "th e", "Ġ the", "r e", "re d", "Ġ red", "o n"]
    pieces = ["<s>", "<pad>", "</s>", "<unk>"] + [chr(c) for c in range(33, 127)] + ["Ġ"]
    pieces += [merge.replace(" ", "") for merge in merges]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    (folder / f"vocab{suffix}.json").write_text(json.dumps(vocab), encoding="utf-8")
    (folder / f"merges{suffix}.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


class MinDalleFiles:
    """A folder of min-dalle with random weights, and the modules that they came from. Sizes: a small mini."""

    def __init__(self, folder: Path, width=128, ffn=344, layers=2, text_vocab=120, detoker=True, suffix="_mini"):
        self.package = import_min_dalle()
        self.width, self.layers, self.folder, self.suffix = width, layers, folder, suffix
        models, heads = self.package.models, width // 64
        torch.manual_seed(0)
        self.encoder = models.DalleBartEncoder(layers, width, heads, text_vocab, 64, ffn, "cpu").eval()
        self.decoder = models.DalleBartDecoder(16384, width, heads, ffn, layers, "cpu").eval()
        with torch.no_grad():
            for module in (self.encoder, self.decoder):
                randomise(module, ABSENT)
        folder.mkdir(parents=True, exist_ok=True)
        vocabulary(folder, suffix)
        config = {
            "d_model": width,
            "encoder_layers": layers,
            "decoder_layers": layers,
            "encoder_attention_heads": heads,
            "decoder_attention_heads": heads,
            "encoder_ffn_dim": ffn,
            "decoder_ffn_dim": ffn,
            "image_length": 256,
            "encoder_vocab_size": text_vocab,
            "image_vocab_size": 16384,
            "max_text_length": 64,
            "decoder_start_token_id": 16384,
        }
        (folder / f"config{suffix}.json").write_text(json.dumps(config), encoding="utf-8")
        for name, module in (("encoder", self.encoder), ("decoder", self.decoder)):
            state = OrderedDict((k, v.half()) for k, v in module.state_dict().items() if not k.endswith(ABSENT))
            torch.save(state, folder / f"{name}{suffix}.pt")
        if detoker:
            self.detoker = models.VQGanDetokenizer().eval()
            with torch.no_grad():
                randomise(self.detoker)
            for module in self.detoker.modules():
                if isinstance(module, nn.GroupNorm):
                    module.eps = 1e-6  # what the weights were trained with; min-dalle takes PyTorch's default
            torch.save(self.detoker.state_dict(), folder / "detoker.pt")

    @torch.no_grad()
    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        return self.encoder.forward(ids)

    @torch.no_grad()
    def logits(self, ids: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """ids [1, 64] and tokens [1, n] -> the logits [n + 1, 16384] of each next token, by min-dalle's cached steps."""
        # Its decoder takes [uncond, cond] rows; here both are the same prompt.
        ids = ids.expand(2, -1)
        states, mask = self.encoder.forward(ids), ids.not_equal(1)[:, None, None, :]
        cache = torch.zeros(self.layers, 4, 256, self.width)
        previous, rows = torch.cat([torch.tensor([[16384]]), tokens], dim=1), []
        for i in range(previous.shape[1]):
            logits, cache = self.decoder.forward(mask, states, cache, previous[:, [i]], torch.tensor([i]))
            rows.append(logits[1, -1, :16384].clone())
        return torch.stack(rows)

    @torch.no_grad()
    def greedy(self, ids: torch.Tensor, null: torch.Tensor, scale: float, steps: int) -> torch.Tensor:
        """The most likely tokens [steps] under guidance, by its own sample_tokens with top_k 1."""
        ids = torch.cat([null, ids])
        states, mask = self.encoder.forward(ids), ids.not_equal(1)[:, None, None, :]
        cache = torch.zeros(self.layers, 4, 256, self.width)
        tokens, previous = [], torch.tensor([[16384]])
        for i in range(steps):
            token, cache = self.decoder.sample_tokens(
                torch.tensor([1.0, 1.0, scale]),
                attention_mask=mask,
                encoder_state=states,
                attention_state=cache,
                prev_tokens=previous,
                token_index=torch.tensor([i]),
            )
            tokens.append(token)
            previous = token[:, None]
        return torch.cat(tokens)


class JanusFiles:
    """A tiny Janus of transformers' own with random weights, and the tokenizer of its kind: byte-level merges and marks."""

    MARKS = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "ö", "<｜▁pad▁｜>", "<begin_of_image>", "<end_of_image>"]
    ROLES = ["<image_placeholder>", "<|User|>", "<|Assistant|>"]

    def __init__(self, width=64, heads=4, kv_heads=4, grid=4):
        text = {
            "hidden_size": width,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "vocab_size": 320,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 512,
        }
        vision = {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "image_size": 16 * grid,
            "patch_size": 16,
            "projection_dim": width,
            "num_image_tokens": grid * grid,
        }
        codes = {
            "embed_dim": 8,
            "num_embeddings": 64,
            "latent_channels": 32,
            "base_channels": 32,
            "num_res_blocks": 1,
            "channel_multiplier": [1, 1, 1, 1, 2],
            "projection_dim": width,
            "image_token_embed_dim": width,
        }
        self.tokenizer = self._tokenizer()
        ids = dict(zip(("bos_token_id", "eos_token_id", "pad_token_id"), self._ids(*self.MARKS[:2], self.MARKS[3])))
        config = JanusConfig(
            text_config=text | ids,
            vision_config=vision,
            vq_config=codes,
            tie_word_embeddings=False,
            image_token_id=self._ids(self.ROLES[0])[0],
        )
        torch.manual_seed(0)
        self.model = JanusForConditionalGeneration(config).eval()
        with torch.no_grad():
            randomise(self.model)
            self.model.model.generation_head.vision_head.weight.mul_(8)  # far from uniform
            for layer in self.model.model.language_model.layers:  # so that all tokens before matter, not the last alone
                layer.self_attn.q_proj.weight.mul_(3)
                layer.self_attn.o_proj.weight.mul_(6)
        generation = self.model.generation_config
        generation.bos_token_id, generation.eos_token_id, generation.pad_token_id = ids.values()
        generation.generation_kwargs = {"boi_token_id": self._ids("<begin_of_image>")[0]}

    def _ids(self, *marks: str) -> list[int]:
        return [self.tokenizer.get_vocab()[mark] for mark in marks]

    def _tokenizer(self) -> Tokenizer:
        """With a vocabulary of less than the model's 320, as the published ones are."""
        tokenizer = ByteLevelBPETokenizer(add_prefix_space=False)
        tokenizer.train_from_iterator(["a red fox and a cat, in the snow"] * 3, 300, show_progress=False)
        tokenizer.add_tokens(["ö"])  # an added token that is no mark, as the 7B's tokenizer has
        tokenizer.add_special_tokens([mark for mark in self.MARKS + self.ROLES if mark != "ö"])
        bos = self.MARKS[0]
        tokenizer._tokenizer.post_processor = TemplateProcessing(
            f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
        return tokenizer._tokenizer

    def save_transformers(self, folder: Path, dtype=torch.float32, **settings) -> Path:
        """transformers' layout."""
        self.model.to(dtype).save_pretrained(folder, **settings)
        self.model.float()
        self.tokenizer.save(str(folder / "tokenizer.json"))
        return folder

    def original(self) -> dict[str, torch.Tensor]:
        """The tensors as DeepSeek's layout names them, with those that nothing reads (its janus/models)."""
        names = {ours: theirs for theirs, ours in janus.BEGINNINGS.items()}
        state, found = self.model.state_dict(), {}
        for key, value in state.items():
            key = key.removeprefix("model.")
            if key.startswith("vision") and (".k_proj." in key or ".v_proj." in key):
                continue  # in one with q
            if key.startswith("vision") and ".q_proj." in key:
                value = torch.cat([state["model." + key.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"])
                key = key.replace(".self_attn.q_proj.", ".attn.qkv.")
            if key.startswith("vqmodel."):
                for old, new in (
                    ("mid.block_1", "mid.0"),
                    ("mid.attn_1", "mid.1"),
                    ("mid.block_2", "mid.2"),
                    (".block.", ".res."),
                    ("encoder.down.", "encoder.conv_blocks."),
                    ("decoder.up.", "decoder.conv_blocks."),
                ):
                    key = key.replace(old, new)
            start = next(name for name in names if key.startswith(name))
            key = names[start] + key[len(start) :]
            key = key.replace(".layer_norm1.", ".norm1.").replace(".layer_norm2.", ".norm2.")
            key = key.replace(".self_attn.projection_layer.", ".attn.proj.") if key.startswith("vision") else key
            found[key] = value[None] if key.endswith("pos_embed") else value
        found["vision_model.vision_tower.attn_pool.q.weight"] = torch.zeros(64, 64)
        found["gen_vision_model.quantize.codebook_used"] = torch.zeros(65536)
        return found

    def save_original(self, folder: Path, dtype=torch.float32, kind="bin", language: dict | None = None, roles=True) -> Path:
        """DeepSeek's layout. kind: "bin", "shards" (of .bin) or "safetensors"; language: its language_config."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {key: value.to(dtype).contiguous() for key, value in self.original().items()}
        text = self.model.config.text_config
        if language is None:
            language = {
                "hidden_size": text.hidden_size,
                "num_attention_heads": text.num_attention_heads,
                "model_type": "llama",
                "num_key_value_heads": text.num_key_value_heads,
                "num_hidden_layers": 2,
                "vocab_size": 320,
                "intermediate_size": 96,
                "_attn_implementation": "flash_attention_2",
            }
        config = {
            "model_type": "multi_modality",
            "torch_dtype": "bfloat16",
            "language_config": language,
            "vision_config": {"cls": "CLIPVisionTower", "params": {"image_size": 384}},
            "gen_vision_config": {"cls": "VQ-16"},
        }
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        marks = {"bos_token": self.MARKS[0]} | ({"additional_special_tokens": self.ROLES} if roles else {})
        (folder / "special_tokens_map.json").write_text(json.dumps(marks), encoding="utf-8")
        self.tokenizer.save(str(folder / "tokenizer.json"))
        if kind == "safetensors":
            save_file(state, folder / "model.safetensors")
        elif kind == "bin":
            torch.save(state, folder / "pytorch_model.bin")
        else:
            keys = sorted(state)
            shards = {f"pytorch_model-0000{i + 1}-of-00002.bin": keys[i::2] for i in range(2)}
            for name, part in shards.items():
                torch.save({key: state[key] for key in part}, folder / name)
            index = {"weight_map": {key: name for name, part in shards.items() for key in part}}
            (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
        return folder


os.environ.setdefault("JAX_PLATFORMS", "cpu")
