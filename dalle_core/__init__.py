"""DALL·E that runs: an image tokenizer, an autoregressive prior, sampling, and CLIP reranking.

    import dalle_core

    pipe = dalle_core.load("emoji")
    best = pipe("a red fox", num_candidates=16, seed=7).candidates[0]

`load` opens the model that comes with this package, a published one, or a folder that the training commands made.
"""

from dalle_core.catalogue import CATALOGUE, download, load
from dalle_core.errors import InputError, ModelError
from dalle_core.pipeline import Candidate, DallePipeline, Generation, Step
from dalle_core.priors.bart import BartPrior
from dalle_core.priors.gpt import GPTPrior
from dalle_core.priors.llama import LlamaPrior

__all__ = [
    "BartPrior",
    "CATALOGUE",
    "Candidate",
    "DallePipeline",
    "GPTPrior",
    "Generation",
    "InputError",
    "LlamaPrior",
    "ModelError",
    "Step",
    "download",
    "load",
]
