"""Models by name, folder or Hub id, loaded strictly: every key accounted for, and no code from a checkpoint."""

import json
from pathlib import Path

import torch
from diffusers import VQModel
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from dalle_core.errors import ModelError
from dalle_core.gpt_prior import GPTPrior
from dalle_core.pipeline import DallePipeline

EMBEDDED = {"emoji": Path(__file__).parent.parent / "assets" / "emoji"}

# Each component with weights: how its structure follows from its config, and the file that holds its weights.
MODELS = {
    "image_tokenizer": (VQModel, "diffusion_pytorch_model.safetensors"),
    "prior": (GPTPrior, "diffusion_pytorch_model.safetensors"),
    "clip": (CLIPModel, "model.safetensors"),
}


def load(source: str, device: str | None = None, dtype: torch.dtype | None = None) -> DallePipeline:
    """A name of the catalogue ("emoji"), a folder that `save_pretrained` wrote, or a Hub id of such a folder.

    device None: CUDA, else Apple's MPS, else the CPU. dtype None: float32 on the CPU and MPS, bfloat16 on CUDA. Raises
    ModelError naming the file (and the key) when something is missing, damaged, unexpected or misshapen.
    """
    device = _device(device)
    folder = EMBEDDED.get(str(source)) or Path(source)
    if not folder.is_dir():
        folder = _download(str(source))
    if dtype is None:
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32

    index = _read_json(folder / "model_index.json")
    if index.get("_class_name") != "DallePipeline":
        raise ModelError(f"{folder / 'model_index.json'} describes a {index.get('_class_name')}, not a DallePipeline.")
    components = {name: _load_model(folder / name, *MODELS[name], dtype).eval() for name in MODELS}
    for name, file in (("text_tokenizer", "tokenizer.json"), ("clip_processor", "preprocessor_config.json")):
        _read_json(folder / name / file)  # transformers would load a folder without it, and without a word
    try:
        components["text_tokenizer"] = PreTrainedTokenizerFast.from_pretrained(folder / "text_tokenizer")
        components["clip_processor"] = CLIPImageProcessorPil.from_pretrained(folder / "clip_processor")
    except Exception as error:
        raise ModelError(f"{folder}: the text tokenizer or the CLIP processor cannot be read ({error}).") from None
    settings = {key: index[key] for key in ("name", "defaults", "examples") if key in index}
    pipe = DallePipeline(**components, **settings)
    _check_sizes(pipe, folder)
    return pipe.to(device)


def _load_model(folder: Path, cls, file: str, dtype: torch.dtype):
    config = _read_json(folder / "config.json")
    try:
        with torch.device("meta"):  # the structure alone: no memory, no random numbers
            model = CLIPModel(CLIPConfig(**config)) if cls is CLIPModel else cls.from_config(config)
    except Exception as error:
        raise ModelError(f"{folder / 'config.json'} does not describe a {cls.__name__}: {error}") from None
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    path = folder / file
    if not path.is_file():
        raise ModelError(f"{path} is missing: the model folder is not complete. Download or save it again.")
    try:
        with safe_open(path, "pt") as weights:
            found = {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}
            for key, shape in expected.items():
                if key not in found:
                    raise ModelError(f"{path}: the key {key} is missing. The file belongs to another model or is damaged.")
                if found[key] != shape:
                    raise ModelError(
                        f"{path}: {key} has the shape {list(found[key])}, config.json asks for {list(shape)}."
                    )
            for key in found.keys() - expected.keys():
                raise ModelError(f"{path}: the key {key} is unexpected. The file belongs to another model.")
            state = {key: weights.get_tensor(key).to(dtype) for key in expected}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read ({error}). It is damaged or incomplete: download it again.") from None
    model.load_state_dict(state, strict=True, assign=True)
    for name, buffer in list(model.named_buffers()):  # what follows from the config is not in the file
        if buffer.is_meta:
            parent, _, leaf = name.rpartition(".")
            if leaf != "position_ids":
                raise ModelError(f"{path}: no value for the buffer {name}.")
            positions = torch.arange(buffer.shape[-1]).expand(buffer.shape)
            model.get_submodule(parent).register_buffer(leaf, positions, persistent=False)
    return model


def _check_sizes(pipe: DallePipeline, folder: Path) -> None:
    """Components that do not belong together."""
    codes, vocabulary = pipe.image_tokenizer.config.num_vq_embeddings, pipe.codebook_size
    if codes != vocabulary:
        raise ModelError(f"{folder}: the image tokenizer has {codes} codes, the prior {vocabulary}. They do not match.")
    texts = pipe.prior.config.text_vocab_size
    if len(pipe.text_tokenizer) > texts:
        raise ModelError(f"{folder}: the text tokenizer has {len(pipe.text_tokenizer)} tokens, the prior only {texts}.")


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing: this is not a complete model folder.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}). Download or save it again.") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} must hold a JSON object.")
    return content


def _device(device: str | None) -> torch.device:
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device is None:
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ModelError(f"There is no device {device!r}; use cpu, cuda, cuda:1 or mps.") from None
    if found.type == "cuda" and (not cuda or (found.index or 0) >= torch.cuda.device_count()):
        raise ModelError(f"The device {device!r} is not there: PyTorch sees {torch.cuda.device_count()} CUDA devices.")
    if found.type == "mps" and not mps:
        raise ModelError("The device 'mps' is not there: it needs a Mac with Apple silicon.")
    if found.type not in ("cpu", "cuda", "mps"):
        raise ModelError(f"The device {device!r} is not supported; use cpu, cuda or mps.")
    return found


def _download(source: str) -> Path:
    """A Hub repository in this project's layout, from the cache when there is no network."""
    known = ", ".join(EMBEDDED)
    if source in EMBEDDED or source.count("/") != 1 or Path(source).is_absolute() or source.startswith("."):
        raise ModelError(f"There is no model {source!r}: give a folder, a Hub id (owner/name) or one of: {known}.")
    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.md"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"{source!r} is not a folder here, and the Hub gave no such model: {reason}") from None
