"""What the page says of models: the picker's choices, and a line of facts about the loaded one."""

import html

import torch

from dalle_core import CATALOGUE
from dalle_core.lora import lora_of
from dalle_core.memory import RESERVE, chunk_that_fits, free_bytes, gigabytes
from dalle_core.studio.holder import Loaded, ModelHolder


def labelled(holder: ModelHolder) -> list[tuple[str, str]]:
    """The picker's choices as (label, value): size, licence, whether the model is already here, and whether it is too
    large for the device and dtype of the loaded one."""
    loaded = holder.loaded
    room = (free_bytes(torch.device(loaded.device)) + holder.bytes) * RESERVE
    rows = []
    for name in holder.choices:
        known = CATALOGUE.get(holder.model_of(name))
        if known is None:
            rows.append((name, name))
            continue
        here = "here" if known.is_here() else f"{gigabytes(known.download)} to download"
        label, needed = f"{name} · {here} · {known.licence}", known.parameters * loaded.dtype.itemsize
        if needed > room and name != loaded.source:
            label += f" · too large: needs {gigabytes(needed)} of memory"
        rows.append((label, name))
    return rows


def facts(loaded: Loaded) -> str:
    """What is known of a model, as a line of HTML: licence, size, whether it is here, what it is good at."""
    known = CATALOGUE.get(loaded.model)
    parts, note = [f"licence: {known.licence if known else loaded.licence}"], known.note if known else ""
    if lora := lora_of(loaded.name):
        parts.append(f"LoRA: {lora}")
    if known and known.repo:
        here = known.is_here()
        parts.append("already here" if here else f"downloads {gigabytes(known.download)} from {known.repo}")
        sizes = ", ".join(f"{gigabytes(size)} in {dtype}" for dtype, size in known.memory().items())
        parts.append(f"memory: {sizes}")
    device = torch.device(loaded.device)
    parts.append(f"{str(loaded.dtype).removeprefix('torch.')} on {device.type}")
    together = chunk_that_fits(loaded.prior_config, loaded.dtype.itemsize, 2, device, loaded.limits.max_candidates)
    parts.append(f"{gigabytes(free_bytes(device))} free: {together} candidates at a time")
    line = " · ".join(f"<span>{html.escape(part)}</span>" for part in parts)  # a text each: they are translated
    return f'<div class="model-facts">{line}<br>{html.escape(note)}</div>'
