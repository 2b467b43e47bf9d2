"""LoRA in training, by `peft`: adapters beside the linear layers of a prior's blocks, and the folder that `load` opens."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from dalle_core.errors import InputError
from dalle_core.lora import PREFIX, WEIGHTS


def add_lora(prior, rank: int) -> list[nn.Parameter]:
    """Puts adapters of this rank beside all linear layers but the head, and freezes the rest. Returns what is to be trained.

    B starts as zero, so that nothing changes at first (Hu et al. 2021, section 4.1); alpha is twice the rank.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise InputError(
            "Training a LoRA takes one more package: pip install -r requirements-train.txt, or this package with its extra "
            "“train”."
        ) from None
    if rank < 1:
        raise InputError(f"--lora {rank}: the rank is a whole number from 1 on; 16 is usual.")
    names = [name for name, module in prior.named_modules() if isinstance(module, nn.Linear) and name != "head"]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), prior)
    return [p for p in prior.parameters() if p.requires_grad]


@dataclass
class Adapter:
    """The adapters of a prior, with the name and the revision of the model that they belong to."""

    prior: nn.Module
    base: str
    revision: str

    def save_pretrained(self, folder: Path) -> None:
        """Writes the folder as peft does."""
        from peft import get_peft_model_state_dict

        config = self.prior.peft_config["default"]
        config.base_model_name_or_path, config.revision, config.inference_mode = self.base, self.revision, True
        config.save_pretrained(str(folder))
        tensors = get_peft_model_state_dict(self.prior, save_embedding_layers=False)  # else it looks for the model's files
        tensors = {PREFIX + key: value.detach().to("cpu", torch.float32).contiguous() for key, value in tensors.items()}
        save_file(tensors, folder / WEIGHTS)
