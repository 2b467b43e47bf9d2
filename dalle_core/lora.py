"""LoRA: a small change of a prior's linear layers, W + s B A with s = alpha / r (Hu et al. 2021, arXiv 2106.09685, 4.1).

Read from the folder that `peft` writes, adapter_config.json and adapter_model.safetensors, and added to the weights while they
are loaded: what draws knows nothing of it. The folder is read here and not by peft, which passes over missing keys, also takes
pickles, and needs a whole model to change; the tests compare the two.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dalle_core.checkpoints.tensors import Tensors, need, read_json
from dalle_core.errors import ModelError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every key: peft's own
JOINT = " + "  # in the name of a model with its LoRA
MOST = 4096  # a rank that no LoRA has
LARGEST = 10_000  # alpha, and targets
# What adapter_config.json may say: how it was trained, and what is read below. All else changes what is computed.
TRAINING = {
    "auto_mapping",
    "inference_mode",
    "init_lora_weights",
    "loftq_config",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
    "task_type",
}
USED = {"base_model_name_or_path", "lora_alpha", "peft_type", "r", "revision", "target_modules", "use_rslora"}
PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")  # the other starts change the model's own weights as well


@dataclass(frozen=True)
class Lora:
    """An adapter folder whose configuration has been read and checked."""

    folder: Path
    name: str  # what pictures that it draws call it
    base: str | None  # the model that it was trained for, where the folder says it
    base_revision: str | None
    rank: int
    scale: float
    targets: tuple[str, ...]  # linear layers: their names, or the ends of them

    def check_base(self, names: set[str], revision: str) -> None:
        """Raises ModelError when it was trained for another model than the one of these names, or for other weights of it."""
        if self.base and self.base not in names and Path(self.base).name not in names:
            raise ModelError(
                f"The LoRA {self.folder} was trained for the model {self.base[:100]!r}, not for {min(names)!r}: "
                "load it with that one."
            )
        if self.base_revision and self.base_revision != revision:
            raise ModelError(
                f"The LoRA {self.folder} was trained for version {self.base_revision[:40]} of {min(names)}; this is "
                f"{revision}. Train it again. If the weights differ in nothing but their dtype, take "
                f"“revision” out of its {CONFIG}."
            )

    def changes(self, prior: nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """For each weight that it changes its B [out, r] and A [r, in], in float32. Raises ModelError naming the key of
        what is missing, unexpected or misshapen."""
        path = need(self.folder / WEIGHTS)
        try:
            tensors = Tensors(path, load_file(path))
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read ({error}). It is damaged or incomplete: download it again.") from None
        changes = {}
        for name, layer in prior.named_modules():
            if isinstance(layer, nn.Linear) and any(name == end or name.endswith(f".{end}") for end in self.targets):
                a, b = f"{PREFIX}{name}.lora_A.weight", f"{PREFIX}{name}.lora_B.weight"
                b, a = tensors.take(b, layer.out_features, self.rank), tensors.take(a, self.rank, layer.in_features)
                changes[f"{name}.weight"] = b.float(), a.float()
        tensors.finish()
        if not changes:
            raise ModelError(
                f"{self.folder / CONFIG}: target_modules names no linear layer of this model. It is for another one."
            )
        return changes

    def merged(self, key: str, weight: torch.Tensor, change: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """The weight with its change, in float32. Raises ModelError when a number becomes too large."""
        b, a = change
        weight = torch.addmm(weight.float(), b, a, alpha=self.scale)
        if not torch.isfinite(weight).all():
            raise ModelError(f"{self.folder}: {key} becomes NaN or infinity with this LoRA. It is damaged: download it again.")
        return weight

    def revision(self, base: str) -> str:
        """What recipes call the changed weights: 12 hex digits, of the model's revision and of this folder's files."""
        digest = hashlib.sha256(base.encode())
        for file in (CONFIG, WEIGHTS):
            digest.update(need(self.folder / file).read_bytes())
        return digest.hexdigest()[:12]


def read_lora(folder: Path) -> Lora:
    """Reads the configuration of an adapter folder. Raises ModelError naming the file and what it should say."""
    path = folder / CONFIG
    config = read_json(path)
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{path}: peft_type is {str(config.get('peft_type'))[:40]!r}; LORA is the only one that is read.")
    for key, value in config.items():
        if key not in TRAINING | USED and value not in (None, False, "none", [], {}):
            raise ModelError(f"{path}: {key[:40]} is {str(value)[:60]!r}; only plain LoRA of linear layers is read.")
    if config.get("init_lora_weights", True) not in PLAIN_STARTS:
        start = str(config["init_lora_weights"])[:40]
        raise ModelError(f"{path}: init_lora_weights is {start!r}, which changes the model's own weights too.")
    rank, alpha, targets = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if type(rank) is not int or not 1 <= rank <= MOST:
        raise ModelError(f"{path}: r is {str(rank)[:20]!r}; it must be a whole number from 1 to {MOST}.")
    if type(alpha) not in (int, float) or not abs(alpha) <= LARGEST:  # NaN fails too
        raise ModelError(f"{path}: lora_alpha is {str(alpha)[:20]!r}; it must be a number, {LARGEST:,} at most.")
    if not isinstance(targets, list) or len(targets) > LARGEST or not all(isinstance(target, str) for target in targets):
        raise ModelError(f"{path}: target_modules must be a list of names of linear layers.")
    for key in ("base_model_name_or_path", "revision"):
        if not isinstance(config.get(key), str | None):
            raise ModelError(f"{path}: {key} must be text.")
    return Lora(
        folder,
        name_of(folder),
        config.get("base_model_name_or_path"),
        config.get("revision"),
        rank,
        alpha / (rank**0.5 if config.get("use_rslora") else rank),
        tuple(targets),
    )


def name_of(folder: Path) -> str:
    """What pictures call a LoRA: its folder's name; that of the run, whose result is a folder "lora"."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "lora" else folder.name


def lora_of(model: str) -> str:
    """The LoRA's name in that of a model; empty without one."""
    return model.rpartition(JOINT)[2] if JOINT in model else ""
