"""Models by name, folder or Hub id, loaded strictly: every key accounted for, and no code from a checkpoint."""

import hashlib
import json
import math
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from diffusers import VQModel
from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from dalle_core import downloads, memory
from dalle_core import image_tokenizer as images
from dalle_core.checkpoints import dalle_mini, janus, llamagen, min_dalle, mindalle
from dalle_core.checkpoints.tensors import LAYERS, numbered, read_json, read_torch
from dalle_core.decoder import narrow, quicken
from dalle_core.describer import Describer
from dalle_core.downloads import Progress
from dalle_core.errors import InputError, ModelError
from dalle_core.image_tokenizer import OWN_CONFIG, decoder_dtype, drop_encoder, set_pixel_range
from dalle_core.int8 import quantize
from dalle_core.lora import CONFIG, JOINT, Lora, read_lora
from dalle_core.lora import WEIGHTS as LORA_WEIGHTS
from dalle_core.packed import pack
from dalle_core.pipeline import DallePipeline
from dalle_core.priors.bart import BartPrior
from dalle_core.priors.gpt import GPTPrior
from dalle_core.priors.llama import LlamaPrior
from dalle_core.priors.llamagen import LlamaGenPrior
from dalle_core.text_tokenizer import encode_pair

PACKAGE = Path(__file__).parent
# In an installed package the embedded model lies inside it, in the repository beside it.
EMBEDDED = (PACKAGE if (PACKAGE / "assets").is_dir() else PACKAGE.parent) / "assets" / "emoji"
WEIGHTS = "diffusion_pytorch_model.safetensors"
PRIORS = {prior.__name__: prior for prior in (GPTPrior, BartPrior, LlamaPrior, LlamaGenPrior)}
FORMATS = (janus, llamagen, min_dalle, dalle_mini, mindalle)
# What model_index.json says besides the components.
SETTINGS = (
    "name",
    "defaults",
    "examples",
    "text_normalizer",
    "licence",
    "labels",
    "vocabulary",
    "prompt_template",
    "cpu_candidates",
)
LARGE = 2**16  # more than a picture has pixels a side; whole numbers of a config are that or a size of the weights

# CLIPs that rank published models: small enough for a CPU, and the one that dalle-mini ranked with.
CLIP_ON_CPU = "wkcn/TinyCLIP-ViT-40M-32-Text-19M-LAION400M"
CLIP_ON_GPU = "openai/clip-vit-base-patch32"
RANKERS = {"clip": (CLIPModel, CLIPConfig), "siglip": (SiglipModel, SiglipConfig)}  # by the model_type of config.json
CLIP_FILES = ["config.json", "preprocessor_config.json", "vocab.json", "merges.txt"]
TEXT_ENCODER_FILES = ["config.json", "tokenizer.json", "model.safetensors.index.json", "model-*.safetensors"]


@dataclass(frozen=True)
class Model:
    """What is known of a model before it is loaded."""

    title: str
    licence: str
    parameters: int  # of the prior, with its text encoder where it has one, and the image tokenizer
    text_length: int  # tokens of the prompt that it reads, marks included
    download: int = 0  # bytes
    repo: str | None = None
    revision: str | None = None  # None: the one of the first download, which is recorded
    files: tuple[str, ...] = ()
    text_encoder: str | None = None  # the repository of what reads the prompt, where it has one of its own
    defaults: dict = field(default_factory=dict)  # of sampling; empty: those that its folder says
    examples: tuple[str, ...] = ()
    note: str = ""  # what it is good and bad at

    def is_here(self) -> bool:
        """Whether it can be loaded without a network."""
        if self.text_encoder and not downloads.is_cached(self.text_encoder, TEXT_ENCODER_FILES):
            return False
        return self.repo is None or downloads.is_cached(self.repo, list(self.files), self.revision)

    def memory(self) -> dict[str, int]:
        """Bytes of its weights in each dtype, on a CPU and on a GPU alike; float16 takes what bfloat16 does. int8, on
        CPUs, is made from float32, which must fit while it is loaded."""
        return {"float32": 4 * self.parameters, "bfloat16": 2 * self.parameters}


PUBLISHED_EXAMPLES = (
    "a comfy chair that looks like an avocado",
    "court sketch of godzilla on trial",
    "a red fox in the snow, oil painting",
    "a lighthouse at sunset",
    "the eiffel tower on a desert",
    "a cottage by a lake in the mountains",
)
CATALOGUE = {
    "emoji": Model(
        "Emoji, the model that comes with this project",
        "CC-BY-4.0",
        9_600_000,
        16,
        note="Icons in seven styles on coloured backgrounds, in English and Chinese; nothing else.",
    ),
    "dalle-mini": Model(
        "DALL·E mini",
        "MIT",
        484_543_603,
        64,
        1_065_000_000,
        "kuprel/min-dalle",
        files=("encoder_mini.pt", "decoder_mini.pt", "detoker.pt", "vocab_mini.json", "merges_mini.txt", "config_mini.json"),
        defaults=min_dalle.DEFAULTS,
        examples=PUBLISHED_EXAMPLES,
        note="Anything in a few English words, 256 x 256. Landscapes and odd combinations are good; faces are not.",
    ),
    "dalle-mega": Model(
        "DALL·E mega",
        "MIT",
        2_634_230_915,
        64,
        5_370_000_000,
        "kuprel/min-dalle",
        files=("encoder.pt", "decoder.pt", "detoker.pt", "vocab.json", "merges.txt", "config.json"),
        defaults=min_dalle.DEFAULTS,
        examples=PUBLISHED_EXAMPLES,
        note="As DALL·E mini, with more detail and better compositions; slow without a GPU.",
    ),
    "janus-pro-1b": Model(
        "Janus-Pro 1B",
        janus.LICENCE,
        1_556_000_000,
        janus.TEXT_LENGTH,
        4_183_000_000,
        "deepseek-ai/Janus-Pro-1B",
        files=("config.json", "pytorch_model.bin", "tokenizer.json", "special_tokens_map.json"),
        defaults=janus.DEFAULTS,
        examples=PUBLISHED_EXAMPLES,
        note="Long descriptions in English or Chinese, 384 x 384 only; it also answers questions about pictures. Faces and "
        "small things are weak: draw several. On a CPU at most 4 at a time, minutes each time.",
    ),
    "janus-pro-7b": Model(
        "Janus-Pro 7B",
        janus.LICENCE,
        6_660_000_000,
        janus.TEXT_LENGTH,
        14_845_000_000,
        "deepseek-ai/Janus-Pro-7B",
        files=(
            "config.json",
            "pytorch_model.bin.index.json",
            "pytorch_model-00001-of-00002.bin",
            "pytorch_model-00002-of-00002.bin",
            "tokenizer.json",
            "special_tokens_map.json",
        ),
        defaults=janus.DEFAULTS,
        examples=PUBLISHED_EXAMPLES,
        note="As Janus-Pro 1B, nearer to the prompt, with more detail; for a GPU, or much patience.",
    ),
    "llamagen-256": Model(
        "LlamaGen 256",
        llamagen.LICENCE,
        2_073_000_000,
        120,
        14_800_000_000,
        "peizesun/llamagen_t2i",
        files=("t2i_XL_stage1_256.pt", llamagen.IMAGE_TOKENIZER),
        text_encoder="google/flan-t5-xl",
        defaults=llamagen.DEFAULTS,
        examples=PUBLISHED_EXAMPLES,
        note="English descriptions, 256 x 256. Its quality is below Janus-Pro's, which follows a prompt much better; most of "
        "its memory is what reads the prompt. On a CPU at most 16 at a time, minutes each time.",
    ),
    "llamagen-512": Model(
        "LlamaGen 512",
        llamagen.LICENCE,
        2_073_000_000,
        120,
        14_800_000_000,
        "peizesun/llamagen_t2i",
        files=("t2i_XL_stage2_512.pt", llamagen.IMAGE_TOKENIZER),
        text_encoder="google/flan-t5-xl",
        defaults=llamagen.DEFAULTS,
        examples=PUBLISHED_EXAMPLES,
        note="As LlamaGen 256, in another style, 512 x 512; pictures are often cropped too close. Its quality is below "
        "Janus-Pro's. On a CPU at most 4 at a time, minutes each time.",
    ),
}


def load(
    source: str,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    clip: str | None = None,
    tell: Progress | None = None,
    packed: bool = True,
    lora: str | None = None,
) -> DallePipeline:
    """A name of the CATALOGUE, a Hub id in this project's layout, or a folder: in this project's layout, or of
    min-dalle, dalle-mini, minDALL·E, LlamaGen or Janus, recognised by their files; fine-tunes of Janus also by their Hub id.

    device None: CUDA, else Apple's MPS, else the CPU. dtype None: float32 on the CPU and MPS, bfloat16 on CUDA, float16
    where the card has no bfloat16; int8, on a CPU: the prior's linear layers in 8 bits, the image tokenizer's decoder in
    bfloat16 where the CPU computes in it, all else in float32. What reads and ranks pictures, the image tokenizer's encoder
    and CLIP, is in float32 whatever the dtype, and the decoder with float16. clip: the CLIP that ranks, as `open_clip` takes
    it, "none" for no ranking, None for the model's own or the usual one. tell is called with a line of text now and then.
    packed: on a CPU, arrange the weights for drawing (`packed.py`, `decoder.py`), which rounds otherwise. lora: a folder or
    Hub id of a LoRA for this model (`lora.py`), as peft and `training.prior` write it. Raises ModelError naming the file
    (and the key) when something is missing, damaged, unexpected or misshapen, or with numbers when it does not fit.
    """
    source, device = str(source), _device(device)
    dtype = dtype or _usual_dtype(device)
    eight_bit = dtype == torch.int8
    if eight_bit and device.type != "cpu":
        raise ModelError(f"int8 is for CPUs; on {device} use bfloat16.")
    dtype = torch.float32 if eight_bit else dtype
    download(source, device, dtype, clip, tell)
    pipe = _load_folder(model_folder(source, tell), dtype, device, _lora(lora, tell), source)
    if clip == "none":
        pipe.register_modules(clip=None, clip_processor=None, clip_tokenizer=None)
    elif clip is not None or pipe.clip is None:
        chosen = clip or _usual_clip(device)
        pipe.register_modules(**open_clip(chosen, tell))
        _check_clip(pipe, Path(chosen), Path(chosen))
    if eight_bit:
        quantize(pipe.prior)
        narrow(pipe.image_tokenizer)
    elif device.type == "cpu" and packed:
        pack(pipe.prior)
    if device.type == "cpu" and packed:
        quicken(pipe.image_tokenizer)
    if pipe.bring_describer:
        pipe.bring_describer = partial(_brought, pipe.bring_describer, device, packed and not eight_bit)
    if device.type == "cpu":
        pipe.max_candidates = min(pipe.max_candidates, pipe.config.cpu_candidates)
    memory.give_back()
    try:
        return pipe.to(device)
    except RuntimeError as error:
        if not memory.is_out_of_memory(error):
            raise
        free = memory.gigabytes(memory.free_bytes(device))
        raise ModelError(
            f"{source} does not fit on {device}, where {free} are free. Try --dtype bfloat16 or --device cpu."
        ) from None


def _brought(bring: Callable[[], Describer], device: torch.device, packed: bool) -> Describer:
    describer = bring()
    if device.type == "cpu" and packed:
        pack(describer)
    return describer.to(device)


def download(
    source: str,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    clip: str | None = None,
    tell: Progress | None = None,
    freed: int = 0,
) -> None:
    """Brings the files of a model of the CATALOGUE here, and those of the CLIP that will rank it: `load` then needs no
    network. Arguments as of `load`; does nothing for other sources. freed: bytes that will be free by then, not yet.

    Raises ModelError, with numbers before anything is downloaded when the model would not fit.
    """
    known = CATALOGUE.get(str(source))
    if known is None:
        return
    device = device if isinstance(device, torch.device) else _device(device)
    dtype = torch.float32 if dtype == torch.int8 else dtype or _usual_dtype(device)
    memory.check_model(known.title, known.parameters, dtype, device, freed)
    if known.repo:
        downloads.fetch(known.repo, list(known.files), known.revision, tell, room=known.download)  # for the converted copy
        if known.text_encoder:
            downloads.fetch(known.text_encoder, TEXT_ENCODER_FILES, tell=tell, room=known.download)
        if clip != "none":
            clip_folder(clip or _usual_clip(device), tell)


def _usual_dtype(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return torch.float32
    with torch.cuda.device(device):  # before Ampere bfloat16 is emulated, and slow
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def _usual_clip(device: torch.device) -> str:
    return CLIP_ON_GPU if device.type == "cuda" else CLIP_ON_CPU


def model_folder(source: str, tell: Progress | None = None) -> Path:
    """The folder of a model in this project's layout, with a folder for each part: downloaded and converted where that is
    needed. Raises ModelError as `load`."""
    known = CATALOGUE.get(source)
    if source == "emoji":
        return EMBEDDED
    folder, name = Path(source), Path(source).name or "model"
    if known:
        folder, name = downloads.fetch(known.repo, list(known.files), known.revision, tell), source
    elif not os.path.isdir(folder):  # pathlib's own raises for a name that is too long
        if source.count("/") != 1 or folder.is_absolute() or source.startswith("."):
            raise ModelError(
                f"There is no model {source!r}: give a folder, a Hub id (owner/name) or one of: {', '.join(CATALOGUE)}."
            )
        here = [name for name, model in CATALOGUE.items() if model.repo == source]
        if len(here) == 1:
            return model_folder(here[0], tell)
        if here:
            raise ModelError(f"{source} holds more than one model: load it by name, {' or '.join(here)}.")
        folder = _from_hub(source, tell)
    if (folder / "model_index.json").exists():
        return folder
    for format_ in FORMATS:
        files = _files_of(format_, folder, known, tell)
        if files:
            return _converted(format_, files, name, known, tell)
    raise ModelError(
        f"{folder} is no model folder: it has neither model_index.json (this project's layout) nor the files of min-dalle "
        "(encoder.pt, decoder.pt), dalle-mini (flax_model.msgpack), minDALL·E (stage2_last.ckpt), LlamaGen (t2i_….pt) or Janus "
        "(config.json with the model_type multi_modality or janus)."
    )


def _from_hub(source: str, tell: Progress | None) -> Path:
    """The folder of a repository in this project's layout, or of a fine-tune of Janus, whose weights may be in .bin files."""
    patterns = [["*.json", weights] for weights in ("*.safetensors", "*.bin")]
    if not downloads.is_cached(source, patterns[0]) and downloads.is_cached(source, patterns[1]):
        return downloads.fetch(source, patterns[1], tell=tell)
    try:
        return downloads.fetch(source, patterns[0], tell=tell)
    except ModelError as error:
        if "no file *.safetensors" not in str(error):
            raise
    return downloads.fetch(source, patterns[1], tell=tell)


def _files_of(format_, folder: Path, known: Model | None, tell: Progress | None) -> dict[str, Path] | None:
    if known is None or format_ not in (llamagen, min_dalle):
        return format_.find(folder)
    # The Hub's repositories hold two models each; these are the one's.
    if format_ is llamagen:
        if known.text_encoder is None:
            return None
        prior, tokenizer = (folder / file for file in known.files)
        return llamagen.files_of(prior, tokenizer, downloads.fetch(known.text_encoder, TEXT_ENCODER_FILES, tell=tell))
    names = ("encoder", "decoder", "detoker", "vocab", "merges", "config")
    return dict(zip(names, (folder / file for file in known.files)))


def _converted(format_, files: dict[str, Path], name: str, known: Model | None, tell: Progress | None) -> Path:
    """Converts once: the result is kept as safetensors beside the Hub's cache, under a name that its files decide."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files.values() if path.exists()]
    key = hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]
    target = downloads.cache_folder() / "converted" / f"{name}-{key}"
    if target.is_dir():
        return target
    memory.check_disk(target, sum(size for _, size, _ in stats), f"The converted {name}")
    # Weights are mapped into memory and copied once; flax's are copied twice.
    needed = sum(size * (2 if path.endswith(".msgpack") else 1) for path, size, _ in stats)
    # Of a text encoder's files only a part is read.
    memory.check_conversion(name, min(needed, known.memory()["float32"]) if known else needed)
    if tell is None:
        tell = partial(print, file=sys.stderr, flush=True)
    tell(f"Converting {name}, once…")
    for path in files.values():
        downloads.check_local(path)
    parts = format_.convert(files)
    licence = known.licence if known else format_.LICENCE
    pipe = DallePipeline(**parts, name=name, licence=licence, examples=list(known.examples if known else PUBLISHED_EXAMPLES))
    if not target.is_dir():  # else another process was first
        save(pipe, target)
    return target


def save(pipe: DallePipeline, target: Path, card: str | None = None) -> None:
    """Writes a pipeline to the folder `target`, with `card` as its README.md: whole or not at all, unless the folder is
    there already. Raises ModelError with what to do when that fails."""
    part = target if target.is_dir() else target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        pipe.save_pretrained(part, max_shard_size="1TB")
        if card is not None:
            (part / "README.md").write_text(card, encoding="utf-8")
        if part != target:
            os.replace(part, target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)[:200]
        raise ModelError(
            f"{pipe.name} could not be saved at {target}: {reason}. Free some space, or choose another disk."
        ) from None
    finally:
        if part != target:
            shutil.rmtree(part, ignore_errors=True)


def _lora(source: str | None, tell: Progress | None) -> Lora | None:
    if source is None:
        return None
    source = str(source)
    if os.path.isdir(source):
        return read_lora(Path(source))
    if source.count("/") != 1 or Path(source).is_absolute() or source.startswith("."):
        raise ModelError(f"There is no LoRA {source!r}: give a folder or a Hub id (owner/name).")
    return replace(read_lora(downloads.fetch(source, [CONFIG, LORA_WEIGHTS], tell=tell)), name=source.split("/")[1])


def _load_folder(
    folder: Path, dtype: torch.dtype, device: torch.device, lora: Lora | None = None, source: str = ""
) -> DallePipeline:
    index = read_json(folder / "model_index.json")
    if index.get("_class_name") != "DallePipeline":
        raise ModelError(f"{folder / 'model_index.json'} describes a {index.get('_class_name')}, not a DallePipeline.")

    def class_of(name) -> str | None:
        entry = index.get(name)
        return entry[1] if isinstance(entry, list) and len(entry) == 2 else None

    prior = PRIORS.get(class_of("prior"))
    if prior is None:
        raise ModelError(f"{folder / 'model_index.json'}: the prior is a {class_of('prior')}, not one of {', '.join(PRIORS)}.")
    models = {"image_tokenizer": (VQModel, WEIGHTS), "prior": (prior, WEIGHTS)}
    if class_of("clip"):
        models["clip"] = (SiglipModel if class_of("clip") == "SiglipModel" else CLIPModel, "model.safetensors")
    counts = {name: sum(map(math.prod, _shapes(folder / name / file).values())) for name, (_, file) in models.items()}
    count = sum(counts.values()) + counts.get("clip", 0) * (4 // dtype.itemsize - 1)  # CLIP is in float32
    memory.check_model(str(index.get("name", folder.name)), count, dtype, device)
    revision, called = _revision(folder), index.get("name", "unnamed")
    if lora:
        lora.check_base({str(called), source}, revision)
        revision, index["name"] = lora.revision(revision), f"{called}{JOINT}{lora.name}"
    parts = {
        name: _load_model(folder / name, cls, file, dtype, lora if name == "prior" else None)
        for name, (cls, file) in models.items()
    }
    read_json(folder / "text_tokenizer" / "tokenizer.json")  # transformers would load a folder without it, and silently
    try:
        parts["text_tokenizer"] = PreTrainedTokenizerFast.from_pretrained(folder / "text_tokenizer")
    except Exception as error:
        raise ModelError(f"{folder}: the text tokenizer cannot be read ({error}).") from None
    if class_of("clip"):
        tokenizer = folder / "clip_tokenizer" if class_of("clip_tokenizer") else None
        parts |= _clip_readers(models["clip"][0], folder / "clip_processor", tokenizer)
    settings = {key: index[key] for key in SETTINGS if key in index}
    try:
        pipe = DallePipeline(**parts, **settings)
        pipe.check_config()
    except (InputError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / 'model_index.json'}: {error}") from None
    pipe.revision = revision
    if class_of("describer"):
        pipe.bring_describer = partial(_bring_describer, folder, dtype, device, prior_config=pipe.prior.config)
    _check_sizes(pipe, folder)
    return pipe


def _bring_describer(folder: Path, dtype: torch.dtype, device: torch.device, prior_config) -> Describer:
    """What answers questions, read when somebody asks. Raises ModelError as `load` does."""
    path = folder / "describer" / WEIGHTS
    memory.check_model("What answers questions", sum(map(math.prod, _shapes(path).values())), dtype, device)
    describer = _load_model(folder / "describer", Describer, WEIGHTS, dtype)
    for key, ours in (("hidden_size", "hidden_size"), ("vocab_size", "text_vocab_size")):
        if describer.config[key] != prior_config[ours]:
            raise ModelError(
                f"{path}: its {key} is {describer.config[key]}, the prior's {prior_config[ours]}. They do not match."
            )
    return describer


def _revision(folder: Path) -> str:
    """What recipes call these weights: 12 hex digits, of samples of the image tokenizer's and the prior's files."""
    digest = hashlib.sha256()
    for name in ("image_tokenizer", "prior"):
        path = folder / name / WEIGHTS
        size = path.stat().st_size
        digest.update(str(size).encode())
        with path.open("rb") as file:
            for part in range(64):  # all of it would take long: some have gigabytes
                file.seek(part * size // 64)
                digest.update(file.read(4096))
    return digest.hexdigest()[:12]


def open_image_tokenizer(folder: Path) -> VQModel:
    """The image tokenizer in a folder of its own, in float32. Raises ModelError as `load`."""
    return _load_model(folder, VQModel, WEIGHTS, torch.float32)


def open_prior(folder: Path) -> GPTPrior | BartPrior:
    """The prior in a folder of its own, in float32. Raises ModelError as `load`."""
    kind = read_json(folder / "config.json").get("_class_name")
    if kind not in PRIORS:
        raise ModelError(f"{folder / 'config.json'}: the prior is a {str(kind)[:40]}, not one of {', '.join(PRIORS)}.")
    return _load_model(folder, PRIORS[kind], WEIGHTS, torch.float32)


def open_clip(source: str | Path, tell: Progress | None = None) -> dict:
    """clip (float32), clip_processor and clip_tokenizer of a CLIP: a folder in transformers' layout, a Hub id (downloaded
    where that is needed), or a folder with a CLIP of this project's, as a training or a model has it: `clip/` and
    `clip_processor/`, without a `clip_tokenizer/` where it reads the ids of the model's own text tokenizer (None).

    Raises ModelError naming the file (and the key) as `load` does.
    """
    folder = Path(source)
    if not (folder / "clip" / "config.json").is_file():
        return load_clip(clip_folder(str(source), tell))
    clip = _load_model(folder / "clip", CLIPModel, "model.safetensors", torch.float32)
    tokenizer = folder / "clip_tokenizer"
    return {"clip": clip} | _clip_readers(CLIPModel, folder / "clip_processor", tokenizer if tokenizer.is_dir() else None)


def load_clip(folder: Path) -> dict:
    """clip (float32), clip_processor and clip_tokenizer from a folder in transformers' layout."""
    path = folder / "model.safetensors"
    if path.is_file():
        shapes = _shapes(path)
    else:  # as older repositories have it
        path = folder / "pytorch_model.bin"
        shapes = {key: tuple(value.shape) for key, value in read_torch(path).tensors.items()}
    config = read_json(folder / "config.json")
    kind = config.get("model_type", "clip")
    if kind not in RANKERS:
        raise ModelError(
            f"{folder / 'config.json'}: the model_type is {str(kind)[:40]!r}; what ranks must be one of {', '.join(RANKERS)}."
        )
    cls, _ = RANKERS[kind]
    _check_config(cls, config, folder / "config.json", shapes)
    try:
        clip, found = cls.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, weights_only=True)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise ModelError(f"{folder}: no CLIP can be loaded from it ({reason}).") from None
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in found[kind] if not str(key).endswith("position_ids"))
        if keys:
            raise ModelError(f"{folder}: {kind.replace('_', ' ')} in the CLIP weights: {keys[0]} ({len(keys)} in all).")
    for key, value in clip.named_parameters():
        if not torch.isfinite(value).all():
            raise ModelError(f"{path}: {key} holds NaN or infinity. The file is damaged: download or save it again.")
        value.data = value.data.clone()  # in memory of its own, as `_load_model` has it
    return {"clip": clip.eval()} | _clip_readers(cls, folder, folder)


def clip_folder(source: str, tell: Progress | None) -> Path:
    """The folder of a CLIP, downloaded where that is needed. Older repositories have no safetensors, SigLIP's no merges.txt."""
    if Path(source).is_dir():
        return Path(source)
    new, old = (CLIP_FILES + [weights] for weights in ("model.safetensors", "pytorch_model.bin"))
    siglip = ["*.json", "model.safetensors"]
    kinds = [new, old, siglip]
    here = next((files for files in kinds if downloads.is_cached(source, files)), None)
    if here:
        return downloads.fetch(source, here, tell=tell)
    try:
        return downloads.fetch(source, new, tell=tell)
    except ModelError as error:
        if "no file model.safetensors" in str(error):
            return downloads.fetch(source, old, tell=tell)
        if re.search(r"no file (vocab\.json|merges\.txt)", str(error)):
            return downloads.fetch(source, siglip, tell=tell)
        raise ModelError(f"{error} It is the CLIP that ranks: --clip none draws without.") from None


def _clip_readers(cls, processor: Path, tokenizer: Path | None) -> dict:
    read_json(processor / "preprocessor_config.json")
    reader, clip_tokenizer = CLIPImageProcessorPil, None
    try:
        if cls is SiglipModel:
            reader = SiglipImageProcessorPil
            if tokenizer:  # as the file has it: the class that its tokenizer_config.json names may build another one
                read_json(tokenizer / "tokenizer.json")
                clip_tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer)
        elif tokenizer:
            clip_tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        return {"clip_processor": reader.from_pretrained(processor), "clip_tokenizer": clip_tokenizer}
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{processor}: the CLIP processor or its tokenizer cannot be read ({error}).") from None


def _load_model(folder: Path, cls, file: str, dtype: torch.dtype, lora: Lora | None = None):
    config, path = read_json(folder / "config.json"), folder / file
    found = _shapes(path)
    _check_config(cls, config, folder / "config.json", found)
    own = {key: config.pop(key) for key in OWN_CONFIG if key in config}
    try:
        with torch.device("meta"):  # the structure alone: no memory, no random numbers
            kind = next((kind for kind, (model, _) in RANKERS.items() if model is cls), None)
            model = cls(RANKERS[kind][1](**config)) if kind else cls.from_config(config)
        if not own.get("has_encoder", True):
            drop_encoder(model)
        if "pixel_range" in own:
            set_pixel_range(model, *map(float, own["pixel_range"]))
        _trial(model)
    except Exception as error:
        raise ModelError(f"{folder / 'config.json'} does not describe a {cls.__name__}: {error}") from None
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    for key, shape in expected.items():
        if key not in found:
            raise ModelError(f"{path}: the key {key} is missing. The file belongs to another model or is damaged.")
        if found[key] != shape:
            raise ModelError(f"{path}: {key} has the shape {list(found[key])}, config.json asks for {list(shape)}.")
    for key in found.keys() - expected.keys():
        raise ModelError(f"{path}: the key {key} is unexpected. The file belongs to another model.")
    state, changes = {}, lora.changes(model) if lora else {}
    for key in expected:
        try:
            with safe_open(path, "pt") as weights:  # mapped for each anew: the pages of all would count as memory in use
                # In memory of its own: in the file it may begin anywhere, where kernels round otherwise.
                exact = (
                    cls in (CLIPModel, SiglipModel)
                    or cls is VQModel
                    and (not key.startswith(("decoder.", "post_quant_conv.")) or decoder_dtype(dtype) == torch.float32)
                    or dtype == torch.float16
                    and key.startswith("text_encoder.")
                    and key.endswith(".wo.weight")  # T5's overflow in float16; transformers keeps them so, too
                )
                value = weights.get_tensor(key)
                if key in changes:  # in float32, before it is rounded to the dtype
                    value = lora.merged(key, value, changes.pop(key))
                state[key] = value.to(torch.float32 if exact else dtype, copy=True)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read ({error}). It is damaged or incomplete: download it again.") from None
        if not torch.isfinite(state[key]).all():
            raise ModelError(f"{path}: {key} holds NaN or infinity. The file is damaged: download or save it again.")
    model.load_state_dict(state, strict=True, assign=True)
    for name, buffer in list(model.named_buffers()):  # what follows from the config is not in the file
        if buffer.is_meta:
            parent, _, leaf = name.rpartition(".")
            if leaf != "position_ids":
                raise ModelError(f"{path}: no value for the buffer {name}.")
            positions = torch.arange(buffer.shape[-1]).expand(buffer.shape)
            model.get_submodule(parent).register_buffer(leaf, positions, persistent=False)
    for module in model.modules():
        if isinstance(module, torch.nn.SiLU):
            module.inplace = True  # it follows a norm, whose output nobody else reads: a copy less
    return model.eval()


@torch.no_grad()
def _trial(model) -> None:
    """One pass through a model that is shapes alone (on the meta device), in no time. Raises what it raises."""

    def zeros(*shape, dtype=torch.long):
        return torch.zeros(shape, dtype=dtype, device="meta")

    if isinstance(model, VQModel):
        pixels = images.decode(model, zeros(1, 4, 4))
        if images.has_encoder(model):
            images.encode(model, pixels)
    elif isinstance(model, Describer):
        model(zeros(1, 3, model.config.image_size, model.config.image_size, dtype=torch.float))
    elif isinstance(model, CLIPModel | SiglipModel):
        size, length = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings
        model(zeros(1, length), zeros(1, 3, size, size, dtype=torch.float))
    else:
        model(zeros(1, model.config.text_length), zeros(1, model.config.image_length - 1))


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor in a safetensors file, from its header. Raises ModelError when it cannot be read."""
    if not path.is_file():
        raise ModelError(f"{path} is missing: the model folder is not complete. Download or save it again.")
    try:
        with safe_open(path, "pt") as weights:
            return {key: tuple(weights.get_slice(key).get_shape()) for key in weights.keys()}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read ({error}). It is damaged or incomplete: download it again.") from None


def _check_config(cls, config: dict, path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Before anything is built: what the file `path` says of sizes and layers must go with the shapes of the weights. A few
    of its characters could otherwise ask for a million layers. Raises ModelError naming the file and the key."""
    # What is said and what is found, of every key that a number of layers follows from.
    if cls is VQModel:
        channels, levels = config.get("block_out_channels"), numbered(shapes, "decoder.up_blocks.")
        resnets = numbered(shapes, "decoder.up_blocks.0.resnets.")
        claims = {"layers_per_block": (config.get("layers_per_block"), resnets - 1)}
        if isinstance(channels, list):
            claims["the length of block_out_channels"] = len(channels), levels
        layers = levels * resnets
    elif cls in (CLIPModel, SiglipModel):
        claims, layers = {}, 0
        for part in ("text", "vision"):
            found = numbered(shapes, f"{part}_model.encoder.layers.")
            for name in (f"{part}_config", f"{part}_config_dict"):  # the latter in older files
                if isinstance(config.get(name), dict):
                    claims[f"num_hidden_layers of {name}"] = config[name].get("num_hidden_layers"), found
            layers += found
    else:
        prefixes = {"num_layers": "blocks."}
        if cls is BartPrior:
            prefixes = {"encoder_layers": "encoder.", "decoder_layers": "decoder."}
        elif cls is Describer:
            prefixes = {"num_layers": "tower.encoder.layers."}
        elif cls is LlamaGenPrior:
            prefixes["encoder_layers"] = "text_encoder.block."
        claims = {key: (config.get(key), numbered(shapes, prefix)) for key, prefix in prefixes.items()}
        layers = sum(found for _, found in claims.values())
    for key, (said, found) in claims.items():
        if type(said) is int and said != found:  # what is left out has a small default; what is no number cannot be built
            raise ModelError(
                f"{path}: {key} is {str(said)[:20]}, but the weights have {max(found, 0)}. "
                "The two files do not belong together."
            )
    if layers > LAYERS:
        raise ModelError(f"{path}: the weights beside it have {layers} layers; no model has more than {LAYERS}.")
    largest = max([LARGE, *(size for shape in shapes.values() for size in shape)])
    left = list(config.items())
    while left:
        key, value = left.pop()
        if isinstance(value, (dict, list)):
            left += value.items() if isinstance(value, dict) else [(key, entry) for entry in value]
        elif isinstance(value, int) and abs(value) > largest:
            raise ModelError(f"{path}: {str(key)[:40]} is {str(value)[:20]}, but no size of the weights is above {largest}.")


def _check_sizes(pipe: DallePipeline, folder: Path) -> None:
    """Components that do not belong together."""
    codes, vocabulary = pipe.image_tokenizer.config.num_vq_embeddings, pipe.codebook_size
    if codes != vocabulary:
        raise ModelError(f"{folder}: the image tokenizer has {codes} codes, the prior {vocabulary}. They do not match.")
    texts, highest = pipe.prior.config.text_vocab_size, max(pipe.text_tokenizer.get_vocab().values(), default=-1)
    if highest >= texts:
        raise ModelError(f"{folder}: the text tokenizer has ids up to {highest}, the prior only {texts} of them.")
    if pipe.grid_size**2 != pipe.prior.config.image_length:
        raise ModelError(f"{folder}: {pipe.prior.config.image_length} image tokens are no square grid.")
    try:
        for prompt in ("", "a"):
            encode_pair(pipe.text_tokenizer, prompt, "", *pipe.reading)
    except Exception as error:
        raise ModelError(f"{folder / 'text_tokenizer'}: a prompt cannot be read with it ({error!r}).") from None
    if pipe.clip is not None:
        tokenizer = "clip_tokenizer" if pipe.clip_tokenizer else "text_tokenizer"
        _check_clip(pipe, folder / "clip_processor", folder / tokenizer)


def _check_clip(pipe: DallePipeline, processor: Path, tokenizer: Path) -> None:
    """CLIP and its readers, which stand in the folders `processor` and `tokenizer`, must belong together."""
    size = pipe.clip.config.vision_config.image_size
    try:
        for key in ("size", "crop_size", "pad_size"):
            sides = dict(getattr(pipe.clip_processor, key, None) or {})
            if any(side > LARGE // 16 for side in sides.values()):
                raise ValueError(f"{key} is {sides}")
        blank = Image.new("RGB", (pipe.image_size, pipe.image_size))
        found = tuple(pipe.clip_processor(images=[blank], return_tensors="pt")["pixel_values"].shape)
    except Exception as error:
        raise ModelError(f"{processor}: pictures cannot be read with it ({error}).") from None
    if found != (1, 3, size, size):
        raise ModelError(f"{processor} makes pictures of the shape {list(found[1:])}, CLIP reads [3, {size}, {size}].")
    texts = pipe.clip.config.text_config.vocab_size
    highest = max((pipe.clip_tokenizer or pipe.text_tokenizer).get_vocab().values(), default=-1)
    if highest >= texts:
        raise ModelError(f"{tokenizer}: CLIP's tokenizer has ids up to {highest}, CLIP only {texts} of them.")


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
