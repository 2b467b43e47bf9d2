"""Files of published models, written by the peers' own code with random weights, and what the peers compute from them."""

import json
import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from torch import nn

import dalle_core
from dalle_core import DallePipeline

ABSENT = ("pre_self_attn_layer_norm.weight", "pre_encoder_attn_layer_norm.weight", "ln0.weight", "ln1.weight", "final_ln.weight")


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
        config = {"d_model": width, "encoder_layers": layers, "decoder_layers": layers, "encoder_attention_heads": heads,
                  "decoder_attention_heads": heads, "encoder_ffn_dim": ffn, "decoder_ffn_dim": ffn, "image_length": 256,
                  "encoder_vocab_size": text_vocab, "image_vocab_size": 16384, "max_text_length": 64,
                  "decoder_start_token_id": 16384}  # fmt: skip
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
                torch.tensor([1.0, 1.0, scale]), attention_mask=mask, encoder_state=states, attention_state=cache,
                prev_tokens=previous, token_index=torch.tensor([i]),
            )  # fmt: skip
            tokens.append(token)
            previous = token[:, None]
        return torch.cat(tokens)


os.environ.setdefault("JAX_PLATFORMS", "cpu")
