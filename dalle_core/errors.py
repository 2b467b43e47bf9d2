"""The two errors that are meant for the person at the page: their text says what happened and what to do next."""


class InputError(ValueError):
    """Something that was asked for cannot be done."""


class ModelError(RuntimeError):
    """A model is missing, damaged, or not what its folder says."""
