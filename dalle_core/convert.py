"""Any model that `load` opens, into a folder of this project's layout with a model card: ready for `push_to_hub`."""

from pathlib import Path

import torch

from dalle_core.catalogue import CATALOGUE, load, save
from dalle_core.downloads import Progress
from dalle_core.memory import check_disk

CARD = """---
license: {licence_tag}
pipeline_tag: text-to-image
tags: [dall-e, autoregressive, vqgan]
---

# {title}

{source} converted into the layout of a `DallePipeline`: `dalle_core.load("owner/name")` opens it.

Licence of the weights: {licence}. The licence and the credit are those of the source; read them there before sharing.

| part | class | parameters |
| --- | --- | --- |
{parts}
"""
TAGS = (  # the Hub's names of licences
    "mit",
    "apache-2.0",
    "bsd-3-clause",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "openrail",
    "creativeml-openrail-m",
    "gpl-3.0",
)


def licence_tag(licence: str) -> str:
    """The Hub's name of a licence, which may be followed by more words: "MIT, see there" is mit."""
    words = licence.lower().replace(",", " ").split()
    return words[0] if words and words[0] in TAGS else "other"


def convert(source: str, out: Path, dtype: torch.dtype, clip: str | None = None, tell: Progress | None = None) -> None:
    """Writes the model at `source` (as `load` takes it) into the folder `out`, weights in `dtype`, with a README.md.

    Raises ModelError as `load` does, and FileExistsError when `out` holds files.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: name a new folder.")
    pipe = load(source, device="cpu", dtype=dtype, clip=clip, tell=tell, packed=False)
    pipe.load_describer()
    known = CATALOGUE.get(source)
    licence = pipe.config.licence
    models = {name: part.to(dtype) for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    rows = [
        f"| `{name}` | {type(part).__name__} | {sum(p.numel() for p in part.parameters()):,} |" for name, part in models.items()
    ]
    origin = f"`{known.repo}` on the Hugging Face Hub" if known and known.repo else f"`{Path(source).name}`"
    card = CARD.format(
        licence_tag=licence_tag(licence),
        title=known.title if known else pipe.name,
        source=origin,
        licence=licence,
        parts="\n".join(rows),
    )
    size = sum(p.numel() * p.element_size() for part in models.values() for p in part.parameters())
    check_disk(out, size, "The converted model")
    save(pipe, out, card)
