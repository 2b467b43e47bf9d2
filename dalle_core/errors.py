"""The two errors that are meant for the person at the page: their text says what happened and what to do next."""

from importlib import import_module
from types import ModuleType


class InputError(ValueError):
    """Something that was asked for cannot be done."""


class ModelError(RuntimeError):
    """A model is missing, damaged, or not what its folder says."""


def published(name: str) -> ModuleType:
    """A module of the packages that published models take, and the embedded one does not. Raises ModelError without it."""
    try:
        return import_module(name)
    except ImportError:
        raise ModelError(
            f"This model takes the package {name}: pip install -r requirements.txt, or this package with its extra “published”."
        ) from None
