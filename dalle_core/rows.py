"""Rows of a batch that do not depend on each other: the promise that a candidate is the same alone and among others.

Matrix products choose another kernel, and so another order of summation, for other numbers of rows. With rows in
multiples of ROW_MULTIPLE every row's result is the same whatever stands in the other rows (seen on CPU in float32);
packed and 8-bit layers (`packed.py`, `int8.py`) keep rows apart from FEW_ROWS on.
"""

import torch
import torch.nn.functional as F

ROW_MULTIPLE, FEW_ROWS = 16, 2


def pad_rows(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """[B, ...] -> [B', ...] with zeros up to the next multiple."""
    missing = -len(x) % multiple
    return F.pad(x, (0, 0) * (x.ndim - 1) + (0, missing)) if missing else x
