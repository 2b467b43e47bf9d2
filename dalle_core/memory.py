"""What fits into memory: asked before a model is loaded, and before candidates are sampled."""

import shutil
from pathlib import Path

import psutil
import torch

from dalle_core.errors import ModelError

RESERVE = 0.85  # the share of the free memory that is planned with
CGROUP = Path("/sys/fs/cgroup")  # a container's own limit, which the machine's figures do not show


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    try:
        limit = int((CGROUP / "memory.max").read_text())
        free = min(free, limit - int((CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, or no limit ("max")
        pass
    return max(free, 0)


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def check_model(name: str, parameters: int, dtype: torch.dtype, device: torch.device) -> None:
    """Raises ModelError with the numbers when a model's weights will not fit."""
    needed, free = parameters * dtype.itemsize, free_bytes(device)
    if needed > free * RESERVE:
        smaller = "" if dtype.itemsize == 2 else f" bfloat16 would take {gigabytes(parameters * 2)} (--dtype bfloat16)."
        raise ModelError(
            f"{name} takes {gigabytes(needed)} in {str(dtype).removeprefix('torch.')}, and {gigabytes(free)} are free on "
            f"{device}.{smaller} Close other programs, or choose a smaller model."
        )


def check_disk(folder: Path, needed: int, purpose: str) -> None:
    """Raises ModelError with the numbers when `needed` bytes do not fit beside `folder`."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ModelError(
            f"{purpose} takes {gigabytes(needed)}, and {gigabytes(free)} are free at {folder}. Free some space, or set "
            "HF_HOME to a folder on another disk."
        )


def candidate_bytes(config, itemsize: int, prompts: int) -> int:
    """Of one candidate while it is drawn: keys and values of every layer, for `prompts` prompts (two when guided)."""
    layers, length = config.get("decoder_layers"), config.image_length
    if layers is None:  # a decoder-only prior keeps the text with each row
        layers, length = config.num_layers, config.image_length + config.text_length
    cache = 2 * layers * length * config.hidden_size * itemsize
    logits = 6 * config.image_vocab_size * 8  # sampling works in float64
    return prompts * cache + logits


def chunk_that_fits(config, itemsize: int, prompts: int, device: torch.device, most: int) -> int:
    """How many candidates can be drawn together: `most`, or what the free memory holds, at least one."""
    return max(1, min(most, int(free_bytes(device) * RESERVE / 2 // candidate_bytes(config, itemsize, prompts))))
