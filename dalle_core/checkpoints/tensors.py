"""Reading weights from foreign files: strictly, safely, and with errors that name file and key."""

import json
import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from dalle_core.errors import ModelError

LAYERS = 1000  # more than any model has: a file's keys may name as many as they like, and each takes time and memory
JSON_BYTES = 2**26  # a text vocabulary, the longest of them, takes a few times 2**20


class Tensors:
    """The tensors of one file, taken one by one with the shape each must have; what is left at the end is an error.

    said: for tensors under another name than their file's, or of several files, what errors say instead of path and key.
    """

    def __init__(self, path: Path, tensors: dict[str, torch.Tensor], said: dict[str, str] | None = None):
        self.path, self.tensors, self._said = path, dict(tensors), said or {}

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def shape(self, key: str, dimensions: int) -> tuple[int, ...]:
        """The shape of a tensor from which sizes are read. Raises ModelError when it is missing or has other dimensions."""
        self._present(key)
        shape = tuple(self.tensors[key].shape)
        if len(shape) != dimensions or 0 in shape:
            raise ModelError(f"{self.name(key)} has the shape {list(shape)}; {dimensions} dimensions were expected.")
        return shape

    def take(self, key: str, *shape: int) -> torch.Tensor:
        """Raises ModelError when the tensor is missing, has another shape, or holds NaN or infinity."""
        self._present(key)
        tensor = self.tensors.pop(key)
        if tuple(tensor.shape) != shape:
            raise ModelError(f"{self.name(key)} has the shape {list(tensor.shape)}; {list(shape)} was expected.")
        if not tensor.is_floating_point():
            raise ModelError(f"{self.name(key)} holds {tensor.dtype}, not floating-point numbers.")
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{self.name(key)} holds NaN or infinity. The file is damaged: download it again.")
        return tensor.contiguous()

    def finish(self) -> None:
        """Raises ModelError when a tensor was not taken."""
        if self.tensors:
            path, _, key = self.name(min(self.tensors)).rpartition(": ")
            raise ModelError(f"{path}: the key {key} is unexpected ({len(self.tensors)} of them). It is another model.")

    def count(self, prefix: str) -> int:
        """How many of `prefix`0, `prefix`1, ... there are. Raises ModelError when no model has so many."""
        found = numbered(self.tensors, prefix)
        if found > LAYERS:
            raise ModelError(f"{self.path}: it has {found} of {prefix}0, {prefix}1, …; no model has more than {LAYERS}.")
        return found

    def name(self, key: str) -> str:
        """The file and the key, as errors name them."""
        return self._said.get(key, f"{self.path}: {key}")

    def _present(self, key: str) -> None:
        if key not in self.tensors:
            raise ModelError(f"{self.path}: the key {key} is missing. The file is of another model, or damaged.")


def numbered(keys, prefix: str) -> int:
    """How many of `prefix`0, `prefix`1, ... the keys begin with."""
    numbers = {key[len(prefix) :].split(".")[0] for key in keys if key.startswith(prefix)}
    return sum(number.isdecimal() for number in numbers)


def read_torch(path: Path, *inside: str) -> Tensors:
    """A file that `torch.save` wrote: a flat dict of tensors, or the one under the first of the keys `inside` that it has.
    Runs no code from it."""
    need(path)
    try:
        if zipfile.is_zipfile(path):  # PyTorch does not check the sums that the file holds
            with zipfile.ZipFile(path) as archive:
                # torch.save does not compress, so there is no more to read than the file is long.
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                    raise ModelError(f"{path} is compressed: torch.save never wrote it. Download it again.")
                if bad := archive.testzip():
                    raise ModelError(f"{path} is damaged at {bad} (wrong checksum): download it again.")
        # Mapped: what is copied into a model is read from the file, not held twice.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except ModelError:
        raise
    except Exception as error:  # from pickle, zip and torch: dozens of kinds
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        text = f"{path} cannot be read as weights ({reason}). It is damaged, or holds more than weights."
        if inside and isinstance(error, pickle.UnpicklingError):  # a whole training state, perhaps
            text += (
                " If you trust where it comes from, keep its weights alone, once; this runs what is in it: python -c 'import "
                f'torch; f = "{path}"; w = torch.load(f, "cpu", weights_only=False)["{inside[0]}"]; '
                f"""torch.save({{"{inside[0]}": w}}, f)'"""
            )
        raise ModelError(text) from None
    if inside:
        key = next((key for key in inside if isinstance(content, dict) and key in content), None)
        if key is None:
            raise ModelError(f"{path}: the key {inside[0]} is missing. It is another kind of file.")
        content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ModelError(f"{path} does not hold a dict of tensors.")
    # A tensor may claim any shape with strides of 0: nothing may be larger than the file.
    if sum(value.numel() * value.element_size() for value in content.values()) > path.stat().st_size:
        raise ModelError(f"{path} declares more numbers than it holds. It is damaged: download it again.")
    return Tensors(path, content)


def read_safetensors(path: Path) -> Tensors:
    """A file of safetensors; mapped, so that nothing is read before it is looked at."""
    try:
        with safe_open(need(path), "pt") as weights:
            return Tensors(path, {key: weights.get_tensor(key) for key in weights.keys()})
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read ({error}). It is damaged or incomplete: download it again.") from None


def weight_files(folder: Path) -> list[Path]:
    """The weights of a folder in transformers' layout: one file, or the shards that an index names. Raises ModelError when
    there are none, or not all of them."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            shards = read_json(index).get("weight_map")
            suffix = Path(name).suffix
            names = sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []
            if not names or any(Path(shard).name != shard or Path(shard).suffix != suffix for shard in names):
                raise ModelError(f"{index}: weight_map must name {suffix} files beside it. Download it again.")
            return [need(folder / shard) for shard in names]
    raise ModelError(f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin, nor an index of either.")


def read_files(paths: list[Path]) -> Tensors:
    """The tensors of one file, or of several together."""
    tensors, said, taken = {}, {}, {}
    for path in paths:
        file = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
        for key, value in file.tensors.items():
            if key in taken:
                raise ModelError(f"{path}: the key {key} is in {taken[key].name}, too. Download both again.")
            tensors[key], said[key], taken[key] = value, f"{path}: {key}", path
    return Tensors(paths[0], tensors, said)


def need(path: Path) -> Path:
    """The path. Raises ModelError when there is no such file."""
    if not path.is_file():
        raise ModelError(f"{path} is missing: the folder is not complete. Download it again.")
    return path


def read_json(path: Path) -> dict:
    """The object in a file. Raises ModelError when there is none, or the file is longer than any of a model."""
    try:
        if need(path).stat().st_size > JSON_BYTES:
            raise ModelError(f"{path} is longer than any of a model ({JSON_BYTES // 2**20} MB). Download or save it again.")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}). Download or save it again.") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} must hold a JSON object.")
    return content
