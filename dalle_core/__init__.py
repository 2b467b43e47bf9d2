"""DALL·E that runs: an image tokenizer, an autoregressive prior, sampling, and CLIP reranking.

    import dalle_core

    pipe = dalle_core.load("emoji")
    best = pipe("a red fox", num_candidates=16, seed=7).candidates[0]

`load` opens the model that comes with this package, a published one, or a folder that the training commands made.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "BartPrior",
    "CATALOGUE",
    "Candidate",
    "DallePipeline",
    "GPTPrior",
    "Generation",
    "InputError",
    "LlamaGenPrior",
    "LlamaPrior",
    "ModelError",
    "Step",
    "download",
    "load",
]

# Each is imported when it is first used: PyTorch and diffusers take seconds, which `--help` and `--version` need not wait for.
_MODULES = {
    "catalogue": ("CATALOGUE", "download", "load"),
    "errors": ("InputError", "ModelError"),
    "pipeline": ("Candidate", "DallePipeline", "Generation", "Step"),
    "priors.bart": ("BartPrior",),
    "priors.gpt": ("GPTPrior",),
    "priors.llama": ("LlamaPrior",),
    "priors.llamagen": ("LlamaGenPrior",),
}

if TYPE_CHECKING:  # the same for editors and type checkers, which run nothing
    from dalle_core.catalogue import CATALOGUE, download, load
    from dalle_core.errors import InputError, ModelError
    from dalle_core.pipeline import Candidate, DallePipeline, Generation, Step
    from dalle_core.priors.bart import BartPrior
    from dalle_core.priors.gpt import GPTPrior
    from dalle_core.priors.llama import LlamaPrior
    from dalle_core.priors.llamagen import LlamaGenPrior
else:

    def __getattr__(name: str) -> object:
        for module, names in _MODULES.items():
            if name in names:
                return getattr(import_module(f"{__name__}.{module}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
