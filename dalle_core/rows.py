"""Rows of a batch that do not depend on each other: the promise that a candidate is the same alone and among others.

Matrix products choose another kernel, and so another order of summation, for other numbers of rows. With rows in
multiples of ROW_MULTIPLE every row's result is the same whatever stands in the other rows (seen on CPU in float32).
"""

import torch
import torch.nn.functional as F

ROW_MULTIPLE = 16


def pad_rows(x: torch.Tensor) -> torch.Tensor:
    """[B, ...] -> [B', ...] with zeros up to the next multiple of ROW_MULTIPLE."""
    missing = -len(x) % ROW_MULTIPLE
    return F.pad(x, (0, 0) * (x.ndim - 1) + (0, missing)) if missing else x
