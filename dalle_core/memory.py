"""What fits into memory: asked before a model is loaded, and before candidates are sampled."""

import ctypes
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from dalle_core.errors import InputError, ModelError

RESERVE = 0.85  # the share of the free memory that is planned with
CGROUP = Path("/sys/fs/cgroup")  # a container's own limit, which the machine's figures do not show


def free_bytes(device: torch.device) -> int:
    """Memory that can still be taken on the device."""
    if device.type == "cuda":  # what PyTorch keeps for the next tensors is free, too
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    free = psutil.virtual_memory().available
    try:
        limit = int((CGROUP / "memory.max").read_text(encoding="utf-8"))
        free = min(free, limit - int((CGROUP / "memory.current").read_text(encoding="utf-8")))
    except (OSError, ValueError):  # no container, or no limit ("max")
        pass
    return max(free, 0)


def give_back() -> None:
    """Hands memory that was freed back to the system. glibc keeps what lies between pieces in use: gigabytes, after the
    weights of a large model were arranged anew one by one."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def check_model(name: str, parameters: int, dtype: torch.dtype, device: torch.device, freed: int = 0) -> None:
    """Raises ModelError with the numbers when a model's weights will not fit; `freed` bytes will be free by then."""
    needed, free = parameters * dtype.itemsize, free_bytes(device) + freed
    if needed > free * RESERVE:
        smaller = "" if dtype.itemsize == 2 else f" bfloat16 would take {gigabytes(parameters * 2)} (--dtype bfloat16)."
        raise ModelError(
            f"{name} takes {gigabytes(needed)} in {str(dtype).removeprefix('torch.')}, and {gigabytes(free)} are free on "
            f"{device}.{smaller} Close other programs, or choose a smaller model."
        )


def check_conversion(name: str, needed: int) -> None:
    """Raises ModelError with the numbers when a published model cannot be converted here."""
    free = free_bytes(torch.device("cpu"))
    if needed > free * RESERVE:
        raise ModelError(
            f"Converting {name} takes {gigabytes(needed)} of memory, once, and {gigabytes(free)} are free. Close other "
            "programs, or convert it on a larger machine (python -m dalle_core convert) and copy the folder."
        )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Of CUDA, of MPS and cuBLAS, of the CPU."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(
        sign in text for sign in ("out of memory", "ALLOC_FAILED", "can't allocate memory")
    )


def too_little(device: torch.device) -> InputError:
    """What to say when not even one candidate can be drawn."""
    return InputError(
        f"There is not enough memory to draw even one candidate: {gigabytes(free_bytes(device))} are free on {device}. Close "
        "other programs, or load the model in a smaller dtype."
    )


def by_halves(compute, rows, device: torch.device) -> list:
    """compute(rows), a list with an entry for each row; after an out-of-memory, that of each half in turn.

    Raises InputError with the numbers when one row is too many.
    """
    try:
        return compute(rows)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Outside: the traceback would keep the memory.
    if len(rows) == 1:
        raise too_little(device)
    half = len(rows) // 2
    return by_halves(compute, rows[:half], device) + by_halves(compute, rows[half:], device)


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
    width = config.hidden_size * config.get("num_kv_heads", config.num_heads) // config.num_heads  # of its keys
    cache = 2 * layers * length * width * itemsize
    logits = 6 * config.image_vocab_size * 8  # sampling works in float64
    return prompts * cache + logits


def chunk_that_fits(config, itemsize: int, prompts: int, device: torch.device, most: int) -> int:
    """How many candidates can be drawn together: `most`, or what the free memory holds, at least one."""
    return _chunk(free_bytes(device), candidate_bytes(config, itemsize, prompts), most)


def _chunk(free: int, size: int, most: int) -> int:
    return max(1, min(most, int(free * RESERVE / 2 // size)))


class Shares:
    """What is free, divided among drawings that go on at once: each plans with what those before it leave."""

    def __init__(self):
        self._lock = threading.Lock()
        self._planned = 0  # bytes, by those that go on
        self._free = 0  # bytes that were free when nobody drew

    @contextmanager
    def chunk(self, config, itemsize: int, prompts: int, device: torch.device, most: int) -> Iterator[int]:
        """As `chunk_that_fits`, for as long as this is held."""
        size = candidate_bytes(config, itemsize, prompts)
        with self._lock:
            free = free_bytes(device)
            if not self._planned:
                self._free = free
            # Of what the others plan, some is taken already and no longer free.
            count = _chunk(min(free, self._free - self._planned), size, most)
            self._planned += count * size
        try:
            yield count
        finally:
            with self._lock:
                self._planned -= count * size
